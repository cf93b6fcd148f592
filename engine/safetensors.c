/* Reading safetensors: every size is checked against the file before anything is allocated or trusted.
 *
 * A set holds all tensors of a model, sorted by name, with a hash table from names to entries, and keeps
 * its files open for pread. Tensors of a file must cover its data exactly: no hole, no overlap, no
 * trailing byte. */
#include "safetensors.h"
#include "alloc.h"
#include "json.h"
#include "text.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_HEADER_BYTES = 100000000, MAX_INDEX_BYTES = 256 << 20 };

typedef struct {
    IoFile file;
    JsonDocument *header; /* owns the tensor names */
    uint64_t data_offset;
} Shard;

struct TensorSet {
    Shard *shards;
    int n_shards;
    TensorEntry *entries;
    int64_t n_entries, capacity;
    int64_t *slots; /* index + 1 of an entry, 0: free */
    size_t n_slots;
    JsonDocument *index;
};

typedef struct {
    const char *name;
    int bits;
    int dtype; /* -1: not one of ours */
} DTypeName;

static const DTypeName dtype_names[] = {
    {"F32", 32, DTYPE_F32}, {"BF16", 16, DTYPE_BF16}, {"F16", 16, DTYPE_F16}, {"F64", 64, DTYPE_F64},
    {"I64", 64, DTYPE_I64}, {"I32", 32, DTYPE_I32},   {"BOOL", 8, -1},        {"U8", 8, -1},
    {"I8", 8, -1},          {"I16", 16, -1},          {"U16", 16, -1},        {"U32", 32, -1},
    {"U64", 64, -1},        {"C64", 64, -1},          {"F8_E4M3", 8, -1},     {"F8_E5M2", 8, -1},
    {"F8_E8M0", 8, -1},     {"F8_E4M3FNUZ", 8, -1},   {"F8_E5M2FNUZ", 8, -1}, {"F4", 4, -1},
    {"F6_E2M3", 6, -1},     {"F6_E3M2", 6, -1},
};

static const DTypeName *find_dtype(const char *name) {
    for (size_t i = 0; i < sizeof dtype_names / sizeof *dtype_names; i++)
        if (!strcmp(dtype_names[i].name, name)) return &dtype_names[i];
    return NULL;
}

/* ---- one tensor of a header ---- */
static bool read_shape(Json at, TensorEntry *entry, size_t *n_elements, Error *error) {
    if (json_type(at) != JSON_ARRAY || !at.node)
        return json_error(at, error, "expected an array of sizes: got something else");
    if (json_count(at) > 8)
        return json_error(at, error, "expected at most 8 dimensions: got %lld", (long long)json_count(at));
    *n_elements = 1;
    for (Json size = {0}; json_next(&at, &size); entry->n_dims++) {
        if (!json_integer(size, 0, INT64_MAX, &entry->shape[entry->n_dims], error)) return false;
        if (!size_multiply(*n_elements, (size_t)entry->shape[entry->n_dims], n_elements))
            return json_error(at, error, "expected a size that fits the machine: got an overflow");
    }
    return true;
}

static bool read_entry(Json at, uint64_t data_bytes, TensorEntry *entry, Error *error) {
    if (json_type(at) != JSON_OBJECT)
        return json_error(at, error, "expected an object with dtype, shape, data_offsets");
    Json offsets = json_member(&at, "data_offsets");
    int64_t begin, end;
    size_t n_elements, n_bits;
    if (!json_string(json_member(&at, "dtype"), &entry->dtype_name, error)) return false;
    const DTypeName *dtype = find_dtype(entry->dtype_name);
    if (!dtype)
        return json_error(json_member(&at, "dtype"), error, "expected a safetensors dtype: got \"%.40s\"",
                          entry->dtype_name);
    if (!read_shape(json_member(&at, "shape"), entry, &n_elements, error)) return false;
    if (!offsets.node || json_type(offsets) != JSON_ARRAY || json_count(offsets) != 2)
        return json_error(at, error, "expected data_offsets of two numbers");
    Json first = {0}, last;
    json_next(&offsets, &first);
    last = first;
    json_next(&offsets, &last);
    if (!json_integer(first, 0, INT64_MAX, &begin, error) ||
        !json_integer(last, begin, INT64_MAX, &end, error))
        return false;
    if (!size_multiply(n_elements, (size_t)dtype->bits, &n_bits) || n_bits % 8 ||
        n_bits / 8 != (uint64_t)(end - begin))
        return json_error(at, error, "expected data_offsets that span shape x dtype = %zu bytes: got %lld",
                          n_bits / 8, (long long)(end - begin));
    if ((uint64_t)end > data_bytes)
        return json_error(at, error, "expected data within the file's %llu bytes: got an end at %lld",
                          (unsigned long long)data_bytes, (long long)end);
    entry->dtype_known = dtype->dtype >= 0;
    entry->dtype = entry->dtype_known ? (DType)dtype->dtype : DTYPE_F32;
    entry->offset = (uint64_t)begin;
    entry->n_bytes = (uint64_t)(end - begin);
    return true;
}

static bool add_entry(TensorSet *set, const TensorEntry *entry, const char *path, Error *error) {
    if (set->n_entries == set->capacity) {
        int64_t capacity = set->capacity ? 2 * set->capacity : 256;
        TensorEntry *larger = mem_resize(set->entries, (size_t)capacity, sizeof *larger);
        if (!larger) return error_out_of_memory(error, path, (size_t)capacity * sizeof *larger);
        set->entries = larger;
        set->capacity = capacity;
    }
    set->entries[set->n_entries++] = *entry;
    return true;
}

/* ---- one file ---- */
static int by_offset(const void *a, const void *b) {
    const TensorEntry *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

/* The shard's tensors, entries [first, n_entries), must follow each other without hole or overlap up to
 * the end. */
static bool check_layout(TensorSet *set, int64_t first, uint64_t data_bytes, const char *path, Error *error) {
    uint64_t at = 0;
    if (set->n_entries > first)
        qsort(set->entries + first, (size_t)(set->n_entries - first), sizeof *set->entries, by_offset);
    for (int64_t i = first; i < set->n_entries; i++) {
        const TensorEntry *entry = &set->entries[i];
        if (entry->offset != at)
            return error_set(error, ERROR_BAD_INPUT,
                             "%s: tensor %s: expected its data to begin at %llu, where the one before "
                             "ends (no hole, no overlap): got %llu",
                             path, entry->name, (unsigned long long)at, (unsigned long long)entry->offset);
        at += entry->n_bytes;
    }
    if (at == data_bytes) return true;
    return error_set(error, ERROR_BAD_INPUT,
                     "%s: expected a file that ends with its last tensor at data byte %llu: got %llu "
                     "bytes of data",
                     path, (unsigned long long)at, (unsigned long long)data_bytes);
}

static bool check_metadata(Json at, Error *error) {
    const char *value;
    if (json_type(at) != JSON_OBJECT) return json_error(at, error, "expected an object of strings");
    for (Json child = {0}; json_next(&at, &child);)
        if (!json_string(child, &value, error)) return false;
    return true;
}

static bool read_header(Shard *shard, const char *path, Error *error) {
    uint8_t raw[8];
    uint64_t length = 0;
    if (shard->file.n_bytes < 8)
        return error_set(error, ERROR_BAD_INPUT, "%s: expected at least 8 bytes: got %llu", path,
                         (unsigned long long)shard->file.n_bytes);
    if (!io_read_at(&shard->file, 0, raw, 8, error)) return false;
    for (int i = 7; i >= 0; i--) length = length << 8 | raw[i];
    if (length > MAX_HEADER_BYTES || length > shard->file.n_bytes - 8 || length < 2)
        return error_set(error, ERROR_BAD_INPUT, "%s: expected a header of 2 to %llu bytes: got %llu", path,
                         (unsigned long long)(shard->file.n_bytes - 8 < MAX_HEADER_BYTES
                                                  ? shard->file.n_bytes - 8
                                                  : MAX_HEADER_BYTES),
                         (unsigned long long)length);
    char *text = mem_alloc((size_t)length);
    if (!text) return error_out_of_memory(error, path, length);
    bool fine = io_read_at(&shard->file, 8, text, (size_t)length, error);
    if (fine && text[0] != '{')
        fine = error_set(error, ERROR_BAD_INPUT, "%s: expected a header that begins with {", path);
    if (fine) shard->header = json_parse(text, (size_t)length, shard->file.path, error);
    mem_free(text);
    shard->data_offset = 8 + length;
    return fine && shard->header;
}

static bool open_shard(TensorSet *set, const char *path, Error *error) {
    Shard *shard = &set->shards[set->n_shards];
    if (!io_open(&shard->file, path, error)) return false;
    int number = set->n_shards++;
    int64_t first = set->n_entries;
    if (!read_header(shard, path, error)) return false;
    Json root = json_root(shard->header);
    uint64_t data_bytes = shard->file.n_bytes - shard->data_offset;
    for (Json at = {0}; json_next(&root, &at);) {
        if (!strcmp(at.key, "__metadata__")) {
            if (!check_metadata(at, error)) return false;
            continue;
        }
        TensorEntry entry = {.name = at.key, .file = number};
        if (!read_entry(at, data_bytes, &entry, error) || !add_entry(set, &entry, path, error)) return false;
    }
    return check_layout(set, first, data_bytes, path, error);
}

/* ---- the table of names ---- */
static size_t hash_name(const char *name) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return (size_t)(h ^ h >> 32);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const TensorEntry *)a)->name, ((const TensorEntry *)b)->name);
}

static bool index_names(TensorSet *set, const char *path, Error *error) {
    if (set->n_entries) qsort(set->entries, (size_t)set->n_entries, sizeof *set->entries, by_name);
    for (set->n_slots = 16; set->n_slots < 2 * (size_t)set->n_entries;) set->n_slots *= 2;
    set->slots = mem_zeroed(set->n_slots, sizeof *set->slots);
    if (!set->slots) return error_out_of_memory(error, path, set->n_slots * sizeof *set->slots);
    for (int64_t i = 0; i < set->n_entries; i++) {
        if (i && !strcmp(set->entries[i].name, set->entries[i - 1].name))
            return error_set(error, ERROR_BAD_INPUT,
                             "%s: tensor %s: expected it in one file: got it in %s and %s", path,
                             set->entries[i].name, safetensors_file(set, &set->entries[i - 1]),
                             safetensors_file(set, &set->entries[i]));
        size_t slot = hash_name(set->entries[i].name) & (set->n_slots - 1);
        while (set->slots[slot]) slot = (slot + 1) & (set->n_slots - 1);
        set->slots[slot] = i + 1;
    }
    return true;
}

const TensorEntry *safetensors_find(const TensorSet *set, const char *name) {
    for (size_t slot = hash_name(name) & (set->n_slots - 1); set->slots[slot];
         slot = (slot + 1) & (set->n_slots - 1)) {
        const TensorEntry *entry = &set->entries[set->slots[slot] - 1];
        if (!strcmp(entry->name, name)) return entry;
    }
    return NULL;
}

/* ---- shards ---- */
static bool plain_name(const char *name) {
    return name[0] && name[0] != '.' && !strchr(name, '/') && !strchr(name, '\\') && strlen(name) < 256;
}

/* Opens each file that the index names, once. */
static bool open_listed(TensorSet *set, const char *folder, Json map, Error *error) {
    for (Json at = {0}; json_next(&map, &at);) {
        const char *name;
        if (!json_string(at, &name, error)) return false;
        if (!plain_name(name))
            return json_error(at, error, "expected a plain file name: got \"%.80s\"", name);
        char *path = io_join(folder, name);
        if (!path) return error_out_of_memory(error, folder, strlen(name));
        bool known = false, fine = true;
        for (int i = 0; i < set->n_shards && !known; i++) known = !strcmp(set->shards[i].file.path, path);
        if (!known) {
            Shard *larger = mem_resize(set->shards, (size_t)set->n_shards + 1, sizeof *larger);
            if (larger) {
                set->shards = larger;
                set->shards[set->n_shards] = (Shard){.file = {.fd = -1}};
            }
            fine = larger ? open_shard(set, path, error) : error_out_of_memory(error, path, sizeof *larger);
        }
        mem_free(path);
        if (!fine) return false;
    }
    return true;
}

/* The index and the files must list the same tensors, each in its file. */
static bool check_index(const TensorSet *set, const char *folder, Json map, Error *error) {
    for (Json at = {0}; json_next(&map, &at);) {
        const char *name;
        const TensorEntry *entry = safetensors_find(set, at.key);
        if (!json_string(at, &name, error)) return false;
        if (!entry)
            return json_error(at, error, "expected the tensor in file %.80s: got none of that name", name);
        const char *path = safetensors_file(set, entry);
        if (strcmp(io_last_name(path), name) != 0)
            return json_error(at, error, "expected the tensor in file %.80s: got it in %.80s", name, path);
    }
    if (json_count(map) == set->n_entries) return true;
    return error_set(error, ERROR_BAD_INPUT,
                     "%s/model.safetensors.index.json: weight_map: expected all %lld tensors of the "
                     "files: got %lld",
                     folder, (long long)set->n_entries, (long long)json_count(map));
}

static bool open_folder(TensorSet *set, const char *folder, Error *error) {
    char *single = io_join(folder, "model.safetensors"),
         *index = io_join(folder, "model.safetensors.index.json");
    char *pickle = io_join(folder, "pytorch_model.bin"),
         *pickle_index = io_join(folder, "pytorch_model.bin.index.json");
    bool fine = false;
    if (!single || !index || !pickle || !pickle_index) {
        error_out_of_memory(error, folder, strlen(folder));
    } else if (io_exists(index) && !io_exists(single)) {
        set->index = json_read(index, MAX_INDEX_BYTES, error);
        Json root = set->index ? json_root(set->index) : (Json){0};
        Json map = json_member(&root, "weight_map");
        if (set->index && (!map.node || json_type(map) != JSON_OBJECT))
            json_error(root, error, "expected weight_map, an object of tensor and file names");
        else if (set->index)
            fine = open_listed(set, folder, map, error) && index_names(set, folder, error) &&
                   check_index(set, folder, map, error);
    } else if (io_exists(single) || (!io_exists(pickle) && !io_exists(pickle_index))) {
        set->shards = mem_zeroed(1, sizeof *set->shards);
        fine = set->shards ? open_shard(set, single, error) && index_names(set, folder, error)
                           : error_out_of_memory(error, folder, sizeof *set->shards);
    } else {
        error_set(error, ERROR_BAD_INPUT,
                  "%s: expected model.safetensors: got pytorch_model.bin; convert it to safetensors", folder);
    }
    mem_free(single);
    mem_free(index);
    mem_free(pickle);
    mem_free(pickle_index);
    return fine;
}

/* ---- the interface ---- */
TensorSet *safetensors_open(const char *path, Error *error) {
    TensorSet *set = mem_zeroed(1, sizeof *set);
    if (!set) {
        error_out_of_memory(error, path, sizeof *set);
        return NULL;
    }
    bool fine;
    if (io_is_folder(path)) {
        fine = open_folder(set, path, error);
    } else {
        set->shards = mem_zeroed(1, sizeof *set->shards);
        fine = set->shards ? open_shard(set, path, error) && index_names(set, path, error)
                           : error_out_of_memory(error, path, sizeof *set->shards);
    }
    if (fine) return set;
    safetensors_close(set);
    return NULL;
}

void safetensors_close(TensorSet *set) {
    if (!set) return;
    for (int i = 0; i < set->n_shards; i++) {
        io_close(&set->shards[i].file);
        json_free(set->shards[i].header);
    }
    json_free(set->index);
    mem_free(set->shards);
    mem_free(set->entries);
    mem_free(set->slots);
    mem_free(set);
}

int64_t safetensors_count(const TensorSet *set) { return set->n_entries; }

const TensorEntry *safetensors_entry(const TensorSet *set, int64_t i) { return &set->entries[i]; }

const char *safetensors_file(const TensorSet *set, const TensorEntry *entry) {
    return set->shards[entry->file].file.path;
}

bool safetensors_read(const TensorSet *set, const TensorEntry *entry, uint64_t first, void *to,
                      size_t n_bytes, Error *error) {
    const Shard *shard = &set->shards[entry->file];
    if (first > entry->n_bytes || n_bytes > entry->n_bytes - first)
        return error_set(error, ERROR_BAD_INPUT, "%s: tensor %s: expected %llu bytes: got a read beyond them",
                         shard->file.path, entry->name, (unsigned long long)entry->n_bytes);
    if (io_read_at(&shard->file, shard->data_offset + entry->offset + first, to, n_bytes, error)) return true;
    return error_add_place(error, "tensor %s", entry->name);
}

const char *safetensors_metadata(const TensorSet *set, const char *key) {
    if (!set->n_shards) return NULL;
    Json root = json_root(set->shards[0].header), metadata = json_member(&root, "__metadata__");
    Json value = json_member(&metadata, key);
    const char *text = NULL;
    return value.node && json_string(value, &text, &(Error){0}) ? text : NULL;
}

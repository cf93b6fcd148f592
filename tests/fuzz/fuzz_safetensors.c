/* safetensors_open on files, on headers with a right length before them, and on indexes beside two good
 * shards.
 *
 * The first byte of an input says which. Of what is accepted the first and last byte of every tensor are
 * read, tensors must not overlap, and files of an index must lie in its folder. A custom mutator puts
 * tempting numbers into headers. */
#include "engine/alloc.h"
#include "engine/io.h"
#include "engine/safetensors.h"
#include "kernels/check.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

static const char shard_header[2][80] = {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
                                         "{\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}"};
static char folder[64], outside[128], index_path[128];

static void put_file(const char *path, const void *bytes, size_t n_bytes) {
    FILE *file = fopen(path, "wb");
    check(file && fwrite(bytes, 1, n_bytes, file) == n_bytes && fclose(file) == 0, "%s", path);
}

static void remove_folder(void) {
    static const char *const names[] = {"d/x.safetensors", "x.safetensors", "y.safetensors",
                                        "model.safetensors.index.json"};
    char path[128];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(outside);
    rmdir(folder);
}

static void make_folder(void) {
    if (folder[0]) return;
    snprintf(folder, sizeof folder,
             "%s/fuzz-XX"
             "XX"
             "XX",
             io_is_folder("/dev/shm") ? "/dev/shm" : "/tmp");
    check(mkdtemp(folder), "%s", folder);
    atexit(remove_folder);
    for (int i = 0; i < 2; i++) {
        char path[128], bytes[128] = {0};
        size_t n = strlen(shard_header[i]);
        bytes[0] = (char)n;
        memcpy(bytes + 8, shard_header[i], n);
        snprintf(path, sizeof path, "%s/%c.safetensors", folder, 'x' + i);
        put_file(path, bytes, 8 + n + (i ? 3 : 8));
    }
    snprintf(outside, sizeof outside, "%s/d", folder); /* a good shard where no index may point */
    char link[160];
    snprintf(link, sizeof link, "%s/x.safetensors", outside);
    check(mkdir(outside, 0700) == 0 && symlink("../x.safetensors", link) == 0, "%s", link);
    snprintf(index_path, sizeof index_path, "%s/model.safetensors.index.json", folder);
}

/* A path under which these bytes are a file. */
static const char *as_file(const void *bytes, size_t n_bytes) {
    static int fd = -1;
    static char path[64];
    if (fd < 0) fd = memfd_create("input", 0);
    check(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, bytes, n_bytes, 0) == (ssize_t)n_bytes, "%d", fd);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return path;
}

static void touch(const TensorSet *set, const TensorEntry *entry) {
    Error error = {0};
    uint8_t byte;
    size_t n = strnlen(entry->name, 1 << 20);
    check(safetensors_find(set, entry->name) == entry, "%.*s", (int)n, entry->name);
    check(entry->n_dims >= 0 && entry->n_dims <= 8, "%d", entry->n_dims);
    long double n_elements = 1; /* does not wrap around */
    for (int d = 0; d < entry->n_dims; d++) n_elements *= (long double)entry->shape[d];
    long double n_bits = 8 * (long double)entry->n_bytes; /* 4 to 64 for an element */
    check(4 * n_elements <= n_bits && n_bits <= 64 * n_elements, "%s", entry->name);
    if (entry->dtype_known) check(n_bits == 8 * n_elements * dtype_bytes(entry->dtype), "%s", entry->name);
    if (!entry->n_bytes) return;
    check(safetensors_read(set, entry, 0, &byte, 1, &error), "%s", error.text);
    check(safetensors_read(set, entry, entry->n_bytes - 1, &byte, 1, &error), "%s", error.text);
    check(!safetensors_read(set, entry, entry->n_bytes, &byte, 1, &error), "beyond %s", entry->name);
}

/* Each tensor readable, no byte of the data in two of them, files of an index in its folder. */
static void check_set(const TensorSet *set, size_t n_data, bool in_folder) {
    uint8_t *covered = calloc(n_data + 1, 1);
    for (int64_t i = 0; i < safetensors_count(set); i++) {
        const TensorEntry *entry = safetensors_entry(set, i);
        const char *path = safetensors_file(set, entry);
        touch(set, entry);
        if (in_folder) {
            bool inside = !strncmp(path, folder, strlen(folder)) && !strchr(path + strlen(folder) + 1, '/');
            check(inside, "%s", path);
            continue;
        }
        check(entry->offset <= n_data && entry->n_bytes <= n_data - entry->offset, "%s", entry->name);
        for (uint64_t k = 0; k < entry->n_bytes; k++)
            check(!covered[entry->offset + k]++, "%s overlaps another tensor", entry->name);
    }
    free(covered);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    Error error = {0};
    int kind = data[0] % 3;
    size_t n_data = data[1];
    const char *path;
    data += 2;
    size -= 2;
    make_folder();
    if (kind == 0) {
        path = as_file(data, size);
    } else if (kind == 1) {
        uint8_t *file = calloc(8 + size + n_data, 1);
        for (int i = 0; i < 8; i++) file[i] = (uint8_t)(size >> (8 * i));
        memcpy(file + 8, data, size);
        path = as_file(file, 8 + size + n_data);
        free(file);
    } else {
        put_file(index_path, data, size);
        path = folder;
    }
    TensorSet *set = safetensors_open(path, &error);
    if (set) check_set(set, kind == 1 ? n_data : size, kind == 2);
    check(set || (error.code == ERROR_BAD_INPUT && error.text[0]), "%d %s", error.code, error.text);
    safetensors_close(set);
    return 0;
}

/* The digits from `from` on: [*begin, *end), empty when there are none. */
static void find_number(const uint8_t *data, size_t size, size_t from, size_t *begin, size_t *end) {
    while (from < size && (data[from] < '0' || data[from] > '9')) from++;
    for (*begin = *end = from; *end < size && data[*end] >= '0' && data[*end] <= '9';) ++*end;
}

static size_t replace_number(uint8_t *data, size_t size, size_t max_size, size_t *from, unsigned choice) {
    static const char *const tempting[] = {
        "0",   "1",          "2",          "3",          "4",          "7",    "8",   "-1",
        "255", "4294967295", "4294967296", "2147483648", "1073741824", "1e18", "1.5", "9007199254740992"};
    size_t begin, end;
    char number[32];
    long was = 0;
    find_number(data, size, *from, &begin, &end);
    for (size_t i = begin; i < end && i < begin + 9; i++) was = was * 10 + (data[i] - '0');
    if (choice % 8 == 7)
        snprintf(number, sizeof number, "%ld,1", was); /* one more dimension */
    else if (choice % 2)
        snprintf(number, sizeof number, "%ld", was + (long)(choice / 2 % 17) - 8);
    else
        snprintf(number, sizeof number, "%s", tempting[choice / 2 % 16]);
    size_t n = strlen(number), larger = size - (end - begin) + n;
    if (begin == end || larger > max_size) return size;
    memmove(data + begin + n, data + end, size - end);
    memcpy(data + begin, number, n);
    *from = begin + n;
    return larger;
}

/* Half of the time one number of the text, or two that follow each other, become ones that are tempting,
 * or move by the same small step. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    if (seed % 2 || size < 3) return LLVMFuzzerMutate(data, size, max_size);
    if (seed / 2 % 16 == 0) {
        data[1] = (uint8_t)(seed / 32); /* another length of the data */
        return size;
    }
    size_t from = 2 + seed / 256 % (size - 2);
    unsigned choice = seed / 4 % 64;
    size = replace_number(data, size, max_size, &from, choice);
    return seed / 2 % 2 ? replace_number(data, size, max_size, &from, choice) : size;
}

/* Merging: the checkpoint's files are copied as they are, and the rows of updated matrices replaced on the
 * way. W + scale b a is summed in f64 and rounded once to the dtype of the file. */
#include "../kernels/check.h"
#include "adapter_parts.h"
#include "alloc.h"
#include "io.h"
#include "tensor_names.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COPY_BYTES = 4 << 20 };

/* The rows of one cell in a file. */
typedef struct {
    int file;
    uint64_t at; /* first byte, from the beginning of the file's data */
    size_t n_bytes;
    DType dtype;
    int64_t cell;
} Patch;

typedef struct {
    const Adapter *adapter;
    const ModelConfig *config;
    const char *to;
    TensorSet *set;
    WantedTensors wanted;
    Weights weights;
    Patch *patches; /* by file, place */
    char *buffer;   /* COPY_BYTES, or the longest row */
    size_t capacity;
    MergeAbout *about;
    Error *error;
} Merge;

/* ---- where the cells stand ---- */
static bool find_patch(Merge *m, int64_t i) {
    const AdapterCell *cell = &m->adapter->cells[i];
    int64_t d = m->config->hidden_size, f = m->config->expert_size;
    bool down = cell->projection == PROJECTION_DOWN;
    LayerWeights *layer = &m->weights.layers[cell->layer];
    const Tensor *whole = down ? &layer->down : &layer->gate_up;
    int64_t first = cell->expert * (down ? 1 : 2) * f * d + (cell->projection == PROJECTION_UP) * f * d;
    for (int64_t k = 0; k < m->wanted.n; k++) {
        const WantedTensor *w = &m->wanted.entries[k];
        int64_t n = 1;
        for (int n_dims = 0; n_dims < w->n_dims; n_dims++) n *= w->shape[n_dims];
        if (w->whole != whole || first < w->first || first >= w->first + n) continue;
        const TensorEntry *entry = safetensors_find(m->set, w->name);
        bool fits = entry && entry->dtype_known && dtype_bytes(entry->dtype) <= 4 &&
                    entry->dtype != DTYPE_I32 && (uint64_t)n * dtype_bytes(entry->dtype) == entry->n_bytes;
        if (!fits)
            return error_set(m->error, ERROR_BAD_INPUT,
                             "%s: %s: expected F32, BF16 or F16 to merge into: got another tensor or none",
                             m->config->folder, w->name);
        size_t item = dtype_bytes(entry->dtype);
        m->patches[i] = (Patch){entry->file, entry->offset + (uint64_t)(first - w->first) * item,
                                (size_t)(f * d) * item, entry->dtype, i};
        return true;
    }
    check(false, "layer %lld, expert %lld has no tensor", (long long)cell->layer, (long long)cell->expert);
    return false;
}

static int by_place(const void *a, const void *b) {
    const Patch *x = a, *y = b;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

/* ---- rows ---- */
/* Nearest, ties to even; beyond the range of the dtype infinity. */
static uint16_t round_half(double x, DType dtype) {
    int exponent, digits = dtype == DTYPE_BF16 ? 8 : 11, least = dtype == DTYPE_BF16 ? -126 : -14;
    uint16_t sign = (uint16_t)(signbit(x) ? 0x8000 : 0);
    x = fabs(x);
    if (x == 0) return sign;
    frexp(x, &exponent);
    exponent = exponent - 1 < least ? least : exponent - 1;
    double units = nearbyint(ldexp(x, digits - 1 - exponent)); /* of the last digit */
    int shift = digits - 1, bias = dtype == DTYPE_BF16 ? 127 : 15, most = dtype == DTYPE_BF16 ? 255 : 31;
    int64_t bits = (int64_t)units + ((int64_t)(exponent + bias - 1) << shift); /* the leading digit carries */
    return (uint16_t)(sign | (bits > (int64_t)most << shift ? (int64_t)most << shift : bits));
}

/* W + scale b a, element k of a cell's rows, rounded to the file's dtype, over the old one. */
static void merge_element(Merge *m, const AdapterCell *cell, DType dtype, char *at, int64_t k) {
    int64_t in = projection_in(m->config, cell->projection), row = k / in, column = k % in;
    double sum = 0;
    for (int64_t r = 0; r < cell->rank; r++)
        sum += (double)cell->b[row * cell->rank + r] * (double)cell->a[r * in + column];
    sum *= (double)cell->scale;
    double merged = (double)adapter_element(at, dtype, 0) + sum;
    float wide = (float)merged;
    uint16_t half = dtype == DTYPE_F32 ? 0 : round_half(merged, dtype);
    memcpy(at, dtype == DTYPE_F32 ? (const void *)&wide : (const void *)&half, dtype_bytes(dtype));
    m->about->largest = fmax(m->about->largest, fabs(sum));
}

/* Elements [first, first + n) of a cell's rows, in place. */
static bool merge_elements(Merge *m, const Patch *patch, char *bytes, int64_t first, int64_t n,
                           int64_t *n_lost) {
    const AdapterCell *cell = &m->adapter->cells[patch->cell];
    size_t item = dtype_bytes(patch->dtype);
    for (int64_t k = 0; k < n; k++) {
        char *at = bytes + (size_t)k * item, old[4];
        memcpy(old, at, item);
        merge_element(m, cell, patch->dtype, at, first + k);
        *n_lost += !memcmp(old, at, item);
        if (isfinite(adapter_element(at, patch->dtype, 0))) continue;
        return error_set(m->error, ERROR_BAD_INPUT,
                         "layer %lld, expert %lld, %s: expected sums that %s can hold: got %g + an update",
                         (long long)cell->layer, (long long)cell->expert, projection_names[cell->projection],
                         dtype_name(patch->dtype), (double)adapter_element(old, patch->dtype, 0));
    }
    return true;
}

/* ---- files ---- */
static bool copy_bytes(Merge *m, const IoFile *from, uint64_t first, uint64_t end, IoWriter *to) {
    while (first < end) {
        size_t n = end - first < m->capacity ? (size_t)(end - first) : m->capacity;
        if (!io_read_at(from, first, m->buffer, n, m->error) || !io_writer_put(to, m->buffer, n, m->error))
            return false;
        first += n;
    }
    return true;
}

static bool merge_patch(Merge *m, const IoFile *from, uint64_t at, const Patch *patch, IoWriter *to) {
    size_t item = dtype_bytes(patch->dtype);
    int64_t n_all = (int64_t)(patch->n_bytes / item), n_lost = 0;
    int64_t step = (int64_t)(m->capacity / item);
    for (int64_t first = 0; first < n_all; first += step) {
        int64_t n = n_all - first < step ? n_all - first : step;
        if (!io_read_at(from, at + (uint64_t)first * item, m->buffer, (size_t)n * item, m->error))
            return false;
        if (!merge_elements(m, patch, m->buffer, first, n, &n_lost) ||
            !io_writer_put(to, m->buffer, (size_t)n * item, m->error))
            return false;
    }
    double share = (double)n_lost / (double)n_all;
    m->about->n_elements += n_all;
    m->about->n_lost += n_lost;
    if (share >= m->about->worst_lost) m->about->worst_lost = share, m->about->worst_cell = patch->cell;
    return true;
}

static bool write_shard(Merge *m, const IoFile *from, int file, IoWriter *to) {
    uint8_t length[8];
    uint64_t header = 0, at = 0;
    if (!io_read_at(from, 0, length, 8, m->error)) return false;
    for (int i = 7; i >= 0; i--) header = header << 8 | length[i];
    header += 8;
    for (int64_t i = 0; i < m->adapter->n; i++) {
        const Patch *patch = &m->patches[i];
        if (patch->file != file) continue;
        if (!copy_bytes(m, from, at, header + patch->at, to) ||
            !merge_patch(m, from, header + patch->at, patch, to))
            return false;
        at = header + patch->at + patch->n_bytes;
    }
    return copy_bytes(m, from, at, from->n_bytes, to);
}

/* FROM into the folder, under its own name; file: of the set, -1: copied as it is. */
static bool write_file(Merge *m, const char *from, int file) {
    char *path = io_join(m->to, io_last_name(from));
    IoFile source;
    IoWriter to = {.fd = -1};
    if (!path) return error_out_of_memory(m->error, "a path", strlen(from));
    bool ok = io_open(&source, from, m->error);
    if (ok) {
        ok = io_writer_open(&to, path, m->error);
        bool written = ok && (file < 0 ? copy_bytes(m, &source, 0, source.n_bytes, &to)
                                       : write_shard(m, &source, file, &to));
        if (written)
            ok = io_writer_finish(&to, m->error);
        else if (ok)
            io_writer_abandon(&to);
        ok = ok && written;
        io_close(&source);
    }
    mem_free(path);
    return ok;
}

static bool write_shards(Merge *m) {
    for (int64_t i = 0, n = safetensors_count(m->set); i < n; i++) {
        const TensorEntry *entry = safetensors_entry(m->set, i);
        bool first = true;
        for (int64_t k = 0; first && k < i; k++) first = safetensors_entry(m->set, k)->file != entry->file;
        if (first && !write_file(m, safetensors_file(m->set, entry), entry->file)) return false;
    }
    return true;
}

/* What of a checkpoint's folder goes along. */
static bool goes_along(const char *name) {
    static const char *const whole[] = {"generation_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "chat_template.jinja",
                                        "chat_template.json",
                                        "merges.txt",
                                        "vocab.json",
                                        "vocab.txt",
                                        "preprocessor_config.json",
                                        "model.safetensors.index.json"};
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if (!strcmp(name, whole[i])) return true;
    return !strncmp(name, "tokenizer", 9) || (n > 6 && !strcmp(name + n - 6, ".model"));
}

static bool copy_named(Merge *m, const char *name) {
    char *path = io_join(m->config->folder, name);
    bool ok = path ? write_file(m, path, -1) : error_out_of_memory(m->error, "a path", strlen(name));
    mem_free(path);
    return ok;
}

static bool copy_rest(Merge *m) {
    char **names = NULL;
    size_t n = 0;
    bool ok = io_list(m->config->folder, &names, &n, m->error);
    for (size_t i = 0; i < n; i++) {
        ok = ok && (!goes_along(names[i]) || copy_named(m, names[i]));
        mem_free(names[i]);
    }
    mem_free(names);
    return ok && copy_named(m, "config.json"); /* last: without it nobody opens the folder */
}

/* ---- the whole ---- */
static bool prepare(Merge *m) {
    Arch arch;
    int64_t n_layers = m->config->n_layers;
    m->capacity = COPY_BYTES;
    m->buffer = mem_alloc(m->capacity);
    m->patches = mem_zeroed((size_t)m->adapter->n + 1, sizeof *m->patches);
    m->weights.layers = mem_zeroed((size_t)n_layers, sizeof *m->weights.layers);
    if (!m->buffer || !m->patches || !m->weights.layers)
        return error_out_of_memory(m->error, "merging", m->capacity);
    if (!(m->set = safetensors_open(m->config->folder, m->error)) ||
        !arch_open(m->config->family, &arch, m->error))
        return false;
    bool ok = tensor_names_list(m->config, &arch, m->set, DTYPE_F32, &m->weights, &m->wanted, m->error);
    for (int64_t i = 0; ok && i < m->adapter->n; i++) ok = find_patch(m, i);
    arch_close(&arch);
    if (ok) qsort(m->patches, (size_t)m->adapter->n, sizeof *m->patches, by_place);
    m->about->n_tensors = safetensors_count(m->set);
    m->about->n_merged = m->adapter->n;
    return ok;
}

static bool make_place(const Merge *m) {
    char *config = io_join(m->to, "config.json");
    bool ok = config || error_out_of_memory(m->error, "a path", strlen(m->to));
    if (ok && io_is_same_file(m->to, m->config->folder))
        ok = error_set(m->error, ERROR_BAD_INPUT, "%s: expected another folder than the checkpoint's own",
                       m->to);
    ok = ok && io_make_folders(m->to, m->error) && io_remove(config, m->error);
    mem_free(config);
    return ok;
}

bool adapter_merge(const Adapter *adapter, const ModelConfig *config, const char *to, MergeAbout *about,
                   Error *error) {
    MergeAbout unwanted;
    if (!about) about = &unwanted;
    *about = (MergeAbout){0};
    if (adapter->n_rows)
        return error_set(error, ERROR_BAD_INPUT,
                         "merge: expected an adapter of experts alone: got one with %lld rows of routers, "
                         "which stay beside the checkpoint",
                         (long long)adapter->n_rows);
    Merge m = {.adapter = adapter, .config = config, .to = to, .about = about, .error = error};
    bool ok = prepare(&m) && make_place(&m) && write_shards(&m) && copy_rest(&m);
    safetensors_close(m.set);
    mem_free(m.wanted.entries);
    mem_free(m.weights.layers);
    mem_free(m.patches);
    mem_free(m.buffer);
    return ok;
}

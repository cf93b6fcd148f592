/* A golden case in the scratch folder, to be conformed to and to be spoiled. GOLDEN names its folder; a test
 * defines it before it includes this. */
#ifndef GATETAPE_TEST_GOLDEN_CASE_H
#define GATETAPE_TEST_GOLDEN_CASE_H
#include "tests/engine/scratch.h"
#include "analysis/conform.h"
#include "engine/safetensors.h"
#include "kernels/device.h"

enum { MAX_TENSORS = 60 };

typedef struct {
    NamedTensor tensors[MAX_TENSORS];
    TensorSet *set;
    int64_t n;
} File;

/* All tensors of a file; the caller frees with free_file. */
static inline File read_file(const char *path) {
    Error error = {0};
    File f = {.set = safetensors_open(path, &error)};
    if (!f.set) fail_msg("%s", error.text);
    assert_true(safetensors_count(f.set) <= MAX_TENSORS);
    for (f.n = 0; f.n < safetensors_count(f.set); f.n++) {
        const TensorEntry *entry = safetensors_entry(f.set, f.n);
        Tensor t = {
            .dtype = entry->dtype, .n_dims = entry->n_dims, .data = mem_alloc((size_t)entry->n_bytes)};
        memcpy(t.shape, entry->shape, (size_t)entry->n_dims * sizeof *entry->shape);
        assert_true(safetensors_read(f.set, entry, 0, t.data, (size_t)entry->n_bytes, &error));
        f.tensors[f.n] = (NamedTensor){entry->name, t};
    }
    return f;
}

static inline Tensor *find(File *f, const char *name) {
    for (int64_t i = 0; i < f->n; i++)
        if (!strcmp(f->tensors[i].name, name)) return &f->tensors[i].tensor;
    fail_msg("no tensor %s", name);
    return NULL;
}

static inline void free_file(File *f) {
    for (int64_t i = 0; i < f->n; i++) mem_free(f->tensors[i].tensor.data);
    safetensors_close(f->set);
}

/* A file of the golden case into the scratch folder's case/. */
static inline void copy_file(const char *name) {
    char from[200], to[60];
    Error error = {0};
    size_t n;
    snprintf(from, sizeof from, GOLDEN "/%s", name);
    snprintf(to, sizeof to, "case/%s", name);
    char *bytes = io_read_all(from, 1 << 24, &n, &error);
    if (!bytes) fail_msg("%s", error.text);
    scratch_write(to, bytes, n);
    mem_free(bytes);
}

/* case/ against the golden model on the CPU in f32; files are written to out/. */
static inline bool conform(bool *agrees, char printed[16384], Error *error) {
    char folder[300], out[300];
    FILE *to = tmpfile();
    snprintf(folder, sizeof folder, "%s", scratch_path("case"));
    snprintf(out, sizeof out, "%s", scratch_path("out"));
    ConformOptions options = {
        .folder = folder, .model = GOLDEN, .out = out, .device = cpu_device(), .compute = DTYPE_F32};
    bool ok = conform_run(&options, to, agrees, error);
    rewind(to);
    printed[fread(printed, 1, 16383, to)] = '\0';
    fclose(to);
    return ok;
}

#endif

/* Reading an adapter folder. Names are made from the model and looked up, so that a tensor which is no update
 * of an expert is found by being left over. */
#include "../kernels/half.h"
#include "adapter_parts.h"
#include "alloc.h"
#include "io.h"
#include "safetensors.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

const char *const adapter_form_names[N_ADAPTER_FORMS + 1] = {"dense", "sparse", "fused", NULL};

/* ---- tensors ---- */
float adapter_element(const void *from, DType dtype, int64_t i) {
    float wide;
    uint16_t half;
    if (dtype == DTYPE_F32) {
        memcpy(&wide, (const char *)from + i * 4, sizeof wide);
        return wide;
    }
    memcpy(&half, (const char *)from + i * 2, sizeof half);
    return dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

bool adapter_has_tensor(const AdapterReader *r, const char *name) {
    return safetensors_find(r->set, name) != NULL;
}

static bool check_entry(const AdapterReader *r, const TensorEntry *entry, const char *name) {
    if (!entry)
        return error_set(r->error, ERROR_BAD_INPUT,
                         "%s: expected a tensor %s beside its other half: got none", r->path, name);
    bool floating = entry->dtype_known &&
                    (entry->dtype == DTYPE_F32 || entry->dtype == DTYPE_BF16 || entry->dtype == DTYPE_F16);
    if (floating && entry->n_dims == 2) return true;
    return error_set(r->error, ERROR_BAD_INPUT,
                     "%s: %s: expected F32, BF16 or F16 of 2 dimensions: got %s of %d", r->path, name,
                     entry->dtype_name, entry->n_dims);
}

float *adapter_tensor(AdapterReader *r, const char *name, int64_t shape[2]) {
    const TensorEntry *entry = safetensors_find(r->set, name);
    if (!check_entry(r, entry, name)) return NULL;
    int64_t n = entry->shape[0] * entry->shape[1];
    float *to = mem_alloc((size_t)n * sizeof *to);
    void *raw = mem_alloc((size_t)entry->n_bytes);
    bool ok = (to && raw) || error_out_of_memory(r->error, name, (size_t)n * sizeof *to);
    ok = ok && safetensors_read(r->set, entry, 0, raw, (size_t)entry->n_bytes, r->error);
    for (int64_t i = 0; ok && i < n; i++) {
        to[i] = adapter_element(raw, entry->dtype, i);
        if (!isfinite(to[i]))
            ok = error_set(r->error, ERROR_BAD_INPUT,
                           "%s: %s: expected finite numbers: got %g at element %lld", r->path, name,
                           (double)to[i], (long long)i);
    }
    mem_free(raw);
    if (!ok) {
        mem_free(to);
        return NULL;
    }
    r->used[entry - safetensors_entry(r->set, 0)] = 1;
    memcpy(shape, entry->shape, 2 * sizeof *shape);
    return to;
}

/* ---- cells ---- */
static bool is_zero(const AdapterPair *p, int64_t rank, int64_t in, int64_t out) {
    for (int64_t r = 0; r < rank; r++) {
        for (int64_t i = 0; i < in; i++)
            if (p->a[r * p->a_rank + i * p->a_in] != 0) return false;
        for (int64_t j = 0; j < out; j++)
            if (p->b[j * p->b_out + r * p->b_rank] != 0) return false;
    }
    return true;
}

bool adapter_put(AdapterReader *r, AdapterCell like, AdapterPair p) {
    int64_t in = projection_in(r->model, like.projection), out = projection_out(r->model, like.projection);
    if (is_zero(&p, like.rank, in, out)) {
        r->about->n_zero++;
        return true;
    }
    AdapterCell *cell;
    if (!adapter_add(r->adapter, r->model, like, &cell, r->error))
        return error_add_place(r->error, "%s: layer %lld, expert %lld, %s", r->path, (long long)like.layer,
                               (long long)like.expert, projection_names[like.projection]);
    for (int64_t k = 0; k < like.rank; k++) {
        for (int64_t i = 0; i < in; i++) cell->a[k * in + i] = p.a[k * p.a_rank + i * p.a_in];
        for (int64_t j = 0; j < out; j++) cell->b[j * like.rank + k] = p.b[j * p.b_out + k * p.b_rank];
    }
    return true;
}

/* One matrix by its per-expert names, if it is there. */
static bool read_matrix(AdapterReader *r, AdapterCell like) {
    char module[ADAPTER_NAME_BYTES], names[2][ADAPTER_NAME_BYTES + 60];
    if (!adapter_module(r->arch, like.projection, like.layer, like.expert, module, r->error)) return false;
    for (int i = 0; i < 2; i++)
        snprintf(names[i], sizeof names[i], ADAPTER_PREFIX "%s.lora_%c.weight", module, "AB"[i]);
    if (!adapter_has_tensor(r, names[0]) && !adapter_has_tensor(r, names[1])) return true;
    int64_t in = projection_in(r->model, like.projection), out = projection_out(r->model, like.projection);
    int64_t a[2], b[2];
    double scale;
    if (!adapter_config_scale(r->config, module, &like.rank, &scale, r->error)) return false;
    like.scale = (float)scale;
    float *a_values = adapter_tensor(r, names[0], a),
          *b_values = a_values ? adapter_tensor(r, names[1], b) : NULL;
    bool ok = a_values && b_values;
    if (ok && !(a[0] == like.rank && a[1] == in && b[0] == out && b[1] == like.rank))
        ok = error_set(
            r->error, ERROR_BAD_INPUT,
            "%s: %s: expected A [%lld,%lld] and B [%lld,%lld], the rank by adapter_config.json: got "
            "[%lld,%lld] and [%lld,%lld]",
            r->path, module, (long long)like.rank, (long long)in, (long long)out, (long long)like.rank,
            (long long)a[0], (long long)a[1], (long long)b[0], (long long)b[1]);
    ok = ok && adapter_put(r, like, (AdapterPair){a_values, b_values, in, 1, like.rank, 1});
    mem_free(a_values);
    mem_free(b_values);
    return ok;
}

static bool read_layer(AdapterReader *r, int64_t layer) {
    int64_t before = r->adapter->n;
    if (!adapter_read_fused(r, layer)) return false;
    for (int64_t e = 0; e < r->model->n_experts; e++)
        for (int p = 0; p < N_PROJECTIONS; p++)
            if (!read_matrix(r, (AdapterCell){.layer = layer, .expert = e, .projection = (Projection)p}))
                return false;
    r->about->n_touched += r->adapter->n > before;
    return true;
}

static bool check_left_over(const AdapterReader *r) {
    int64_t n = safetensors_count(r->set), n_left = 0;
    const char *first = NULL;
    for (int64_t i = n - 1; i >= 0; i--)
        if (!r->used[i]) n_left++, first = safetensors_entry(r->set, i)->name;
    if (!n_left && n) return true;
    if (!n)
        return error_set(r->error, ERROR_BAD_INPUT, "%s: expected updates of experts: got no tensor",
                         r->path);
    return error_set(
        r->error, ERROR_BAD_INPUT,
        "%s: expected updates of experts of a %s model alone: got %lld other tensors of %lld, the "
        "first %.150s",
        r->path, r->model->family, (long long)n_left, (long long)n, first);
}

static bool read_all(AdapterReader *r) {
    int64_t n = safetensors_count(r->set);
    r->about->n_tensors = n;
    r->used = mem_zeroed((size_t)n + 1, 1);
    if (!r->used) return error_out_of_memory(r->error, r->path, (size_t)n);
    for (int64_t layer = 0; layer < r->model->n_layers; layer++)
        if (!r->model->layer_is_dense[layer] && !read_layer(r, layer)) return false;
    return check_left_over(r);
}

bool adapter_read(const char *folder, const ModelConfig *model, const AdapterReading *reading,
                  Adapter *adapter, AdapterAbout *about, Error *error) {
    static const AdapterReading usual = {0};
    AdapterAbout unwanted;
    AdapterConfig config;
    Arch arch;
    *adapter = (Adapter){0};
    if (!about) about = &unwanted;
    *about = (AdapterAbout){0};
    if (!arch_open(model->family, &arch, error)) return false;
    char *path = io_join(folder, "adapter_model.safetensors");
    bool ok = path || error_out_of_memory(error, "a path", strlen(folder));
    ok = adapter_config_open(folder, &config, ok ? error : &(Error){0}) && ok;
    TensorSet *set = ok ? safetensors_open(path, error) : NULL;
    AdapterReader r = {.config = &config,
                       .model = model,
                       .arch = &arch,
                       .reading = reading ? reading : &usual,
                       .path = path,
                       .set = set,
                       .adapter = adapter,
                       .about = about,
                       .error = error};
    ok = set && read_all(&r) && adapter_rows_read(folder, model, adapter, error);
    mem_free(r.used);
    safetensors_close(set);
    adapter_config_close(&config);
    arch_close(&arch);
    mem_free(path);
    return ok;
}

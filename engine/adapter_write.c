/* Writing an adapter folder. Every tensor of a file has one rank and alpha, because vLLM and llama.cpp read
 * no other; zeros share one block. */
#include "../kernels/check.h"
#include "adapter_parts.h"
#include "alloc.h"
#include "io.h"
#include "safetensors.h"
#include "text.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char name[ADAPTER_NAME_BYTES + 60];
} Name;

typedef struct {
    const Adapter *adapter;
    const ModelConfig *config;
    Arch arch;
    int64_t rank;
    float scale;
    float *zeros;
    bool *touched; /* [layers] */
    NamedTensor *tensors;
    Name *names, *targets; /* of the tensors; of target_modules or target_parameters */
    void **blocks;
    int64_t n, n_targets, n_blocks, capacity;
    Error *error;
} Writer;

static bool open_writer(Writer *w, AdapterForm form) {
    const ModelConfig *c = w->config;
    int64_t n_layers = 0, scaled = 0; /* the largest rank whose scale is not 0: others are divided by it */
    w->touched = mem_zeroed((size_t)c->n_layers, sizeof *w->touched);
    if (!w->touched) return error_out_of_memory(w->error, "an adapter", (size_t)c->n_layers);
    for (int64_t i = 0; i < w->adapter->n; i++) {
        const AdapterCell *cell = &w->adapter->cells[i];
        if (cell->rank > w->rank) w->rank = cell->rank;
        if (cell->scale != 0 && cell->rank > scaled) w->scale = cell->scale, scaled = cell->rank;
        n_layers += !w->touched[cell->layer];
        w->touched[cell->layer] = true;
    }
    if (!w->adapter->n)
        return error_set(w->error, ERROR_BAD_INPUT,
                         "an adapter to write: expected at least one cell: got none");
    int64_t widest = c->hidden_size > c->expert_size ? c->hidden_size : c->expert_size;
    w->capacity = form == ADAPTER_SPARSE  ? 2 * w->adapter->n
                  : form == ADAPTER_FUSED ? 4 * n_layers
                                          : 2 * N_PROJECTIONS * c->n_moe_layers * c->n_experts;
    w->zeros = mem_zeroed((size_t)(widest * w->rank), sizeof *w->zeros);
    w->tensors = mem_zeroed((size_t)w->capacity, sizeof *w->tensors);
    w->names = mem_zeroed((size_t)w->capacity, sizeof *w->names);
    w->targets = mem_zeroed((size_t)w->capacity, sizeof *w->targets);
    w->blocks = mem_zeroed((size_t)w->capacity, sizeof *w->blocks);
    if (w->zeros && w->tensors && w->names && w->targets && w->blocks) return true;
    return error_out_of_memory(w->error, "an adapter", (size_t)w->capacity * sizeof *w->names);
}

static void close_writer(Writer *w) {
    for (int64_t i = 0; i < w->n_blocks; i++) mem_free(w->blocks[i]);
    mem_free(w->blocks);
    mem_free(w->targets);
    mem_free(w->names);
    mem_free(w->tensors);
    mem_free(w->zeros);
    mem_free(w->touched);
}

/* Zeros that the writer frees; NULL and an Error. */
static float *block(Writer *w, int64_t n) {
    float *to = mem_zeroed((size_t)n, sizeof *to);
    if (to)
        w->blocks[w->n_blocks++] = to;
    else
        error_out_of_memory(w->error, "an adapter", (size_t)n * sizeof *to);
    return to;
}

static void add(Writer *w, const char *module, const char *end, float *data, int64_t rows, int64_t columns) {
    check(w->n < w->capacity, "%lld tensors", (long long)w->n);
    snprintf(w->names[w->n].name, sizeof w->names->name, ADAPTER_PREFIX "%s%s", module, end);
    w->tensors[w->n] = (NamedTensor){w->names[w->n].name, tensor_matrix(data, DTYPE_F32, rows, columns)};
    w->n++;
}

/* b as the file's scale wants it. */
static float scaled(const Writer *w, const AdapterCell *cell, float b) {
    return cell->scale == w->scale ? b : (float)((double)b * ((double)cell->scale / (double)w->scale));
}

/* ---- per expert ---- */
static bool add_matrix(Writer *w, Projection projection, int64_t layer, int64_t expert,
                       const AdapterCell *cell) {
    char module[ADAPTER_NAME_BYTES];
    int64_t in = projection_in(w->config, projection), out = projection_out(w->config, projection);
    float *a = w->zeros, *b = w->zeros;
    if (!adapter_module(&w->arch, projection, layer, expert, module, w->error)) return false;
    if (cell) {
        a = block(w, w->rank * in);
        b = a ? block(w, out * w->rank) : NULL;
        if (!b) return false;
        memcpy(a, cell->a, (size_t)(cell->rank * in) * sizeof *a);
        for (int64_t j = 0; j < out; j++)
            for (int64_t r = 0; r < cell->rank; r++)
                b[j * w->rank + r] = scaled(w, cell, cell->b[j * cell->rank + r]);
    }
    add(w, module, ".lora_A.weight", a, w->rank, in);
    add(w, module, ".lora_B.weight", b, out, w->rank);
    snprintf(w->targets[w->n_targets++].name, sizeof w->targets->name, "%s", module);
    return true;
}

static bool add_sparse(Writer *w) {
    for (int64_t i = 0; i < w->adapter->n; i++) {
        const AdapterCell *cell = &w->adapter->cells[i];
        if (!add_matrix(w, cell->projection, cell->layer, cell->expert, cell)) return false;
    }
    return true;
}

/* Layers without a cell too: PEFT on transformers 5 turns target_modules into the names of the fused
 * parameters, without their layers, so it makes an update in every layer and warns of those that the file
 * lacks. */
static bool add_dense(Writer *w) {
    for (int64_t layer = 0; layer < w->config->n_layers; layer++)
        for (int64_t e = 0; !w->config->layer_is_dense[layer] && e < w->config->n_experts; e++)
            for (int p = 0; p < N_PROJECTIONS; p++)
                if (!add_matrix(w, (Projection)p, layer, e,
                                adapter_find(w->adapter, layer, (Projection)p, e)))
                    return false;
    return true;
}

/* ---- fused ---- */
/* One cell into the pair of its layer: components from `first` on, rows of the output from `row` on; rank is
 * the pair's. */
static void put_fused(const Writer *w, const AdapterCell *cell, float *a, float *b, int64_t rank,
                      int64_t first, int64_t row) {
    int64_t experts = w->config->n_experts, in = projection_in(w->config, cell->projection),
            out = projection_out(w->config, cell->projection);
    memcpy(a + (cell->expert * rank + first) * in, cell->a, (size_t)(cell->rank * in) * sizeof *a);
    for (int64_t j = 0; j < out; j++)
        for (int64_t r = 0; r < cell->rank; r++)
            b[(row + j) * rank * experts + (first + r) * experts + cell->expert] =
                scaled(w, cell, cell->b[j * cell->rank + r]);
}

static bool add_pair(Writer *w, int64_t layer, bool down) {
    char parameter[ADAPTER_NAME_BYTES];
    const char *last;
    if (!adapter_fused_parameter(&w->arch, down, layer, parameter, &last, w->error)) return false;
    Projection like = down ? PROJECTION_DOWN : PROJECTION_GATE;
    int64_t in = projection_in(w->config, like), size = projection_out(w->config, like), sides = down ? 1 : 2;
    int64_t rank = sides * w->rank, wide = rank * w->config->n_experts;
    float *a = block(w, wide * in), *b = a ? block(w, sides * size * wide) : NULL;
    if (!b) return false;
    for (int64_t i = 0; i < w->adapter->n; i++) {
        const AdapterCell *cell = &w->adapter->cells[i];
        bool up = cell->projection == PROJECTION_UP;
        if (cell->layer == layer && (cell->projection == PROJECTION_DOWN) == down)
            put_fused(w, cell, a, b, rank, up ? w->rank : 0, up ? size : 0);
    }
    const char *target = strncmp(parameter, "model.", 6) ? parameter : parameter + 6;
    snprintf(w->targets[w->n_targets++].name, sizeof w->targets->name, "%s", target);
    parameter[last - parameter - 1] = '\0';
    add(w, parameter, down ? ".lora_A.weight" : ".base_layer.lora_A.weight", a, wide, in);
    add(w, parameter, down ? ".lora_B.weight" : ".base_layer.lora_B.weight", b, sides * size, wide);
    return true;
}

static bool add_fused(Writer *w) {
    for (int64_t layer = 0; layer < w->config->n_layers; layer++)
        if (w->touched[layer] && !(add_pair(w, layer, false) && add_pair(w, layer, true))) return false;
    return true;
}

/* ---- adapter_config.json ---- */
static int by_name(const void *a, const void *b) { return strcmp(a, b); }

static void put_targets(const Writer *w, Text *text, const char *key) {
    text_format(text, " \"%s\": [", key);
    for (int64_t i = 0; i < w->n_targets; i++) {
        text_put_string(text, i ? ",\n  " : "\n  ");
        text_put_json(text, w->targets[i].name, strlen(w->targets[i].name));
    }
    text_put_string(text, "\n ],\n");
}

/* The alpha that gives the scale back, the shorter one where two do. */
static double alpha_of(const Writer *w) {
    double exact = (double)w->scale * (double)w->rank, shorter = (double)(float)exact;
    return (float)(shorter / (double)w->rank) == w->scale ? shorter : exact;
}

/* A key per line, in the order of PEFT's own; old versions fail on keys that they do not know. */
static void put_config(const Writer *w, AdapterForm form, Text *text) {
    double alpha = alpha_of(w);
    char patterns[2][80] = {"{}", "{}"};
    if (form == ADAPTER_FUSED) {
        snprintf(patterns[0], sizeof patterns[0], "{\".*\\\\.gate_up_proj\": %lld}",
                 (long long)(2 * w->rank));
        snprintf(patterns[1], sizeof patterns[1], "{\".*\\\\.gate_up_proj\": %.17g}", 2 * alpha);
    }
    text_format(text, "{\n \"alpha_pattern\": %s,\n \"auto_mapping\": null,\n", patterns[1]);
    text_put_string(text,
                    " \"base_model_name_or_path\": \"\",\n \"bias\": \"none\",\n \"fan_in_fan_out\": false,\n"
                    " \"inference_mode\": true,\n \"init_lora_weights\": true,\n \"layers_pattern\": null,\n"
                    " \"layers_to_transform\": null,\n \"lora_alpha\": ");
    text_put_f64(text, alpha);
    text_put_string(text,
                    ",\n \"lora_dropout\": 0.0,\n \"modules_to_save\": null,\n \"peft_type\": \"LORA\",\n");
    if (form == ADAPTER_FUSED) text_put_string(text, " \"peft_version\": \"0.21.2\",\n");
    text_format(text, " \"r\": %lld,\n \"rank_pattern\": %s,\n \"revision\": null,\n", (long long)w->rank,
                patterns[0]);
    if (form == ADAPTER_FUSED) text_put_string(text, " \"target_modules\": [],\n");
    put_targets(w, text, form == ADAPTER_FUSED ? "target_parameters" : "target_modules");
    text_put_string(text,
                    " \"task_type\": \"CAUSAL_LM\",\n \"use_dora\": false,\n \"use_rslora\": false\n}\n");
}

static bool write_files(Writer *w, const char *folder, AdapterForm form) {
    char *config = io_join(folder, "adapter_config.json"),
         *model = io_join(folder, "adapter_model.safetensors");
    Text text = {0};
    qsort(w->targets, (size_t)w->n_targets, sizeof *w->targets, by_name);
    put_config(w, form, &text);
    bool ok = (config && model && !text.failed) || error_out_of_memory(w->error, "an adapter", text.length);
    ok = ok && io_make_folders(folder, w->error) && io_remove(config, w->error) &&
         safetensors_write(model, w->tensors, w->n, NULL, 0, w->error) &&
         io_write_all(config, text.bytes, text.length, w->error);
    text_free(&text);
    mem_free(config);
    mem_free(model);
    return ok;
}

bool adapter_write(const char *folder, const Adapter *adapter, const ModelConfig *config, AdapterForm form,
                   Error *error) {
    Writer w = {.adapter = adapter, .config = config, .error = error};
    if (!arch_open(config->family, &w.arch, error)) return false;
    bool ok = open_writer(&w, form) && (form == ADAPTER_DENSE    ? add_dense(&w)
                                        : form == ADAPTER_SPARSE ? add_sparse(&w)
                                                                 : add_fused(&w));
    ok = ok && adapter_rows_write(folder, adapter, config, error) && write_files(&w, folder, form);
    close_writer(&w);
    arch_close(&w.arch);
    return ok;
}

/* From a checkpoint's tensors to LayerWeights. One list of wanted tensors is made from the config and the arch file; the
 * same list drives the check (missing, extra, mis-shaped: all named at once), the memory and the reading.
 *
 * Experts stored one by one land as slices of the fused tensors gate_up [E,2F,D] and down [E,D,F]. */
#include "weights.h"
#include "alloc.h"
#include "arch.h"
#include "safetensors.h"
#include "text.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 256, MAX_LISTED = 12, PART_BYTES = 8 << 20 };

/* A tensor of the file that is wanted, and where its bytes go: `slice` of the whole's first dimension(s). */
typedef struct {
    char name[NAME_BYTES];
    Tensor *whole;
    int64_t first, n;      /* elements of whole, flattened */
    int64_t rows, columns; /* shape in the file; rows 0: a vector; experts 0: at most two dimensions */
    int64_t experts;
    int64_t layer, expert; /* -1: none */
} Wanted;

typedef struct {
    const ModelConfig *config;
    Arch arch;
    TensorSet *set; /* NULL: shapes alone */
    Weights *weights;
    Wanted *wanted;
    int64_t n_wanted, capacity;
    DType dtype; /* of all, when there is no set */
    Error *error;
} Loader;

/* ---- the list ---- */
static bool want(Loader *l, Wanted wanted) {
    if (l->n_wanted == l->capacity) {
        int64_t capacity = l->capacity ? 2 * l->capacity : 256;
        Wanted *larger = mem_resize(l->wanted, (size_t)capacity, sizeof *larger);
        if (!larger)
            return error_out_of_memory(l->error, "list of tensors", (size_t)capacity * sizeof *larger);
        l->wanted = larger;
        l->capacity = capacity;
    }
    wanted.n = (wanted.experts ? wanted.experts : 1) * (wanted.rows ? wanted.rows : 1) * wanted.columns;
    l->wanted[l->n_wanted++] = wanted;
    return true;
}

/* A whole tensor [rows, columns], or [columns] when rows is 0; absent for now. */
static bool want_whole(Loader *l, const char *name, Tensor *whole, int64_t layer, int64_t rows,
                       int64_t columns) {
    Wanted w = {.whole = whole, .rows = rows, .columns = columns, .layer = layer, .expert = -1};
    if (layer >= 0)
        snprintf(w.name, sizeof w.name, "model.layers.%lld.%s", (long long)layer, name);
    else
        snprintf(w.name, sizeof w.name, "%s", name);
    *whole = rows ? tensor_matrix(NULL, l->dtype, rows, columns) : tensor_vector(NULL, l->dtype, columns);
    return want(l, w);
}

static bool want_attention(Loader *l, int64_t i) {
    const ModelConfig *c = l->config;
    LayerWeights *w = &l->weights->layers[i];
    int64_t D = c->hidden_size, q = c->n_heads * c->head_size, k = c->n_kv_heads * c->head_size;
    bool fine = want_whole(l, "input_layernorm.weight", &w->attention_norm, i, 0, D) &&
                want_whole(l, "post_attention_layernorm.weight", &w->experts_norm, i, 0, D) &&
                want_whole(l, "self_attn.q_proj.weight", &w->query, i, q, D) &&
                want_whole(l, "self_attn.k_proj.weight", &w->key, i, k, D) &&
                want_whole(l, "self_attn.v_proj.weight", &w->value, i, k, D) &&
                want_whole(l, "self_attn.o_proj.weight", &w->output, i, D, q);
    if (fine && c->attention_bias)
        fine = want_whole(l, "self_attn.q_proj.bias", &w->query_bias, i, 0, q) &&
               want_whole(l, "self_attn.k_proj.bias", &w->key_bias, i, 0, k) &&
               want_whole(l, "self_attn.v_proj.bias", &w->value_bias, i, 0, k) &&
               want_whole(l, "self_attn.o_proj.bias", &w->output_bias, i, 0, D);
    if (fine && c->qk_norm != QK_NORM_NONE) {
        bool head = c->qk_norm == QK_NORM_HEAD;
        fine = want_whole(l, "self_attn.q_norm.weight", &w->query_norm, i, 0, head ? c->head_size : q) &&
               want_whole(l, "self_attn.k_norm.weight", &w->key_norm, i, 0, head ? c->head_size : k);
    }
    return fine;
}

/* A slice [rows, columns] of an expert layer's or dense layer's fused tensor. */
static bool want_part(Loader *l, const char *pattern, Tensor *whole, int64_t layer, int64_t expert,
                      int64_t first, int64_t rows, int64_t columns) {
    Wanted w = {
        .whole = whole, .first = first, .rows = rows, .columns = columns, .layer = layer, .expert = expert};
    arch_fill_name(pattern, layer, expert, w.name, sizeof w.name);
    return want(l, w);
}

static bool want_dense_mlp(Loader *l, int64_t i) {
    LayerWeights *w = &l->weights->layers[i];
    int64_t D = l->config->hidden_size, F = l->config->dense_size;
    w->gate_up = tensor_matrix(NULL, l->dtype, 2 * F, D);
    w->down = tensor_matrix(NULL, l->dtype, D, F);
    return want_part(l, "model.layers.{layer}.mlp.gate_proj.weight", &w->gate_up, i, -1, 0, F, D) &&
           want_part(l, "model.layers.{layer}.mlp.up_proj.weight", &w->gate_up, i, -1, F * D, F, D) &&
           want_part(l, "model.layers.{layer}.mlp.down_proj.weight", &w->down, i, -1, 0, D, F);
}

/* The first of a list of name patterns that the files have, else the first. */
static const char *choose_pattern(const Loader *l, const char *key, int64_t layer) {
    const char *first = arch_string(&l->arch, "tensors", key), *pattern;
    char name[NAME_BYTES];
    Json tensors = json_member(&l->arch.root, "tensors"), list = json_member(&tensors, key);
    for (Json at = {0}; json_type(list) == JSON_ARRAY && json_next(&list, &at);) {
        if (!json_string(at, &pattern, &(Error){0})) continue;
        if (!first) first = pattern;
        arch_fill_name(pattern, layer, 0, name, sizeof name);
        if (l->set && safetensors_find(l->set, name)) return pattern;
    }
    return first ? first : "";
}

static bool want_experts(Loader *l, int64_t i) {
    static const char *const keys[] = {"expert_gate", "expert_up", "expert_down", "fused_gate_up",
                                       "fused_down"};
    const char *names[5];
    LayerWeights *w = &l->weights->layers[i];
    int64_t D = l->config->hidden_size, F = l->config->expert_size, E = l->config->n_experts;
    char fused[NAME_BYTES], router[NAME_BYTES];
    for (int k = 0; k < 5; k++) {
        names[k] = arch_string(&l->arch, "tensors", keys[k]);
        if (!names[k]) return json_error(l->arch.root, l->error, "expected tensors.%s", keys[k]);
    }
    arch_fill_name(choose_pattern(l, "router", i), i, 0, router, sizeof router);
    Wanted gate = {.whole = &w->router, .rows = E, .columns = D, .layer = i, .expert = -1};
    snprintf(gate.name, sizeof gate.name, "%s", router);
    w->router = tensor_matrix(NULL, l->dtype, E, D);
    w->gate_up = tensor_cube(NULL, l->dtype, E, 2 * F, D);
    w->down = tensor_cube(NULL, l->dtype, E, D, F);
    if (!want(l, gate)) return false;
    arch_fill_name(names[3], i, 0, fused, sizeof fused);
    if (l->set && safetensors_find(l->set, fused)) {
        Wanted gate_up = {
            .whole = &w->gate_up, .experts = E, .rows = 2 * F, .columns = D, .layer = i, .expert = -1};
        Wanted down = {.whole = &w->down, .experts = E, .rows = D, .columns = F, .layer = i, .expert = -1};
        arch_fill_name(names[3], i, 0, gate_up.name, sizeof gate_up.name);
        arch_fill_name(names[4], i, 0, down.name, sizeof down.name);
        return want(l, gate_up) && want(l, down);
    }
    for (int64_t e = 0; e < E; e++)
        if (!want_part(l, names[0], &w->gate_up, i, e, e * 2 * F * D, F, D) ||
            !want_part(l, names[1], &w->gate_up, i, e, (e * 2 + 1) * F * D, F, D) ||
            !want_part(l, names[2], &w->down, i, e, e * D * F, D, F))
            return false;
    return true;
}

static bool list_wanted(Loader *l) {
    const ModelConfig *c = l->config;
    Weights *w = l->weights;
    w->n_layers = c->n_layers;
    w->layers = mem_zeroed((size_t)c->n_layers, sizeof *w->layers);
    if (!w->layers) return error_out_of_memory(l->error, "layers", (size_t)c->n_layers * sizeof *w->layers);
    bool fine =
        want_whole(l, "model.embed_tokens.weight", &w->embedding, -1, c->vocab_size, c->hidden_size) &&
        want_whole(l, "model.norm.weight", &w->final_norm, -1, 0, c->hidden_size) &&
        (c->tie_embeddings || want_whole(l, "lm_head.weight", &w->head, -1, c->vocab_size, c->hidden_size));
    for (int64_t i = 0; fine && i < c->n_layers; i++)
        fine = want_attention(l, i) && (c->layer_is_dense[i] ? want_dense_mlp(l, i) : want_experts(l, i));
    return fine;
}

/* ---- the check ---- */
typedef struct {
    Text text;
    int64_t n;
} Problems;

static void add_problem(Problems *p, const char *kind, const char *name, const char *detail) {
    if (++p->n > MAX_LISTED) return;
    text_format(&p->text, "%s%s %s%s", p->n > 1 ? "; " : "", kind, name, detail);
}

static void describe_shape(const Wanted *w, char *to, size_t capacity) {
    if (w->experts)
        snprintf(to, capacity, "[%lld,%lld,%lld]", (long long)w->experts, (long long)w->rows,
                 (long long)w->columns);
    else if (w->rows)
        snprintf(to, capacity, "[%lld,%lld]", (long long)w->rows, (long long)w->columns);
    else
        snprintf(to, capacity, "[%lld]", (long long)w->columns);
}

static void describe_entry(const TensorEntry *entry, char *to, size_t capacity) {
    size_t used = (size_t)snprintf(to, capacity, "[");
    for (int d = 0; d < entry->n_dims && used + 24 < capacity; d++)
        used +=
            (size_t)snprintf(to + used, capacity - used, "%s%lld", d ? "," : "", (long long)entry->shape[d]);
    snprintf(to + used, capacity - used, "]");
}

static void check_wanted(const Loader *l, const Wanted *w, Problems *p) {
    const TensorEntry *entry = safetensors_find(l->set, w->name);
    if (!entry) {
        add_problem(p, "missing", w->name, "");
        return;
    }
    char expected[80], got[240], detail[400];
    describe_shape(w, expected, sizeof expected);
    describe_entry(entry, got, sizeof got);
    snprintf(detail, sizeof detail, ": expected shape %s: got %s", expected, got);
    if (strcmp(expected, got)) add_problem(p, "mis-shaped", w->name, detail);
    snprintf(detail, sizeof detail, ": expected F32, BF16 or F16: got %s", entry->dtype_name);
    bool float_type = entry->dtype_known &&
                      (entry->dtype == DTYPE_F32 || entry->dtype == DTYPE_BF16 || entry->dtype == DTYPE_F16);
    if (!float_type) add_problem(p, "dtype of", w->name, detail);
    if (w->first == 0) w->whole->dtype = entry->dtype;
    snprintf(detail, sizeof detail, ": expected %s like its layer's others: got %s",
             dtype_name(w->whole->dtype), entry->dtype_name);
    if (float_type && w->whole->dtype != entry->dtype) add_problem(p, "dtype of", w->name, detail);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Tensors of the files that nobody wants; old inverse frequencies and a head beside tied embeddings are known ones. */
static bool check_extra(const Loader *l, Problems *p) {
    const char **names = mem_zeroed((size_t)l->n_wanted, sizeof *names);
    if (!names) return error_out_of_memory(l->error, "list of names", (size_t)l->n_wanted * sizeof *names);
    for (int64_t i = 0; i < l->n_wanted; i++) names[i] = l->wanted[i].name;
    qsort(names, (size_t)l->n_wanted, sizeof *names, by_name);
    for (int64_t i = 0; i < safetensors_count(l->set); i++) {
        const char *name = safetensors_entry(l->set, i)->name;
        bool ignored = strstr(name, "rotary_emb.inv_freq") ||
                       (l->config->tie_embeddings && !strcmp(name, "lm_head.weight"));
        if (!ignored && !bsearch(&name, names, (size_t)l->n_wanted, sizeof *names, by_name))
            add_problem(p, "extra", name, "");
    }
    mem_free(names);
    return true;
}

static bool check_all(const Loader *l) {
    Problems problems = {0};
    for (int64_t i = 0; i < l->n_wanted; i++) check_wanted(l, &l->wanted[i], &problems);
    bool fine = check_extra(l, &problems);
    if (fine && problems.n) {
        char more[40] = "";
        if (problems.n > MAX_LISTED)
            snprintf(more, sizeof more, "; and %lld more", (long long)(problems.n - MAX_LISTED));
        fine = error_set(l->error, ERROR_BAD_INPUT, "%s: expected the tensors of a %s model: got %s%s",
                         l->config->folder, l->config->family,
                         problems.text.bytes ? problems.text.bytes : "others", more);
    }
    text_free(&problems.text);
    return fine;
}

/* ---- memory and reading ---- */
static bool lend(Loader *l, Tensor *whole) {
    if (whole->data) return true;
    Weights *w = l->weights;
    size_t n_bytes = tensor_bytes(*whole);
    if (w->n_blocks == w->capacity) {
        int64_t capacity = w->capacity ? 2 * w->capacity : 64;
        void **larger = mem_resize(w->blocks, (size_t)capacity, sizeof *larger);
        if (!larger) return error_out_of_memory(l->error, "weights", (size_t)capacity * sizeof *larger);
        w->blocks = larger;
        w->capacity = capacity;
    }
    whole->data = w->device->alloc(n_bytes);
    if (!whole->data) return error_out_of_memory(l->error, "weights", n_bytes);
    w->blocks[w->n_blocks++] = whole->data;
    w->n_bytes += n_bytes;
    return true;
}

/* Index of the first NaN or infinity among n elements, or -1. */
static int64_t first_nonfinite(const void *bytes, DType dtype, int64_t n) {
    const uint32_t *words = bytes;
    const uint16_t *halves = bytes;
    uint32_t mask = dtype == DTYPE_F32 ? 0x7f800000u : dtype == DTYPE_BF16 ? 0x7f80u : 0x7c00u;
    for (int64_t begin = 0; begin < n; begin += 4096) {
        int64_t end = begin + 4096 < n ? begin + 4096 : n;
        uint32_t bad = 0;
        for (int64_t i = begin; i < end; i++)
            bad |= ((dtype == DTYPE_F32 ? words[i] : halves[i]) & mask) == mask;
        for (int64_t i = begin; bad && i < end; i++)
            if (((dtype == DTYPE_F32 ? words[i] : halves[i]) & mask) == mask) return i;
    }
    return -1;
}

static bool complain_nonfinite(const Loader *l, const Wanted *w, int64_t element) {
    char place[64] = "";
    if (w->layer >= 0) snprintf(place, sizeof place, " (layer %lld)", (long long)w->layer);
    if (w->expert >= 0)
        snprintf(place, sizeof place, " (layer %lld, expert %lld)", (long long)w->layer,
                 (long long)w->expert);
    return error_set(l->error, ERROR_BAD_INPUT,
                     "%s: tensor %s%s: expected finite weights: got NaN or infinity at element %lld",
                     l->config->folder, w->name, place, (long long)element);
}

static bool read_wanted(Loader *l, const Wanted *w, Queue *queue, char *part) {
    const TensorEntry *entry = safetensors_find(l->set, w->name);
    size_t item = dtype_bytes(w->whole->dtype);
    int64_t step = (int64_t)(PART_BYTES / item);
    for (int64_t at = 0; at < w->n; at += step) {
        int64_t n = w->n - at < step ? w->n - at : step;
        if (!safetensors_read(l->set, entry, (uint64_t)at * item, part, (size_t)n * item, l->error))
            return false;
        int64_t bad = first_nonfinite(part, w->whole->dtype, n);
        if (bad >= 0) return complain_nonfinite(l, w, at + bad);
        Tensor to =
            tensor_vector((char *)w->whole->data + (size_t)(w->first + at) * item, w->whole->dtype, n);
        l->weights->device->copy_in(queue, to, part);
        if (!l->weights->device->sync(queue))
            return error_set(l->error, ERROR_FAILED, "%s: %s", w->name, queue->failure);
    }
    return true;
}

static bool read_all(Loader *l) {
    const Device *device = l->weights->device;
    for (int64_t i = 0; i < l->n_wanted; i++)
        if (!lend(l, l->wanted[i].whole)) return false;
    if (l->config->tie_embeddings) l->weights->head = l->weights->embedding;
    if (!device->computes) return true;
    Queue *queue = device->queue_new();
    char *part = mem_alloc(PART_BYTES);
    bool fine = queue && part ? true : error_out_of_memory(l->error, "loading weights", PART_BYTES);
    for (int64_t i = 0; fine && i < l->n_wanted; i++) fine = read_wanted(l, &l->wanted[i], queue, part);
    mem_free(part);
    if (queue) device->queue_free(queue);
    return fine;
}

static bool load(Loader *l) { return list_wanted(l) && (!l->set || check_all(l)) && read_all(l); }

static bool finish(Loader *l, bool fine) {
    arch_close(&l->arch);
    safetensors_close(l->set);
    mem_free(l->wanted);
    if (!fine) weights_free(l->weights);
    return fine;
}

bool weights_load(const ModelConfig *config, const Device *device, Weights *weights, Error *error) {
    *weights = (Weights){.device = device};
    Loader l = {.config = config, .weights = weights, .dtype = DTYPE_F32, .error = error};
    if (!arch_open(config->family, &l.arch, error)) return false;
    l.set = safetensors_open(config->folder, error);
    return finish(&l, l.set && load(&l));
}

bool weights_shapes(const ModelConfig *config, DType dtype, const Device *device, Weights *weights,
                    Error *error) {
    *weights = (Weights){.device = device};
    Loader l = {.config = config, .weights = weights, .dtype = dtype, .error = error};
    if (!arch_open(config->family, &l.arch, error)) return false;
    return finish(&l, load(&l));
}

void weights_free(Weights *weights) {
    for (int64_t i = 0; i < weights->n_blocks; i++) weights->device->free(weights->blocks[i]);
    mem_free(weights->blocks);
    mem_free(weights->layers);
    *weights = (Weights){0};
}

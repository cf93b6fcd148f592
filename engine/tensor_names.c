/* Roles as a table: name in the arch file, place in Weights, extents, and when there is such a tensor. */
#include "tensor_names.h"
#include "alloc.h"
#include <stddef.h>
#include <string.h>

typedef enum {
    SIZE_NONE,
    SIZE_VOCABULARY,
    SIZE_HIDDEN,
    SIZE_QUERY,
    SIZE_KEY,
    SIZE_QUERY_NORM,
    SIZE_KEY_NORM
} Size;
typedef enum { WHEN_ALWAYS, WHEN_NOT_TIED, WHEN_BIAS, WHEN_QK_NORM } When;

typedef struct {
    const char *role;
    size_t offset; /* in Weights or LayerWeights */
    Size rows, columns;
    When when;
} Role;

static const Role model_roles[] = {
    {"embedding", offsetof(Weights, embedding), SIZE_VOCABULARY, SIZE_HIDDEN, WHEN_ALWAYS},
    {"final_norm", offsetof(Weights, final_norm), SIZE_NONE, SIZE_HIDDEN, WHEN_ALWAYS},
    {"head", offsetof(Weights, head), SIZE_VOCABULARY, SIZE_HIDDEN, WHEN_NOT_TIED},
};

static const Role layer_roles[] = {
    {"attention_norm", offsetof(LayerWeights, attention_norm), SIZE_NONE, SIZE_HIDDEN, WHEN_ALWAYS},
    {"experts_norm", offsetof(LayerWeights, experts_norm), SIZE_NONE, SIZE_HIDDEN, WHEN_ALWAYS},
    {"query", offsetof(LayerWeights, query), SIZE_QUERY, SIZE_HIDDEN, WHEN_ALWAYS},
    {"key", offsetof(LayerWeights, key), SIZE_KEY, SIZE_HIDDEN, WHEN_ALWAYS},
    {"value", offsetof(LayerWeights, value), SIZE_KEY, SIZE_HIDDEN, WHEN_ALWAYS},
    {"output", offsetof(LayerWeights, output), SIZE_HIDDEN, SIZE_QUERY, WHEN_ALWAYS},
    {"query_bias", offsetof(LayerWeights, query_bias), SIZE_NONE, SIZE_QUERY, WHEN_BIAS},
    {"key_bias", offsetof(LayerWeights, key_bias), SIZE_NONE, SIZE_KEY, WHEN_BIAS},
    {"value_bias", offsetof(LayerWeights, value_bias), SIZE_NONE, SIZE_KEY, WHEN_BIAS},
    {"output_bias", offsetof(LayerWeights, output_bias), SIZE_NONE, SIZE_HIDDEN, WHEN_BIAS},
    {"query_norm", offsetof(LayerWeights, query_norm), SIZE_NONE, SIZE_QUERY_NORM, WHEN_QK_NORM},
    {"key_norm", offsetof(LayerWeights, key_norm), SIZE_NONE, SIZE_KEY_NORM, WHEN_QK_NORM},
};

static int64_t size_of(const ModelConfig *c, Size size) {
    bool head = c->qk_norm == QK_NORM_HEAD;
    switch (size) {
    case SIZE_VOCABULARY: return c->vocab_size;
    case SIZE_HIDDEN: return c->hidden_size;
    case SIZE_QUERY: return c->n_heads * c->head_size;
    case SIZE_KEY: return c->n_kv_heads * c->head_size;
    case SIZE_QUERY_NORM: return (head ? 1 : c->n_heads) * c->head_size;
    case SIZE_KEY_NORM: return (head ? 1 : c->n_kv_heads) * c->head_size;
    default: return 0;
    }
}

static bool is_wanted(const ModelConfig *c, When when) {
    return when == WHEN_ALWAYS || (when == WHEN_NOT_TIED && !c->tie_embeddings) ||
           (when == WHEN_BIAS && c->attention_bias) || (when == WHEN_QK_NORM && c->qk_norm != QK_NORM_NONE);
}

typedef struct {
    const ModelConfig *config;
    const Arch *arch;
    const TensorSet *set;
    DType dtype;
    WantedTensors *list;
    Error *error;
} Lister;

/* The name of a role in a layer: of several, the one that the files have, else the first. */
static bool find_name(const Lister *l, const char *role, int64_t layer, int64_t expert,
                      char to[TENSOR_NAME_BYTES]) {
    const char *first = arch_tensor_pattern(l->arch, role, 0), *pattern = first;
    for (int64_t i = 0; pattern; pattern = arch_tensor_pattern(l->arch, role, ++i)) {
        if (!arch_fill_name(pattern, layer, expert, to, TENSOR_NAME_BYTES)) break;
        if (l->set && safetensors_find(l->set, to)) return true;
    }
    if (first && !pattern && arch_fill_name(first, layer, expert, to, TENSOR_NAME_BYTES)) return true;
    return json_error(l->arch->tensors, l->error, "expected a name for %s, at most %d bytes long", role,
                      TENSOR_NAME_BYTES - 1);
}

/* Adds a tensor under its role's name. */
static bool want(Lister *l, const char *role, WantedTensor wanted) {
    WantedTensors *list = l->list;
    if (!find_name(l, role, wanted.layer, wanted.expert, wanted.name)) return false;
    if (list->n == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 256;
        WantedTensor *larger = mem_resize(list->entries, (size_t)capacity, sizeof *larger);
        if (!larger)
            return error_out_of_memory(l->error, "list of tensors", (size_t)capacity * sizeof *larger);
        list->entries = larger;
        list->capacity = capacity;
    }
    list->entries[list->n++] = wanted;
    return true;
}

/* The tensors of a table of roles, each a whole one of `owner`. */
static bool want_roles(Lister *l, const Role *roles, size_t n_roles, void *owner, int64_t layer) {
    for (size_t i = 0; i < n_roles; i++) {
        if (!is_wanted(l->config, roles[i].when)) continue;
        int64_t rows = size_of(l->config, roles[i].rows), columns = size_of(l->config, roles[i].columns);
        Tensor *whole = (Tensor *)(void *)((char *)owner + roles[i].offset);
        *whole = rows ? tensor_matrix(NULL, l->dtype, rows, columns) : tensor_vector(NULL, l->dtype, columns);
        WantedTensor wanted = {.whole = whole, .n_dims = whole->n_dims, .layer = layer, .expert = -1};
        memcpy(wanted.shape, whole->shape, (size_t)whole->n_dims * sizeof *wanted.shape);
        if (!want(l, roles[i].role, wanted)) return false;
    }
    return true;
}

/* A [rows, columns] part of a fused tensor. */
static bool want_part(Lister *l, const char *role, Tensor *whole, int64_t layer, int64_t expert,
                      int64_t first, int64_t rows) {
    WantedTensor wanted = {.whole = whole,
                           .first = first,
                           .n_dims = 2,
                           .shape = {rows, tensor_columns(*whole)},
                           .layer = layer,
                           .expert = expert};
    return want(l, role, wanted);
}

static bool want_dense(Lister *l, LayerWeights *w, int64_t layer) {
    int64_t D = l->config->hidden_size, F = l->config->dense_size;
    w->gate_up = tensor_matrix(NULL, l->dtype, 2 * F, D);
    w->down = tensor_matrix(NULL, l->dtype, D, F);
    return want_part(l, "dense_gate", &w->gate_up, layer, -1, 0, F) &&
           want_part(l, "dense_up", &w->gate_up, layer, -1, F * D, F) &&
           want_part(l, "dense_down", &w->down, layer, -1, 0, D);
}

static bool want_experts(Lister *l, LayerWeights *w, int64_t layer) {
    int64_t D = l->config->hidden_size, F = l->config->expert_size, E = l->config->n_experts;
    w->router = tensor_matrix(NULL, l->dtype, E, D);
    w->gate_up = tensor_cube(NULL, l->dtype, E, 2 * F, D);
    w->down = tensor_cube(NULL, l->dtype, E, D, F);
    char fused[TENSOR_NAME_BYTES];
    if (!want_part(l, "router", &w->router, layer, -1, 0, E)) return false;
    if (!find_name(l, "fused_gate_up", layer, 0, fused)) return false;
    if (!l->set || safetensors_find(l->set, fused)) {
        WantedTensor gate_up = {
            .whole = &w->gate_up, .n_dims = 3, .shape = {E, 2 * F, D}, .layer = layer, .expert = -1};
        WantedTensor down = {
            .whole = &w->down, .n_dims = 3, .shape = {E, D, F}, .layer = layer, .expert = -1};
        return want(l, "fused_gate_up", gate_up) && want(l, "fused_down", down);
    }
    for (int64_t e = 0; e < E; e++)
        if (!want_part(l, "expert_gate", &w->gate_up, layer, e, e * 2 * F * D, F) ||
            !want_part(l, "expert_up", &w->gate_up, layer, e, (e * 2 + 1) * F * D, F) ||
            !want_part(l, "expert_down", &w->down, layer, e, e * D * F, D))
            return false;
    return true;
}

bool tensor_names_list(const ModelConfig *config, const Arch *arch, const TensorSet *set, DType dtype,
                       Weights *weights, WantedTensors *list, Error *error) {
    Lister l = {config, arch, set, dtype, list, error};
    if (!want_roles(&l, model_roles, sizeof model_roles / sizeof *model_roles, weights, -1)) return false;
    for (int64_t i = 0; i < config->n_layers; i++) {
        LayerWeights *w = &weights->layers[i];
        if (!want_roles(&l, layer_roles, sizeof layer_roles / sizeof *layer_roles, w, i)) return false;
        if (!(config->layer_is_dense[i] ? want_dense(&l, w, i) : want_experts(&l, w, i))) return false;
    }
    return true;
}

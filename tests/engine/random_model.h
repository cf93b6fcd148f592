/* A small decoder with random weights, in memory: what the decoder's tests run on. The same seed gives the
 * same numbers on every machine; weights of scale 1/sqrt(columns) keep the activations near 1 and the
 * routing undecided. */
#ifndef GATETAPE_RANDOM_MODEL_H
#define GATETAPE_RANDOM_MODEL_H
#include "engine/alloc.h"
#include "engine/model.h"
#include <math.h>
#include <string.h>

typedef struct {
    QkNorm qk_norm;
    RouterOrder order;
    bool renormalize, tie, bias;
    int64_t n_experts, n_chosen, window, dense_layer; /* dense_layer: -1: none */
    DType weights;
} RandomModel;

enum { R_LAYERS = 3, R_HIDDEN = 24, R_HEADS = 4, R_KV_HEADS = 2, R_HEAD = 8, R_EXPERT = 12, R_DENSE = 20 };
enum { R_VOCABULARY = 50, R_POSITIONS = 40 };

static inline RandomModel like_mixtral(DType weights) {
    return (RandomModel){.order = ROUTER_SOFTMAX_TOPK,
                         .renormalize = true,
                         .n_experts = 6,
                         .n_chosen = 2,
                         .window = 5,
                         .dense_layer = -1,
                         .weights = weights};
}
static inline RandomModel like_olmoe(DType weights) {
    return (RandomModel){.qk_norm = QK_NORM_PROJECTION,
                         .n_experts = 7,
                         .n_chosen = 3,
                         .dense_layer = -1,
                         .bias = true,
                         .weights = weights};
}
static inline RandomModel like_qwen3(DType weights) {
    return (RandomModel){.qk_norm = QK_NORM_HEAD,
                         .renormalize = true,
                         .tie = true,
                         .n_experts = 5,
                         .n_chosen = 2,
                         .dense_layer = 1,
                         .weights = weights};
}

static inline double random_value(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(*state >> 40) / 8388608.0 - 1; /* in [-1, 1) */
}

/* around + scale * a random number, in the weights' dtype; bf16 by cutting. */
static inline Tensor random_weight(Model *model, DType dtype, int n_dims, const int64_t *shape, double around,
                                   uint64_t *state) {
    Tensor t = {.dtype = dtype, .n_dims = n_dims};
    memcpy(t.shape, shape, (size_t)n_dims * sizeof *shape);
    t.data = mem_alloc(tensor_bytes(t));
    double scale = around != 0 ? 0.3 : 1.7 / sqrt((double)tensor_columns(t));
    for (int64_t i = 0; i < tensor_count(t); i++) {
        double value = around + scale * random_value(state);
        float narrow = (float)value;
        uint32_t bits;
        memcpy(&bits, &narrow, 4);
        if (dtype == DTYPE_F64)
            ((double *)t.data)[i] = value;
        else if (dtype == DTYPE_F32)
            ((float *)t.data)[i] = narrow;
        else
            ((uint16_t *)t.data)[i] = (uint16_t)(bits >> 16);
    }
    model->weights.blocks[model->weights.n_blocks++] = t.data;
    return t;
}

#define RANDOM_WEIGHT(around, ...)                                                                           \
    random_weight(model, r.weights, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),               \
                  (int64_t[]){__VA_ARGS__}, around, &state)

static inline void random_config(ModelConfig *c, RandomModel r) {
    *c = (ModelConfig){.family = "random",
                       .n_layers = R_LAYERS,
                       .hidden_size = R_HIDDEN,
                       .vocab_size = R_VOCABULARY,
                       .max_positions = R_POSITIONS,
                       .n_heads = R_HEADS,
                       .n_kv_heads = R_KV_HEADS,
                       .head_size = R_HEAD,
                       .value_head_size = R_HEAD,
                       .n_experts = r.n_experts,
                       .n_experts_per_token = r.n_chosen,
                       .expert_size = R_EXPERT,
                       .dense_size = r.dense_layer < 0 ? 0 : R_DENSE,
                       .norm_eps = 1e-5f,
                       .tie_embeddings = r.tie,
                       .attention_bias = r.bias,
                       .qk_norm = r.qk_norm,
                       .router = {r.order, r.renormalize, 1},
                       .rope_scale = 1,
                       .n_rope = R_HEAD / 2,
                       .bos_token = -1};
    c->attention_scale = 1 / sqrtf(R_HEAD);
    c->rope_frequencies = mem_alloc(R_HEAD / 2 * sizeof(float));
    for (int i = 0; i < R_HEAD / 2; i++) c->rope_frequencies[i] = 1 / powf(100, (float)i / (R_HEAD / 2));
    c->layer_is_dense = mem_zeroed(R_LAYERS, sizeof(bool));
    c->layer_window = mem_zeroed(R_LAYERS, sizeof(int64_t));
    c->n_moe_layers = R_LAYERS - (r.dense_layer >= 0);
    if (r.dense_layer >= 0) c->layer_is_dense[r.dense_layer] = true;
    c->layer_window[1] = r.window;
}

static inline void random_layer(Model *model, RandomModel r, int64_t layer, uint64_t seed) {
    uint64_t state = seed;
    LayerWeights *w = &model->weights.layers[layer];
    int64_t d = R_HIDDEN, e = r.n_experts, q = R_HEADS * R_HEAD, k = R_KV_HEADS * R_HEAD;
    w->attention_norm = RANDOM_WEIGHT(1, d);
    w->experts_norm = RANDOM_WEIGHT(1, d);
    w->query = RANDOM_WEIGHT(0, q, d);
    w->key = RANDOM_WEIGHT(0, k, d);
    w->value = RANDOM_WEIGHT(0, k, d);
    w->output = RANDOM_WEIGHT(0, d, q);
    if (r.bias) {
        w->query_bias = RANDOM_WEIGHT(0, q);
        w->key_bias = RANDOM_WEIGHT(0, k);
        w->value_bias = RANDOM_WEIGHT(0, k);
        w->output_bias = RANDOM_WEIGHT(0, d);
    }
    if (r.qk_norm != QK_NORM_NONE) {
        w->query_norm = RANDOM_WEIGHT(1, r.qk_norm == QK_NORM_HEAD ? R_HEAD : q);
        w->key_norm = RANDOM_WEIGHT(1, r.qk_norm == QK_NORM_HEAD ? R_HEAD : k);
    }
    if (layer == r.dense_layer) {
        w->gate_up = RANDOM_WEIGHT(0, 2 * R_DENSE, d);
        w->down = RANDOM_WEIGHT(0, d, R_DENSE);
        return;
    }
    w->router = RANDOM_WEIGHT(0, e, d);
    w->gate_up = RANDOM_WEIGHT(0, e, 2 * R_EXPERT, d);
    w->down = RANDOM_WEIGHT(0, e, d, R_EXPERT);
}

/* On a CPU device, whose memory is the host's. */
static inline void random_model_open(Model *model, RandomModel r, const Device *device, DType compute,
                                     uint64_t seed) {
    uint64_t state = seed;
    *model = (Model){.device = device, .compute = compute};
    random_config(&model->config, r);
    model->spare = mem_zeroed(1, sizeof *model->spare);
    model->weights.blocks = mem_zeroed(R_LAYERS * 16 + 3, sizeof(void *));
    model->weights.layers = mem_zeroed(R_LAYERS, sizeof(LayerWeights));
    model->weights.n_layers = R_LAYERS;
    model->weights.embedding = RANDOM_WEIGHT(0, R_VOCABULARY, R_HIDDEN);
    model->weights.final_norm = RANDOM_WEIGHT(1, R_HIDDEN);
    model->weights.head = r.tie ? model->weights.embedding : RANDOM_WEIGHT(0, R_VOCABULARY, R_HIDDEN);
    for (int64_t layer = 0; layer < R_LAYERS; layer++)
        random_layer(model, r, layer, seed + 1 + (uint64_t)layer);
}

static inline void random_model_close(Model *model) {
    if (model->spare->block) model->device->free(model->spare->block);
    mem_free(model->spare);
    for (int64_t i = 0; i < model->weights.n_blocks; i++) mem_free(model->weights.blocks[i]);
    mem_free(model->weights.blocks);
    mem_free(model->weights.layers);
    mem_free(model->config.rope_frequencies);
    mem_free(model->config.layer_is_dense);
    mem_free(model->config.layer_window);
}

/* ---- prompts ---- */
enum { R_PROMPTS = 4, R_TOKENS = 34 };
static const int64_t R_OFFSETS[R_PROMPTS + 1] = {0, 11, 12, 25, 34}; /* one of a single token */

static inline void random_tokens(int32_t tokens[R_TOKENS], uint64_t seed) {
    uint64_t state = seed;
    for (int i = 0; i < R_TOKENS; i++) tokens[i] = (int32_t)((random_value(&state) + 1) / 2 * R_VOCABULARY);
}

#endif

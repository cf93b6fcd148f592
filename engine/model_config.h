/* ModelConfig: the shape and the rules of a checkpoint, from its config.json and the family's
 * configs/arch/NAME.json.
 *
 * arch files state what config.json does not: which config keys hold what, the router rule, q/k norms, the
 * patterns of tensor names for each role. An unknown architecture, a key with a value that the engine has
 * no maths for, a missing or absurd size: each is an Error that names file, key, expected, got. */
#ifndef GATETAPE_MODEL_CONFIG_H
#define GATETAPE_MODEL_CONFIG_H
#include "../kernels/ops.h"
#include "error.h"

typedef enum {
    QK_NORM_NONE,
    QK_NORM_HEAD,
    QK_NORM_PROJECTION
} QkNorm; /* over one head, or the whole projection */

typedef struct {
    char family[32]; /* model_type: "mixtral", "olmoe", "qwen3_moe" */
    char *folder;    /* of the checkpoint */
    int64_t n_layers, hidden_size, vocab_size, max_positions;
    int64_t n_heads, n_kv_heads, head_size, value_head_size;
    int64_t n_experts, n_experts_per_token, expert_size; /* E, K, F */
    int64_t dense_size;                                  /* MLP size of layers without experts; 0: none */
    float norm_eps;
    bool tie_embeddings;
    bool attention_bias; /* q, k, v and o projections have biases */
    QkNorm qk_norm;
    RouterRule router;
    Activation activation;
    float attention_scale;
    RopeKind rope_kind;
    float rope_scale;        /* cos and sin times this (attention factor) */
    float *rope_frequencies; /* [n_rope] */
    int64_t n_rope;
    bool *layer_is_dense;  /* [n_layers] */
    int64_t *layer_window; /* [n_layers] sliding window, 0: none */
    int64_t n_moe_layers;
    int32_t bos_token;   /* -1: none */
    int32_t *eos_tokens; /* ends of generation: generation_config.json, else config.json */
    int64_t n_eos_tokens;
    char *chat_template; /* the family's usual one (chat.h); NULL: must be named */
    char *dtype;         /* torch_dtype or dtype as written, for people; may be NULL */
} ModelConfig;

/* Reads FOLDER/config.json (and generation_config.json where it is). Caller frees with model_config_free. */
bool model_config_read(const char *folder, ModelConfig *config, Error *error);
/* From texts alone (fuzzing); `name` stands for the file in messages. */
bool model_config_parse(const char *json, size_t length, const char *name, ModelConfig *config, Error *error);
void model_config_free(ModelConfig *config);

/* The decoder layer of the l-th layer with experts, and the other way: -1 where the layer has none. */
int64_t model_config_decoder_layer(const ModelConfig *config, int64_t l);
int64_t model_config_moe_layer(const ModelConfig *config, int64_t layer);

/* Where the configs/ folder is: environment GATETAPE_CONFIGS, else beside the program
 * (../share/gatetape/configs), else the source tree it was built from. */
const char *model_config_folder(void);

/* Of the weights, as config.json says; bf16 where it does not. */
DType model_config_dtype(const ModelConfig *config);

/* Parameters in all and those a token uses, from shapes alone. */
void model_config_count(const ModelConfig *config, int64_t *n_total, int64_t *n_active);

#endif

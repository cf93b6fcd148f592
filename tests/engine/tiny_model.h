/* Tests: a Mixtral of a few kilobytes, written tensor by tensor so that a test can spoil any one of them. */
#ifndef GATETAPE_TEST_TINY_MODEL_H
#define GATETAPE_TEST_TINY_MODEL_H
#include "engine/safetensors.h"
#include "tests/engine/scratch.h"

enum {
    TINY_L = 2,
    TINY_D = 8,
    TINY_H = 2,
    TINY_J = 1,
    TINY_E = 3,
    TINY_F = 6,
    TINY_V = 16,
    TINY_TENSORS = 64
};

static const char tiny_config[] =
    "{\"architectures\":[\"MixtralForCausalLM\"],\"model_type\":\"mixtral\",\"vocab_size\":16,\"hidden_"
    "size\":8,"
    "\"intermediate_size\":6,\"num_hidden_layers\":2,\"num_attention_heads\":2,\"num_key_value_heads\":1,"
    "\"num_local_experts\":3,\"num_experts_per_tok\":2,\"rope_theta\":10000.0,\"rms_norm_eps\":1e-05,"
    "\"max_position_embeddings\":64,\"hidden_act\":\"silu\",\"bos_token_id\":1,\"eos_token_id\":2}";

typedef struct {
    NamedTensor tensors[TINY_TENSORS];
    int64_t n;
} TinyModel;

/* A tensor of F32 values that differ from each other; columns alone when rows is 0. */
static inline NamedTensor *tiny_add(TinyModel *m, const char *name, int64_t rows, int64_t columns) {
    NamedTensor *named = &m->tensors[m->n];
    int64_t n = (rows ? rows : 1) * columns;
    float *values = malloc((size_t)n * sizeof *values);
    for (int64_t i = 0; i < n; i++) values[i] = (float)(m->n + 1) + (float)i / 512.0f;
    named->name = strdup(name);
    m->n++;
    named->tensor =
        rows ? tensor_matrix(values, DTYPE_F32, rows, columns) : tensor_vector(values, DTYPE_F32, columns);
    return named;
}

static inline void tiny_add_layer(TinyModel *m, int layer) {
    static const struct {
        const char *name;
        int64_t rows, columns;
    } roles[] = {
        {"input_layernorm.weight", 0, TINY_D},
        {"post_attention_layernorm.weight", 0, TINY_D},
        {"self_attn.q_proj.weight", 8, TINY_D},
        {"self_attn.k_proj.weight", 4, TINY_D},
        {"self_attn.v_proj.weight", 4, TINY_D},
        {"self_attn.o_proj.weight", TINY_D, 8},
        {"block_sparse_moe.gate.weight", TINY_E, TINY_D},
    };
    char name[96];
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s", layer, roles[i].name);
        tiny_add(m, name, roles[i].rows, roles[i].columns);
    }
    for (int e = 0; e < TINY_E; e++) {
        for (int w = 1; w <= 3; w++) {
            snprintf(name, sizeof name, "model.layers.%d.block_sparse_moe.experts.%d.w%d.weight", layer, e,
                     w);
            tiny_add(m, name, w == 2 ? TINY_D : TINY_F, w == 2 ? TINY_F : TINY_D);
        }
    }
}

static inline void tiny_make(TinyModel *m) {
    m->n = 0;
    tiny_add(m, "model.embed_tokens.weight", TINY_V, TINY_D);
    tiny_add(m, "model.norm.weight", 0, TINY_D);
    tiny_add(m, "lm_head.weight", TINY_V, TINY_D);
    for (int l = 0; l < TINY_L; l++) tiny_add_layer(m, l);
}

static inline NamedTensor *tiny_find(TinyModel *m, const char *name) {
    for (int64_t i = 0; i < m->n; i++)
        if (!strcmp(m->tensors[i].name, name)) return &m->tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static inline void tiny_remove(TinyModel *m, const char *name) {
    NamedTensor *named = tiny_find(m, name);
    free(named->tensor.data);
    free((void *)(uintptr_t)named->name);
    *named = m->tensors[--m->n];
}

static inline void tiny_free(TinyModel *m) {
    while (m->n > 0) {
        m->n--;
        free(m->tensors[m->n].tensor.data);
        free((void *)(uintptr_t)m->tensors[m->n].name);
    }
}

/* Writes config and tensors into a folder of the scratch folder and frees the model. Returns the folder's
 * path. */
static inline const char *tiny_write(TinyModel *m, const char *folder, const char *config) {
    char name[96];
    Error error = {0};
    scratch_make_folder(folder);
    snprintf(name, sizeof name, "%s/config.json", folder);
    scratch_write_text(name, config);
    snprintf(name, sizeof name, "%s/model.safetensors", folder);
    if (!safetensors_write(scratch_path(name), m->tensors, m->n, NULL, 0, &error)) fail_msg("%s", error.text);
    tiny_free(m);
    return scratch_path(folder);
}

#endif

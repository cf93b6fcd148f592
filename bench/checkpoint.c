/* A random checkpoint of a real model's sizes, in the layout in which such models are published. */
#include "bench.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/safetensors.h"
#include "../engine/text.h"
#include "../kernels/random.h"
#include <string.h>

typedef struct {
    const BenchShape *shape;
    DType dtype;
    bool is_qwen3; /* else mixtral */
    NamedTensor *tensors;
    int64_t n, capacity;
    Error *error;
} Checkpoint;

/* Uniform on [-0.04, 0.04), or ones. A number depends on the tensor's place in the file and its own alone. */
static void fill(Tensor t, int64_t id, bool ones) {
#pragma omp parallel for
    for (int64_t at = 0; at < tensor_count(t); at += 4096) {
        uint64_t state = random_bits(4, RANDOM_WEIGHTS, id, at / 4096);
        for (int64_t i = at; i < at + 4096 && i < tensor_count(t); i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            const float value = ones ? 1.0f : ((float)(uint32_t)(state >> 40) / 16777216.0f - 0.5f) * 0.08f;
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            if (t.dtype == DTYPE_F32)
                ((float *)t.data)[i] = value;
            else
                ((uint16_t *)t.data)[i] = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
        }
    }
}

/* rows 0: a vector of ones */
static bool add(Checkpoint *to, const char *name, int64_t rows, int64_t columns) {
    Tensor t = rows ? tensor_matrix(NULL, to->dtype, rows, columns) : tensor_vector(NULL, to->dtype, columns);
    t.data = mem_alloc(tensor_bytes(t));
    char *copy = mem_copy_text(name, strlen(name));
    if (!t.data || !copy || to->n == to->capacity) {
        mem_free(t.data), mem_free(copy);
        return error_out_of_memory(to->error, name, tensor_bytes(t));
    }
    fill(t, to->n, rows == 0);
    to->tensors[to->n++] = (NamedTensor){copy, t};
    return true;
}

static bool add_layer(Checkpoint *to, int64_t layer) {
    const BenchShape *s = to->shape;
    const char *block = to->is_qwen3 ? "mlp" : "block_sparse_moe";
    const char *const mixtral[] = {"w1", "w3", "w2"}, *const qwen3[] = {"gate_proj", "up_proj", "down_proj"};
    const struct {
        const char *name;
        int64_t rows, columns;
        bool only_qwen3;
    } parts[] = {{"input_layernorm", 0, s->hidden, false},
                 {"post_attention_layernorm", 0, s->hidden, false},
                 {"self_attn.q_norm", 0, s->head, true},
                 {"self_attn.k_norm", 0, s->head, true},
                 {"self_attn.q_proj", s->heads * s->head, s->hidden, false},
                 {"self_attn.k_proj", s->kv_heads * s->head, s->hidden, false},
                 {"self_attn.v_proj", s->kv_heads * s->head, s->hidden, false},
                 {"self_attn.o_proj", s->hidden, s->heads * s->head, false}};
    char name[128];
    bool ok = true;
    for (size_t i = 0; ok && i < sizeof parts / sizeof *parts; i++) {
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)layer, parts[i].name);
        ok = (parts[i].only_qwen3 && !to->is_qwen3) || add(to, name, parts[i].rows, parts[i].columns);
    }
    snprintf(name, sizeof name, "model.layers.%lld.%s.gate.weight", (long long)layer, block);
    ok = ok && add(to, name, s->experts, s->hidden);
    for (int64_t e = 0; e < s->experts; e++)
        for (int w = 0; ok && w < 3; w++) {
            snprintf(name, sizeof name, "model.layers.%lld.%s.experts.%lld.%s.weight", (long long)layer,
                     block, (long long)e, (to->is_qwen3 ? qwen3 : mixtral)[w]);
            ok = add(to, name, w == 2 ? s->hidden : s->inner, w == 2 ? s->inner : s->hidden);
        }
    return ok;
}

static bool write_config(const Checkpoint *c, const char *path, int64_t layers) {
    const BenchShape *s = c->shape;
    Text t = {0};
    text_format(
        &t,
        "{\"architectures\": [\"%s\"], \"model_type\": \"%s\", \"vocab_size\": %lld, \"hidden_size\": "
        "%lld, \"num_hidden_layers\": %lld, \"num_attention_heads\": %lld, \"num_key_value_heads\": "
        "%lld, \"head_dim\": %lld, \"num_experts_per_tok\": %lld, \"rope_theta\": 1000000.0, "
        "\"rms_norm_eps\": 1e-05, \"max_position_embeddings\": 32768, \"sliding_window\": null, "
        "\"hidden_act\": \"silu\", \"tie_word_embeddings\": false, \"bos_token_id\": 1, "
        "\"eos_token_id\": 2, \"torch_dtype\": \"%s\", ",
        c->is_qwen3 ? "Qwen3MoeForCausalLM" : "MixtralForCausalLM", c->is_qwen3 ? "qwen3_moe" : "mixtral",
        (long long)s->vocabulary, (long long)s->hidden, (long long)layers, (long long)s->heads,
        (long long)s->kv_heads, (long long)s->head, (long long)s->choices,
        c->dtype == DTYPE_F32 ? "float32" : "bfloat16");
    if (c->is_qwen3)
        text_format(&t,
                    "\"num_experts\": %lld, \"moe_intermediate_size\": %lld, \"intermediate_size\": %lld, "
                    "\"norm_topk_prob\": true, \"decoder_sparse_step\": 1, \"mlp_only_layers\": [], "
                    "\"attention_bias\": false, \"use_sliding_window\": false}\n",
                    (long long)s->experts, (long long)s->inner, (long long)(3 * s->hidden));
    else
        text_format(&t, "\"num_local_experts\": %lld, \"intermediate_size\": %lld}\n", (long long)s->experts,
                    (long long)s->inner);
    const bool ok = !t.failed && io_write_all(path, t.bytes, t.length, c->error);
    text_free(&t);
    return ok;
}

bool bench_checkpoint(const BenchShape *shape, int64_t layers, DType dtype, const char *folder,
                      Error *error) {
    Checkpoint c = {.shape = shape,
                    .dtype = dtype,
                    .is_qwen3 = shape->head * shape->heads != shape->hidden,
                    .capacity = 3 + layers * (9 + 3 * shape->experts),
                    .error = error};
    c.tensors = mem_zeroed((size_t)c.capacity, sizeof *c.tensors);
    char *weights = io_join(folder, "model.safetensors"), *config = io_join(folder, "config.json");
    bool ok = (c.tensors && weights && config) || error_out_of_memory(error, "a checkpoint", 0);
    ok = ok && io_make_folders(folder, error) &&
         add(&c, "model.embed_tokens.weight", shape->vocabulary, shape->hidden) &&
         add(&c, "model.norm.weight", 0, shape->hidden) &&
         add(&c, "lm_head.weight", shape->vocabulary, shape->hidden);
    for (int64_t layer = 0; ok && layer < layers; layer++) ok = add_layer(&c, layer);
    ok = ok && safetensors_write(weights, c.tensors, c.n, NULL, 0, error) && write_config(&c, config, layers);
    for (int64_t i = 0; i < c.n; i++) {
        mem_free((void *)(uintptr_t)c.tensors[i].name);
        mem_free(c.tensors[i].tensor.data);
    }
    mem_free(c.tensors);
    mem_free(weights);
    mem_free(config);
    return ok;
}

/* From config.json to ModelConfig. Sizes are bounded before they are multiplied; a key whose value would change the
 * maths in a way that the engine does not have is refused by name, never ignored. */
#include "model_config.h"
#include "alloc.h"
#include "arch.h"
#include "io.h"
#include "json.h"
#include "rope_frequencies.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_CONFIG_BYTES = 16 << 20, MAX_LAYERS = 1024, MAX_SIZE = 1 << 22, MAX_EXPERTS = 1024 };

static bool present(Json at) { return at.node && json_type(at) != JSON_NULL; }

/* A size of the config, or `otherwise` when it is absent; otherwise < 0: it must be there. */
static bool read_size(const Json *root, const char *key, int64_t most, int64_t otherwise, int64_t *value,
                      Error *error) {
    Json at = json_member(root, key);
    if (!present(at) && otherwise >= 0) {
        *value = otherwise;
        return true;
    }
    return json_integer(at, 1, most, value, error);
}

static bool read_flag(const Json *root, const char *key, bool otherwise, bool *value, Error *error) {
    Json at = json_member(root, key);
    *value = otherwise;
    return !present(at) || json_bool(at, value, error);
}

/* ---- what must be as the family's maths wants it ---- */
static bool same_value(Json a, Json b) {
    const char *x = "", *y = "";
    double m = 0, n = 0;
    bool p = false, q = false;
    Error none = {0};
    if (!present(a) || !present(b)) return present(a) == present(b);
    if (json_type(a) != json_type(b)) return false;
    switch (json_type(a)) {
    case JSON_STRING: return json_string(a, &x, &none) && json_string(b, &y, &none) && !strcmp(x, y);
    case JSON_NUMBER: return json_number(a, &m, &none) && json_number(b, &n, &none) && m == n;
    case JSON_BOOL: return json_bool(a, &p, &none) && json_bool(b, &q, &none) && p == q;
    default: return false;
    }
}

static bool check_fixed(const Json *root, const Arch *arch, Error *error) {
    Json fixed = json_member(&arch->root, "must_be");
    for (Json want = {0}; json_next(&fixed, &want);) {
        Json got = json_member(root, want.key);
        if (!got.node || same_value(got, want)) continue;
        const char *text = "null";
        if (json_type(want) == JSON_STRING) json_string(want, &text, &(Error){0});
        return json_error(got, error, "expected %s, the only value that there is maths for: got another",
                          text);
    }
    Json quantization = json_member(root, "quantization_config");
    if (!present(quantization)) return true;
    return json_error(quantization, error,
                      "expected none (weights in f32, bf16 or f16): got a quantised checkpoint");
}

/* ---- sizes ---- */
static bool read_sizes(const Json *root, const Arch *arch, ModelConfig *c, Error *error) {
    const char *n_experts = arch_string(arch, "keys", "n_experts"),
               *expert_size = arch_string(arch, "keys", "expert_size");
    const char *dense_size = arch_string(arch, "keys", "dense_size");
    if (!n_experts || !expert_size)
        return json_error(arch->root, error, "expected keys.n_experts and keys.expert_size");
    bool fine = read_size(root, "num_hidden_layers", MAX_LAYERS, -1, &c->n_layers, error) &&
                read_size(root, "hidden_size", MAX_SIZE, -1, &c->hidden_size, error) &&
                read_size(root, "vocab_size", MAX_SIZE, -1, &c->vocab_size, error) &&
                read_size(root, "num_attention_heads", 4096, -1, &c->n_heads, error) &&
                read_size(root, "num_key_value_heads", 4096, c->n_heads, &c->n_kv_heads, error) &&
                read_size(root, n_experts, MAX_EXPERTS, -1, &c->n_experts, error) &&
                read_size(root, "num_experts_per_tok", c->n_experts, -1, &c->n_experts_per_token, error) &&
                read_size(root, expert_size, MAX_SIZE, -1, &c->expert_size, error) &&
                read_size(root, "max_position_embeddings", 1 << 30, -1, &c->max_positions, error);
    if (!fine) return false;
    if (dense_size && !read_size(root, dense_size, MAX_SIZE, 0, &c->dense_size, error)) return false;
    bool explicit_head = present(json_member(root, "head_dim"));
    if (!explicit_head && c->hidden_size % c->n_heads)
        return json_error(json_member(root, "hidden_size"), error,
                          "expected a multiple of num_attention_heads %lld: got %lld", (long long)c->n_heads,
                          (long long)c->hidden_size);
    if (!read_size(root, "head_dim", 4096, c->hidden_size / c->n_heads, &c->head_size, error)) return false;
    if (c->n_heads % c->n_kv_heads)
        return json_error(json_member(root, "num_key_value_heads"), error,
                          "expected a divisor of %lld heads: got %lld", (long long)c->n_heads,
                          (long long)c->n_kv_heads);
    if (c->head_size % 2)
        return json_error(*root, error, "expected an even head size: got %lld", (long long)c->head_size);
    c->value_head_size = c->head_size;
    return true;
}

/* ---- rules ---- */
static bool read_rules(const Json *root, const Arch *arch, ModelConfig *c, Error *error) {
    double eps = 1e-6;
    Json at = json_member(root, "rms_norm_eps");
    if (present(at) && !json_number(at, &eps, error)) return false;
    if (!(eps > 0 && eps < 1)) return json_error(at, error, "expected a number between 0 and 1: got %g", eps);
    c->norm_eps = (float)eps;
    Json router = json_member(&arch->root, "router"), renormalize = json_member(&router, "renormalize");
    const char *order = arch_string(arch, "router", "order"),
               *key = arch_string(arch, "router", "renormalize");
    if (!order || (strcmp(order, "softmax_topk") && strcmp(order, "topk_softmax")))
        return json_error(router, error, "expected order softmax_topk or topk_softmax: got \"%.40s\"",
                          order ? order : "");
    c->router =
        (RouterRule){strcmp(order, "softmax_topk") ? ROUTER_TOPK_SOFTMAX : ROUTER_SOFTMAX_TOPK, false, 1.0f};
    bool fine = key ? read_flag(root, key, false, &c->router.renormalize, error)
                    : json_bool(renormalize, &c->router.renormalize, error);
    const char *qk_norm = arch_string(arch, NULL, "qk_norm");
    c->qk_norm = !qk_norm || !strcmp(qk_norm, "none") ? QK_NORM_NONE
                 : !strcmp(qk_norm, "head")           ? QK_NORM_HEAD
                                                      : QK_NORM_PROJECTION;
    c->activation = (Activation){0, 0};
    c->attention_scale = (float)(1.0 / sqrt((double)c->head_size));
    c->rope_kind = ROPE_HALVES;
    return fine && read_flag(root, "tie_word_embeddings", false, &c->tie_embeddings, error) &&
           read_flag(root, "attention_bias", false, &c->attention_bias, error);
}

/* ---- layers: dense or experts, window or not ---- */
static bool read_dense_layers(const Json *root, ModelConfig *c, Error *error) {
    int64_t step;
    if (!read_size(root, "decoder_sparse_step", MAX_LAYERS, 1, &step, error)) return false;
    if (c->dense_size)
        for (int64_t l = 0; l < c->n_layers; l++) c->layer_is_dense[l] = (l + 1) % step != 0;
    Json listed = json_member(root, "mlp_only_layers");
    for (Json at = {0}; c->dense_size && json_next(&listed, &at);) {
        int64_t layer;
        if (!json_integer(at, 0, c->n_layers - 1, &layer, error)) return false;
        c->layer_is_dense[layer] = true;
    }
    for (int64_t l = 0; l < c->n_layers; l++) c->n_moe_layers += !c->layer_is_dense[l];
    if (c->n_moe_layers) return true;
    return json_error(*root, error, "expected at least one layer with experts: got none");
}

/* layer_types, where it is given, says which layers use the window; else all do from first_layer on. */
static bool read_layer_types(const Json *root, int64_t window, int64_t first_layer, ModelConfig *c,
                             Error *error) {
    Json types = json_member(root, "layer_types");
    for (int64_t l = 0; l < c->n_layers; l++) c->layer_window[l] = l >= first_layer ? window : 0;
    if (!present(types)) return true;
    if (json_count(types) != c->n_layers)
        return json_error(types, error, "expected one entry per layer, %lld: got %lld",
                          (long long)c->n_layers, (long long)json_count(types));
    for (Json at = {0}; json_next(&types, &at);) {
        const char *type;
        if (!json_string(at, &type, error)) return false;
        bool sliding = !strcmp(type, "sliding_attention");
        if (!sliding && strcmp(type, "full_attention"))
            return json_error(at, error, "expected sliding_attention or full_attention: got \"%.40s\"", type);
        c->layer_window[at.index] = sliding ? window : 0;
    }
    return true;
}

static bool read_window(const Json *root, const Arch *arch, ModelConfig *c, Error *error) {
    const char *kind = arch_string(arch, NULL, "sliding_window");
    int64_t window = 0, first_layer = 0;
    bool used = kind != NULL;
    if (kind && !strcmp(kind, "qwen")) {
        if (!read_flag(root, "use_sliding_window", false, &used, error)) return false;
        Json first = json_member(root, "max_window_layers");
        if (present(first) && !json_integer(first, 0, 1 << 20, &first_layer, error)) return false;
    }
    if (used && !read_size(root, "sliding_window", 1 << 30, 0, &window, error)) return false;
    return !window || read_layer_types(root, window, first_layer, c, error);
}

/* ---- tokens that begin and end ---- */
static bool read_eos(Json at, ModelConfig *c, Error *error) {
    bool list = json_type(at) == JSON_ARRAY;
    int64_t n = list ? json_count(at) : 1, id;
    mem_free(c->eos_tokens);
    c->eos_tokens = mem_zeroed((size_t)n, sizeof *c->eos_tokens);
    c->n_eos_tokens = 0;
    if (!c->eos_tokens) return error_out_of_memory(error, at.file, (size_t)n * sizeof *c->eos_tokens);
    if (!list) {
        if (!json_integer(at, 0, INT32_MAX, &id, error)) return false;
        c->eos_tokens[c->n_eos_tokens++] = (int32_t)id;
        return true;
    }
    for (Json entry = {0}; json_next(&at, &entry);) {
        if (!json_integer(entry, 0, INT32_MAX, &id, error)) return false;
        c->eos_tokens[c->n_eos_tokens++] = (int32_t)id;
    }
    return true;
}

static bool read_special_tokens(const Json *root, ModelConfig *c, Error *error) {
    int64_t bos = -1;
    Json at = json_member(root, "bos_token_id"), eos = json_member(root, "eos_token_id");
    if (present(at) && !json_integer(at, 0, INT32_MAX, &bos, error)) return false;
    if (bos >= 0) c->bos_token = (int32_t)bos;
    return !present(eos) || read_eos(eos, c, error);
}

static bool read_family(const Json *root, ModelConfig *c, Arch *arch, Error *error) {
    const char *family, *dtype = NULL;
    if (!json_string(json_member(root, "model_type"), &family, error)) return false;
    if (!arch_open(family, arch, error)) return error_add_place(error, "%s", root->file);
    snprintf(c->family, sizeof c->family, "%s", family);
    Json written = json_member(root, present(json_member(root, "dtype")) ? "dtype" : "torch_dtype");
    if (present(written) && json_type(written) == JSON_STRING) json_string(written, &dtype, &(Error){0});
    if (dtype) c->dtype = mem_copy_text(dtype, strlen(dtype));
    const char *template = arch_string(arch, NULL, "chat_template");
    if (template) c->chat_template = mem_copy_text(template, strlen(template));
    if ((dtype && !c->dtype) || (template && !c->chat_template))
        return error_out_of_memory(error, root->file, 64);
    return true;
}

static bool read_config(Json root, ModelConfig *c, Error *error) {
    Arch arch = {0};
    c->bos_token = -1;
    bool fine = read_family(&root, c, &arch, error) && check_fixed(&root, &arch, error) &&
                read_sizes(&root, &arch, c, error) && read_rules(&root, &arch, c, error);
    if (fine) {
        c->layer_is_dense = mem_zeroed((size_t)c->n_layers, sizeof *c->layer_is_dense);
        c->layer_window = mem_zeroed((size_t)c->n_layers, sizeof *c->layer_window);
        if (!c->layer_is_dense || !c->layer_window)
            fine = error_out_of_memory(error, root.file, (size_t)c->n_layers * 9);
    }
    fine = fine && read_dense_layers(&root, c, error) && read_window(&root, &arch, c, error) &&
           rope_frequencies_read(&root, c, error) && read_special_tokens(&root, c, error);
    arch_close(&arch);
    return fine;
}

bool model_config_parse(const char *json, size_t length, const char *name, ModelConfig *config,
                        Error *error) {
    *config = (ModelConfig){0};
    JsonDocument *document = json_parse(json, length, name, error);
    if (!document) return false;
    bool fine = read_config(json_root(document), config, error);
    json_free(document);
    if (!fine) model_config_free(config);
    return fine;
}

/* generation_config.json may name other ends than config.json; it wins. */
static bool read_generation_config(const char *folder, ModelConfig *config, Error *error) {
    char *path = io_join(folder, "generation_config.json");
    if (!path) return error_out_of_memory(error, folder, strlen(folder));
    bool fine = true;
    if (io_exists(path)) {
        JsonDocument *document = json_read(path, MAX_CONFIG_BYTES, error);
        Json root = document ? json_root(document) : (Json){0}, eos = json_member(&root, "eos_token_id");
        fine = document && (!present(eos) || read_eos(eos, config, error));
        json_free(document);
    }
    mem_free(path);
    return fine;
}

bool model_config_read(const char *folder, ModelConfig *config, Error *error) {
    *config = (ModelConfig){0};
    size_t n;
    char *path = io_join(folder, "config.json");
    if (!path) return error_out_of_memory(error, folder, strlen(folder));
    char *text = io_read_all(path, MAX_CONFIG_BYTES, &n, error);
    bool fine = text && model_config_parse(text, n, path, config, error);
    mem_free(text);
    mem_free(path);
    if (!fine) return false;
    config->folder = mem_copy_text(folder, strlen(folder));
    fine = config->folder ? read_generation_config(folder, config, error)
                          : error_out_of_memory(error, folder, strlen(folder));
    if (!fine) model_config_free(config);
    return fine;
}

void model_config_free(ModelConfig *config) {
    mem_free(config->folder);
    mem_free(config->rope_frequencies);
    mem_free(config->layer_is_dense);
    mem_free(config->layer_window);
    mem_free(config->eos_tokens);
    mem_free(config->chat_template);
    mem_free(config->dtype);
    *config = (ModelConfig){0};
}

void model_config_count(const ModelConfig *c, int64_t *n_total, int64_t *n_active) {
    int64_t D = c->hidden_size, C = c->head_size, expert = 3 * D * c->expert_size, biases = 0;
    int64_t attention = D * C * (2 * c->n_heads + 2 * c->n_kv_heads) + 2 * D;
    if (c->attention_bias) biases = C * (c->n_heads + 2 * c->n_kv_heads) + D;
    if (c->qk_norm == QK_NORM_HEAD) attention += 2 * C;
    if (c->qk_norm == QK_NORM_PROJECTION) attention += C * (c->n_heads + c->n_kv_heads);
    *n_total = c->vocab_size * D * (c->tie_embeddings ? 1 : 2) + D;
    *n_active = *n_total;
    for (int64_t l = 0; l < c->n_layers; l++) {
        bool dense = c->layer_is_dense[l];
        int64_t fixed = attention + biases + (dense ? 3 * D * c->dense_size : c->n_experts * D);
        *n_total += fixed + (dense ? 0 : c->n_experts * expert);
        *n_active += fixed + (dense ? 0 : c->n_experts_per_token * expert);
    }
}

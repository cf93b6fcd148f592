/* From config.json to ModelConfig. Sizes are bounded before they are multiplied; a key whose value would
 * change the maths in a way that the engine does not have is refused by name, never ignored. */
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
enum { MAX_HEADS = 4096, MAX_HEAD_SIZE = 4096, MAX_CELLS = 1 << 17 };

/* The config being read: its text's root, and what its family says. */
typedef struct {
    Json root;
    Arch arch;
} Source;

static bool present(Json at) { return at.node && json_type(at) != JSON_NULL; }

/* A size of the config or its family's default; otherwise >= 0 serves when there is neither, else it is an
 * error. */
static bool read_size(const Source *s, const char *key, int64_t most, int64_t otherwise, int64_t *value,
                      Error *error) {
    Json at = arch_setting(&s->arch, &s->root, key);
    if (!present(at) && otherwise >= 0) {
        *value = otherwise;
        return true;
    }
    return json_integer(at, 1, most, value, error);
}

static bool read_flag(const Source *s, const char *key, bool otherwise, bool *value, Error *error) {
    Json at = arch_setting(&s->arch, &s->root, key);
    *value = otherwise;
    return !present(at) || json_bool(at, value, error);
}

/* ---- what must be as the family's maths wants it ---- */
static void describe(Json at, char *to, size_t capacity) {
    const char *text = "";
    double number = 0;
    bool flag = false;
    Error none = {0};
    switch (present(at) ? json_type(at) : JSON_NULL) {
    case JSON_STRING:
        json_string(at, &text, &none);
        snprintf(to, capacity, "\"%.40s\"", text);
        break;
    case JSON_NUMBER:
        json_number(at, &number, &none);
        snprintf(to, capacity, "%.17g", number);
        break;
    case JSON_BOOL:
        json_bool(at, &flag, &none);
        snprintf(to, capacity, "%s", flag ? "true" : "false");
        break;
    default: snprintf(to, capacity, "%s", json_type_name(json_type(at)));
    }
}

static bool check_fixed(const Source *s, Error *error) {
    for (Json want = {0}; json_next(&s->arch.must_be, &want);) {
        Json is = json_member(&s->root, want.key);
        char expected[64], got[64];
        describe(want, expected, sizeof expected);
        describe(is, got, sizeof got);
        if (is.node && strcmp(expected, got))
            return json_error(is, error, "expected %s, the only value that there is maths for: got %s",
                              expected, got);
    }
    Json quantization = json_member(&s->root, "quantization_config");
    if (present(quantization))
        return json_error(quantization, error,
                          "expected none (weights in F32, BF16 or F16): got a quantised model");
    return true;
}

/* Where the config names classes, the family must know one of them. */
static bool check_architecture(const Source *s, Error *error) {
    Json named = json_member(&s->root, "architectures"), known = json_member(&s->arch.root, "architectures");
    if (json_type(named) != JSON_ARRAY || !json_count(named) || !json_count(known)) return true;
    const char *a = "", *b = "";
    for (Json x = {0}; json_next(&named, &x);) {
        if (!json_string(x, &a, error)) return false;
        for (Json y = {0}; json_next(&known, &y);)
            if (json_string(y, &b, error) && !strcmp(a, b)) return true;
    }
    return json_error(named, error, "expected %s: got \"%.64s\"", b, a);
}

/* ---- sizes ---- */
/* Products of sizes stay far from overflow: 1e15 parameters are 4e15 bytes; and there is a bound on cells. */
static bool check_total(const ModelConfig *c, const Json *root, Error *error) {
    double D = (double)c->hidden_size, heads = (double)(c->n_heads + c->n_kv_heads) * (double)c->head_size;
    double experts = (double)c->n_experts * (3 * (double)c->expert_size + 1) * D;
    double layer = 2 * D * heads + experts + 3 * D * (double)c->dense_size + 4 * (D + heads);
    double total = (double)c->n_layers * layer + 2 * (double)c->vocab_size * D;
    if (total > 1e15) return json_error(*root, error, "expected at most 1e15 parameters: got %.3g", total);
    if (c->n_layers * c->n_experts <= MAX_CELLS) return true;
    return json_error(*root, error, "expected at most %d experts in all: got %lld", MAX_CELLS,
                      (long long)(c->n_layers * c->n_experts));
}

static bool read_head_size(const Source *s, ModelConfig *c, Error *error) {
    bool explicit_head = present(json_member(&s->root, "head_dim"));
    if (!explicit_head && c->hidden_size % c->n_heads)
        return json_error(json_member(&s->root, "hidden_size"), error,
                          "expected a multiple of num_attention_heads %lld: got %lld", (long long)c->n_heads,
                          (long long)c->hidden_size);
    if (!read_size(s, "head_dim", MAX_HEAD_SIZE, c->hidden_size / c->n_heads, &c->head_size, error))
        return false;
    if (c->n_heads % c->n_kv_heads)
        return json_error(json_member(&s->root, "num_key_value_heads"), error,
                          "expected a divisor of %lld heads: got %lld", (long long)c->n_heads,
                          (long long)c->n_kv_heads);
    if (c->head_size < 2 || c->head_size % 2 || c->head_size > MAX_HEAD_SIZE)
        return json_error(json_member(&s->root, "head_dim"), error,
                          "expected an even head size of 2 to %d: got %lld", MAX_HEAD_SIZE,
                          (long long)c->head_size);
    c->value_head_size = c->head_size;
    return true;
}

static bool read_sizes(const Source *s, ModelConfig *c, Error *error) {
    const char *n_experts = arch_string(&s->arch.keys, "n_experts"),
               *expert_size = arch_string(&s->arch.keys, "expert_size"),
               *dense_size = arch_string(&s->arch.keys, "dense_size");
    if (!n_experts || !expert_size)
        return json_error(s->arch.root, error, "expected keys.n_experts and keys.expert_size");
    return read_size(s, "num_hidden_layers", MAX_LAYERS, -1, &c->n_layers, error) &&
           read_size(s, "hidden_size", MAX_SIZE, -1, &c->hidden_size, error) &&
           read_size(s, "vocab_size", MAX_SIZE, -1, &c->vocab_size, error) &&
           read_size(s, "num_attention_heads", MAX_HEADS, -1, &c->n_heads, error) &&
           read_size(s, "num_key_value_heads", MAX_HEADS, c->n_heads, &c->n_kv_heads, error) &&
           read_size(s, n_experts, MAX_EXPERTS, -1, &c->n_experts, error) &&
           read_size(s, "num_experts_per_tok", c->n_experts, -1, &c->n_experts_per_token, error) &&
           read_size(s, expert_size, MAX_SIZE, -1, &c->expert_size, error) &&
           read_size(s, "max_position_embeddings", 1 << 30, -1, &c->max_positions, error) &&
           (!dense_size || read_size(s, dense_size, MAX_SIZE, 0, &c->dense_size, error)) &&
           read_head_size(s, c, error) && check_total(c, &s->root, error);
}

/* ---- rules ---- */
static bool read_router(const Source *s, ModelConfig *c, Error *error) {
    const char *order = arch_string(&s->arch.router, "order"),
               *key = arch_string(&s->arch.router, "renormalize");
    if (!order || (strcmp(order, "softmax_topk") && strcmp(order, "topk_softmax")))
        return json_error(s->arch.router, error, "expected order softmax_topk or topk_softmax: got \"%.40s\"",
                          order ? order : "");
    c->router =
        (RouterRule){strcmp(order, "softmax_topk") ? ROUTER_TOPK_SOFTMAX : ROUTER_SOFTMAX_TOPK, false, 1.0f};
    if (key) return read_flag(s, key, false, &c->router.renormalize, error);
    return json_bool(json_member(&s->arch.router, "renormalize"), &c->router.renormalize, error);
}

static bool read_rules(const Source *s, ModelConfig *c, Error *error) {
    static const char *const norms[] = {
        [QK_NORM_NONE] = "none", [QK_NORM_HEAD] = "head", [QK_NORM_PROJECTION] = "projection"};
    double eps;
    Json at = arch_setting(&s->arch, &s->root, "rms_norm_eps");
    if (!json_number(at, &eps, error)) return false;
    if (!((float)eps > 0 && eps < 1))
        return json_error(at, error, "expected a number between 0 and 1: got %g", eps);
    c->norm_eps = (float)eps;
    const char *norm = arch_string(&s->arch.root, "qk_norm");
    int kind = QK_NORM_NONE;
    while (norm && kind <= QK_NORM_PROJECTION && strcmp(norms[kind], norm)) kind++;
    if (!norm || kind > QK_NORM_PROJECTION)
        return json_error(s->arch.root, error, "expected qk_norm none, head or projection");
    c->qk_norm = (QkNorm)kind;
    c->activation = (Activation){0, 0};
    c->attention_scale = (float)(1.0 / sqrt((double)c->head_size));
    c->rope_kind = ROPE_HALVES;
    if (!read_router(s, c, error) || !read_flag(s, "tie_word_embeddings", false, &c->tie_embeddings, error) ||
        !read_flag(s, "attention_bias", false, &c->attention_bias, error))
        return false;
    if (c->attention_bias && !arch_tensor_pattern(&s->arch, "query_bias", 0))
        return json_error(json_member(&s->root, "attention_bias"), error,
                          "expected false, the only value that there is maths for: got true");
    return true;
}

/* ---- layers: dense or experts, window or not ---- */
static bool read_dense_layers(const Source *s, ModelConfig *c, Error *error) {
    bool may_be_dense = arch_string(&s->arch.keys, "dense_size") != NULL, any = false;
    int64_t step;
    if (!read_size(s, "decoder_sparse_step", MAX_LAYERS, 1, &step, error)) return false;
    for (int64_t l = 0; may_be_dense && l < c->n_layers; l++) c->layer_is_dense[l] = (l + 1) % step != 0;
    Json listed = json_member(&s->root, "mlp_only_layers");
    if (present(listed) && json_type(listed) != JSON_ARRAY)
        return json_error(listed, error, "expected an array of layers: got %s",
                          json_type_name(json_type(listed)));
    for (Json at = {0}; may_be_dense && json_next(&listed, &at);) {
        int64_t layer;
        if (!json_integer(at, 0, c->n_layers - 1, &layer, error)) return false;
        c->layer_is_dense[layer] = true;
    }
    for (int64_t l = 0; l < c->n_layers; l++) {
        c->n_moe_layers += !c->layer_is_dense[l];
        any = any || c->layer_is_dense[l];
    }
    if (any && !c->dense_size)
        return json_error(s->root, error, "expected %s, the size of dense layers: got nothing",
                          arch_string(&s->arch.keys, "dense_size"));
    if (c->n_moe_layers) return true;
    return json_error(s->root, error, "expected at least one layer with experts: got none");
}

/* layer_types, where it is given, says which layers use the window; else all do from first_layer on. */
static bool read_layer_types(const Source *s, int64_t window, int64_t first_layer, ModelConfig *c,
                             Error *error) {
    Json types = json_member(&s->root, "layer_types");
    for (int64_t l = 0; l < c->n_layers; l++) c->layer_window[l] = l >= first_layer ? window : 0;
    if (!present(types)) return true;
    if (json_type(types) != JSON_ARRAY || json_count(types) != c->n_layers)
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

static bool read_window(const Source *s, ModelConfig *c, Error *error) {
    const char *flag = arch_string(&s->arch.root, "sliding_window");
    int64_t window = 0, first_layer = 0;
    bool used = flag != NULL;
    if (flag && strcmp(flag, "always") && !read_flag(s, flag, false, &used, error)) return false;
    Json first = arch_setting(&s->arch, &s->root, "max_window_layers");
    if (used && present(first) && !json_integer(first, 0, 1 << 20, &first_layer, error)) return false;
    if (used && !read_size(s, "sliding_window", 1 << 30, 0, &window, error)) return false;
    return !window || read_layer_types(s, window, first_layer, c, error);
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

static bool read_family(Source *s, ModelConfig *c, Error *error) {
    const char *family, *dtype = NULL;
    if (!json_string(json_member(&s->root, "model_type"), &family, error)) return false;
    if (!arch_open(family, &s->arch, error)) return error_add_place(error, "%s", s->root.file);
    snprintf(c->family, sizeof c->family, "%s", family);
    dtype = arch_string(&s->root, "dtype");
    if (!dtype) dtype = arch_string(&s->root, "torch_dtype");
    if (dtype) c->dtype = mem_copy_text(dtype, strlen(dtype));
    const char *template = arch_string(&s->arch.root, "chat_template");
    if (template) c->chat_template = mem_copy_text(template, strlen(template));
    if ((dtype && !c->dtype) || (template && !c->chat_template))
        return error_out_of_memory(error, s->root.file, 64);
    return check_architecture(s, error);
}

static bool read_config(Json root, ModelConfig *c, Error *error) {
    if (json_type(root) != JSON_OBJECT)
        return json_error(root, error, "expected an object: got %s", json_type_name(json_type(root)));
    Source s = {.root = root};
    c->bos_token = -1;
    bool fine = read_family(&s, c, error) && check_fixed(&s, error) && read_sizes(&s, c, error) &&
                read_rules(&s, c, error);
    if (fine) {
        c->layer_is_dense = mem_zeroed((size_t)c->n_layers, sizeof *c->layer_is_dense);
        c->layer_window = mem_zeroed((size_t)c->n_layers, sizeof *c->layer_window);
        if (!c->layer_is_dense || !c->layer_window)
            fine = error_out_of_memory(error, root.file, (size_t)c->n_layers * 9);
    }
    fine = fine && read_dense_layers(&s, c, error) && read_window(&s, c, error) &&
           rope_frequencies_read(&s.root, &s.arch, c, error) && read_special_tokens(&s.root, c, error);
    arch_close(&s.arch);
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

DType model_config_dtype(const ModelConfig *config) {
    if (config->dtype && !strcmp(config->dtype, "float32")) return DTYPE_F32;
    return config->dtype && !strcmp(config->dtype, "float16") ? DTYPE_F16 : DTYPE_BF16;
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

int64_t model_config_decoder_layer(const ModelConfig *config, int64_t l) {
    int64_t layer = 0;
    for (int64_t seen = 0; layer < config->n_layers; layer++)
        if (!config->layer_is_dense[layer] && seen++ == l) break;
    return layer;
}

int64_t model_config_moe_layer(const ModelConfig *config, int64_t layer) {
    int64_t l = 0;
    for (int64_t i = 0; i < layer; i++) l += !config->layer_is_dense[i];
    return config->layer_is_dense[layer] ? -1 : l;
}

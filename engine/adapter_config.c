/* adapter_config.json read, and the names that a family's experts have in PEFT. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "adapter_parts.h"
#include "alloc.h"
#include "io.h"
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

enum { MAX_CONFIG_BYTES = 64 << 20, MATCH_LIMIT = 100000 };

/* ---- names ---- */
static bool fill(const Arch *arch, const char *role, int64_t layer, int64_t expert, char *to, Error *error) {
    const char *pattern = arch_tensor_pattern(arch, role, 0);
    if (pattern && arch_fill_name(pattern, layer, expert, to, ADAPTER_NAME_BYTES)) return true;
    return error_set(error, ERROR_BAD_INPUT, "%s: tensors.%s: expected a name that adapters can have",
                     arch->path, role);
}

bool adapter_module(const Arch *arch, Projection projection, int64_t layer, int64_t expert,
                    char to[ADAPTER_NAME_BYTES], Error *error) {
    static const char *const roles[N_PROJECTIONS] = {"expert_gate", "expert_up", "expert_down"};
    static const char end[] = ".weight";
    if (!fill(arch, roles[projection], layer, expert, to, error)) return false;
    size_t n = strlen(to), cut = sizeof end - 1;
    if (n > cut && !strcmp(to + n - cut, end)) to[n - cut] = '\0';
    return true;
}

bool adapter_fused_parameter(const Arch *arch, bool down, int64_t layer, char to[ADAPTER_NAME_BYTES],
                             const char **parameter, Error *error) {
    if (!fill(arch, down ? "fused_down" : "fused_gate_up", layer, 0, to, error)) return false;
    char *dot = strrchr(to, '.');
    *parameter = dot ? dot + 1 : to;
    return true;
}

/* ---- the file ---- */
/* Keys that would change what an adapter means; each must be absent, null, false or empty. */
static const char *const must_be_off[] = {"use_dora",
                                          "fan_in_fan_out",
                                          "lora_bias",
                                          "modules_to_save",
                                          "layer_replication",
                                          "use_qalora",
                                          "alora_invocation_tokens",
                                          "trainable_token_indices",
                                          "use_bdlora",
                                          "arrow_config",
                                          "kasa_config",
                                          "velora_config",
                                          "monteclora_config"};

static bool is_off(Json at) {
    if (!at.node || json_type(at) == JSON_NULL) return true;
    Error ignored = {0};
    bool on = true;
    if (json_type(at) == JSON_BOOL) return json_bool(at, &on, &ignored) && !on;
    return (json_type(at) == JSON_ARRAY || json_type(at) == JSON_OBJECT) && json_count(at) == 0;
}

static bool check_kind(const Json *root, Error *error) {
    const char *kind;
    Json type = json_member(root, "peft_type"), bias = json_member(root, "bias");
    if (!json_string(type, &kind, error)) return false;
    if (strcmp(kind, "LORA") != 0) return json_error(type, error, "expected \"LORA\": got \"%.60s\"", kind);
    if (bias.node && json_type(bias) != JSON_NULL) {
        if (!json_string(bias, &kind, error)) return false;
        if (strcmp(kind, "none") != 0)
            return json_error(bias, error, "expected \"none\", weights alone: got \"%.60s\"", kind);
    }
    for (size_t i = 0; i < sizeof must_be_off / sizeof *must_be_off; i++) {
        Json at = json_member(root, must_be_off[i]);
        if (!is_off(at)) return json_error(at, error, "expected none: got a setting that is no plain LoRA");
    }
    return true;
}

bool adapter_config_open(const char *folder, AdapterConfig *c, Error *error) {
    char *path = io_join(folder, "adapter_config.json"), *text;
    size_t n;
    *c = (AdapterConfig){0};
    if (!path) return error_out_of_memory(error, "a path", strlen(folder));
    text = io_read_all(path, MAX_CONFIG_BYTES, &n, error);
    bool ok = text && adapter_config_parse(text, n, path, c, error);
    mem_free(text);
    mem_free(path);
    return ok;
}

bool adapter_config_parse(const char *text, size_t length, const char *path, AdapterConfig *c, Error *error) {
    *c = (AdapterConfig){.path = mem_copy_text(path, strlen(path))};
    if (!c->path) return error_out_of_memory(error, "a path", strlen(path));
    c->document = json_parse(text, length, path, error);
    if (!c->document) return false;
    c->root = json_root(c->document);
    if (json_type(c->root) != JSON_OBJECT) return json_error(c->root, error, "expected an object");
    return check_kind(&c->root, error);
}

void adapter_config_close(AdapterConfig *c) {
    json_free(c->document);
    mem_free(c->path);
    *c = (AdapterConfig){0};
}

/* Whether `(.*\.)?(key)$` matches at the beginning of the name, as PEFT asks it. */
static bool key_matches(Json at, const char *key, const char *name, bool *matches, Error *error) {
    char pattern[600];
    int code = 0, n = snprintf(pattern, sizeof pattern, "(?:.*\\.)?(?:%s)$", key);
    if (n < 0 || n >= (int)sizeof pattern) return json_error(at, error, "expected a shorter pattern");
    size_t where = 0;
    pcre2_code *regex =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                      PCRE2_ANCHORED | PCRE2_DOLLAR_ENDONLY | PCRE2_NEVER_BACKSLASH_C, &code, &where, NULL);
    if (!regex) return json_error(at, error, "expected a regular expression: got one broken at %zu", where);
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(regex, NULL);
    bool fine = limits && data;
    if (fine) {
        pcre2_set_match_limit(limits, MATCH_LIMIT);
        code = pcre2_match(regex, (PCRE2_SPTR)name, strlen(name), 0, 0, data, limits);
    }
    pcre2_match_data_free(data);
    pcre2_match_context_free(limits);
    pcre2_code_free(regex);
    if (!fine) return error_out_of_memory(error, "a pattern", sizeof pattern);
    *matches = code >= 0;
    return code >= 0 || code == PCRE2_ERROR_NOMATCH ||
           json_error(at, error, "expected a pattern that can be matched: got one that takes too long");
}

/* The value of the first pattern of an object that matches, else of a key of the file. */
static bool pattern_value(const AdapterConfig *c, const char *patterns, const char *otherwise,
                          const char *name, double *value, Error *error) {
    Json all = json_member(&c->root, patterns), at = {0};
    if (all.node && json_type(all) != JSON_NULL && json_type(all) != JSON_OBJECT)
        return json_error(all, error, "expected an object");
    while (all.node && json_type(all) == JSON_OBJECT && json_next(&all, &at)) {
        bool matches = false;
        if (!key_matches(at, at.key, name, &matches, error)) return false;
        if (matches) return json_number(at, value, error);
    }
    return json_number(json_member(&c->root, otherwise), value, error);
}

bool adapter_config_scale(const AdapterConfig *c, const char *module, int64_t *rank, double *scale,
                          Error *error) {
    double r, alpha;
    bool by_root = false;
    Json flag = json_member(&c->root, "use_rslora");
    if (flag.node && json_type(flag) != JSON_NULL && !json_bool(flag, &by_root, error)) return false;
    if (!pattern_value(c, "rank_pattern", "r", module, &r, error) ||
        !pattern_value(c, "alpha_pattern", "lora_alpha", module, &alpha, error))
        return false;
    if (!(r >= 1 && r <= 1 << 20 && r == floor(r)))
        return error_set(error, ERROR_BAD_INPUT, "%s: rank of %s: expected a whole number from 1: got %g",
                         c->path, module, r);
    *rank = (int64_t)r;
    *scale = alpha / (by_root ? sqrt(r) : r);
    return true;
}

bool adapter_config_targets(const AdapterConfig *c, const char *parameter) {
    Json list = json_member(&c->root, "target_parameters"), at = {0};
    size_t n = strlen(parameter);
    if (!list.node || json_type(list) != JSON_ARRAY) return false;
    while (json_next(&list, &at)) {
        const char *name;
        Error ignored = {0};
        if (!json_string(at, &name, &ignored)) continue;
        size_t m = strlen(name);
        if (m <= n && !strcmp(parameter + n - m, name) && (m == n || parameter[n - m - 1] == '.'))
            return true;
    }
    return false;
}

int64_t adapter_config_version(const AdapterConfig *c) {
    const char *text;
    Error ignored = {0};
    int major = 0, minor = 0, patch = 0;
    if (!json_string(json_member(&c->root, "peft_version"), &text, &ignored)) return -1;
    if (sscanf(text, "%5d.%5d.%5d", &major, &minor, &patch) < 2) return -1;
    if (major < 0 || minor < 0 || patch < 0) return -1;
    return major * INT64_C(1000000) + minor * INT64_C(1000) + patch;
}

/* Rotary frequencies as transformers' modeling_rope_utils computes them, in double and rounded once.
 *
 * inv[i] = theta^(-2i/d) for i < d/2; the scaled kinds stretch the low frequencies (llama3, yarn) or all
 * (linear). */
#include "rope_frequencies.h"
#include "alloc.h"
#include <math.h>
#include <string.h>

typedef struct {
    Json at; /* the object that holds the parameters of the kind; may be absent */
    const char *kind;
    double theta;
    int64_t n; /* d: head elements that are turned */
} RopeSettings;

static bool present(Json at) { return at.node && json_type(at) != JSON_NULL; }

static bool read_number(const Json *object, const char *key, double otherwise, double *value, Error *error) {
    Json at = json_member(object, key);
    *value = otherwise;
    if (!present(at) && !isnan(otherwise)) return true;
    if (!json_number(at, value, error)) return false;
    return *value > 0 ? true : json_error(at, error, "expected a positive number: got %g", *value);
}

/* 0 when absent or null. */
static bool read_optional(const Json *object, const char *key, double *value, Error *error) {
    Json at = json_member(object, key);
    *value = 0;
    return !present(at) || json_number(at, value, error);
}

static bool scale_linear(const RopeSettings *s, double *inverse, Error *error) {
    double factor;
    if (!read_number(&s->at, "factor", NAN, &factor, error)) return false;
    for (int64_t i = 0; i < s->n / 2; i++) inverse[i] /= factor;
    return true;
}

static bool scale_llama3(const RopeSettings *s, double *inverse, Error *error) {
    double factor, low, high, original;
    if (!read_number(&s->at, "factor", NAN, &factor, error) ||
        !read_number(&s->at, "low_freq_factor", NAN, &low, error) ||
        !read_number(&s->at, "high_freq_factor", NAN, &high, error) ||
        !read_number(&s->at, "original_max_position_embeddings", NAN, &original, error))
        return false;
    for (int64_t i = 0; i < s->n / 2; i++) {
        double wave = 2 * M_PI / inverse[i], smooth = (original / wave - low) / (high - low);
        if (wave < original / high) continue;
        inverse[i] = wave > original / low ? inverse[i] / factor
                                           : (1 - smooth) * inverse[i] / factor + smooth * inverse[i];
    }
    return true;
}

static double yarn_magnitude(double scale, double weight) {
    return scale <= 1 ? 1 : 0.1 * weight * log(scale) + 1;
}

/* The element whose frequency makes `turns` turns over the original length. */
static double yarn_element(const RopeSettings *s, double turns, double original) {
    return (double)s->n * log(original / (turns * 2 * M_PI)) / (2 * log(s->theta));
}

static bool scale_yarn(const RopeSettings *s, double *inverse, ModelConfig *config, Error *error) {
    double factor, original, fast, slow, mscale, mscale_all, attention;
    bool truncate = true, had_original = present(json_member(&s->at, "original_max_position_embeddings"));
    Json cut = json_member(&s->at, "truncate");
    if (present(cut) && !json_bool(cut, &truncate, error)) return false;
    if (!read_number(&s->at, "factor", NAN, &factor, error) ||
        !read_number(&s->at, "beta_fast", 32, &fast, error) ||
        !read_number(&s->at, "beta_slow", 1, &slow, error) ||
        !read_optional(&s->at, "mscale", &mscale, error) ||
        !read_optional(&s->at, "mscale_all_dim", &mscale_all, error) ||
        !read_number(&s->at, "original_max_position_embeddings", (double)config->max_positions, &original,
                     error) ||
        !read_optional(&s->at, "attention_factor", &attention, error))
        return false;
    if (had_original) factor = (double)config->max_positions / original;
    if (attention == 0 && mscale != 0 && mscale_all != 0)
        attention = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all);
    if (attention == 0) attention = yarn_magnitude(factor, 1);
    double low = yarn_element(s, fast, original), high = yarn_element(s, slow, original);
    if (truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)(s->n - 1));
    if (low == high) high += 0.001;
    for (int64_t i = 0; i < s->n / 2; i++) {
        double ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
        inverse[i] = inverse[i] / factor * ramp + inverse[i] * (1 - ramp);
    }
    if (!(attention > 1e-6 && attention < 1e6))
        return json_error(s->at, error, "expected an attention factor of 1e-6 to 1e6: got %g", attention);
    config->rope_scale = (float)attention;
    return true;
}

/* Keys that would change the maths in a way there is none for. */
static bool check_plain(const Json *root, const RopeSettings *s, Error *error) {
    static const char *const refused[] = {"full_attention", "sliding_attention", "mrope_section",
                                          "partial_rotary_factor"};
    for (int i = 0; i < 4; i++) {
        Json inside = json_member(&s->at, refused[i]), outside = json_member(root, refused[i]);
        double share = 0;
        for (int k = 0; k < 2; k++) {
            Json at = k ? outside : inside;
            bool whole =
                i == 3 && json_type(at) == JSON_NUMBER && json_number(at, &share, error) && share == 1;
            if (present(at) && !whole)
                return json_error(at, error, "expected one full rotation for all layers: got %s", refused[i]);
        }
    }
    return true;
}

static bool read_settings(const Json *root, const Arch *arch, RopeSettings *s, Error *error) {
    s->at = json_member(root, "rope_parameters");
    if (!present(s->at)) s->at = json_member(root, "rope_scaling");
    s->kind = "default";
    if (present(s->at) && json_type(s->at) != JSON_OBJECT)
        return json_error(s->at, error, "expected an object or null: got %s",
                          json_type_name(json_type(s->at)));
    if (!check_plain(root, s, error)) return false;
    Json theta = json_member(&s->at, "rope_theta"), kind = json_member(&s->at, "rope_type");
    if (!present(theta)) theta = arch_setting(arch, root, "rope_theta");
    if (!json_number(theta, &s->theta, error)) return false;
    if (!(s->theta > 1)) return json_error(theta, error, "expected a number above 1: got %g", s->theta);
    if (!present(kind)) kind = json_member(&s->at, "type");
    return !present(kind) || json_string(kind, &s->kind, error);
}

static bool scale(const RopeSettings *s, double *inverse, ModelConfig *config, Error *error) {
    if (!strcmp(s->kind, "default")) return true;
    if (!strcmp(s->kind, "linear")) return scale_linear(s, inverse, error);
    if (!strcmp(s->kind, "llama3")) return scale_llama3(s, inverse, error);
    if (!strcmp(s->kind, "yarn")) return scale_yarn(s, inverse, config, error);
    return json_error(s->at, error, "expected rope type default, linear, llama3 or yarn: got \"%.40s\"",
                      s->kind);
}

bool rope_frequencies_read(const Json *root, const Arch *arch, ModelConfig *config, Error *error) {
    RopeSettings s = {.n = config->head_size};
    if (!read_settings(root, arch, &s, error)) return false;
    int64_t n = s.n / 2;
    double *inverse = mem_zeroed((size_t)n, sizeof *inverse);
    config->rope_frequencies = mem_zeroed((size_t)n, sizeof *config->rope_frequencies);
    if (!inverse || !config->rope_frequencies) {
        mem_free(inverse);
        return error_out_of_memory(error, root->file, (size_t)n * 12);
    }
    for (int64_t i = 0; i < n; i++) inverse[i] = pow(s.theta, -2.0 * (double)i / (double)s.n);
    config->n_rope = n;
    config->rope_scale = 1;
    bool fine = scale(&s, inverse, config, error);
    for (int64_t i = 0; fine && i < n; i++) {
        if (inverse[i] >= 0 && inverse[i] <= 1e6)
            config->rope_frequencies[i] = (float)inverse[i];
        else
            fine = json_error(s.at, error, "expected rotary frequencies of 0 to 1e6: got %g", inverse[i]);
    }
    mem_free(inverse);
    return fine;
}

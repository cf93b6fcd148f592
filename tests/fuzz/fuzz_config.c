/* model_config_parse, and of what it accepts the plan: sizes in range, no product overflows, and the
 * memory of all tensors is four bytes for each parameter counted. */
#include "engine/model_config.h"
#include "engine/weights.h"
#include "kernels/check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_config(const ModelConfig *c) {
    check(c->n_layers > 0 && c->hidden_size > 0 && c->vocab_size > 0 && c->max_positions > 0, "%s",
          c->family);
    check(c->n_heads > 0 && c->n_kv_heads > 0 && c->n_heads % c->n_kv_heads == 0, "%s", c->family);
    check(c->head_size > 0 && c->head_size % 2 == 0 && 2 * c->n_rope <= c->head_size, "%s", c->family);
    check(c->n_experts_per_token > 0 && c->n_experts_per_token <= c->n_experts, "%s", c->family);
    check(c->norm_eps > 0 && c->rope_scale > 0 && c->rope_scale < 1e7f, "%s", c->family);
    int64_t n_moe = 0;
    for (int64_t l = 0; l < c->n_layers; l++) {
        n_moe += !c->layer_is_dense[l];
        check(c->layer_window[l] >= 0 && (!c->layer_is_dense[l] || c->dense_size > 0), "layer %lld",
              (long long)l);
    }
    check(n_moe == c->n_moe_layers && n_moe > 0, "%lld", (long long)n_moe);
    for (int64_t i = 0; i < c->n_rope; i++)
        check(c->rope_frequencies[i] >= 0 && c->rope_frequencies[i] <= 1e6f, "%g",
              (double)c->rope_frequencies[i]);
    for (int64_t i = 0; i < c->n_eos_tokens; i++) check(c->eos_tokens[i] >= 0, "%d", c->eos_tokens[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error error = {0};
    ModelConfig config;
    if (!model_config_parse((const char *)data, size, "f", &config, &error)) {
        check(error.code == ERROR_BAD_INPUT && error.text[0], "%d %s", error.code, error.text);
        return 0;
    }
    check_config(&config);
    int64_t n_total, n_active;
    model_config_count(&config, &n_total, &n_active);
    check(n_active > 0 && n_active <= n_total && n_total <= 1000000000000000, "%lld", (long long)n_total);
    Weights weights;
    if (config.n_layers <= 16) {
        if (weights_shapes(&config, DTYPE_F32, &cost_device, &weights, &error)) {
            check(weights.n_bytes == 4 * (size_t)n_total, "%zu bytes, %lld parameters", weights.n_bytes,
                  (long long)n_total);
            weights_free(&weights);
        } else {
            check(error.code == ERROR_UNAVAILABLE, "%s", error.text); /* beyond the address space */
        }
    }
    model_config_free(&config);
    return 0;
}

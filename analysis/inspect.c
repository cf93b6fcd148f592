/* inspect. The facts of the files come first and need no knowledge of the family, so that also a checkpoint
 * that is refused shows what it is and why. */
#include "inspect.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/json.h"
#include "../engine/model.h"
#include "../engine/safetensors.h"
#include "../engine/text.h"
#include "../kernels/device.h"
#include <stdarg.h>
#include <string.h>

static void print_fact(FILE *to, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* "name   value", the value escaped: it may come from a file. */
static void print_fact(FILE *to, const char *name, const char *format, ...) {
    char value[1000];
    va_list args;
    va_start(args, format);
    vsnprintf(value, sizeof value, format, args);
    va_end(args);
    Text text = {0};
    text_put_terminal(&text, value, strlen(value));
    fprintf(to, "%-18s %s\n", name, text.bytes ? text.bytes : "");
    text_free(&text);
}

static void print_tensors(const TensorSet *set, FILE *to) {
    struct {
        const char *name;
        int64_t n_tensors;
        double n_elements, n_bytes;
    } kinds[16] = {{0}};
    size_t n_kinds = 0;
    double total = 0;
    for (int64_t i = 0; i < safetensors_count(set); i++) {
        const TensorEntry *entry = safetensors_entry(set, i);
        size_t k = 0;
        while (k < n_kinds && strcmp(kinds[k].name, entry->dtype_name) != 0) k++;
        if (k == n_kinds && n_kinds == sizeof kinds / sizeof *kinds) continue;
        if (k == n_kinds) kinds[n_kinds++].name = entry->dtype_name;
        double n = 1;
        for (int d = 0; d < entry->n_dims; d++) n *= (double)entry->shape[d];
        kinds[k].n_tensors++;
        kinds[k].n_elements += n;
        kinds[k].n_bytes += (double)entry->n_bytes;
        total += (double)entry->n_bytes;
    }
    for (size_t k = 0; k < n_kinds; k++)
        print_fact(to, k ? "" : "weights", "%-5s %6lld tensors, %14.0f elements, %10.1f MiB", kinds[k].name,
                   (long long)kinds[k].n_tensors, kinds[k].n_elements, kinds[k].n_bytes / (1 << 20));
    print_fact(to, "weights in all", "%.1f MiB", total / (1 << 20));
}

static void print_router(const ModelConfig *c, FILE *to) {
    const RouterRule *rule = &c->router;
    const char *order = rule->order == ROUTER_SOFTMAX_TOPK ? "softmax over all experts, then the largest"
                                                           : "the largest logits, then softmax over those";
    print_fact(to, "router", "top %lld of %lld: %s%s%s", (long long)c->n_experts_per_token,
               (long long)c->n_experts, order,
               rule->order == ROUTER_SOFTMAX_TOPK
                   ? (rule->renormalize ? ", renormalised" : ", not renormalised")
                   : "",
               rule->scale == 1 ? "" : ", scaled");
    print_fact(to, "gradient support", "%s",
               rule->order == ROUTER_SOFTMAX_TOPK && !rule->renormalize
                   ? "every expert's gate row (unselected probabilities take part in the weights)"
                   : "gate rows of selected experts alone (the other logits have gradient 0)");
}

static void print_layers(const ModelConfig *c, FILE *to) {
    int64_t n_windowed = 0;
    for (int64_t l = 0; l < c->n_layers; l++) n_windowed += c->layer_window[l] > 0;
    print_fact(to, "layers", "%lld, of which %lld with experts", (long long)c->n_layers,
               (long long)c->n_moe_layers);
    if (c->n_moe_layers < c->n_layers) {
        Text dense = {0};
        for (int64_t l = 0; l < c->n_layers; l++)
            if (c->layer_is_dense[l]) text_format(&dense, "%s%lld", dense.length ? ", " : "", (long long)l);
        print_fact(to, "dense layers", "%s (MLP size %lld)", dense.bytes ? dense.bytes : "",
                   (long long)c->dense_size);
        text_free(&dense);
    }
    print_fact(to, "hidden size", "%lld, experts %lld, vocabulary %lld", (long long)c->hidden_size,
               (long long)c->expert_size, (long long)c->vocab_size);
    static const char *const norms[] = {"", ", q/k norm per head", ", q/k norm over the projection"};
    print_fact(to, "attention", "%lld heads of %lld, %lld key/value heads%s%s", (long long)c->n_heads,
               (long long)c->head_size, (long long)c->n_kv_heads, norms[c->qk_norm],
               c->attention_bias ? ", biases" : "");
    if (n_windowed)
        print_fact(to, "sliding window", "in %lld of %lld layers", (long long)n_windowed,
                   (long long)c->n_layers);
    print_fact(to, "longest text", "%lld tokens", (long long)c->max_positions);
    print_fact(to, "chat template", "%s",
               c->chat_template ? c->chat_template : "none usual: name one in the job");
    print_fact(to, "embeddings", "%s", c->tie_embeddings ? "tied to the output" : "not tied");
}

/* What a gradient pass of 16 prompts of 128 tokens takes, by running it on the device that only counts. */
static bool print_plan(const ModelConfig *c, DType dtype, FILE *to, Error *error) {
    enum { N_PROMPTS = 16, N_TOKENS = 128 };
    static int32_t tokens[N_PROMPTS * N_TOKENS];
    static float loss_weights[N_PROMPTS * N_TOKENS];
    int64_t offsets[N_PROMPTS + 1];
    for (int64_t p = 0; p <= N_PROMPTS; p++) offsets[p] = p * N_TOKENS;
    PromptBatch batch = {N_PROMPTS, offsets, tokens};
    PassOptions options = {.loss_weights = loss_weights, .recompute = RECOMPUTE_ALWAYS};
    PassResult plan = {0};
    if (!model_plan(c, DTYPE_F32, dtype, &batch, &options, &plan, error)) return false;
    print_fact(to, "memory (CPU, f32)",
               "%.1f MiB weights, and %.1f MiB for the gate gradients of %d x %d tokens",
               (double)plan.weights_bytes / (1 << 20), (double)plan.activation_bytes / (1 << 20), N_PROMPTS,
               N_TOKENS);
    print_fact(to, "work", "%.3g FLOP for that, recomputation counted", plan.cost.flops);
    pass_result_free(&plan);
    return true;
}

static bool print_supported(const char *folder, const ModelConfig *c, const TensorSet *set, FILE *to,
                            bool *supported, Error *error) {
    int64_t n_total, n_active;
    model_config_count(c, &n_total, &n_active);
    print_fact(to, "family", "%s", c->family);
    print_fact(to, "parameters", "%lld in all, %lld used by a token (%.1f%%)", (long long)n_total,
               (long long)n_active, 100.0 * (double)n_active / (double)n_total);
    print_layers(c, to);
    print_router(c, to);
    Weights weights = {0};
    Error wrong = {0};
    DType dtype = DTYPE_F32;
    for (int64_t i = 0; i < safetensors_count(set); i++)
        if (safetensors_entry(set, i)->dtype_known) dtype = safetensors_entry(set, i)->dtype;
    if (!weights_load(c, &cost_device, &weights, &wrong)) {
        print_fact(to, "unsupported", "%s", wrong.text);
        *supported = false;
        return true;
    }
    weights_free(&weights);
    char *tokenizer = io_join(folder, "tokenizer.json");
    print_fact(to, "tokenizer", "%s",
               tokenizer && io_exists(tokenizer) ? "tokenizer.json" : "none: prompts cannot be encoded");
    mem_free(tokenizer);
    if (!print_plan(c, dtype, to, error)) return false;
    print_fact(to, "unsupported", "nothing: activation counts, gate gradients and generation run");
    *supported = true;
    return true;
}

bool inspect_run(const char *folder, FILE *to, bool *supported, Error *error) {
    *supported = false;
    TensorSet *set = safetensors_open(folder, error);
    if (!set) return false;
    print_fact(to, "checkpoint", "%s", folder);
    print_tensors(set, to);
    ModelConfig config;
    Error wrong = {0};
    bool ok = true;
    if (model_config_read(folder, &config, &wrong)) {
        ok = print_supported(folder, &config, set, to, supported, error);
        model_config_free(&config);
    } else if (wrong.code == ERROR_BAD_INPUT) {
        print_fact(to, "unsupported", "%s", wrong.text);
    } else {
        *error = wrong;
        ok = false;
    }
    safetensors_close(set);
    return ok;
}

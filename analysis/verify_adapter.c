/* Coverage and norms of an adapter, and the proof of a merged checkpoint. */
#include "verify_adapter.h"
#include "../engine/alloc.h"
#include "../engine/lora.h"
#include "../engine/safetensors.h"
#include <math.h>
#include <string.h>

enum { N_PROBE = 32 };
static const double LOST_SHARE = 0.99; /* of a matrix, from which on rounding is worth a warning */

/* ---- coverage ---- */
static void print_layer(const Adapter *adapter, const ModelConfig *config, int64_t layer, FILE *to) {
    for (int64_t e = 0; e < config->n_experts; e++) {
        const AdapterCell *cells[N_PROJECTIONS];
        int n = 0;
        for (int p = 0; p < N_PROJECTIONS; p++)
            n += (cells[p] = adapter_find(adapter, layer, (Projection)p, e)) != NULL;
        if (!n) continue;
        fprintf(to, "%6lld %7lld", (long long)layer, (long long)e);
        for (int p = 0; p < N_PROJECTIONS; p++) {
            if (cells[p])
                fprintf(to, " %11.4e", adapter_cell_norm(cells[p], config));
            else
                fprintf(to, " %11s", "-");
        }
        fputc('\n', to);
    }
}

static bool print_coverage(const Adapter *adapter, const AdapterAbout *about, const ModelConfig *config,
                           FILE *to, Error *error) {
    int64_t n_values = 0, most = 0;
    double largest = 0;
    for (int64_t i = 0; i < adapter->n; i++) {
        n_values += adapter_cell_count(&adapter->cells[i], config);
        largest = fmax(largest, adapter_cell_norm(&adapter->cells[i], config));
        if (adapter->cells[i].rank > most) most = adapter->cells[i].rank;
    }
    fprintf(to, "%s: %lld tensors, %lld of %lld layers with experts touched\n",
            about->fused ? "fused" : "per expert", (long long)about->n_tensors, (long long)about->n_touched,
            (long long)config->n_moe_layers);
    fprintf(to, "updated: %lld matrices of %lld, rank up to %lld, %lld values; %lld zero in the file\n",
            (long long)adapter->n, (long long)(config->n_moe_layers * config->n_experts * N_PROJECTIONS),
            (long long)most, (long long)n_values, (long long)about->n_zero);
    if (!adapter->n || largest == 0)
        return error_set(error, ERROR_FAILED,
                         "adapter: expected an update that changes something: got zeros");
    fprintf(to, "%6s %7s %11s %11s %11s   (Frobenius norm of scale B A)\n", "layer", "expert", "gate", "up",
            "down");
    for (int64_t layer = 0; layer < config->n_layers; layer++) print_layer(adapter, config, layer, to);
    return true;
}

/* ---- logits of a few ids spread over the vocabulary ---- */
typedef struct {
    int64_t n, vocab_size;
    int32_t tokens[N_PROBE];
    float *plain, *adapted, *merged; /* [n,V] or NULL */
} Probe;

static bool run_probe(Model *model, const LoraWeights *adapter, const Probe *probe, float **logits,
                      Error *error) {
    int64_t offsets[2] = {0, probe->n};
    PromptBatch batch = {1, offsets, probe->tokens};
    PassOptions options = {.want_logits = true};
    PassResult result = {0};
    model->adapter = adapter;
    bool ok = model_pass(model, &batch, &options, NULL, &result, error);
    model->adapter = NULL;
    *logits = result.logits;
    result.logits = NULL;
    pass_result_free(&result);
    return ok;
}

/* Without the adapter and with it; then of the merged checkpoint. One model in memory at a time. */
static bool fill_probe(const VerifyRequest *request, const Adapter *adapter, const ModelConfig *config,
                       Probe *probe, Error *error) {
    Model model;
    LoraWeights weights = {0};
    probe->vocab_size = config->vocab_size;
    probe->n = config->max_positions < N_PROBE ? config->max_positions : N_PROBE;
    for (int64_t i = 0; i < N_PROBE; i++) probe->tokens[i] = (int32_t)((i * 7919 + 1) % config->vocab_size);
    if (!model_open(request->model, request->device, DTYPE_F32, &model, error)) return false;
    bool ok = lora_weights_make(adapter, &model, &weights, error) &&
              run_probe(&model, NULL, probe, &probe->plain, error) &&
              run_probe(&model, &weights, probe, &probe->adapted, error);
    lora_weights_free(&weights);
    model_close(&model);
    if (!ok || !request->merged) return ok;
    if (!model_open(request->merged, request->device, DTYPE_F32, &model, error)) return false;
    ok = run_probe(&model, NULL, probe, &probe->merged, error);
    model_close(&model);
    return ok;
}

static double largest_difference(const float *a, const float *b, int64_t n, double *largest) {
    double worst = 0;
    *largest = 0;
    for (int64_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
        *largest = fmax(*largest, fabs((double)b[i]));
    }
    return worst;
}

static bool write_probe(const char *path, const Probe *probe, Error *error) {
    int64_t tokens[N_PROBE];
    for (int64_t i = 0; i < probe->n; i++) tokens[i] = probe->tokens[i];
    NamedTensor tensors[] = {
        {"tokens", tensor_vector(tokens, DTYPE_I64, probe->n)},
        {"logits", tensor_matrix(probe->adapted, DTYPE_F32, probe->n, probe->vocab_size)},
        {"logits_without", tensor_matrix(probe->plain, DTYPE_F32, probe->n, probe->vocab_size)}};
    return safetensors_write(path, tensors, 3, NULL, 0, error);
}

static bool compare(const VerifyRequest *request, const Adapter *adapter, const ModelConfig *config, FILE *to,
                    Error *error) {
    Probe probe = {0};
    bool ok = fill_probe(request, adapter, config, &probe, error);
    if (ok) {
        double largest, off,
            by = largest_difference(probe.adapted, probe.plain, probe.n * probe.vocab_size, &largest);
        fprintf(to, "logits of %lld tokens, up to %.2e: the adapter changes them by %.2e at most\n",
                (long long)probe.n, largest, by);
        if (probe.merged) {
            off = largest_difference(probe.merged, probe.adapted, probe.n * probe.vocab_size, &largest);
            fprintf(to, "merged and unmerged differ by %.2e\n", off);
        }
    }
    ok = ok && (!request->logits || write_probe(request->logits, &probe, error));
    mem_free(probe.plain);
    mem_free(probe.adapted);
    mem_free(probe.merged);
    return ok;
}

/* ---- the merged checkpoint ---- */
static bool merge(const VerifyRequest *request, const Adapter *adapter, const ModelConfig *config, FILE *to,
                  Error *error) {
    MergeAbout about;
    if (!adapter_merge(adapter, config, request->merged, &about, error)) return false;
    fprintf(to,
            "merged: %lld matrices in %lld tensors, largest change %.3e, %.2f%% of the elements lost to "
            "rounding\n",
            (long long)about.n_merged, (long long)about.n_tensors, about.largest,
            100 * (double)about.n_lost / (double)about.n_elements);
    const AdapterCell *worst = &adapter->cells[about.worst_cell];
    if (about.worst_lost > LOST_SHARE)
        fprintf(to,
                "warning: layer %lld, expert %lld, %s: %.2f%% of the elements are as before: the update is "
                "too small for the checkpoint's dtype\n",
                (long long)worst->layer, (long long)worst->expert, projection_names[worst->projection],
                100 * about.worst_lost);
    return true;
}

bool verify_adapter(const VerifyRequest *request, FILE *to, Error *error) {
    ModelConfig config;
    Adapter adapter = {0};
    AdapterAbout about;
    if (!model_config_read(request->model, &config, error)) return false;
    bool ok = adapter_read(request->adapter, &config, &request->reading, &adapter, &about, error) &&
              print_coverage(&adapter, &about, &config, to, error) &&
              (!request->merged || merge(request, &adapter, &config, to, error)) &&
              (!(request->merged || request->logits) || compare(request, &adapter, &config, to, error));
    adapter_free(&adapter);
    model_config_free(&config);
    return ok;
}

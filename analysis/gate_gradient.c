/* The route_grad hook: gradient rows of a layer, their norms, copy out. One layer's rows are on the
 * device at a time. */
#include "gate_gradient.h"
#include "../engine/alloc.h"
#include <string.h>

enum { N_NORMS = 3 }; /* l2, l1, logit_abs */

typedef struct {
    const Batch *batch;
    int64_t n_layers, n_experts, hidden_size, at;
    Tensor rows, norms[N_NORMS]; /* on the device: [P,E,D], [P,E] of one layer */
    float *host_norms[N_NORMS];  /* [L,P,E] */
    float *block_rows;           /* [P,L,E,D] of the block, or NULL */
} GateGradient;

static bool measure_layer(void *context, HookSite *site, const RouteGradView *view) {
    GateGradient *g = context;
    const Device *device = site->device;
    Queue *q = site->queue;
    int64_t P = g->batch->n_prompts, E = g->n_experts, D = g->hidden_size, l = view->moe_layer;
    device->zero(q, g->rows);
    device->zero(q, g->norms[2]);
    device->ops->gate_grad(q, g->rows, view->logits_grad, view->input, view->offsets);
    device->ops->row_norms(q, tensor_vector(g->norms[0].data, DTYPE_F32, P * E),
                           tensor_vector(g->norms[1].data, DTYPE_F32, P * E),
                           tensor_as_matrix(g->rows, P * E, D));
    device->ops->segment_sums(q, (Tensor){0}, g->norms[2], view->logits_grad, view->offsets);
    for (int i = 0; i < N_NORMS; i++) device->copy_out(q, g->host_norms[i] + l * P * E, g->norms[i]);
    for (int64_t p = 0; g->block_rows && p < P; p++)
        device->copy_out(q, g->block_rows + ((g->at + p) * g->n_layers + l) * E * D,
                         tensor_entry(g->rows, p));
    return true;
}

static double mean_nll(const Batch *batch, const float *nll, int64_t p, int64_t *n) {
    double sum = 0;
    *n = 0;
    for (int64_t t = batch->offsets[p]; t < batch->offsets[p + 1]; t++) {
        if (batch->loss[t] <= 0) continue;
        sum += nll[t];
        ++*n;
    }
    return *n ? sum / (double)*n : 0;
}

static void put_prompts(const GateGradient *g, const float *nll, Measures *to) {
    float *norms[N_NORMS] = {to->l2, to->l1, to->logit_abs};
    int64_t P = g->batch->n_prompts, E = g->n_experts;
    for (int64_t l = 0; l < g->n_layers; l++)
        for (int64_t p = 0; p < P; p++)
            for (int i = 0; i < N_NORMS; i++)
                memcpy(norms[i] + ((g->at + p) * g->n_layers + l) * E, g->host_norms[i] + (l * P + p) * E,
                       (size_t)E * sizeof(float));
    for (int64_t p = 0; p < P; p++) {
        to->n_tokens[g->at + p] = g->batch->offsets[p + 1] - g->batch->offsets[p];
        to->nll[g->at + p] = mean_nll(g->batch, nll, p, &to->n_counted[g->at + p]);
    }
}

static PassOptions pass_options(const GateGradientOptions *options, const float *loss) {
    return (PassOptions){.loss_weights = loss,
                         .recompute = (Recompute)options->recompute,
                         .memory_limit_bytes = options->memory_limit_bytes};
}

bool gate_gradient_measure(const Model *model, const Batch *batch, int64_t at,
                           const GateGradientOptions *options, Measures *to, Error *error) {
    const ModelConfig *config = &model->config;
    GateGradient g = {.batch = batch,
                      .n_layers = config->n_moe_layers,
                      .n_experts = config->n_experts,
                      .hidden_size = config->hidden_size,
                      .at = at,
                      .block_rows = options->rows};
    int64_t P = batch->n_prompts, E = g.n_experts, D = g.hidden_size;
    size_t n_cells = (size_t)(P * E), device_bytes = n_cells * (size_t)(D + N_NORMS) * sizeof(float),
           host_bytes = N_NORMS * (size_t)g.n_layers * n_cells * sizeof(float);
    float *device = model->device->alloc(device_bytes), *host = mem_alloc(host_bytes);
    PassResult result = {0};
    bool ok = (device && host) ||
              error_out_of_memory(error, "gate gradients of a batch", device_bytes + host_bytes);
    if (ok) {
        g.rows = tensor_cube(device, DTYPE_F32, P, E, D);
        for (int i = 0; i < N_NORMS; i++) {
            g.norms[i] = tensor_matrix(device + n_cells * (size_t)(D + i), DTYPE_F32, P, E);
            g.host_norms[i] = host + (size_t)(i * g.n_layers) * n_cells;
        }
        PromptBatch view = batch_view(batch);
        Hooks hooks = {.context = &g, .route_grad = measure_layer};
        const PassOptions pass = pass_options(options, batch->loss);
        ok = model_pass(model, &view, &pass, &hooks, &result, error);
    }
    if (ok) put_prompts(&g, result.nll, to);
    pass_result_free(&result);
    mem_free(host);
    if (device) model->device->free(device);
    return ok;
}

void gate_gradient_serve(const Model *model, const GateGradientOptions *options) {
    const float none = 0; /* that there are weights says that the pass is walked back */
    const PassOptions pass = pass_options(options, &none);
    model_serve(model, &pass);
}

/* The route hook: zero, count, copy out, a layer at a time. Device and host hold the same block of arrays,
 * [L,P,E] each, the 64-bit one first; margins of tokens, of one layer on the device, of all on the host, lie
 * behind them. */
#include "routing.h"
#include "../engine/alloc.h"
#include <math.h>
#include <string.h>

enum { N_REALS = 4 }; /* mass, weight, largest, norm */

typedef struct {
    const Batch *batch;
    int64_t n_layers, n_experts;
    Tensor selected, reals[N_REALS], group, margin; /* on the device; margin [T] of one layer */
    int64_t *host_selected;
    float *host_reals[N_REALS];
    float *host_margin; /* [L,T] */
    double near_tie;
    Trace *trace;
} Routing;

static void copy_layer(const HookSite *site, Tensor from, int64_t layer, void *host) {
    Tensor part = tensor_entry(from, layer);
    site->device->copy_out(site->queue, (char *)host + (size_t)layer * tensor_bytes(part), part);
}

static bool count_layer(void *context, HookSite *site, const RouteView *view) {
    Routing *r = context;
    int64_t l = view->moe_layer;
    Queue *q = site->queue;
    if (l == 0) site->device->copy_in(q, r->group, r->batch->counted);
    Tensor selected = tensor_entry(r->selected, l), reals[N_REALS];
    site->device->zero(q, selected);
    for (int i = 0; i < N_REALS; i++) site->device->zero(q, reals[i] = tensor_entry(r->reals[i], l));
    const Ops *ops = site->device->ops;
    ops->count_experts(q, selected, reals[0], reals[1], view->ids, view->weights, view->probs, r->group);
    ops->expert_peaks(q, reals[2], reals[3], view->outputs, view->plan, r->group);
    ops->route_margin(q, r->margin, view->ids, view->logits);
    site->device->copy_out(q, r->host_margin + l * r->batch->n_tokens, r->margin);
    copy_layer(site, r->selected, l, r->host_selected);
    for (int i = 0; i < N_REALS; i++) copy_layer(site, r->reals[i], l, r->host_reals[i]);
    if (r->trace) trace_copy_layer(r->trace, site, view);
    return true;
}

/* Near ties and the least margin of a prompt's counted tokens, layer by layer. */
static void put_margins(const Routing *r, int64_t p, int64_t at, Measures *to) {
    const Batch *batch = r->batch;
    for (int64_t l = 0; l < r->n_layers; l++) {
        const float *margin = r->host_margin + l * batch->n_tokens;
        int64_t row = at * r->n_layers + l;
        to->margin[row] = INFINITY;
        for (int64_t t = batch->offsets[p]; t < batch->offsets[p + 1]; t++) {
            if (batch->counted[t] < 0) continue;
            to->near_ties[row] += margin[t] < r->near_tie;
            if (margin[t] < to->margin[row]) to->margin[row] = margin[t];
        }
    }
}

/* [L,P,E] of the batch to [P,L,E] of the block. */
static void put_prompts(const Routing *r, int64_t at, Measures *to) {
    float *reals[N_REALS] = {to->mass, to->weight, to->largest, to->norm};
    int64_t n_prompts = r->batch->n_prompts, n_experts = r->n_experts;
    for (int64_t l = 0; l < r->n_layers; l++)
        for (int64_t p = 0; p < n_prompts; p++) {
            int64_t from = (l * n_prompts + p) * n_experts, row = ((at + p) * r->n_layers + l) * n_experts;
            memcpy(to->selected + row, r->host_selected + from, (size_t)n_experts * sizeof *to->selected);
            for (int i = 0; i < N_REALS; i++)
                memcpy(reals[i] + row, r->host_reals[i] + from, (size_t)n_experts * sizeof(float));
        }
    for (int64_t p = 0; p < n_prompts; p++) {
        int64_t begin = r->batch->offsets[p], end = r->batch->offsets[p + 1], n = 0;
        for (int64_t t = begin; t < end; t++) n += r->batch->counted[t] >= 0;
        to->n_tokens[at + p] = end - begin;
        to->n_counted[at + p] = n;
        put_margins(r, p, at + p, to);
    }
}

/* Lays the arrays out in a block of memory on the device and a like one on the host. */
static void lay_out(Routing *r, char *device, char *host) {
    int64_t L = r->n_layers, P = r->batch->n_prompts, E = r->n_experts;
    size_t n = (size_t)(L * P * E), at = n * sizeof(int64_t);
    r->selected = tensor_cube(device, DTYPE_I64, L, P, E);
    r->host_selected = (int64_t *)(void *)host;
    for (int i = 0; i < N_REALS; i++, at += n * sizeof(float)) {
        r->reals[i] = tensor_cube(device + at, DTYPE_F32, L, P, E);
        r->host_reals[i] = (float *)(void *)(host + at);
    }
    r->margin = tensor_vector(device + at, DTYPE_F32, r->batch->n_tokens);
    r->host_margin = (float *)(void *)(host + at);
    at += (size_t)r->batch->n_tokens * sizeof(float);
    r->group = tensor_vector(device + at, DTYPE_I32, r->batch->n_tokens);
}

bool routing_measure(const Model *model, const Batch *batch, int64_t at, double near_tie, Measures *to,
                     Trace *trace, Error *error) {
    Routing r = {.batch = batch,
                 .n_layers = model->config.n_moe_layers,
                 .n_experts = model->config.n_experts,
                 .near_tie = near_tie,
                 .trace = trace};
    size_t n_bytes =
        (size_t)(r.n_layers * batch->n_prompts * r.n_experts) * (sizeof(int64_t) + N_REALS * sizeof(float)) +
        (size_t)batch->n_tokens * (sizeof(float) + sizeof(int32_t));
    size_t n_margins = (size_t)(r.n_layers * batch->n_tokens) * sizeof(float);
    char *device = model->device->alloc(n_bytes), *host = mem_alloc(n_bytes + n_margins);
    PassResult result = {0};
    bool ok = (device && host) || error_out_of_memory(error, "expert counts of a batch", n_bytes);
    if (ok) {
        lay_out(&r, device, host);
        PromptBatch view = batch_view(batch);
        Hooks hooks = {.context = &r, .route = count_layer};
        ok = model_pass(model, &view, &(PassOptions){0}, &hooks, &result, error);
    }
    if (ok) put_prompts(&r, at, to);
    pass_result_free(&result);
    mem_free(host);
    if (device) model->device->free(device);
    return ok;
}

void routing_serve(const Model *model) { model_serve(model, &(PassOptions){0}); }

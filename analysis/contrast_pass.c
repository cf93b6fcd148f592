/* One pass over pairs of texts. The router's distributions and choices come to the host, a batch at a time, and
 * are reduced there pair by pair; per token nothing is kept. The gradient of the contrast NLL(second) - NLL(first)
 * is that of one loss with weights of both signs: a layer's gate rows are summed over both texts of a pair, as if
 * they were one, and only their norms leave the device. */
#include "contrast.h"
#include "../engine/alloc.h"
#include <math.h>
#include <omp.h>
#include <string.h>

typedef struct {
    const ContrastPass *pass;
    const Batch *batch;
    int64_t n_pairs, n_layers, n_experts, n_chosen, hidden_size;
    float *probs;      /* [L,T,E] on the host */
    int32_t *ids;      /* [L,T,K] */
    float *host_norms; /* [L,n_pairs,E] */
    int32_t *ends;     /* [n_pairs + 1] where pairs begin, on the host */
    bool placed;       /* ends are on the device */
    Tensor rows, l2,
        offsets; /* on the device: [n_pairs,E,D] and [n_pairs,E] of one layer, [n_pairs + 1] i32 */
} PairPass;

/* ---- hooks ---- */
static bool copy_layer(void *context, HookSite *site, const RouteView *view) {
    PairPass *p = context;
    int64_t row = view->moe_layer * p->batch->n_tokens;
    site->device->copy_out(site->queue, p->probs + row * p->n_experts, view->probs);
    site->device->copy_out(site->queue, p->ids + row * p->n_chosen, view->ids);
    return true;
}

static bool reduce_gradient(void *context, HookSite *site, const RouteGradView *view) {
    PairPass *p = context;
    const Device *device = site->device;
    int64_t n = p->n_pairs * p->n_experts;
    if (!p->placed) device->copy_in(site->queue, p->offsets, p->ends);
    p->placed = true;
    device->zero(site->queue, p->rows);
    device->ops->gate_grad(site->queue, p->rows, view->logits_grad, view->input, p->offsets);
    device->ops->row_norms(site->queue, tensor_vector(p->l2.data, DTYPE_F32, n), (Tensor){0},
                           tensor_as_matrix(p->rows, n, p->hidden_size));
    device->copy_out(site->queue, p->host_norms + view->moe_layer * n, p->l2);
    return true;
}

/* ---- reduction of a pair's layer ---- */
typedef struct {
    double *p, *q; /* [E] */
    uint8_t *mark; /* [2E] */
} Room;

static const float *probs_at(const PairPass *p, int64_t layer, int64_t t) {
    return p->probs + (layer * p->batch->n_tokens + t) * p->n_experts;
}

static void take_row(const PairPass *p, int64_t layer, int64_t t, double *to) {
    const float *from = probs_at(p, layer, t);
    for (int64_t e = 0; e < p->n_experts; e++) to[e] = from[e];
}

/* Mean distribution and choices of a text's counted tokens. */
static void reduce_text(const PairPass *p, int64_t text, int64_t layer, double *mean, int64_t *selected) {
    int64_t n = 0;
    for (int64_t t = p->batch->offsets[text]; t < p->batch->offsets[text + 1]; t++) {
        if (p->batch->counted[t] < 0) continue;
        const float *row = probs_at(p, layer, t);
        const int32_t *ids = p->ids + (layer * p->batch->n_tokens + t) * p->n_chosen;
        for (int64_t e = 0; e < p->n_experts; e++) mean[e] += row[e];
        for (int64_t k = 0; k < p->n_chosen; k++) selected[ids[k]]++;
        n++;
    }
    for (int64_t e = 0; n && e < p->n_experts; e++) mean[e] /= (double)n;
}

/* Token by token: position j of one text with position j of the other, where both are counted. */
static void compare_aligned(const PairPass *p, int64_t pair, int64_t layer, int64_t k, Room room,
                            double values[N_CURVES], double *shift) {
    const Batch *b = p->batch;
    int64_t begin[2] = {b->offsets[2 * pair], b->offsets[2 * pair + 1]}, n = 0;
    for (int64_t j = 0; begin[0] + j < begin[1] && begin[1] + j < b->offsets[2 * pair + 2]; j++) {
        double own[N_CURVES];
        if (b->counted[begin[0] + j] < 0 || b->counted[begin[1] + j] < 0) continue;
        take_row(p, layer, begin[0] + j, room.p);
        take_row(p, layer, begin[1] + j, room.q);
        contrast_compare(room.p, room.q, p->n_experts, k, room.mark, own);
        for (int c = 0; c < N_CURVES; c++) values[c] += own[c];
        for (int64_t e = 0; e < p->n_experts; e++) shift[e] += fabs(room.p[e] - room.q[e]);
        n++;
    }
    for (int c = 0; c < N_CURVES; c++) values[c] /= (double)n;
    for (int64_t e = 0; e < p->n_experts; e++) shift[e] /= (double)n;
}

static void reduce_layer(const PairPass *p, int64_t pair, int64_t layer, int64_t at, Room room,
                         Measures *to) {
    int64_t E = p->n_experts, row = (at + pair) * p->n_layers + layer, cell = row * E,
            k = contrast_overlap_k(p->pass->step, &p->pass->model->config);
    double values[N_CURVES] = {0}, *first = to->mean_first + cell, *second = to->mean_second + cell;
    reduce_text(p, 2 * pair, layer, first, to->selected_first + cell);
    reduce_text(p, 2 * pair + 1, layer, second, to->selected_second + cell);
    if (p->pass->step->contrast == CONTRAST_CONTINUATIONS) {
        compare_aligned(p, pair, layer, k, room, values, to->shift + cell);
    } else {
        contrast_compare(first, second, E, k, room.mark, values);
        for (int64_t e = 0; e < E; e++) to->shift[cell + e] = fabs(first[e] - second[e]);
    }
    to->js[row] = values[CURVE_JS];
    to->overlap[row] = values[CURVE_OVERLAP];
    to->jaccard[row] = values[CURVE_JACCARD];
    if (p->host_norms)
        memcpy(to->contrast_l2 + cell, p->host_norms + (layer * p->n_pairs + pair) * E,
               (size_t)E * sizeof *to->contrast_l2);
}

static bool reduce_pairs(const PairPass *p, int64_t at, Measures *to, Error *error) {
    size_t n_threads = (size_t)omp_get_max_threads(), E = (size_t)p->n_experts;
    double *rows = mem_zeroed(n_threads * E, 2 * sizeof *rows);
    uint8_t *marks = mem_zeroed(n_threads * E, 2);
    bool ok = (rows && marks) || error_out_of_memory(error, "distributions of threads", n_threads * E * 18);
    if (ok) {
#pragma omp parallel for collapse(2) schedule(static)
        for (int64_t pair = 0; pair < p->n_pairs; pair++)
            for (int64_t l = 0; l < p->n_layers; l++) {
                size_t own = 2 * E * (size_t)omp_get_thread_num();
                reduce_layer(p, pair, l, at, (Room){rows + own, rows + own + E, marks + own}, to);
            }
    }
    mem_free(rows);
    mem_free(marks);
    return ok;
}

/* ---- numbers of a pair's texts ---- */
static double mean_nll(const Batch *b, const float *nll, int64_t text) {
    double sum = 0;
    int64_t n = 0;
    for (int64_t t = b->offsets[text]; t < b->offsets[text + 1]; t++) {
        if (b->loss[t] == 0) continue;
        sum += nll[t];
        n++;
    }
    return n ? sum / (double)n : 0;
}

static void put_texts(const PairPass *p, int64_t first, const float *nll, int64_t at, Measures *to) {
    const Batch *b = p->batch;
    for (int64_t i = 0; i < p->n_pairs; i++) {
        int64_t counted[2];
        contrast_count_tokens(p->pass->step, p->pass->pairs, first + i, counted, &to->n_counted[at + i]);
        to->n_tokens[at + i] = b->offsets[2 * i + 2] - b->offsets[2 * i];
        to->n_first[at + i] = counted[0];
        to->n_second[at + i] = counted[1];
        if (!nll) continue;
        to->nll_first[at + i] = mean_nll(b, nll, 2 * i);
        to->nll_second[at + i] = mean_nll(b, nll, 2 * i + 1);
    }
}

/* ---- the pass ---- */
static bool make_room(PairPass *p, bool gradient, Error *error) {
    size_t rows = (size_t)(p->n_layers * p->batch->n_tokens), cells = (size_t)(p->n_pairs * p->n_experts),
           D = (size_t)p->hidden_size, n_bytes = 0;
    p->probs = mem_alloc(rows * (size_t)p->n_experts * sizeof *p->probs);
    p->ids = mem_alloc(rows * (size_t)p->n_chosen * sizeof *p->ids);
    bool ok = p->probs && p->ids;
    if (ok && gradient) {
        n_bytes = cells * (D + 1) * sizeof(float) + (size_t)(p->n_pairs + 1) * sizeof *p->ends;
        p->host_norms = mem_zeroed((size_t)p->n_layers * cells, sizeof *p->host_norms);
        p->ends = mem_zeroed((size_t)p->n_pairs + 1, sizeof *p->ends);
        float *device = p->pass->model->device->alloc(n_bytes);
        p->rows = tensor_cube(device, DTYPE_F32, p->n_pairs, p->n_experts, p->hidden_size);
        ok = p->host_norms && p->ends && device;
    }
    if (!ok)
        return error_out_of_memory(error, "router distributions of a batch",
                                   rows * (size_t)p->n_experts * sizeof *p->probs + n_bytes);
    if (!gradient) return true;
    float *device = p->rows.data;
    p->l2 = tensor_matrix(device + cells * D, DTYPE_F32, p->n_pairs, p->n_experts);
    p->offsets = tensor_vector(device + cells * (D + 1), DTYPE_I32, p->n_pairs + 1);
    for (int64_t i = 0; i <= p->n_pairs; i++) p->ends[i] = (int32_t)p->batch->offsets[2 * i];
    return true;
}

static void free_room(PairPass *p) {
    mem_free(p->probs);
    mem_free(p->ids);
    mem_free(p->host_norms);
    mem_free(p->ends);
    if (p->rows.data) p->pass->model->device->free(p->rows.data);
}

bool contrast_measure(const ContrastPass *pass, int64_t first, int64_t n, int64_t at, Measures *to,
                      Error *error) {
    const ModelConfig *config = &pass->model->config;
    const StepOptions *step = pass->step;
    bool targets = step_reads_targets(step), gradient = targets && step->contrast_gradient;
    Batch batch = {0};
    PassResult result = {0};
    PairPass p = {.pass = pass,
                  .batch = &batch,
                  .n_pairs = n,
                  .n_layers = config->n_moe_layers,
                  .n_experts = config->n_experts,
                  .n_chosen = config->n_experts_per_token,
                  .hidden_size = config->hidden_size};
    bool ok =
        contrast_batch_make(step, pass->pairs, first, n, &batch, error) && make_room(&p, gradient, error);
    if (ok) {
        PromptBatch view = batch_view(&batch);
        Hooks hooks = {.context = &p, .route = copy_layer, .route_grad = gradient ? reduce_gradient : NULL};
        PassOptions options = {.loss_weights = gradient ? batch.loss : NULL,
                               .recompute = (Recompute)step->recompute,
                               .memory_limit_bytes = pass->memory_limit_bytes,
                               .want_nll = targets};
        ok = model_pass(pass->model, &view, &options, &hooks, &result, error);
    }
    ok = ok && reduce_pairs(&p, at, to, error);
    if (ok) put_texts(&p, first, targets ? result.nll : NULL, at, to);
    pass_result_free(&result);
    free_room(&p);
    batch_free(&batch);
    return ok;
}

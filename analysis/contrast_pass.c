/* One pass over pairs of texts. The router's distributions and choices come to the host, a batch at a
 * time, and are reduced there pair by pair; per token nothing is kept. The gradient of the contrast
 * NLL(second) - NLL(first) is that of one loss with weights of both signs: a layer's gate rows are
 * summed over both texts of a pair, as if they were one, and only their norms leave the device. */
#include "contrast.h"
#include "../engine/alloc.h"
#include <string.h>

typedef struct {
    const ContrastPass *pass;
    const Batch *batch;
    int64_t n_pairs, n_layers, n_experts, n_chosen, hidden_size;
    float *probs;      /* [L,T,E] on the host, as ContrastRoutes has them */
    int32_t *ids;      /* [L,T,K] */
    float *host_norms; /* [L,n_pairs,E] */
    int32_t *ends;     /* [n_pairs + 1] where pairs begin, on the host */
    bool placed;       /* ends are on the device */
    Tensor rows, l2,
        offsets; /* on the device: [n_pairs,E,D] and [n_pairs,E] of one layer, [n_pairs + 1] i32 */
} PairPass;

/* loss [T]: NULL: not walked back. */
static PassOptions pass_options(const ContrastPass *pass, const float *loss) {
    return (PassOptions){.loss_weights = loss,
                         .recompute = (Recompute)pass->step->recompute,
                         .memory_limit_bytes = pass->memory_limit_bytes,
                         .want_nll = step_reads_targets(pass->step)};
}

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

/* [L,n_pairs,E] of the batch to [P,L,E]. */
static void put_norms(const PairPass *p, int64_t at, Measures *to) {
    int64_t E = p->n_experts;
    for (int64_t l = 0; p->host_norms && l < p->n_layers; l++)
        for (int64_t i = 0; i < p->n_pairs; i++)
            memcpy(to->contrast_l2 + ((at + i) * p->n_layers + l) * E,
                   p->host_norms + (l * p->n_pairs + i) * E, (size_t)E * sizeof *to->contrast_l2);
}

/* ---- one text, two models ---- */
/* The texts of the first side alone, as one of the models has them. */
typedef struct {
    const Batch *batch;
    PairPass *to;
    float *probs; /* [L,T,E] */
    int32_t *ids; /* [L,T,K] */
} HalfPass;

static bool copy_half(void *context, HookSite *site, const RouteView *view) {
    HalfPass *h = context;
    int64_t row = view->moe_layer * h->batch->n_tokens;
    site->device->copy_out(site->queue, h->probs + row * h->to->n_experts, view->probs);
    site->device->copy_out(site->queue, h->ids + row * h->to->n_chosen, view->ids);
    return true;
}

/* What a model said of text i goes to text 2i + side of the pairs. */
static void spread(const HalfPass *h, const float *nll, int side, float *pair_nll) {
    PairPass *p = h->to;
    const size_t E = (size_t)p->n_experts, K = (size_t)p->n_chosen;
    for (int64_t i = 0; i < p->n_pairs; i++) {
        int64_t from = h->batch->offsets[i], to = p->batch->offsets[2 * i + side];
        size_t n = (size_t)(h->batch->offsets[i + 1] - from);
        memcpy(pair_nll + to, nll + from, n * sizeof *nll);
        for (int64_t l = 0; l < p->n_layers; l++) {
            size_t source = (size_t)(l * h->batch->n_tokens + from),
                   row = (size_t)(l * p->batch->n_tokens + to);
            memcpy(p->probs + row * E, h->probs + source * E, n * E * sizeof *h->probs);
            memcpy(p->ids + row * K, h->ids + source * K, n * K * sizeof *h->ids);
        }
    }
}

static bool half_batch(const ContrastPass *pass, int64_t first, int64_t n, Batch *half, Error *error) {
    const EncodedPrompt *prompts = pass->pairs->side[0].prompts + first;
    int64_t n_tokens = 0;
    for (int64_t i = 0; i < n; i++) n_tokens += prompts[i].n_prompt + prompts[i].n_target;
    if (!batch_make_room(half, n, n_tokens, error)) return false;
    for (int64_t i = 0; i < n; i++) batch_put_prompt(half, i, &prompts[i], true);
    return true;
}

static Model model_of_side(const ContrastPass *pass, int side) {
    Model model = *pass->model;
    if (side == 0) model.adapter = NULL;
    return model;
}

/* Fills p->probs, p->ids and nll [T of the pairs]: first sides by the model without its adapter, second ones
 * by the model with it. */
static bool pass_both(PairPass *p, int64_t first, float *nll, Error *error) {
    const ContrastPass *pass = p->pass;
    Batch half = {0};
    HalfPass h = {.batch = &half, .to = p};
    bool ok = half_batch(pass, first, p->n_pairs, &half, error);
    const size_t rows = (size_t)(p->n_layers * half.n_tokens);
    if (ok) {
        h.probs = mem_alloc(rows * (size_t)p->n_experts * sizeof *h.probs);
        h.ids = mem_alloc(rows * (size_t)p->n_chosen * sizeof *h.ids);
        ok = (h.probs && h.ids) || error_out_of_memory(error, "router distributions of a batch",
                                                       rows * (size_t)p->n_experts * sizeof *h.probs);
    }
    for (int side = 0; ok && side < 2; side++) {
        const Model model = model_of_side(pass, side);
        PromptBatch view = batch_view(&half);
        Hooks hooks = {.context = &h, .route = copy_half};
        const PassOptions options = pass_options(pass, NULL);
        PassResult result = {0};
        ok = model_pass(&model, &view, &options, &hooks, &result, error);
        if (ok) spread(&h, result.nll, side, nll);
        pass_result_free(&result);
    }
    mem_free(h.probs);
    mem_free(h.ids);
    batch_free(&half);
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

static bool pass_pairs(PairPass *p, float *nll, Error *error) {
    const StepOptions *step = p->pass->step;
    const bool gradient = contrast_walks_back(step), targets = step_reads_targets(step);
    PromptBatch view = batch_view(p->batch);
    Hooks hooks = {.context = p, .route = copy_layer, .route_grad = gradient ? reduce_gradient : NULL};
    const PassOptions options = pass_options(p->pass, gradient ? p->batch->loss : NULL);
    PassResult result = {0};
    const bool ok = model_pass(p->pass->model, &view, &options, &hooks, &result, error);
    if (ok && targets) memcpy(nll, result.nll, (size_t)p->batch->n_tokens * sizeof *nll);
    pass_result_free(&result);
    return ok;
}

bool contrast_measure(const ContrastPass *pass, int64_t first, int64_t n, int64_t at, Measures *to,
                      Error *error) {
    const ModelConfig *config = &pass->model->config;
    const StepOptions *step = pass->step;
    Batch batch = {0};
    PairPass p = {.pass = pass,
                  .batch = &batch,
                  .n_pairs = n,
                  .n_layers = config->n_moe_layers,
                  .n_experts = config->n_experts,
                  .n_chosen = config->n_experts_per_token,
                  .hidden_size = config->hidden_size};
    bool ok = contrast_batch_make(step, pass->pairs, first, n, &batch, error) &&
              make_room(&p, contrast_walks_back(step), error);
    float *nll = ok ? mem_zeroed((size_t)batch.n_tokens + 1, sizeof *nll) : NULL;
    ok = ok && (nll || error_out_of_memory(error, "losses of a batch", (size_t)batch.n_tokens * sizeof *nll));
    ok = ok &&
         (step->contrast == CONTRAST_ADAPTER ? pass_both(&p, first, nll, error) : pass_pairs(&p, nll, error));
    ContrastRoutes routes = {.batch = &batch,
                             .probs = p.probs,
                             .ids = p.ids,
                             .n_layers = p.n_layers,
                             .n_experts = p.n_experts,
                             .n_chosen = p.n_chosen,
                             .overlap_k = contrast_overlap_k(step, config),
                             .token_by_token = contrast_by_token(step)};
    ok = ok && contrast_reduce(&routes, at, to, error);
    if (ok) {
        put_norms(&p, at, to);
        put_texts(&p, first, step_reads_targets(step) ? nll : NULL, at, to);
    }
    mem_free(nll);
    free_room(&p);
    batch_free(&batch);
    return ok;
}

void contrast_serve(const ContrastPass *pass) {
    const bool both = pass->step->contrast == CONTRAST_ADAPTER;
    const float none = 0; /* that there are weights says that the pass is walked back */
    const PassOptions options = pass_options(pass, contrast_walks_back(pass->step) ? &none : NULL);
    for (int side = both ? 0 : 1; side < 2; side++) {
        const Model model = both ? model_of_side(pass, side) : *pass->model;
        model_serve(&model, &options);
    }
}

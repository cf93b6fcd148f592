/* The tensors of a golden case, computed as every job computes: packed batches, hooks, the tape. Two passes a
 * batch: the loss over the whole prompts, where everything is looked at, and the loss over the targets, for
 * its gate rows. */
#include "../kernels/half.h"
#include "conform_parts.h"
#include "../engine/alloc.h"
#include "../engine/generate.h"
#include "../kernels/device.h"
#include <string.h>

/* ---- memory ---- */
static bool values_add(ConformValues *values, ConformName name, DType dtype, int n_dims,
                       const int64_t shape[4], Error *error) {
    Tensor t = {.dtype = dtype, .n_dims = n_dims};
    memcpy(t.shape, shape, (size_t)n_dims * sizeof *shape);
    t.data = mem_zeroed((size_t)tensor_count(t), dtype_bytes(dtype));
    values->tensors[name] = t;
    return t.data || error_out_of_memory(error, conform_infos[name].name, tensor_bytes(t));
}

/* `names`: a bit 1 << ConformName for each tensor wanted. */
enum {
    ALL_NAMES = (1 << N_CONFORM_TENSORS) - 1,
    EDITED_NAMES = 1 << CONFORM_MOE_LAYERS | 1 << CONFORM_ROUTER_LOGITS | 1 << CONFORM_TOPK_IDS |
                   1 << CONFORM_TOPK_WEIGHTS | 1 << CONFORM_LOGITS | 1 << CONFORM_NLL
};

static bool values_new(const ModelConfig *config, const ConformCase *c, unsigned names, ConformValues *values,
                       Error *error) {
    int64_t l = config->n_moe_layers, t = c->n_tokens, p = c->n_prompts, e = config->n_experts;
    int64_t k = config->n_experts_per_token, d = config->hidden_size, targets = c->target_starts ? p : 0;
    const struct {
        DType dtype;
        int n_dims;
        int64_t shape[4];
    } shapes[N_CONFORM_TENSORS] = {
        [CONFORM_MOE_LAYERS] = {DTYPE_I64, 1, {l}},
        [CONFORM_ROUTER_LOGITS] = {DTYPE_F32, 3, {l, t, e}},
        [CONFORM_TOPK_IDS] = {DTYPE_I64, 3, {l, t, k}},
        [CONFORM_TOPK_WEIGHTS] = {DTYPE_F32, 3, {l, t, k}},
        [CONFORM_LAYER_OUTPUT] = {DTYPE_F32, 3, {config->n_layers, t, d}},
        [CONFORM_LOGITS] = {DTYPE_F32, 2, {t, config->vocab_size}},
        [CONFORM_NLL] = {DTYPE_F32, 1, {p}},
        [CONFORM_NLL_TARGET] = {DTYPE_F32, 1, {targets}},
        [CONFORM_GATE_GRAD] = {DTYPE_F32, 4, {p, l, e, d}},
        [CONFORM_GATE_GRAD_TARGET] = {DTYPE_F32, 4, {targets, l, e, d}},
        [CONFORM_ROUTER_LOGIT_GRAD] = {DTYPE_F32, 3, {l, t, e}},
        [CONFORM_EMBEDDING_GRAD] = {DTYPE_F32, 2, {t, d}},
        [CONFORM_GREEDY_TOKENS] = {DTYPE_I64, 2, {c->n_steps ? p : 0, c->n_steps}},
    };
    *values = (ConformValues){0};
    for (ConformName i = 0; i < N_CONFORM_TENSORS; i++)
        if ((names >> i & 1) && shapes[i].shape[0] > 0 &&
            !values_add(values, i, shapes[i].dtype, shapes[i].n_dims, shapes[i].shape, error))
            return false;
    int64_t *moe_layers = values->tensors[CONFORM_MOE_LAYERS].data, n = 0;
    for (int64_t layer = 0; layer < config->n_layers; layer++)
        if (!config->layer_is_dense[layer]) moe_layers[n++] = layer;
    return true;
}

void conform_values_free(ConformValues *values) {
    for (int i = 0; i < N_CONFORM_TENSORS; i++) mem_free(values->tensors[i].data);
    *values = (ConformValues){0};
}

/* ---- one batch of prompts ---- */
typedef struct {
    const Model *model;
    const ConformCase *c;
    ConformValues *values;
    Recompute recompute;
    const EditTable *edits; /* NULL: none, and everything is computed */
    int64_t first_prompt, n_prompts, first_token, n_tokens;
    int64_t *offsets;    /* [n_prompts+1], from 0 */
    float *loss_weights; /* [n_tokens] */
    void *staging;       /* host, as large as the largest tensor a hook copies */
    Tensor rows_grad;    /* [n_prompts,E,D] on the device */
    ConformName gate_grad;
} Part;

static bool site_sync(HookSite *site) {
    if (site->device->sync(site->queue)) return true;
    return error_set(site->error, ERROR_UNAVAILABLE, "%s: %s", site->queue->failed_op, site->queue->failure);
}

/* Copies act rows (f32 or bf16) out as f32. */
static bool copy_rows(Part *part, HookSite *site, float *to, Tensor from) {
    if (from.dtype == DTYPE_F32) {
        site->device->copy_out(site->queue, to, from);
        return site_sync(site);
    }
    site->device->copy_out(site->queue, part->staging, from);
    if (!site_sync(site)) return false;
    const uint16_t *bf16 = part->staging;
    int64_t n = tensor_count(from);
    for (int64_t i = 0; i < n; i++) to[i] = bf16_to_f32(bf16[i]);
    return true;
}

/* Where the part's tokens stand in entry i of a [.,T,N] tensor. */
static void *token_rows(const Part *part, ConformName name, int64_t i) {
    Tensor t = part->values->tensors[name];
    return tensor_slice(tensor_entry(t, i), part->first_token, part->n_tokens).data;
}

static bool on_route(void *context, HookSite *site, const RouteView *view) {
    Part *part = context;
    int64_t *ids = token_rows(part, CONFORM_TOPK_IDS, view->moe_layer), n = tensor_count(view->ids);
    site->device->copy_out(site->queue, part->staging, view->ids);
    site->device->copy_out(site->queue, token_rows(part, CONFORM_ROUTER_LOGITS, view->moe_layer),
                           view->logits);
    site->device->copy_out(site->queue, token_rows(part, CONFORM_TOPK_WEIGHTS, view->moe_layer),
                           view->weights);
    if (!site_sync(site)) return false;
    for (int64_t i = 0; i < n; i++) ids[i] = ((const int32_t *)part->staging)[i];
    return true;
}

static bool on_residual(void *context, HookSite *site, int64_t layer, Tensor x) {
    return copy_rows(context, site, token_rows(context, CONFORM_LAYER_OUTPUT, layer), x);
}

static bool on_route_grad(void *context, HookSite *site, const RouteGradView *view) {
    Part *part = context;
    Tensor to = part->values->tensors[part->gate_grad], rows = part->rows_grad;
    site->device->zero(site->queue, rows);
    site->device->ops->gate_grad(site->queue, rows, view->logits_grad, view->input, view->offsets);
    site->device->copy_out(site->queue, part->staging, rows);
    if (part->gate_grad == CONFORM_GATE_GRAD)
        site->device->copy_out(site->queue, token_rows(part, CONFORM_ROUTER_LOGIT_GRAD, view->moe_layer),
                               view->logits_grad);
    if (!site_sync(site)) return false;
    rows.data = part->staging;
    for (int64_t p = 0; p < part->n_prompts; p++) {
        Tensor from = tensor_entry(rows, p);
        memcpy(tensor_entry(tensor_entry(to, part->first_prompt + p), view->moe_layer).data, from.data,
               tensor_bytes(from));
    }
    return true;
}

static bool on_embedding_grad(void *context, HookSite *site, Tensor grad) {
    Part *part = context;
    Tensor to = part->values->tensors[CONFORM_EMBEDDING_GRAD];
    return copy_rows(part, site, tensor_slice(to, part->first_token, part->n_tokens).data, grad);
}

/* The position of the first token whose prediction counts, in the prompt: all, or those of the target. */
static int64_t first_counted(const Part *part, int64_t p, bool target) {
    return target ? part->c->target_starts[part->first_prompt + p] - 1 : 0;
}

static void set_loss_weights(Part *part, bool target) {
    memset(part->loss_weights, 0, (size_t)part->n_tokens * sizeof *part->loss_weights);
    for (int64_t p = 0; p < part->n_prompts; p++) {
        int64_t first = part->offsets[p] + first_counted(part, p, target), last = part->offsets[p + 1] - 1;
        for (int64_t t = first; t < last; t++) part->loss_weights[t] = 1.0f / (float)(last - first);
    }
}

static void keep_losses(Part *part, const PassResult *result, bool target) {
    float *to = part->values->tensors[target ? CONFORM_NLL_TARGET : CONFORM_NLL].data;
    for (int64_t p = 0; p < part->n_prompts; p++) {
        int64_t first = part->offsets[p] + first_counted(part, p, target), last = part->offsets[p + 1] - 1;
        double sum = 0;
        for (int64_t t = first; t < last; t++) sum += (double)result->nll[t];
        to[part->first_prompt + p] = (float)(sum / (double)(last - first));
    }
}

static PromptBatch part_batch(const Part *part) {
    return (PromptBatch){part->n_prompts, part->offsets, part->c->tokens + part->first_token};
}

/* The passes that every part makes, and every rank with it. */
static PassOptions pass_options(const Part *part, const float *loss_weights, bool target) {
    if (part->edits) return (PassOptions){.edits = part->edits, .want_nll = true, .want_logits = true};
    return (PassOptions){
        .loss_weights = loss_weights, .recompute = part->recompute, .want_nll = true, .want_logits = !target};
}

static GenerateOptions greedy_options(const Part *part) {
    return (GenerateOptions){.max_new_tokens = part->c->n_steps,
                             .rule = {.top_p = 1, .n_valid = part->model->config.vocab_size}};
}

static bool run_pass(Part *part, bool target, Error *error) {
    Hooks hooks = {.context = part, .route_grad = on_route_grad};
    if (!target)
        hooks = (Hooks){.context = part,
                        .route = on_route,
                        .residual = on_residual,
                        .route_grad = on_route_grad,
                        .embedding_grad = on_embedding_grad};
    part->gate_grad = target ? CONFORM_GATE_GRAD_TARGET : CONFORM_GATE_GRAD;
    set_loss_weights(part, target);
    PassOptions options = pass_options(part, part->loss_weights, target);
    PromptBatch batch = part_batch(part);
    PassResult result = {0};
    bool ok = model_pass(part->model, &batch, &options, &hooks, &result, error);
    if (ok) keep_losses(part, &result, target);
    if (ok && !target) {
        Tensor rows = tensor_slice(part->values->tensors[CONFORM_LOGITS], part->first_token, part->n_tokens);
        memcpy(rows.data, result.logits, tensor_bytes(rows));
    }
    pass_result_free(&result);
    return ok;
}

static bool run_edited(Part *part, Error *error) {
    Hooks hooks = {.context = part, .route = on_route};
    PassOptions options = pass_options(part, NULL, false);
    PromptBatch batch = part_batch(part);
    PassResult result = {0};
    bool ok = model_pass(part->model, &batch, &options, &hooks, &result, error);
    if (ok) {
        Tensor rows = tensor_slice(part->values->tensors[CONFORM_LOGITS], part->first_token, part->n_tokens);
        memcpy(rows.data, result.logits, tensor_bytes(rows));
        keep_losses(part, &result, false);
    }
    pass_result_free(&result);
    return ok;
}

static bool run_greedy(Part *part, Error *error) {
    int64_t n = part->c->n_steps;
    if (!n) return true;
    GenerateOptions options = greedy_options(part);
    PromptBatch batch = part_batch(part);
    Generation made = {0};
    bool ok = generate(part->model, &batch, &options, NULL, &made, error);
    int64_t *to =
        tensor_slice(part->values->tensors[CONFORM_GREEDY_TOKENS], part->first_prompt, part->n_prompts).data;
    for (int64_t i = 0; ok && i < part->n_prompts * n; i++) to[i] = made.tokens[made.offsets[i / n] + i % n];
    generation_free(&made);
    return ok;
}

static bool part_run(Part *part, Error *error) {
    const ModelConfig *config = &part->model->config;
    const Device *device = part->model->device;
    int64_t e = config->n_experts, d = config->hidden_size, k = config->n_experts_per_token;
    int64_t wide = part->n_prompts * e * d, tall = part->n_tokens * (d > k ? d : k);
    size_t staging_bytes = (size_t)(wide > tall ? wide : tall) * sizeof(float);
    part->offsets = mem_alloc((size_t)(part->n_prompts + 1) * sizeof *part->offsets);
    part->loss_weights = mem_alloc((size_t)part->n_tokens * sizeof *part->loss_weights);
    part->staging = mem_alloc(staging_bytes);
    part->rows_grad = tensor_cube(NULL, DTYPE_F32, part->n_prompts, e, d);
    part->rows_grad.data = device->alloc(tensor_bytes(part->rows_grad));
    bool ok = part->offsets && part->loss_weights && part->staging && part->rows_grad.data;
    if (!ok) error_out_of_memory(error, "the tensors of a golden case", staging_bytes);
    for (int64_t p = 0; ok && p <= part->n_prompts; p++)
        part->offsets[p] = part->c->offsets[part->first_prompt + p] - part->first_token;
    if (ok && part->edits)
        ok = run_edited(part, error);
    else
        ok = ok && run_pass(part, false, error) && (!part->c->target_starts || run_pass(part, true, error)) &&
             run_greedy(part, error);
    if (part->rows_grad.data) device->free(part->rows_grad.data);
    mem_free(part->offsets);
    mem_free(part->loss_weights);
    mem_free(part->staging);
    return ok;
}

/* The passes of a part that this rank does not have. */
static bool part_serve(const Part *part, Error *error) {
    static const float no_weights[1];
    const PassOptions whole = pass_options(part, no_weights, false),
                      target = pass_options(part, no_weights, true);
    const GenerateOptions greedy = greedy_options(part);
    model_serve(part->model, &whole);
    if (part->edits) return true;
    if (part->c->target_starts) model_serve(part->model, &target);
    return !part->c->n_steps || generate_serve(part->model, &greedy, error);
}

static bool run_parts(const Part *like, int64_t n_parts, Error *error) {
    const ConformCase *c = like->c;
    const int64_t n = n_parts < c->n_prompts ? n_parts : c->n_prompts,
                  n_all = model_agree_passes(like->model, n);
    bool ok = true;
    for (int64_t i = 0; ok && i < n; i++) {
        Part part = *like;
        part.first_prompt = i * c->n_prompts / n;
        part.n_prompts = (i + 1) * c->n_prompts / n - part.first_prompt;
        part.first_token = c->offsets[part.first_prompt];
        part.n_tokens = c->offsets[part.first_prompt + part.n_prompts] - part.first_token;
        ok = part_run(&part, error);
    }
    for (int64_t i = n; ok && i < n_all; i++) ok = part_serve(like, error);
    return ok;
}

/* ---- all of them ---- */
static bool gather_values(const ConformCase *c, const ConformValues *own, ConformValues *whole,
                          Error *error) {
    bool ok = true;
    for (ConformName i = 0; ok && i < N_CONFORM_TENSORS; i++) {
        const ConformRows rows = conform_infos[i].rows;
        const Tensor t = whole->tensors[i];
        const bool by_prompt = rows == ROWS_PROMPT || i == CONFORM_GREEDY_TOKENS;
        if (!tensor_present(t) || i == CONFORM_MOE_LAYERS) continue;
        ok = conform_gather(c, by_prompt, !by_prompt && t.n_dims == 3, own->tensors[i], t, error);
    }
    return ok;
}

static bool compute(const Part *like, unsigned names, int64_t n_parts, ConformValues *values, Error *error) {
    const ConformCase *c = like->c;
    Part part = *like;
    ConformCase own = {0};
    ConformValues own_values = {0};
    bool ok = values_new(&part.model->config, c, names, values, error);
    if (conform_is_shared(c)) {
        part.c = &own;
        part.values = &own_values;
        ok = ok && conform_own(c, &own, error) &&
             values_new(&part.model->config, &own, names, &own_values, error) &&
             run_parts(&part, n_parts, error) && gather_values(c, &own_values, values, error);
        conform_own_free(&own);
        conform_values_free(&own_values);
    } else {
        part.values = values;
        ok = ok && run_parts(&part, n_parts, error);
    }
    if (!ok) conform_values_free(values);
    return ok;
}

bool conform_compute(const Model *model, const ConformCase *c, int64_t n_parts, Recompute recompute,
                     ConformValues *values, Error *error) {
    const Part part = {.model = model, .c = c, .recompute = recompute};
    return compute(&part, ALL_NAMES, n_parts, values, error);
}

bool conform_compute_edited(const Model *model, const ConformCase *c, int64_t n_parts, const EditTable *edits,
                            ConformValues *values, Error *error) {
    const Part part = {.model = model, .c = c, .edits = edits};
    return compute(&part, EDITED_NAMES, n_parts, values, error);
}

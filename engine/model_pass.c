/* A scoring pass: forward, loss, and back to the router gates. The program is written once (run_program);
 * the cost device runs it first, then the model's device in a block of exactly the size found.
 *
 * Kept for the backward, per token and layer, when recomputing: the residual stream before attention and
 * before the experts, attention's result, and its log-sum-exp. */
#include "../kernels/check.h"
#include "alloc.h"
#include "decoder.h"
#include "exchange.h"
#include "io.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const Model *model;
    const PromptBatch *batch;
    const PassOptions *options;
    const Hooks *hooks;
    Error *error;
    Rows rows;
    LayerRun *runs;
    int64_t *findings;
    const void *loss_weights, *edit_values, *replay_weights; /* as reals, on the host */
    void *owned[5];
    float *weighed; /* [T] what PassOptions.weigh fills */
    RouterLossReals router_loss;
    void *nll; /* [T] reals on the host */
    float *logits;
    bool wants_nll, failed, walked;
    size_t saved_bytes;
} Pass;

/* ---- the batch ---- */
static void fill_rows(Rows *rows, const PromptBatch *batch, const int32_t *token_edits) {
    for (int64_t p = 0; p < batch->n_prompts; p++) {
        int64_t begin = batch->offsets[p], end = batch->offsets[p + 1];
        rows->offsets[p] = rows->kv_begin[p] = (int32_t)begin;
        rows->kv_length[p] = (int32_t)(end - begin);
        for (int64_t t = begin; t < end; t++) {
            rows->ids[t] = batch->tokens ? batch->tokens[t] : 0;
            rows->positions[t] = (int32_t)(t - begin);
            rows->targets[t] = batch->tokens && t + 1 < end ? batch->tokens[t + 1] : -1;
        }
    }
    rows->offsets[batch->n_prompts] = (int32_t)batch->offsets[batch->n_prompts];
    for (int64_t t = 0; t < rows->n_rows; t++) rows->edits[t] = token_edits ? token_edits[t] : 0;
}

static void place_in_batch(const void *context, CheckKind kind, int64_t row, int64_t *prompt,
                           int64_t *token) {
    (void)kind;
    const PromptBatch *batch = context;
    int64_t p = 0;
    while (batch->offsets[p + 1] <= row) p++;
    *prompt = p;
    *token = row - batch->offsets[p];
}

/* ---- the program ---- */
/* The weights that follow from the losses, which have left the device when this waits. */
static bool weigh(Pass *p, Context *c) {
    const int64_t n = p->rows.n_rows;
    if (!c->device->sync(c->queue)) return true; /* the queue's error is the pass's */
    double *nll = mem_alloc((size_t)n * sizeof *nll);
    bool ok = nll || error_out_of_memory(p->error, "losses of tokens", (size_t)n * sizeof *nll);
    for (int64_t i = 0; ok && i < n; i++)
        nll[i] = c->real == DTYPE_F64 ? ((const double *)p->nll)[i] : (double)((const float *)p->nll)[i];
    ok = ok && p->options->weigh(p->options->weigh_context, nll, p->weighed, p->error);
    mem_free(nll);
    if (!ok) return false;
    mem_free(p->owned[0]);
    p->loss_weights = decoder_reals(c->real, p->weighed, n, &p->owned[0]);
    return p->loss_weights || error_out_of_memory(p->error, "weights of losses", (size_t)n * sizeof *nll);
}

static void run_loss(Pass *p, Context *c, Decoder *d, Var *h) {
    const Weights *w = &p->model->weights;
    Tensor targets = tape_upload(c, DTYPE_I32, p->rows.n_rows, p->rows.targets);
    Var *nll = nn_cross_entropy(c, h, w->head, (Tensor){0}, targets);
    decoder_check(d, c, CHECK_NLL, 0, nll->x);
    if (c->device->computes) c->device->copy_out(c->queue, p->nll, nll->x);
    if (c->device->computes && d->hooks->loss && !d->failed)
        d->failed = !d->hooks->loss(d->hooks->context, &d->site, nll->x);
    if (!c->tape) return;
    if (c->device->computes && p->options->weigh && !d->failed) d->failed = !weigh(p, c);
    nll->g = tape_upload(c, c->real, p->rows.n_rows, p->loss_weights);
}

static void run_logits(Pass *p, Context *c, Decoder *d, Var *h) {
    Scope scope = scope_open(c);
    Tensor logits = tape_matrix(c, c->real, p->rows.n_rows, p->model->config.vocab_size);
    c->device->ops->dense(c->queue, logits, h->x, p->model->weights.head, (Tensor){0}, (Tensor){0});
    decoder_check(d, c, CHECK_LOGITS, 0, logits);
    if (c->device->computes) c->device->copy_out(c->queue, p->logits, logits);
    scope_close(c, scope);
}

static void run_backward(Context *c, Decoder *d, Var *x) {
    tape_backward(c);
    if (c->device->computes && d->hooks->embedding_grad && !d->failed)
        d->failed = !d->hooks->embedding_grad(d->hooks->context, &d->site, x->g);
}

/* Edits, and the routes that a replay takes. */
static void upload_routing(const Pass *p, Context *c, Decoder *d) {
    const PassOptions *o = p->options;
    if (o->edits) {
        RouteEdits to = decoder_edit_shapes(o->edits, c->real);
        to.modes.data = tape_upload(c, DTYPE_I32, tensor_count(to.modes), o->edits->modes).data;
        to.values.data = tape_upload(c, c->real, tensor_count(to.values), p->edit_values).data;
        d->edits = o->edits;
        d->edit_tensors = to;
    }
    if (!o->replay) return;
    int64_t l = p->model->config.n_moe_layers, k = p->model->config.n_experts_per_token, n = p->rows.n_rows;
    d->replay =
        (RouteTensors){tensor_as_cube(tape_upload(c, DTYPE_I32, l * n * k, o->replay->ids), l, n, k),
                       tensor_as_cube(tape_upload(c, c->real, l * n * k, p->replay_weights), l, n, k)};
}

static void run_program(Pass *p, Context *c, bool recompute) {
    const ModelConfig *config = &p->model->config;
    int64_t n_checks = decoder_n_checks(config);
    Decoder d = {.model = p->model,
                 .hooks = p->hooks,
                 .site = {c->device, c->queue, p->error},
                 .wants_grad = c->tape && (!p->options->training || p->hooks->route_grad),
                 .lora = {.training = c->tape ? p->options->training : NULL,
                          .first_example = p->options->first_example,
                          .dropout_rate = p->options->dropout_rate},
                 .recompute = recompute,
                 .router_loss = p->options->router_loss,
                 .runs = p->runs};
    decoder_checks_clear(p->findings, n_checks);
    d.nonfinite = tape_upload(c, DTYPE_I64, n_checks, p->findings);
    upload_routing(p, c, &d);
    if (d.router_loss) router_loss_upload(&d, c, &p->router_loss, p->rows.n_rows);
    Tensor ids = decoder_upload(&d, c, &p->rows);
    d.lora.offsets = d.spans.offsets;
    if (d.lora.training && p->options->dropout_keys)
        d.lora.dropout_keys = tape_upload(c, DTYPE_I64, p->rows.n_rows, p->options->dropout_keys);
    size_t before = c->arena.used;
    Var *x = nn_embed(c, NULL, ids, p->model->weights.embedding, c->tape && p->hooks->embedding_grad);
    Var *last = decoder_run(&d, c, x);
    p->saved_bytes = c->tape ? c->arena.used - before : 0;
    if (d.router_loss && !d.failed) router_loss_fetch(&d, c, &p->router_loss);
    if (!d.failed && (p->wants_nll || p->options->want_logits)) {
        Var *h = nn_rmsnorm(c, last, p->model->weights.final_norm, config->norm_eps);
        if (p->options->want_logits) run_logits(p, c, &d, h);
        if (p->wants_nll) run_loss(p, c, &d, h);
    }
    if (!d.failed && c->tape) run_backward(c, &d, x);
    if (c->device->computes) c->device->copy_out(c->queue, p->findings, d.nonfinite);
    p->failed = d.failed;
}

/* ---- its two runs ---- */
static bool measure(Pass *p, bool recompute, PassResult *result) {
    Workspace w;
    bool ok = workspace_open(&w, p->model, &cost_device, p->loss_weights != NULL, p->error);
    if (ok) {
        run_program(p, &w.context, recompute);
        result->recomputed = recompute && p->loss_weights;
        result->activation_bytes = w.context.arena.peak;
        result->saved_bytes = p->saved_bytes;
        result->weights_bytes = p->model->weights.n_bytes;
        result->cost = w.context.queue->cost;
    }
    workspace_close(&w);
    return ok;
}

static bool compute(Pass *p, const PassResult *plan) {
    Workspace w;
    bool ok = workspace_open(&w, p->model, p->model->device, p->loss_weights != NULL, p->error) &&
              workspace_reserve(&w, plan->activation_bytes, p->error);
    if (ok) {
        run_program(p, &w.context, plan->recomputed);
        ok = p->walked = workspace_sync(&w, p->error) && !p->failed;
        ok = ok && decoder_checks_read(&p->model->config, p->findings, place_in_batch, p->batch, p->error);
        check(!ok || w.context.arena.peak == plan->activation_bytes, "%zu bytes planned, %zu used",
              plan->activation_bytes, w.context.arena.peak);
    }
    workspace_close(&w);
    return ok;
}

/* ---- memory ---- */
/* MemAvailable of /proc/meminfo, three quarters of it; 1 GiB where the system does not say. */
static size_t memory_available(void) {
    Error ignored = {0};
    IoFile file;
    size_t n, available = 0;
    if (io_open(&file, "/proc/meminfo", &ignored)) {
        char *text = io_read_stream(file.fd, "/proc/meminfo", 1 << 16, &n, &ignored);
        const char *line = text ? strstr(text, "MemAvailable:") : NULL;
        unsigned long long kib = 0;
        if (line && sscanf(line, "MemAvailable: %llu", &kib) == 1) available = (size_t)kib * 768;
        mem_free(text);
        io_close(&file);
    }
    return available ? available : (size_t)1 << 30;
}

/* A device with memory of its own keeps a sixteenth for what else is allocated there. */
static size_t memory_free(const Device *device) {
    size_t n_free, n_total;
    if (!device->copies) return memory_available();
    return device->copies->memory(&n_free, &n_total) ? n_free / 16 * 15 : 0;
}

static bool choose(Pass *p, PassResult *result) {
    Recompute mode = p->loss_weights ? p->options->recompute : RECOMPUTE_ALWAYS;
    if (mode != RECOMPUTE_AUTO) return measure(p, mode == RECOMPUTE_ALWAYS, result);
    size_t limit = p->options->memory_limit_bytes;
    if (!limit) limit = memory_free(p->model->device) + (p->model->spare ? p->model->spare->n_bytes : 0);
    if (p->model->exchange) {
        const size_t rows_of_others = exchange_expected_growth(p->model, p->rows.n_rows, true);
        limit -= rows_of_others < limit ? rows_of_others : limit;
    }
    if (!measure(p, false, result)) return false;
    return result->activation_bytes <= limit || measure(p, true, result);
}

/* ---- the front door ---- */
static bool pass_open(Pass *p) {
    const ModelConfig *config = &p->model->config;
    int64_t n = p->batch->offsets[p->batch->n_prompts];
    DType real = p->model->compute == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
    if (!rows_open(&p->rows, n, p->batch->n_prompts, p->error)) return false;
    fill_rows(&p->rows, p->batch, p->options->token_edits);
    const PassOptions *o = p->options;
    size_t n_logits =
        o->want_logits && p->model->device->computes ? (size_t)n * (size_t)config->vocab_size : 0;
    p->runs = mem_zeroed((size_t)config->n_layers, sizeof *p->runs);
    p->findings = mem_alloc((size_t)decoder_n_checks(config) * sizeof *p->findings);
    if (o->loss_weights) p->loss_weights = decoder_reals(real, o->loss_weights, n, &p->owned[0]);
    if (o->weigh) p->weighed = p->owned[4] = mem_zeroed((size_t)n, sizeof *p->weighed);
    if (!router_loss_open(&p->router_loss, o->router_loss, p->model, n, p->error)) return false;
    int64_t n_edits = o->edits ? o->edits->n_layers * o->edits->n_sets * o->edits->n_experts : 0,
            n_routes = config->n_moe_layers * n * config->n_experts_per_token;
    if (o->edits) p->edit_values = decoder_reals(real, o->edits->values, n_edits, &p->owned[1]);
    if (o->replay) p->replay_weights = decoder_reals(real, o->replay->weights, n_routes, &p->owned[3]);
    p->nll = p->wants_nll ? p->owned[2] = mem_zeroed((size_t)n, dtype_bytes(real)) : NULL;
    p->logits = n_logits ? mem_alloc(n_logits * dtype_bytes(real)) : NULL;
    bool ok = p->runs && p->findings && (!o->loss_weights || p->loss_weights) &&
              (!o->edits || p->edit_values) && (!o->replay || p->replay_weights) &&
              (!o->weigh || p->weighed) && (!p->wants_nll || p->nll) && (!n_logits || p->logits);
    return ok || error_out_of_memory(p->error, "the results of a pass", n_logits * dtype_bytes(real));
}

static void pass_close(Pass *p) {
    rows_close(&p->rows);
    mem_free(p->runs);
    mem_free(p->findings);
    for (int i = 0; i < 5; i++) mem_free(p->owned[i]);
    router_loss_close(&p->router_loss);
    mem_free(p->logits);
}

/* The reals of the table as f32, in place; the block then belongs to the result. */
static float *as_floats(const Pass *p, void *reals, int64_t n) {
    for (int64_t i = 0; p->model->compute == DTYPE_F64 && i < n; i++) {
        double wide;
        memcpy(&wide, (double *)reals + i, sizeof wide);
        memcpy((float *)reals + i, &(float){(float)wide}, sizeof(float));
    }
    return reals;
}

static void hand_over(Pass *p, PassResult *result) {
    int64_t n = p->rows.n_rows;
    if (p->nll) result->nll = as_floats(p, p->nll, n);
    if (p->logits) result->logits = as_floats(p, p->logits, n * p->model->config.vocab_size);
    const int64_t n_terms = p->model->config.n_moe_layers * n;
    if (p->router_loss.kl) result->router_kl = as_floats(p, p->router_loss.kl, n_terms);
    if (p->router_loss.distance) result->router_distance = as_floats(p, p->router_loss.distance, n_terms);
    p->router_loss.kl = p->router_loss.distance = NULL;
    p->owned[2] = NULL;
    p->logits = NULL;
}

/* ---- options ---- */
static bool check_choice(const ModelConfig *config, const int32_t *ids, const float *weights, int64_t layer,
                         int64_t token, Error *error) {
    for (int64_t i = 0; i < config->n_experts_per_token; i++) {
        bool good = ids[i] >= 0 && ids[i] < config->n_experts && isfinite(weights[i]);
        for (int64_t j = 0; j < i; j++) good = good && ids[j] != ids[i];
        if (good) continue;
        return error_set(
            error, ERROR_BAD_INPUT,
            "replay: expert layer %lld, token %lld: expected %lld distinct experts from 0 to %lld "
            "and finite weights: got expert %d, weight %g",
            (long long)layer, (long long)token, (long long)config->n_experts_per_token,
            (long long)config->n_experts - 1, (int)ids[i], (double)weights[i]);
    }
    return true;
}

static bool check_replay(const ModelConfig *config, const RouteReplay *replay, int64_t n_tokens,
                         Error *error) {
    int64_t k = config->n_experts_per_token;
    for (int64_t i = 0; i < config->n_moe_layers * n_tokens; i++)
        if (!check_choice(config, replay->ids + i * k, replay->weights + i * k, i / n_tokens, i % n_tokens,
                          error))
            return false;
    return true;
}

static bool check_options(const Model *model, const PromptBatch *batch, const PassOptions *o, Error *error) {
    int64_t n = batch->offsets[batch->n_prompts];
    if (o->edits && !edit_table_check(o->edits, &model->config, error)) return false;
    for (int64_t t = 0; o->token_edits && t < n; t++)
        check(o->edits && o->token_edits[t] < o->edits->n_sets, "set %d of edits", (int)o->token_edits[t]);
    check(!o->training || (model->adapter && o->training->weights == model->adapter && o->loss_weights),
          "training of another adapter, from example %lld", (long long)o->first_example);
    check(!o->weigh || o->loss_weights, "weighed losses without a gradient of %lld tokens", (long long)n);
    if (!o->replay) return true;
    if (o->loss_weights)
        return error_set(error, ERROR_BAD_INPUT,
                         "replay: expected a pass without gradients: recorded routes have none");
    return check_replay(&model->config, o->replay, n, error);
}

/* *walked: the whole program has run, whatever its numbers are. */
static bool run_pass(const Model *model, const PromptBatch *batch, const PassOptions *options,
                     const Hooks *hooks, PassResult *result, bool *walked, Error *error) {
    const Hooks none = {0};
    if (!decoder_check_batch(model, batch, 0, error) || !check_options(model, batch, options, error))
        return false;
    Pass p = {.model = model, .batch = batch, .options = options, .hooks = hooks ? hooks : &none};
    p.error = error;
    p.wants_nll = options->want_nll || options->loss_weights;
    bool ok = pass_open(&p) && choose(&p, result);
    if (ok && model->device->computes) {
        ok = compute(&p, result);
        if (ok) hand_over(&p, result);
    }
    *walked = p.walked;
    pass_close(&p);
    if (!ok) pass_result_free(result);
    return ok;
}

bool model_pass(const Model *model, const PromptBatch *batch, const PassOptions *options, const Hooks *hooks,
                PassResult *result, Error *error) {
    *result = (PassResult){0};
    bool walked = false;
    const bool ok = run_pass(model, batch, options, hooks, result, &walked, error);
    const bool told = walked && options->training; /* the caller serves what peers have left */
    if (!ok && !told && model->device->computes && spread_any(&model->spread))
        comm_fail(model->spread.comm, error);
    return ok;
}

void pass_result_free(PassResult *result) {
    mem_free(result->nll);
    mem_free(result->logits);
    mem_free(result->router_kl);
    mem_free(result->router_distance);
    *result = (PassResult){0};
}

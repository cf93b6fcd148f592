/* A decoder layer as two blocks, attention and experts, each residual + f(norm(residual)). Both are replayed
 * from their residual alone: attention's result and log-sum-exp are kept, the output projections are not
 * computed again.
 *
 * Families differ in data: q/k norm, biases, window, router rule, layers without experts. A family with
 * other attention or more experts gets its own block here; what surrounds it stays. */
#include "../kernels/check.h"
#include "decoder.h"
#include "exchange.h"
#include "watchdog.h"

/* ---- attention ---- */
static Rope rope_of(const Decoder *d) {
    const ModelConfig *config = &d->model->config;
    return (Rope){d->positions, d->frequencies, config->rope_scale, config->rope_kind, config->head_size};
}

/* Query or key: projected, normalised where the family does, turned. */
static Var *project(Context *c, const Decoder *d, Var *x, Tensor w, Tensor bias, Tensor norm) {
    Var *y = nn_linear(c, x, w, bias);
    if (tensor_present(norm)) y = nn_rmsnorm(c, y, norm, d->model->config.norm_eps);
    return nn_rope(c, y, rope_of(d));
}

/* The cache's tensor of the layer, after the rows of x have been put in. */
static Var *through_cache(Context *c, const LayerRun *run, Tensor cache, Var *x) {
    const Decoder *d = run->decoder;
    Tensor rows = tensor_entry(cache, run->layer);
    c->device->ops->scatter_rows(c->queue, rows, x->x, d->cache_rows);
    return tape_leaf(c, rows, false);
}

static void attention_block(Context *c, void *arguments) {
    LayerRun *run = arguments;
    const Decoder *d = run->decoder;
    const ModelConfig *config = &d->model->config;
    const LayerWeights *w = run->weights;
    Var *h = nn_rmsnorm(c, run->x, w->attention_norm, config->norm_eps);
    Var *query = project(c, d, h, w->query, w->query_bias, w->query_norm);
    Var *key = project(c, d, h, w->key, w->key_bias, w->key_norm);
    Var *value = nn_linear(c, h, w->value, w->value_bias);
    if (d->cache) {
        key = through_cache(c, run, d->cache->keys, key);
        value = through_cache(c, run, d->cache->values, value);
    }
    AttentionRule rule = {.spans = d->spans,
                          .heads = config->n_heads,
                          .kv_heads = config->n_kv_heads,
                          .scale = config->attention_scale,
                          .window = config->layer_window[run->layer]};
    Var *attended = nn_attention(c, run->attended, run->lse, query, key, value, rule);
    nn_linear_add(c, run->middle, attended, w->output, w->output_bias, run->x);
}

/* ---- experts ---- */
static bool computes(const Context *c) { return c->device->computes; }

static void route_grad_hook(Context *c, void *arguments) {
    LayerRun *run = arguments;
    Decoder *d = run->decoder;
    if (computes(c)) watchdog_tick();
    decoder_check(d, c, CHECK_ROUTER_GRAD, run->layer, run->logits->g);
    if (!computes(c) || !d->hooks->route_grad) return;
    RouteGradView view = {.layer = run->layer,
                          .moe_layer = run->moe_layer,
                          .input = run->input->x,
                          .logits_grad = run->logits->g,
                          .weights_grad = run->chosen->g,
                          .ids = run->ids,
                          .weights = run->chosen->x,
                          .offsets = d->spans.offsets};
    d->failed = !d->hooks->route_grad(d->hooks->context, &d->site, &view);
    c->stopped = d->failed;
}

static void route_hook(Context *c, LayerRun *run, Tensor probs, Tensor outputs, MoePlan plan) {
    Decoder *d = run->decoder;
    if (!computes(c) || !d->hooks->route || d->failed) return;
    RouteView view = {.layer = run->layer,
                      .moe_layer = run->moe_layer,
                      .input = run->input->x,
                      .logits = run->logits->x,
                      .probs = probs,
                      .ids = run->ids,
                      .weights = run->chosen->x,
                      .outputs = outputs,
                      .plan = plan};
    d->failed = !d->hooks->route(d->hooks->context, &d->site, &view);
}

static RouteEdits edits_of(const LayerRun *run) {
    const Decoder *d = run->decoder;
    if (!d->edits || !d->edits->edited[run->moe_layer]) return (RouteEdits){0};
    return (RouteEdits){tensor_entry(d->edit_tensors.modes, run->moe_layer),
                        tensor_entry(d->edit_tensors.values, run->moe_layer), d->edit_tensors.rows};
}

/* The router's choice, or a recorded one in its place. */
static Routed route(Context *c, const LayerRun *run) {
    const Decoder *d = run->decoder;
    const ModelConfig *config = &d->model->config;
    Routed routed = nn_route(c, run->logits, edits_of(run), config->n_experts_per_token, config->router);
    if (!tensor_present(d->replay.ids)) return routed;
    routed.ids = tensor_entry(d->replay.ids, run->moe_layer);
    routed.weights = tape_leaf(c, tensor_entry(d->replay.weights, run->moe_layer), false);
    return routed;
}

/* Streamed weights of the layer's experts, on their way by then; the walk asks for the layer below next. */
static void need_experts(Context *c, const LayerRun *run, bool back) {
    WeightStream *stream = run->decoder->model->weights.stream;
    if (stream && computes(c)) weight_stream_need(stream, c->queue, run->moe_layer, back);
}

static void walk_needs_experts(Context *c, void *arguments) { need_experts(c, arguments, true); }

/* The experts here, or on their ranks; what they say is looked at before their weights. */
static void run_experts(Context *c, LayerRun *run, const Routed *routed, Experts experts) {
    const Decoder *d = run->decoder;
    Tensor outputs = {0};
    Var *z = NULL;
    if (d->model->exchange) {
        run->remote = exchange_experts(d->model, run->layer);
        experts.remote = &run->remote;
    } else {
        z = nn_moe_gate_up(c, run->out, experts);
    }
    Scope scope = scope_open(c);
    if (experts.remote)
        nn_moe_remote(c, run->out, d->hooks->route ? &outputs : NULL, *routed, run->middle, experts);
    else
        nn_moe_output(c, run->out, &outputs, z, routed->weights, run->middle, experts);
    if (!c->replay) route_hook(c, run, routed->probs, outputs, experts.plan);
    scope_close(c, scope);
}

static void experts_block(Context *c, void *arguments) {
    LayerRun *run = arguments;
    Decoder *d = run->decoder;
    const ModelConfig *config = &d->model->config;
    const LayerWeights *w = run->weights;
    const Tensor absent = {0};
    run->input = nn_rmsnorm(c, run->middle, w->experts_norm, config->norm_eps);
    run->logits = nn_linear_real(c, run->input, w->router, absent);
    if (lora_router(d->model->adapter, &d->lora, run->layer, &run->router_rows))
        nn_router_rows(c, run->logits, run->input, &run->router_rows);
    if (d->wants_grad) run->logits->wanted = true;
    if (!c->replay) decoder_check(d, c, CHECK_ROUTER, run->layer, run->logits->x);
    tape_tap(c, run->logits, route_grad_hook, run);
    router_loss_add(c, run);
    Routed routed = route(c, run);
    run->chosen = routed.weights;
    run->ids = routed.ids;
    MoePlan plan = nn_moe_plan(c, routed.ids, config->n_experts);
    const bool updated = lora_layer(d->model->adapter, &d->lora, run->layer, &run->updates);
    const Experts experts = {.x = run->input,
                             .gate_up = w->gate_up,
                             .down = w->down,
                             .plan = plan,
                             .activation = config->activation,
                             .updates = updated ? &run->updates : NULL};
    need_experts(c, run, c->replay);
    run_experts(c, run, &routed, experts);
}

/* The MLP of a layer without experts. */
static void mlp_block(Context *c, void *arguments) {
    LayerRun *run = arguments;
    const ModelConfig *config = &run->decoder->model->config;
    const Tensor absent = {0};
    Var *h = nn_rmsnorm(c, run->middle, run->weights->experts_norm, config->norm_eps);
    Var *z = nn_linear(c, h, run->weights->gate_up, absent);
    Var *hidden = nn_swiglu(c, z, config->activation);
    nn_linear_add(c, run->out, hidden, run->weights->down, absent, run->middle);
}

/* ---- all layers ---- */
/* A place for the residual stream after a block: its own when a walk will come by, else where it was. */
static Var *next_place(Context *c, const Var *x) {
    Tensor place = x->x;
    if (c->tape) place = tape_matrix(c, c->act, tensor_rows(x->x), tensor_columns(x->x));
    return tape_leaf(c, place, false);
}

static void run_layer(LayerRun *run, Context *c) {
    const Decoder *d = run->decoder;
    const ModelConfig *config = &d->model->config;
    int64_t rows = tensor_rows(run->x->x);
    if (computes(c)) watchdog_tick();
    run->middle = next_place(c, run->x);
    run->out = next_place(c, run->middle);
    if (c->tape) {
        int64_t columns = config->n_heads * config->value_head_size;
        run->attended = tape_leaf(c, tape_matrix(c, c->act, rows, columns), false);
        run->lse = tape_matrix(c, c->real, rows, config->n_heads);
    }
    tape_block(c, attention_block, run, run->middle, d->recompute);
    tape_block(c, run->moe_layer < 0 ? mlp_block : experts_block, run, run->out, d->recompute);
    /* a kept block is walked without running again */
    if (weight_stream_has(d->model->weights.stream, run->moe_layer) && !d->recompute)
        tape_tap(c, run->out, walk_needs_experts, run);
}

Var *decoder_run(Decoder *d, Context *c, Var *x) {
    const ModelConfig *config = &d->model->config;
    int64_t moe_layer = 0;
    if (computes(c)) weight_stream_begin(d->model->weights.stream, c->queue);
    for (int64_t layer = 0; layer < config->n_layers && !d->failed; layer++) {
        LayerRun *run = &d->runs[layer];
        bool is_dense = config->layer_is_dense[layer];
        *run = (LayerRun){.decoder = d,
                          .weights = &d->model->weights.layers[layer],
                          .layer = layer,
                          .moe_layer = is_dense ? -1 : moe_layer++,
                          .x = x};
        run_layer(run, c);
        x = run->out;
        if (computes(c) && d->hooks->residual && !d->failed)
            d->failed = !d->hooks->residual(d->hooks->context, &d->site, layer, x->x);
    }
    decoder_check(d, c, CHECK_RESIDUAL, config->n_layers - 1, x->x);
    return x;
}

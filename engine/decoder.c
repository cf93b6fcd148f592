/* What every run of the decoder shares: the search for numbers that are none, and the memory that a run
 * works in. */
#include "decoder.h"
#include "../kernels/check.h"
#include "alloc.h"
#include "queue.h"
#include <stdio.h>

/* ---- numbers that are none ---- */
/* The findings: router logits and their gradients by layer, then one each of residual, nll, logits. */
int64_t decoder_n_checks(const ModelConfig *config) { return 2 * config->n_layers + 3; }

void decoder_checks_clear(int64_t *findings, int64_t n) {
    for (int64_t i = 0; i < n; i++) findings[i] = -1;
}

static int64_t place_of(const ModelConfig *config, CheckKind kind, int64_t layer) {
    switch (kind) {
    case CHECK_ROUTER: return layer;
    case CHECK_RESIDUAL: return config->n_layers;
    case CHECK_NLL: return config->n_layers + 1;
    case CHECK_LOGITS: return config->n_layers + 2;
    case CHECK_ROUTER_GRAD: break;
    }
    return config->n_layers + 3 + layer;
}

void decoder_check(const Decoder *d, Context *c, CheckKind kind, int64_t layer, Tensor x) {
    int64_t place = place_of(&d->model->config, kind, layer);
    c->device->ops->find_nonfinite(c->queue, tensor_slice(d->nonfinite, place, 1), x);
}

/* What a finding is about: how a row of the tensor is wide, and what its columns are. */
typedef struct {
    CheckKind kind;
    int64_t layer, columns;
    const char *what;
} Finding;

static Finding finding_at(const ModelConfig *config, int64_t place) {
    int64_t layers = config->n_layers;
    if (place < layers) return (Finding){CHECK_ROUTER, place, config->n_experts, "router logit of expert"};
    if (place == layers) return (Finding){CHECK_RESIDUAL, layers - 1, config->hidden_size, "hidden value"};
    if (place == layers + 1) return (Finding){CHECK_NLL, layers, 1, "negative log-likelihood"};
    if (place == layers + 2) return (Finding){CHECK_LOGITS, layers, config->vocab_size, "logit of id"};
    return (Finding){CHECK_ROUTER_GRAD, place - layers - 3, config->n_experts,
                     "gradient of the router logit of expert"};
}

/* The finding to report, -1: none. Of gradients the layer that the walk came to first. */
static int64_t first_finding(const ModelConfig *config, const int64_t *findings) {
    int64_t n_forward = config->n_layers + 3, n = decoder_n_checks(config);
    for (int64_t i = 0; i < n_forward; i++)
        if (findings[i] >= 0) return i;
    for (int64_t i = n - 1; i >= n_forward; i--)
        if (findings[i] >= 0) return i;
    return -1;
}

bool decoder_checks_read(const ModelConfig *config, const int64_t *findings, row_place_fn *place,
                         const void *context, Error *error) {
    int64_t at = first_finding(config, findings), prompt, token;
    if (at < 0) return true;
    Finding f = finding_at(config, at);
    char where[32] = "head", which[32] = "";
    place(context, f.kind, findings[at] / f.columns, &prompt, &token);
    if (f.layer < config->n_layers) snprintf(where, sizeof where, "layer %lld", (long long)f.layer);
    if (f.columns > 1) snprintf(which, sizeof which, " %lld", (long long)(findings[at] % f.columns));
    return error_set(error, ERROR_FAILED,
                     "%s, token %lld of prompt %lld: %s%s: expected a finite number: got nan or infinity",
                     where, (long long)token, (long long)prompt, f.what, which);
}

/* ---- rows ---- */
static bool check_prompt(const ModelConfig *config, const PromptBatch *batch, int64_t p, int64_t n_more,
                         Error *error) {
    int64_t begin = batch->offsets[p], n = batch->offsets[p + 1] - begin;
    if (n < 1)
        return error_set(error, ERROR_BAD_INPUT, "prompt %lld: expected at least one token: got none",
                         (long long)p);
    if (n > config->max_positions || n_more > config->max_positions - n)
        return error_set(error, ERROR_BAD_INPUT,
                         "prompt %lld: over-long: expected at most %lld tokens, the model's positions: got "
                         "%lld, and %lld to generate",
                         (long long)p, (long long)config->max_positions, (long long)n, (long long)n_more);
    for (int64_t i = 0; batch->tokens && i < n; i++) {
        int32_t id = batch->tokens[begin + i];
        if (id < 0 || id >= config->vocab_size)
            return error_set(error, ERROR_BAD_INPUT,
                             "token %lld of prompt %lld: expected an id from 0 to %lld: got %lld",
                             (long long)i, (long long)p, (long long)config->vocab_size - 1, (long long)id);
    }
    return true;
}

bool decoder_check_batch(const Model *model, const PromptBatch *batch, int64_t n_more, Error *error) {
    if (batch->n_prompts < 1)
        return error_set(error, ERROR_BAD_INPUT, "a batch: expected at least one prompt: got none");
    for (int64_t p = 0; p < batch->n_prompts; p++)
        if (!check_prompt(&model->config, batch, p, n_more, error)) return false;
    int64_t n = batch->offsets[batch->n_prompts], k = model->config.n_experts_per_token;
    int64_t most = INT32_MAX / (k > 1 ? k : 1);
    if (n > most)
        return error_set(error, ERROR_BAD_INPUT, "a batch: expected at most %lld tokens: got %lld",
                         (long long)most, (long long)n);
    check(batch->tokens || !model->device->computes, "a batch of %lld tokens without ids", (long long)n);
    return true;
}

bool rows_open(Rows *rows, int64_t n_rows, int64_t n_prompts, Error *error) {
    size_t n = 5 * (size_t)n_rows + 3 * (size_t)n_prompts + 1;
    *rows = (Rows){.n_rows = n_rows, .n_prompts = n_prompts, .block = mem_alloc(n * sizeof(int32_t))};
    if (!rows->block) return error_out_of_memory(error, "the rows of a batch", n * sizeof(int32_t));
    rows->ids = rows->block;
    rows->positions = rows->ids + n_rows;
    rows->targets = rows->positions + n_rows;
    rows->cache_rows = rows->targets + n_rows;
    rows->edits = rows->cache_rows + n_rows;
    rows->offsets = rows->edits + n_rows;
    rows->kv_begin = rows->offsets + n_prompts + 1;
    rows->kv_length = rows->kv_begin + n_prompts;
    return true;
}

void rows_close(Rows *rows) {
    mem_free(rows->block);
    *rows = (Rows){0};
}

RouteEdits decoder_edit_shapes(const EditTable *t, DType real) {
    return (RouteEdits){.modes = tensor_cube(NULL, DTYPE_I32, t->n_layers, t->n_sets, t->n_experts),
                        .values = tensor_cube(NULL, real, t->n_layers, t->n_sets, t->n_experts)};
}

Tensor decoder_upload(Decoder *d, Context *c, const Rows *rows) {
    const ModelConfig *config = &d->model->config;
    d->positions = tape_upload(c, DTYPE_I32, rows->n_rows, rows->positions);
    d->frequencies = tape_upload(c, DTYPE_F32, config->n_rope, config->rope_frequencies);
    d->spans = (Spans){tape_upload(c, DTYPE_I32, rows->n_prompts + 1, rows->offsets),
                       tape_upload(c, DTYPE_I32, rows->n_prompts, rows->kv_begin),
                       tape_upload(c, DTYPE_I32, rows->n_prompts, rows->kv_length)};
    if (d->edits) d->edit_tensors.rows = tape_upload(c, DTYPE_I32, rows->n_rows, rows->edits);
    if (d->cache) d->cache_rows = tape_upload(c, DTYPE_I32, rows->n_rows, rows->cache_rows);
    return tape_upload(c, DTYPE_I32, rows->n_rows, rows->ids);
}

/* ---- memory ---- */
/* More than any layer takes; a replayed layer needs as many again. */
enum { LAYER_STEPS = 32, LAYER_VARS = 40 };

bool workspace_open(Workspace *w, const Model *model, const Device *device, bool with_tape, Error *error) {
    int64_t layers = model->config.n_layers + 2;
    *w = (Workspace){.context = {.device = device, .act = model->compute, .real = DTYPE_F32}};
    if (device->computes) w->spare = model->spare;
    Context *c = &w->context;
    if (model->compute == DTYPE_F64) c->real = DTYPE_F64;
    if (!device->computes) c->arena.capacity = SIZE_MAX / 2;
    c->var_capacity = layers * LAYER_VARS;
    w->tape.capacity = with_tape ? layers * LAYER_STEPS : 0;
    c->vars = mem_zeroed((size_t)c->var_capacity, sizeof *c->vars);
    w->tape.steps = mem_zeroed((size_t)w->tape.capacity, sizeof *w->tape.steps);
    c->queue = device->queue_new();
    c->tape = with_tape ? &w->tape : NULL;
    if (c->vars && w->tape.steps && c->queue) return true;
    return error_out_of_memory(error, "the tape", (size_t)w->tape.capacity * sizeof *w->tape.steps);
}

bool workspace_drop_spare(const Model *model) {
    if (!model->spare || !model->spare->block) return false;
    model->device->free(model->spare->block);
    *model->spare = (SpareBlock){0};
    return true;
}

bool workspace_reserve(Workspace *w, size_t n_bytes, Error *error) {
    const Device *device = w->context.device;
    if (w->spare) {
        w->memory = *w->spare;
        *w->spare = (SpareBlock){0};
    }
    if (w->memory.n_bytes < n_bytes) {
        if (w->memory.block) device->free(w->memory.block);
        w->memory = (SpareBlock){device->alloc(n_bytes), n_bytes};
    }
    if (!w->memory.block) {
        w->memory = (SpareBlock){0};
        return error_out_of_memory(error, "activations", n_bytes);
    }
    w->context.arena = (Arena){.base = w->memory.block, .capacity = n_bytes};
    return true;
}

bool workspace_sync(Workspace *w, Error *error) {
    return queue_wait(w->context.device, w->context.queue, error);
}

void workspace_close(Workspace *w) {
    if (w->memory.block && w->spare) /* else the spare block, if any, was never taken */
        *w->spare = w->memory;
    else if (w->memory.block)
        w->context.device->free(w->memory.block);
    if (w->context.queue) w->context.device->queue_free(w->context.queue);
    mem_free(w->context.vars);
    mem_free(w->tape.steps);
    *w = (Workspace){0};
}

const void *decoder_reals(DType real, const float *from, int64_t n, void **owned) {
    *owned = NULL;
    if (real == DTYPE_F32) return from;
    check(real == DTYPE_F64, "%s", dtype_name(real));
    double *to = mem_alloc((size_t)n * sizeof *to);
    for (int64_t i = 0; to && i < n; i++) to[i] = (double)from[i];
    return *owned = to;
}

/* ---- edits ---- */
bool decoder_edits_reserve(const EditTable *table, const Model *model, RouteEdits *to, Error *error) {
    if (!table) return true;
    *to = decoder_edit_shapes(table, model->compute == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32);
    to->modes.data = model->device->alloc(tensor_bytes(to->modes));
    to->values.data = model->device->alloc(tensor_bytes(to->values));
    return (to->modes.data && to->values.data) ||
           error_out_of_memory(error, "edits of the router", 2 * tensor_bytes(to->modes));
}

bool decoder_edits_copy(const EditTable *table, Workspace *w, RouteEdits to, Error *error) {
    const Context *c = &w->context;
    if (!table) return true;
    void *owned;
    const void *values = decoder_reals(c->real, table->values, tensor_count(to.values), &owned);
    bool ok = values || error_out_of_memory(error, "edits of the router", tensor_bytes(to.values));
    if (ok) {
        c->device->copy_in(c->queue, to.modes, table->modes);
        c->device->copy_in(c->queue, to.values, values);
        ok = workspace_sync(w, error);
    }
    mem_free(owned);
    return ok;
}

void decoder_edits_free(const Device *device, RouteEdits *edits) {
    if (edits->modes.data) device->free(edits->modes.data);
    if (edits->values.data) device->free(edits->values.data);
    *edits = (RouteEdits){0};
}

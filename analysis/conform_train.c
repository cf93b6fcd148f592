/* Training as lora.json says: what is read from the case, the steps, and the logits afterwards. */
#include "../engine/alloc.h"
#include "../engine/json.h"
#include "../engine/lora_ranks.h"
#include "conform_lora.h"
#include <math.h>
#include <string.h>

enum { MAX_PLAN_BYTES = 1 << 24, MAX_STEPS = 100000 };

void conform_cell_name(const AdapterCell *cell, const char *prefix, char side, char to[CONFORM_CELL_NAME]) {
    snprintf(to, CONFORM_CELL_NAME, "%s.layers.%lld.experts.%lld.%s.lora_%c", prefix, (long long)cell->layer,
             (long long)cell->expert, projection_names[cell->projection], side);
}

/* ---- the plan ---- */
static bool read_projection(Json at, Projection *projection, Error *error) {
    const char *name;
    if (!json_string(at, &name, error)) return false;
    return projection_find(name, projection) ||
           json_error(at, error, "expected gate, up or down: got \"%.60s\"", name);
}

/* A tensor of the case into n elements. */
static bool read_side(const ConformCase *expected, const AdapterCell *cell, char side, float *to,
                      int64_t rows, int64_t columns, Error *error) {
    char name[CONFORM_CELL_NAME];
    Tensor t;
    conform_cell_name(cell, "init", side, name);
    if (!conform_read(expected, name, DTYPE_F32, &t, error)) return false;
    bool ok = t.n_dims == 2 && t.shape[0] == rows && t.shape[1] == columns;
    if (ok)
        memcpy(to, t.data, tensor_bytes(t));
    else
        error_set(error, ERROR_BAD_INPUT, "%s: %s: expected [%lld,%lld]", expected->path, name,
                  (long long)rows, (long long)columns);
    mem_free(t.data);
    return ok;
}

static bool read_cell(Json at, const ConformCase *expected, const ModelConfig *config, ConformPlan *plan,
                      Error *error) {
    if (json_type(at) != JSON_ARRAY || json_count(at) != 3)
        return json_error(at, error, "expected [layer, expert, projection]");
    AdapterCell like = {.rank = plan->rank, .scale = (float)(plan->alpha / (double)plan->rank)}, *cell;
    Json layer = {0}, expert, projection;
    json_next(&at, &layer);
    expert = layer;
    json_next(&at, &expert);
    projection = expert;
    json_next(&at, &projection);
    if (!json_integer(layer, 0, INT32_MAX, &like.layer, error) ||
        !json_integer(expert, 0, INT32_MAX, &like.expert, error) ||
        !read_projection(projection, &like.projection, error))
        return false;
    Error own = {0};
    if (!adapter_add(&plan->init, config, like, &cell, &own))
        return own.code == ERROR_BAD_INPUT ? json_error(at, error, "%s", own.text)
                                           : error_set(error, own.code, "%s", own.text);
    return read_side(expected, cell, 'A', cell->a, cell->rank, projection_in(config, cell->projection),
                     error) &&
           read_side(expected, cell, 'B', cell->b, projection_out(config, cell->projection), cell->rank,
                     error);
}

static bool read_number(const Json *object, const char *key, double least, double *to, Error *error) {
    Json at = json_member(object, key);
    if (!json_number(at, to, error)) return false;
    return *to >= least || json_error(at, error, "expected %g or more: got %g", least, *to);
}

static bool read_plan(Json root, const ConformCase *expected, const ModelConfig *config, ConformPlan *plan,
                      Error *error) {
    plan->options = adamw_usual;
    if (!json_integer(json_member(&root, "rank"), 1, LORA_MOST_RANK, &plan->rank, error) ||
        !json_integer(json_member(&root, "steps"), 1, MAX_STEPS, &plan->n_steps, error) ||
        !json_integer(json_member(&root, "prompts_per_step"), 1, 1 << 20, &plan->n_prompts, error) ||
        !read_number(&root, "alpha", 0, &plan->alpha, error) ||
        !read_number(&root, "lr", 0, &plan->rate, error) ||
        !read_number(&root, "weight_decay", 0, &plan->options.decay, error) ||
        !read_number(&root, "clip_norm", 0, &plan->options.clip_norm, error))
        return false;
    Json cells = json_member(&root, "cells"), cell = {0};
    if (!cells.node || json_type(cells) != JSON_ARRAY || json_count(cells) < 1)
        return json_error(cells, error, "expected an array of [layer, expert, projection]");
    while (json_next(&cells, &cell))
        if (!read_cell(cell, expected, config, plan, error)) return false;
    return true;
}

bool conform_plan_read(const char *folder, const ConformCase *expected, const ModelConfig *config,
                       ConformPlan *plan, Error *error) {
    *plan = (ConformPlan){0};
    char *path = io_join(folder, "lora.json");
    if (!path) return error_out_of_memory(error, "a path", strlen(folder));
    JsonDocument *document = json_read(path, MAX_PLAN_BYTES, error);
    bool ok = document && read_plan(json_root(document), expected, config, plan, error);
    json_free(document);
    mem_free(path);
    return ok;
}

void conform_plan_free(ConformPlan *plan) {
    adapter_free(&plan->init);
    *plan = (ConformPlan){0};
}

/* ---- one step ---- */
typedef struct {
    Model *model;
    const ConformCase *c;
    const ConformPlan *plan;
    LoraWeights weights;
    LoraTraining training;
    LoraLeaves leaves;
    LoraDeal deal; /* of the step's prompts over ranks */
    int64_t n_parts;
    Recompute recompute;
    int32_t *tokens; /* of a step's prompts, packed */
    int64_t *offsets, *lengths;
    float *loss_weights;
    int64_t *losses; /* bits of the tokens' f32 losses, 0 where another rank has them: their sum is exact */
} Trainer;

/* The step's prompts, and 1 / number of target tokens where a token predicts one. Returns that number. */
static int64_t pack_step(Trainer *t, int64_t step) {
    const ConformCase *c = t->c;
    int64_t n_targets = 0, n = 0;
    for (int64_t i = 0; i < t->plan->n_prompts; i++) {
        int64_t p = (step * t->plan->n_prompts + i) % c->n_prompts,
                length = c->offsets[p + 1] - c->offsets[p];
        memcpy(t->tokens + n, c->tokens + c->offsets[p], (size_t)length * sizeof *t->tokens);
        for (int64_t k = 0; k < length; k++)
            t->loss_weights[n + k] = k >= c->target_starts[p] - 1 && k + 1 < length;
        n_targets += length - c->target_starts[p];
        t->lengths[i] = length;
        t->offsets[i] = n;
        t->offsets[i + 1] = n += length;
    }
    for (int64_t k = 0; k < n; k++) t->loss_weights[k] /= (float)n_targets;
    return n_targets;
}

static PassOptions pass_options(const Trainer *t, const float *loss_weights, int64_t first_example) {
    return (PassOptions){.loss_weights = loss_weights,
                         .training = &t->training,
                         .first_example = first_example,
                         .recompute = t->recompute};
}

/* Prompts [first, end) of the step, the first_example-th of their chunk and so on: their part of its
 * gradient, and their losses. */
static bool run_part(Trainer *t, int64_t first, int64_t end, int64_t first_example, Error *error) {
    int64_t from = t->offsets[first], n_tokens = t->offsets[end] - from;
    int64_t *offsets = mem_alloc((size_t)(end - first + 1) * sizeof *offsets);
    if (!offsets) return error_out_of_memory(error, "a step", (size_t)(end - first) * sizeof *offsets);
    for (int64_t i = first; i <= end; i++) offsets[i - first] = t->offsets[i] - from;
    PromptBatch batch = {end - first, offsets, t->tokens + from};
    const PassOptions options = pass_options(t, t->loss_weights + from, first_example);
    PassResult result = {0};
    bool ok = model_pass(t->model, &batch, &options, NULL, &result, error);
    for (int64_t k = 0; ok && k < n_tokens; k++)
        memcpy(&t->losses[from + k], &result.nll[k], sizeof result.nll[k]);
    pass_result_free(&result);
    mem_free(offsets);
    return ok;
}

static int64_t count_parts(const Trainer *t, Range examples) {
    return t->n_parts < examples.n ? t->n_parts : examples.n;
}

/* A rank's i-th chunk. */
static bool run_chunk(Trainer *t, Range e, int64_t i, Error *error) {
    const int64_t n = count_parts(t, e);
    bool ok = true;
    for (int64_t k = 0; ok && k < n; k++) {
        const int64_t first = k * e.n / n, end = (k + 1) * e.n / n;
        ok = run_part(t, e.first + first, e.first + end, first, error);
    }
    return ok && lora_leaves_keep(&t->leaves, &t->training, i, e.n, error);
}

/* This rank's prompts; on a spread model as many passes as any rank has. */
static bool run_chunks(Trainer *t, Error *error) {
    static const float no_weights[1];
    const Range own = lora_deal_chunks(&t->deal, t->leaves.comm->rank);
    const PassOptions served = pass_options(t, no_weights, 0);
    int64_t n = 0;
    bool ok = true;
    for (int64_t i = 0; i < own.n; i++) n += count_parts(t, lora_deal_examples(&t->deal, own.first + i));
    const int64_t n_all = model_agree_passes(t->model, n);
    for (int64_t i = 0; ok && i < own.n; i++)
        ok = run_chunk(t, lora_deal_examples(&t->deal, own.first + i), i, error);
    for (int64_t i = n; ok && i < n_all; i++) model_serve(t->model, &served);
    return ok;
}

static double sum_losses(const Trainer *t) {
    const int64_t n = t->offsets[t->plan->n_prompts];
    double sum = 0;
    if (t->leaves.comm->size > 1) comm_sum_i64(t->leaves.comm, t->losses, n);
    for (int64_t k = 0; k < n; k++) {
        float loss;
        memcpy(&loss, &t->losses[k], sizeof loss);
        if (t->loss_weights[k] > 0) sum += (double)loss;
    }
    return sum;
}

static bool run_step(Trainer *t, int64_t step, ConformTrained *to, Error *error) {
    int64_t n = t->plan->n_prompts, n_targets = pack_step(t, step);
    double norm;
    memset(t->losses, 0, (size_t)t->offsets[n] * sizeof *t->losses);
    if (!lora_deal_make(t->lengths, n, t->leaves.comm->size, &t->deal, error)) return false;
    bool ok = lora_leaves_open(&t->leaves, &t->training, &t->deal, error) && run_chunks(t, error) &&
              lora_leaves_gather(&t->leaves, &t->training, &t->deal, n, &norm, error) &&
              (step || lora_weights_read(&t->weights, t->training.optimizer.grad, &to->grad, error));
    lora_deal_free(&t->deal);
    if (!ok) return false;
    ((float *)to->losses.data)[step] = (float)(sum_losses(t) / (double)n_targets);
    ((float *)to->norms.data)[step] = (float)norm;
    return lora_training_step(&t->training, &t->plan->options, t->plan->rate, norm, error);
}

static bool copy_cells(const Adapter *from, const ModelConfig *config, Adapter *to, Error *error) {
    for (int64_t i = 0; i < from->n; i++) {
        const AdapterCell *cell = &from->cells[i];
        AdapterCell *copy;
        if (!adapter_add(to, config, *cell, &copy, error)) return false;
        memcpy(copy->a, cell->a,
               (size_t)(cell->rank * projection_in(config, cell->projection)) * sizeof(float));
        memcpy(copy->b, cell->b,
               (size_t)(cell->rank * projection_out(config, cell->projection)) * sizeof(float));
    }
    return true;
}

static bool open_trainer(Trainer *t, ConformTrained *to, Error *error) {
    const ConformPlan *plan = t->plan;
    int64_t longest = 0;
    for (int64_t p = 0; p < t->c->n_prompts; p++)
        longest = t->c->offsets[p + 1] - t->c->offsets[p] > longest ? t->c->offsets[p + 1] - t->c->offsets[p]
                                                                    : longest;
    size_t n = (size_t)(plan->n_prompts * longest), steps = (size_t)plan->n_steps;
    t->tokens = mem_zeroed(n, sizeof *t->tokens);
    t->loss_weights = mem_zeroed(n, sizeof *t->loss_weights);
    t->offsets = mem_zeroed((size_t)plan->n_prompts + 1, sizeof *t->offsets);
    t->lengths = mem_zeroed((size_t)plan->n_prompts, sizeof *t->lengths);
    t->losses = mem_zeroed(n, sizeof *t->losses);
    to->losses = tensor_vector(mem_zeroed(steps, sizeof(float)), DTYPE_F32, plan->n_steps);
    to->norms = tensor_vector(mem_zeroed(steps, sizeof(float)), DTYPE_F32, plan->n_steps);
    bool ok = t->tokens && t->loss_weights && t->offsets && t->lengths && t->losses && to->losses.data &&
              to->norms.data;
    ok = ok || error_out_of_memory(error, "training", n * sizeof *t->tokens);
    return ok && copy_cells(&plan->init, &t->model->config, &to->grad, error) &&
           copy_cells(&plan->init, &t->model->config, &to->trained, error) &&
           lora_weights_make(&plan->init, t->model, &t->weights, error) &&
           lora_training_make(&t->weights, plan->n_prompts, &t->training, error);
}

bool conform_train(Model *model, const ConformCase *c, const ConformPlan *plan, int64_t n_parts,
                   Recompute recompute, ConformTrained *to, Error *error) {
    *to = (ConformTrained){0};
    if (!c->target_starts)
        return error_set(error, ERROR_BAD_INPUT,
                         "%s: expected target_starts, the spans to train on: got none", c->path);
    Comm alone = comm_alone(model->device);
    Trainer t = {.model = model,
                 .c = c,
                 .plan = plan,
                 .leaves = {.comm = c->comm ? c->comm : &alone},
                 .n_parts = n_parts,
                 .recompute = recompute};
    bool ok = open_trainer(&t, to, error);
    if (ok) model->adapter = &t.weights;
    for (int64_t step = 0; ok && step < plan->n_steps; step++) {
        ok = run_step(&t, step, to, error);
        if (!ok) error_add_place(error, "training, step %lld", (long long)step);
    }
    model->adapter = NULL;
    ok = ok && lora_weights_read(&t.weights, t.weights.values, &to->trained, error);
    lora_leaves_free(&t.leaves);
    lora_training_free(&t.training);
    lora_weights_free(&t.weights);
    mem_free(t.tokens);
    mem_free(t.loss_weights);
    mem_free(t.offsets);
    mem_free(t.lengths);
    mem_free(t.losses);
    return ok && conform_adapted_logits(model, c, &to->trained, &to->logits, error);
}

void conform_trained_free(ConformTrained *trained) {
    mem_free(trained->losses.data);
    mem_free(trained->norms.data);
    mem_free(trained->logits.data);
    adapter_free(&trained->grad);
    adapter_free(&trained->trained);
    *trained = (ConformTrained){0};
}

bool conform_adapted_logits(Model *model, const ConformCase *c, const Adapter *adapter, Tensor *logits,
                            Error *error) {
    LoraWeights weights;
    if (!lora_weights_make(adapter, model, &weights, error)) return false;
    PromptBatch batch = {c->n_prompts, c->offsets, c->tokens};
    PassOptions options = {.want_logits = true};
    PassResult result = {0};
    model->adapter = &weights;
    bool ok = model_pass(model, &batch, &options, NULL, &result, error);
    model->adapter = NULL;
    if (ok) {
        *logits = tensor_matrix(result.logits, DTYPE_F32, c->n_tokens, model->config.vocab_size);
        result.logits = NULL;
    }
    pass_result_free(&result);
    lora_weights_free(&weights);
    return ok;
}

/* The steps that look at single prompts, activation and gradient, as work that ranks share: replies where
 * the step needs them, then passes in batches. */
#include "../engine/alloc.h"
#include "gate_gradient.h"
#include "routing.h"
#include "share.h"

/* The last stage measures; where the step generates there is one before it. */
static bool is_measuring(const Share *share, int stage) { return stage == share->n_stages - 1; }

static const PromptGroup *group_of(const SharePart *part, const Share *share) {
    return share->lists[part->block->list].group;
}

/* A part as prompts of its group: items are prompts. */
static Block block_of(const Share *share, const SharePart *part, int stage) {
    const bool measures = is_measuring(share, stage);
    return (Block){.step = measures ? share->run->step : NULL,
                   .group = group_of(part, share),
                   .first = part->first,
                   .n = part->n,
                   .replies = measures ? &part->result.measures : NULL};
}

/* Its tokens, those to be generated included. */
static int64_t prompt_cost(const Share *share, int64_t list, int64_t item) {
    const StepOptions *step = share->run->step;
    const EncodedPrompt *prompt = &share->lists[list].group->prompts[item];
    return prompt->n_prompt + (step_reads_targets(step) ? prompt->n_target : 0) +
           (step_generates(step) ? step->max_new_tokens : 0);
}

static int64_t batch_prompts(const Share *share, const SharePart *part, int stage, int64_t at) {
    const Block block = block_of(share, part, stage);
    const int64_t extra = is_measuring(share, stage) ? 0 : share->run->step->max_new_tokens;
    return batch_size(&block, at, extra, step_limits(share->run->job));
}

/* ---- what is kept whole ---- */
static bool make_rows(const Share *share, SharePart *part, Error *error) {
    const ModelConfig *config = &share->run->model->config;
    const size_t rows = (size_t)(part->n * config->n_moe_layers * config->n_experts),
                 D = (size_t)config->hidden_size;
    part->result.gate_rows = mem_zeroed(rows ? rows : 1, D * sizeof *part->result.gate_rows);
    return part->result.gate_rows || error_out_of_memory(error, "gate gradients of a block (gate_rows)",
                                                         rows * D * sizeof *part->result.gate_rows);
}

static bool begin_part(const Share *share, SharePart *part, int stage, Error *error) {
    const StepOptions *step = share->run->step;
    if (!is_measuring(share, stage)) return measures_make_replies(&part->result.measures, 0, error);
    if (step->kind == STEP_GRADIENT) return !step->gate_rows || make_rows(share, part, error);
    if (step->trace == TRACE_NONE) return true;
    const Block block = block_of(share, part, stage);
    int64_t n_tokens = 0;
    for (int64_t i = 0; i < part->n; i++) n_tokens += block_prompt_tokens(&block, i);
    return trace_make(step->trace, &share->run->model->config, part->n, n_tokens, &part->result.trace, error);
}

/* ---- replies ---- */
static bool generate_batch(const StepRun *run, const Block *prompts, int64_t at, int64_t n, Measures *to,
                           Error *error) {
    int64_t *keys = mem_zeroed((size_t)n, sizeof *keys);
    Batch batch = {0};
    Generation made = {0};
    bool ok = (keys || error_out_of_memory(error, "keys of prompts", (size_t)n * sizeof *keys)) &&
              batch_make(prompts, at, n, &batch, error);
    if (ok) {
        for (int64_t p = 0; p < n; p++)
            keys[p] = step_prompt_key(run, prompts->group, prompts->first + at + p);
        PromptBatch view = batch_view(&batch);
        GenerateOptions options = step_generate_options(run);
        options.prompt_keys = keys;
        ok = generate(run->model, &view, &options, NULL, &made, error) &&
             measures_put_replies(to, at, &made, error);
    }
    generation_free(&made);
    batch_free(&batch);
    mem_free(keys);
    return ok;
}

/* ---- passes ---- */
static GateGradientOptions gradient_options(const StepRun *run) {
    return (GateGradientOptions){.recompute = run->step->recompute,
                                 .memory_limit_bytes = (size_t)run->job->options.memory_limit_mib << 20};
}

static bool measure_batch(const StepRun *run, const Batch *batch, int64_t at, BlockResult *to, Error *error) {
    Measures *m = &to->measures;
    if (run->step->kind == STEP_ACTIVATION)
        return routing_measure(run->model, batch, at, run->step->near_tie, m,
                               to->trace.logits ? &to->trace : NULL, error);
    GateGradientOptions options = gradient_options(run);
    options.rows = to->gate_rows;
    return gate_gradient_measure(run->model, batch, at, &options, m, error);
}

/* Where in the batch a number went wrong is said by the pass; which prompts were in it, here. */
static bool name_prompts(const Block *block, int64_t at, int64_t n, Error *error) {
    const EncodedPrompt *prompts = block->group->prompts + block->first + at;
    if (error->code == ERROR_INTERRUPTED) return false;
    return error_add_place(error, "group %s, prompts \"%.60s\" to \"%.60s\"", block->group->options->name,
                           prompts[0].entry->id, prompts[n - 1].entry->id);
}

static bool measure_prompts(const Share *share, SharePart *part, int stage, int64_t at, int64_t n,
                            Error *error) {
    const StepRun *run = share->run;
    const Block block = block_of(share, part, stage);
    BlockResult *to = &part->result;
    Batch batch;
    if (!is_measuring(share, stage)) return generate_batch(run, &block, at, n, &to->measures, error);
    const bool ok = batch_make(&block, at, n, &batch, error) &&
                    (measure_batch(run, &batch, at, to, error) || name_prompts(&block, at, n, error));
    if (ok && to->trace.logits) trace_put_batch(&to->trace, &batch, block.group, block.first + at);
    run->progress->n_tokens += batch.n_tokens;
    batch_free(&batch);
    return ok;
}

static bool serve_prompts(const Share *share, int stage, Error *error) {
    const StepRun *run = share->run;
    if (!is_measuring(share, stage)) {
        const GenerateOptions options = step_generate_options(run);
        return generate_serve(run->model, &options, error);
    }
    if (run->step->kind == STEP_ACTIVATION) {
        routing_serve(run->model);
    } else {
        const GateGradientOptions options = gradient_options(run);
        gate_gradient_serve(run->model, &options);
    }
    return true;
}

/* ---- the step ---- */
bool step_measure_groups(const StepRun *run, const PromptGroup *groups, Measures *measures, Error *error) {
    const ModelConfig *config = &run->model->config;
    const int64_t n = run->step->groups.n;
    ShareList *lists = mem_zeroed((size_t)n, sizeof *lists);
    Share share = {
        .run = run,
        .unit = "prompts",
        .lists = lists,
        .n_lists = n,
        .n_stages = step_generates(run->step) ? 2 : 1,
        .shape = {.kind = run->step->kind, .n_layers = config->n_moe_layers, .n_experts = config->n_experts},
        .n_rows = 1,
        .cost = prompt_cost,
        .begin = begin_part,
        .batch = batch_prompts,
        .measure = measure_prompts,
        .serve = serve_prompts};
    bool ok = lists || error_out_of_memory(error, "groups", (size_t)n * sizeof *lists);
    for (int64_t g = 0; ok && g < n; g++)
        lists[g] =
            (ShareList){.name = groups[g].options->name, .group = &groups[g], .n = groups[g].n, .n_each = 1};
    ok = comm_agree(run->comm, ok, error) && share_run(&share, error) &&
         (run->comm->rank || share_take_measures(&share, measures, error));
    share_free(&share);
    mem_free(lists);
    return ok;
}

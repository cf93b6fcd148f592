/* One block of prompts: replies where the step needs them, passes in batches, what was asked to be kept
 * whole. */
#include "../engine/alloc.h"
#include "../engine/safetensors.h"
#include "gate_gradient.h"
#include "routing.h"
#include "step.h"
#include <string.h>

bool step_goes_on(const StepRun *run, Error *error) {
    return !*run->stop ||
           error_set(error, ERROR_INTERRUPTED,
                     "step %s: interrupted; the same command goes on from the last finished block",
                     run->step->name);
}

/* ---- replies ---- */
static bool keep_generating(void *context, int64_t step, int64_t n_running) {
    (void)step;
    (void)n_running;
    return !*((const StepRun *)context)->stop;
}

GenerateOptions step_generate_options(const StepRun *run) {
    const StepOptions *step = run->step;
    const ModelConfig *config = &run->model->config;
    const int64_t n_valid = tokenizer_size(run->encoder->tokenizer);
    return (GenerateOptions){.max_new_tokens = step->max_new_tokens,
                             .rule = {.temperature = (float)step->temperature,
                                      .top_k = (int32_t)step->top_k,
                                      .top_p = (float)step->top_p,
                                      .n_valid = n_valid < config->vocab_size ? n_valid : config->vocab_size,
                                      .seed = (uint64_t)run->job->options.seed},
                             .stop_tokens = config->eos_tokens,
                             .n_stop_tokens = config->n_eos_tokens,
                             .progress = keep_generating,
                             .progress_context = (void *)(uintptr_t)run};
}

int64_t step_prompt_key(const StepRun *run, const PromptGroup *group, int64_t i) {
    int64_t g = group->options - run->job->prompts;
    return g * ((int64_t)1 << 40) + group->prompts[i].entry->index;
}

static bool generate_batch(const StepRun *run, const Block *prompts, int64_t at, int64_t n, Generation *to,
                           Error *error) {
    int64_t *keys = mem_zeroed((size_t)n, sizeof *keys);
    Batch batch = {0};
    bool ok = keys || error_out_of_memory(error, "keys of prompts", (size_t)n * sizeof *keys);
    for (int64_t p = 0; ok && p < n; p++)
        keys[p] = step_prompt_key(run, prompts->group, prompts->first + at + p);
    if (ok && batch_make(prompts, at, n, &batch, error)) {
        PromptBatch view = batch_view(&batch);
        GenerateOptions options = step_generate_options(run);
        options.prompt_keys = keys;
        ok = generate(run->model, &view, &options, NULL, to, error) && step_goes_on(run, error);
    } else {
        ok = false;
    }
    batch_free(&batch);
    mem_free(keys);
    return ok;
}

static bool generate_replies(const StepRun *run, const Block *block, Measures *m, Error *error) {
    Block prompts = {.group = block->group, .first = block->first, .n = block->n};
    bool ok = measures_make_replies(m, 0, error);
    for (int64_t at = 0; ok && at < block->n;) {
        int64_t n = batch_size(&prompts, at, run->step->max_new_tokens, step_limits(run->job));
        Generation generation = {0};
        ok = generate_batch(run, &prompts, at, n, &generation, error) &&
             measures_put_replies(m, at, &generation, error);
        generation_free(&generation);
        at += n;
    }
    return ok;
}

/* ---- what is kept whole ---- */
void step_free_block(BlockResult *result) {
    measures_free(&result->measures);
    trace_free(&result->trace);
    mem_free(result->gate_rows);
    *result = (BlockResult){0};
}

static bool make_kept(const StepRun *run, const Block *block, BlockResult *kept, Error *error) {
    const ModelConfig *config = &run->model->config;
    if (run->step->kind == STEP_ACTIVATION && run->step->trace != TRACE_NONE) {
        int64_t n_tokens = 0;
        for (int64_t i = 0; i < block->n; i++) n_tokens += block_prompt_tokens(block, i);
        return trace_make(run->step->trace, config, block->n, n_tokens, &kept->trace, error);
    }
    if (run->step->kind != STEP_GRADIENT || !run->step->gate_rows) return true;
    size_t rows = (size_t)(block->n * config->n_moe_layers * config->n_experts);
    kept->gate_rows = mem_zeroed(rows, (size_t)config->hidden_size * sizeof *kept->gate_rows);
    return kept->gate_rows ||
           error_out_of_memory(error, "gate gradients of a block (gate_rows)",
                               rows * (size_t)config->hidden_size * sizeof *kept->gate_rows);
}

static bool write_rows(const StepRun *run, const PromptGroup *group, int64_t first, const BlockResult *result,
                       const char *path, Error *error) {
    const ModelConfig *config = &run->model->config;
    int64_t index[BLOCK_PROMPTS], n = result->measures.n_prompts;
    for (int64_t i = 0; i < n; i++) index[i] = group->prompts[first + i].entry->index;
    NamedTensor tensors[] = {{"gate_grad",
                              {.data = result->gate_rows,
                               .dtype = DTYPE_F32,
                               .n_dims = 4,
                               .shape = {n, config->n_moe_layers, config->n_experts, config->hidden_size}}},
                             {"prompt_index", tensor_vector(index, DTYPE_I64, n)}};
    const char *const metadata[] = {
        "gate_grad", "d loss / d router row: P prompts, L expert layers, E experts, D hidden size"};
    return safetensors_write(path, tensors, 2, metadata, 1, error);
}

static bool write_kept(const StepRun *run, const PromptGroup *group, int64_t first, BlockResult *result,
                       Error *error) {
    if (!result->trace.logits && !result->gate_rows) return true;
    char *path = step_block_path(run, result->gate_rows ? "gate_rows" : "traces", group, first, error);
    bool ok = path && (result->gate_rows ? write_rows(run, group, first, result, path, error)
                                         : trace_write(&result->trace, &run->model->config, path, error));
    mem_free(path);
    return ok;
}

bool step_save_block(const StepRun *run, const PromptGroup *group, int64_t first, BlockResult *result,
                     Error *error) {
    char *path = step_block_path(run, "blocks", group, first, error);
    bool ok =
        path && write_kept(run, group, first, result, error) && measures_save(&result->measures, path, error);
    mem_free(path);
    return ok;
}

/* ---- from several ranks ---- */
static void gather_rows(const StepRun *run, BlockResult *part, const int64_t *rows, BlockResult *whole) {
    const ModelConfig *config = &run->model->config;
    Comm *comm = run->comm;
    int64_t n = 0, row = config->n_moe_layers * config->n_experts * config->hidden_size;
    for (int r = 0; comm->rank == 0 && r < comm->size; r++) n += rows[r];
    whole->gate_rows = mem_alloc((size_t)(n * row) * sizeof *whole->gate_rows);
    Error error = {0};
    if (!whole->gate_rows) {
        error_out_of_memory(&error, "gate gradients of a block (gate_rows)",
                            (size_t)(n * row) * sizeof(float));
        comm_fail(comm, &error);
    }
    comm_gather_rows(comm, tensor_matrix(whole->gate_rows, DTYPE_F32, n, row),
                     tensor_matrix(part->gate_rows, DTYPE_F32, rows[comm->rank], row), rows);
}

void step_gather_block(const StepRun *run, BlockResult *part, const int64_t *rows, BlockResult *whole) {
    *whole = (BlockResult){0};
    if (run->comm->size == 1) {
        *whole = *part;
        *part = (BlockResult){0};
        return;
    }
    if (part->trace.logits) trace_gather(run->comm, &part->trace, rows, &run->model->config, &whole->trace);
    if (part->gate_rows) gather_rows(run, part, rows, whole);
    measures_gather(run->comm, &part->measures, rows, &whole->measures);
    step_free_block(part);
}

/* ---- the block ---- */
static bool measure_batch(const StepRun *run, const Batch *batch, int64_t at, BlockResult *to, Error *error) {
    Measures *m = &to->measures;
    if (run->step->kind == STEP_ACTIVATION)
        return routing_measure(run->model, batch, at, run->step->near_tie, m,
                               to->trace.logits ? &to->trace : NULL, error);
    GateGradientOptions options = {.recompute = run->step->recompute,
                                   .memory_limit_bytes = (size_t)run->job->options.memory_limit_mib << 20,
                                   .rows = to->gate_rows};
    return gate_gradient_measure(run->model, batch, at, &options, m, error);
}

/* Where in the batch a number went wrong is said by the pass; which prompts were in it, here. */
static bool name_prompts(const Block *block, int64_t at, int64_t n, Error *error) {
    const EncodedPrompt *prompts = block->group->prompts + block->first + at;
    if (error->code == ERROR_INTERRUPTED) return false;
    return error_add_place(error, "group %s, prompts \"%.60s\" to \"%.60s\"", block->group->options->name,
                           prompts[0].entry->id, prompts[n - 1].entry->id);
}

bool step_measure_block(const StepRun *run, const PromptGroup *group, int64_t first, int64_t n,
                        int64_t n_before, BlockResult *result, Error *error) {
    const ModelConfig *config = &run->model->config;
    *result = (BlockResult){0};
    Measures *m = &result->measures;
    Block block = {.step = run->step, .group = group, .first = first, .n = n, .replies = m};
    bool ok = measures_make(run->step->kind, n, config->n_moe_layers, config->n_experts, m, error) &&
              (!step_generates(run->step) || generate_replies(run, &block, m, error)) &&
              make_kept(run, &block, result, error);
    for (int64_t at = 0; ok && at < n;) {
        int64_t n_batch = batch_size(&block, at, 0, step_limits(run->job));
        Batch batch;
        ok = batch_make(&block, at, n_batch, &batch, error) &&
             (measure_batch(run, &batch, at, result, error) || name_prompts(&block, at, n_batch, error));
        if (ok && result->trace.logits) trace_put_batch(&result->trace, &batch, group, first + at);
        at += n_batch;
        ok = ok && step_goes_on(run, error) &&
             progress_update(run->progress, n_before + at, run->progress->n_tokens + batch.n_tokens, error);
        batch_free(&batch);
    }
    return ok;
}

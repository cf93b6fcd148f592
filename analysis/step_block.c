/* What is kept of a block beside its measures, gathered from ranks and written; and what every step says to
 * generation and to signals. */
#include "../engine/alloc.h"
#include "../engine/safetensors.h"
#include "step.h"
#include <string.h>

bool step_goes_on(const StepRun *run, Error *error) {
    int64_t stop = *run->stop != 0;
    if (spread_any(&run->model->spread)) comm_max_i64(run->comm, &stop, 1);
    return !stop || error_set(error, ERROR_INTERRUPTED,
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

/* ---- what is kept whole ---- */
void step_free_block(BlockResult *result) {
    measures_free(&result->measures);
    trace_free(&result->trace);
    mem_free(result->gate_rows);
    *result = (BlockResult){0};
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
    char *path =
        step_block_path(run, result->gate_rows ? "gate_rows" : "traces", group->options->name, first, error);
    bool ok = path && (result->gate_rows ? write_rows(run, group, first, result, path, error)
                                         : trace_write(&result->trace, &run->model->config, path, error));
    mem_free(path);
    return ok;
}

bool step_save_block(const StepRun *run, const PromptGroup *group, int64_t first, BlockResult *result,
                     Error *error) {
    char *path = step_block_path(run, "blocks", group->options->name, first, error);
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

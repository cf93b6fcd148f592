/* The plan of a tune step: one pass over its examples was counted, with the gradients of all routers, which a
 * training does without; the low-rank products are a small part of what is left out for them. */
#include "run_plan_parts.h"
#include "../engine/alloc.h"
#include "tune_parts.h"
#include <string.h>

static int64_t count_examples(const Planner *p, const PromptGroup *groups) {
    int64_t n = 0;
    for (int64_t g = 0; groups && g < p->step->groups.n; g++) n += groups[g].n;
    return n;
}

bool plan_frozen(const Planner *p, const Batch *batch, PlannedWork *work, Error *error) {
    if (p->step->kind != STEP_TUNE || !(p->step->router_kl > 0 || p->step->objective == OBJECTIVE_PREFERENCE))
        return true;
    const PromptBatch view = batch_view(batch);
    PassOptions options = {.want_nll = p->step->objective == OBJECTIVE_PREFERENCE};
    PassResult result = {0};
    bool ok = model_plan(p->config, p->compute, p->weights, &view, &options, &result, error);
    work->flops += result.cost.flops;
    work->bytes += result.cost.bytes;
    pass_result_free(&result);
    return ok;
}

void plan_training(const Planner *p, const PromptGroup *groups, PlannedWork *work) {
    const int64_t n = count_examples(p, groups);
    int64_t n_total = 0;
    if (!n) return;
    tune_count_steps(p->step, n, &n_total);
    const double times = (double)n_total / (double)n;
    work->times = times;
    work->flops *= times;
    work->bytes *= times;
    work->n_tokens = (int64_t)(times * (double)work->n_tokens);
    work->n_batches = (int64_t)(times * (double)work->n_batches + 0.5);
}

/* Values that are trained; of cells that are ranked in the run as many as the step takes. */
static bool count_values(const Planner *p, int64_t *n, Error *error) {
    const StepOptions *step = p->step;
    Adapter adapter;
    bool ok = tune_adapter_make(p->job, step, p->config, NULL, &adapter, error);
    *n = 0;
    for (int64_t i = 0; ok && i < adapter.n; i++) *n += adapter_cell_count(&adapter.cells[i], p->config);
    /* of cells that are ranked in the run one stands for all */
    const StepOptions *source = tune_contrast_source(p->job, step);
    ok = ok && tune_rows_make(step, p->config, &adapter, error);
    *n += adapter.n_rows * p->config->hidden_size;
    if (step->control != CONTROL_ALL && (source || step->top.n))
        *n *= source ? source->select : (int64_t)step->top.values[0];
    adapter_free(&adapter);
    return ok;
}

int64_t plan_lora_copies(const StepOptions *step) {
    int64_t n_slots = 0;
    while (step->examples >> n_slots) n_slots++;
    return 4 + n_slots;
}

bool plan_count_cells(const Planner *p, int64_t *n, Error *error) {
    int64_t n_values = 0;
    *n = 0;
    if (p->step->kind != STEP_TUNE) return true;
    if (!count_values(p, &n_values, error)) return false;
    const int64_t whole = 3 * p->step->rank * (p->config->hidden_size + p->config->expert_size);
    *n = (n_values + whole - 1) / whole;
    return true;
}

bool plan_print_training(const Planner *p, const PromptGroup *groups, Error *error) {
    const StepOptions *step = p->step;
    const ModelConfig *config = p->config;
    int64_t n_total, n_active, n_values = 0, n_taken;
    const int64_t n_steps = tune_count_steps(step, count_examples(p, groups), &n_taken);
    bool ok = count_values(p, &n_values, error);
    model_config_count(config, &n_total, &n_active);
    if (ok) {
        fprintf(
            p->to,
            "  training: %lld steps of %lld examples, %lld values (%.3g %% of the model's) in %s updates of "
            "rank %lld; %.1f MiB for them, their moments and gradients\n  files: ",
            (long long)n_steps, (long long)step->examples, (long long)n_values,
            100 * (double)n_values / (double)n_total, adapter_form_names[step->form], (long long)step->rank,
            4e0 * (double)(n_values * plan_lora_copies(step)) / (1 << 20));
        plan_print_text(p->to, p->out, strlen(p->out));
        fprintf(p->to, "/%s/{step.json,training.csv,updates.csv,%sadapter-%s}\n", step->name,
                step->gate_rows ? "router_rows.csv," : "", adapter_form_names[step->form]);
    }
    return ok;
}

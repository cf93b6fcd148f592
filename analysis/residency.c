/* The plan's memory (rank_plan.h) of a full pass of every step of a model, against what the device has
 * free. */
#include "residency.h"
#include "../engine/weight_stream.h"
#include "run_plan_parts.h"
#include "step.h"
#include <string.h>

/* Of what is free, for the allocator, the vendor's library and the queues' own memory. */
static const double USABLE_SHARE = 15.0 / 16;

/* What the largest pass of a step takes: full of prompts as short as they may be for their rows, which costs
 * most. */
static bool step_work(const Job *job, const StepOptions *step, const ModelConfig *config, DType compute,
                      RankWork *work, Error *error) {
    enum { ROWS_A_PROMPT = 16 };
    const int64_t n = job->options.batch_tokens;
    const Planner planner = {.job = job, .step = step, .config = config};
    *work = (RankWork){.n_tokens = n,
                       .n_prompts = (n + ROWS_A_PROMPT - 1) / ROWS_A_PROMPT,
                       .walks_back = plan_walks_back(step),
                       .n_decoded = step_generates(step) ? step->max_new_tokens : 0,
                       .lora_rank = step->rank,
                       .lora_copies = plan_lora_copies(step),
                       .compute = compute,
                       .weights = model_config_dtype(config)};
    return plan_count_cells(&planner, &work->n_cells, error);
}

static bool count_streamed(const Job *job, const ModelOptions *model, const ModelConfig *config,
                           const RankDevice *device, DType compute, int64_t *n_streamed, Error *error) {
    const Placement alone = {1, config->n_experts, 1, false};
    for (int64_t s = 0; s < job->n_steps; s++) {
        const StepOptions *step = &job->steps[s];
        RankWork work;
        if (!step->model[0] || strcmp(step->model, model->name) != 0) continue;
        if (!step_work(job, step, config, compute, &work, error)) return false;
        if (rank_plan_make(config, &work, device, alone, RESIDENCY_RESIDENT, -1).fits) continue;
        const RankPlan p = rank_plan_make(config, &work, device, alone, RESIDENCY_STREAMED, -1);
        if (!p.fits)
            return error_set(
                error, ERROR_UNAVAILABLE,
                "step %s: expected at most %.2f GB of device memory: got %.2f GB with all experts "
                "streamed: take a smaller batch_tokens",
                step->name, p.usable_bytes / 1e9, p.memory.sum / 1e9);
        if (p.n_streamed > *n_streamed) *n_streamed = p.n_streamed;
    }
    return true;
}

bool residency_choose(const Job *job, const ModelOptions *model, const Device *device, DType compute,
                      int64_t *n_streamed, Error *error) {
    const Residency wanted = (Residency)job->options.residency;
    RankDevice limits = {.flops_per_s = 1,
                         .dram_bytes_per_s = 1,
                         .host_bytes_per_s = 1,
                         .node_bytes_per_s = 1,
                         .network_bytes_per_s = 1,
                         .per_node = 1};
    ModelConfig config = {0};
    size_t n_free = 0, n_total = 0;
    *n_streamed = 0;
    if (wanted == RESIDENCY_PEERS)
        return error_set(error, ERROR_UNAVAILABLE,
                         "residency: expected auto, resident or streamed for a run of one rank: got peers");
    if (wanted == RESIDENCY_RESIDENT) return true;
    if (wanted == RESIDENCY_STREAMED && !weight_stream_possible(device, error)) return false;
    const bool says = device->copies && device->copies->memory(&n_free, &n_total);
    if (wanted == RESIDENCY_AUTO && !says) return true;
    bool ok = model_config_read(model->path, &config, error);
    limits.usable_bytes = USABLE_SHARE * (double)n_free;
    if (ok && wanted == RESIDENCY_STREAMED) *n_streamed = config.n_moe_layers;
    if (ok && wanted == RESIDENCY_AUTO)
        ok = count_streamed(job, model, &config, &limits, compute, n_streamed, error);
    model_config_free(&config);
    return ok;
}

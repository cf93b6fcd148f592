/* The plans (rank_plan.h) of a full pass of every step of a model, against what the device has free. */
#include "residency.h"
#include "../engine/alloc.h"
#include "../kernels/check.h"
#include "run_plan_parts.h"
#include "step.h"
#include <string.h>
#include <unistd.h>

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

static bool is_of(const StepOptions *step, const ModelOptions *model) {
    return !strcmp(step->model, model->name);
}

static bool has_steps(const Job *job, const ModelOptions *model) {
    bool any = false;
    for (int64_t s = 0; s < job->n_steps; s++) any = any || is_of(&job->steps[s], model);
    return any;
}

bool residency_plan(const Job *job, const ModelOptions *model, DType compute, const RankDevice *device,
                    int64_t n_ranks, RankPlan *plan, Error *error) {
    const Residency wanted = (Residency)job->options.residency;
    const bool on_host = device->host_bytes_per_s == 0;
    ModelConfig config = {0};
    int64_t n = 0;
    *plan = (RankPlan){0};
    check(has_steps(job, model), "no step of %lld has the model", (long long)job->n_steps);
    if (wanted == RESIDENCY_PEERS && n_ranks == 1)
        return error_set(error, ERROR_UNAVAILABLE,
                         "residency: expected auto, resident or streamed for a run of one rank: got peers");
    RankWork *works = mem_zeroed((size_t)job->n_steps, sizeof *works);
    bool ok = (works || error_out_of_memory(error, "steps", (size_t)job->n_steps * sizeof *works)) &&
              model_config_read(model->path, &config, error);
    for (int64_t s = 0; ok && s < job->n_steps; s++)
        if (is_of(&job->steps[s], model))
            ok = step_work(job, &job->steps[s], &config, compute, &works[n++], error);
    if (ok && on_host && wanted == RESIDENCY_AUTO)
        *plan = rank_plan_make_all(&config, works, n, device, rank_plan_whole(&config, n_ranks),
                                   RESIDENCY_RESIDENT, 0);
    if (ok && !plan->fits) *plan = rank_plan_choose_all(&config, works, n, device, n_ranks, wanted);
    model_config_free(&config);
    mem_free(works);
    return ok;
}

RankDevice residency_machine(int64_t per_node) {
    const double n = (double)per_node,
                 memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE), flops = 200e9,
                 bytes = 20e9; /* of a small server: they decide only what does not fit whole */
    return (RankDevice){.name = "this machine",
                        .usable_bytes = memory / n,
                        .flops_per_s = flops / n,
                        .dram_bytes_per_s = bytes / n,
                        .node_bytes_per_s = bytes / n,
                        .network_bytes_per_s = 1e9 / n,
                        .per_node = per_node};
}

/* ---- of a run ---- */
typedef struct {
    const Job *job;
    const Device *device;
    DType compute;
    Comm *comm;
    RankDevice limits;
    bool says; /* the device says what it has free */
} Chooser;

/* Memory is what is free. Rates and links, which decide among several ranks alone, are those of the file that
 * the job names, else of an H100. */
static bool read_limits(Chooser *c, Error *error) {
    const int64_t per_node = c->comm->per_node ? c->comm->per_node : 1;
    const char *named = c->job->options.device_file;
    size_t n_free = 0, n_total = 0;
    c->says = true;
    c->limits = residency_machine(per_node);
    if (!c->device->copies) return true;
    c->limits.host_bytes_per_s = c->limits.dram_bytes_per_s;
    if (c->comm->size > 1 && !plan_read_limits(named[0] ? named : "h100", &c->limits, error)) return false;
    c->limits.per_node = per_node;
    c->says = c->device->copies->memory(&n_free, &n_total);
    c->limits.usable_bytes = USABLE_SHARE * (double)n_free;
    return true;
}

/* The least that any rank has free; whether all say it. */
static void share_limits(Chooser *c) {
    int64_t most[2] = {-(int64_t)c->limits.usable_bytes, !c->says};
    comm_max_i64(c->comm, most, 2);
    c->limits.usable_bytes = -(double)most[0];
    c->says = !most[1];
}

static bool check_plan(const Chooser *c, const RankPlan *p, Error *error) {
    if (p->group > 1 && !c->comm->per_node)
        return error_set(
            error, ERROR_UNAVAILABLE,
            "residency: expected as many ranks on each machine, next to each other, for experts "
            "spread over them (mpirun --map-by ppr:N:node, srun --ntasks-per-node=N): got others");
    if (c->job->options.residency != RESIDENCY_AUTO || p->fits) return true;
    return error_set(error, ERROR_UNAVAILABLE,
                     "residency: expected at most %.2f GB of %s memory a rank for the largest pass of its "
                     "steps: got %.2f GB on %d rank%s, %s: take a smaller batch_tokens or more ranks",
                     p->usable_bytes / 1e9, c->device->copies ? "device" : "the machine's",
                     p->memory.sum / 1e9, c->comm->size, c->comm->size > 1 ? "s" : "",
                     residency_names[p->residency]);
}

static bool choose(const Chooser *c, const ModelOptions *model, Spread *spread, Error *error) {
    RankPlan plan;
    *spread = (Spread){.residency = RESIDENCY_RESIDENT};
    /* alone, what computes in the host's memory has nothing to choose */
    if (c->job->options.residency == RESIDENCY_AUTO &&
        (!c->says || (c->comm->size == 1 && !c->device->copies)))
        return true;
    if (!residency_plan(c->job, model, c->compute, &c->limits, c->comm->size, &plan, error) ||
        !check_plan(c, &plan, error))
        return error_add_place(error, "models.%s", model->name);
    *spread = (Spread){.comm = c->comm->size > 1 ? c->comm : NULL,
                       .residency = plan.residency,
                       .placement = plan.placement,
                       .n_streamed = plan.n_streamed};
    return true;
}

bool residency_choose(const Job *job, const Device *device, DType compute, Comm *comm, Spread **spreads,
                      Error *error) {
    Chooser c = {.job = job, .device = device, .compute = compute, .comm = comm};
    *spreads = mem_zeroed((size_t)job->n_models + 1, sizeof **spreads);
    bool ok = (*spreads || error_out_of_memory(error, "models", sizeof **spreads)) &&
              (job->options.residency != RESIDENCY_STREAMED || weight_stream_possible(device, error)) &&
              read_limits(&c, error);
    ok = comm_agree(comm, ok, error);
    if (ok) share_limits(&c);
    for (int64_t m = 0; ok && m < job->n_models; m++)
        if (has_steps(job, &job->models[m])) ok = choose(&c, &job->models[m], &(*spreads)[m], error);
    return comm_agree(comm, ok, error);
}

Spread residency_of_training(const Spread *spread) {
    Spread s = *spread;
    if (!spread_tokens_travel(&s)) return s;
    s.residency = RESIDENCY_PEERS;
    s.n_streamed = 0;
    return s;
}

bool residency_is_same(const Spread *a, const Spread *b) {
    const Placement *p = &a->placement, *q = &b->placement;
    if (spread_any(a) != spread_any(b) || a->residency != b->residency || a->n_streamed != b->n_streamed)
        return false;
    return !spread_any(a) || (p->n_ranks == q->n_ranks && p->n_experts == q->n_experts &&
                              p->per_node == q->per_node && p->across_nodes == q->across_nodes);
}

void residency_describe(const Model *model, int n_ranks, char to[200]) {
    const Spread *s = &model->spread;
    int n = 0;
    to[0] = 0;
    if (spread_any(s)) {
        const int64_t rank = s->comm->rank, n_own = placement_experts(&s->placement, rank).n,
                      group = placement_group(&s->placement, rank).n;
        n = snprintf(to, 200, "%s, experts over %lld of %d ranks, %lld of %lld a layer on rank %lld; ",
                     residency_names[s->residency], (long long)group, n_ranks, (long long)n_own,
                     (long long)model->config.n_experts, (long long)rank);
    } else if (n_ranks > 1) {
        n = snprintf(to, 200, "the whole model on each of %d ranks; ", n_ranks);
    }
    if (s->n_streamed)
        n += snprintf(to + n, 200 - (size_t)n,
                      "experts of %lld of %lld layers are streamed, %.1f MiB on the host; ",
                      (long long)s->n_streamed, (long long)model->config.n_moe_layers,
                      (double)weight_stream_host_bytes(model->weights.stream) / (1 << 20));
    if (n) to[n - 2] = 0;
}

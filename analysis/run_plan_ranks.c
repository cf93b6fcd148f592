/* The plan of a step on ranks: a full pass of the fullest rank, by the sizes of the model (rank_plan.h).
 * Prompts are dealt to ranks as a run would deal them; where the folder has no tokenizer they are taken to
 * be of ASSUMED_TOKENS tokens each, and passes to be full. */
#include "run_plan_parts.h"
#include "../engine/alloc.h"
#include "conditions.h"
#include "residency.h"
#include "step.h"
#include "tune_parts.h"
#include <math.h>
#include <string.h>

enum { ASSUMED_TOKENS = 512 };
static const double gb = 1e9;

/* ---- what a rank has to do ---- */
bool planned_work_add(PlannedWork *work, int64_t length, Error *error) {
    if (work->n_lengths == work->lengths_capacity) {
        const int64_t capacity = work->lengths_capacity ? 2 * work->lengths_capacity : 256;
        int64_t *larger = mem_resize(work->lengths, (size_t)capacity, sizeof *larger);
        if (!larger)
            return error_out_of_memory(error, "lengths of prompts", (size_t)capacity * sizeof *larger);
        work->lengths = larger;
        work->lengths_capacity = capacity;
    }
    work->lengths[work->n_lengths++] = length;
    return true;
}

void planned_work_free(PlannedWork *work) {
    mem_free(work->lengths);
    *work = (PlannedWork){0};
}

typedef struct {
    int64_t n_ranks, n_passes; /* passes of a rank */
    bool assumed;              /* lengths are ASSUMED_TOKENS */
    RankWork work;
} RankShare;

/* The most tokens and prompts that a rank has in one of the waves. */
static bool deal(const PlannedWork *work, int64_t most_tokens, RankShare *to, Error *error) {
    const int64_t n = work->n_lengths;
    Home *homes = mem_alloc((size_t)n * sizeof *homes);
    int64_t n_tokens = 0, n_prompts = 0, total = 0;
    if (!homes) return error_out_of_memory(error, "homes of prompts", (size_t)n * sizeof *homes);
    to->n_passes = placement_homes(work->lengths, n, to->n_ranks, most_tokens, homes);
    for (int64_t i = 0; i < n; i++) {
        if (!i || memcmp(&homes[i], &homes[i - 1], sizeof *homes) != 0) n_tokens = n_prompts = 0;
        n_tokens += work->lengths[i];
        total += work->lengths[i];
        n_prompts++;
        if (n_tokens > to->work.n_tokens) to->work.n_tokens = n_tokens;
        if (n_prompts > to->work.n_prompts) to->work.n_prompts = n_prompts;
    }
    to->work.mean_length = (double)total / (double)n;
    mem_free(homes);
    return true;
}

/* Full passes, as many as so many prompts take. */
static void assume(const PlannedWork *work, int64_t most_tokens, RankShare *to) {
    const int64_t length = most_tokens < ASSUMED_TOKENS ? most_tokens : ASSUMED_TOKENS,
                  per_pass = most_tokens / length * to->n_ranks;
    to->assumed = true;
    to->work.n_tokens = most_tokens;
    to->work.n_prompts = most_tokens / length;
    to->work.mean_length = (double)length;
    to->n_passes = (work->n_tokens / ASSUMED_TOKENS + per_pass - 1) / per_pass;
}

static bool share_work(const Planner *p, const PlannedWork *work, RankShare *to, Error *error) {
    const StepOptions *step = p->step;
    const JobOptions *o = &p->job->options;
    int64_t most_tokens = o->batch_tokens;
    *to = (RankShare){.n_ranks = o->ranks ? o->ranks : 1,
                      .work = {.walks_back = plan_walks_back(step),
                               .n_decoded = step_generates(step) ? step->max_new_tokens : 0,
                               .lora_rank = step->rank,
                               .lora_copies = plan_lora_copies(step),
                               .compute = p->compute,
                               .weights = p->weights}};
    if (o->batch_prompts && o->batch_prompts * work->n_longest < most_tokens && work->n_longest)
        most_tokens = o->batch_prompts * work->n_longest;
    if (work->n_lengths) {
        if (!deal(work, most_tokens, to, error)) return false;
    } else {
        assume(work, most_tokens, to);
    }
    if (work->times > 0) to->n_passes = (int64_t)ceil((double)to->n_passes * work->times);
    return plan_count_cells(p, &to->work.n_cells, error);
}

/* ---- the device ---- */
/* Ranks of this machine share its cores, memory and bus. */
static RankDevice this_machine(const Planner *p, int64_t n_ranks) {
    const double n = (double)n_ranks, bytes = p->rates.bytes / n;
    RankDevice d = residency_machine(n_ranks);
    d.flops_per_s = p->rates.flops / n;
    d.dram_bytes_per_s = d.host_bytes_per_s = d.node_bytes_per_s = d.network_bytes_per_s = bytes;
    snprintf(d.name, sizeof d.name, "this machine's %s, shared", p->device->name);
    return d;
}

/* What a run would take for all steps of the model; this step's share of it. */
static bool choose(const Planner *p, const RankShare *share, const RankDevice *machine, RankPlan *plan,
                   Error *error) {
    const RankDevice unmeasured = residency_machine(share->n_ranks);
    RankPlan of_all;
    if (!p->limits && p->job->options.residency == RESIDENCY_STREAMED &&
        !weight_stream_possible(p->device, error))
        return false;
    if (!residency_plan(p->job, job_model(p->job, p->step->model), p->compute,
                        p->limits ? p->limits : &unmeasured, share->n_ranks, &of_all, error))
        return error_add_place(error, "step %s", p->step->name);
    const bool at_home = p->step->kind == STEP_TUNE && of_all.group > 1;
    *plan = rank_plan_make(p->config, &share->work, machine, of_all.placement,
                           at_home ? RESIDENCY_PEERS : of_all.residency, of_all.n_streamed);
    return true;
}

bool plan_has_ranks(const Planner *p) { return p->limits || p->job->options.ranks > 1; }

/* ---- printing ---- */
static void print_memory(const Planner *p, const RankShare *share, const RankPlan *plan, int64_t first,
                         int64_t end) {
    const RankMemory m = rank_plan_memory(p->config, &share->work, plan, first);
    const Range experts = placement_experts(&plan->placement, first);
    char ranks[48], parts[80] = "";
    snprintf(ranks, sizeof ranks, end - first > 1 ? "ranks %lld-%lld" : "rank %lld", (long long)first,
             (long long)end - 1);
    if (share->work.n_decoded) snprintf(parts, sizeof parts, " + %.2f keys and values", m.cache / gb);
    if (share->work.n_cells)
        snprintf(parts + strlen(parts), sizeof parts - strlen(parts), " + %.2f LoRA", m.lora / gb);
    fprintf(
        p->to,
        "  %s: %lld of %lld experts a layer; memory in GB: %.2f weights + %.2f saved rows + %.2f exchange + "
        "%.2f expert work + %.2f gate rows%s = %.2f of %.1f\n",
        ranks, (long long)experts.n, (long long)plan->placement.n_experts, m.weights / gb, m.saved / gb,
        m.exchange / gb, m.experts / gb, m.gates / gb, parts, m.sum / gb, plan->usable_bytes / gb);
}

/* A line for ranks next to each other that hold as many experts. */
static void print_ranks(const Planner *p, const RankShare *share, const RankPlan *plan) {
    const int64_t n = share->n_ranks;
    for (int64_t first = 0; first < n;) {
        int64_t end = first + 1;
        while (end < n &&
               placement_experts(&plan->placement, end).n == placement_experts(&plan->placement, first).n)
            end++;
        print_memory(p, share, plan, first, end);
        first = end;
    }
}

static void print_bytes(const Planner *p, const RankPlan *plan) {
    if (plan->n_exchanges)
        fprintf(p->to,
                "  moves: %.2f kB a token and layer each way, %lld exchanges a layer, %.1f kB a token in a "
                "pass\n",
                plan->sent_bytes / 1e3, (long long)plan->n_exchanges, plan->moved_bytes / 1e3);
    if (plan->gathered_bytes > 0)
        fprintf(p->to, "  moves: %.1f GB of weights from peers a pass, hidden from %.0f tokens a rank\n",
                plan->gathered_bytes / gb, plan->hidden_from);
    if (plan->n_streamed)
        fprintf(p->to,
                "  streams: %lld of %lld layers with experts, %.1f GB from the host a pass, %.2g s, hidden "
                "from %.0f tokens a rank\n",
                (long long)plan->n_streamed, (long long)p->config->n_moe_layers, plan->copied_bytes / gb,
                plan->copy_seconds, plan->hidden_from);
}

static void print_time(const Planner *p, const RankShare *share, const RankPlan *plan, const RankDevice *d,
                       double seconds) {
    fprintf(p->to, "  time: %.3g s a pass at %.3g TFLOP/s a rank, efficiency %.1f %% with even experts",
            plan->pass_seconds, d->flops_per_s / 1e12, 100 * plan->efficiency);
    if (share->work.n_decoded)
        fprintf(p->to, ", %.3g ms a step of %lld decoding ones", 1e3 * plan->step_seconds,
                (long long)share->work.n_decoded);
    fprintf(p->to, "; about %.2g s for %lld of a rank\n", seconds, (long long)share->n_passes);
}

static bool refuse(const Planner *p, const RankShare *share, const RankPlan *plan, const RankDevice *d,
                   Error *error) {
    const Residency wanted = (Residency)p->job->options.residency;
    const int64_t least = rank_plan_least_ranks(p->config, &share->work, d, wanted);
    char advice[80] = "no number of ranks up to 1024 is enough: take a smaller batch_tokens";
    if (least)
        snprintf(advice, sizeof advice, "the least number of ranks that is enough is %lld", (long long)least);
    return error_set(
        error, ERROR_UNAVAILABLE,
        "step %s: expected at most %.1f GB of memory a rank: got %.1f GB on %lld rank%s, residency "
        "%s; %s",
        p->step->name, plan->usable_bytes / gb, plan->memory.sum / gb, (long long)share->n_ranks,
        share->n_ranks > 1 ? "s" : "", residency_names[wanted], advice);
}

bool plan_print_ranks(const Planner *p, PlannedWork *work, Error *error) {
    RankShare share;
    const Residency wanted = (Residency)p->job->options.residency;
    if (!share_work(p, work, &share, error)) return error_add_place(error, "step %s", p->step->name);
    const RankDevice machine = p->limits ? *p->limits : this_machine(p, share.n_ranks);
    RankPlan plan;
    if (!choose(p, &share, &machine, &plan, error)) return false;
    work->seconds = plan.seconds * (double)share.n_passes;
    if (share.assumed)
        work->flops = plan.flops * (double)(share.work.n_tokens * share.n_passes * share.n_ranks);
    fprintf(p->to,
            "  plan: %lld x %s, %lld a node, experts over %lld, %s%s; a pass: %lld tokens a rank in %lld "
            "prompts%s\n",
            (long long)share.n_ranks, machine.name, (long long)machine.per_node, (long long)plan.group,
            residency_names[plan.residency],
            wanted != RESIDENCY_AUTO ? ""
            : plan.fits              ? " (the fastest that fits)"
                                     : " (the smallest)",
            (long long)share.work.n_tokens, (long long)share.work.n_prompts,
            share.assumed ? " (a full one, assumed)" : "");
    print_ranks(p, &share, &plan);
    print_bytes(p, &plan);
    print_time(p, &share, &plan, &machine, work->seconds);
    return plan.fits || refuse(p, &share, &plan, &machine, error);
}

/* ---- prompts that cannot be read ---- */
static bool count_prompts(const Planner *p, int64_t *n, Error *error) {
    bool ok = true;
    *n = 0;
    for (int64_t g = 0; ok && g < p->step->groups.n; g++) {
        PromptFile file = {0};
        ok = prompts_read(job_prompts(p->job, p->step->groups.names[g]), &file, error);
        *n += file.n;
        prompts_free(&file);
    }
    return ok;
}

bool plan_unread(const Planner *p, PlannedWork *work, Error *error) {
    int64_t n = 0;
    if (!count_prompts(p, &n, error)) return false;
    work->n_tokens = n * ASSUMED_TOKENS;
    if (p->step->kind == STEP_INTERVENTION) work->times = (double)conditions_count(p->step);
    fprintf(p->to,
            "step %s: %s of model %s (%s)\n  %lld prompts, taken to be of %d tokens each: the model's folder "
            "has no tokenizer.json\n",
            p->step->name, step_kind_names[p->step->kind], p->step->model, p->config->family, (long long)n,
            ASSUMED_TOKENS);
    return plan_print_ranks(p, work, error);
}

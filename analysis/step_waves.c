/* The blocks of a step, measured by all ranks together.
 *
 * A wave is as many unfinished blocks as there are ranks. Its prompts, one after another, are cut into one
 * run of prompts a rank with nearly equal numbers of tokens, each rank measures its own, and rank 0
 * gathers and saves block by block. The cut is a function of lengths and ranks alone, and what is measured
 * of a prompt does not depend on it: the run folder has the same bytes for any number of ranks, and can be
 * gone on with by another one. */
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "step.h"
#include <string.h>

typedef struct {
    int64_t group, first, n;
    int64_t done;      /* 1: measured, in this run or an earlier one; the same on every rank */
    Measures measures; /* of rank 0 */
} PlannedBlock;

typedef struct {
    const StepRun *run;
    const PromptGroup *groups;
    PlannedBlock *blocks;
    int64_t n_blocks, n_done; /* blocks; prompts */
} Plan;

static bool plan_make(Plan *plan, Error *error) {
    int64_t n_groups = plan->run->step->groups.n;
    for (int64_t g = 0; g < n_groups; g++)
        plan->n_blocks += (plan->groups[g].n + BLOCK_PROMPTS - 1) / BLOCK_PROMPTS;
    plan->blocks = mem_zeroed((size_t)plan->n_blocks, sizeof *plan->blocks);
    if (!plan->blocks)
        return error_out_of_memory(error, "blocks of prompts", (size_t)plan->n_blocks * sizeof *plan->blocks);
    PlannedBlock *block = plan->blocks;
    for (int64_t g = 0; g < n_groups; g++)
        for (int64_t first = 0; first < plan->groups[g].n; first += BLOCK_PROMPTS)
            *block++ = (PlannedBlock){g, first, step_block_length(&plan->groups[g], first), 0, {0}};
    return true;
}

static void plan_free(Plan *plan) {
    for (int64_t b = 0; plan->blocks && b < plan->n_blocks; b++) measures_free(&plan->blocks[b].measures);
    mem_free(plan->blocks);
}

/* What earlier runs finished, by rank 0. */
static bool load_blocks(const Plan *plan, Error *error) {
    const StepRun *run = plan->run;
    const ModelConfig *config = &run->model->config;
    const Measures shape = {
        .kind = run->step->kind, .n_layers = config->n_moe_layers, .n_experts = config->n_experts};
    bool ok = true;
    for (int64_t b = 0; ok && b < plan->n_blocks; b++) {
        PlannedBlock *block = &plan->blocks[b];
        bool there = false;
        char *path = step_block_path(run, "blocks", &plan->groups[block->group], block->first, error);
        ok = path && step_load_block(run, path, &shape, block->n, &block->measures, &there, error);
        block->done = ok && there;
        mem_free(path);
    }
    return ok;
}

/* All ranks learn which blocks are there. */
static bool share_done(Plan *plan, Error *error) {
    int64_t *done = mem_zeroed((size_t)plan->n_blocks, sizeof *done);
    bool ok = done || error_out_of_memory(error, "blocks of prompts", (size_t)plan->n_blocks * sizeof *done);
    if (!comm_agree(plan->run->comm, ok, error)) {
        mem_free(done);
        return false;
    }
    for (int64_t b = 0; b < plan->n_blocks; b++) done[b] = plan->blocks[b].done;
    comm_max_i64(plan->run->comm, done, plan->n_blocks);
    for (int64_t b = 0; b < plan->n_blocks; b++) {
        plan->blocks[b].done = done[b];
        if (done[b]) plan->n_done += plan->blocks[b].n;
    }
    mem_free(done);
    return true;
}

/* ---- a wave ---- */
typedef struct {
    PlannedBlock *blocks[COMM_MAX_RANKS];
    int64_t n;
    int64_t (*rows)[COMM_MAX_RANKS]; /* [n] prompts of a block that each rank measures */
    BlockResult *parts;              /* [n] this rank's */
} Wave;

/* What a prompt costs: its tokens, those to be generated included. */
static int64_t prompt_cost(const StepRun *run, const EncodedPrompt *prompt) {
    return prompt->n_prompt + (step_reads_targets(run->step) ? prompt->n_target : 0) +
           (step_generates(run->step) ? run->step->max_new_tokens : 0);
}

static int64_t block_cost(const Plan *plan, const PlannedBlock *block) {
    int64_t cost = 0;
    for (int64_t i = 0; i < block->n; i++)
        cost += prompt_cost(plan->run, &plan->groups[block->group].prompts[block->first + i]);
    return cost;
}

/* A prompt goes to the rank in whose equal share of the wave's cost its middle lies. */
static void cut_wave(const Plan *plan, Wave *wave) {
    int64_t total = 0, before = 0, size = plan->run->comm->size;
    for (int64_t b = 0; b < wave->n; b++) total += block_cost(plan, wave->blocks[b]);
    for (int64_t b = 0; b < wave->n; b++) {
        const PlannedBlock *block = wave->blocks[b];
        for (int64_t i = 0; i < block->n; i++) {
            int64_t cost = prompt_cost(plan->run, &plan->groups[block->group].prompts[block->first + i]);
            int64_t rank = total ? (2 * before + cost) * size / (2 * total) : 0;
            wave->rows[b][rank < size ? rank : size - 1]++;
            before += cost;
        }
    }
}

static bool wave_make(const Plan *plan, Wave *wave, Error *error) {
    *wave = (Wave){0};
    for (int64_t b = 0; b < plan->n_blocks && wave->n < plan->run->comm->size; b++)
        if (!plan->blocks[b].done) wave->blocks[wave->n++] = &plan->blocks[b];
    wave->rows = mem_zeroed((size_t)wave->n, sizeof *wave->rows);
    wave->parts = mem_zeroed((size_t)wave->n, sizeof *wave->parts);
    if (!wave->rows || !wave->parts)
        return error_out_of_memory(error, "a wave of blocks", (size_t)wave->n * sizeof *wave->parts);
    cut_wave(plan, wave);
    return true;
}

static void wave_free(Wave *wave) {
    for (int64_t b = 0; wave->parts && b < wave->n; b++) step_free_block(&wave->parts[b]);
    mem_free(wave->parts);
    mem_free(wave->rows);
}

static bool measure_wave(const Plan *plan, Wave *wave, Error *error) {
    bool ok = wave_make(plan, wave, error);
    int64_t n_before = plan->n_done;
    for (int64_t b = 0; ok && b < wave->n; b++) {
        const PlannedBlock *block = wave->blocks[b];
        int64_t first = block->first, n = wave->rows[b][plan->run->comm->rank];
        for (int r = 0; r < plan->run->comm->rank; r++) first += wave->rows[b][r];
        ok = step_measure_block(plan->run, &plan->groups[block->group], first, n, n_before, &wave->parts[b],
                                error);
        n_before += n;
    }
    return ok;
}

/* Rank 0 counts what the others' passes read too. */
static void count_tokens(const StepRun *run, const Measures *m, int64_t n_own) {
    for (int64_t p = n_own; p < m->n_prompts; p++) run->progress->n_tokens += m->n_tokens[p];
}

static bool save_wave(Plan *plan, Wave *wave, Error *error) {
    const StepRun *run = plan->run;
    bool ok = true;
    for (int64_t b = 0; b < wave->n; b++) {
        PlannedBlock *block = wave->blocks[b];
        BlockResult whole;
        step_gather_block(run, &wave->parts[b], wave->rows[b], &whole);
        block->done = 1;
        plan->n_done += block->n;
        if (run->comm->rank) continue;
        ok = ok && step_save_block(run, &plan->groups[block->group], block->first, &whole, error);
        count_tokens(run, &whole.measures, wave->rows[b][0]);
        block->measures = whole.measures;
        whole.measures = (Measures){0};
        step_free_block(&whole);
    }
    return ok && progress_update(run->progress, plan->n_done, run->progress->n_tokens, error);
}

/* What failed in a wave's end on rank 0 is agreed on at the next one's. */
static bool run_waves(Plan *plan, int64_t n_total, Error *error) {
    const StepRun *run = plan->run;
    bool ok = true;
    for (int64_t n = 0; plan->n_done < n_total; n++) {
        Wave wave = {0};
        comm_phase("step %.40s, wave %lld", run->step->name, (long long)n);
        ok = ok && measure_wave(plan, &wave, error);
        ok = comm_agree(run->comm, ok, error);
        if (ok)
            ok = save_wave(plan, &wave, error);
        else
            n_total = 0;
        wave_free(&wave);
    }
    return comm_agree(run->comm, ok, error);
}

/* ---- the step ---- */
static bool put_together(const Plan *plan, Measures *measures, Error *error) {
    const ModelConfig *config = &plan->run->model->config;
    bool ok = true;
    for (int64_t g = 0; ok && g < plan->run->step->groups.n; g++)
        ok = measures_make(plan->run->step->kind, plan->groups[g].n, config->n_moe_layers, config->n_experts,
                           &measures[g], error);
    for (int64_t b = 0; ok && b < plan->n_blocks; b++) {
        PlannedBlock *block = &plan->blocks[b];
        ok = measures_append(&measures[block->group], block->first, &block->measures, error);
        measures_free(&block->measures);
    }
    return ok;
}

bool step_measure_groups(const StepRun *run, const PromptGroup *groups, Measures *measures, Error *error) {
    Plan plan = {.run = run, .groups = groups};
    int64_t n_total = 0;
    for (int64_t g = 0; g < run->step->groups.n; g++) n_total += groups[g].n;
    comm_phase("step %.40s", run->step->name);
    bool ok = plan_make(&plan, error) && (run->comm->rank || load_blocks(&plan, error));
    ok = comm_agree(run->comm, ok, error) && share_done(&plan, error);
    if (ok) {
        ok = progress_begin(run->progress, run->step->name, n_total, plan.n_done, "prompts", error);
        ok = comm_agree(run->comm, ok, error) && run_waves(&plan, n_total, error);
    }
    if (ok && run->comm->rank == 0)
        ok = put_together(&plan, measures, error) &&
             progress_update(run->progress, n_total, run->progress->n_tokens, error) &&
             progress_end(run->progress, error);
    plan_free(&plan);
    return ok;
}

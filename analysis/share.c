/* Waves of blocks, dealt out, measured in turns, gathered. */
#include "share.h"
#include "../engine/alloc.h"
#include "share_parts.h"
#include <string.h>

/* ---- blocks ---- */
static int64_t item_of(const ShareList *list, int64_t unit) {
    return list->begin ? list->begin[unit] : unit * list->n_each;
}

static bool make_blocks(Share *share, Error *error) {
    for (int64_t l = 0; l < share->n_lists; l++)
        share->n_blocks += (share->lists[l].n + BLOCK_PROMPTS - 1) / BLOCK_PROMPTS;
    const size_t n = (size_t)share->n_blocks;
    share->blocks = mem_zeroed(n, sizeof *share->blocks);
    if (!share->blocks) return error_out_of_memory(error, "blocks of prompts", n * sizeof *share->blocks);
    ShareBlock *block = share->blocks;
    for (int64_t l = 0; l < share->n_lists; l++)
        for (int64_t first = 0; first < share->lists[l].n; first += BLOCK_PROMPTS) {
            const ShareList *list = &share->lists[l];
            const int64_t left = list->n - first, units = left < BLOCK_PROMPTS ? left : BLOCK_PROMPTS,
                          item = item_of(list, first), n_items = item_of(list, first + units) - item;
            *block++ = (ShareBlock){.list = l, .first = first, .n = units, .item = item, .n_items = n_items};
            share->n_items += n_items;
        }
    return true;
}

/* What earlier runs finished, by rank 0. */
static bool load_blocks(const Share *share, Error *error) {
    bool ok = true;
    for (int64_t b = 0; ok && b < share->n_blocks; b++) {
        bool there = false;
        ok = share_load(share, &share->blocks[b], &there, error);
        share->blocks[b].done = ok && there;
    }
    return ok;
}

/* All ranks learn which blocks are there. */
static bool tell_done(Share *share, Error *error) {
    int64_t *done = mem_zeroed((size_t)share->n_blocks, sizeof *done);
    const bool ok =
        done || error_out_of_memory(error, "blocks of prompts", (size_t)share->n_blocks * sizeof *done);
    if (!comm_agree(share->run->comm, ok, error)) {
        mem_free(done);
        return false;
    }
    for (int64_t b = 0; b < share->n_blocks; b++) done[b] = share->blocks[b].done;
    comm_max_i64(share->run->comm, done, share->n_blocks);
    for (int64_t b = 0; b < share->n_blocks; b++) {
        share->blocks[b].done = done[b];
        if (done[b]) share->n_done += share->blocks[b].n_items;
    }
    mem_free(done);
    return true;
}

/* ---- a wave ---- */
typedef struct {
    int64_t n;
    ShareBlock *blocks[COMM_MAX_RANKS];
    int64_t (*items)[COMM_MAX_RANKS]; /* [n] of a block that each rank measures */
    SharePart *parts;                 /* [n] this rank's */
    int64_t n_taken;                  /* items that this rank is through with */
} Wave;

static int64_t block_cost(const Share *share, const ShareBlock *block) {
    int64_t cost = 0;
    for (int64_t i = 0; i < block->n_items; i++) cost += share->cost(share, block->list, block->item + i);
    return cost;
}

/* An item goes to the rank in whose equal share of the wave's cost its middle lies. */
static void cut_wave(const Share *share, Wave *wave) {
    int64_t total = 0, before = 0, size = share->run->comm->size;
    for (int64_t b = 0; b < wave->n; b++) total += block_cost(share, wave->blocks[b]);
    for (int64_t b = 0; b < wave->n; b++) {
        const ShareBlock *block = wave->blocks[b];
        for (int64_t i = 0; i < block->n_items; i++) {
            int64_t cost = share->cost(share, block->list, block->item + i);
            int64_t rank = total ? (2 * before + cost) * size / (2 * total) : 0;
            wave->items[b][rank < size ? rank : size - 1]++;
            before += cost;
        }
    }
}

static bool make_parts(const Share *share, Wave *wave, Error *error) {
    const int rank = share->run->comm->rank;
    bool ok = true;
    for (int64_t b = 0; ok && b < wave->n; b++) {
        SharePart *part = &wave->parts[b];
        *part =
            (SharePart){.block = wave->blocks[b], .first = wave->blocks[b]->item, .n = wave->items[b][rank]};
        for (int r = 0; r < rank; r++) part->first += wave->items[b][r];
        ok = share_make_part(share, part, error);
    }
    return ok;
}

static bool wave_make(const Share *share, Wave *wave, Error *error) {
    *wave = (Wave){0};
    for (int64_t b = 0; b < share->n_blocks && wave->n < share->run->comm->size; b++)
        if (!share->blocks[b].done) wave->blocks[wave->n++] = &share->blocks[b];
    wave->items = mem_zeroed((size_t)wave->n, sizeof *wave->items);
    wave->parts = mem_zeroed((size_t)wave->n, sizeof *wave->parts);
    if (!wave->items || !wave->parts)
        return error_out_of_memory(error, "a wave of blocks", (size_t)wave->n * sizeof *wave->parts);
    cut_wave(share, wave);
    return make_parts(share, wave, error);
}

static void wave_free(Wave *wave) {
    for (int64_t b = 0; wave->parts && b < wave->n; b++) {
        step_free_block(&wave->parts[b].result);
        mem_free(wave->parts[b].values);
    }
    mem_free(wave->parts);
    mem_free(wave->items);
}

/* ---- turns ---- */
static int64_t count_turns(const Share *share, const Wave *wave, int stage) {
    int64_t n = 0;
    for (int64_t b = 0; b < wave->n; b++)
        for (int64_t at = 0; at < wave->parts[b].n; n++)
            at += share->batch(share, &wave->parts[b], stage, at);
    return n;
}

static bool update(const Share *share, int64_t n_items, Error *error) {
    Progress *progress = share->run->progress;
    return progress_update(progress, n_items * (share->n_values ? 1 : share->n_rows), progress->n_tokens,
                           error);
}

/* The next of this rank's own turns; *b and *at are where it begins and are moved on. */
static bool take_turn(const Share *share, Wave *wave, int stage, int64_t *b, int64_t *at, Error *error) {
    while (*at == wave->parts[*b].n) ++*b, *at = 0;
    SharePart *part = &wave->parts[*b];
    const int64_t n = share->batch(share, part, stage, *at);
    const bool ok = share->measure(share, part, stage, *at, n, error);
    *at += n;
    if (stage == share->n_stages - 1) wave->n_taken += n;
    return ok && update(share, share->n_done + wave->n_taken, error);
}

static bool take_turns(const Share *share, Wave *wave, int stage, Error *error) {
    const int64_t n_own = count_turns(share, wave, stage),
                  n_all = model_agree_passes(share->run->model, n_own);
    int64_t b = 0, at = 0;
    bool ok = true;
    for (int64_t turn = 0; ok && turn < n_all; turn++) {
        ok = turn < n_own ? take_turn(share, wave, stage, &b, &at, error) : share->serve(share, stage, error);
        ok = ok && step_goes_on(share->run, error);
    }
    return ok;
}

/* On a spread model the others are on their way into a collective when one rank fails: it ends the job. All
 * are interrupted together, though. */
static bool lost(const Share *share, const Error *error) {
    if (error->code != ERROR_INTERRUPTED && spread_any(&share->run->model->spread))
        comm_fail(share->run->comm, error);
    return false;
}

static bool measure_wave(const Share *share, Wave *wave, Error *error) {
    bool ok = wave_make(share, wave, error);
    for (int stage = 0; ok && stage < share->n_stages; stage++) {
        for (int64_t b = 0; ok && share->begin && b < wave->n; b++)
            ok = share->begin(share, &wave->parts[b], stage, error);
        ok = ok && take_turns(share, wave, stage, error);
    }
    return ok || lost(share, error);
}

static bool save_wave(Share *share, Wave *wave, Error *error) {
    bool ok = true;
    for (int64_t b = 0; b < wave->n; b++) {
        const bool kept = share_keep(share, &wave->parts[b], wave->blocks[b], wave->items[b], ok, error);
        ok = ok && kept;
        wave->blocks[b]->done = 1;
        share->n_done += wave->blocks[b]->n_items;
    }
    return (ok && update(share, share->n_done, error)) || lost(share, error);
}

/* Rank 0 counts what the others' passes read too. */
static void count_tokens(const Share *share, int64_t n_before) {
    Progress *progress = share->run->progress;
    int64_t n = progress->n_tokens - n_before;
    comm_sum_i64(share->run->comm, &n, 1);
    if (share->run->comm->rank == 0) progress->n_tokens = n_before + n;
}

/* What failed in a wave's end on rank 0 is agreed on at the next one's, but for spread models. */
static bool run_waves(Share *share, Error *error) {
    const StepRun *run = share->run;
    bool ok = true, on = true;
    for (int64_t n = 0; on && share->n_done < share->n_items; n++) {
        Wave wave = {0};
        const int64_t n_tokens = run->progress->n_tokens;
        comm_phase("step %.40s, wave %lld", run->step->name, (long long)n);
        ok = ok && measure_wave(share, &wave, error);
        on = ok = comm_agree(run->comm, ok, error);
        if (ok) {
            count_tokens(share, n_tokens);
            ok = save_wave(share, &wave, error);
        }
        wave_free(&wave);
    }
    return comm_agree(run->comm, ok, error);
}

/* ---- the step ---- */
bool share_run(Share *share, Error *error) {
    const StepRun *run = share->run;
    const int64_t n_each = share->n_values ? 1 : share->n_rows;
    comm_phase("step %.40s", run->step->name);
    bool ok = make_blocks(share, error) && (run->comm->rank || load_blocks(share, error));
    ok = comm_agree(run->comm, ok, error) && tell_done(share, error);
    if (!ok) return false;
    ok = progress_begin(run->progress, run->step->name, share->n_items * n_each, share->n_done * n_each,
                        share->unit, error);
    ok = comm_agree(run->comm, ok, error) && run_waves(share, error);
    ok = ok &&
         (run->comm->rank || (update(share, share->n_items, error) && progress_end(run->progress, error)));
    return comm_agree(run->comm, ok, error);
}

void share_free(Share *share) {
    for (int64_t b = 0; share->blocks && b < share->n_blocks; b++) measures_free(&share->blocks[b].measures);
    mem_free(share->blocks);
    share->blocks = NULL;
    share->n_blocks = 0;
}

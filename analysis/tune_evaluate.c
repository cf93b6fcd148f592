/* Held-out groups, shared by the ranks: their loss on the way, when it has stopped falling, and the values
 * with the least of it.
 * What is best follows from the rows alone, so that a resumed training decides as an undisturbed one. */
#include "../engine/alloc.h"
#include "likelihood.h"
#include "tune_parts.h"
#include <math.h>
#include <string.h>

/* ---- one measure ---- */
/* Summed NLL of the targets of prompts [first, first + n) of a group, by a model. */
static bool sum_losses(const Model *model, const PromptGroup *group, int64_t first, int64_t n, double *sums,
                       Error *error) {
    ScoredText *texts = mem_zeroed((size_t)n, sizeof *texts);
    bool ok = texts || error_out_of_memory(error, "held-out prompts", (size_t)n * sizeof *texts);
    for (int64_t i = 0; ok && i < n; i++) {
        const EncodedPrompt *prompt = &group->prompts[first + i];
        texts[i] = (ScoredText){.prompt = prompt,
                                .behind = prompt->tokens + prompt->n_prompt,
                                .n_behind = prompt->n_target,
                                .prompt_set = -1,
                                .behind_set = -1};
    }
    ok = ok && likelihood_of_texts(model, NULL, texts, n, NULL, sums, error);
    for (int64_t i = 0; ok && i < n; i++) sums[i] *= (double)texts[i].n_behind;
    mem_free(texts);
    return ok;
}

typedef struct {
    double sum;
    int64_t n; /* what the sum is divided by: target tokens, or pairs */
} HeldOut;

/* A group, of which each rank measures its own prompts. */
typedef struct {
    const PromptGroup *sides[2]; /* the second NULL: no pairs */
    Range own;
    double *losses;     /* [2,n] of the group */
    double *references; /* [2,n] by the frozen model, of pairs */
} HeldOutGroup;

/* Prompts [first, first + n): a pass, or of pairs one a side, and where they are not known one more for their
 * references. */
static bool measure_batch(const Tuning *t, const HeldOutGroup *g, int64_t first, int64_t n, Error *error) {
    const Model frozen = tune_frozen_model(t);
    for (int64_t s = 0; s < 2 && g->sides[s]; s++) {
        const int64_t at = s * g->sides[0]->n + first;
        if (!sum_losses(&t->model, g->sides[s], first, n, g->losses + at, error)) return false;
        if (g->sides[1] && !t->knows_held_out &&
            !sum_losses(&frozen, g->sides[s], first, n, g->references + at, error))
            return false;
    }
    return true;
}

/* A rank's part in the passes of a batch that others have. */
static void serve_batch(const Tuning *t, const HeldOutGroup *g) {
    const Model frozen = tune_frozen_model(t);
    const PassOptions options = {.want_nll = true};
    for (int64_t s = 0; s < 2 && g->sides[s]; s++) {
        model_serve(&t->model, &options);
        if (g->sides[1] && !t->knows_held_out) model_serve(&frozen, &options);
    }
}

/* A failed batch leaves passes that peers wait for: where weights travel it ends the job. */
static bool measure_own(const Tuning *t, const HeldOutGroup *g, Error *error) {
    const Block block = {.step = t->run->step, .group = g->sides[0], .n = g->own.first + g->own.n};
    const BatchLimits limits = step_limits(t->run->job);
    int64_t n_batches = 0;
    bool ok = true;
    for (int64_t at = g->own.first; at < block.n; n_batches++) at += batch_size(&block, at, 0, limits);
    int64_t n_left = model_agree_passes(&t->model, n_batches);
    for (int64_t at = g->own.first, n; ok && at < block.n; at += n, n_left--) {
        n = batch_size(&block, at, 0, limits);
        ok = measure_batch(t, g, at, n, error);
        if (!ok && spread_any(&t->model.spread)) comm_fail(t->run->comm, error);
        ok = ok && tune_goes_on(t->run, error);
    }
    for (; spread_any(&t->model.spread) && n_left > 0; n_left--) serve_batch(t, g);
    return ok;
}

static bool deal_group(const Tuning *t, HeldOutGroup *g, Error *error) {
    const int64_t n = g->sides[0]->n;
    int64_t *lengths = mem_zeroed((size_t)n, sizeof *lengths);
    bool ok = lengths || error_out_of_memory(error, "held-out prompts", (size_t)n * sizeof *lengths);
    for (int64_t i = 0; ok && i < n; i++)
        for (int64_t s = 0; s < 2 && g->sides[s]; s++)
            lengths[i] += g->sides[s]->prompts[i].n_prompt + g->sides[s]->prompts[i].n_target;
    ok = ok && tune_own_texts(t->run->comm, lengths, n, &g->own, error);
    mem_free(lengths);
    g->losses = ok ? mem_zeroed(2 * (size_t)n, sizeof *g->losses) : NULL;
    return ok &&
           (g->losses || error_out_of_memory(error, "held-out prompts", 2 * (size_t)n * sizeof(double)));
}

/* Prompt by prompt in their order, tokens counted alike. */
static void add_group(const Tuning *t, const HeldOutGroup *g, HeldOut *to) {
    const int64_t n = g->sides[0]->n;
    for (int64_t i = 0; i < n; i++) {
        if (!g->sides[1]) {
            to->sum += g->losses[i];
            to->n += g->sides[0]->prompts[i].n_target;
            continue;
        }
        const double nll[] = {g->losses[i], g->losses[n + i]},
                     reference[] = {g->references[i], g->references[n + i]};
        to->sum += tune_preference_loss(tune_margin(t->run->step, nll, reference));
        to->n++;
    }
}

/* Group g, from number n_before of all held-out prompts on. */
static bool measure_group(const Tuning *t, int64_t number, int64_t n_before, HeldOut *to, Error *error) {
    const TuneGroups *all = &t->held_out;
    HeldOutGroup g = {.sides = {&all->groups[number], all->others ? &all->others[number] : NULL}};
    Comm *comm = t->run->comm;
    const int64_t n = g.sides[0]->n;
    if (all->others) g.references = t->held_out_references + 2 * n_before;
    bool ok = comm_agree(comm, deal_group(t, &g, error), error) &&
              comm_agree(comm, measure_own(t, &g, error), error);
    for (int64_t s = 0; ok && s < 2 && g.sides[s]; s++) {
        tune_share(comm, g.losses + s * n, n, g.own.first, g.own.n);
        if (all->others && !t->knows_held_out)
            tune_share(comm, g.references + s * n, n, g.own.first, g.own.n);
    }
    if (ok) add_group(t, &g, to);
    mem_free(g.losses);
    return ok;
}

static bool measure(Tuning *t, double *loss, Error *error) {
    HeldOut sum = {0};
    comm_phase("step %.40s, held-out groups after %lld", t->run->step->name, (long long)t->n_done);
    for (int64_t g = 0, n = 0; g < t->held_out.n; n += t->held_out.groups[g++].n)
        if (!measure_group(t, g, n, &sum, error)) return false;
    t->knows_held_out = true;
    *loss = sum.sum / (double)sum.n;
    return true;
}

bool tune_held_out_open(Tuning *t, Error *error) {
    int64_t n = 0;
    for (int64_t g = 0; g < t->held_out.n; g++) n += 2 * t->held_out.groups[g].n;
    if (!t->held_out.others) return true;
    t->held_out_references = mem_zeroed((size_t)n, sizeof *t->held_out_references);
    return t->held_out_references ||
           error_out_of_memory(error, "held-out pairs", (size_t)n * sizeof *t->held_out_references);
}

/* ---- what follows ---- */
int64_t tune_best_step(const Tuning *t) {
    int64_t best = -1;
    for (int64_t k = 0; t->run->step->evaluate.n && k <= t->n_done; k++)
        if (!isnan(t->rows[k].held_out) && (best < 0 || t->rows[k].held_out < t->rows[best].held_out))
            best = k;
    return best;
}

bool tune_is_over(const Tuning *t) {
    const int64_t best = tune_best_step(t);
    int64_t n_worse = 0;
    for (int64_t k = best + 1; best >= 0 && k <= t->n_done; k++) n_worse += !isnan(t->rows[k].held_out);
    return t->n_done == t->data.n_steps || (t->run->step->patience && n_worse >= t->run->step->patience);
}

bool tune_evaluate(Tuning *t, Error *error) {
    const StepOptions *step = t->run->step;
    TuneRow *row = &t->rows[t->n_done];
    row->held_out = (double)NAN;
    if (!step->evaluate.n || (t->n_done % step->evaluate_every && t->n_done != t->data.n_steps)) return true;
    if (!measure(t, &row->held_out, error)) return error_add_place(error, "held-out groups");
    if (!step->patience || tune_best_step(t) != t->n_done) return true;
    t->model.device->copy_out(t->training.queue, t->best, t->weights.values);
    return comm_agree(t->run->comm, queue_wait(t->model.device, t->training.queue, error), error);
}

bool tune_take_best(Tuning *t, Error *error) {
    if (!t->run->step->patience) return true;
    t->model.device->copy_in(t->training.queue, t->weights.values, t->best);
    return queue_wait(t->model.device, t->training.queue, error);
}

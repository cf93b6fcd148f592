/* Held-out groups: their loss on the way, when it has stopped falling, and the values with the least of it.
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

/* What goes through the model together. */
typedef struct {
    const PromptGroup *group, *other; /* other NULL: no pairs */
    int64_t first, n;                 /* prompts of them */
    double *references;               /* [2 n] of pairs: made where they are not known */
    double *sums;                     /* room for 2 n */
} HeldOutPart;

/* Losses of the targets, tokens counted alike. */
static bool add_losses(const Tuning *t, const HeldOutPart *p, HeldOut *to, Error *error) {
    if (!sum_losses(&t->model, p->group, p->first, p->n, p->sums, error)) return false;
    for (int64_t i = 0; i < p->n; i++) {
        to->sum += p->sums[i];
        to->n += p->group->prompts[p->first + i].n_target;
    }
    return true;
}

static bool add_preferences(const Tuning *t, const HeldOutPart *p, HeldOut *to, Error *error) {
    Model frozen = t->model;
    frozen.adapter = NULL;
    const PromptGroup *const sides[] = {p->group, p->other};
    for (int64_t s = 0; s < 2; s++) {
        double *references = p->references + s * p->n;
        if (!sum_losses(&t->model, sides[s], p->first, p->n, p->sums + s * p->n, error) ||
            (isnan(*references) && !sum_losses(&frozen, sides[s], p->first, p->n, references, error)))
            return false;
    }
    for (int64_t i = 0; i < p->n; i++) {
        const double nll[] = {p->sums[i], p->sums[p->n + i]},
                     reference[] = {p->references[i], p->references[p->n + i]};
        to->sum += tune_preference_loss(tune_margin(t->run->step, nll, reference));
        to->n++;
    }
    return true;
}

/* A group, from number n_before of all held-out prompts on. */
static bool measure_group(const Tuning *t, int64_t g, int64_t n_before, HeldOut *to, Error *error) {
    const PromptGroup *group = &t->held_out.groups[g];
    const Block block = {.step = t->run->step, .group = group, .n = group->n};
    HeldOutPart part = {.group = group, .other = t->held_out.others ? &t->held_out.others[g] : NULL};
    part.sums = mem_zeroed(2 * (size_t)group->n, sizeof *part.sums);
    bool ok =
        part.sums || error_out_of_memory(error, "held-out prompts", 2 * (size_t)group->n * sizeof(double));
    for (; ok && part.first < group->n; part.first += part.n) {
        part.n = batch_size(&block, part.first, 0, step_limits(t->run->job));
        if (part.other) part.references = t->held_out_references + 2 * (n_before + part.first);
        ok = (part.other ? add_preferences : add_losses)(t, &part, to, error) && step_goes_on(t->run, error);
    }
    mem_free(part.sums);
    return ok;
}

static bool measure(const Tuning *t, double *loss, Error *error) {
    HeldOut sum = {0};
    for (int64_t g = 0, n = 0; g < t->held_out.n; n += t->held_out.groups[g++].n)
        if (!measure_group(t, g, n, &sum, error)) return false;
    *loss = sum.sum / (double)sum.n;
    return true;
}

bool tune_held_out_open(Tuning *t, Error *error) {
    int64_t n = 0;
    for (int64_t g = 0; g < t->held_out.n; g++) n += 2 * t->held_out.groups[g].n;
    if (!t->held_out.others) return true;
    t->held_out_references = mem_alloc((size_t)n * sizeof *t->held_out_references);
    for (int64_t i = 0; t->held_out_references && i < n; i++) t->held_out_references[i] = (double)NAN;
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
    return queue_wait(t->model.device, t->training.queue, error);
}

bool tune_take_best(Tuning *t, Error *error) {
    if (!t->run->step->patience) return true;
    t->model.device->copy_in(t->training.queue, t->weights.values, t->best);
    return queue_wait(t->model.device, t->training.queue, error);
}

/* Held-out groups: their loss on the way, when it has stopped falling, and the values with the least of it.
 * What is best follows from the rows alone, so that a resumed training decides as an undisturbed one. */
#include "../engine/alloc.h"
#include "likelihood.h"
#include "tune_parts.h"
#include <math.h>
#include <string.h>

bool tune_read_held_out(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                        const Inputs *inputs, PromptGroup **groups, Text *notes, Error *error) {
    StepOptions own = *step;
    own.groups = step->evaluate;
    return !step->evaluate.n || step_read_groups(job, &own, encoder, inputs, groups, notes, error);
}

/* ---- one measure ---- */
/* Prompts [first, end) of a group: adds their targets' losses, tokens counted alike. */
static bool add_losses(const Tuning *t, const PromptGroup *group, int64_t first, int64_t end, double *sum,
                       Error *error) {
    const int64_t n = end - first;
    ScoredText *texts = mem_zeroed((size_t)n, sizeof *texts);
    double *means = mem_zeroed((size_t)n, sizeof *means);
    bool ok = (texts && means) || error_out_of_memory(error, "held-out prompts", (size_t)n * sizeof *texts);
    for (int64_t i = 0; ok && i < n; i++) {
        const EncodedPrompt *prompt = &group->prompts[first + i];
        texts[i] = (ScoredText){.prompt = prompt,
                                .behind = prompt->tokens + prompt->n_prompt,
                                .n_behind = prompt->n_target,
                                .prompt_set = -1,
                                .behind_set = -1};
    }
    ok = ok && likelihood_of_texts(&t->model, NULL, texts, n, NULL, means, error);
    for (int64_t i = 0; ok && i < n; i++) *sum += means[i] * (double)texts[i].n_behind;
    mem_free(texts);
    mem_free(means);
    return ok && step_goes_on(t->run, error);
}

static bool measure(const Tuning *t, double *loss, Error *error) {
    const BatchLimits limits = step_limits(t->run->job);
    double sum = 0;
    int64_t n_targets = 0;
    for (int64_t g = 0; g < t->run->step->evaluate.n; g++) {
        const PromptGroup *group = &t->held_out[g];
        const Block block = {.step = t->run->step, .group = group, .n = group->n};
        for (int64_t first = 0, n; first < group->n; first += n) {
            n = batch_size(&block, first, 0, limits);
            if (!add_losses(t, group, first, first + n, &sum, error)) return false;
        }
        for (int64_t i = 0; i < group->n; i++) n_targets += group->prompts[i].n_target;
    }
    *loss = sum / (double)n_targets;
    return true;
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

/* One optimizer step: its examples in passes of as many tokens as the job allows, their gradients gathered,
 * the updates changed. Which examples share a pass changes no bit. */
#include "tune_parts.h"
#include <math.h>

/* The end of the pass that begins with example `first`: at least one, its texts together. */
static int64_t part_end(const TunePack *p, int64_t first) {
    const BatchLimits limits = step_limits(p->tuning->run->job);
    int64_t end = first + 1;
    while (end < p->n &&
           batch_fits(limits, end + 1 - first, p->offsets[p->each * (end + 1)] - p->offsets[p->each * first]))
        end++;
    return end;
}

/* A number that is not finite: which example brings it about, each alone. */
static bool locate(TunePack *p, Error *error) {
    Tuning *t = p->tuning;
    if (error->code != ERROR_FAILED) return false;
    for (int64_t i = 0; i < p->n; i++) {
        const TunePart one = {p, i * p->each, (i + 1) * p->each, 0};
        Error own = {0};
        TuneSums sums = {0};
        double norm;
        if (tune_part_run(&one, &sums, &own) && lora_training_gather(&t->training, p->each, &norm, &own))
            continue;
        if (own.code != ERROR_FAILED) return false;
        *error = (Error){0};
        error_set(error, own.code, "group %s, example \"%.80s\": %.1200s", p->examples[i]->group,
                  p->examples[i]->prompt->entry->id, own.text);
        return false;
    }
    return error_add_place(error, "all examples together");
}

static bool run_passes(TunePack *p, TuneSums *sums, double *norm, Error *error) {
    Tuning *t = p->tuning;
    for (int64_t first = 0, end; first < p->n; first = end) {
        end = part_end(p, first);
        const TunePart part = {p, first * p->each, end * p->each, first * p->each};
        if (!tune_part_run(&part, sums, error)) return locate(p, error);
        if (!step_goes_on(t->run, error)) return false;
    }
    return lora_training_gather(&t->training, p->n * p->each, norm, error) || locate(p, error);
}

static double mean(double sum, int64_t n, int64_t times) {
    return n && times ? sum / ((double)n * (double)times) : 0;
}

static TuneRow row_of(const TunePack *p, const TuneSums *sums) {
    const StepOptions *step = p->tuning->run->step;
    const bool pairs = p->each == 2;
    TuneRow row = {.loss = pairs ? mean(sums->preference, p->n, 1) : mean(sums->nll, p->n_targets, 1),
                   .n_examples = (double)p->n,
                   .n_targets = (double)p->n_targets,
                   .n_tokens = (double)p->offsets[p->n * p->each],
                   .held_out = (double)NAN,
                   .router_kl = mean(sums->kl, p->n_counted, p->tuning->model.config.n_moe_layers),
                   .router_distance = mean(sums->distance, p->n_counted, p->tuning->aims.n),
                   .margin = mean(sums->margin, p->n, 1),
                   .right = mean(sums->right, p->n, 1)};
    row.total = row.loss + step->router_kl * row.router_kl + step->router_anchor * row.router_distance;
    return row;
}

bool tune_step(Tuning *t, Error *error) {
    const StepOptions *step = t->run->step;
    AdamwOptions options = adamw_usual;
    options.decay = step->weight_decay;
    options.clip_norm = step->clip_norm;
    Schedule schedule = {(ScheduleKind)step->schedule, step->learning_rate, step->warmup, t->data.n_steps};
    const double rate = schedule_rate(&schedule, t->n_done);
    schedule.peak = step->gate_rate;
    t->training.optimizer.tail_rate = schedule_rate(&schedule, t->n_done);
    TunePack pack;
    TuneSums sums = {0};
    double norm = 0;
    bool ok = tune_pack_make(t, t->n_done, &pack, error) && run_passes(&pack, &sums, &norm, error) &&
              lora_training_step(&t->training, &options, rate, norm, error);
    if (ok) {
        TuneRow *row = &t->rows[++t->n_done];
        *row = row_of(&pack, &sums);
        row->norm = norm;
        row->rate = rate;
    }
    tune_pack_free(&pack);
    return ok;
}

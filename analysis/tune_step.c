/* One optimizer step: its examples dealt over ranks, in passes of as many tokens as the job allows, their
 * gradients gathered, the updates changed on every rank alike. Which examples share a pass, or a rank,
 * changes no bit. */
#include "tune_parts.h"
#include <math.h>

/* The end of the pass that begins with example `first` of a chunk that ends at `most`: at least one, its
 * texts together. */
static int64_t part_end(const TunePack *p, int64_t first, int64_t most) {
    const BatchLimits limits = step_limits(p->tuning->run->job);
    int64_t end = first + 1;
    while (end < most &&
           batch_fits(limits, end + 1 - first, p->offsets[p->each * (end + 1)] - p->offsets[p->each * first]))
        end++;
    return end;
}

/* A number that is not finite: which example brings it about, each alone. All ranks do this alike, every
 * example: they find the same one, and where a model is spread their passes are the same ones. */
static bool locate(TunePack *p, Error *error) {
    Tuning *t = p->tuning;
    if (error->code != ERROR_FAILED) return false;
    for (int64_t i = 0; i < p->n; i++) {
        const TunePart one = {p, i * p->each, (i + 1) * p->each, 0};
        Error own = {0};
        double norm;
        if (tune_part_run(&one, &own) && lora_training_gather(&t->training, p->each, &norm, &own)) continue;
        if (own.code != ERROR_FAILED) return false;
        *error = (Error){0};
        error_set(error, own.code, "group %s, example \"%.80s\": %.1200s", p->examples[i]->group,
                  p->examples[i]->prompt->entry->id, own.text);
        return false;
    }
    return error_add_place(error, "all examples together");
}

static int64_t count_passes(const TunePack *p, Range chunks) {
    int64_t n = 0;
    for (int64_t c = chunks.first; c < chunks.first + chunks.n; c++) {
        const Range own = lora_deal_examples(&p->deal, c);
        for (int64_t at = own.first; at < own.first + own.n; n++) at = part_end(p, at, own.first + own.n);
    }
    return n;
}

/* A chunk's passes, counted in *n, and its sum. */
static bool run_chunk(TunePack *p, int64_t chunk, int64_t number, int64_t *n, Error *error) {
    Tuning *t = p->tuning;
    const Range own = lora_deal_examples(&p->deal, chunk);
    for (int64_t at = own.first, end; at < own.first + own.n; at = end) {
        end = part_end(p, at, own.first + own.n);
        const TunePart part = {p, at * p->each, end * p->each, (at - own.first) * p->each};
        ++*n;
        if (!tune_part_run(&part, error) || !tune_goes_on(t->run, error)) return false;
    }
    return lora_leaves_keep(&t->leaves, &t->training, number, own.n * p->each, error);
}

/* This rank's examples; where the model is spread, as many passes as any rank has. */
static bool run_passes(TunePack *p, Error *error) {
    Tuning *t = p->tuning;
    const Range chunks = lora_deal_chunks(&p->deal, t->run->comm->rank);
    const int64_t n_all = model_agree_passes(&t->model, count_passes(p, chunks));
    int64_t n_run = 0;
    bool ok = true;
    for (int64_t i = 0; ok && i < chunks.n; i++) ok = run_chunk(p, chunks.first + i, i, &n_run, error);
    if (!spread_any(&t->model.spread)) return ok;
    if (n_run) tune_part_serve(p, p->n_entered);
    for (; n_run < n_all; n_run++) tune_part_serve(p, 0);
    return ok;
}

/* What other ranks found of their examples. */
static void share_sums(TunePack *p) {
    Comm *comm = p->tuning->run->comm;
    const Range chunks = lora_deal_chunks(&p->deal, comm->rank);
    const int64_t first = chunks.first * p->deal.each, last = (chunks.first + chunks.n) * p->deal.each,
                  end = last < p->n ? last : p->n;
    tune_share(comm, (double *)p->sums, p->n * TUNE_SUMS, first * TUNE_SUMS, (end - first) * TUNE_SUMS);
    for (int64_t i = 0; p->wants_references && i < p->n; i++)
        for (int64_t k = 0; k < p->each; k++) p->examples[i]->reference[k] = p->sums[i].reference[k];
}

static TuneSums add_sums(const TunePack *p) {
    TuneSums all = {0};
    for (int64_t i = 0; i < p->n; i++) {
        const TuneSums *own = &p->sums[i];
        all.nll += own->nll, all.preference += own->preference;
        all.margin += own->margin, all.right += own->right;
        all.kl += own->kl, all.distance += own->distance;
    }
    return all;
}

/* Passes, and the gradient on every rank. */
static bool find_gradient(TunePack *p, double *norm, Error *error) {
    Tuning *t = p->tuning;
    Comm *comm = t->run->comm;
    if (!comm_agree(comm, run_passes(p, error), error)) return locate(p, error);
    share_sums(p);
    const bool ok = lora_leaves_gather(&t->leaves, &t->training, &p->deal, p->n * p->each, norm, error);
    return comm_agree(comm, ok, error) || locate(p, error);
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
    Comm *comm = t->run->comm;
    AdamwOptions options = adamw_usual;
    options.decay = step->weight_decay;
    options.clip_norm = step->clip_norm;
    Schedule schedule = {(ScheduleKind)step->schedule, step->learning_rate, step->warmup, t->data.n_steps};
    const double rate = schedule_rate(&schedule, t->n_done);
    schedule.peak = step->gate_rate;
    t->training.optimizer.tail_rate = schedule_rate(&schedule, t->n_done);
    TunePack pack;
    double norm = 0;
    comm_phase("step %.40s, training step %lld", step->name, (long long)t->n_done + 1);
    bool ok = tune_pack_make(t, t->n_done, &pack, error) && tune_goes_on(t->run, error) &&
              lora_leaves_open(&t->leaves, &t->training, &pack.deal, error);
    ok = comm_agree(comm, ok, error) && find_gradient(&pack, &norm, error);
    if (ok) ok = comm_agree(comm, lora_training_step(&t->training, &options, rate, norm, error), error);
    if (ok) {
        const TuneSums sums = add_sums(&pack);
        TuneRow *row = &t->rows[++t->n_done];
        *row = row_of(&pack, &sums);
        row->norm = norm;
        row->rate = rate;
    }
    tune_pack_free(&pack);
    return ok;
}

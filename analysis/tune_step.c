/* One optimizer step: its examples in passes of as many tokens as the job allows, their gradients gathered,
 * the updates changed. Which examples share a pass changes no bit. */
#include "../engine/alloc.h"
#include "tune_parts.h"
#include <math.h>
#include <string.h>

/* The examples of the step, packed one after another. */
typedef struct {
    Tuning *tuning;
    int64_t n, n_targets;
    const TuneExample **examples; /* [n] */
    int64_t *offsets;             /* [n + 1] tokens */
    int32_t *tokens;
    float *loss_weights;
    double loss; /* sum over target tokens so far */
} Packed;

static void packed_free(Packed *p) {
    mem_free(p->examples);
    mem_free(p->offsets);
    mem_free(p->tokens);
    mem_free(p->loss_weights);
}

static bool take_examples(Packed *p, int64_t step, Error *error) {
    TuneData *data = &p->tuning->data;
    p->n = tune_step_length(data, step);
    p->examples = mem_zeroed((size_t)p->n, sizeof *p->examples);
    p->offsets = mem_zeroed((size_t)p->n + 1, sizeof *p->offsets);
    bool ok = p->examples && p->offsets;
    for (int64_t i = 0; ok && i < p->n; i++) {
        const TuneExample *e = p->examples[i] = tune_example(data, step * data->n_of_step + i);
        ok = e != NULL;
        if (!ok) break;
        p->offsets[i + 1] = p->offsets[i] + e->prompt->n_prompt + e->prompt->n_target;
        p->n_targets += e->prompt->n_target;
    }
    return ok || error_out_of_memory(error, "examples", (size_t)p->n * sizeof *p->examples);
}

/* Tokens, and 1 / number of target tokens of the step where one is predicted. */
static bool pack(Packed *p, int64_t step, Error *error) {
    if (!take_examples(p, step, error)) return false;
    const size_t n = (size_t)p->offsets[p->n];
    p->tokens = mem_zeroed(n, sizeof *p->tokens);
    p->loss_weights = mem_zeroed(n, sizeof *p->loss_weights);
    if (!p->tokens || !p->loss_weights) return error_out_of_memory(error, "a step", n * 8);
    for (int64_t i = 0; i < p->n; i++) {
        const EncodedPrompt *prompt = p->examples[i]->prompt;
        const int64_t at = p->offsets[i], n_own = p->offsets[i + 1] - at;
        memcpy(p->tokens + at, prompt->tokens, (size_t)n_own * sizeof *p->tokens);
        for (int64_t k = prompt->n_prompt - 1; k + 1 < n_own; k++)
            p->loss_weights[at + k] = 1 / (float)p->n_targets;
    }
    return true;
}

/* One pass over examples [first, end), numbered from `number` on in the gradient's sum. */
static bool run_part(Packed *p, int64_t first, int64_t end, int64_t number, double *loss, Error *error) {
    const int64_t from = p->offsets[first], n = end - first;
    int64_t *offsets = mem_alloc((size_t)(n + 1) * sizeof *offsets);
    if (!offsets) return error_out_of_memory(error, "a pass", (size_t)n * sizeof *offsets);
    for (int64_t i = 0; i <= n; i++) offsets[i] = p->offsets[first + i] - from;
    const Job *job = p->tuning->run->job;
    PromptBatch batch = {n, offsets, p->tokens + from};
    PassOptions options = {.loss_weights = p->loss_weights + from,
                           .training = &p->tuning->training,
                           .first_example = number,
                           .memory_limit_bytes = (size_t)job->options.memory_limit_mib << 20,
                           .recompute = (Recompute)p->tuning->run->step->recompute};
    PassResult result = {0};
    bool ok = model_pass(&p->tuning->model, &batch, &options, NULL, &result, error);
    for (int64_t k = from; ok && k < p->offsets[end]; k++)
        if (p->loss_weights[k] > 0) *loss += (double)result.nll[k - from];
    pass_result_free(&result);
    mem_free(offsets);
    return ok && (isfinite(*loss) ||
                  error_set(error, ERROR_FAILED, "loss: expected a finite number: got nan or infinity"));
}

static int64_t part_end(const Packed *p, int64_t first) {
    const BatchLimits limits = step_limits(p->tuning->run->job);
    int64_t end = first + 1;
    while (end < p->n && batch_fits(limits, end + 1 - first, p->offsets[end + 1] - p->offsets[first])) end++;
    return end;
}

/* A number that is not finite: which example brings it about, each alone. */
static bool locate(Packed *p, Error *error) {
    Tuning *t = p->tuning;
    if (error->code != ERROR_FAILED) return false;
    for (int64_t i = 0; i < p->n; i++) {
        Error own = {0};
        double loss = 0, norm;
        if (run_part(p, i, i + 1, 0, &loss, &own) && lora_training_gather(&t->training, 1, &norm, &own))
            continue;
        if (own.code != ERROR_FAILED) return false;
        *error = (Error){0};
        error_set(error, own.code, "group %s, example \"%.80s\": %.1200s", p->examples[i]->group,
                  p->examples[i]->prompt->entry->id, own.text);
        return false;
    }
    return error_add_place(error, "all examples together");
}

static bool run_passes(Packed *p, double *norm, Error *error) {
    Tuning *t = p->tuning;
    for (int64_t first = 0, end; first < p->n; first = end) {
        end = part_end(p, first);
        if (!run_part(p, first, end, first, &p->loss, error)) return locate(p, error);
        if (!step_goes_on(t->run, error)) return false;
    }
    return lora_training_gather(&t->training, p->n, norm, error) || locate(p, error);
}

bool tune_step(Tuning *t, Error *error) {
    const StepOptions *step = t->run->step;
    AdamwOptions options = adamw_usual;
    options.decay = step->weight_decay;
    options.clip_norm = step->clip_norm;
    const Schedule schedule = {(ScheduleKind)step->schedule, step->learning_rate, step->warmup,
                               t->data.n_steps};
    const double rate = schedule_rate(&schedule, t->n_done);
    Packed packed = {.tuning = t};
    double norm = 0;
    bool ok = pack(&packed, t->n_done, error) && run_passes(&packed, &norm, error) &&
              lora_training_step(&t->training, &options, rate, norm, error);
    if (ok)
        t->rows[++t->n_done] = (TuneRow){.loss = packed.loss / (double)packed.n_targets,
                                         .norm = norm,
                                         .rate = rate,
                                         .n_examples = (double)packed.n,
                                         .n_targets = (double)packed.n_targets,
                                         .n_tokens = (double)packed.offsets[packed.n],
                                         .held_out = (double)NAN};
    packed_free(&packed);
    return ok;
}

/* Side effects: how much less likely the prompts' own tokens, and their targets, are under each condition
 * than under the baseline. Prompts are paired, and each counts alike. What the edits cannot touch has no
 * number but a reason. */
#include "intervene.h"
#include "../engine/alloc.h"
#include "../kernels/math.h"
#include "judge_folder.h"
#include "resample.h"
#include <string.h>

typedef struct {
    const Intervention *all;
    bool targets; /* else the prompts' own tokens */
    int64_t group, key;
    int64_t n, n_tokens;     /* prompts that have such tokens, and these */
    double *before, *change; /* [n] */
    Resamples draws;
} Effects;

/* A text's first token is given. */
static int64_t count_tokens(const EncodedPrompt *prompt, bool targets) {
    return targets ? prompt->n_target : prompt->n_prompt - 1;
}

static double value(const Effects *e, int64_t prompt, int64_t condition) {
    const Measures *m = &e->all->replies[e->group];
    return (e->targets ? m->target_nll : m->prompt_nll)[prompt * e->all->n_run + condition];
}

/* Of running condition i; the first is the baseline. */
static void fill(Effects *e, int64_t i) {
    const PromptGroup *group = &e->all->groups[e->group];
    int64_t n = 0;
    for (int64_t p = 0; p < group->n; p++) {
        if (!count_tokens(&group->prompts[p], e->targets)) continue;
        e->before[n] = value(e, p, 0);
        e->change[n++] = value(e, p, i) - value(e, p, 0);
    }
}

static double mean(const double *values, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += values[i];
    return sum / (double)n;
}

/* Why there is no number; "": there is one. */
static const char *undefined(const Effects *e) {
    if (!e->targets && e->all->run->step->applies_to == APPLIES_TO_GENERATED)
        return "not defined: generated tokens alone are edited, the prompt's stay as they are";
    if (e->n) return "";
    return e->targets ? "not defined: no prompt of the group has a target"
                      : "not defined: no prompt of the group has a second token";
}

static bool put_row(Effects *e, int64_t i, Text *to, Error *error) {
    const Condition *c = &e->all->conditions->list[e->all->running[i]];
    const char *reason = undefined(e);
    text_format(to, "%s,%s,%s,%lld,%lld,", c->name, condition_kind_names[c->kind],
                e->all->groups[e->group].options->name, (long long)e->n, (long long)e->n_tokens);
    if (*reason) {
        text_put_string(to, ",,,,,,");
        text_put_csv(to, reason, strlen(reason));
        text_put_string(to, "\n");
        return true;
    }
    fill(e, i);
    const double before = mean(e->before, e->n), change = mean(e->change, e->n);
    double low = 0, high = 0;
    text_put_f64(to, before), text_put_string(to, ",");
    text_put_f64(to, before + change), text_put_string(to, ",");
    text_put_f64(to, change), text_put_string(to, ",");
    bool ok = e->n < 2 || resample_mean(e->change, &e->draws, 0.95, &low, &high, error);
    if (e->n > 1) text_put_f64(to, low);
    text_put_string(to, ",");
    if (e->n > 1) text_put_f64(to, high);
    text_put_string(to, ",");
    text_put_f64(to, exp_f64(change));
    text_put_string(to, e->n > 1 ? ",\n" : ",no interval: one prompt\n");
    return ok;
}

static bool put_group(Effects *e, Text *to, Error *error) {
    const PromptGroup *group = &e->all->groups[e->group];
    e->n = e->n_tokens = 0;
    for (int64_t p = 0; p < group->n; p++) {
        e->n += count_tokens(&group->prompts[p], e->targets) > 0;
        e->n_tokens += count_tokens(&group->prompts[p], e->targets);
    }
    e->before = mem_zeroed((size_t)e->n + 1, sizeof *e->before);
    e->change = mem_zeroed((size_t)e->n + 1, sizeof *e->change);
    bool ok = ((e->before && e->change) ||
               error_out_of_memory(error, "side effects", 2 * (size_t)e->n * sizeof *e->before)) &&
              resamples_bootstrap((uint64_t)e->all->run->job->options.seed, e->key, JUDGE_RESAMPLES, e->n,
                                  &e->draws, error);
    for (int64_t i = 1; ok && i < e->all->n_run; i++) ok = put_row(e, i, to, error);
    resamples_free(&e->draws);
    mem_free(e->before);
    mem_free(e->change);
    e->key += group->n;
    return ok;
}

static bool write_effects(const Intervention *all, bool targets, const char *name, Error *error) {
    Effects e = {.all = all, .targets = targets};
    Text text = {0};
    text_put_string(&text, "condition,kind,group,prompts,tokens,nll_before,nll_after,change,low,high,"
                           "perplexity_ratio,reason\n");
    bool ok = true;
    for (; ok && e.group < all->run->step->groups.n; e.group++) ok = put_group(&e, &text, error);
    if (ok) return results_write_text(all->run->folder, name, &text, error);
    text_free(&text);
    return false;
}

bool intervene_write_effects(const Intervention *all, Error *error) {
    bool targets = false;
    if (all->run->step->side_effects == EFFECTS_NONE) return true;
    for (int64_t g = 0; g < all->run->step->groups.n; g++)
        for (int64_t p = 0; p < all->groups[g].n; p++)
            targets = targets || all->groups[g].prompts[p].n_target > 0;
    return write_effects(all, false, "side_effects.csv", error) &&
           (!targets || write_effects(all, true, "side_effects_targets.csv", error));
}

/* The tables of a utility step: each condition on each group beside the model as it is, and every prompt. */
#include "utility.h"
#include "../engine/alloc.h"
#include "../kernels/math.h"
#include "json_write.h"
#include "outcomes.h"
#include "results.h"
#include "scores.h"
#include <string.h>

/* ---- Wilson ---- */
/* Phi(z) for z >= 0: 1/2 + phi(z) (z + z^3/3 + z^5/(3 5) + ...); plain arithmetic, so that every machine has
 * the same bits. */
static double normal_share(double z) {
    double term = z, sum = z;
    for (int k = 1; k < 400; k++) {
        term *= z * z / (2 * k + 1);
        sum += term;
    }
    return 0.5 + sum * exp_f64(-z * z / 2) * 0.39894228040143267794;
}

void wilson_interval(int64_t k, int64_t n, double confidence, double *low, double *high) {
    double least = 0, most = 8;
    for (int i = 0; i < 200; i++) {
        const double middle = (least + most) / 2;
        *(normal_share(middle) < (1 + confidence) / 2 ? &least : &most) = middle;
    }
    const double z = least, p = (double)k / (double)n, m = (double)n, shift = z * z / (2 * m),
                 half = z * sqrt(p * (1 - p) / m + z * z / (4 * m * m)), scale = 1 + z * z / m;
    *low = k ? (p + shift - half) / scale : 0;
    *high = k < n ? (p + shift + half) / scale : 1;
}

/* ---- one prompt ---- */
/* What is compared of choice c of a question: its log-likelihood, of the whole or of one token or byte. */
static double choice_score(const Utility *u, const UtilityGroup *group, int64_t model, int64_t text) {
    const EncodedPrompt *choice = &group->group->prompts[text];
    const double sum = group->sums[text * u->n_models + model];
    if (u->run->step->normalize == NORMALIZE_TOKENS) return sum / (double)choice->n_target;
    if (u->run->step->normalize == NORMALIZE_BYTES) return sum / (double)choice->entry->target_length;
    return sum;
}

typedef struct {
    int64_t chosen; /* ties to the first */
    double margin;  /* score of the right one less the largest other */
} Choice;

static Choice choose(const Utility *u, const UtilityGroup *group, int64_t model, int64_t question) {
    const ChoiceQuestion *q = &group->choices.list[question];
    Choice made = {0};
    double best = 0, other = 0;
    bool any = false;
    for (int64_t c = 0; c < q->n; c++) {
        const double score = choice_score(u, group, model, q->first + c);
        if (c == 0 || score > best) best = score, made.chosen = c;
        if (c != q->answer && (!any || score > other)) other = score, any = true;
    }
    made.margin = choice_score(u, group, model, q->first + q->answer) - other;
    return made;
}

/* 1 or 0 of a question; mean negative log-likelihood of a text. */
static double value_of(const Utility *u, const UtilityGroup *group, int64_t model, int64_t i) {
    if (u->run->step->measure == MEASURE_CHOICES)
        return choose(u, group, model, i).chosen == group->choices.list[i].answer;
    return -group->sums[i * u->n_models + model] /
           (double)utility_count(u->run->step, &group->group->prompts[i]);
}

/* ---- conditions ---- */
static void put_name(const Utility *u, int64_t model, Text *to) {
    if (model)
        text_format(to, "%s.adapter", u->run->step->adapters.names[model - 1]);
    else
        text_put_string(to, "baseline");
}

static const char *kind_name(const Utility *u, int64_t model) {
    if (!model) return condition_kind_names[CONDITION_BASELINE];
    return condition_kind_names[conditions_kind_of_tuned(
        adapted_source(u->run->job, u->run->step, model - 1))];
}

/* ---- utility.csv ---- */
typedef struct {
    const Utility *all;
    const UtilityGroup *group;
    Resamples draws;
    double *values, *change; /* [n] of a condition; less the baseline's */
} Part;

static void put_number(Text *to, double value) {
    text_put_string(to, ",");
    if (isfinite(value)) text_put_f64(to, value);
}

static double mean(const double *values, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += values[i];
    return sum / (double)n;
}

/* Value and interval, chance, perplexity. */
static bool put_value(const Part *p, Text *to, Error *error) {
    const StepOptions *step = p->all->run->step;
    const UtilityGroup *g = p->group;
    const double value = mean(p->values, g->n);
    double low = NAN, high = NAN, chance = 0;
    if (step->measure == MEASURE_CHOICES) {
        int64_t right = 0;
        for (int64_t i = 0; i < g->n; i++) {
            right += p->values[i] > 0;
            chance += 1 / (double)g->choices.list[i].n;
        }
        wilson_interval(right, g->n, step->confidence, &low, &high);
    } else if (step->bootstraps &&
               !resample_mean(p->values, &p->draws, step->confidence, &low, &high, error)) {
        return false;
    }
    put_number(to, value), put_number(to, low), put_number(to, high);
    put_number(to, step->measure == MEASURE_CHOICES ? chance / (double)g->n : NAN);
    put_number(to, step->measure == MEASURE_CHOICES ? NAN : exp_f64(value));
    return true;
}

/* Beside the baseline, prompt by prompt. */
static bool put_change(const Part *p, Text *to, Error *error) {
    const StepOptions *step = p->all->run->step;
    double low = NAN, high = NAN;
    int64_t lost = 0, gained = 0;
    if (step->bootstraps && !resample_mean(p->change, &p->draws, step->confidence, &low, &high, error))
        return false;
    put_number(to, mean(p->change, p->group->n)), put_number(to, low), put_number(to, high);
    for (int64_t i = 0; i < p->group->n; i++) lost += p->change[i]<0, gained += p->change[i]> 0;
    if (step->measure == MEASURE_CHOICES) {
        text_format(to, ",%lld,%lld", (long long)lost, (long long)gained);
        put_number(to, mcnemar_exact(lost, gained));
    } else {
        text_put_string(to, ",,,");
    }
    return true;
}

static int64_t count_tokens(const Part *p) {
    int64_t n = 0;
    const int64_t first = p->group->begin[0], end = p->group->begin[p->group->n];
    for (int64_t i = first; i < end; i++) n += utility_count(p->all->run->step, &p->group->group->prompts[i]);
    return n;
}

static bool put_group(const Utility *u, int64_t g, int64_t *key, Text *to, Error *error) {
    const StepOptions *step = u->run->step;
    Part p = {.all = u, .group = &u->groups[g]};
    const int64_t n = p.group->n;
    p.values = mem_zeroed((size_t)n, sizeof *p.values);
    p.change = mem_zeroed((size_t)n, sizeof *p.change);
    bool ok = ((p.values && p.change) ||
               error_out_of_memory(error, "values of prompts", 2 * (size_t)n * sizeof *p.values)) &&
              (!step->bootstraps || resamples_bootstrap((uint64_t)u->run->job->options.seed, *key,
                                                        step->bootstraps, n, &p.draws, error));
    for (int64_t m = 0; ok && m < u->n_models; m++) {
        for (int64_t i = 0; i < n; i++) {
            p.values[i] = value_of(u, p.group, m, i);
            p.change[i] = p.values[i] - value_of(u, p.group, 0, i);
        }
        put_name(u, m, to);
        text_format(to, ",%s,%s,%s,%lld,%lld", kind_name(u, m), step->groups.names[g],
                    step->measure == MEASURE_CHOICES ? "accuracy" : "nll", (long long)n,
                    (long long)count_tokens(&p));
        ok = put_value(&p, to, error);
        if (m)
            ok = ok && put_change(&p, to, error);
        else
            text_put_string(to, ",,,,,,");
        text_put_string(to, "\n");
    }
    *key += n;
    resamples_free(&p.draws);
    mem_free(p.values);
    mem_free(p.change);
    return ok;
}

static bool write_table(const Utility *u, Error *error) {
    Text text = {0};
    int64_t key = 0;
    text_put_string(&text, "condition,kind,group,measure,n,tokens,value,low,high,chance,perplexity,change,"
                           "change_low,change_high,lost,gained,mcnemar_p\n");
    bool ok = true;
    for (int64_t g = 0; ok && g < u->run->step->groups.n; g++) ok = put_group(u, g, &key, &text, error);
    if (ok) return results_write_text(u->run->folder, "utility.csv", &text, error);
    text_free(&text);
    return false;
}

/* ---- prompts ---- */
static void put_prompt(const Utility *u, int64_t model, int64_t g, const PromptEntry *entry, Text *to) {
    put_name(u, model, to);
    text_format(to, ",%s,%lld,", u->run->step->groups.names[g], (long long)entry->index);
    text_put_csv(to, entry->id, strlen(entry->id));
}

static bool write_questions(const Utility *u, Error *error) {
    Text text = {0};
    text_put_string(&text, "condition,group,index,id,choices,answer,chosen,right,margin\n");
    for (int64_t m = 0; m < u->n_models; m++)
        for (int64_t g = 0; g < u->run->step->groups.n; g++)
            for (int64_t i = 0; i < u->groups[g].n; i++) {
                const ChoiceQuestion *q = &u->groups[g].choices.list[i];
                const Choice made = choose(u, &u->groups[g], m, i);
                put_prompt(u, m, g, u->groups[g].group->prompts[q->first].entry, &text);
                text_format(&text, ",%lld,%lld,%lld,%d", (long long)q->n, (long long)q->answer,
                            (long long)made.chosen, made.chosen == q->answer);
                put_number(&text, made.margin);
                text_put_string(&text, "\n");
            }
    return results_write_text(u->run->folder, "questions.csv", &text, error);
}

static bool write_choices(const Utility *u, Error *error) {
    Text text = {0};
    text_put_string(&text, "condition,group,index,id,choice,tokens,bytes,log_likelihood\n");
    for (int64_t m = 0; m < u->n_models; m++)
        for (int64_t g = 0; g < u->run->step->groups.n; g++)
            for (int64_t i = 0; i < u->groups[g].n; i++) {
                const UtilityGroup *group = &u->groups[g];
                const ChoiceQuestion *q = &group->choices.list[i];
                for (int64_t c = 0; c < q->n; c++) {
                    const EncodedPrompt *choice = &group->group->prompts[q->first + c];
                    put_prompt(u, m, g, choice->entry, &text);
                    text_format(&text, ",%lld,%lld,%lld", (long long)c, (long long)choice->n_target,
                                (long long)choice->entry->target_length);
                    put_number(&text, group->sums[(q->first + c) * u->n_models + m]);
                    text_put_string(&text, "\n");
                }
            }
    return results_write_text(u->run->folder, "choices.csv", &text, error);
}

static bool write_texts(const Utility *u, Error *error) {
    Text text = {0};
    text_put_string(&text, "condition,group,index,id,tokens,nll\n");
    for (int64_t m = 0; m < u->n_models; m++)
        for (int64_t g = 0; g < u->run->step->groups.n; g++)
            for (int64_t i = 0; i < u->groups[g].n; i++) {
                const EncodedPrompt *prompt = &u->groups[g].group->prompts[i];
                put_prompt(u, m, g, prompt->entry, &text);
                text_format(&text, ",%lld", (long long)utility_count(u->run->step, prompt));
                put_number(&text, value_of(u, &u->groups[g], m, i));
                text_put_string(&text, "\n");
            }
    return results_write_text(u->run->folder, "texts.csv", &text, error);
}

/* ---- step.json ---- */
static bool write_facts(const Utility *u, Error *error) {
    const StepRun *run = u->run;
    const StepOptions *step = run->step;
    Text text = {0};
    write_begin(&text, NULL, '{');
    write_integer(&text, "schema_version", 1);
    write_string(&text, "name", step->name);
    write_string(&text, "kind", "utility");
    write_string(&text, "model", step->model);
    write_string(&text, "chat_template", run->encoder->chat_template ? run->encoder->chat_template : "none");
    write_string(&text, "definition", scores_definition(step));
    write_begin(&text, "groups", '[');
    for (int64_t g = 0; g < step->groups.n; g++) write_string(&text, NULL, step->groups.names[g]);
    write_end(&text, ']');
    int64_t n = 0;
    for (int64_t g = 0; g < step->groups.n; g++) n += u->groups[g].n;
    write_integer(&text, "n_prompts", n);
    write_integer(&text, "n_conditions", u->n_models);
    write_lines(&text, "warnings", u->warnings);
    write_key(&text, "switches");
    text_put_string(&text, "{\n");
    options_write(SCOPE_STEP, step->kind, step, 4, true, &text);
    text_put_string(&text, "\n  }");
    write_end(&text, '}');
    text_put_string(&text, "\n");
    return results_write_text(run->folder, "step.json", &text, error);
}

bool utility_write(const Utility *u, Error *error) {
    const bool choices = u->run->step->measure == MEASURE_CHOICES;
    return write_table(u, error) &&
           (choices ? write_questions(u, error) && write_choices(u, error) : write_texts(u, error)) &&
           write_facts(u, error);
}

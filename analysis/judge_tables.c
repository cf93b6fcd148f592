/* What is written of labelled replies: each with its labels, each condition beside the baseline and its
 * controls, labellers beside each other, and by what rules. */
#include "judge_parts.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/text.h"
#include "outcomes.h"
#include "results.h"
#include <math.h>
#include <string.h>

static const char *judge_out(const Judging *w) {
    return w->request->out ? w->request->out : w->request->folder;
}

/* ---- labels.csv ---- */
static void put_number(Text *t, double value) {
    text_put_string(t, ",");
    if (isfinite(value)) text_put_f64(t, value);
}

/* The names of a folder may be another's. */
static void put_field(Text *t, const char *text) {
    text_put_csv(t, text, strlen(text));
    text_put_string(t, ",");
}

static void put_guard(const Reply *reply, Text *t) {
    for (int l = 0; l < N_LABELS; l++) put_number(t, reply->guard == NO_LABEL ? NAN : reply->probability[l]);
    put_number(t, reply->guard == NO_LABEL ? NAN : reply->other);
}

static bool write_labels(Judging *w) {
    Text t = {0};
    text_put_string(
        &t, "condition,group,index,id,label,why,human,perplexity,rules,guard,p_restricted,p_compliant,"
            "p_degraded,p_other\n");
    for (int64_t i = 0; i < w->n; i++)
        for (int64_t r = 0; r < w->list[i].n; r++) {
            const Reply *reply = &w->list[i].replies[r];
            put_field(&t, w->list[i].name), put_field(&t, reply->group);
            text_format(&t, "%lld,", (long long)reply->index);
            put_field(&t, reply->id);
            text_format(&t, "%s,", label_names[reply->label]);
            text_put_csv(&t, reply->why, strlen(reply->why));
            text_format(&t, ",%s", reply->human == NO_LABEL ? "" : label_names[reply->human]);
            put_number(&t, reply->perplexity);
            text_format(&t, ",%s,%s", label_names[reply->rule],
                        reply->guard == NO_LABEL ? "" : label_names[reply->guard]);
            put_guard(reply, &t);
            text_put_string(&t, "\n");
        }
    return results_write_text(judge_out(w), "labels.csv", &t, w->error);
}

/* ---- outcomes.csv ---- */
/* Replies [begin, end) of the list belong to one group. */
typedef struct {
    int64_t begin, end;
    Resamples draws;
    Label *before, *after; /* room */
    Outcome *outcomes;     /* [w->n]: of each defined condition beside the baseline */
} Part;

static bool part_outcomes(Judging *w, Part *p) {
    bool ok = true;
    for (int64_t i = 1; ok && i < w->n; i++) {
        if (!w->list[i].defined) continue;
        for (int64_t r = p->begin; r < p->end; r++) {
            p->before[r - p->begin] = w->list[0].replies[r].label;
            p->after[r - p->begin] = w->list[i].replies[r].label;
        }
        ok = outcome_of(p->before, p->after, &p->draws, &p->outcomes[i], w->error);
    }
    return ok;
}

static bool goes_with(const Judged *control, const char *kind, const Judged *condition) {
    if (!control->defined || strcmp(control->kind, kind) || strcmp(condition->kind, "selected")) return false;
    if (!strcmp(kind, "random"))
        return !strcmp(control->rule, condition->rule) && !strcmp(control->amount, condition->amount);
    return !strcmp(control->of, condition->name);
}

/* The changes of a condition's controls of one kind. */
static bool put_controls(Judging *w, const Part *p, int64_t condition, const char *kind, Text *t) {
    double *changes = mem_zeroed((size_t)w->n, sizeof *changes);
    if (!changes) return error_out_of_memory(w->error, "controls", 0);
    int64_t n = 0;
    for (int64_t i = 1; i < w->n; i++)
        if (goes_with(&w->list[i], kind, &w->list[condition])) changes[n++] = p->outcomes[i].change;
    const ControlComparison c = compare_with_controls(p->outcomes[condition].change, changes, n);
    text_format(t, ",%lld", (long long)n);
    put_number(t, c.mean), put_number(t, c.least), put_number(t, c.most), put_number(t, n ? c.p : NAN);
    put_number(t, n ? c.p_high : NAN);
    mem_free(changes);
    return true;
}

static bool put_outcome(Judging *w, const Part *p, int64_t condition, Text *t) {
    static const char *const kinds[] = {"random", "layer_matched", "traffic_matched"};
    const Judged *j = &w->list[condition];
    const Outcome o = p->outcomes[condition];
    put_field(t, j->name), put_field(t, j->kind), put_field(t, j->of);
    put_field(t, j->replies[p->begin].group);
    text_format(t, "%lld", (long long)o.n);
    for (int from = 0; from < N_LABELS; from++)
        for (int to = 0; to < N_LABELS; to++) text_format(t, ",%lld", (long long)o.from_to[from][to]);
    text_format(t, ",%lld,%lld", (long long)o.lost, (long long)o.gained);
    put_number(t, o.before), put_number(t, o.after), put_number(t, o.change), put_number(t, o.low);
    put_number(t, o.high), put_number(t, o.mcnemar_p);
    bool ok = true;
    for (size_t k = 0; ok && k < sizeof kinds / sizeof *kinds; k++)
        ok = put_controls(w, p, condition, kinds[k], t);
    text_put_string(t, "\n");
    return ok;
}

static bool put_part(Judging *w, Part *p, Text *t) {
    const int64_t n = p->end - p->begin;
    p->before = mem_zeroed((size_t)n, sizeof *p->before), p->after = mem_zeroed((size_t)n, sizeof *p->after);
    p->outcomes = mem_zeroed((size_t)w->n, sizeof *p->outcomes);
    bool ok = ((p->before && p->after && p->outcomes) || error_out_of_memory(w->error, "labels", 0)) &&
              resamples_bootstrap((uint64_t)w->request->seed, p->begin, w->request->resamples, n, &p->draws,
                                  w->error) &&
              part_outcomes(w, p);
    for (int64_t i = 1; ok && i < w->n; i++) ok = !w->list[i].defined || put_outcome(w, p, i, t);
    resamples_free(&p->draws);
    mem_free(p->before);
    mem_free(p->after);
    mem_free(p->outcomes);
    return ok;
}

static bool write_outcomes(Judging *w) {
    static const char *const controls[] = {"random", "layer", "traffic"};
    const Judged *base = &w->list[0];
    Text t = {0};
    text_put_string(&t, "condition,kind,control_of,group,n");
    for (int from = 0; from < N_LABELS; from++)
        for (int to = 0; to < N_LABELS; to++)
            text_format(&t, ",%s_to_%s", label_names[from], label_names[to]);
    text_put_string(&t, ",lost,gained,restricted_before,restricted_after,change,low,high,mcnemar_p");
    for (int k = 0; k < 3; k++)
        text_format(&t, ",%s_n,%s_mean,%s_least,%s_most,%s_p,%s_p_high", controls[k], controls[k],
                    controls[k], controls[k], controls[k], controls[k]);
    text_put_string(&t, "\n");
    bool ok = true;
    for (int64_t begin = 0, end; ok && begin < base->n; begin = end) {
        for (end = begin + 1; end < base->n && !strcmp(base->replies[end].group, base->replies[begin].group);)
            end++;
        ok = put_part(w, &(Part){.begin = begin, .end = end}, &t);
    }
    if (ok) return results_write_text(judge_out(w), "outcomes.csv", &t, w->error);
    text_free(&t);
    return false;
}

/* ---- agreement.csv and judge.json ---- */
/* Each pair of labellers, how often the one said this and the other that. */
static bool write_agreement(Judging *w) {
    static const Labeller pairs[N_PAIRS][2] = {{LABELLER_PEOPLE, LABELLER_RULES},
                                               {LABELLER_PEOPLE, LABELLER_GUARD},
                                               {LABELLER_GUARD, LABELLER_RULES}};
    Text t = {0};
    bool any = false;
    text_put_string(&t, "labeller,other,label,other_label,replies,kappa\n");
    for (int p = 0; p < N_PAIRS; p++) {
        any = any || w->has[p];
        for (int i = 0; w->has[p] && i < N_LABELS * N_LABELS; i++) {
            text_format(&t, "%s,%s,%s,%s,%lld", labeller_names[pairs[p][0]], labeller_names[pairs[p][1]],
                        label_names[i / N_LABELS], label_names[i % N_LABELS],
                        (long long)w->agreement[p][i / N_LABELS][i % N_LABELS]);
            put_number(&t, cohen_kappa(w->agreement[p]));
            text_put_string(&t, "\n");
        }
    }
    if (any) return results_write_text(judge_out(w), "agreement.csv", &t, w->error);
    text_free(&t);
    char *path = io_join(judge_out(w), "agreement.csv");
    const bool ok = (path || error_out_of_memory(w->error, "a path", 0)) && io_remove(path, w->error);
    mem_free(path);
    return ok;
}

static void put_perplexity(const Judging *w, Text *t) {
    text_put_string(t, ",\n  \"perplexity\": {\"limit\": ");
    text_put_f64(t, w->request->perplexity_limit);
    text_format(t, ", \"reference\": \"%s\", \"value\": ",
                perplexity_reference_names[w->request->perplexity_reference]);
    text_put_f64(t, w->perplexity_reference);
    if (isnan(w->perplexity_reference))
        text_put_string(t, ", \"reason\": \"not defined: the baseline's replies have no nll\"");
    text_put_string(t, "}");
}

static void put_decides(const Judging *w, Text *t) {
    text_put_string(t, ",\n  \"decides\": [");
    for (int i = 0; i < (w->request->n_decides ? w->request->n_decides : N_LABELLERS); i++)
        text_format(t, "%s\"%s\"", i ? ", " : "",
                    labeller_names[w->request->n_decides ? (int)w->request->decides[i] : i]);
    text_put_string(t, "]");
}

/* Of one labeller with people. */
static void put_agreement(Judging *w, LabellerPair pair, const char *prefix, Text *t) {
    if (!w->has[pair]) return;
    const Detection d = detection_of(w->agreement[pair]);
    const double values[] = {cohen_kappa(w->agreement[pair]), d.precision, d.recall};
    static const char *const keys[] = {"kappa", "precision", "recall"};
    for (int i = 0; i < 3; i++) {
        text_format(t, ",\n  \"%s%s\": ", prefix, keys[i]);
        text_put_f64(t, values[i]);
    }
}

static bool write_facts(Judging *w, const char *rules) {
    Text t = {0};
    text_put_string(&t, "{\n  \"schema_version\": 1,\n  \"rules\": ");
    text_put_json(&t, rules, strlen(rules));
    text_format(&t, ",\n  \"rules_sha256\": \"%s\",\n  \"resamples\": %lld,\n  \"seed\": %lld",
                judge_rules_hash(w->rules), (long long)w->request->resamples, (long long)w->request->seed);
    put_perplexity(w, &t);
    put_decides(w, &t);
    if (w->request->guard_facts) {
        text_put_string(&t, ",\n  \"guard\": ");
        text_put_string(&t, w->request->guard_facts);
    }
    put_agreement(w, PEOPLE_AND_RULES, "", &t);
    put_agreement(w, PEOPLE_AND_GUARD, "guard_", &t);
    text_put_string(&t, "\n}\n");
    return results_write_text(judge_out(w), "judge.json", &t, w->error);
}

bool judge_write_tables(Judging *w, const char *rules) {
    return write_labels(w) && write_outcomes(w) && write_agreement(w) && write_facts(w, rules);
}

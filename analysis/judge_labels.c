/* What the rules do not say: labels of people, replies that the unedited model finds unlikely, and whose
 * label counts. */
#include "judge_parts.h"
#include "ranking.h"
#include "../engine/alloc.h"
#include <math.h>
#include <string.h>

/* ---- labels of people ---- */
static int label_of(const char *text) {
    for (int l = 0; l < N_LABELS; l++)
        if (!strcmp(text, label_names[l])) return l;
    return NO_LABEL;
}

/* Rows mostly come in the order of the replies: a condition is searched from behind what was found last. */
static Reply *find_reply(Judging *w, const char *condition, const char *group, const char *id) {
    for (int64_t i = 0; i < w->n; i++) {
        Judged *j = &w->list[i];
        if (strcmp(j->name, condition)) continue;
        for (int64_t tried = 0; tried < j->n; tried++) {
            Reply *reply = &j->replies[j->next++ % j->n];
            if (!strcmp(reply->group, group) && !strcmp(reply->id, id)) return reply;
        }
    }
    return NULL;
}

bool judge_read_people(Judging *w) {
    Csv *csv = &w->people;
    int64_t condition, group, id, label = -1;
    if (!w->request->labels) return true;
    if (!csv_read(w->request->labels, JUDGE_MOST_BYTES, csv, w->error) ||
        !csv_need_column(csv, "condition", &condition, w->error) ||
        !csv_need_column(csv, "group", &group, w->error) || !csv_need_column(csv, "id", &id, w->error))
        return false;
    label = csv_find_column(csv, "human");
    if (label < 0 && !csv_need_column(csv, "label", &label, w->error)) return false;
    for (int64_t row = 0; row < csv->n_rows; row++) {
        const char *text = csv_field(csv, row, label).text;
        if (!*text) continue;
        Reply *reply = find_reply(w, csv_field(csv, row, condition).text, csv_field(csv, row, group).text,
                                  csv_field(csv, row, id).text);
        if (!reply)
            return csv_error(csv, row, id, w->error,
                             "expected a reply of this folder: got none of %s, %s, \"%s\"",
                             csv_field(csv, row, condition).text, csv_field(csv, row, group).text,
                             csv_field(csv, row, id).text);
        if (label_of(text) == NO_LABEL)
            return csv_error(csv, row, label, w->error,
                             "expected restricted, compliant or degraded: got \"%s\"", text);
        if (reply->human != NO_LABEL)
            return csv_error(csv, row, id, w->error, "expected one label a reply: got two");
        reply->human = label_of(text);
    }
    return true;
}

/* ---- perplexity ---- */
const char *const perplexity_reference_names[] = {"largest", "median", "absolute", NULL};

static bool have_perplexity(const Judged *j) {
    for (int64_t r = 0; r < j->n; r++)
        if (isnan(j->replies[r].perplexity)) return false;
    return true;
}

/* Of the baseline's replies, all groups together: an intervention that changes what is said to one group is
 * not measured by that group's replies alone. */
static bool find_reference(Judging *w) {
    const Judged *base = &w->list[0];
    w->perplexity_reference = w->request->perplexity_reference == PERPLEXITY_ABSOLUTE ? 1 : NAN;
    if (w->request->perplexity_reference == PERPLEXITY_ABSOLUTE || !base->n || !have_perplexity(base))
        return true;
    double *values = mem_zeroed((size_t)base->n, sizeof *values);
    Ranked *room = mem_zeroed(2 * (size_t)base->n, sizeof *room);
    const bool ok =
        (values && room) || error_out_of_memory(w->error, "perplexities", (size_t)base->n * sizeof *values);
    for (int64_t r = 0; ok && r < base->n; r++) values[r] = base->replies[r].perplexity;
    if (ok) {
        ranking_sort_values(values, base->n, room);
        w->perplexity_reference = w->request->perplexity_reference == PERPLEXITY_MEDIAN
                                      ? ranking_quantile(values, base->n, 0.5)
                                      : values[base->n - 1];
    }
    mem_free(values);
    mem_free(room);
    return ok;
}

static bool find_unlikely(Judging *w, Judged *j) {
    const double most = w->request->perplexity_limit * w->perplexity_reference;
    for (int64_t r = 0; r < j->n; r++) {
        Reply *reply = &j->replies[r];
        if (isnan(reply->perplexity)) /* the baseline comes first: with all of its own there is a reference */
            return error_set(w->error, ERROR_BAD_INPUT,
                             "%s/responses/%s.jsonl: expected nll of every reply, which perplexity_limit "
                             "compares: got none of \"%.80s\"",
                             w->request->folder, j->name, reply->id);
        if (reply->rule == LABEL_DEGRADED || reply->perplexity <= most) continue;
        char *why = mem_copy_text("perplexity", 10);
        if (!why) return error_out_of_memory(w->error, "a label", 11);
        mem_free(reply->why);
        reply->why = why;
        reply->rule = LABEL_DEGRADED;
    }
    return true;
}

bool judge_read_perplexity(Judging *w) {
    bool ok = find_reference(w);
    for (int64_t i = 0; ok && w->request->perplexity_limit > 0 && i < w->n; i++)
        ok = find_unlikely(w, &w->list[i]);
    return ok;
}

/* ---- whose label counts ---- */
const char *const labeller_names[N_LABELLERS + 1] = {"people", "guard", "rules", NULL};

static int label_by(const Judging *w, const Reply *reply, Labeller labeller) {
    if (labeller == LABELLER_PEOPLE) return reply->human;
    if (labeller == LABELLER_RULES) return (int)reply->rule;
    const bool degraded = !w->request->guard_degrades && reply->rule == LABEL_DEGRADED;
    return reply->guard != NO_LABEL && degraded ? (int)LABEL_DEGRADED : reply->guard;
}

static Label decide(const Judging *w, const Reply *reply) {
    for (int i = 0; i < w->request->n_decides; i++) {
        const int label = label_by(w, reply, w->request->decides[i]);
        if (label != NO_LABEL) return (Label)label;
    }
    for (Labeller l = LABELLER_PEOPLE; !w->request->n_decides && l < LABELLER_RULES; l++) {
        const int label = label_by(w, reply, l);
        if (label != NO_LABEL) return (Label)label;
    }
    return reply->rule;
}

static void count(Judging *w, LabellerPair pair, int one, int other) {
    if (one == NO_LABEL || other == NO_LABEL) return;
    w->has[pair] = true;
    w->agreement[pair][one][other]++;
}

void judge_decide(Judging *w) {
    for (int64_t i = 0; i < w->n; i++)
        for (int64_t r = 0; r < w->list[i].n; r++) {
            Reply *reply = &w->list[i].replies[r];
            reply->label = decide(w, reply);
            count(w, PEOPLE_AND_RULES, reply->human, (int)reply->rule);
            count(w, PEOPLE_AND_GUARD, reply->human, reply->guard);
            count(w, GUARD_AND_RULES, reply->guard, (int)reply->rule);
        }
}

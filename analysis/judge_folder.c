/* Replies read, labelled, paired with the baseline's, and written up. */
#include "judge_folder.h"
#include "../engine/alloc.h"
#include "../engine/model_config.h"
#include "../engine/io.h"
#include "../engine/json.h"
#include "../engine/text.h"
#include "csv.h"
#include "outcomes.h"
#include "results.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 1 << 30, NO_LABEL = -1 };

/* One reply; texts belong to the documents of its condition. */
typedef struct {
    char *group, *id;
    int64_t index;
    Label label, rule; /* label: what counts */
    int human;         /* NO_LABEL: none */
    char *why;
} Reply;

typedef struct {
    const char *name, *kind, *of; /* of: the condition that a control goes with */
    const char *rule, *amount;    /* random sets go with every condition of theirs */
    Reply *replies;
    int64_t n, next; /* next: where find_reply goes on */
    bool defined;
} Judged;

typedef struct {
    const JudgeFolder *request;
    JudgeRules *rules;
    Csv conditions, people;
    bool has_people;
    Judged *list;
    int64_t n;
    int64_t agreement[N_LABELS][N_LABELS]; /* people, rules */
    Error *error;
} Work;

/* ---- replies ---- */
static void replies_free(Judged *j) {
    for (int64_t i = 0; i < j->n; i++) {
        mem_free(j->replies[i].group);
        mem_free(j->replies[i].id);
        mem_free(j->replies[i].why);
    }
    mem_free(j->replies);
}

static char *copy_of(const char *text) { return mem_copy_text(text, strlen(text)); }

static bool read_reply(Work *w, const char *file, const char *line, size_t length, Reply *reply) {
    JsonDocument *document = json_parse(line, length, file, w->error);
    if (!document) return false;
    const Json root = json_root(document);
    const char *group, *id, *text;
    Judgement j;
    bool ok = json_string(json_member(&root, "group"), &group, w->error) &&
              json_string(json_member(&root, "id"), &id, w->error) &&
              json_integer(json_member(&root, "index"), 0, INT64_MAX, &reply->index, w->error) &&
              json_string(json_member(&root, "response"), &text, w->error) &&
              judge_reply(w->rules, text, strlen(text), &j, w->error);
    if (ok) {
        *reply =
            (Reply){.group = copy_of(group), .id = copy_of(id), .index = reply->index, .why = copy_of(j.why)};
        reply->label = reply->rule = j.label;
        reply->human = NO_LABEL;
        ok = (reply->group && reply->id && reply->why) || error_out_of_memory(w->error, file, length);
    }
    json_free(document);
    return ok;
}

static bool read_replies(Work *w, Judged *j) {
    char name[300], *path = NULL, *bytes = NULL;
    size_t n_bytes = 0, lines = 0;
    snprintf(name, sizeof name, "responses/%s.jsonl", j->name);
    path = io_join(w->request->folder, name);
    bytes = path ? io_read_all(path, MOST_BYTES, &n_bytes, w->error) : NULL;
    for (size_t i = 0; bytes && i < n_bytes; i++) lines += bytes[i] == '\n';
    j->replies = bytes ? mem_zeroed(lines + 1, sizeof *j->replies) : NULL;
    bool ok = j->replies != NULL;
    if (bytes && !ok) error_out_of_memory(w->error, path, lines * sizeof *j->replies);
    for (char *line = bytes; ok && *line;) {
        const size_t length = strcspn(line, "\n");
        ok = read_reply(w, path, line, length, &j->replies[j->n]);
        j->n += ok;
        line += length + (line[length] == '\n');
    }
    mem_free(bytes);
    mem_free(path);
    return ok;
}

/* Same prompts in the same order as the baseline. */
static bool check_paired(Work *w, const Judged *j) {
    const Judged *base = &w->list[0];
    bool same = j->n == base->n;
    for (int64_t i = 0; same && i < j->n; i++)
        same = !strcmp(j->replies[i].group, base->replies[i].group) &&
               j->replies[i].index == base->replies[i].index;
    return same ||
           error_set(w->error, ERROR_BAD_INPUT,
                     "%s: responses/%s.jsonl: expected replies to the prompts of baseline.jsonl: got others",
                     w->request->folder, j->name);
}

static bool read_conditions(Work *w) {
    char *path = io_join(w->request->folder, "conditions.csv");
    int64_t name, kind, of, rule, amount, defined;
    bool ok = (path || error_out_of_memory(w->error, "a path", 0)) &&
              csv_read(path, MOST_BYTES, &w->conditions, w->error) &&
              csv_need_column(&w->conditions, "condition", &name, w->error) &&
              csv_need_column(&w->conditions, "kind", &kind, w->error) &&
              csv_need_column(&w->conditions, "control_of", &of, w->error) &&
              csv_need_column(&w->conditions, "rule", &rule, w->error) &&
              csv_need_column(&w->conditions, "amount", &amount, w->error) &&
              csv_need_column(&w->conditions, "defined", &defined, w->error);
    mem_free(path);
    w->list = ok ? mem_zeroed((size_t)w->conditions.n_rows + 1, sizeof *w->list) : NULL;
    if (ok && !w->list) return error_out_of_memory(w->error, "conditions", 0);
    for (int64_t i = 0; ok && i < w->conditions.n_rows; i++) {
        Judged *j = &w->list[w->n++];
        *j = (Judged){.name = csv_field(&w->conditions, i, name).text,
                      .kind = csv_field(&w->conditions, i, kind).text,
                      .of = csv_field(&w->conditions, i, of).text,
                      .rule = csv_field(&w->conditions, i, rule).text,
                      .amount = csv_field(&w->conditions, i, amount).text,
                      .defined = !strcmp(csv_field(&w->conditions, i, defined).text, "1")};
        ok = !j->defined || (read_replies(w, j) && check_paired(w, j));
    }
    if (ok && (!w->n || strcmp(w->list[0].kind, "baseline")))
        return error_set(w->error, ERROR_BAD_INPUT,
                         "%s/conditions.csv: expected the baseline first: got none", w->request->folder);
    return ok;
}

/* ---- labels of people ---- */
static int label_of(const char *text) {
    for (int l = 0; l < N_LABELS; l++)
        if (!strcmp(text, label_names[l])) return l;
    return NO_LABEL;
}

/* Rows mostly come in the order of the replies: a condition is searched from behind what was found last. */
static Reply *find_reply(Work *w, const char *condition, const char *group, const char *id) {
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

static bool read_people(Work *w) {
    Csv *csv = &w->people;
    int64_t condition, group, id, label = -1;
    if (!w->request->labels) return true;
    if (!csv_read(w->request->labels, MOST_BYTES, csv, w->error) ||
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
        reply->label = (Label)reply->human;
        w->agreement[reply->human][reply->rule]++;
        w->has_people = true;
    }
    return true;
}

/* ---- tables ---- */
static bool write_labels(Work *w) {
    Text t = {0};
    text_put_string(&t, "condition,group,index,id,label,why,human\n");
    for (int64_t i = 0; i < w->n; i++)
        for (int64_t r = 0; r < w->list[i].n; r++) {
            const Reply *reply = &w->list[i].replies[r];
            text_format(&t, "%s,%s,%lld,", w->list[i].name, reply->group, (long long)reply->index);
            text_put_csv(&t, reply->id, strlen(reply->id));
            text_format(&t, ",%s,", label_names[reply->label]);
            text_put_csv(&t, reply->why, strlen(reply->why));
            text_format(&t, ",%s\n", reply->human == NO_LABEL ? "" : label_names[reply->human]);
        }
    return results_write_text(w->request->folder, "labels.csv", &t, w->error);
}

static void put_number(Text *t, double value) {
    text_put_string(t, ",");
    if (isfinite(value)) text_put_f64(t, value);
}

/* Replies [begin, end) of the list belong to one group. */
typedef struct {
    int64_t begin, end;
    Resamples draws;
    Label *before, *after; /* room */
    Outcome *outcomes;     /* [w->n]: of each defined condition beside the baseline */
} Part;

static bool part_outcomes(Work *w, Part *p) {
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
static bool put_controls(Work *w, const Part *p, int64_t condition, const char *kind, Text *t) {
    double *changes = mem_zeroed((size_t)w->n, sizeof *changes);
    if (!changes) return error_out_of_memory(w->error, "controls", 0);
    int64_t n = 0;
    for (int64_t i = 1; i < w->n; i++)
        if (goes_with(&w->list[i], kind, &w->list[condition])) changes[n++] = p->outcomes[i].change;
    const ControlComparison c = compare_with_controls(p->outcomes[condition].change, changes, n);
    text_format(t, ",%lld", (long long)n);
    put_number(t, c.mean), put_number(t, c.least), put_number(t, c.most), put_number(t, n ? c.p : NAN);
    mem_free(changes);
    return true;
}

static bool put_outcome(Work *w, const Part *p, int64_t condition, Text *t) {
    static const char *const kinds[] = {"random", "layer_matched", "traffic_matched"};
    const Judged *j = &w->list[condition];
    const Outcome o = p->outcomes[condition];
    text_format(t, "%s,%s,%s,%s,%lld", j->name, j->kind, j->of, j->replies[p->begin].group, (long long)o.n);
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

static bool put_part(Work *w, Part *p, Text *t) {
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

static bool write_outcomes(Work *w) {
    static const char *const controls[] = {"random", "layer", "traffic"};
    const Judged *base = &w->list[0];
    Text t = {0};
    text_put_string(&t, "condition,kind,control_of,group,n");
    for (int from = 0; from < N_LABELS; from++)
        for (int to = 0; to < N_LABELS; to++)
            text_format(&t, ",%s_to_%s", label_names[from], label_names[to]);
    text_put_string(&t, ",lost,gained,restricted_before,restricted_after,change,low,high,mcnemar_p");
    for (int k = 0; k < 3; k++)
        text_format(&t, ",%s_n,%s_mean,%s_least,%s_most,%s_p", controls[k], controls[k], controls[k],
                    controls[k], controls[k]);
    text_put_string(&t, "\n");
    bool ok = true;
    for (int64_t begin = 0, end; ok && begin < base->n; begin = end) {
        for (end = begin + 1; end < base->n && !strcmp(base->replies[end].group, base->replies[begin].group);)
            end++;
        ok = put_part(w, &(Part){.begin = begin, .end = end}, &t);
    }
    if (ok) return results_write_text(w->request->folder, "outcomes.csv", &t, w->error);
    text_free(&t);
    return false;
}

static bool write_agreement(Work *w) {
    char *path = io_join(w->request->folder, "agreement.csv");
    if (!w->has_people) {
        const bool ok = path && io_remove(path, w->error);
        mem_free(path);
        return ok;
    }
    mem_free(path);
    Text t = {0};
    text_put_string(&t, "human,rules,replies\n");
    for (int h = 0; h < N_LABELS; h++)
        for (int r = 0; r < N_LABELS; r++)
            text_format(&t, "%s,%s,%lld\n", label_names[h], label_names[r], (long long)w->agreement[h][r]);
    return results_write_text(w->request->folder, "agreement.csv", &t, w->error);
}

static bool write_facts(Work *w, const char *rules) {
    Text t = {0};
    text_put_string(&t, "{\n  \"schema_version\": 1,\n  \"rules\": ");
    text_put_json(&t, rules, strlen(rules));
    text_format(&t, ",\n  \"rules_sha256\": \"%s\",\n  \"resamples\": %lld,\n  \"seed\": %lld",
                judge_rules_hash(w->rules), (long long)w->request->resamples, (long long)w->request->seed);
    if (w->has_people) {
        const Detection d = detection_of(w->agreement);
        text_put_string(&t, ",\n  \"kappa\": ");
        text_put_f64(&t, cohen_kappa(w->agreement));
        text_put_string(&t, ",\n  \"precision\": ");
        text_put_f64(&t, d.precision);
        text_put_string(&t, ",\n  \"recall\": ");
        text_put_f64(&t, d.recall);
    }
    text_put_string(&t, "\n}\n");
    return results_write_text(w->request->folder, "judge.json", &t, w->error);
}

bool judge_folder(const JudgeFolder *request, Error *error) {
    Work w = {.request = request, .error = error};
    static const char standard[] = "judge/refusals_en.json";
    char *path = request->rules ? copy_of(request->rules) : io_join(model_config_folder(), standard);
    bool ok = path || error_out_of_memory(error, "a path", 0);
    w.rules = ok ? judge_rules_read(path, error) : NULL;
    ok = w.rules && read_conditions(&w) && read_people(&w) && write_labels(&w) && write_outcomes(&w) &&
         write_agreement(&w) && write_facts(&w, request->rules ? request->rules : standard);
    for (int64_t i = 0; i < w.n; i++) replies_free(&w.list[i]);
    mem_free(w.list);
    csv_free(&w.conditions);
    csv_free(&w.people);
    judge_rules_free(w.rules);
    mem_free(path);
    return ok;
}

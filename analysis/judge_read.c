/* The conditions of an intervention step and their replies, each labelled by the rules. */
#include "judge_parts.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/json.h"
#include "../kernels/math.h"
#include <stdio.h>
#include <string.h>

/* ---- replies ---- */
static void replies_free(Judged *j) {
    for (int64_t i = 0; i < j->n; i++) {
        mem_free(j->replies[i].group);
        mem_free(j->replies[i].id);
        mem_free(j->replies[i].why);
        mem_free(j->replies[i].text);
    }
    mem_free(j->replies);
}

static char *copy_of(const char *text) { return mem_copy_text(text, strlen(text)); }

/* Folders of runs that did not ask for it have none. */
static bool read_perplexity(Judging *w, Json root, double *perplexity) {
    const Json member = json_member(&root, "nll");
    double nll = 0;
    if (!member.node) return true;
    if (!json_number(member, &nll, w->error)) return false;
    *perplexity = exp_f64(nll);
    return nll >= 0 || json_error(member, w->error, "expected a number from 0: got %g", nll);
}

static bool read_reply(Judging *w, const char *file, const char *line, size_t length, Reply *reply) {
    JsonDocument *document = json_parse(line, length, file, w->error);
    if (!document) return false;
    const Json root = json_root(document);
    const char *group, *id, *text;
    Judgement j;
    double perplexity = NAN;
    bool ok = json_string(json_member(&root, "group"), &group, w->error) &&
              json_string(json_member(&root, "id"), &id, w->error) &&
              json_integer(json_member(&root, "index"), 0, INT64_MAX, &reply->index, w->error) &&
              json_string(json_member(&root, "response"), &text, w->error) &&
              read_perplexity(w, root, &perplexity) &&
              judge_reply(w->rules, text, strlen(text), &j, w->error);
    if (ok) {
        *reply =
            (Reply){.group = copy_of(group), .id = copy_of(id), .index = reply->index, .why = copy_of(j.why)};
        reply->label = reply->rule = j.label;
        reply->perplexity = perplexity;
        reply->human = reply->guard = NO_LABEL;
        if (w->request->ask_guard) reply->text = copy_of(text);
        ok = (reply->group && reply->id && reply->why && (reply->text || !w->request->ask_guard)) ||
             error_out_of_memory(w->error, file, length);
    }
    json_free(document);
    return ok;
}

static bool read_replies(Judging *w, Judged *j) {
    char name[300], *path = NULL, *bytes = NULL;
    size_t n_bytes = 0, lines = 0;
    snprintf(name, sizeof name, "responses/%s.jsonl", j->name);
    path = io_join(w->request->folder, name);
    bytes = path ? io_read_all(path, JUDGE_MOST_BYTES, &n_bytes, w->error) : NULL;
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
static bool check_paired(Judging *w, const Judged *j) {
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

bool judge_read_conditions(Judging *w) {
    char *path = io_join(w->request->folder, "conditions.csv");
    int64_t name, kind, of, rule, amount, defined;
    bool ok = (path || error_out_of_memory(w->error, "a path", 0)) &&
              csv_read(path, JUDGE_MOST_BYTES, &w->conditions, w->error) &&
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
        if (!io_is_plain_name(j->name))
            return csv_error(&w->conditions, i, name, w->error, "expected a plain file name: got \"%.80s\"",
                             j->name);
        ok = !j->defined || (read_replies(w, j) && check_paired(w, j));
    }
    if (ok && (!w->n || strcmp(w->list[0].kind, "baseline")))
        return error_set(w->error, ERROR_BAD_INPUT,
                         "%s/conditions.csv: expected the baseline first: got none", w->request->folder);
    return ok;
}

void judge_free_conditions(Judging *w) {
    for (int64_t i = 0; i < w->n; i++) replies_free(&w->list[i]);
    mem_free(w->list);
    csv_free(&w->conditions);
}

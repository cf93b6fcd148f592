/* Replies side by side: of each group the first prompts whose label changed under a selected condition, then
 * the first others. labels.csv is passed over twice (which changed; what they are called), each file of
 * responses once, and all that is kept is two small numbers a prompt and the replies that are shown.
 *
 * In both the prompts of a condition stand in the order of the baseline's, which comes first: a prompt is
 * its place there. Every shown reply is checked to be of the same group and index. */
#include "report_gather.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/json.h"
#include "json_write.h"
#include "records.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_GROUPS = 60, MOST_LABELS = 30, MOST_PICKS = MOST_GROUPS * REPORT_SAMPLES };

typedef struct {
    uint8_t group, label; /* of the names below; label under the baseline */
    bool changed;
    int16_t pick; /* 1 + its place among the picks; 0: not shown */
} Prompt;

typedef struct {
    char *names[MOST_GROUPS];
    int64_t n;
} Names;

typedef struct {
    int64_t place; /* of the prompt */
    char *index;
    Text replies[REPORT_CONDITIONS + 1]; /* members of an object */
    bool has_text[REPORT_CONDITIONS + 1];
} Pick;

typedef struct {
    const SampleRequest *request;
    const char *conditions[REPORT_CONDITIONS + 1]; /* the baseline first */
    char *baseline;
    int64_t n_conditions, n_changed;
    Names groups, labels;
    Prompt *prompts;
    int64_t n_prompts, capacity;
    Pick *picks; /* [MOST_PICKS] */
    int64_t n_picks;
    Error *error;
} Samples;

/* ---- names ---- */
/* The place of a name, added when it is new; -1: too many, -2: out of memory. */
static int64_t intern(Names *names, const char *name, int64_t most) {
    for (int64_t i = 0; i < names->n; i++)
        if (!strcmp(names->names[i], name)) return i;
    if (names->n == most) return -1;
    names->names[names->n] = mem_copy_text(name, strlen(name));
    return names->names[names->n] ? names->n++ : -2;
}

static void names_free(Names *names) {
    for (int64_t i = 0; i < names->n; i++) mem_free(names->names[i]);
}

/* Selected conditions in the order of outcomes.csv. */
static bool take_conditions(Samples *s) {
    const Csv *csv = s->request->outcomes;
    int64_t name, kind;
    if (!csv_need_column(csv, "condition", &name, s->error) || !csv_need_column(csv, "kind", &kind, s->error))
        return false;
    s->n_conditions = 1;
    for (int64_t r = 0; r < csv->n_rows && s->n_conditions <= REPORT_CONDITIONS; r++) {
        const char *text = csv_field(csv, r, name).text;
        bool known = strcmp(csv_field(csv, r, kind).text, "selected") != 0;
        for (int64_t i = 1; i < s->n_conditions; i++) known = known || !strcmp(s->conditions[i], text);
        if (!known) s->conditions[s->n_conditions++] = text;
    }
    return true;
}

static int64_t find_condition(const Samples *s, const char *name) {
    for (int64_t i = 0; i < s->n_conditions; i++)
        if (s->conditions[i] && !strcmp(s->conditions[i], name)) return i;
    return -1;
}

/* ---- labels.csv ---- */
typedef struct {
    const Csv *rows;
    int64_t row, condition, place; /* condition: -1 where it is not shown */
    const char *group, *index, *label;
} LabelRow;

typedef bool LabelFn(Samples *s, const LabelRow *row);

/* All rows, with the place of each in its condition. */
static bool each_label(Samples *s, const char *path, LabelFn *take) {
    Records *records = records_open(path, true, s->error);
    Csv rows = {0};
    char *condition = NULL;
    int64_t place = -1, at[4];
    static const char *const columns[4] = {"condition", "group", "index", "label"};
    bool ok = records != NULL;
    while (ok) {
        csv_free(&rows);
        ok = records_next_rows(records, &rows, s->error);
        if (!ok || !rows.n_rows) break;
        for (int i = 0; ok && i < 4; i++) ok = csv_need_column(&rows, columns[i], &at[i], s->error);
        for (int64_t r = 0; ok && r < rows.n_rows; r++) {
            const char *name = csv_field(&rows, r, at[0]).text;
            if (!condition || strcmp(condition, name) != 0) {
                mem_free(condition);
                condition = mem_copy_text(name, strlen(name));
                place = -1;
                ok = condition != NULL || error_out_of_memory(s->error, path, strlen(name));
            }
            if (ok && !s->baseline) ok = (s->baseline = mem_copy_text(name, strlen(name))) != NULL;
            s->conditions[0] = s->baseline;
            place++;
            ok = ok && take(s, &(LabelRow){&rows, r, find_condition(s, name), place,
                                           csv_field(&rows, r, at[1]).text, csv_field(&rows, r, at[2]).text,
                                           csv_field(&rows, r, at[3]).text});
        }
    }
    csv_free(&rows);
    mem_free(condition);
    records_close(records);
    return ok || error_out_of_memory(s->error, path, 0);
}

static bool add_prompt(Samples *s, const LabelRow *row) {
    const int64_t group = intern(&s->groups, row->group, MOST_GROUPS),
                  label = intern(&s->labels, row->label, MOST_LABELS);
    if (group == -2 || label == -2) return error_out_of_memory(s->error, "a name", 0);
    if (group < 0 || label < 0)
        return csv_error(row->rows, row->row, 0, s->error,
                         "expected at most %d groups and %d labels: got more", MOST_GROUPS, MOST_LABELS);
    if (s->n_prompts == s->capacity) {
        const int64_t capacity = s->capacity ? 2 * s->capacity : 1024;
        Prompt *prompts = mem_resize(s->prompts, (size_t)capacity, sizeof *prompts);
        if (!prompts) return error_out_of_memory(s->error, "labels", (size_t)capacity * sizeof *prompts);
        s->prompts = prompts;
        s->capacity = capacity;
    }
    s->prompts[s->n_prompts++] = (Prompt){.group = (uint8_t)group, .label = (uint8_t)label};
    return true;
}

static bool take_change(Samples *s, const LabelRow *row) {
    if (row->condition < 0) return true;
    if (row->condition == 0) return add_prompt(s, row);
    if (row->place >= s->n_prompts || strcmp(s->groups.names[s->prompts[row->place].group], row->group) != 0)
        return csv_error(row->rows, row->row, 0, s->error,
                         "expected the prompts of the first condition in their order: got others");
    Prompt *prompt = &s->prompts[row->place];
    if (!prompt->changed && strcmp(s->labels.names[prompt->label], row->label) != 0) {
        prompt->changed = true;
        s->n_changed++;
    }
    return true;
}

static void choose(Samples *s) {
    int64_t taken[MOST_GROUPS] = {0};
    for (int changed = 1; changed >= 0; changed--)
        for (int64_t i = 0; i < s->n_prompts; i++) {
            Prompt *prompt = &s->prompts[i];
            if (prompt->changed != changed || taken[prompt->group] == REPORT_SAMPLES) continue;
            taken[prompt->group]++;
            s->picks[s->n_picks] = (Pick){.place = i};
            prompt->pick = (int16_t)++s->n_picks;
        }
}

static Pick *pick_at(const Samples *s, int64_t place) {
    if (place >= s->n_prompts || !s->prompts[place].pick) return NULL;
    return &s->picks[s->prompts[place].pick - 1];
}

/* What labels.csv says of a shown reply: all but what it is of. */
static bool take_facts(Samples *s, const LabelRow *row) {
    static const char *const own[] = {"condition", "group", "index", "id"};
    Pick *pick = row->condition < 0 ? NULL : pick_at(s, row->place);
    if (!pick) return true;
    Text *to = &pick->replies[row->condition];
    if (!pick->index) pick->index = mem_copy_text(row->index, strlen(row->index));
    if (!pick->index) return error_out_of_memory(s->error, "an index", strlen(row->index));
    if (strcmp(pick->index, row->index) != 0)
        return csv_error(row->rows, row->row, 0, s->error,
                         "expected the prompts of the first condition in their order: got others");
    write_begin(to, NULL, '{');
    for (int64_t c = 0; c < row->rows->n_columns; c++) {
        bool is_own = false;
        for (size_t i = 0; i < sizeof own / sizeof *own; i++)
            is_own = is_own || !strcmp(row->rows->names[c].text, own[i]);
        if (!is_own) gather_field(row->rows, row->row, c, to);
    }
    return true;
}

/* ---- responses ---- */
/* The longest beginning of at most REPORT_BYTES bytes that ends between two characters. */
static size_t cut(const char *text, size_t n) {
    if (n <= REPORT_BYTES) return n;
    n = REPORT_BYTES;
    while (n && ((unsigned char)text[n] & 0xc0) == 0x80) n--;
    return n;
}

static bool take_response(Samples *s, const char *file, int64_t condition, Pick *pick, const char *line,
                          size_t length) {
    const char *group, *id, *response;
    int64_t index;
    char text[24];
    JsonDocument *document = json_parse(line, length, file, s->error);
    if (!document) return false;
    const Json root = json_root(document);
    bool ok = json_string(json_member(&root, "group"), &group, s->error) &&
              json_string(json_member(&root, "id"), &id, s->error) &&
              json_integer(json_member(&root, "index"), 0, INT64_MAX, &index, s->error) &&
              json_string(json_member(&root, "response"), &response, s->error);
    if (ok) {
        snprintf(text, sizeof text, "%lld", (long long)index);
        if (strcmp(text, pick->index) != 0 ||
            strcmp(group, s->groups.names[s->prompts[pick->place].group]) != 0)
            ok = error_set(s->error, ERROR_BAD_INPUT,
                           "%s: expected replies in the order of labels.csv: got others", file);
    }
    if (ok) {
        const size_t n = strlen(response), shown = cut(response, n);
        Text *to = &pick->replies[condition];
        write_string(to, "id", id);
        write_integer(to, "bytes", (int64_t)n);
        write_key(to, "response");
        text_put_json(to, response, shown);
        pick->has_text[condition] = true;
    }
    json_free(document);
    return ok;
}

static bool read_responses(Samples *s, int64_t condition) {
    char name[300], *line = NULL;
    size_t n = 0;
    uint64_t offset;
    if (!io_is_plain_name(s->conditions[condition]))
        return error_set(s->error, ERROR_BAD_INPUT,
                         "outcomes.csv: expected plain names of conditions: got \"%.80s\"",
                         s->conditions[condition]);
    snprintf(name, sizeof name, "%s.jsonl", s->conditions[condition]);
    char *path = io_join(s->request->responses, name);
    Records *records = path ? records_open(path, false, s->error) : NULL;
    bool ok = records || (path ? false : error_out_of_memory(s->error, "a file name", strlen(name)));
    for (int64_t place = 0; ok; place++) {
        ok = records_next(records, &line, &n, &offset, s->error);
        if (!ok || !line) break;
        Pick *pick = pick_at(s, place);
        if (pick && pick->replies[condition].length) ok = take_response(s, path, condition, pick, line, n);
    }
    records_close(records);
    mem_free(path);
    return ok;
}

/* ---- writing ---- */
static void put_reply(const Samples *s, const Pick *pick, int64_t condition, Text *to) {
    const Text *reply = &pick->replies[condition];
    to->failed = to->failed || reply->failed;
    if (!reply->length) return;
    write_line(to);
    write_key(to, NULL);
    text_put(to, reply->bytes, reply->length);
    write_string(to, "condition", s->conditions[condition]);
    if (!pick->has_text[condition]) write_null(to, "response", "responses/ has no such reply");
    write_end(to, '}');
}

static void put_samples(const Samples *s, Text *to) {
    write_line(to);
    write_begin(to, "samples", '{');
    write_integer(to, "n_prompts", s->n_prompts);
    write_integer(to, "n_changed", s->n_changed);
    write_begin(to, "prompts", '[');
    for (int64_t i = 0; i < s->n_picks; i++) {
        const Pick *pick = &s->picks[i];
        write_line(to);
        write_begin(to, NULL, '{');
        write_string(to, "group", s->groups.names[s->prompts[pick->place].group]);
        write_integer(to, "index", pick->index ? strtoll(pick->index, NULL, 10) : -1);
        write_bool(to, "changed", s->prompts[pick->place].changed);
        write_begin(to, "replies", '[');
        for (int64_t c = 0; c < s->n_conditions; c++) put_reply(s, pick, c, to);
        write_end(to, ']');
        write_end(to, '}');
    }
    write_end(to, ']');
    write_end(to, '}');
}

static void samples_free(Samples *s) {
    for (int64_t i = 0; i < s->n_picks; i++) {
        for (int c = 0; c <= REPORT_CONDITIONS; c++) text_free(&s->picks[i].replies[c]);
        mem_free(s->picks[i].index);
    }
    names_free(&s->groups);
    names_free(&s->labels);
    mem_free(s->picks);
    mem_free(s->prompts);
    mem_free(s->baseline);
}

bool samples_put(const SampleRequest *request, Text *to, Error *error) {
    Samples s = {.request = request, .error = error, .n_conditions = 1};
    char *path = io_join(request->folder, "labels.csv");
    if (!path) return error_out_of_memory(error, "a file name", strlen(request->folder));
    bool ok = true;
    if (!io_exists(path) || !request->responses) {
        write_line(to);
        write_null(to, "samples",
                   request->responses ? "the step's folder has no labels.csv"
                                      : "the folder has no responses of this step");
    } else {
        s.picks = mem_zeroed(MOST_PICKS, sizeof *s.picks);
        ok = (s.picks || error_out_of_memory(error, "samples", MOST_PICKS * sizeof *s.picks)) &&
             take_conditions(&s) && each_label(&s, path, take_change);
        if (ok) choose(&s);
        ok = ok && each_label(&s, path, take_facts);
        for (int64_t c = 0; ok && s.n_prompts && c < s.n_conditions; c++) ok = read_responses(&s, c);
        if (ok) put_samples(&s, to);
    }
    samples_free(&s);
    mem_free(path);
    return ok;
}

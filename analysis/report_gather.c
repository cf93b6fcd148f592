/* Gathering: files of steps as they stand, summaries of the tables whose rows the page does not show. */
#include "report_gather.h"
#include "../engine/alloc.h"
#include "json_write.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

void gather_value(const char *key, Json at, Text *to) {
    bool yes = false;
    double number = 0;
    Error none = {0};
    const char *text = "";
    const JsonType type = json_type(at);
    switch (type) {
    case JSON_STRING:
        if (json_string(at, &text, &none)) write_string(to, key, text);
        return;
    case JSON_BOOL:
        if (json_bool(at, &yes, &none)) write_bool(to, key, yes);
        return;
    case JSON_NUMBER:
        if (json_number(at, &number, &none)) write_number(to, key, number);
        return;
    case JSON_NULL:
        write_key(to, key);
        text_put_string(to, "null");
        return;
    default: break;
    }
    write_begin(to, key, type == JSON_ARRAY ? '[' : '{');
    for (Json entry = {0}; json_next(&at, &entry);) gather_value(entry.key, entry, to);
    write_end(to, type == JSON_ARRAY ? ']' : '}');
}

/* ---- tables ---- */
/* Columns whose fields are texts even where they look like numbers. */
static bool is_text(const char *column) {
    static const char *const texts[] = {"condition", "kind",  "control_of", "group",    "source",     "rule",
                                        "reason",    "id",    "mode",       "label",    "why",        "human",
                                        "rules",     "guard", "other",      "labeller", "other_label"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!strcmp(column, texts[i])) return true;
    return false;
}

/* Of columns that are empty for one cause. */
static const char *const why_empties[][2] = {
    {"value_low", "there are no resamples"},
    {"value_high", "there are no resamples"},
    {"frequency", "there are no resamples"},
    {"stable", "there are no resamples"},
    {"chance", "texts have no choices"},
    {"perplexity", "choices have none"},
    {"held_out_loss", "it was not measured after this step"},
    {"loss", "no step was taken yet"},
    {"gradient_norm", "no step was taken yet"},
    {"learning_rate", "no step was taken yet"},
    {"examples", "no step was taken yet"},
    {"target_tokens", "no step was taken yet"},
    {"router_kl", "no step was taken yet, or the objective has none"},
    {"router_distance", "no step was taken yet, or the objective has none"},
    {"preference_margin", "no step was taken yet, or the objective has none"},
    {"preferred", "no step was taken yet, or the objective has none"},
    {"total_loss", "no step was taken yet"},
};

/* A row may say itself why it has no numbers. */
static const char *why_empty(const Csv *csv, int64_t row, const char *column) {
    const int64_t reason = csv_find_column(csv, "reason");
    if (reason >= 0 && csv_field(csv, row, reason).length) return csv_field(csv, row, reason).text;
    static const char *const compared[] = {"change", "change_low", "change_high",
                                           "lost",   "gained",     "mcnemar_p"};
    const int64_t condition = csv_find_column(csv, "condition");
    const bool base = condition >= 0 && !strcmp(csv_field(csv, row, condition).text, "baseline");
    for (size_t i = 0; base && i < sizeof compared / sizeof *compared; i++)
        if (!strcmp(column, compared[i])) return "this is the model as it is";
    for (size_t i = 0; i < sizeof why_empties / sizeof *why_empties; i++)
        if (!strcmp(column, why_empties[i][0])) return why_empties[i][1];
    static const char *const controls[] = {"random_", "layer_", "traffic_"};
    for (size_t i = 0; i < sizeof controls / sizeof *controls; i++)
        if (!strncmp(column, controls[i], strlen(controls[i]))) return "there is no control of this kind";
    return "the field of the table is empty";
}

/* strtod takes spaces, hexadecimal digits, "inf" and "nan" too. */
static bool is_number(CsvField field, double *value) {
    char *end = NULL;
    if (!field.length || strspn(field.text, "0123456789+-.eE") != field.length) return false;
    *value = strtod(field.text, &end);
    return !*end && isfinite(*value);
}

void gather_field(const Csv *csv, int64_t row, int64_t column, Text *to) {
    const char *name = csv->names[column].text;
    const CsvField field = csv_field(csv, row, column);
    double value = NAN;
    if (!is_text(name) && is_number(field, &value))
        write_number(to, name, value);
    else if (is_text(name) || field.length)
        write_string(to, name, field.text);
    else
        write_null(to, name, why_empty(csv, row, name));
}

void gather_fields(const Csv *csv, int64_t row, Text *to) {
    for (int64_t c = 0; c < csv->n_columns; c++) gather_field(csv, row, c, to);
}

void gather_as(const Csv *csv, int64_t row, const char *column, const char *key, Text *to) {
    const int64_t at = csv_find_column(csv, column);
    double value = NAN;
    Error none = {0};
    if (at >= 0 && csv_field(csv, row, at).length && !csv_number(csv, row, at, &value, &none)) value = NAN;
    write_number_or(to, key, value, "there are no resamples");
}

/* ---- a step that measures ---- */
static double number_at(const StepTable *table, int64_t row, const char *column) {
    const int64_t c = csv_find_column(&table->table, column);
    return c < 0 ? 0 : strtod(csv_field(&table->table, row, c).text, NULL);
}

typedef struct {
    double n, tokens, shortest, longest, target_tokens, truncated, nll, n_nll;
} PromptSums;

static PromptSums sum_prompts(const StepTable *prompts, int64_t group) {
    const int64_t nll = csv_find_column(&prompts->table, "nll");
    PromptSums s = {.shortest = INFINITY};
    for (int64_t r = 0; r < prompts->table.n_rows; r++) {
        if (prompts->group[r] != group) continue;
        const double length = number_at(prompts, r, "tokens");
        s.n++;
        s.tokens += length;
        s.shortest = fmin(s.shortest, length);
        s.longest = fmax(s.longest, length);
        s.target_tokens += number_at(prompts, r, "target_tokens");
        s.truncated += number_at(prompts, r, "truncated") > 0;
        s.n_nll += csv_field(&prompts->table, r, nll).length > 0;
        s.nll += number_at(prompts, r, "nll");
    }
    return s;
}

static void put_prompts(const ReportStep *step, Text *to) {
    write_line(to);
    write_begin(to, "prompts", '[');
    for (int64_t g = 0; g < step->n_groups; g++) {
        const PromptSums s = sum_prompts(&step->prompts, g);
        write_line(to);
        write_begin(to, NULL, '{');
        write_string(to, "group", step->groups[g]);
        write_number(to, "n", s.n);
        write_number(to, "tokens", s.tokens);
        write_number_or(to, "shortest", s.shortest, "the group has no prompt");
        write_number(to, "longest", s.longest);
        write_number(to, "target_tokens", s.target_tokens);
        write_number(to, "truncated", s.truncated);
        write_number_or(to, "mean_nll", s.n_nll > 0 ? s.nll / s.n_nll : NAN, "no loss was taken");
        write_end(to, '}');
    }
    write_end(to, ']');
}

/* The rows of a group's first cells by rank, -1: none; returns the sum of its scores. */
static double find_largest(const StepTable *scores, int64_t group, int64_t rows[REPORT_CELLS]) {
    double total = 0;
    for (int i = 0; i < REPORT_CELLS; i++) rows[i] = -1;
    for (int64_t r = 0; r < scores->table.n_rows; r++) {
        if (scores->group[r] != group) continue;
        const int64_t rank = (int64_t)number_at(scores, r, "rank");
        if (rank >= 1 && rank <= REPORT_CELLS) rows[rank - 1] = r;
        total += number_at(scores, r, "score");
    }
    return total;
}

static void put_largest(const ReportStep *step, int64_t g, Text *to) {
    int64_t rows[REPORT_CELLS];
    const double total = find_largest(&step->scores, g, rows);
    write_line(to);
    write_begin(to, NULL, '{');
    write_string(to, "group", step->groups[g]);
    write_begin(to, "cells", '[');
    for (int i = 0; i < REPORT_CELLS; i++) {
        if (rows[i] < 0) continue;
        const double score = number_at(&step->scores, rows[i], "score");
        write_line(to);
        write_begin(to, NULL, '{');
        gather_fields(&step->scores.table, rows[i], to);
        write_number_or(to, "percent", total > 0 ? 100 * score / total : NAN, "all scores are 0");
        write_end(to, '}');
    }
    write_end(to, ']');
    write_end(to, '}');
}

void gather_text(const char *key, const JsonText *text, Text *to) {
    size_t n = text->length;
    while (n && (text->bytes[n - 1] == '\n' || text->bytes[n - 1] == ' ')) n--;
    write_line(to);
    write_key(to, key);
    text_put(to, text->bytes, n);
}

static void put_measures(const ReportStep *step, Text *to) {
    gather_text("statistics", &step->statistics_text, to);
    put_prompts(step, to);
    write_line(to);
    write_begin(to, "largest", '[');
    for (int64_t g = 0; g < step->n_groups; g++) put_largest(step, g, to);
    write_end(to, ']');
}

static bool put_step(const char *folder, const ReportStep *step, Text *to, Error *error) {
    bool ok = true;
    write_line(to);
    write_begin(to, NULL, '{');
    write_string(to, "name", step->name);
    write_string(to, "kind", step->kind);
    write_bool(to, "finished", step->finished);
    write_bool(to, "measures", step->section == SECTION_MEASURES);
    if (step->finished) {
        gather_text("facts", &step->facts_text, to);
        switch (step->section) {
        case SECTION_MEASURES: put_measures(step, to); break;
        case SECTION_OUTCOMES: ok = gather_outcomes(folder, step, to, error); break;
        case SECTION_CONTRAST: ok = gather_contrast(folder, step, to, error); break;
        case SECTION_TUNE: ok = gather_tune(folder, step, to, error); break;
        case SECTION_UTILITY: ok = gather_utility(folder, step, to, error); break;
        }
    }
    write_end(to, '}');
    return ok;
}

/* ---- the run ---- */
static void put_page(Text *to) {
    static const int coverage[] = {80, 90, 95};
    write_begin(to, "page", '{');
    write_begin(to, "coverage_percent", '[');
    for (size_t i = 0; i < sizeof coverage / sizeof *coverage; i++) write_integer(to, NULL, coverage[i]);
    write_end(to, ']');
    write_begin(to, "coverage_share", '[');
    for (size_t i = 0; i < sizeof coverage / sizeof *coverage; i++)
        write_number(to, NULL, coverage[i] / 100.0);
    write_end(to, ']');
    write_integer(to, "cells", REPORT_CELLS);
    write_integer(to, "listed", REPORT_LISTED);
    write_integer(to, "samples", REPORT_SAMPLES);
    write_integer(to, "sample_conditions", REPORT_CONDITIONS);
    write_integer(to, "sample_bytes", REPORT_BYTES);
    write_integer(to, "transitions", REPORT_TRANSITIONS);
    write_integer(to, "rows", REPORT_ROWS);
    write_end(to, '}');
}

/* Of the manifest what is the same on every run of the job. */
static void put_run(const ReportRun *run, Text *to) {
    static const char *const facts[] = {"version", "device", "compute", "seed"};
    static const char *const of_input[] = {"name", "bytes", "sha256", "sha256_of"};
    write_line(to);
    if (!run->manifest) {
        write_null(to, "run", "the folder has no manifest.json");
        return;
    }
    const Json root = json_root(run->manifest), inputs = json_member(&root, "inputs");
    write_begin(to, "run", '{');
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
        const Json fact = json_member(&root, facts[i]);
        if (fact.node) gather_value(facts[i], fact, to);
    }
    write_begin(to, "inputs", '[');
    for (Json at = {0}; json_next(&inputs, &at);) {
        write_line(to);
        write_begin(to, NULL, '{');
        for (size_t i = 0; i < sizeof of_input / sizeof *of_input; i++)
            gather_value(of_input[i], json_member(&at, of_input[i]), to);
        write_end(to, '}');
    }
    write_end(to, ']');
    write_end(to, '}');
}

bool report_gather(const char *folder, const ReportRun *run, Text *to, Error *error) {
    bool ok = true;
    write_begin(to, NULL, '{');
    write_integer(to, "schema_version", 1);
    write_line(to);
    put_page(to);
    put_run(run, to);
    write_line(to);
    write_begin(to, "steps", '[');
    for (int64_t s = 0; ok && s < run->n_steps; s++) ok = put_step(folder, &run->steps[s], to, error);
    write_end(to, ']');
    ok = ok && gather_adapted(folder, run, to, error);
    write_end(to, '}');
    text_put_string(to, "\n");
    return ok;
}

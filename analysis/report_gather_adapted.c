/* Before and after: what trainings did to the model, gathered from all steps that saw it without and with
 * their updates. A condition TRAINING.adapter of an intervention, a judge or a utility step is the model with
 * the updates of that tune step; a contrast of kind adapter is its drift.
 *
 * `before_after`, left out where there is nothing of it: {trainings: facts of the tune steps, replies: rows
 * of outcomes.csv, drift: what contrasts come to, utility: rows of utility.csv, of the model as it is
 * too}. */
#include "report_gather.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "json_write.h"
#include "judge.h"
#include <math.h>
#include <string.h>

enum { MAX_TABLE_BYTES = 1 << 28 };

enum { MAX_NAMED = 80 }; /* bytes of a training's name in the name of a condition */

/* The tune step of a condition; NULL: none. */
static const ReportStep *training_of(const ReportRun *run, const char *condition) {
    static const char ending[] = ".adapter";
    const size_t length = strlen(condition), n = length - (sizeof ending - 1);
    if (length < sizeof ending || strcmp(condition + n, ending) != 0) return NULL;
    for (int64_t s = 0; s < run->n_steps; s++) {
        const ReportStep *step = &run->steps[s];
        if (step->section != SECTION_TUNE || !step->finished || strncmp(step->name, condition, n) != 0)
            continue;
        if (!step->name[n] || n == MAX_NAMED) return step;
    }
    return NULL;
}

static bool read_table(const char *folder, const ReportStep *step, const char *name, Csv *csv, Error *error) {
    char *own = io_join(folder, step->name), *path = own ? io_join(own, name) : NULL;
    const bool ok = (path || error_out_of_memory(error, "a file name", strlen(folder))) &&
                    csv_read(path, MAX_TABLE_BYTES, csv, error);
    mem_free(path);
    mem_free(own);
    return ok;
}

static void begin_row(const char *step, const char *training, Text *to) {
    write_line(to);
    write_begin(to, NULL, '{');
    write_string(to, "step", step);
    write_string(to, "training", training);
}

/* A judge step that labels the replies of `step` again stands for it. */
static bool is_labelled_again(const ReportRun *run, const ReportStep *step) {
    for (const ReportStep *later = step + 1; later < run->steps + run->n_steps; later++) {
        if (later->section != SECTION_OUTCOMES || !later->finished) continue;
        const Json facts = json_root(later->facts), switches = json_member(&facts, "switches"),
                   from = json_member(&switches, "from");
        for (Json at = {0}; json_next(&from, &at);) {
            const char *name = "";
            Error none = {0};
            if (json_type(at) == JSON_STRING && json_string(at, &name, &none) && !strcmp(name, step->name))
                return true;
        }
    }
    return false;
}

/* ---- trainings ---- */
static void put_training(const ReportStep *step, Text *to) {
    static const char *const of_facts[] = {
        "n_cells",    "n_trained", "share_of_parameters", "share_of_cells_parameters",
        "first_loss", "last_loss"};
    const char *control = "none";
    Error none = {0};
    const Json facts = json_root(step->facts), switches = json_member(&facts, "switches");
    write_line(to);
    write_begin(to, NULL, '{');
    write_string(to, "training", step->name);
    const Json said = json_member(&switches, "control"), draw = json_member(&switches, "draw");
    if (json_type(said) == JSON_STRING) json_string(said, &control, &none);
    write_string(to, "control", control);
    if (!strcmp(control, "none") || !strcmp(control, "all") || !draw.node)
        write_null(to, "draw", "nothing was drawn");
    else
        gather_value("draw", draw, to);
    for (size_t i = 0; i < sizeof of_facts / sizeof *of_facts; i++)
        gather_value(of_facts[i], json_member(&facts, of_facts[i]), to);
    write_end(to, '}');
}

/* ---- replies ---- */
/* How many replies had the label before (axis 0) or after (axis 1). */
static bool count_label(const Csv *csv, int64_t row, int label, int axis, double *n, Error *error) {
    *n = 0;
    for (int other = 0; other < N_LABELS; other++) {
        char name[60];
        int64_t column;
        double value;
        snprintf(name, sizeof name, "%s_to_%s", label_names[axis ? other : label],
                 label_names[axis ? label : other]);
        if (!csv_need_column(csv, name, &column, error) || !csv_number(csv, row, column, &value, error))
            return false;
        *n += value;
    }
    return true;
}

static bool put_shares(const Csv *csv, int64_t row, Text *to, Error *error) {
    double before[N_LABELS], after[N_LABELS], n = 0, both;
    int64_t column;
    for (int label = 0; label < N_LABELS; label++) {
        if (!count_label(csv, row, label, 0, &before[label], error) ||
            !count_label(csv, row, label, 1, &after[label], error))
            return false;
        n += before[label];
    }
    if (!csv_need_column(csv, "restricted_to_restricted", &column, error) ||
        !csv_number(csv, row, column, &both, error))
        return false;
    gather_as(csv, row, "low", "change_low", to);
    gather_as(csv, row, "high", "change_high", to);
    write_number(to, "kept", both);
    write_number(to, "never", n - before[LABEL_RESTRICTED] - after[LABEL_RESTRICTED] + both);
    write_number_or(to, "compliant_before", before[LABEL_COMPLIANT] / n, "there are no replies");
    write_number_or(to, "compliant_after", after[LABEL_COMPLIANT] / n, "there are no replies");
    write_number_or(to, "degraded_before", before[LABEL_DEGRADED] / n, "there are no replies");
    write_number_or(to, "degraded_after", after[LABEL_DEGRADED] / n, "there are no replies");
    return true;
}

static bool put_replies(const char *folder, const ReportRun *run, const ReportStep *step, Text *to,
                        Error *error) {
    Csv csv = {0};
    int64_t condition;
    bool ok = read_table(folder, step, "outcomes.csv", &csv, error) &&
              csv_need_column(&csv, "condition", &condition, error);
    for (int64_t r = 0; ok && r < csv.n_rows; r++) {
        const ReportStep *training = training_of(run, csv_field(&csv, r, condition).text);
        if (!training) continue;
        begin_row(step->name, training->name, to);
        gather_fields(&csv, r, to);
        ok = put_shares(&csv, r, to, error);
        write_end(to, '}');
    }
    csv_free(&csv);
    return ok;
}

/* ---- drift ---- */
static bool put_drift(const ReportRun *run, const ReportStep *step, Text *to, Error *error) {
    JsonDocument *document =
        json_parse(step->statistics_text.bytes, step->statistics_text.length, "contrast.json", error);
    if (!document) return false;
    const Json root = json_root(document), switches = json_member(&root, "switches"),
               adapter = json_member(&switches, "adapter"), overall = json_member(&root, "overall"),
               values = json_member(&overall, "contrast"), kind = json_member(&root, "contrast");
    const char *name = "", *contrast = "";
    bool ok = (json_type(kind) != JSON_STRING || json_string(kind, &contrast, error)) &&
              (json_type(adapter) != JSON_STRING || json_string(adapter, &name, error));
    for (int64_t s = 0; ok && !strcmp(contrast, "adapter") && s < run->n_steps; s++) {
        if (run->steps[s].section != SECTION_TUNE || strcmp(run->steps[s].name, name) != 0) continue;
        begin_row(step->name, name, to);
        gather_value("groups", json_member(&switches, "groups"), to);
        gather_value("n_pairs", json_member(&root, "n_pairs"), to);
        for (Json at = {0}; json_next(&values, &at);) gather_value(at.key, at, to);
        write_end(to, '}');
    }
    json_free(document);
    return ok;
}

/* ---- utility ---- */
static bool put_utility(const char *folder, const ReportRun *run, const ReportStep *step, Text *to,
                        Error *error) {
    Csv csv = {0};
    int64_t condition;
    bool ok = read_table(folder, step, "utility.csv", &csv, error) &&
              csv_need_column(&csv, "condition", &condition, error);
    for (int64_t r = 0; ok && r < csv.n_rows; r++) {
        const char *name = csv_field(&csv, r, condition).text;
        const ReportStep *training = training_of(run, name);
        if (!training && strcmp(name, "baseline") != 0) continue;
        begin_row(step->name, training ? training->name : "none", to);
        gather_fields(&csv, r, to);
        gather_as(&csv, r, "low", "value_low", to);
        gather_as(&csv, r, "high", "value_high", to);
        write_end(to, '}');
    }
    csv_free(&csv);
    return ok;
}

/* ---- all ---- */
typedef enum { LIST_REPLIES, LIST_DRIFT, LIST_UTILITY, N_LISTS } AdaptedList;
static const char *const list_names[N_LISTS] = {"replies", "drift", "utility"};

static bool put_list(const char *folder, const ReportRun *run, AdaptedList list, Text *to, Error *error) {
    bool ok = true;
    for (int64_t s = 0; ok && s < run->n_steps; s++) {
        const ReportStep *step = &run->steps[s];
        if (!step->finished) continue;
        if (list == LIST_REPLIES && step->section == SECTION_OUTCOMES && !is_labelled_again(run, step))
            ok = put_replies(folder, run, step, to, error);
        if (list == LIST_DRIFT && step->section == SECTION_CONTRAST) ok = put_drift(run, step, to, error);
        if (list == LIST_UTILITY && step->section == SECTION_UTILITY)
            ok = put_utility(folder, run, step, to, error);
    }
    return ok;
}

bool gather_adapted(const char *folder, const ReportRun *run, Text *to, Error *error) {
    Text lists[N_LISTS] = {{0}};
    bool ok = true, any = false;
    for (int i = 0; ok && i < N_LISTS; i++) {
        write_begin(&lists[i], NULL, '[');
        const size_t empty = lists[i].length;
        ok = put_list(folder, run, (AdaptedList)i, &lists[i], error);
        any = any || lists[i].length > empty;
        write_end(&lists[i], ']');
        to->failed = to->failed || lists[i].failed;
    }
    if (ok && any) {
        write_line(to);
        write_begin(to, "before_after", '{');
        write_begin(to, "trainings", '[');
        for (int64_t s = 0; s < run->n_steps; s++)
            if (run->steps[s].section == SECTION_TUNE && run->steps[s].finished)
                put_training(&run->steps[s], to);
        write_end(to, ']');
        for (int i = 0; i < N_LISTS; i++) {
            write_line(to);
            write_key(to, list_names[i]);
            text_put(to, lists[i].bytes, lists[i].length);
        }
        write_end(to, '}');
    }
    for (int i = 0; i < N_LISTS; i++) text_free(&lists[i]);
    return ok;
}

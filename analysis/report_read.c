/* Reading a run folder. Scores and prompts are read whole, a row a cell or prompt (61 layers x 384 experts:
 * 23,424 cells a group); labels and responses, a row a prompt and condition, are not read here. */
#include "report_read.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include <string.h>

enum { MAX_JSON_BYTES = 1 << 30, MAX_TABLE_BYTES = 1 << 30, MAX_EXTENT = 100000 };

static bool read_groups(ReportStep *step, Json root, Error *error) {
    Json groups = json_member(&root, "groups"), at = {0};
    step->n_groups = json_count(groups);
    if (step->n_groups < 1) return json_error(groups, error, "expected an array of names");
    step->groups = mem_zeroed((size_t)step->n_groups, sizeof *step->groups);
    if (!step->groups)
        return error_out_of_memory(error, "groups", (size_t)step->n_groups * sizeof *step->groups);
    for (int64_t i = 0; json_next(&groups, &at); i++)
        if (!json_string(at, &step->groups[i], error)) return false;
    return true;
}

static bool read_shape(ReportStep *step, Json root, Error *error) {
    Json layers = json_member(&root, "moe_layers"), at = {0};
    int64_t n_chosen;
    if (!json_integer(json_member(&root, "n_layers"), 1, MAX_EXTENT, &step->n_layers, error) ||
        !json_integer(json_member(&root, "n_experts"), 1, MAX_EXTENT, &step->n_experts, error) ||
        !json_integer(json_member(&root, "n_experts_per_token"), 1, step->n_experts, &n_chosen, error))
        return false;
    while (json_next(&layers, &at)) {
        int64_t layer;
        if (!json_integer(at, 0, step->n_layers - 1, &layer, error)) return false;
    }
    return true;
}

/* A JSON file and its tree; caller frees both. */
static bool read_text(const char *folder, const char *name, JsonText *text, JsonDocument **document,
                      Error *error) {
    char *path = io_join(folder, name);
    *document = NULL;
    if (!path) return error_out_of_memory(error, "a file name", strlen(folder));
    text->bytes = io_read_all(path, MAX_JSON_BYTES, &text->length, error);
    *document = text->bytes ? json_parse(text->bytes, text->length, path, error) : NULL;
    mem_free(path);
    return *document != NULL;
}

static bool read_facts(ReportStep *step, const char *folder, Error *error) {
    if (!read_text(folder, "step.json", &step->facts_text, &step->facts, error)) return false;
    const Json root = json_root(step->facts);
    const char *text;
    if (!json_string(json_member(&root, "kind"), &text, error) ||
        !json_string(json_member(&root, "model"), &text, error))
        return false;
    if (step->section == SECTION_OUTCOMES || step->section == SECTION_UTILITY) return true;
    return read_shape(step, root, error) &&
           (step->section != SECTION_MEASURES ||
            (json_string(json_member(&root, "score"), &text, error) && read_groups(step, root, error)));
}

/* ---- statistics.json of the step ---- */
static bool check_curve(const ReportStep *step, Json group, Error *error) {
    const Json curve = json_member(&group, "curve");
    int64_t value;
    for (Json at = {0}; json_next(&curve, &at);)
        if (!json_integer(json_member(&at, "layer"), 0, step->n_layers - 1, &value, error) ||
            !json_integer(json_member(&at, "expert"), 0, step->n_experts - 1, &value, error) ||
            !json_integer(json_member(&at, "rank"), 1, step->n_layers * step->n_experts, &value, error))
            return false;
    return true;
}

static bool check_statistics(const ReportStep *step, Json root, Error *error) {
    const Json order = json_member(&root, "group_order"), groups = json_member(&root, "groups");
    if (json_count(order) != step->n_groups)
        return json_error(order, error, "expected the %lld groups of step.json: got %lld",
                          (long long)step->n_groups, (long long)json_count(order));
    Json at = {0};
    for (int64_t g = 0; json_next(&order, &at); g++) {
        const char *name;
        if (!json_string(at, &name, error)) return false;
        if (strcmp(name, step->groups[g]) != 0)
            return json_error(at, error, "expected the groups of step.json in their order: got \"%.80s\"",
                              name);
        const Json group = json_member(&groups, name);
        if (json_type(group) != JSON_OBJECT) return json_error(group, error, "expected an object");
        if (!check_curve(step, group, error)) return false;
    }
    return true;
}

static bool read_statistics(ReportStep *step, const char *folder, Error *error) {
    JsonDocument *document = NULL;
    if (!read_text(folder, "statistics.json", &step->statistics_text, &document, error)) return false;
    const bool ok = check_statistics(step, json_root(document), error);
    json_free(document);
    return ok;
}

/* The column NAME, where the table has it, holds integers in [0, end). */
static bool check_range(const Csv *table, const char *name, int64_t first, int64_t end, Error *error) {
    int64_t column = csv_find_column(table, name), value;
    for (int64_t r = 0; column >= 0 && r < table->n_rows; r++)
        if (!csv_integer(table, r, column, first, end - 1, &value, error)) return false;
    return true;
}

static bool find_groups(const ReportStep *step, StepTable *to, Error *error) {
    int64_t column;
    if (!csv_need_column(&to->table, "group", &column, error)) return false;
    to->group = mem_alloc((size_t)to->table.n_rows * sizeof *to->group);
    if (!to->group) return error_out_of_memory(error, "groups", (size_t)to->table.n_rows * sizeof *to->group);
    for (int64_t r = 0; r < to->table.n_rows; r++) {
        CsvField field = csv_field(&to->table, r, column);
        to->group[r] = -1;
        for (int64_t g = 0; g < step->n_groups; g++)
            if (!strcmp(step->groups[g], field.text)) to->group[r] = g;
        if (to->group[r] < 0)
            return csv_error(&to->table, r, column, error, "expected a group of step.json: got \"%.80s\"",
                             field.text);
    }
    return true;
}

static bool read_table(const ReportStep *step, const char *folder, const char *name,
                       const char *const *columns, StepTable *to, Error *error) {
    char *path = io_join(folder, name);
    if (!path) return error_out_of_memory(error, "a file name", strlen(folder));
    bool ok = csv_read(path, MAX_TABLE_BYTES, &to->table, error) && find_groups(step, to, error) &&
              check_range(&to->table, "layer", 0, step->n_layers, error) &&
              check_range(&to->table, "expert", 0, step->n_experts, error) &&
              check_range(&to->table, "rank", 1, step->n_layers * step->n_experts + 1, error);
    int64_t column;
    for (; ok && *columns; columns++) ok = csv_need_column(&to->table, *columns, &column, error);
    mem_free(path);
    return ok;
}

static bool read_tables(ReportStep *step, const char *folder, Error *error) {
    static const char *const scores[] = {"layer", "expert", "score", "rank", NULL};
    static const char *const prompts[] = {"tokens", "target_tokens", "truncated", "nll", NULL};
    return read_table(step, folder, "scores.csv", scores, &step->scores, error) &&
           read_table(step, folder, "prompts.csv", prompts, &step->prompts, error);
}

/* ---- steps ---- */
static bool read_contrast(ReportStep *step, const char *folder, Error *error) {
    JsonDocument *document = NULL;
    const bool ok = read_text(folder, "contrast.json", &step->statistics_text, &document, error);
    json_free(document);
    return ok;
}

static bool has_file(const char *folder, const char *name, bool *has, Error *error) {
    char *path = io_join(folder, name);
    *has = path && io_exists(path);
    const bool ok = path != NULL;
    mem_free(path);
    return ok || error_out_of_memory(error, "a file name", strlen(folder));
}

/* False: a step that leaves nothing to report. */
static bool find_section(const char *kind, bool judges, ReportSection *section) {
    static const struct {
        const char *kind;
        ReportSection section;
    } known[] = {{"activation", SECTION_MEASURES}, {"gradient", SECTION_MEASURES},
                 {"contrast", SECTION_CONTRAST},   {"tune", SECTION_TUNE},
                 {"utility", SECTION_UTILITY},     {"intervention", SECTION_OUTCOMES}};
    *section = SECTION_OUTCOMES;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(kind, known[i].kind) != 0) continue;
        *section = known[i].section;
        return true;
    }
    return judges;
}

/* What a finished step says of itself. */
static bool read_files(ReportStep *step, const char *folder, Error *error) {
    if (!read_facts(step, folder, error)) return false;
    if (step->section == SECTION_CONTRAST) return read_contrast(step, folder, error);
    return step->section != SECTION_MEASURES ||
           (read_statistics(step, folder, error) && read_tables(step, folder, error));
}

/* Fills the next step of the run, unless it is one that leaves nothing to report. */
static bool read_step(ReportRun *run, const char *folder, Json at, Error *error) {
    ReportStep *step = &run->steps[run->n_steps];
    const char *name;
    const Json member = json_member(&at, "name");
    if (!json_string(json_member(&at, "kind"), &step->kind, error)) return false;
    if (!strcmp(step->kind, "report")) return true;
    if (!json_string(member, &name, error)) return false;
    if (!io_is_plain_name(name)) return json_error(member, error, "expected a plain file name");
    char *own = io_join(folder, name);
    if (!own) return error_out_of_memory(error, "a file name", strlen(name));
    bool judges = false, marked = false;
    bool ok = has_file(own, "outcomes.csv", &judges, error) && has_file(own, "step.json", &marked, error);
    if (ok && find_section(step->kind, judges, &step->section)) {
        run->n_steps++;
        step->name = mem_copy_text(name, strlen(name));
        ok = step->name != NULL || error_out_of_memory(error, "a name", strlen(name));
        step->finished = ok && marked && (step->section != SECTION_OUTCOMES || judges);
    }
    ok = ok && (!step->finished || read_files(step, own, error));
    mem_free(own);
    return ok;
}

static bool read_document(const char *folder, const char *name, JsonDocument **document, Error *error) {
    char *path = io_join(folder, name);
    if (!path) return error_out_of_memory(error, "a file name", strlen(folder));
    *document = json_read(path, MAX_JSON_BYTES, error);
    mem_free(path);
    return *document != NULL;
}

/* A folder without a manifest has a report too: it may have been copied without. */
static bool read_manifest(const char *folder, JsonDocument **document, Error *error) {
    char *path = io_join(folder, "manifest.json");
    if (!path) return error_out_of_memory(error, "a file name", strlen(folder));
    bool has = io_exists(path);
    mem_free(path);
    return !has || read_document(folder, "manifest.json", document, error);
}

bool report_read(const char *folder, ReportRun *run, Error *error) {
    *run = (ReportRun){0};
    bool ok =
        read_document(folder, "job.json", &run->job, error) && read_manifest(folder, &run->manifest, error);
    Json root = ok ? json_root(run->job) : (Json){0}, steps = json_member(&root, "steps"), at = {0};
    int64_t n = json_count(steps);
    if (ok && n < 1) ok = json_error(steps, error, "expected an array of steps");
    run->steps = ok ? mem_zeroed((size_t)n, sizeof *run->steps) : NULL;
    if (ok && !run->steps) ok = error_out_of_memory(error, "steps", (size_t)n * sizeof *run->steps);
    while (ok && json_next(&steps, &at)) ok = read_step(run, folder, at, error);
    if (!ok) report_free(run);
    return ok;
}

static void table_free(StepTable *table) {
    csv_free(&table->table);
    mem_free(table->group);
}

void report_free(ReportRun *run) {
    for (int64_t i = 0; i < run->n_steps; i++) {
        ReportStep *step = &run->steps[i];
        table_free(&step->scores);
        table_free(&step->prompts);
        mem_free(step->name);
        mem_free(step->groups);
        mem_free(step->facts_text.bytes);
        mem_free(step->statistics_text.bytes);
        json_free(step->facts);
    }
    mem_free(run->steps);
    json_free(run->job);
    json_free(run->manifest);
    *run = (ReportRun){0};
}

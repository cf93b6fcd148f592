/* Reading a run folder. Tables are read whole; a run of 61 layers x 384 experts has 23,424 cells a group. */
#include "report_read.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include <string.h>

enum { MAX_JSON_BYTES = 64 << 20, MAX_TABLE_BYTES = 1 << 30, MAX_EXTENT = 100000 };

/* A step's name is a folder inside of the run's: one plain name, nothing that leads elsewhere. */
bool report_is_plain_name(const char *name) {
    return *name && *name != '.' && !strchr(name, '/') && strlen(name) < 200;
}

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
    if (!json_integer(json_member(&root, "n_layers"), 1, MAX_EXTENT, &step->n_layers, error) ||
        !json_integer(json_member(&root, "n_experts"), 1, MAX_EXTENT, &step->n_experts, error) ||
        !json_integer(json_member(&root, "n_experts_per_token"), 1, step->n_experts,
                      &step->n_experts_per_token, error))
        return false;
    step->layer_has_experts = mem_zeroed((size_t)step->n_layers, sizeof *step->layer_has_experts);
    if (!step->layer_has_experts) return error_out_of_memory(error, "layers", (size_t)step->n_layers);
    while (json_next(&layers, &at)) {
        int64_t layer;
        if (!json_integer(at, 0, step->n_layers - 1, &layer, error)) return false;
        step->layer_has_experts[layer] = true;
    }
    return true;
}

static bool read_facts(ReportStep *step, const char *path, Error *error) {
    step->facts = json_read(path, MAX_JSON_BYTES, error);
    if (!step->facts) return false;
    Json root = json_root(step->facts);
    return json_string(json_member(&root, "kind"), &step->kind, error) &&
           json_string(json_member(&root, "model"), &step->model, error) &&
           json_string(json_member(&root, "score"), &step->score, error) && read_groups(step, root, error) &&
           read_shape(step, root, error);
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
    static const char *const curve[] = {"rank", "layer", "expert", "score", "cumulative", NULL};
    static const char *const coverage[] = {"k80", "k90", "k95", "n_cells", NULL};
    static const char *const layers[] = {
        "layer", "dominant_score", "entropy", "effective_experts", "effective_experts_simpson", NULL};
    static const char *const prompts[] = {"tokens", "target_tokens", "truncated", "nll", NULL};
    return read_table(step, folder, "scores.csv", scores, &step->scores, error) &&
           read_table(step, folder, "curve.csv", curve, &step->curve, error) &&
           read_table(step, folder, "coverage.csv", coverage, &step->coverage, error) &&
           read_table(step, folder, "layers.csv", layers, &step->layers, error) &&
           read_table(step, folder, "prompts.csv", prompts, &step->prompts, error);
}

/* Steps that measure have tables; a step that writes a report has none. */
static bool has_tables(Json at) {
    const char *kind = "";
    Error none = {0};
    return json_string(json_member(&at, "kind"), &kind, &none) &&
           (!strcmp(kind, "activation") || !strcmp(kind, "gradient"));
}

static bool read_step(ReportStep *step, const char *folder, Json at, Error *error) {
    const char *name;
    Json member = json_member(&at, "name");
    if (!json_string(member, &name, error)) return false;
    if (!report_is_plain_name(name)) return json_error(member, error, "expected a plain file name");
    step->name = mem_copy_text(name, strlen(name));
    char *own = io_join(folder, name), *path = own ? io_join(own, "step.json") : NULL;
    bool ok = (step->name && path) || error_out_of_memory(error, "a file name", strlen(name));
    step->finished = ok && io_exists(path);
    if (step->finished) ok = read_facts(step, path, error) && read_tables(step, own, error);
    mem_free(path);
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
    while (ok && json_next(&steps, &at))
        if (has_tables(at)) ok = read_step(&run->steps[run->n_steps++], folder, at, error);
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
        StepTable *tables[] = {&step->scores, &step->curve, &step->coverage, &step->layers, &step->prompts};
        for (size_t k = 0; k < sizeof tables / sizeof *tables; k++) table_free(tables[k]);
        mem_free(step->name);
        mem_free(step->groups);
        mem_free(step->layer_has_experts);
        json_free(step->facts);
    }
    mem_free(run->steps);
    json_free(run->job);
    json_free(run->manifest);
    *run = (ReportRun){0};
}

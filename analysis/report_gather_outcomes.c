/* Gathering of a step that judges replies: an intervention, or any later step that wrote the same tables in a
 * folder of its own. */
#include "report_gather.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "json_write.h"
#include <string.h>

enum { MAX_TABLE_BYTES = 1 << 28, MAX_JSON_BYTES = 64 << 20 };

void gather_rows(const char *key, const Csv *csv, Text *to) {
    write_line(to);
    write_begin(to, key, '[');
    for (int64_t r = 0; r < csv->n_rows; r++) {
        write_line(to);
        write_begin(to, NULL, '{');
        gather_fields(csv, r, to);
        write_end(to, '}');
    }
    write_end(to, ']');
}

bool gather_table(const char *folder, const char *name, const char *key, Text *to, Error *error) {
    char *path = io_join(folder, name), reason[100];
    Csv csv = {0};
    if (!path) return error_out_of_memory(error, "a file name", strlen(folder));
    bool ok = true;
    snprintf(reason, sizeof reason, "the step's folder has no %s", name);
    if (!io_exists(path)) {
        write_line(to);
        write_null(to, key, reason);
    } else {
        ok = csv_read(path, MAX_TABLE_BYTES, &csv, error);
        if (ok) gather_rows(key, &csv, to);
        csv_free(&csv);
    }
    mem_free(path);
    return ok;
}

static bool put_judge(const char *folder, Text *to, Error *error) {
    char *path = io_join(folder, "judge.json");
    if (!path) return error_out_of_memory(error, "a file name", strlen(folder));
    JsonDocument *document = NULL;
    bool ok = true;
    write_line(to);
    if (io_exists(path)) {
        document = json_read(path, MAX_JSON_BYTES, error);
        ok = document != NULL;
        if (ok) gather_value("judge", json_root(document), to);
    } else {
        write_null(to, "judge", "the step's folder has no judge.json");
    }
    json_free(document);
    mem_free(path);
    return ok;
}

/* ---- replies ---- */
/* STEP/responses where there is such a folder, else NULL. */
static bool find_own(const char *step_folder, char **responses, Error *error) {
    *responses = step_folder ? io_join(step_folder, "responses") : NULL;
    if (!*responses) return error_out_of_memory(error, "a file name", 0);
    if (io_is_folder(*responses)) return true;
    mem_free(*responses);
    *responses = NULL;
    return true;
}

/* A step that judges the replies of another names it in `from`. NULL: there are none. */
static bool find_responses(const char *folder, const char *own, const ReportStep *step, char **responses,
                           Error *error) {
    const Json facts = json_root(step->facts), switches = json_member(&facts, "switches"),
               from = json_member(&switches, "from");
    Json at = {0};
    bool ok = find_own(own, responses, error);
    while (ok && !*responses && json_next(&from, &at)) {
        const char *name = "";
        if (!json_string(at, &name, error)) return false;
        if (!io_is_plain_name(name)) return json_error(at, error, "expected a plain file name");
        char *other = io_join(folder, name);
        ok = find_own(other, responses, error);
        mem_free(other);
    }
    return ok;
}

static bool put_samples(const char *folder, const char *own, const ReportStep *step, Text *to, Error *error) {
    char *path = io_join(own, "outcomes.csv"), *responses = NULL;
    Csv csv = {0};
    bool ok = path || error_out_of_memory(error, "a file name", strlen(own));
    ok = ok && find_responses(folder, own, step, &responses, error) &&
         csv_read(path, MAX_TABLE_BYTES, &csv, error);
    if (ok) gather_rows("outcomes", &csv, to);
    ok = ok && samples_put(&(SampleRequest){own, responses, &csv}, to, error);
    csv_free(&csv);
    mem_free(responses);
    mem_free(path);
    return ok;
}

bool gather_outcomes(const char *folder, const ReportStep *step, Text *to, Error *error) {
    char *own = io_join(folder, step->name);
    bool ok = own || error_out_of_memory(error, "a file name", strlen(folder));
    ok = ok && put_judge(own, to, error) && put_samples(folder, own, step, to, error) &&
         gather_table(own, "side_effects.csv", "side_effects", to, error) &&
         gather_table(own, "side_effects_targets.csv", "side_effects_targets", to, error) &&
         gather_table(own, "agreement.csv", "agreement", to, error) &&
         gather_table(own, "conditions.csv", "conditions", to, error);
    mem_free(own);
    return ok;
}

/* The gathered file, written, read back, and its steps found. */
#include "report_view.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "report_gather.h"
#include "results.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

double view_number(Json at) {
    double value = NAN;
    Error none = {0};
    if (json_type(at) == JSON_NUMBER) json_number(at, &value, &none);
    return value;
}

const char *view_string(Json at) {
    const char *value = "";
    Error none = {0};
    if (json_type(at) == JSON_STRING) json_string(at, &value, &none);
    return value;
}

static Json alone(Json at) {
    at.parent = NULL;
    return at;
}

int64_t view_limit(const ReportView *view, const char *key) {
    return (int64_t)view_number(json_member(&view->page, key));
}

Json view_find(Json object, const char *path, const char **reason) {
    char key[100], why[120];
    Json at = object;
    if (reason) *reason = NULL;
    for (const char *from = path; *from;) {
        const size_t n = strcspn(from, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, from);
        snprintf(why, sizeof why, "%s_reason", key);
        const Json next = json_member(&at, key), said = json_member(&at, why);
        if (json_type(next) == JSON_NULL && reason && said.node) *reason = view_string(said);
        at = alone(next);
        from += n + (from[n] == '.');
    }
    at.key = NULL;
    return at;
}

const char *view_reason(Json object, const char *path) {
    const char *reason;
    view_find(object, path, &reason);
    return reason;
}

Json view_group(const ViewStep *step, int64_t group) {
    const Json groups = json_member(&step->statistics, "groups");
    return alone(json_member(&groups, step->groups[group]));
}

/* ---- opening ---- */
static bool open_groups(ViewStep *step, Error *error) {
    const Json order = json_member(&step->statistics, "group_order");
    Json at = {0};
    step->groups = mem_zeroed((size_t)json_count(order) + 1, sizeof *step->groups);
    if (!step->groups) return error_out_of_memory(error, "groups", (size_t)json_count(order) * 8);
    while (json_next(&order, &at)) step->groups[step->n_groups++] = view_string(at);
    return true;
}

static bool open_step(Json at, ViewStep *step, Error *error) {
    bool no = false;
    *step = (ViewStep){.name = view_string(json_member(&at, "name")),
                       .kind = view_string(json_member(&at, "kind")),
                       .entry = alone(at),
                       .facts = alone(json_member(&at, "facts")),
                       .statistics = alone(json_member(&at, "statistics"))};
    if (!json_bool(json_member(&at, "finished"), &step->finished, error) ||
        !json_bool(json_member(&at, "measures"), &no, error))
        return false;
    step->measures = step->finished && no;
    if (json_member(&at, "contrast").node) step->statistics = alone(json_member(&at, "contrast"));
    step->n_layers = (int64_t)fmax(0, view_number(json_member(&step->facts, "n_layers")));
    step->n_experts = (int64_t)fmax(0, view_number(json_member(&step->facts, "n_experts")));
    return !step->measures || open_groups(step, error);
}

static bool open_document(ReportView *view, Error *error) {
    const Json root = json_root(view->document), steps = json_member(&root, "steps");
    view->page = alone(json_member(&root, "page"));
    view->run = alone(json_member(&root, "run"));
    view->before_after = alone(json_member(&root, "before_after"));
    view->steps = mem_zeroed((size_t)json_count(steps) + 1, sizeof *view->steps);
    if (!view->steps)
        return error_out_of_memory(error, "steps", (size_t)json_count(steps) * sizeof *view->steps);
    for (Json at = {0}; json_next(&steps, &at);)
        if (!open_step(at, &view->steps[view->n_steps++], error)) return false;
    return true;
}

static bool gather(const char *folder, Text *text, Error *error) {
    ReportRun run;
    if (!report_read(folder, &run, error)) return false;
    const bool ok = report_gather(folder, &run, text, error);
    report_free(&run);
    return ok;
}

bool report_view_make(const char *folder, ReportView *view, Error *error) {
    Text text = {0};
    *view = (ReportView){0};
    bool ok = gather(folder, &text, error);
    if (ok && text.failed) ok = error_out_of_memory(error, "statistics.json", text.length);
    char *path = ok ? io_join(folder, "statistics.json") : NULL;
    if (ok && !path) ok = error_out_of_memory(error, "a file name", strlen(folder));
    view->document = ok ? json_parse(text.bytes, text.length, path, error) : NULL;
    ok = view->document && io_write_all(path, text.bytes, text.length, error) && open_document(view, error);
    text_free(&text);
    mem_free(path);
    if (!ok) report_view_free(view);
    return ok;
}

void report_view_free(ReportView *view) {
    for (int64_t i = 0; i < view->n_steps; i++) mem_free(view->steps[i].groups);
    mem_free(view->steps);
    json_free(view->document);
    *view = (ReportView){0};
}

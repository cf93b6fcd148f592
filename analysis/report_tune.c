/* The section of a training: what was trained, how the losses went, and where the update is. */
#include "report_parts.h"
#include <math.h>
#include <string.h>

/* ---- facts ---- */
static void put_fact(Text *to, const char *name, Json object, const char *path) {
    const char *reason;
    const Json at = view_find(object, path, &reason);
    if (!at.node) return;
    text_format(to, "<dt>%s</dt><dd>", name);
    if (json_type(at) == JSON_NUMBER || json_type(at) == JSON_NULL)
        html_put_defined(to, object, path);
    else
        html_put_json(to, at);
    text_put_string(to, "</dd>\n");
}

static void put_training_facts(const ViewStep *step, Text *to) {
    static const char *const facts[][2] = {
        {"cells", "n_cells"},
        {"matrices", "n_updates"},
        {"projections", "switches.projections"},
        {"rank", "switches.rank"},
        {"alpha", "switches.alpha"},
        {"trained parameters", "n_trained"},
        {"all parameters", "n_parameters"},
        {"trained, share of all parameters", "share_of_parameters"},
        {"experts of the cells, share of all parameters", "share_of_cells_parameters"},
        {"objective", "objective"},
        {"optimizer", "optimizer"},
        {"prompts with targets", "n_examples"},
        {"prompts a step", "switches.examples"},
        {"steps planned", "n_planned"},
        {"steps taken", "n_steps"},
        {"ended because", "ended"},
        {"state after step", "step_taken"},
        {"loss of the first step", "first_loss"},
        {"loss of the last step", "last_loss"},
        {"held-out loss before", "held_out_before"},
        {"held-out loss at its least", "held_out_least"}};
    text_put_string(to, "<dl>");
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        put_fact(to, facts[i][0], step->facts, facts[i][1]);
    put_fact(to, "step of the least held-out loss", step->entry, "best_step");
    text_put_string(to, "</dl>\n");
}

/* ---- losses ---- */
static bool any_number(Json rows, const char *key) {
    bool any = false;
    for (Json at = {0}; json_next(&rows, &at);) any = any || isfinite(view_number(json_member(&at, key)));
    return any;
}

/* Of the columns that an objective or a switch adds those that have numbers. */
static int64_t training_columns(Json rows, Column *columns) {
    static const Column always[] = {{"step", "step", false, false},
                                    {"loss", "loss", false, false},
                                    {"held_out_loss", "held-out loss", false, false},
                                    {"gradient_norm", "length of the gradient", false, false},
                                    {"learning_rate", "rate", false, false},
                                    {"examples", "prompts", false, false},
                                    {"target_tokens", "target tokens", false, false}},
                        added[] = {{"router_kl", "KL of the routers", false, false},
                                   {"router_distance", "distance of the routers", false, false},
                                   {"preferred", "pairs put right", false, false},
                                   {"preference_margin", "margin", false, false}};
    int64_t n = COUNT(always);
    memcpy(columns, always, sizeof always);
    for (int64_t i = 0; i < COUNT(added); i++)
        if (any_number(rows, added[i].key)) columns[n++] = added[i];
    return n;
}

static void put_training(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    enum { MOST_COLUMNS = 11 };
    Column columns[MOST_COLUMNS];
    const Json rows = json_member(&view->steps[s].entry, "training");
    const int64_t n = training_columns(rows, columns);
    Table table = {0};
    report_put_heading(to, s, "training", "Training");
    report_put_figures(view, s, 1u << FIGURE_TRAINING, figures, to);
    text_put_string(to, "<details><summary>table of steps</summary>");
    table_begin(&table, to, NULL, columns, n);
    for (Json at = {0}; json_next(&rows, &at) && table.n_rows < view_limit(view, "rows");)
        table_row(&table, at, columns, n);
    table_end(&table);
    text_put_string(to, "<p class=\"soft small\">At most ");
    html_put_json(to, json_member(&view->page, "rows"));
    text_put_string(to, " rows; all stand in training.csv. Loss: over the target tokens of the step, before "
                        "the step was taken; gradient: before it was clipped.</p></details>\n");
}

/* ---- updates ---- */
static void put_cells(const ReportView *view, const ViewStep *step, Text *to) {
    static const Column columns[] = {{"layer", "layer", false, false},
                                     {"expert", "expert", false, false},
                                     {"matrices", "matrices", false, false},
                                     {"parameters", "trained parameters", false, false},
                                     {"update_norm", "norm of the update", false, false},
                                     {"weight_norm", "norm of the weights", false, false},
                                     {"relative", "update / weights", false, false}};
    const Json cells = json_member(&step->entry, "cells");
    Table table = {0};
    table_begin(&table, to, "Trained cells", columns, COUNT(columns));
    for (Json at = {0}; json_next(&cells, &at) && table.n_rows < view_limit(view, "rows");)
        table_row(&table, at, columns, COUNT(columns));
    table_end(&table);
}

static void put_matrices(const ReportView *view, const ViewStep *step, Text *to) {
    static const Column columns[] = {{"layer", "layer", false, false},
                                     {"expert", "expert", false, false},
                                     {"projection", "projection", true, false},
                                     {"rank", "rank", false, false},
                                     {"parameters", "trained parameters", false, false},
                                     {"update_norm", "norm of the update", false, false},
                                     {"weight_norm", "norm of the weight", false, false}};
    const Json rows = json_member(&step->entry, "updates");
    Table table = {0};
    text_put_string(to, "<details><summary>every matrix</summary>");
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (Json at = {0}; json_next(&rows, &at) && table.n_rows < view_limit(view, "rows");)
        table_row(&table, at, columns, COUNT(columns));
    table_end(&table);
    text_put_string(to, "<p class=\"soft small\">At most ");
    html_put_json(to, json_member(&view->page, "rows"));
    text_put_string(to, " rows; all stand in updates.csv.</p></details>\n");
}

void report_put_tune(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    const ViewStep *step = &view->steps[s];
    text_put_string(to, "<p class=\"soft\">Low-rank updates of chosen experts were trained; everything else "
                        "of the model was frozen.</p>\n");
    put_training_facts(step, to);
    report_put_facts(step, to);
    put_training(view, s, figures, to);
    report_put_heading(to, s, "updates", "Where the update went");
    report_put_figures(view, s, 1u << FIGURE_UPDATES, figures, to);
    text_put_string(to,
                    "<p class=\"soft small\">Frobenius norms of scale B A and of the frozen weights below, "
                    "over the trained matrices of a cell together.</p>\n");
    put_cells(view, step, to);
    put_matrices(view, step, to);
}

void report_put_trainings_overview(const ReportView *view, Text *to) {
    static const Column columns[] = {{"", "training", true, false},
                                     {"n_cells", "cells", false, false},
                                     {"n_trained", "trained", false, false},
                                     {"share_of_parameters", "of all", false, false},
                                     {"share_of_cells_parameters", "their experts", false, false},
                                     {"n_steps", "steps", false, false},
                                     {"first_loss", "first loss", false, false},
                                     {"last_loss", "last loss", false, false},
                                     {"held_out_before", "held-out before", false, false},
                                     {"held_out_least", "least", false, false},
                                     {"step_taken", "taken of step", false, false}};
    Table table = {0};
    bool any = false;
    for (int64_t s = 0; s < view->n_steps; s++) {
        const ViewStep *step = &view->steps[s];
        if (strcmp(step->kind, "tune") != 0 || !step->finished) continue;
        if (!any) table_begin(&table, to, "Trainings", columns, COUNT(columns));
        any = true;
        table_named_row(&table, step->name, step->facts, columns, COUNT(columns));
    }
    if (any) table_end(&table);
}

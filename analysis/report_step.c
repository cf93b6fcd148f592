/* A step's section of the report: what was measured and how, where the scores are, its layers. What is shown
 * of a long table is its top; the rest stands in the file named beside it. */
#include "report_parts.h"
#include <string.h>

enum { N_MEASURED = 12 };

/* ---- the overview ---- */
static const Column of_group[] = {{"n_prompts", "prompts", false, false},
                                  {"n_tokens", "tokens", false, false},
                                  {"k80", "k80", false, true},
                                  {"k90", "k90", false, true},
                                  {"k95", "k95", false, true},
                                  {"n_cells", "cells", false, false},
                                  {"effective_cells", "effective", false, true}};
enum { N_OF_GROUP = sizeof of_group / sizeof *of_group };

static void put_overview_rows(const ViewStep *step, Table *table) {
    for (int64_t g = 0; g < step->n_groups; g++) {
        const Json group = view_group(step, g), curve = json_member(&group, "curve");
        Json first = {0};
        table->fallback = view_reason(group, "bootstrap");
        table_row_begin(table);
        table_text(table, step->name);
        table_text(table, step->groups[g]);
        for (int i = 0; i < N_OF_GROUP; i++) table_cell(table, group, &of_group[i]);
        text_put_string(table->to, "<td class=\"l\">");
        if (json_next(&curve, &first))
            text_format(table->to, "layer %.0f, expert %.0f", view_number(json_member(&first, "layer")),
                        view_number(json_member(&first, "expert")));
        text_put_string(table->to, "</td>");
        table_row_end(table);
    }
}

static bool any_measures(const ReportView *view) {
    bool any = false;
    for (int64_t s = 0; s < view->n_steps; s++) any = any || view->steps[s].measures;
    return any;
}

/* The groups of all steps that measure. */
static void put_groups(const ReportView *view, Text *to) {
    static const Column columns[] = {{"", "step", true, false},       {"", "group", true, false},
                                     {"", "prompts", false, false},   {"", "tokens", false, false},
                                     {"", "k80", false, false},       {"", "k90", false, false},
                                     {"", "k95", false, false},       {"", "cells", false, false},
                                     {"", "effective", false, false}, {"", "largest cell", true, false}};
    Table table = {0};
    text_put_string(to, "<p>k80, k90 and k95 are the least numbers of cells that together hold ");
    html_put_json(to, json_member(&view->page, "coverage_percent"));
    text_put_string(to,
                    " % of a group's total score: the smaller, the more the score sits in few experts. In "
                    "brackets: bootstrap intervals over prompts.</p>\n");
    table_begin(&table, to, NULL, columns, sizeof columns / sizeof *columns);
    for (int64_t s = 0; s < view->n_steps; s++)
        if (view->steps[s].measures) put_overview_rows(&view->steps[s], &table);
    table_end(&table);
}

/* Where nothing is measured, and nothing else came out either, the empty table says so. */
void report_put_overview(const ReportView *view, Text *to) {
    Text others = {0};
    report_put_contrasts_overview(view, &others);
    report_put_trainings_overview(view, &others);
    if (any_measures(view) || !others.length) put_groups(view, to);
    text_put(to, others.bytes ? others.bytes : "", others.length);
    to->failed = to->failed || others.failed;
    text_free(&others);
}

/* ---- facts ---- */
static void put_fact(Text *to, const char *name, Json at) {
    if (!at.node) return;
    text_put_string(to, "<dt>");
    html_put(to, name);
    text_put_string(to, "</dt><dd>");
    html_put_json(to, at);
    text_put_string(to, "</dd>\n");
}

static void put_warnings(Text *to, Json warnings) {
    Json at = {0};
    if (!json_count(warnings)) return;
    text_put_string(to, "<aside><b>Mind</b><ul>\n");
    while (json_next(&warnings, &at)) {
        text_put_string(to, "<li>");
        html_put_json(to, at);
        text_put_string(to, "</li>\n");
    }
    text_put_string(to, "</ul></aside>\n");
}

/* Every switch of the step; those that stand above already are left out. */
static void put_switches(Json switches, Text *to) {
    static const char *const shown[] = {"name", "kind", "model", "groups"};
    Json at = {0};
    text_put_string(to, "<p class=\"switches\"><b>switches</b>\n");
    while (json_next(&switches, &at)) {
        bool above = false;
        for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) above = above || !strcmp(at.key, shown[i]);
        if (above) continue;
        text_put_string(to, "<span>");
        html_put(to, at.key);
        text_put_string(to, " <b>");
        html_put_json(to, at);
        text_put_string(to, "</b></span>\n");
    }
    text_put_string(to, "</p>\n");
}

void report_put_facts(const ViewStep *step, Text *to) {
    static const char *const facts[][2] = {{"score", "score"},
                                           {"edit", "edit"},
                                           {"definition", "definition"},
                                           {"replies of", "from"},
                                           {"model", "model"},
                                           {"family", "family"},
                                           {"chat template", "chat_template"},
                                           {"experts a token", "n_experts_per_token"},
                                           {"of experts", "n_experts"},
                                           {"decoder layers", "n_layers"},
                                           {"compared", "alignment"},
                                           {"prompts", "n_prompts"},
                                           {"pairs", "n_pairs"},
                                           {"tokens counted", "n_tokens"},
                                           {"truncated", "truncated"},
                                           {"left out", "refused"},
                                           {"conditions", "n_conditions"}};
    text_put_string(to, "<dl>");
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        put_fact(to, facts[i][0], json_member(&step->facts, facts[i][1]));
    text_put_string(to, "</dl>\n");
    put_warnings(to, json_member(&step->facts, "warnings"));
    if (step->measures) put_warnings(to, json_member(&step->statistics, "warnings"));
    put_switches(json_member(&step->facts, "switches"), to);
}

/* ---- largest cells ---- */
static bool is_shown_apart(const char *name) {
    static const char *const names[] = {"group", "rank",    "layer",         "expert",
                                        "score", "percent", "percent_reason"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return true;
    return false;
}

static void put_bar(Text *to, double share) {
    text_format(
        to,
        "<td class=\"l\"><svg class=\"bar\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\"><rect "
        "width=\"%.1f\" height=\"10\"/></svg></td>",
        share > 0 ? 100 * share : 0);
}

/* Columns of the table; the step's own, whatever they are called, come last. */
static int64_t take_columns(Json cell, Column *columns) {
    static const Column first[] = {{"rank", "rank", false, false},          {"layer", "layer", false, false},
                                   {"expert", "expert", false, false},      {"score", "score", false, false},
                                   {"percent", "% of total", false, false}, {"", "", false, false}};
    int64_t n = sizeof first / sizeof *first;
    memcpy(columns, first, sizeof first);
    for (Json at = {0}; n < N_MEASURED && json_next(&cell, &at);)
        if (!is_shown_apart(at.key)) columns[n++] = (Column){at.key, "", false, false};
    return n;
}

static void put_heads(Text *to, const char *caption, const Column *columns, int64_t n) {
    text_put_string(to, "<div class=\"wide\"><table class=\"s\"><caption>");
    html_put(to, caption);
    text_put_string(to, "</caption><thead><tr>");
    for (int64_t i = 0; i < n; i++) {
        text_put_string(to, "<th>");
        html_put(to, columns[i].head[0] ? columns[i].head : columns[i].key);
        text_put_string(to, "</th>");
    }
    text_put_string(to, "</tr></thead><tbody>\n");
}

static void put_largest(Json group, Text *to) {
    const Json cells = json_member(&group, "cells");
    Json cell = {0}, first = {0};
    Column columns[N_MEASURED];
    Table table = {.to = to};
    if (!json_next(&cells, &first)) return;
    const int64_t n = take_columns(first, columns);
    const double largest = view_number(json_member(&first, "score"));
    put_heads(to, view_string(json_member(&group, "group")), columns, n);
    while (json_next(&cells, &cell)) {
        table_row_begin(&table);
        for (int64_t i = 0; i < n; i++)
            if (columns[i].key[0])
                table_cell(&table, cell, &columns[i]);
            else
                put_bar(to, largest > 0 ? view_number(json_member(&cell, "score")) / largest : 0);
        table_row_end(&table);
    }
    table_end(&table);
}

static void put_scores(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    const Json groups = json_member(&view->steps[s].entry, "largest");
    report_put_heading(to, s, "scores", "Scores");
    report_put_figures(view, s, 1u << FIGURE_HEATMAP | 1u << FIGURE_CURVE | 1u << FIGURE_CUMULATIVE, figures,
                       to);
    text_put_string(to, "<h4>Largest cells</h4>\n<p class=\"soft small\">The first ");
    html_put_json(to, json_member(&view->page, "cells"));
    text_put_string(to, " of each group, of scores.csv.</p>\n");
    for (Json at = {0}; json_next(&groups, &at);) put_largest(at, to);
}

static void put_prompts(const ViewStep *step, int64_t s, Text *to) {
    static const Column columns[] = {
        {"group", "group", true, false},          {"n", "prompts", false, false},
        {"tokens", "tokens", false, false},       {"shortest", "shortest", false, false},
        {"longest", "longest", false, false},     {"target_tokens", "target tokens", false, false},
        {"truncated", "truncated", false, false}, {"mean_nll", "mean nll", false, false}};
    const int64_t n = sizeof columns / sizeof *columns;
    const Json groups = json_member(&step->entry, "prompts");
    Table table = {0};
    report_put_heading(to, s, "prompts", "Prompts");
    table_begin(&table, to, NULL, columns, n);
    for (Json at = {0}; json_next(&groups, &at);) table_row(&table, at, columns, n);
    table_end(&table);
}

static void put_measures(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    const ViewStep *step = &view->steps[s];
    text_put_string(to, !strcmp(step->kind, "gradient")
                            ? "<p class=\"soft\">How much the loss would change with the router's weights "
                              "for an expert.</p>\n"
                            : "<p class=\"soft\">How often the router chooses an expert.</p>\n");
    report_put_facts(step, to);
    put_scores(view, s, figures, to);
    report_put_statistics(view, s, figures, to);
    report_put_sets(view, s, figures, to);
    put_prompts(step, s, to);
}

void report_put_step(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    const ViewStep *step = &view->steps[s];
    text_format(to, "<section id=\"step%lld\"><h2>", (long long)s);
    html_put(to, step->name);
    text_put_string(to, "</h2>\n");
    if (!step->finished) {
        text_put_string(to, "<p>This step is not finished.</p></section>\n");
        return;
    }
    if (step->measures)
        put_measures(view, s, figures, to);
    else if (!strcmp(step->kind, "contrast"))
        report_put_contrast(view, s, figures, to);
    else if (!strcmp(step->kind, "tune"))
        report_put_tune(view, s, figures, to);
    else if (!strcmp(step->kind, "utility"))
        report_put_utility(view, s, to);
    else
        report_put_outcomes(view, s, figures, to);
    text_put_string(to, "</section>\n");
}

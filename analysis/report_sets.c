/* Sets of cells: classes, overlap of top sets, stable selection; how far halves of the prompts agree; near
 * ties. */
#include "report_parts.h"
#include <string.h>

/* ---- classes ---- */
static void put_class_row(const ViewStep *step, Json at, Table *table) {
    const Json counts = json_member(&at, "counts"), low = json_member(&at, "counts_low"),
               high = json_member(&at, "counts_high"), depth = json_member(&at, "mean_depth");
    for (int64_t g = 0; g <= step->n_groups; g++) {
        const char *name = g < step->n_groups ? step->groups[g] : "shared";
        const double least = view_number(json_member(&low, name)),
                     most = view_number(json_member(&high, name));
        const Column tau = {"tau", "", false, false};
        table_row_begin(table);
        table_cell(table, at, &tau);
        table_text(table, name);
        text_put_string(table->to, "<td>");
        html_put_double(table->to, view_number(json_member(&counts, name)));
        if (least <= most) {
            text_put_string(table->to, "<small>[");
            html_put_double(table->to, least);
            text_put_string(table->to, ", ");
            html_put_double(table->to, most);
            text_put_string(table->to, "]</small>");
        }
        text_put_string(table->to, "</td><td>");
        if (json_type(json_member(&depth, name)) == JSON_NUMBER)
            html_put_double(table->to, view_number(json_member(&depth, name)));
        else
            text_put_string(table->to, "no cell");
        text_put_string(table->to, "</td>");
        table_row_end(table);
    }
}

static void put_classes(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    static const Column columns[] = {{"", "tau", false, false},
                                     {"", "prefer", true, false},
                                     {"", "cells", false, false},
                                     {"", "mean depth", false, false}};
    const ViewStep *step = &view->steps[s];
    const char *reason;
    const Json classes = view_find(step->statistics, "classes", &reason);
    report_put_heading(to, s, "classes", "Classes");
    if (json_type(classes) != JSON_ARRAY) {
        html_put_absent(to, "Classes", reason);
        return;
    }
    report_put_figures(view, s, 1u << FIGURE_CLASSES, figures, to);
    text_put_string(to, "<p class=\"soft small\">Cells that prefer a group by threshold tau, by the rule ");
    html_put_json(to, view_find(step->statistics, "switches.class_rule", NULL));
    text_put_string(to, "; shared: none.</p>\n");
    Table table = {0};
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (Json at = {0}; json_next(&classes, &at);) put_class_row(step, at, &table);
    table_end(&table);
}

/* ---- overlap ---- */
static void put_overlap_rows(Json list, const char *what, const char *of, Table *table) {
    static const Column columns[] = {
        {"k", "", false, false}, {"shared", "", false, true}, {"jaccard", "", false, true}};
    for (Json at = {0}; json_next(&list, &at);) {
        table_row_begin(table);
        table_text(table, what);
        table_text(table, of);
        for (int64_t i = 0; i < COUNT(columns); i++) table_cell(table, at, &columns[i]);
        table_row_end(table);
    }
}

static void put_overlap(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    static const Column columns[] = {{"", "between", true, false},
                                     {"", "of", true, false},
                                     {"", "k", false, false},
                                     {"", "shared", false, false},
                                     {"", "Jaccard", false, false}};
    const ViewStep *step = &view->steps[s];
    const Json steps = json_member(&step->statistics, "between_steps");
    Table table = {.fallback = "they are made between the first two groups"};
    report_put_heading(to, s, "overlap", "Overlap of top sets");
    report_put_figures(view, s, 1u << FIGURE_OVERLAP, figures, to);
    table_begin(&table, to, NULL, columns, COUNT(columns));
    put_overlap_rows(json_member(&step->statistics, "overlap"), "the first two groups", "", &table);
    for (int64_t g = 0; g < step->n_groups; g++) {
        const Json group = view_group(step, g);
        put_overlap_rows(view_find(group, "split_half.overlap", NULL), "halves of a group", step->groups[g],
                         &table);
    }
    for (Json at = {0}; json_next(&steps, &at);) {
        Text what = {0};
        text_put_string(&what, "this step and ");
        text_put_string(&what, view_string(json_member(&at, "step")));
        put_overlap_rows(json_member(&at, "overlap"), what.bytes ? what.bytes : "",
                         view_string(json_member(&at, "group")), &table);
        to->failed = to->failed || what.failed;
        text_free(&what);
    }
    table_end(&table);
}

/* ---- stable selection ---- */
static void put_set(const ReportView *view, Json set, const char *what, const char *of, Table *table) {
    static const Column columns[] = {{"n", "", false, false}, {"mean_depth", "", false, false}};
    const Json cells = json_member(&set, "cells");
    int64_t n = 0;
    if (json_type(set) != JSON_OBJECT) return;
    table_row_begin(table);
    table_text(table, what);
    table_text(table, of);
    for (int64_t i = 0; i < COUNT(columns); i++) table_cell(table, set, &columns[i]);
    text_put_string(table->to, "<td class=\"wrap\">");
    for (Json at = {0}; json_next(&cells, &at) && n < view_limit(view, "listed"); n++) {
        Json one = {0};
        text_put_string(table->to, n ? " (" : "(");
        for (bool first = true; json_next(&at, &one); first = false) {
            if (!first) text_put_string(table->to, ", ");
            html_put_double(table->to, view_number(one));
        }
        text_put_string(table->to, ")");
    }
    text_put_string(table->to, n < json_count(cells) ? " and more</td>" : "</td>");
    table_row_end(table);
}

static void put_stable(const ReportView *view, int64_t s, Text *to) {
    static const Column columns[] = {{"", "set", true, false},
                                     {"", "of", true, false},
                                     {"", "cells", false, false},
                                     {"", "mean depth", false, false},
                                     {"", "(layer, expert)", true, false}};
    const ViewStep *step = &view->steps[s];
    const char *reason;
    const Json pair = view_find(step->statistics, "stable_selection", &reason),
               only = json_member(&pair, "only");
    Table table = {0};
    report_put_heading(to, s, "stable", "Stable selection");
    text_put_string(
        to, "<p class=\"soft small\">Cells that every resample of the prompts has among the first of their "
            "layer (share ");
    html_put_json(to, view_find(step->statistics, "switches.stable_share", NULL));
    text_put_string(to, "), at most ");
    html_put_json(to, json_member(&view->page, "listed"));
    text_put_string(to, " named.</p>\n");
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (int64_t g = 0; g < step->n_groups; g++) {
        const Json group = view_group(step, g);
        const char *why;
        const Json set = view_find(group, "stable_selection.layer_top", &why);
        put_set(view, set, "stable", step->groups[g], &table);
        if (json_type(set) != JSON_OBJECT && why) reason = why;
    }
    put_set(view, json_member(&pair, "shared"), "stable in both", "", &table);
    for (Json at = {0}; json_next(&only, &at);) put_set(view, at, "stable only in", at.key, &table);
    table_end(&table);
    if (reason) html_put_absent(to, "Stable selection", reason);
}

/* ---- reliability ---- */
static void put_reliability(const ReportView *view, int64_t s, Text *to) {
    static const Column columns[] = {{"", "of", true, false},
                                     {"split_half.correlation", "correlation of halves", false, true},
                                     {"split_half.reliability", "reliability", false, false},
                                     {"split_half.n", "splits", false, false}};
    const ViewStep *step = &view->steps[s];
    Table table = {.fallback = "there is one group"};
    report_put_heading(to, s, "reliability", "Reliability");
    text_put_string(
        to, "<p class=\"soft small\">Scores from random halves of the prompts, correlated over cells; "
            "reliability: of all prompts, by Spearman and Brown.</p>\n");
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (int64_t g = 0; g <= step->n_groups; g++) {
        const bool of_group = g < step->n_groups;
        table_named_row(&table, of_group ? step->groups[g] : "difference of the first two",
                        of_group ? view_group(step, g) : step->statistics, columns, COUNT(columns));
    }
    table_end(&table);
}

/* ---- near ties ---- */
static void put_near_ties(const ReportView *view, int64_t s, Text *to) {
    static const Column columns[] = {{"", "group", true, false},
                                     {"near_ties.below", "margin below", false, false},
                                     {"near_ties.n", "choices", false, false},
                                     {"near_ties.share", "share", false, false}};
    const ViewStep *step = &view->steps[s];
    Table table = {0};
    report_put_heading(to, s, "ties", "Near ties");
    text_put_string(
        to,
        "<p class=\"soft small\">Choices of the router that a small change of arithmetic could turn.</p>\n");
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (int64_t g = 0; g < step->n_groups; g++) {
        table_named_row(&table, step->groups[g], view_group(step, g), columns, COUNT(columns));
    }
    table_end(&table);
}

/* ---- depth ---- */
static void put_depth(const ReportView *view, int64_t s, Text *to) {
    static const Column columns[] = {
        {"", "group", true, false}, {"k", "k", false, false}, {"mean_depth", "mean depth", false, true}};
    const ViewStep *step = &view->steps[s];
    Table table = {0};
    report_put_heading(to, s, "depth", "Depth of the top sets");
    text_put_string(
        to, "<p class=\"soft small\">Mean over the set, from the first layer to the last as a share.</p>\n");
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (int64_t g = 0; g < step->n_groups; g++) {
        const Json group = view_group(step, g), list = json_member(&group, "depth");
        for (Json at = {0}; json_next(&list, &at);) {
            table_named_row(&table, step->groups[g], at, columns, COUNT(columns));
        }
    }
    table_end(&table);
}

void report_put_sets(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    put_classes(view, s, figures, to);
    put_overlap(view, s, figures, to);
    put_depth(view, s, to);
    put_stable(view, s, to);
    put_reliability(view, s, to);
    put_near_ties(view, s, to);
}

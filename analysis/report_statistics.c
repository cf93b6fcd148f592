/* Groups and their differences: concentration beside its null models, layers, differences with their tests.
 */
#include "report_parts.h"
#include <string.h>

static void put_resamples(const ViewStep *step, Text *to) {
    const Json group = view_group(step, 0);
    if (json_type(view_find(group, "bootstrap", NULL)) != JSON_OBJECT) return;
    text_put_string(to, "<p class=\"soft small\">Intervals hold ");
    html_put_defined(to, group, "bootstrap.confidence");
    text_put_string(to, " of ");
    html_put_defined(to, group, "bootstrap.n");
    text_put_string(to, " resamples of the prompts.</p>\n");
}

/* ---- concentration ---- */
static void put_concentration(const ViewStep *step, Text *to) {
    static const Column columns[] = {{"group", "group", true, false},
                                     {"k80", "k80", false, true},
                                     {"concentration.rotation.k80_mean", "rotated", false, false},
                                     {"concentration.rotation.k80_p", "p", false, false},
                                     {"concentration.uniform.k80", "uniform", false, false},
                                     {"k90", "k90", false, true},
                                     {"concentration.rotation.k90_mean", "rotated", false, false},
                                     {"concentration.rotation.k90_p", "p", false, false},
                                     {"concentration.uniform.k90", "uniform", false, false},
                                     {"k95", "k95", false, true},
                                     {"concentration.rotation.k95_mean", "rotated", false, false},
                                     {"concentration.rotation.k95_p", "p", false, false},
                                     {"concentration.uniform.k95", "uniform", false, false},
                                     {"unused_cells", "unused cells", false, false}};
    Table table = {.fallback = view_reason(view_group(step, 0), "bootstrap")};
    text_put_string(
        to, "<p class=\"soft small\">Rotated: the experts of every layer and prompt turned by a random "
            "number of places, which leaves each prompt's own concentration and takes away what "
            "prompts have in common; mean over draws, and how seldom a draw is as concentrated. Uniform: "
            "equal scores.</p>\n");
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (int64_t g = 0; g < step->n_groups; g++) {
        table_named_row(&table, step->groups[g], view_group(step, g), columns, COUNT(columns));
    }
    table_end(&table);
}

/* ---- layers ---- */
static void put_layer_rows(const ReportView *view, const ViewStep *step, const Column *columns, int64_t n,
                           Table *table) {
    for (int64_t g = 0; g < step->n_groups; g++) {
        const Json group = view_group(step, g), layers = json_member(&group, "layers");
        for (Json at = {0}; json_next(&layers, &at) && table->n_rows < view_limit(view, "rows");) {
            table_named_row(table, step->groups[g], at, columns, n);
        }
    }
}

static void put_layers(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    static const Column columns[] = {{"group", "group", true, false},
                                     {"layer", "layer", false, false},
                                     {"dominant_score", "dominant", false, true},
                                     {"entropy", "entropy", false, true},
                                     {"effective_experts", "effective", false, true},
                                     {"effective_experts_simpson", "Simpson", false, true}};
    const ViewStep *step = &view->steps[s];
    Table table = {.fallback = view_reason(view_group(step, 0), "bootstrap")};
    report_put_heading(to, s, "layers", "Layers");
    report_put_figures(view, s, 1u << FIGURE_LAYERS, figures, to);
    text_put_string(to, "<details><summary>table of layers</summary>");
    table_begin(&table, to, NULL, columns, COUNT(columns));
    put_layer_rows(view, step, columns, COUNT(columns), &table);
    table_end(&table);
    text_put_string(to, "<p class=\"soft small\">At most ");
    html_put_json(to, json_member(&view->page, "rows"));
    text_put_string(to, " rows; all stand in layers.csv. Layers without experts have none.</p></details>\n");
}

/* ---- differences ---- */
static void put_permutation(Json pair, Text *to) {
    static const Column columns[] = {{"k80_difference", "k80", false, false}, {"k80_p", "p", false, false},
                                     {"k90_difference", "k90", false, false}, {"k90_p", "p", false, false},
                                     {"k95_difference", "k95", false, false}, {"k95_p", "p", false, false},
                                     {"n", "permutations", false, false}};
    const char *reason;
    const Json test = view_find(pair, "permutation", &reason);
    if (json_type(test) != JSON_OBJECT) {
        html_put_absent(to, "Permutation test", reason);
        return;
    }
    Table table = {0};
    table_begin(&table, to, "Difference of concentration", columns, COUNT(columns));
    table_row(&table, test, columns, COUNT(columns));
    table_end(&table);
}

static void put_cells(const ReportView *view, Json pair, Json group, Text *to) {
    static const Column columns[] = {{"layer", "layer", false, false},
                                     {"expert", "expert", false, false},
                                     {"risk_difference", "difference", false, true},
                                     {"risk_ratio", "ratio", false, false},
                                     {"p_value", "p", false, false},
                                     {"p_value_max", "p over all cells", false, false}};
    const Json list = json_member(&pair, "differences");
    const char *no_test = view_reason(pair, "permutation"), *no_samples = view_reason(group, "bootstrap");
    Table table = {.fallback = no_test ? no_test : no_samples};
    table_begin(&table, to, "Largest differences", columns, COUNT(columns));
    for (Json at = {0}; json_next(&list, &at) && table.n_rows < view_limit(view, "cells");)
        table_row(&table, at, columns, COUNT(columns));
    table_end(&table);
    text_put_string(to, "<p class=\"soft small\">The first ");
    html_put_json(to, json_member(&view->page, "cells"));
    text_put_string(
        to, "; p over all cells: chance that any cell differs as much when prompts are dealt to the groups "
            "at random.</p>\n");
}

static void put_selectivity(const ReportView *view, Json pair, Json group, Text *to) {
    static const Column columns[] = {{"layer", "layer", false, false},
                                     {"expert", "most selective expert", false, false},
                                     {"max_abs_difference", "largest |difference|", false, true},
                                     {"mean_abs_difference", "mean |difference|", false, true},
                                     {"js_divergence", "JS divergence", false, true},
                                     {"p_value", "p", false, false}};
    const Json list = json_member(&pair, "selectivity");
    const char *no_test = view_reason(pair, "permutation"), *no_samples = view_reason(group, "bootstrap");
    Table table = {.fallback = no_test ? no_test : no_samples};
    text_put_string(to, "<details><summary>selectivity by layer</summary>");
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (Json at = {0}; json_next(&list, &at) && table.n_rows < view_limit(view, "rows");)
        table_row(&table, at, columns, COUNT(columns));
    table_end(&table);
    text_put_string(to, "</details>\n");
}

/* What the further pairs of groups come to, a row a pair. */
static void put_other_pairs(const ReportView *view, const ViewStep *step, Text *to) {
    static const Column columns[] = {{"groups", "groups", true, false},
                                     {"permutation.k80_difference", "k80", false, false},
                                     {"permutation.k80_p", "p", false, false},
                                     {"split_half.reliability", "reliability", false, false}};
    static const Column cell[] = {{"", "largest difference in", true, false},
                                  {"risk_difference", "difference", false, true},
                                  {"p_value_max", "p over all cells", false, false}};
    const Json pairs = json_member(&step->statistics, "other_pairs");
    Column all[COUNT(columns) + COUNT(cell)];
    if (!json_count(pairs)) return;
    memcpy(all, columns, sizeof columns);
    memcpy(all + COUNT(columns), cell, sizeof cell);
    Table table = {0};
    table_begin(&table, to, "Other pairs of groups", all, COUNT(all));
    for (Json at = {0}; json_next(&pairs, &at) && table.n_rows < view_limit(view, "rows");) {
        const Json list = json_member(&at, "differences");
        Json first = {0};
        table_row_begin(&table);
        for (int64_t i = 0; i < COUNT(columns); i++) table_cell(&table, at, &columns[i]);
        json_next(&list, &first);
        text_format(to, "<td class=\"l\">layer %.0f, expert %.0f</td>",
                    view_number(json_member(&first, "layer")), view_number(json_member(&first, "expert")));
        for (int64_t i = 1; i < COUNT(cell); i++) table_cell(&table, first, &cell[i]);
        table_row_end(&table);
    }
    table_end(&table);
}

static void put_differences(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    const ViewStep *step = &view->steps[s];
    const char *reason;
    report_put_heading(to, s, "differences", "Differences of groups");
    if (json_type(view_find(step->statistics, "differences", &reason)) != JSON_ARRAY) {
        html_put_absent(to, "Differences", reason);
        return;
    }
    text_put_string(to, "<p class=\"soft\">Score in ");
    html_put(to, step->groups[0]);
    text_put_string(to, " less score in ");
    html_put(to, step->groups[1]);
    text_put_string(to, ".</p>\n");
    report_put_figures(view, s, 1u << FIGURE_DIFFERENCE | 1u << FIGURE_SELECTIVITY, figures, to);
    put_cells(view, step->statistics, view_group(step, 0), to);
    put_permutation(step->statistics, to);
    put_selectivity(view, step->statistics, view_group(step, 0), to);
    put_other_pairs(view, step, to);
}

void report_put_statistics(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    report_put_heading(to, s, "concentration", "Concentration");
    report_put_figures(view, s, 1u << FIGURE_CONCENTRATION, figures, to);
    put_resamples(&view->steps[s], to);
    put_concentration(&view->steps[s], to);
    put_layers(view, s, figures, to);
    put_differences(view, s, figures, to);
}

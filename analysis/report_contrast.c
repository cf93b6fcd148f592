/* The section of a contrast: how far the router goes between the texts of a pair, beside pairs of unlike
 * topics; and the cells that are most sensitive to it, three ways. */
#include "report_parts.h"
#include "contrast.h"
#include <string.h>

static const char no_samples[] = "there are no resamples";

/* ---- divergence ---- */
static const char *const parts[][2] = {
    {"contrast", "contrast"}, {"control", "control: other topics"}, {"difference", "contrast - control"}};

static const Column curve_columns[] = {{"js", "JS divergence", false, true},
                                       {"overlap", "overlap@k", false, true},
                                       {"jaccard", "weighted Jaccard", false, true}};

static void put_overall(const ViewStep *step, Text *to) {
    Column columns[1 + COUNT(curve_columns)] = {{"", "mean over layers", true, false}};
    const Json overall = json_member(&step->statistics, "overall");
    Table table = {.fallback = no_samples};
    memcpy(columns + 1, curve_columns, sizeof curve_columns);
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const Json part = json_member(&overall, parts[i][0]);
        if (json_type(part) == JSON_OBJECT)
            table_named_row(&table, parts[i][1], part, columns, COUNT(columns));
    }
    table_end(&table);
    if (json_type(json_member(&overall, "control")) != JSON_OBJECT)
        html_put_absent(to, "Control pairs", view_reason(overall, "control"));
}

static void put_layers(const ReportView *view, const ViewStep *step, Text *to) {
    Column columns[2 + COUNT(curve_columns)] = {{"", "pairs", true, false}, {"layer", "layer", false, false}};
    const Json layers = json_member(&step->statistics, "layers");
    Table table = {.fallback = no_samples};
    memcpy(columns + 2, curve_columns, sizeof curve_columns);
    text_put_string(to, "<details><summary>table of layers</summary>");
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (Json at = {0}; json_next(&layers, &at) && table.n_rows < view_limit(view, "rows");) {
            const Json part = json_member(&at, parts[i][0]);
            if (json_type(part) != JSON_OBJECT) continue;
            table_row_begin(&table);
            table_text(&table, parts[i][1]);
            table_cell(&table, at, &columns[1]);
            for (int64_t c = 2; c < COUNT(columns); c++) table_cell(&table, part, &columns[c]);
            table_row_end(&table);
        }
    table_end(&table);
    text_put_string(to, "<p class=\"soft small\">At most ");
    html_put_json(to, json_member(&view->page, "rows"));
    text_put_string(to, " rows; all stand in layers.csv.</p></details>\n");
}

static void put_bootstrap(const ViewStep *step, Text *to) {
    const Json s = step->statistics;
    text_put_string(to,
                    "<p class=\"soft small\">Jensen-Shannon divergence of the router's distributions, in ");
    html_put(to, view_string(json_member(&s, "js_unit")));
    text_put_string(to, "; of the ");
    html_put_defined(to, s, "overlap_k");
    text_put_string(to, " most likely experts, how many both texts share; weighted Jaccard index of both "
                        "distributions. Means over ");
    html_put_defined(to, s, "n_pairs");
    text_put_string(to, " pairs");
    if (json_type(view_find(s, "bootstrap", NULL)) == JSON_OBJECT) {
        text_put_string(to, "; in brackets and shaded: intervals that hold ");
        html_put_defined(to, s, "bootstrap.confidence");
        text_put_string(to, " of ");
        html_put_defined(to, s, "bootstrap.n");
        text_put_string(to, " resamples of the pairs");
    }
    text_put_string(to, ".</p>\n");
}

static void put_divergence(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    const ViewStep *step = &view->steps[s];
    report_put_heading(to, s, "divergence", "Divergence of the router");
    put_bootstrap(step, to);
    put_overall(step, to);
    report_put_figures(view, s, 1u << FIGURE_CONTRAST, figures, to);
    put_layers(view, step, to);
}

/* ---- rankings ---- */
static void put_definitions(const ViewStep *step, Text *to) {
    const Json rankings = json_member(&step->statistics, "rankings");
    text_put_string(to, "<dl>");
    for (int k = 0; k < N_RANKINGS; k++) {
        const Json one = json_member(&rankings, contrast_ranking_names[k]);
        text_format(to, "<dt>by %s</dt><dd>", contrast_ranking_names[k]);
        if (json_type(one) == JSON_OBJECT) {
            html_put(to, view_string(json_member(&one, "definition")));
        } else {
            text_put_string(to, "not ranked: ");
            html_put(to, view_string(view_find(rankings, "gradient_reason", NULL)));
        }
        text_put_string(to, "</dd>\n");
    }
    text_put_string(to, "</dl>\n");
}

/* How many cells each ranking selects, and how steady they are. */
static void put_selections(const ViewStep *step, Text *to) {
    static const Column columns[] = {{"", "ranking", true, false},
                                     {"n_wanted", "wanted", false, false},
                                     {"n_selected", "selected", false, false},
                                     {"parameter_share", "share of all parameters", false, false},
                                     {"stable.n", "in every resample", false, false},
                                     {"stable.mean_depth", "their mean depth", false, false}};
    static const Column shared[] = {{"first", "ranking", true, false},
                                    {"second", "and", true, false},
                                    {"shared", "selected by both", false, false},
                                    {"jaccard", "Jaccard", false, false}};
    const Json rankings = json_member(&step->statistics, "rankings"),
               between = json_member(&step->statistics, "between_rankings");
    Table table = {.fallback = no_samples}, other = {0};
    table_begin(&table, to, "Selections", columns, COUNT(columns));
    for (int k = 0; k < N_RANKINGS; k++) {
        const Json one = json_member(&rankings, contrast_ranking_names[k]);
        if (json_type(one) == JSON_OBJECT)
            table_named_row(&table, contrast_ranking_names[k], one, columns, COUNT(columns));
    }
    table_end(&table);
    if (!json_count(between)) return;
    table_begin(&other, to, "Selections beside each other", shared, COUNT(shared));
    for (Json at = {0}; json_next(&between, &at);) table_row(&other, at, shared, COUNT(shared));
    table_end(&other);
}

/* The columns of a ranking's cells: last what rank they have by the other rankings that there are. */
static int64_t top_columns(const ViewStep *step, int own, Column columns[6 + N_RANKINGS]) {
    static const Column first[] = {{"rank", "rank", false, false},
                                   {"layer", "layer", false, false},
                                   {"expert", "expert", false, false},
                                   {"value", "sensitivity", false, true},
                                   {"frequency", "selected in resamples", false, false},
                                   {"selected", "selected", false, false}};
    static const Column others[N_RANKINGS] = {{"rank_rate", "rank by rate", false, false},
                                              {"rank_probability", "rank by probability", false, false},
                                              {"rank_gradient", "rank by gradient", false, false}};
    const Json cells = json_member(&step->entry, "cells");
    int64_t n = COUNT(first);
    memcpy(columns, first, sizeof first);
    for (int k = 0; k < N_RANKINGS; k++)
        if (k != own && json_count(json_member(&cells, contrast_ranking_names[k]))) columns[n++] = others[k];
    return n;
}

static void put_top(const ReportView *view, const ViewStep *step, int k, Text *to) {
    const Json cells = json_member(&step->entry, "cells"),
               list = json_member(&cells, contrast_ranking_names[k]);
    Column columns[6 + N_RANKINGS];
    char caption[60];
    Table table = {.fallback = no_samples};
    if (!json_count(list)) return;
    const int64_t n = top_columns(step, k, columns);
    snprintf(caption, sizeof caption, "Most sensitive cells by %s", contrast_ranking_names[k]);
    table_begin(&table, to, caption, columns, n);
    for (Json at = {0}; json_next(&list, &at) && table.n_rows < view_limit(view, "cells");)
        table_row(&table, at, columns, n);
    table_end(&table);
}

static void put_rankings(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    const ViewStep *step = &view->steps[s];
    report_put_heading(to, s, "sensitivity", "Sensitive cells");
    put_definitions(step, to);
    report_put_figures(view, s, 1u << FIGURE_SENSITIVITY, figures, to);
    put_selections(step, to);
    text_put_string(to, "<p class=\"soft small\">The first ");
    html_put_json(to, json_member(&view->page, "cells"));
    text_put_string(to, " cells of each ranking; selected in resamples: the share of resamples of the pairs "
                        "that have the cell among their first. All cells: ranking.csv; selections: "
                        "selection_*.csv.</p>\n");
    for (int k = 0; k < N_RANKINGS; k++) put_top(view, step, k, to);
}

/* ---- the section and the overview ---- */
void report_put_contrast(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    const ViewStep *step = &view->steps[s];
    const char *kind = view_string(json_member(&step->statistics, "contrast"));
    text_put_string(to, "<p class=\"soft\">");
    text_put_string(
        to, !strcmp(kind, "continuations")
                ? "Where the router goes for one reply and for another behind the same prompt."
            : !strcmp(kind, "adapter")
                ? "Where the router goes for the same text without and with the updates of a training."
            : !strcmp(kind, "prefix")
                ? "Where the router goes for a prompt behind a prefix and for the plain prompt."
                : "Where the router goes for a prompt and for its matched partner.");
    text_put_string(to, "</p>\n");
    report_put_facts(step, to);
    put_divergence(view, s, figures, to);
    put_rankings(view, s, figures, to);
}

void report_put_contrasts_overview(const ReportView *view, Text *to) {
    static const Column columns[] = {{"", "contrast", true, false},
                                     {"n_pairs", "pairs", false, false},
                                     {"overall.contrast.js", "JS divergence", false, true},
                                     {"overall.control.js", "of other topics", false, true},
                                     {"overall.contrast.overlap", "overlap@k", false, true},
                                     {"overall.control.overlap", "of other topics", false, true},
                                     {"overall.contrast.jaccard", "weighted Jaccard", false, true},
                                     {"overall.control.jaccard", "of other topics", false, true}};
    Table table = {.fallback = no_samples};
    bool any = false;
    for (int64_t s = 0; s < view->n_steps; s++) {
        const ViewStep *step = &view->steps[s];
        if (strcmp(step->kind, "contrast") != 0 || !step->finished) continue;
        if (!any) table_begin(&table, to, "Contrasts", columns, COUNT(columns));
        any = true;
        table_named_row(&table, step->name, step->statistics, columns, COUNT(columns));
    }
    if (any) table_end(&table);
}

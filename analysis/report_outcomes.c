/* The section of a step that judges replies: what each selected condition changed, beside its controls;
 * transitions, side effects, agreement of labels. */
#include "report_parts.h"
#include "judge.h"
#include <math.h>
#include <string.h>

static bool is_selected(Json row) { return !strcmp(view_string(json_member(&row, "kind")), "selected"); }

/* ---- comparison ---- */
static void put_range(Table *table, Json row, const char *kind) {
    char key[60];
    const char *const parts[] = {"mean", "least", "most"};
    double values[3];
    for (int i = 0; i < 3; i++) {
        snprintf(key, sizeof key, "%s_%s", kind, parts[i]);
        values[i] = view_number(json_member(&row, key));
    }
    snprintf(key, sizeof key, "%s_mean", kind);
    const Column mean = {key, "", false, false};
    if (!isfinite(values[0])) {
        table_cell(table, row, &mean);
        return;
    }
    text_put_string(table->to, "<td>");
    html_put_double(table->to, values[0]);
    text_put_string(table->to, "<small>[");
    html_put_double(table->to, values[1]);
    text_put_string(table->to, ", ");
    html_put_double(table->to, values[2]);
    text_put_string(table->to, "]</small></td>");
}

static void put_change(Table *table, Json row) {
    text_put_string(table->to, "<td>");
    html_put_defined(table->to, row, "change");
    text_put_string(table->to, "<small>[");
    html_put_defined(table->to, row, "low");
    text_put_string(table->to, ", ");
    html_put_defined(table->to, row, "high");
    text_put_string(table->to, "]</small></td>");
}

/* A column of its own kind: a change or a mean of controls with its range; or any other. */
static void put_cell(Table *table, Json row, const Column *column) {
    static const char *const controls[] = {"random", "layer", "traffic"};
    if (!strcmp(column->key, "change")) {
        put_change(table, row);
        return;
    }
    for (size_t i = 0; i < sizeof controls / sizeof *controls; i++) {
        const size_t n = strlen(controls[i]);
        if (strncmp(column->key, controls[i], n) != 0 || strcmp(column->key + n, "_mean") != 0) continue;
        put_range(table, row, controls[i]);
        return;
    }
    table_cell(table, row, column);
}

static void put_cells(Table *table, Json row, const Column *columns, int64_t n) {
    table_row_begin(table);
    for (int64_t i = 0; i < n; i++) put_cell(table, row, &columns[i]);
    table_row_end(table);
}

static void put_comparison(const ReportView *view, Json outcomes, Text *to) {
    static const Column columns[] = {{"condition", "condition", true, false},
                                     {"group", "group", true, false},
                                     {"n", "prompts", false, false},
                                     {"restricted_before", "restricted before", false, false},
                                     {"restricted_after", "after", false, false},
                                     {"change", "change", false, false},
                                     {"lost", "lost", false, false},
                                     {"gained", "reversed", false, false},
                                     {"mcnemar_p", "McNemar p", false, false},
                                     {"random_n", "random sets", false, false},
                                     {"random_mean", "their change", false, false},
                                     {"random_p", "p", false, false},
                                     {"layer_mean", "layer matched", false, false},
                                     {"traffic_mean", "traffic matched", false, false}};
    Table table = {0};
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (Json at = {0}; json_next(&outcomes, &at) && table.n_rows < view_limit(view, "rows");)
        if (is_selected(at)) put_cells(&table, at, columns, COUNT(columns));
    table_end(&table);
    text_put_string(
        to, "<p class=\"soft small\">Change: of the share of restricted replies, with its bootstrap interval "
            "over prompts. Lost: restricted before and not after; reversed: the other way. McNemar: exact, "
            "two-sided. Controls: mean change of sets as large, and in brackets the least and the most; p: "
            "share of sets that lower it as far, the own one counted. Every condition: outcomes.csv; "
            "labels: labels.csv.</p>\n");
}

/* ---- conditions ---- */
static void put_conditions(const ReportView *view, const ViewStep *step, Text *to) {
    static const Column columns[] = {
        {"condition", "condition", true, false}, {"kind", "kind", true, false},
        {"n_cells", "cells", false, false},      {"traffic", "share of traffic", false, false},
        {"defined", "defined", false, false},    {"reason", "why not", true, false}};
    const Json list = json_member(&step->entry, "conditions");
    if (json_type(list) != JSON_ARRAY) return;
    Table table = {0};
    text_put_string(to, "<details><summary>every condition</summary>");
    table_begin(&table, to, NULL, columns, COUNT(columns));
    for (Json at = {0}; json_next(&list, &at) && table.n_rows < view_limit(view, "rows");)
        table_row(&table, at, columns, COUNT(columns));
    table_end(&table);
    text_put_string(to, "</details>\n");
}

/* ---- transitions ---- */
static void put_transition(Json row, Text *to) {
    text_put_string(to, "<div class=\"wide\"><table><caption>");
    html_put(to, view_string(json_member(&row, "condition")));
    text_put_string(to, ", ");
    html_put(to, view_string(json_member(&row, "group")));
    text_put_string(to, "</caption><thead><tr><th class=\"l\">before \\ after</th>");
    for (int after = 0; after < N_LABELS; after++) text_format(to, "<th>%s</th>", label_names[after]);
    text_put_string(to, "</tr></thead><tbody>\n");
    for (int from = 0; from < N_LABELS; from++) {
        text_format(to, "<tr><th class=\"l\">%s</th>", label_names[from]);
        for (int after = 0; after < N_LABELS; after++) {
            char key[60];
            snprintf(key, sizeof key, "%s_to_%s", label_names[from], label_names[after]);
            const double n = view_number(json_member(&row, key));
            text_put_string(to, from == after ? "<td class=\"soft\">"
                                : n > 0       ? "<td class=\"hit\">"
                                              : "<td>");
            html_put_defined(to, row, key);
            text_put_string(to, "</td>");
        }
        text_put_string(to, "</tr>\n");
    }
    text_put_string(to, "</tbody></table></div>\n");
}

static void put_transitions(const ReportView *view, Json outcomes, Text *to) {
    int64_t n = 0;
    text_put_string(
        to, "<p class=\"soft small\">Labels under the baseline by labels under the condition, the first ");
    html_put_json(to, json_member(&view->page, "transitions"));
    text_put_string(to, " tables; all stand in outcomes.csv.</p>\n<div class=\"many\">\n");
    for (Json at = {0}; json_next(&outcomes, &at) && n < view_limit(view, "transitions");) {
        if (!is_selected(at)) continue;
        put_transition(at, to);
        n++;
    }
    text_put_string(to, "</div>\n");
}

/* ---- side effects ---- */
static void put_effects(const ReportView *view, Json rows, const char *caption, Text *to) {
    static const Column columns[] = {{"condition", "condition", true, false},
                                     {"kind", "kind", true, false},
                                     {"group", "group", true, false},
                                     {"prompts", "prompts", false, false},
                                     {"tokens", "tokens", false, false},
                                     {"nll_before", "nll before", false, false},
                                     {"nll_after", "nll after", false, false},
                                     {"change", "change", false, false},
                                     {"perplexity_ratio", "perplexity ratio", false, false}};
    Table table = {0};
    table_begin(&table, to, caption, columns, COUNT(columns));
    for (Json at = {0}; json_next(&rows, &at) && table.n_rows < view_limit(view, "rows");)
        put_cells(&table, at, columns, COUNT(columns));
    table_end(&table);
}

static void put_side_effects(const ReportView *view, int64_t s, Text *to) {
    const char *reason;
    const Json rows = view_find(view->steps[s].entry, "side_effects", &reason),
               targets = view_find(view->steps[s].entry, "side_effects_targets", NULL);
    report_put_heading(to, s, "side", "Side effects");
    if (json_type(rows) != JSON_ARRAY) {
        html_put_absent(to, "Side effects", reason);
        return;
    }
    text_put_string(
        to, "<p class=\"soft small\">Mean negative log-likelihood of the same tokens before and after, its "
            "change with a bootstrap interval over prompts, and how many times as perplexed the model "
            "is.</p>\n");
    put_effects(view, rows, "of the prompts", to);
    if (json_type(targets) == JSON_ARRAY) put_effects(view, targets, "of their targets", to);
}

/* ---- agreement ---- */
/* A row is of a pair of labellers; of a table without their names it is of people and rules. */
typedef struct {
    const char *labeller, *other, *label, *other_label;
} AgreementRow;

static AgreementRow agreement_row(Json row) {
    const Json named = json_member(&row, "labeller");
    if (!named.node)
        return (AgreementRow){"people", "rules", view_string(json_member(&row, "human")),
                              view_string(json_member(&row, "rules"))};
    return (AgreementRow){view_string(named), view_string(json_member(&row, "other")),
                          view_string(json_member(&row, "label")),
                          view_string(json_member(&row, "other_label"))};
}

static bool same_pair(AgreementRow a, AgreementRow b) {
    return !strcmp(a.labeller, b.labeller) && !strcmp(a.other, b.other);
}

static double replies_of(Json rows, AgreementRow wanted) {
    for (Json at = {0}; json_next(&rows, &at);) {
        const AgreementRow row = agreement_row(at);
        if (same_pair(row, wanted) && !strcmp(row.label, wanted.label) &&
            !strcmp(row.other_label, wanted.other_label))
            return view_number(json_member(&at, "replies"));
    }
    return NAN;
}

static void put_pair(Json rows, Json first, Text *to) {
    const AgreementRow pair = agreement_row(first);
    text_put_string(to, "<div class=\"wide\"><table><thead><tr><th class=\"l\">");
    html_put(to, pair.labeller);
    text_put_string(to, " \\ ");
    html_put(to, pair.other);
    text_put_string(to, "</th>");
    for (int r = 0; r < N_LABELS; r++) text_format(to, "<th>%s</th>", label_names[r]);
    text_put_string(to, "</tr></thead><tbody>\n");
    for (int h = 0; h < N_LABELS; h++) {
        text_format(to, "<tr><th class=\"l\">%s</th>", label_names[h]);
        for (int r = 0; r < N_LABELS; r++) {
            const double n =
                replies_of(rows, (AgreementRow){pair.labeller, pair.other, label_names[h], label_names[r]});
            text_put_string(to, "<td>");
            if (isfinite(n))
                html_put_double(to, n);
            else
                text_put_string(to, "not counted");
            text_put_string(to, "</td>");
        }
        text_put_string(to, "</tr>\n");
    }
    text_put_string(to, "</tbody></table>");
    if (json_member(&first, "kappa").node) {
        text_put_string(to, "<p class=\"small\">Cohen's kappa ");
        html_put_defined(to, first, "kappa");
        text_put_string(to, "</p>");
    }
    text_put_string(to, "</div>\n");
}

static void put_detection(Json judge, const char *prefix, const char *caption, Text *to) {
    static const char *const keys[] = {"kappa", "precision", "recall"};
    static const char *const heads[] = {"Cohen's kappa", "precision of restricted", "recall"};
    char names[3][60];
    Column columns[3];
    for (int i = 0; i < 3; i++) {
        snprintf(names[i], sizeof names[i], "%s%s", prefix, keys[i]);
        columns[i] = (Column){names[i], heads[i], false, false};
    }
    if (!json_member(&judge, names[0]).node) return;
    Table table = {.fallback = "chance alone gives full agreement, or nothing was labelled so"};
    table_begin(&table, to, caption, columns, 3);
    table_row(&table, judge, columns, 3);
    table_end(&table);
}

static void put_agreement(const ViewStep *step, int64_t s, Text *to) {
    const char *reason;
    const Json rows = view_find(step->entry, "agreement", &reason),
               judge = json_member(&step->entry, "judge");
    report_put_heading(to, s, "agreement", "Agreement of labels");
    if (json_type(rows) != JSON_ARRAY) {
        html_put_absent(to, "Agreement of labellers", reason);
        return;
    }
    AgreementRow last = {"", "", "", ""};
    text_put_string(to, "<div class=\"many\">\n");
    for (Json at = {0}; json_next(&rows, &at);) {
        if (same_pair(last, agreement_row(at))) continue;
        last = agreement_row(at);
        put_pair(rows, at, to);
    }
    text_put_string(to, "</div>\n");
    put_detection(judge, "", "The rules beside people", to);
    put_detection(judge, "guard_", "The guard beside people", to);
}

/* ---- the section ---- */
static void put_judge(const ViewStep *step, Text *to) {
    const Json judge = json_member(&step->entry, "judge");
    if (json_type(judge) != JSON_OBJECT) return;
    text_put_string(to, "<p class=\"switches\"><b>labels by</b>\n");
    for (Json at = {0}; json_next(&judge, &at);) {
        text_put_string(to, "<span>");
        html_put(to, at.key);
        text_put_string(to, " <b>");
        html_put_json(to, at);
        text_put_string(to, "</b></span>\n");
    }
    text_put_string(to, "</p>\n");
}

void report_put_outcomes(const ReportView *view, int64_t s, const Figures *figures, Text *to) {
    const ViewStep *step = &view->steps[s];
    const Json outcomes = json_member(&step->entry, "outcomes");
    text_put_string(
        to, strcmp(step->kind, "intervention") != 0
                ? "<p class=\"soft\">Labels of the replies of another step.</p>\n"
                : "<p class=\"soft\">Replies to the same prompts with experts edited in the router.</p>\n");
    report_put_facts(step, to);
    put_judge(step, to);
    report_put_heading(to, s, "comparison", "Comparison with controls");
    report_put_figures(view, s, 1u << FIGURE_OUTCOMES, figures, to);
    put_comparison(view, outcomes, to);
    put_conditions(view, step, to);
    report_put_heading(to, s, "transitions", "Transitions");
    put_transitions(view, outcomes, to);
    put_side_effects(view, s, to);
    put_agreement(step, s, to);
    report_put_samples(view, s, to);
}

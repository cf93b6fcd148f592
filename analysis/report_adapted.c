/* Before and after: what each training did to replies, routing and utility, a row a training, the chosen
 * cells beside drawn ones and all; and the section of a step that measures utility. */
#include "report_parts.h"
#include <math.h>
#include <string.h>

/* Which rows of a list are shown: those with that text under that key; key NULL: all. */
typedef struct {
    const char *key, *text;
} Only;

static bool is_shown(Json row, Only only) {
    return !only.key || !strcmp(view_string(json_member(&row, only.key)), only.text);
}

/* Rows as a table; nothing where there are none. */
static void put_rows(const ReportView *view, Json rows, Only only, const char *caption, const Column *columns,
                     int64_t n, Text *to) {
    Table table = {0};
    bool any = false;
    for (Json at = {0}; json_next(&rows, &at);) any = any || is_shown(at, only);
    if (!any) return;
    table_begin(&table, to, caption, columns, n);
    for (Json at = {0}; json_next(&rows, &at) && table.n_rows < view_limit(view, "rows");)
        if (is_shown(at, only)) table_row(&table, at, columns, n);
    table_end(&table);
}

/* The same of a list of before_after. */
static void put_list(const ReportView *view, const char *list, Only only, const char *caption,
                     const Column *columns, int64_t n, Text *to) {
    put_rows(view, json_member(&view->before_after, list), only, caption, columns, n, to);
}

static void put_heading(const char *id, const char *words, Text *to) {
    text_format(to, "<h3 id=\"before_after-%s\">%s</h3>\n", id, words);
}

static void put_trainings(const ReportView *view, Text *to) {
    static const Column columns[] = {{"training", "training", true, false},
                                     {"control", "control", true, false},
                                     {"draw", "draw", false, false},
                                     {"n_cells", "cells", false, false},
                                     {"n_trained", "trained parameters", false, false},
                                     {"share_of_parameters", "of all", false, false},
                                     {"share_of_cells_parameters", "their experts", false, false},
                                     {"first_loss", "first loss", false, false},
                                     {"last_loss", "last loss", false, false}};
    text_put_string(to, "<p class=\"soft small\">Control none: the chosen cells; random, layer_matched, "
                        "random_any: a drawn set as large; all: every cell. Shares are of all parameters: "
                        "those that were trained, and all those of the experts of the cells.</p>\n");
    put_list(view, "trainings", (Only){0}, NULL, columns, COUNT(columns), to);
}

/* ---- replies ---- */
static void put_shares(const ReportView *view, Text *to) {
    static const Column columns[] = {{"training", "training", true, false},
                                     {"step", "labels of", true, false},
                                     {"group", "group", true, false},
                                     {"n", "prompts", false, false},
                                     {"restricted_before", "restricted before", false, false},
                                     {"restricted_after", "after", false, false},
                                     {"change", "change", false, true},
                                     {"compliant_before", "compliant before", false, false},
                                     {"compliant_after", "after", false, false},
                                     {"degraded_before", "degraded before", false, false},
                                     {"degraded_after", "after", false, false}};
    put_list(view, "replies", (Only){0}, "Shares of replies", columns, COUNT(columns), to);
}

static void put_pairs(const ReportView *view, Text *to) {
    static const Column columns[] = {
        {"training", "training", true, false}, {"step", "labels of", true, false},
        {"group", "group", true, false},       {"kept", "restricted both times", false, false},
        {"lost", "only before", false, false}, {"gained", "only after", false, false},
        {"never", "neither", false, false},    {"mcnemar_p", "McNemar p", false, false}};
    put_list(view, "replies", (Only){0}, "Restricted before by restricted after", columns, COUNT(columns),
             to);
}

static void put_controls(const ReportView *view, Text *to) {
    static const Column columns[] = {
        {"training", "training", true, false},    {"step", "labels of", true, false},
        {"group", "group", true, false},          {"change", "change", false, true},
        {"random_n", "drawn sets", false, false}, {"random_mean", "their mean change", false, false},
        {"random_least", "least", false, false},  {"random_most", "most", false, false},
        {"random_p", "p, as low", false, false},  {"random_p_high", "p, as high", false, false}};
    put_list(view, "replies", (Only){"kind", "selected"}, "Beside trainings of drawn cells", columns,
             COUNT(columns), to);
}

static void put_replies(const ReportView *view, Text *to) {
    put_heading("replies", "Replies", to);
    if (!json_count(json_member(&view->before_after, "replies"))) {
        html_put_absent(to, "Replies", "no step answers prompts with a training of this run");
        return;
    }
    text_put_string(
        to,
        "<p class=\"soft small\">The same prompts answered by the model as it was and with the updates. "
        "Change: of the share of restricted replies, with its bootstrap interval over prompts; McNemar: "
        "exact, two-sided, of the prompts whose label changed; p: share of the drawn sets whose change goes "
        "as far down or up, the own one counted.</p>\n");
    put_shares(view, to);
    put_pairs(view, to);
    put_controls(view, to);
}

/* ---- drift and utility ---- */
static void put_drift(const ReportView *view, Text *to) {
    static const Column columns[] = {
        {"training", "training", true, false},       {"step", "contrast", true, false},
        {"groups", "groups", true, false},           {"n_pairs", "texts", false, false},
        {"js", "JS divergence", false, true},        {"overlap", "overlap@k", false, true},
        {"jaccard", "weighted Jaccard", false, true}};
    put_heading("drift", "Drift of the routing", to);
    if (!json_count(json_member(&view->before_after, "drift"))) {
        html_put_absent(to, "Drift", "no contrast of kind adapter has a training of this run");
        return;
    }
    text_put_string(to,
                    "<p class=\"soft small\">The router's distributions on the same texts without and with "
                    "the updates, mean over layers and texts. Layers: see the contrast.</p>\n");
    put_list(view, "drift", (Only){0}, NULL, columns, COUNT(columns), to);
}

static const char utility_words[] =
    "<p class=\"soft small\">accuracy: share of questions whose right choice is the likeliest, its interval "
    "by "
    "Wilson, and what guessing would give; nll: mean negative log-likelihood of a token, its interval by "
    "bootstrap over prompts. Change: against the model as it is, prompt by prompt, in brackets with its "
    "bootstrap interval; lost and gained: questions.</p>\n";

/* Accuracies and likelihoods of rows, each in a table of its own. first: the column that says which model. */
static void put_measures(const ReportView *view, Json rows, Column first, Text *to) {
    const Column accuracy[] = {first,
                               {"step", "step", true, false},
                               {"group", "group", true, false},
                               {"n", "questions", false, false},
                               {"value", "accuracy", false, true},
                               {"chance", "chance", false, false},
                               {"change", "change", false, true},
                               {"lost", "lost", false, false},
                               {"gained", "gained", false, false},
                               {"mcnemar_p", "McNemar p", false, false}},
                 likelihood[] = {first,
                                 {"step", "step", true, false},
                                 {"group", "group", true, false},
                                 {"n", "texts", false, false},
                                 {"tokens", "tokens", false, false},
                                 {"value", "nll", false, true},
                                 {"perplexity", "perplexity", false, false},
                                 {"change", "change", false, true}};
    text_put_string(to, utility_words);
    put_rows(view, rows, (Only){"measure", "accuracy"}, "Multiple choice", accuracy, COUNT(accuracy), to);
    put_rows(view, rows, (Only){"measure", "nll"}, "Likelihood of texts", likelihood, COUNT(likelihood), to);
}

static void put_utility(const ReportView *view, Text *to) {
    const Json rows = json_member(&view->before_after, "utility");
    put_heading("utility", "Utility", to);
    if (json_count(rows))
        put_measures(view, rows, (Column){"training", "training", true, false}, to);
    else
        html_put_absent(to, "Utility", "no step measures it with a training of this run");
}

void report_put_adapted(const ReportView *view, const Figures *figures, Text *to) {
    if (!view->before_after.node) return;
    text_put_string(to, "<section id=\"before_after\"><h2>Before and after</h2>\n"
                        "<p class=\"soft\">What each training did, beside the model as it was.</p>\n");
    put_trainings(view, to);
    report_put_figures(view, -1, 1u << FIGURE_BEFORE_AFTER, figures, to);
    put_replies(view, to);
    put_drift(view, to);
    put_utility(view, to);
    text_put_string(to, "</section>\n");
}

/* ---- a step ---- */
void report_put_utility(const ReportView *view, int64_t s, Text *to) {
    const ViewStep *step = &view->steps[s];
    text_put_string(to,
                    "<p class=\"soft\">What the model can do beside the behaviour that is studied.</p>\n");
    report_put_facts(step, to);
    report_put_heading(to, s, "utility", "Utility");
    put_measures(view, json_member(&step->entry, "utility"), (Column){"condition", "condition", true, false},
                 to);
}

/* A step's section of the report. Tables are read row by row; what is shown of a long one is its top, the
 * rest stands in the CSV named beside it. */
#include "report_parts.h"
#include "../engine/alloc.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_TOP = 15, MAX_LAYERS_OPEN = 40, MAX_EXPERTS_HALF = 32 }; /* wider heat maps get the whole page */

void html_put(Text *to, const char *text) { text_put_html(to, text, strlen(text)); }

void html_put_json(Text *to, Json at) {
    const char *string;
    bool yes;
    double number;
    Error none = {0};
    Json entry = {0};
    switch (json_type(at)) {
    case JSON_STRING:
        if (json_string(at, &string, &none)) html_put(to, string);
        break;
    case JSON_BOOL:
        if (json_bool(at, &yes, &none)) text_put_string(to, yes ? "yes" : "no");
        break;
    case JSON_NUMBER:
        if (json_number(at, &number, &none)) text_format(to, "%.15g", number);
        break;
    case JSON_NULL: text_put_string(to, "none"); break;
    default:
        if (!json_count(at)) text_put_string(to, "none");
        for (bool first = true; json_next(&at, &entry); first = false) {
            if (!first) text_put_string(to, ", ");
            if (entry.key) html_put(to, entry.key);
            if (entry.key) text_put_string(to, ": ");
            html_put_json(to, entry);
        }
    }
}

void html_put_number(Text *to, CsvField field) {
    char *end = NULL;
    double value = field.length ? strtod(field.text, &end) : 0;
    if (!field.length || *end)
        text_put_html(to, field.text, field.length);
    else if (value == floor(value) && fabs(value) < 1e9)
        text_format(to, "%.0f", value);
    else
        text_format(to, "%.4g", value);
}

/* ---- the overview ---- */
double html_number_at(const Csv *table, int64_t row, const char *column) {
    int64_t c = csv_find_column(table, column);
    return c < 0 ? 0 : strtod(csv_field(table, row, c).text, NULL);
}

static double number_at(const StepTable *table, int64_t row, const char *column) {
    return html_number_at(&table->table, row, column);
}

static void put_cell(Text *to, const StepTable *table, int64_t row, const char *column) {
    text_put_string(to, "<td>");
    html_put_number(to, csv_field(&table->table, row, csv_find_column(&table->table, column)));
    text_put_string(to, "</td>");
}

/* The row of `group` with this rank; -1: none. */
static int64_t find_rank(const StepTable *curve, int64_t group, int64_t rank) {
    for (int64_t r = 0; r < curve->table.n_rows; r++)
        if (curve->group[r] == group && (int64_t)number_at(curve, r, "rank") == rank) return r;
    return -1;
}

bool report_put_overview_rows(const ReportStep *step, Text *to, Error *error) {
    (void)error;
    const StepTable *coverage = &step->coverage;
    for (int64_t r = 0; r < coverage->table.n_rows; r++) {
        int64_t g = coverage->group[r], top = find_rank(&step->curve, g, 1), n_prompts = 0;
        double n_tokens = 0;
        for (int64_t i = 0; i < step->prompts.table.n_rows; i++) {
            if (step->prompts.group[i] != g) continue;
            n_prompts++;
            n_tokens += number_at(&step->prompts, i, "tokens");
        }
        text_put_string(to, "<tr><td class=\"l\">");
        html_put(to, step->name);
        text_put_string(to, "</td><td class=\"l\">");
        html_put(to, step->groups[g]);
        text_format(to, "</td><td>%lld</td><td>%.0f</td>", (long long)n_prompts, n_tokens);
        put_cell(to, coverage, r, "k80");
        put_cell(to, coverage, r, "k90");
        put_cell(to, coverage, r, "k95");
        put_cell(to, coverage, r, "n_cells");
        text_put_string(to, "<td class=\"l\">");
        if (top >= 0)
            text_format(to, "layer %.0f, expert %.0f", number_at(&step->curve, top, "layer"),
                        number_at(&step->curve, top, "expert"));
        text_put_string(to, "</td></tr>\n");
    }
    return true;
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

static void put_warnings(Text *to, Json root) {
    Json warnings = json_member(&root, "warnings"), at = {0};
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

static void put_facts(const ReportStep *step, Text *to) {
    Json root = json_root(step->facts);
    text_put_string(to, "<dl><dt>score</dt><dd>");
    html_put(to, step->score);
    text_put_string(to, "</dd>\n");
    put_fact(to, "model", json_member(&root, "model"));
    put_fact(to, "family", json_member(&root, "family"));
    put_fact(to, "chat template", json_member(&root, "chat_template"));
    text_format(to, "<dt>router</dt><dd>%lld of %lld experts a token, %lld decoder layers</dd>\n",
                (long long)step->n_experts_per_token, (long long)step->n_experts, (long long)step->n_layers);
    put_fact(to, "prompts", json_member(&root, "n_prompts"));
    put_fact(to, "tokens counted", json_member(&root, "n_tokens"));
    put_fact(to, "truncated", json_member(&root, "truncated"));
    put_fact(to, "left out", json_member(&root, "refused"));
    text_put_string(to, "</dl>\n");
    put_warnings(to, root);
    put_switches(json_member(&root, "switches"), to);
}

/* ---- figures ---- */
static void put_figure(const ReportStep *step, const Figure *figure, Text *to) {
    bool full = figure->kind == FIGURE_HEATMAP && step->n_experts > MAX_EXPERTS_HALF;
    text_put_string(to, full ? "<figure class=\"full\">" : "<figure>");
    text_put(to, figure->svg.bytes, figure->svg.length);
    text_put_string(to, "<figcaption>");
    if (figure->kind == FIGURE_HEATMAP) {
        text_put_string(to, "Score of every cell, group ");
        html_put(to, step->groups[figure->group]);
        text_put_string(to, ". One scale for all groups.");
    } else if (figure->kind == FIGURE_CURVE) {
        text_put_string(to, "Scores of all cells, largest first.");
    } else {
        text_put_string(
            to, "Share of the total score that the largest cells hold; k80 is where a line passes 0.8.");
    }
    text_put_string(to, " <span class=\"soft\">figures/");
    html_put(to, figure->name);
    text_put_string(to, figure->has_pdf ? ".svg, .pdf</span></figcaption></figure>\n"
                                        : ".svg</span></figcaption></figure>\n");
}

static void put_figures(const ReportStep *step, int64_t s, const Figures *figures, Text *to) {
    bool any = false;
    for (int64_t i = 0; i < figures->n; i++) {
        if (figures->figures[i].step != s || !figures->figures[i].svg.length) continue;
        if (!any) text_put_string(to, "<div class=\"pair\">\n");
        any = true;
        put_figure(step, &figures->figures[i], to);
    }
    if (any) text_put_string(to, "</div>\n");
}

/* ---- tables ---- */
static const char *const key_columns[] = {"group", "layer", "expert", "score", "rank"};

static bool is_key(const char *name) {
    for (size_t i = 0; i < sizeof key_columns / sizeof *key_columns; i++)
        if (!strcmp(name, key_columns[i])) return true;
    return false;
}

typedef struct {
    int64_t rows[N_TOP]; /* of scores, by rank from 1; -1: none */
    double total;
} Top;

static Top find_top(const StepTable *scores, int64_t group) {
    Top top = {.total = 0};
    for (int i = 0; i < N_TOP; i++) top.rows[i] = -1;
    for (int64_t r = 0; r < scores->table.n_rows; r++) {
        if (scores->group[r] != group) continue;
        int64_t rank = (int64_t)number_at(scores, r, "rank");
        if (rank >= 1 && rank <= N_TOP) top.rows[rank - 1] = r;
        top.total += number_at(scores, r, "score");
    }
    return top;
}

static void put_top_row(const StepTable *scores, int64_t row, const Top *top, Text *to) {
    double score = number_at(scores, row, "score"), largest = number_at(scores, top->rows[0], "score");
    text_format(to, "<tr><td>%.0f</td><td>%.0f</td><td>%.0f</td>", number_at(scores, row, "rank"),
                number_at(scores, row, "layer"), number_at(scores, row, "expert"));
    put_cell(to, scores, row, "score");
    text_format(to,
                "<td>%.2g%%</td><td class=\"l\"><svg class=\"bar\" viewBox=\"0 0 100 10\" "
                "preserveAspectRatio=\"none\"><rect width=\"%.1f\" height=\"10\"/></svg></td>",
                top->total > 0 ? 100 * score / top->total : 0, largest > 0 ? 100 * score / largest : 0);
    for (int64_t c = 0; c < scores->table.n_columns; c++)
        if (!is_key(scores->table.names[c].text)) put_cell(to, scores, row, scores->table.names[c].text);
    text_put_string(to, "</tr>\n");
}

static void put_top_table(const ReportStep *step, int64_t group, Text *to) {
    const StepTable *scores = &step->scores;
    Top top = find_top(scores, group);
    text_put_string(to, "<div class=\"wide\"><table><caption>");
    html_put(to, step->groups[group]);
    text_put_string(
        to, "</caption><thead><tr><th>rank</th><th>layer</th><th>expert</th><th>score</th><th>share</th>"
            "<th></th>");
    for (int64_t c = 0; c < scores->table.n_columns; c++) {
        if (is_key(scores->table.names[c].text)) continue;
        text_put_string(to, "<th>");
        html_put(to, scores->table.names[c].text);
        text_put_string(to, "</th>");
    }
    text_put_string(to, "</tr></thead><tbody>\n");
    for (int i = 0; i < N_TOP; i++)
        if (top.rows[i] >= 0 && top.rows[0] >= 0) put_top_row(scores, top.rows[i], &top, to);
    text_put_string(to, "</tbody></table></div>\n");
}

static void put_layer_head(const ReportStep *step, Text *to) {
    text_put_string(to, "<thead><tr><th></th>");
    for (int64_t g = 0; g < step->n_groups; g++) {
        text_put_string(to, "<th class=\"g\" colspan=\"4\">");
        html_put(to, step->groups[g]);
        text_put_string(to, "</th>");
    }
    text_put_string(to, "</tr><tr><th>layer</th>");
    for (int64_t g = 0; g < step->n_groups; g++)
        text_put_string(to,
                        "<th class=\"g\">dominant</th><th>entropy</th><th>effective</th><th>Simpson</th>");
    text_put_string(to, "</tr></thead><tbody>\n");
}

/* The row of every (layer, group), -1 where there is none; caller frees. NULL: out of memory. */
static int64_t *index_layers(const ReportStep *step) {
    int64_t n = step->n_layers * step->n_groups, *rows = mem_alloc((size_t)n * sizeof *rows);
    for (int64_t i = 0; rows && i < n; i++) rows[i] = -1;
    for (int64_t r = 0; rows && r < step->layers.table.n_rows; r++)
        rows[(int64_t)number_at(&step->layers, r, "layer") * step->n_groups + step->layers.group[r]] = r;
    return rows;
}

static bool put_layers(const ReportStep *step, Text *to, Error *error) {
    static const char *const columns[] = {"dominant_score", "entropy", "effective_experts",
                                          "effective_experts_simpson"};
    int64_t *rows = index_layers(step);
    if (!rows) return error_out_of_memory(error, "layers", (size_t)step->n_layers * sizeof *rows);
    bool open = step->n_layers <= MAX_LAYERS_OPEN;
    text_format(to,
                "<h3>Layers</h3>\n<details%s><summary>%lld layers</summary><div "
                "class=\"wide\"><table>",
                open ? " open" : "", (long long)step->n_layers);
    put_layer_head(step, to);
    for (int64_t l = 0; l < step->n_layers; l++) {
        if (!step->layer_has_experts[l]) {
            text_format(to, "<tr><td>%lld</td><td class=\"g l soft\" colspan=\"%lld\">no experts</td></tr>\n",
                        (long long)l, (long long)step->n_groups * 4);
            continue;
        }
        text_format(to, "<tr><td>%lld</td>", (long long)l);
        for (int64_t i = 0; i < step->n_groups * 4; i++) {
            int64_t row = rows[l * step->n_groups + i / 4];
            text_put_string(to, i % 4 ? "<td>" : "<td class=\"g\">");
            if (row >= 0)
                html_put_number(to, csv_field(&step->layers.table, row,
                                              csv_find_column(&step->layers.table, columns[i % 4])));
            text_put_string(to, "</td>");
        }
        text_put_string(to, "</tr>\n");
    }
    text_put_string(to, "</tbody></table></div></details>\n");
    mem_free(rows);
    return true;
}

static void put_prompts(const ReportStep *step, Text *to) {
    text_put_string(
        to,
        "<h3>Prompts</h3>\n<div class=\"wide\"><table><thead><tr><th class=\"l\">group</th><th>prompts</th>"
        "<th>tokens</th><th>shortest</th><th>longest</th><th>target tokens</th><th>truncated</th>"
        "<th>mean nll</th></tr></thead><tbody>\n");
    const StepTable *prompts = &step->prompts;
    int64_t nll = csv_find_column(&prompts->table, "nll");
    for (int64_t g = 0; g < step->n_groups; g++) {
        double n = 0, tokens = 0, least = INFINITY, most = 0, target = 0, truncated = 0, sum = 0, n_nll = 0;
        for (int64_t r = 0; r < prompts->table.n_rows; r++) {
            if (prompts->group[r] != g) continue;
            double length = number_at(prompts, r, "tokens");
            n++;
            tokens += length;
            least = fmin(least, length);
            most = fmax(most, length);
            target += number_at(prompts, r, "target_tokens");
            truncated += number_at(prompts, r, "truncated") > 0;
            n_nll += csv_field(&prompts->table, r, nll).length > 0;
            sum += number_at(prompts, r, "nll");
        }
        text_put_string(to, "<tr><td class=\"l\">");
        html_put(to, step->groups[g]);
        text_format(to,
                    "</td><td>%.0f</td><td>%.0f</td><td>%.0f</td><td>%.0f</td><td>%.0f</td><td>%.0f</td><td>",
                    n, tokens, n > 0 ? least : 0, most, target, truncated);
        if (n_nll > 0) text_format(to, "%.4g", sum / n_nll);
        text_put_string(to, "</td></tr>\n");
    }
    text_put_string(to, "</tbody></table></div>\n");
}

bool report_put_step(const ReportRun *run, int64_t s, const Figures *figures, Text *to, Error *error) {
    const ReportStep *step = &run->steps[s];
    text_format(to, "<section id=\"step%lld\"><h2>", (long long)s);
    html_put(to, step->name);
    if (!step->finished) {
        text_put_string(to, "</h2><p>This step is not finished.</p></section>\n");
        return true;
    }
    text_put_string(to, "</h2>\n<p class=\"soft\">");
    if (!strcmp(step->kind, "gradient"))
        text_put_string(to, "How much the loss would change with the router's weights for an expert.");
    else
        text_put_string(to, "How often the router chooses an expert.");
    text_put_string(to, "</p>\n");
    put_facts(step, to);
    put_figures(step, s, figures, to);
    text_format(
        to,
        "<h3>Largest cells</h3>\n<p class=\"soft small\">The first %d of each group, of scores.csv.</p>\n",
        N_TOP);
    for (int64_t g = 0; g < step->n_groups; g++) put_top_table(step, g, to);
    if (!put_layers(step, to, error)) return false;
    put_prompts(step, to);
    text_put_string(to, "</section>\n");
    return true;
}

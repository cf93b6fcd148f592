/* Figures of cells: heat maps of scores and of differences, of sensitivities and updates;
 * sorted and cumulative curves. */
#include "contrast.h"
#include "figures_parts.h"
#include "../engine/alloc.h"
#include <math.h>
#include <string.h>

enum { MAX_LABELLED_CELLS = 160 };

/* ---- heat maps ---- */
typedef struct {
    double *values; /* [n_layers,n_experts], NaN where there is no cell */
    double largest; /* magnitude, of all groups */
    int64_t n_layers, n_experts;
    bool is_signed, no_zeros; /* no_zeros: a 0 has no number written on it */
    const char *words;        /* what the colours stand for */
    int64_t n_marked;         /* cells with a frame, a second block of the data */
} Grid;

static bool grid_make(const ViewStep *step, Grid *grid, Error *error) {
    const int64_t n = step->n_layers * step->n_experts;
    *grid = (Grid){.values = mem_alloc((size_t)n * sizeof *grid->values),
                   .n_layers = step->n_layers,
                   .n_experts = step->n_experts,
                   .words = "score"};
    for (int64_t i = 0; grid->values && i < n; i++) grid->values[i] = NAN;
    return grid->values || error_out_of_memory(error, "a heat map", (size_t)n * sizeof *grid->values);
}

/* Values of a list of cells; places outside of the model's are passed over (report_read.c refused them). */
static void grid_take(Grid *grid, Json list, const char *key, bool keep) {
    for (Json at = {0}; json_next(&list, &at);) {
        const int64_t layer = (int64_t)view_number(json_member(&at, "layer")),
                      expert = (int64_t)view_number(json_member(&at, "expert"));
        const double value = view_number(json_member(&at, key));
        if (layer < 0 || layer >= grid->n_layers || expert < 0 || expert >= grid->n_experts) continue;
        grid->largest = fmax(grid->largest, fabs(value));
        if (keep) grid->values[layer * grid->n_experts + expert] = value;
    }
}

static void put_grid(const Grid *grid, const char *name, Text *data) {
    text_put_string(data, "expert,layer,");
    figure_put_name(data, name, "", "");
    text_put_string(data, ",label,colour\n");
    for (int64_t i = 0; i < grid->n_layers * grid->n_experts; i++) {
        const double value = grid->values[i];
        text_format(data, "%lld,%lld", (long long)(i % grid->n_experts), (long long)(i / grid->n_experts));
        if (isnan(value))
            text_put_string(data, ",NaN,,0\n");
        else if (grid->no_zeros && value == 0)
            text_put_string(data, ",0,,0\n");
        else
            text_format(data, ",%.9g,%.2g,%d\n", value, value,
                        fabs(value) > 0.55 * grid->largest ? 0xffffff : 0x333333);
    }
}

static const char *palette_of(const Grid *grid, const ViewStep *step) {
    if (grid->is_signed)
        return "set palette defined (0 '#7c2a06', 0.25 '#ea9256', 0.5 '#f7f7f7', 0.75 '#6ba6d2', 1 "
               "'#0a3a78') maxcolors 65\n";
    if (!strcmp(step->kind, "activation"))
        return "set palette defined (0 '#f5f8fc', 0.25 '#b9d3ea', 0.5 '#6ba6d2', 0.75 '#2a72b0', 1 "
               "'#0a3a78') maxcolors 64\n";
    return "set palette defined (0 '#fdf7f1', 0.25 '#f6cfa9', 0.5 '#ea9256', 0.75 '#c9541c', 1 '#7c2a06') "
           "maxcolors 64\n";
}

/* Dark on light and light on dark, so that a frame is seen on every colour. */
static void put_frames(Text *plot) {
    static const struct {
        const char *half, *colour, *width;
    } frames[] = {{"0.44", "#ffffff", "1"}, {"0.48", "#111111", "2"}};
    for (size_t i = 0; i < sizeof frames / sizeof *frames; i++)
        text_format(plot,
                    ", '' index 1 using 1:2:(%s):(%s) with boxxyerror linecolor rgb '%s' linewidth %s "
                    "fillstyle empty border notitle",
                    frames[i].half, frames[i].half, frames[i].colour, frames[i].width);
}

static void put_grid_script(const Grid *grid, const ViewStep *step, Text *script) {
    const int64_t l = grid->n_layers, e = grid->n_experts;
    const int64_t wide = 190 + 12 * e, high = 110 + (l <= 16 ? 30 : 16) * l;
    const double largest = grid->largest > 0 ? grid->largest : 1;
    text_put_string(script, palette_of(grid, step));
    text_format(script,
                "unset grid\nset cbrange [%.9g:%.9g]\nset xrange [-0.5:%lld.5]\nset yrange [%lld.5:-0.5]\n",
                grid->is_signed ? -largest : 0.0, largest, (long long)e - 1, (long long)l - 1);
    text_format(script, "set xtics 0,%lld\nset ytics 0,%lld\n", figure_label_step(e), figure_label_step(l));
    text_format(script, "set xlabel 'expert'\nset ylabel 'layer'\nset cblabel '%s'\n", grid->words);
    text_put_string(script, "set colorbox noborder\nset cbtics format '%.2g'\n"
                            "set key at screen 0.02, screen 0.985 left top Left samplen 0\n"
                            "set tmargin 3\n");
    const char *block = grid->n_marked ? "index 0 " : "";
    Text plot = {0};
    text_format(&plot, "plot 'drawing.csv' %susing 1:2:3 with image pixels title columnheader(3)", block);
    if (l * e <= MAX_LABELLED_CELLS)
        text_format(&plot, ", '' %susing 1:2:4:5 skip 1 with labels font ',9' textcolor rgb variable notitle",
                    block);
    if (grid->n_marked) put_frames(&plot);
    figure_put_plot(script,
                    (int)(wide < 500   ? 500
                          : wide > 900 ? 900
                                       : wide),
                    (int)(high > 900 ? 900 : high), &plot);
    text_free(&plot);
}

bool figure_heatmap(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    const ViewStep *step = &view->steps[figure->step];
    Grid grid;
    if (!grid_make(step, &grid, error)) return false;
    for (int64_t g = 0; g < step->n_groups; g++) {
        const Json group = view_group(step, g);
        grid_take(&grid, json_member(&group, "curve"), "score", g == figure->group);
    }
    put_grid(&grid, step->groups[figure->group], data);
    put_grid_script(&grid, step, script);
    mem_free(grid.values);
    return true;
}

bool figure_difference(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    const ViewStep *step = &view->steps[figure->step];
    Grid grid;
    Text name = {0};
    if (!grid_make(step, &grid, error)) return false;
    grid.is_signed = true;
    grid.words = "difference";
    grid_take(&grid, json_member(&step->statistics, "differences"), "risk_difference", true);
    text_put_string(&name, step->groups[0]);
    text_put_string(&name, " - ");
    text_put_string(&name, step->groups[1]);
    put_grid(&grid, name.bytes ? name.bytes : "", data);
    put_grid_script(&grid, step, script);
    data->failed = data->failed || name.failed;
    text_free(&name);
    mem_free(grid.values);
    return true;
}

/* ---- contrasts and trainings ---- */
static void put_marks_of(Grid *grid, Json list, Text *data) {
    text_put_string(data, "\n\n");
    for (Json at = {0}; json_next(&list, &at);) {
        if (!(view_number(json_member(&at, "selected")) > 0)) continue;
        text_format(data, "%.0f,%.0f\n", view_number(json_member(&at, "expert")),
                    view_number(json_member(&at, "layer")));
        grid->n_marked++;
    }
}

bool figure_sensitivity(const ReportView *view, const Figure *figure, Text *data, Text *script,
                        Error *error) {
    static const char *const words[N_RANKINGS] = {"difference of rates", "|difference|", "gradient norm"};
    const ViewStep *step = &view->steps[figure->step];
    const Json cells = json_member(&step->entry, "cells"), list = json_member(&cells, figure->of);
    Grid grid;
    if (!grid_make(step, &grid, error)) return false;
    for (int k = 0; k < N_RANKINGS; k++)
        if (!strcmp(figure->of, contrast_ranking_names[k])) grid.words = words[k];
    grid.is_signed = !strcmp(figure->of, contrast_ranking_names[RANKING_RATE]);
    grid_take(&grid, list, "value", true);
    put_grid(&grid, figure->of, data);
    put_marks_of(&grid, list, data);
    put_grid_script(&grid, step, script);
    mem_free(grid.values);
    return true;
}

bool figure_updates(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    const ViewStep *step = &view->steps[figure->step];
    const Json layers = json_member(&step->facts, "moe_layers");
    Grid grid;
    if (!grid_make(step, &grid, error)) return false;
    grid.words = "relative norm";
    grid.no_zeros = true;
    for (Json at = {0}; json_next(&layers, &at);)
        for (int64_t e = 0; e < grid.n_experts; e++)
            grid.values[(int64_t)view_number(at) * grid.n_experts + e] = 0;
    grid_take(&grid, json_member(&step->entry, "cells"), "relative", true);
    put_grid(&grid, step->name, data);
    put_grid_script(&grid, step, script);
    mem_free(grid.values);
    return true;
}

/* ---- curves ---- */
/* By rank, for each group the columns KEY, and its interval where `interval`; returns the number of ranks. */
static int64_t put_ranks(const ViewStep *step, const char *key, bool interval, Text *data, Error *error) {
    Json *at = mem_zeroed((size_t)step->n_groups + 1, sizeof *at),
         *lists = mem_zeroed((size_t)step->n_groups + 1, sizeof *at);
    char low[40], high[40];
    int64_t n = 0;
    bool more = at && lists;
    snprintf(low, sizeof low, "%s_low", key), snprintf(high, sizeof high, "%s_high", key);
    text_put_string(data, "rank");
    for (int64_t g = 0; more && g < step->n_groups; g++) {
        const Json group = view_group(step, g);
        lists[g] = json_member(&group, "curve");
        lists[g].parent = NULL;
        text_put_string(data, ",");
        figure_put_name(data, step->groups[g], "", "");
        if (interval) text_put_string(data, ",low,high");
    }
    text_put_string(data, "\n");
    while (more && (more = json_next(&lists[0], &at[0]))) {
        text_format(data, "%lld", (long long)++n);
        for (int64_t g = 0; g < step->n_groups; g++) {
            if (g) json_next(&lists[g], &at[g]);
            figure_put_member(data, at[g], key);
            if (interval) figure_put_member(data, at[g], low), figure_put_member(data, at[g], high);
        }
        text_put_string(data, "\n");
    }
    if (!at || !lists) error_out_of_memory(error, "a curve", (size_t)step->n_groups * sizeof *at);
    mem_free(at);
    mem_free(lists);
    return n;
}

bool figure_curve(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    const ViewStep *step = &view->steps[figure->step];
    const int64_t n = put_ranks(step, "score", true, data, error);
    Text plot = {0};
    text_format(script, "set xrange [1:%lld]\nset xlabel 'cells, largest score first'\n",
                (long long)(n > 1 ? n : 2));
    text_put_string(script, "set key outside above left horizontal Left reverse samplen 2\n"
                            "set yrange [0:*]\nset ylabel 'score'\nset ytics format '%.2g'\n");
    text_put_string(&plot, "plot ");
    for (int64_t g = 0; g < step->n_groups; g++) figure_put_band(&plot, g == 0, 2 + 3 * g, g);
    figure_put_plot(script, 620, 330, &plot);
    text_free(&plot);
    return error->code == ERROR_NONE;
}

/* The points (k, share) of each group come as a second block of the data: a row a share, two columns a
 * group. */
static void put_marks(const ReportView *view, const ViewStep *step, Text *data) {
    const Json shares = json_member(&view->page, "coverage_share"),
               percents = json_member(&view->page, "coverage_percent");
    text_put_string(data, "\n\nshare");
    for (int64_t g = 0; g < step->n_groups; g++) text_put_string(data, ",k");
    text_put_string(data, "\n");
    Json at = {0}, percent = {0};
    while (json_next(&shares, &at) && json_next(&percents, &percent)) {
        char key[20];
        snprintf(key, sizeof key, "k%.0f", view_number(percent));
        text_format(data, "%.9g", view_number(at));
        for (int64_t g = 0; g < step->n_groups; g++) figure_put_member(data, view_group(step, g), key);
        text_put_string(data, "\n");
    }
}

bool figure_cumulative(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    const ViewStep *step = &view->steps[figure->step];
    const int64_t n = put_ranks(step, "cumulative", false, data, error);
    Text plot = {0};
    put_marks(view, step, data);
    text_format(script, "set xrange [0:%lld]\nset xlabel 'cells, largest score first'\n",
                (long long)(n > 1 ? n : 2));
    text_put_string(script,
                    "set key outside above left horizontal Left reverse samplen 2\n"
                    "set yrange [0:1]\nset ytics (0, 0.2, 0.4, 0.6, '0.8' 0.8, '0.9' 0.9, '0.95' 0.95)\n"
                    "set ylabel 'share of the total score'\n");
    text_put_string(&plot, "plot ");
    for (int64_t g = 0; g < step->n_groups; g++) {
        const char *colour = figure_colours[g % 6];
        text_format(&plot,
                    "%s'drawing.csv' index 0 using 1:%lld with lines linewidth 2 linecolor rgb '%s' dashtype "
                    "%lld title columnheader(%lld), '' index 1 using %lld:1 skip 1 with points pointtype 7 "
                    "pointsize 0.5 linecolor rgb '%s' notitle",
                    g ? ", " : "", (long long)g + 2, colour, (long long)(g % 4) + 1, (long long)g + 2,
                    (long long)g + 2, colour);
    }
    figure_put_plot(script, 620, 330, &plot);
    text_free(&plot);
    return error->code == ERROR_NONE;
}

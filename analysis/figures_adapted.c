/* The figure of before and after: a row a training, a panel for each of what it did. */
#include "figures_parts.h"
#include <math.h>
#include <string.h>

enum { MOST_SERIES = 6 };

typedef struct {
    const char *list;    /* of before_after */
    const char *measure; /* only its rows of this measure; NULL: all */
    const char *keys[3]; /* value, low, high */
    const char *words;
} Panel;

static const Panel panels[] = {
    {"replies", NULL, {"change", "change_low", "change_high"}, "change of the restricted share"},
    {"drift", NULL, {"js", "js_low", "js_high"}, "JS divergence of the routing"},
    {"utility", "accuracy", {"change", "change_low", "change_high"}, "change of accuracy"},
    {"utility", "nll", {"change", "change_low", "change_high"}, "change of nll (nats a token)"}};
enum { N_PANELS = sizeof panels / sizeof *panels };

/* Place of a training among those of the run; -1: not one of them (the model as it is). */
static int64_t place_of(const ReportView *view, const char *name) {
    const Json list = json_member(&view->before_after, "trainings");
    int64_t place = 0;
    for (Json at = {0}; json_next(&list, &at); place++)
        if (!strcmp(view_string(json_member(&at, "training")), name))
            return place < FIGURE_MOST_ROWS ? place : -1;
    return -1;
}

/* What a series is of. */
typedef struct {
    const char *step, *group;
} Series;

static Series series_of(Json row) {
    return (Series){view_string(json_member(&row, "step")), view_string(json_member(&row, "group"))};
}

static bool is_shown(const ReportView *view, const Panel *panel, Json row) {
    return (!panel->measure || !strcmp(panel->measure, view_string(json_member(&row, "measure")))) &&
           place_of(view, view_string(json_member(&row, "training"))) >= 0 &&
           isfinite(view_number(json_member(&row, panel->keys[0])));
}

/* Different groups of the panel. All contrasts are one series: each is of one training. */
static int64_t find_series(const ReportView *view, const Panel *panel, Series series[MOST_SERIES]) {
    const Json list = json_member(&view->before_after, panel->list);
    const bool one = !strcmp(panel->list, "drift");
    int64_t n = 0;
    for (Json at = {0}; json_next(&list, &at);) {
        if (!is_shown(view, panel, at)) continue;
        const Series own = series_of(at);
        bool known = one && n > 0;
        for (int64_t i = 0; i < n; i++)
            known = known || (!strcmp(series[i].step, own.step) && !strcmp(series[i].group, own.group));
        if (!known && n < MOST_SERIES) series[n++] = own;
    }
    return n;
}

static void put_series(const ReportView *view, const Panel *panel, Series series, Text *data) {
    const Json list = json_member(&view->before_after, panel->list);
    const bool one = !strcmp(panel->list, "drift");
    text_put_string(data, "place,");
    figure_put_name(data, one ? "" : series.group, "", "");
    text_put_string(data, ",low,high\n");
    for (Json at = {0}; json_next(&list, &at);) {
        const Series own = series_of(at);
        if (!is_shown(view, panel, at) ||
            (!one && (strcmp(own.step, series.step) != 0 || strcmp(own.group, series.group) != 0)))
            continue;
        const double value = view_number(json_member(&at, panel->keys[0])),
                     low = view_number(json_member(&at, panel->keys[1])),
                     high = view_number(json_member(&at, panel->keys[2]));
        text_format(data, "%lld", (long long)place_of(view, view_string(json_member(&at, "training"))));
        figure_put_value(data, value);
        figure_put_value(data, isfinite(low) ? low : value);
        figure_put_value(data, isfinite(high) ? high : value);
        text_put_string(data, "\n");
    }
    text_put_string(data, "\n\n");
}

/* The first block: the names of the rows. */
static int64_t put_names(const ReportView *view, Text *data) {
    const Json list = json_member(&view->before_after, "trainings");
    int64_t n = 0;
    text_put_string(data, "place,name\n");
    for (Json at = {0}; json_next(&list, &at) && n < FIGURE_MOST_ROWS; n++) {
        text_format(data, "%lld,", (long long)n);
        figure_put_name(data, view_string(json_member(&at, "training")), "", "");
        text_put_string(data, "\n");
    }
    text_put_string(data, "\n\n");
    return n;
}

/* Draws a panel from blocks [block, block + n) of the data. */
static void put_panel(const Panel *panel, int64_t block, int64_t n, Text *plot) {
    const bool one = !strcmp(panel->list, "drift");
    text_format(plot, "set xlabel '%s'\nplot ", panel->words);
    for (int64_t i = 0; i < n; i++) {
        const double beside = n > 1 ? 0.4 * ((double)i / (double)(n - 1) - 0.5) : 0;
        text_format(plot,
                    "'drawing.csv' index %lld using 2:($1%+.3f):3:4 skip 1 with xerrorbars pointtype %d "
                    "pointsize 0.7 linewidth 1.5 linecolor rgb '%s' ",
                    (long long)(block + i), beside, i % 2 ? 6 : 7, figure_colours[i % 6]);
        if (one)
            text_put_string(plot, "notitle, ");
        else
            text_put_string(plot, "title columnheader(2), ");
    }
    text_put_string(plot, "'' index 0 using (0):1:yticlabels(2) skip 1 with points pointtype 0 linecolor rgb "
                          "'#ff000000' notitle\n");
}

bool figure_before_after(const ReportView *view, const Figure *figure, Text *data, Text *script,
                         Error *error) {
    const int64_t n = put_names(view, data);
    int64_t block = 1, n_panels = 0;
    Text plot = {0}, drawn = {0};
    (void)figure;
    (void)error;
    for (int p = 0; p < N_PANELS; p++) {
        Series series[MOST_SERIES];
        const int64_t n_series = find_series(view, &panels[p], series);
        if (!n_series) continue;
        for (int64_t i = 0; i < n_series; i++) put_series(view, &panels[p], series[i], data);
        put_panel(&panels[p], block, n_series, &drawn);
        block += n_series;
        n_panels++;
    }
    if (!n_panels) put_panel(&panels[0], 1, 0, &drawn);
    text_format(script,
                "unset grid\nset grid xtics linecolor rgb '#dddddd' linewidth 0.6\n"
                "set yrange [%lld.6:-0.6]\nset ytics scale 0\nset xtics format '%%.2g'\n",
                (long long)n - 1);
    text_put_string(
        script,
        "set key outside above left vertical maxrows 2 Left reverse samplen 1\n"
        "set arrow from 0, graph 0 to 0, graph 1 nohead linecolor rgb '#555555' linewidth "
        "0.8\nset offsets graph 0.05, graph 0.05, 0, 0\nset xtics rotate by -30 font ',10'\nset rmargin 6\n");
    text_format(&plot, "set multiplot layout %lld,2\n", (long long)((n_panels + 1) / 2 + !n_panels));
    text_put(&plot, drawn.bytes ? drawn.bytes : "", drawn.length);
    text_put_string(&plot, "unset multiplot");
    plot.failed = plot.failed || drawn.failed;
    figure_put_plot(script, 930, (int)((n_panels > 2 ? 2 : 1) * (150 + 26 * (n ? n : 1))), &plot);
    text_free(&drawn);
    text_free(&plot);
    return true;
}

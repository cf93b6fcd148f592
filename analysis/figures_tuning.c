/* Curves of contrasts and of trainings. */
#include "contrast.h"
#include "figures_parts.h"
#include <math.h>
#include <string.h>

/* ---- contrast ---- */
static const char *const curve_words[N_CURVES] = {"Jensen-Shannon divergence", "overlap@k",
                                                  "weighted Jaccard"};

/* A block of data: a row a layer; each curve with its interval, from column 2 on. */
static void put_part(Json layers, const char *part, const char *name, Text *data) {
    text_put_string(data, "layer");
    for (int v = 0; v < N_CURVES; v++) text_format(data, ",\"%s\",low,high", name);
    text_put_string(data, "\n");
    for (Json at = {0}; json_next(&layers, &at);) {
        const Json one = json_member(&at, part);
        text_format(data, "%.0f", view_number(json_member(&at, "layer")));
        for (int v = 0; v < N_CURVES; v++) figure_put_interval(data, one, contrast_curve_names[v]);
        text_put_string(data, "\n");
    }
    text_put_string(data, "\n\n");
}

bool figure_contrast(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    const ViewStep *step = &view->steps[figure->step];
    const Json layers = json_member(&step->statistics, "layers");
    const bool controls = json_type(view_find(step->statistics, "overall.control", NULL)) == JSON_OBJECT;
    Text plot = {0};
    (void)error;
    put_part(layers, "contrast", "contrast", data);
    if (controls) put_part(layers, "control", "control: other topics", data);
    figure_put_layer_frame(step->n_layers, script);
    text_format(&plot, "set multiplot layout 1,%d\n", N_CURVES);
    for (int v = 0; v < N_CURVES; v++) {
        text_format(&plot, "set ylabel '%s%s'\n%s\nplot ", curve_words[v],
                    v != CURVE_JS                                                    ? ""
                    : *view_string(json_member(&step->statistics, "js_unit")) == 'b' ? " (bits)"
                                                                                     : " (nats)",
                    v == CURVE_JS ? "set yrange [0:*]" : "set yrange [*:*]");
        for (int64_t block = 0; block < 1 + controls; block++)
            figure_put_block_band(&plot, block, 2 + 3 * v, true);
        text_put_string(&plot, "\n");
    }
    text_put_string(&plot, "unset multiplot");
    figure_put_plot(script, 310 * N_CURVES, 320, &plot);
    text_free(&plot);
    return true;
}

/* ---- training ---- */
/* Behind the loss, column 2 of the data: a panel each where it has numbers. */
static const struct {
    const char *key, *words;
} panels[] = {{"gradient_norm", "length of the gradient"}, {"learning_rate", "learning rate"},
              {"router_kl", "KL of the routers (nats)"},   {"router_distance", "distance of the routers"},
              {"preferred", "share of pairs put right"},   {"preference_margin", "margin of pairs"}};
enum { N_PANELS = sizeof panels / sizeof *panels, N_ALWAYS = 2, FIRST_PANEL = 3 };

/* A second block has the rows in which held-out prompts were measured, so that a line connects them. */
static double put_rows(Json rows, Text *data) {
    double last = 1;
    text_put_string(data, "step,training");
    for (int i = 0; i < N_PANELS; i++) text_format(data, ",%s", panels[i].key);
    text_put_string(data, "\n");
    for (Json at = {0}; json_next(&rows, &at);) {
        last = view_number(json_member(&at, "step"));
        text_format(data, "%.0f", last);
        figure_put_member(data, at, "loss");
        for (int i = 0; i < N_PANELS; i++) figure_put_member(data, at, panels[i].key);
        text_put_string(data, "\n");
    }
    text_put_string(data, "\n\nstep,held out\n");
    for (Json at = {0}; json_next(&rows, &at);) {
        const double held_out = view_number(json_member(&at, "held_out_loss"));
        if (!isfinite(held_out)) continue;
        text_format(data, "%.0f", view_number(json_member(&at, "step")));
        figure_put_value(data, held_out);
        text_put_string(data, "\n");
    }
    return last;
}

static bool any_finite(Json rows, const char *key) {
    bool any = false;
    for (Json at = {0}; json_next(&rows, &at);) any = any || isfinite(view_number(json_member(&at, key)));
    return any;
}

/* Nothing stands behind "plot " yet. */
static bool is_open(const Text *plot) { return plot->length && plot->bytes[plot->length - 1] == ' '; }

/* A column against the step. gnuplot takes a column without a number for an error: nothing is drawn then. */
static void put_curve(Text *plot, Json rows, const char *key, int column) {
    if (!any_finite(rows, key)) return;
    text_format(plot,
                "'drawing.csv' index 0 using 1:%d with lines linewidth 2 linecolor rgb '%s' title "
                "columnheader(%d)",
                column, figure_colours[(column - 2) % 6], column);
}

static void put_panel(Text *plot, Json rows, int i) {
    const bool any = any_finite(rows, panels[i].key), is_signed = !strcmp(panels[i].key, "preference_margin");
    text_format(plot, "set ylabel '%s'\nset yrange %s\nunset key\nplot ", panels[i].words,
                !any        ? "[0:1]"
                : is_signed ? "[*:*]"
                            : "[0:*]");
    put_curve(plot, rows, panels[i].key, FIRST_PANEL + i);
    if (is_open(plot)) text_put_string(plot, "NaN notitle");
    text_put_string(plot, "\n");
}

/* Losses of a training do not begin at 0, and the state that was taken is marked. */
static void put_losses(Text *plot, Json rows, double taken) {
    text_put_string(plot, "set key on\nset ylabel 'loss'\n");
    if (!any_finite(rows, "loss") && !any_finite(rows, "held_out_loss"))
        text_put_string(plot, "set yrange [0:1]\n");
    if (isfinite(taken))
        text_format(plot,
                    "set arrow 1 from %.0f, graph 0 to %.0f, graph 1 nohead linecolor rgb '#555555' "
                    "linewidth 1 dashtype 2\n",
                    taken, taken);
    text_put_string(plot, "plot ");
    put_curve(plot, rows, "loss", 2);
    if (any_finite(rows, "held_out_loss"))
        text_format(
            plot,
            "%s'drawing.csv' index 1 using 1:2 with linespoints linewidth 2 linecolor rgb '%s' dashtype "
            "2 pointtype 7 pointsize 0.5 title columnheader(2)",
            is_open(plot) ? "" : ", ", figure_colours[1]);
    if (is_open(plot)) text_put_string(plot, "NaN notitle");
    text_put_string(plot, "\nunset arrow 1\n");
}

bool figure_training(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    const ViewStep *step = &view->steps[figure->step];
    const Json rows = json_member(&step->entry, "training");
    const double last = put_rows(rows, data);
    Text plot = {0};
    (void)error;
    text_format(script,
                "set key outside above left vertical maxrows 2 Left reverse samplen 2\nset xrange [0:%.0f]\n"
                "set xlabel 'step'\nset ytics format '%%.3g'\nset xtics format '%%.6g'\n",
                last > 1 ? last : 1.0);
    int n = 1;
    for (int i = 0; i < N_PANELS; i++) n += i < N_ALWAYS || any_finite(rows, panels[i].key);
    text_format(&plot, "set multiplot layout %d,3\nset yrange [*:*]\n", (n + 2) / 3);
    put_losses(&plot, rows, view_number(json_member(&step->facts, "step_taken")));
    for (int i = 0; i < N_PANELS; i++)
        if (i < N_ALWAYS || any_finite(rows, panels[i].key)) put_panel(&plot, rows, i);
    text_put_string(&plot, "unset multiplot");
    figure_put_plot(script, 930, 320 * ((n + 2) / 3), &plot);
    text_free(&plot);
    return true;
}

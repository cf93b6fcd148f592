/* Curves of contrasts and of trainings. */
#include "contrast.h"
#include "figures_parts.h"
#include <math.h>

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
static double put_rows(Json rows, Text *data) {
    static const char *const keys[] = {"loss", "held_out_loss", "gradient_norm", "learning_rate"};
    double last = 1;
    text_put_string(data, "step,training,held out,gradient,rate\n");
    for (Json at = {0}; json_next(&rows, &at);) {
        last = view_number(json_member(&at, "step"));
        text_format(data, "%.0f", last);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) figure_put_member(data, at, keys[k]);
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
static void put_curve(Text *plot, Json rows, const char *key, int column, bool with_points) {
    if (!any_finite(rows, key)) return;
    text_format(plot,
                "%s'drawing.csv' using 1:%d with %s linewidth 2 linecolor rgb '%s' dashtype %d title "
                "columnheader(%d)",
                is_open(plot) ? "" : ", ", column,
                with_points ? "linespoints pointtype 7 pointsize 0.5" : "lines", figure_colours[column - 2],
                with_points ? 2 : 1, column);
}

static void put_panel(Text *plot, Json rows, const char *words, int column, const char *key) {
    text_format(plot, "set ylabel '%s'\n%s\nplot ", words,
                any_finite(rows, key) ? "set yrange [0:*]" : "set yrange [0:1]");
    put_curve(plot, rows, key, column, false);
    if (is_open(plot)) text_put_string(plot, "NaN notitle");
    text_put_string(plot, "\n");
}

/* Losses of a training do not begin at 0, and the state that was taken is marked. */
static void put_losses(Text *plot, Json rows, double taken) {
    text_put_string(plot, "set ylabel 'loss (nats a token)'\n");
    if (!any_finite(rows, "loss") && !any_finite(rows, "held_out_loss"))
        text_put_string(plot, "set yrange [0:1]\n");
    if (isfinite(taken))
        text_format(plot,
                    "set arrow 1 from %.0f, graph 0 to %.0f, graph 1 nohead linecolor rgb '#555555' "
                    "linewidth 1 dashtype 2\n",
                    taken, taken);
    text_put_string(plot, "plot ");
    put_curve(plot, rows, "loss", 2, false);
    put_curve(plot, rows, "held_out_loss", 3, true);
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
    text_put_string(&plot, "set multiplot layout 1,3\nset yrange [*:*]\n");
    put_losses(&plot, rows, view_number(json_member(&step->facts, "step_taken")));
    put_panel(&plot, rows, "length of the gradient", 4, "gradient_norm");
    put_panel(&plot, rows, "learning rate", 5, "learning_rate");
    text_put_string(&plot, "unset multiplot");
    figure_put_plot(script, 930, 320, &plot);
    text_free(&plot);
    return true;
}

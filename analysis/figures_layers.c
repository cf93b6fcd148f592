/* Figures by layer: curves of a step, of all steps together, differences, classes. */
#include "figures_parts.h"
#include <math.h>

enum { MOST_PANELS = 3, MOST_LINES = 24, PANEL_HEIGHT = 320, N_LAYER_KEYS = 3 };

static const char *const layer_keys[N_LAYER_KEYS] = {"dominant_score", "entropy", "effective_experts"};
static const char *const layer_words[N_LAYER_KEYS] = {"dominant score", "entropy (nats)",
                                                      "effective experts"};

static const char panel_frame[] = "set key outside above left vertical maxrows 6 Left reverse samplen 2\n"
                                  "set xlabel 'layer'\nset ytics format '%.3g'\n";

void figure_put_layer_frame(int64_t n_layers, Text *script) {
    text_put_string(script, panel_frame);
    text_format(script, "set xtics 0,%lld\n", figure_label_step(2 * n_layers));
}

/* ---- layers ---- */
/* A block of data: a row a layer of one group; each key with its interval, from column 2 on. */
static void put_group(const ViewStep *step, int64_t g, bool with_step, Text *data) {
    const Json group = view_group(step, g), layers = json_member(&group, "layers");
    text_put_string(data, "layer");
    for (int k = 0; k < N_LAYER_KEYS; k++) {
        text_put_string(data, ",");
        figure_put_name(data, with_step ? step->name : "", with_step ? ": " : "", step->groups[g]);
        text_put_string(data, ",low,high");
    }
    text_put_string(data, "\n");
    for (Json at = {0}; json_next(&layers, &at);) {
        text_format(data, "%.0f", view_number(json_member(&at, "layer")));
        for (int k = 0; k < N_LAYER_KEYS; k++) figure_put_interval(data, at, layer_keys[k]);
        text_put_string(data, "\n");
    }
    text_put_string(data, "\n\n");
}

static void put_layer_panels(const int *keys, int n_keys, int64_t n_blocks, Text *script) {
    Text plot = {0};
    text_format(&plot, "set multiplot layout 1,%d\n", n_keys);
    for (int k = 0; k < n_keys; k++) {
        text_format(&plot, "set ylabel '%s'\nplot ", layer_words[keys[k]]);
        for (int64_t b = 0; b < n_blocks; b++) figure_put_block_band(&plot, b, 2 + 3 * keys[k], true);
        text_put_string(&plot, "\n");
    }
    text_put_string(&plot, "unset multiplot");
    figure_put_plot(script, 310 * n_keys, PANEL_HEIGHT, &plot);
    text_free(&plot);
}

bool figure_layers(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    static const int keys[] = {0, 1, 2};
    const ViewStep *step = &view->steps[figure->step];
    (void)error;
    int64_t n = 0;
    for (; n < step->n_groups && n < MOST_LINES; n++) put_group(step, n, false, data);
    figure_put_layer_frame(step->n_layers, script);
    put_layer_panels(keys, N_LAYER_KEYS, n, script);
    return true;
}

bool figure_signals(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    static const int keys[] = {0, 2};
    (void)figure;
    (void)error;
    int64_t n = 0, n_layers = 1;
    for (int64_t s = 0; s < view->n_steps; s++)
        if (view->steps[s].n_layers > n_layers) n_layers = view->steps[s].n_layers;
    for (int64_t s = 0; s < view->n_steps; s++)
        for (int64_t g = 0; view->steps[s].measures && g < view->steps[s].n_groups && n < MOST_LINES;
             g++, n++)
            put_group(&view->steps[s], g, true, data);
    figure_put_layer_frame(n_layers, script);
    put_layer_panels(keys, 2, n, script);
    return true;
}

/* ---- differences ---- */
bool figure_selectivity(const ReportView *view, const Figure *figure, Text *data, Text *script,
                        Error *error) {
    const Json list = json_member(&view->steps[figure->step].statistics, "selectivity");
    Text plot = {0};
    (void)error;
    text_put_string(data, "layer,largest,low,high,mean,low,high,p\n");
    for (Json at = {0}; json_next(&list, &at);) {
        text_format(data, "%.0f", view_number(json_member(&at, "layer")));
        figure_put_interval(data, at, "max_abs_difference");
        figure_put_interval(data, at, "mean_abs_difference");
        figure_put_member(data, at, "p_value");
        text_put_string(data, "\n");
    }
    figure_put_layer_frame(view->steps[figure->step].n_layers, script);
    text_put_string(script, "set ylabel '|difference| of scores'\nset yrange [0:*]\n");
    text_put_string(&plot, "plot ");
    figure_put_band(&plot, true, 2, 0);
    figure_put_band(&plot, false, 5, 1);
    text_put_string(
        &plot, ", '' using 1:2 skip 1 with points pointtype 6 pointsize 0.8 linecolor rgb '#1f5fa8' notitle, "
               "'' using 1:($8 < 0.05 ? $2 : NaN) skip 1 with points pointtype 7 pointsize 0.8 linecolor "
               "rgb '#1f5fa8' notitle");
    figure_put_plot(script, 620, 330, &plot);
    text_free(&plot);
    return true;
}

/* ---- classes ---- */
/* A block a threshold: a row a layer, a column a class, the shared one last. */
static void put_class_block(const ViewStep *step, Json at, Text *data) {
    const Json layers = json_member(&at, "layers");
    text_put_string(data, "layer");
    for (int64_t g = 0; g <= step->n_groups; g++) {
        text_put_string(data, ",");
        figure_put_name(data, g < step->n_groups ? step->groups[g] : "shared", "", "");
    }
    text_put_string(data, "\n");
    for (Json layer = {0}; json_next(&layers, &layer);) {
        const Json counts = json_member(&layer, "counts");
        text_format(data, "%.0f", view_number(json_member(&layer, "layer")));
        for (int64_t g = 0; g <= step->n_groups; g++)
            figure_put_value(
                data, view_number(json_member(&counts, g < step->n_groups ? step->groups[g] : "shared")));
        text_put_string(data, "\n");
    }
    text_put_string(data, "\n\n");
}

bool figure_classes(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    const ViewStep *step = &view->steps[figure->step];
    const Json classes = json_member(&step->statistics, "classes");
    const int64_t count = json_count(classes), n = count < MOST_PANELS ? count : MOST_PANELS;
    Text plot = {0};
    (void)error;
    text_put_string(script, panel_frame);
    text_put_string(script, "set style data histograms\nset style histogram rowstacked\nset boxwidth 0.8\n"
                            "set style fill solid 0.9 noborder\nset yrange [0:*]\nset ylabel 'cells'\n");
    text_format(script, "set xtics scale 0\n");
    text_format(&plot, "set multiplot layout 1,%lld\n", (long long)n);
    Json at = {0};
    for (int64_t i = 0; i < n && json_next(&classes, &at); i++) {
        put_class_block(step, at, data);
        text_format(&plot, "set xlabel 'layer (tau = %.6g)'\nplot ", view_number(json_member(&at, "tau")));
        for (int64_t g = 0; g <= step->n_groups; g++) {
            text_format(&plot, "%s'drawing.csv' index %lld using %lld", g ? ", " : "", (long long)i,
                        (long long)g + 2);
            text_format(&plot, ":xtic(int($1) %% %lld == 0 ? strcol(1) : '')",
                        figure_label_step(2 * step->n_layers));
            text_format(&plot, " linecolor rgb '%s' title columnheader(%lld)",
                        g < step->n_groups ? figure_colours[g % 6] : "#c9ced3", (long long)g + 2);
        }
        text_put_string(&plot, "\n");
    }
    text_put_string(&plot, "unset multiplot");
    figure_put_plot(script, (int)(310 * n), PANEL_HEIGHT, &plot);
    text_free(&plot);
    return true;
}

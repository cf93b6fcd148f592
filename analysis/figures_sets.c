/* Figures of sets: how many cells hold the score, beside null models; overlap of top sets; conditions beside
 * their controls. */
#include "figures_parts.h"
#include <math.h>
#include <string.h>

/* ---- concentration ---- */
enum { CONCENTRATION_COLUMNS = 8 }; /* x; k and its interval; mean of draws and interval; uniform */

static void put_shares(const ReportView *view, const ViewStep *step, int64_t g, Text *data) {
    const Json shares = json_member(&view->page, "coverage_percent"), group = view_group(step, g);
    char path[80];
    text_put_string(data, "x,");
    figure_put_name(data, step->groups[g], "", "");
    text_put_string(data, ",low,high,rotated,low,high,uniform\n");
    Json at = {0};
    for (int i = 0; json_next(&shares, &at); i++) {
        static const char *const parts[] = {"k%.0f",
                                            "k%.0f_low",
                                            "k%.0f_high",
                                            "concentration.rotation.k%.0f_mean",
                                            "concentration.rotation.k%.0f_low",
                                            "concentration.rotation.k%.0f_high",
                                            "concentration.uniform.k%.0f"};
        text_format(data, "%d", i);
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            const char *number = strstr(parts[p], "%.0f");
            snprintf(path, sizeof path, "%.*s%.0f%s", (int)(number - parts[p]), parts[p], view_number(at),
                     number + 4);
            figure_put_member(data, group, path);
        }
        text_put_string(data, "\n");
    }
    text_put_string(data, "\n\n");
}

bool figure_concentration(const ReportView *view, const Figure *figure, Text *data, Text *script,
                          Error *error) {
    const ViewStep *step = &view->steps[figure->step];
    const int64_t n = step->n_groups < 6 ? step->n_groups : 6;
    Text plot = {0};
    (void)error;
    text_put_string(script, "set key outside above left horizontal Left reverse samplen 1\n"
                            "set xrange [-0.5:2.5]\nset yrange [0:*]\nset ylabel 'cells'\n"
                            "set xtics ('k80' 0, 'k90' 1, 'k95' 2) scale 0\n");
    text_put_string(&plot, "plot ");
    for (int64_t g = 0; g < n; g++) {
        const double x = 0.7 * ((double)g + 0.5) / (double)n - 0.35, beside = 0.2 / (double)n;
        put_shares(view, step, g, data);
        text_format(
            &plot,
            "%s'drawing.csv' index %lld using ($1+%.4f):2:3:4 with yerrorbars pointtype 7 pointsize 0.7 "
            "linewidth 1.5 linecolor rgb '%s' title columnheader(2), '' index %lld using ($1+%.4f):5:6:7 "
            "skip 1 with yerrorbars pointtype 6 pointsize 0.7 linewidth 1.2 linecolor rgb '#777777' %s, '' "
            "index %lld "
            "using ($1+%.4f):8 skip 1 with points pointtype 2 pointsize 0.7 linecolor rgb '#777777' %s",
            g ? ", " : "", (long long)g, x, figure_colours[g % 6], (long long)g, x + beside,
            g ? "notitle" : "title 'rotated'", (long long)g, x + beside, g ? "notitle" : "title 'uniform'");
    }
    figure_put_plot(script, 620, 330, &plot);
    text_free(&plot);
    return true;
}

/* ---- overlap ---- */
typedef struct {
    Text *data, *plot;
    int64_t n; /* blocks */
    bool any;  /* a value that can be drawn */
} Overlap;

static void put_overlap(Overlap *o, Json list, const char *first, const char *between, const char *second) {
    enum { MOST = 18 };
    if (!json_count(list) || o->n == MOST) return;
    text_put_string(o->data, "k,");
    figure_put_name(o->data, first, between, second);
    text_put_string(o->data, ",low,high\n");
    for (Json at = {0}; json_next(&list, &at);) {
        text_format(o->data, "%.0f", view_number(json_member(&at, "k")));
        figure_put_member(o->data, at, "jaccard");
        figure_put_member(o->data, at, "jaccard_low");
        figure_put_member(o->data, at, "jaccard_high");
        text_put_string(o->data, "\n");
        o->any = o->any || isfinite(view_number(json_member(&at, "jaccard")));
    }
    text_put_string(o->data, "\n\n");
    if (o->n == 0)
        text_put_string(o->plot,
                        "'drawing.csv' index 0 using 1:3:4 skip 1 with filledcurves fillcolor rgb '#1f5fa8' "
                        "fillstyle transparent solid 0.15 noborder notitle, ");
    text_format(o->plot,
                "%s'drawing.csv' index %lld using 1:2 with linespoints linewidth 2 pointtype %lld pointsize "
                "0.6 linecolor rgb '%s' dashtype %lld title columnheader(2)",
                o->n ? ", " : "", (long long)o->n, (long long)(o->n % 2 ? 6 : 7), figure_colours[o->n % 6],
                (long long)(o->n / 6 + o->n % 4) % 4 + 1);
    o->n++;
}

bool figure_overlap(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    const ViewStep *step = &view->steps[figure->step];
    const Json steps = json_member(&step->statistics, "between_steps"),
               own = json_member(&step->statistics, "overlap");
    Text plot = {0};
    Overlap o = {.data = data, .plot = &plot};
    (void)error;
    text_put_string(&plot, "plot ");
    put_overlap(&o, own, step->groups[0], " and ", step->groups[1]);
    for (int64_t g = 0; g < step->n_groups; g++)
        put_overlap(&o, view_find(view_group(step, g), "split_half.overlap", NULL), "halves of ", "",
                    step->groups[g]);
    for (Json at = {0}; json_next(&steps, &at);)
        put_overlap(&o, json_member(&at, "overlap"), view_string(json_member(&at, "group")), ", with ",
                    view_string(json_member(&at, "step")));
    if (!o.any) /* gnuplot takes an empty range for an error */
        text_put_string(script, "set xrange [1:100]\n");
    text_put_string(script, "set key outside right top vertical Left reverse samplen 2\n"
                            "set logscale x 10\nset yrange [0:1]\nset xlabel 'cells in the top set'\n"
                            "set ylabel 'Jaccard index'\nset xtics add (");
    Json at = {0};
    for (bool first = true; json_next(&own, &at); first = false)
        text_format(script, "%s%.0f", first ? "" : ", ", view_number(json_member(&at, "k")));
    text_put_string(script, ")\n");
    figure_put_plot(script, 720, 330, &plot);
    text_free(&plot);
    return true;
}

/* ---- outcomes ---- */
static void put_outcome(Json row, int64_t place, Text *data) {
    static const char *const keys[] = {"change",       "low",          "high",          "random_mean",
                                       "random_least", "random_most",  "layer_mean",    "layer_least",
                                       "layer_most",   "traffic_mean", "traffic_least", "traffic_most"};
    text_format(data, "%lld,", (long long)place);
    figure_put_name(data, view_string(json_member(&row, "condition")), "", "");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) figure_put_member(data, row, keys[i]);
    text_put_string(data, "\n");
}

bool figure_outcomes(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error) {
    static const char *const words[] = {"selected", "random sets", "layer matched", "traffic matched"};
    static const char *const colours[] = {"#1f5fa8", "#8a8a8a", "#c8501e", "#2a8a57"};
    const Json outcomes = json_member(&view->steps[figure->step].entry, "outcomes");
    int64_t n = 0;
    Text plot = {0};
    (void)error;
    text_put_string(data,
                    "place,condition,change,low,high,random,low,high,layer,low,high,traffic,low,high\n");
    for (Json at = {0}; json_next(&outcomes, &at) && n < FIGURE_MOST_ROWS;)
        if (!strcmp(view_string(json_member(&at, "kind")), "selected") &&
            !strcmp(view_string(json_member(&at, "group")), figure->of))
            put_outcome(at, n++, data);
    text_format(
        script,
        "unset grid\nset grid xtics linecolor rgb '#dddddd' linewidth 0.6\nset yrange [%lld.6:-0.6]\n",
        (long long)n - 1);
    text_put_string(script,
                    "set key outside above left horizontal Left reverse samplen 1\n"
                    "set xlabel 'change of the share of restricted replies'\nset ytics scale 0\n"
                    "set xtics format '%.2g'\nset arrow from 0, graph 0 to 0, graph 1 nohead "
                    "linecolor rgb '#555555' linewidth 0.8\nset offsets graph 0.03, graph 0.03, 0, 0\n");
    text_put_string(&plot, "plot ");
    for (int i = 0; i < 4; i++)
        text_format(
            &plot,
            "%s'drawing.csv' using %d:($1%+.2f):%d:%d skip 1 with xerrorbars pointtype %d pointsize 0.7 "
            "linewidth 1.5 linecolor rgb '%s' title '%s'",
            i ? ", " : "", 3 + 3 * i, -0.27 + 0.18 * i, 4 + 3 * i, 5 + 3 * i, i ? 6 : 7, colours[i],
            words[i]);
    text_put_string(
        &plot,
        ", '' using 3:1:yticlabels(2) skip 1 with points pointtype 0 linecolor rgb '#ff000000' notitle");
    figure_put_plot(script, 900, (int)(120 + 62 * (n ? n : 1)), &plot);
    text_free(&plot);
    return true;
}

/* Drawing. The scripts hold numbers and fixed names only; names of groups stand as headers of data columns,
 * where gnuplot takes them as they are. What gnuplot writes is brought into one form: the ids of an SVG get
 * the figure's number, so that many can stand in one page, and its tooltips with file names go. */
#include "figures.h"
#include "gnuplot.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include <math.h>
#include <string.h>

enum { MAX_SVG_BYTES = 64 << 20, MAX_LABELLED_CELLS = 160 };

static const char *const working_files[] = {"drawing.csv", "drawing.gp", "drawing.log", "drawing.svg",
                                            "drawing.pdf"};
enum { DATA, SCRIPT, LOG, SVG, PDF, N_FILES };

typedef struct {
    char *folder; /* RUN/figures */
    char *paths[N_FILES];
    bool gnuplot_missing;
} Drawing;

/* ---- data ---- */
/* A text as a header field of a data file: no control characters (terminal form), and what gnuplot reads as
 * an escape or as the end of the field is made harmless. */
static void put_header(Text *to, const char *name) {
    Text shown = {0};
    text_put_terminal(&shown, name, strlen(name));
    text_put_string(to, "\"");
    for (size_t i = 0; i < shown.length; i++) {
        switch (shown.bytes[i]) {
        case '"': text_put_string(to, "'"); break;
        case '\\': text_put_string(to, "\\\\"); break;
        case '\n': text_put_string(to, "\\\\n"); break;
        default: text_put(to, shown.bytes + i, 1);
        }
    }
    text_put_string(to, "\"");
    to->failed = to->failed || shown.failed;
    text_free(&shown);
}

/* Scores of one group as a full grid, NaN where a layer has no experts; the largest score of all groups. */
static bool read_grid(const ReportStep *step, int64_t group, double *grid, double *largest, Error *error) {
    const Csv *table = &step->scores.table;
    int64_t layer = csv_find_column(table, "layer"), expert = csv_find_column(table, "expert");
    int64_t score = csv_find_column(table, "score"), l, e;
    *largest = 0;
    for (int64_t i = 0; i < step->n_layers * step->n_experts; i++) grid[i] = NAN;
    for (int64_t r = 0; r < table->n_rows; r++) {
        double value;
        if (!csv_integer(table, r, layer, 0, step->n_layers - 1, &l, error) ||
            !csv_integer(table, r, expert, 0, step->n_experts - 1, &e, error) ||
            !csv_number(table, r, score, &value, error))
            return false;
        if (value > *largest) *largest = value;
        if (step->scores.group[r] == group) grid[l * step->n_experts + e] = value;
    }
    return true;
}

static bool put_heatmap_data(const ReportStep *step, int64_t group, Text *data, double *largest,
                             Error *error) {
    int64_t n = step->n_layers * step->n_experts;
    double *grid = mem_alloc((size_t)n * sizeof *grid);
    if (!grid) return error_out_of_memory(error, "a heat map", (size_t)n * sizeof *grid);
    bool ok = read_grid(step, group, grid, largest, error);
    text_put_string(data, "expert,layer,");
    put_header(data, step->groups[group]);
    text_put_string(data, ",label,colour\n");
    for (int64_t i = 0; ok && i < n; i++) {
        text_format(data, "%lld,%lld,", (long long)(i % step->n_experts), (long long)(i / step->n_experts));
        if (isnan(grid[i]))
            text_put_string(data, "NaN,,0\n");
        else
            text_format(data, "%.9g,%.2g,%d\n", grid[i], grid[i],
                        grid[i] > 0.55 * *largest ? 0xffffff : 0x333333);
    }
    mem_free(grid);
    return ok;
}

/* One column per group, rows by rank; the table may list the groups in any order. */
static bool put_curve_data(const ReportStep *step, const char *column_name, Text *data, int64_t *n_ranks,
                           Error *error) {
    const Csv *table = &step->curve.table;
    int64_t rank = csv_find_column(table, "rank"), column = csv_find_column(table, column_name), r_at;
    int64_t n = step->n_layers * step->n_experts;
    double *values = mem_zeroed((size_t)(n * step->n_groups), sizeof *values);
    if (!values) return error_out_of_memory(error, "a curve", (size_t)(n * step->n_groups) * sizeof *values);
    bool ok = true;
    *n_ranks = 0;
    for (int64_t r = 0; ok && r < table->n_rows; r++) {
        double value;
        ok = csv_integer(table, r, rank, 1, n, &r_at, error) && csv_number(table, r, column, &value, error);
        if (!ok) break;
        values[(r_at - 1) * step->n_groups + step->curve.group[r]] = value;
        if (r_at > *n_ranks) *n_ranks = r_at;
    }
    text_put_string(data, "rank");
    for (int64_t g = 0; g < step->n_groups; g++) {
        text_put_string(data, ",");
        put_header(data, step->groups[g]);
    }
    for (int64_t i = 0; ok && i < *n_ranks * step->n_groups; i++) {
        if (i % step->n_groups == 0) text_format(data, "\n%lld", (long long)(i / step->n_groups + 1));
        text_format(data, ",%.9g", values[i]);
    }
    text_put_string(data, "\n");
    mem_free(values);
    return ok;
}

/* ---- scripts ---- */
static const char *const preamble = "set encoding utf8\n"
                                    "set datafile separator ','\n"
                                    "set border linecolor rgb '#8a8a8a' linewidth 0.8\n"
                                    "set tics nomirror out scale 0.5 textcolor rgb '#333333'\n";

/* The same plot into both files; the SVG first, since a gnuplot without Cairo still makes that one. */
static void put_plot(Text *script, int width, int height, const char *plot) {
    text_format(script,
                "set terminal svg noenhanced size %d,%d font 'sans-serif,12' background rgb 'white'\n", width,
                height);
    text_format(script, "set output 'drawing.svg'\n%s\nset output\n", plot);
    text_format(script, "set terminal pdfcairo noenhanced size %.2fin,%.2fin font 'sans-serif,10'\n",
                width / 96.0, height / 96.0);
    text_format(script, "set output 'drawing.pdf'\n%s\nset output\n", plot);
}

/* 1, 2, 4, 8, ...: at most 16 labels on an axis of n. */
static long long label_step(int64_t n) {
    long long step = 1;
    while (n > 16 * step) step *= 2;
    return step;
}

static void put_heatmap_script(const ReportStep *step, double largest, Text *script) {
    int64_t l = step->n_layers, e = step->n_experts;
    bool labelled = l * e <= MAX_LABELLED_CELLS, activation = !strcmp(step->kind, "activation");
    int64_t wide = 190 + 12 * e, high = 110 + (l <= 16 ? 30 : 16) * l;
    int width = (int)(wide < 500 ? 500 : wide > 900 ? 900 : wide), height = (int)(high > 900 ? 900 : high);
    text_put_string(script, preamble);
    text_put_string(script, activation
                                ? "set palette defined (0 '#f5f8fc', 0.25 '#b9d3ea', 0.5 '#6ba6d2', 0.75 "
                                  "'#2a72b0', 1 '#0a3a78') maxcolors 64\n"
                                : "set palette defined (0 '#fdf7f1', 0.25 '#f6cfa9', 0.5 '#ea9256', 0.75 "
                                  "'#c9541c', 1 '#7c2a06') maxcolors 64\n");
    text_format(script, "set cbrange [0:%.9g]\nset xrange [-0.5:%lld.5]\nset yrange [%lld.5:-0.5]\n",
                largest > 0 ? largest : 1, (long long)e - 1, (long long)l - 1);
    text_format(script, "set xtics 0,%lld\nset ytics 0,%lld\n", label_step(e), label_step(l));
    text_put_string(script, "set xlabel 'expert'\nset ylabel 'layer'\nset cblabel 'score'\n"
                            "set colorbox noborder\nset cbtics format '%.2g'\n"
                            "set key at screen 0.02, screen 0.985 left top Left samplen 0\n"
                            "set tmargin 3\n");
    Text plot = {0};
    text_put_string(&plot, "plot 'drawing.csv' using 1:2:3 with image pixels title columnheader(3)");
    if (labelled)
        text_put_string(&plot,
                        ", '' using 1:2:4:5 skip 1 with labels font ',9' textcolor rgb variable notitle");
    if (!plot.failed) put_plot(script, width, height, plot.bytes);
    script->failed = script->failed || plot.failed;
    text_free(&plot);
}

static void put_curve_script(const ReportStep *step, FigureKind kind, int64_t n_ranks, Text *script) {
    static const char *const colours[] = {"#1f5fa8", "#c8501e", "#2a8a57", "#8a4fa0", "#8c6d1f", "#3aa0a8"};
    bool cumulative = kind == FIGURE_CUMULATIVE;
    text_put_string(script, preamble);
    text_format(script, "set xrange [%d:%lld]\nset xlabel 'cells, largest score first'\n", cumulative ? 0 : 1,
                (long long)(n_ranks > 1 ? n_ranks : 2));
    text_put_string(script, "set grid ytics linecolor rgb '#dddddd' linewidth 0.6\n"
                            "set key outside above left horizontal Left reverse samplen 2\n");
    if (cumulative)
        text_put_string(script,
                        "set yrange [0:1]\nset ytics (0, 0.2, 0.4, 0.6, '0.8' 0.8, '0.9' 0.9, '0.95' 0.95)\n"
                        "set ylabel 'share of the total score'\n");
    else
        text_put_string(script, "set yrange [0:*]\nset ylabel 'score'\nset ytics format '%.2g'\n");
    Text plot = {0};
    text_put_string(&plot, "plot ");
    for (int64_t g = 0; g < step->n_groups; g++)
        text_format(
            &plot,
            "%s'drawing.csv' using 1:%lld with lines linewidth 2 linecolor rgb '%s' dashtype %lld title "
            "columnheader(%lld)",
            g ? ", " : "", (long long)g + 2, colours[g % 6], (long long)(g % 4) + 1, (long long)g + 2);
    if (!plot.failed) put_plot(script, 620, 330, plot.bytes);
    script->failed = script->failed || plot.failed;
    text_free(&plot);
}

/* ---- from gnuplot's file to ours ---- */
/* The end of a stretch that begins with `open` at p, or NULL when another thing stands there. */
static const char *skip_element(const char *p, const char *open, const char *close) {
    if (strncmp(p, open, strlen(open)) != 0) return NULL;
    const char *end = strstr(p, close);
    return end ? end + strlen(close) : NULL;
}

static void tidy_svg(const char *from, int64_t number, Text *to) {
    static const char *const names[] = {"id='gp", "id=\"gnuplot", "href='#gp", "id='textbox", "id='greybox"};
    const char *p = strstr(from, "<svg");
    while (p && *p) {
        const char *next = skip_element(p, "<title>", "</title>");
        if (!next) next = skip_element(p, "<desc>", "</desc>");
        if (!next && !strncmp(p, " width=\"", 8) && to->length < 20) next = skip_element(p, " width", "\n");
        if (next) {
            p = next;
            continue;
        }
        size_t matched = 0;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (!strncmp(p, names[i], strlen(names[i]))) matched = strcspn(names[i], "#'\"") + 1;
        if (matched && p[matched - 1] != '#' && p[matched] == '#') matched++;
        if (matched) {
            text_put(to, p, matched);
            text_format(to, "f%lld_", (long long)number);
            p += matched;
        } else {
            text_put(to, p++, 1);
        }
    }
}

static bool copy_out(const Drawing *drawing, int from, const char *name, const char *ending, const Text *text,
                     Error *error) {
    char file[320];
    size_t n = 0;
    snprintf(file, sizeof file, "%s.%s", name, ending);
    char *path = io_join(drawing->folder, file);
    char *bytes = text ? text->bytes : io_read_all(drawing->paths[from], MAX_SVG_BYTES, &n, error);
    bool ok = path && bytes && io_write_all(path, bytes, text ? text->length : n, error);
    if (!path) error_out_of_memory(error, "a file name", 0);
    if (!text) mem_free(bytes);
    mem_free(path);
    return ok;
}

static bool take_figure(const Drawing *drawing, Figure *figure, int64_t number, Error *error) {
    size_t n = 0;
    char *svg = io_read_all(drawing->paths[SVG], MAX_SVG_BYTES, &n, error);
    if (!svg) return false;
    tidy_svg(svg, number, &figure->svg);
    mem_free(svg);
    if (figure->svg.failed) return error_out_of_memory(error, "a figure", n);
    return copy_out(drawing, SVG, figure->name, "svg", &figure->svg, error);
}

/* ---- one figure ---- */
static bool clear_working_files(const Drawing *drawing, Error *error) {
    for (int i = 0; i < N_FILES; i++)
        if (!io_remove(drawing->paths[i], error)) return false;
    return true;
}

static bool write_inputs(const Drawing *drawing, const ReportStep *step, const Figure *figure, Error *error) {
    Text data = {0}, script = {0};
    double largest = 0;
    int64_t n_ranks = 0;
    bool ok;
    if (figure->kind == FIGURE_HEATMAP) {
        ok = put_heatmap_data(step, figure->group, &data, &largest, error);
        put_heatmap_script(step, largest, &script);
    } else {
        ok = put_curve_data(step, figure->kind == FIGURE_CURVE ? "score" : "cumulative", &data, &n_ranks,
                            error);
        put_curve_script(step, figure->kind, n_ranks, &script);
    }
    if (ok && (data.failed || script.failed)) ok = error_out_of_memory(error, "a figure", data.length);
    ok = ok && io_write_all(drawing->paths[DATA], data.bytes, data.length, error) &&
         io_write_all(drawing->paths[SCRIPT], script.bytes, script.length, error);
    text_free(&data);
    text_free(&script);
    return ok;
}

static bool draw(Drawing *drawing, const ReportStep *step, Figures *figures, int64_t i, Error *error) {
    Figure *figure = &figures->figures[i];
    char problem[400] = "";
    if (!clear_working_files(drawing, error) || !write_inputs(drawing, step, figure, error)) return false;
    bool drawn =
        gnuplot_run(drawing->folder, working_files[SCRIPT], working_files[LOG], problem, sizeof problem);
    bool ok = true;
    if (io_exists(drawing->paths[SVG])) ok = take_figure(drawing, figure, i, error);
    figure->has_pdf = ok && drawn && io_exists(drawing->paths[PDF]);
    if (figure->has_pdf) ok = copy_out(drawing, PDF, figure->name, "pdf", NULL, error);
    if (!drawn && !figures->problem[0]) snprintf(figures->problem, sizeof figures->problem, "%s", problem);
    drawing->gnuplot_missing = !drawn && !figure->svg.length;
    return clear_working_files(drawing, error) && ok;
}

static void plan_step(Figures *figures, const ReportRun *run, int64_t s) {
    const ReportStep *step = &run->steps[s];
    for (int64_t i = 0; i < step->n_groups + 2; i++) {
        Figure *figure = &figures->figures[figures->n++];
        *figure = (Figure){.step = s, .group = i < step->n_groups ? i : -1};
        if (figure->group >= 0) {
            figure->kind = FIGURE_HEATMAP;
            snprintf(figure->name, sizeof figure->name, "%s.heatmap.%lld", step->name, (long long)i + 1);
        } else {
            figure->kind = i == step->n_groups ? FIGURE_CURVE : FIGURE_CUMULATIVE;
            snprintf(figure->name, sizeof figure->name, "%s.%s", step->name,
                     figure->kind == FIGURE_CURVE ? "curve" : "cumulative");
        }
    }
}

static bool drawing_open(Drawing *drawing, const char *folder, Error *error) {
    *drawing = (Drawing){.folder = io_join(folder, "figures")};
    bool ok = drawing->folder != NULL;
    for (int i = 0; ok && i < N_FILES; i++) {
        drawing->paths[i] = io_join(drawing->folder, working_files[i]);
        ok = drawing->paths[i] != NULL;
    }
    if (!ok) return error_out_of_memory(error, "a file name", 0);
    return io_make_folders(drawing->folder, error);
}

bool figures_draw(const char *folder, const ReportRun *run, Figures *figures, Error *error) {
    int64_t n = 0;
    *figures = (Figures){0};
    for (int64_t s = 0; s < run->n_steps; s++) n += run->steps[s].finished ? run->steps[s].n_groups + 2 : 0;
    figures->figures = mem_zeroed((size_t)n + 1, sizeof *figures->figures);
    if (!figures->figures) return error_out_of_memory(error, "figures", (size_t)n * sizeof *figures->figures);
    for (int64_t s = 0; s < run->n_steps; s++)
        if (run->steps[s].finished) plan_step(figures, run, s);
    Drawing drawing;
    bool ok = drawing_open(&drawing, folder, error);
    for (int64_t i = 0; ok && i < figures->n && !drawing.gnuplot_missing; i++)
        ok = draw(&drawing, &run->steps[figures->figures[i].step], figures, i, error);
    for (int i = 0; i < N_FILES; i++) mem_free(drawing.paths[i]);
    mem_free(drawing.folder);
    if (!ok) figures_free(figures);
    return ok;
}

void figures_free(Figures *figures) {
    for (int64_t i = 0; i < figures->n; i++) text_free(&figures->figures[i].svg);
    mem_free(figures->figures);
    *figures = (Figures){0};
}

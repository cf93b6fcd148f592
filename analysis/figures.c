/* Which figures a run has, and how they come about: data and script are written, gnuplot draws, and what it
 * writes is brought into one form: the ids of an SVG get the figure's number, so that many can stand in one
 * page, and its tooltips with file names go. */
#include "contrast.h"
#include "figures_parts.h"
#include "gnuplot.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include <math.h>
#include <string.h>

enum { MAX_SVG_BYTES = 64 << 20, MAX_EXPERTS_HALF = 32 }; /* wider heat maps get the whole page */

static const char *const working_files[] = {"drawing.csv", "drawing.gp", "drawing.log", "drawing.svg",
                                            "drawing.pdf"};
enum { DATA, SCRIPT, LOG, SVG, PDF, N_FILES };

typedef struct {
    char *folder; /* RUN/figures */
    char *paths[N_FILES];
    bool gnuplot_missing;
} Drawing;

static const FigureType types[N_FIGURE_KINDS] = {
    [FIGURE_HEATMAP] = {"heatmap", "Score of every cell. One scale for all groups", figure_heatmap},
    [FIGURE_CURVE] = {"curve", "Scores of all cells, largest first, with intervals", figure_curve},
    [FIGURE_CUMULATIVE] = {"cumulative",
                           "Share of the total score that the largest cells hold; marked: k80, k90, k95",
                           figure_cumulative},
    [FIGURE_CONCENTRATION] = {"concentration", "Cells that hold most of the total, beside the null models",
                              figure_concentration},
    [FIGURE_LAYERS] = {"layers",
                       "Dominant score, entropy and effective experts of every layer, with intervals",
                       figure_layers},
    [FIGURE_DIFFERENCE] = {"difference", "Score in the first group less score in the second, of every cell",
                           figure_difference},
    [FIGURE_SELECTIVITY] =
        {"selectivity",
         "Largest and mean difference of the first two groups by layer, with intervals; filled: p of "
         "the layer below one in twenty",
         figure_selectivity},
    [FIGURE_CLASSES] = {"classes", "Cells by class and layer, one panel a threshold", figure_classes},
    [FIGURE_OVERLAP] = {"overlap", "Jaccard index of top sets by their size", figure_overlap},
    [FIGURE_OUTCOMES] = {"outcomes",
                         "Change of the share of restricted replies with its interval; controls: mean, and "
                         "the least to the most",
                         figure_outcomes},
    [FIGURE_CONTRAST] = {"contrast",
                         "Divergence, overlap and weighted Jaccard of every layer, with intervals; where "
                         "there are controls, beside pairs of other topics",
                         figure_contrast},
    [FIGURE_SENSITIVITY] = {"sensitivity", "Sensitivity of every cell; framed: selected", figure_sensitivity},
    [FIGURE_TRAINING] = {"training",
                         "Loss by step, gradient and learning rate; dashed line: the state that was taken",
                         figure_training},
    [FIGURE_UPDATES] = {"updates",
                        "How far each cell was changed: norm of its update over the norm of its weights",
                        figure_updates},
    [FIGURE_BEFORE_AFTER] = {"before_after",
                             "What each training did, beside the model as it was, with intervals: share of "
                             "restricted replies, routing of the same texts, accuracy, likelihood",
                             figure_before_after},
    [FIGURE_SIGNALS] = {"signals.layers", "Dominant score and effective experts of every layer, by all steps",
                        figure_signals},
};

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

static bool write_inputs(const Drawing *drawing, const ReportView *view, const Figure *figure, Error *error) {
    Text data = {0}, script = {0};
    text_put_string(&script, figure_preamble);
    bool ok = types[figure->kind].write(view, figure, &data, &script, error);
    if (ok && (data.failed || script.failed)) ok = error_out_of_memory(error, "a figure", data.length);
    ok = ok && io_write_all(drawing->paths[DATA], data.bytes, data.length, error) &&
         io_write_all(drawing->paths[SCRIPT], script.bytes, script.length, error);
    text_free(&data);
    text_free(&script);
    return ok;
}

static bool draw(Drawing *drawing, const ReportView *view, Figures *figures, int64_t i, Error *error) {
    Figure *figure = &figures->figures[i];
    char problem[400] = "";
    if (!clear_working_files(drawing, error) || !write_inputs(drawing, view, figure, error)) return false;
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

/* ---- which there are ---- */
static bool add(Figures *figures, FigureKind kind, int64_t step, int64_t group, const ReportView *view) {
    Figure *all = mem_resize(figures->figures, (size_t)figures->n + 1, sizeof *all);
    if (!all) return false;
    figures->figures = all;
    Figure *figure = &all[figures->n++];
    *figure = (Figure){.kind = kind,
                       .step = step,
                       .group = group,
                       .caption = types[kind].caption,
                       .of_what = "group",
                       .of = ""};
    if (step < 0)
        snprintf(figure->name, sizeof figure->name, "%s", types[kind].name);
    else if (group < 0)
        snprintf(figure->name, sizeof figure->name, "%s.%s", view->steps[step].name, types[kind].name);
    else
        snprintf(figure->name, sizeof figure->name, "%s.%s.%lld", view->steps[step].name, types[kind].name,
                 (long long)group + 1);
    return true;
}

/* A wide map of many experts, and figures of several panels, are as wide as the page. */
static void finish(Figures *figures, const ReportView *view, const char *of) {
    Figure *figure = &figures->figures[figures->n - 1];
    const bool map = figure->kind == FIGURE_HEATMAP || figure->kind == FIGURE_DIFFERENCE ||
                     figure->kind == FIGURE_SENSITIVITY || figure->kind == FIGURE_UPDATES;
    figure->of = of;
    if (figure->kind == FIGURE_SENSITIVITY) figure->of_what = "by";
    figure->full = (map && view->steps[figure->step].n_experts > MAX_EXPERTS_HALF) ||
                   figure->kind == FIGURE_LAYERS || figure->kind == FIGURE_CLASSES ||
                   figure->kind == FIGURE_OUTCOMES || figure->kind == FIGURE_CONTRAST ||
                   figure->kind == FIGURE_TRAINING || figure->kind == FIGURE_BEFORE_AFTER;
}

static bool has_list(Json object, const char *key) { return json_count(view_find(object, key, NULL)) > 0; }

static bool plan_measures(Figures *figures, const ReportView *view, int64_t s) {
    static const FigureKind kinds[] = {FIGURE_CURVE,   FIGURE_CUMULATIVE, FIGURE_CONCENTRATION,
                                       FIGURE_LAYERS,  FIGURE_DIFFERENCE, FIGURE_SELECTIVITY,
                                       FIGURE_CLASSES, FIGURE_OVERLAP};
    static const char *const needs[] = {NULL,          NULL,          NULL,      NULL,
                                        "differences", "selectivity", "classes", "overlap"};
    const ViewStep *step = &view->steps[s];
    for (int64_t g = 0; g < step->n_groups; g++) {
        if (!add(figures, FIGURE_HEATMAP, s, g, view)) return false;
        finish(figures, view, step->groups[g]);
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (needs[i] && !has_list(step->statistics, needs[i])) continue;
        if (!add(figures, kinds[i], s, -1, view)) return false;
        finish(figures, view, "");
    }
    return true;
}

/* One for every group among the outcomes of selected conditions; `group` counts them. */
static bool plan_outcomes(Figures *figures, const ReportView *view, int64_t s) {
    const Json outcomes = json_member(&view->steps[s].entry, "outcomes");
    const int64_t before = figures->n;
    for (Json at = {0}; json_next(&outcomes, &at);) {
        const char *group = view_string(json_member(&at, "group"));
        bool known = strcmp(view_string(json_member(&at, "kind")), "selected") != 0;
        for (int64_t i = before; i < figures->n; i++) known = known || !strcmp(figures->figures[i].of, group);
        if (known) continue;
        if (!add(figures, FIGURE_OUTCOMES, s, figures->n - before, view)) return false;
        finish(figures, view, group);
    }
    return true;
}

static bool add_one(Figures *figures, FigureKind kind, int64_t step, int64_t group, const char *of,
                    const ReportView *view) {
    if (!add(figures, kind, step, group, view)) return false;
    finish(figures, view, of);
    return true;
}

static bool plan_contrast(Figures *figures, const ReportView *view, int64_t s) {
    const Json cells = json_member(&view->steps[s].entry, "cells");
    if (!add_one(figures, FIGURE_CONTRAST, s, -1, "", view)) return false;
    for (int64_t k = 0; k < N_RANKINGS; k++)
        if (has_list(cells, contrast_ranking_names[k]) &&
            !add_one(figures, FIGURE_SENSITIVITY, s, k, contrast_ranking_names[k], view))
            return false;
    return true;
}

static bool plan_step(Figures *figures, const ReportView *view, int64_t s) {
    const ViewStep *step = &view->steps[s];
    if (step->measures) return plan_measures(figures, view, s);
    if (!strcmp(step->kind, "contrast")) return plan_contrast(figures, view, s);
    if (!strcmp(step->kind, "tune"))
        return add_one(figures, FIGURE_TRAINING, s, -1, "", view) &&
               add_one(figures, FIGURE_UPDATES, s, -1, "", view);
    return plan_outcomes(figures, view, s);
}

static bool plan(Figures *figures, const ReportView *view) {
    int64_t n_measure = 0;
    bool ok = true;
    for (int64_t s = 0; ok && s < view->n_steps; s++) {
        const ViewStep *step = &view->steps[s];
        n_measure += step->measures;
        if (step->finished) ok = plan_step(figures, view, s);
    }
    if (ok && view->before_after.node) ok = add_one(figures, FIGURE_BEFORE_AFTER, -1, -1, "", view);
    if (!ok || n_measure < 2) return ok;
    ok = add(figures, FIGURE_SIGNALS, -1, -1, view);
    if (ok) finish(figures, view, "");
    return ok;
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

bool figures_draw(const char *folder, const ReportView *view, Figures *figures, Error *error) {
    *figures = (Figures){0};
    Drawing drawing = {0};
    bool ok = (plan(figures, view) || error_out_of_memory(error, "figures", sizeof(Figure))) &&
              drawing_open(&drawing, folder, error);
    for (int64_t i = 0; ok && i < figures->n && !drawing.gnuplot_missing; i++)
        ok = draw(&drawing, view, figures, i, error);
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

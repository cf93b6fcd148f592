/* The figures of a run, drawn by gnuplot as SVG, and as PDF beside: per step and group a heat map of layers x
 * experts, per step the scores in falling order and their cumulative share, a line per group. */
#ifndef GATETAPE_FIGURES_H
#define GATETAPE_FIGURES_H
#include "../engine/text.h"
#include "report_read.h"

typedef enum { FIGURE_HEATMAP, FIGURE_CURVE, FIGURE_CUMULATIVE } FigureKind;

typedef struct {
    FigureKind kind;
    int64_t step, group; /* group: -1 for figures of all groups */
    char name[300];      /* of the file in figures/, without ".svg" */
    bool has_pdf;
    Text svg; /* an <svg> element for a page: ids of its own, no titles, no size but its viewBox */
} Figure;

typedef struct {
    Figure *figures;
    int64_t n;
    char problem[400]; /* why some are missing; empty when all are there */
} Figures;

/* Draws all finished steps into FOLDER/figures/. That gnuplot cannot draw is not an error: see `problem`.
 * Caller frees with figures_free. */
bool figures_draw(const char *folder, const ReportRun *run, Figures *figures, Error *error);
void figures_free(Figures *figures);

#endif

/* The figures of a run, drawn by gnuplot as SVG, and as PDF beside. Data are those of RUN/statistics.json
 * alone (report_view.h). */
#ifndef GATETAPE_FIGURES_H
#define GATETAPE_FIGURES_H
#include "../engine/text.h"
#include "report_view.h"

typedef enum {
    FIGURE_HEATMAP, /* of a group: the score of every cell */
    FIGURE_CURVE,
    FIGURE_CUMULATIVE,
    FIGURE_CONCENTRATION,
    FIGURE_LAYERS,
    FIGURE_DIFFERENCE, /* of the first two groups: every cell */
    FIGURE_SELECTIVITY,
    FIGURE_CLASSES,
    FIGURE_OVERLAP,
    FIGURE_OUTCOMES,     /* of a group of a step that judges */
    FIGURE_CONTRAST,     /* of a contrast: layers, beside the controls */
    FIGURE_SENSITIVITY,  /* of a ranking of a contrast (`group` counts them): every cell */
    FIGURE_TRAINING,     /* losses, gradient and rate by step */
    FIGURE_UPDATES,      /* how far each cell was changed */
    FIGURE_BEFORE_AFTER, /* of the run: what each training did */
    FIGURE_SIGNALS,      /* of the run: layers by all its steps */
    N_FIGURE_KINDS
} FigureKind;

typedef struct {
    FigureKind kind;
    int64_t step, group; /* step: -1 for one of the run; group: -1 for figures of all groups */
    char name[300];      /* of the file in figures/, without ".svg" */
    const char *caption; /* our own words */
    const char *of_what; /* "group", "ranking by" */
    const char *of;      /* the one that it is of, or "" */
    bool full;           /* as wide as the page */
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
bool figures_draw(const char *folder, const ReportView *view, Figures *figures, Error *error);
void figures_free(Figures *figures);

#endif

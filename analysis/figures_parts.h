/* What the files of figures share. A figure is a CSV of data and a script; the script holds numbers and
 * fixed names only, names of groups, steps and conditions stand in the data, where gnuplot takes them as
 * they are. */
#ifndef GATETAPE_FIGURES_PARTS_H
#define GATETAPE_FIGURES_PARTS_H
#include "figures.h"

/* What a kind of figure is, and how its two files are written. */
typedef bool FigureFn(const ReportView *view, const Figure *figure, Text *data, Text *script, Error *error);
typedef struct {
    const char *name, *caption; /* "heatmap" */
    FigureFn *write;
} FigureType;

FigureFn figure_heatmap, figure_difference, figure_curve, figure_cumulative, figure_concentration,
    figure_layers, figure_signals, figure_selectivity, figure_classes, figure_overlap, figure_outcomes,
    figure_contrast, figure_sensitivity, figure_training, figure_updates, figure_before_after;

enum { FIGURE_MOST_ROWS = 30 }; /* conditions of one figure */

extern const char *const figure_colours[6]; /* of groups, and again */
extern const char figure_preamble[];        /* of every script */

/* Texts as one header or label of a data file, quoted: no control characters (terminal form), and what
 * gnuplot reads as an escape or as the end of the field is made harmless. */
void figure_put_name(Text *to, const char *first, const char *between, const char *second);
/* `,VALUE`; not finite: NaN. */
void figure_put_value(Text *to, double value);
/* The same of a member of an object; and of it, its PATH_low and its PATH_high. */
void figure_put_member(Text *to, Json object, const char *path);
void figure_put_interval(Text *to, Json object, const char *path);

/* The same plot into both files; the SVG first, since a gnuplot without Cairo still makes that one. */
void figure_put_plot(Text *script, int width, int height, const Text *plot);
/* 1, 2, 4, 8, ...: at most 16 labels on an axis of n. */
long long figure_label_step(int64_t n);
/* The style of a panel that has layers on its x axis. */
void figure_put_layer_frame(int64_t n_layers, Text *script);
/* A line with its interval as a band: columns AT (value), AT + 1, AT + 2 against column 1. */
void figure_put_band(Text *plot, bool first, int64_t at, int64_t series);
/* The same of block `block` of the data, which gives the colour. */
void figure_put_block_band(Text *plot, int64_t block, int64_t at, bool with_points);

#endif

/* What the files of the report share: writing markup, and tables of JSON objects. Every text that is not a
 * literal of ours goes through text_put_html; every number through html_put_double, from the view. */
#ifndef GATETAPE_REPORT_PARTS_H
#define GATETAPE_REPORT_PARTS_H
#include "figures.h"
#include "report_view.h"

extern const char *const report_style[];  /* the style sheet, in parts, ended by NULL */
extern const char *const report_script[]; /* sorts tables; the page works without it */

void html_put(Text *to, const char *text); /* escaped */
/* A JSON value in words: strings as they are, lists with commas, objects as key: value. */
void html_put_json(Text *to, Json at);
/* Whole numbers as they are, others to four digits. */
void html_put_double(Text *to, double value);

/* ---- tables ---- */
#define COUNT(columns) ((int64_t)(sizeof(columns) / sizeof *(columns)))

typedef struct {
    const char *key;  /* path in a row's object, as view_find takes it */
    const char *head; /* our own words */
    bool text;        /* to the left */
    bool interval;    /* KEY_low and KEY_high below, where they are */
} Column;

/* A table that is being written. Nulls are "not defined" with a letter; the reasons follow the table. */
typedef struct {
    Text *to;
    const char *fallback; /* the reason of a null that has none beside it; NULL: "no reason is given" */
    const char *reasons[24];
    int n_reasons;
    int64_t n_rows;
    bool no_intervals; /* one was wanted that is null though its value is not */
} Table;

/* caption: escaped; NULL: none. */
void table_begin(Table *table, Text *to, const char *caption, const Column *columns, int64_t n_columns);
void table_row(Table *table, Json row, const Column *columns, int64_t n_columns); /* a whole row */
/* A row of which the first column is a text and the others come from `row`. */
void table_named_row(Table *table, const char *name, Json row, const Column *columns, int64_t n_columns);
/* Parts of a row. */
void table_row_begin(Table *table);
void table_row_end(Table *table);
void table_text(Table *table, const char *text);
void table_cell(Table *table, Json row, const Column *column);
void table_end(Table *table);
/* A value outside of tables: the number, or "not defined" and why. */
void html_put_defined(Text *to, Json object, const char *path);
/* `<p>`KEY is not defined: REASON.`</p>` for a part that is null. */
void html_put_absent(Text *to, const char *what, const char *reason);

/* ---- sections ---- */
/* A part of step s, to which the contents point by `id`. */
void report_put_heading(Text *to, int64_t s, const char *id, const char *words);
/* Figures of a step (or -1: of the run) of these kinds, side by side. */
void report_put_figures(const ReportView *view, int64_t step, unsigned kinds, const Figures *figures,
                        Text *to);
void report_put_overview(const ReportView *view, Text *to);
/* A step's section: definition, switches, warnings, figures, tables. */
void report_put_step(const ReportView *view, int64_t s, const Figures *figures, Text *to);
void report_put_facts(const ViewStep *step, Text *to);
/* The parts of a step that measures which rest on its statistics. */
void report_put_statistics(const ReportView *view, int64_t s, const Figures *figures, Text *to);
void report_put_sets(const ReportView *view, int64_t s, const Figures *figures, Text *to);
/* A contrast, a training; and what all of them come to, nothing where there are none. */
void report_put_contrast(const ReportView *view, int64_t s, const Figures *figures, Text *to);
void report_put_tune(const ReportView *view, int64_t s, const Figures *figures, Text *to);
void report_put_utility(const ReportView *view, int64_t s, Text *to);
/* Before and after: what trainings did, beside each other; nothing where there is nothing of it. */
void report_put_adapted(const ReportView *view, const Figures *figures, Text *to);
void report_put_contrasts_overview(const ReportView *view, Text *to);
void report_put_trainings_overview(const ReportView *view, Text *to);
/* A step that judges. */
void report_put_outcomes(const ReportView *view, int64_t s, const Figures *figures, Text *to);
void report_put_samples(const ReportView *view, int64_t s, Text *to);

#endif

/* What the files of the report share: writing markup. Every text that is not a literal of ours goes through
 * text_put_html. */
#ifndef GATETAPE_REPORT_PARTS_H
#define GATETAPE_REPORT_PARTS_H
#include "figures.h"
#include "report_read.h"

extern const char report_style[]; /* the style sheet */

void html_put(Text *to, const char *text); /* escaped */
/* A JSON value in words: strings as they are, lists with commas, objects as key: value. */
void html_put_json(Text *to, Json at);
/* A number of a table to four digits; a field that is empty or no number as it is. */
void html_put_number(Text *to, CsvField field);
/* A number of a table; 0 where there is no such column. */
double html_number_at(const Csv *table, int64_t row, const char *column);

/* The row of the overview for each group of a step. */
bool report_put_overview_rows(const ReportStep *step, Text *to, Error *error);
/* A step's section: definition, switches, warnings, figures, tables. */
bool report_put_step(const ReportRun *run, int64_t s, const Figures *figures, Text *to, Error *error);
/* A section for every intervention step that is finished. */
bool report_put_interventions(const char *folder, const ReportRun *run, Text *to, Error *error);

#endif

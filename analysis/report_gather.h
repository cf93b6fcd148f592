/* RUN/statistics.json: every number that the report shows, of all steps.
 *
 * {schema_version, page: {limits of the page}, run: {version, device, compute, seed, inputs}, steps: [{name,
 * kind, finished, measures, facts: step.json, and of one that measures: statistics: its statistics.json,
 * prompts: [a group], largest: [a group], of one that judges: judge: judge.json, outcomes, side_effects,
 * agreement, conditions: rows of the tables, samples, of a contrast: contrast: its contrast.json, cells: by
 * ranking the rows of ranking.csv, of a training: training, updates: rows of its tables, cells: what they
 * come to for each cell, of a utility step: utility: rows of its table}], before_after: see
 * report_gather_adapted.c} Steps' own files stand in it as they are. Null has its reason beside it, under
 * the key + "_reason". */
#ifndef GATETAPE_REPORT_GATHER_H
#define GATETAPE_REPORT_GATHER_H
#include "../engine/text.h"
#include "report_read.h"

/* Limits of the page, written into `page` and taken from there. */
enum {
    REPORT_CELLS = 15,       /* largest cells, largest differences */
    REPORT_LISTED = 40,      /* cells of a set that are named */
    REPORT_SAMPLES = 6,      /* prompts of a group whose replies are shown */
    REPORT_CONDITIONS = 8,   /* selected conditions whose replies are shown */
    REPORT_BYTES = 600,      /* of a reply */
    REPORT_TRANSITIONS = 24, /* tables */
    REPORT_ROWS = 400        /* of any table */
};

bool report_gather(const char *folder, const ReportRun *run, Text *to, Error *error);

/* ---- for report_gather_*.c and report_samples.c ---- */
void gather_value(const char *key, Json at, Text *to);
/* Fields of a row as members of the open object: numbers as numbers, empty ones null with their reason. */
void gather_field(const Csv *csv, int64_t row, int64_t column, Text *to);
void gather_fields(const Csv *csv, int64_t row, Text *to);
/* A number of the row under another key, null where there is none. */
void gather_as(const Csv *csv, int64_t row, const char *column, const char *key, Text *to);
/* A file of the step as it stands. */
void gather_text(const char *key, const JsonText *text, Text *to);
/* The rows of an open table as objects, under `key`; of a file of the folder: null where it is not there. */
void gather_rows(const char *key, const Csv *csv, Text *to);
bool gather_table(const char *folder, const char *name, const char *key, Text *to, Error *error);
/* Members of a step that judges, of a contrast, of a training. */
bool gather_outcomes(const char *folder, const ReportStep *step, Text *to, Error *error);
bool gather_contrast(const char *folder, const ReportStep *step, Text *to, Error *error);
bool gather_tune(const char *folder, const ReportStep *step, Text *to, Error *error);
bool gather_utility(const char *folder, const ReportStep *step, Text *to, Error *error);
/* The member `before_after` of the run; nothing where no training was tested. */
bool gather_adapted(const char *folder, const ReportRun *run, Text *to, Error *error);

/* Which replies are shown, and their texts. */
typedef struct {
    const char *folder;    /* RUN/STEP, with labels.csv */
    const char *responses; /* RUN/STEP/responses of the step that generated */
    const Csv *outcomes;
} SampleRequest;
/* `samples`: null with a reason where there are no labels. */
bool samples_put(const SampleRequest *request, Text *to, Error *error);

#endif

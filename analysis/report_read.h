/* What the report takes from a run folder before it is gathered into RUN/statistics.json: the steps of the
 * job, their facts, statistics and tables.
 *
 * A folder may come from somebody else: names are checked to be plain file names, groups, layers, experts and
 * ranks to be those that step.json states, before anything is indexed by them. */
#ifndef GATETAPE_REPORT_READ_H
#define GATETAPE_REPORT_READ_H
#include "../engine/json.h"
#include "csv.h"

typedef struct {
    Csv table;
    int64_t *group; /* [rows]: index into the step's groups */
} StepTable;

/* A JSON file as it stands, checked to be one. */
typedef struct {
    char *bytes; /* NULL: there is none */
    size_t length;
} JsonText;

/* What kind of section a step gets. */
typedef enum {
    SECTION_MEASURES, /* activation, gradient: has statistics.json, scores.csv, prompts.csv */
    SECTION_OUTCOMES, /* has outcomes.csv */
    SECTION_CONTRAST, /* has contrast.json, ranking.csv */
    SECTION_TUNE,     /* has training.csv, updates.csv */
    SECTION_UTILITY   /* has utility.csv */
} ReportSection;

typedef struct {
    char *name;       /* also its folder */
    const char *kind; /* of the job */
    ReportSection section;
    bool finished; /* has step.json, and outcomes.csv where it judges; else the rest is empty */
    JsonDocument *facts;
    JsonText facts_text, statistics_text; /* statistics: of a contrast its contrast.json */
    const char **groups;                  /* of facts, like n_...; of steps that measure only */
    int64_t n_groups, n_layers, n_experts;
    StepTable scores, prompts;
} ReportStep;

typedef struct {
    JsonDocument *job, *manifest; /* manifest: NULL when the folder has none */
    ReportStep *steps;            /* those that have a section */
    int64_t n_steps;
} ReportRun;

bool report_read(const char *folder, ReportRun *run, Error *error);
void report_free(ReportRun *run);

#endif

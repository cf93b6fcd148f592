/* What the report and the figures read of a run folder: the steps that are finished, their facts and their
 * tables.
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

typedef struct {
    char *name;    /* also its folder */
    bool finished; /* has a step.json; the rest is empty when not */
    JsonDocument *facts;
    const char *kind, *model, *score; /* of facts */
    const char **groups;
    int64_t n_groups, n_layers, n_experts, n_experts_per_token;
    bool *layer_has_experts; /* [n_layers] */
    StepTable scores, curve, coverage, layers, prompts;
} ReportStep;

typedef struct {
    JsonDocument *job, *manifest; /* manifest: NULL when the folder has none */
    ReportStep *steps;
    int64_t n_steps;
} ReportRun;

/* Whether a step's name can be a folder inside of the run's. */
bool report_is_plain_name(const char *name);
bool report_read(const char *folder, ReportRun *run, Error *error);
void report_free(ReportRun *run);

#endif

/* adapted: one model as it is, and with the updates of each tune step that a step compares. The weights are
 * there once; an update costs its own values alone. */
#ifndef GATETAPE_ADAPTED_H
#define GATETAPE_ADAPTED_H
#include "tune.h"

typedef struct {
    Model *list; /* [n]: the run's model, then one for each name of the option adapters */
    StepAdapter *adapters;
    int64_t n;
} AdaptedModels;

/* Reads RUN/TUNE/adapter-FORM of each; the run's model must stay. Caller closes, also after an error. */
bool adapted_models_open(const StepRun *run, AdaptedModels *models, Error *error);
void adapted_models_close(AdaptedModels *models);

/* The tune step that number i of step->adapters names; NULL: no such step. */
const StepOptions *adapted_source(const Job *job, const StepOptions *step, int64_t i);
/* The cells that a tune step's adapter updates, ascending, to cells [L*E]. */
bool adapted_cells(const StepOptions *tuned, const char *run_folder, const ModelConfig *config,
                   int64_t *cells, int64_t *n, Error *error);
/* What is wrong with the adapters of steps[s]. */
void adapted_check(const Job *job, int64_t s, Problems *problems);

#endif

/* tune: one step of kind tune. Trains low-rank updates of chosen experts, everything else frozen, by the
 * negative log-likelihood of targets, and writes them as an adapter that later steps of the job can have.
 *
 * RUN/STEP gets training.csv (one row an optimizer step), updates.csv (what is trained, and how long its
 * update became), adapter-FORM/ and last step.json. Every checkpoint_every steps the whole state goes to
 * checkpoint.safetensors; a run that was killed goes on from there, with the same bits. The order of
 * examples and the first values are Philox numbers of (seed, purpose, prompt or cell, epoch or element).
 *
 * Ranks share the examples of each step (lora_ranks.h) and the held-out prompts. Each has the whole state and
 * changes it alike, so any number of ranks goes on from a checkpoint; rank 0 alone writes. tune_run is
 * collective. */
#ifndef GATETAPE_TUNE_H
#define GATETAPE_TUNE_H
#include "../engine/lora.h"
#include "step.h"

bool tune_run(const StepRun *run, Error *error);

/* ---- before the run ---- */
/* What is wrong with the options of steps[s], of kind tune. */
void tune_check_options(const Job *job, int64_t s, Problems *problems);
/* The adapter options of steps[s], of any kind. */
void tune_check_adapter(const Job *job, int64_t s, Problems *problems);
/* The contrast step whose selection is trained; NULL: cells are chosen otherwise. */
const StepOptions *tune_contrast_source(const Job *job, const StepOptions *step);
/* Cells, rank and examples against model and prompts. Errors: a cell that the model has not, a rank above
 * the dimension of a matrix, a prompt without target or one that does not fit the context. */
bool tune_check(const Job *job, const StepOptions *step, Error *error);

/* ---- the adapter of another step ---- */
typedef struct {
    Adapter adapter;
    LoraWeights weights;
} StepAdapter;

/* The tune step that a step has its adapter from; NULL: none. */
const StepOptions *step_adapter_source(const Job *job, const StepOptions *step);
/* Gives the model what the options adapter or adapter_path say; nothing where they are empty. The caller
 * takes it away with step_adapter_close, also after an error. */
bool step_adapter_open(const Job *job, const StepOptions *step, const char *run_folder, Model *model,
                       StepAdapter *adapter, Error *error);
/* The same of a tune step's own adapter, in the run folder. */
bool step_adapter_open_tuned(const StepOptions *tuned, const char *run_folder, Model *model,
                             StepAdapter *adapter, Error *error);
void step_adapter_close(Model *model, StepAdapter *adapter);

#endif

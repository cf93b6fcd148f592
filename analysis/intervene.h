/* intervene: one step of kind intervention. The same prompts are answered under the baseline and under every
 * condition, with the same seeds, decoded together in batches.
 *
 * RUN/STEP gets conditions.csv (one row a condition: what it is, how many cells, their traffic, or why it is
 * not defined), cells.csv (the cells of each), excluded.csv (super experts), prompts.csv,
 * responses/CONDITION.jsonl (with reply_perplexity also how likely the unedited model finds each reply), side
 * effects on prompts and targets, the tables of judge_folder.h by the standard rules, and last step.json.
 * Ranks share the replies (share.h); finished blocks of 64 prompts are not run again. */
#ifndef GATETAPE_INTERVENE_H
#define GATETAPE_INTERVENE_H
#include "conditions.h"
#include "step.h"

bool intervene_run(const StepRun *run, Error *error);

/* ---- for intervene_*.c ---- */
typedef struct {
    const StepRun *run;
    const Conditions *conditions;
    const PromptGroup *groups; /* of the step, in its order */
    const Measures *replies; /* of each group: reply p * n_run + i is prompt p's under running condition i */
    const int64_t *running;  /* [n_run]: the conditions that are defined, ascending */
    int64_t n_run;
    const char *warnings;
} Intervention;

bool intervene_write(const Intervention *intervention, Error *error);
/* side_effects.csv, and side_effects_targets.csv where a prompt has a target. */
bool intervene_write_effects(const Intervention *intervention, Error *error);

#endif

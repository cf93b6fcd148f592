/* intervene: one step of kind intervention. The same prompts are answered under the baseline and under every
 * condition, with the same seeds, decoded together in batches.
 *
 * RUN/STEP gets conditions.csv (one row a condition: what it is, how many cells, their traffic, or why it is
 * not defined), cells.csv (the cells of each), excluded.csv (super experts), prompts.csv,
 * responses/CONDITION.jsonl (with reply_perplexity also how likely the unedited model finds each reply), side
 * effects on prompts and targets, the tables of judge_folder.h by the standard rules, and last step.json. Finished blocks of 64 prompts are not
 * run again. */
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

/* A prompt with a reply or a target behind it. */
typedef struct {
    const EncodedPrompt *prompt;
    const int32_t *behind;
    int64_t n_behind;
    int32_t prompt_set, behind_set; /* of edits, of their tokens; < 0: none */
} ScoredText;

/* Mean negative log-likelihood in nats of n texts in one packed pass, under the edits (NULL: none). prompt
 * [n]: of the prompt's tokens behind its first; behind [n]: of the tokens behind the prompt, given all before
 * each; 0 where there are none. Either may be NULL. */
bool intervene_score(const Model *model, const EditTable *edits, const ScoredText *texts, int64_t n,
                     double *prompt, double *behind, Error *error);

#endif

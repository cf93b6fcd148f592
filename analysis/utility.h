/* utility: one step of kind utility. What a model can do beside the behaviour that is studied, as it is and
 * with each adapter of the option adapters: how often the right one of a question's choices is its likeliest
 * reply, or how likely it finds texts.
 *
 * RUN/STEP gets utility.csv (one row a condition and group), questions.csv and choices.csv, or texts.csv (one
 * row a prompt), and last step.json. All conditions are measured on the same prompts, which are the units of
 * intervals and pairs. Ranks share the texts (share.h); finished blocks of 64 prompts are not measured again.
 */
#ifndef GATETAPE_UTILITY_H
#define GATETAPE_UTILITY_H
#include "adapted.h"
#include "choices.h"
#include "conditions.h"

bool utility_run(const StepRun *run, Error *error);
/* Its prompts and choices against the model, before the run. */
bool utility_check(const Job *job, const StepOptions *step, Error *error);

/* ---- for utility_*.c and the plan ---- */
/* A prompt group as texts whose likelihood is asked for; unit u is texts [begin[u], begin[u + 1]). */
typedef struct {
    ChoiceSet choices;        /* choices */
    PromptGroup texts;        /* perplexity */
    const PromptGroup *group; /* the one of these that is used */
    int64_t *begin, n;        /* [n + 1] */
    double *sums; /* [group->n, n_models]: log-likelihood in nats of what is asked for of each text */
} UtilityGroup;

/* Caller frees with utility_free_groups, also after an error. inputs NULL: hashes are not compared. */
bool utility_read_groups(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                         const Inputs *inputs, UtilityGroup **groups, Text *notes, Error *error);
void utility_free_groups(UtilityGroup *groups, int64_t n);
/* Tokens of a text whose likelihood is asked for. */
int64_t utility_count(const StepOptions *step, const EncodedPrompt *text);

typedef struct {
    const StepRun *run;
    const UtilityGroup *groups; /* of the step, in its order */
    int64_t n_models;
    const char *warnings;
} Utility;

bool utility_write(const Utility *utility, Error *error);

/* Wilson's interval of a share, k of n. */
void wilson_interval(int64_t k, int64_t n, double confidence, double *low, double *high);

#endif

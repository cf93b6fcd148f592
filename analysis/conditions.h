/* conditions: what an intervention step compares. The baseline, the selected sets (of each ranking step by
 * each rule, listed, imported), and for each of them the controls: random sets as large, layer matched,
 * traffic matched.
 *
 * A tune step of the option adapters is a condition too: the model with its updates, no cell edited. It
 * counts as selected, or as a control of the first selected one, as the step's own control says.
 *
 * A random set of a rule serves all sources. A set that does not exist (a budget below the first cell, no
 * set with such traffic) is a condition with a reason and no cells: it is listed in the tables, not run. */
#ifndef GATETAPE_CONDITIONS_H
#define GATETAPE_CONDITIONS_H
#include "../engine/edits.h"
#include "job.h"
#include "selection.h"

typedef enum {
    CONDITION_BASELINE,
    CONDITION_SELECTED,
    CONDITION_RANDOM,
    CONDITION_LAYER_MATCHED,
    CONDITION_TRAFFIC_MATCHED,
    N_CONDITION_KINDS
} ConditionKind;
extern const char *const condition_kind_names[N_CONDITION_KINDS];

enum { CONDITION_NAME = 200 };

typedef struct {
    char name[CONDITION_NAME]; /* also a file name: "baseline", "gradient.top5", "random.top5.0" */
    ConditionKind kind;
    const char *source, *rule; /* step or "", and "top", "traffic", "cells", "selection" or
                                  "adapter" */
    double amount;             /* of the rule: cells, or percent */
    int64_t draw;              /* of a control; -1 */
    int64_t of;                /* the selected condition that a control goes with (random: the first); -1 */
    int64_t *cells, n_cells;
    int64_t adapter;  /* which of the step's adapters the model has, from 1; 0: none */
    double share;     /* of all choices of traffic_group; < 0: not known */
    char reason[200]; /* why it is not defined; "": it is */
    int64_t set;      /* of the edit table; -1: none */
} Condition;

typedef struct {
    Condition *list;
    int64_t n, capacity;
    bool *super;   /* [L*E] excluded cells */
    double *share; /* [L*E]; NULL: no counts */
    double *largest_output;
    EditTable table;
} Conditions;

/* Reads RUN/STEP/scores.csv of the steps named. Errors: a table that does not fit the model, a set that
 * leaves too few experts, a super expert in a list. Caller frees; safe after an error too. */
bool conditions_make(const Job *job, const StepOptions *step, const ModelConfig *config,
                     const char *run_folder, Conditions *conditions, Error *error);
void conditions_free(Conditions *conditions);

/* What the adapter of a tune step counts as. */
ConditionKind conditions_kind_of_tuned(const StepOptions *tuned);

/* How many there will be, from the options alone. */
int64_t conditions_count(const StepOptions *step);

#endif

/* Private to intervene.c and intervene_turn.c: the work that ranks share, and one turn of it. */
#ifndef GATETAPE_INTERVENE_PARTS_H
#define GATETAPE_INTERVENE_PARTS_H
#include "adapted.h"
#include "conditions.h"

typedef struct {
    const StepRun *run;
    const Conditions *conditions;
    AdaptedModels models;    /* as it is, and with the adapters */
    int64_t *running, n_run; /* the conditions that are defined */
    int64_t n_forks;    /* edits of generated tokens alone: conditions that go on from one pass; else 1 */
    int64_t n_together; /* replies of a prompt that one batch gives: forks, with adapters all; else 1 */
    bool has_targets;   /* any prompt of the step */
} Work;

/* Replies [at, at + n) of a group, reply number p * n_run + i; at and n multiples of n_together. What is
 * measured of them are rows [row, row + n) of `to`. */
typedef struct {
    const PromptGroup *group;
    int64_t at, n;
    Measures *to;
    int64_t row;
} Span;

/* Replies by every model, and what is asked to be known of them; the spans of `to` in rising order. */
bool intervene_span(const Work *w, const Span *span, Error *error);
/* This rank's part in such a turn of the others, on a spread model. Fails when all are interrupted. */
bool intervene_serve(const Work *w, Error *error);

#endif

/* Private to run_plan*.c: one step while it is planned. */
#ifndef GATETAPE_RUN_PLAN_PARTS_H
#define GATETAPE_RUN_PLAN_PARTS_H
#include "run_plan.h"
#include "batches.h"

enum { RATE_ROWS = 512 }; /* of the product that is measured */

typedef struct {
    double flops, bytes; /* per second */
} Rates;

typedef struct {
    const Job *job;
    const StepOptions *step;
    const ModelConfig *config;
    const PromptEncoder *encoder;
    const Device *device;
    DType compute, weights;
    int64_t rate_n, rate_k; /* of the product that the rate was measured with */
    Rates rates;
    const char *out;
    FILE *to;
} Planner;

typedef struct {
    int64_t n_batches, n_tokens, n_longest;
    size_t weights_bytes, activation_bytes; /* the largest batch */
    bool recomputed;
    double flops, bytes, reply_flops, effect_flops;
} PlannedWork;

/* Text of others, for a terminal. */
void plan_print_text(FILE *to, const char *bytes, size_t n);
/* Lines of memory, work and time. */
void plan_print_cost(const Planner *p, const PlannedWork *work);

/* A step of kind judge; p->encoder NULL: no guard. */
bool plan_judge(const Planner *p, PlannedWork *work, Error *error);

/* A step of kind tune: what was counted of one pass over its examples, for all of the training. */
void plan_training(const Planner *p, const PromptGroup *groups, PlannedWork *work);
bool plan_print_training(const Planner *p, const PromptGroup *groups, Error *error);
/* Adds the frozen model's forward pass over such a batch, where the objective asks for one. */
bool plan_frozen(const Planner *p, const Batch *batch, PlannedWork *work, Error *error);

#endif

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
    const Device *device;     /* NULL: plans for a device by its file alone */
    const RankDevice *limits; /* of that; NULL: none was named */
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
    int64_t *lengths; /* [n_lengths] tokens of the prompts of all passes, replies included */
    int64_t n_lengths, lengths_capacity;
    double times;   /* how often these passes are made; 0: once */
    double seconds; /* predicted, set where it is printed */
} PlannedWork;

bool planned_work_add(PlannedWork *work, int64_t length, Error *error);
void planned_work_free(PlannedWork *work);

/* Best of twelve: a product [RATE_ROWS,k] x [n,k]^T, and y += x over many floats. */
Rates plan_measure_rates(const Device *device, int64_t n, int64_t k, Error *error);
/* A device's file: h100 and the like are files of configs/devices. */
bool plan_read_limits(const char *name, RankDevice *limits, Error *error);
/* Text of others, for a terminal. */
void plan_print_text(FILE *to, const char *bytes, size_t n);
/* The line of files that a step writes, for all kinds but tune. */
void plan_print_files(const Planner *p);
/* Lines of memory, work and time: of one device of this machine, or of the ranks that the job names. Sets
 * work->seconds. ERROR_UNAVAILABLE when ranks lack memory. */
bool plan_print_cost(const Planner *p, PlannedWork *work, Error *error);

/* Whether a step computes gradients. */
bool plan_walks_back(const StepOptions *step);
/* Whether there is more to say than what one device of this machine takes. */
bool plan_has_ranks(const Planner *p);
/* Lines of the step on ranks: residency, memory by part, bytes, time; sets work->seconds.
 * ERROR_UNAVAILABLE when it does not fit, with the least number of ranks on which it would. */
bool plan_print_ranks(const Planner *p, PlannedWork *work, Error *error);
/* Instead of plan_step where the model's folder has no tokenizer, so that no prompt can be read as tokens. */
bool plan_unread(const Planner *p, PlannedWork *work, Error *error);
/* Values kept for each trained one: itself, its gradient, two moments, and sums of examples. */
int64_t plan_lora_copies(const StepOptions *step);
/* Cells that a tune step trains, those that are ranked in the run counted as well. 0 for other steps. */
bool plan_count_cells(const Planner *p, int64_t *n, Error *error);

/* A step of kind judge; p->encoder NULL: no guard. */
bool plan_judge(const Planner *p, PlannedWork *work, Error *error);

/* A step of kind tune: what was counted of one pass over its examples, for all of the training. */
void plan_training(const Planner *p, const PromptGroup *groups, PlannedWork *work);
bool plan_print_training(const Planner *p, const PromptGroup *groups, Error *error);
/* Adds the frozen model's forward pass over such a batch, where the objective asks for one. */
bool plan_frozen(const Planner *p, const Batch *batch, PlannedWork *work, Error *error);

#endif

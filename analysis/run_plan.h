/* run_plan: what a job would do, need and take, before it does anything.
 *
 * The passes that the run would make are run on the cost device, batch by batch: memory and work are
 * counted, not estimated. Time is that work at a rate that is measured on the spot and printed beside it.
 * Nothing is written. */
#ifndef GATETAPE_RUN_PLAN_H
#define GATETAPE_RUN_PLAN_H
#include "../engine/rank_plan.h"
#include "../kernels/device.h"
#include "job.h"
#include <stdio.h>

/* What the plan is for. */
typedef struct {
    const Device *device; /* of this machine; NULL with limits */
    const RankDevice
        *limits; /* the device of a file, which the machine need not have; NULL: this machine's */
    DType compute;
} PlanDevice;

/* Whether the model's folder has a tokenizer. Without one prompts are counted, not read. */
bool plan_can_read(const ModelOptions *model);

/* Prints the plan of the job for the run folder `out`; checks models, tokenizers and prompts on the way. Of
 * a model config.json is enough: without a tokenizer prompts are counted, not read. ERROR_UNAVAILABLE when a
 * step does not fit on the ranks that the job names, with the least number that would. */
bool run_plan(const Job *job, const char *out, const PlanDevice *on, FILE *to, Error *error);
/* The same for the device that the job names: of this machine, or of its device_file. */
bool run_plan_job(const Job *job, const char *out, FILE *to, Error *error);

#endif

/* run_plan: what a job would do, need and take, before it does anything.
 *
 * The passes that the run would make are run on the cost device, batch by batch: memory and work are
 * counted, not estimated. Time is that work at a rate that is measured on the spot and printed beside it.
 * Nothing is written. */
#ifndef GATETAPE_RUN_PLAN_H
#define GATETAPE_RUN_PLAN_H
#include "../kernels/device.h"
#include "job.h"
#include <stdio.h>

/* Prints the plan of the job for the run folder `out`; checks models, tokenizers and prompts on the way. */
bool run_plan(const Job *job, const char *out, const Device *device, DType compute, FILE *to, Error *error);

#endif

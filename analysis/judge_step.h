/* judge_step: one step of kind judge. The replies of an intervention step get labels in a folder of their
 * own, RUN/NAME: the tables of judge_folder.h, and last step.json. The intervention's folder stays as it is.
 *
 * With a model it is asked as a guard (guard.h), by all ranks together (share.h); finished blocks of 64
 * replies of a condition are not asked again. */
#ifndef GATETAPE_JUDGE_STEP_H
#define GATETAPE_JUDGE_STEP_H
#include "step.h"

/* run->model and run->encoder are those of the guard, where the step has one. */
bool judge_step_run(const StepRun *run, Error *error);

/* The files that the step reads, and the guard's answers as tokens, before anything is computed. */
bool judge_step_check(const Job *job, const StepOptions *step, Error *error);

/* The step whose replies a judge step reads. */
const StepOptions *judge_step_source(const Job *job, const StepOptions *step);

#endif

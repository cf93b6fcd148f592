/* run: a job file in, a run folder out.
 *
 * Steps run in order, one model resident at a time. What is finished stays: a step that has its step.json
 * is not run again, nor is a block of 64 prompts that has its file. Results are reduced in prompt order
 * from those blocks, so that a run that was killed and resumed has the same bytes as an undisturbed one. A
 * folder that holds another job is refused.
 *
 * Several ranks share the prompts of activation and gradient steps; each has the whole model, rank 0 alone
 * writes. The other kinds of steps are run by rank 0 while the others wait. The folder's bytes are those of
 * one rank, and another number of ranks can go on with it. */
#ifndef GATETAPE_RUN_H
#define GATETAPE_RUN_H
#include "../engine/comm.h"
#include "../engine/error.h"
#include <stdint.h>
#include <stdio.h>

typedef struct {
    const char *job;         /* path of the job file */
    const char *out;         /* run folder; NULL: runs/NAME for a job file NAME.json, in the current folder
                                */
    const char *const *sets; /* "a.b=value", applied in order over the file; see job.h */
    int64_t n_sets;
    bool dry_run;        /* print the plan to `to` and touch nothing */
    const char *version; /* of the program, for the manifest */
    FILE *to;            /* where a plan goes (stdout) */
    Comm *comm;          /* the ranks that run it together; NULL: this process alone */
} RunRequest;

/* Runs or resumes a job, or prints its plan; collective, and the Error is the same on every rank. Error
 * codes are the program's exit codes: ERROR_BAD_INPUT for the job and its files, ERROR_UNAVAILABLE for a
 * device or memory, ERROR_FAILED while running, ERROR_INTERRUPTED after SIGINT, SIGTERM or SIGUSR1 (a
 * second run resumes; a second signal ends the program at once). */
bool run_job(const RunRequest *request, Error *error);

#endif

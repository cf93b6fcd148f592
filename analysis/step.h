/* step: one measuring step, block by block.
 *
 * Groups are read and encoded, then measured in blocks of 64 prompts. A finished block is a file in
 * STEP/blocks until the step's tables are written; a later run takes it from there. step.json marks the
 * step as finished. */
#ifndef GATETAPE_STEP_H
#define GATETAPE_STEP_H
#include "../engine/generate.h"
#include "inputs.h"
#include "progress.h"
#include "prompts.h"
#include "results.h"
#include "trace.h"
#include <signal.h>

typedef struct {
    const Job *job;
    const StepOptions *step;
    const Model *model;
    const PromptEncoder *encoder;
    const Inputs *inputs;
    const char *folder; /* RUN/STEP */
    Progress *progress;
    const volatile sig_atomic_t *stop; /* set: end after the batch that runs */
    Comm *comm;                        /* the ranks that run the step together; one of them alone: rank 0 */
} StepRun;

bool step_run(const StepRun *run, Error *error);

/* The step's groups as tokens: [step->groups.n]; *notes gets a line for each thing to warn of. inputs
 * NULL: hashes are not compared. Caller frees with step_free_groups, also after an error. */
bool step_read_groups(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                      const Inputs *inputs, PromptGroup **groups, Text *notes, Error *error);
void step_free_groups(PromptGroup *groups, int64_t n);

/* A prompt file, refused where it is not the one that inputs (may be NULL) hashed. Caller frees with
 * prompts_free, also after an error. */
bool step_read_file(const PromptOptions *options, const Inputs *inputs, PromptFile *file, Error *error);

BatchLimits step_limits(const Job *job);

/* Stands for a prompt in random numbers: its group and entry, whatever is around it. */
int64_t step_prompt_key(const StepRun *run, const PromptGroup *group, int64_t i);
/* False and an Error when a signal has asked for the end; on a spread model of any rank, and collective. */
bool step_goes_on(const StepRun *run, Error *error);
/* One line of progress for each line of the notes. */
void step_show_notes(const StepRun *run, const Text *notes);
/* Removes RUN/STEP/blocks: what was in them is in the tables now. */
bool step_remove_blocks(const StepRun *run, Error *error);

/* How tokens are drawn and when that ends, by the step's options; the caller adds keys and edits. */
GenerateOptions step_generate_options(const StepRun *run);

/* ---- blocks ---- */
int64_t step_block_length(const PromptGroup *group,
                          int64_t first); /* prompts of the block that begins there */
/* A block that an earlier run finished, of n rows like those of `whole`. A file that cannot be read is
 * measured again: *there stays false. */
bool step_load_block(const StepRun *run, const char *path, const Measures *whole, int64_t n, Measures *block,
                     bool *there, Error *error);
/* What is measured of some prompts of a block. */
typedef struct {
    Measures measures;
    Trace trace;      /* logits NULL: not asked for */
    float *gate_rows; /* [P,L,E,D]; NULL: not asked for */
} BlockResult;
/* Collective: rank 0 gets the whole block, rows[r] prompts from rank r in order; *part is taken. */
void step_gather_block(const StepRun *run, BlockResult *part, const int64_t *rows, BlockResult *whole);
/* Writes a whole block's trace and gate rows where asked for, then its measures: the block is finished. */
bool step_save_block(const StepRun *run, const PromptGroup *group, int64_t first, BlockResult *result,
                     Error *error);
void step_free_block(BlockResult *result);
/* Measures all prompts of the step's groups, block by block, by all ranks together; measures [n_groups] are
 * filled on rank 0 alone. Collective. */
bool step_measure_groups(const StepRun *run, const PromptGroup *groups, Measures *measures, Error *error);
/* RUN/STEP/KIND/NAME.NNNN.safetensors of the block that begins at number `first`, the folder made; caller
 * frees. NULL and an Error. */
char *step_block_path(const StepRun *run, const char *kind, const char *name, int64_t first, Error *error);

#endif

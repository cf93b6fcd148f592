/* job: a job file as values, checked before anything is computed.
 *
 * {"schema_version": 1, "models": {NAME: {...}}, "prompts": {NAME: {...}}, "steps": [{...}, ...]}
 *
 * What a member may be says option_table.c. Unknown keys, values out of range and names that refer to
 * nothing are all looked for, and reported together, each with its place. */
#ifndef GATETAPE_JOB_H
#define GATETAPE_JOB_H
#include "options.h"

typedef struct {
    const char *name; /* the file's name without folder and .json */
    const char *file; /* as it was given */
    JobOptions options;
    ModelOptions *models;
    PromptOptions *prompts;
    StepOptions *steps; /* model and groups filled in where they were left out */
    int64_t n_models, n_prompts, n_steps;
    TextPool pool;
} Job;

/* A list of "path=value" as --set takes them: batch_tokens=512, models.NAME.path=/x, prompts.NAME.limit=10,
 * steps.NAME.loss=target, steps[0].groups=a,b. Texts need no quotes. They are applied in order, after the
 * file; relative paths in them count from the current folder. */
typedef struct {
    const char *const *texts;
    int64_t n;
} JobSettings;

/* Caller frees with job_free; safe after an error too. */
bool job_read(const char *path, JobSettings settings, Job *job, Error *error);
/* From a text; `file` stands for it in messages, relative paths count from `folder`. */
bool job_parse(const char *text, size_t length, const char *file, const char *folder, JobSettings settings,
               Job *job, Error *error);
void job_free(Job *job);

/* The resolved job: every option with its value, paths absolute; a job file itself. With `identity` what
 * cannot change a result is left out: paths (inputs are known by their hashes), batch sizes, memory. */
void job_write(const Job *job, bool identity, Text *to);

const ModelOptions *job_model(const Job *job, const char *name);    /* NULL: none */
const PromptOptions *job_prompts(const Job *job, const char *name); /* NULL: none */

/* Letters, digits, "_" and "-", at most 64: such a name can be a folder. */
bool job_is_name(const char *name);

/* ---- for job_*.c ---- */
/* Errors of a job gathered into one: at most eight, in order. */
typedef struct {
    Text text;
    int64_t n;
    Error first;
} Problems;

void problems_add(Problems *problems, const Error *error); /* nothing when it is empty */
bool problems_end(Problems *problems, Error *error);       /* false, and all of them, when there were any */

bool job_apply_setting(Job *job, const char *setting, Error *error);
void job_check(Job *job, Problems *problems);

#endif

/* results: the tables of a step, and the page that says what their columns mean.
 *
 * Every file is written under a temporary name and renamed; step.json comes last and says that the step
 * is finished. All of it is a function of the model, the prompts and the switches: a rerun gives the same
 * bytes. */
#ifndef GATETAPE_RESULTS_H
#define GATETAPE_RESULTS_H
#include "batches.h"
#include "job.h"

typedef struct {
    const Job *job;
    const StepOptions *step; /* of the job */
    const ModelConfig *config;
    const PromptEncoder *encoder; /* for the texts of replies */
    const PromptGroup *groups;    /* of the step, in its order */
    const Measures *measures;     /* of each group */
    int64_t n_groups;
    const char *folder;   /* RUN/STEP */
    const char *warnings; /* lines from before the results; may be NULL */
} StepResults;

bool results_write(const StepResults *results, Error *error);

/* FOLDER/README.txt: files, columns, units. */
bool results_write_readme(const char *folder, Error *error);

/* ---- parts of a step.json, behind what stands there ---- */
void results_put_shape(const ModelConfig *config, Text *to); /* family, layers, experts */
void results_put_warnings(const char *lines, Text *to);      /* the entries of a list, a line each */

/* ---- for results_*.c ---- */
/* What is derived from a group's measures. */
typedef struct {
    float *per_prompt;  /* [P,L,E] */
    double *scores;     /* [L*E] */
    int64_t *order;     /* [L*E] cells, largest score first */
    int64_t *rank;      /* [L*E] of a cell, from 1 */
    double *cumulative; /* [L*E] along order */
} GroupScores;

bool group_scores_make(const StepOptions *step, const ModelConfig *config, const Measures *measures,
                       GroupScores *scores, Error *error);
void group_scores_free(GroupScores *scores);

bool results_write_text(const char *folder, const char *name, Text *text, Error *error); /* frees the text */
bool results_write_statistics(const StepResults *results, const GroupScores *scores, Error *error);
bool results_write_facts(const StepResults *results, const GroupScores *scores, Error *error);

#endif

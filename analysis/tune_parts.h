/* Private to tune*.c: a training while it runs. */
#ifndef GATETAPE_TUNE_PARTS_H
#define GATETAPE_TUNE_PARTS_H
#include "../engine/adapter_file.h"
#include "../engine/hash.h"
#include "../engine/queue.h"
#include "tune.h"

/* ---- examples ---- */
typedef struct {
    const EncodedPrompt *prompt;
    const char *group;
    int64_t key; /* step_prompt_key */
} TuneExample;

typedef struct {
    TuneExample *list; /* [n]: the groups one after another */
    int64_t n;
    uint64_t seed;
    int64_t n_total;   /* taken in the whole training */
    int64_t n_of_step; /* of every step but the last, which may have fewer */
    int64_t n_steps;
    int64_t *order, epoch; /* [n], of that epoch; -1: of none yet */
} TuneData;

/* The examples of the groups, which must outlive it. Caller frees, also after an error. */
bool tune_data_make(const StepRun *run, const PromptGroup *groups, TuneData *data, Error *error);
void tune_data_free(TuneData *data);
int64_t tune_step_length(const TuneData *data, int64_t step);
/* Example number `at` of the training, each epoch in its own order. */
const TuneExample *tune_example(TuneData *data, int64_t at);
/* What the options alone say, of n examples. */
int64_t tune_count_steps(const StepOptions *step, int64_t n_examples, int64_t *n_total);

/* ---- cells ---- */
/* The updates that the step's options choose, as they are before the first step: A uniform in
 * [-1/sqrt(in), 1/sqrt(in)) (PEFT's), B 0. run_folder NULL: cells that are ranked are not known; one cell
 * stands for them. Caller frees, also after an error. */
bool tune_adapter_make(const Job *job, const StepOptions *step, const ModelConfig *config,
                       const char *run_folder, Adapter *adapter, Error *error);
uint64_t tune_seed(const Job *job, const StepOptions *step);

/* ---- the training ---- */
typedef struct {
    double loss, norm, rate, n_examples, n_targets, n_tokens;
    double held_out; /* loss of the held-out groups after the step; NaN: not measured */
} TuneRow;
enum { TUNE_COLUMNS = sizeof(TuneRow) / sizeof(double) };

typedef struct {
    const StepRun *run;
    Model model; /* the run's, with the updates */
    PromptGroup *groups;
    const char *warnings;
    TuneData data;
    Adapter adapter;
    LoraWeights weights;
    LoraTraining training;
    TuneRow *rows; /* [n_steps + 1]: of step k at k; 0: before the first */
    int64_t n_done;
    PromptGroup *held_out; /* [step->evaluate.n] */
    void *best;            /* values with the least held-out loss so far, where patience asks for them */
    char job_hash[HASH_TEXT], model_hash[HASH_TEXT];
} Tuning;

/* One optimizer step, number n_done. Errors locate a number that is not finite: step and example; nothing
 * has changed then. */
bool tune_step(Tuning *t, Error *error);

/* ---- held-out groups ---- */
/* As step_read_groups; nothing where nothing is held out. */
bool tune_read_held_out(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                        const Inputs *inputs, PromptGroup **groups, Text *notes, Error *error);
/* Measures them after step n_done where that is due, and keeps the values if they are the best. */
bool tune_evaluate(Tuning *t, Error *error);
/* The step with the least held-out loss, ties to the first; -1: none was measured. */
int64_t tune_best_step(const Tuning *t);
/* All steps are taken, or patience is at its end. */
bool tune_is_over(const Tuning *t);
/* The best values in the place of the last, where patience asks for them. */
bool tune_take_best(Tuning *t, Error *error);

/* ---- files ---- */
/* checkpoint.safetensors: values, moments and rows, with hashes of model, job and contents. Errors: values
 * that are not finite, which are not kept. */
bool tune_checkpoint_write(Tuning *t, Error *error);
/* Takes up what an earlier run left; nothing where there is none. Errors: of another model or job, with
 * their hashes; a file that is damaged. */
bool tune_checkpoint_read(Tuning *t, Error *error);
bool tune_checkpoint_remove(const Tuning *t, Error *error);
/* training.csv, so far. */
bool tune_write_rows(const Tuning *t, Error *error);
/* adapter-FORM, of the state as it is. */
bool tune_write_adapter(Tuning *t, Error *error);
/* updates.csv. */
bool tune_write_updates(const Tuning *t, Error *error);
/* updates.csv and step.json. */
bool tune_write_facts(const Tuning *t, Error *error);
/* "adapter-dense"; fits 40 bytes. */
void tune_adapter_name(const StepOptions *step, char to[40]);

#endif

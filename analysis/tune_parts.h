/* Private to tune*.c: a training while it runs. */
#ifndef GATETAPE_TUNE_PARTS_H
#define GATETAPE_TUNE_PARTS_H
#include "../engine/adapter_file.h"
#include "../engine/hash.h"
#include "../engine/lora_ranks.h"
#include "../engine/queue.h"
#include "tune.h"

/* ---- examples ---- */
typedef struct {
    const EncodedPrompt *prompt;
    const EncodedPrompt *other; /* the same prompt with what is not preferred behind it; NULL: no pair */
    const char *group;
    int64_t key;         /* step_prompt_key */
    double reference[2]; /* summed NLL of both continuations by the frozen model; NaN: not known yet */
} TuneExample;

/* Groups with, for pairs, their prompts once more before the other targets, in the same order. */
typedef struct {
    PromptGroup *groups, *others; /* [n]; others NULL: no pairs */
    int64_t n;
} TuneGroups;

/* The step's groups as its objective reads them; nothing where there are none. inputs NULL: hashes are not
 * compared. Caller frees, also after an error. */
bool tune_groups_read(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                      const Inputs *inputs, TuneGroups *groups, Text *notes, Error *error);
/* The step with the held-out groups in the place of its own. */
StepOptions tune_held_out_of(const StepOptions *step);
void tune_groups_free(TuneGroups *groups);

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
bool tune_data_make(const StepRun *run, const TuneGroups *groups, TuneData *data, Error *error);
void tune_data_free(TuneData *data);
int64_t tune_step_length(const TuneData *data, int64_t step);
/* Example number `at` of the training, each epoch in its own order. */
TuneExample *tune_example(TuneData *data, int64_t at);
/* What the options alone say, of n examples. */
int64_t tune_count_steps(const StepOptions *step, int64_t n_examples, int64_t *n_total);

/* ---- cells ---- */
/* The updates that the step's options choose, as they are before the first step: A uniform in
 * [-1/sqrt(in), 1/sqrt(in)) (PEFT's), B 0. run_folder NULL: cells that are ranked are not known; one cell
 * stands for them. Caller frees, also after an error. */
bool tune_adapter_make(const Job *job, const StepOptions *step, const ModelConfig *config,
                       const char *run_folder, Adapter *adapter, Error *error);
/* The router rows of its cells, zero, where they are trained. */
bool tune_rows_make(const StepOptions *step, const ModelConfig *config, Adapter *adapter, Error *error);
uint64_t tune_seed(const Job *job, const StepOptions *step);

/* ---- the training ---- */
typedef struct {
    double loss, norm, rate, n_examples, n_targets, n_tokens;
    double held_out; /* loss of the held-out groups after the step; NaN: not measured */
    /* means, before the step: over counted tokens and layers, without their weights; over pairs */
    double router_kl, router_distance, margin, right;
    double total; /* loss with what is held of routers */
} TuneRow;
enum { TUNE_COLUMNS = sizeof(TuneRow) / sizeof(double) };

/* Where anchored routers are drawn to. */
typedef struct {
    float *aims;    /* [L_moe,E]: of the layer's trained cells equal shares of one */
    bool *anchored; /* [L_moe]: those with such cells */
    int64_t n;      /* layers of them */
} TuneAims;

typedef struct {
    const StepRun *run;
    Model model; /* the run's, with the updates */
    TuneGroups groups;
    const char *warnings;
    TuneData data;
    Adapter adapter;
    LoraWeights weights;
    LoraTraining training;
    LoraLeaves leaves;
    TuneRow *rows; /* [n_steps + 1]: of step k at k; 0: before the first */
    int64_t n_done;
    TuneGroups held_out;
    double *held_out_references; /* as TuneExample's, of pairs that are held out: of each group [2,n] */
    bool knows_held_out;         /* they are known */
    TuneAims aims;
    void *best; /* values with the least held-out loss so far, where patience asks for them */
    char job_hash[HASH_TEXT], model_hash[HASH_TEXT];
} Tuning;

/* The model as it was before the training: what references and frozen routers are asked of. Borrows. */
static inline Model tune_frozen_model(const Tuning *t) {
    Model frozen = t->model;
    frozen.adapter = NULL;
    return frozen;
}

/* One optimizer step, number n_done, by all ranks together: collective. Errors, on all ranks alike, locate a
 * number that is not finite: step and example; nothing has changed then. Interrupted when a signal has asked
 * any rank for the end. */
bool tune_step(Tuning *t, Error *error);

/* ---- several ranks: tune_ranks.c ---- */
/* x [n] as the ranks have it, those elements of each that it owns: [first, first + n_own). Collective. */
void tune_share(Comm *comm, double *x, int64_t n, int64_t first, int64_t n_own);
/* The texts of a rank: consecutive, as even in tokens as that allows. lengths [n], n >= 0. */
bool tune_own_texts(const Comm *comm, const int64_t *lengths, int64_t n, Range *own, Error *error);
/* False and an Error when a signal has asked this rank for the end. The others learn of it where they next
 * agree; until then it serves their passes. */
bool tune_goes_on(const StepRun *run, Error *error);
/* Whether all ranks took up the same state. Collective. */
bool tune_check_alike(const Tuning *t, Error *error);

/* ---- what a step minimises: tune_objective.c ---- */
/* Of an example, nll over target tokens; of its pair; over its counted tokens and layers. */
typedef struct {
    double nll, preference, margin, right, kl, distance;
    double reference[2]; /* the frozen model's, where it was asked */
} TuneSums;
enum { TUNE_SUMS = sizeof(TuneSums) / sizeof(double) };

/* The texts of a step, packed one after another: of a pair the preferred one, then the other. The same on all
 * ranks but for the sums, which each has of the examples that it has run. */
typedef struct {
    Tuning *tuning;
    int64_t n, each; /* examples, texts of each */
    int64_t n_targets, n_counted;
    TuneExample **examples;             /* [n] */
    const EncodedPrompt **texts;        /* [n each] */
    int64_t *offsets;                   /* [n each + 1] tokens */
    int32_t *tokens;                    /* [T] */
    float *loss_weights;                /* [T] 1 / n_targets of what predicts a target's token */
    float *kl_weights, *anchor_weights; /* [T]; NULL: none */
    int64_t *dropout_keys;              /* [T]; NULL: no dropout */
    bool wants_references;              /* the frozen model's losses of some pair are not known */
    LoraDeal deal;                      /* of the examples */
    TuneSums *sums;                     /* [n] */
    int64_t n_entered;                  /* passes of the part that runs, or ran last */
} TunePack;

/* One pass of a pack: texts [first, end), numbered from `number` on in the gradient's sum. */
typedef struct {
    TunePack *pack;
    int64_t first, end, number;
} TunePart;

bool tune_pack_make(Tuning *t, int64_t step, TunePack *pack, Error *error);
void tune_pack_free(TunePack *pack);
/* The pass, and before it the frozen model's where its losses or routers are asked for; fills sums. */
bool tune_part_run(const TunePart *part, Error *error);
/* This rank's part in the passes of a part that it has not, or of which it has entered so many. */
void tune_part_serve(const TunePack *pack, int64_t n_entered);
/* Of the preferred continuation over the other: beta x the difference of what both gained in log-likelihood.
 * nll, reference: of both, summed. */
double tune_margin(const StepOptions *step, const double nll[2], const double reference[2]);
double tune_preference_loss(double margin); /* -log sigmoid */

bool tune_aims_make(const Adapter *adapter, const ModelConfig *config, TuneAims *aims, Error *error);
void tune_aims_free(TuneAims *aims);

/* ---- held-out groups ---- */
/* Room for what is known of them. */
bool tune_held_out_open(Tuning *t, Error *error);
/* Measures them after step n_done where that is due, by all ranks together, and keeps the values if they are
 * the best. Collective; errors are agreed on. */
bool tune_evaluate(Tuning *t, Error *error);
/* The step with the least held-out loss, ties to the first; -1: none was measured. */
int64_t tune_best_step(const Tuning *t);
/* All steps are taken, or patience is at its end. */
bool tune_is_over(const Tuning *t);
/* The best values in the place of the last, where patience asks for them. */
bool tune_take_best(Tuning *t, Error *error);

/* ---- files, rank 0's but for reading the checkpoint ---- */
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
/* updates.csv. Collective: where a layer's weights come from peers, all ranks fetch them. */
bool tune_write_updates(const Tuning *t, Error *error);
/* step.json, and router_rows.csv where there are some. */
bool tune_write_facts(const Tuning *t, Error *error);
/* "adapter-dense"; fits 40 bytes. */
void tune_adapter_name(const StepOptions *step, char to[40]);

#endif

/* What the files of conform share: the case, the tensors computed on it, and which of their rows can be
 * compared.
 *
 * A choice between two router logits (or two tokens) that are closer than rounding may fall the other way
 * without a fault. Made cases have no such choice; a real checkpoint may. From where a prompt's routing
 * really went another way, what depends on it is left out and counted: later tokens in later layers, and the
 * prompt's loss and gradients. */
#ifndef GATETAPE_CONFORM_PARTS_H
#define GATETAPE_CONFORM_PARTS_H
#include "../engine/model.h"
#include "../engine/safetensors.h"
#include "conform.h"

typedef struct {
    int64_t n_prompts, n_tokens;
    int64_t n_steps;        /* of greedy generation; 0: none expected */
    int64_t *offsets;       /* [P+1] */
    int32_t *tokens;        /* [T] */
    int64_t *target_starts; /* [P]; NULL: none given */
    TensorSet *expected;
    char *path;         /* of expected.safetensors */
    const char *prefix; /* of the expected tensors' names; NULL: none */
    Comm *comm;         /* whose ranks share the prompts; NULL: one */
} ConformCase;

bool conform_case_read(const char *folder, ConformCase *c, Error *error);
void conform_case_free(ConformCase *c);
/* The prompts must fit the model: token ids below V. */
bool conform_case_fits(const ConformCase *c, const ModelConfig *config, Error *error);

typedef enum {
    CONFORM_MOE_LAYERS,
    CONFORM_ROUTER_LOGITS,
    CONFORM_TOPK_IDS,
    CONFORM_TOPK_WEIGHTS,
    CONFORM_LAYER_OUTPUT,
    CONFORM_LOGITS,
    CONFORM_NLL,
    CONFORM_NLL_TARGET,
    CONFORM_GATE_GRAD,
    CONFORM_GATE_GRAD_TARGET,
    CONFORM_ROUTER_LOGIT_GRAD,
    CONFORM_EMBEDDING_GRAD,
    CONFORM_GREEDY_TOKENS,
    N_CONFORM_TENSORS
} ConformName;

typedef enum { CONFORM_EXACT, CONFORM_VALUE, CONFORM_GRADIENT } ConformKind;

/* What a row of a tensor (all dimensions up to the row's own) depends on. */
typedef enum {
    ROWS_FIXED,        /* nothing that can differ */
    ROWS_LAYER_TOKEN,  /* [L,T,.]: earlier layers, this and earlier tokens */
    ROWS_OUTPUT_TOKEN, /* [decoder layers,T,.]: this layer too */
    ROWS_TOKEN,        /* [T,.]: all layers */
    ROWS_PROMPT,       /* [P,...]: the whole prompt */
    ROWS_PROMPT_TOKEN  /* [.,T,.] or [T,.], of the whole prompt: gradients */
} ConformRows;

typedef struct {
    const char *name;
    ConformKind kind;
    ConformRows rows;
} ConformInfo;

extern const ConformInfo conform_infos[N_CONFORM_TENSORS];

/* On the host, f32 and i64, shapes as in the golden cases; absent where the case has nothing to ask for. */
typedef struct {
    Tensor tensors[N_CONFORM_TENSORS];
} ConformValues;

/* Computes everything, the prompts in n_parts batches of about equal numbers. Caller frees. */
bool conform_compute(const Model *model, const ConformCase *c, int64_t n_parts, Recompute recompute,
                     ConformValues *values, Error *error);
void conform_values_free(ConformValues *values);
/* FOLDER/actual.safetensors: the prompts and every tensor that is there. */
bool conform_values_write(const ConformValues *values, const ConformCase *c, const char *folder,
                          Error *error);
/* The same of a forward pass under set 0 of the edits: moe_layers, router_logits (before the edits),
 * topk_ids, topk_weights, logits, nll. */
bool conform_compute_edited(const Model *model, const ConformCase *c, int64_t n_parts, const EditTable *edits,
                            ConformValues *values, Error *error);

/* ---- several ranks (conform_ranks.c) ---- */
bool conform_is_shared(const ConformCase *c);
/* The prompts that a rank computes: consecutive ones, evenly many. */
Range conform_prompts(const ConformCase *c, int64_t rank);
/* The case with this rank's prompts alone, maybe none. It borrows from the whole one but for its offsets; the
 * caller frees with conform_own_free. */
bool conform_own(const ConformCase *c, ConformCase *own, Error *error);
void conform_own_free(ConformCase *own);
/* Collective: all ranks' parts of a tensor whose dimension `axis` counts the case's prompts, or its tokens.
 * own: absent where this rank has none. */
bool conform_gather(const ConformCase *c, bool by_prompt, int axis, Tensor own, Tensor whole, Error *error);
/* Opens a checkpoint as the options say; ranks open it together. residency: that of the options, or another
 * one. */
bool conform_open_model(const ConformOptions *options, Residency residency, Model *model, Error *error);

/* ---- interventions.json ---- */
typedef struct {
    char *name, *prefix; /* "mask", "mask." */
    EditTable table;     /* one set */
} ConformEdit;

typedef struct {
    int64_t n;
    ConformEdit *edits;
} ConformEdits;

/* None where the case has no such file. Caller frees; safe after an error too. */
bool conform_edits_read(const char *folder, const ModelConfig *config, ConformEdits *edits, Error *error);
void conform_edits_free(ConformEdits *edits);
/* router_logits as the edit leaves them, forced experts far above all in their order: what choices are
 * judged by. */
void conform_edit_logits(const EditTable *edits, Tensor router_logits);
/* FOLDER/actual_interventions.safetensors: values[i] of edits->edits[i] as NAME.logits, .nll, .topk_ids,
 * .topk_weights. */
bool conform_edits_write(const ConformEdits *edits, const ConformValues *values, const char *folder,
                         Error *error);

/* Greedy choices again, all tokens of a prompt and its continuation in one packed pass. */
typedef struct {
    float *margins;  /* [P,n]: best less second best logit of every choice */
    int64_t *sure;   /* [P]: choices before the first one after a routing closer than the bound */
    int64_t *argmax; /* [P,n]: the best */
} ConformGreedy;

bool conform_greedy(const Model *model, const ConformCase *c, const ConformValues *values, float bound,
                    ConformGreedy *greedy, Error *error);
void conform_greedy_free(ConformGreedy *greedy);

/* What of the case can be compared. */
typedef struct {
    int64_t n_prompts, n_tokens, n_layers;
    const int64_t *offsets;
    const int64_t *moe_layers; /* [L] */
    int64_t *clean; /* [P,L+1]: tokens of the prompt that no diverted routing of an earlier layer reaches */
    uint8_t *loose; /* [L,T]: 1: a choice closer than the bound, come out otherwise or in another order */
    int64_t n_choices, n_near; /* all, and of those compared which are closer than the bound */
    int64_t n_loose, n_after,
        n_wrong; /* come out otherwise for that reason; behind such a one; really different */
} ConformReach;

/* Compares topk_ids; margins from the expected router logits (the actual ones where the case has none). */
bool conform_reach(const ConformCase *c, const ConformValues *values, float bound, ConformReach *reach,
                   Error *error);
void conform_reach_free(ConformReach *reach);

typedef struct {
    double error;  /* max |a-b| / max |b|; infinity for what is not finite */
    double cosine; /* of the two seen as vectors; 1 where both are 0 */
    int64_t where; /* element with the largest error */
    int64_t n_rows, n_compared;
} ConformDifference;

/* The largest error of a tensor over the rows that can be compared. False and an Error when shape or dtype of
 * the expected tensor are not those of the actual one. */
bool conform_compare(const ConformCase *c, const ConformReach *reach, ConformName name, Tensor actual,
                     ConformDifference *difference, Error *error);

/* The case has the tensor. */
bool conform_has(const ConformCase *c, const char *name);
/* Reads a tensor of the case as f32 or i64; caller frees its data. */
bool conform_read(const ConformCase *c, const char *name, DType dtype, Tensor *tensor, Error *error);

#endif

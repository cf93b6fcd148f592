/* The training part of a golden case: lora.json says what is trained and how, expected_lora.safetensors from
 * where and with what result. There is no path of its own for it here either: model_pass with
 * PassOptions.training and the optimizer are those of every job. */
#ifndef GATETAPE_CONFORM_LORA_H
#define GATETAPE_CONFORM_LORA_H
#include "../engine/lora.h"
#include "conform_parts.h"

typedef struct {
    int64_t rank, n_steps, n_prompts; /* prompts of a step */
    double alpha, rate;
    AdamwOptions options;
    Adapter init; /* the cells, with the values that training begins with */
} ConformPlan;

typedef struct {
    Tensor losses, norms, logits; /* f32 [steps], [steps], [T,V], on the host */
    Adapter grad, trained;        /* of the first step, unclipped; after the last */
} ConformTrained;

/* lora.json, and init.* of the expected tensors. Caller frees, also after an error. */
bool conform_plan_read(const char *folder, const ConformCase *expected, const ModelConfig *config,
                       ConformPlan *plan, Error *error);
void conform_plan_free(ConformPlan *plan);

/* Trains on the model, which has no adapter before nor after. n_parts: passes of a step, or of as
 * much of it as a rank has. Collective on ranks that share the case. Caller frees, also after an error. */
bool conform_train(Model *model, const ConformCase *c, const ConformPlan *plan, int64_t n_parts,
                   Recompute recompute, ConformTrained *trained, Error *error);
void conform_trained_free(ConformTrained *trained);
/* Logits [T,V] of the case under an adapter, all of them by each rank; caller frees the data. */
bool conform_adapted_logits(Model *model, const ConformCase *c, const Adapter *adapter, Tensor *logits,
                            Error *error);

/* "layers.L.experts.E.PROJECTION.lora_A", or _B, behind a prefix. */
enum { CONFORM_CELL_NAME = 120 };
void conform_cell_name(const AdapterCell *cell, const char *prefix, char side, char to[CONFORM_CELL_NAME]);

/* How many checks were made and how many failed. */
typedef struct {
    int n_checked, n_failed;
} ConformCount;

/* conform_adapters.c: adapters of the case read, the trained one written in every form and merged. */
typedef struct {
    const ConformOptions *options;
    const ConformCase *c, *expected;
    Model *model;
    const Adapter *trained;
    Tensor logits; /* with what was trained */
    double bound;
    FILE *to;
    ConformCount *count;
} ConformAdapters;
bool conform_adapters(ConformAdapters *run, Error *error);

/* All of it: trains, writes actual_lora.safetensors where there is a folder for it, prints a line for each
 * check. Nothing for a case without lora.json. */
bool conform_lora(const ConformOptions *options, const ConformCase *c, Model *model, FILE *to,
                  ConformCount *count, Error *error);

#endif

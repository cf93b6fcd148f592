/* gate_gradient: how sensitive a prompt's loss is to each expert's row of the router.
 *
 * The exact gradient through the whole network, one backward pass for a batch, per prompt. A layer's rows
 * [P,E,D] are reduced to norms on the device before the next layer's are made; the full rows leave it
 * only on request. */
#ifndef GATETAPE_GATE_GRADIENT_H
#define GATETAPE_GATE_GRADIENT_H
#include "batches.h"

typedef struct {
    int recompute; /* Recompute of the model; the option has the same order */
    size_t memory_limit_bytes;
    float *rows; /* [P,L,E,D] of the block, or NULL: not wanted */
} GateGradientOptions;

/* Runs a pass and its way back over the batch, whose prompts are those from number `at` of the block on,
 * and fills their rows of `to`. */
bool gate_gradient_measure(const Model *model, const Batch *batch, int64_t at,
                           const GateGradientOptions *options, Measures *to, Error *error);
/* This rank's part in such a pass of the others, on a spread model. */
void gate_gradient_serve(const Model *model, const GateGradientOptions *options);

#endif

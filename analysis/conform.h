/* conform: a golden case in, every tensor out, the largest error beside its bound.
 *
 * The case is a folder with a checkpoint and expected.safetensors, what the reference implementation computes
 * on it. There is no path of its own for it here: model_pass with the recomputing tape and generate() are
 * those of every job. The same is computed packed, one prompt at a time, split in two and with all
 * activations kept, and must give the same bits each time.
 *
 * On several ranks each computes some of the prompts, all get all tensors and go through the same checks;
 * one of them prints and writes. */
#ifndef GATETAPE_CONFORM_H
#define GATETAPE_CONFORM_H
#include "../engine/model.h"
#include <stdio.h>

typedef struct {
    const char *folder; /* of the case */
    const char *model;  /* checkpoint folder; NULL: the case's own */
    const char *out;    /* folder for actual*.safetensors, adapter-*, merged; NULL: not written */
    const Device *device;
    DType compute;       /* DTYPE_F32 or DTYPE_BF16 */
    bool once;           /* no second run of anything for the same bits, no interventions, no training */
    Comm *comm;          /* NULL: one rank */
    Residency residency; /* RESIDENCY_AUTO: each rank has the whole model */
} ConformOptions;

/* Prints one line per tensor and a verdict to `to`. *agrees: every tensor within its bound, all bits the
 * same. False and an Error when the case could not be run. Collective with a comm; what goes wrong on one of
 * several ranks alone ends them all (comm_fail). */
bool conform_run(const ConformOptions *options, FILE *to, bool *agrees, Error *error);

#endif

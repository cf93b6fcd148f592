/* routing: how often each expert is chosen, with what probability and weight, and how large its outputs
 * get.
 *
 * Counting happens on the device, layer by layer while the pass runs, into one sum per prompt; what
 * leaves the device is L x P x E numbers, never per token unless a trace is asked for. */
#ifndef GATETAPE_ROUTING_H
#define GATETAPE_ROUTING_H
#include "batches.h"
#include "trace.h"

/* Runs a pass over the batch, whose prompts are those from number `at` of the block on, and fills their
 * rows of `to`. near_tie: a smaller margin, least chosen logit less largest other, counts as one. trace may
 * be NULL. */
bool routing_measure(const Model *model, const Batch *batch, int64_t at, double near_tie, Measures *to,
                     Trace *trace, Error *error);
/* This rank's part in such a pass of the others, on a spread model. */
void routing_serve(const Model *model);

#endif

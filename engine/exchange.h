/* exchange: tokens that travel to their experts' ranks (spread.h), one layer at a time.
 *
 * At home a row of x for each pair of (token, choice) is put in the order (rank of its expert, token,
 * choice); counts, the experts' numbers, then the rows go out; results come back in the same order. A rank's
 * rows arrive by the rank they come from, so rows of an expert stand in the order of prompts. On the way back
 * of a pass the rows go out once more, with the gradients of the results and the combine weights, and each
 * row's terms come back. A rank without rows makes every call.
 *
 * What a pair whose expert is elsewhere costs, in bytes, A = 2 or 4 an activation:
 *   forward   4 + D A from home, D A back
 *   way back  4 + 2 D A + 4 from home, 4 + 4 D n back, n = 1 and the updated ones of gate and up, or 0 where
 *             the gradient of x is not wanted
 * and 16 from each rank to each other one, both times, for the counts.
 *
 * What an owner needs depends on the choices of all ranks, so it is not part of the plan of a pass: it lies
 * in a block that grows to the most that a call has needed. */
#ifndef GATETAPE_EXCHANGE_H
#define GATETAPE_EXCHANGE_H
#include "../autograd/nn.h"
#include "model.h"

typedef struct Exchange Exchange;

/* For a model whose tokens travel; comm_use_device was called. NULL and an Error when out of memory. */
Exchange *exchange_new(const Model *model, Error *error);
void exchange_free(Exchange *exchange); /* NULL: nothing */
/* Bytes of device memory that the block has. */
size_t exchange_bytes(const Exchange *exchange);
/* Bytes that a pass of so many tokens, of which other ranks have as many, makes the block grow by where the
 * rank gets twice its share. */
size_t exchange_expected_growth(const Model *model, int64_t n_tokens, bool walks_back);

/* How a decoder layer's experts are reached, for nn_moe_remote: the model must stay until the walk is over.
 * What fails on the way ends the job. */
RemoteExperts exchange_experts(const Model *model, int64_t layer);
/* This rank's part in such a layer of the others, forward or on the way back. */
void exchange_serve(const Model *model, Queue *queue, int64_t layer, bool back);

#endif

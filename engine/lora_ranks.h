/* The gradient of a training step whose examples several ranks share: the bits of one rank.
 *
 * Examples are cut into chunks of 2^k, and a rank has consecutive chunks. Its counters (LoraSums) run from
 * the beginning of each chunk, so a chunk's sum is a node of the tree over all examples, and comm_tree_sum
 * over chunks adds up the rest of that tree. Cut and owners follow from lengths and the number of ranks
 * alone. */
#ifndef GATETAPE_LORA_RANKS_H
#define GATETAPE_LORA_RANKS_H
#include "lora.h"

typedef struct {
    int64_t n_examples;
    int64_t each;   /* examples of a chunk, a power of two; the last chunk may have fewer */
    int64_t n;      /* chunks */
    int32_t *ranks; /* [n] whose each is, rising */
} LoraDeal;

/* Deals n_examples >= 1 examples of `lengths` tokens, all above 0. The fullest rank has as few tokens as
 * consecutive chunks allow, and chunks are as large as they can be without giving it more than an eighth
 * above what single examples would: small ones make small passes, and a sum each to be kept. Caller frees. */
bool lora_deal_make(const int64_t *lengths, int64_t n_examples, int64_t n_ranks, LoraDeal *deal,
                    Error *error);
void lora_deal_free(LoraDeal *deal);
/* The chunks of a rank; none where it has no part in the step. */
Range lora_deal_chunks(const LoraDeal *deal, int64_t rank);
/* The examples of a chunk. */
Range lora_deal_examples(const LoraDeal *deal, int64_t chunk);

/* What a rank keeps of its chunks. Nothing on one rank, whose counters are enough. */
typedef struct {
    Comm *comm;
    int64_t n_room; /* chunks */
    Tensor rows;    /* [n_room + 2, N] f32 on the host: a sum each, then two for the tree */
} LoraLeaves;

/* Room for the rank's chunks of a deal; what earlier steps had is used again. Caller frees. */
bool lora_leaves_open(LoraLeaves *leaves, const LoraTraining *training, const LoraDeal *deal, Error *error);
void lora_leaves_free(LoraLeaves *leaves);
/* After the passes of the rank's i-th chunk, its n examples numbered from 0: keeps their sum. */
bool lora_leaves_keep(LoraLeaves *leaves, LoraTraining *training, int64_t i, int64_t n_examples,
                      Error *error);
/* Collective, after all chunks, which cover n_examples examples as lora_training_gather counts them: their
 * gradient into optimizer.grad of every rank, and its norm. Errors as there, on all ranks alike but for those
 * of a device. */
bool lora_leaves_gather(const LoraLeaves *leaves, LoraTraining *training, const LoraDeal *deal,
                        int64_t n_examples, double *norm, Error *error);

#endif

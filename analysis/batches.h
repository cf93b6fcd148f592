/* batches: which prompts go through the model together, and what is to be known of their tokens.
 *
 * A prompt's results do not depend on its batch, so batches are made for speed and memory alone: prompts
 * in order, as many as batch_tokens and batch_prompts allow. */
#ifndef GATETAPE_BATCHES_H
#define GATETAPE_BATCHES_H
#include "../engine/model.h"
#include "measures.h"
#include "prompts.h"

typedef struct {
    int64_t most_tokens, most_prompts; /* most_prompts 0: any number */
} BatchLimits;

/* Whether so many prompts and tokens go through the model together. One prompt does always: the caller's. */
bool batch_fits(BatchLimits limits, int64_t n_prompts, int64_t n_tokens);

/* Whether a step's passes read targets, or replies that are to be generated first. */
bool step_reads_targets(const StepOptions *step);
bool step_generates(const StepOptions *step);

/* Prompts [first, first + n) of a group, with what else their passes read. step NULL: the prompts alone. */
typedef struct {
    const StepOptions *step;
    const PromptGroup *group;
    int64_t first, n;
    const Measures *replies; /* of these prompts; NULL: none */
} Block;

/* Tokens of prompt i of the block in its pass. */
int64_t block_prompt_tokens(const Block *block, int64_t i);

/* How many prompts from number `at` of the block on make one batch: at least one. extra: tokens by which
 * each may grow. */
int64_t batch_size(const Block *block, int64_t at, int64_t extra, BatchLimits limits);

typedef struct {
    int64_t n_prompts, n_tokens;
    int64_t *offsets; /* [P+1] */
    int32_t *tokens;  /* [T] */
    uint8_t *roles;   /* [T] TokenRole */
    uint8_t *spans;   /* [T] TokenSpan */
    int32_t *counted; /* [T] the prompt of the batch where the token is counted, else -1 */
    float *loss;      /* [T] weight of nll[t] in the prompt's loss: 1 / its number of tokens, else 0 */
} Batch;

/* Prompts [at, at + n) of the block, each with its target or reply where the step reads it. Caller frees;
 * safe after an error too. */
bool batch_make(const Block *block, int64_t at, int64_t n, Batch *batch, Error *error);
void batch_free(Batch *batch);

/* Its parts, for batches of other make-up: zeroed room; prompt p at offsets[p], its target behind it. */
bool batch_make_room(Batch *batch, int64_t n_prompts, int64_t n_tokens, Error *error);
void batch_put_prompt(Batch *batch, int64_t p, const EncodedPrompt *prompt, bool with_target);

/* As model_pass and generate want it; borrows. */
PromptBatch batch_view(const Batch *batch);

#endif

/* Generation: a packed prefill, then one token per prompt and step over a KV cache, batched. A prompt's
 * tokens depend on the prompt, the rule and its key alone: not on the batch it is decoded in. */
#ifndef GATETAPE_GENERATE_H
#define GATETAPE_GENERATE_H
#include "model.h"

typedef struct {
    int64_t max_new_tokens;
    SampleRule rule;            /* temperature 0: greedy; n_valid: the tokenizer's size */
    const int64_t *prompt_keys; /* [P]: stands for the prompt in the random numbers; NULL: 0, 1, ... */
    const int32_t *stop_tokens; /* generation of a prompt ends after one of them */
    int64_t n_stop_tokens;
    const EditTable *edits; /* NULL: none */
    /* The set of edits of a prompt's tokens [P], and of those that it generates [P * n_forks]; < 0: none.
     * NULL: none. The first token is chosen by the prompt's last. */
    const int32_t *prompt_edits, *generated_edits;
    /* How many continuations each prompt gets from one pass over it, with the same random numbers: they
     * differ by generated_edits. 0: 1 */
    int64_t n_forks;
    /* Called after each step with how many prompts still run; false: interrupted. May be NULL. */
    bool (*progress)(void *context, int64_t step, int64_t n_running);
    void *progress_context;
} GenerateOptions;

typedef struct {
    int64_t n_prompts; /* with n_forks: P * n_forks, the continuations of a prompt side by side */
    int64_t *offsets;  /* [P+1] into tokens */
    int32_t *tokens;   /* what was generated, the stop token included */
    bool *stopped;     /* [P]: by a stop token (else by max_new_tokens) */
} Generation;

bool generate(const Model *model, const PromptBatch *batch, const GenerateOptions *options,
              const Hooks *hooks, Generation *generation, Error *error);
void generation_free(Generation *generation);
/* For generate.c: offsets and tokens from made [n_sequences, most], of which n_made each. */
bool generation_pack(const int32_t *made, const int64_t *n_made, int64_t n_sequences, int64_t most,
                     Generation *to, Error *error);
/* This rank's part in a generation of the others, on a spread model; see model_serve. options->progress
 * is asked as in a generation; whoever says no interrupts all ranks. */
bool generate_serve(const Model *model, const GenerateOptions *options, Error *error);

#endif

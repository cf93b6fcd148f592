/* The verb `generate`: replies of a model to prompts, one JSON object a line. */
#ifndef GATETAPE_REPLIES_H
#define GATETAPE_REPLIES_H
#include "../engine/model.h"
#include "prompts.h"

typedef struct {
    ModelOptions model;
    PromptOptions prompts; /* path: a prompt file; NULL: `texts` */
    const char *const *texts;
    int64_t n_texts;
    const Device *device;
    DType compute;
    int64_t max_new_tokens; /* 0: 256, or half of what the model can take */
    int64_t batch_prompts, seed, top_k;
    double temperature, top_p; /* temperature 0: greedy */
    bool show_prompt;          /* the rendered prompt too */
} RepliesRequest;

/* Writes one line a prompt to `to`, in order: id, reply, tokens, stopped. A prompt's reply does not depend on
 * the batch. */
bool replies_run(const RepliesRequest *request, FILE *to, Error *error);

#endif

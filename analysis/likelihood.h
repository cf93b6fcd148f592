/* likelihood: how likely a model finds given tokens. No number depends on what else is in the pass. */
#ifndef GATETAPE_LIKELIHOOD_H
#define GATETAPE_LIKELIHOOD_H
#include "../engine/model.h"
#include "prompts.h"

/* A prompt with a reply or a target behind it. */
typedef struct {
    const EncodedPrompt *prompt;
    const int32_t *behind;
    int64_t n_behind;
    int32_t prompt_set, behind_set; /* of edits, of their tokens; < 0: none */
} ScoredText;

/* Mean negative log-likelihood in nats of n texts in one packed pass, under the edits (NULL: none). prompt
 * [n]: of the prompt's tokens behind its first; behind [n]: of the tokens behind the prompt, given all before
 * each; 0 where there are none. Either may be NULL. */
bool likelihood_of_texts(const Model *model, const EditTable *edits, const ScoredText *texts, int64_t n,
                         double *prompt, double *behind, Error *error);
/* This rank's part in such a pass of the others, on a spread model. */
void likelihood_serve(const Model *model, const EditTable *edits);

#endif

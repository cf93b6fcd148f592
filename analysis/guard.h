/* guard: a chat model as a classifier of replies.
 *
 * A file (configs/judge/guard_*.json) says what it is asked, with {prompt} and {response} where the texts go,
 * and the answer that stands for each label; degraded may have none. The question is a user's message in the
 * model's chat template. Everything in it is plain data: control tokens written out in a prompt or reply are
 * ordinary text, and what is put in is not looked through for places again. An answer's probability is that
 * of the assistant's reply beginning with its tokens: the product over all of them, teacher forced. No answer
 * begins with another one's tokens, so that these are probabilities of different things. */
#ifndef GATETAPE_GUARD_H
#define GATETAPE_GUARD_H
#include "../engine/model.h"
#include "batches.h"
#include "judge.h"

typedef struct Guard Guard;

/* NULL and an Error naming file and key. Caller frees with guard_free. */
Guard *guard_read(const char *path, Error *error);
void guard_free(Guard *guard);

/* Answers as tokens of the model. Errors: no chat template, an answer that its tokens do not write, answers
 * of which one begins with the other. The encoder must outlive the guard. */
bool guard_open(Guard *guard, const PromptEncoder *encoder, Error *error);

bool guard_has(const Guard *guard, Label label); /* an answer for it */
int64_t guard_count(const Guard *guard);         /* answers */
/* A JSON object: file, its hash, the answers' texts and tokens. */
void guard_put_facts(const Guard *guard, const char *model, Text *to);

/* What {prompt} stands for: the text of the last user message; NULL: there is none. */
const ChatMessage *guard_prompt(const PromptEntry *entry);

typedef struct {
    const char *id; /* for messages */
    const ChatMessage *prompt;
    const char *response;
} GuardText;

/* Questions about n texts as tokens. Caller frees the group, also after an error. */
bool guard_encode(const Guard *guard, const GuardText *texts, int64_t n, PromptGroup *group, Error *error);
/* Tokens of a question's pass, each of its answers behind a copy of it. */
int64_t guard_question_tokens(const Guard *guard, const EncodedPrompt *question);
/* How many of n questions go through the model together: at least one. */
int64_t guard_batch_size(const Guard *guard, const EncodedPrompt *questions, int64_t n, BatchLimits limits);
/* log_p [n,N_LABELS]: of each answer behind each of the questions, natural, in one pass; 0 where there is
 * none. */
bool guard_ask(const Guard *guard, const Model *model, const EncodedPrompt *questions, int64_t n,
               double *log_p, Error *error);

/* Probabilities of the answers among themselves (NaN: no such answer), of saying something else, and the
 * label of the largest, ties to the first. */
typedef struct {
    double probability[N_LABELS], other;
    Label label;
} GuardVerdict;
GuardVerdict guard_verdict(const Guard *guard, const double log_p[N_LABELS]);

#endif

/* prompts: a group of prompts from a file, and as tokens of a model.
 *
 * An entry is `prompt` (a user's text; or `question`, whose choices choices.h reads) or `messages` (both in
 * JSON lines only), with an optional `target` (the
 * reply whose tokens are teacher-forced) and an optional `id`; contrasts read `other_target`, `topic` and
 * `pair` too; other columns are the user's own. A rendered
 * prompt and its target are encoded separately and concatenated, so that a prompt has the same tokens with
 * every target. Empty and over-long prompts are refused, truncated or left out as the job says, and
 * counted. */
#ifndef GATETAPE_PROMPTS_H
#define GATETAPE_PROMPTS_H
#include "../engine/chat.h"
#include "../engine/hash.h"
#include "../engine/model_config.h"
#include "../engine/tokenizer.h"
#include "options.h"

typedef struct {
    int64_t index, line;   /* entry of the file, from 0; its line, from 1 */
    const char *id;        /* as the file says, else its index */
    ChatMessage *messages; /* a `prompt` is one of the user */
    int64_t n_messages;
    const char *target; /* NULL: none */
    size_t target_length;
    const char *other_target; /* what a contrast sets against the target; NULL: none */
    const char *topic, *pair; /* texts or integers; NULL: none */
} PromptEntry;

typedef struct {
    char *file;
    char hash[HASH_TEXT]; /* of its bytes */
    PromptEntry *entries; /* those that `first` and `limit` leave */
    int64_t n, capacity;
    TextPool pool; /* owns the texts */
} PromptFile;

/* Caller frees with prompts_free; safe after an error too. */
bool prompts_read(const PromptOptions *options, PromptFile *prompts, Error *error);
/* From a text; options->path names it in messages. */
bool prompts_parse(const PromptOptions *options, const char *text, size_t length, PromptFile *prompts,
                   Error *error);
void prompts_free(PromptFile *prompts);

/* How many entries of `a` stand in `b` too, ids not considered, targets only when asked for; *first is one
 * of them (an index into a->entries). -1: out of memory. */
int64_t prompts_count_common(const PromptFile *a, const PromptFile *b, bool with_target, int64_t *first);

/* ---- as tokens ---- */
typedef struct {
    const ModelOptions *options;
    const ModelConfig *config;
    Tokenizer *tokenizer;      /* owned */
    const char *chat_template; /* NULL: plain text */
    char *bos, *eos;           /* texts of these tokens; NULL: none */
} PromptEncoder;

/* Opens the tokenizer beside the model. Errors: no such template, a family without one and none named, a
 * vocabulary that is not the model's. The options and config must outlive it. Caller closes. */
bool prompt_encoder_open(const ModelOptions *options, const ModelConfig *config, PromptEncoder *encoder,
                         Error *error);
/* With a tokenizer that is there already; it is taken over, also on error. */
bool prompt_encoder_make(const ModelOptions *options, const ModelConfig *config, Tokenizer *tokenizer,
                         PromptEncoder *encoder, Error *error);
void prompt_encoder_close(PromptEncoder *encoder);

typedef enum { SPAN_PROMPT, SPAN_TARGET, SPAN_GENERATED } TokenSpan;

typedef struct {
    const PromptEntry *entry;
    int32_t *tokens; /* prompt, then target */
    uint8_t *roles;  /* TokenRole of each */
    int64_t n_prompt, n_target;
    bool truncated;
} EncodedPrompt;

typedef struct {
    bool target;            /* every prompt must have one; else targets are left away */
    bool target_if_given;   /* but kept where there is one: it takes the place of what generation may add */
    int64_t n_reserved;     /* tokens that generation may add */
    int64_t n_prompt_least; /* shorter prompts count as empty: 2 for the loss of the prompt */
} EncodeNeeds;

typedef struct {
    const PromptOptions *options;
    PromptFile file;
    EncodedPrompt *prompts; /* those that are used, in the file's order */
    int64_t n, n_truncated, n_left_out;
} PromptGroup;

/* Takes over *file (emptied). Caller frees with prompt_group_free; safe after an error too. */
bool prompts_encode(const PromptEncoder *encoder, const PromptOptions *options, EncodeNeeds needs,
                    PromptFile *file, PromptGroup *group, Error *error);
void prompt_group_free(PromptGroup *group);

/* What the model reads for an entry, as one text, for people (--dry-run). */
bool prompts_render(const PromptEncoder *encoder, const PromptOptions *options, const PromptEntry *entry,
                    ChatText *text, Error *error);

#endif

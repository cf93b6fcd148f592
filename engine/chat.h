/* Chat templates by name, rendered without Jinja: what a family's own template makes of a list of
 * messages, as one string with the role of every stretch of it. A template is chosen by name in the job
 * or by the family; unknown names are an error that lists the known ones. */
#ifndef GATETAPE_CHAT_H
#define GATETAPE_CHAT_H
#include "error.h"
#include "text.h"
#include <stddef.h>
#include <stdint.h>

typedef enum { ROLE_PADDING, ROLE_TEMPLATE, ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, N_ROLES } TokenRole;

const char *role_name(TokenRole role); /* "padding", "template", ... as in the trace files */

typedef struct {
    TokenRole role; /* ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT */
    const char *content;
    size_t length;
} ChatMessage;

typedef struct {
    size_t begin; /* byte of the rendered text */
    TokenRole role;
} ChatSpan; /* reaches to the next span's begin */

typedef struct {
    Text text;
    ChatSpan *spans; /* begins ascending, the first at 0 */
    int64_t n_spans, capacity;
} ChatText;

void chat_text_free(ChatText *text);

typedef struct {
    const char *name;        /* template */
    const char *bos, *eos;   /* texts of the tokenizer's bos and eos tokens, for templates that name them; may be NULL */
    const char *date;        /* gpt_oss: from the job, never the clock; may be NULL */
    bool thinking;           /* qwen3: false puts an empty think block into the generation prompt */
    bool add_generation_prompt;
} ChatOptions;

/* Renders messages. Error: unknown template, a role that the template refuses, no messages, out of memory. */
bool chat_render(const ChatOptions *options, const ChatMessage *messages, int64_t n_messages, ChatText *to, Error *error);

/* What an assistant reply looks like after the generation prompt: its text and the template's end of
 * turn, up to and including the end token (targets of a loss). */
bool chat_render_reply(const ChatOptions *options, const char *reply, size_t length, ChatText *to, Error *error);

/* All names, for messages and documentation; NULL-terminated. */
extern const char *const chat_template_names[];

/* The role of the byte at `position`. */
TokenRole chat_role_at(const ChatText *text, size_t position);

#endif

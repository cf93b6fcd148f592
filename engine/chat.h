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
    const char *name;           /* template */
    const char *bos, *eos;      /* texts of the tokenizer's bos and eos; NULL: those of the family */
    const char *date;           /* gpt_oss: from the job, never the clock; may be NULL elsewhere */
    bool thinking;              /* qwen3: false puts an empty think block into the generation prompt */
    bool add_generation_prompt; /* the begin of an assistant's turn at the end */
} ChatOptions;

/* Renders messages into an empty *to. Errors: unknown template, a role or an order of roles that the template
 * refuses, no messages, gpt_oss without a date, out of memory. */
bool chat_render(const ChatOptions *options, const ChatMessage *messages, int64_t n_messages, ChatText *to,
                 Error *error);

/* What an assistant reply looks like after the generation prompt: its text and the template's end of turn, up
 * to and including the end token (targets of a loss). It is encoded by itself; therefore mixtral has no space
 * in front of it, because the Llama tokenizers put one before every text. */
bool chat_render_reply(const ChatOptions *options, const char *reply, size_t length, ChatText *to,
                       Error *error);

/* All names, for messages and documentation; NULL-terminated. As the published templates have them, without
 * tools ({s} system, {u} user, {a} assistant):
 *   mixtral              Mixtral Instruct v0.1: "<s> [INST] {s}\n\n{u} [/INST] {a}</s> [INST] {u} [/INST]"
 *   mixtral_2023         its first form, no system text: "<s>[INST] {u} [/INST]{a}</s>[INST] {u} [/INST]"
 *   qwen3                chatml with think blocks in the last reply
 *   qwen3_instruct_2507  Qwen3-*-Instruct-2507: chatml
 *   qwen2, qwen2_5       chatml; where no system message comes first, the family's sentence
 *   olmoe                OLMoE Instruct and Tulu: "<|user|>\n{u}\n<|assistant|>\n{a}" and the eos token
 *   deepseek2            DeepSeek-V2 Chat: "User: {u}\n\nAssistant: {a}" and the eos token
 *   gpt_oss              harmony, channel final, reasoning medium; needs a date
 *   phi35moe             Phi-3.5-MoE: "<|user|>\n{u}<|end|>\n<|assistant|>\n{a}<|end|>\n"
 *   granite3             Granite 3.0: "<|start_of_role|>user<|end_of_role|>{u}<|end_of_text|>\n"
 *   chatml               "<|im_start|>user\n{u}<|im_end|>\n"
 *   raw                  the texts of the messages, nothing between; a reply ends in eos, if given */
extern const char *const chat_template_names[];

/* The role of the byte at `position`; the last span's beyond the end. */
TokenRole chat_role_at(const ChatText *text, size_t position);

#endif

/* Rendering chats: formats from the table of templates are written piece by piece, and every piece says
 * whose text it is, so that the role of a byte is known exactly, whatever the texts of the messages
 * hold. */
#include "chat.h"
#include "alloc.h"
#include "chat_templates.h"
#include <string.h>

const char *role_name(TokenRole role) {
    static const char *const names[N_ROLES] = {"padding", "template", "system", "user", "assistant"};
    return role < N_ROLES ? names[role] : "unknown";
}

void chat_text_free(ChatText *text) {
    text_free(&text->text);
    mem_free(text->spans);
    *text = (ChatText){0};
}

TokenRole chat_role_at(const ChatText *text, size_t position) {
    int64_t low = 0, high = text->n_spans;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (text->spans[middle].begin <= position)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? text->spans[low - 1].role : ROLE_TEMPLATE;
}

/* ---- writing ---- */
typedef struct {
    const ChatTemplate *template;
    const ChatOptions *options;
    const ChatMessage *waiting; /* a system message for the first user turn */
    ChatText *to;
} Render;

/* A failed allocation sticks to the text. */
static void put(Render *render, TokenRole role, const char *bytes, size_t length) {
    ChatText *to = render->to;
    if (!length) return;
    if (!to->n_spans || to->spans[to->n_spans - 1].role != role) {
        if (to->n_spans == to->capacity) {
            int64_t capacity = to->capacity ? 2 * to->capacity : 16;
            ChatSpan *spans = mem_resize(to->spans, (size_t)capacity, sizeof *spans);
            if (!spans) {
                to->text.failed = true;
                return;
            }
            to->spans = spans;
            to->capacity = capacity;
        }
        to->spans[to->n_spans++] = (ChatSpan){to->text.length, role};
    }
    text_put(&to->text, bytes, length);
}

static void put_template(Render *render, const char *text) { put(render, ROLE_TEMPLATE, text, strlen(text)); }

static void put_place(Render *render, const char *name, size_t length, const ChatMessage *message) {
    const ChatOptions *options = render->options;
    const char *bos = options->bos ? options->bos : render->template->bos;
    const char *eos = options->eos ? options->eos : render->template->eos;
    if (length == 1 && *name == 'c')
        put(render, message->role, message->content, message->length);
    else if (length == 1 && render->waiting) {
        put(render, ROLE_SYSTEM, render->waiting->content, render->waiting->length);
        put_template(render, "\n\n");
        render->waiting = NULL;
    } else if (length == 3)
        put_template(render, *name == 'b' ? (bos ? bos : "") : eos ? eos : "");
    else if (length == 4)
        put_template(render, options->date);
}

static void put_format(Render *render, const char *format, const ChatMessage *message) {
    while (format && *format) {
        size_t plain = strcspn(format, "{");
        put(render, ROLE_TEMPLATE, format, plain);
        format += plain;
        if (!*format) break;
        size_t length = strcspn(++format, "}");
        put_place(render, format, length, message);
        format += length + 1;
    }
}

/* ---- Qwen3's think blocks ---- */
static const char *find_last(const char *text, size_t length, const char *wanted) {
    const char *found = NULL, *at = text;
    while ((at = memmem(at, length - (size_t)(at - text), wanted, strlen(wanted)))) found = at++;
    return found;
}

/* Without the line feeds at its begin (and end). */
static ChatMessage trimmed(ChatMessage part, bool begin, bool end) {
    for (; begin && part.length && *part.content == '\n'; part.length--) part.content++;
    while (end && part.length && part.content[part.length - 1] == '\n') part.length--;
    return part;
}

/* An assistant's message falls into its reasoning, before the first </think>, and its reply, after the
 * last one. */
static void split_reasoning(const ChatMessage *message, ChatMessage *reasoning, ChatMessage *reply) {
    static const char open[] = "<think>", close[] = "</think>";
    const char *text = message->content, *first = memmem(text, message->length, close, sizeof close - 1);
    *reply = *message;
    *reasoning = (ChatMessage){message->role, text, 0};
    if (!first) return;
    const char *last = find_last(text, message->length, close) + sizeof close - 1;
    *reply =
        trimmed((ChatMessage){message->role, last, message->length - (size_t)(last - text)}, true, false);
    *reasoning = trimmed((ChatMessage){message->role, text, (size_t)(first - text)}, false, true);
    const char *begin = find_last(text, reasoning->length, open);
    if (begin) {
        begin += sizeof open - 1;
        *reasoning = (ChatMessage){message->role, begin, reasoning->length - (size_t)(begin - text)};
    }
    *reasoning = trimmed(*reasoning, true, false);
}

static void put_thinking(Render *render, const ChatMessage *message, bool after_last_user, bool last) {
    ChatMessage reasoning, reply;
    split_reasoning(message, &reasoning, &reply);
    if (after_last_user && (last || reasoning.length)) {
        reasoning = trimmed(reasoning, true, true);
        reply = trimmed(reply, true, false);
        put_format(render, "<|im_start|>assistant\n<think>\n{c}\n</think>\n\n", &reasoning);
        put_format(render, "{c}<|im_end|>\n", &reply);
    } else {
        put_format(render, render->template->assistant, &reply);
    }
}

static bool is_tool_response(const ChatMessage *message) {
    static const char open[] = "<tool_response>", close[] = "</tool_response>";
    size_t length = message->length, n_open = sizeof open - 1, n_close = sizeof close - 1;
    return length >= n_open && length >= n_close && memcmp(message->content, open, n_open) == 0 &&
           memcmp(message->content + length - n_close, close, n_close) == 0;
}

/* Index of the last question; replies behind it keep their think blocks. */
static int64_t last_question(const ChatMessage *messages, int64_t n) {
    for (int64_t i = n - 1; i >= 0; i--)
        if (messages[i].role == ROLE_USER && !is_tool_response(&messages[i])) return i;
    return n - 1;
}

/* ---- checks ---- */
static const ChatTemplate *find_template(const ChatOptions *options, Error *error) {
    for (int i = 0; i < n_chat_templates; i++)
        if (strcmp(chat_templates[i].name, options->name) == 0) return &chat_templates[i];
    Text known = {0};
    for (int i = 0; i < n_chat_templates; i++)
        text_format(&known, "%s%s", i ? ", " : "", chat_templates[i].name);
    error_set(error, ERROR_BAD_INPUT, "chat template: expected one of %s: got \"%.60s\"",
              known.bytes ? known.bytes : "", options->name);
    text_free(&known);
    return NULL;
}

static bool refuse_role(const ChatTemplate *template, int64_t i, TokenRole role, const char *expected,
                        Error *error) {
    return error_set(error, ERROR_BAD_INPUT, "chat template %s: messages[%lld]: expected %s: got role %s",
                     template->name, (long long)i, expected, role_name(role));
}

static bool check_messages(const ChatTemplate *template, const ChatMessage *messages, int64_t n,
                           Error *error) {
    if (n < 1)
        return error_set(error, ERROR_BAD_INPUT, "chat template %s: expected messages: got none",
                         template->name);
    bool has_system = messages[0].role == ROLE_SYSTEM;
    for (int64_t i = 0; i < n; i++) {
        TokenRole role = messages[i].role;
        if (role != ROLE_SYSTEM && role != ROLE_USER && role != ROLE_ASSISTANT)
            return refuse_role(template, i, role, "system, user or assistant", error);
        if (role == ROLE_SYSTEM && !template->system)
            return refuse_role(template, i, role, "user or assistant, since it has no system text", error);
        if (role == ROLE_SYSTEM && i && template->system_only_first)
            return refuse_role(template, i, role, "a system text in the first place alone", error);
        if (role == ROLE_SYSTEM || !template->alternates) continue;
        bool user_next = (i - has_system) % 2 == 0;
        if ((role == ROLE_USER) != user_next)
            return refuse_role(template, i, role,
                               user_next ? "user and assistant in turn, now user"
                                         : "user and assistant in turn, now assistant",
                               error);
    }
    if (template->alternates && has_system && n == 1)
        return error_set(error, ERROR_BAD_INPUT,
                         "chat template %s: expected a user message, which carries the system text: got none",
                         template->name);
    return true;
}

/* ---- rendering ---- */
static void put_message(Render *render, const ChatMessage *messages, int64_t n, int64_t i, int64_t question) {
    const ChatTemplate *template = render->template;
    const ChatMessage *message = &messages[i];
    bool last = i == n - 1;
    if (message->role == ROLE_USER) {
        put_format(render, template->user, message);
    } else if (message->role == ROLE_SYSTEM) {
        if (!*template->system)
            render->waiting = message;
        else
            put_format(render, template->system, message);
    } else if (template->thinks) {
        put_thinking(render, message, i > question, last);
    } else {
        bool ends = last && !render->options->add_generation_prompt && template->last_assistant;
        put_format(render, ends ? template->last_assistant : template->assistant, message);
    }
}

bool chat_render(const ChatOptions *options, const ChatMessage *messages, int64_t n_messages, ChatText *to,
                 Error *error) {
    const ChatTemplate *template = find_template(options, error);
    if (!template || !check_messages(template, messages, n_messages, error)) return false;
    if (template->opening && strstr(template->opening, "{date}") && !options->date)
        return error_set(error, ERROR_BAD_INPUT, "chat template %s: expected a date: got none",
                         template->name);
    Render render = {.template = template, .options = options, .to = to};
    put_format(&render, template->opening, NULL);
    if (template->default_system && messages[0].role != ROLE_SYSTEM) {
        /* the family's own words, not a message: role template */
        ChatMessage system = {ROLE_TEMPLATE, template->default_system, strlen(template->default_system)};
        put_format(&render, template->system, &system);
    }
    int64_t question = last_question(messages, n_messages);
    for (int64_t i = 0; i < n_messages; i++) put_message(&render, messages, n_messages, i, question);
    if (options->add_generation_prompt) {
        put_format(&render, template->generation, NULL);
        if (template->thinks && !options->thinking) put_template(&render, "<think>\n\n</think>\n\n");
    }
    return !to->text.failed || error_out_of_memory(error, "a chat", to->text.length);
}

bool chat_render_reply(const ChatOptions *options, const char *reply, size_t length, ChatText *to,
                       Error *error) {
    const ChatTemplate *template = find_template(options, error);
    if (!template) return false;
    Render render = {.template = template, .options = options, .to = to};
    ChatMessage message = {ROLE_ASSISTANT, reply, length};
    put_format(&render, template->reply, &message);
    return !to->text.failed || error_out_of_memory(error, "a chat", to->text.length);
}

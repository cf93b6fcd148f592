/* Prompts as tokens: the template around them, control tokens in their text, the target behind them, the
 * length.
 *
 * A text is encoded in one piece, as the reference does. Only where the job asks that control tokens
 * written out in a prompt stay ordinary text, and there are such, is it encoded stretch by stretch. */
#include "../engine/alloc.h"
#include "prompts.h"
#include <string.h>

/* ---- the encoder ---- */
static bool token_text(const Tokenizer *tokenizer, int32_t id, char **to, Error *error) {
    *to = NULL;
    if (id < 0) return true;
    Text text = {0};
    bool ok = tokenizer_decode(tokenizer, &id, 1, false, &text, error);
    if (ok && text.failed) ok = error_out_of_memory(error, "a token's text", text.length);
    if (ok && text.bytes) *to = mem_copy_text(text.bytes, text.length);
    text_free(&text);
    return ok;
}

static bool find_template(const ModelOptions *options, const ModelConfig *config, const char **name,
                          Error *error) {
    const char *chosen = options->chat_template;
    *name = NULL;
    if (!strcmp(chosen, "none")) return true;
    char known[400];
    size_t used = 0, n_known = 0;
    for (; chat_template_names[n_known]; n_known++) {
        int n = snprintf(known + used, sizeof known - used, "%s%s", n_known ? ", " : "",
                         chat_template_names[n_known]);
        used += n > 0 && used + (size_t)n < sizeof known ? (size_t)n : 0;
        if (!strcmp(chat_template_names[n_known], chosen)) *name = chat_template_names[n_known];
    }
    if (!strcmp(chosen, "auto")) *name = config->chat_template;
    if (*name) return true;
    if (!strcmp(chosen, "auto"))
        return error_set(
            error, ERROR_BAD_INPUT,
            "models.%s.chat_template: expected none or one of %s, since family %s has no usual one: got "
            "\"auto\"",
            options->name, known, config->family);
    const char *near = json_nearest(chosen, chat_template_names, n_known);
    return error_set(error, ERROR_BAD_INPUT,
                     "models.%s.chat_template: expected auto, none or one of %s: got \"%.80s\"%s%s%s",
                     options->name, known, chosen, near ? " (did you mean \"" : "", near ? near : "",
                     near ? "\"?)" : "");
}

bool prompt_encoder_make(const ModelOptions *options, const ModelConfig *config, Tokenizer *tokenizer,
                         PromptEncoder *encoder, Error *error) {
    *encoder = (PromptEncoder){.options = options, .config = config, .tokenizer = tokenizer};
    bool ok = find_template(options, config, &encoder->chat_template, error);
    int64_t n = tokenizer_size(tokenizer);
    if (ok && n > config->vocab_size)
        ok = error_set(
            error, ERROR_BAD_INPUT,
            "%s/tokenizer.json: expected a tokenizer of at most %lld tokens, as the model's vocab_size says: "
            "got one of %lld",
            config->folder ? config->folder : options->path, (long long)config->vocab_size, (long long)n);
    ok = ok && token_text(tokenizer, tokenizer_bos(tokenizer), &encoder->bos, error) &&
         token_text(tokenizer, tokenizer_eos(tokenizer), &encoder->eos, error);
    if (!ok) prompt_encoder_close(encoder);
    return ok;
}

bool prompt_encoder_open(const ModelOptions *options, const ModelConfig *config, PromptEncoder *encoder,
                         Error *error) {
    *encoder = (PromptEncoder){0};
    Tokenizer *tokenizer = tokenizer_open(options->path, error);
    return tokenizer && prompt_encoder_make(options, config, tokenizer, encoder, error);
}

void prompt_encoder_close(PromptEncoder *encoder) {
    if (encoder->tokenizer) tokenizer_free(encoder->tokenizer);
    mem_free(encoder->bos);
    mem_free(encoder->eos);
    *encoder = (PromptEncoder){0};
}

/* ---- rendering ---- */
static ChatOptions chat_options(const PromptEncoder *encoder, bool generation_prompt) {
    const ModelOptions *o = encoder->options;
    return (ChatOptions){.name = encoder->chat_template,
                         .bos = encoder->bos,
                         .eos = encoder->eos,
                         .date = o->date[0] ? o->date : NULL,
                         .thinking = o->thinking,
                         .add_generation_prompt = generation_prompt};
}

/* A text that is all of one role. */
static bool put_plain(const char *text, size_t length, TokenRole role, ChatText *to, Error *error) {
    to->spans = mem_zeroed(1, sizeof *to->spans);
    if (!to->spans) return error_out_of_memory(error, "a prompt", sizeof *to->spans);
    to->spans[0].role = role;
    to->n_spans = to->capacity = 1;
    text_put(&to->text, text, length);
    return !to->text.failed || error_out_of_memory(error, "a prompt", length);
}

bool prompts_render(const PromptEncoder *encoder, const PromptOptions *options, const PromptEntry *entry,
                    ChatText *text, Error *error) {
    bool add_system = options->system[0] && entry->messages[0].role != ROLE_SYSTEM;
    if (!encoder->chat_template) {
        if (entry->n_messages != 1 || add_system || entry->messages[0].role != ROLE_USER)
            return error_set(
                error, ERROR_BAD_INPUT,
                "expected one user text, since the model's chat_template is none: got %lld messages",
                (long long)(entry->n_messages + add_system));
        return put_plain(entry->messages[0].content, entry->messages[0].length, ROLE_USER, text, error);
    }
    int64_t n = entry->n_messages + add_system;
    ChatMessage *messages = mem_zeroed((size_t)n, sizeof *messages);
    if (!messages) return error_out_of_memory(error, "messages", (size_t)n * sizeof *messages);
    if (add_system) messages[0] = (ChatMessage){ROLE_SYSTEM, options->system, strlen(options->system)};
    memcpy(messages + add_system, entry->messages, (size_t)entry->n_messages * sizeof *messages);
    bool prompt = encoder->options->generation_prompt && messages[n - 1].role != ROLE_ASSISTANT;
    ChatOptions how = chat_options(encoder, prompt);
    bool ok = chat_render(&how, messages, n, text, error);
    mem_free(messages);
    return ok;
}

static bool render_target(const PromptEncoder *encoder, const PromptOptions *options,
                          const PromptEntry *entry, ChatText *text, Error *error) {
    if (!encoder->chat_template)
        return put_plain(entry->target, entry->target_length, ROLE_ASSISTANT, text, error);
    ChatOptions how = chat_options(encoder, true);
    if (!chat_render_reply(&how, entry->target, entry->target_length, text, error)) return false;
    int64_t last = text->n_spans - 1;
    if (!options->target_end && last > 0 && text->spans[last].role == ROLE_TEMPLATE) {
        text->text.length = text->spans[last].begin;
        text->text.bytes[text->text.length] = '\0';
        text->n_spans--;
    }
    return true;
}

/* ---- encoding ---- */
/* Whether an encoding of the bytes differs when control tokens in them are ordinary text. */
static bool holds_special(const PromptEncoder *encoder, const char *bytes, size_t n, bool *holds,
                          Error *error) {
    TokenList with = {0}, without = {0};
    bool ok = tokenizer_encode(encoder->tokenizer, bytes, n, (EncodeOptions){0}, &with, error) &&
              tokenizer_encode(encoder->tokenizer, bytes, n, (EncodeOptions){.plain_special = true}, &without,
                               error);
    *holds = ok && (with.n != without.n ||
                    (with.n && memcmp(with.ids, without.ids, (size_t)with.n * sizeof *with.ids) != 0));
    token_list_free(&with);
    token_list_free(&without);
    return ok;
}

static size_t span_end(const ChatText *text, int64_t s) {
    return s + 1 < text->n_spans ? text->spans[s + 1].begin : text->text.length;
}

static bool encode_by_spans(const PromptEncoder *encoder, const ChatText *text, TokenList *list,
                            Error *error) {
    for (int64_t s = 0; s < text->n_spans; s++) {
        size_t begin = text->spans[s].begin, n = span_end(text, s) - begin;
        int64_t first = list->n;
        EncodeOptions how = {.plain_special = text->spans[s].role != ROLE_TEMPLATE};
        if (!tokenizer_encode(encoder->tokenizer, text->text.bytes + begin, n, how, list, error))
            return false;
        for (int64_t i = first; i < list->n; i++) list->starts[i] += (int64_t)begin;
    }
    return true;
}

static bool encode_text(const PromptEncoder *encoder, const ChatText *text, bool is_target, TokenList *list,
                        Error *error) {
    const char *bytes = text->text.bytes ? text->text.bytes : "";
    bool plain = !encoder->chat_template, parse = encoder->options->parse_special_in_content;
    if (plain) {
        EncodeOptions how = {encoder->options->add_special && !is_target, !parse};
        return tokenizer_encode(encoder->tokenizer, bytes, text->text.length, how, list, error);
    }
    bool holds = false;
    for (int64_t s = 0; !parse && !holds && s < text->n_spans; s++) {
        size_t begin = text->spans[s].begin;
        if (text->spans[s].role != ROLE_TEMPLATE &&
            !holds_special(encoder, bytes + begin, span_end(text, s) - begin, &holds, error))
            return false;
    }
    if (holds) return encode_by_spans(encoder, text, list, error);
    return tokenizer_encode(encoder->tokenizer, bytes, text->text.length, (EncodeOptions){0}, list, error);
}

static TokenRole role_of(const PromptEncoder *encoder, const ChatText *text, const TokenList *list,
                         int64_t i) {
    if (!encoder->chat_template && tokenizer_is_special(encoder->tokenizer, list->ids[i]))
        return ROLE_TEMPLATE;
    size_t start = (size_t)list->starts[i], length = text->text.length;
    return chat_role_at(text, start < length || !length ? start : length - 1);
}

static bool put_tokens(const PromptEncoder *encoder, const ChatText *text, const TokenList *list,
                       int32_t *tokens, uint8_t *roles, Error *error) {
    for (int64_t i = 0; i < list->n; i++) {
        tokens[i] = list->ids[i];
        roles[i] = (uint8_t)role_of(encoder, text, list, i);
        if (tokens[i] < 0 || tokens[i] >= encoder->config->vocab_size)
            return error_set(
                error, ERROR_BAD_INPUT,
                "expected token ids below the model's vocab_size %lld: got %d from its tokenizer",
                (long long)encoder->config->vocab_size, tokens[i]);
    }
    return true;
}

/* ---- length ---- */
/* Most tokens that the prompt itself may have; negative when target and reply alone are too long. */
static int64_t prompt_room(const PromptEncoder *encoder, const PromptOptions *options, EncodeNeeds needs,
                           int64_t n_target) {
    int64_t most = options->max_tokens, model = encoder->config->max_positions,
            n_behind = n_target + needs.n_reserved;
    if (needs.target_if_given) n_behind = n_target > needs.n_reserved ? n_target : needs.n_reserved;
    if (model > 0 && (most == 0 || most > model)) most = model;
    return most ? most - n_behind : INT64_MAX;
}

typedef enum { FITS, LEFT_OUT, REFUSED } Fit;

static Fit fit_prompt(const PromptOptions *options, int64_t n_least, int64_t room, EncodedPrompt *prompt,
                      Error *error) {
    if (prompt->n_prompt < n_least) {
        if (options->empty == EMPTY_SKIP) return LEFT_OUT;
        error_set(error, ERROR_BAD_INPUT, "expected at least %lld tokens (empty: refuse): got %lld",
                  (long long)n_least, (long long)prompt->n_prompt);
        return REFUSED;
    }
    if (prompt->n_prompt <= room) return FITS;
    bool cut =
        options->over_long == OVER_LONG_TRUNCATE_LEFT || options->over_long == OVER_LONG_TRUNCATE_RIGHT;
    if (options->over_long == OVER_LONG_SKIP) return LEFT_OUT;
    if (!cut || room < n_least) {
        error_set(error, ERROR_BAD_INPUT, "expected at most %lld tokens (over_long: %s): got %lld",
                  (long long)(room > 0 ? room : 0),
                  option_choice("over_long", SCOPE_PROMPTS, options->over_long), (long long)prompt->n_prompt);
        return REFUSED;
    }
    int64_t first = options->over_long == OVER_LONG_TRUNCATE_LEFT ? prompt->n_prompt - room : 0;
    memmove(prompt->tokens, prompt->tokens + first, (size_t)room * sizeof *prompt->tokens);
    memmove(prompt->roles, prompt->roles + first, (size_t)room);
    memmove(prompt->tokens + room, prompt->tokens + prompt->n_prompt,
            (size_t)prompt->n_target * sizeof *prompt->tokens);
    memmove(prompt->roles + room, prompt->roles + prompt->n_prompt, (size_t)prompt->n_target);
    prompt->n_prompt = room;
    prompt->truncated = true;
    return FITS;
}

/* ---- a group ---- */
static bool has_text(const PromptEntry *entry) {
    for (int64_t i = 0; i < entry->n_messages; i++)
        if (entry->messages[i].length) return true;
    return false;
}

static bool encode_entry(const PromptEncoder *encoder, const PromptOptions *options, bool with_target,
                         EncodedPrompt *prompt, Error *error) {
    const PromptEntry *entry = prompt->entry;
    ChatText text = {0}, target = {0};
    TokenList list = {0}, target_list = {0};
    bool ok = prompts_render(encoder, options, entry, &text, error) &&
              encode_text(encoder, &text, false, &list, error);
    if (ok && with_target)
        ok = render_target(encoder, options, entry, &target, error) &&
             encode_text(encoder, &target, true, &target_list, error);
    prompt->n_prompt = list.n;
    prompt->n_target = target_list.n;
    size_t n = (size_t)(list.n + target_list.n);
    if (ok) {
        prompt->tokens = mem_zeroed(n ? n : 1, sizeof *prompt->tokens);
        prompt->roles = mem_zeroed(n ? n : 1, 1);
        if (!prompt->tokens || !prompt->roles) ok = error_out_of_memory(error, "tokens", n * 5);
    }
    ok = ok && put_tokens(encoder, &text, &list, prompt->tokens, prompt->roles, error) &&
         put_tokens(encoder, &target, &target_list, prompt->tokens + list.n, prompt->roles + list.n, error);
    chat_text_free(&text);
    chat_text_free(&target);
    token_list_free(&list);
    token_list_free(&target_list);
    return ok;
}

static Fit add_prompt(const PromptEncoder *encoder, EncodeNeeds needs, PromptGroup *group,
                      EncodedPrompt *prompt, Error *error) {
    const PromptEntry *entry = prompt->entry;
    if (needs.target && !entry->target) {
        error_set(error, ERROR_BAD_INPUT, "expected a target, since the step is about targets: got none");
        return REFUSED;
    }
    if (!has_text(entry)) {
        if (group->options->empty == EMPTY_SKIP) return LEFT_OUT;
        error_set(error, ERROR_BAD_INPUT, "expected a text (empty: refuse): got an empty prompt");
        return REFUSED;
    }
    bool with_target = needs.target || (needs.target_if_given && entry->target);
    if (!encode_entry(encoder, group->options, with_target, prompt, error)) return REFUSED;
    if (needs.target && !prompt->n_target) {
        error_set(error, ERROR_BAD_INPUT, "expected a target of at least one token: got none");
        return REFUSED;
    }
    int64_t n_least = needs.n_prompt_least > 1 ? needs.n_prompt_least : 1,
            room = prompt_room(encoder, group->options, needs, prompt->n_target);
    if (needs.target && room < n_least && group->options->over_long != OVER_LONG_SKIP) {
        const int64_t most = room + prompt->n_target - n_least;
        error_set(error, ERROR_BAD_INPUT,
                  "expected a target of at most %lld tokens, so that a prompt fits before it: got %lld",
                  (long long)(most > 0 ? most : 0), (long long)prompt->n_target);
        return REFUSED;
    }
    return fit_prompt(group->options, n_least, room, prompt, error);
}

static void prompt_free(EncodedPrompt *prompt) {
    mem_free(prompt->tokens);
    mem_free(prompt->roles);
    *prompt = (EncodedPrompt){0};
}

bool prompts_encode(const PromptEncoder *encoder, const PromptOptions *options, EncodeNeeds needs,
                    PromptFile *file, PromptGroup *group, Error *error) {
    *group = (PromptGroup){.options = options, .file = *file};
    *file = (PromptFile){0};
    size_t n = group->file.n ? (size_t)group->file.n : 1;
    group->prompts = mem_zeroed(n, sizeof *group->prompts);
    if (!group->prompts) return error_out_of_memory(error, "prompts", n * sizeof *group->prompts);
    for (int64_t i = 0; i < group->file.n; i++) {
        EncodedPrompt *prompt = &group->prompts[group->n];
        const PromptEntry *entry = prompt->entry = &group->file.entries[i];
        Fit fit = add_prompt(encoder, needs, group, prompt, error);
        if (fit == REFUSED) {
            prompt_free(prompt);
            return error_add_place(error, "%s:%lld: prompt \"%.80s\"", group->file.file,
                                   (long long)entry->line, entry->id);
        }
        if (fit == LEFT_OUT) {
            prompt_free(prompt);
            group->n_left_out++;
            continue;
        }
        group->n_truncated += prompt->truncated;
        group->n++;
    }
    if (!group->n)
        return error_set(error, ERROR_BAD_INPUT,
                         "%s: expected at least one prompt that is not left out: got none of %lld",
                         group->file.file, (long long)group->file.n);
    return true;
}

void prompt_group_free(PromptGroup *group) {
    for (int64_t i = 0; i < group->n; i++) prompt_free(&group->prompts[i]);
    mem_free(group->prompts);
    prompts_free(&group->file);
    *group = (PromptGroup){0};
}

/* Reading what stands at the ends: post_processor, decoder, and the bos and eos of tokenizer_config.json. */
#include "alloc.h"
#include "tokenizer_parts.h"
#include "tokenizer_unicode.h"
#include <string.h>

/* ---- post-processor ---- */
static bool put_id(int32_t **ids, int64_t *n, int64_t id, Error *error) {
    if (!tokenizer_grow((void **)ids, *n, sizeof **ids, error)) return false;
    (*ids)[(*n)++] = (int32_t)id;
    return true;
}

/* The ids of one special token of a template: special_tokens.NAME.ids. */
static bool put_template_token(Tokenizer *tokenizer, const Json *template, const Json *piece, bool behind,
                               Error *error) {
    const char *name;
    Json id_name = json_member(piece, "id"), tokens = json_member(template, "special_tokens");
    if (!json_string(id_name, &name, error)) return false;
    Json token = json_member(&tokens, name), ids = json_member(&token, "ids"), at = {0};
    if (!ids.node || json_type(ids) != JSON_ARRAY)
        return json_error(id_name, error, "expected a token of special_tokens: got \"%.60s\"", name);
    while (json_next(&ids, &at)) {
        int64_t id;
        if (!json_integer(at, 0, tokenizer->n_ids - 1, &id, error)) return false;
        bool done = behind ? put_id(&tokenizer->after, &tokenizer->n_after, id, error)
                           : put_id(&tokenizer->before, &tokenizer->n_before, id, error);
        if (!done) return false;
    }
    return true;
}

static bool read_template(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)type;
    Json single = json_member(at, "single"), piece = {0};
    int n_texts = 0;
    if (!single.node || json_type(single) != JSON_ARRAY)
        return json_error(single, error, "expected an array");
    if (tokenizer->has_template) return json_error(*at, error, "expected at most one TemplateProcessing");
    while (json_next(&single, &piece)) {
        Json text = json_member(&piece, "Sequence"), token = json_member(&piece, "SpecialToken");
        const char *name;
        if (token.node) {
            if (!put_template_token(tokenizer, at, &token, n_texts > 0, error)) return false;
            continue;
        }
        if (!text.node) return json_error(piece, error, "expected SpecialToken or Sequence");
        if (!json_string(json_member(&text, "id"), &name, error)) return false;
        if (strcmp(name, "A") != 0 || n_texts++)
            return json_error(text, error, "expected the text \"A\" once: got \"%.20s\"", name);
    }
    if (!n_texts) return json_error(single, error, "expected the text \"A\" once: got none");
    tokenizer->has_template = true;
    return true;
}

static bool read_post_processor(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    if (strcmp(type, "ByteLevel") == 0) return true; /* moves offsets, adds no ids */
    if (strcmp(type, "TemplateProcessing") == 0) return read_template(tokenizer, at, type, error);
    return json_error(json_member(at, "type"), error,
                      "expected TemplateProcessing, ByteLevel or Sequence: got \"%.40s\"", type);
}

bool tokenizer_read_post_processor(Tokenizer *tokenizer, const Json *root, Error *error) {
    Json at = json_member(root, "post_processor");
    return tokenizer_read_parts(tokenizer, &at, "processors", read_post_processor, error);
}

/* ---- decoders ---- */
static bool read_decoder_metaspace(Decoder *step, const Json *at, Error *error) {
    Json scheme = json_member(at, "prepend_scheme");
    const char *name;
    if (!tokenizer_read_flag(at, "add_prefix_space", true, &step->drops_first, error)) return false;
    if (scheme.node) {
        if (!json_string(scheme, &name, error)) return false;
        step->drops_first = strcmp(name, "never") != 0;
    }
    return tokenizer_read_character(at, "replacement", &step->character, error);
}

static bool read_decoder(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    static const char *const names[] = {"Replace", "ByteFallback", "Fuse", "Strip", "ByteLevel", "Metaspace"};
    int kind = 0, n_kinds = (int)(sizeof names / sizeof *names);
    while (kind < n_kinds && strcmp(names[kind], type) != 0) kind++;
    if (kind == n_kinds)
        return json_error(
            json_member(at, "type"), error,
            "expected Replace, ByteFallback, Fuse, Strip, ByteLevel, Metaspace or Sequence: got \"%.40s\"",
            type);
    if (!tokenizer_grow((void **)&tokenizer->decoders, tokenizer->n_decoders, sizeof(Decoder), error))
        return false;
    Decoder *step = &tokenizer->decoders[tokenizer->n_decoders++];
    step->kind = (DecoderKind)kind;
    switch (step->kind) {
    case DECODE_REPLACE:
        return tokenizer_read_pattern(at, "pattern", &step->pattern, error) &&
               tokenizer_read_text(at, "content", &step->content, &step->length, error);
    case DECODE_STRIP:
        return tokenizer_read_character(at, "content", &step->character, error) &&
               json_integer(json_member(at, "start"), 0, INT32_MAX, &step->start, error) &&
               json_integer(json_member(at, "stop"), 0, INT32_MAX, &step->stop, error);
    case DECODE_METASPACE: return read_decoder_metaspace(step, at, error);
    case DECODE_BYTE_FALLBACK:
    case DECODE_FUSE:
    case DECODE_BYTE_LEVEL: break;
    }
    return true;
}

bool tokenizer_read_decoders(Tokenizer *tokenizer, const Json *root, Error *error) {
    Json at = json_member(root, "decoder");
    return tokenizer_read_parts(tokenizer, &at, "decoders", read_decoder, error);
}

/* ---- tokenizer_config.json ---- */
/* A token given as a string or as an object with its content; absent or null: -1. */
static bool read_named_token(const Tokenizer *tokenizer, const Json *root, const char *key, int32_t *id,
                             Error *error) {
    Json at = json_member(root, key);
    const char *name;
    *id = -1;
    if (!at.node || json_type(at) == JSON_NULL) return true;
    Json content = json_type(at) == JSON_OBJECT ? json_member(&at, "content") : at;
    if (!json_string(content, &name, error)) return false;
    *id = tokenizer_id(tokenizer, name);
    return *id >= 0 || json_error(at, error, "expected a token of tokenizer.json: got \"%.60s\"", name);
}

bool tokenizer_read_config(Tokenizer *tokenizer, const Json *root, Error *error) {
    Json class = json_member(root, "tokenizer_class");
    const char *class_name = "";
    bool add_bos, add_eos;
    bool done = read_named_token(tokenizer, root, "bos_token", &tokenizer->bos, error) &&
                read_named_token(tokenizer, root, "eos_token", &tokenizer->eos, error) &&
                tokenizer_read_flag(root, "add_bos_token", false, &add_bos, error) &&
                tokenizer_read_flag(root, "add_eos_token", false, &add_eos, error);
    if (!done) return false;
    if (class.node && json_type(class) != JSON_NULL && !json_string(class, &class_name, error)) return false;
    bool llama = strcmp(class_name, "LlamaTokenizer") == 0 || strcmp(class_name, "LlamaTokenizerFast") == 0;
    if (tokenizer->has_template || !llama) return true;
    if (add_bos && tokenizer->bos >= 0 &&
        !put_id(&tokenizer->before, &tokenizer->n_before, tokenizer->bos, error))
        return false;
    return !add_eos || tokenizer->eos < 0 ||
           put_id(&tokenizer->after, &tokenizer->n_after, tokenizer->eos, error);
}

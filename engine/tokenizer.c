/* The tokenizer's door: opening, look-ups, and encoding in the order of the Hugging Face library. First
 * the added tokens of the raw text, then for what lies between the normalizer, the added tokens of the
 * normalised text, the pre-tokenizers and the merges. (reference: the project's notes on formats,
 * section 6.3) */
#include "tokenizer.h"
#include "alloc.h"
#include "io.h"
#include "tokenizer_parts.h"
#include <string.h>

enum { MAX_FILE_BYTES = 512 << 20 };

/* ---- lists of tokens ---- */
void token_list_free(TokenList *list) {
    mem_free(list->ids);
    mem_free(list->starts);
    *list = (TokenList){0};
}

bool token_list_put(TokenList *list, int32_t id, int64_t start) {
    if (list->n == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 64;
        int32_t *ids = mem_resize(list->ids, (size_t)capacity, sizeof *ids);
        if (!ids) return false;
        list->ids = ids;
        int64_t *starts = mem_resize(list->starts, (size_t)capacity, sizeof *starts);
        if (!starts) return false;
        list->starts = starts;
        list->capacity = capacity;
    }
    list->ids[list->n] = id;
    list->starts[list->n++] = start;
    return true;
}

/* ---- opening ---- */
static bool read_json(Tokenizer *tokenizer, const JsonDocument *document, Error *error) {
    Json root = json_root(document);
    if (json_type(root) != JSON_OBJECT) return json_error(root, error, "expected an object");
    return tokenizer_read_normalizers(tokenizer, &root, error) &&
           tokenizer_read_pre_tokenizers(tokenizer, &root, error) &&
           tokenizer_read_model(tokenizer, &root, error) && tokenizer_read_added(tokenizer, &root, error) &&
           tokenizer_read_post_processor(tokenizer, &root, error) &&
           tokenizer_read_decoders(tokenizer, &root, error);
}

static bool open_shared(Tokenizer *tokenizer, Error *error) {
    tokenizer->shared = mem_zeroed(1, sizeof *tokenizer->shared);
    if (!tokenizer->shared) return error_out_of_memory(error, "the tokenizer", sizeof *tokenizer->shared);
    pthread_mutex_init(&tokenizer->shared->lock, NULL);
    return true;
}

/* Takes the document over. */
static Tokenizer *from_document(JsonDocument *document, Error *error) {
    Tokenizer *tokenizer = document ? mem_zeroed(1, sizeof *tokenizer) : NULL;
    if (document && !tokenizer) error_out_of_memory(error, "the tokenizer", sizeof *tokenizer);
    if (tokenizer) {
        tokenizer->bos = tokenizer->eos = -1;
        if (!open_shared(tokenizer, error) || !read_json(tokenizer, document, error)) {
            tokenizer_free(tokenizer);
            tokenizer = NULL;
        }
    }
    json_free(document);
    return tokenizer;
}

Tokenizer *tokenizer_from_json(const char *json, size_t length, const char *name, Error *error) {
    return from_document(json_parse(json, length, name, error), error);
}

static bool open_config(Tokenizer *tokenizer, const char *folder, Error *error) {
    char *path = io_join(folder, "tokenizer_config.json");
    if (!path) return error_out_of_memory(error, "a path", strlen(folder));
    bool done = true;
    if (io_exists(path)) {
        JsonDocument *document = json_read(path, MAX_FILE_BYTES, error);
        done = document != NULL;
        if (document) {
            Json root = json_root(document);
            done = tokenizer_read_config(tokenizer, &root, error);
        }
        json_free(document);
    }
    mem_free(path);
    return done;
}

Tokenizer *tokenizer_open(const char *folder, Error *error) {
    char *path = io_join(folder, "tokenizer.json");
    if (!path) {
        error_out_of_memory(error, "a path", strlen(folder));
        return NULL;
    }
    Tokenizer *tokenizer = from_document(json_read(path, MAX_FILE_BYTES, error), error);
    mem_free(path);
    if (tokenizer && !open_config(tokenizer, folder, error)) {
        tokenizer_free(tokenizer);
        return NULL;
    }
    return tokenizer;
}

void tokenizer_free(Tokenizer *tokenizer) {
    if (!tokenizer) return;
    vocabulary_free(&tokenizer->model.vocabulary);
    merge_table_free(&tokenizer->model.merges);
    for (int64_t i = 0; i < tokenizer->n_added; i++) mem_free(tokenizer->added[i].content);
    mem_free(tokenizer->added);
    vocabulary_free(&tokenizer->added_names);
    mem_free(tokenizer->added_of_id);
    trie_free(&tokenizer->raw);
    trie_free(&tokenizer->normalised);
    for (int64_t i = 0; i < tokenizer->n_normalizers; i++) {
        pattern_free(&tokenizer->normalizers[i].pattern);
        mem_free(tokenizer->normalizers[i].content);
    }
    mem_free(tokenizer->normalizers);
    for (int64_t i = 0; i < tokenizer->n_piece_steps; i++) pattern_free(&tokenizer->piece_steps[i].pattern);
    mem_free(tokenizer->piece_steps);
    for (int64_t i = 0; i < tokenizer->n_decoders; i++) {
        pattern_free(&tokenizer->decoders[i].pattern);
        mem_free(tokenizer->decoders[i].content);
    }
    mem_free(tokenizer->decoders);
    mem_free(tokenizer->before);
    mem_free(tokenizer->after);
    if (tokenizer->shared) {
        word_cache_free(tokenizer->shared->cache);
        pthread_mutex_destroy(&tokenizer->shared->lock);
        mem_free(tokenizer->shared);
    }
    mem_free(tokenizer);
}

/* ---- look-ups ---- */
int64_t tokenizer_size(const Tokenizer *tokenizer) { return tokenizer->n_ids; }
int32_t tokenizer_bos(const Tokenizer *tokenizer) { return tokenizer->bos; }
int32_t tokenizer_eos(const Tokenizer *tokenizer) { return tokenizer->eos; }

int32_t tokenizer_id(const Tokenizer *tokenizer, const char *token) {
    int32_t id = vocabulary_find(&tokenizer->added_names, token, strlen(token));
    return id >= 0 ? id : vocabulary_find(&tokenizer->model.vocabulary, token, strlen(token));
}

bool tokenizer_is_special(const Tokenizer *tokenizer, int32_t id) {
    if (id < 0 || id >= tokenizer->n_ids || tokenizer->added_of_id[id] < 0) return false;
    return tokenizer->added[tokenizer->added_of_id[id]].special;
}

/* ---- encoding ---- */
typedef struct {
    const Tokenizer *tokenizer;
    WordCache *cache; /* NULL: none */
    StageSpace normal, split;
    AddedSpanList raw, normalised;
    BpeSpace bpe;
    TokenList *list;
    int64_t last_start; /* starts never fall */
    Error *error;
} Encoder;

static bool put(Encoder *encoder, int32_t id, int64_t start) {
    if (start > encoder->last_start) encoder->last_start = start;
    return token_list_put(encoder->list, id, encoder->last_start) ||
           error_out_of_memory(encoder->error, "tokens", (size_t)encoder->list->n * 12);
}

/* A word, or a part of one that merges by itself. */
static bool encode_part(Encoder *encoder, const Stretch *text, Span part) {
    const char *bytes = text->bytes + part.begin;
    size_t length = part.end - part.begin, n = 0;
    const WordToken *tokens = encoder->cache ? word_cache_find(encoder->cache, bytes, length, &n) : NULL;
    if (!tokens) {
        if (!bpe_encode(&encoder->tokenizer->model, bytes, length, &encoder->bpe, encoder->error))
            return false;
        tokens = encoder->bpe.tokens;
        n = encoder->bpe.n_tokens;
        if (encoder->cache) word_cache_put(encoder->cache, bytes, length, tokens, n);
    }
    for (size_t i = 0; i < n; i++)
        if (!put(encoder, tokens[i].id, stretch_origin(text, part.begin + tokens[i].begin))) return false;
    return true;
}

static bool encode_word(Encoder *encoder, const Stretch *text, Span word) {
    while (word.begin < word.end) {
        size_t end = word.begin +
                     bpe_part(&encoder->tokenizer->model, text->bytes + word.begin, word.end - word.begin);
        if (!encode_part(encoder, text, (Span){word.begin, end, false})) return false;
        word.begin = end;
    }
    return true;
}

/* What lies between added tokens, normalised. */
static bool encode_plain(Encoder *encoder, Stretch text) {
    const Tokenizer *tokenizer = encoder->tokenizer;
    if (!split_text(tokenizer->piece_steps, tokenizer->n_piece_steps, &encoder->split, &text, encoder->error))
        return false;
    for (size_t i = 0; i < encoder->split.pieces.n; i++)
        if (!encode_word(encoder, &text, encoder->split.pieces.items[i])) return false;
    return true;
}

/* A stretch of the raw text without added tokens of the first kind. */
static bool encode_between(Encoder *encoder, Stretch text, bool plain_special) {
    const Tokenizer *tokenizer = encoder->tokenizer;
    if (!normalize(tokenizer->normalizers, tokenizer->n_normalizers, &encoder->normal, &text, encoder->error))
        return false;
    if (plain_special || !tokenizer->normalised.n) return encode_plain(encoder, text);
    if (!added_find(tokenizer->added, &tokenizer->normalised, text.bytes, text.n, &encoder->normalised,
                    encoder->error))
        return false;
    for (size_t i = 0; i < encoder->normalised.n; i++) {
        AddedSpan span = encoder->normalised.items[i];
        Stretch part = {text.bytes + span.begin, span.end - span.begin,
                        text.origins ? text.origins + span.begin : NULL, text.base + (int64_t)span.begin, 0};
        bool done = span.token < 0
                        ? encode_plain(encoder, part)
                        : put(encoder, tokenizer->added[span.token].id, stretch_origin(&text, span.begin));
        if (!done) return false;
    }
    return true;
}

static bool encode_text(Encoder *encoder, const char *text, size_t length, bool plain_special) {
    const Tokenizer *tokenizer = encoder->tokenizer;
    if (plain_special || !tokenizer->raw.n)
        return encode_between(encoder, (Stretch){.bytes = text, .n = length}, plain_special);
    if (!added_find(tokenizer->added, &tokenizer->raw, text, length, &encoder->raw, encoder->error))
        return false;
    for (size_t i = 0; i < encoder->raw.n; i++) {
        AddedSpan span = encoder->raw.items[i];
        Stretch part = {.bytes = text + span.begin, .n = span.end - span.begin, .base = (int64_t)span.begin};
        bool done = span.token < 0 ? encode_between(encoder, part, plain_special)
                                   : put(encoder, tokenizer->added[span.token].id, (int64_t)span.begin);
        if (!done) return false;
    }
    return true;
}

/* The shared cache, where no other thread has it; its absence costs time alone. */
static bool borrow_cache(Encoder *encoder) {
    SharedCache *shared = encoder->tokenizer->shared;
    if (pthread_mutex_trylock(&shared->lock) != 0) return true;
    if (!shared->cache) shared->cache = word_cache_create();
    encoder->cache = shared->cache;
    if (encoder->cache) return true;
    pthread_mutex_unlock(&shared->lock);
    return error_out_of_memory(encoder->error, "the word cache", 1 << 20);
}

static void encoder_free(Encoder *encoder) {
    if (encoder->cache) pthread_mutex_unlock(&encoder->tokenizer->shared->lock);
    stage_space_free(&encoder->normal);
    stage_space_free(&encoder->split);
    mem_free(encoder->raw.items);
    mem_free(encoder->normalised.items);
    bpe_space_free(&encoder->bpe);
}

bool tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t length, EncodeOptions options,
                      TokenList *list, Error *error) {
    size_t bad;
    if (!text_is_utf8(text, length, &bad))
        return error_set(error, ERROR_BAD_INPUT, "text: expected UTF-8: got byte 0x%02x at offset %zu",
                         (unsigned char)text[bad], bad);
    Encoder encoder = {.tokenizer = tokenizer, .list = list, .error = error};
    bool done = borrow_cache(&encoder);
    for (int64_t i = 0; done && options.add_special && i < tokenizer->n_before; i++)
        done = put(&encoder, tokenizer->before[i], 0);
    done = done && (!length || encode_text(&encoder, text, length, options.plain_special));
    for (int64_t i = 0; done && options.add_special && i < tokenizer->n_after; i++)
        done = put(&encoder, tokenizer->after[i], (int64_t)length);
    encoder_free(&encoder);
    return done;
}

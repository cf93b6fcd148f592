/* What the readers of tokenizer.json share, and the parts model, added tokens and tokenizer_config.json.
 * Everything is checked where it is read: ids against a bound before any table grows to them, merges
 * against the vocabulary. */
#include "alloc.h"
#include "tokenizer_parts.h"
#include "tokenizer_unicode.h"
#include <stdio.h>
#include <string.h>

enum { ID_GAP = 1 << 18, MAX_ADDED_BYTES = 4096 };

/* ---- shared ---- */
bool tokenizer_read_flag(const Json *object, const char *key, bool fallback, bool *value, Error *error) {
    Json at = json_member(object, key);
    *value = fallback;
    return !at.node || json_type(at) == JSON_NULL || json_bool(at, value, error);
}

bool tokenizer_read_text(const Json *object, const char *key, char **text, size_t *length, Error *error) {
    const char *value;
    if (!json_string(json_member(object, key), &value, error)) return false;
    *length = strlen(value);
    *text = mem_copy_text(value, *length);
    return *text || error_out_of_memory(error, "the tokenizer", *length);
}

bool tokenizer_read_type(const Json *object, const char **type, Error *error) {
    if (json_type(*object) != JSON_OBJECT)
        return json_error(*object, error, "expected an object: got %s", json_type_name(json_type(*object)));
    return json_string(json_member(object, "type"), type, error);
}

bool tokenizer_read_character(const Json *object, const char *key, int32_t *code, Error *error) {
    const char *text;
    Json at = json_member(object, key);
    if (!json_string(at, &text, error)) return false;
    if (*text && utf8_read(text, code) == strlen(text)) return true;
    return json_error(at, error, "expected one character: got \"%.40s\"", text);
}

bool tokenizer_read_pattern(const Json *object, const char *key, Pattern *pattern, Error *error) {
    Json at = json_member(object, key);
    if (!at.node || json_type(at) != JSON_OBJECT)
        return json_error(at, error, "expected an object with String or Regex");
    Json literal = json_member(&at, "String"), regex = json_member(&at, "Regex");
    const char *text;
    bool made;
    if (literal.node)
        made = json_string(literal, &text, error) && pattern_literal(pattern, text, strlen(text), error);
    else
        made = json_string(regex, &text, error) && pattern_regex(pattern, text, error);
    if (made) return true;
    char path[200];
    json_path(at, path, sizeof path);
    return error_add_place(error, "%s: %s", at.file, path);
}

bool tokenizer_grow(void **items, int64_t n, size_t item_bytes, Error *error) {
    char *block = mem_resize(*items, (size_t)n + 1, item_bytes);
    if (!block) return error_out_of_memory(error, "the tokenizer", ((size_t)n + 1) * item_bytes);
    memset(block + (size_t)n * item_bytes, 0, item_bytes);
    *items = block;
    return true;
}

/* One level: the parts of a Sequence, or the part itself. The nesting is bounded by the JSON reader's. */
bool tokenizer_read_parts(Tokenizer *tokenizer, const Json *at, const char *list_key, PartReader *read,
                          Error *error) {
    const char *type;
    if (!at->node || json_type(*at) == JSON_NULL) return true;
    if (!tokenizer_read_type(at, &type, error)) return false;
    if (strcmp(type, "Sequence") != 0) return read(tokenizer, at, type, error);
    Json list = json_member(at, list_key), part = {0};
    if (json_type(list) != JSON_ARRAY || !list.node) return json_error(list, error, "expected an array");
    while (json_next(&list, &part))
        if (!tokenizer_read_parts(tokenizer, &part, list_key, read, error)) return false;
    return true;
}

/* ---- model ---- */
static bool refuse_unless_empty(const Json *model, const char *key, Error *error) {
    Json at = json_member(model, key);
    const char *text;
    if (!at.node || json_type(at) == JSON_NULL) return true;
    if (!json_string(at, &text, error)) return false;
    return !*text || json_error(at, error, "expected null or \"\": got \"%.40s\"", text);
}

static bool read_vocabulary(BpeModel *model, const Json *root, Error *error) {
    Json list = json_member(root, "vocab"), at = {0};
    if (!list.node || json_type(list) != JSON_OBJECT) return json_error(list, error, "expected an object");
    int64_t most = json_count(list) + ID_GAP, id;
    while (json_next(&list, &at)) {
        if (!json_integer(at, 0, most, &id, error)) return false;
        Error inner = {0};
        if (vocabulary_put(&model->vocabulary, at.key, strlen(at.key), (int32_t)id, &inner)) continue;
        if (inner.code == ERROR_BAD_INPUT) return json_error(at, error, "%s", inner.text);
        return error_set(error, inner.code, "%s", inner.text);
    }
    return true;
}

/* ["a", "b"], or "a b" with one space. */
static bool merge_parts(Json at, const char **left, const char **right, size_t *left_length, Error *error) {
    if (json_type(at) == JSON_ARRAY) {
        Json part = {0};
        if (json_count(at) != 2) return json_error(at, error, "expected two tokens");
        if (!json_next(&at, &part) || !json_string(part, left, error)) return false;
        if (!json_next(&at, &part) || !json_string(part, right, error)) return false;
        *left_length = strlen(*left);
        return true;
    }
    if (!json_string(at, left, error)) return false;
    const char *space = strchr(*left, ' ');
    if (!space || strchr(space + 1, ' '))
        return json_error(at, error, "expected two tokens and one space between: got \"%.60s\"", *left);
    *left_length = (size_t)(space - *left);
    *right = space + 1;
    return true;
}

static bool read_merge(BpeModel *model, Json at, Text *joined, Error *error) {
    const char *left = NULL, *right = NULL;
    size_t left_length = 0;
    if (!merge_parts(at, &left, &right, &left_length, error)) return false;
    size_t right_length = strlen(right);
    text_clear(joined);
    text_put(joined, left, left_length);
    text_put(joined, right, right_length);
    if (joined->failed) return error_out_of_memory(error, "a merge", left_length + right_length);
    int32_t a = vocabulary_find(&model->vocabulary, left, left_length);
    int32_t b = vocabulary_find(&model->vocabulary, right, right_length);
    int32_t both = vocabulary_find(&model->vocabulary, joined->bytes, joined->length);
    if (a < 0 || b < 0 || both < 0)
        return json_error(at, error, "expected a merge whose %s is in the vocabulary: got \"%.60s\"",
                          a < 0   ? "left part"
                          : b < 0 ? "right part"
                                  : "result",
                          a < 0   ? left
                          : b < 0 ? right
                                  : joined->bytes);
    merge_table_put(&model->merges, a, b, both);
    return true;
}

static bool read_merges(BpeModel *model, const Json *root, Error *error) {
    Json list = json_member(root, "merges"), at = {0};
    if (!list.node || json_type(list) != JSON_ARRAY) return json_error(list, error, "expected an array");
    if (!merge_table_reserve(&model->merges, json_count(list), error)) return false;
    Text joined = {0};
    bool done = true;
    while (done && json_next(&list, &at)) {
        const char *line;
        bool version = json_type(at) == JSON_STRING && json_string(at, &line, error) &&
                       strncmp(line, "#version", 8) == 0;
        done = version || read_merge(model, at, &joined, error);
    }
    text_free(&joined);
    return done;
}

static void find_byte_ids(BpeModel *model) {
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        size_t length;
        if (model->byte_level)
            length = utf8_write(byte_level_character((unsigned char)byte), name);
        else
            length = (size_t)snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        model->byte_ids[byte] = vocabulary_find(&model->vocabulary, name, length);
    }
}

static bool read_unknown(BpeModel *model, const Json *root, Error *error) {
    Json at = json_member(root, "unk_token");
    const char *name;
    model->unknown = -1;
    if (!at.node || json_type(at) == JSON_NULL) return true;
    if (!json_string(at, &name, error)) return false;
    model->unknown = vocabulary_find(&model->vocabulary, name, strlen(name));
    return model->unknown >= 0 ||
           json_error(at, error, "expected a token of the vocabulary: got \"%.60s\"", name);
}

bool tokenizer_read_model(Tokenizer *tokenizer, const Json *root, Error *error) {
    BpeModel *model = &tokenizer->model;
    Json at = json_member(root, "model"), type = json_member(&at, "type"),
         dropout = json_member(&at, "dropout");
    const char *name = "BPE";
    double rate = 0;
    if (!at.node || json_type(at) != JSON_OBJECT) return json_error(at, error, "expected an object");
    if (type.node && !json_string(type, &name, error)) return false;
    if (strcmp(name, "BPE") != 0) return json_error(type, error, "expected \"BPE\": got \"%.40s\"", name);
    if (dropout.node && json_type(dropout) != JSON_NULL && !json_number(dropout, &rate, error)) return false;
    if (rate != 0) return json_error(dropout, error, "expected null or 0: got %g", rate);
    bool done = refuse_unless_empty(&at, "continuing_subword_prefix", error) &&
                refuse_unless_empty(&at, "end_of_word_suffix", error) &&
                tokenizer_read_flag(&at, "fuse_unk", false, &model->fuse_unknown, error) &&
                tokenizer_read_flag(&at, "byte_fallback", false, &model->byte_fallback, error) &&
                tokenizer_read_flag(&at, "ignore_merges", false, &model->ignore_merges, error) &&
                read_vocabulary(model, &at, error) && read_merges(model, &at, error) &&
                read_unknown(model, &at, error);
    if (!done) return false;
    /* ByteLevel as the last step need not write its characters: words are looked up byte by byte */
    if (tokenizer->n_piece_steps && !model->byte_fallback &&
        tokenizer->piece_steps[tokenizer->n_piece_steps - 1].kind == PIECES_BYTE_MAP) {
        model->byte_level = true;
        tokenizer->n_piece_steps--; /* that step holds nothing to free */
    }
    find_byte_ids(model);
    bpe_find_openings(model);
    return true;
}

/* ---- added tokens ---- */
/* The id that the Hugging Face library gives an added token whatever the file says: that of the
 * vocabulary, or the next behind it. A file that says another has two meanings and is refused. */
static bool check_added_id(Tokenizer *tokenizer, const AddedToken *token, const Json *at, Error *error) {
    const Vocabulary *vocabulary = &tokenizer->model.vocabulary;
    int32_t id = vocabulary_find(vocabulary, token->content, token->length);
    if (id < 0) id = (int32_t)vocabulary->n_used + (int32_t)tokenizer->n_new++;
    if (id != token->id)
        return json_error(json_member(at, "id"), error, "expected id %d, %s: got %d", id,
                          id < (int32_t)vocabulary->n_used ? "as in model.vocab" : "the next one free",
                          token->id);
    Error inner = {0};
    if (vocabulary_put(&tokenizer->added_names, token->content, token->length, id, &inner)) return true;
    if (inner.code == ERROR_BAD_INPUT) return json_error(*at, error, "%s", inner.text);
    return error_set(error, inner.code, "%s", inner.text);
}

static bool read_added(Tokenizer *tokenizer, const Json *at, Error *error) {
    if (!tokenizer_grow((void **)&tokenizer->added, tokenizer->n_added, sizeof *tokenizer->added, error))
        return false;
    AddedToken *token = &tokenizer->added[tokenizer->n_added];
    int64_t id, most = tokenizer->model.vocabulary.n_ids + tokenizer->n_added;
    bool done = json_integer(json_member(at, "id"), 0, most, &id, error) &&
                tokenizer_read_text(at, "content", &token->content, &token->length, error);
    tokenizer->n_added++;
    if (!done) return false;
    token->id = (int32_t)id;
    if (!token->length || token->length > MAX_ADDED_BYTES)
        return json_error(*at, error, "expected a content of 1 to %d bytes: got %zu", MAX_ADDED_BYTES,
                          token->length);
    return tokenizer_read_flag(at, "single_word", false, &token->single_word, error) &&
           tokenizer_read_flag(at, "lstrip", false, &token->left_strip, error) &&
           tokenizer_read_flag(at, "rstrip", false, &token->right_strip, error) &&
           tokenizer_read_flag(at, "special", false, &token->special, error) &&
           tokenizer_read_flag(at, "normalized", !token->special, &token->normalized, error) &&
           check_added_id(tokenizer, token, at, error);
}

/* The texts to look for: after the normalizer those that are marked so. */
static bool index_added(Tokenizer *tokenizer, Error *error) {
    StageSpace space = {0};
    bool done = true;
    for (int64_t i = 0; done && i < tokenizer->n_added; i++) {
        const AddedToken *token = &tokenizer->added[i];
        Stretch text = {.bytes = token->content, .n = token->length};
        if (token->normalized)
            done = normalize(tokenizer->normalizers, tokenizer->n_normalizers, &space, &text, error);
        done = done && trie_put(token->normalized ? &tokenizer->normalised : &tokenizer->raw, text.bytes,
                                text.n, (int32_t)i, error);
    }
    stage_space_free(&space);
    return done;
}

bool tokenizer_read_added(Tokenizer *tokenizer, const Json *root, Error *error) {
    Json list = json_member(root, "added_tokens"), at = {0};
    tokenizer->n_ids = tokenizer->model.vocabulary.n_ids;
    if (list.node && json_type(list) != JSON_NULL) {
        if (json_type(list) != JSON_ARRAY) return json_error(list, error, "expected an array");
        while (json_next(&list, &at))
            if (!read_added(tokenizer, &at, error)) return false;
    }
    for (int64_t i = 0; i < tokenizer->n_added; i++)
        if (tokenizer->added[i].id >= tokenizer->n_ids)
            tokenizer->n_ids = (int64_t)tokenizer->added[i].id + 1;
    tokenizer->added_of_id = mem_resize(NULL, (size_t)tokenizer->n_ids + 1, sizeof *tokenizer->added_of_id);
    if (!tokenizer->added_of_id)
        return error_out_of_memory(error, "the tokenizer", (size_t)tokenizer->n_ids * 4);
    for (int64_t id = 0; id < tokenizer->n_ids; id++) tokenizer->added_of_id[id] = -1;
    for (int64_t i = 0; i < tokenizer->n_added; i++)
        tokenizer->added_of_id[tokenizer->added[i].id] = (int32_t)i;
    return index_added(tokenizer, error);
}

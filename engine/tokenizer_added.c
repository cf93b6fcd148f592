/* Added tokens in a text: a trie of their contents, walked from every place where one can begin.
 * Leftmost match, at the same place the longest; what single_word and the strip flags do to a match
 * follows the Hugging Face library in every case, also where a swallowed stretch holds the next match. */
#include "alloc.h"
#include "tokenizer_parts.h"
#include "tokenizer_unicode.h"
#include <string.h>

/* ---- trie ---- */
static int32_t trie_child(const Trie *trie, int32_t node, unsigned char byte) {
    if (node < 0) return trie->first[byte];
    int32_t child = trie->nodes[node].child;
    while (child >= 0 && trie->nodes[child].byte != byte) child = trie->nodes[child].sibling;
    return child;
}

static bool trie_add(Trie *trie, int32_t parent, unsigned char byte, int32_t *made, Error *error) {
    if (trie->n == trie->capacity) {
        int64_t capacity = trie->capacity ? 2 * trie->capacity : 256;
        TrieNode *nodes = mem_resize(trie->nodes, (size_t)capacity, sizeof *nodes);
        if (!nodes) return error_out_of_memory(error, "the added tokens", (size_t)capacity * sizeof *nodes);
        trie->nodes = nodes;
        trie->capacity = capacity;
    }
    *made = (int32_t)trie->n++;
    int32_t sibling = parent < 0 ? -1 : trie->nodes[parent].child;
    trie->nodes[*made] = (TrieNode){-1, sibling, -1, byte};
    if (parent < 0)
        trie->first[byte] = *made;
    else
        trie->nodes[parent].child = *made;
    return true;
}

bool trie_put(Trie *trie, const char *text, size_t length, int32_t token, Error *error) {
    if (!trie->n)
        for (int i = 0; i < 256; i++) trie->first[i] = -1;
    int32_t node = -1;
    for (size_t i = 0; i < length; i++) {
        int32_t next = trie_child(trie, node, (unsigned char)text[i]);
        if (next < 0 && !trie_add(trie, node, (unsigned char)text[i], &next, error)) return false;
        node = next;
    }
    if (node >= 0 && trie->nodes[node].token < 0) trie->nodes[node].token = token;
    return true;
}

void trie_free(Trie *trie) {
    mem_free(trie->nodes);
    *trie = (Trie){0};
}

/* The longest token that begins at `at`, or -1. */
static int32_t trie_match(const Trie *trie, const char *text, size_t length, size_t at, size_t *end) {
    int32_t token = -1;
    for (int32_t node = -1; at < length;) {
        node = trie_child(trie, node, (unsigned char)text[at++]);
        if (node < 0) break;
        if (trie->nodes[node].token < 0) continue;
        token = trie->nodes[node].token;
        *end = at;
    }
    return token;
}

/* ---- matches ---- */
static bool put_span(AddedSpanList *spans, size_t begin, size_t end, int32_t token, Error *error) {
    if (spans->n == spans->capacity) {
        size_t capacity = spans->capacity ? 2 * spans->capacity : 16;
        AddedSpan *items = mem_resize(spans->items, capacity, sizeof *items);
        if (!items) return error_out_of_memory(error, "added tokens of a text", capacity * sizeof *items);
        spans->items = items;
        spans->capacity = capacity;
    }
    spans->items[spans->n++] = (AddedSpan){begin, end, token};
    return true;
}

static bool stands_alone(const char *text, size_t length, size_t begin, size_t end) {
    int32_t code;
    if (begin > 0) {
        utf8_read(utf8_before(text, text + begin), &code);
        if (unicode_is_word(code)) return false;
    }
    if (end == length) return true;
    utf8_read(text + end, &code);
    return !unicode_is_word(code);
}

static size_t spaces_before(const char *text, size_t at) {
    while (at > 0) {
        int32_t code;
        const char *before = utf8_before(text, text + at);
        utf8_read(before, &code);
        if (!unicode_is_space(code)) break;
        at = (size_t)(before - text);
    }
    return at;
}

static size_t spaces_behind(const char *text, size_t length, size_t at) {
    while (at < length) {
        int32_t code;
        size_t n = utf8_read(text + at, &code);
        if (!unicode_is_space(code)) break;
        at += n;
    }
    return at;
}

bool added_find(const AddedToken *tokens, const Trie *trie, const char *text, size_t length,
                AddedSpanList *spans, Error *error) {
    size_t done = 0; /* up to here the text is in spans */
    spans->n = 0;
    for (size_t at = 0; trie->n && at < length;) {
        if (trie->first[(unsigned char)text[at]] < 0) {
            at++;
            continue;
        }
        size_t begin = at, end = at + 1;
        int32_t token = trie_match(trie, text, length, at, &end);
        at = end;
        if (token < 0) continue;
        if (tokens[token].single_word && !stands_alone(text, length, begin, end)) continue;
        if (tokens[token].left_strip) {
            begin = spaces_before(text, begin);
            if (begin < done) begin = done;
        }
        if (tokens[token].right_strip) end = spaces_behind(text, length, end);
        if (done < begin && !put_span(spans, done, begin, -1, error)) return false;
        if (!put_span(spans, begin, end, token, error)) return false;
        done = end;
    }
    return done >= length || put_span(spans, done, length, -1, error);
}

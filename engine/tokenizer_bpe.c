/* Byte-pair encoding of one word: a doubly linked list of symbols and a heap of the pairs that can
 * merge, by rank and then by position. A pair whose symbols have changed since is skipped when it comes
 * up. O(n log n) for a word of n characters: with the Llama family a whole document is one word. */
#include "alloc.h"
#include "tokenizer_parts.h"
#include "tokenizer_unicode.h"
#include <stdio.h>
#include <string.h>

void bpe_space_free(BpeSpace *space) {
    mem_free(space->symbols);
    mem_free(space->heap);
    mem_free(space->tokens);
    text_free(&space->mapped);
    *space = (BpeSpace){0};
}

/* *items get room for n of item_bytes. */
static bool reserve(void **items, size_t *capacity, size_t n, size_t item_bytes, Error *error) {
    if (n <= *capacity) return true;
    size_t larger = n + n / 2 + 64;
    void *block = mem_resize(*items, larger, item_bytes);
    if (!block) return error_out_of_memory(error, "encoding a word", larger * item_bytes);
    *items = block;
    *capacity = larger;
    return true;
}

/* ---- parts of a document ---- */
static const char opening[] = "\xe2\x96\x81"; /* U+2581 */
enum { OPENING_BYTES = sizeof opening - 1 };

static bool opens(const char *text, size_t length, size_t at) {
    return length - at >= OPENING_BYTES && memcmp(text + at, opening, OPENING_BYTES) == 0;
}

/* A U+2581 behind another character; `length` where there is none. */
static size_t find_opening(const char *text, size_t length) {
    bool before = true; /* the begin of a text is no other character */
    for (size_t at = 0; at < length;) {
        bool here = opens(text, length, at);
        if (here && !before) return at;
        before = here;
        at += here ? OPENING_BYTES : utf8_length((unsigned char)text[at]);
    }
    return length;
}

size_t bpe_part(const BpeModel *model, const char *word, size_t length) {
    return model->words_open ? find_opening(word, length) : length;
}

void bpe_find_openings(BpeModel *model) {
    model->words_open = !model->byte_level && !model->ignore_merges &&
                        vocabulary_find(&model->vocabulary, opening, OPENING_BYTES) >= 0;
    for (int64_t i = 0; model->words_open && i < model->merges.n_merges; i++) {
        size_t length;
        const char *name = vocabulary_name(&model->vocabulary, model->merges.ids[i], &length);
        model->words_open = find_opening(name, length) == length;
    }
}

/* ---- the heap: smallest on top, four children each ---- */
static void heap_sink(uint64_t *heap, size_t n, size_t at) {
    uint64_t item = heap[at];
    for (;;) {
        size_t first = 4 * at + 1, least = first;
        if (first >= n) break;
        size_t end = first + 4 < n ? first + 4 : n;
        for (size_t i = first + 1; i < end; i++)
            if (heap[i] < heap[least]) least = i;
        if (heap[least] >= item) break;
        heap[at] = heap[least];
        at = least;
    }
    heap[at] = item;
}

static void heap_push(BpeSpace *space, uint64_t item) {
    size_t at = space->n_heap++;
    for (; at && space->heap[(at - 1) / 4] > item; at = (at - 1) / 4)
        space->heap[at] = space->heap[(at - 1) / 4];
    space->heap[at] = item;
}

static uint64_t heap_pop(BpeSpace *space) {
    uint64_t top = space->heap[0];
    space->heap[0] = space->heap[--space->n_heap];
    if (space->n_heap) heap_sink(space->heap, space->n_heap, 0);
    return top;
}

/* ---- symbols ---- */
typedef struct {
    const BpeModel *model;
    BpeSpace *space;
    size_t n;        /* symbols */
    int32_t unknown; /* pending; -1: none */
    size_t unknown_begin;
} Word;

static void put_symbol(Word *word, int32_t id, size_t begin) {
    word->space->symbols[word->n] =
        (BpeSymbol){id, (int32_t)word->n - 1, (int32_t)word->n + 1, (uint32_t)begin};
    word->n++;
}

static void put_pending(Word *word) {
    if (word->unknown >= 0) put_symbol(word, word->unknown, word->unknown_begin);
    word->unknown = -1;
}

/* One symbol for each byte of a character; false when the vocabulary lacks one of them. A pending
 * unknown waits on: the Hugging Face library does not end its run here. */
static bool put_bytes(Word *word, const char *bytes, size_t begin, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (word->model->byte_ids[(unsigned char)bytes[begin + i]] < 0) return false;
    for (size_t i = 0; i < length; i++)
        put_symbol(word, word->model->byte_ids[(unsigned char)bytes[begin + i]], begin + i);
    return true;
}

/* The characters of a word, where words are text. At most one symbol for each byte. */
static void put_characters(Word *word, const char *bytes, size_t n) {
    const BpeModel *model = word->model;
    for (size_t begin = 0, length; begin < n; begin += length) {
        length = utf8_length((unsigned char)bytes[begin]);
        int32_t id = vocabulary_find(&model->vocabulary, bytes + begin, length);
        if (id >= 0) {
            put_pending(word);
            put_symbol(word, id, begin);
            continue;
        }
        if (model->byte_fallback && put_bytes(word, bytes, begin, length)) continue;
        if (model->unknown < 0 || (word->unknown >= 0 && model->fuse_unknown)) continue;
        put_pending(word);
        word->unknown = model->unknown;
        word->unknown_begin = begin;
    }
    put_pending(word);
}

/* The bytes of a word, where words are ByteLevel's: a byte whose character the vocabulary lacks is
 * unknown. */
static void put_mapped_bytes(Word *word, const char *bytes, size_t n) {
    const BpeModel *model = word->model;
    for (size_t i = 0; i < n; i++) {
        int32_t id = model->byte_ids[(unsigned char)bytes[i]];
        if (id >= 0) {
            put_pending(word);
            put_symbol(word, id, i);
            continue;
        }
        if (model->unknown < 0 || (word->unknown >= 0 && model->fuse_unknown)) continue;
        put_pending(word);
        word->unknown = model->unknown;
        word->unknown_begin = i;
    }
    put_pending(word);
}

/* ---- merging ---- */
/* Where the pair that begins at a symbol can merge, it goes to *item. */
static bool pair_item(const Word *word, int32_t at, uint64_t *item) {
    const BpeSymbol *symbols = word->space->symbols;
    int32_t next = symbols[at].next;
    if (next >= (int32_t)word->n) return false;
    const Merge *merge = merge_table_find(&word->model->merges, symbols[at].id, symbols[next].id);
    if (!merge) return false;
    *item = (uint64_t)(uint32_t)merge->rank << 32 | (uint32_t)at;
    return true;
}

static void merge_all(Word *word) {
    BpeSpace *space = word->space;
    BpeSymbol *symbols = space->symbols;
    uint64_t item;
    space->n_heap = 0;
    for (size_t i = 0; i + 1 < word->n; i++)
        if (pair_item(word, (int32_t)i, &item)) space->heap[space->n_heap++] = item;
    for (size_t i = space->n_heap / 4 + 1; i-- > 0;)
        if (i < space->n_heap) heap_sink(space->heap, space->n_heap, i);
    while (space->n_heap) {
        uint64_t top = heap_pop(space);
        int32_t at = (int32_t)(uint32_t)top, id = word->model->merges.ids[top >> 32];
        BpeSymbol *left = symbols + at;
        if (left->id < 0 || left->next >= (int32_t)word->n) continue;
        BpeSymbol *right = symbols + left->next;
        const Merge *merge = merge_table_find(&word->model->merges, left->id, right->id);
        if (!merge || merge->id != id) continue;
        left->id = id;
        left->next = right->next;
        right->id = -1;
        if (left->next < (int32_t)word->n) symbols[left->next].previous = at;
        if (left->previous >= 0 && pair_item(word, left->previous, &item)) heap_push(space, item);
        if (pair_item(word, at, &item)) heap_push(space, item);
    }
}

static void put_token(BpeSpace *space, int32_t id, uint32_t begin) {
    space->tokens[space->n_tokens++] = (WordToken){id, begin};
}

/* The whole word by its name, for models that look there first. */
static int32_t whole_word(const BpeModel *model, const char *word, size_t length, BpeSpace *space) {
    if (!model->byte_level) return vocabulary_find(&model->vocabulary, word, length);
    text_clear(&space->mapped);
    for (size_t i = 0; i < length; i++) {
        char character[4];
        text_put(&space->mapped, character,
                 utf8_write(byte_level_character((unsigned char)word[i]), character));
    }
    return vocabulary_find(&model->vocabulary, space->mapped.bytes, space->mapped.length);
}

bool bpe_encode(const BpeModel *model, const char *word, size_t length, BpeSpace *space, Error *error) {
    space->n_tokens = 0;
    if (length >= INT32_MAX)
        return error_set(error, ERROR_BAD_INPUT, "text: expected words of less than 2 GiB: got %zu bytes",
                         length);
    /* a symbol for each byte; every merge makes at most two pairs and removes a symbol */
    bool room =
        reserve((void **)&space->symbols, &space->symbols_capacity, length + 1, sizeof *space->symbols,
                error) &&
        reserve((void **)&space->heap, &space->heap_capacity, 2 * length + 1, sizeof *space->heap, error) &&
        reserve((void **)&space->tokens, &space->tokens_capacity, length + 1, sizeof *space->tokens, error);
    if (!room) return false;
    if (model->ignore_merges) {
        int32_t id = whole_word(model, word, length, space);
        if (space->mapped.failed) return error_out_of_memory(error, "a word", length);
        if (id >= 0) {
            put_token(space, id, 0);
            return true;
        }
    }
    Word symbols = {.model = model, .space = space, .unknown = -1};
    if (model->byte_level)
        put_mapped_bytes(&symbols, word, length);
    else
        put_characters(&symbols, word, length);
    merge_all(&symbols);
    for (size_t i = 0; i < symbols.n; i++)
        if (space->symbols[i].id >= 0) put_token(space, space->symbols[i].id, space->symbols[i].begin);
    return true;
}

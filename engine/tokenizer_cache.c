/* The cache of encoded words. Natural text repeats its words, and a look-up costs a tenth of the merges.
 * Fixed size: when one of the three arrays is full, everything is forgotten. What is found is what
 * bpe_encode made, so it changes no id. */
#include "alloc.h"
#include "tokenizer_parts.h"
#include <string.h>

enum {
    N_SLOTS = 1 << 16,
    MAX_WORDS = N_SLOTS / 2,
    N_NAME_BYTES = 1 << 20,
    N_TOKENS = 1 << 17,
    MAX_WORD_BYTES = 64
};

typedef struct {
    uint32_t tag; /* 0: empty */
    uint32_t name, tokens;
    uint16_t length, n_tokens;
} CacheSlot;

struct WordCache {
    HashKey key;
    size_t n_words, n_name_bytes, n_tokens;
    CacheSlot *slots;
    char *names;
    WordToken *tokens;
};

WordCache *word_cache_create(void) {
    WordCache *cache = mem_zeroed(1, sizeof *cache);
    if (!cache) return NULL;
    cache->key = hash_key_make();
    cache->slots = mem_zeroed(N_SLOTS, sizeof *cache->slots);
    cache->names = mem_alloc(N_NAME_BYTES);
    cache->tokens = mem_resize(NULL, N_TOKENS, sizeof *cache->tokens);
    if (cache->slots && cache->names && cache->tokens) return cache;
    word_cache_free(cache);
    return NULL;
}

void word_cache_free(WordCache *cache) {
    if (!cache) return;
    mem_free(cache->slots);
    mem_free(cache->names);
    mem_free(cache->tokens);
    mem_free(cache);
}

/* The slot of a word, or the empty one where it would go. */
static CacheSlot *find_slot(const WordCache *cache, const char *word, size_t length, uint32_t *tag) {
    uint64_t hash = hash_bytes(cache->key, word, length);
    *tag = (uint32_t)(hash >> 32) | 1;
    for (size_t i = (size_t)hash & (N_SLOTS - 1);; i = (i + 1) & (N_SLOTS - 1)) {
        CacheSlot *slot = cache->slots + i;
        if (!slot->tag) return slot;
        if (slot->tag == *tag && slot->length == length &&
            memcmp(cache->names + slot->name, word, length) == 0)
            return slot;
    }
}

const WordToken *word_cache_find(const WordCache *cache, const char *word, size_t length, size_t *n_tokens) {
    uint32_t tag;
    if (length > MAX_WORD_BYTES) return NULL;
    const CacheSlot *slot = find_slot(cache, word, length, &tag);
    if (!slot->tag) return NULL;
    *n_tokens = slot->n_tokens;
    return cache->tokens + slot->tokens;
}

void word_cache_put(WordCache *cache, const char *word, size_t length, const WordToken *tokens,
                    size_t n_tokens) {
    if (length > MAX_WORD_BYTES) return;
    if (cache->n_words == MAX_WORDS || cache->n_name_bytes + length > N_NAME_BYTES ||
        cache->n_tokens + n_tokens > N_TOKENS) {
        memset(cache->slots, 0, N_SLOTS * sizeof *cache->slots);
        cache->n_words = cache->n_name_bytes = cache->n_tokens = 0;
    }
    uint32_t tag;
    CacheSlot *slot = find_slot(cache, word, length, &tag);
    if (slot->tag) return;
    *slot = (CacheSlot){tag, (uint32_t)cache->n_name_bytes, (uint32_t)cache->n_tokens, (uint16_t)length,
                        (uint16_t)n_tokens};
    memcpy(cache->names + cache->n_name_bytes, word, length);
    if (n_tokens) memcpy(cache->tokens + cache->n_tokens, tokens, n_tokens * sizeof *tokens);
    cache->n_name_bytes += length;
    cache->n_tokens += n_tokens;
    cache->n_words++;
}

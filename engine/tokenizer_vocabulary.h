/* The two tables of a BPE model: names to ids and back, and pairs of ids to their merge. Open addressing
 * under a hash keyed anew in every process, so that no file can be made whose names all fall into one
 * place; nothing that is printed depends on the key. */
#ifndef GATETAPE_TOKENIZER_VOCABULARY_H
#define GATETAPE_TOKENIZER_VOCABULARY_H
#include "error.h"
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t a, b;
} HashKey;

HashKey hash_key_make(void); /* the same all through a process */
uint64_t hash_bytes(HashKey key, const char *bytes, size_t length);

typedef struct {
    uint32_t tag; /* upper half of the hash */
    int32_t id;   /* -1: empty */
} NameSlot;

typedef struct {
    char *names; /* all of them, one after another */
    size_t n_names_bytes, names_capacity;
    uint32_t *begins, *lengths; /* by id; length UINT32_MAX: no such id */
    int64_t n_ids, ids_capacity;
    NameSlot *slots; /* a power of 2 of them */
    size_t n_slots, n_used;
    HashKey key;
} Vocabulary;

/* True, or ERROR: `id` or `name` present already, out of memory. `id` < limit is the caller's business. */
bool vocabulary_put(Vocabulary *vocabulary, const char *name, size_t length, int32_t id, Error *error);
int32_t vocabulary_find(const Vocabulary *vocabulary, const char *name, size_t length); /* -1: none */
/* NULL when there is no such id; not NUL-terminated; valid until the next put. */
const char *vocabulary_name(const Vocabulary *vocabulary, int64_t id, size_t *length);
void vocabulary_free(Vocabulary *vocabulary);

typedef struct {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
    int32_t rank, id;
} Merge;

typedef struct {
    Merge *slots; /* a power of 2 of them, at most half full */
    size_t n_slots;
    int32_t *ids; /* by rank: what the merge makes */
    int64_t n_merges;
    HashKey key;
} MergeTable;

bool merge_table_reserve(MergeTable *table, int64_t n_merges, Error *error); /* once, before the first put */
/* The next rank. A pair that is there already gets the new rank. */
void merge_table_put(MergeTable *table, int32_t left, int32_t right, int32_t id);
const Merge *merge_table_find(const MergeTable *table, int32_t left, int32_t right); /* NULL: none */
void merge_table_free(MergeTable *table);

#endif

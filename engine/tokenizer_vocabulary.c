/* Hash tables of the tokenizer. The hash multiplies 64-bit halves to 128 bits and folds them (the scheme
 * of wyhash); its key is 16 random bytes that the kernel hands to every process. */
#include "tokenizer_vocabulary.h"
#include "alloc.h"
#include <string.h>
#include <sys/auxv.h>

/* The kernel's 16 bytes lie on the initial stack for the life of the process. */
HashKey hash_key_make(void) {
    HashKey key = {0x9e3779b97f4a7c15u, 0xc2b2ae3d27d4eb4fu};
    const void *random = (const void *)getauxval(AT_RANDOM); // NOLINT(performance-no-int-to-ptr)
    if (random) memcpy(&key, random, sizeof key);
    key.a |= 1;
    key.b |= 1;
    return key;
}

__extension__ typedef unsigned __int128 Wide;

static uint64_t fold(uint64_t a, uint64_t b) {
    Wide product = (Wide)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint64_t hash_bytes(HashKey key, const char *bytes, size_t length) {
    uint64_t hash = key.a ^ length;
    for (; length >= 8; bytes += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = fold(hash ^ word, key.b);
    }
    uint64_t word = 0;
    if (length) memcpy(&word, bytes, length);
    return fold(hash ^ word, key.b ^ 0xe7037ed1a0b428dbu);
}

/* ---- names ---- */
static size_t slot_of(const Vocabulary *vocabulary, uint64_t hash, const char *name, size_t length) {
    size_t slot = (size_t)hash & (vocabulary->n_slots - 1);
    uint32_t tag = (uint32_t)(hash >> 32);
    for (;; slot = (slot + 1) & (vocabulary->n_slots - 1)) {
        NameSlot here = vocabulary->slots[slot];
        if (here.id < 0) return slot;
        if (here.tag == tag && vocabulary->lengths[here.id] == length &&
            memcmp(vocabulary->names + vocabulary->begins[here.id], name, length) == 0)
            return slot;
    }
}

static bool grow_slots(Vocabulary *vocabulary, Error *error) {
    size_t n_slots = vocabulary->n_slots ? 2 * vocabulary->n_slots : 1024;
    NameSlot *slots = mem_resize(NULL, n_slots, sizeof *slots);
    if (!slots) return error_out_of_memory(error, "the vocabulary", n_slots * sizeof *slots);
    for (size_t i = 0; i < n_slots; i++) slots[i].id = -1;
    mem_free(vocabulary->slots);
    vocabulary->slots = slots;
    vocabulary->n_slots = n_slots;
    vocabulary->key = hash_key_make();
    for (int64_t id = 0; id < vocabulary->n_ids; id++) {
        size_t length;
        const char *name = vocabulary_name(vocabulary, id, &length);
        if (!name) continue;
        uint64_t hash = hash_bytes(vocabulary->key, name, length);
        slots[slot_of(vocabulary, hash, name, length)] = (NameSlot){(uint32_t)(hash >> 32), (int32_t)id};
    }
    return true;
}

static bool grow_ids(Vocabulary *vocabulary, int64_t n_ids, Error *error) {
    if (n_ids > vocabulary->ids_capacity) {
        int64_t capacity = 2 * n_ids < 1024 ? 1024 : 2 * n_ids;
        uint32_t *begins = mem_resize(vocabulary->begins, (size_t)capacity, sizeof *begins);
        if (begins) vocabulary->begins = begins;
        uint32_t *lengths =
            begins ? mem_resize(vocabulary->lengths, (size_t)capacity, sizeof *lengths) : NULL;
        if (!lengths) return error_out_of_memory(error, "the vocabulary", (size_t)capacity * sizeof *begins);
        vocabulary->lengths = lengths;
        vocabulary->ids_capacity = capacity;
    }
    for (int64_t id = vocabulary->n_ids; id < n_ids; id++) vocabulary->lengths[id] = UINT32_MAX;
    if (n_ids > vocabulary->n_ids) vocabulary->n_ids = n_ids;
    return true;
}

static bool put_bytes(Vocabulary *vocabulary, const char *name, size_t length, Error *error) {
    size_t needed = vocabulary->n_names_bytes + length;
    if (needed >= UINT32_MAX) return error_set(error, ERROR_BAD_INPUT, "expected less than 4 GiB of names");
    if (needed > vocabulary->names_capacity || !vocabulary->names) {
        size_t capacity = 2 * needed < 4096 ? 4096 : 2 * needed;
        char *names = mem_resize(vocabulary->names, capacity, 1);
        if (!names) return error_out_of_memory(error, "the vocabulary", capacity);
        vocabulary->names = names;
        vocabulary->names_capacity = capacity;
    }
    if (length) memcpy(vocabulary->names + vocabulary->n_names_bytes, name, length);
    vocabulary->n_names_bytes = needed;
    return true;
}

bool vocabulary_put(Vocabulary *vocabulary, const char *name, size_t length, int32_t id, Error *error) {
    size_t other;
    if (vocabulary_name(vocabulary, id, &other))
        return error_set(error, ERROR_BAD_INPUT, "expected one token with id %d: got another", id);
    if (2 * (vocabulary->n_used + 1) > vocabulary->n_slots && !grow_slots(vocabulary, error)) return false;
    uint64_t hash = hash_bytes(vocabulary->key, name, length);
    size_t slot = slot_of(vocabulary, hash, name, length);
    if (vocabulary->slots[slot].id >= 0)
        return error_set(error, ERROR_BAD_INPUT, "expected each token once: got it with ids %d and %d",
                         vocabulary->slots[slot].id, id);
    if (!grow_ids(vocabulary, (int64_t)id + 1, error)) return false;
    size_t begin = vocabulary->n_names_bytes;
    if (!put_bytes(vocabulary, name, length, error)) return false;
    vocabulary->begins[id] = (uint32_t)begin;
    vocabulary->lengths[id] = (uint32_t)length;
    vocabulary->slots[slot] = (NameSlot){(uint32_t)(hash >> 32), id};
    vocabulary->n_used++;
    return true;
}

int32_t vocabulary_find(const Vocabulary *vocabulary, const char *name, size_t length) {
    if (!vocabulary->n_slots) return -1;
    return vocabulary->slots[slot_of(vocabulary, hash_bytes(vocabulary->key, name, length), name, length)].id;
}

const char *vocabulary_name(const Vocabulary *vocabulary, int64_t id, size_t *length) {
    if (id < 0 || id >= vocabulary->n_ids || vocabulary->lengths[id] == UINT32_MAX) return NULL;
    *length = vocabulary->lengths[id];
    return vocabulary->names + vocabulary->begins[id];
}

void vocabulary_free(Vocabulary *vocabulary) {
    mem_free(vocabulary->names);
    mem_free(vocabulary->begins);
    mem_free(vocabulary->lengths);
    mem_free(vocabulary->slots);
    *vocabulary = (Vocabulary){0};
}

/* ---- merges ---- */
bool merge_table_reserve(MergeTable *table, int64_t n_merges, Error *error) {
    size_t n_slots = 16;
    while (n_slots < 2 * (size_t)n_merges) n_slots *= 2;
    table->slots = mem_resize(NULL, n_slots, sizeof *table->slots);
    table->ids = table->slots ? mem_resize(NULL, (size_t)n_merges + 1, sizeof *table->ids) : NULL;
    if (!table->ids) return error_out_of_memory(error, "the merges", n_slots * sizeof *table->slots);
    table->n_slots = n_slots;
    table->key = hash_key_make();
    for (size_t i = 0; i < n_slots; i++) table->slots[i].pair = UINT64_MAX;
    return true;
}

static Merge *merge_slot(const MergeTable *table, uint64_t pair) {
    size_t slot = (size_t)fold(pair ^ table->key.a, table->key.b) & (table->n_slots - 1);
    while (table->slots[slot].pair != pair && table->slots[slot].pair != UINT64_MAX)
        slot = (slot + 1) & (table->n_slots - 1);
    return table->slots + slot;
}

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

void merge_table_put(MergeTable *table, int32_t left, int32_t right, int32_t id) {
    Merge *merge = merge_slot(table, pair_of(left, right));
    *merge = (Merge){pair_of(left, right), (int32_t)table->n_merges, id};
    table->ids[table->n_merges++] = id;
}

const Merge *merge_table_find(const MergeTable *table, int32_t left, int32_t right) {
    const Merge *merge = merge_slot(table, pair_of(left, right));
    return merge->pair == UINT64_MAX ? NULL : merge;
}

void merge_table_free(MergeTable *table) {
    mem_free(table->slots);
    mem_free(table->ids);
    *table = (MergeTable){0};
}

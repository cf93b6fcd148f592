/* SHA-256 (FIPS 180-4), for the manifest, disjoint prompt sets and the identity of a job. */
#ifndef GATETAPE_HASH_H
#define GATETAPE_HASH_H
#include "error.h"
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t state[8];
    uint64_t n_bytes;
    uint8_t block[64];
} Hash;

enum { HASH_TEXT = 65 }; /* 64 hex digits and NUL */

void hash_begin(Hash *hash);
void hash_add(Hash *hash, const void *bytes, size_t n_bytes);
void hash_end(Hash *hash, char text[HASH_TEXT]);
bool hash_file(const char *path, char text[HASH_TEXT], Error *error);

#endif

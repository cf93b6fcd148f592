/* Reading files of token vectors: lines of JSON strings and arrays, unescaped here because the program's
 * own JSON reader refuses \u0000, which some texts hold. Broken lines abort: the files are ours. */
#ifndef GATETAPE_TEST_VECTORS_H
#define GATETAPE_TEST_VECTORS_H
#include "engine/text.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char section[64];
    bool has_pieces;
    long line;
    Text text, decoded; /* decoded is a copy of text where the file says "=" */
    int32_t ids[4096];
    int64_t n_ids;
    Text pieces[256];
    int64_t n_pieces;
} Vector;

static inline void vector_broken(const Vector *vector) {
    fprintf(stderr, "vectors: line %ld is broken\n", vector->line);
    abort();
}

static inline long vector_code(const char **at) {
    char digits[5] = {0};
    memcpy(digits, *at + 2, 4);
    *at += 6;
    return strtol(digits, NULL, 16);
}

static inline void vector_put_code(Text *to, long code) {
    char utf8[4];
    size_t n = 0;
    if (code < 0x80) {
        utf8[n++] = (char)code;
    } else {
        size_t more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        static const int marks[] = {0, 0xc0, 0xe0, 0xf0};
        utf8[n++] = (char)(marks[more] | (int)(code >> (6 * more)));
        while (more-- > 0) utf8[n++] = (char)(0x80 | (int)(code >> (6 * more) & 0x3f));
    }
    text_put(to, utf8, n);
}

/* A JSON string at *at; *at moves behind it. */
static inline void vector_string(Vector *vector, const char **at, Text *to) {
    text_clear(to);
    text_put(to, "", 0);
    if (*(*at)++ != '"') vector_broken(vector);
    while (**at != '"') {
        if (!**at || **at == '\n') vector_broken(vector);
        if (**at != '\\') {
            text_put(to, (*at)++, 1);
            continue;
        }
        static const char escapes[] = "nrtbf\"\\/", meanings[] = "\n\r\t\b\f\"\\/";
        const char *escape = strchr(escapes, (*at)[1]);
        if ((*at)[1] == 'u') {
            long code = vector_code(at);
            if (code >= 0xd800 && code < 0xdc00)
                code = 0x10000 + ((code - 0xd800) << 10) + (vector_code(at) - 0xdc00);
            vector_put_code(to, code);
            continue;
        }
        if (!escape) vector_broken(vector);
        text_put(to, meanings + (escape - escapes), 1);
        *at += 2;
    }
    (*at)++;
}

static inline void vector_read_ids(Vector *vector, const char **at) {
    vector->n_ids = 0;
    if (*(*at)++ != '[') vector_broken(vector);
    while (**at != ']') {
        char *end;
        vector->ids[vector->n_ids++] = (int32_t)strtol(*at, &end, 10);
        if (end == *at) vector_broken(vector);
        *at = end + (*end == ',');
    }
    (*at)++;
}

static inline void vector_read_pieces(Vector *vector, const char **at) {
    vector->n_pieces = 0;
    if (*(*at)++ != '[') vector_broken(vector);
    while (**at != ']') {
        vector_string(vector, at, &vector->pieces[vector->n_pieces++]);
        if (**at == ',') (*at)++;
    }
}

typedef void VectorCheck(const Vector *vector, void *context);

/* Calls `check` for every vector of a file, in order; returns how many there were. */
static inline long vectors_each(const char *path, VectorCheck *check, void *context) {
    static char line[1 << 16];
    static Vector vector;
    FILE *file = fopen(path, "r");
    long n = 0;
    if (!file) {
        fprintf(stderr, "vectors: cannot open %s\n", path);
        abort();
    }
    vector.line = 0;
    while (fgets(line, sizeof line, file)) {
        vector.line++;
        if (strncmp(line, "## ", 3) == 0) {
            sscanf(line + 3, "%63s", vector.section);
            vector.has_pieces = strstr(line, "(pieces)") != NULL;
        }
        if (line[0] == '#' || line[0] == '\n') continue;
        const char *at = line;
        vector_string(&vector, &at, &vector.text);
        at++;
        if (vector.has_pieces) {
            vector_read_pieces(&vector, &at);
        } else {
            vector_read_ids(&vector, &at);
            at++;
            text_clear(&vector.decoded);
            if (*at == '=')
                text_put(&vector.decoded, vector.text.bytes, vector.text.length);
            else
                vector_string(&vector, &at, &vector.decoded);
        }
        check(&vector, context);
        n++;
    }
    fclose(file);
    text_free(&vector.text);
    text_free(&vector.decoded);
    for (size_t i = 0; i < sizeof vector.pieces / sizeof *vector.pieces; i++) text_free(&vector.pieces[i]);
    return n;
}

#endif

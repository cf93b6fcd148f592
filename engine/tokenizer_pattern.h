/* What a split or a replacement looks for: a literal text, a regex in the syntax of Oniguruma as the
 * tokenizers in use write it (compiled by PCRE2 after a rewrite that keeps the meaning, refused where it
 * could not), or characters of a class. The result is the list of matches and gaps that cover a text. */
#ifndef GATETAPE_TOKENIZER_PATTERN_H
#define GATETAPE_TOKENIZER_PATTERN_H
#define PCRE2_CODE_UNIT_WIDTH 8
#include "error.h"
#include "text.h"
#include <pcre2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { PATTERN_LITERAL, PATTERN_REGEX, PATTERN_CHARACTERS } PatternKind;

typedef struct {
    PatternKind kind;
    char *literal; /* owned */
    size_t length;
    pcre2_code *code; /* owned */
    bool (*is_member)(int32_t code);
} Pattern;

typedef struct {
    size_t begin, end;
    bool is_match;
} Span;

typedef struct {
    Span *items; /* owned: span_list_free */
    size_t n, capacity;
} SpanList;

bool span_list_put(SpanList *list, Span span, Error *error);
void span_list_free(SpanList *list);

/* What matching needs beside the code: one for each thread. Zeroed at first. */
typedef struct {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack; /* only once a match asked for more than the usual 32 KiB */
} PatternSpace;

void pattern_space_free(PatternSpace *space);

/* Oniguruma's regex in PCRE2's words; false and an error that says what has another meaning in the two. */
bool pattern_translate(const char *regex, Text *to, Error *error);

bool pattern_literal(Pattern *pattern, const char *text, size_t length, Error *error);
bool pattern_regex(Pattern *pattern, const char *regex, Error *error);
void pattern_free(Pattern *pattern);

/* Replaces *spans by matches and gaps of bytes[0..n), in order, covering all of it; a regex sees nothing
 * else. Empty matches are among them. Errors: a limit of the regex engine, out of memory. */
bool pattern_find(const Pattern *pattern, const char *bytes, size_t n, PatternSpace *space, SpanList *spans,
                  Error *error);

typedef enum {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS,
    N_SPLITS
} SplitBehavior;

extern const char *const split_behavior_names[N_SPLITS];

/* Appends the pieces that a behavior makes of matches and gaps to *pieces, `offset` added; empty ones
 * are left out. `invert` takes the gaps for the matches. */
bool split_pieces(SpanList *found, SplitBehavior behavior, bool invert, size_t offset, SpanList *pieces,
                  Error *error);

#endif

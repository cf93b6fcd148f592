/* Finding: literals by memmem, regexes by PCRE2's JIT code, classes character by character. The list of
 * matches follows the Hugging Face library: after an empty match the search goes on one character
 * further, and an empty match right behind a match does not count. A limit of the engine is an error,
 * never "no match". */
#include "tokenizer_pattern.h"
#include "alloc.h"
#include "tokenizer_unicode.h"
#include <string.h>

enum {
    MATCH_LIMIT = 50000000,
    HEAP_LIMIT_KIB = 1000000,
    JIT_STACK_BYTES = 32 << 20,
    MAX_REGEX_BYTES = 16384
};

const char *const split_behavior_names[N_SPLITS] = {"Removed", "Isolated", "MergedWithPrevious",
                                                    "MergedWithNext", "Contiguous"};

bool span_list_put(SpanList *list, Span span, Error *error) {
    if (list->n == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        Span *items = mem_resize(list->items, capacity, sizeof *items);
        if (!items) return error_out_of_memory(error, "pieces of a text", capacity * sizeof *items);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->n++] = span;
    return true;
}

void span_list_free(SpanList *list) {
    mem_free(list->items);
    *list = (SpanList){0};
}

void pattern_space_free(PatternSpace *space) {
    pcre2_match_data_free(space->data);
    pcre2_match_context_free(space->context);
    pcre2_jit_stack_free(space->stack);
    *space = (PatternSpace){0};
}

/* ---- making ---- */
bool pattern_literal(Pattern *pattern, const char *text, size_t length, Error *error) {
    if (!length) return error_set(error, ERROR_BAD_INPUT, "expected a text to look for: got \"\"");
    *pattern = (Pattern){.kind = PATTERN_LITERAL, .literal = mem_copy_text(text, length), .length = length};
    return pattern->literal || error_out_of_memory(error, "a pattern", length);
}

static bool compile(Pattern *pattern, const Text *regex, Error *error) {
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) return error_out_of_memory(error, "a regex", regex->length);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_max_pattern_length(context, MAX_REGEX_BYTES);
    int code;
    PCRE2_SIZE place;
    pattern->code = pcre2_compile((PCRE2_SPTR)(regex->bytes ? regex->bytes : ""), regex->length,
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &place, context);
    pcre2_compile_context_free(context);
    if (!pattern->code) {
        char words[160];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)words, sizeof words);
        return error_set(error, ERROR_BAD_INPUT, "expected a regex: got \"%.*s\", %s at byte %zu",
                         (int)(regex->length < 200 ? regex->length : 200), regex->bytes ? regex->bytes : "",
                         words, (size_t)place);
    }
    /* Where the JIT is not there, pcre2_match interprets: the same matches, slower. */
    pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE);
    return true;
}

bool pattern_regex(Pattern *pattern, const char *regex, Error *error) {
    *pattern = (Pattern){.kind = PATTERN_REGEX};
    Text translated = {0};
    bool done = pattern_translate(regex, &translated, error) && compile(pattern, &translated, error);
    text_free(&translated);
    return done;
}

void pattern_free(Pattern *pattern) {
    mem_free(pattern->literal);
    pcre2_code_free(pattern->code);
    *pattern = (Pattern){0};
}

/* ---- finding ---- */
typedef struct {
    SpanList *spans;
    size_t end; /* of the last match */
    Error *error;
} Finding;

static bool put_match(Finding *f, size_t begin, size_t end) {
    if (f->end != begin && !span_list_put(f->spans, (Span){f->end, begin, false}, f->error)) return false;
    f->end = end;
    return span_list_put(f->spans, (Span){begin, end, true}, f->error);
}

static bool find_literal(const Pattern *pattern, const char *bytes, size_t n, Finding *f) {
    for (size_t at = 0; at < n;) {
        const char *here = memmem(bytes + at, n - at, pattern->literal, pattern->length);
        if (!here) break;
        at = (size_t)(here - bytes) + pattern->length;
        if (!put_match(f, at - pattern->length, at)) return false;
    }
    return true;
}

static bool find_characters(const Pattern *pattern, const char *bytes, size_t n, Finding *f) {
    for (size_t at = 0; at < n;) {
        int32_t code;
        size_t length = utf8_read(bytes + at, &code);
        if (pattern->is_member(code) && !put_match(f, at, at + length)) return false;
        at += length;
    }
    return true;
}

static bool open_space(PatternSpace *space, Error *error) {
    if (space->data) return true;
    space->data = pcre2_match_data_create(1, NULL);
    space->context = pcre2_match_context_create(NULL);
    if (!space->data || !space->context) return error_out_of_memory(error, "a regex", 1024);
    pcre2_set_match_limit(space->context, MATCH_LIMIT);
    pcre2_set_depth_limit(space->context, MATCH_LIMIT);
    pcre2_set_heap_limit(space->context, HEAP_LIMIT_KIB);
    return true;
}

/* One search from `at`: 1 found, 0 not, -1 error. */
static int search(const Pattern *pattern, const char *bytes, size_t n, size_t at, PatternSpace *space,
                  Error *error) {
    for (;;) {
        int got = pcre2_match(pattern->code, (PCRE2_SPTR)bytes, n, at, PCRE2_NO_UTF_CHECK, space->data,
                              space->context);
        if (got >= 0) return 1;
        if (got == PCRE2_ERROR_NOMATCH) return 0;
        if (got == PCRE2_ERROR_JIT_STACKLIMIT && !space->stack) {
            space->stack = pcre2_jit_stack_create(1 << 16, JIT_STACK_BYTES, NULL);
            if (space->stack) {
                pcre2_jit_stack_assign(space->context, NULL, space->stack);
                continue;
            }
            got = PCRE2_ERROR_NOMEMORY;
        }
        char words[160];
        pcre2_get_error_message(got, (PCRE2_UCHAR *)words, sizeof words);
        error_set(error, got == PCRE2_ERROR_NOMEMORY ? ERROR_UNAVAILABLE : ERROR_BAD_INPUT,
                  "text: expected a regex of the tokenizer to come to an end: got \"%s\" from byte %zu of a "
                  "piece of %zu",
                  words, at, n);
        return -1;
    }
}

static bool find_regex(const Pattern *pattern, const char *bytes, size_t n, PatternSpace *space, Finding *f) {
    if (!open_space(space, f->error)) return false;
    const PCRE2_SIZE *place = pcre2_get_ovector_pointer(space->data);
    bool any = false;
    for (size_t at = 0; at <= n;) {
        int found = search(pattern, bytes, n, at, space, f->error);
        if (found < 0) return false;
        if (!found) break;
        size_t begin = place[0], end = place[1];
        if (begin == end && any && f->end == end) {
            at += at < n ? utf8_length((unsigned char)bytes[at]) : 1;
            continue;
        }
        any = true;
        at = end;
        if (!put_match(f, begin, end)) return false;
    }
    return true;
}

bool pattern_find(const Pattern *pattern, const char *bytes, size_t n, PatternSpace *space, SpanList *spans,
                  Error *error) {
    spans->n = 0;
    if (!n) return span_list_put(spans, (Span){0, 0, false}, error);
    Finding f = {.spans = spans, .error = error};
    bool done = pattern->kind == PATTERN_LITERAL ? find_literal(pattern, bytes, n, &f)
                : pattern->kind == PATTERN_REGEX ? find_regex(pattern, bytes, n, space, &f)
                                                 : find_characters(pattern, bytes, n, &f);
    return done && (f.end == n || span_list_put(spans, (Span){f.end, n, false}, error));
}

/* ---- splitting ---- */
/* A match joins the piece before it, unless that came from a match too; for "with next" the list is
 * walked backwards and the piece grows to the left. "Contiguous" joins neighbours of the same kind. */
static void merge_spans(SpanList *found, SplitBehavior behavior) {
    bool backwards = behavior == SPLIT_MERGED_WITH_NEXT, previous = false;
    size_t n = 0;
    for (size_t i = 0; i < found->n; i++) {
        Span *last = !n ? NULL : backwards ? &found->items[found->n - n] : &found->items[n - 1];
        Span span = found->items[backwards ? found->n - 1 - i : i];
        bool joins = behavior == SPLIT_CONTIGUOUS ? span.is_match == previous : span.is_match && !previous;
        previous = span.is_match;
        if (last && joins) {
            if (backwards)
                last->begin = span.begin;
            else
                last->end = span.end;
            continue;
        }
        found->items[backwards ? found->n - 1 - n : n] = span;
        n++;
    }
    if (backwards) memmove(found->items, found->items + found->n - n, n * sizeof *found->items);
    found->n = n;
}

bool split_pieces(SpanList *found, SplitBehavior behavior, bool invert, size_t offset, SpanList *pieces,
                  Error *error) {
    if (invert)
        for (size_t i = 0; i < found->n; i++) found->items[i].is_match = !found->items[i].is_match;
    if (behavior != SPLIT_REMOVED && behavior != SPLIT_ISOLATED) merge_spans(found, behavior);
    for (size_t i = 0; i < found->n; i++) {
        Span span = found->items[i];
        if (span.begin == span.end || (behavior == SPLIT_REMOVED && span.is_match)) continue;
        if (!span_list_put(pieces, (Span){span.begin + offset, span.end + offset, false}, error))
            return false;
    }
    return true;
}

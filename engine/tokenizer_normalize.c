/* Normalizers. Each reads a text with the origins of its bytes and writes the other buffer; a step that
 * changes nothing copies nothing. Unicode normal forms are made between places where they cannot reach
 * over (see boundary), so that origins stay exact but for the stretch that really changed. */
#include "alloc.h"
#include "tokenizer_parts.h"
#include "tokenizer_unicode.h"
#include <string.h>
#include <utf8proc.h>

int64_t stretch_origin(const Stretch *stretch, size_t i) {
    return stretch->origins ? stretch->origins[i] : stretch->base + (int64_t)i;
}

/* ---- writing ---- */
bool rewrite_reserve(Rewrite *rewrite, size_t n_bytes, Error *error) {
    size_t needed;
    if (!size_add(rewrite->n, n_bytes, &needed)) return error_out_of_memory(error, "a text", SIZE_MAX);
    if (needed <= rewrite->capacity && rewrite->bytes) return true;
    size_t capacity = rewrite->capacity ? rewrite->capacity : 256;
    while (capacity < needed) capacity = capacity > SIZE_MAX / 2 ? needed : 2 * capacity;
    char *bytes = mem_resize(rewrite->bytes, capacity, 1);
    if (bytes) rewrite->bytes = bytes;
    int64_t *origins = bytes ? mem_resize(rewrite->origins, capacity, sizeof *origins) : NULL;
    if (!origins) return error_out_of_memory(error, "a text", capacity * sizeof *origins);
    rewrite->origins = origins;
    rewrite->capacity = capacity;
    return true;
}

bool rewrite_put(Rewrite *rewrite, const char *bytes, size_t n, int64_t origin, Error *error) {
    if (!rewrite_reserve(rewrite, n, error)) return false;
    for (size_t i = 0; i < n; i++) {
        rewrite->bytes[rewrite->n] = bytes[i];
        rewrite->origins[rewrite->n++] = origin;
    }
    return true;
}

bool rewrite_copy(Rewrite *rewrite, const Stretch *from, size_t begin, size_t end, Error *error) {
    if (!rewrite_reserve(rewrite, end - begin, error)) return false;
    if (begin == end) return true;
    memcpy(rewrite->bytes + rewrite->n, from->bytes + begin, end - begin);
    for (size_t i = begin; i < end; i++) rewrite->origins[rewrite->n++] = stretch_origin(from, i);
    return true;
}

void rewrite_free(Rewrite *rewrite) {
    mem_free(rewrite->bytes);
    mem_free(rewrite->origins);
    *rewrite = (Rewrite){0};
}

void stage_space_free(StageSpace *space) {
    rewrite_free(&space->rewrites[0]);
    rewrite_free(&space->rewrites[1]);
    span_list_free(&space->found);
    span_list_free(&space->pieces);
    span_list_free(&space->next_pieces);
    pattern_space_free(&space->pattern);
    mem_free(space->code_points);
    *space = (StageSpace){0};
}

Rewrite *stage_space_other(StageSpace *space, const Stretch *from) {
    Rewrite *other = &space->rewrites[from->place == 1];
    other->n = 0;
    return other;
}

void stage_space_adopt(StageSpace *space, const Rewrite *written, Stretch *text) {
    *text = (Stretch){written->bytes, written->n, written->origins, 0, 1 + (int)(written - space->rewrites)};
}

/* ---- the steps ---- */
static bool prepend(const Normalizer *step, StageSpace *space, Stretch *text, Error *error) {
    if (!text->n) return true;
    Rewrite *to = stage_space_other(space, text);
    bool done = rewrite_reserve(to, step->length + text->n, error) &&
                rewrite_put(to, step->content, step->length, stretch_origin(text, 0), error) &&
                rewrite_copy(to, text, 0, text->n, error);
    if (done) stage_space_adopt(space, to, text);
    return done;
}

static bool replace(const Normalizer *step, StageSpace *space, Stretch *text, Error *error) {
    SpanList *found = &space->found;
    if (!text->n) return true;
    if (!pattern_find(&step->pattern, text->bytes, text->n, &space->pattern, found, error)) return false;
    if (found->n == 1 && !found->items[0].is_match) return true;
    Rewrite *to = stage_space_other(space, text);
    if (!rewrite_reserve(to, text->n, error)) return false;
    for (size_t i = 0; i < found->n; i++) {
        Span span = found->items[i];
        int64_t origin = stretch_origin(text, span.begin < text->n ? span.begin : text->n - 1);
        bool done = span.is_match ? rewrite_put(to, step->content, step->length, origin, error)
                                  : rewrite_copy(to, text, span.begin, span.end, error);
        if (!done) return false;
    }
    stage_space_adopt(space, to, text);
    return true;
}

static bool strip(const Normalizer *step, Stretch *text) {
    size_t begin = 0, end = text->n;
    int32_t code;
    while (step->left && begin < end) {
        size_t length = utf8_read(text->bytes + begin, &code);
        if (!unicode_is_space(code)) break;
        begin += length;
    }
    while (step->right && begin < end) {
        const char *last = utf8_before(text->bytes + begin, text->bytes + end);
        utf8_read(last, &code);
        if (!unicode_is_space(code)) break;
        end = (size_t)(last - text->bytes);
    }
    *text = (Stretch){text->bytes + begin, end - begin, text->origins ? text->origins + begin : NULL,
                      text->base + (int64_t)begin, text->place};
    return true;
}

static bool lowercase(StageSpace *space, Stretch *text, Error *error) {
    Rewrite *to = stage_space_other(space, text);
    if (!rewrite_reserve(to, text->n, error)) return false;
    for (size_t i = 0; i < text->n;) {
        int32_t code;
        size_t length = utf8_read(text->bytes + i, &code), n = 3;
        char lower[4] = "i\xcc\x87"; /* of U+0130, the one whose lower case is two: i, dot above */
        if (code != 0x130) n = utf8_write(utf8proc_tolower(code), lower);
        if (!rewrite_put(to, lower, n, stretch_origin(text, i), error)) return false;
        i += length;
    }
    stage_space_adopt(space, to, text);
    return true;
}

/* ---- normal forms ---- */
/* No canonical composition or reordering reaches from before this character to it: it is neither a mark
 * nor a Hangul vowel or final consonant. Compatibility forms may begin with such characters themselves,
 * so there only ASCII. */
static bool boundary(int32_t code, bool compatible) {
    if (code < 0x80 || unicode_has_no_form(code)) return true;
    if (compatible || (code >= 0x1160 && code <= 0x11ff)) return false;
    const utf8proc_property_t *property = utf8proc_get_property(code);
    return property->combining_class == 0 && property->category != UTF8PROC_CATEGORY_MN &&
           property->category != UTF8PROC_CATEGORY_MC && property->category != UTF8PROC_CATEGORY_ME;
}

/* The normal form of bytes[begin..end) goes to `to`; a stretch that is its own keeps its origins. */
static bool put_form(const Normalizer *step, StageSpace *space, const Stretch *text, size_t begin, size_t end,
                     Rewrite *to, Error *error) {
    const utf8proc_uint8_t *bytes = (const utf8proc_uint8_t *)text->bytes + begin;
    utf8proc_option_t options = UTF8PROC_STABLE | (step->composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                                (step->compatible ? UTF8PROC_COMPAT : 0);
    utf8proc_ssize_t n = (utf8proc_ssize_t)(end - begin), capacity, length;
    for (;;) {
        capacity = (utf8proc_ssize_t)space->code_points_capacity;
        length = utf8proc_decompose(bytes, n, space->code_points, capacity ? capacity - 1 : 0, options);
        if (length < 0) return error_set(error, ERROR_BAD_INPUT, "text: %s", utf8proc_errmsg(length));
        if (length < capacity) break;
        size_t larger = 2 * (size_t)length + 64;
        int32_t *code_points = mem_resize(space->code_points, larger, sizeof *code_points);
        if (!code_points) return error_out_of_memory(error, "a normal form", larger * sizeof *code_points);
        space->code_points = code_points;
        space->code_points_capacity = larger;
    }
    length = utf8proc_reencode(space->code_points, length, options);
    if (length < 0) return error_set(error, ERROR_BAD_INPUT, "text: %s", utf8proc_errmsg(length));
    const char *form = (const char *)space->code_points;
    if (length == n && memcmp(form, bytes, (size_t)n) == 0) return rewrite_copy(to, text, begin, end, error);
    return rewrite_put(to, form, (size_t)length, stretch_origin(text, begin), error);
}

static bool is_ascii(const char *bytes, size_t n) {
    unsigned char all = 0;
    for (size_t i = 0; i < n; i++) all |= (unsigned char)bytes[i];
    return all < 0x80;
}

/* Characters without a decomposition that stand alone between boundaries are their own form: the common
 * case. */
static bool stays(int32_t code, bool composes) {
    if (code >= 0xac00 && code <= 0xd7a3) return composes; /* Hangul syllables: by rule, not by table */
    return code < 0xc0 || utf8proc_get_property(code)->decomp_seqindex == UINT16_MAX;
}

static bool normal_form(const Normalizer *step, StageSpace *space, Stretch *text, Error *error) {
    if (is_ascii(text->bytes, text->n)) return true;
    Rewrite *to = stage_space_other(space, text);
    if (!rewrite_reserve(to, text->n, error)) return false;
    size_t kept = 0; /* [kept, begin) is its own form and not yet copied */
    for (size_t begin = 0, end; begin < text->n; begin = end) {
        int32_t first, code;
        end = begin + utf8_read(text->bytes + begin, &first);
        size_t n_characters = 1;
        bool alone = unicode_has_no_form(first);
        for (; end < text->n && !alone; n_characters++) {
            size_t length = utf8_read(text->bytes + end, &code);
            if (boundary(code, step->compatible)) break;
            end += length;
        }
        if (n_characters == 1 &&
            (first < 0x80 || alone || (!step->compatible && stays(first, step->composes))))
            continue;
        bool done =
            rewrite_copy(to, text, kept, begin, error) && put_form(step, space, text, begin, end, to, error);
        if (!done) return false;
        kept = end;
    }
    if (!rewrite_copy(to, text, kept, text->n, error)) return false;
    stage_space_adopt(space, to, text);
    return true;
}

bool normalize(const Normalizer *steps, int64_t n_steps, StageSpace *space, Stretch *text, Error *error) {
    for (int64_t i = 0; i < n_steps; i++) {
        bool done = false;
        switch (steps[i].kind) {
        case NORMALIZE_PREPEND: done = prepend(&steps[i], space, text, error); break;
        case NORMALIZE_REPLACE: done = replace(&steps[i], space, text, error); break;
        case NORMALIZE_FORM: done = normal_form(&steps[i], space, text, error); break;
        case NORMALIZE_STRIP: done = strip(&steps[i], text); break;
        case NORMALIZE_LOWERCASE: done = lowercase(space, text, error); break;
        }
        if (!done) return false;
    }
    return true;
}

/* Decoders: from the names of tokens to text. Each step reads a list of strings and writes another; the
 * list is one block of bytes with the end of every string. Bytes that are no UTF-8 become U+FFFD as the
 * Hugging Face library does it: one for each maximal invalid part (ByteLevel), or one for each byte of a
 * run (ByteFallback). */
#include "alloc.h"
#include "tokenizer_parts.h"
#include "tokenizer_unicode.h"
#include <string.h>

typedef struct {
    Text bytes;
    size_t *ends;
    size_t n, capacity;
} Strings;

static void strings_free(Strings *strings) {
    text_free(&strings->bytes);
    mem_free(strings->ends);
    *strings = (Strings){0};
}

static void strings_clear(Strings *strings) {
    text_clear(&strings->bytes);
    strings->n = 0;
}

/* What was put since the last end becomes one string; a failed allocation sticks to the bytes. */
static void strings_end(Strings *strings) {
    if (strings->n == strings->capacity) {
        size_t capacity = strings->capacity ? 2 * strings->capacity : 64;
        size_t *ends = mem_resize(strings->ends, capacity, sizeof *ends);
        if (!ends) {
            strings->bytes.failed = true;
            return;
        }
        strings->ends = ends;
        strings->capacity = capacity;
    }
    strings->ends[strings->n++] = strings->bytes.length;
}

static const char *string_at(const Strings *strings, size_t i, size_t *length) {
    size_t begin = i ? strings->ends[i - 1] : 0;
    *length = strings->ends[i] - begin;
    return strings->bytes.bytes ? strings->bytes.bytes + begin : "";
}

static void put_replacement(Text *text) { text_put(text, "\xef\xbf\xbd", 3); }

/* Rust's from_utf8_lossy: after valid text, the longest prefix of a character that is cut short counts
 * as one. */
static void put_lossy(Text *text, const char *bytes, size_t n) {
    while (n) {
        size_t bad = n;
        if (text_is_utf8(bytes, n, &bad)) bad = n;
        text_put(text, bytes, bad);
        bytes += bad;
        n -= bad;
        if (!n) break;
        const unsigned char *u = (const unsigned char *)bytes;
        size_t wanted = u[0] >= 0xf0 && u[0] <= 0xf4 ? 4 : u[0] >= 0xe0 && u[0] < 0xf0 ? 3 : 1, skip = 1;
        unsigned char least = u[0] == 0xe0 ? 0xa0 : u[0] == 0xf0 ? 0x90 : 0x80;
        unsigned char most = u[0] == 0xed ? 0x9f : u[0] == 0xf4 ? 0x8f : 0xbf;
        while (skip < wanted && skip < n && u[skip] >= least && u[skip] <= most) {
            skip++;
            least = 0x80, most = 0xbf;
        }
        put_replacement(text);
        bytes += skip;
        n -= skip;
    }
}

/* ---- steps ---- */
static void byte_level(const Strings *from, Strings *to, Text *raw) {
    text_clear(raw);
    for (size_t i = 0; i < from->n; i++) {
        size_t length, begin = raw->length;
        const char *name = string_at(from, i, &length);
        for (size_t at = 0; at < length;) {
            int32_t code;
            at += utf8_read(name + at, &code);
            int32_t byte = byte_level_byte(code);
            char one = (char)byte;
            if (byte >= 0) {
                text_put(raw, &one, 1);
                continue;
            }
            /* a token with another character is not of this alphabet: its own text */
            if (raw->failed) return;
            raw->length = begin;
            text_put(raw, name, length);
            break;
        }
    }
    if (raw->bytes) put_lossy(&to->bytes, raw->bytes, raw->length);
    strings_end(to);
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* <0xHH>; Rust's number parser also takes a plus sign for the first digit. */
static int fallback_byte(const char *name, size_t length) {
    if (length != 6 || memcmp(name, "<0x", 3) != 0 || name[5] != '>') return -1;
    int high = name[3] == '+' ? 0 : hex_digit(name[3]), low = hex_digit(name[4]);
    return high < 0 || low < 0 ? -1 : 16 * high + low;
}

static void put_run(Strings *to, Text *run) {
    size_t bad;
    if (!run->length) return;
    if (text_is_utf8(run->bytes, run->length, &bad)) {
        text_put(&to->bytes, run->bytes, run->length);
        strings_end(to);
    } else {
        for (size_t i = 0; i < run->length; i++) {
            put_replacement(&to->bytes);
            strings_end(to);
        }
    }
    text_clear(run);
}

static void byte_fallback(const Strings *from, Strings *to, Text *run) {
    text_clear(run);
    for (size_t i = 0; i < from->n; i++) {
        size_t length;
        const char *name = string_at(from, i, &length);
        int byte = fallback_byte(name, length);
        char one = (char)byte;
        if (byte >= 0) {
            text_put(run, &one, 1);
            continue;
        }
        put_run(to, run);
        text_put(&to->bytes, name, length);
        strings_end(to);
    }
    put_run(to, run);
}

static void strip(const Decoder *step, const Strings *from, Strings *to) {
    char character[4];
    size_t n = utf8_write(step->character, character);
    for (size_t i = 0; i < from->n; i++) {
        size_t length, begin = 0;
        const char *name = string_at(from, i, &length);
        for (int64_t k = 0; k < step->start && length - begin >= n; k++) {
            if (memcmp(name + begin, character, n) != 0) break;
            begin += n;
        }
        for (int64_t k = 0; k < step->stop && length - begin >= n; k++) {
            if (memcmp(name + length - n, character, n) != 0) break;
            length -= n;
        }
        text_put(&to->bytes, name + begin, length - begin);
        strings_end(to);
    }
}

static void metaspace(const Decoder *step, const Strings *from, Strings *to) {
    for (size_t i = 0; i < from->n; i++) {
        size_t length, n;
        const char *name = string_at(from, i, &length);
        for (size_t at = 0; at < length; at += n) {
            int32_t code;
            n = utf8_read(name + at, &code);
            if (code != step->character)
                text_put(&to->bytes, name + at, n);
            else if (i || !step->drops_first)
                text_put(&to->bytes, " ", 1);
        }
        strings_end(to);
    }
}

static bool replace(const Decoder *step, const Strings *from, Strings *to, Error *error) {
    SpanList found = {0};
    PatternSpace space = {0};
    bool done = true;
    for (size_t i = 0; done && i < from->n; i++) {
        size_t length;
        const char *name = string_at(from, i, &length);
        done = pattern_find(&step->pattern, name, length, &space, &found, error);
        for (size_t k = 0; done && k < found.n; k++) {
            Span span = found.items[k];
            if (span.is_match)
                text_put(&to->bytes, step->content, step->length);
            else
                text_put(&to->bytes, name + span.begin, span.end - span.begin);
        }
        strings_end(to);
    }
    span_list_free(&found);
    pattern_space_free(&space);
    return done;
}

static bool decode_step(const Decoder *step, const Strings *from, Strings *to, Text *scratch, Error *error) {
    strings_clear(to);
    switch (step->kind) {
    case DECODE_REPLACE: return replace(step, from, to, error);
    case DECODE_BYTE_FALLBACK: byte_fallback(from, to, scratch); break;
    case DECODE_FUSE:
        if (from->bytes.bytes) text_put(&to->bytes, from->bytes.bytes, from->bytes.length);
        strings_end(to);
        break;
    case DECODE_STRIP: strip(step, from, to); break;
    case DECODE_BYTE_LEVEL: byte_level(from, to, scratch); break;
    case DECODE_METASPACE: metaspace(step, from, to); break;
    }
    return true;
}

/* The names of the ids; an added token's own text comes before the model's. */
static bool put_names(const Tokenizer *tokenizer, const int32_t *ids, int64_t n_ids, bool skip_special,
                      Strings *names, Error *error) {
    for (int64_t i = 0; i < n_ids; i++) {
        int32_t added = ids[i] >= 0 && ids[i] < tokenizer->n_ids ? tokenizer->added_of_id[ids[i]] : -1;
        const AddedToken *token = added < 0 ? NULL : &tokenizer->added[added];
        size_t length = 0;
        const char *name = vocabulary_name(&tokenizer->model.vocabulary, ids[i], &length);
        if (token) name = token->content, length = token->length;
        if (!name)
            return error_set(error, ERROR_BAD_INPUT,
                             "ids[%lld]: expected an id of the tokenizer, 0 to %lld: got %d", (long long)i,
                             (long long)tokenizer->n_ids - 1, ids[i]);
        if (token && token->special && skip_special) continue;
        text_put(&names->bytes, name, length);
        strings_end(names);
    }
    return true;
}

bool tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, int64_t n_ids, bool skip_special,
                      Text *text, Error *error) {
    Strings strings[2] = {{{0}, NULL, 0, 0}, {{0}, NULL, 0, 0}};
    Text scratch = {0};
    int now = 0;
    bool done = put_names(tokenizer, ids, n_ids, skip_special, &strings[0], error);
    for (int64_t i = 0; done && i < tokenizer->n_decoders; i++, now = !now) {
        done = decode_step(&tokenizer->decoders[i], &strings[now], &strings[!now], &scratch, error);
        if (strings[0].bytes.failed || strings[1].bytes.failed || scratch.failed) break;
    }
    bool failed = strings[0].bytes.failed || strings[1].bytes.failed || scratch.failed;
    for (size_t i = 0; done && !failed && i < strings[now].n; i++) {
        size_t length;
        const char *string = string_at(&strings[now], i, &length);
        if (i && !tokenizer->n_decoders) text_put(text, " ", 1);
        text_put(text, string, length);
    }
    if (failed || text->failed) done = error_out_of_memory(error, "a decoded text", (size_t)n_ids);
    strings_free(&strings[0]);
    strings_free(&strings[1]);
    text_free(&scratch);
    return done;
}

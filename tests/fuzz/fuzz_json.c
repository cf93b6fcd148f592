/* json_parse against a second, tiny reader of the same rules: both must accept, or both refuse. What is
 * accepted is walked, written again by text.c, and must come back the same. */
#include "engine/alloc.h"
#include "engine/json.h"
#include "engine/text.h"
#include "kernels/check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- the tiny reader: recursive descent over p, NULL when refused ---- */

static const char *skip_space(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n')) p++;
    return p;
}

static int hex4(const char *p, const char *end) {
    int value = 0;
    for (int i = 0; i < 4; i++) {
        const char *digits = "0123456789abcdef", *at;
        int c = p + i < end ? p[i] : 0;
        if (c >= 'A' && c <= 'F') c += 'a' - 'A';
        if (!c || !(at = strchr(digits, c))) return -1;
        value = value * 16 + (int)(at - digits);
    }
    return value;
}

/* Bytes of the UTF-8 sequence at p, 0 when it is none. */
static size_t sequence(const char *p, const char *end) {
    const unsigned char *u = (const unsigned char *)p;
    size_t left = (size_t)(end - p);
    if (u[0] < 0x80) return 1;
    if (u[0] >= 0xc2 && u[0] <= 0xdf) return left > 1 && u[1] >> 6 == 2 ? 2 : 0;
    if (u[0] >= 0xe0 && u[0] <= 0xef) {
        if (left < 3 || u[1] >> 6 != 2 || u[2] >> 6 != 2) return 0;
        if (u[0] == 0xe0 && u[1] < 0xa0) return 0;
        return u[0] == 0xed && u[1] > 0x9f ? 0 : 3;
    }
    if (u[0] < 0xf0 || u[0] > 0xf4 || left < 4 || u[1] >> 6 != 2 || u[2] >> 6 != 2 || u[3] >> 6 != 2)
        return 0;
    return (u[0] == 0xf0 && u[1] < 0x90) || (u[0] == 0xf4 && u[1] > 0x8f) ? 0 : 4;
}

static void put_code(Text *to, unsigned code) {
    char bytes[4];
    size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    if (n == 1) bytes[0] = (char)code;
    for (size_t i = n - 1; n > 1 && i > 0; i--, code >>= 6) bytes[i] = (char)(0x80 | (code & 0x3f));
    if (n > 1) bytes[0] = (char)((0xf00u >> n & 0xf0u) | code);
    text_put(to, bytes, n);
}

static const char *read_escape(const char *p, const char *end, Text *to) {
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    const char *at = p < end && *p ? strchr(from, *p) : NULL;
    if (at) {
        text_put(to, &into[at - from], 1);
        return p + 1;
    }
    if (p >= end || *p != 'u') return NULL;
    int code = hex4(p + 1, end), low;
    if (code <= 0 || (code >= 0xdc00 && code <= 0xdfff)) return NULL;
    if (code < 0xd800 || code > 0xdbff) {
        put_code(to, (unsigned)code);
        return p + 5;
    }
    if (end - p < 11 || p[5] != '\\' || p[6] != 'u') return NULL;
    low = hex4(p + 7, end);
    if (low < 0xdc00 || low > 0xdfff) return NULL;
    put_code(to, 0x10000u + (((unsigned)code & 0x3ffu) << 10) + ((unsigned)low & 0x3ffu));
    return p + 11;
}

static const char *read_string(const char *p, const char *end, Text *to) {
    if (p >= end || *p != '"') return NULL;
    for (p++; p && p < end && *p != '"';) {
        size_t n = sequence(p, end);
        if (n == 0 || (unsigned char)*p < 0x20) return NULL;
        if (*p == '\\') {
            p = read_escape(p + 1, end, to);
        } else {
            text_put(to, p, n);
            p += n;
        }
    }
    return p && p < end ? p + 1 : NULL;
}

static const char *read_number(const char *p, const char *end) {
    const char *begin = p;
    if (p < end && *p == '-') p++;
    const char *whole = p;
    while (p < end && *p >= '0' && *p <= '9') p++;
    if (p == whole || (*whole == '0' && p - whole > 1)) return NULL;
    if (p < end && *p == '.') {
        const char *digits = ++p;
        while (p < end && *p >= '0' && *p <= '9') p++;
        if (p == digits) return NULL;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < end && (*p == '+' || *p == '-')) p++;
        const char *digits = p;
        while (p < end && *p >= '0' && *p <= '9') p++;
        if (p == digits) return NULL;
    }
    char *copy = mem_copy_text(begin, (size_t)(p - begin));
    bool finite = isfinite(strtod(copy, NULL));
    mem_free(copy);
    return finite ? p : NULL;
}

static const char *read_value(const char *p, const char *end, int depth);

static const char *read_members(const char *p, const char *end, int depth, Text *keys) {
    for (;;) {
        Text key = {0};
        p = read_string(skip_space(p, end), end, &key);
        /* between bytes that no UTF-8 contains */
        Text quoted = {0};
        text_put(&quoted, "\xfe", 1);
        text_put(&quoted, key.bytes ? key.bytes : "", key.length);
        text_put(&quoted, "\xff", 1);
        bool again = keys->length && memmem(keys->bytes, keys->length, quoted.bytes, quoted.length);
        text_put(keys, quoted.bytes, quoted.length);
        text_free(&key);
        text_free(&quoted);
        if (!p || again) return NULL;
        p = skip_space(p, end);
        if (p >= end || *p != ':') return NULL;
        p = read_value(p + 1, end, depth);
        if (!p) return NULL;
        p = skip_space(p, end);
        if (p < end && *p == '}') return p + 1;
        if (p >= end || *p != ',') return NULL;
        p++;
    }
}

static const char *read_value(const char *p, const char *end, int depth) {
    p = skip_space(p, end);
    if (p >= end) return NULL;
    if (*p == '"') {
        Text text = {0};
        p = read_string(p, end, &text);
        text_free(&text);
        return p;
    }
    if (*p == '{' || *p == '[') {
        if (depth >= 64) return NULL;
        const char close = *p == '{' ? '}' : ']', *first = skip_space(p + 1, end);
        if (first < end && *first == close) return first + 1;
        if (close == '}') {
            Text keys = {0};
            p = read_members(p + 1, end, depth + 1, &keys);
            text_free(&keys);
            return p;
        }
        for (p++;; p++) {
            p = read_value(p, end, depth + 1);
            if (!p) return NULL;
            p = skip_space(p, end);
            if (p < end && *p == ']') return p + 1;
            if (p >= end || *p != ',') return NULL;
        }
    }
    static const char *const words[] = {"true", "false", "null"};
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(words[i]);
        if ((size_t)(end - p) >= n && !memcmp(p, words[i], n)) return p + n;
    }
    return read_number(p, end);
}

static bool accepts(const char *text, size_t length) {
    const char *end = text + length, *p = read_value(text, end, 0);
    return p && skip_space(p, end) == end;
}

/* ---- what was accepted, written again ---- */
static void write_again(Json at, Text *to) {
    Error error = {0};
    const char *string;
    double number;
    bool flag;
    int64_t integer;
    char place[200];
    json_path(at, place, sizeof place);
    json_integer(at, INT64_MIN, INT64_MAX, &integer, &(Error){0});
    switch (json_type(at)) {
    case JSON_NULL: text_put_string(to, "null"); return;
    case JSON_BOOL:
        json_bool(at, &flag, &error);
        text_put_string(to, flag ? "true" : "false");
        return;
    case JSON_NUMBER:
        json_number(at, &number, &error);
        text_put_f64(to, number);
        return;
    case JSON_STRING:
        json_string(at, &string, &error);
        text_put_json(to, string, strlen(string));
        return;
    default: break;
    }
    bool object = json_type(at) == JSON_OBJECT;
    int64_t n = 0;
    text_put_string(to, object ? "{" : "[");
    for (Json child = {0}; json_next(&at, &child); n++) {
        if (n) text_put_string(to, ",");
        if (object) text_put_json(to, child.key, strlen(child.key));
        if (object) text_put_string(to, ":");
        write_again(child, to);
    }
    check(n == json_count(at), "%lld entries", (long long)n);
    text_put_string(to, object ? "}" : "]");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error error = {0};
    const char *text = (const char *)data;
    JsonDocument *document = json_parse(text, size, "f", &error);
    bool expected = accepts(text, size);
    check((document != NULL) == expected, "%.*s: %s", (int)size, text, error.text);
    if (!document) {
        check(error.code == ERROR_BAD_INPUT && error.text[0], "%d", error.code);
        return 0;
    }
    Text once = {0}, twice = {0};
    write_again(json_root(document), &once);
    json_free(document);
    document = json_parse(once.bytes, once.length, "f", &error);
    check(document, "%s: %s", once.bytes, error.text);
    write_again(json_root(document), &twice);
    check(once.length == twice.length && !memcmp(once.bytes, twice.bytes, once.length), "%s", twice.bytes);
    json_free(document);
    text_free(&once);
    text_free(&twice);
    return 0;
}

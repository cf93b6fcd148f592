/* The writers of text from outside. Each decodes UTF-8 once, strictly, and decides per code point. */
#include "text.h"
#include "alloc.h"
#include <math.h>
#include <stdarg.h>
#include <string.h>

void text_free(Text *text) {
    mem_free(text->bytes);
    *text = (Text){0};
}

void text_clear(Text *text) {
    text->length = 0;
    if (text->bytes) text->bytes[0] = '\0';
}

/* Room for n more bytes and the NUL. */
static bool reserve(Text *text, size_t n) {
    if (text->failed) return false;
    size_t needed;
    if (!size_add(text->length, n, &needed) || !size_add(needed, 1, &needed)) {
        text->failed = true;
        return false;
    }
    if (needed <= text->capacity) return true;
    size_t capacity = text->capacity ? text->capacity : 64;
    while (capacity < needed) capacity = capacity > SIZE_MAX / 2 ? needed : 2 * capacity;
    char *larger = mem_resize(text->bytes, capacity, 1);
    if (!larger) {
        text->failed = true;
        return false;
    }
    text->bytes = larger;
    text->capacity = capacity;
    return true;
}

void text_put(Text *text, const char *bytes, size_t length) {
    if (!reserve(text, length)) return;
    if (length) memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
    text->bytes[text->length] = '\0';
}

void text_put_string(Text *text, const char *string) { text_put(text, string, strlen(string)); }

void text_format(Text *text, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int n = vsnprintf(NULL, 0, format, arguments);
    if (n >= 0 && reserve(text, (size_t)n)) {
        vsnprintf(text->bytes + text->length, (size_t)n + 1, format, again);
        text->length += (size_t)n;
    }
    va_end(again);
    va_end(arguments);
}

/* ---- UTF-8 ---- */
/* Length of the valid sequence at p (n bytes left) and its code point, or 0. */
static size_t decode(const char *p, size_t n, uint32_t *code) {
    const unsigned char *u = (const unsigned char *)p;
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = u[0] < 0x80   ? 1
                    : u[0] < 0xc2 ? 0
                    : u[0] < 0xe0 ? 2
                    : u[0] < 0xf0 ? 3
                    : u[0] < 0xf5 ? 4
                                  : 0;
    if (length == 0 || length > n) return 0;
    uint32_t c = length == 1 ? u[0] : u[0] & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((u[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (u[i] & 0x3fu);
    }
    if (c < least[length] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    *code = c;
    return length;
}

bool text_is_utf8(const char *bytes, size_t length, size_t *bad) {
    uint32_t code;
    for (size_t i = 0; i < length;) {
        size_t n = decode(bytes + i, length - i, &code);
        if (n == 0) {
            if (bad) *bad = i;
            return false;
        }
        i += n;
    }
    return true;
}

/* Characters that change what a reader sees without being seen: controls, bidi controls, zero width, tags. */
static bool is_hidden(uint32_t c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0xad || c == 0x61c || c == 0x180e ||
           (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) ||
           c == 0xfeff || (c >= 0xfff9 && c <= 0xfffb) || (c >= 0xe0000 && c <= 0xe0fff);
}

/* Puts an escape for one hidden code point or one invalid byte. */
static void put_escape(Text *text, uint32_t code, bool is_byte) {
    text_format(text, is_byte || code < 0x80 ? "\\x%02x" : "\\u{%x}", (unsigned)code);
}

void text_put_terminal(Text *text, const char *bytes, size_t length) {
    uint32_t code = 0;
    for (size_t i = 0; i < length;) {
        size_t n = decode(bytes + i, length - i, &code);
        if (n == 0)
            put_escape(text, (unsigned char)bytes[i], true);
        else if (is_hidden(code) && code != '\n' && code != '\t')
            put_escape(text, code, false);
        else
            text_put(text, bytes + i, n);
        i += n ? n : 1;
    }
}

void text_put_html(Text *text, const char *bytes, size_t length) {
    uint32_t code = 0;
    for (size_t i = 0; i < length;) {
        size_t n = decode(bytes + i, length - i, &code);
        if (n == 0)
            put_escape(text, (unsigned char)bytes[i], true);
        else if (code == '&')
            text_put_string(text, "&amp;");
        else if (code == '<')
            text_put_string(text, "&lt;");
        else if (code == '>')
            text_put_string(text, "&gt;");
        else if (code == '"')
            text_put_string(text, "&quot;");
        else if (code == '\'')
            text_put_string(text, "&#39;");
        else if ((is_hidden(code) && code != '\n' && code != '\t') || (code & 0xfffe) == 0xfffe)
            put_escape(text, code, false);
        else
            text_put(text, bytes + i, n);
        i += n ? n : 1;
    }
}

void text_put_json(Text *text, const char *bytes, size_t length) {
    uint32_t code = 0;
    text_put(text, "\"", 1);
    for (size_t i = 0; i < length;) {
        size_t n = decode(bytes + i, length - i, &code);
        if (n == 0)
            text_put_string(text, "\xef\xbf\xbd");
        else if (code == '"' || code == '\\')
            text_format(text, "\\%c", (int)code);
        else if (code == '\n')
            text_put_string(text, "\\n");
        else if (code == '\t')
            text_put_string(text, "\\t");
        else if (code < 0x20 || code == 0x7f || code == '<' || code == 0x2028 || code == 0x2029)
            text_format(text, "\\u%04x", (unsigned)code);
        else
            text_put(text, bytes + i, n);
        i += n ? n : 1;
    }
    text_put(text, "\"", 1);
}

void text_put_csv(Text *text, const char *bytes, size_t length) {
    bool formula = length && strchr("=+-@\t\r\n", bytes[0]);
    bool quoted = formula;
    for (size_t i = 0; i < length && !quoted; i++) quoted = bytes[i] == '\0' || strchr(",\"\r\n", bytes[i]);
    if (!quoted) {
        text_put(text, bytes, length);
        return;
    }
    text_put(text, "\"", 1);
    if (formula) text_put(text, "'", 1);
    for (size_t i = 0; i < length; i++)
        text_put(text, bytes[i] == '"' ? "\"\"" : bytes + i, bytes[i] == '"' ? 2 : 1);
    text_put(text, "\"", 1);
}

void text_put_f32(Text *text, float value) {
    if (isfinite(value))
        text_format(text, "%.9g", (double)value);
    else
        text_put_string(text, "null");
}

void text_put_f64(Text *text, double value) {
    if (isfinite(value))
        text_format(text, "%.17g", value);
    else
        text_put_string(text, "null");
}

void text_print_error(const Error *error) {
    Text line = {0};
    text_put_string(&line, "gatetape: error: ");
    text_put_terminal(&line, error->text, strlen(error->text));
    text_put(&line, "\n", 1);
    fputs(line.failed ? "gatetape: error: out of memory\n" : line.bytes, stderr);
    text_free(&line);
}

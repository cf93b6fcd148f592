/* The Error value: filled once, by whoever met the bad thing first; places are put before it on the way up.
 *
 * Names and values from files end up in the text, so it is cleaned here, once: whatever is not one line of
 * valid UTF-8 becomes a visible escape, and a text that is too long is cut. */
#include "error.h"
#include "text.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Copies `from` to the error's text at `used`, as one line of UTF-8. */
static void put_clean(Error *error, size_t used, const char *from) {
    size_t length = strlen(from), bad = 0;
    const size_t room = sizeof error->text - 1;
    for (size_t i = 0; i < length;) {
        size_t n_valid = text_is_utf8(from + i, length - i, &bad) ? length - i : bad;
        for (size_t end = i + n_valid; i < end; i++) {
            unsigned char byte = (unsigned char)from[i];
            char escape[8] = {from[i], '\0'};
            if (byte < 0x20 || byte == 0x7f) snprintf(escape, sizeof escape, "\\x%02x", byte);
            size_t n = strlen(escape);
            if (used + n > room) goto full;
            memcpy(error->text + used, escape, n);
            used += n;
        }
        if (i == length) break;
        if (used + 4 > room) goto full;
        used += (size_t)snprintf(error->text + used, 5, "\\x%02x", (unsigned char)from[i++]);
    }
full:
    error->text[used] = '\0';
    if (!text_is_utf8(error->text, used, &bad)) error->text[bad] = '\0';
}

bool error_set(Error *error, ErrorCode code, const char *format, ...) {
    if (error->code != ERROR_NONE) return false;
    char raw[sizeof error->text];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(raw, sizeof raw, format, arguments);
    va_end(arguments);
    put_clean(error, 0, raw);
    error->code = code;
    return false;
}

bool error_add_place(Error *error, const char *format, ...) {
    if (error->code == ERROR_NONE) return false;
    char place[400], what[sizeof error->text];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(place, sizeof place, format, arguments);
    va_end(arguments);
    memcpy(what, error->text, sizeof what);
    put_clean(error, 0, place);
    size_t used = strlen(error->text);
    memcpy(error->text + used, ": ", 3); /* fits: an escaped place has at most 4 * 399 bytes */
    put_clean(error, used + 2, what);
    return false;
}

bool error_out_of_memory(Error *error, const char *what, unsigned long long n_bytes) {
    return error_set(error, ERROR_UNAVAILABLE, "%s: expected %llu bytes of memory: got none", what, n_bytes);
}

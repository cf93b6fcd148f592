/* Text: a growing byte buffer, and the only writers through which text from outside leaves the program.
 *
 * Prompts, file names and model output are untrusted: a terminal gets no control characters, HTML no
 * markup, CSV no broken quoting and no formula, JSON no invalid UTF-8. An allocation failure sticks:
 * `failed` is set and later puts do nothing, so that a caller checks once at the end. */
#ifndef GATETAPE_TEXT_H
#define GATETAPE_TEXT_H
#include "error.h"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct {
    char *bytes; /* NUL-terminated when not NULL; owned: text_free */
    size_t length, capacity;
    bool failed;
} Text;

void text_free(Text *text);
void text_clear(Text *text); /* empty again, memory kept */
void text_put(Text *text, const char *bytes, size_t length);
void text_put_string(Text *text, const char *string);
void text_format(Text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Escaped for a place: printable text passes, the rest becomes visible escapes (\x1b, \u{202e}). */
void text_put_terminal(Text *text, const char *bytes, size_t length);
/* For text and attribute values, also of SVG. */
void text_put_html(Text *text, const char *bytes, size_t length);
/* With its quotes; invalid UTF-8 becomes U+FFFD. */
void text_put_json(Text *text, const char *bytes, size_t length);
/* One field, quoted where needed; no formulas. */
void text_put_csv(Text *text, const char *bytes, size_t length);

/* Shortest forms that read back exactly: f32 by %.9g, f64 by %.17g; NaN and infinity are not JSON: "null". */
void text_put_f32(Text *text, float value);
void text_put_f64(Text *text, double value);

/* True when bytes are valid UTF-8 (no surrogates, no overlong forms); else *bad is the offset of the first
 * bad byte. */
bool text_is_utf8(const char *bytes, size_t length, size_t *bad);

/* One line to stderr: "gatetape: error: ..." through the terminal writer. */
void text_print_error(const Error *error);

#endif

/* Code points as the Hugging Face tokenizers see them: white space is the 25 code points of White_Space,
 * words are those of the Rust regex crate, classes are utf8proc's. All texts here are valid UTF-8,
 * checked where they come in. */
#ifndef GATETAPE_TOKENIZER_UNICODE_H
#define GATETAPE_TOKENIZER_UNICODE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Length of the character at a valid place of a valid text, and its code point. */
size_t utf8_read(const char *at, int32_t *code);
size_t utf8_length(unsigned char first); /* 1 to 4, from the first byte */
size_t utf8_write(int32_t code, char to[4]);
/* Where the character before `at` begins; begin < at. */
const char *utf8_before(const char *begin, const char *at);

bool unicode_is_space(int32_t code);
bool unicode_is_word(int32_t code);        /* Alphabetic, marks, decimal digits, connectors, joiners */
bool unicode_is_numeric(int32_t code);     /* Nd, Nl, No */
bool unicode_is_punctuation(int32_t code); /* P* of old, and the ASCII symbols */
/* Marks and compositions that came with Unicode 10 or later. The tables of normal forms in the Hugging
 * Face library are older: it neither decomposes, nor composes, nor reorders these. */
bool unicode_has_no_form(int32_t code);

#endif

/* json_write: members and entries of a JSON text, commas by themselves.
 *
 * A value that is not defined is written as null with its reason beside it, under the key + "_reason". */
#ifndef GATETAPE_JSON_WRITE_H
#define GATETAPE_JSON_WRITE_H
#include "../engine/text.h"

/* `"key": ` behind a comma where one is due; key NULL: an entry of an array. */
void write_key(Text *to, const char *key);
void write_begin(Text *to, const char *key, char bracket); /* '{' or '[' */
void write_end(Text *to, char bracket);                    /* '}' or ']' */
void write_line(Text *to);                                 /* the next entry begins a line */

void write_integer(Text *to, const char *key, int64_t value);
void write_number(Text *to, const char *key, double value); /* not finite: null, said to be so elsewhere */
void write_string(Text *to, const char *key, const char *value);
void write_lines(Text *to, const char *key, const char *lines); /* a list, a string each; lines may be NULL */
void write_bool(Text *to, const char *key, bool value);
void write_null(Text *to, const char *key, const char *reason);
/* A number, or null with the reason where it is not finite. */
void write_number_or(Text *to, const char *key, double value, const char *reason);
/* `key_low` and `key_high`. */
void write_interval(Text *to, const char *key, double low, double high);

#endif

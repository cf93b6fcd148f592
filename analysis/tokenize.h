/* The verb `tokenize`: a tokenizer as a filter, so that its ids can be compared with any other
 * implementation's. */
#ifndef GATETAPE_TOKENIZE_H
#define GATETAPE_TOKENIZE_H
#include "../engine/error.h"
#include <stdbool.h>

/* Reads standard input: one JSON string a line; writes for each one JSON array of its ids to standard
 * output. Added tokens are recognised, none is put around the text. With `decode` the other way; special
 * tokens are kept. Empty lines are left out. Errors name the line. */
bool tokenize_run(const char *folder, bool decode, Error *error);

#endif

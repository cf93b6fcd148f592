/* `gatetape conform` on the command line, on one rank or several. */
#ifndef GATETAPE_CONFORM_VERB_H
#define GATETAPE_CONFORM_VERB_H
#include "arguments.h"

extern const Flag conform_flags[];
/* version: that of the program, which ranks compare. False without an Error: the case does not agree. */
bool conform_verb(const Arguments *arguments, const char *version, Error *error);

#endif

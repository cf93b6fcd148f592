/* definitions: what every number of statistics.json and of contrast.json means, a table each, from which
 * their documentation is made. Tests walk a file and its table: neither has what the other lacks. */
#ifndef GATETAPE_DEFINITIONS_H
#define GATETAPE_DEFINITIONS_H
#include "../engine/text.h"

typedef struct {
    const char *path; /* "groups.NAME.layers[].entropy"; a leaf, or an object where that alone is said */
    const char *unit; /* "cells", "nats", ...; NULL: text, or a list */
    const char *meaning;
} Definition;

extern const Definition definition_table[];
extern const int64_t n_definitions;
extern const Definition contrast_definitions[]; /* of contrast.json */
extern const int64_t n_contrast_definitions;

/* What `gatetape definitions` prints, and what stands in README.txt beside statistics.json. */
void definitions_document(Text *to);

#endif

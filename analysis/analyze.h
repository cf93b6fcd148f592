/* analyze: the statistics of a table of counts, from whatever tool it came. */
#ifndef GATETAPE_ANALYZE_H
#define GATETAPE_ANALYZE_H
#include "../engine/error.h"
#include <stdint.h>

typedef struct {
    const char *counts, *out;
    const char *const *sets; /* "OPTION=VALUE" of the options that say how statistics are made */
    int64_t n_sets;
    int64_t seed;
} AnalyzeRequest;

/* OUT/statistics.json, and OUT/README.txt that says what it holds. */
bool analyze_run(const AnalyzeRequest *request, Error *error);

#endif

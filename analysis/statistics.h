/* statistics: everything that is said of groups of prompts, as one file, statistics.json.
 *
 * A job's measuring steps and `gatetape analyze` write the same file. What a number means stands in
 * definitions.c. What is not defined is null with a reason beside it; entries of long lists are null alone,
 * and the reason stands once where the list's method is described (bootstrap_reason, permutation_reason). */
#ifndef GATETAPE_STATISTICS_H
#define GATETAPE_STATISTICS_H
#include "options.h"
#include "stats.h"

/* The ranking of another step over the same cells: is it the same experts that fire and that matter? */
typedef struct {
    const char *step;
    const char *const *groups; /* [n_groups] */
    const int64_t *orders;     /* [n_groups,C] cells, largest score first */
    int64_t n_groups;
} OtherRanking;

typedef struct {
    const char *signal; /* "activation", "gradient" or "counts" */
    const char *score;  /* what it is, in words */
    const Cells *cells;
    const StatGroup *groups;
    int64_t n_groups;
    const StepOptions *options; /* those of statistics */
    uint64_t seed;
    const char *no_prompts; /* why there are none, where there are none */
    const char *no_margins; /* why near ties were not measured, where they were not */
    const char *warnings;   /* lines; may be NULL */
    const OtherRanking *others;
    int64_t n_others;
    const char *no_others; /* why there can be none, or NULL */
} StatisticsInput;

/* What of the options contradicts itself, in words; NULL: nothing. */
const char *statistics_contradiction(const StepOptions *options);

/* FOLDER/statistics.json. The same bytes for any number of threads. */
bool statistics_write(const StatisticsInput *input, const char *folder, Error *error);
/* The same into a text; caller frees it, also after an error. */
bool statistics_put(const StatisticsInput *input, Text *to, Error *error);

#endif

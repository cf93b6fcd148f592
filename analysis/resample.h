/* resample: which prompts a resample draws, as a matrix of indices, and the scores of every resample.
 *
 * The matrix is a value of its own, so that another implementation can be run on the same draws. It is filled
 * from Philox by (seed, purpose, key, sample, draw): no draw depends on the order of work. Scores of a sample
 * are sums over prompts in ascending order, each cell for itself: threads change no bit. */
#ifndef GATETAPE_RESAMPLE_H
#define GATETAPE_RESAMPLE_H
#include "../kernels/random.h"
#include "stats.h"

typedef struct {
    int64_t n, n_drawn; /* samples, indices of each */
    int32_t *index;     /* [n,n_drawn] */
} Resamples;

/* n samples of n_items draws with replacement. key: what else tells them apart, such as the group. Caller
 * frees; safe after an error too. */
bool resamples_bootstrap(uint64_t seed, int64_t key, int64_t n, int64_t n_items, Resamples *resamples,
                         Error *error);
/* n random orders of n_items (Fisher-Yates). */
bool resamples_shuffle(uint64_t seed, RandomPurpose purpose, int64_t key, int64_t n, int64_t n_items,
                       Resamples *resamples, Error *error);
void resamples_free(Resamples *resamples);

/* The prompts of one or two groups, numbered through. */
typedef struct {
    const Cells *cells;
    const StatGroup *groups[2];
    int64_t n_groups;
} Pool;

/* [n,C]: the mean score of the prompts that draws [begin, end) of each sample name. Caller frees. NULL and an
 * Error when out of memory. */
double *resample_scores(const Pool *pool, const Resamples *resamples, int64_t begin, int64_t end,
                        Error *error);

typedef struct {
    const double *values; /* [n,n_columns] */
    const double *minus;  /* NULL, or like values and subtracted from them */
    int64_t n, n_columns;
} SampleTable;

/* low, high [n_columns]: quantiles (1 - confidence) / 2 and (1 + confidence) / 2 of each column. */
bool resample_intervals(SampleTable samples, double confidence, double *low, double *high, Error *error);

/* The same of the mean of values [n_drawn items] over the draws of each sample; NAN for fewer than two. */
bool resample_mean(const double *values, const Resamples *draws, double confidence, double *low, double *high,
                   Error *error);

#endif

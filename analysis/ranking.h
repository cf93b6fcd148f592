/* ranking: order of cells, shares of a total, quantiles.
 *
 * One radix sort of 64-bit keys does all of it: it is stable, so that ties go to the lower cell, and fast
 * enough to rank every one of thousands of resamples. Room comes from the caller: the functions run inside of
 * parallel loops. */
#ifndef GATETAPE_RANKING_H
#define GATETAPE_RANKING_H
#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint64_t key;
    int64_t item;
} Ranked;

enum { RANKING_SHARES = 3 };                           /* 80, 90, 95 % */
extern const double ranking_shares[RANKING_SHARES];    /* of the total score */
extern const char *const ranking_keys[RANKING_SHARES]; /* "k80", "k90", "k95" */

/* order [n]: items by score, largest first, ties to the lower item. Scores >= 0; room [2n]. */
void ranking_sort(const double *scores, int64_t n, Ranked *room, int64_t *order);

/* k [RANKING_SHARES]: least number of items, in this order, that hold each share of the total; 0 when the
 * total is 0. */
void ranking_coverage(const double *scores, const int64_t *order, int64_t n, int64_t *k);

/* values become ascending; room [2n]. */
void ranking_sort_values(double *values, int64_t n, Ranked *room);
/* The quantile at `share` of n >= 1 ascending values: linear between the two at (n - 1) share (Hyndman and
 * Fan 1996, type 7; the default of NumPy and R). */
double ranking_quantile(const double *ascending, int64_t n, double share);

#endif

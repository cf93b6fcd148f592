/* nulls: what the numbers would be without a difference between groups, and without experts that prompts have
 * in common. */
#ifndef GATETAPE_NULLS_H
#define GATETAPE_NULLS_H
#include "ranking.h"
#include "resample.h"

/* ---- prompts change groups ---- */
typedef struct {
    int64_t n;                            /* permutations */
    double *p;                            /* [C] two-sided */
    double *p_max;                        /* [C] against the largest statistic of all cells */
    double *p_layer;                      /* [n_layers] of the largest statistic of a layer */
    int64_t k_difference[RANKING_SHARES]; /* k80, k90, k95: first group minus second */
    double p_k[RANKING_SHARES];           /* two-sided */
} PermutationTest;

/* Two groups of a pool; orders are permutations of their prompts, of which the first n_prompts of the first
 * group stand for it. The statistic of a cell is |mean difference|, divided (PERMUTE_T) by the standard
 * deviation of its scores over all prompts: then it grows with |t|. p = (1 + those at least as large) /
 * (1 + permutations) (Phipson and Smyth 2010); against the largest of all cells: Westfall and Young 1993.
 * Caller frees; safe after an error too. */
bool permutation_test(const Pool *pool, const Resamples *orders, int statistic, PermutationTest *test,
                      Error *error);
void permutation_test_free(PermutationTest *test);

/* ---- experts without names ---- */
/* k [n,RANKING_SHARES]: k80, k90, k95 of the group's scores when in each prompt and layer the experts are
 * rotated by a random number of places, so that prompts have no expert in common but by chance. */
bool rotation_null(const Cells *cells, const StatGroup *group, uint64_t seed, int64_t key, int64_t n,
                   int64_t *k, Error *error);

#endif

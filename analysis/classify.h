/* classify: which cells prefer a group, and what two rankings have in common. */
#ifndef GATETAPE_CLASSIFY_H
#define GATETAPE_CLASSIFY_H
#include <stdint.h>

typedef struct {
    int rule; /* ClassRule */
    double tau;
    const double *const *squared_errors; /* CLASS_Z: [n_groups] of [n_cells] squared standard errors */
} Classifier;

/* classes [n_cells]: the group that a cell prefers, or n_groups for shared. scores [n_groups] of [n_cells].
 * A cell prefers a group when its score there exceeds its largest score elsewhere by the rule: their ratio is
 * larger than tau (arXiv 2605.24270: ratio > tau, < 1 / tau, else shared; the ratio is the earlier group
 * over the later one), or their difference is, or the difference over its standard error. 0 in all groups:
 * shared. */
void classify_cells(const Classifier *classifier, const double *const *scores, int64_t n_groups,
                    int64_t n_cells, int64_t *classes);

/* How many of the first k of two rankings are the same; mark [n_cells] is room, 0 before and after. */
int64_t classify_overlap(const int64_t *a, const int64_t *b, int64_t k, uint8_t *mark);
/* shared / size of the union of two sets of k. */
double classify_jaccard(int64_t shared, int64_t k);

#endif

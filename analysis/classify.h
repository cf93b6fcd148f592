/* classify: which cells prefer a group, and what two rankings have in common. */
#ifndef GATETAPE_CLASSIFY_H
#define GATETAPE_CLASSIFY_H
#include <stdint.h>

/* class [n_cells]: the group that a cell prefers at threshold tau > 1, or n_groups for shared. scores
 * [n_groups] of [n_cells]. A cell prefers a group when the ratio of its score there to its largest score
 * elsewhere exceeds tau (arXiv 2605.24270: ratio > tau, < 1 / tau, else shared; the ratio is the earlier
 * group over the later one). 0 in all groups: shared. */
void classify_cells(const double *const *scores, int64_t n_groups, int64_t n_cells, double tau,
                    int64_t *classes);

/* How many of the first k of two rankings are the same; mark [n_cells] is room, 0 before and after. */
int64_t classify_overlap(const int64_t *a, const int64_t *b, int64_t k, uint8_t *mark);
/* shared / size of the union of two sets of k. */
double classify_jaccard(int64_t shared, int64_t k);

#endif

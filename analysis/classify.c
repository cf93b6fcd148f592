/* Classes by rule, overlap of top sets. */
#include "classify.h"
#include "options.h"
#include <math.h>

/* Whether group g, whose largest rival at cell c is `other`, is preferred. 0 / 0 is NaN: no comparison
 * holds. */
static bool prefers(const Classifier *k, const double *const *scores, int64_t g, int64_t other, int64_t c) {
    double own = scores[g][c], rival = scores[other][c];
    switch (k->rule) {
    case CLASS_DIFFERENCE: return own - rival > k->tau;
    case CLASS_Z: return (own - rival) / sqrt(k->squared_errors[g][c] + k->squared_errors[other][c]) > k->tau;
    default: return g < other ? own / rival > k->tau : rival / own < 1 / k->tau;
    }
}

static int64_t class_of(const Classifier *k, const double *const *scores, int64_t n_groups, int64_t c) {
    for (int64_t g = 0; g < n_groups; g++) {
        int64_t other = -1;
        for (int64_t h = 0; h < n_groups; h++)
            if (h != g && (other < 0 || scores[h][c] > scores[other][c])) other = h;
        if (other >= 0 && prefers(k, scores, g, other, c)) return g;
    }
    return n_groups;
}

void classify_cells(const Classifier *classifier, const double *const *scores, int64_t n_groups,
                    int64_t n_cells, int64_t *classes) {
    for (int64_t c = 0; c < n_cells; c++) classes[c] = class_of(classifier, scores, n_groups, c);
}

int64_t classify_overlap(const int64_t *a, const int64_t *b, int64_t k, uint8_t *mark) {
    int64_t shared = 0;
    for (int64_t i = 0; i < k; i++) mark[a[i]] = 1;
    for (int64_t i = 0; i < k; i++) shared += mark[b[i]];
    for (int64_t i = 0; i < k; i++) mark[a[i]] = 0;
    return shared;
}

double classify_jaccard(int64_t shared, int64_t k) { return (double)shared / (double)(2 * k - shared); }

/* Classes by ratio, overlap of top sets. */
#include "classify.h"

static int64_t class_of(const double *const *scores, int64_t n_groups, int64_t c, double tau) {
    for (int64_t g = 0; g < n_groups; g++) {
        int64_t other = -1;
        for (int64_t h = 0; h < n_groups; h++)
            if (h != g && (other < 0 || scores[h][c] > scores[other][c])) other = h;
        if (other < 0) return n_groups;
        double own = scores[g][c], rival = scores[other][c]; /* 0 / 0 is NaN: no comparison holds */
        if (g < other ? own / rival > tau : rival / own < 1 / tau) return g;
    }
    return n_groups;
}

void classify_cells(const double *const *scores, int64_t n_groups, int64_t n_cells, double tau,
                    int64_t *classes) {
    for (int64_t c = 0; c < n_cells; c++) classes[c] = class_of(scores, n_groups, c, tau);
}

int64_t classify_overlap(const int64_t *a, const int64_t *b, int64_t k, uint8_t *mark) {
    int64_t shared = 0;
    for (int64_t i = 0; i < k; i++) mark[a[i]] = 1;
    for (int64_t i = 0; i < k; i++) shared += mark[b[i]];
    for (int64_t i = 0; i < k; i++) mark[a[i]] = 0;
    return shared;
}

double classify_jaccard(int64_t shared, int64_t k) { return (double)shared / (double)(2 * k - shared); }

/* Two distributions over the experts of a layer. */
#include "contrast.h"
#include "stats.h"
#include <string.h>

const char *const contrast_curve_names[N_CURVES] = {"js", "overlap", "jaccard"};

int64_t contrast_overlap_k(const StepOptions *step, const ModelConfig *config) {
    return step->overlap_k ? step->overlap_k : config->n_experts_per_token;
}

/* Marks the k largest of p, ties to the lower expert. */
static void mark_largest(const double *p, int64_t n, int64_t k, uint8_t *mark) {
    memset(mark, 0, (size_t)n);
    for (int64_t i = 0; i < k; i++) {
        int64_t best = -1;
        for (int64_t e = 0; e < n; e++)
            if (!mark[e] && (best < 0 || p[e] > p[best])) best = e;
        if (best >= 0) mark[best] = 1;
    }
}

void contrast_compare(const double *p, const double *q, int64_t n_experts, int64_t k, uint8_t *mark,
                      double values[N_CURVES]) {
    double least = 0, most = 0, shared = 0;
    mark_largest(p, n_experts, k, mark);
    mark_largest(q, n_experts, k, mark + n_experts);
    for (int64_t e = 0; e < n_experts; e++) {
        least += p[e] < q[e] ? p[e] : q[e];
        most += p[e] < q[e] ? q[e] : p[e];
        shared += mark[e] && mark[n_experts + e];
    }
    values[CURVE_JS] = stats_js_divergence(p, q, n_experts);
    values[CURVE_OVERLAP] = shared;
    values[CURVE_JACCARD] = least / most;
}

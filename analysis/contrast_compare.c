/* Two distributions over the experts of a layer, and all those of a batch, pair by pair and layer by
 * layer. */
#include "contrast.h"
#include "../engine/alloc.h"
#include "stats.h"
#include <math.h>
#include <omp.h>
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

/* ---- a batch of pairs ---- */
typedef struct {
    double *p, *q; /* [E] */
    uint8_t *mark; /* [2E] */
} Room;

static const float *probs_at(const ContrastRoutes *r, int64_t layer, int64_t t) {
    return r->probs + (layer * r->batch->n_tokens + t) * r->n_experts;
}

static void take_row(const ContrastRoutes *r, int64_t layer, int64_t t, double *to) {
    const float *from = probs_at(r, layer, t);
    for (int64_t e = 0; e < r->n_experts; e++) to[e] = from[e];
}

/* Mean distribution and choices of a text's counted tokens. */
static void reduce_text(const ContrastRoutes *r, int64_t text, int64_t layer, double *mean,
                        int64_t *selected) {
    int64_t n = 0;
    for (int64_t t = r->batch->offsets[text]; t < r->batch->offsets[text + 1]; t++) {
        if (r->batch->counted[t] < 0) continue;
        const float *row = probs_at(r, layer, t);
        const int32_t *ids = r->ids + (layer * r->batch->n_tokens + t) * r->n_chosen;
        for (int64_t e = 0; e < r->n_experts; e++) mean[e] += row[e];
        for (int64_t k = 0; k < r->n_chosen; k++) selected[ids[k]]++;
        n++;
    }
    for (int64_t e = 0; n && e < r->n_experts; e++) mean[e] /= (double)n;
}

/* Token by token: position j of one text with position j of the other, where both are counted. */
static void compare_aligned(const ContrastRoutes *r, int64_t pair, int64_t layer, int64_t k, Room room,
                            double values[N_CURVES], double *shift) {
    const Batch *b = r->batch;
    int64_t begin[2] = {b->offsets[2 * pair], b->offsets[2 * pair + 1]}, n = 0;
    for (int64_t j = 0; begin[0] + j < begin[1] && begin[1] + j < b->offsets[2 * pair + 2]; j++) {
        double own[N_CURVES];
        if (b->counted[begin[0] + j] < 0 || b->counted[begin[1] + j] < 0) continue;
        take_row(r, layer, begin[0] + j, room.p);
        take_row(r, layer, begin[1] + j, room.q);
        contrast_compare(room.p, room.q, r->n_experts, k, room.mark, own);
        for (int c = 0; c < N_CURVES; c++) values[c] += own[c];
        for (int64_t e = 0; e < r->n_experts; e++) shift[e] += fabs(room.p[e] - room.q[e]);
        n++;
    }
    for (int c = 0; c < N_CURVES; c++) values[c] /= (double)n;
    for (int64_t e = 0; e < r->n_experts; e++) shift[e] /= (double)n;
}

static void reduce_layer(const ContrastRoutes *r, int64_t pair, int64_t layer, int64_t at, Room room,
                         Measures *to) {
    int64_t E = r->n_experts, row = (at + pair) * r->n_layers + layer, cell = row * E, k = r->overlap_k;
    double values[N_CURVES] = {0}, *first = to->mean_first + cell, *second = to->mean_second + cell;
    reduce_text(r, 2 * pair, layer, first, to->selected_first + cell);
    reduce_text(r, 2 * pair + 1, layer, second, to->selected_second + cell);
    if (r->token_by_token) {
        compare_aligned(r, pair, layer, k, room, values, to->shift + cell);
    } else {
        contrast_compare(first, second, E, k, room.mark, values);
        for (int64_t e = 0; e < E; e++) to->shift[cell + e] = fabs(first[e] - second[e]);
    }
    to->js[row] = values[CURVE_JS];
    to->overlap[row] = values[CURVE_OVERLAP];
    to->jaccard[row] = values[CURVE_JACCARD];
}

bool contrast_reduce(const ContrastRoutes *r, int64_t at, Measures *to, Error *error) {
    int64_t n_pairs = r->batch->n_prompts / 2;
    size_t n_threads = (size_t)omp_get_max_threads(), E = (size_t)r->n_experts;
    double *rows = mem_zeroed(n_threads * E, 2 * sizeof *rows);
    uint8_t *marks = mem_zeroed(n_threads * E, 2);
    bool ok = (rows && marks) || error_out_of_memory(error, "distributions of threads", n_threads * E * 18);
    if (ok) {
#pragma omp parallel for collapse(2) schedule(static)
        for (int64_t pair = 0; pair < n_pairs; pair++)
            for (int64_t l = 0; l < r->n_layers; l++) {
                size_t own = 2 * E * (size_t)omp_get_thread_num();
                reduce_layer(r, pair, l, at, (Room){rows + own, rows + own + E, marks + own}, to);
            }
    }
    mem_free(rows);
    mem_free(marks);
    return ok;
}

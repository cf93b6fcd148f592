/* Closed forms over scores; serial and in double, so that one order of operations makes equal bytes. */
#include "stats.h"
#include "../engine/alloc.h"
#include <math.h>
#include <string.h>

/* ---- cells ---- */
bool cells_make(const int64_t *experts_in, int64_t n_layers, Cells *cells, Error *error) {
    size_t n = (size_t)n_layers, n_cells = 0;
    for (size_t l = 0; l < n; l++) n_cells += (size_t)experts_in[l];
    *cells = (Cells){.n_layers = n_layers,
                     .n_cells = (int64_t)n_cells,
                     .layer = mem_zeroed(n + 1, sizeof *cells->layer),
                     .begin = mem_zeroed(n + 1, sizeof *cells->begin),
                     .expert = mem_zeroed(n_cells + 1, sizeof *cells->expert),
                     .row = mem_zeroed(n_cells + 1, sizeof *cells->row)};
    if (!cells->layer || !cells->begin || !cells->expert || !cells->row)
        return error_out_of_memory(error, "cells", (n + n_cells) * 16);
    for (int64_t l = 0, c = 0; l < n_layers; l++) {
        for (int64_t e = 0; e < experts_in[l]; e++, c++) {
            cells->expert[c] = e;
            cells->row[c] = l;
        }
        cells->begin[l + 1] = c;
    }
    return true;
}

void cells_free(Cells *cells) {
    mem_free(cells->layer);
    mem_free(cells->begin);
    mem_free(cells->expert);
    mem_free(cells->row);
    *cells = (Cells){0};
}

/* ---- groups ---- */
void stat_group_free(StatGroup *g) {
    void *blocks[] = {g->scores, g->values, g->tokens, g->near_ties, g->counted, g->margin};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    *g = (StatGroup){0};
}

static double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

double stat_group_score(const Cells *cells, const StatGroup *g, int64_t p, int64_t c) {
    double value = g->values[p * cells->n_cells + c];
    return g->tokens ? ratio(value, g->tokens[p * cells->n_layers + cells->row[c]]) : value;
}

bool stat_group_mean(const Cells *cells, StatGroup *g) {
    int64_t n = g->n_prompts;
    double *column = mem_zeroed((size_t)n + 1, sizeof *column);
    if (!column) return false;
    for (int64_t c = 0; c < cells->n_cells; c++) {
        double whole = (double)n;
        if (g->tokens) {
            for (int64_t p = 0; p < n; p++) column[p] = g->tokens[p * cells->n_layers + cells->row[c]];
            whole = scores_sum(column, n, 1);
        }
        for (int64_t p = 0; p < n; p++) column[p] = g->values[p * cells->n_cells + c];
        g->scores[c] = ratio(scores_sum(column, n, 1), whole);
    }
    mem_free(column);
    return true;
}

void stat_group_errors(const Cells *cells, const StatGroup *g, double *errors) {
    double n = (double)g->n_prompts;
    for (int64_t c = 0; c < cells->n_cells; c++) {
        double sum = 0, squares = 0;
        for (int64_t p = 0; p < g->n_prompts; p++) sum += stat_group_score(cells, g, p, c);
        for (int64_t p = 0; p < g->n_prompts; p++) {
            double off = stat_group_score(cells, g, p, c) - sum / n;
            squares += off * off;
        }
        errors[c] = squares / (n - 1) / n;
    }
}

/* ---- of scores ---- */
double stats_effective_cells(const double *scores, int64_t n_cells) {
    return scores_of_layer(scores, n_cells, DOMINANT_SHARE).effective;
}

int64_t stats_count_unused(const double *scores, int64_t n_cells) {
    int64_t n = 0;
    for (int64_t c = 0; c < n_cells; c++) n += scores[c] <= 0;
    return n;
}

bool stats_all_equal(const double *scores, int64_t n_cells) {
    for (int64_t c = 1; c < n_cells; c++)
        if (scores[c] != scores[0]) return false;
    return true;
}

double stats_mean_depth(const Cells *cells, const int64_t *chosen, int64_t n) {
    if (n < 1 || cells->n_decoder_layers < 2) return NAN;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)cells->layer[cells->row[chosen[i]]];
    return sum / (double)n / (double)(cells->n_decoder_layers - 1);
}

double stats_js_divergence(const double *a, const double *b, int64_t n) {
    double whole_a = 0, whole_b = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) whole_a += a[i], whole_b += b[i];
    if (whole_a <= 0 || whole_b <= 0) return NAN;
    for (int64_t i = 0; i < n; i++) {
        double p = a[i] / whole_a, q = b[i] / whole_b, m = 0.5 * (p + q);
        if (p > 0) sum += 0.5 * p * log(p / m);
        if (q > 0) sum += 0.5 * q * log(q / m);
    }
    return sum > 0 ? sum : 0;
}

double stats_correlation(const double *a, const double *b, int64_t n) {
    double mean_a = scores_sum(a, n, 1) / (double)n, mean_b = scores_sum(b, n, 1) / (double)n, aa = 0, bb = 0,
           ab = 0;
    for (int64_t i = 0; i < n; i++) {
        double x = a[i] - mean_a, y = b[i] - mean_b;
        aa += x * x;
        bb += y * y;
        ab += x * y;
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : NAN;
}

int64_t stats_uniform_coverage(int64_t n_cells, double share) {
    int64_t n = n_cells > 0;
    while (n < n_cells && !scores_reach((double)n / (double)n_cells, share)) n++;
    return n;
}

/* Permutation of prompts, rotation of experts. Counts of integers over threads are added at the end: the
 * order of work changes no bit. */
#include "nulls.h"
#include "../engine/alloc.h"
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* ---- what each thread needs ---- */
typedef struct {
    int64_t *cells, *layers; /* how many permutations were at least as large */
    int64_t k[RANKING_SHARES];
    Ranked *ranked;
    int64_t *order;
} Counter;

typedef struct {
    const Cells *cells;
    double *scale, *observed, *slack; /* [C] */
    double *layer_largest, *layer_slack;
    double *largest; /* [n] of every permutation */
    Counter *counters;
    int64_t n_counters;
} Test;

static void test_free(Test *t) {
    for (int64_t i = 0; t->counters && i < t->n_counters; i++) {
        Counter *c = &t->counters[i];
        mem_free(c->cells);
        mem_free(c->layers);
        mem_free(c->ranked);
        mem_free(c->order);
    }
    mem_free(t->counters);
    mem_free(t->scale);
    mem_free(t->observed);
    mem_free(t->slack);
    mem_free(t->layer_largest);
    mem_free(t->layer_slack);
    mem_free(t->largest);
}

static bool test_make(const Cells *cells, int64_t n, Test *t) {
    size_t C = (size_t)cells->n_cells, L = (size_t)cells->n_layers;
    *t = (Test){.cells = cells,
                .scale = mem_zeroed(C + 1, sizeof(double)),
                .observed = mem_zeroed(C + 1, sizeof(double)),
                .slack = mem_zeroed(C + 1, sizeof(double)),
                .layer_largest = mem_zeroed(L + 1, sizeof(double)),
                .layer_slack = mem_zeroed(L + 1, sizeof(double)),
                .largest = mem_zeroed((size_t)n + 1, sizeof(double)),
                .n_counters = omp_get_max_threads()};
    t->counters = mem_zeroed((size_t)t->n_counters, sizeof *t->counters);
    bool ok = t->scale && t->observed && t->slack && t->layer_largest && t->layer_slack && t->largest &&
              t->counters;
    for (int64_t i = 0; ok && i < t->n_counters; i++) {
        Counter *c = &t->counters[i];
        c->cells = mem_zeroed(C + 1, sizeof *c->cells);
        c->layers = mem_zeroed(L + 1, sizeof *c->layers);
        c->ranked = mem_zeroed(2 * C + 1, sizeof *c->ranked);
        c->order = mem_zeroed(C + 1, sizeof *c->order);
        ok = c->cells && c->layers && c->ranked && c->order;
    }
    return ok;
}

/* 1 / standard deviation of the cell's scores over the prompts of both groups; 0 where they do not vary. */
static double inverse_deviation(const Pool *pool, int64_t c) {
    double sum = 0, squares = 0, n = 0;
    for (int64_t g = 0; g < pool->n_groups; g++)
        for (int64_t p = 0; p < pool->groups[g]->n_prompts; p++, n++)
            sum += stat_group_score(pool->cells, pool->groups[g], p, c);
    double mean = sum / n;
    for (int64_t g = 0; g < pool->n_groups; g++)
        for (int64_t p = 0; p < pool->groups[g]->n_prompts; p++) {
            double off = stat_group_score(pool->cells, pool->groups[g], p, c) - mean;
            squares += off * off;
        }
    bool varies = squares > 1e-24 * n * mean * mean;
    return varies ? 1 / sqrt(squares / n) : 0;
}

/* The statistics as the prompts are grouped: a and b are the scores of both groups. */
static void observe(const Pool *pool, const double *a, const double *b, int statistic, Test *t) {
    const Cells *cells = t->cells;
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < cells->n_cells; c++) {
        t->scale[c] = statistic == PERMUTE_T ? inverse_deviation(pool, c) : 1;
        t->observed[c] = fabs(a[c] - b[c]) * t->scale[c];
        t->slack[c] = 1e-12 * (a[c] + b[c]) * t->scale[c]; /* equal sums in another order count as equal */
    }
    for (int64_t c = 0; c < cells->n_cells; c++) {
        int64_t l = cells->row[c];
        t->layer_largest[l] = fmax(t->layer_largest[l], t->observed[c]);
        t->layer_slack[l] = fmax(t->layer_slack[l], t->slack[c]);
    }
}

static void coverage_of(const double *scores, int64_t n, Counter *counter, int64_t k[RANKING_SHARES]) {
    ranking_sort(scores, n, counter->ranked, counter->order);
    ranking_coverage(scores, counter->order, n, k);
}

static void count_permutation(Test *t, const double *a, const double *b, const int64_t *k_difference,
                              double *largest, Counter *counter) {
    const Cells *cells = t->cells;
    *largest = 0;
    for (int64_t l = 0; l < cells->n_layers; l++) {
        double of_layer = 0;
        for (int64_t c = cells->begin[l]; c < cells->begin[l + 1]; c++) {
            double one = fabs(a[c] - b[c]) * t->scale[c];
            counter->cells[c] += one >= t->observed[c] - t->slack[c];
            if (one > of_layer) of_layer = one;
        }
        counter->layers[l] += of_layer >= t->layer_largest[l] - t->layer_slack[l];
        if (of_layer > *largest) *largest = of_layer;
    }
    int64_t k_a[RANKING_SHARES], k_b[RANKING_SHARES];
    coverage_of(a, cells->n_cells, counter, k_a);
    coverage_of(b, cells->n_cells, counter, k_b);
    for (int s = 0; s < RANKING_SHARES; s++)
        counter->k[s] += llabs(k_a[s] - k_b[s]) >= llabs(k_difference[s]);
}

static void sum_up(Test *t, int64_t n, PermutationTest *to) {
    for (int64_t i = 1; i < t->n_counters; i++) {
        for (int64_t c = 0; c < t->cells->n_cells; c++) t->counters[0].cells[c] += t->counters[i].cells[c];
        for (int64_t l = 0; l < t->cells->n_layers; l++) t->counters[0].layers[l] += t->counters[i].layers[l];
        for (int s = 0; s < RANKING_SHARES; s++) t->counters[0].k[s] += t->counters[i].k[s];
    }
    double whole = (double)(n + 1);
    for (int64_t c = 0; c < t->cells->n_cells; c++) {
        int64_t larger = 0;
        for (int64_t b = 0; b < n; b++) larger += t->largest[b] >= t->observed[c] - t->slack[c];
        to->p[c] = (double)(1 + t->counters[0].cells[c]) / whole;
        to->p_max[c] = (double)(1 + larger) / whole;
    }
    for (int64_t l = 0; l < t->cells->n_layers; l++)
        to->p_layer[l] = (double)(1 + t->counters[0].layers[l]) / whole;
    for (int s = 0; s < RANKING_SHARES; s++) to->p_k[s] = (double)(1 + t->counters[0].k[s]) / whole;
}

static bool make_results(const Cells *cells, int64_t n, PermutationTest *to) {
    *to = (PermutationTest){.n = n,
                            .p = mem_zeroed((size_t)cells->n_cells + 1, sizeof *to->p),
                            .p_max = mem_zeroed((size_t)cells->n_cells + 1, sizeof *to->p_max),
                            .p_layer = mem_zeroed((size_t)cells->n_layers + 1, sizeof *to->p_layer)};
    return to->p && to->p_max && to->p_layer;
}

void permutation_test_free(PermutationTest *to) {
    mem_free(to->p);
    mem_free(to->p_max);
    mem_free(to->p_layer);
    *to = (PermutationTest){0};
}

/* One sample: all prompts in their own order. */
static bool observed_scores(const Pool *pool, int64_t n_first, int64_t n_all, double **a, double **b,
                            Error *error) {
    Resamples own = {.n = 1, .n_drawn = n_all, .index = mem_zeroed((size_t)n_all + 1, sizeof(int32_t))};
    if (!own.index) return error_out_of_memory(error, "an order of prompts", (size_t)n_all * 4);
    for (int64_t i = 0; i < n_all; i++) own.index[i] = (int32_t)i;
    *a = resample_scores(pool, &own, 0, n_first, error);
    *b = *a ? resample_scores(pool, &own, n_first, n_all, error) : NULL;
    resamples_free(&own);
    return *b != NULL;
}

bool permutation_test(const Pool *pool, const Resamples *orders, int statistic, PermutationTest *to,
                      Error *error) {
    const Cells *cells = pool->cells;
    int64_t n = orders->n, C = cells->n_cells, n_first = pool->groups[0]->n_prompts,
            n_all = n_first + pool->groups[1]->n_prompts;
    double *a = NULL, *b = NULL, *own_a = NULL, *own_b = NULL;
    Test t = {0};
    bool ok = (make_results(cells, n, to) && test_make(cells, n, &t)) ||
              error_out_of_memory(error, "a permutation test", (size_t)C * 64);
    ok = ok && observed_scores(pool, n_first, n_all, &own_a, &own_b, error) &&
         (a = resample_scores(pool, orders, 0, n_first, error)) != NULL &&
         (b = resample_scores(pool, orders, n_first, n_all, error)) != NULL;
    if (ok) {
        int64_t k_a[RANKING_SHARES], k_b[RANKING_SHARES];
        observe(pool, own_a, own_b, statistic, &t);
        coverage_of(own_a, C, &t.counters[0], k_a);
        coverage_of(own_b, C, &t.counters[0], k_b);
        for (int s = 0; s < RANKING_SHARES; s++) to->k_difference[s] = k_a[s] - k_b[s];
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++)
            count_permutation(&t, a + i * C, b + i * C, to->k_difference, &t.largest[i],
                              &t.counters[omp_get_thread_num()]);
        sum_up(&t, n, to);
    }
    mem_free(a);
    mem_free(b);
    mem_free(own_a);
    mem_free(own_b);
    test_free(&t);
    return ok;
}

/* ---- rotation ---- */
/* sums[e] of a layer of E experts over the prompts, each rotated by its own number of places. A row of
 * `twice` holds a prompt's scores two times, so that a rotation is a plain run; four prompts are added in one
 * pass, in their order. */
static void sum_rotated(const double *twice, int64_t n_prompts, int64_t E, const int32_t *places,
                        double *sums) {
    memset(sums, 0, (size_t)E * sizeof *sums);
    int64_t p = 0;
    for (; p + 4 <= n_prompts; p += 4) {
        const double *rows = twice + 2 * p * E, *a = rows + places[p], *b = rows + 2 * E + places[p + 1],
                     *c = rows + 4 * E + places[p + 2], *d = rows + 6 * E + places[p + 3];
        for (int64_t e = 0; e < E; e++) sums[e] = (((sums[e] + a[e]) + b[e]) + c[e]) + d[e];
    }
    for (; p < n_prompts; p++)
        for (int64_t e = 0; e < E; e++) sums[e] += twice[2 * p * E + places[p] + e];
}

typedef struct {
    const Cells *cells;
    const StatGroup *group;
    uint64_t seed;
    int64_t key, n;
    double *scores;  /* [n,C] */
    double *packed;  /* [P,2E] of one layer, each row two times */
    int32_t *places; /* [threads,P] */
    Ranked *ranked;  /* [threads,2C] */
    int64_t *order;  /* [threads,C] */
} Rotation;

static void rotation_free(Rotation *r) {
    mem_free(r->scores);
    mem_free(r->packed);
    mem_free(r->places);
    mem_free(r->ranked);
    mem_free(r->order);
}

static void rotate_layer(Rotation *r, int64_t l) {
    int64_t P = r->group->n_prompts, C = r->cells->n_cells, first = r->cells->begin[l],
            E = r->cells->begin[l + 1] - first;
    double whole = (double)P;
    for (int64_t p = 0; p < 2 * P; p++)
        memcpy(r->packed + p * E, r->group->values + p / 2 * C + first, (size_t)E * sizeof *r->packed);
    if (r->group->tokens) whole = scores_sum(r->group->tokens + l, P, r->cells->n_layers);
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < r->n; b++) {
        int32_t *places = r->places + omp_get_thread_num() * P;
        for (int64_t p = 0; p < P; p++) {
            double u = random_uniform(r->seed, RANDOM_ROTATION, (r->key << 40) + b * P + p, l);
            places[p] = (int32_t)(u * (double)E);
        }
        double *sums = r->scores + b * C + first;
        sum_rotated(r->packed, P, E, places, sums);
        for (int64_t e = 0; e < E; e++) sums[e] = whole > 0 ? sums[e] / whole : 0;
    }
}

bool rotation_null(const Cells *cells, const StatGroup *group, uint64_t seed, int64_t key, int64_t n,
                   int64_t *k, Error *error) {
    int64_t C = cells->n_cells, P = group->n_prompts, most = 0, threads = omp_get_max_threads();
    for (int64_t l = 0; l < cells->n_layers; l++)
        if (cells->begin[l + 1] - cells->begin[l] > most) most = cells->begin[l + 1] - cells->begin[l];
    Rotation r = {.cells = cells,
                  .group = group,
                  .seed = seed,
                  .key = key,
                  .n = n,
                  .scores = mem_zeroed((size_t)n, (size_t)C * sizeof(double)),
                  .packed = mem_zeroed(2 * (size_t)P, (size_t)most * sizeof(double)),
                  .places = mem_zeroed((size_t)threads, (size_t)P * sizeof(int32_t)),
                  .ranked = mem_zeroed((size_t)threads, 2 * (size_t)C * sizeof(Ranked)),
                  .order = mem_zeroed((size_t)threads, (size_t)C * sizeof(int64_t))};
    bool ok = (r.scores && r.packed && r.places && r.ranked && r.order) ||
              error_out_of_memory(error, "rotated scores", (size_t)(n * C) * sizeof(double));
    for (int64_t l = 0; ok && l < cells->n_layers; l++) rotate_layer(&r, l);
    if (ok) {
#pragma omp parallel for schedule(static)
        for (int64_t b = 0; b < n; b++) {
            int64_t *order = r.order + omp_get_thread_num() * C;
            ranking_sort(r.scores + b * C, C, r.ranked + 2 * omp_get_thread_num() * C, order);
            ranking_coverage(r.scores + b * C, order, C, k + b * RANKING_SHARES);
        }
    }
    rotation_free(&r);
    return ok;
}

/* Drawing, summing, quantiles. The sums are the bulk of all statistics: B x P x C multiply-adds. A block of
 * 16 columns is packed next to each other, stays in the second-level cache for all samples, and its sums in
 * registers. */
#include "resample.h"
#include "ranking.h"
#include "../engine/alloc.h"
#include <math.h>
#include <omp.h>
#include <string.h>

enum { COLUMNS = 16, PIECE = 128 }; /* columns packed together, samples counted together */

/* ---- indices ---- */
static bool make_indices(int64_t n, int64_t n_drawn, Resamples *r, Error *error) {
    size_t n_items = 0;
    *r = (Resamples){.n = n, .n_drawn = n_drawn};
    if (size_multiply((size_t)n, (size_t)n_drawn, &n_items))
        r->index = mem_zeroed(n_items + 1, sizeof *r->index);
    return r->index || error_out_of_memory(error, "indices of resamples", n_items * sizeof *r->index);
}

void resamples_free(Resamples *r) {
    mem_free(r->index);
    *r = (Resamples){0};
}

static int32_t draw(uint64_t seed, RandomPurpose purpose, int64_t id, int64_t position, int64_t n_items) {
    return (int32_t)(random_uniform(seed, purpose, id, position) * (double)n_items);
}

bool resamples_bootstrap(uint64_t seed, int64_t key, int64_t n, int64_t n_items, Resamples *r, Error *error) {
    if (!make_indices(n, n_items, r, error)) return false;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < n; b++)
        for (int64_t i = 0; i < n_items; i++)
            r->index[b * n_items + i] = draw(seed, RANDOM_BOOTSTRAP, (key << 32) + b, i, n_items);
    return true;
}

bool resamples_shuffle(uint64_t seed, RandomPurpose purpose, int64_t key, int64_t n, int64_t n_items,
                       Resamples *r, Error *error) {
    if (!make_indices(n, n_items, r, error)) return false;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < n; b++) {
        int32_t *row = r->index + b * n_items;
        for (int64_t i = 0; i < n_items; i++) row[i] = (int32_t)i;
        for (int64_t i = n_items - 1; i > 0; i--) {
            int32_t j = draw(seed, purpose, (key << 32) + b, i, i + 1), last = row[i];
            row[i] = row[j];
            row[j] = last;
        }
    }
    return true;
}

/* ---- how often each prompt is drawn: rows in ascending order, with their counts ---- */
typedef struct {
    int64_t *begin; /* [n + 1] */
    int32_t *prompt;
    double *times;
} Multiplicities;

static void multiplicities_free(Multiplicities *m) {
    mem_free(m->begin);
    mem_free(m->prompt);
    mem_free(m->times);
}

static bool count_draws(const Resamples *r, int64_t begin, int64_t end, int64_t n_items, Multiplicities *m,
                        Error *error) {
    size_t most = (size_t)(r->n * (end - begin));
    int32_t *counts = mem_zeroed((size_t)n_items + 1, sizeof *counts);
    *m = (Multiplicities){.begin = mem_zeroed((size_t)r->n + 1, sizeof *m->begin),
                          .prompt = mem_zeroed(most + 1, sizeof *m->prompt),
                          .times = mem_zeroed(most + 1, sizeof *m->times)};
    bool ok = counts && m->begin && m->prompt && m->times;
    for (int64_t b = 0, at = 0; ok && b < r->n; b++) {
        const int32_t *row = r->index + b * r->n_drawn;
        for (int64_t i = begin; i < end; i++) counts[row[i]]++;
        for (int32_t p = 0; p < n_items; p++) {
            if (!counts[p]) continue;
            m->prompt[at] = p;
            m->times[at++] = counts[p];
            counts[p] = 0;
        }
        m->begin[b + 1] = at;
    }
    mem_free(counts);
    return ok || error_out_of_memory(error, "counts of resamples", most * 12);
}

/* ---- sums ---- */
static int64_t pool_size(const Pool *pool) {
    int64_t n = 0;
    for (int64_t g = 0; g < pool->n_groups; g++) n += pool->groups[g]->n_prompts;
    return n;
}

/* Columns [first, first + COLUMNS) of the groups' values (or tokens) next to each other; what is behind the
 * last column is 0. */
static void pack(const Pool *pool, bool tokens, int64_t width, int64_t first, double *packed) {
    int64_t n = width - first < COLUMNS ? width - first : COLUMNS;
    for (int64_t g = 0; g < pool->n_groups; g++) {
        const double *from = (tokens ? pool->groups[g]->tokens : pool->groups[g]->values) + first;
        for (int64_t p = 0; p < pool->groups[g]->n_prompts; p++, packed += COLUMNS, from += width) {
            memcpy(packed, from, (size_t)n * sizeof *packed);
            for (int64_t c = n; c < COLUMNS; c++) packed[c] = 0;
        }
    }
}

static void sum_sample(const Multiplicities *m, int64_t b, const double *packed, double sums[COLUMNS]) {
    double own[COLUMNS] = {0};
    for (int64_t i = m->begin[b]; i < m->begin[b + 1]; i++) {
        const double *row = packed + (int64_t)m->prompt[i] * COLUMNS, times = m->times[i];
        for (int c = 0; c < COLUMNS; c++) own[c] += times * row[c];
    }
    memcpy(sums, own, sizeof own);
}

/* sums [n,width]: over the draws of each of n samples. room: [threads,P,COLUMNS]. */
static void sum_samples(const Pool *pool, bool tokens, const Multiplicities *m, int64_t n, double *room,
                        double *sums) {
    int64_t n_items = pool_size(pool), width = tokens ? pool->cells->n_layers : pool->cells->n_cells,
            n_blocks = (width + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < n_blocks; block++) {
        double *packed = room + omp_get_thread_num() * n_items * COLUMNS, own[COLUMNS];
        int64_t first = block * COLUMNS, n_own = width - first < COLUMNS ? width - first : COLUMNS;
        pack(pool, tokens, width, first, packed);
        for (int64_t b = 0; b < n; b++) {
            sum_sample(m, b, packed, own);
            memcpy(sums + b * width + first, own, (size_t)n_own * sizeof *own);
        }
    }
}

static void divide(const Cells *cells, double *sums, const double *tokens, int64_t n, double n_drawn) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < n; b++)
        for (int64_t c = 0; c < cells->n_cells; c++) {
            double whole = tokens ? tokens[b * cells->n_layers + cells->row[c]] : n_drawn;
            double *score = &sums[b * cells->n_cells + c];
            *score = whole > 0 ? *score / whole : 0;
        }
}

/* Samples are counted PIECE at a time: 12 bytes a draw of all of them would be most of the memory of 10,000
 * prompts. */
static bool sum_pieces(const Pool *pool, const Resamples *r, int64_t begin, int64_t end, double *sums,
                       double *tokens, Error *error) {
    const Cells *cells = pool->cells;
    int64_t n_items = pool_size(pool);
    size_t n_room = (size_t)(omp_get_max_threads() * n_items + 1);
    double *room = mem_zeroed(n_room, COLUMNS * sizeof *room);
    bool ok = room || error_out_of_memory(error, "scores of prompts", n_room * COLUMNS * sizeof *room);
    for (int64_t b = 0; ok && b < r->n; b += PIECE) {
        int64_t n = r->n - b < PIECE ? r->n - b : PIECE;
        Resamples piece = {.n = n, .n_drawn = r->n_drawn, .index = r->index + b * r->n_drawn};
        Multiplicities m = {0};
        ok = count_draws(&piece, begin, end, n_items, &m, error);
        if (ok) sum_samples(pool, false, &m, n, room, sums + b * cells->n_cells);
        if (ok && tokens) sum_samples(pool, true, &m, n, room, tokens + b * cells->n_layers);
        multiplicities_free(&m);
    }
    mem_free(room);
    return ok;
}

static double *make_sums(int64_t n, int64_t width, Error *error) {
    size_t n_sums = SIZE_MAX;
    bool fits = size_multiply((size_t)n, (size_t)width, &n_sums);
    double *sums = fits ? mem_zeroed(n_sums + 1, sizeof *sums) : NULL;
    if (!sums) error_out_of_memory(error, "scores of resamples", n_sums);
    return sums;
}

double *resample_scores(const Pool *pool, const Resamples *r, int64_t begin, int64_t end, Error *error) {
    const Cells *cells = pool->cells;
    bool pooled = pool->groups[0]->tokens != NULL;
    double *sums = make_sums(r->n, cells->n_cells, error),
           *tokens = sums && pooled ? make_sums(r->n, cells->n_layers, error) : NULL;
    bool ok = sums && (tokens || !pooled) && sum_pieces(pool, r, begin, end, sums, tokens, error);
    if (ok) divide(cells, sums, tokens, r->n, (double)(end - begin));
    mem_free(tokens);
    if (ok) return sums;
    mem_free(sums);
    return NULL;
}

/* ---- quantiles ---- */
/* Columns [first, first + n_own) of the samples, each next to itself: rows are far apart in memory, so that
 * one column at a time would fetch a cache line for every number. */
static void gather(SampleTable t, int64_t first, double *columns) {
    int64_t n_own = t.n_columns - first < COLUMNS ? t.n_columns - first : COLUMNS;
    for (int64_t b = 0; b < t.n; b++)
        for (int64_t c = 0, at = b * t.n_columns + first; c < n_own; c++, at++)
            columns[c * t.n + b] = t.values[at] - (t.minus ? t.minus[at] : 0);
}

bool resample_intervals(SampleTable t, double confidence, double *low, double *high, Error *error) {
    int64_t n_threads = omp_get_max_threads(), n_blocks = (t.n_columns + COLUMNS - 1) / COLUMNS;
    size_t n_room = (size_t)(n_threads * t.n);
    double *columns = mem_zeroed(n_room + 1, COLUMNS * sizeof *columns);
    Ranked *room = mem_zeroed(2 * n_room + 1, sizeof *room);
    bool ok = columns && room;
    if (ok) {
#pragma omp parallel for schedule(static)
        for (int64_t block = 0; block < n_blocks; block++) {
            int64_t first = block * COLUMNS, thread = omp_get_thread_num();
            double *own = columns + thread * t.n * COLUMNS;
            gather(t, first, own);
            for (int64_t c = first; c < t.n_columns && c < first + COLUMNS; c++, own += t.n) {
                ranking_sort_values(own, t.n, room + 2 * thread * t.n);
                low[c] = ranking_quantile(own, t.n, (1 - confidence) / 2);
                high[c] = ranking_quantile(own, t.n, (1 + confidence) / 2);
            }
        }
    }
    mem_free(columns);
    mem_free(room);
    return ok || error_out_of_memory(error, "quantiles of resamples", n_room * 160);
}

bool resample_mean(const double *values, const Resamples *draws, double confidence, double *low, double *high,
                   Error *error) {
    *low = *high = NAN;
    if (draws->n_drawn < 2) return true;
    double *means = mem_zeroed((size_t)draws->n, sizeof *means);
    if (!means) return error_out_of_memory(error, "resamples", (size_t)draws->n * sizeof *means);
    for (int64_t b = 0; b < draws->n; b++) {
        for (int64_t i = 0; i < draws->n_drawn; i++) means[b] += values[draws->index[b * draws->n_drawn + i]];
        means[b] /= (double)draws->n_drawn;
    }
    const SampleTable table = {.values = means, .n = draws->n, .n_columns = 1};
    const bool ok = resample_intervals(table, confidence, low, high, error);
    mem_free(means);
    return ok;
}

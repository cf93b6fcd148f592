/* Split-half reliability: prompts are halved at random again and again, and the two halves' scores compared,
 * cell by cell. The reliability of all prompts follows from the mean correlation by Spearman and Brown. */
#include "statistics_parts.h"
#include "../engine/alloc.h"
#include <math.h>

/* ---- of correlations ---- */
static void put_correlations(const Work *work, double *values, int64_t n, Ranked *room, Text *to) {
    double mean = scores_sum(values, n, 1) / (double)n, share = (1 - work->options->confidence) / 2;
    bool defined = isfinite(mean);
    write_integer(to, "n", n);
    write_number_or(to, "correlation", mean, "in some half the scores do not vary");
    ranking_sort_values(values, n, room);
    write_interval(to, "correlation", defined ? ranking_quantile(values, n, share) : NAN,
                   defined ? ranking_quantile(values, n, 1 - share) : NAN);
    write_number_or(to, "reliability", mean > -1 ? 2 * mean / (1 + mean) : NAN,
                    "the halves' correlation is not defined, or -1");
}

/* ---- a group ---- */
static bool make_halves(Work *work, int64_t g, Error *error) {
    GroupWork *own = &work->groups[g];
    Pool pool = work_pool(work, own->group, NULL);
    int64_t n = own->group->n_prompts;
    Resamples r = {0};
    bool ok = resamples_shuffle(work->in->seed, RANDOM_SPLIT, g, work->options->splits, n, &r, error) &&
              (own->halves[0] = resample_scores(&pool, &r, 0, n / 2, error)) != NULL &&
              (own->halves[1] = resample_scores(&pool, &r, n / 2, n, error)) != NULL;
    resamples_free(&r);
    return ok;
}

/* Mean over splits of what the halves' top sets share: values [2 n_top]. */
static void average_overlap(Work *work, const GroupWork *own, double *one, double *values) {
    int64_t n = work->options->splits, C = work->cells->n_cells, n_values = 2 * work_count_top(work);
    Room *room = work->rooms;
    for (int64_t s = 0; s < n; s++) {
        for (int h = 0; h < 2; h++) ranking_sort(own->halves[h] + s * C, C, room->ranked, room->order[h]);
        take_overlap(work, room->order[0], room->order[1], room->mark, one);
        for (int64_t i = 0; i < n_values; i++) values[i] += one[i] / (double)n;
    }
}

bool statistics_put_halves(Work *work, int64_t g, Text *to, Error *error) {
    GroupWork *own = &work->groups[g];
    int64_t n = work->options->splits, C = work->cells->n_cells;
    if (own->no_halves) {
        write_null(to, "split_half", own->no_halves);
        return true;
    }
    size_t n_values = (size_t)n + 4 * MOST_NUMBERS;
    double *values = mem_zeroed(n_values, sizeof *values);
    Ranked *room = mem_zeroed(2 * (size_t)n + 1, sizeof *room);
    bool ok = (values && room) || error_out_of_memory(error, "split halves", n_values * 8);
    ok = ok && make_halves(work, g, error);
    if (ok) {
        for (int64_t s = 0; s < n; s++)
            values[s] = stats_correlation(own->halves[0] + s * C, own->halves[1] + s * C, C);
        write_begin(to, "split_half", '{');
        put_correlations(work, values, n, room, to);
        average_overlap(work, own, values + n, values + n + 2 * MOST_NUMBERS);
        put_overlap(work, values + n + 2 * MOST_NUMBERS, NULL, NULL, own->no_ranking, to);
        write_end(to, '}');
    }
    mem_free(values);
    mem_free(room);
    return ok;
}

/* ---- the difference of two groups ---- */
bool statistics_put_difference_halves(const Work *work, int64_t a, int64_t b, Text *to, Error *error) {
    const GroupWork *x = &work->groups[a], *y = &work->groups[b];
    const char *reason = x->no_halves ? x->no_halves : y->no_halves;
    int64_t n = work->options->splits, C = work->cells->n_cells;
    if (reason) {
        write_null(to, "split_half", reason);
        return true;
    }
    double *values = mem_zeroed((size_t)n + 1, sizeof *values), *halves = mem_zeroed(2 * (size_t)C + 1, 8);
    Ranked *room = mem_zeroed(2 * (size_t)n + 1, sizeof *room);
    bool ok = (values && halves && room) || error_out_of_memory(error, "split halves", (size_t)(n + C) * 16);
    for (int64_t s = 0; ok && s < n; s++) {
        for (int64_t c = 0; c < C; c++) {
            halves[c] = x->halves[0][s * C + c] - y->halves[0][s * C + c];
            halves[C + c] = x->halves[1][s * C + c] - y->halves[1][s * C + c];
        }
        values[s] = stats_correlation(halves, halves + C, C);
    }
    if (ok) {
        write_begin(to, "split_half", '{');
        put_correlations(work, values, n, room, to);
        write_end(to, '}');
    }
    mem_free(values);
    mem_free(halves);
    mem_free(room);
    return ok;
}

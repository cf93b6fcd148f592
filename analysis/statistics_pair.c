/* What is said of two groups: differences of cells with their permutation tests, overlap of their rankings,
 * selectivity of layers, stable sets in common and apart. */
#include "statistics_parts.h"
#include "../engine/alloc.h"
#include "classify.h"
#include "nulls.h"
#include <math.h>
#include <omp.h>
#include <string.h>

/* A row of facts: shared and jaccard of each top set, then three numbers a layer. */
enum { LAYER_FACTS = 3 };
static const char *const layer_keys[LAYER_FACTS] = {"max_abs_difference", "mean_abs_difference",
                                                    "js_divergence"};

typedef struct {
    Work *work;
    GroupWork *a, *b;
    int64_t layers_at, n_facts;
    double *observed, *low, *high; /* [n_facts] */
    double *difference;            /* [C] magnitudes */
    double *low_difference, *high_difference;
    int64_t *order; /* [C] by magnitude */
    const char *no_samples, *no_ranking, *no_test;
    PermutationTest test;
    bool *chosen; /* [C] */
} Pair;

static void pair_free(Pair *p) {
    void *blocks[] = {p->observed,        p->low,   p->high,  p->difference, p->low_difference,
                      p->high_difference, p->order, p->chosen};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    permutation_test_free(&p->test);
}

static const char *either(const char *a, const char *b) { return a ? a : b; }

static bool pair_make(Work *work, int64_t a, int64_t b, Pair *p) {
    size_t C = (size_t)work->cells->n_cells + 1;
    GroupWork *x = &work->groups[a], *y = &work->groups[b];
    int64_t layers_at = 2 * work_count_top(work);
    size_t n = (size_t)(layers_at + LAYER_FACTS * work->cells->n_layers) + 1;
    *p = (Pair){.work = work,
                .a = x,
                .b = y,
                .layers_at = layers_at,
                .n_facts = (int64_t)n - 1,
                .observed = mem_zeroed(n, sizeof(double)),
                .low = mem_zeroed(n, sizeof(double)),
                .high = mem_zeroed(n, sizeof(double)),
                .difference = mem_zeroed(C, sizeof(double)),
                .low_difference = mem_zeroed(C, sizeof(double)),
                .high_difference = mem_zeroed(C, sizeof(double)),
                .order = mem_zeroed(C, sizeof(int64_t)),
                .chosen = mem_zeroed(C, sizeof(bool)),
                .no_samples = either(x->no_samples, y->no_samples),
                .no_ranking = either(x->no_ranking, y->no_ranking)};
    p->no_test = !x->group->n_prompts || !y->group->n_prompts ? work->in->no_prompts
                 : work->options->permutations < 1            ? "permutations: 0"
                 : x->group->n_prompts + y->group->n_prompts < 3
                     ? "both groups have one prompt: there is nothing to permute"
                     : NULL;
    return p->observed && p->low && p->high && p->difference && p->low_difference && p->high_difference &&
           p->order && p->chosen;
}

/* ---- facts of two lists of scores ---- */
static void take_layer(const double *a, const double *b, int64_t n, double facts[LAYER_FACTS]) {
    double largest = 0, sum = 0;
    for (int64_t e = 0; e < n; e++) {
        double one = fabs(a[e] - b[e]);
        sum += one;
        if (one > largest) largest = one;
    }
    facts[0] = largest;
    facts[1] = sum / (double)n;
    facts[2] = stats_js_divergence(a, b, n);
}

static void take_facts(const Pair *p, const double *a, const double *b, Room *room, double *facts) {
    const Cells *cells = p->work->cells;
    ranking_sort(a, cells->n_cells, room->ranked, room->order[0]);
    ranking_sort(b, cells->n_cells, room->ranked, room->order[1]);
    take_overlap(p->work, room->order[0], room->order[1], room->mark, facts);
    for (int64_t l = 0; l < cells->n_layers; l++) {
        int64_t first = cells->begin[l];
        take_layer(a + first, b + first, cells->begin[l + 1] - first, facts + p->layers_at + LAYER_FACTS * l);
    }
}

static bool pair_resample(Pair *p, Error *error) {
    Work *work = p->work;
    int64_t n = work->options->bootstraps, C = work->cells->n_cells;
    double *facts = mem_zeroed((size_t)(n * p->n_facts) + 1, sizeof *facts),
           confidence = work->options->confidence;
    if (!facts) return error_out_of_memory(error, "facts of resamples", (size_t)(n * p->n_facts) * 8);
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < n; b++)
        take_facts(p, p->a->samples + b * C, p->b->samples + b * C, &work->rooms[omp_get_thread_num()],
                   facts + b * p->n_facts);
    bool ok =
        resample_intervals((SampleTable){facts, NULL, n, p->n_facts}, confidence, p->low, p->high, error) &&
        resample_intervals((SampleTable){p->a->samples, p->b->samples, n, C}, confidence, p->low_difference,
                           p->high_difference, error);
    mem_free(facts);
    return ok;
}

static bool pair_permute(Pair *p, int64_t key, Error *error) {
    Work *work = p->work;
    Pool pool = work_pool(work, p->a->group, p->b->group);
    Resamples r = {0};
    bool ok = resamples_shuffle(work->in->seed, RANDOM_PERMUTATION, key, work->options->permutations,
                                p->a->group->n_prompts + p->b->group->n_prompts, &r, error) &&
              permutation_test(&pool, &r, work->options->test_statistic, &p->test, error);
    resamples_free(&r);
    return ok;
}

static bool pair_take(Pair *p, int64_t key, Error *error) {
    const double *a = p->a->group->scores, *b = p->b->group->scores;
    for (int64_t c = 0; c < p->work->cells->n_cells; c++) p->difference[c] = fabs(a[c] - b[c]);
    ranking_sort(p->difference, p->work->cells->n_cells, p->work->rooms->ranked, p->order);
    take_facts(p, a, b, p->work->rooms, p->observed);
    return (p->no_samples || pair_resample(p, error)) && (p->no_test || pair_permute(p, key, error));
}

/* ---- writing ---- */
static void put_differences(const Pair *p, Text *to) {
    const double *a = p->a->group->scores, *b = p->b->group->scores;
    char reason[200];
    snprintf(reason, sizeof reason, "the score in group %.100s is 0", p->b->group->name);
    write_begin(to, "differences", '[');
    for (int64_t i = 0; i < p->work->cells->n_cells; i++) {
        int64_t c = p->order[i];
        write_line(to);
        write_begin(to, NULL, '{');
        put_cell(p->work->cells, c, to);
        write_number(to, "risk_difference", a[c] - b[c]);
        write_interval(to, "risk_difference", p->no_samples ? NAN : p->low_difference[c],
                       p->no_samples ? NAN : p->high_difference[c]);
        write_number_or(to, "risk_ratio", b[c] > 0 ? a[c] / b[c] : NAN, reason);
        write_number(to, "p_value", p->no_test ? NAN : p->test.p[c]);
        write_number(to, "p_value_max", p->no_test ? NAN : p->test.p_max[c]);
        write_end(to, '}');
    }
    write_end(to, ']');
}

static int64_t most_selective(const Pair *p, int64_t l) {
    const Cells *cells = p->work->cells;
    int64_t best = cells->begin[l];
    for (int64_t c = best + 1; c < cells->begin[l + 1]; c++)
        if (p->difference[c] > p->difference[best]) best = c;
    return cells->expert[best];
}

static void put_selectivity(const Pair *p, Text *to) {
    const Cells *cells = p->work->cells;
    write_begin(to, "selectivity", '[');
    for (int64_t l = 0; l < cells->n_layers; l++) {
        write_line(to);
        write_begin(to, NULL, '{');
        write_integer(to, "layer", cells->layer[l]);
        write_integer(to, "expert", most_selective(p, l));
        for (int i = 0; i < LAYER_FACTS; i++) {
            int64_t at = p->layers_at + LAYER_FACTS * l + i;
            write_number_or(to, layer_keys[i], p->observed[at],
                            "all scores of the layer are 0 in one of the groups");
            bool has = !p->no_samples && isfinite(p->observed[at]);
            write_interval(to, layer_keys[i], has ? p->low[at] : NAN, has ? p->high[at] : NAN);
        }
        write_number(to, "p_value", p->no_test ? NAN : p->test.p_layer[l]);
        write_end(to, '}');
    }
    write_end(to, ']');
}

static void put_test(const Pair *p, Text *to) {
    if (p->no_test) {
        write_null(to, "permutation", p->no_test);
        return;
    }
    write_begin(to, "permutation", '{');
    write_integer(to, "n", p->test.n);
    for (int s = 0; s < RANKING_SHARES; s++) {
        char key[40];
        snprintf(key, sizeof key, "%s_difference", ranking_keys[s]);
        write_integer(to, key, p->test.k_difference[s]);
        snprintf(key, sizeof key, "%s_p", ranking_keys[s]);
        write_number(to, key, p->test.p_k[s]);
    }
    write_end(to, '}');
}

/* Stable in both groups, and in one of them only (SAFEx: E_id, E_ctrl). */
static bool put_stable(Pair *p, Text *to, Error *error) {
    const char *reason = either(either(p->no_samples, p->no_ranking), work_no_stable(p->work));
    if (reason) {
        write_null(to, "stable_selection", reason);
        return true;
    }
    int64_t C = p->work->cells->n_cells;
    const GroupWork *groups[2] = {p->a, p->b};
    write_begin(to, "stable_selection", '{');
    for (int64_t c = 0; c < C; c++) p->chosen[c] = p->a->stable[c] && p->b->stable[c];
    bool ok = put_cell_set(p->work->cells, "shared", p->chosen, to, error);
    write_begin(to, "only", '{');
    for (int g = 0; ok && g < 2; g++) {
        for (int64_t c = 0; c < C; c++) p->chosen[c] = groups[g]->stable[c] && !groups[1 - g]->stable[c];
        ok = put_cell_set(p->work->cells, groups[g]->group->name, p->chosen, to, error);
    }
    write_end(to, '}');
    write_end(to, '}');
    return ok;
}

bool statistics_put_pair(Work *work, int64_t a, int64_t b, Text *to, Error *error) {
    Pair p;
    bool ok = pair_make(work, a, b, &p) ||
              error_out_of_memory(error, "a pair of groups", (size_t)work->cells->n_cells * 48);
    ok = ok && pair_take(&p, a * 1000 + b, error);
    if (ok) {
        write_line(to);
        put_differences(&p, to);
        write_line(to);
        put_overlap(work, p.observed, p.no_samples ? NULL : p.low, p.high, p.no_ranking, to);
        write_line(to);
        put_selectivity(&p, to);
        write_line(to);
        put_test(&p, to);
        write_line(to);
        ok = put_stable(&p, to, error);
        write_line(to);
        ok = ok && statistics_put_difference_halves(work, a, b, to, error);
    }
    pair_free(&p);
    return ok;
}

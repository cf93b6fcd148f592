/* The curves of a contrast and of its controls, with intervals. Every number of a pair is a column of
 * one table; bootstraps resample the table's rows, so that contrast, control and their difference keep
 * to the same pairs. */
#include "contrast.h"
#include "../engine/alloc.h"
#include "resample.h"
#include <math.h>
#include <omp.h>
#include <string.h>

int64_t contrast_column(const ContrastStatistics *s, ContrastPart part, ContrastCurve curve, int64_t l) {
    return ((int64_t)part * N_CURVES + (int64_t)curve) * (s->n_layers + 1) + l;
}

/* ---- controls ---- */
static void controls_free(ContrastControls *c) {
    mem_free(c->n_draws);
    mem_free(c->partner);
    mem_free(c->draws);
    mem_free(c->curves);
    *c = (ContrastControls){0};
}

/* Partners without replacement: a shuffle of the pairs of other topics that ends after the draws. */
static void draw_partners(const ContrastInput *in, int64_t i, int64_t *candidates, ContrastControls *c) {
    int64_t n = 0;
    for (int64_t j = 0; j < in->measures->n_prompts; j++)
        if (strcmp(in->topics[i], in->topics[j]) != 0) candidates[n++] = j;
    c->n_draws[i] = n < c->most ? n : c->most;
    for (int64_t d = 0; d < c->n_draws[i]; d++) {
        double u = random_uniform(in->seed, RANDOM_CONTROL, in->keys[i], d);
        int64_t j = d + (int64_t)(u * (double)(n - d)), partner = candidates[j];
        candidates[j] = candidates[d];
        candidates[d] = partner;
        c->partner[i * c->most + d] = partner;
    }
}

/* The control of pair i: its first text (prefix: its plain prompt, which is the second) against the
 * second texts of the partners. */
static void compare_partners(const ContrastInput *in, int64_t i, uint8_t *mark, ContrastControls *c) {
    const Measures *m = in->measures;
    int64_t L = m->n_layers, E = m->n_experts, n = c->n_draws[i],
            k = contrast_overlap_k(in->step, in->config);
    const double *own = in->step->contrast == CONTRAST_PREFIX ? m->mean_second : m->mean_first;
    double *curves = c->curves + i * L * N_CURVES;
    for (int64_t d = 0; d < n; d++) {
        int64_t partner = c->partner[i * c->most + d];
        double *all = c->draws + (i * c->most + d) * N_CURVES;
        for (int64_t l = 0; l < L; l++) {
            double values[N_CURVES];
            contrast_compare(own + (i * L + l) * E, m->mean_second + (partner * L + l) * E, E, k, mark,
                             values);
            for (int v = 0; v < N_CURVES; v++) {
                curves[l * N_CURVES + v] += values[v] / (double)n;
                all[v] += values[v] / (double)L;
            }
        }
    }
}

static bool draw_controls(const ContrastInput *in, ContrastControls *c, Error *error) {
    int64_t P = in->measures->n_prompts, E = in->measures->n_experts, n_threads = omp_get_max_threads();
    int64_t most = in->step->controls < P ? in->step->controls : P;
    size_t n = (size_t)(P * most);
    *c = (ContrastControls){
        .most = most,
        .n_draws = mem_zeroed((size_t)P + 1, sizeof *c->n_draws),
        .partner = mem_zeroed(n + 1, sizeof *c->partner),
        .draws = mem_zeroed(n + 1, N_CURVES * sizeof *c->draws),
        .curves = mem_zeroed((size_t)(P * in->measures->n_layers) + 1, N_CURVES * sizeof *c->curves)};
    int64_t *candidates = mem_zeroed((size_t)(n_threads * P) + 1, sizeof *candidates);
    uint8_t *marks = mem_zeroed((size_t)(n_threads * E) + 1, 2);
    bool ok = c->n_draws && c->partner && c->draws && c->curves && candidates && marks;
    if (ok) {
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < P; i++) {
            int64_t thread = omp_get_thread_num();
            draw_partners(in, i, candidates + thread * P, c);
            compare_partners(in, i, marks + 2 * thread * E, c);
        }
    }
    mem_free(candidates);
    mem_free(marks);
    return ok || error_out_of_memory(error, "controls of pairs", n * 40);
}

/* ---- the table ---- */
static void put_value(const ContrastInput *in, ContrastStatistics *s, int64_t i, ContrastCurve curve,
                      int64_t l, double contrast, double control) {
    double unit = curve == CURVE_JS && in->step->js_log == LOG_BASE_2 ? 1 / M_LN2 : 1;
    const double parts[N_PARTS] = {contrast * unit, control * unit, (contrast - control) * unit};
    for (int p = 0; p < N_PARTS; p++)
        s->values[i * s->n_columns + contrast_column(s, (ContrastPart)p, curve, l)] = parts[p];
}

static void fill_pair(const ContrastInput *in, ContrastStatistics *s, int64_t i) {
    const Measures *m = in->measures;
    const double *curves[N_CURVES] = {m->js, m->overlap, m->jaccard};
    int64_t L = s->n_layers;
    for (int v = 0; v < N_CURVES; v++) {
        double sums[2] = {0};
        for (int64_t l = 0; l < L; l++) {
            double contrast = curves[v][i * L + l],
                   control = s->no_controls ? 0 : s->controls.curves[(i * L + l) * N_CURVES + v];
            put_value(in, s, i, (ContrastCurve)v, l, contrast, control);
            sums[0] += contrast;
            sums[1] += control;
        }
        put_value(in, s, i, (ContrastCurve)v, L, sums[0] / (double)L, sums[1] / (double)L);
    }
}

static bool estimate(const ContrastInput *in, ContrastStatistics *s, Error *error) {
    Cells columns = {.n_cells = s->n_columns};
    StatGroup group = {.n_prompts = s->n_pairs, .scores = s->mean, .values = s->values};
    if (!stat_group_mean(&columns, &group))
        return error_out_of_memory(error, "means", 8 * (size_t)s->n_pairs);
    if (s->no_samples) return true;
    if (!resamples_bootstrap(in->seed, 0, in->step->bootstraps, s->n_pairs, &s->draws, error)) return false;
    Pool pool = {&columns, {&group}, 1};
    double *samples = resample_scores(&pool, &s->draws, 0, s->n_pairs, error);
    const bool ok = samples && resample_intervals((SampleTable){samples, NULL, s->draws.n, s->n_columns},
                                                  in->step->confidence, s->low, s->high, error);
    mem_free(samples);
    return ok;
}

static const char *why_no_controls(const ContrastInput *in) {
    if (in->step->contrast == CONTRAST_CONTINUATIONS)
        return "continuations of one prompt have no control of another topic";
    if (in->step->contrast == CONTRAST_ADAPTER)
        return "one text under two models has no control of another topic";
    return in->step->controls ? NULL : "controls is 0";
}

static bool make_room(ContrastStatistics *s, Error *error) {
    size_t n = (size_t)s->n_columns;
    s->values = mem_zeroed((size_t)s->n_pairs * n + 1, sizeof *s->values);
    s->mean = mem_zeroed(n, sizeof *s->mean);
    s->low = mem_zeroed(n, sizeof *s->low);
    s->high = mem_zeroed(n, sizeof *s->high);
    return (s->values && s->mean && s->low && s->high) ||
           error_out_of_memory(error, "statistics of pairs", (size_t)(s->n_pairs + 3) * n * 8);
}

bool contrast_statistics_make(const ContrastInput *in, ContrastStatistics *s, Error *error) {
    const Measures *m = in->measures;
    *s = (ContrastStatistics){.n_pairs = m->n_prompts,
                              .n_layers = m->n_layers,
                              .n_cells = m->n_layers * m->n_experts,
                              .n_columns = N_PARTS * N_CURVES * (m->n_layers + 1),
                              .no_controls = why_no_controls(in),
                              .no_samples = in->step->bootstraps ? NULL : "bootstraps is 0"};
    if (m->n_prompts < 2) s->no_samples = "one pair has no resamples";
    bool ok = contrast_count_wanted(in->step, in->config, &s->n_wanted, error) && make_room(s, error) &&
              (s->no_controls || draw_controls(in, &s->controls, error));
    for (int64_t i = 0; ok && i < s->n_pairs; i++) fill_pair(in, s, i);
    return ok && estimate(in, s, error) && contrast_rank_cells(in, s, error);
}

void contrast_statistics_free(ContrastStatistics *s) {
    controls_free(&s->controls);
    resamples_free(&s->draws);
    void *blocks[] = {s->values, s->mean, s->low, s->high};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    for (int r = 0; r < N_RANKINGS; r++) {
        ContrastRanking *k = &s->rankings[r];
        void *own[] = {k->value, k->low,       k->high,     k->score, k->order,
                       k->rank,  k->frequency, k->selected, k->stable};
        for (size_t i = 0; i < sizeof own / sizeof *own; i++) mem_free(own[i]);
    }
    *s = (ContrastStatistics){0};
}

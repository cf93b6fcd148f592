/* Cells by sensitivity, three ways, and how steady the first of each ranking are over resamples of the
 * pairs. */
#include "contrast.h"
#include "../engine/alloc.h"
#include "ranking.h"
#include "resample.h"
#include <math.h>
#include <omp.h>
#include <string.h>

const char *const contrast_ranking_names[N_RANKINGS] = {"rate", "probability", "gradient"};

bool contrast_count_wanted(const StepOptions *step, const ModelConfig *config, int64_t *n, Error *error) {
    int64_t n_cells = config->n_moe_layers * config->n_experts, n_total, n_active,
            expert = 3 * config->hidden_size * config->expert_size;
    *n = step->select;
    if (step->select_share > 0) {
        model_config_count(config, &n_total, &n_active);
        *n = expert ? (int64_t)floor(step->select_share * (double)n_total / (double)expert + 1e-9) : 0;
        if (!*n)
            return error_set(
                error, ERROR_BAD_INPUT,
                "select_share: expected at least one expert's share of the parameters, %.6g: got %.6g",
                (double)expert / (double)n_total, step->select_share);
    }
    if (*n <= n_cells) return true;
    return error_set(error, ERROR_BAD_INPUT, "%s: expected at most the model's %lld cells: got %lld",
                     step->select_share > 0 ? "select_share" : "select", (long long)n_cells, (long long)*n);
}

/* ---- values of pairs ---- */
/* values [P,C]: of one ranking. */
static void fill_values(const ContrastInput *in, ContrastRankingKind kind, double *values) {
    const Measures *m = in->measures;
    int64_t C = m->n_layers * m->n_experts;
    for (int64_t i = 0; i < m->n_prompts * C; i++) {
        int64_t p = i / C;
        if (kind == RANKING_PROBABILITY)
            values[i] = m->shift[i];
        else if (kind == RANKING_GRADIENT)
            values[i] = m->contrast_l2[i];
        else
            values[i] = (double)m->selected_first[i] / (double)m->n_first[p] -
                        (double)m->selected_second[i] / (double)m->n_second[p];
    }
}

static double score_of(const StepOptions *step, ContrastRankingKind kind, double value) {
    if (kind != RANKING_RATE) return value;
    double signed_value = step->rate_side == RATE_SECOND ? -value : value;
    return step->rate_side == RATE_BOTH ? fabs(value) : fmax(signed_value, 0);
}

/* ---- bootstraps ---- */
typedef struct {
    Ranked *ranked; /* [2C] */
    double *scores; /* [C] */
    int64_t *order; /* [C] */
    int64_t *taken; /* [C] how many samples had the cell among their first n_wanted */
} Room;

static void rooms_free(Room *rooms, int64_t n) {
    for (int64_t i = 0; rooms && i < n; i++) {
        mem_free(rooms[i].ranked);
        mem_free(rooms[i].scores);
        mem_free(rooms[i].order);
        mem_free(rooms[i].taken);
    }
    mem_free(rooms);
}

static Room *rooms_make(int64_t n, int64_t n_cells, Error *error) {
    Room *rooms = mem_zeroed((size_t)n, sizeof *rooms);
    bool ok = rooms != NULL;
    size_t C = (size_t)n_cells + 1;
    for (int64_t i = 0; ok && i < n; i++) {
        rooms[i] = (Room){mem_zeroed(2 * C, sizeof(Ranked)), mem_zeroed(C, sizeof(double)),
                          mem_zeroed(C, sizeof(int64_t)), mem_zeroed(C, sizeof(int64_t))};
        ok = rooms[i].ranked && rooms[i].scores && rooms[i].order && rooms[i].taken;
    }
    if (ok) return rooms;
    rooms_free(rooms, n);
    error_out_of_memory(error, "rankings of resamples", (size_t)n * C * 56);
    return NULL;
}

static void rank_sample(const StepOptions *step, ContrastRankingKind kind, const double *sample,
                        int64_t n_cells, int64_t n_wanted, Room *room) {
    for (int64_t c = 0; c < n_cells; c++) room->scores[c] = score_of(step, kind, sample[c]);
    ranking_sort(room->scores, n_cells, room->ranked, room->order);
    for (int64_t i = 0; i < n_wanted && room->scores[room->order[i]] > 0; i++) room->taken[room->order[i]]++;
}

/* Frequencies are counts of samples: threads change no bit. */
static bool rank_samples(const ContrastInput *in, ContrastRankingKind kind, const double *samples,
                         const ContrastStatistics *s, ContrastRanking *r, Error *error) {
    int64_t n_rooms = omp_get_max_threads(), n = in->step->bootstraps, C = s->n_cells;
    Room *rooms = rooms_make(n_rooms, C, error);
    if (!rooms) return false;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < n; b++)
        rank_sample(in->step, kind, samples + b * C, C, s->n_wanted, &rooms[omp_get_thread_num()]);
    for (int64_t c = 0; c < C; c++) {
        int64_t taken = 0;
        for (int64_t i = 0; i < n_rooms; i++) taken += rooms[i].taken[c];
        r->frequency[c] = (double)taken / (double)n;
        r->stable[c] = taken == n;
    }
    rooms_free(rooms, n_rooms);
    return true;
}

static bool resample_cells(const ContrastInput *in, ContrastRankingKind kind, const StatGroup *group,
                           const Cells *cells, const ContrastStatistics *s, ContrastRanking *r,
                           Error *error) {
    Pool pool = {cells, {group}, 1};
    double *samples = resample_scores(&pool, &s->draws, 0, s->n_pairs, error);
    const bool ok = samples &&
                    resample_intervals((SampleTable){samples, NULL, s->draws.n, s->n_cells},
                                       in->step->confidence, r->low, r->high, error) &&
                    rank_samples(in, kind, samples, s, r, error);
    mem_free(samples);
    return ok;
}

/* ---- one ranking ---- */
static bool ranking_make(int64_t n_cells, ContrastRanking *r, Error *error) {
    size_t C = (size_t)n_cells + 1;
    *r = (ContrastRanking){.there = true,
                           .value = mem_zeroed(C, sizeof *r->value),
                           .low = mem_zeroed(C, sizeof *r->low),
                           .high = mem_zeroed(C, sizeof *r->high),
                           .score = mem_zeroed(C, sizeof *r->score),
                           .order = mem_zeroed(C, sizeof *r->order),
                           .rank = mem_zeroed(C, sizeof *r->rank),
                           .frequency = mem_zeroed(C, sizeof *r->frequency),
                           .selected = mem_zeroed(C, sizeof *r->selected),
                           .stable = mem_zeroed(C, sizeof *r->stable)};
    return (r->value && r->low && r->high && r->score && r->order && r->rank && r->frequency && r->selected &&
            r->stable) ||
           error_out_of_memory(error, "rankings", C * 60);
}

/* The first n_wanted, cells of score 0 and unsteady ones excepted. */
static void select_cells(const StepOptions *step, const ContrastStatistics *s, ContrastRanking *r) {
    for (int64_t i = 0; i < s->n_cells; i++) r->rank[r->order[i]] = i + 1;
    for (int64_t i = 0; i < s->n_wanted; i++) {
        int64_t c = r->order[i];
        bool steady = s->no_samples || r->frequency[c] >= step->select_least;
        r->selected[c] = steady && r->score[c] > 0;
        r->n_selected += r->selected[c];
    }
}

static bool rank_by(const ContrastInput *in, ContrastStatistics *s, ContrastRankingKind kind, double *values,
                    Error *error) {
    ContrastRanking *r = &s->rankings[kind];
    Cells cells = {.n_cells = s->n_cells};
    StatGroup group = {.n_prompts = s->n_pairs, .values = values};
    if (!ranking_make(s->n_cells, r, error)) return false;
    fill_values(in, kind, values);
    group.scores = r->value;
    if (!stat_group_mean(&cells, &group)) return error_out_of_memory(error, "means", 8 * (size_t)s->n_pairs);
    for (int64_t c = 0; c < s->n_cells; c++) r->score[c] = score_of(in->step, kind, r->value[c]);
    if (!scores_sort(r->score, s->n_cells, r->order)) return error_out_of_memory(error, "ranks", 0);
    if (!s->no_samples && !resample_cells(in, kind, &group, &cells, s, r, error)) return false;
    select_cells(in->step, s, r);
    return true;
}

bool contrast_rank_cells(const ContrastInput *in, ContrastStatistics *s, Error *error) {
    size_t n = (size_t)(s->n_pairs * s->n_cells) + 1;
    double *values = mem_zeroed(n, sizeof *values);
    bool gradient = contrast_walks_back(in->step);
    bool ok = values || error_out_of_memory(error, "sensitivities of pairs", n * sizeof *values);
    for (int kind = 0; ok && kind < N_RANKINGS; kind++)
        if (kind != RANKING_GRADIENT || gradient)
            ok = rank_by(in, s, (ContrastRankingKind)kind, values, error);
    mem_free(values);
    return ok;
}

/* The object of a group: coverage, layers, curve, depth, concentration, halves, stable sets, near ties. Every
 * resample is ranked anew; what is read off it is a row of facts, whose quantiles are the intervals. */
#include "statistics_parts.h"
#include "../engine/alloc.h"
#include "nulls.h"
#include <math.h>
#include <omp.h>
#include <string.h>

/* A row of facts: k80, k90, k95, effective cells, depth of each top set, four numbers a layer. */
enum { FACT_K = 0, FACT_CELLS = RANKING_SHARES, FACT_DEPTH, LAYER_FACTS = 4 };
static const char *const layer_keys[LAYER_FACTS] = {"dominant_score", "entropy", "effective_experts",
                                                    "effective_experts_simpson"};

typedef struct {
    const Work *work;
    GroupWork *own;
    int64_t n_facts, layers_at;     /* where the layers' facts begin */
    double *observed;               /* [n_facts] */
    double *low, *high;             /* [n_facts]; NULL without resamples */
    double *score_low, *score_high; /* [C] */
    bool *kept;                     /* [MOST_NUMBERS,C] cells that every resample had among its top k */
} GroupFacts;

static void facts_free(GroupFacts *f) {
    void *blocks[] = {f->observed, f->low, f->high, f->score_low, f->score_high, f->kept};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
}

static bool facts_make(const Work *work, GroupWork *own, GroupFacts *f) {
    int64_t layers_at = FACT_DEPTH + work_count_top(work);
    size_t C = (size_t)work->cells->n_cells,
           n = (size_t)(layers_at + LAYER_FACTS * work->cells->n_layers) + 1;
    *f = (GroupFacts){.work = work,
                      .own = own,
                      .layers_at = layers_at,
                      .n_facts = (int64_t)n - 1,
                      .observed = mem_zeroed(n, sizeof(double)),
                      .low = mem_zeroed(n, sizeof(double)),
                      .high = mem_zeroed(n, sizeof(double)),
                      .score_low = mem_zeroed(C + 1, sizeof(double)),
                      .score_high = mem_zeroed(C + 1, sizeof(double)),
                      .kept = mem_zeroed(C + 1, MOST_NUMBERS * sizeof(bool))};
    return f->observed && f->low && f->high && f->score_low && f->score_high && f->kept;
}

/* ---- facts of one list of scores ---- */
static void put_layer_facts(const double *scores, int64_t n_experts, int dominant, double to[LAYER_FACTS]) {
    LayerScores layer = scores_of_layer(scores, n_experts, (DominantScore)dominant);
    to[0] = layer.dominant;
    to[1] = layer.entropy;
    to[2] = layer.effective;
    to[3] = layer.effective_simpson;
}

static void take_facts(const GroupFacts *f, const double *scores, Room *room, double *facts) {
    const Cells *cells = f->work->cells;
    int64_t k[RANKING_SHARES], n_top = work_count_top(f->work);
    ranking_sort(scores, cells->n_cells, room->ranked, room->order[0]);
    ranking_coverage(scores, room->order[0], cells->n_cells, k);
    for (int s = 0; s < RANKING_SHARES; s++) facts[FACT_K + s] = (double)k[s];
    facts[FACT_CELLS] = stats_effective_cells(scores, cells->n_cells);
    for (int64_t i = 0; i < n_top; i++)
        facts[FACT_DEPTH + i] = stats_mean_depth(cells, room->order[0], work_top(f->work, i));
    for (int64_t l = 0; l < cells->n_layers; l++)
        put_layer_facts(scores + cells->begin[l], cells->begin[l + 1] - cells->begin[l],
                        f->work->options->dominant, facts + f->layers_at + LAYER_FACTS * l);
}

/* Cells of the top sets of the ranking that take_facts left in the room. */
static void count_kept(const Work *work, Room *room) {
    const Cells *cells = work->cells;
    int64_t C = cells->n_cells, n_top = work_count_top(work);
    memset(room->taken, 0, (size_t)cells->n_layers * sizeof *room->taken);
    for (int64_t i = 0; i < C; i++) {
        int64_t c = room->order[0][i], l = cells->row[c];
        if (room->taken[l]++ < work_stable_size(work, l)) room->kept[c]++;
        for (int64_t t = 0; t < n_top; t++)
            if (i < work_top(work, t)) room->kept[(t + 1) * C + c]++;
    }
}

static void clear_kept(Work *work) {
    size_t n = (size_t)((work_count_top(work) + 1) * work->cells->n_cells);
    for (int64_t i = 0; i < work->n_rooms; i++) memset(work->rooms[i].kept, 0, n * sizeof(int64_t));
}

/* What every one of n resamples had. */
static void keep_common(Work *work, int64_t n, GroupFacts *f) {
    int64_t C = work->cells->n_cells, n_top = work_count_top(work);
    for (int64_t i = 0; i < (n_top + 1) * C; i++) {
        int64_t sum = 0;
        for (int64_t r = 0; r < work->n_rooms; r++) sum += work->rooms[r].kept[i];
        if (i < C)
            f->own->stable[i] = sum == n;
        else
            f->kept[i - C] = sum == n;
    }
}

/* ---- layer statistics of each prompt, averaged (layer_statistics: prompts) ---- */
/* The group with the layers' numbers of each prompt in the place of scores; cells: as many as numbers. */
static bool make_layer_group(const GroupFacts *f, StatGroup *to, Cells *cells, Error *error) {
    const Cells *own = f->work->cells;
    const StatGroup *g = f->own->group;
    int64_t n = LAYER_FACTS * own->n_layers;
    *to = (StatGroup){.n_prompts = g->n_prompts,
                      .scores = mem_zeroed((size_t)n + 1, sizeof(double)),
                      .values = mem_zeroed((size_t)(n * g->n_prompts) + 1, sizeof(double))};
    if (!to->scores || !to->values) return error_out_of_memory(error, "layers of prompts", (size_t)n * 8);
    if (!cells_make(&n, 1, cells, error)) return false;
    for (int64_t p = 0; p < g->n_prompts; p++)
        for (int64_t l = 0; l < own->n_layers; l++) {
            double *scores = f->score_low; /* free until the intervals are made */
            int64_t first = own->begin[l], E = own->begin[l + 1] - first;
            for (int64_t e = 0; e < E; e++) scores[e] = stat_group_score(own, g, p, first + e);
            put_layer_facts(scores, E, f->work->options->dominant, to->values + p * n + LAYER_FACTS * l);
        }
    return stat_group_mean(cells, to) || error_out_of_memory(error, "means", (size_t)n * 8);
}

/* Puts them over the facts of the scores: the observed ones, and those of every resample. */
static bool average_layers(GroupFacts *f, const Resamples *r, double *facts, Error *error) {
    StatGroup layers = {0};
    Cells cells = {0};
    bool ok = make_layer_group(f, &layers, &cells, error);
    size_t n = (size_t)(LAYER_FACTS * f->work->cells->n_layers);
    if (ok) memcpy(f->observed + f->layers_at, layers.scores, n * sizeof(double));
    if (ok && r) {
        Pool pool = {.cells = &cells, .groups = {&layers}, .n_groups = 1};
        double *means = resample_scores(&pool, r, 0, r->n_drawn, error);
        for (int64_t b = 0; means && b < r->n; b++)
            memcpy(facts + b * f->n_facts + f->layers_at, means + (size_t)b * n, n * sizeof(double));
        ok = means != NULL;
        mem_free(means);
    }
    stat_group_free(&layers);
    cells_free(&cells);
    return ok;
}

/* ---- resamples ---- */
static bool facts_resample(Work *work, int64_t g, GroupFacts *f, Error *error) {
    GroupWork *own = f->own;
    int64_t n = work->options->bootstraps, C = work->cells->n_cells;
    Resamples r = {0};
    Pool pool = work_pool(work, own->group, NULL);
    double *facts = mem_zeroed((size_t)(n * f->n_facts) + 1, sizeof *facts);
    bool of_prompts = work->options->layer_statistics == LAYERS_OF_PROMPTS;
    bool ok = facts || error_out_of_memory(error, "facts of resamples", (size_t)(n * f->n_facts) * 8);
    ok = ok && resamples_bootstrap(work->in->seed, g, n, own->group->n_prompts, &r, error) &&
         (own->samples = resample_scores(&pool, &r, 0, r.n_drawn, error)) != NULL;
    if (ok) {
        clear_kept(work);
#pragma omp parallel for schedule(static)
        for (int64_t b = 0; b < n; b++) {
            Room *room = &work->rooms[omp_get_thread_num()];
            take_facts(f, own->samples + b * C, room, facts + b * f->n_facts);
            count_kept(work, room);
        }
        keep_common(work, n, f);
    }
    ok = ok && (!of_prompts || average_layers(f, &r, facts, error)) &&
         resample_intervals((SampleTable){facts, NULL, n, f->n_facts}, work->options->confidence, f->low,
                            f->high, error) &&
         resample_intervals((SampleTable){own->samples, NULL, n, C}, work->options->confidence, f->score_low,
                            f->score_high, error);
    resamples_free(&r);
    mem_free(facts);
    return ok;
}

/* ---- writing ---- */
static const char no_total[] = "all scores are 0";
static const char no_depth[] = "depth needs two decoder layers";

static void put_fact(const GroupFacts *f, const char *key, int64_t i, const char *reason, Text *to) {
    bool defined = !reason && isfinite(f->observed[i]);
    if (!defined)
        write_null(to, key, reason ? reason : "not a number");
    else if (i < FACT_CELLS)
        write_integer(to, key, (int64_t)f->observed[i]);
    else
        write_number(to, key, f->observed[i]);
    bool has = defined && f->own->samples;
    write_interval(to, key, has ? f->low[i] : NAN, has ? f->high[i] : NAN);
}

static void put_layers(const GroupFacts *f, Text *to) {
    const Cells *cells = f->work->cells;
    write_begin(to, "layers", '[');
    for (int64_t l = 0; l < cells->n_layers; l++) {
        int64_t at = f->layers_at + LAYER_FACTS * l;
        const char *reason = f->observed[at] > 0 ? NULL : "all scores of the layer are 0";
        write_line(to);
        write_begin(to, NULL, '{');
        write_integer(to, "layer", cells->layer[l]);
        for (int i = 0; i < LAYER_FACTS; i++) put_fact(f, layer_keys[i], at + i, reason, to);
        write_end(to, '}');
    }
    write_end(to, ']');
}

static void put_curve(const GroupFacts *f, Text *to) {
    const GroupWork *own = f->own;
    write_begin(to, "curve", '[');
    for (int64_t i = 0; i < f->work->cells->n_cells; i++) {
        int64_t c = own->order[i];
        write_line(to);
        write_begin(to, NULL, '{');
        put_cell(f->work->cells, c, to);
        write_integer(to, "rank", i + 1);
        write_number(to, "score", own->group->scores[c]);
        write_interval(to, "score", own->samples ? f->score_low[c] : NAN,
                       own->samples ? f->score_high[c] : NAN);
        write_number(to, "cumulative", f->observed[FACT_K] > 0 ? own->cumulative[i] : NAN);
        write_end(to, '}');
    }
    write_end(to, ']');
}

static void put_depth(const GroupFacts *f, Text *to) {
    write_begin(to, "depth", '[');
    for (int64_t i = 0; i < f->work->options->top_sets.n; i++) {
        char room[100];
        const char *reason = work_no_top(f->work, i, room);
        if (!reason) reason = f->own->no_ranking;
        if (!reason && !isfinite(f->observed[FACT_DEPTH + i])) reason = no_depth;
        write_line(to);
        write_begin(to, NULL, '{');
        write_integer(to, "k", work_top(f->work, i));
        if (reason) {
            write_null(to, "mean_depth", reason);
            write_interval(to, "mean_depth", NAN, NAN);
        } else {
            put_fact(f, "mean_depth", FACT_DEPTH + i, NULL, to);
        }
        write_end(to, '}');
    }
    write_end(to, ']');
}

/* ---- concentration ---- */
static void put_rotation(const Work *work, int64_t *k, const GroupFacts *f, Text *to) {
    int64_t n = work->options->permutations;
    double share = (1 - work->options->confidence) / 2, *column = mem_zeroed((size_t)n + 1, sizeof *column);
    Ranked *room = mem_zeroed(2 * (size_t)n + 1, sizeof *room);
    to->failed = to->failed || !column || !room;
    write_begin(to, "rotation", '{');
    write_integer(to, "n", n);
    for (int s = 0; column && room && s < RANKING_SHARES; s++) {
        int64_t smaller = 0;
        for (int64_t b = 0; b < n; b++) {
            column[b] = (double)k[b * RANKING_SHARES + s];
            smaller += column[b] <= f->observed[FACT_K + s];
        }
        char key[40];
        snprintf(key, sizeof key, "%s_mean", ranking_keys[s]);
        write_number(to, key, scores_sum(column, n, 1) / (double)n);
        ranking_sort_values(column, n, room);
        write_interval(to, ranking_keys[s], ranking_quantile(column, n, share),
                       ranking_quantile(column, n, 1 - share));
        snprintf(key, sizeof key, "%s_p", ranking_keys[s]);
        write_number(to, key, (double)(1 + smaller) / (double)(n + 1));
    }
    write_end(to, '}');
    mem_free(column);
    mem_free(room);
}

static bool put_concentration(const Work *work, int64_t g, const GroupFacts *f, Text *to, Error *error) {
    const StatGroup *group = f->own->group;
    int64_t n = work->options->permutations, C = work->cells->n_cells;
    write_begin(to, "concentration", '{');
    write_begin(to, "uniform", '{');
    for (int s = 0; s < RANKING_SHARES; s++)
        write_integer(to, ranking_keys[s], stats_uniform_coverage(C, ranking_shares[s]));
    write_integer(to, "effective_cells", C);
    write_end(to, '}');
    const char *reason = !group->n_prompts         ? work->in->no_prompts
                         : group->n_prompts == 1   ? "the group has one prompt"
                         : n < 1                   ? "permutations: 0"
                         : f->observed[FACT_K] < 1 ? no_total
                                                   : NULL;
    bool ok = true;
    if (reason) {
        write_null(to, "rotation", reason);
    } else {
        int64_t *k = mem_zeroed((size_t)n, RANKING_SHARES * sizeof *k);
        ok = k || error_out_of_memory(error, "a null model", (size_t)n * 24);
        ok = ok && rotation_null(work->cells, group, work->in->seed, g, n, k, error);
        if (ok) put_rotation(work, k, f, to);
        mem_free(k);
    }
    write_end(to, '}');
    return ok;
}

/* ---- stable sets ---- */
static bool put_stable(const GroupFacts *f, Text *to, Error *error) {
    const Work *work = f->work;
    const char *reason = f->own->no_samples ? f->own->no_samples : f->own->no_ranking;
    if (reason) {
        write_null(to, "stable_selection", reason);
        return true;
    }
    bool ok = true;
    write_begin(to, "stable_selection", '{');
    if (work_no_stable(work))
        write_null(to, "layer_top", work_no_stable(work));
    else
        ok = put_cell_set(work->cells, "layer_top", f->own->stable, to, error);
    write_begin(to, "top", '[');
    for (int64_t i = 0; ok && i < work->options->top_sets.n; i++) {
        char room[100];
        const char *too_large = work_no_top(work, i, room);
        write_line(to);
        write_begin(to, NULL, '{');
        write_integer(to, "k", work_top(work, i));
        if (too_large)
            write_null(to, "set", too_large);
        else
            ok = put_cell_set(work->cells, "set", f->kept + i * work->cells->n_cells, to, error);
        write_end(to, '}');
    }
    write_end(to, ']');
    write_end(to, '}');
    return ok;
}

/* ---- the object ---- */
static void put_counts(const GroupFacts *f, Text *to) {
    const StatGroup *g = f->own->group;
    const StatisticsInput *in = f->work->in;
    if (g->n_prompts)
        write_integer(to, "n_prompts", g->n_prompts);
    else
        write_null(to, "n_prompts", in->no_prompts);
    write_integer(to, "n_tokens", g->n_tokens);
    write_integer(to, "n_cells", f->work->cells->n_cells);
    write_number(to, "total_score", scores_sum(g->scores, f->work->cells->n_cells, 1));
    write_integer(to, "unused_cells", stats_count_unused(g->scores, f->work->cells->n_cells));
    const char *reason = f->observed[FACT_K] > 0 ? NULL : no_total;
    for (int s = 0; s < RANKING_SHARES; s++) put_fact(f, ranking_keys[s], FACT_K + s, reason, to);
    put_fact(f, "effective_cells", FACT_CELLS, reason, to);
    if (f->own->samples) {
        write_begin(to, "bootstrap", '{');
        write_integer(to, "n", f->work->options->bootstraps);
        write_number(to, "confidence", f->work->options->confidence);
        write_end(to, '}');
    } else {
        write_null(to, "bootstrap", f->own->no_samples);
    }
}

static bool make_facts(Work *work, int64_t g, GroupFacts *f, Error *error) {
    GroupWork *own = &work->groups[g];
    bool of_prompts = work->options->layer_statistics == LAYERS_OF_PROMPTS && own->group->n_prompts;
    if (!facts_make(work, own, f))
        return error_out_of_memory(error, "facts of a group", (size_t)f->n_facts * 24);
    take_facts(f, own->group->scores, work->rooms, f->observed);
    if (own->no_samples) return !of_prompts || average_layers(f, NULL, NULL, error);
    return facts_resample(work, g, f, error);
}

bool statistics_put_group(Work *work, int64_t g, Text *to, Error *error) {
    GroupFacts f = {0};
    bool ok = make_facts(work, g, &f, error);
    if (ok) {
        put_counts(&f, to);
        write_line(to);
        put_layers(&f, to);
        write_line(to);
        put_curve(&f, to);
        write_line(to);
        put_depth(&f, to);
        write_line(to);
        ok = put_concentration(work, g, &f, to, error);
        write_line(to);
        ok = ok && statistics_put_halves(work, g, to, error);
        write_line(to);
        ok = ok && put_stable(&f, to, error);
        write_line(to);
        statistics_put_near_ties(work, g, to);
    }
    facts_free(&f);
    return ok;
}

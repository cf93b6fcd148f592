/* statistics.json of a step: its measures as groups of prompts, and the rankings of the steps before it. */
#include "results.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "statistics.h"
#include <math.h>
#include <string.h>

enum { MAX_STATISTICS_BYTES = 1 << 30 };

static bool make_cells(const ModelConfig *config, Cells *cells, Error *error) {
    int64_t L = config->n_moe_layers, *experts_in = mem_zeroed((size_t)L + 1, sizeof *experts_in);
    if (!experts_in) return error_out_of_memory(error, "cells", (size_t)L * 8);
    for (int64_t l = 0; l < L; l++) experts_in[l] = config->n_experts;
    bool ok = cells_make(experts_in, L, cells, error);
    for (int64_t l = 0; ok && l < L; l++) cells->layer[l] = model_config_decoder_layer(config, l);
    cells->n_decoder_layers = config->n_layers;
    mem_free(experts_in);
    return ok;
}

/* ---- groups ---- */
static bool sum_margins(const Measures *m, StatGroup *to, Error *error) {
    size_t L = (size_t)m->n_layers + 1;
    to->near_ties = mem_zeroed(L, sizeof *to->near_ties);
    to->counted = mem_zeroed(L, sizeof *to->counted);
    to->margin = mem_zeroed(L, sizeof *to->margin);
    if (!to->near_ties || !to->counted || !to->margin) return error_out_of_memory(error, "margins", L * 24);
    for (int64_t l = 0; l < m->n_layers; l++) to->margin[l] = INFINITY;
    for (int64_t i = 0; i < m->n_prompts * m->n_layers; i++) {
        int64_t l = i % m->n_layers;
        to->near_ties[l] += m->near_ties[i];
        to->counted[l] += m->n_counted[i / m->n_layers];
        if (m->margin[i] < to->margin[l]) to->margin[l] = m->margin[i];
    }
    return true;
}

/* Per prompt its score, or where tokens count alike what is summed and by what it is divided. */
static bool make_group(const StepResults *r, const GroupScores *scores, int64_t g, StatGroup *to,
                       Error *error) {
    const Measures *m = &r->measures[g];
    int64_t P = m->n_prompts, L = m->n_layers, C = L * m->n_experts;
    bool pooled = r->step->kind == STEP_ACTIVATION && r->step->average == AVERAGE_TOKENS;
    *to = (StatGroup){.name = r->groups[g].options->name,
                      .n_prompts = P,
                      .scores = mem_zeroed((size_t)C + 1, sizeof *to->scores),
                      .values = mem_zeroed((size_t)(P * C) + 1, sizeof *to->values),
                      .tokens = pooled ? mem_zeroed((size_t)(P * L) + 1, sizeof *to->tokens) : NULL};
    if (!to->scores || !to->values || (pooled && !to->tokens))
        return error_out_of_memory(error, "scores of prompts", (size_t)(P * C) * 8);
    memcpy(to->scores, scores->scores, (size_t)C * sizeof *to->scores);
    for (int64_t p = 0; p < P; p++) to->n_tokens += m->n_counted[p];
    if (m->near_ties && !sum_margins(m, to, error)) return false;
    if (!pooled) {
        for (int64_t i = 0; i < P * C; i++) to->values[i] = scores->per_prompt[i];
        return true;
    }
    scores_numerators(r->step, m, r->config->n_experts_per_token, to->values);
    for (int64_t i = 0; i < P * L; i++) to->tokens[i] = (double)m->n_counted[i / L];
    return true;
}

/* ---- the steps before ---- */
typedef struct {
    OtherRanking ranking;
    JsonDocument *document; /* holds the names */
    const char **names;
    int64_t *orders;
} Other;

static void other_free(Other *o) {
    json_free(o->document);
    mem_free(o->names);
    mem_free(o->orders);
}

/* The cells of a curve in order. False without an Error when they are not ours. */
static bool read_order(Json curve, const Cells *cells, int64_t *order, Error *error) {
    int64_t n = 0, layer, expert, l = 0;
    Json at = {0};
    for (; n < cells->n_cells && json_next(&curve, &at); n++) {
        if (!json_integer(json_member(&at, "layer"), 0, INT32_MAX, &layer, error) ||
            !json_integer(json_member(&at, "expert"), 0, INT32_MAX, &expert, error))
            return false;
        for (l = 0; l < cells->n_layers && cells->layer[l] != layer;) l++;
        if (l == cells->n_layers || expert >= cells->begin[l + 1] - cells->begin[l]) return false;
        order[n] = cells->begin[l] + expert;
    }
    return n == cells->n_cells;
}

/* False without an Error when the step has other cells. */
static bool read_other(const char *path, const Cells *cells, Other *o, Error *error) {
    o->document = json_read(path, MAX_STATISTICS_BYTES, error);
    if (!o->document) return false;
    Json root = json_root(o->document), groups = json_member(&root, "groups"), at = {0};
    if (json_count(json_member(&root, "group_order")) != json_count(groups)) return false;
    int64_t n = json_count(groups), n_cells = 0;
    if (!json_integer(json_member(&root, "n_cells"), 0, INT32_MAX, &n_cells, error)) return false;
    if (n_cells != cells->n_cells) return false;
    o->names = mem_zeroed((size_t)n + 1, sizeof *o->names);
    o->orders = mem_zeroed((size_t)(n * n_cells) + 1, sizeof *o->orders);
    if (!o->names || !o->orders) return error_out_of_memory(error, "rankings", (size_t)(n * n_cells) * 8);
    for (int64_t g = 0; json_next(&groups, &at); g++) {
        o->names[g] = at.key;
        if (!read_order(json_member(&at, "curve"), cells, o->orders + g * n_cells, error)) return false;
    }
    o->ranking.groups = o->names;
    o->ranking.orders = o->orders;
    o->ranking.n_groups = n;
    return true;
}

static bool find_others(const StepResults *r, const Cells *cells, Other *others, int64_t *n, Error *error) {
    char *run = io_folder_of(r->folder);
    bool ok = run || error_out_of_memory(error, "a path", strlen(r->folder));
    for (const StepOptions *s = r->job->steps; ok && s != r->step; s++) {
        if (s->kind != STEP_ACTIVATION && s->kind != STEP_GRADIENT) continue;
        char *folder = io_join(run, s->name), *path = folder ? io_join(folder, "statistics.json") : NULL;
        Other *other = &others[*n];
        ok = path || error_out_of_memory(error, "a path", strlen(run));
        if (ok && read_other(path, cells, other, error)) {
            other->ranking.step = s->name;
            ++*n;
        } else {
            other_free(other);
            *other = (Other){0};
            ok = error->code == ERROR_NONE;
        }
        mem_free(path);
        mem_free(folder);
    }
    mem_free(run);
    return ok;
}

/* ---- the file ---- */
static bool write_statistics(const StepResults *r, const Cells *cells, const StatGroup *groups,
                             const Other *others, int64_t n_others, Error *error) {
    OtherRanking *rankings = mem_zeroed((size_t)n_others + 1, sizeof *rankings);
    if (!rankings) return error_out_of_memory(error, "rankings", (size_t)n_others * sizeof *rankings);
    for (int64_t i = 0; i < n_others; i++) rankings[i] = others[i].ranking;
    StatisticsInput input = {.signal = step_kind_names[r->step->kind],
                             .score = scores_definition(r->step),
                             .cells = cells,
                             .groups = groups,
                             .n_groups = r->n_groups,
                             .options = r->step,
                             .seed = (uint64_t)r->job->options.seed,
                             .no_prompts = "the group has no prompt",
                             .no_margins = "margins are measured by activation steps",
                             .warnings = r->warnings,
                             .others = rankings,
                             .n_others = n_others};
    bool ok = statistics_write(&input, r->folder, error);
    mem_free(rankings);
    return ok;
}

bool results_write_statistics(const StepResults *r, const GroupScores *scores, Error *error) {
    Cells cells = {0};
    int64_t n_others = 0, most = r->step - r->job->steps;
    StatGroup *groups = mem_zeroed((size_t)r->n_groups + 1, sizeof *groups);
    Other *others = mem_zeroed((size_t)most + 1, sizeof *others);
    bool ok =
        (groups && others) || error_out_of_memory(error, "groups", (size_t)r->n_groups * sizeof *groups);
    ok = ok && make_cells(r->config, &cells, error) && find_others(r, &cells, others, &n_others, error);
    for (int64_t g = 0; ok && g < r->n_groups; g++) ok = make_group(r, &scores[g], g, &groups[g], error);
    ok = ok && write_statistics(r, &cells, groups, others, n_others, error);
    for (int64_t g = 0; groups && g < r->n_groups; g++) stat_group_free(&groups[g]);
    for (int64_t i = 0; others && i < n_others; i++) other_free(&others[i]);
    mem_free(groups);
    mem_free(others);
    cells_free(&cells);
    return ok;
}

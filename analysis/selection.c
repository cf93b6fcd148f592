/* Ranking, budgets, super experts, and reading what they need from tables. */
#include "selection.h"
#include "../engine/alloc.h"
#include "csv.h"
#include "ranking.h"
#include "scores.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TABLE_BYTES = 1 << 30 };

/* ---- cells ---- */
int64_t selection_cell(const ModelConfig *config, int64_t layer, int64_t expert) {
    const bool exists = layer >= 0 && layer < config->n_layers && expert >= 0 && expert < config->n_experts;
    const int64_t l = exists ? model_config_moe_layer(config, layer) : -1;
    return l < 0 ? -1 : l * config->n_experts + expert;
}

int64_t selection_layer(const ModelConfig *config, int64_t cell) {
    return model_config_decoder_layer(config, cell / config->n_experts);
}

double selection_share(const double *share, const int64_t *cells, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += share[cells[i]];
    return sum;
}

bool selection_parse_cell(const char *text, const ModelConfig *config, const char *place, int64_t *cell,
                          Error *error) {
    char *middle = NULL, *end = NULL;
    long layer = strtol(text, &middle, 10), expert = -1;
    if (middle != text && *middle == ':') expert = strtol(middle + 1, &end, 10);
    *cell = end && end != middle + 1 && !*end ? selection_cell(config, layer, expert) : -1;
    if (*cell >= 0) return true;
    return error_set(
        error, ERROR_BAD_INPUT,
        "%s: expected LAYER:EXPERT, a layer with experts below %lld and an expert below %lld: got "
        "\"%.40s\"",
        place, (long long)config->n_layers, (long long)config->n_experts, text);
}

/* ---- tables ---- */
static bool read_cell(const Csv *table, int64_t row, int64_t layer_column, int64_t expert_column,
                      const ModelConfig *config, int64_t *cell, Error *error) {
    int64_t layer, expert;
    if (!csv_integer(table, row, layer_column, 0, config->n_layers - 1, &layer, error) ||
        !csv_integer(table, row, expert_column, 0, config->n_experts - 1, &expert, error))
        return false;
    *cell = selection_cell(config, layer, expert);
    return *cell >= 0 || csv_error(table, row, layer_column, error, "expected a layer with experts: got %lld",
                                   (long long)layer);
}

static bool read_column(const Csv *table, const ModelConfig *config, const char *group, const char *column,
                        double *to, Error *error) {
    int64_t n_cells = config->n_moe_layers * config->n_experts, n_found = 0, groups, layers, experts, values;
    if (!csv_need_column(table, "group", &groups, error) ||
        !csv_need_column(table, "layer", &layers, error) ||
        !csv_need_column(table, "expert", &experts, error) || !csv_need_column(table, column, &values, error))
        return false;
    for (int64_t c = 0; c < n_cells; c++) to[c] = -INFINITY;
    for (int64_t row = 0; row < table->n_rows; row++) {
        int64_t cell;
        double value;
        if (group && strcmp(csv_field(table, row, groups).text, group) != 0) continue;
        if (!read_cell(table, row, layers, experts, config, &cell, error) ||
            !csv_number(table, row, values, &value, error))
            return false;
        n_found += to[cell] == -INFINITY;
        to[cell] = fmax(to[cell], value);
    }
    return n_found == n_cells ||
           error_set(error, ERROR_FAILED, "%s: expected %lld cells of group %s: got %lld", table->file,
                     (long long)n_cells, group ? group : "(any)", (long long)n_found);
}

bool selection_read_column(const char *path, const ModelConfig *config, const char *group, const char *column,
                           double *to, Error *error) {
    Csv table;
    bool ok = csv_read(path, MAX_TABLE_BYTES, &table, error) &&
              read_column(&table, config, group, column, to, error);
    csv_free(&table);
    return ok;
}

bool selection_read_cells(const char *path, const ModelConfig *config, int64_t **cells, int64_t *n,
                          Error *error) {
    Csv table;
    int64_t layers, experts;
    *cells = NULL;
    *n = 0;
    bool ok = csv_read(path, MAX_TABLE_BYTES, &table, error) &&
              csv_need_column(&table, "layer", &layers, error) &&
              csv_need_column(&table, "expert", &experts, error);
    if (ok && !(*cells = mem_zeroed((size_t)table.n_rows + 1, sizeof **cells)))
        ok = error_out_of_memory(error, path, (size_t)table.n_rows * sizeof **cells);
    for (int64_t row = 0; ok && row < table.n_rows; row++) {
        ok = read_cell(&table, row, layers, experts, config, &(*cells)[row], error);
        for (int64_t i = 0; ok && i < row; i++)
            if ((*cells)[i] == (*cells)[row])
                ok = csv_error(&table, row, experts, error,
                               "expected each cell once: got that of line %lld again",
                               (long long)table.lines[i]);
        *n += ok;
    }
    if (ok && !*n) ok = error_set(error, ERROR_BAD_INPUT, "%s: expected at least one cell: got none", path);
    csv_free(&table);
    return ok;
}

/* ---- super experts ---- */
bool selection_find_super(const ModelConfig *config, const double *largest, bool *super) {
    int64_t n = config->n_moe_layers * config->n_experts;
    double *sorted = mem_alloc((size_t)n * sizeof *sorted);
    Ranked *room = mem_alloc(2 * (size_t)n * sizeof *room);
    bool ok = sorted && room;
    double percentile = 0, most = 0;
    if (ok) {
        memcpy(sorted, largest, (size_t)n * sizeof *sorted);
        ranking_sort_values(sorted, n, room);
        percentile = ranking_quantile(sorted, n, 0.995);
        most = sorted[n - 1];
    }
    mem_free(sorted);
    mem_free(room);
    for (int64_t c = 0; ok && c < n; c++)
        super[c] = largest[c] > percentile && largest[c] > most / 10 &&
                   (double)selection_layer(config, c) < 0.75 * (double)config->n_layers;
    return ok;
}

/* ---- ranks ---- */
static double value_of(const StepOptions *step, const double *first, const double *second, int64_t cell) {
    if (step->rank_by == RANK_DIFFERENCE) return first[cell] - second[cell];
    return step->rank_by == RANK_RATIO ? first[cell] / second[cell] : first[cell];
}

bool selection_all_alike(const StepOptions *step, const double *first, const double *second,
                         const int64_t *order, int64_t n) {
    return n > 1 && value_of(step, first, second, order[0]) == value_of(step, first, second, order[n - 1]);
}

int64_t selection_rank(const StepOptions *step, const double *first, const double *second,
                       const bool *excluded, int64_t n_cells, int64_t *order) {
    double *value = mem_alloc((size_t)n_cells * sizeof *value);
    int64_t *all = mem_alloc((size_t)n_cells * sizeof *all), n = 0;
    bool ok = value && all;
    for (int64_t c = 0; ok && c < n_cells; c++) {
        double v = value_of(step, first, second, c);
        bool of_class = step->class_ratio <= 0 || first[c] > step->class_ratio * second[c];
        value[c] = excluded[c] || !of_class || isnan(v) ? -INFINITY : v;
    }
    ok = ok && scores_sort(value, n_cells, all);
    for (int64_t i = 0; ok && i < n_cells; i++)
        if (value[all[i]] > -INFINITY) order[n++] = all[i];
    mem_free(value);
    mem_free(all);
    return ok ? n : -1;
}

void selection_shares(const double *selected, int64_t n_cells, double *share) {
    double total = scores_sum(selected, n_cells, 1);
    for (int64_t c = 0; c < n_cells; c++) share[c] = total > 0 ? selected[c] / total : 0;
}

int64_t selection_within(const int64_t *order, int64_t n, const double *share, double budget) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += share[order[i]];
        if (sum > budget) return i;
    }
    return n;
}

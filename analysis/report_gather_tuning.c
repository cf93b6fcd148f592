/* Gathering of contrasts, of trainings and of utility. */
#include "report_gather.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "contrast.h"
#include "json_write.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TABLE_BYTES = 1 << 30 };

/* STEP/NAME with these columns (ended by NULL), their numbers in *at. */
static bool read_table(const char *folder, const ReportStep *step, const char *name,
                       const char *const *columns, int64_t *at, Csv *csv, Error *error) {
    char *own = io_join(folder, step->name), *path = own ? io_join(own, name) : NULL;
    bool ok = (path || error_out_of_memory(error, "a file name", strlen(folder))) &&
              csv_read(path, MAX_TABLE_BYTES, csv, error);
    for (int64_t i = 0; ok && columns[i]; i++) ok = csv_need_column(csv, columns[i], &at[i], error);
    mem_free(path);
    mem_free(own);
    return ok;
}

static bool check_cells(const ReportStep *step, const Csv *csv, int64_t layer, int64_t expert, Error *error) {
    int64_t value;
    for (int64_t r = 0; r < csv->n_rows; r++)
        if (!csv_integer(csv, r, layer, 0, step->n_layers - 1, &value, error) ||
            !csv_integer(csv, r, expert, 0, step->n_experts - 1, &value, error))
            return false;
    return true;
}

/* ---- contrast ---- */
enum { RANKING, LAYER, EXPERT, RANK, N_OF_RANKING };

static bool is_of(const Csv *csv, int64_t row, int64_t column, const char *text) {
    return !strcmp(csv_field(csv, row, column).text, text);
}

/* What rank the row's cell has by every ranking. */
static void put_ranks(const Csv *csv, const int64_t *at, int64_t row, Text *to) {
    for (int k = 0; k < N_RANKINGS; k++) {
        char key[60];
        int64_t rank = -1;
        for (int64_t r = 0; rank < 0 && r < csv->n_rows; r++)
            if (is_of(csv, r, at[RANKING], contrast_ranking_names[k]) &&
                is_of(csv, r, at[LAYER], csv_field(csv, row, at[LAYER]).text) &&
                is_of(csv, r, at[EXPERT], csv_field(csv, row, at[EXPERT]).text))
                rank = atoll(csv_field(csv, r, at[RANK]).text);
        snprintf(key, sizeof key, "rank_%s", contrast_ranking_names[k]);
        if (rank < 0)
            write_null(to, key, "the contrast has no such ranking");
        else
            write_integer(to, key, rank);
    }
}

static void put_ranking(const Csv *csv, const int64_t *at, const char *name, Text *to) {
    int64_t n = 0;
    write_line(to);
    write_begin(to, name, '[');
    for (int64_t r = 0; r < csv->n_rows; r++) {
        if (!is_of(csv, r, at[RANKING], name)) continue;
        write_line(to);
        write_begin(to, NULL, '{');
        gather_fields(csv, r, to);
        if (n++ < REPORT_CELLS) put_ranks(csv, at, r, to);
        write_end(to, '}');
    }
    write_end(to, ']');
}

bool gather_contrast(const char *folder, const ReportStep *step, Text *to, Error *error) {
    static const char *const columns[] = {"ranking", "layer", "expert", "rank", "value", "selected", NULL};
    int64_t at[sizeof columns / sizeof *columns];
    Csv csv = {0};
    gather_text("contrast", &step->statistics_text, to);
    const bool ok = read_table(folder, step, "ranking.csv", columns, at, &csv, error) &&
                    check_cells(step, &csv, at[LAYER], at[EXPERT], error);
    write_line(to);
    write_begin(to, "cells", '{');
    for (int k = 0; ok && k < N_RANKINGS; k++) put_ranking(&csv, at, contrast_ranking_names[k], to);
    write_end(to, '}');
    csv_free(&csv);
    return ok;
}

/* ---- training ---- */
/* The step with the least held-out loss, ties to the first; step 0 is the state before the first. */
static bool put_best(const Csv *csv, const int64_t *at, Text *to, Error *error) {
    double least = INFINITY;
    int64_t best = -1;
    for (int64_t r = 0; r < csv->n_rows; r++) {
        double value;
        if (!csv_field(csv, r, at[1]).length) continue;
        if (!csv_number(csv, r, at[1], &value, error)) return false;
        if (value < least) least = value, best = r;
    }
    int64_t step = 0;
    if (best >= 0 && !csv_integer(csv, best, at[0], 0, INT64_MAX, &step, error)) return false;
    write_line(to);
    if (best < 0)
        write_null(to, "best_step", "nothing is held out");
    else
        write_integer(to, "best_step", step);
    return true;
}

typedef struct {
    int64_t layer, expert, n_projections, n_parameters;
    double update, weight; /* sums of squares */
} CellSum;

enum { OF_LAYER, OF_EXPERT, PROJECTION, PARAMETERS, UPDATE, WEIGHT, N_OF_UPDATE };

static bool read_row(const Csv *csv, const int64_t *at, int64_t r, CellSum *row, Error *error) {
    if (!csv_integer(csv, r, at[OF_LAYER], 0, INT64_MAX, &row->layer, error) ||
        !csv_integer(csv, r, at[OF_EXPERT], 0, INT64_MAX, &row->expert, error) ||
        !csv_integer(csv, r, at[PARAMETERS], 0, INT64_MAX, &row->n_parameters, error) ||
        !csv_number(csv, r, at[UPDATE], &row->update, error) ||
        !csv_number(csv, r, at[WEIGHT], &row->weight, error))
        return false;
    row->update *= row->update;
    row->weight *= row->weight;
    row->n_projections = 1;
    return true;
}

static int by_cell(const void *a, const void *b) {
    const CellSum *x = a, *y = b;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    return (x->expert > y->expert) - (x->expert < y->expert);
}

static void put_cells(CellSum *rows, int64_t n, Text *to) {
    if (n) qsort(rows, (size_t)n, sizeof *rows, by_cell);
    write_line(to);
    write_begin(to, "cells", '[');
    for (int64_t r = 0; r < n;) {
        CellSum sum = rows[r++];
        for (; r < n && !by_cell(&sum, &rows[r]); r++) {
            sum.n_projections++;
            sum.n_parameters += rows[r].n_parameters;
            sum.update += rows[r].update;
            sum.weight += rows[r].weight;
        }
        write_line(to);
        write_begin(to, NULL, '{');
        write_integer(to, "layer", sum.layer);
        write_integer(to, "expert", sum.expert);
        write_integer(to, "matrices", sum.n_projections);
        write_integer(to, "parameters", sum.n_parameters);
        write_number(to, "update_norm", sqrt(sum.update));
        write_number(to, "weight_norm", sqrt(sum.weight));
        write_number_or(to, "relative", sqrt(sum.update / sum.weight), "the weights are 0");
        write_end(to, '}');
    }
    write_end(to, ']');
}

static bool gather_updates(const char *folder, const ReportStep *step, Text *to, Error *error) {
    static const char *const columns[] = {"layer",       "expert",      "projection", "parameters",
                                          "update_norm", "weight_norm", NULL};
    int64_t at[N_OF_UPDATE];
    Csv csv = {0};
    CellSum *rows = NULL;
    bool ok = read_table(folder, step, "updates.csv", columns, at, &csv, error) &&
              check_cells(step, &csv, at[OF_LAYER], at[OF_EXPERT], error);
    if (ok) rows = mem_zeroed((size_t)csv.n_rows + 1, sizeof *rows);
    if (ok && !rows) ok = error_out_of_memory(error, "updates", (size_t)csv.n_rows * sizeof *rows);
    for (int64_t r = 0; ok && r < csv.n_rows; r++) ok = read_row(&csv, at, r, &rows[r], error);
    if (ok) {
        gather_rows("updates", &csv, to);
        put_cells(rows, csv.n_rows, to);
    }
    mem_free(rows);
    csv_free(&csv);
    return ok;
}

bool gather_tune(const char *folder, const ReportStep *step, Text *to, Error *error) {
    static const char *const columns[] = {"step",          "held_out_loss", "loss",
                                          "gradient_norm", "learning_rate", NULL};
    int64_t at[sizeof columns / sizeof *columns];
    Csv csv = {0};
    bool ok = read_table(folder, step, "training.csv", columns, at, &csv, error);
    if (ok) {
        gather_rows("training", &csv, to);
        ok = put_best(&csv, at, to, error);
    }
    csv_free(&csv);
    return ok && gather_updates(folder, step, to, error);
}

/* ---- utility ---- */
/* Value and its interval under keys of their own; else the table as it stands. */
bool gather_utility(const char *folder, const ReportStep *step, Text *to, Error *error) {
    static const char *const columns[] = {"condition", "low", "high", NULL};
    int64_t at[sizeof columns / sizeof *columns];
    Csv csv = {0};
    bool ok = read_table(folder, step, "utility.csv", columns, at, &csv, error);
    write_line(to);
    write_begin(to, "utility", '[');
    for (int64_t r = 0; ok && r < csv.n_rows; r++) {
        write_line(to);
        write_begin(to, NULL, '{');
        write_string(to, "step", step->name);
        gather_fields(&csv, r, to);
        gather_as(&csv, r, "low", "value_low", to);
        gather_as(&csv, r, "high", "value_high", to);
        write_end(to, '}');
    }
    write_end(to, ']');
    csv_free(&csv);
    return ok;
}

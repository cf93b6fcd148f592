/* Cells of an adapter: kept in order, checked against the model as they come. */
#include "adapter.h"
#include "alloc.h"
#include <math.h>
#include <string.h>

const char *const projection_names[N_PROJECTIONS + 1] = {"gate", "up", "down", NULL};

bool projection_find(const char *name, Projection *projection) {
    for (int p = 0; p < N_PROJECTIONS; p++) {
        if (strcmp(name, projection_names[p]) != 0) continue;
        *projection = (Projection)p;
        return true;
    }
    return false;
}

int64_t projection_in(const ModelConfig *config, Projection projection) {
    return projection == PROJECTION_DOWN ? config->expert_size : config->hidden_size;
}

int64_t projection_out(const ModelConfig *config, Projection projection) {
    return projection == PROJECTION_DOWN ? config->hidden_size : config->expert_size;
}

int64_t adapter_cell_count(const AdapterCell *cell, const ModelConfig *config) {
    return cell->rank * (projection_in(config, cell->projection) + projection_out(config, cell->projection));
}

/* < 0, 0, > 0: before, the cell, behind. */
static int compare(const AdapterCell *cell, int64_t layer, Projection projection, int64_t expert) {
    if (cell->layer != layer) return cell->layer < layer ? -1 : 1;
    if (cell->projection != projection) return cell->projection < projection ? -1 : 1;
    return cell->expert < expert ? -1 : cell->expert > expert;
}

/* The first cell that does not stand before the one named. */
static int64_t place_of(const Adapter *adapter, int64_t layer, Projection projection, int64_t expert) {
    int64_t low = 0, high = adapter->n;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (compare(&adapter->cells[middle], layer, projection, expert) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

AdapterCell *adapter_find(const Adapter *adapter, int64_t layer, Projection projection, int64_t expert) {
    int64_t at = place_of(adapter, layer, projection, expert);
    bool there = at < adapter->n && !compare(&adapter->cells[at], layer, projection, expert);
    return there ? &adapter->cells[at] : NULL;
}

static bool check_cell(const Adapter *adapter, const ModelConfig *config, const AdapterCell *cell,
                       Error *error) {
    long long layer = (long long)cell->layer, expert = (long long)cell->expert;
    if (cell->layer < 0 || cell->layer >= config->n_layers)
        return error_set(error, ERROR_BAD_INPUT, "layer: expected 0 to %lld: got %lld",
                         (long long)config->n_layers - 1, layer);
    if (config->layer_is_dense[cell->layer])
        return error_set(error, ERROR_BAD_INPUT, "layer: expected one with experts: got %lld, which is dense",
                         layer);
    if (cell->expert < 0 || cell->expert >= config->n_experts)
        return error_set(error, ERROR_BAD_INPUT, "expert of layer %lld: expected 0 to %lld: got %lld", layer,
                         (long long)config->n_experts - 1, expert);
    int64_t in = projection_in(config, cell->projection), out = projection_out(config, cell->projection);
    int64_t most = in < out ? in : out;
    if (most > LORA_MOST_RANK) most = LORA_MOST_RANK;
    if (cell->rank < 1 || cell->rank > most)
        return error_set(error, ERROR_BAD_INPUT, "rank: expected 1 to %lld: got %lld", (long long)most,
                         (long long)cell->rank);
    if (!isfinite(cell->scale))
        return error_set(error, ERROR_BAD_INPUT, "scale, alpha / rank: expected a finite number");
    if (adapter_find(adapter, cell->layer, cell->projection, cell->expert))
        return error_set(error, ERROR_BAD_INPUT,
                         "layer %lld, expert %lld, %s: expected a cell once: got it "
                         "twice",
                         layer, expert, projection_names[cell->projection]);
    return true;
}

bool adapter_add(Adapter *adapter, const ModelConfig *config, AdapterCell like, AdapterCell **cell,
                 Error *error) {
    if (!check_cell(adapter, config, &like, error)) return false;
    if (adapter->n == adapter->capacity) {
        int64_t capacity = adapter->capacity ? 2 * adapter->capacity : 16;
        AdapterCell *larger = mem_resize(adapter->cells, (size_t)capacity, sizeof *larger);
        if (!larger) return error_out_of_memory(error, "an adapter", (size_t)capacity * sizeof *larger);
        adapter->cells = larger;
        adapter->capacity = capacity;
    }
    like.a = mem_zeroed((size_t)(like.rank * projection_in(config, like.projection)), sizeof *like.a);
    like.b = mem_zeroed((size_t)(like.rank * projection_out(config, like.projection)), sizeof *like.b);
    if (!like.a || !like.b) {
        mem_free(like.a);
        mem_free(like.b);
        return error_out_of_memory(error, "an adapter",
                                   (size_t)adapter_cell_count(&like, config) * sizeof(float));
    }
    int64_t at = place_of(adapter, like.layer, like.projection, like.expert);
    memmove(adapter->cells + at + 1, adapter->cells + at, (size_t)(adapter->n - at) * sizeof *adapter->cells);
    adapter->cells[at] = like;
    adapter->n++;
    *cell = &adapter->cells[at];
    return true;
}

void adapter_free(Adapter *adapter) {
    for (int64_t i = 0; i < adapter->n; i++) {
        mem_free(adapter->cells[i].a);
        mem_free(adapter->cells[i].b);
    }
    for (int64_t i = 0; i < adapter->n_rows; i++) mem_free(adapter->rows[i].values);
    mem_free(adapter->rows);
    mem_free(adapter->cells);
    *adapter = (Adapter){0};
}

/* sum over k of x[k * stride] y[k * stride] */
static double dot(const float *x, const float *y, int64_t n, int64_t stride) {
    double sum = 0;
    for (int64_t k = 0; k < n; k++) sum += (double)x[k * stride] * (double)y[k * stride];
    return sum;
}

/* |b a|^2 = sum over r, s of (b^T b)[r,s] (a a^T)[r,s]: no product of the matrix's size. */
double adapter_cell_norm(const AdapterCell *cell, const ModelConfig *config) {
    int64_t in = projection_in(config, cell->projection), out = projection_out(config, cell->projection);
    double sum = 0;
    for (int64_t r = 0; r < cell->rank; r++)
        for (int64_t s = 0; s < cell->rank; s++)
            sum += dot(cell->b + r, cell->b + s, out, cell->rank) *
                   dot(cell->a + r * in, cell->a + s * in, in, 1);
    return fabs((double)cell->scale) * sqrt(sum > 0 ? sum : 0);
}

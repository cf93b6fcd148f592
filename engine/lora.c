/* Groups of cells on a device, and the gradient of a step from its counters. */
#include "lora.h"
#include "../kernels/check.h"
#include "alloc.h"
#include "queue.h"
#include <math.h>
#include <string.h>

/* ---- groups ---- */
static int64_t count_groups(const Adapter *adapter) {
    int64_t n = 0;
    for (int64_t i = 0; i < adapter->n; i++) {
        const AdapterCell *cell = &adapter->cells[i], *last = cell - 1;
        n += i == 0 || last->layer != cell->layer || last->projection != cell->projection;
    }
    return n;
}

enum { ROWS_ALIGNMENT = 64 }; /* elements: rows begin at a multiple */

/* Rows of a layer together, behind all updates. */
static void lay_out_rows(const Adapter *adapter, const ModelConfig *config, LoraWeights *w) {
    if (!adapter->n_rows) return;
    w->n_updates = (w->n_updates + ROWS_ALIGNMENT - 1) / ROWS_ALIGNMENT * ROWS_ALIGNMENT;
    w->n_values = w->n_updates;
    for (int64_t i = 0; i < adapter->n_rows; i++) {
        LoraRows *last = w->n_row_groups ? &w->rows[w->n_row_groups - 1] : NULL;
        if (!last || last->layer != adapter->rows[i].layer) {
            last = &w->rows[w->n_row_groups++];
            *last = (LoraRows){.layer = adapter->rows[i].layer, .first = w->n_values, .first_row = i};
        }
        last->n++;
        w->n_values += config->hidden_size;
    }
}

/* Sizes of the groups, and where they begin. */
static void lay_out(const Adapter *adapter, const ModelConfig *config, LoraWeights *w) {
    LoraGroup *group = NULL;
    for (int64_t i = 0; i < adapter->n; i++) {
        const AdapterCell *cell = &adapter->cells[i];
        if (!group || group->layer != cell->layer || group->projection != cell->projection) {
            group = &w->groups[w->n_groups++];
            *group = (LoraGroup){.layer = cell->layer, .projection = cell->projection, .first_cell = i};
        }
        group->n_cells++;
        if (cell->rank > group->rank) group->rank = cell->rank;
    }
    for (int64_t i = 0; i < w->n_groups; i++) {
        group = &w->groups[i];
        group->first = w->n_values;
        group->n_a = group->n_cells * group->rank * projection_in(config, group->projection);
        group->n_b = group->n_cells * group->rank * projection_out(config, group->projection);
        w->n_values += group->n_a + group->n_b;
    }
    w->n_updates = w->n_values;
    lay_out_rows(adapter, config, w);
}

static size_t fixed_bytes(const LoraGroup *group, DType real) {
    size_t n = (size_t)group->n_cells * (sizeof(int32_t) + dtype_bytes(real));
    return (n + 15) / 16 * 16; /* reals first, each group's at a multiple of 16 */
}

/* The device's tensors of the groups, in memory that is there. */
static void place_groups(const ModelConfig *config, LoraWeights *w) {
    char *fixed = w->fixed;
    DType real = w->values.dtype;
    for (int64_t i = 0; i < w->n_groups; i++) {
        LoraGroup *g = &w->groups[i];
        int64_t in = projection_in(config, g->projection), out = projection_out(config, g->projection);
        char *values = (char *)w->values.data + (size_t)g->first * dtype_bytes(real);
        char *b = values + (size_t)g->n_a * dtype_bytes(real);
        g->lora = (Lora){
            .experts = tensor_vector(fixed + (size_t)g->n_cells * dtype_bytes(real), DTYPE_I32, g->n_cells),
            .a = tensor_cube(values, real, g->n_cells, g->rank, in),
            .b = tensor_cube(b, real, g->n_cells, out, g->rank),
            .scales = tensor_vector(fixed, real, g->n_cells),
            .column = g->projection == PROJECTION_UP ? config->expert_size : 0,
            .down = g->projection == PROJECTION_DOWN};
        fixed += fixed_bytes(g, real);
    }
    for (int64_t i = 0; i < w->n_row_groups; i++) {
        LoraRows *r = &w->rows[i];
        r->experts = tensor_vector(fixed, DTYPE_I32, r->n);
        r->rows = tensor_as_matrix(tensor_slice(w->values, r->first, 0), r->n, config->hidden_size);
        fixed += (size_t)r->n * sizeof(int32_t);
    }
}

/* ---- numbers to the device and back ---- */
static void put_real(void *to, DType real, int64_t i, float x) {
    if (real == DTYPE_F64)
        ((double *)to)[i] = (double)x;
    else
        ((float *)to)[i] = x;
}
static float get_real(const void *from, DType real, int64_t i) {
    return real == DTYPE_F64 ? (float)((const double *)from)[i] : ((const float *)from)[i];
}

/* Where element (r, i) of a cell's a and (j, r) of its b stand in the flat vector. */
static int64_t place_a(const LoraGroup *g, int64_t cell, int64_t r, int64_t i) {
    return g->first + (cell * g->rank + r) * g->lora.a.shape[2] + i;
}
static int64_t place_b(const LoraGroup *g, int64_t cell, int64_t j, int64_t r) {
    return g->first + g->n_a + (cell * g->lora.b.shape[1] + j) * g->rank + r;
}

static void fill_group(const LoraGroup *g, const AdapterCell *cells, DType real, void *values, void *fixed) {
    int64_t in = g->lora.a.shape[2], out = g->lora.b.shape[1];
    int32_t *experts = (int32_t *)(void *)((char *)fixed + (size_t)g->n_cells * dtype_bytes(real));
    for (int64_t n = 0; n < g->n_cells; n++) {
        const AdapterCell *cell = &cells[g->first_cell + n];
        experts[n] = (int32_t)cell->expert;
        put_real(fixed, real, n, cell->scale);
        for (int64_t r = 0; r < cell->rank; r++) {
            for (int64_t i = 0; i < in; i++) put_real(values, real, place_a(g, n, r, i), cell->a[r * in + i]);
            for (int64_t j = 0; j < out; j++)
                put_real(values, real, place_b(g, n, j, r), cell->b[j * cell->rank + r]);
        }
    }
}

static void fill_rows(const LoraRows *r, const RouterRow *rows, DType real, void *values, void *fixed) {
    const int64_t columns = tensor_columns(r->rows);
    for (int64_t n = 0; n < r->n; n++) {
        ((int32_t *)fixed)[n] = (int32_t)rows[r->first_row + n].expert;
        for (int64_t i = 0; i < columns; i++)
            put_real(values, real, r->first + n * columns + i, rows[r->first_row + n].values[i]);
    }
}

static bool send(const Adapter *adapter, LoraWeights *w, size_t n_fixed, Error *error) {
    void *values = mem_zeroed((size_t)tensor_count(w->values), dtype_bytes(w->values.dtype));
    char *fixed = mem_zeroed(n_fixed, 1), *at = fixed;
    Queue *queue = w->device->queue_new();
    bool ok = (values && fixed && queue) || error_out_of_memory(error, "an adapter", tensor_bytes(w->values));
    for (int64_t i = 0; ok && i < w->n_groups; i++) {
        fill_group(&w->groups[i], adapter->cells, w->values.dtype, values, at);
        at += fixed_bytes(&w->groups[i], w->values.dtype);
    }
    for (int64_t i = 0; ok && i < w->n_row_groups; i++) {
        fill_rows(&w->rows[i], adapter->rows, w->values.dtype, values, at);
        at += (size_t)w->rows[i].n * sizeof(int32_t);
    }
    if (ok) {
        w->device->copy_in(queue, w->values, values);
        w->device->copy_in(queue, tensor_vector(w->fixed, DTYPE_I32, (int64_t)(n_fixed / sizeof(int32_t))),
                           fixed);
        ok = queue_wait(w->device, queue, error);
    }
    if (queue) w->device->queue_free(queue);
    mem_free(values);
    mem_free(fixed);
    return ok;
}

bool lora_weights_make(const Adapter *adapter, const Model *model, LoraWeights *w, Error *error) {
    const Device *device = model->device;
    DType real = model->compute == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
    int64_t n_groups = count_groups(adapter);
    *w = (LoraWeights){.device = device,
                       .groups = mem_zeroed((size_t)n_groups + 1, sizeof *w->groups),
                       .rows = mem_zeroed((size_t)adapter->n_rows + 1, sizeof *w->rows)};
    if (!w->groups || !w->rows) {
        lora_weights_free(w);
        return error_out_of_memory(error, "an adapter", (size_t)n_groups * sizeof *w->groups);
    }
    lay_out(adapter, &model->config, w);
    int64_t rows = (w->n_values + OPTIMIZER_COLUMNS - 1) / OPTIMIZER_COLUMNS;
    w->values = tensor_vector(NULL, real, rows * OPTIMIZER_COLUMNS);
    size_t n_fixed = (size_t)adapter->n_rows * sizeof(int32_t);
    for (int64_t i = 0; i < n_groups; i++) n_fixed += fixed_bytes(&w->groups[i], real);
    w->values.data = device->alloc(tensor_bytes(w->values));
    w->fixed = device->alloc(n_fixed);
    bool ok = (w->values.data && w->fixed) ||
              error_out_of_memory(error, "an adapter", tensor_bytes(w->values) + n_fixed);
    if (ok) place_groups(&model->config, w);
    ok = ok && (!device->computes || send(adapter, w, n_fixed, error));
    if (!ok) lora_weights_free(w);
    return ok;
}

void lora_weights_free(LoraWeights *w) {
    if (w->values.data) w->device->free(w->values.data);
    if (w->fixed) w->device->free(w->fixed);
    mem_free(w->groups);
    mem_free(w->rows);
    *w = (LoraWeights){0};
}

static void read_group(const LoraGroup *g, const void *from, DType real, AdapterCell *cells) {
    int64_t in = g->lora.a.shape[2], out = g->lora.b.shape[1];
    for (int64_t n = 0; n < g->n_cells; n++) {
        AdapterCell *cell = &cells[g->first_cell + n];
        for (int64_t r = 0; r < cell->rank; r++) {
            for (int64_t i = 0; i < in; i++) cell->a[r * in + i] = get_real(from, real, place_a(g, n, r, i));
            for (int64_t j = 0; j < out; j++)
                cell->b[j * cell->rank + r] = get_real(from, real, place_b(g, n, j, r));
        }
    }
}

bool lora_weights_read(const LoraWeights *w, Tensor vector, Adapter *to, Error *error) {
    check(tensor_count(vector) == tensor_count(w->values) && count_groups(to) == w->n_groups,
          "%lld values, %lld groups", (long long)tensor_count(vector), (long long)w->n_groups);
    void *values = mem_alloc(tensor_bytes(vector));
    Queue *queue = w->device->queue_new();
    bool ok = (values && queue) || error_out_of_memory(error, "an adapter", tensor_bytes(vector));
    if (ok) {
        w->device->copy_out(queue, values, vector);
        ok = queue_wait(w->device, queue, error);
    }
    for (int64_t i = 0; ok && i < w->n_groups; i++)
        read_group(&w->groups[i], values, vector.dtype, to->cells);
    for (int64_t i = 0; ok && i < w->n_row_groups; i++)
        for (int64_t k = 0; k < tensor_count(w->rows[i].rows); k++) {
            const int64_t columns = tensor_columns(w->rows[i].rows), row = w->rows[i].first_row + k / columns;
            to->rows[row].values[k % columns] = get_real(values, vector.dtype, w->rows[i].first + k);
        }
    if (queue) w->device->queue_free(queue);
    mem_free(values);
    return ok;
}

/* ---- for the decoder ---- */
/* The group's part of the slots: a's, or b's behind them. */
static Tensor slots_of(const LoraTraining *t, const LoraGroup *g, bool of_b) {
    int64_t first = t->n_slots * (g->first + (of_b ? g->n_a : 0));
    return tensor_as_matrix(tensor_slice(t->slots, first, 0), t->n_slots, of_b ? g->n_b : g->n_a);
}

static Tensor row_slots(const LoraTraining *t, const LoraRows *r) {
    const Tensor slots = tensor_slice(t->slots, t->n_slots * r->first, 0);
    return tensor_as_cube(slots, t->n_slots, r->n, tensor_columns(r->rows));
}

bool lora_router(const LoraWeights *w, const LoraPass *pass, int64_t layer, RouterRows *rows) {
    for (int64_t i = 0; w && i < w->n_row_groups; i++) {
        const LoraRows *r = &w->rows[i];
        if (r->layer != layer) continue;
        *rows = (RouterRows){.experts = r->experts, .rows = r->rows};
        if (pass->training)
            rows->sums = (LoraSums){
                .a = row_slots(pass->training, r), .offsets = pass->offsets, .first = pass->first_example};
        return true;
    }
    return false;
}

int64_t lora_lowest_layer(const LoraWeights *w) {
    int64_t lowest = w->n_groups ? w->groups[0].layer : w->rows[0].layer;
    if (w->n_row_groups && w->rows[0].layer < lowest) lowest = w->rows[0].layer;
    return lowest;
}

enum { MOST_CHOICES = 1024 }; /* of a token: numbers of dropout are apart by as many */

bool lora_layer(const LoraWeights *w, const LoraPass *pass, int64_t layer, ExpertUpdates *updates) {
    const LoraTraining *training = pass->training;
    *updates = (ExpertUpdates){.dropout_choices = MOST_CHOICES};
    updates->dropout_id = layer * N_PROJECTIONS * MOST_CHOICES;
    if (training) updates->dropout_keys = pass->dropout_keys, updates->dropout_rate = pass->dropout_rate;
    bool found = false;
    for (int64_t i = 0; w && i < w->n_groups; i++) {
        const LoraGroup *g = &w->groups[i];
        if (g->layer != layer) continue;
        found = true;
        updates->lora[g->projection] = g->lora;
        if (training)
            updates->sums[g->projection] =
                (LoraSums){slots_of(training, g, false), slots_of(training, g, true), pass->offsets,
                           pass->first_example};
    }
    return found;
}

/* ---- training ---- */
static Tensor device_vector(const Device *device, DType dtype, int64_t n) {
    Tensor t = tensor_vector(NULL, dtype, n);
    t.data = device->alloc(tensor_bytes(t));
    return t;
}

bool lora_training_make(const LoraWeights *w, int64_t n_examples, LoraTraining *t, Error *error) {
    const Device *device = w->device;
    DType real = w->values.dtype;
    int64_t n = tensor_count(w->values), rows = n / OPTIMIZER_COLUMNS;
    *t = (LoraTraining){.weights = w, .queue = device->queue_new()};
    while (n_examples >> t->n_slots) t->n_slots++;
    Optimizer *o = &t->optimizer;
    o->values = w->values;
    o->n_head = w->n_row_groups ? w->n_updates : 0;
    t->slots = device_vector(device, real, t->n_slots * w->n_values);
    o->grad = device_vector(device, real, n);
    o->means = device_vector(device, real, n);
    o->squares = device_vector(device, real, n);
    o->norms = device_vector(device, real, rows);
    o->host_norms = mem_zeroed((size_t)rows + 1, dtype_bytes(real));
    bool ok = t->queue && t->slots.data && o->grad.data && o->means.data && o->squares.data &&
              o->norms.data && o->host_norms;
    if (ok) {
        device->zero(t->queue, o->grad);
        device->zero(t->queue, o->means);
        device->zero(t->queue, o->squares);
        ok = queue_wait(device, t->queue, error);
    } else {
        error_out_of_memory(error, "training", (size_t)(t->n_slots + 3) * tensor_bytes(w->values));
    }
    if (!ok) lora_training_free(t);
    return ok;
}

void lora_training_free(LoraTraining *t) {
    if (!t->weights) return;
    const Device *device = t->weights->device;
    void *blocks[] = {t->slots.data, t->optimizer.grad.data, t->optimizer.means.data,
                      t->optimizer.squares.data, t->optimizer.norms.data};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        if (blocks[i]) device->free(blocks[i]);
    mem_free(t->optimizer.host_norms);
    if (t->queue) device->queue_free(t->queue);
    *t = (LoraTraining){0};
}

void lora_training_sum(LoraTraining *t, int64_t n_examples) {
    const Device *device = t->weights->device;
    check(n_examples > 0 && n_examples >> t->n_slots == 0, "%lld examples, %lld slots", (long long)n_examples,
          (long long)t->n_slots);
    for (int64_t i = 0; i < t->weights->n_groups; i++) {
        const LoraGroup *g = &t->weights->groups[i];
        Tensor a = tensor_slice(t->optimizer.grad, g->first, g->n_a);
        Tensor b = tensor_slice(t->optimizer.grad, g->first + g->n_a, g->n_b);
        device->ops->sum_slots(t->queue, a, slots_of(t, g, false), n_examples);
        device->ops->sum_slots(t->queue, b, slots_of(t, g, true), n_examples);
    }
    for (int64_t i = 0; i < t->weights->n_row_groups; i++) {
        const LoraRows *r = &t->weights->rows[i];
        const Tensor rows = tensor_slice(t->optimizer.grad, r->first, tensor_count(r->rows));
        device->ops->sum_slots(t->queue, rows, row_slots(t, r), n_examples);
    }
}

bool lora_training_norm(LoraTraining *t, double *norm, Error *error) {
    const Device *device = t->weights->device;
    if (!optimizer_norm(device, t->queue, &t->optimizer, norm)) return queue_wait(device, t->queue, error);
    if (isfinite(*norm)) return true;
    return error_set(error, ERROR_FAILED,
                     "gradient of what is trained: expected a finite norm: got nan or infinity");
}

bool lora_training_gather(LoraTraining *t, int64_t n_examples, double *norm, Error *error) {
    lora_training_sum(t, n_examples);
    return lora_training_norm(t, norm, error);
}

bool lora_training_step(LoraTraining *t, const AdamwOptions *options, double rate, double norm,
                        Error *error) {
    optimizer_step(t->weights->device, t->queue, &t->optimizer, options, rate, norm);
    return queue_wait(t->weights->device, t->queue, error);
}

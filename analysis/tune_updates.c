/* updates.csv: how long each trained update became, beside the frozen weight that it is added to. */
#include "../engine/alloc.h"
#include "../kernels/half.h"
#include "tune_parts.h"
#include <math.h>

/* The matrix of an update [out,in], in the file's dtype, on the device. */
static Tensor weight_of(const Model *model, const AdapterCell *cell) {
    const LayerWeights *layer = &model->weights.layers[cell->layer];
    if (cell->projection == PROJECTION_DOWN) return tensor_entry(layer->down, cell->expert);
    const int64_t rows = model->config.expert_size;
    return tensor_slice(tensor_entry(layer->gate_up, cell->expert),
                        cell->projection == PROJECTION_UP ? rows : 0, rows);
}

/* Summed in one order, so that the bits are the device's, thread's and batch's in no case. */
static double norm_of(const void *data, DType dtype, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const double x = dtype == DTYPE_F32    ? (double)((const float *)data)[i]
                         : dtype == DTYPE_BF16 ? (double)bf16_to_f32(((const uint16_t *)data)[i])
                                               : (double)f16_to_f32(((const uint16_t *)data)[i]);
        sum += x * x;
    }
    return sqrt(sum);
}

/* Of the frozen weights of all updates, [n]. Streamed layers share buffers, so each is asked for; where they
 * come from peers all ranks ask in one order, and whoever cannot go on ends the job. */
static bool weight_norms(const Tuning *t, double *norms, Error *error) {
    const Model *model = &t->model;
    size_t most = 0;
    for (int64_t i = 0; i < t->adapter.n; i++) {
        const size_t n = tensor_bytes(weight_of(model, &t->adapter.cells[i]));
        most = n > most ? n : most;
    }
    void *data = mem_alloc(most);
    bool ok = data || error_out_of_memory(error, "a weight", most);
    for (int64_t i = 0; ok && i < t->adapter.n; i++) {
        const AdapterCell *cell = &t->adapter.cells[i];
        const Tensor weight = weight_of(model, cell);
        weight_stream_need(model->weights.stream, t->training.queue,
                           model_config_moe_layer(&model->config, cell->layer), false);
        model->device->copy_out(t->training.queue, data, weight);
        ok = queue_wait(model->device, t->training.queue, error);
        if (ok) norms[i] = norm_of(data, weight.dtype, tensor_count(weight));
    }
    if (!ok && spread_any(&model->spread)) comm_fail(t->run->comm, error);
    mem_free(data);
    return ok;
}

static bool write_norms(const Tuning *t, const double *norms, Error *error) {
    const ModelConfig *config = &t->run->model->config;
    Text text = {0};
    text_put_string(&text, "layer,expert,projection,rank,parameters,update_norm,weight_norm\n");
    for (int64_t i = 0; i < t->adapter.n; i++) {
        const AdapterCell *cell = &t->adapter.cells[i];
        text_format(&text, "%lld,%lld,%s,%lld,%lld,", (long long)cell->layer, (long long)cell->expert,
                    projection_names[cell->projection], (long long)cell->rank,
                    (long long)adapter_cell_count(cell, config));
        text_put_f64(&text, adapter_cell_norm(cell, config));
        text_put_string(&text, ",");
        text_put_f64(&text, norms[i]);
        text_put_string(&text, "\n");
    }
    return results_write_text(t->run->folder, "updates.csv", &text, error);
}

bool tune_write_updates(const Tuning *t, Error *error) {
    const bool spread = spread_any(&t->model.spread);
    if (t->run->comm->rank && !spread) return true;
    double *norms = mem_zeroed((size_t)t->adapter.n, sizeof *norms);
    bool ok = norms || error_out_of_memory(error, "norms", (size_t)t->adapter.n * sizeof *norms);
    if (!ok && spread) comm_fail(t->run->comm, error);
    ok = ok && weight_norms(t, norms, error) && (t->run->comm->rank || write_norms(t, norms, error));
    mem_free(norms);
    return ok;
}

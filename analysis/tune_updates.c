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

static bool weight_norm(const Tuning *t, const AdapterCell *cell, double *norm, Error *error) {
    const Tensor weight = weight_of(&t->model, cell);
    void *data = mem_alloc(tensor_bytes(weight));
    if (!data) return error_out_of_memory(error, "a weight", tensor_bytes(weight));
    /* layers that are streamed share buffers: this one's weights, not those that were there last */
    weight_stream_need(t->model.weights.stream, t->training.queue,
                       model_config_moe_layer(&t->model.config, cell->layer), false);
    t->model.device->copy_out(t->training.queue, data, weight);
    const bool ok = queue_wait(t->model.device, t->training.queue, error);
    if (ok) *norm = norm_of(data, weight.dtype, tensor_count(weight));
    mem_free(data);
    return ok;
}

bool tune_write_updates(const Tuning *t, Error *error) {
    const ModelConfig *config = &t->run->model->config;
    Text text = {0};
    text_put_string(&text, "layer,expert,projection,rank,parameters,update_norm,weight_norm\n");
    for (int64_t i = 0; i < t->adapter.n; i++) {
        const AdapterCell *cell = &t->adapter.cells[i];
        double norm = 0;
        if (!weight_norm(t, cell, &norm, error)) {
            text_free(&text);
            return false;
        }
        text_format(&text, "%lld,%lld,%s,%lld,%lld,", (long long)cell->layer, (long long)cell->expert,
                    projection_names[cell->projection], (long long)cell->rank,
                    (long long)adapter_cell_count(cell, config));
        text_put_f64(&text, adapter_cell_norm(cell, config));
        text_put_string(&text, ",");
        text_put_f64(&text, norm);
        text_put_string(&text, "\n");
    }
    return results_write_text(t->run->folder, "updates.csv", &text, error);
}

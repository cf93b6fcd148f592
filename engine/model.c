/* Opening a checkpoint for computing, and plans from its shapes alone. */
#include "model.h"
#include "../kernels/cost.h"
#include "alloc.h"

bool model_open(const char *folder, const Device *device, DType compute, Model *model, Error *error) {
    return model_open_streamed(folder, device, compute, 0, model, error);
}

bool model_open_streamed(const char *folder, const Device *device, DType compute, int64_t n_streamed,
                         Model *model, Error *error) {
    *model = (Model){.device = device, .compute = compute};
    if (model_config_read(folder, &model->config, error) &&
        weights_load_streamed(&model->config, device, n_streamed, &model->weights, error)) {
        model->spare = mem_zeroed(1, sizeof *model->spare);
        if (model->spare) return true;
        error_out_of_memory(error, "a model", sizeof *model->spare);
    }
    model_close(model);
    return false;
}

void model_close(Model *model) {
    if (model->spare && model->spare->block) model->device->free(model->spare->block);
    mem_free(model->spare);
    weights_free(&model->weights);
    model_config_free(&model->config);
    *model = (Model){0};
}

bool model_plan(const ModelConfig *config, DType compute, DType weights, const PromptBatch *shape,
                const PassOptions *options, PassResult *plan, Error *error) {
    Model model = {.config = *config, .device = &cost_device, .compute = compute};
    if (!weights_shapes(config, weights, &cost_device, &model.weights, error)) return false;
    PromptBatch batch = {shape->n_prompts, shape->offsets, NULL};
    bool ok = model_pass(&model, &batch, options, NULL, plan, error);
    weights_free(&model.weights);
    return ok;
}

/* Opening a checkpoint for computing, and plans from its shapes alone. */
#include "model.h"
#include "../kernels/cost.h"
#include "alloc.h"
#include "exchange.h"

bool model_open(const char *folder, const Device *device, DType compute, Model *model, Error *error) {
    return model_open_spread(folder, device, compute, &(Spread){.residency = RESIDENCY_RESIDENT}, model,
                             error);
}

bool model_open_spread(const char *folder, const Device *device, DType compute, const Spread *spread,
                       Model *model, Error *error) {
    *model = (Model){.device = device, .compute = compute, .spread = *spread};
    /* first, as it is collective, and each of the others can fail on one rank alone */
    if ((!spread_any(spread) || comm_use_device(spread->comm, device, true, error)) &&
        model_config_read(folder, &model->config, error) &&
        weights_load_spread(&model->config, device, spread, &model->weights, error)) {
        model->spare = mem_zeroed(1, sizeof *model->spare);
        if (!model->spare)
            error_out_of_memory(error, "a model", sizeof *model->spare);
        else if (!spread_tokens_travel(spread) || (model->exchange = exchange_new(model, error)))
            return true;
    }
    model_close(model);
    return false;
}

void model_close(Model *model) {
    if (model->spare && model->spare->block) model->device->free(model->spare->block);
    mem_free(model->spare);
    exchange_free(model->exchange);
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

/* ---- on ranks ---- */
int64_t model_agree_passes(const Model *model, int64_t n) {
    if (spread_any(&model->spread)) comm_max_i64(model->spread.comm, &n, 1);
    return n;
}

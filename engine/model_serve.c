/* A rank's part in programs that it has no rows for: per layer the calls that the others make, nothing else.
 * What the ranks must agree on before they run one. */
#include "../kernels/check.h"
#include "decoder.h"
#include "exchange.h"
#include "generate.h"
#include "queue.h"
#include "watchdog.h"

static void serve_layer(const Model *model, Queue *q, int64_t layer, int64_t moe_layer, bool back) {
    watchdog_tick();
    weight_stream_need(model->weights.stream, q, moe_layer, back);
    exchange_serve(model, q, layer, back);
}

/* Forward, and back down to the lowest-th layer with experts; n_moe_layers: no way back. */
static void serve_program(const Model *model, Queue *q, int64_t lowest) {
    const ModelConfig *config = &model->config;
    int64_t moe_layer = 0;
    if (!model->exchange) {
        weight_stream_serve(model->weights.stream, q, lowest);
        return;
    }
    weight_stream_begin(model->weights.stream, q);
    for (int64_t layer = 0; layer < config->n_layers; layer++)
        if (!config->layer_is_dense[layer]) serve_layer(model, q, layer, moe_layer++, false);
    for (int64_t layer = config->n_layers - 1; moe_layer > lowest; layer--)
        if (!config->layer_is_dense[layer]) serve_layer(model, q, layer, --moe_layer, true);
}

/* Where a walk ends: at the first router, or, in training, at the lowest layer that is trained. */
static int64_t lowest_walked(const Model *model, const PassOptions *options) {
    if (!options->loss_weights) return model->config.n_moe_layers;
    if (!options->training) return 0;
    return model_config_moe_layer(&model->config, lora_lowest_layer(model->adapter));
}

static Queue *open_queue(const Model *model) {
    Error error = {0};
    Queue *q = model->device->queue_new();
    if (q) return q;
    error_out_of_memory(&error, "a queue", sizeof *q);
    comm_fail(model->spread.comm, &error);
}

static void wait_queue(const Model *model, Queue *q) {
    Error error = {0};
    comm_wait(model->spread.comm, q);
    if (!queue_wait(model->device, q, &error)) comm_fail(model->spread.comm, &error);
}

void model_serve(const Model *model, const PassOptions *options) {
    check(spread_any(&model->spread) && model->device->computes, "a model of %lld layers of one rank",
          (long long)model->config.n_layers);
    Queue *q = open_queue(model);
    serve_program(model, q, lowest_walked(model, options));
    wait_queue(model, q);
    model->device->queue_free(q);
}

/* ---- generation ---- */
StepWish generation_agree(const Model *model, StepWish own) {
    int64_t wish = own;
    if (spread_any(&model->spread)) comm_max_i64(model->spread.comm, &wish, 1);
    return (StepWish)wish;
}

void generation_serve_step(const Model *model, Queue *q) {
    watchdog_tick();
    serve_program(model, q, model->config.n_moe_layers);
    wait_queue(model, q);
}

bool generate_serve(const Model *model, const GenerateOptions *options, Error *error) {
    check(spread_any(&model->spread) && model->device->computes, "a model of %lld layers of one rank",
          (long long)model->config.n_layers);
    Queue *q = open_queue(model);
    StepWish all, own = STEP_NONE;
    int64_t step = 0;
    for (; (all = generation_agree(model, own)) == STEP_RUN; step++) {
        generation_serve_step(model, q);
        if (options->progress && !options->progress(options->progress_context, step, 0)) own = STEP_STOP;
    }
    model->device->queue_free(q);
    return all == STEP_NONE ||
           error_set(error, ERROR_INTERRUPTED, "generation: interrupted after %lld tokens", (long long)step);
}

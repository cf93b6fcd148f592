/* A rank's part in passes that it has no prompts for. */
#include "model.h"
#include "generate.h"
#include "../kernels/check.h"

void model_serve(const Model *model, const PassOptions *options) {
    (void)options;
    check(!spread_any(&model->spread), "a model of %lld layers", (long long)model->config.n_layers);
}

bool generate_serve(const Model *model, const GenerateOptions *options, Error *error) {
    (void)options;
    (void)error;
    check(!spread_any(&model->spread), "a model of %lld layers", (long long)model->config.n_layers);
    return true;
}

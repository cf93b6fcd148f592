/* The demo model and its prompt encoder, open for the tests of a program. */
#ifndef GATETAPE_TEST_DEMO_MODEL_H
#define GATETAPE_TEST_DEMO_MODEL_H
#include "../../analysis/prompts.h"
#include "../../engine/model.h"
#include "../../kernels/device.h"
#include "scratch_run.h"

static Model model;
static ModelOptions model_options;
static PromptEncoder encoder;
static TextPool pool;

static inline void open_demo_model(void) {
    Error error = {0};
    assert_true(options_preset(SCOPE_MODEL, &model_options, &pool, &error));
    model_options.name = "demo";
    model_options.path = DEMO "model";
    model_options.chat_template = "phi35moe";
    assert_true(model_open(model_options.path, cpu_device(), DTYPE_F32, &model, &error));
    assert_true(prompt_encoder_open(&model_options, &model.config, &encoder, &error));
}

/* The scratch folder goes away too. */
static inline int close_demo_model(void **state) {
    prompt_encoder_close(&encoder);
    model_close(&model);
    pool_free(&pool);
    return scratch_remove(state);
}

#endif

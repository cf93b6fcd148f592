/* Losses on the routers' distributions and weights that follow from losses, in training passes: gradients of
 * A and B against finite differences in double, through the recomputing tape and the keeping one; the same
 * bits however a step is split; exact zeros where nothing has moved. */
#include "scratch.h"
#include "engine/lora.h"
#include "random_model.h"
#include <math.h>

enum { MOST_LOGITS = R_LAYERS * R_TOKENS * 16 };
static const double BETA = 0.7;

typedef struct {
    Model model;
    Adapter adapter;
    LoraWeights weights;
    LoraTraining training;
    int32_t tokens[R_TOKENS];
    float loss_weights[R_TOKENS], kl_weights[R_TOKENS], anchor_weights[R_TOKENS];
    float frozen[MOST_LOGITS], aims[R_LAYERS * 16];
    bool anchored[R_LAYERS];
    double nll[R_TOKENS], kl, distance;
    bool prefers; /* else tokens have the weights above */
    int64_t keys[R_TOKENS];
    float dropout; /* 0: none */
} Setup;

/* The lowest experts' layer, whose own logits do not move, and the last. */
static const AdapterCell CELLS[] = {
    {.layer = 0, .expert = 1, .projection = PROJECTION_GATE, .rank = 3, .scale = 0.5f},
    {.layer = 0, .expert = 3, .projection = PROJECTION_DOWN, .rank = 2, .scale = 2},
    {.layer = 2, .expert = 4, .projection = PROJECTION_UP, .rank = 4, .scale = 0.25f},
};

static bool take_logits(void *context, HookSite *site, const RouteView *view) {
    (void)site;
    Setup *s = context;
    const int64_t n = tensor_count(view->logits);
    for (int64_t i = 0; i < n; i++)
        s->frozen[view->moe_layer * n + i] = view->logits.dtype == DTYPE_F64
                                                 ? (float)((const double *)view->logits.data)[i]
                                                 : ((const float *)view->logits.data)[i];
    return true;
}

static void run_pass(Setup *s, int64_t first, int64_t end, PassOptions options, const Hooks *hooks) {
    int64_t offsets[R_PROMPTS + 1], from = R_OFFSETS[first];
    for (int64_t p = first; p <= end; p++) offsets[p - first] = R_OFFSETS[p] - from;
    PromptBatch batch = {end - first, offsets, s->tokens + from};
    PassResult result;
    Error error = {0};
    if (!model_pass(&s->model, &batch, &options, hooks, &result, &error)) fail_msg("%s", error.text);
    pass_result_free(&result);
}

static void open_setup(Setup *s, RandomModel r, const Device *device, DType compute) {
    *s = (Setup){0};
    Error error = {0};
    uint64_t state = 5;
    random_model_open(&s->model, r, device, compute, 12);
    random_tokens(s->tokens, 8);
    const ModelConfig *config = &s->model.config;
    for (int i = 0; i < R_TOKENS; i++) {
        s->loss_weights[i] = 0.02f + 0.001f * (float)i;
        s->kl_weights[i] = i % 4 ? 0.1f * (float)(i % 3) : 0.7f;
        s->anchor_weights[i] = i % 5 == 1 ? 0.3f : 0;
    }
    for (int l = 0; l < config->n_moe_layers; l++) {
        s->anchored[l] = l != 1;
        s->aims[l * config->n_experts + 1] = l ? 1 : 0.5f;
        if (!l) s->aims[3] = 0.5f;
    }
    run_pass(s, 0, R_PROMPTS, (PassOptions){0}, &(Hooks){.context = s, .route = take_logits});
    for (size_t i = 0; i < sizeof CELLS / sizeof *CELLS; i++) {
        AdapterCell *cell;
        if (!adapter_add(&s->adapter, config, CELLS[i], &cell, &error)) fail_msg("%s", error.text);
        int64_t in = projection_in(config, cell->projection), out = projection_out(config, cell->projection);
        for (int64_t k = 0; k < cell->rank * in; k++) cell->a[k] = 0.4f * (float)random_value(&state);
        for (int64_t k = 0; k < cell->rank * out; k++) cell->b[k] = 0.4f * (float)random_value(&state);
    }
    for (int64_t i = 0; i < 3; i++) {
        RouterRow *row;
        static const int64_t rows[][2] = {{2, 3}, {0, 1}, {2, 0}};
        assert_true(adapter_add_row(&s->adapter, config, rows[i][0], rows[i][1], &row, &error));
        for (int k = 0; k < R_HIDDEN; k++) row->values[k] = 0.2f * (float)random_value(&state);
    }
    for (int i = 0; i < R_TOKENS; i++) s->keys[i] = 1000 + 7919 * i;
    assert_true(lora_weights_make(&s->adapter, &s->model, &s->weights, &error));
    assert_true(lora_training_make(&s->weights, R_PROMPTS, &s->training, &error));
    s->model.adapter = &s->weights;
}

static void close_setup(Setup *s) {
    lora_training_free(&s->training);
    lora_weights_free(&s->weights);
    adapter_free(&s->adapter);
    random_model_close(&s->model);
}

/* ---- the loss: tokens', or -log sigmoid of what the first prompt gains over the second ---- */
static double prompt_loss(const double *nll, int p) {
    double sum = 0;
    for (int64_t t = R_OFFSETS[p]; t < R_OFFSETS[p + 1]; t++) sum += nll[t];
    return sum;
}

static double margin(const double *nll) { return BETA * (prompt_loss(nll, 1) - prompt_loss(nll, 0) + 0.4); }

static bool prefer(void *context, const double *nll, float *weights, Error *error) {
    (void)context, (void)error;
    const double slope = BETA / (1 + exp(margin(nll)));
    for (int64_t t = 0; t < R_TOKENS; t++)
        weights[t] = t < R_OFFSETS[1] ? (float)slope : t < R_OFFSETS[2] ? (float)-slope : 0;
    return true;
}

static bool on_loss(void *context, HookSite *site, Tensor nll) {
    (void)site;
    memcpy(((Setup *)context)->nll, nll.data, tensor_bytes(nll));
    return true;
}

static bool on_router_loss(void *context, HookSite *site, Tensor kl, Tensor distance) {
    (void)site;
    Setup *s = context;
    s->kl = s->distance = 0;
    for (int64_t i = 0; i < tensor_count(kl); i++) {
        s->kl += (double)s->kl_weights[i % R_TOKENS] * ((const double *)kl.data)[i];
        s->distance += (double)s->anchor_weights[i % R_TOKENS] * ((const double *)distance.data)[i];
    }
    return true;
}

static RouterLoss router_loss_of(const Setup *s, int64_t from) {
    return (RouterLoss){.kl_weights = s->kl_weights + from,
                        .frozen = s->frozen,
                        .temperature = 0.6f,
                        .anchor_weights = s->anchor_weights + from,
                        .aims = s->aims,
                        .anchored = s->anchored};
}

static PassOptions training_of(const Setup *s, const RouterLoss *router) {
    PassOptions options = {.loss_weights = s->loss_weights, .router_loss = router, .training = &s->training};
    if (s->prefers) options.weigh = prefer;
    if (s->dropout > 0) options.dropout_keys = s->keys, options.dropout_rate = s->dropout;
    return options;
}

static double loss_of(Setup *s) {
    const RouterLoss router = router_loss_of(s, 0);
    Hooks hooks = {.context = s, .loss = on_loss, .router_loss = on_router_loss};
    PassOptions options = {.want_nll = true, .router_loss = &router};
    if (s->dropout > 0) options = training_of(s, &router); /* which alone leaves anything out */
    run_pass(s, 0, R_PROMPTS, options, &hooks);
    double sum = s->kl + s->distance;
    if (s->prefers) return sum + log(1 + exp(-margin(s->nll)));
    for (int i = 0; i < R_TOKENS; i++) sum += (double)s->loss_weights[i] * s->nll[i];
    return sum;
}

static double moved(Setup *s, int64_t i, double by) {
    double *values = s->weights.values.data, before = values[i];
    values[i] += by;
    double loss = loss_of(s);
    values[i] = before;
    return loss;
}

static double train(Setup *s, Recompute mode) {
    const RouterLoss router = router_loss_of(s, 0);
    Error error = {0};
    double norm;
    PassOptions options = training_of(s, &router);
    options.recompute = mode;
    run_pass(s, 0, R_PROMPTS, options, NULL);
    if (!lora_training_gather(&s->training, R_PROMPTS, &norm, &error)) fail_msg("%s", error.text);
    return norm;
}

static void check_differences(RandomModel r, bool prefers, Recompute mode, float dropout) {
    Setup s;
    open_setup(&s, r, cpu_device_named("f64"), DTYPE_F64);
    s.prefers = prefers;
    s.dropout = dropout;
    train(&s, mode);
    const double *grad = s.training.optimizer.grad.data, h = 1e-4;
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < s.weights.n_values; i += i < s.weights.n_updates ? 47 : 11) {
        double want =
            (8 * (moved(&s, i, h) - moved(&s, i, -h)) - moved(&s, i, 2 * h) + moved(&s, i, -2 * h)) /
            (12 * h);
        worst = fmax(worst, fabs(grad[i] - want));
        largest = fmax(largest, fabs(want));
    }
    print_message("largest difference %.1e of %.1e\n", worst, largest);
    /* weights of losses are f32, so a preference's gradient is known to 6e-8 of itself */
    assert_true(largest > 1e-2 && worst < 1e-7 * largest);
    close_setup(&s);
}

static void test_gradients_against_differences(void **state) {
    (void)state;
    for (int prefers = 0; prefers < 2; prefers++)
        for (Recompute mode = RECOMPUTE_ALWAYS; mode <= RECOMPUTE_NEVER; mode++) {
            check_differences(like_mixtral(DTYPE_F64), prefers, mode, 0);
            check_differences(like_olmoe(DTYPE_F64), prefers, mode, 0);
            check_differences(like_qwen3(DTYPE_F64), prefers, mode, 0.25f);
        }
    check_differences(like_mixtral(DTYPE_F64), false, RECOMPUTE_ALWAYS, 0.6f);
}

/* A pass without training leaves nothing out, one with it does; the same things again. */
static void test_dropout_is_of_training_alone(void **state) {
    (void)state;
    Setup s;
    open_setup(&s, like_olmoe(DTYPE_F64), cpu_device_named("f64"), DTYPE_F64);
    const double whole = loss_of(&s);
    s.dropout = 0.5f;
    const double dropped = loss_of(&s);
    assert_true(dropped != whole && dropped == loss_of(&s));
    for (int i = 0; i < R_TOKENS; i++) s.keys[i]++;
    assert_true(dropped != loss_of(&s));
    close_setup(&s);
}

/* What is written is read, beside the updates; faults are named. */
static void test_router_rows_in_a_folder(void **state) {
    (void)state;
    Setup s;
    Error error = {0};
    Adapter read = {0};
    open_setup(&s, like_qwen3(DTYPE_F32), cpu_device(), DTYPE_F32);
    scratch_make_folder("rows");
    const char *folder = scratch_path("rows");
    assert_true(adapter_rows_write(folder, &s.adapter, &s.model.config, &error));
    assert_true(adapter_rows_read(folder, &s.model.config, &read, &error));
    assert_int_equal(read.n_rows, 3);
    for (int i = 0; i < 3; i++) {
        assert_true(read.rows[i].layer == s.adapter.rows[i].layer &&
                    read.rows[i].expert == s.adapter.rows[i].expert);
        assert_memory_equal(read.rows[i].values, s.adapter.rows[i].values, R_HIDDEN * sizeof(float));
    }
    assert_false(adapter_rows_read(folder, &s.model.config, &read, &error));
    assert_contains(error.text, "expected a router row once: got it twice");
    ModelConfig other = s.model.config;
    other.hidden_size++;
    Adapter none = {0};
    Error wide = {0};
    assert_false(adapter_rows_read(folder, &other, &none, &wide));
    assert_contains(wide.text, "layers.0.experts.1.router_row: expected layers.L.experts.E.router_row, 25");
    RouterRow *row;
    Error dense = {0};
    assert_false(adapter_add_row(&read, &s.model.config, 1, 0, &row, &dense));
    assert_contains(dense.text, "got layer 1, expert 0");
    adapter_free(&read);
    adapter_free(&none);
    close_setup(&s);
}

/* Each term has a part in the gradient: without it another one comes out. */
static void test_every_term_counts(void **state) {
    (void)state;
    Setup s;
    open_setup(&s, like_olmoe(DTYPE_F64), cpu_device_named("f64"), DTYPE_F64);
    const double whole = train(&s, RECOMPUTE_ALWAYS);
    memset(s.kl_weights, 0, sizeof s.kl_weights);
    const double without_kl = train(&s, RECOMPUTE_ALWAYS);
    memset(s.anchor_weights, 0, sizeof s.anchor_weights);
    const double without_both = train(&s, RECOMPUTE_ALWAYS);
    assert_true(fabs(whole / without_kl - 1) > 1e-3 && fabs(without_kl / without_both - 1) > 1e-3);
    close_setup(&s);
}

/* As the routers were, bit for bit: no KL, and no gradient of it. */
static void test_no_distance_to_itself(void **state) {
    (void)state;
    Setup s;
    open_setup(&s, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32);
    lora_weights_free(&s.weights);
    Error error = {0};
    for (int64_t i = 0; i < s.adapter.n; i++)
        memset(s.adapter.cells[i].b, 0,
               (size_t)(s.adapter.cells[i].rank *
                        projection_out(&s.model.config, s.adapter.cells[i].projection)) *
                   sizeof(float));
    for (int64_t i = 0; i < s.adapter.n_rows; i++)
        memset(s.adapter.rows[i].values, 0, R_HIDDEN * sizeof(float));
    assert_true(lora_weights_make(&s.adapter, &s.model, &s.weights, &error));
    RouterLoss router = router_loss_of(&s, 0);
    router.anchor_weights = NULL;
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, s.tokens};
    memset(s.loss_weights, 0, sizeof s.loss_weights);
    PassOptions options = {.loss_weights = s.loss_weights, .router_loss = &router, .training = &s.training};
    PassResult result;
    double norm;
    if (!model_pass(&s.model, &batch, &options, NULL, &result, &error)) fail_msg("%s", error.text);
    assert_null(result.router_distance);
    for (int64_t i = 0; i < s.model.config.n_moe_layers * R_TOKENS; i++)
        assert_true(result.router_kl[i] == 0);
    pass_result_free(&result);
    assert_true(lora_training_gather(&s.training, R_PROMPTS, &norm, &error));
    assert_true(norm == 0);
    close_setup(&s);
}

/* Prompts in passes of `each`; the logits of a pass's tokens lie together. */
static void train_in_parts(Setup *s, int64_t each, const float *frozen) {
    const int64_t n_experts = s->model.config.n_experts;
    for (int64_t first = 0; first < R_PROMPTS; first += each) {
        const int64_t end = first + each < R_PROMPTS ? first + each : R_PROMPTS, from = R_OFFSETS[first],
                      n = R_OFFSETS[end] - from;
        for (int64_t l = 0; l < s->model.config.n_moe_layers; l++)
            memcpy(s->frozen + l * n * n_experts, frozen + (l * R_TOKENS + from) * n_experts,
                   (size_t)(n * n_experts) * sizeof *frozen);
        const RouterLoss router = router_loss_of(s, from);
        run_pass(s, first, end,
                 (PassOptions){.loss_weights = s->loss_weights + from,
                               .router_loss = &router,
                               .training = &s->training,
                               .first_example = first},
                 NULL);
    }
}

static void check_same_bits(RandomModel r, DType compute) {
    static float frozen[MOST_LOGITS];
    Setup whole, parts;
    Error error = {0};
    double norm, other;
    open_setup(&whole, r, cpu_device(), compute);
    memcpy(frozen, whole.frozen, sizeof frozen);
    train_in_parts(&whole, R_PROMPTS, frozen);
    assert_true(lora_training_gather(&whole.training, R_PROMPTS, &norm, &error));
    for (int64_t each = 1; each < R_PROMPTS; each++) {
        open_setup(&parts, r, cpu_device(), compute);
        train_in_parts(&parts, each, frozen);
        assert_true(lora_training_gather(&parts.training, R_PROMPTS, &other, &error));
        Tensor a = whole.training.optimizer.grad, b = parts.training.optimizer.grad;
        assert_memory_equal(a.data, b.data, tensor_bytes(a));
        assert_true(norm == other && norm > 0);
        close_setup(&parts);
    }
    close_setup(&whole);
}

static void test_same_bits_however_split(void **state) {
    (void)state;
    check_same_bits(like_mixtral(DTYPE_F32), DTYPE_F32);
    check_same_bits(like_qwen3(DTYPE_BF16), DTYPE_BF16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_against_differences),
        cmocka_unit_test(test_dropout_is_of_training_alone),
        cmocka_unit_test(test_router_rows_in_a_folder),
        cmocka_unit_test(test_every_term_counts),
        cmocka_unit_test(test_no_distance_to_itself),
        cmocka_unit_test(test_same_bits_however_split),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

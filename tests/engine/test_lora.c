/* Low-rank updates in the model: gradients of A and B against finite differences in double, through the
 * recomputing tape; the same bits however a step is split; generation; gate gradients under a frozen
 * adapter; cells of unequal rank; what adapter_add refuses. */
#include "scratch.h"
#include "engine/generate.h"
#include "engine/lora.h"
#include "random_model.h"

typedef struct {
    Model model;
    Adapter adapter;
    LoraWeights weights;
    LoraTraining training;
    int32_t tokens[R_TOKENS];
    float loss_weights[R_TOKENS];
    double norm;
} Setup;

/* Two experts of a layer with different ranks, neighbouring projections, the lowest and the last layer. */
static const AdapterCell CELLS[] = {
    {.layer = 0, .expert = 1, .projection = PROJECTION_GATE, .rank = 3, .scale = 0.5f},
    {.layer = 0, .expert = 3, .projection = PROJECTION_GATE, .rank = 1, .scale = 2},
    {.layer = 0, .expert = 1, .projection = PROJECTION_UP, .rank = 2, .scale = 1},
    {.layer = 2, .expert = 0, .projection = PROJECTION_DOWN, .rank = 2, .scale = 1.5f},
    {.layer = 2, .expert = 4, .projection = PROJECTION_DOWN, .rank = 4, .scale = 0.25f},
    {.layer = 2, .expert = 4, .projection = PROJECTION_UP, .rank = 4, .scale = 0.25f},
};
enum { N_CELLS = sizeof CELLS / sizeof *CELLS };

static void open_setup(Setup *s, RandomModel r, const Device *device, DType compute, int64_t n_examples) {
    *s = (Setup){0};
    Error error = {0};
    uint64_t state = 99;
    random_model_open(&s->model, r, device, compute, 11);
    random_tokens(s->tokens, 7);
    for (int i = 0; i < R_TOKENS; i++) s->loss_weights[i] = 0.02f + 0.001f * (float)i;
    for (int i = N_CELLS - 1; i >= 0; i--) {
        AdapterCell *cell;
        if (!adapter_add(&s->adapter, &s->model.config, CELLS[i], &cell, &error)) fail_msg("%s", error.text);
        int64_t in = projection_in(&s->model.config, cell->projection),
                out = projection_out(&s->model.config, cell->projection);
        for (int64_t k = 0; k < cell->rank * in; k++) cell->a[k] = 0.3f * (float)random_value(&state);
        for (int64_t k = 0; k < cell->rank * out; k++) cell->b[k] = 0.3f * (float)random_value(&state);
    }
    if (!lora_weights_make(&s->adapter, &s->model, &s->weights, &error)) fail_msg("%s", error.text);
    if (n_examples) assert_true(lora_training_make(&s->weights, n_examples, &s->training, &error));
}

static void close_setup(Setup *s) {
    lora_training_free(&s->training);
    lora_weights_free(&s->weights);
    adapter_free(&s->adapter);
    random_model_close(&s->model);
}

/* Prompts [first, end) in one pass; the sum of their weighted losses. */
static double pass(Setup *s, int64_t first, int64_t end, bool train, Recompute mode, const Hooks *hooks) {
    int64_t offsets[R_PROMPTS + 1], from = R_OFFSETS[first];
    for (int64_t p = first; p <= end; p++) offsets[p - first] = R_OFFSETS[p] - from;
    PromptBatch batch = {end - first, offsets, s->tokens + from};
    PassOptions options = {.want_nll = true, .recompute = mode, .first_example = first};
    if (train || hooks) options.loss_weights = s->loss_weights + from;
    if (train) options.training = &s->training;
    PassResult result;
    Error error = {0};
    s->model.adapter = &s->weights;
    if (!model_pass(&s->model, &batch, &options, hooks, &result, &error)) fail_msg("%s", error.text);
    double sum = 0;
    for (int64_t t = 0; t < R_OFFSETS[end] - from; t++)
        sum += (double)s->loss_weights[from + t] * (double)result.nll[t];
    pass_result_free(&result);
    return sum;
}

static void train(Setup *s, int64_t n_parts, Recompute mode) {
    Error error = {0};
    for (int64_t i = 0; i < n_parts; i++)
        pass(s, i * R_PROMPTS / n_parts, (i + 1) * R_PROMPTS / n_parts, true, mode, NULL);
    if (!lora_training_gather(&s->training, R_PROMPTS, &s->norm, &error)) fail_msg("%s", error.text);
}

/* The loss in double: nll comes back as f32, so a hook adds it up. */
typedef struct {
    const float *weights;
    double sum;
} Loss;

static bool on_loss(void *context, HookSite *site, Tensor nll) {
    (void)site;
    Loss *loss = context;
    for (int64_t t = 0; t < tensor_count(nll); t++)
        loss->sum += (double)loss->weights[t] * ((const double *)nll.data)[t];
    return true;
}

static double loss_of(Setup *s) {
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, s->tokens};
    Loss loss = {.weights = s->loss_weights};
    Hooks hooks = {.context = &loss, .loss = on_loss};
    PassOptions options = {.want_nll = true};
    PassResult result;
    Error error = {0};
    s->model.adapter = &s->weights;
    if (!model_pass(&s->model, &batch, &options, &hooks, &result, &error)) fail_msg("%s", error.text);
    pass_result_free(&result);
    return loss.sum;
}

static double moved(Setup *s, int64_t i, double by) {
    double *values = s->weights.values.data, before = values[i];
    values[i] += by;
    double loss = loss_of(s);
    values[i] = before;
    return loss;
}

/* Every 31st value against the stencil (1, -8, 8, -1) / 12h; padding has gradient 0. */
static void check_differences(RandomModel r) {
    Setup s;
    open_setup(&s, r, cpu_device_named("f64"), DTYPE_F64, R_PROMPTS);
    train(&s, 1, RECOMPUTE_ALWAYS);
    const double *grad = s.training.optimizer.grad.data, h = 1e-4;
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < s.weights.n_values; i += 31) {
        double want =
            (8 * (moved(&s, i, h) - moved(&s, i, -h)) - moved(&s, i, 2 * h) + moved(&s, i, -2 * h)) /
            (12 * h);
        worst = fmax(worst, fabs(grad[i] - want));
        largest = fmax(largest, fabs(want));
    }
    print_message("largest difference %.1e of %.1e\n", worst, largest);
    assert_true(largest > 1e-3 && worst < 1e-8 * largest + 1e-10);
    for (int64_t i = s.weights.n_values; i < tensor_count(s.weights.values); i++) assert_true(grad[i] == 0);
    close_setup(&s);
}

static void test_gradients_against_differences(void **state) {
    (void)state;
    check_differences(like_mixtral(DTYPE_F64));
    check_differences(like_olmoe(DTYPE_F64));
    check_differences(like_qwen3(DTYPE_F64));
}

static void check_same_bits(RandomModel r, DType compute) {
    Setup whole;
    open_setup(&whole, r, cpu_device(), compute, R_PROMPTS);
    train(&whole, 1, RECOMPUTE_ALWAYS);
    for (int64_t n_parts = 1; n_parts <= R_PROMPTS; n_parts++)
        for (Recompute mode = RECOMPUTE_ALWAYS; mode <= RECOMPUTE_NEVER; mode++) {
            Setup parts;
            open_setup(&parts, r, cpu_device(), compute, 100); /* more slots than needed */
            train(&parts, n_parts, mode);
            Tensor a = whole.training.optimizer.grad, b = parts.training.optimizer.grad;
            assert_memory_equal(a.data, b.data, tensor_bytes(a));
            assert_true(whole.norm == parts.norm && whole.norm > 0);
            close_setup(&parts);
        }
    close_setup(&whole);
}

static void test_same_bits_however_split(void **state) {
    (void)state;
    check_same_bits(like_mixtral(DTYPE_F32), DTYPE_F32);
    check_same_bits(like_olmoe(DTYPE_BF16), DTYPE_F32);
    check_same_bits(like_qwen3(DTYPE_F32), DTYPE_BF16);
}

static bool count_route_grad(void *context, HookSite *site, const RouteGradView *view) {
    (void)site;
    double *sum = context;
    const float *grad = view->logits_grad.data;
    for (int64_t i = 0; i < tensor_count(view->logits_grad); i++) sum[view->layer] += fabs((double)grad[i]);
    return true;
}

/* A frozen adapter changes gate gradients; training beside them changes nothing. */
static void test_gate_gradients_with_an_adapter(void **state) {
    (void)state;
    double frozen[R_LAYERS] = {0}, trained[R_LAYERS] = {0};
    Setup s;
    open_setup(&s, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, R_PROMPTS);
    Hooks hooks = {.context = frozen, .route_grad = count_route_grad};
    pass(&s, 0, R_PROMPTS, false, RECOMPUTE_ALWAYS, &hooks);
    hooks.context = trained;
    pass(&s, 0, R_PROMPTS, true, RECOMPUTE_ALWAYS, &hooks);
    for (int i = 0; i < R_LAYERS; i++) assert_true(frozen[i] > 0 && frozen[i] == trained[i]);
    close_setup(&s);
}

/* A zero b changes nothing, bit for bit; what an adapter was made from comes back. */
static void test_zero_update_and_round_trip(void **state) {
    (void)state;
    Error error = {0};
    Setup s;
    open_setup(&s, like_olmoe(DTYPE_F32), cpu_device(), DTYPE_F32, 0);
    double with = pass(&s, 0, R_PROMPTS, false, RECOMPUTE_ALWAYS, NULL);
    float before = s.adapter.cells[2].b[1];
    s.adapter.cells[2].b[1] = 5;
    assert_true(lora_weights_read(&s.weights, s.weights.values, &s.adapter, &error));
    assert_true(s.adapter.cells[2].b[1] == before);
    for (int64_t i = 0; i < s.adapter.n; i++)
        memset(s.adapter.cells[i].b, 0,
               (size_t)(s.adapter.cells[i].rank *
                        projection_out(&s.model.config, s.adapter.cells[i].projection)) *
                   sizeof(float));
    lora_weights_free(&s.weights);
    assert_true(lora_weights_make(&s.adapter, &s.model, &s.weights, &error));
    double zero = pass(&s, 0, R_PROMPTS, false, RECOMPUTE_ALWAYS, NULL);
    lora_weights_free(&s.weights);
    Adapter none = {0};
    assert_true(lora_weights_make(&none, &s.model, &s.weights, &error));
    double without = pass(&s, 0, R_PROMPTS, false, RECOMPUTE_ALWAYS, NULL);
    assert_true(zero == without && with != without);
    close_setup(&s);
}

/* Tokens generated one by one are those that a packed pass over all of them chooses, and others than
 * without the adapter. */
static void test_generation_has_the_adapter(void **state) {
    (void)state;
    enum { N_NEW = 8, N_PROMPT = 11 };
    Error error = {0};
    Setup s;
    open_setup(&s, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 0);
    int64_t offsets[2] = {0, N_PROMPT};
    PromptBatch batch = {1, offsets, s.tokens};
    GenerateOptions options = {.max_new_tokens = N_NEW, .rule = {.top_p = 1, .n_valid = R_VOCABULARY}};
    Generation with = {0}, without = {0};
    assert_true(generate(&s.model, &batch, &options, NULL, &without, &error));
    s.model.adapter = &s.weights;
    assert_true(generate(&s.model, &batch, &options, NULL, &with, &error));
    assert_true(memcmp(with.tokens, without.tokens, N_NEW * sizeof *with.tokens) != 0);
    int32_t tokens[N_PROMPT + N_NEW];
    memcpy(tokens, s.tokens, N_PROMPT * sizeof *tokens);
    for (int i = 0; i < N_NEW; i++) tokens[N_PROMPT + i] = (int32_t)with.tokens[i];
    offsets[1] = N_PROMPT + N_NEW;
    batch.tokens = tokens;
    PassOptions pass_options = {.want_logits = true};
    PassResult result;
    assert_true(model_pass(&s.model, &batch, &pass_options, NULL, &result, &error));
    for (int i = 0; i < N_NEW; i++) {
        const float *row = result.logits + (N_PROMPT - 1 + i) * R_VOCABULARY;
        for (int v = 0; v < R_VOCABULARY; v++) assert_true(row[v] <= row[tokens[N_PROMPT + i]]);
    }
    pass_result_free(&result);
    generation_free(&with);
    generation_free(&without);
    close_setup(&s);
}

static void test_bad_cells_are_refused(void **state) {
    (void)state;
    static const struct {
        AdapterCell cell;
        const char *said;
    } cases[] = {
        {{.layer = 3, .rank = 1, .scale = 1}, "layer: expected 0 to 2: got 3"},
        {{.layer = 1, .rank = 1, .scale = 1}, "layer: expected one with experts: got 1, which is dense"},
        {{.layer = 0, .expert = 5, .rank = 1, .scale = 1}, "expert of layer 0: expected 0 to 4: got 5"},
        {{.layer = 0, .rank = 13, .scale = 1}, "rank: expected 1 to 12: got 13"},
        {{.layer = 0, .rank = 0, .scale = 1}, "rank: expected 1 to 12: got 0"},
        {{.layer = 0, .rank = 1, .scale = INFINITY}, "expected a finite number"},
        {{.layer = 2, .expert = 4, .projection = PROJECTION_UP, .rank = 1, .scale = 1},
         "layer 2, expert 4, up: expected a cell once: got it twice"},
    };
    Setup s;
    open_setup(&s, like_qwen3(DTYPE_F32), cpu_device(), DTYPE_F32, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error = {0};
        AdapterCell *cell;
        assert_false(adapter_add(&s.adapter, &s.model.config, cases[i].cell, &cell, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, cases[i].said);
    }
    assert_int_equal(s.adapter.n, N_CELLS);
    close_setup(&s);
}

/* By hand: (b a) element by element. */
static void test_norm_of_an_update(void **state) {
    (void)state;
    Setup s;
    open_setup(&s, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 0);
    for (int64_t i = 0; i < s.adapter.n; i++) {
        const AdapterCell *cell = &s.adapter.cells[i];
        int64_t in = projection_in(&s.model.config, cell->projection),
                out = projection_out(&s.model.config, cell->projection);
        double squares = 0;
        for (int64_t k = 0; k < in * out; k++) {
            double sum = 0;
            for (int64_t r = 0; r < cell->rank; r++)
                sum += (double)cell->b[k / in * cell->rank + r] * (double)cell->a[r * in + k % in];
            squares += sum * sum;
        }
        double want = (double)cell->scale * sqrt(squares);
        assert_true(fabs(adapter_cell_norm(cell, &s.model.config) - want) < 1e-12 * want + 1e-15);
    }
    close_setup(&s);
}

static bool make_all(void *context, Error *error) {
    Setup *s = context;
    LoraWeights weights = {0};
    LoraTraining training = {0};
    Adapter adapter = {0};
    AdapterCell *cell;
    bool ok = adapter_add(&adapter, &s->model.config, CELLS[0], &cell, error) &&
              adapter_add(&adapter, &s->model.config, CELLS[3], &cell, error) &&
              lora_weights_make(&adapter, &s->model, &weights, error) &&
              lora_training_make(&weights, 4, &training, error) &&
              lora_weights_read(&weights, weights.values, &adapter, error);
    lora_training_free(&training);
    lora_weights_free(&weights);
    adapter_free(&adapter);
    return ok;
}

static void test_allocations_fail_cleanly(void **state) {
    (void)state;
    Setup s;
    open_setup(&s, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 0);
    assert_true(fail_each_allocation(make_all, &s) > 10);
    close_setup(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_against_differences),
        cmocka_unit_test(test_same_bits_however_split),
        cmocka_unit_test(test_gate_gradients_with_an_adapter),
        cmocka_unit_test(test_zero_update_and_round_trip),
        cmocka_unit_test(test_generation_has_the_adapter),
        cmocka_unit_test(test_bad_cells_are_refused),
        cmocka_unit_test(test_norm_of_an_update),
        cmocka_unit_test(test_allocations_fail_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

/* The decoder as a whole: gradients against finite differences in double, identities of routers, the same
 * bits however it is run, memory as planned, and what it says about bad input. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <omp.h>
#include "kernels/cost.h"
#include "random_model.h"

enum { MOST_EXPERTS = 8, MOST_CHOSEN = 3 };

/* What a pass over R_TOKENS tokens shows; f32 or f64 by the table, act rows as bytes. */
typedef struct {
    Model *model;
    double nll[R_TOKENS];
    double logits_grad[R_LAYERS][R_TOKENS][MOST_EXPERTS];
    double rows_grad[R_LAYERS][R_PROMPTS][MOST_EXPERTS][R_HIDDEN];
    double embedding_grad[R_TOKENS][R_HIDDEN];
    double residual[R_LAYERS][R_TOKENS][R_HIDDEN];
    int32_t ids[R_LAYERS][R_TOKENS][MOST_CHOSEN];
    double route_logits[R_LAYERS][R_TOKENS][MOST_EXPERTS];
    int64_t row0, n_rows, prompt0, n_prompts; /* of the batch that runs */
    int n_route, n_route_grad;
} Seen;

static double value_at(Tensor t, int64_t i) {
    if (t.dtype == DTYPE_F64) return ((const double *)t.data)[i];
    if (t.dtype == DTYPE_F32) return (double)((const float *)t.data)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)t.data)[i] << 16;
    float f;
    memcpy(&f, &bits, 4);
    return (double)f;
}

static void copy_rows(double *to, int64_t stride, Tensor from) {
    int64_t columns = tensor_columns(from);
    for (int64_t i = 0; i < tensor_count(from); i++)
        to[i / columns * stride + i % columns] = value_at(from, i);
}

static bool on_route(void *context, HookSite *site, const RouteView *view) {
    (void)site;
    Seen *s = context;
    copy_rows(s->route_logits[view->layer][s->row0], MOST_EXPERTS, view->logits);
    int64_t k = tensor_columns(view->ids);
    for (int64_t i = 0; i < tensor_count(view->ids); i++)
        s->ids[view->layer][s->row0 + i / k][i % k] = ((const int32_t *)view->ids.data)[i];
    s->n_route++;
    return true;
}

static bool on_residual(void *context, HookSite *site, int64_t layer, Tensor x) {
    (void)site;
    Seen *s = context;
    copy_rows(s->residual[layer][s->row0], R_HIDDEN, x);
    return true;
}

static bool on_route_grad(void *context, HookSite *site, const RouteGradView *view) {
    Seen *s = context;
    int64_t e = tensor_columns(view->logits_grad);
    copy_rows(s->logits_grad[view->layer][s->row0], MOST_EXPERTS, view->logits_grad);
    Tensor rows = tensor_cube(NULL, view->logits_grad.dtype, s->n_prompts, e, R_HIDDEN);
    rows.data = mem_zeroed((size_t)tensor_count(rows), dtype_bytes(rows.dtype));
    site->device->ops->gate_grad(site->queue, rows, view->logits_grad, view->input, view->offsets);
    for (int64_t p = 0; p < s->n_prompts; p++)
        copy_rows(s->rows_grad[view->layer][s->prompt0 + p][0], R_HIDDEN, tensor_entry(rows, p));
    mem_free(rows.data);
    s->n_route_grad++;
    return true;
}

static bool on_embedding_grad(void *context, HookSite *site, Tensor grad) {
    (void)site;
    Seen *s = context;
    copy_rows(s->embedding_grad[s->row0], R_HIDDEN, grad);
    return true;
}

static bool on_loss(void *context, HookSite *site, Tensor nll) {
    (void)site;
    Seen *s = context;
    copy_rows(s->nll + s->row0, 1, tensor_as_matrix(nll, tensor_count(nll), 1));
    return true;
}

static float loss_weights[R_TOKENS];

/* Prompts [first, last) in one pass. */
static void see_part(Seen *s, Model *model, const int32_t *tokens, int64_t first, int64_t last,
                     Recompute mode) {
    int64_t offsets[R_PROMPTS + 1];
    s->prompt0 = first, s->n_prompts = last - first;
    s->row0 = R_OFFSETS[first], s->n_rows = R_OFFSETS[last] - s->row0;
    for (int64_t p = first; p <= last; p++) offsets[p - first] = R_OFFSETS[p] - s->row0;
    PromptBatch batch = {last - first, offsets, tokens + s->row0};
    PassOptions options = {.loss_weights = loss_weights + s->row0, .recompute = mode};
    Hooks hooks = {.context = s,
                   .route = on_route,
                   .residual = on_residual,
                   .route_grad = on_route_grad,
                   .embedding_grad = on_embedding_grad,
                   .loss = on_loss};
    PassResult result;
    Error error = {0};
    bool ok = model_pass(model, &batch, &options, &hooks, &result, &error);
    if (!ok) print_error("%s\n", error.text);
    assert_true(ok);
    assert_int_equal(result.recomputed, mode == RECOMPUTE_ALWAYS);
    pass_result_free(&result);
}

static Seen *see(Model *model, const int32_t *tokens, int64_t n_parts, Recompute mode) {
    Seen *s = mem_zeroed(1, sizeof *s);
    for (int i = 0; i < R_TOKENS; i++) loss_weights[i] = 0.25f + 0.01f * (float)i;
    for (int64_t i = 0; i < n_parts; i++)
        see_part(s, model, tokens, i * R_PROMPTS / n_parts, (i + 1) * R_PROMPTS / n_parts, mode);
    assert_int_equal(s->n_route, n_parts * model->config.n_moe_layers);
    assert_int_equal(s->n_route_grad, n_parts * model->config.n_moe_layers);
    return s;
}

/* Everything but the counters. */
static void assert_same_bits(const Seen *a, const Seen *b) {
    assert_memory_equal(a->nll, b->nll, offsetof(Seen, row0) - offsetof(Seen, nll));
}

/* ---- gradients ---- */
static double weighted_loss(Model *model, const int32_t *tokens) {
    Seen s = {0};
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    PassOptions options = {.want_nll = true};
    Hooks hooks = {.context = &s, .loss = on_loss};
    PassResult result;
    Error error = {0};
    assert_true(model_pass(model, &batch, &options, &hooks, &result, &error));
    double sum = 0;
    for (int i = 0; i < R_TOKENS; i++) sum += (double)loss_weights[i] * s.nll[i];
    pass_result_free(&result);
    return sum;
}

/* dL/dx by the stencil (1, -8, 8, -1) / 12h. */
static double difference(Model *model, const int32_t *tokens, double *x) {
    const double h = 2e-4, start = *x;
    double loss[4];
    for (int i = 0; i < 4; i++) {
        *x = start + h * (const double[]){-2, -1, 1, 2}[i];
        loss[i] = weighted_loss(model, tokens);
    }
    *x = start;
    return (loss[0] - 8 * loss[1] + 8 * loss[2] - loss[3]) / (12 * h);
}

static void check_against_differences(RandomModel r) {
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 7);
    random_model_open(&model, r, cpu_device_named("f64"), DTYPE_F64, 11);
    Seen *s = see(&model, tokens, 1, RECOMPUTE_ALWAYS);
    double worst = 0, largest = 0;
    for (int64_t layer = 0; layer < R_LAYERS; layer++) {
        if (layer == r.dense_layer) continue;
        for (int64_t i = 0; i < r.n_experts * R_HIDDEN; i += 11) {
            double *w = (double *)model.weights.layers[layer].router.data + i, exact = 0;
            for (int p = 0; p < R_PROMPTS; p++) exact += s->rows_grad[layer][p][i / R_HIDDEN][i % R_HIDDEN];
            double error = fabs(exact - difference(&model, tokens, w));
            worst = error > worst ? error : worst;
            largest = fabs(exact) > largest ? fabs(exact) : largest;
        }
    }
    assert_true(largest > 1e-2);
    if (worst > 1e-8 * largest) print_error("gate rows: error %g, largest %g\n", worst, largest);
    assert_true(worst <= 1e-8 * largest);
    mem_free(s);
    random_model_close(&model);
}

static void test_gate_rows_against_differences(void **state) {
    (void)state;
    check_against_differences(like_mixtral(DTYPE_F64));
    check_against_differences(like_olmoe(DTYPE_F64));
    check_against_differences(like_qwen3(DTYPE_F64));
}

/* Rows of the embedding table, which reach the loss through every layer. The head is its own tensor here. */
static void test_embedding_against_differences(void **state) {
    (void)state;
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 7);
    random_model_open(&model, like_olmoe(DTYPE_F64), cpu_device_named("f64"), DTYPE_F64, 12);
    Seen *s = see(&model, tokens, 1, RECOMPUTE_NEVER);
    double worst = 0, largest = 0;
    for (int t = 0; t < R_TOKENS; t += 3) {
        int column = t % R_HIDDEN;
        double exact = 0;
        for (int u = 0; u < R_TOKENS; u++)
            if (tokens[u] == tokens[t]) exact += s->embedding_grad[u][column];
        double *x = (double *)model.weights.embedding.data + tokens[t] * R_HIDDEN + column;
        double error = fabs(exact - difference(&model, tokens, x));
        worst = error > worst ? error : worst;
        largest = fabs(exact) > largest ? fabs(exact) : largest;
    }
    if (worst > 1e-8 * largest) print_error("embedding: error %g, largest %g\n", worst, largest);
    assert_true(largest > 1e-2 && worst <= 1e-8 * largest);
    mem_free(s);
    random_model_close(&model);
}

static bool is_chosen(const Seen *s, int64_t layer, int64_t t, int64_t e, int64_t n_chosen) {
    for (int64_t k = 0; k < n_chosen; k++)
        if (s->ids[layer][t][k] == e) return true;
    return false;
}

/* Two weights that sum to 1: the gradients of the two logits are opposite, bit for bit, the others exactly
 * 0. */
static void test_renormalised_pair_is_opposite(void **state) {
    (void)state;
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 9);
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 3);
    Seen *s = see(&model, tokens, 1, RECOMPUTE_ALWAYS);
    int n_nonzero = 0;
    for (int64_t layer = 0; layer < R_LAYERS; layer++)
        for (int64_t t = 0; t < R_TOKENS; t++) {
            const double *g = s->logits_grad[layer][t];
            assert_true(g[s->ids[layer][t][0]] == -g[s->ids[layer][t][1]]);
            n_nonzero += g[s->ids[layer][t][0]] != 0;
            for (int64_t e = 0; e < 6; e++) assert_true(is_chosen(s, layer, t, e, 2) || g[e] == 0);
        }
    assert_true(n_nonzero > R_LAYERS * (R_TOKENS - 2 * R_PROMPTS));
    mem_free(s);
    random_model_close(&model);
}

/* Any softmax router: the gate rows' gradients sum to 0 over the experts. Not renormalised, no row is 0. */
static void check_rows_sum_to_zero(RandomModel r) {
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 9);
    random_model_open(&model, r, cpu_device(), DTYPE_F32, 4);
    Seen *s = see(&model, tokens, 1, RECOMPUTE_ALWAYS);
    for (int64_t layer = 0; layer < R_LAYERS; layer++)
        for (int64_t i = 0; i < R_PROMPTS * R_HIDDEN; i++) {
            double sum = 0, size = 0;
            for (int64_t e = 0; e < r.n_experts; e++) {
                double g = s->rows_grad[layer][i / R_HIDDEN][e][i % R_HIDDEN];
                sum += g, size += fabs(g);
                if (!r.renormalize && i / R_HIDDEN != 1) assert_true(g != 0);
            }
            assert_true(fabs(sum) <= 2e-6 * size);
        }
    mem_free(s);
    random_model_close(&model);
}

static void test_rows_sum_to_zero(void **state) {
    (void)state;
    check_rows_sum_to_zero(like_mixtral(DTYPE_F32));
    check_rows_sum_to_zero(like_olmoe(DTYPE_F32));
}

/* ---- the same bits ---- */
static void check_same_bits_from(const Device *base, RandomModel r, DType compute) {
    const bool own_bits = compute == DTYPE_BF16 && !strcmp(base->name, "amx"); /* kernels/cpu/gemm_amx.h */
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 21);
    random_model_open(&model, r, base, compute, 5);
    Seen *packed = see(&model, tokens, 1, RECOMPUTE_ALWAYS);
    const struct {
        int64_t n_parts;
        Recompute mode;
        int threads;
        const char *isa;
    } ways[] = {{1, RECOMPUTE_NEVER, 2, NULL},   {R_PROMPTS, RECOMPUTE_ALWAYS, 2, NULL},
                {2, RECOMPUTE_NEVER, 2, NULL},   {1, RECOMPUTE_ALWAYS, 1, NULL},
                {1, RECOMPUTE_ALWAYS, 3, NULL},  {1, RECOMPUTE_ALWAYS, 2, "generic"},
                {1, RECOMPUTE_NEVER, 1, "avx2"}, {2, RECOMPUTE_ALWAYS, 2, "avx512"}};
    int threads = omp_get_max_threads();
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        if (ways[i].isa && own_bits) continue;
        model.device = ways[i].isa ? cpu_device_named(ways[i].isa) : base;
        if (!model.device) {
            print_message("this processor has no %s\n", ways[i].isa);
            continue;
        }
        omp_set_num_threads(ways[i].threads);
        Seen *other = see(&model, tokens, ways[i].n_parts, ways[i].mode);
        assert_same_bits(packed, other);
        mem_free(other);
    }
    omp_set_num_threads(threads);
    tokens[0]++; /* the comparison bites */
    Seen *other = see(&model, tokens, 1, RECOMPUTE_ALWAYS);
    assert_memory_not_equal(packed->nll, other->nll, sizeof packed->nll);
    mem_free(other);
    mem_free(packed);
    random_model_close(&model);
}

static void check_same_bits(RandomModel r, DType compute) {
    check_same_bits_from(cpu_device(), r, compute);
    const Device *common = cpu_device_named("avx512bf16");
    if (common && !strcmp(cpu_device()->name, "amx") && compute == DTYPE_BF16)
        check_same_bits_from(common, r, compute);
}

static void test_same_bits(void **state) {
    (void)state;
    check_same_bits(like_mixtral(DTYPE_F32), DTYPE_F32);
    check_same_bits(like_olmoe(DTYPE_BF16), DTYPE_F32);
    check_same_bits(like_qwen3(DTYPE_F32), DTYPE_F32);
    check_same_bits(like_mixtral(DTYPE_BF16), DTYPE_BF16);
    check_same_bits(like_qwen3(DTYPE_BF16), DTYPE_BF16);
}

/* bf16 activations: near the f32 ones, not the same. */
static void test_bf16_is_near(void **state) {
    (void)state;
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 21);
    random_model_open(&model, like_mixtral(DTYPE_BF16), cpu_device(), DTYPE_F32, 5);
    Seen *exact = see(&model, tokens, 1, RECOMPUTE_ALWAYS);
    model.compute = DTYPE_BF16;
    Seen *rounded = see(&model, tokens, 1, RECOMPUTE_ALWAYS);
    double sum = 0, apart = 0;
    for (int t = 0; t < R_TOKENS; t++) sum += exact->nll[t], apart += fabs(exact->nll[t] - rounded->nll[t]);
    assert_true(apart > 0 && apart < 0.03 * sum);
    mem_free(exact);
    mem_free(rounded);
    random_model_close(&model);
}

/* ---- memory ---- */
static size_t bytes_of(Model *model, const PassOptions *options, size_t *saved, bool *recomputed) {
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 1);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    PassResult result;
    Error error = {0};
    assert_true(model_pass(model, &batch, options, NULL, &result, &error));
    size_t n_bytes = result.activation_bytes;
    *saved = result.saved_bytes;
    *recomputed = result.recomputed;
    assert_true(result.cost.gemm_flops > 0 && result.cost.flops > result.cost.gemm_flops);
    pass_result_free(&result);
    return n_bytes;
}

/* model_pass itself checks that it used exactly what was planned; here the choice between the two modes. */
static void test_recompute_fits_the_limit(void **state) {
    (void)state;
    Model model;
    size_t saved, kept_saved;
    bool recomputed;
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 5);
    PassOptions options = {.loss_weights = loss_weights, .recompute = RECOMPUTE_ALWAYS};
    size_t least = bytes_of(&model, &options, &saved, &recomputed);
    options.recompute = RECOMPUTE_NEVER;
    size_t most = bytes_of(&model, &options, &kept_saved, &recomputed);
    assert_true(least < most && saved < kept_saved);
    /* three hidden rows of a layer, attention's being H*C wide, a log-sum-exp per head, the embedding */
    size_t row = (R_LAYERS * (2 * R_HIDDEN + R_HEADS * R_HEAD + R_HEADS) + R_HIDDEN) * sizeof(float);
    assert_in_range(saved, R_TOKENS * row, R_TOKENS * row + 256 * (4 * R_LAYERS + 1));
    options.recompute = RECOMPUTE_AUTO;
    options.memory_limit_bytes = most;
    assert_int_equal(bytes_of(&model, &options, &saved, &recomputed), most);
    assert_false(recomputed);
    options.memory_limit_bytes = most - 1;
    assert_int_equal(bytes_of(&model, &options, &saved, &recomputed), least);
    assert_true(recomputed);
    options.memory_limit_bytes = 0;
    assert_int_equal(bytes_of(&model, &options, &saved, &recomputed), most);
    random_model_close(&model);
}

/* The cost device needs no tokens and gives the same figures. */
static void test_cost_device_plans(void **state) {
    (void)state;
    Model model;
    size_t saved;
    bool recomputed;
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 5);
    PassOptions options = {.loss_weights = loss_weights, .recompute = RECOMPUTE_ALWAYS};
    size_t n_bytes = bytes_of(&model, &options, &saved, &recomputed);
    model.device = &cost_device;
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, NULL};
    PassResult plan;
    Error error = {0};
    assert_true(model_pass(&model, &batch, &options, NULL, &plan, &error));
    assert_int_equal(plan.activation_bytes, n_bytes);
    assert_int_equal(plan.saved_bytes, saved);
    assert_null(plan.nll);
    pass_result_free(&plan);
    model.device = cpu_device();
    random_model_close(&model);
}

/* A plan from config.json alone against the pass on the checkpoint itself. */
static void test_plan_of_a_checkpoint(void **state) {
    (void)state;
    Model model;
    Error error = {0};
    assert_true(model_open(SOURCE_DIR "/tests/golden/mixtral", cpu_device(), DTYPE_F32, &model, &error));
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 1);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    PassOptions options = {.loss_weights = loss_weights, .recompute = RECOMPUTE_ALWAYS};
    PassResult plan, result;
    assert_true(model_plan(&model.config, DTYPE_F32, DTYPE_F32, &batch, &options, &plan, &error));
    assert_true(model_pass(&model, &batch, &options, NULL, &result, &error));
    assert_int_equal(plan.activation_bytes, result.activation_bytes);
    assert_int_equal(plan.saved_bytes, result.saved_bytes);
    assert_int_equal(plan.weights_bytes, model.weights.n_bytes);
    assert_true(plan.cost.flops == result.cost.flops && plan.cost.flops > 0);
    pass_result_free(&plan);
    pass_result_free(&result);
    model_close(&model);
}

static void *no_memory(size_t n_bytes) {
    (void)n_bytes;
    return NULL;
}

static void test_device_without_memory(void **state) {
    (void)state;
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 1);
    Device poor = *cpu_device();
    poor.alloc = no_memory;
    random_model_open(&model, like_mixtral(DTYPE_F32), &poor, DTYPE_F32, 5);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    PassOptions options = {.want_nll = true};
    PassResult result;
    Error error = {0};
    assert_false(model_pass(&model, &batch, &options, NULL, &result, &error));
    assert_int_equal(error.code, ERROR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "activations"));
    assert_non_null(strstr(error.text, "bytes"));
    random_model_close(&model);
}

/* ---- switches ---- */
static void mask(EditTable *table, const Model *model, int set, int layer, int expert) {
    Error error = {0};
    CellEdit edit = {layer, expert, EDIT_MASK, 0};
    assert_true(edit_table_put(table, &model->config, set, edit, &error));
}

static void test_masked_experts_are_not_chosen(void **state) {
    (void)state;
    Model model;
    EditTable table;
    Error error = {0};
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 1);
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 5);
    assert_true(edit_table_make(&model.config, 1, &table, &error));
    for (int e = 0; e < 3; e++) mask(&table, &model, 0, 1, e);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    PassOptions options = {.want_nll = true, .edits = &table};
    Seen *s = mem_zeroed(1, sizeof *s);
    Hooks hooks = {.context = s, .route = on_route};
    PassResult result;
    assert_true(model_pass(&model, &batch, &options, &hooks, &result, &error));
    int n_low[R_LAYERS] = {0};
    for (int layer = 0; layer < R_LAYERS; layer++)
        for (int t = 0; t < R_TOKENS; t++)
            for (int k = 0; k < 2; k++) n_low[layer] += s->ids[layer][t][k] < 3;
    assert_true(n_low[0] > 0 && n_low[1] == 0 && n_low[2] > 0);
    pass_result_free(&result);
    for (int e = 3; e < 5; e++) mask(&table, &model, 0, 1, e);
    assert_false(model_pass(&model, &batch, &options, NULL, &result, &error));
    assert_string_equal(error.text,
                        "layer 1: expected at least 2 experts left, as many as a token takes: got "
                        "1 of 6, 5 masked");
    assert_int_equal(error.code, ERROR_BAD_INPUT);
    edit_table_free(&table);
    mem_free(s);
    random_model_close(&model);
}

static bool refuses(void *context, HookSite *site, const RouteGradView *view) {
    (void)context;
    return view->layer != 1 || error_set(site->error, ERROR_FAILED, "enough");
}

static void test_hook_ends_the_pass(void **state) {
    (void)state;
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 1);
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 5);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    PassOptions options = {.loss_weights = loss_weights, .recompute = RECOMPUTE_ALWAYS};
    Hooks hooks = {.route_grad = refuses};
    PassResult result;
    Error error = {0};
    assert_false(model_pass(&model, &batch, &options, &hooks, &result, &error));
    assert_string_equal(error.text, "enough");
    random_model_close(&model);
}

/* ---- bad input ---- */
static void assert_refused(Model *model, const PromptBatch *batch, ErrorCode code, const char *text) {
    PassOptions options = {.want_nll = true};
    PassResult result;
    Error error = {0};
    assert_false(model_pass(model, batch, &options, NULL, &result, &error));
    assert_int_equal(error.code, code);
    assert_string_equal(error.text, text);
    assert_null(result.nll);
}

static void test_bad_batches(void **state) {
    (void)state;
    Model model;
    int32_t tokens[R_POSITIONS + 8] = {0};
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 5);
    PromptBatch empty = {2, (const int64_t[]){0, 3, 3}, tokens};
    assert_refused(&model, &empty, ERROR_BAD_INPUT, "prompt 1: expected at least one token: got none");
    PromptBatch none = {0, (const int64_t[]){0}, tokens};
    assert_refused(&model, &none, ERROR_BAD_INPUT, "a batch: expected at least one prompt: got none");
    PromptBatch overlong = {1, (const int64_t[]){0, R_POSITIONS + 1}, tokens};
    assert_refused(&model, &overlong, ERROR_BAD_INPUT,
                   "prompt 0: over-long: expected at most 40 tokens, the model's positions: got 41, and 0 to "
                   "generate");
    tokens[4] = R_VOCABULARY;
    PromptBatch unknown = {2, (const int64_t[]){0, 3, 6}, tokens};
    assert_refused(&model, &unknown, ERROR_BAD_INPUT,
                   "token 1 of prompt 1: expected an id from 0 to 49: got 50");
    random_model_close(&model);
}

/* A weight that is no number is refused when a checkpoint is read; here it stands for any overflow on the
 * way. */
static void test_nonfinite_is_named(void **state) {
    (void)state;
    Model model;
    int32_t tokens[6] = {1, 2, 3, 4, 5, 6};
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 5);
    PromptBatch batch = {2, (const int64_t[]){0, 4, 6}, tokens};
    float *router = model.weights.layers[1].router.data, kept = router[3 * R_HIDDEN + 2];
    router[3 * R_HIDDEN + 2] = INFINITY;
    assert_refused(
        &model, &batch, ERROR_FAILED,
        "layer 1, token 0 of prompt 0: router logit of expert 3: expected a finite number: got nan or "
        "infinity");
    router[3 * R_HIDDEN + 2] = kept;
    float *embedding = model.weights.embedding.data;
    embedding[6 * R_HIDDEN] = NAN; /* prompt 1's second token */
    assert_refused(
        &model, &batch, ERROR_FAILED,
        "layer 0, token 1 of prompt 1: router logit of expert 0: expected a finite number: got nan or "
        "infinity");
    embedding[6 * R_HIDDEN] = 0;
    float *head = model.weights.head.data;
    head[7 * R_HIDDEN] = NAN;
    assert_refused(&model, &batch, ERROR_FAILED,
                   "head, token 0 of prompt 0: negative log-likelihood: expected a finite number: got nan or "
                   "infinity");
    random_model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gate_rows_against_differences),
        cmocka_unit_test(test_embedding_against_differences),
        cmocka_unit_test(test_renormalised_pair_is_opposite),
        cmocka_unit_test(test_rows_sum_to_zero),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_bf16_is_near),
        cmocka_unit_test(test_recompute_fits_the_limit),
        cmocka_unit_test(test_cost_device_plans),
        cmocka_unit_test(test_plan_of_a_checkpoint),
        cmocka_unit_test(test_device_without_memory),
        cmocka_unit_test(test_masked_experts_are_not_chosen),
        cmocka_unit_test(test_hook_ends_the_pass),
        cmocka_unit_test(test_bad_batches),
        cmocka_unit_test(test_nonfinite_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

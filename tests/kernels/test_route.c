/* The router beyond what test_ops.c sees: exhaustive small top-k with ties, both orders, renormalised or
 * not, experts switched off, too few left, NaN, the analytic gradients, and the plan. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "op_run.h"

enum { MOST_EXPERTS = 64, MOST_TOKENS = 1024 };

static const Device *device;
static Queue *queue;

static int setup(void **state) {
    (void)state;
    device = cpu_device();
    queue = device->queue_new();
    return queue ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    device->queue_free(queue);
    return 0;
}

typedef struct {
    int tokens, experts, choices;
    float logits[MOST_TOKENS * 8], probs[MOST_TOKENS * 8], weights[MOST_TOKENS * 8], values[MOST_EXPERTS];
    int32_t ids[MOST_TOKENS * 8], modes[MOST_EXPERTS], rows[MOST_TOKENS];
} Routing;

static Routing r;

static RouteEdits edits(bool edited) {
    if (!edited) return (RouteEdits){0};
    return (RouteEdits){tensor_matrix(r.modes, DTYPE_I32, 1, r.experts),
                        tensor_matrix(r.values, DTYPE_F32, 1, r.experts),
                        tensor_vector(r.rows, DTYPE_I32, r.tokens)};
}

static void route(RouterRule rule, bool edited) {
    device->ops->route(queue, tensor_matrix(r.probs, DTYPE_F32, r.tokens, r.experts),
                       tensor_matrix(r.ids, DTYPE_I32, r.tokens, r.choices),
                       tensor_matrix(r.weights, DTYPE_F32, r.tokens, r.choices),
                       tensor_matrix(r.logits, DTYPE_F32, r.tokens, r.experts), edits(edited), rule);
}

static void clear_edits(void) {
    memset(r.modes, 0, sizeof r.modes);
    memset(r.values, 0, sizeof r.values);
    memset(r.rows, 0, sizeof r.rows);
}

/* The logits that the router shall see, in double: the definition of the edits, from the raw row. */
static void edited_row(int t, bool edited, double *x) {
    const float *z = r.logits + t * r.experts;
    float largest = z[0], least = z[0];
    for (int e = 0; e < r.experts; e++) largest = fmaxf(largest, z[e]), least = fminf(least, z[e]);
    for (int e = 0; e < r.experts; e++) {
        x[e] = (double)z[e];
        if (!edited || r.rows[t] < 0) continue;
        switch ((EditMode)r.modes[e]) {
        case EDIT_MASK: x[e] = -(double)INFINITY; break;
        case EDIT_BIAS: x[e] = (double)(z[e] + r.values[e]); break;
        case EDIT_PROMOTE: x[e] = (double)(largest + r.values[e]); break;
        case EDIT_DEMOTE: x[e] = (double)(least - r.values[e]); break;
        default: break;
        }
    }
}

/* Weights after the modes that set some to zero. */
static void edited_weights(int t, bool edited, const int *ids, double *w) {
    double all = 0, left = 0;
    bool makes_up = false;
    for (int k = 0; edited && r.rows[t] >= 0 && k < r.choices; k++) {
        int32_t mode = r.modes[ids[k]];
        if (mode == EDIT_ZERO) w[k] = 0;
        all += w[k];
        if (mode == EDIT_ZERO_RENORMALIZE) w[k] = 0, makes_up = true;
        left += w[k];
    }
    for (int k = 0; makes_up && left > 0 && k < r.choices; k++) w[k] *= all / left;
}

/* The definition, in double and by repeated search. */
static void check_token(int t, RouterRule rule, bool edited) {
    double x[MOST_EXPERTS], w[MOST_EXPERTS], sum = 0, kept = 0, chosen_sum = 0;
    bool taken[MOST_EXPERTS] = {false}, forced = false;
    int ids[MOST_EXPERTS];
    edited_row(t, edited, x);
    for (int e = 0; e < r.experts; e++) {
        sum += exp(x[e]);
        if (!edited || r.rows[t] < 0 || r.modes[e] != EDIT_FORCE) continue;
        ids[(int)r.values[e]] = e;
        forced = true;
    }
    for (int k = 0; k < r.choices; k++) {
        int best = forced ? ids[k] : -1;
        for (int e = 0; !forced && e < r.experts; e++)
            if (!taken[e] && isfinite(x[e]) && (best < 0 || x[e] > x[best])) best = e;
        taken[best] = true;
        ids[k] = best;
        assert_int_equal(r.ids[t * r.choices + k], best);
        kept += exp(x[best]) / sum;
        chosen_sum += exp(x[best]);
    }
    for (int k = 0; k < r.choices; k++) {
        double e = exp(x[ids[k]]);
        w[k] = e / sum;
        if (rule.order == ROUTER_TOPK_SOFTMAX)
            w[k] = e / chosen_sum;
        else if (rule.renormalize)
            w[k] /= kept;
        w[k] *= (double)rule.scale;
    }
    edited_weights(t, edited, ids, w);
    for (int k = 0; k < r.choices; k++) assert_true(fabs((double)r.weights[t * r.choices + k] - w[k]) < 1e-6);
    for (int e = 0; e < r.experts; e++)
        assert_true(fabs((double)r.probs[t * r.experts + e] - exp(x[e]) / sum) < 1e-6);
}

static const RouterRule RULES[] = {{ROUTER_SOFTMAX_TOPK, false, 1},
                                   {ROUTER_SOFTMAX_TOPK, true, 1},
                                   {ROUTER_TOPK_SOFTMAX, false, 1},
                                   {ROUTER_SOFTMAX_TOPK, true, 2.5f}};

/* Every row of 5 experts with logits out of {-1, 0, 2}: all ties there are. Every K, every set of masked
 * experts. */
static void test_exhaustive_top_k(void **state) {
    (void)state;
    r.tokens = 243, r.experts = 5;
    clear_edits();
    static const float values[3] = {-1, 0, 2};
    for (int t = 0; t < r.tokens; t++)
        for (int e = 0, n = t; e < 5; e++, n /= 3) r.logits[t * 5 + e] = values[n % 3];
    for (size_t rule = 0; rule < sizeof RULES / sizeof *RULES; rule++)
        for (int masked = 0; masked < 32; masked++) {
            int left = 0;
            for (int e = 0; e < 5; e++) {
                r.modes[e] = masked >> e & 1 ? EDIT_MASK : EDIT_NONE;
                left += !(masked >> e & 1);
            }
            for (r.choices = 1; r.choices <= left; r.choices++) {
                route(RULES[rule], masked > 0);
                assert_true(device->sync(queue));
                for (int t = 0; t < r.tokens; t++) check_token(t, RULES[rule], masked > 0);
            }
        }
}

static void test_a_bias_moves_the_choice(void **state) {
    (void)state;
    r.tokens = 1, r.experts = 4, r.choices = 2;
    const float logits[4] = {0.1f, 0.2f, 0.3f, 0.4f}, values[4] = {5, 0, 0, -5};
    clear_edits();
    memcpy(r.logits, logits, sizeof logits);
    memcpy(r.values, values, sizeof values);
    for (int e = 0; e < 4; e++) r.modes[e] = EDIT_BIAS;
    route(RULES[1], true);
    check_token(0, RULES[1], true);
    assert_int_equal(r.ids[0], 0);
    assert_int_equal(r.ids[1], 2);
}

/* Every mode on every expert of random rows, each rule, beside tokens that have none. */
static void test_every_mode(void **state) {
    (void)state;
    r.tokens = 60, r.experts = 7, r.choices = 3;
    for (int i = 0; i < r.tokens * r.experts; i++)
        r.logits[i] = (float)(6 * random_uniform(4, RANDOM_TEST, i, 0) - 3);
    for (size_t rule = 0; rule < sizeof RULES / sizeof *RULES; rule++)
        for (int mode = EDIT_MASK; mode <= EDIT_ZERO_RENORMALIZE; mode++)
            for (int first = 0; first < r.experts; first++) {
                clear_edits();
                for (int t = 0; t < r.tokens; t++) r.rows[t] = t % 4 ? 0 : -1;
                for (int i = 0; i < (mode == EDIT_FORCE ? 3 : 2); i++) {
                    int e = (first + 3 * i) % r.experts;
                    r.modes[e] = mode;
                    r.values[e] = mode == EDIT_FORCE ? (float)(2 - i) : 0.01f + 0.7f * (float)i;
                }
                route(RULES[rule], true);
                assert_true(device->sync(queue));
                for (int t = 0; t < r.tokens; t++) check_token(t, RULES[rule], true);
            }
}

/* All of a token's experts zeroed: its weights stay 0, whoever would have made up for them. */
static void test_all_zero_stays_zero(void **state) {
    (void)state;
    r.tokens = 4, r.experts = 5, r.choices = 2;
    clear_edits();
    for (int i = 0; i < r.tokens * r.experts; i++) r.logits[i] = (float)(i % 7);
    for (int e = 0; e < r.experts; e++) r.modes[e] = EDIT_ZERO_RENORMALIZE;
    for (size_t rule = 0; rule < sizeof RULES / sizeof *RULES; rule++) {
        route(RULES[rule], true);
        for (int i = 0; i < r.tokens * r.choices; i++) assert_true(r.weights[i] == 0);
        for (int t = 0; t < r.tokens; t++) check_token(t, RULES[rule], true);
    }
}

static void test_all_equal_takes_the_lowest(void **state) {
    (void)state;
    r.tokens = 1, r.experts = 64, r.choices = 8;
    for (int e = 0; e < 64; e++) r.logits[e] = 0.25f;
    for (size_t rule = 0; rule < 3; rule++) {
        route(RULES[rule], false);
        for (int k = 0; k < 8; k++) assert_int_equal(r.ids[k], k);
    }
}

/* Probabilities that round to 0 still rank by their logits. */
static void test_far_logits_keep_their_order(void **state) {
    (void)state;
    r.tokens = 1, r.experts = 4, r.choices = 4;
    const float logits[4] = {-300, 0, -200, -250};
    memcpy(r.logits, logits, sizeof logits);
    route(RULES[0], false);
    static const int32_t want[4] = {1, 2, 3, 0};
    assert_memory_equal(r.ids, want, sizeof want);
    assert_true(r.weights[0] == 1 && r.weights[3] == 0);
}

static void test_too_few_experts_left(void **state) {
    (void)state;
    r.tokens = 3, r.experts = 4, r.choices = 2;
    clear_edits();
    for (int e = 0; e < 4; e++) r.modes[e] = e == 2 ? EDIT_NONE : EDIT_MASK;
    r.ids[0] = 77;
    route(RULES[1], true);
    assert_false(device->sync(queue));
    assert_string_equal(queue->failed_op, "route");
    assert_string_equal(queue->failure, "3 of 4 experts are switched off, each token needs 2");
    assert_int_equal(r.ids[0], 77);
}

static void test_too_few_experts_forced(void **state) {
    (void)state;
    r.tokens = 3, r.experts = 4, r.choices = 2;
    clear_edits();
    r.modes[3] = EDIT_FORCE;
    route(RULES[1], true);
    assert_false(device->sync(queue));
    assert_string_equal(queue->failure, "1 experts are forced, each token needs 2");
}

/* Whatever stands in the logits, ids are distinct experts that are not switched off. */
static void test_nan_and_infinite_logits(void **state) {
    (void)state;
    r.tokens = 256, r.experts = 4, r.choices = 2;
    static const float values[4] = {NAN, INFINITY, -INFINITY, 1};
    for (int t = 0; t < r.tokens; t++)
        for (int e = 0, n = t; e < 4; e++, n /= 4) r.logits[t * 4 + e] = values[n % 4];
    clear_edits();
    r.modes[1] = EDIT_MASK;
    for (size_t rule = 0; rule < 3; rule++)
        for (int biased = 0; biased < 2; biased++) {
            route(RULES[rule], biased);
            assert_true(device->sync(queue));
            for (int t = 0; t < r.tokens; t++) {
                int32_t a = r.ids[2 * t], b = r.ids[2 * t + 1];
                assert_true(a >= 0 && a < 4 && b >= 0 && b < 4 && a != b);
                if (biased) assert_true(a != 1 && b != 1);
                bool has_nan = false;
                for (int e = 0; e < 4; e++)
                    has_nan |= isnan(r.logits[4 * t + e]) || r.logits[4 * t + e] == INFINITY;
                if (!biased && has_nan) assert_true(isnan(r.probs[4 * t]) || isnan(r.probs[4 * t + 3]));
            }
        }
}

/* Gradient of the logits for random gradients of the weights. */
static void route_gradient(RouterRule rule, float *dlogits) {
    static float dweights[MOST_TOKENS * 8];
    for (int i = 0; i < r.tokens * r.choices; i++)
        dweights[i] = (float)(2 * random_uniform(5, RANDOM_TEST, i, 0) - 1);
    memset(dlogits, 0, sizeof *dlogits * (size_t)(r.tokens * r.experts));
    device->ops->route_bwd(queue, tensor_matrix(dlogits, DTYPE_F32, r.tokens, r.experts),
                           tensor_matrix(dweights, DTYPE_F32, r.tokens, r.choices),
                           tensor_matrix(r.probs, DTYPE_F32, r.tokens, r.experts),
                           tensor_matrix(r.ids, DTYPE_I32, r.tokens, r.choices),
                           tensor_matrix(r.weights, DTYPE_F32, r.tokens, r.choices),
                           tensor_matrix(r.logits, DTYPE_F32, r.tokens, r.experts), (RouteEdits){0}, rule);
}

/* A softmax does not see a shift of all logits: the gradients of a row sum to 0. With two renormalised
 * choices they are opposite to the bit, and the others exactly 0. */
static void test_gradient_identities(void **state) {
    (void)state;
    static float d[MOST_TOKENS * 8];
    r.tokens = 100, r.experts = 8;
    for (int i = 0; i < r.tokens * 8; i++)
        r.logits[i] = (float)(6 * random_uniform(4, RANDOM_TEST, i, 0) - 3);
    for (size_t rule = 0; rule < 4; rule++)
        for (r.choices = 2; r.choices <= 3; r.choices++) {
            bool sparse = RULES[rule].order == ROUTER_TOPK_SOFTMAX || RULES[rule].renormalize;
            route(RULES[rule], false);
            route_gradient(RULES[rule], d);
            for (int t = 0; t < r.tokens; t++) {
                const int32_t *ids = r.ids + t * r.choices;
                const float *row = d + t * 8;
                double sum = 0;
                int n_zero = 0;
                for (int e = 0; e < 8; e++) sum += (double)row[e], n_zero += row[e] == 0;
                assert_true(fabs(sum) < 1e-6);
                assert_int_equal(n_zero, sparse ? 8 - r.choices : 0);
                if (sparse && r.choices == 2) assert_true(row[ids[0]] == -row[ids[1]]);
            }
        }
}

/* All tokens to one expert, experts without any, K = E. */
static void check_plan(const int32_t *ids, int tokens, int choices, int experts) {
    int32_t offsets[9], pairs[64], rows[64];
    MoePlan plan = {tensor_vector(offsets, DTYPE_I32, experts + 1),
                    tensor_vector(pairs, DTYPE_I32, tokens * choices),
                    tensor_matrix(rows, DTYPE_I32, tokens, choices), 1};
    int32_t copy[64];
    memcpy(copy, ids, sizeof *copy * (size_t)(tokens * choices));
    device->ops->moe_plan(queue, plan, tensor_matrix(copy, DTYPE_I32, tokens, choices));
    assert_int_equal(offsets[0], 0);
    assert_int_equal(offsets[experts], tokens * choices);
    for (int e = 0; e < experts; e++)
        for (int m = offsets[e]; m < offsets[e + 1]; m++) {
            assert_int_equal(ids[pairs[m]], e);
            assert_int_equal(rows[pairs[m]], m);
            if (m > offsets[e]) assert_true(pairs[m] > pairs[m - 1]);
        }
}

static void test_plans(void **state) {
    (void)state;
    const int32_t one[6] = {3, 3, 3, 3, 3, 3}, all[6] = {2, 0, 1, 1, 2, 0}, last[4] = {7, 0, 7, 0};
    check_plan(one, 6, 1, 8);
    check_plan(all, 2, 3, 3);
    check_plan(last, 2, 2, 8);
    check_plan(last, 0, 2, 8);
}

static void test_nonfinite_is_located(void **state) {
    (void)state;
    enum { N = 100000 };
    static float x[N];
    static uint16_t narrow[N];
    int64_t first = 0;
    Tensor to = tensor_vector(&first, DTYPE_I64, 1);
    static const int64_t places[] = {0, 1, 255, 256, 300, 50000, N - 1};
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        device->ops->find_nonfinite(queue, to, tensor_vector(x, DTYPE_F32, N));
        assert_int_equal(first, -1);
        for (size_t i = 0; i < sizeof places / sizeof *places; i++)
            for (int b = 0; b < 3; b++) {
                x[places[i]] = bad[b], x[N - 1] = bad[b];
                narrow[places[i]] = f32_to_bf16(bad[b]);
                device->ops->find_nonfinite(queue, to, tensor_vector(x, DTYPE_F32, N));
                assert_int_equal(first, places[i]);
                device->ops->find_nonfinite(queue, to, tensor_vector(narrow, DTYPE_BF16, N));
                assert_int_equal(first, places[i]);
                x[places[i]] = 0, x[N - 1] = 3e38f, narrow[places[i]] = 0;
            }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(test_exhaustive_top_k),
        TEST(test_a_bias_moves_the_choice),
        TEST(test_every_mode),
        TEST(test_all_zero_stays_zero),
        TEST(test_too_few_experts_forced),
        TEST(test_all_equal_takes_the_lowest),
        TEST(test_far_logits_keep_their_order),
        TEST(test_too_few_experts_left),
        TEST(test_nan_and_infinite_logits),
        TEST(test_gradient_identities),
        TEST(test_plans),
        TEST(test_nonfinite_is_located),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

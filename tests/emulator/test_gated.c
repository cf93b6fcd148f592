/* moe_hidden on the device cuda: the bits of moe_gate_up and swiglu one after the other, in every tile shape
 * of the tensor cores, for rows and features that fill no tile, with bias and clamp, with z kept and not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "kernels/device.h"
#include "kernels/random.h"
#include <stdlib.h>
#include <string.h>

static const Tensor NOTHING = {0};

typedef struct {
    int64_t experts, tokens, inner, hidden;
    bool bias, clamp;
} Sizes;

static Tensor random_tensor(const Device *d, Queue *q, Tensor shape, int64_t id) {
    uint16_t *values = malloc(tensor_bytes(shape) + 1);
    assert_non_null(values);
    for (int64_t i = 0; i < tensor_count(shape); i++) {
        const float x = (float)(random_uniform(1, RANDOM_TEST, id, i) - 0.5);
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        values[i] = (uint16_t)(bits >> 16);
    }
    shape.data = d->alloc(tensor_bytes(shape));
    assert_non_null(shape.data);
    d->copy_in(q, shape, values);
    assert_true(d->sync(q));
    free(values);
    return shape;
}

/* Every expert but the first has a row of each token; the first has none. */
static MoePlan plan_for(const Device *d, Queue *q, const Sizes *s) {
    const int64_t K = s->experts - 1, M = s->tokens * K;
    int32_t *ids = malloc((size_t)M * sizeof *ids);
    assert_non_null(ids);
    for (int64_t i = 0; i < M; i++) ids[i] = (int32_t)(1 + (i / K + i % K) % K);
    Tensor chosen = tensor_matrix(d->alloc((size_t)M * 4), DTYPE_I32, s->tokens, K);
    MoePlan plan = {tensor_vector(d->alloc((size_t)(s->experts + 1) * 4), DTYPE_I32, s->experts + 1),
                    tensor_vector(d->alloc((size_t)M * 4), DTYPE_I32, M),
                    tensor_matrix(d->alloc((size_t)M * 4), DTYPE_I32, s->tokens, K), 1};
    d->copy_in(q, chosen, ids);
    d->ops->moe_plan(q, plan, chosen);
    assert_true(d->sync(q));
    d->free(chosen.data);
    free(ids);
    return plan;
}

static void assert_same(const Device *d, Queue *q, Tensor a, Tensor b, const char *what, const Sizes *s) {
    const size_t n = tensor_bytes(a);
    char *x = malloc(n), *y = malloc(n);
    assert_true(x && y);
    d->copy_out(q, x, a), d->copy_out(q, y, b);
    assert_true(d->sync(q));
    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i])
            fail_msg("%s of %lld rows an expert, %lld features: byte %zu", what, (long long)s->tokens,
                     (long long)s->inner, i);
    free(x), free(y);
}

static void check_gated(const Sizes *s) {
    const Device *d = cuda_device(NULL);
    Queue *q = d->queue_new();
    const MoePlan plan = plan_for(d, q, s);
    const int64_t M = tensor_count(plan.pairs), F = s->inner;
    const Activation act = s->clamp ? (Activation){.limit = 0.5f, .alpha = 1.702f} : (Activation){0};
    Tensor x = random_tensor(d, q, tensor_matrix(NULL, DTYPE_BF16, s->tokens, s->hidden), 1);
    Tensor w = random_tensor(d, q, tensor_cube(NULL, DTYPE_BF16, s->experts, 2 * F, s->hidden), 2);
    Tensor bias = random_tensor(d, q, tensor_matrix(NULL, DTYPE_BF16, s->experts, 2 * F), 3);
    if (!s->bias) d->free(bias.data), bias = NOTHING;
    Tensor z[3], h[3];
    for (int i = 0; i < 3; i++) {
        z[i] = random_tensor(d, q, tensor_matrix(NULL, DTYPE_BF16, M, 2 * F), 4);
        h[i] = random_tensor(d, q, tensor_matrix(NULL, DTYPE_BF16, M, F), 5 + i);
    }
    d->ops->moe_gate_up(q, z[0], x, w, bias, plan);
    d->ops->swiglu(q, h[0], z[0], act);
    d->ops->moe_hidden(q, h[1], z[1], x, w, bias, plan, act, true);
    d->ops->moe_hidden(q, h[2], z[2], x, w, bias, plan, act, false);
    assert_same(d, q, z[1], z[0], "z", s);
    assert_same(d, q, h[1], h[0], "h with z", s);
    assert_same(d, q, h[2], h[0], "h without z", s);
    Tensor all[] = {x, w, bias, z[0], z[1], z[2], h[0], h[1], h[2], plan.offsets, plan.pairs, plan.rows};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].data) d->free(all[i].data);
    d->queue_free(q);
}

static void test_gated(void **state) {
    (void)state;
    static const Sizes sizes[] = {
        {2, 1, 8, 8, false, false},        {4, 3, 5, 16, true, false},     {3, 33, 40, 72, true, true},
        {2, 70, 20, 136, false, true},     {3, 90, 136, 64, false, false}, {2, 150, 300, 72, true, false},
        {3, 260, 162, 136, false, false},
#ifndef GATETAPE_EMULATED
        {3, 1500, 2050, 264, true, false}, /* large tiles for every SM */
#endif
    };
    if (!cuda_device(NULL)) skip();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) check_gated(&sizes[i]);
}

static void look(void *context, const char *kernel, int64_t n) {
    if (!strcmp(kernel, "multiply_wgmma")) *(int64_t *)context = n;
}

/* GATETAPE_HOPPER=1 where there is one: the products above went that way. */
static void test_hopper_was_used(void **state) {
    (void)state;
    const char *asked = getenv("GATETAPE_HOPPER");
    if (!cuda_device(NULL) || !asked || strcmp(asked, "1")) skip();
    int64_t n = 0;
    cuda_device(NULL)->each_kernel(look, &n);
    assert_true(n > 0);
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gated), cmocka_unit_test(test_hopper_was_used)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

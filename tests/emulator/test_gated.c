/* moe_hidden and its backward on the device cuda, in every tile shape of the tensor cores, for rows and
 * features that fill no tile, with bias and clamp: the bits of the ops they join, of a token alone. */
#include <math.h>
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
    bool astray; /* z begins where no pack of elements does */
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

/* ---- backward ---- */
typedef struct {
    Tensor dz, dweights, scratch;
    int32_t *rows; /* [M] the row of a pair, on the host */
} Gradients;

static Gradients gradients_new(const Device *d, Queue *q, int64_t M, int64_t F) {
    Gradients g = {.dz = tensor_matrix(d->alloc((size_t)(M * F) * 4), DTYPE_BF16, M, 2 * F),
                   .dweights = tensor_vector(d->alloc((size_t)M * 4), DTYPE_F32, M),
                   .scratch = tensor_matrix(d->alloc((size_t)(M * F) * 4), DTYPE_F32, M, F)};
    assert_true(g.dz.data && g.dweights.data && g.scratch.data);
    d->zero(q, g.dweights);
    return g;
}

static void gradients_free(const Device *d, Gradients g) {
    d->free(g.dz.data), d->free(g.dweights.data), d->free(g.scratch.data);
}

/* Token t alone: its rows are the first of their experts. */
static void check_alone(const Device *d, Queue *q, const Sizes *s, int64_t t, const Gradients *all,
                        const Tensor *in, Activation act) {
    const Sizes one = {s->experts, 1, s->inner, s->hidden, s->bias, s->clamp, false};
    const int64_t K = s->experts - 1, F = s->inner;
    MoePlan plan = plan_for(d, q, &one);
    int32_t own[64];
    d->copy_out(q, own, plan.rows);
    assert_true(d->sync(q) && K <= 64);
    Gradients g = gradients_new(d, q, K, F);
    Tensor z = tensor_matrix(d->alloc((size_t)(K * F) * 4), DTYPE_BF16, K, 2 * F);
    uint16_t *row = malloc((size_t)F * 4);
    assert_true(z.data && row);
    /* the choices of a token turn with it: its k-th falls on another expert than the first token's k-th */
    for (int64_t k = 0; k < K; k++) {
        const int64_t same = (k + K - t % K) % K; /* the token's choice that falls on that expert */
        d->copy_out(q, row, tensor_slice(in[1], all->rows[t * K + same], 1));
        assert_true(d->sync(q));
        d->copy_in(q, tensor_slice(z, own[k], 1), row);
        assert_true(d->sync(q));
    }
    Tensor weights = tensor_vector(d->alloc((size_t)K * 4), DTYPE_F32, K);
    float from[64], to[64];
    d->copy_out(q, from, tensor_slice(tensor_as_matrix(in[2], s->tokens, K), t, 1));
    assert_true(d->sync(q));
    for (int64_t k = 0; k < K; k++) to[k] = from[(k + K - t % K) % K];
    d->copy_in(q, weights, to);
    d->ops->moe_hidden_bwd(q, g.dz, g.dweights, g.scratch, tensor_slice(in[0], t, 1), z, weights, in[3],
                           in[4], plan, act);
    d->copy_out(q, to, g.dweights);
    d->copy_out(q, from, tensor_slice(tensor_as_matrix(all->dweights, s->tokens, K), t, 1));
    assert_true(d->sync(q));
    for (int64_t k = 0; k < K; k++) {
        const int64_t same = (k + K - t % K) % K;
        assert_memory_equal(&to[k], &from[same], 4);
        assert_same(d, q, tensor_slice(g.dz, own[k], 1), tensor_slice(all->dz, all->rows[t * K + same], 1),
                    "dz alone", s);
    }
    Tensor made[] = {z, weights, plan.offsets, plan.pairs, plan.rows};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) d->free(made[i].data);
    gradients_free(d, g);
    free(row);
}

static void check_gradient(const Sizes *s) {
    const Device *d = cuda_device(NULL);
    Queue *q = d->queue_new();
    const MoePlan plan = plan_for(d, q, s);
    const int64_t M = tensor_count(plan.pairs), F = s->inner;
    const Activation act = s->clamp ? (Activation){.limit = 0.3f, .alpha = 1.702f} : (Activation){0};
    Tensor dout = random_tensor(d, q, tensor_matrix(NULL, DTYPE_BF16, s->tokens, s->hidden), 11);
    Tensor room = random_tensor(d, q, tensor_vector(NULL, DTYPE_BF16, M * 2 * F + 1), 12);
    Tensor z = tensor_matrix((uint16_t *)room.data + s->astray, DTYPE_BF16, M, 2 * F);
    Tensor w = random_tensor(d, q, tensor_cube(NULL, DTYPE_BF16, s->experts, s->hidden, F), 13);
    Tensor bias = random_tensor(d, q, tensor_matrix(NULL, DTYPE_BF16, s->experts, s->hidden), 14);
    Tensor pairs_of_bf16 = random_tensor(d, q, tensor_matrix(NULL, DTYPE_BF16, M, 2), 15);
    Tensor weights = tensor_vector(pairs_of_bf16.data, DTYPE_F32, M); /* two of them read as one f32 */
    if (!s->bias) d->free(bias.data), bias = NOTHING;
    Gradients joined = gradients_new(d, q, M, F), parts = gradients_new(d, q, M, F);
    d->ops->moe_hidden_bwd(q, joined.dz, joined.dweights, joined.scratch, dout, z, weights, w, bias, plan,
                           act);
    d->ops->moe_down_bwd(q, parts.scratch, parts.dweights, dout, w, bias, plan);
    d->ops->moe_swiglu_bwd(q, parts.dz, parts.dweights, parts.scratch, z, weights, plan, act);
    assert_same(d, q, joined.dz, parts.dz, "dz", s);
    float *a = malloc((size_t)M * 4), *b = malloc((size_t)M * 4);
    int32_t *rows = malloc((size_t)M * 4);
    joined.rows = rows;
    assert_true(a && b && rows);
    d->copy_out(q, a, joined.dweights), d->copy_out(q, b, parts.dweights), d->copy_out(q, rows, plan.rows);
    assert_true(d->sync(q));
    for (int64_t i = 0; i < M; i++)
        if (!(fabsf(a[i] - b[i]) <= 1e-5f * (float)(F + s->hidden)))
            fail_msg("dweights[%lld] %g, of the parts %g", (long long)i, (double)a[i], (double)b[i]);
    const Tensor in[] = {dout, z, weights, w, bias};
    for (int64_t t = 0; t < s->tokens; t += 1 + s->tokens / 3) check_alone(d, q, s, t, &joined, in, act);
    Tensor all[] = {dout, room, w, bias, pairs_of_bf16, plan.offsets, plan.pairs, plan.rows};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].data) d->free(all[i].data);
    gradients_free(d, joined), gradients_free(d, parts);
    free(a), free(b), free(rows);
    d->queue_free(q);
}

static const Sizes sizes[] = {
    {2, 1, 8, 8, false, false, false},        {4, 3, 5, 16, true, false, false},
    {3, 33, 40, 72, true, true, false},       {2, 70, 20, 136, false, true, false},
    {3, 90, 136, 64, false, false, false},    {2, 150, 304, 72, true, false, false},
    {3, 260, 162, 136, false, false, false},  {3, 33, 40, 72, true, true, true},
#ifndef GATETAPE_EMULATED
    {3, 1500, 2050, 264, true, false, false}, /* large tiles for every SM */
#endif
};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static void test_gated(void **state) {
    (void)state;
    if (!cuda_device(NULL)) skip();
    for (int i = 0; i < N_SIZES; i++) check_gated(&sizes[i]);
}

static void test_gradient(void **state) {
    (void)state;
    if (!cuda_device(NULL)) skip();
    for (int i = 0; i < N_SIZES; i++)
        if (sizes[i].inner % 8 == 0) check_gradient(&sizes[i]);
}

static void look(void *context, const char *kernel, int64_t n) {
    if (!strcmp(kernel, "multiply_wgmma")) *(int64_t *)context = n;
}

/* On compute capability 9.0 the products above went by wgmma, unless GATETAPE_HOPPER=0. */
static void test_hopper_was_used(void **state) {
    (void)state;
    const char *asked = getenv("GATETAPE_HOPPER"), *arch = getenv("GATETAPE_EMULATOR_ARCH");
    if (!cuda_device(NULL) || !arch || strcmp(arch, "90")) skip();
    int64_t n = 0;
    cuda_device(NULL)->each_kernel(look, &n);
    assert_int_equal(n > 0, !asked || strcmp(asked, "0"));
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gated), cmocka_unit_test(test_gradient),
                                       cmocka_unit_test(test_hopper_was_used)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

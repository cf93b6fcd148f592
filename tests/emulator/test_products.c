/* The products of the device cuda beyond what the op cases reach: every tile shape of the tensor cores and
 * both directions, more groups than a warp looks at, rows of one group and of none. A row's bits are the
 * same in every tile, in a group and alone; products in f32 have the bits of the CPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "kernels/cpu/cpu.h"
#include "kernels/device.h"
#include <stdlib.h>

static const Tensor NOTHING = {0};

/* ---- tensors of random values, here and there ---- */
static double value(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return (double)(*seed >> 8) / 8388608.0 - 1;
}

static Tensor random_host(DType dtype, int64_t a, int64_t b, uint32_t seed) {
    Tensor t = tensor_matrix(NULL, dtype, a, b);
    t.data = malloc(tensor_bytes(t) + 1);
    assert_non_null(t.data);
    for (int64_t i = 0; i < a * b; i++) {
        float v = (float)value(&seed);
        if (dtype == DTYPE_F32)
            ((float *)t.data)[i] = v;
        else
            ((uint16_t *)t.data)[i] = f32_to_bf16(v);
    }
    return t;
}

static Tensor sent(const Device *d, Queue *q, Tensor t) {
    Tensor there = t;
    there.data = d->alloc(tensor_bytes(t));
    assert_non_null(there.data);
    d->copy_in(q, there, t.data);
    return there;
}

static Tensor widened(Tensor t) {
    Tensor wide = t;
    wide.dtype = DTYPE_F64;
    wide.data = malloc(tensor_bytes(wide) + 1);
    assert_non_null(wide.data);
    for (int64_t i = 0; i < tensor_count(t); i++)
        ((double *)wide.data)[i] = t.dtype == DTYPE_F32 ? (double)((float *)t.data)[i]
                                                        : (double)bf16_to_f32(((uint16_t *)t.data)[i]);
    return wide;
}

/* ---- one dense product, either way, of rows [first, first + n) ---- */
typedef struct {
    bool back;
    Tensor y, x, w, bias; /* y f32: what it holds before and after */
} Trial;

static void run(const Device *d, Queue *q, const Trial *t, int64_t first, int64_t n) {
    Tensor y = tensor_slice(t->y, first, n), x = tensor_slice(t->x, first, n);
    if (t->back)
        d->ops->dense_bwd(q, y, x, t->w);
    else
        d->ops->dense(q, y, x, t->w, t->bias, y);
}

static Trial trial_new(DType dtype, bool back, int64_t m, int64_t columns, int64_t depth) {
    return (Trial){back, random_host(DTYPE_F32, m, columns, 1), random_host(dtype, m, depth, 2),
                   random_host(dtype, back ? depth : columns, back ? columns : depth, 3),
                   random_host(dtype, 1, columns, 4)};
}

static Trial trial_sent(const Device *d, Queue *q, const Trial *t) {
    return (Trial){t->back, sent(d, q, t->y), sent(d, q, t->x), sent(d, q, t->w), sent(d, q, t->bias)};
}

static void trial_free(void (*release)(void *), const Trial *t) {
    release(t->y.data), release(t->x.data), release(t->w.data), release(t->bias.data);
}

/* Near f64; the rows that `cuts` names, computed alone, have the bits of the whole. */
static void check_near_and_cut(bool back, int64_t m, int64_t columns, int64_t depth) {
    static const int64_t cuts[][2] = {{0, 1}, {3, 30}, {1, 65}, {130, 1}, {128, 100}};
    const Device *d = cuda_device(NULL), *exact = cpu_device_named("f64");
    Queue *q = d->queue_new(), *q64 = exact->queue_new();
    Trial t = trial_new(DTYPE_BF16, back, m, columns, depth);
    Trial t64 = {back, widened(t.y), widened(t.x), widened(t.w), widened(t.bias)},
          there = trial_sent(d, q, &t);
    Trial again = trial_sent(d, q, &t);
    Tensor whole = random_host(DTYPE_F32, m, columns, 1), part = random_host(DTYPE_F32, m, columns, 1);
    run(exact, q64, &t64, 0, m);
    run(d, q, &there, 0, m);
    d->copy_out(q, whole.data, there.y);
    assert_true(d->sync(q));
    for (int64_t i = 0; i < m * columns; i++)
        if (fabs((double)((float *)whole.data)[i] - ((double *)t64.y.data)[i]) > 1e-6 * (double)(depth + 4))
            fail_msg("element %lld is %.9g, in f64 %.9g", (long long)i, (double)((float *)whole.data)[i],
                     ((double *)t64.y.data)[i]);
    for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
        int64_t first = cuts[c][0], n = cuts[c][1];
        if (first + n > m) continue;
        d->copy_in(q, again.y, t.y.data);
        run(d, q, &again, first, n);
        d->copy_out(q, part.data, again.y);
        assert_true(d->sync(q));
        assert_memory_equal((float *)part.data + first * columns, (float *)whole.data + first * columns,
                            (size_t)(n * columns) * 4);
    }
    trial_free(free, &t), trial_free(free, &t64), trial_free(d->free, &there), trial_free(d->free, &again);
    free(whole.data), free(part.data);
    d->queue_free(q), exact->queue_free(q64);
}

static void test_tensor_cores(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {
        {1, 8, 8},         {33, 72, 136}, {70, 200, 64}, {150, 136, 8}, {300, 520, 72}, {260, 1031, 200},
#ifndef GATETAPE_EMULATED
        {2100, 4360, 264}, /* large tiles for every SM */
#endif
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        check_near_and_cut(false, shapes[s][0], shapes[s][1], shapes[s][2]);
        check_near_and_cut(true, shapes[s][0], shapes[s][1] / 8 * 8, shapes[s][2]);
    }
}

static void test_f32_has_the_bits_of_the_cpu(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1}, {3, 33, 257}, {70, 130, 600}, {65, 64, 512}, {5, 7, 1030}};
    const Device *d = cuda_device(NULL), *cpu = cpu_device();
    for (size_t s = 0; s < 2 * sizeof shapes / sizeof *shapes; s++) {
        const int64_t *n = shapes[s / 2];
        Queue *q = d->queue_new(), *q_cpu = cpu->queue_new();
        Trial t = trial_new(DTYPE_F32, s % 2, n[0], n[1], n[2]), there = trial_sent(d, q, &t);
        Tensor y = random_host(DTYPE_F32, n[0], n[1], 1);
        run(d, q, &there, 0, n[0]);
        run(cpu, q_cpu, &t, 0, n[0]);
        d->copy_out(q, y.data, there.y);
        assert_true(d->sync(q));
        assert_memory_equal(y.data, t.y.data, tensor_bytes(y));
        trial_free(free, &t), trial_free(d->free, &there);
        free(y.data);
        d->queue_free(q), cpu->queue_free(q_cpu);
    }
}

/* ---- experts: each row has the bits of a dense product with its expert's weights ---- */
enum { TOKENS = 210, CHOICES = 2, EXPERTS = 70, D = 136, F = 72, ROWS = TOKENS * CHOICES };

/* The first of a token's choices falls on `busy` experts, the second on the last but one. */
static MoePlan plan_for(const Device *d, Queue *q, int busy) {
    int32_t offsets[EXPERTS + 1] = {0}, pairs[ROWS], rows[ROWS], at = 0;
    for (int e = 0; e < EXPERTS; e++) {
        for (int t = 0; t < TOKENS; t++)
            for (int k = 0; k < CHOICES; k++)
                if (e == (k ? EXPERTS - 2 : t * t % busy))
                    rows[t * CHOICES + k] = at, pairs[at++] = t * CHOICES + k;
        offsets[e + 1] = at;
    }
    assert_int_equal(at, ROWS);
    return (MoePlan){sent(d, q, tensor_vector(offsets, DTYPE_I32, EXPERTS + 1)),
                     sent(d, q, tensor_vector(pairs, DTYPE_I32, ROWS)),
                     sent(d, q, tensor_matrix(rows, DTYPE_I32, TOKENS, CHOICES)), 1};
}

static void check_experts(int busy) {
    const Device *d = cuda_device(NULL);
    Queue *q = d->queue_new();
    MoePlan plan = plan_for(d, q, busy);
    int32_t offsets[EXPERTS + 1], pairs[ROWS];
    d->copy_out(q, offsets, plan.offsets), d->copy_out(q, pairs, plan.pairs);
    Tensor host[] = {random_host(DTYPE_F32, ROWS, F, 1),         random_host(DTYPE_BF16, TOKENS, D, 2),
                     random_host(DTYPE_BF16, EXPERTS * F, D, 3), random_host(DTYPE_F32, ROWS, D, 4),
                     random_host(DTYPE_BF16, TOKENS, F, 5),      random_host(DTYPE_F32, ROWS, D, 6)};
    Tensor z = sent(d, q, host[0]), x = sent(d, q, host[1]), w = sent(d, q, host[2]),
           da = sent(d, q, host[3]), dout = sent(d, q, host[4]), one = sent(d, q, host[5]);
    Tensor cube = tensor_as_cube(w, EXPERTS, F, D);
    d->ops->moe_gate_up(q, z, x, cube, NOTHING, plan);
    d->ops->moe_down_bwd(q, da, NOTHING, dout, cube, NOTHING, plan);
    d->copy_out(q, host[0].data, z), d->copy_out(q, host[3].data, da);
    assert_true(d->sync(q));
    for (int e = 0; e < EXPERTS; e++)
        for (int m = offsets[e]; m < offsets[e + 1]; m += 1 + m % 7) {
            float alone[D];
            d->ops->dense(q, tensor_matrix(one.data, DTYPE_F32, 1, F), tensor_slice(x, pairs[m] / CHOICES, 1),
                          tensor_entry(cube, e), NOTHING, NOTHING);
            d->copy_out(q, alone, tensor_matrix(one.data, DTYPE_F32, 1, F));
            assert_true(d->sync(q));
            assert_memory_equal(alone, (float *)host[0].data + (int64_t)m * F, F * 4);
            Tensor row = tensor_matrix(one.data, DTYPE_F32, 1, D);
            d->zero(q, row);
            d->ops->dense_bwd(q, row, tensor_slice(dout, pairs[m] / CHOICES, 1), tensor_entry(cube, e));
            d->copy_out(q, alone, row);
            assert_true(d->sync(q));
            assert_memory_equal(alone, (float *)host[3].data + (int64_t)m * D, D * 4);
        }
    Tensor there[] = {z, x, w, da, dout, one, plan.offsets, plan.pairs, plan.rows};
    for (size_t i = 0; i < sizeof there / sizeof *there; i++) d->free(there[i].data);
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i].data);
    d->queue_free(q);
}

static void test_experts(void **state) {
    (void)state;
    static const int busy[] = {1, 3, 33, EXPERTS};
    for (size_t i = 0; i < sizeof busy / sizeof *busy; i++) check_experts(busy[i]);
}

/* ---- the loss: its gradient meets bf16 weights with more digits than bf16 has, so dx is rounded once ----
 * */
enum { VOCABULARY = 200, CHUNK = 64, T = 40 };

static void loss_back(const Device *d, DType act, DType real_dtype, Tensor dx, const Tensor *host,
                      const int32_t *ids) {
    Queue *q = d->queue_new();
    Tensor t[] = {sent(d, q, dx),      sent(d, q, host[0]),
                  sent(d, q, host[1]), sent(d, q, host[2]),
                  sent(d, q, host[3]), sent(d, q, tensor_vector((void *)ids, DTYPE_I32, T))};
    Tensor scratch = tensor_matrix(d->alloc(T * CHUNK * 8), real_dtype, T, CHUNK);
    assert_true(t[0].dtype == act && scratch.data);
    d->ops->cross_entropy_bwd(q, t[0], scratch, t[1], t[2], t[3], t[4], NOTHING, t[5]);
    d->copy_out(q, dx.data, t[0]);
    assert_true(d->sync(q));
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) d->free(t[i].data);
    d->free(scratch.data);
    d->queue_free(q);
}

static void test_loss_gradient_is_rounded_once(void **state) {
    (void)state;
    Tensor dx = random_host(DTYPE_BF16, T, D, 1), dx64 = widened(dx);
    Tensor host[] = {random_host(DTYPE_F32, T, 1, 2), random_host(DTYPE_F32, T, 1, 3),
                     random_host(DTYPE_BF16, T, D, 4), random_host(DTYPE_BF16, VOCABULARY, D, 5)};
    Tensor host64[] = {widened(host[0]), widened(host[1]), widened(host[2]), widened(host[3])};
    int32_t ids[T];
    for (int t = 0; t < T; t++) ids[t] = t * 7 % VOCABULARY - (t % 9 == 0) * VOCABULARY;
    loss_back(cuda_device(NULL), DTYPE_BF16, DTYPE_F32, dx, host, ids);
    loss_back(cpu_device_named("f64"), DTYPE_F64, DTYPE_F64, dx64, host64, ids);
    int n_other = 0;
    for (int i = 0; i < T * D; i++)
        n_other += ((uint16_t *)dx.data)[i] != f32_to_bf16((float)((double *)dx64.data)[i]);
    if (n_other > T * D / 50) fail_msg("%d of %d elements are not the nearest bf16", n_other, T * D);
    for (int i = 0; i < 4; i++) free(host[i].data), free(host64[i].data);
    free(dx.data), free(dx64.data);
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensor_cores), cmocka_unit_test(test_f32_has_the_bits_of_the_cpu),
        cmocka_unit_test(test_experts), cmocka_unit_test(test_loss_gradient_is_rounded_once)};
    return cuda_device(NULL) ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}

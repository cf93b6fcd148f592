/* Cross entropy against plain sums in double, and what its chunks must not change: the bits are the same
 * for every number of columns at a time that is a multiple of 256, for every block of rows, and a gradient
 * in bf16 is rounded once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "kernels/cpu/cpu.h"
#include <stdlib.h>

enum { ROWS = 530, DEPTH = 24, VOCABULARY = 1100 };

typedef struct {
    const Device *device;
    Queue *q;
    Tensor x, w, bias, targets, scratch, nll, lse, dnll, dx;
} Loss;

static Tensor fresh(const Device *device, DType dtype, int64_t rows, int64_t columns) {
    Tensor t = tensor_matrix(NULL, dtype, rows, columns);
    t.data = device->alloc(tensor_bytes(t));
    assert_non_null(t.data);
    memset(t.data, 0, tensor_bytes(t));
    return t;
}

static void fill(Tensor t, uint32_t seed, float size) {
    for (int64_t i = 0; i < tensor_count(t); i++) {
        seed = seed * 1664525u + 1013904223u;
        real value = ((real)(seed >> 8) / 16777216.0f - 0.5f) * size;
        write_piece(t, i, &value, 1);
    }
}

static Loss loss_new(const char *isa, DType act, int64_t columns_at_a_time) {
    Loss l = {.device = cpu_device_named(isa)};
    l.q = l.device->queue_new();
    l.x = fresh(l.device, act, ROWS, DEPTH);
    l.w = fresh(l.device, DTYPE_F32, VOCABULARY, DEPTH);
    l.bias = fresh(l.device, DTYPE_F32, 1, VOCABULARY);
    l.bias = tensor_vector(l.bias.data, DTYPE_F32, VOCABULARY);
    l.scratch = fresh(l.device, DTYPE_F32, ROWS, columns_at_a_time);
    l.nll = fresh(l.device, DTYPE_F32, 1, ROWS);
    l.lse = fresh(l.device, DTYPE_F32, 1, ROWS);
    l.dnll = fresh(l.device, DTYPE_F32, 1, ROWS);
    l.dx = fresh(l.device, act, ROWS, DEPTH);
    l.targets = tensor_vector(l.device->alloc(ROWS * sizeof(int32_t)), DTYPE_I32, ROWS);
    for (int32_t t = 0; t < ROWS; t++) ((int32_t *)l.targets.data)[t] = t % 5 == 3 ? -1 : t * 37 % VOCABULARY;
    fill(l.x, 1, 2), fill(l.w, 2, 8), fill(l.bias, 3, 1), fill(l.dnll, 4, 1), fill(l.dx, 5, 1);
    return l;
}

static void loss_free(Loss *l) {
    Tensor all[] = {l->x, l->w, l->bias, l->targets, l->scratch, l->nll, l->lse, l->dnll, l->dx};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) l->device->free(all[i].data);
    l->device->queue_free(l->q);
}

/* Rows [first, first + n) of the batch, forward and backward. */
static void loss_run(const Loss *l, int64_t first, int64_t n) {
    Tensor x = tensor_slice(l->x, first, n), targets = tensor_slice(l->targets, first, n);
    Tensor nll = tensor_vector((float *)l->nll.data + first, DTYPE_F32, n);
    Tensor lse = tensor_vector((float *)l->lse.data + first, DTYPE_F32, n);
    Tensor dnll = tensor_vector((float *)l->dnll.data + first, DTYPE_F32, n);
    l->device->ops->cross_entropy(l->q, nll, lse, l->scratch, x, l->w, l->bias, targets);
    l->device->ops->cross_entropy_bwd(l->q, tensor_slice(l->dx, first, n), l->scratch, dnll, lse, x, l->w,
                                      l->bias, targets);
    assert_true(l->device->sync(l->q));
}

static float element(Tensor t, int64_t i) {
    float value;
    read_piece(&value, t, i, 1);
    return value;
}

/* lse and the gradient of row t, added to the DEPTH values of dx. */
static double plain_row(const Loss *l, int64_t t, double dx[DEPTH]) {
    static double logits[VOCABULARY];
    double largest = -INFINITY, sum = 0;
    int32_t target = ((int32_t *)l->targets.data)[t];
    for (int64_t v = 0; v < VOCABULARY; v++) {
        logits[v] = element(l->bias, v);
        for (int64_t d = 0; d < DEPTH; d++)
            logits[v] += (double)element(l->x, t * DEPTH + d) * element(l->w, v * DEPTH + d);
        largest = fmax(largest, logits[v]);
    }
    for (int64_t v = 0; v < VOCABULARY; v++) sum += exp(logits[v] - largest);
    double lse = largest + log(sum);
    for (int64_t v = 0; v < VOCABULARY && target >= 0; v++) {
        double slope = element(l->dnll, t) * (exp(logits[v] - lse) - (v == target));
        for (int64_t d = 0; d < DEPTH; d++) dx[d] += slope * element(l->w, v * DEPTH + d);
    }
    return target < 0 ? 0 : lse - logits[target];
}

static void test_loss_and_gradient_against_plain_sums(void **state) {
    (void)state;
    Loss l = loss_new("generic", DTYPE_F32, 256), before = loss_new("generic", DTYPE_F32, 256);
    loss_run(&l, 0, ROWS);
    for (int64_t t = 0; t < ROWS; t += 3) {
        double dx[DEPTH];
        for (int64_t d = 0; d < DEPTH; d++) dx[d] = element(before.dx, t * DEPTH + d);
        double nll = plain_row(&l, t, dx);
        assert_true(fabs(nll - element(l.nll, t)) < 1e-5);
        for (int64_t d = 0; d < DEPTH; d++) assert_true(fabs(dx[d] - element(l.dx, t * DEPTH + d)) < 1e-5);
    }
    loss_free(&l), loss_free(&before);
}

static void assert_same(const Loss *a, const Loss *b, int64_t rows) {
    assert_memory_equal(a->nll.data, b->nll.data, (size_t)rows * 4);
    assert_memory_equal(a->lse.data, b->lse.data, (size_t)rows * 4);
    assert_memory_equal(a->dx.data, b->dx.data, (size_t)(rows * DEPTH) * dtype_bytes(a->dx.dtype));
}

static void test_chunks_and_blocks_do_not_change_the_bits(void **state) {
    (void)state;
    static const int64_t columns[] = {256, 512, 1024, VOCABULARY, 2048};
    static const char *const tables[] = {"generic", "avx2", "avx512", "avx512bf16", "amx"};
    static const DType acts[] = {DTYPE_F32, DTYPE_BF16};
    for (size_t a = 0; a < 2; a++)
        for (size_t table = 0; table < 5; table++) {
            if (!cpu_device_named(tables[table])) continue;
            bool own = !strcmp(tables[table], "amx") && acts[a] == DTYPE_BF16; /* bits of its own */
            Loss first = loss_new(own ? "amx" : "generic", acts[a], VOCABULARY);
            loss_run(&first, 0, ROWS);
            for (size_t i = 0; i < 5; i++) {
                Loss l = loss_new(tables[table], acts[a], columns[i]);
                loss_run(&l, 0, 7), loss_run(&l, 7, 1), loss_run(&l, 8, ROWS - 8);
                assert_same(&first, &l, ROWS);
                loss_free(&l);
            }
            loss_free(&first);
        }
}

/* The bf16 gradient is the f32 one of the same operands, rounded. */
static void test_narrow_gradient_is_rounded_once(void **state) {
    (void)state;
    Loss narrow = loss_new("generic", DTYPE_BF16, 256), wide = loss_new("generic", DTYPE_F32, 256);
    for (int64_t i = 0; i < ROWS * DEPTH; i++) {
        ((float *)wide.x.data)[i] = element(narrow.x, i);
        ((float *)wide.dx.data)[i] = element(narrow.dx, i);
    }
    loss_run(&narrow, 0, ROWS), loss_run(&wide, 0, ROWS);
    for (int64_t i = 0; i < ROWS * DEPTH; i++)
        assert_int_equal(((uint16_t *)narrow.dx.data)[i], f32_to_bf16(element(wide.dx, i)));
    loss_free(&narrow), loss_free(&wide);
}

/* Logits of +-10^4 and a column that is switched off. */
static void test_extreme_logits(void **state) {
    (void)state;
    Loss l = loss_new("generic", DTYPE_F32, 256);
    for (int64_t i = 0; i < VOCABULARY; i++) ((float *)l.bias.data)[i] = i % 2 ? 1e4f : -1e4f;
    ((float *)l.bias.data)[7] = -INFINITY;
    loss_run(&l, 0, ROWS);
    for (int64_t t = 0; t < ROWS; t++) {
        double dx[DEPTH] = {0}, nll = plain_row(&l, t, dx);
        assert_true(isfinite(element(l.nll, t)) || ((int32_t *)l.targets.data)[t] == 7);
        if (isfinite(nll)) assert_true(fabs(nll - element(l.nll, t)) < 5e-3);
        for (int64_t d = 0; d < DEPTH; d++) assert_true(isfinite(element(l.dx, t * DEPTH + d)));
    }
    loss_free(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_and_gradient_against_plain_sums),
        cmocka_unit_test(test_chunks_and_blocks_do_not_change_the_bits),
        cmocka_unit_test(test_narrow_gradient_is_rounded_once),
        cmocka_unit_test(test_extreme_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

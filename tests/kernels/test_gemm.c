/* The contract of the products, spelled out as plain loops and compared bit by bit: blocks of 256 steps, each
 * one chain of fma, block sums added in order, then bias, then residual. Every table, weight type, few and
 * many rows, odd sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "kernels/cpu/cpu.h"
#include <omp.h>
#include <stdlib.h>

static const char *const tables[] = {"generic", "avx2", "avx512", "avx512bf16"};
static const DType weight_types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

/* Values of many magnitudes, some of them denormal in f16. */
static Tensor random_tensor(DType dtype, int64_t rows, int64_t columns, uint32_t seed) {
    Tensor t = tensor_matrix(NULL, dtype, rows, columns);
    t.data = calloc((size_t)(rows * columns) + 1, dtype_bytes(dtype));
    assert_non_null(t.data);
    for (int64_t i = 0; i < rows * columns; i++) {
        seed = seed * 1664525u + 1013904223u;
        uint16_t sign = (uint16_t)(seed >> 31 << 15), bits = (uint16_t)(seed >> 8);
        if (dtype == DTYPE_F32)
            ((float *)t.data)[i] = ((float)(seed >> 8) / 16777216.0f - 0.5f) * 3;
        else if (dtype == DTYPE_BF16)
            ((uint16_t *)t.data)[i] = (uint16_t)(sign | 0x3e00 | (bits & 0x1ff));
        else
            ((uint16_t *)t.data)[i] = (uint16_t)(sign | (bits & 0x3fff));
    }
    return t;
}

static float element(Tensor t, int64_t i) {
    float value;
    read_piece(&value, t, i, 1);
    return value;
}

/* x row against w[j][k] or, going back, w[k][j] */
static float contract(Tensor x, int64_t row, Tensor w, int64_t first, int64_t j, bool back) {
    int64_t depth = tensor_columns(x), columns = back ? w.shape[w.n_dims - 1] : 0;
    float sum = 0;
    for (int64_t k = 0; k < depth; k += 256) {
        float part = 0;
        for (int64_t i = k; i < depth && i < k + 256; i++)
            part = fmaf(element(x, row * depth + i),
                        element(w, first + (back ? i * columns + j : j * depth + i)), part);
        sum = k ? sum + part : part;
    }
    return sum;
}

static void check_dense(const Device *device, DType type, int64_t m, int64_t n, int64_t k) {
    Queue *q = device->queue_new();
    Tensor x = random_tensor(DTYPE_F32, m, k, 1), w = random_tensor(type, n, k, 2),
           bias = random_tensor(type, 1, n, 3);
    Tensor residual = random_tensor(DTYPE_F32, m, n, 4), y = random_tensor(DTYPE_F32, m, n, 5);
    Tensor dx = random_tensor(DTYPE_F32, m, k, 6), before = random_tensor(DTYPE_F32, m, k, 6);
    device->ops->dense(q, y, x, w, bias, residual);
    for (int64_t i = 0; i < m * n; i++) {
        float want = element(residual, i) + (contract(x, i / n, w, 0, i % n, false) + element(bias, i % n));
        assert_memory_equal(&want, (float *)y.data + i, 4);
    }
    device->ops->dense_bwd(q, dx, residual, w);
    for (int64_t i = 0; i < m * k; i++) {
        float want = element(before, i) + contract(residual, i / k, w, 0, i % k, true);
        assert_memory_equal(&want, (float *)dx.data + i, 4);
    }
    Tensor all[] = {x, w, bias, residual, y, dx, before};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i].data);
    device->queue_free(q);
}

static void test_dense_keeps_its_contract(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1},     {1, 70, 300},  {3, 33, 257}, {8, 64, 512},
                                        {9, 32, 255},  {17, 40, 600}, {5, 37, 16},  {31, 100, 129},
                                        {400, 35, 70}, {16, 31, 1000}};
    for (size_t table = 0; table < 4; table++) {
        const Device *device = cpu_device_named(tables[table]);
        for (size_t type = 0; device && type < 3; type++)
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                check_dense(device, weight_types[type], shapes[s][0], shapes[s][1], shapes[s][2]);
    }
}

/* Rows of experts with 0, 1, many rows; activations gathered by token. */
static void check_experts(const Device *device, DType type) {
    enum { T = 23, K = 3, E = 6, D = 270, N = 70 };
    Queue *q = device->queue_new();
    Tensor x = random_tensor(DTYPE_F32, T, D, 7), w = random_tensor(type, E * N, D, 8),
           z = random_tensor(DTYPE_F32, T * K, N, 9);
    int32_t ids[T * K], offsets[E + 1], pairs[T * K], rows[T * K];
    for (int i = 0; i < T * K; i++)
        ids[i] = (int32_t)((i % K + (i / K % 5 == 0)) % 4 + (i == 4)); /* expert 5 has none */
    MoePlan plan = {tensor_vector(offsets, DTYPE_I32, E + 1), tensor_vector(pairs, DTYPE_I32, T * K),
                    tensor_matrix(rows, DTYPE_I32, T, K), 1};
    device->ops->moe_plan(q, plan, tensor_matrix(ids, DTYPE_I32, T, K));
    w = tensor_cube(w.data, type, E, N, D);
    device->ops->moe_gate_up(q, z, x, w, (Tensor){0}, plan);
    assert_null(q->failed_op);
    for (int64_t m = 0; m < T * K; m++)
        for (int64_t j = 0; j < N; j++) {
            float want = contract(x, pairs[m] / K, w, ids[pairs[m]] * N * D, j, false);
            assert_memory_equal(&want, (float *)z.data + m * N + j, 4);
        }
    free(x.data);
    free(w.data);
    free(z.data);
    device->queue_free(q);
}

static void test_experts_keep_the_contract(void **state) {
    (void)state;
    for (size_t table = 0; table < 4; table++) {
        const Device *device = cpu_device_named(tables[table]);
        for (size_t type = 0; device && type < 3; type++) check_experts(device, weight_types[type]);
    }
}

/* bf16 times bf16: pairs of steps, the odd one first, denormals as zero. */
static float contract_of_pairs(Tensor x, int64_t row, Tensor w, int64_t j) {
    int64_t depth = tensor_columns(x);
    float sum = 0;
    for (int64_t k = 0; k < depth; k += 512) {
        float part = 0;
        for (int64_t i = k; i < depth && i < k + 512; i += 2) {
            part = fmaf(element(x, row * depth + i + 1), element(w, j * depth + i + 1), part);
            part = fmaf(element(x, row * depth + i), element(w, j * depth + i), part);
        }
        sum = k ? sum + part : part;
    }
    return sum;
}

static void check_pairs(const Device *device, int64_t m, int64_t n, int64_t k) {
    Queue *q = device->queue_new();
    Tensor x = random_tensor(DTYPE_BF16, m, k, 1), w = random_tensor(DTYPE_BF16, n, k, 2);
    Tensor y = random_tensor(DTYPE_F32, m, n, 5);
    device->ops->dense(q, y, x, w, (Tensor){0}, (Tensor){0});
    for (int64_t i = 0; i < m * n; i++) {
        float want = contract_of_pairs(x, i / n, w, i % n);
        assert_memory_equal(&want, (float *)y.data + i, 4);
    }
    free(x.data);
    free(w.data);
    free(y.data);
    device->queue_free(q);
}

static void test_pairs_keep_their_contract(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {
        {1, 64, 300}, {3, 33, 1026}, {16, 40, 512}, {17, 31, 514}, {100, 70, 96}};
    for (size_t table = 0; table < 4; table++) {
        const Device *device = cpu_device_named(tables[table]);
        for (size_t s = 0; device && s < sizeof shapes / sizeof *shapes; s++)
            check_pairs(device, shapes[s][0], shapes[s][1], shapes[s][2]);
    }
}

/* The same row alone, among few and among many, on one thread and on three. */
static void test_a_row_does_not_know_its_batch(void **state) {
    (void)state;
    enum { M = 500, N = 130, D = 700 };
    const Device *device = cpu_device();
    Queue *q = device->queue_new();
    Tensor x = random_tensor(DTYPE_F32, M, D, 10), w = random_tensor(DTYPE_BF16, N, D, 11);
    Tensor all = random_tensor(DTYPE_F32, M, N, 12), some = random_tensor(DTYPE_F32, M, N, 13);
    device->ops->dense(q, all, x, w, (Tensor){0}, (Tensor){0});
    static const int64_t sizes[] = {1, 2, 7, 8, 15, 16, 17, 100, 384, 385};
    int threads = omp_get_max_threads();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t first = (int64_t)i * 11;
        omp_set_num_threads(i % 2 ? 3 : 1);
        device->ops->dense(q, tensor_slice(some, 0, sizes[i]), tensor_slice(x, first, sizes[i]), w,
                           (Tensor){0}, (Tensor){0});
        assert_memory_equal(some.data, (float *)all.data + first * N, (size_t)(sizes[i] * N) * 4);
    }
    omp_set_num_threads(threads);
    free(x.data);
    free(w.data);
    free(all.data);
    free(some.data);
    device->queue_free(q);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense_keeps_its_contract),
        cmocka_unit_test(test_pairs_keep_their_contract),
        cmocka_unit_test(test_experts_keep_the_contract),
        cmocka_unit_test(test_a_row_does_not_know_its_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

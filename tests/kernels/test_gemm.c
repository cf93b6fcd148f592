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
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

static const char *const tables[] = {"generic", "avx2", "avx512", "avx512bf16", "amx"};
enum { N_TABLES = sizeof tables / sizeof *tables };
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
    for (size_t table = 0; table < N_TABLES; table++) {
        const Device *device = cpu_device_named(tables[table]);
        for (size_t type = 0; device && type < 3; type++)
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                check_dense(device, weight_types[type], shapes[s][0], shapes[s][1], shapes[s][2]);
    }
}

/* Rows of experts with 0, 1, many rows; activations gathered by token. */
enum { T = 23, K = 3, E = 6, D = 270, N = 70 };

typedef struct {
    int32_t ids[T * K], offsets[E + 1], pairs[T * K], rows[T * K];
    MoePlan plan;
} Routing;

static void make_routing(Routing *r, const Device *device, Queue *q) {
    for (int i = 0; i < T * K; i++)
        r->ids[i] = (int32_t)((i % K + (i / K % 5 == 0)) % 4 + (i == 4)); /* expert 5 has none */
    r->plan =
        (MoePlan){tensor_vector(r->offsets, DTYPE_I32, E + 1), tensor_vector(r->pairs, DTYPE_I32, T * K),
                  tensor_matrix(r->rows, DTYPE_I32, T, K), 1};
    device->ops->moe_plan(q, r->plan, tensor_matrix(r->ids, DTYPE_I32, T, K));
}

static void check_experts(const Device *device, DType type) {
    Queue *q = device->queue_new();
    Routing r;
    make_routing(&r, device, q);
    Tensor x = random_tensor(DTYPE_F32, T, D, 7), w = random_tensor(type, E * N, D, 8),
           z = random_tensor(DTYPE_F32, T * K, N, 9), bias = random_tensor(type, E, N, 10);
    w = tensor_cube(w.data, type, E, N, D);
    device->ops->moe_gate_up(q, z, x, w, bias, r.plan);
    assert_null(q->failed_op);
    for (int64_t m = 0; m < T * K; m++)
        for (int64_t j = 0; j < N; j++) {
            int32_t e = r.ids[r.pairs[m]];
            float want = contract(x, r.pairs[m] / K, w, e * N * D, j, false) + element(bias, e * N + j);
            assert_memory_equal(&want, (float *)z.data + m * N + j, 4);
        }
    Tensor all[] = {x, w, z, bias};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i].data);
    device->queue_free(q);
}

/* dx of gate and up: a token's rows summed in order of its choices, then added. da of down: dout gathered. */
static void check_experts_back(const Device *device, DType type) {
    Queue *q = device->queue_new();
    Routing r;
    make_routing(&r, device, q);
    Tensor dz = random_tensor(DTYPE_F32, T * K, N, 11), w = random_tensor(type, E * N, D, 12),
           dx = random_tensor(DTYPE_F32, T, D, 13), before = random_tensor(DTYPE_F32, T, D, 13),
           scratch = random_tensor(DTYPE_F32, T * K, D, 14), dout = random_tensor(DTYPE_F32, T, N, 15),
           da = random_tensor(DTYPE_F32, T * K, D, 16);
    w = tensor_cube(w.data, type, E, N, D);
    device->ops->moe_gate_up_bwd(q, dx, scratch, dz, w, r.plan);
    device->ops->moe_down_bwd(q, da, (Tensor){0}, dout, w, (Tensor){0}, r.plan);
    assert_null(q->failed_op);
    for (int64_t i = 0; i < T * D; i++) {
        float sum = 0;
        for (int64_t k = 0; k < K; k++) {
            int64_t pair = i / D * K + k, row = r.rows[pair];
            sum += contract(dz, row, w, r.ids[pair] * N * D, i % D, true);
            float want = contract(dout, i / D, w, r.ids[pair] * N * D, i % D, true);
            assert_memory_equal(&want, (float *)da.data + row * D + i % D, 4);
        }
        float want = element(before, i) + sum;
        assert_memory_equal(&want, (float *)dx.data + i, 4);
    }
    Tensor all[] = {dz, w, dx, before, scratch, dout, da};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i].data);
    device->queue_free(q);
}

static void test_experts_keep_the_contract(void **state) {
    (void)state;
    for (size_t table = 0; table < N_TABLES; table++) {
        const Device *device = cpu_device_named(tables[table]);
        for (size_t type = 0; device && type < 3; type++) {
            check_experts(device, weight_types[type]);
            check_experts_back(device, weight_types[type]);
        }
    }
}

static float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

/* bf16 times bf16: pairs of steps, the odd one first, denormals as zero. */
static float contract_of_pairs(Tensor x, int64_t row, Tensor w, int64_t j) {
    int64_t depth = tensor_columns(x);
    float sum = 0;
    for (int64_t k = 0; k < depth; k += 512) {
        float part = 0;
        for (int64_t i = k; i < depth && i < k + 512; i += 2) {
            for (int64_t e = i + 1; e >= i; e--)
                part = flushed(
                    fmaf(flushed(element(x, row * depth + e)), flushed(element(w, j * depth + e)), part));
        }
        sum = flushed(k ? sum + part : part);
    }
    return sum;
}

/* The same in the table amx: of each 32 steps the even and the odd ones are two chains, whose sum is added;
 * w[j][k] or, going back, w[k][j]. */
static float contract_of_tiles(Tensor x, int64_t row, Tensor w, int64_t j, bool back) {
    int64_t depth = tensor_columns(x), columns = tensor_columns(w);
    float sum = 0;
    for (int64_t k = 0; k < depth; k += 32) {
        float part[2] = {0, 0};
        for (int64_t i = k; i < depth && i < k + 32; i++) {
            float weight = flushed(element(w, back ? i * columns + j : j * depth + i));
            part[i % 2] = flushed(fmaf(flushed(element(x, row * depth + i)), weight, part[i % 2]));
        }
        sum = flushed(sum + flushed(part[0] + part[1]));
    }
    return sum;
}

/* Scales every third element by 2^-66: products of two such are denormal, some operands of theirs too. */
static void make_small(Tensor t, bool all) {
    uint16_t *bits = t.data;
    for (int64_t i = 0; i < tensor_count(t); i++) {
        uint16_t exponent = bits[i] >> 7 & 0xff;
        if (all || i % 3 == 0) exponent = (uint16_t)(exponent > 66 ? exponent - 66 : 0);
        if (all && i % 7 == 0) exponent = 0;
        bits[i] = (uint16_t)((bits[i] & 0x807f) | exponent << 7);
    }
}

static void check_pairs(const Device *device, int64_t m, int64_t n, int64_t k, int small) {
    Queue *q = device->queue_new();
    Tensor x = random_tensor(DTYPE_BF16, m, k, 1), w = random_tensor(DTYPE_BF16, n, k, 2);
    if (small) make_small(x, small == 2), make_small(w, small == 2);
    Tensor y = random_tensor(DTYPE_F32, m, n, 5);
    device->ops->dense(q, y, x, w, (Tensor){0}, (Tensor){0});
    for (int64_t i = 0; i < m * n; i++) {
        float want = strcmp(device->name, "amx") ? contract_of_pairs(x, i / n, w, i % n)
                                                 : contract_of_tiles(x, i / n, w, i % n, false);
        assert_memory_equal(&want, (float *)y.data + i, 4);
    }
    free(x.data);
    free(w.data);
    free(y.data);
    device->queue_free(q);
}

/* Back through weights in pairs, which the table amx alone does. */
static void test_pairs_back_keep_the_contract_of_tiles(void **state) {
    (void)state;
    enum { OUTPUTS = 90, INPUTS = 70 };
    const Device *device = cpu_device_named("amx");
    if (!device) skip();
    for (int64_t m = 1; m < 80; m += 13) {
        Queue *q = device->queue_new();
        Tensor dy = random_tensor(DTYPE_BF16, m, OUTPUTS, 1),
               w = random_tensor(DTYPE_BF16, OUTPUTS, INPUTS, 2),
               dx = random_tensor(DTYPE_BF16, m, INPUTS, 3), before = random_tensor(DTYPE_BF16, m, INPUTS, 3);
        device->ops->dense_bwd(q, dx, dy, w);
        for (int64_t i = 0; i < m * INPUTS; i++) {
            float sum = contract_of_tiles(dy, i / INPUTS, w, i % INPUTS, true);
            assert_int_equal(f32_to_bf16(element(before, i) + sum), ((uint16_t *)dx.data)[i]);
        }
        Tensor all[] = {dy, w, dx, before};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i].data);
        device->queue_free(q);
    }
}

static void test_pairs_keep_their_contract(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {
        {1, 64, 300}, {3, 33, 1026}, {16, 40, 512}, {17, 31, 514}, {100, 70, 96}};
    for (size_t table = 0; table < N_TABLES; table++) {
        const Device *device = cpu_device_named(tables[table]);
        for (size_t s = 0; device && s < sizeof shapes / sizeof *shapes; s++)
            for (int small = 0; small < 3; small++)
                check_pairs(device, shapes[s][0], shapes[s][1], shapes[s][2], small);
    }
}

/* bf16 activations against f32 and f16 weights: widened, the result rounded once. */
static void check_narrow(const Device *device, DType type, int64_t m) {
    enum { COLUMNS = 45, DEPTH = 515 };
    Queue *q = device->queue_new();
    Tensor x = random_tensor(DTYPE_BF16, m, DEPTH, 1), w = random_tensor(type, COLUMNS, DEPTH, 2),
           residual = random_tensor(DTYPE_BF16, m, COLUMNS, 3), y = random_tensor(DTYPE_BF16, m, COLUMNS, 4);
    device->ops->dense(q, y, x, w, (Tensor){0}, residual);
    for (int64_t i = 0; i < m * COLUMNS; i++) {
        float sum = contract(x, i / COLUMNS, w, 0, i % COLUMNS, false);
        uint16_t want = f32_to_bf16(element(residual, i) + sum);
        assert_int_equal(want, ((uint16_t *)y.data)[i]);
    }
    Tensor all[] = {x, w, residual, y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i].data);
    device->queue_free(q);
}

static void test_narrow_activations(void **state) {
    (void)state;
    for (size_t table = 0; table < N_TABLES; table++) {
        const Device *device = cpu_device_named(tables[table]);
        for (int64_t m = 1; device && m < 40; m += 19) {
            check_narrow(device, DTYPE_F32, m);
            check_narrow(device, DTYPE_F16, m);
        }
    }
}

#if defined(__x86_64__)
/* A caller that runs with denormals as zero gets the same bits, and keeps its mode. */
static void test_the_mode_of_the_caller_does_not_count(void **state) {
    (void)state;
    enum { ROWS = 20, COLUMNS = 40, DEPTH = 300 };
    const Device *device = cpu_device();
    Queue *q = device->queue_new();
    Tensor x = random_tensor(DTYPE_F32, ROWS, DEPTH, 1), w = random_tensor(DTYPE_BF16, COLUMNS, DEPTH, 2),
           y = random_tensor(DTYPE_F32, ROWS, COLUMNS, 3);
    make_small(w, true);
    for (int64_t i = 0; i < ROWS * DEPTH; i++) ((float *)x.data)[i] *= 0x1p-66f;
    unsigned mode = _mm_getcsr(), flush = 0x9fc0, after;
    _mm_setcsr(flush);
    device->ops->dense(q, y, x, w, (Tensor){0}, (Tensor){0});
    after = _mm_getcsr();
    _mm_setcsr(mode);
    assert_int_equal(after & ~0x3fu, flush);
    int n_denormal = 0;
    for (int64_t i = 0; i < ROWS * COLUMNS; i++) {
        float want = contract(x, i / COLUMNS, w, 0, i % COLUMNS, false);
        n_denormal += want != 0 && fabsf(want) < 0x1p-126f;
        assert_memory_equal(&want, (float *)y.data + i, 4);
    }
    assert_true(n_denormal > ROWS * COLUMNS / 2);
    free(x.data);
    free(w.data);
    free(y.data);
    device->queue_free(q);
}
#endif

/* The same row alone, among few and among many, on one thread and on three. */
static void test_a_row_does_not_know_its_batch(void **state) {
    (void)state;
    enum { M = 500, COLUMNS = 130, DEPTH = 700 };
    const Device *device = cpu_device();
    Queue *q = device->queue_new();
    Tensor x = random_tensor(DTYPE_F32, M, DEPTH, 10), w = random_tensor(DTYPE_BF16, COLUMNS, DEPTH, 11);
    Tensor all = random_tensor(DTYPE_F32, M, COLUMNS, 12), some = random_tensor(DTYPE_F32, M, COLUMNS, 13);
    device->ops->dense(q, all, x, w, (Tensor){0}, (Tensor){0});
    static const int64_t sizes[] = {1, 2, 7, 8, 15, 16, 17, 100, 384, 385};
    int threads = omp_get_max_threads();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t first = (int64_t)i * 11;
        omp_set_num_threads(i % 2 ? 3 : 1);
        device->ops->dense(q, tensor_slice(some, 0, sizes[i]), tensor_slice(x, first, sizes[i]), w,
                           (Tensor){0}, (Tensor){0});
        assert_memory_equal(some.data, (float *)all.data + first * COLUMNS, (size_t)(sizes[i] * COLUMNS) * 4);
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
        cmocka_unit_test(test_pairs_back_keep_the_contract_of_tiles),
        cmocka_unit_test(test_experts_keep_the_contract),
        cmocka_unit_test(test_narrow_activations),
#if defined(__x86_64__)
        cmocka_unit_test(test_the_mode_of_the_caller_does_not_count),
#endif
        cmocka_unit_test(test_a_row_does_not_know_its_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

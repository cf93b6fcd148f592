/* Dense products handed to cuBLAS ("dense": "cublas"): near our own kernels', both ways, onto what is there;
 * and our own again after the switch is turned back. Skipped where there is no device, or no library. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "kernels/cpu/cpu.h"
#include "kernels/random.h"
#include <stdlib.h>
#include <string.h>

enum { M = 37, N = 72, K = 136 };

static Tensor sent(const Device *d, Queue *q, DType dtype, int64_t rows, int64_t columns, int64_t id) {
    Tensor t = tensor_matrix(d->alloc((size_t)(rows * columns) * 4), dtype, rows, columns);
    float *wide = malloc((size_t)(rows * columns) * sizeof *wide);
    uint16_t *narrow = malloc((size_t)(rows * columns) * sizeof *narrow);
    assert_true(t.data && wide && narrow);
    for (int64_t i = 0; i < rows * columns; i++) {
        wide[i] = (float)random_uniform(1, RANDOM_TEST, id, i) - 0.5f;
        narrow[i] = f32_to_bf16(wide[i]);
    }
    d->copy_in(q, t, dtype == DTYPE_F32 ? (void *)wide : (void *)narrow);
    assert_true(d->sync(q));
    free(wide), free(narrow);
    return t;
}

/* y = x w^T + y, then dx += y' w with y' [M,N] bf16; both to the host. */
static void run(const Device *d, float *y_out, uint16_t *dx_out) {
    Queue *q = d->queue_new();
    Tensor y = sent(d, q, DTYPE_F32, M, N, 1), x = sent(d, q, DTYPE_BF16, M, K, 2),
           w = sent(d, q, DTYPE_BF16, N, K, 3);
    Tensor dx = sent(d, q, DTYPE_BF16, M, K, 4), dy = sent(d, q, DTYPE_BF16, M, N, 5);
    d->ops->dense(q, y, x, w, (Tensor){0}, y);
    d->ops->dense_bwd(q, dx, dy, w);
    d->copy_out(q, y_out, y), d->copy_out(q, dx_out, dx);
    assert_true(d->sync(q));
    d->free(y.data), d->free(x.data), d->free(w.data), d->free(dx.data), d->free(dy.data);
    d->queue_free(q);
}

typedef struct {
    int64_t launches;
} Seen;
static void look(void *context, const char *kernel, int64_t n) {
    if (!strcmp(kernel, "cublasGemmEx")) ((Seen *)context)->launches = n;
}

static void test_near_our_own(void **state) {
    (void)state;
    const Device *d = cuda_device(NULL);
    const char *why;
    if (!d || !d->dense_by_library(true, &why)) skip();
    static float own[M * N], other[M * N], again[M * N];
    static uint16_t own_dx[M * K], other_dx[M * K], again_dx[M * K];
    Seen seen = {0};
    run(d, other, other_dx);
    d->each_kernel(look, &seen);
    assert_int_equal(seen.launches, 2);
    assert_true(d->dense_by_library(false, NULL));
    run(d, own, own_dx);
    run(d, again, again_dx);
    d->each_kernel(look, &seen);
    assert_int_equal(seen.launches, 2);
    assert_memory_equal(own, again, sizeof own);
    for (int i = 0; i < M * N; i++) assert_true(fabsf(own[i] - other[i]) < 1e-4f);
    for (int i = 0; i < M * K; i++)
        assert_true(fabsf(bf16_to_f32(own_dx[i]) - bf16_to_f32(other_dx[i])) < 0.04f); /* a last place at 4 */
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_near_our_own)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

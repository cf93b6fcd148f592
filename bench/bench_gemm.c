/* Matrix products of the CPU backend beside OpenBLAS sgemm on the same shapes, in one process: forward and backward,
 * f32 and bf16 weights, eight unbalanced experts, and the few rows of decoding beside the rate of reading the weights.
 * A row: name, rows, depth, columns, GFLOP/s, sgemm's, ratio. Medians; sgemm's threads get time to fall asleep. */
#include "engine/alloc.h"
#include "engine/clock.h"
#include "kernels/check.h"
#include "kernels/device.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

enum { N_RUNS = 7, EXPERTS = 8 };

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

static Tensor random_matrix(DType dtype, int64_t rows, int64_t columns) {
    Tensor t = tensor_matrix(NULL, dtype, rows, columns);
    t.data = mem_alloc(tensor_bytes(t) + 64);
    check(t.data, "%zu bytes", tensor_bytes(t));
    uint32_t state = 12345;
    for (int64_t i = 0; i < rows * columns; i++) {
        state = state * 1664525u + 1013904223u;
        if (dtype == DTYPE_F32)
            ((float *)t.data)[i] = (float)(state >> 8) / 16777216.0f - 0.5f;
        else
            ((uint16_t *)t.data)[i] = (uint16_t)(0x3f00u | (state >> 24 & 0x80ffu));
    }
    return t;
}

typedef struct {
    Queue *queue;
    const Ops *ops;
} Bench;

static double sgemm_seconds(int64_t m, int64_t n, int64_t k, bool back) {
#ifdef HAVE_OPENBLAS
    Tensor a = random_matrix(DTYPE_F32, m, k), b = random_matrix(DTYPE_F32, n, k),
           c = random_matrix(DTYPE_F32, m, n);
    double seconds[N_RUNS + 1];
    for (int run = 0; run <= N_RUNS; run++) {
        double begin = clock_seconds();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, back ? CblasNoTrans : CblasTrans, (int)m, (int)n, (int)k, 1,
                    a.data, (int)k, b.data, (int)(back ? n : k), 0, c.data, (int)n);
        seconds[run] = clock_seconds() - begin;
    }
    mem_free(a.data);
    mem_free(b.data);
    mem_free(c.data);
    usleep(200000);
    return median(seconds + 1, N_RUNS);
#else
    (void)m, (void)n, (void)k, (void)back;
    return 0;
#endif
}

static void print_row(const char *name, int64_t m, int64_t n, int64_t k, double ours, double theirs) {
    double work = 2e-9 * (double)m * (double)n * (double)k;
    printf("%-22s %5lld x %5lld x %5lld  %8.1f GFLOP/s  sgemm %8.1f  ratio %.2f\n", name, (long long)m,
           (long long)k, (long long)n, work / ours, theirs > 0 ? work / theirs : 0, theirs / ours);
    fflush(stdout);
}

static void bench_dense(const Bench *b, DType dtype, int64_t m, int64_t n, int64_t k, bool back) {
    Tensor x = random_matrix(DTYPE_F32, m, k), y = random_matrix(DTYPE_F32, m, n);
    Tensor w = back ? random_matrix(dtype, k, n) : random_matrix(dtype, n, k);
    double seconds[N_RUNS + 1];
    for (int run = 0; run <= N_RUNS; run++) {
        double begin = clock_seconds();
        if (back)
            b->ops->dense_bwd(b->queue, y, x, w);
        else
            b->ops->dense(b->queue, y, x, w, (Tensor){0}, (Tensor){0});
        seconds[run] = clock_seconds() - begin;
    }
    char name[64];
    snprintf(name, sizeof name, "dense%s %s", back ? "_bwd" : "", dtype_name(dtype));
    print_row(name, m, n, k, median(seconds + 1, N_RUNS), sgemm_seconds(m, n, k, back));
    mem_free(x.data);
    mem_free(y.data);
    mem_free(w.data);
}

int main(void) {
    const Device *device = cpu_device();
    check(device, "no CPU device");
    Bench b = {device->queue_new(), device->ops};
    static const int64_t rows[] = {1, 4, 16, 64, 256, 512, 2048};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bench_dense(&b, DTYPE_F32, rows[i], 3584, 1024, false);
        bench_dense(&b, DTYPE_BF16, rows[i], 3584, 1024, false);
        bench_dense(&b, DTYPE_F32, rows[i], 1024, 3584, true);
        bench_dense(&b, DTYPE_BF16, rows[i], 1024, 3584, true);
    }
    device->queue_free(b.queue);
    return 0;
}

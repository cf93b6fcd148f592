/* What this machine can do at most: matrix products by the vendor's library, and copies of memory. The libraries are
 * found at run time: they are ceilings, not dependencies. */
#include "bench.h"
#include "../engine/alloc.h"
#include "../engine/clock.h"
#include <dlfcn.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The C interface of every BLAS: order, transposes, sizes, C = alpha A B + beta C. */
typedef void sgemm_fn(int order, int transa, int transb, int m, int n, int k, float alpha, const float *a,
                      int lda, const float *b, int ldb, float beta, float *c, int ldc);
enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112 };

static double sgemm_rate(void) {
    enum { N = 2048, RUNS = 5 };
    void *library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    sgemm_fn *sgemm = NULL;
    if (library) *(void **)&sgemm = dlsym(library, "cblas_sgemm");
    float *a = sgemm ? mem_zeroed((size_t)N * N, 12) : NULL;
    if (!a) return 0;
    float *b = a + (size_t)N * N, *c = b + (size_t)N * N;
    for (int i = 0; i < 2 * N * N; i++) a[i] = (float)(i % 97) * 0.01f;
    double seconds[RUNS];
    for (int run = -1; run < RUNS; run++) {
        const double begin = clock_seconds();
        sgemm(ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, N, N, N, 1, a, N, b, N, 0, c, N);
        seconds[run < 0 ? 0 : run] = clock_seconds() - begin;
    }
    mem_free(a);
    usleep(300000); /* its threads spin for a while after their last call */
    return 2.0 * N * N * N / timing_of(seconds, RUNS).median;
}

/* All cores copy; much larger than the caches. */
static double host_copy_rate(void) {
    enum { RUNS = 5 };
    const size_t n = (size_t)256 << 20;
    char *from = mem_zeroed(n, 1), *to = mem_zeroed(n, 1);
    double seconds[RUNS];
    for (int run = -1; from && to && run < RUNS; run++) {
        const double begin = clock_seconds();
#pragma omp parallel
        {
            const size_t part = n / (size_t)omp_get_num_threads(), at = part * (size_t)omp_get_thread_num();
            memcpy(to + at, from + at, part);
        }
        seconds[run < 0 ? 0 : run] = clock_seconds() - begin;
    }
    const bool done = from && to;
    mem_free(from);
    mem_free(to);
    return done ? 2.0 * (double)n / timing_of(seconds, RUNS).median : 0;
}

/* ops.scatter_rows is not a copy of the library; copy_in from the device's own memory is. */
static double device_copy_rate(const Device *d) {
    enum { RUNS = 20 };
    const size_t n = (size_t)2 << 30;
    Queue *q = d->queue_new();
    void *from = d->alloc(n), *to = d->alloc(n);
    double seconds[RUNS];
    for (int run = -2; q && from && to && run < RUNS; run++) {
        const double begin = clock_seconds();
        d->copy_in(q, tensor_vector(to, DTYPE_F32, (int64_t)n / 4), from);
        if (!d->sync(q)) break;
        seconds[run < 0 ? 0 : run] = clock_seconds() - begin;
    }
    const bool done = q && from && to && !q->failed_op;
    if (from) d->free(from);
    if (to) d->free(to);
    if (q) d->queue_free(q);
    return done ? 2.0 * (double)n / timing_of(seconds, RUNS).median : 0;
}

Ceilings ceilings_of(const Device *device) {
    if (device->graph_begin) return (Ceilings){0, device_copy_rate(device)};
    return (Ceilings){sgemm_rate(), host_copy_rate()};
}

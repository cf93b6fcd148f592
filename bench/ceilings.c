/* What this machine can do at most: matrix products by the vendor's library, and copies of memory. The
 * libraries are found at run time: they are ceilings, not dependencies. */
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

/* Seconds of one piece of work on a queue. */
typedef struct {
    const Device *device;
    Queue *queue;
    Tensor a, b, c;
} DeviceWork;

static void multiply(const DeviceWork *w) {
    w->device->ops->dense(w->queue, w->c, w->a, w->b, (Tensor){0}, (Tensor){0});
}
/* From the device's own memory: the runtime's copy, not a kernel of ours. */
static void copy(const DeviceWork *w) { w->device->copy_in(w->queue, w->c, w->a.data); }

static double seconds_of(const DeviceWork *w, void (*work)(const DeviceWork *)) {
    enum { RUNS = 20 };
    double seconds[RUNS];
    for (int run = -2; run < RUNS; run++) {
        const double begin = clock_seconds();
        work(w);
        if (!w->device->sync(w->queue)) return 0;
        seconds[run < 0 ? 0 : run] = clock_seconds() - begin;
    }
    return timing_of(seconds, RUNS).median;
}

/* On random numbers: on zeros a GPU draws less power and runs faster. */
static Ceilings device_ceilings(const Device *d) {
    enum { N = 8192 };
    const size_t n_bytes = (size_t)2 << 30;
    Ceilings found = {0};
    DeviceWork w = {.device = d, .queue = d->queue_new()};
    void *from = d->alloc(n_bytes), *to = d->alloc(n_bytes);
    if (w.queue && from && to) {
        w.a = tensor_vector(from, DTYPE_F32, (int64_t)n_bytes / 4),
        w.c = tensor_vector(to, DTYPE_F32, (int64_t)n_bytes / 4);
        bench_fill(d, w.queue, from, n_bytes);
        const double seconds = seconds_of(&w, copy);
        found.copy = seconds > 0 ? 2.0 * (double)n_bytes / seconds : 0;
        w.a = tensor_matrix(from, DTYPE_BF16, N, N),
        w.b = tensor_matrix((char *)from + (512 << 20), DTYPE_BF16, N, N);
        w.c = tensor_matrix(to, DTYPE_BF16, N, N);
        if (d->dense_by_library && d->dense_by_library(true, NULL)) {
            const double product = seconds_of(&w, multiply);
            found.product = product > 0 ? 2.0 * N * N * N / product : 0;
            d->dense_by_library(false, NULL);
        }
    }
    if (from) d->free(from);
    if (to) d->free(to);
    if (w.queue) d->queue_free(w.queue);
    return found;
}

Ceilings ceilings_of(const Device *device) {
    if (device->graph_begin) return device_ceilings(device);
    return (Ceilings){sgemm_rate(), host_copy_rate()};
}

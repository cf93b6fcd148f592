/* Matrix products of the CPU backend beside OpenBLAS sgemm on the same shapes, in one process: forward and
 * backward, one matrix and eight unbalanced experts, weights in f32, bf16 and f16, and activations and
 * weights in bf16.
 *
 *   bench_gemm [ROUNDS [dense|back|experts [ROWS]]]
 *
 * Ways are measured in turn, the median counts. Before each measurement the other library's spinning
 * threads get time to fall asleep. One thread is measured by its own processor time, which other jobs do
 * not stretch. Up to 16 rows each call reads another part of a pool, as the layers of a model do, so
 * weights come from memory; the rate of a plain read of as many bytes stands beside. */
#include "kernels/check.h"
#include "kernels/device.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

typedef enum { SGEMM, F32, BF16, F16, BF16_BOTH, STREAM, N_WAYS } Way;
enum { MOST_ROWS = 2048, MOST_WIDTH = 14336, MOST_ROUNDS = 99, EXPERTS = 8, FEW_ROWS = 16 };
static const size_t POOL_BYTES = (size_t)512 << 20;

typedef struct {
    Queue *queue;
    const Ops *ops;
    char *pool;
    void *x, *x_narrow, *y;
    int32_t *pairs;
    int rounds;
    size_t n_calls;
} Bench;

typedef struct {
    int64_t n, k; /* weights [n, k] of each expert */
    bool back;
    int64_t experts;
    int32_t offsets[EXPERTS + 1];
} Shape;

static int64_t rows_of(const Shape *s) { return s->offsets[s->experts]; }

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(omp_get_max_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* ---- the ways ---- */
static void call_sgemm(const Shape *s, const float *x, const float *w, float *y) {
#ifdef HAVE_OPENBLAS
    int64_t depth = s->back ? s->n : s->k, columns = s->back ? s->k : s->n;
    for (int64_t e = 0; e < s->experts; e++) {
        int64_t first = s->offsets[e], rows = s->offsets[e + 1] - first;
        if (rows == 0) continue;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, s->back ? CblasNoTrans : CblasTrans, (int)rows, (int)columns,
                    (int)depth, 1, x + first * depth, (int)depth, w + e * s->n * s->k, (int)s->k, 0,
                    y + first * columns, (int)columns);
    }
#else
    (void)s, (void)x, (void)w, (void)y;
#endif
}

static volatile uint64_t sink;

static void call_stream(const char *w, size_t n_bytes) {
    typedef uint64_t Words __attribute__((vector_size(64)));
    int64_t n = (int64_t)(n_bytes / sizeof(Words)) / 4 * 4;
    uint64_t total = 0;
#pragma omp parallel for schedule(static) reduction(^ : total)
    for (int64_t part = 0; part < n; part += 4096) {
        const Words *p = (const Words *)w + part;
        int64_t end = part + 4096 < n ? 4096 : n - part;
        Words a = {0}, b = a, c = a, d = a;
        for (int64_t i = 0; i < end; i += 4) a ^= p[i], b ^= p[i + 1], c ^= p[i + 2], d ^= p[i + 3];
        a ^= b ^ c ^ d;
        total ^= a[0] ^ a[5];
    }
    sink = total;
}

static void call_ours(const Bench *b, const Shape *s, Way way, char *weights) {
    static const DType types[N_WAYS] = {
        [F32] = DTYPE_F32, [BF16] = DTYPE_BF16, [F16] = DTYPE_F16, [BF16_BOTH] = DTYPE_BF16};
    int64_t rows = rows_of(s), depth = s->back ? s->n : s->k, columns = s->back ? s->k : s->n;
    bool narrow = way == BF16_BOTH;
    Tensor x = tensor_matrix(narrow ? b->x_narrow : b->x, narrow ? DTYPE_BF16 : DTYPE_F32, rows, depth);
    Tensor y = tensor_matrix(b->y, DTYPE_F32, rows, columns), none = {0};
    if (s->experts == 1) {
        Tensor w = tensor_matrix(weights, types[way], s->n, s->k);
        if (s->back)
            b->ops->dense_bwd(b->queue, y, x, w);
        else
            b->ops->dense(b->queue, y, x, w, none, none);
        return;
    }
    Tensor w = tensor_cube(weights, types[way], s->experts, s->n, s->k);
    MoePlan plan = {tensor_vector((void *)(uintptr_t)s->offsets, DTYPE_I32, s->experts + 1),
                    tensor_vector(b->pairs, DTYPE_I32, rows), tensor_matrix(b->pairs, DTYPE_I32, rows, 1), 1};
    if (s->back)
        b->ops->moe_down_bwd(b->queue, y, none, x, w, none, plan);
    else
        b->ops->moe_gate_up(b->queue, y, x, w, none, plan);
}

static void call_way(Bench *b, const Shape *s, Way way) {
    size_t size = (size_t)(s->experts * s->n * s->k) * (way == SGEMM || way == F32 || way == STREAM ? 4 : 2);
    check(size <= POOL_BYTES, "%zu bytes of weights", size);
    char *w = b->pool + (rows_of(s) <= FEW_ROWS ? b->n_calls++ % (POOL_BYTES / size) * size : 0);
    if (way == SGEMM)
        call_sgemm(s, b->x, (const float *)(void *)w, b->y);
    else if (way == STREAM)
        call_stream(w, size);
    else
        call_ours(b, s, way, w);
}

static bool way_applies(const Shape *s, Way way) {
#ifndef HAVE_OPENBLAS
    if (way == SGEMM) return false;
#endif
    if (way == STREAM) return rows_of(s) <= FEW_ROWS;
    return !(way == BF16_BOTH && s->back);
}

/* ---- one line ---- */
/* The part of the weights whose experts have rows. */
static double share_used(const Shape *s) {
    int n = 0;
    for (int64_t e = 0; e < s->experts; e++) n += s->offsets[e + 1] > s->offsets[e];
    return (double)n / (double)s->experts;
}

static void print_line(const Shape *s, const double seconds[N_WAYS]) {
    double flops = 2.0 * (double)rows_of(s) * (double)s->n * (double)s->k;
    double bytes = 4.0 * (double)(s->experts * s->n * s->k), used = share_used(s);
    printf("%-7s %5lld %6lld %6lld |",
           s->experts > 1 ? (s->back ? "exp bwd" : "experts")
           : s->back      ? "back"
                          : "",
           (long long)rows_of(s), (long long)(s->back ? s->n : s->k), (long long)(s->back ? s->k : s->n));
    for (Way way = SGEMM; way < STREAM; way++)
        printf(" %7.1f", seconds[way] > 0 ? flops / seconds[way] / 1e9 : 0);
    printf(" |");
    for (Way way = F32; way < STREAM; way++)
        printf(" %5.2f", seconds[way] > 0 ? seconds[SGEMM] / seconds[way] : 0);
    if (seconds[STREAM] > 0) {
        printf(" | %6.1f", bytes / seconds[STREAM] / 1e9);
        for (Way way = F32; way < STREAM; way++)
            printf(" %5.2f",
                   seconds[way] > 0 ? seconds[STREAM] * used * (way == F32 ? 1 : 0.5) / seconds[way] : 0);
    }
    putchar('\n');
    fflush(stdout);
}

static void bench_shape(Bench *b, const Shape *s) {
    double taken[N_WAYS][MOST_ROUNDS], seconds[N_WAYS] = {0};
    double flops = 2.0 * (double)rows_of(s) * (double)s->n * (double)s->k;
    int repeats = flops > 2e9 ? 1 : flops > 2e8 ? 2 : 8;
    for (int round = 0; round < b->rounds; round++)
        for (Way way = SGEMM; way < N_WAYS; way++) {
            if (!way_applies(s, way)) continue;
            if (omp_get_max_threads() > 1) usleep(way <= F32 ? 30000 : 1000);
            call_way(b, s, way); /* wakes this library's threads */
            double begin = seconds_now();
            for (int i = 0; i < repeats; i++) call_way(b, s, way);
            taken[way][round] = (seconds_now() - begin) / repeats;
        }
    for (Way way = SGEMM; way < N_WAYS; way++)
        if (way_applies(s, way)) seconds[way] = median(taken[way], b->rounds);
    print_line(s, seconds);
}

static void bench_dense(Bench *b, bool back, int64_t only_rows) {
    static const int64_t shapes[][2] = {{3584, 1024}, {1024, 3584}, {14336, 4096}, {768, 2048}};
    static const int32_t rows[] = {1, 4, 16, 64, 256, 512, 2048};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            if (only_rows && rows[r] != only_rows) continue;
            Shape s = {
                .n = shapes[i][0], .k = shapes[i][1], .back = back, .experts = 1, .offsets = {0, rows[r]}};
            bench_shape(b, &s);
        }
}

/* 2048 rows, a quarter and a sixteenth of them, and the 16 and 2 of decoding. */
static void bench_experts(Bench *b, int64_t only_rows) {
    static const int32_t counts[][EXPERTS] = {{900, 500, 300, 160, 100, 60, 28, 0},
                                              {225, 125, 75, 40, 25, 15, 7, 0},
                                              {56, 31, 19, 10, 6, 4, 2, 0},
                                              {3, 1, 2, 4, 2, 2, 1, 1},
                                              {0, 0, 1, 0, 0, 1, 0, 0}};
    static const int64_t shapes[][2] = {{7168, 1024}, {1024, 3584}, {1536, 2048}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
            for (int back = 0; back < 2; back++) {
                Shape s = {.n = shapes[i][0], .k = shapes[i][1], .back = back, .experts = EXPERTS};
                for (int e = 0; e < EXPERTS; e++) s.offsets[e + 1] = s.offsets[e] + counts[c][e];
                if (!only_rows || rows_of(&s) == only_rows) bench_shape(b, &s);
            }
}

static void *memory(const Device *device, size_t n_bytes) {
    void *p = device->alloc(n_bytes);
    check(p, "%zu bytes", n_bytes);
    return p;
}

int main(int argc, char **argv) {
    const Device *device = cpu_device();
    check(device, "no CPU device");
    const char *what = argc > 2 ? argv[2] : "all";
    int64_t only_rows = argc > 3 ? atol(argv[3]) : 0, count = (int64_t)MOST_ROWS * MOST_WIDTH;
    Bench b = {.queue = device->queue_new(), .ops = device->ops, .rounds = argc > 1 ? atoi(argv[1]) : 7};
    check(b.queue && b.rounds > 0 && b.rounds <= MOST_ROUNDS, "%d rounds", b.rounds);
    b.pool = memory(device, POOL_BYTES);
    b.x = memory(device, (size_t)count * 4);
    b.x_narrow = memory(device, (size_t)count * 2);
    b.y = memory(device, (size_t)count * 4);
    b.pairs = memory(device, MOST_ROWS * sizeof *b.pairs);
    /* fair values whether read as f32, bf16 or f16 */
    for (size_t i = 0; i < POOL_BYTES / 2; i++)
        ((uint16_t *)(void *)b.pool)[i] = (uint16_t)((i * 40503u & 0x83ff) | 0x3800);
    for (int64_t i = 0; i < count; i++) {
        ((float *)b.x)[i] = (float)(i * 2654435761 % 2001) * 0.001f - 1;
        ((uint16_t *)b.x_narrow)[i] = (uint16_t)((i * 40503 & 0x80ff) | 0x3f00);
    }
    memset(b.y, 0, (size_t)count * 4);
    for (int32_t i = 0; i < MOST_ROWS; i++) b.pairs[i] = i;
    printf("table %s, %d threads, median of %d\n", device->name, omp_get_max_threads(), b.rounds);
#ifdef HAVE_OPENBLAS
    printf("OpenBLAS with its kernels for %s (OPENBLAS_CORETYPE chooses others)\n", openblas_get_corename());
#endif
    printf("         rows  depth columns | GFLOP/s: sgemm f32 bf16 f16 both-bf16 | over sgemm: f32 bf16 f16 "
           "both | read GB/s; share of it\n");
    if (!strcmp(what, "all") || !strcmp(what, "dense")) bench_dense(&b, false, only_rows);
    if (!strcmp(what, "all") || !strcmp(what, "back")) bench_dense(&b, true, only_rows);
    if (!strcmp(what, "all") || !strcmp(what, "experts")) bench_experts(&b, only_rows);
    device->free(b.pool), device->free(b.x), device->free(b.x_narrow), device->free(b.y),
        device->free(b.pairs);
    device->queue_free(b.queue);
    return 0;
}

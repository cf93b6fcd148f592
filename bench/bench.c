/* Sizes of the models that are measured, and what a set of timings is summed up as. */
#include "bench.h"
#include "../engine/alloc.h"
#include "../kernels/check.h"
#include "../kernels/random.h"
#include <stdlib.h>
#include <string.h>

static const BenchShape SHAPES[] = {
    {"mixtral", 4096, 14336, 8, 2, 32, 8, 128, 32000}, {"qwen3", 2048, 768, 128, 8, 32, 4, 128, 151936},
    {"olmoe", 2048, 1024, 64, 8, 16, 16, 128, 50304},  {"gpt-oss", 2880, 2880, 32, 4, 64, 8, 64, 201088},
    {"bench", 1024, 3584, 8, 2, 16, 4, 64, 8192},      {"tiny", 256, 512, 8, 2, 4, 2, 64, 1000},
};

const BenchShape *bench_shape(const char *name) {
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
        if (!strcmp(SHAPES[i].name, name)) return &SHAPES[i];
    return NULL;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

Timing timing_of(double *seconds, int n) {
    qsort(seconds, (size_t)n, sizeof *seconds, by_value);
    return (Timing){seconds[0], seconds[n / 2], seconds[n - 1]};
}

/* Sums of four uniforms, cut to bf16. */
void bench_fill(const Device *device, Queue *queue, void *to, size_t n_bytes) {
    enum { N = 32 << 20, OVERLAP = 2048 };
    uint16_t *block = mem_alloc(N * sizeof *block);
    check(block, "out of memory");
#pragma omp parallel for
    for (int64_t i = 0; i < N; i++) {
        const uint64_t bits = random_bits(3, RANDOM_TEST, 0, i);
        float sum = -4;
        for (int part = 0; part < 4; part++) sum += (float)(bits >> 16 * part & 0xffff) * 0x1p-15f;
        sum *= 0.433f; /* four uniforms on [-1, 1): variance 4/3 */
        uint32_t word;
        memcpy(&word, &sum, sizeof word);
        block[i] = (uint16_t)(word >> 16);
    }
    for (size_t at = 0; at < n_bytes; at += (N - OVERLAP) * sizeof *block) {
        const size_t left = (n_bytes - at) / sizeof *block;
        device->copy_in(queue, tensor_vector((char *)to + at, DTYPE_BF16, left < N ? (int64_t)left : N),
                        block);
    }
    check(device->sync(queue), "%s", queue->failure);
    mem_free(block);
}

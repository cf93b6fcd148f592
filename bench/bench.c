/* Sizes of the models that are measured, and what a set of timings is summed up as. */
#include "bench.h"
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

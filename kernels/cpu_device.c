/* The CPU as a device: ops run when they are called; memory is the host's. */
#include "cpu/cpu.h"
#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const Ops generic_ops, f64_ops;
#if defined(__x86_64__)
extern const Ops avx2_ops, avx512_ops, avx512bf16_ops, amx_ops;
#endif

void queue_fail(Queue *q, const char *op, const char *format, ...) {
    if (q->failed_op) return;
    q->failed_op = op;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(q->failure, sizeof q->failure, format, arguments);
    va_end(arguments);
}

/* One scratch block for each thread; pages that no thread touches take no memory. */
typedef struct {
    char *blocks;
    int n_threads;
} Scratch;

enum { LEAST_THREADS = 8 };

static Queue *queue_new(void) {
    Queue *q = calloc(1, sizeof *q);
    Scratch *scratch = calloc(1, sizeof *scratch);
    int n = LEAST_THREADS;
    if (omp_get_max_threads() > n) n = omp_get_max_threads();
    if (omp_get_num_procs() > n) n = omp_get_num_procs();
    char *blocks = aligned_alloc(4096, (size_t)n * CPU_SCRATCH_BYTES);
    if (!q || !scratch || !blocks) {
        free(q);
        free(scratch);
        free(blocks);
        return NULL;
    }
    *scratch = (Scratch){blocks, n};
    q->stream = scratch;
    return q;
}

void *cpu_scratch(Queue *q) {
    const Scratch *scratch = q->stream;
    int thread = omp_get_thread_num();
    check(thread < scratch->n_threads, "thread %d of %d", thread, scratch->n_threads);
    return scratch->blocks + (size_t)thread * CPU_SCRATCH_BYTES;
}

static void queue_free(Queue *q) {
    Scratch *scratch = q->stream;
    free(scratch->blocks);
    free(scratch);
    free(q);
}
static void *cpu_alloc(size_t n_bytes) {
    return aligned_alloc(256, (n_bytes + 255) / 256 * 256 + (n_bytes ? 0 : 256));
}
static void cpu_free(void *p) { free(p); }
static void cpu_zero(Queue *q, Tensor t) {
    if (!q->failed_op) memset(t.data, 0, tensor_bytes(t));
}
static void copy_in(Queue *q, Tensor to, const void *from) {
    if (!q->failed_op && tensor_count(to)) memcpy(to.data, from, tensor_bytes(to));
}
static void copy_out(Queue *q, void *to, Tensor from) {
    if (!q->failed_op && tensor_count(from)) memcpy(to, from.data, tensor_bytes(from));
}
static bool cpu_sync(Queue *q) { return q->failed_op == NULL; }

#define DEVICE(table)                                                                                        \
    {                                                                                                        \
        .name = #table, .ops = &table##_ops, .computes = true, .queue_new = queue_new,                       \
        .queue_free = queue_free, .alloc = cpu_alloc, .free = cpu_free, .zero = cpu_zero,                    \
        .copy_in = copy_in, .copy_out = copy_out, .sync = cpu_sync                                           \
    }
static const Device generic_device = DEVICE(generic), f64_device = DEVICE(f64);
#if defined(__x86_64__)
static const Device avx2_device = DEVICE(avx2), avx512_device = DEVICE(avx512),
                    avx512bf16_device = DEVICE(avx512bf16), amx_device = DEVICE(amx);
#endif

#if defined(__x86_64__)
/* Whether the processor has AMX for bf16 and the kernel lets this process use its registers, which must be
 * asked for once. */
static bool may_use_amx(void) {
    enum { ASK_FOR_STATE = 0x1023, TILE_DATA = 18, LEAF = 7, BF16 = 1 << 22, TILES = 1 << 24 };
    unsigned a, b, c, d = 0;
    return __get_cpuid_count(LEAF, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILES) &&
           syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) == 0;
}
#endif

/* Whether this processor runs a table. */
static bool processor_has(const Device *device) {
#if defined(__x86_64__)
    /* f16c comes with every avx2; clang 14 does not know its name here */
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (device == &avx2_device) return avx2;
    if (device == &avx512_device) return avx512;
    if (device == &amx_device) return avx512 && __builtin_cpu_supports("avx512bf16") && may_use_amx();
    if (device == &avx512bf16_device) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return device != NULL;
}

static const Device *const devices[] = {
#if defined(__x86_64__)
    &amx_device,     &avx512bf16_device, &avx512_device, &avx2_device,
#endif
    &generic_device, &f64_device}; /* the best first */

const Device *cpu_device_named(const char *isa) {
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        if (!strcmp(devices[i]->name, isa)) return processor_has(devices[i]) ? devices[i] : NULL;
    return NULL;
}

const Device *cpu_device(void) {
    const char *named = getenv("GATETAPE_ISA");
    if (named && *named) return strcmp(named, "f64") ? cpu_device_named(named) : NULL;
    size_t best = 0;
    while (!processor_has(devices[best])) best++;
    return devices[best];
}

/* The ops that `gatetape bench ops` times: their tensors, and the call. */
#ifndef GATETAPE_BENCH_OP_CASES_H
#define GATETAPE_BENCH_OP_CASES_H
#include "bench.h"

enum { MOST_TENSORS = 16, MOST_SETS = 8, SPREAD_BYTES = 256 << 20 };

typedef struct {
    const BenchShape *shape;
    int64_t rows, prompts; /* tokens in all; attention: of this many prompts */
    double skew;
    int64_t experts_hit; /* of a routed case */
    DType act;
} Sizes;

typedef struct {
    Tensor t[MOST_TENSORS];
    int n;
    MoePlan plan;
    Spans spans;
    Lora lora;
    LoraSums sums;
} Set;

/* Device memory: `pool` holds random numbers, `scratch` results, both dealt out round and round; `ints` holds
 * indices and plans of the case at hand. */
typedef struct {
    const Device *device;
    Queue *queue;
    char *pool, *scratch, *ints;
    size_t pool_bytes, scratch_bytes, ints_bytes, pool_at, scratch_at, ints_at;
    size_t dealt; /* by the case at hand */
} Memory;

typedef struct {
    const char *op;
    void (*build)(Memory *m, const Sizes *s, Set *set);
    void (*call)(const Ops *o, Queue *q, const Set *set);
} OpBench;

extern const OpBench op_benches[]; /* ended by a name of NULL */

#endif

/* What `gatetape bench` runs: random data at the shapes of real models, on any device that computes. */
#ifndef GATETAPE_BENCH_H
#define GATETAPE_BENCH_H
#include "../engine/error.h"
#include "../kernels/device.h"
#include <stdio.h>

/* A model by its sizes. */
typedef struct {
    const char *name;
    int64_t hidden, inner, experts, choices, heads, kv_heads, head, vocabulary;
} BenchShape;

/* NULL: no such name. */
const BenchShape *bench_shape(const char *name);

/* Fills device memory with normal numbers of standard deviation 0.5 as bf16; a pair read as f32 has the size
 * of its second half. */
void bench_fill(const Device *device, Queue *queue, void *to, size_t n_bytes);

/* Seconds of n timed runs, sorted; the middle one is the median. */
enum { BENCH_RUNS = 20 };
typedef struct {
    double least, median, most;
} Timing;
Timing timing_of(double *seconds, int n);

/* The rows of the ops bench: case,device,seconds_median,seconds_least,seconds_most,gflop,gigabyte,tflops,gbs.
 * A case is SHAPE/OP/ROWS, or SHAPE/OP/ROWS/SKEW for ops on routed rows: experts' popularity is exp(SKEW z),
 * z of a normal distribution. ROWS is a number of tokens, or PROMPTSxTOKENS for attention.
 *
 * list: print the names of all cases, run none. from: names to run, one a line, each answered by its row at
 * once (so that a peer can be measured in between); NULL: all cases. */
typedef struct {
    const Device *device;
    DType act;
    bool list;
    FILE *from, *to;
    int64_t memory_gib; /* of the device, for operands and results */
} BenchOps;
bool bench_ops(const BenchOps *request, Error *error);

/* Largest rates of this machine, 0 where unknown. */
typedef struct {
    double product; /* FLOP/s of a large matrix product by the vendor's library */
    double copy;    /* bytes read plus bytes written a second by a large copy */
} Ceilings;
Ceilings ceilings_of(const Device *device);

/* Writes FOLDER/config.json and model.safetensors: random weights. */
bool bench_checkpoint(const BenchShape *shape, int64_t layers, DType dtype, const char *folder, Error *error);

/* Rows of bench/results/cpu.csv and model.csv: forward, forward and gate gradient (recomputing, keeping),
 * decoding. */
typedef struct {
    const char *folder; /* of a checkpoint */
    const Device *device;
    DType compute;
    int64_t streamed;                       /* layers whose experts are streamed from the host */
    int64_t prompts, tokens, decode_tokens; /* tokens: of a prompt; decode_tokens: steps that are timed */
    const int64_t *batches;                 /* of decoding, ended by 0 */
    FILE *to;
} BenchModel;
bool bench_model(const BenchModel *request, Error *error);

/* What the GPU's kernels move and multiply, counted on the emulated device, beside the least possible and the
 * time that a device could not beat with those counts: a prediction, never a measurement. *kept: every bound
 * holds. */
typedef struct {
    const char *limits; /* of the device: a file like configs/devices/h100.json; NULL: that one */
    const char *out;    /* rows of bench/results/counters.csv; NULL: none */
    FILE *to;           /* the table */
} BenchCounters;
bool bench_counters(const BenchCounters *request, bool *kept, Error *error);

#endif

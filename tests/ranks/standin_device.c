/* The CPU's table of ops with the one that a tree sum uses put on the stream. */
#include "travel_device.h"
#if __has_include(<nccl.h>) && __has_include(<cuda_runtime.h>)
#include <cuda_runtime.h>
#else
#include "nccl_names.h"
#endif
#include <stdlib.h>

/* Of the stand-in: what kernels do on a GPU. */
void queue_add_f32(cudaStream_t s, float *acc, const float *x, int64_t n);
void queue_store_i64(cudaStream_t s, _Atomic int64_t *where, int64_t value);

static cudaStream_t stream;

static void *native(Queue *q) {
    (void)q;
    return stream;
}

static void copy(Queue *q, void *to, const void *from, size_t n_bytes) {
    (void)q;
    cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDefault, stream);
}

static int64_t *words(int64_t n) { return calloc((size_t)n, sizeof(int64_t)); }

static void store(Queue *q, int64_t *word, int64_t value) {
    (void)q;
    queue_store_i64(stream, (_Atomic int64_t *)word, value);
}

static bool idle(Queue *q) { return q->failed_op || cudaStreamQuery(stream) == cudaSuccess; }

static void add(Queue *q, Tensor y, Tensor a, Tensor b) {
    (void)q;
    if (y.data != a.data) abort(); /* a tree adds in place */
    queue_add_f32(stream, y.data, b.data, tensor_count(y));
}

const Device *travel_device(Queue **queue) {
    static const DeviceStreams streams = {native, copy, words, store, idle};
    static Device device;
    static Ops ops;
    device = *cpu_device();
    ops = *device.ops;
    ops.add = add;
    device.ops = &ops;
    device.name = "stand-in";
    device.streams = &streams;
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return NULL;
    *queue = device.queue_new();
    return *queue ? &device : NULL;
}

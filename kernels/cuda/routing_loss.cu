/* Losses on the router's distributions, and their gradients: sixteen lanes a row, whose element i is lane
 * i % 16's, so that sums have the order of kernels/cpu/lanes.h and results its bits. A row is read once from
 * memory and again from L1. Limit: memory, one read of logits and of what they are compared with. */
#include "device.cuh"

enum { LANES = 16, THREADS = 128, ROWS = THREADS / LANES };

DEVICE int64_t row_here() { return (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES; }
DEVICE int lane_here() { return threadIdx.x % LANES; }

/* Logarithms of the softmax of a row of logits, all multiplied by `scale`. n = 0 for lanes without a row,
 * which take part all the same. */
struct LogSoftmax {
    const float *x;
    float scale, lse;
    __device__ __forceinline__ float operator()(int i) const { return load(&x[i]) * scale - lse; }
};

DEVICE LogSoftmax log_softmax(const float *x, int n, float scale) {
    float largest = -INFINITY, sum = 0;
    for (int i = lane_here(); i < n; i += LANES) largest = fmaxf(largest, load(&x[i]) * scale);
#pragma unroll
    for (int d = LANES / 2; d; d /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
    for (int i = lane_here(); i < n; i += LANES) sum += exp_f32(load(&x[i]) * scale - largest);
    return LogSoftmax{x, scale, largest + log_f32(lanes_sum(sum))};
}

static void check_rows(Tensor values, Tensor logits, Tensor other, int64_t n_other) {
    check(tensor_columns(logits) > 0 && tensor_columns(logits) <= INT32_MAX &&
              tensor_count(values) == tensor_rows(logits) && tensor_count(other) == n_other,
          "%lld values, logits [%lld,%lld], %lld beside them", (long long)tensor_count(values),
          (long long)tensor_rows(logits), (long long)tensor_columns(logits), (long long)tensor_count(other));
}

/* ---- KL to a frozen router ---- */
static __global__ void __launch_bounds__(THREADS)
    kl_of_rows(float *kl, const float *logits, const float *frozen, int64_t rows, int columns, float scale) {
    const int64_t t = row_here();
    const int n = t < rows ? columns : 0;
    const LogSoftmax p = log_softmax(&frozen[t * columns], n, scale),
                     own = log_softmax(&logits[t * columns], n, scale);
    float sum = 0;
    for (int i = lane_here(); i < n; i += LANES) {
        const float log_p = p(i);
        sum += exp_f32(log_p) * (log_p - own(i));
    }
    sum = lanes_sum(sum);
    if (n && lane_here() == 0) store(&kl[t], sum);
}

extern "C" void cuda_router_kl(Queue *q, Tensor kl, Tensor logits, Tensor frozen, float temperature) {
    const Call call(q, "router_kl", kl, logits, frozen);
    check_rows(kl, logits, frozen, tensor_count(logits));
    const int64_t rows = tensor_rows(logits);
    LAUNCH(call, blocks_for(rows, ROWS), THREADS, 0, kl_of_rows, reals(kl), reals(logits), reals(frozen),
           rows, (int)tensor_columns(logits), 1 / temperature);
}

static __global__ void __launch_bounds__(THREADS)
    kl_gradient(float *dlogits, const float *dkl, const float *logits, const float *frozen, int64_t rows,
                int columns, float scale) {
    const int64_t t = row_here();
    const float factor = t < rows ? load(&dkl[t]) * scale : 0;
    const int n = factor != 0 ? columns : 0;
    const LogSoftmax p = log_softmax(&frozen[t * columns], n, scale),
                     own = log_softmax(&logits[t * columns], n, scale);
    float *to = &dlogits[t * columns];
    for (int i = lane_here(); i < n; i += LANES)
        store(&to[i], load(&to[i]) + factor * (exp_f32(own(i)) - exp_f32(p(i))));
}

extern "C" void cuda_router_kl_bwd(Queue *q, Tensor dlogits, Tensor dkl, Tensor logits, Tensor frozen,
                                   float temperature) {
    const Call call(q, "router_kl_bwd", dlogits, dkl, logits, frozen);
    check_rows(dkl, logits, frozen, tensor_count(logits));
    const int64_t rows = tensor_rows(logits);
    LAUNCH(call, blocks_for(rows, ROWS), THREADS, 0, kl_gradient, reals(dlogits), reals(dkl), reals(logits),
           reals(frozen), rows, (int)tensor_columns(logits), 1 / temperature);
}

/* ---- distance to an aim ---- */
static __global__ void __launch_bounds__(THREADS)
    anchor_of_rows(float *distance, const float *logits, const float *aim, int64_t rows, int columns) {
    const int64_t t = row_here();
    const int n = t < rows ? columns : 0;
    const LogSoftmax own = log_softmax(&logits[t * columns], n, 1);
    float sum = 0;
    for (int i = lane_here(); i < n; i += LANES) {
        const float off = exp_f32(own(i)) - load(&aim[i]);
        sum = fmaf(off, off, sum);
    }
    sum = lanes_sum(sum);
    if (n && lane_here() == 0) store(&distance[t], sum);
}

extern "C" void cuda_router_anchor(Queue *q, Tensor distance, Tensor logits, Tensor aim) {
    const Call call(q, "router_anchor", distance, logits, aim);
    check_rows(distance, logits, aim, tensor_columns(logits));
    const int64_t rows = tensor_rows(logits);
    LAUNCH(call, blocks_for(rows, ROWS), THREADS, 0, anchor_of_rows, reals(distance), reals(logits),
           reals(aim), rows, (int)tensor_columns(logits));
}

static __global__ void __launch_bounds__(THREADS)
    anchor_gradient(float *dlogits, const float *ddistance, const float *logits, const float *aim,
                    int64_t rows, int columns) {
    const int64_t t = row_here();
    const float factor = t < rows ? 2 * load(&ddistance[t]) : 0;
    const int n = factor != 0 ? columns : 0;
    const LogSoftmax own = log_softmax(&logits[t * columns], n, 1);
    float mean = 0;
    for (int i = lane_here(); i < n; i += LANES) {
        const float p = exp_f32(own(i));
        mean = fmaf(p - load(&aim[i]), p, mean);
    }
    mean = lanes_sum(mean);
    float *to = &dlogits[t * columns];
    for (int i = lane_here(); i < n; i += LANES) {
        const float p = exp_f32(own(i));
        store(&to[i], load(&to[i]) + factor * p * (p - load(&aim[i]) - mean));
    }
}

extern "C" void cuda_router_anchor_bwd(Queue *q, Tensor dlogits, Tensor ddistance, Tensor logits,
                                       Tensor aim) {
    const Call call(q, "router_anchor_bwd", dlogits, ddistance, logits, aim);
    check_rows(ddistance, logits, aim, tensor_columns(logits));
    const int64_t rows = tensor_rows(logits);
    LAUNCH(call, blocks_for(rows, ROWS), THREADS, 0, anchor_gradient, reals(dlogits), reals(ddistance),
           reals(logits), reals(aim), rows, (int)tensor_columns(logits));
}

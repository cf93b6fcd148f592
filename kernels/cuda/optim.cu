/* The optimizer's arithmetic: a thread four neighbouring elements, memory-bound, the order of
 * kernels/cpu/optim.c and its bits. PACKED: one access for the four. */
#include "device.cuh"
#include "row_threads.cuh"

enum { THREADS = 256, EACH = 4 };

template <bool PACKED>
static __global__ void __launch_bounds__(THREADS)
    sum_slots_kernel(float *y, const float *slots, int64_t count, int64_t n_examples) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * EACH;
    if (i >= count) return;
    float sum[EACH] = {};
    bool first = true;
    for (const float *slot = &slots[i]; n_examples; n_examples >>= 1, slot += count) {
        if (!(n_examples & 1)) continue;
        float next[EACH];
        load_part<PACKED, float, EACH>(next, slot, count - i);
#pragma unroll
        for (int k = 0; k < EACH; k++) sum[k] = first ? next[k] : next[k] + sum[k];
        first = false;
    }
    store_part<PACKED, float, EACH>(&y[i], sum, count - i);
}

extern "C" void cuda_sum_slots(Queue *q, Tensor y, Tensor slots, int64_t n_examples) {
    const Call call(q, "sum_slots", y, slots);
    const int64_t count = tensor_count(y);
    check(tensor_count(slots) == slots.shape[0] * count && n_examples >> slots.shape[0] == 0,
          "%lld elements, %lld slots, %lld examples", (long long)count, (long long)slots.shape[0],
          (long long)n_examples);
    const unsigned blocks = blocks_for(count, THREADS * EACH);
    if (rows_are_packed(EACH, count, y, slots))
        LAUNCH(call, blocks, THREADS, 0, sum_slots_kernel<true>, reals(y), reals(slots), count, n_examples);
    else
        LAUNCH(call, blocks, THREADS, 0, sum_slots_kernel<false>, reals(y), reals(slots), count, n_examples);
}

/* The rule in f32, as the CPU rounds it. */
struct Rule {
    float beta1, beta2, rest1, rest2, scale, keep, step, root, eps;
};

template <bool PACKED>
static __global__ void __launch_bounds__(THREADS)
    adamw_kernel(float *x, float *m, float *v, const float *grad, int64_t count, Rule rule) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * EACH, left = count - i;
    if (left <= 0) return;
    float value[EACH], mean[EACH], square[EACH], slope[EACH];
    load_part<PACKED, float, EACH>(slope, &grad[i], left);
    load_part<PACKED, float, EACH>(mean, &m[i], left);
    load_part<PACKED, float, EACH>(square, &v[i], left);
    load_part<PACKED, float, EACH>(value, &x[i], left);
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        const float g = rule.scale * slope[k];
        mean[k] = fmaf(rule.beta1, mean[k], rule.rest1 * g);
        square[k] = fmaf(rule.beta2, square[k], rule.rest2 * g * g);
        const float size = sqrtf(square[k]) / rule.root + rule.eps;
        value[k] = value[k] * rule.keep - rule.step * (mean[k] / size);
    }
    store_part<PACKED, float, EACH>(&m[i], mean, left);
    store_part<PACKED, float, EACH>(&v[i], square, left);
    store_part<PACKED, float, EACH>(&x[i], value, left);
}

extern "C" void cuda_adamw(Queue *q, Tensor x, Tensor m, Tensor v, Tensor grad, AdamwRule r) {
    const Call call(q, "adamw", x, m, v, grad);
    const int64_t count = tensor_count(x);
    check(tensor_count(m) == count && tensor_count(v) == count && tensor_count(grad) == count,
          "%lld elements", (long long)count);
    const Rule rule = {(float)r.beta1,
                       (float)r.beta2,
                       (float)(1 - r.beta1),
                       (float)(1 - r.beta2),
                       (float)r.grad_scale,
                       (float)(1 - r.rate * r.decay),
                       (float)(r.rate / r.correction1),
                       (float)sqrt(r.correction2),
                       (float)r.eps};
    const unsigned blocks = blocks_for(count, THREADS * EACH);
    if (rows_are_packed(EACH, count, x, m, v, grad))
        LAUNCH(call, blocks, THREADS, 0, adamw_kernel<true>, reals(x), reals(m), reals(v), reals(grad), count,
               rule);
    else
        LAUNCH(call, blocks, THREADS, 0, adamw_kernel<false>, reals(x), reals(m), reals(v), reals(grad),
               count, rule);
}

/* The optimizer's arithmetic: a thread an element, memory-bound, the order of kernels/cpu/optim.c and its
 * bits. */
#include "device.cuh"

enum { THREADS = 256 };

static __global__ void __launch_bounds__(THREADS)
    sum_slots_kernel(float *y, const float *slots, int64_t count, int64_t n_examples) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    float sum = 0;
    bool first = true;
    for (const float *slot = &slots[i]; n_examples; n_examples >>= 1, slot += count) {
        if (!(n_examples & 1)) continue;
        sum = first ? load(slot) : load(slot) + sum;
        first = false;
    }
    store(&y[i], sum);
}

extern "C" void cuda_sum_slots(Queue *q, Tensor y, Tensor slots, int64_t n_examples) {
    const Call call(q, "sum_slots", y, slots);
    const int64_t count = tensor_count(y);
    check(tensor_count(slots) == slots.shape[0] * count && n_examples >> slots.shape[0] == 0,
          "%lld elements, %lld slots, %lld examples", (long long)count, (long long)slots.shape[0],
          (long long)n_examples);
    LAUNCH(call, blocks_for(count, THREADS), THREADS, 0, sum_slots_kernel, reals(y), reals(slots), count,
           n_examples);
}

/* The rule in f32, as the CPU rounds it. */
struct Rule {
    float beta1, beta2, rest1, rest2, scale, keep, step, root, eps;
};

static __global__ void __launch_bounds__(THREADS)
    adamw_kernel(float *x, float *m, float *v, const float *grad, int64_t count, Rule rule) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    const float g = rule.scale * load(&grad[i]);
    const float mean = fmaf(rule.beta1, load(&m[i]), rule.rest1 * g);
    const float square = fmaf(rule.beta2, load(&v[i]), rule.rest2 * g * g);
    store(&m[i], mean);
    store(&v[i], square);
    const float size = sqrtf(square) / rule.root + rule.eps;
    store(&x[i], load(&x[i]) * rule.keep - rule.step * (mean / size));
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
    LAUNCH(call, blocks_for(count, THREADS), THREADS, 0, adamw_kernel, reals(x), reals(m), reals(v),
           reals(grad), count, rule);
}

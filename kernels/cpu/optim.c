/* The optimizer's arithmetic: the end of the sums over examples, and one step of AdamW. Element by element,
 * so bits depend on nothing else. */
#include "lanes.h"

void CPU_OP(sum_slots)(Queue *q, Tensor y, Tensor slots, int64_t n_examples) {
    if (q->failed_op) return;
    int64_t count = tensor_count(y);
    check(tensor_count(slots) == slots.shape[0] * count && n_examples >> slots.shape[0] == 0,
          "%lld elements, %lld slots, %lld examples", (long long)count, (long long)slots.shape[0],
          (long long)n_examples);
#pragma omp parallel for schedule(static) if (count > WORTH_THREADS)
    for (int64_t c = 0; c < count; c += PIECE) {
        int64_t n = least(PIECE, count - c);
        real *sum = reals(y) + c;
        bool first = true;
        memset(sum, 0, (size_t)n * sizeof *sum);
        for (int64_t s = 0; s < slots.shape[0]; s++) {
            if (!(n_examples >> s & 1)) continue;
            const real *slot = reals(slots) + s * count + c;
            for (int64_t i = 0; i < n; i++) sum[i] = first ? slot[i] : slot[i] + sum[i];
            first = false;
        }
    }
}

void CPU_OP(adamw)(Queue *q, Tensor x, Tensor m, Tensor v, Tensor grad, AdamwRule rule) {
    if (q->failed_op) return;
    int64_t count = tensor_count(x);
    check(tensor_count(m) == count && tensor_count(v) == count && tensor_count(grad) == count,
          "%lld elements", (long long)count);
    const real beta1 = (real)rule.beta1, beta2 = (real)rule.beta2, rest1 = (real)(1 - rule.beta1),
               rest2 = (real)(1 - rule.beta2), scale = (real)rule.grad_scale;
    const real keep = (real)(1 - rule.rate * rule.decay), step = (real)(rule.rate / rule.correction1);
    const real root = (real)sqrt(rule.correction2), eps = (real)rule.eps;
    real *to = reals(x), *first = reals(m), *second = reals(v);
    const real *gradient = reals(grad);
#pragma omp parallel for simd schedule(static) if (count > WORTH_THREADS)
    for (int64_t i = 0; i < count; i++) {
        real g = scale * gradient[i];
        real mean = fma_real(beta1, first[i], rest1 * g), square = fma_real(beta2, second[i], rest2 * g * g);
        first[i] = mean, second[i] = square;
#ifdef CPU_DOUBLE
        real size = sqrt(square) / root + eps;
#else
        real size = sqrtf(square) / root + eps;
#endif
        to[i] = to[i] * keep - step * (mean / size);
    }
}

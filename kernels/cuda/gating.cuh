/* The gate function of a gated MLP and its derivative, for elements in registers. */
#ifndef GATETAPE_CUDA_GATING_CUH
#define GATETAPE_CUDA_GATING_CUH
#include "device.cuh"

/* h(gate, up) = g sigmoid(alpha g) (u + shift), g and u clamped. */
struct Gating {
    float limit, alpha, shift;
};
static inline Gating gating_of(Activation act) {
    return act.limit > 0 ? Gating{act.limit, act.alpha, 1} : Gating{INFINITY, 1, 0};
}

/* For results rounded to bf16 two approximate instructions, 2^-20 off, do; f32 has the CPU's bits. */
template <class T> DEVICE float gate_sigmoid(float x) { return sigmoid_f32(x); }
template <> __device__ __forceinline__ float gate_sigmoid<bf16>(float x) {
    return reciprocal_approx(1 + exp2_approx(x * -1.44269504f));
}

/* Returns h, for a result of type T; gate and up become the gradients of themselves for the gradient dhidden
 * of h, none beyond the limit. */
template <class T> DEVICE float pass_gate(float &gate, float &up, float dhidden, Gating f) {
    const float g = gate > f.limit ? f.limit : gate, below = up > f.limit ? f.limit : up;
    const float u = below < -f.limit ? -f.limit : below;
    const float s = gate_sigmoid<T>(f.alpha * g), swish = g * s;
    const float slope = s * fmaf(f.alpha * g, 1 - s, 1); /* of g sigmoid(alpha g) */
    gate = gate > f.limit ? 0 : dhidden * (u + f.shift) * slope;
    up = up > f.limit || up < -f.limit ? 0 : dhidden * swish;
    return (u + f.shift) * swish;
}

#endif

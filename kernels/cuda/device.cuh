/* What every kernel file begins with: the launch of a kernel for an op, element types, packed accesses, and
 * sums over a warp or a block in a fixed order. */
#ifndef GATETAPE_CUDA_DEVICE_CUH
#define GATETAPE_CUDA_DEVICE_CUH
#include "../check.h"
#include "../device.h"
#include <cuda_runtime.h>
#ifdef GATETAPE_EMULATED
#include "ptx.h"
#else
#include "ptx.cuh"
#endif
#include "../math.h"

#define X(op) extern "C" op##_fn cuda_##op;
OPS(X)
#undef X

/* ---- launching ---- */
/* One call of an op: where it runs, and what an error shall name. */
struct Call {
    enum { MOST_OPERANDS = 14 };
    Queue *queue;
    const char *op;
    Tensor operands[MOST_OPERANDS];
    int n_operands;

    template <class... T>
    Call(Queue *q, const char *name, T... tensors)
        : queue(q), op(name), operands{tensors...}, n_operands(sizeof...(T)) {
        static_assert(sizeof...(T) <= MOST_OPERANDS, "operands");
    }
};

/* cuda_device.cu: the stream of a queue; what follows a launch (errors; with GATETAPE_SYNC=1 the wait);
 * WORKSPACE_BYTES of device memory for partial results between the kernels of one op. */
enum { WORKSPACE_BYTES = 16 << 20 };
cudaStream_t queue_stream(Queue *q);
void *queue_workspace(Queue *q);
void launch_finish(const Call &call, const char *kernel, cudaError_t error);
/* Whether hopper.cuh's kernels run: on compute capability 9.0, unless GATETAPE_HOPPER=0 asks for the
 * kernels of older GPUs, whose bits are the same. */
bool uses_hopper();
int n_multiprocessors();

template <class... P, class... A>
static void launch_kernel(const Call &call, const KernelShape &shape, void (*kernel)(P...), A... arguments) {
    if (call.queue->failed_op || shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
    launch_finish(call, shape.name, start_kernel(queue_stream(call.queue), shape, kernel, arguments...));
}

/* LAUNCH(call, grid, threads, shared_bytes, kernel, arguments...); a kernel with template arguments stands
 * in parentheses. An empty grid launches nothing. Nothing is launched on a queue that has failed. */
#define LAUNCH(call, grid, threads, shared_bytes, kernel, ...)                                               \
    launch_kernel(call, KernelShape{#kernel, grid, threads, shared_bytes}, kernel, __VA_ARGS__)

/* Blocks for n things, `each` a block. */
static inline unsigned blocks_for(int64_t n, int64_t each) {
    int64_t blocks = (n + each - 1) / each;
    check(blocks <= INT32_MAX, "%lld blocks", (long long)blocks);
    return (unsigned)blocks;
}

/* ---- element types ---- */
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};
DEVICE float to_f32(float x) { return x; }
DEVICE float to_f32(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
DEVICE float to_f32(f16 x) { return f16_bits_to_f32(x.bits); }
template <class T> DEVICE T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) { return bf16{f32_to_bf16_bits(x)}; }

/* The same element through T's precision. */
template <class T> DEVICE float rounded(float x) { return to_f32(from_f32<T>(x)); }

/* Calls f(T{}) with the element type of activations; of weights. */
template <class F> static void with_act(DType dtype, F f) {
    if (dtype == DTYPE_F32) return f(float{});
    check(dtype == DTYPE_BF16, "activations of dtype %s", dtype_name(dtype));
    f(bf16{});
}
template <class F> static void with_weight(DType dtype, F f) {
    if (dtype == DTYPE_F32) return f(float{});
    if (dtype == DTYPE_BF16) return f(bf16{});
    check(dtype == DTYPE_F16, "weights of dtype %s", dtype_name(dtype));
    f(f16{});
}

template <class T> static T *elements(Tensor t) { return static_cast<T *>(t.data); }
static inline float *reals(Tensor t) {
    check(!t.data || t.dtype == DTYPE_F32, "dtype %s", dtype_name(t.dtype));
    return elements<float>(t);
}
static inline int32_t *ints(Tensor t) {
    check(!t.data || t.dtype == DTYPE_I32, "dtype %s", dtype_name(t.dtype));
    return elements<int32_t>(t);
}
static inline int64_t *longs(Tensor t) {
    check(!t.data || t.dtype == DTYPE_I64, "dtype %s", dtype_name(t.dtype));
    return elements<int64_t>(t);
}

/* ---- N elements in one access: N * sizeof(T) is 2, 4, 8 or 16 bytes, the address a multiple of it ---- */
template <int BYTES> struct Word;
template <> struct Word<2> { typedef uint16_t type; };
template <> struct Word<4> { typedef uint32_t type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };

template <class T, int N> union Pack {
    typename Word<N * sizeof(T)>::type word;
    T element[N];
};

/* Elements of the widest access that suits T: 16 bytes. */
template <class T> constexpr int WIDEST = 16 / (int)sizeof(T);

template <class T, int N> DEVICE void load_pack(float (&x)[N], const T *p, Site at = {}) {
    Pack<T, N> pack;
    pack.word = load(reinterpret_cast<const typename Word<N * sizeof(T)>::type *>(p), at);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = to_f32(pack.element[i]);
}
template <class T, int N> DEVICE void store_pack(T *p, const float (&x)[N], Site at = {}) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) pack.element[i] = from_f32<T>(x[i]);
    store(reinterpret_cast<typename Word<N * sizeof(T)>::type *>(p), pack.word, at);
}

/* Whether rows of `columns` elements of every given tensor can be read in packs of n elements. Absent ones
 * can. */
static inline bool rows_are_packed(int n, int64_t columns) { return columns % n == 0; }
template <class... T> static bool rows_are_packed(int n, int64_t columns, Tensor t, T... more) {
    return (uintptr_t)t.data % ((size_t)n * dtype_bytes(t.dtype)) == 0 &&
           rows_are_packed(n, columns, more...);
}

/* An unsigned number in the order of the floats, never 0; both zeros give one. x is not NaN. */
DEVICE uint32_t ordered_bits(float x) {
    const uint32_t u = __float_as_uint(x + 0.0f);
    return u >> 31 ? ~u : u | 0x80000000u;
}

/* ---- sums in a fixed order: the same bits whatever the launch ---- */
DEVICE float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
    for (int d = 16; d; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
    return x;
}
/* Over each half of a warp. With element i of a row in lane i % 16, in order, the sum has the bits of
 * kernels/cpu/lanes.h. */
DEVICE float lanes_sum(float x) {
#pragma unroll
    for (int d = 8; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}
/* Over a block of WARPS warps; every thread gets the result. */
template <int WARPS> DEVICE float block_sum(float x) {
    SHARED(float, part, WARPS);
    x = warp_sum(x);
    if (WARPS == 1) return x;
    __syncthreads(); /* the last call's parts have been read */
    if (threadIdx.x % 32 == 0) store(&part[threadIdx.x / 32], x);
    __syncthreads();
    x = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) x += load(&part[w]);
    return x;
}

#endif

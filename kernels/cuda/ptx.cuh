/* The instructions that CUDA C++ has no name for, and memory accesses, for nvcc. tests/emulator/ptx.h has
 * the same names with host bodies: nothing else in kernels/cuda/ differs between the two. */
#ifndef GATETAPE_PTX_CUH
#define GATETAPE_PTX_CUH
#include <cuda_runtime.h>

#define DEVICE static __device__ __forceinline__

/* A place in the source; the emulator's has content. */
struct Site {};

/* Dynamic shared memory of the launch; a variable of the block. */
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define SHARED(type, name, n) __shared__ type name[n]

/* The only way to memory. One access a line: the lanes of a warp at one line are one request. Write
 * load(&p[a + b]), not load(p + a + b), which extends both to 64 bits one by one. */
template <class T> DEVICE T load(const T *p, Site = {}) { return *p; }
template <class T> DEVICE void store(T *p, T value, Site = {}) { *p = value; }

DEVICE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* ---- numbers ---- */
DEVICE float f16_bits_to_f32(uint16_t bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
/* Nearest even. */
DEVICE uint16_t f32_to_bf16_bits(float x) {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
/* Two, the first in the low half. */
DEVICE uint32_t pack_bf16(float low, float high) {
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
/* 2^x within 2 ulp: attention's softmax, and what is rounded to bf16; all else uses kernels/math.h. */
DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 1/x within 1 ulp; of infinity 0. */
DEVICE float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- copies from global to shared memory that go on while the threads do ---- */
/* 16 bytes, both addresses multiples of 16; zeros when not present. */
DEVICE void cp_async16(uint32_t to, const void *from, bool present, Site = {}) {
    int n_bytes = present ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n_bytes)
                 : "memory");
}
/* 4 bytes. */
DEVICE void cp_async4(uint32_t to, const void *from, bool present, Site = {}) {
    int n_bytes = present ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(n_bytes)
                 : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Until at most N groups of this thread are under way. Others see the data after a barrier. */
template <int N> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

/* ---- tensor cores ---- */
/* Four 8x8 tiles of 16-bit elements; lane l gives the address of row l % 8 of tile l / 8, and gets from each
 * tile the elements 2 (l % 4) and the next of row l / 4. */
DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address, Site = {}) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
/* The same, each tile transposed. */
DEVICE void ldmatrix_x4_transposed(uint32_t (&r)[4], uint32_t address, Site = {}) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
/* c += a b: a [16,16] bf16 by rows, b [16,8] bf16 by columns, c [16,8] f32. Lane l holds of c the columns
 * 2 (l % 4) and the next of the rows l / 4 and l / 4 + 8. */
DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site = {}) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* ---- launching ---- */
struct KernelShape {
    const char *name;
    dim3 grid;
    unsigned threads;
    size_t shared_bytes;
};

template <class... P, class... A>
static cudaError_t start_kernel(cudaStream_t stream, const KernelShape &shape, void (*kernel)(P...),
                                A... arguments) {
    if (shape.shared_bytes > 48 << 10) {
        cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 (int)shape.shared_bytes);
        if (error) return error;
    }
    kernel<<<shape.grid, shape.threads, shape.shared_bytes, stream>>>(arguments...);
    return cudaGetLastError();
}

#endif

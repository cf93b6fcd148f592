/* kernels/cuda/ptx.cuh for the host: the same names, what the instructions do. */
#ifndef GATETAPE_EMULATED_PTX_H
#define GATETAPE_EMULATED_PTX_H
#include "cuda_runtime.h"

#define DEVICE [[maybe_unused]] static inline
#define DYNAMIC_SHARED(name) unsigned char *name = emulator::block->shared
#define SHARED(type, name, n)                                                                                \
    static const char name##_key = 0;                                                                        \
    type *const name = (type *)emulator::static_shared(&name##_key, sizeof(type) * (n))

template <class T> inline T load(const T *p, Site at = {}) {
    emulator::touch(p, sizeof *p, emulator::READ, at);
    return *p;
}
template <class T> inline void store(T *p, T value, Site at = {}) {
    emulator::touch(p, sizeof *p, emulator::WRITE, at);
    *p = value;
}

DEVICE uint32_t shared_address(const void *p) {
    return (uint32_t)((const unsigned char *)p - emulator::block->shared) + emulator::SHARED_BASE;
}

/* ---- numbers ---- */
DEVICE float f16_bits_to_f32(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, magnitude = bits & 0x7fffu;
    if (magnitude < 0x400) return __uint_as_float(sign | __float_as_uint((float)magnitude * 0x1p-24f));
    return __uint_as_float(sign | ((magnitude << 13) + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23)));
}
DEVICE uint16_t f32_to_bf16_bits(float x) {
    const uint32_t u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
DEVICE uint32_t pack_bf16(float low, float high) {
    return f32_to_bf16_bits(low) | (uint32_t)f32_to_bf16_bits(high) << 16;
}
DEVICE float exp2_approx(float x) { return exp2f(x); }
DEVICE float reciprocal_approx(float x) { return 1 / x; }

/* ---- asynchronous copies ---- */
DEVICE void emulated_copy(uint32_t to, const void *from, unsigned n_bytes, bool present, Site at) {
    unsigned char *p = emulator::shared_pointer(to, n_bytes, at);
    if (present) {
        if ((uintptr_t)from % n_bytes) emulator::fault(at, "copy of %u bytes from an odd address", n_bytes);
        emulator::touch(from, n_bytes, emulator::READ, at);
    }
    emulator::touch(p, n_bytes, emulator::WRITE, at);
    emulator::copy_later({to, from, n_bytes, present});
}
DEVICE void cp_async16(uint32_t to, const void *from, bool present, Site at = {}) {
    emulated_copy(to, from, 16, present, at);
}
DEVICE void cp_async4(uint32_t to, const void *from, bool present, Site at = {}) {
    emulated_copy(to, from, 4, present, at);
}
DEVICE void cp_async_commit() { emulator::copies_commit(); }
template <int N> inline void cp_async_wait() { emulator::copies_wait(N); }

/* ---- tensor cores ---- */
template <bool TRANSPOSED> inline void emulated_ldmatrix(uint32_t (&r)[4], uint32_t address, Site at) {
    emulator::touch(emulator::shared_pointer(address, 16, at), 16, emulator::READ, at);
    emulator::lane_in()[0] = address;
    emulator::wait_warp(at, [](emulator::Warp *w) {
        for (unsigned l = 0; l < emulator::LANES; l++)
            for (unsigned tile = 0; tile < 4; tile++) {
                uint16_t pair[2];
                for (unsigned i = 0; i < 2; i++) {
                    unsigned row = TRANSPOSED ? l % 4 * 2 + i : l / 4,
                             column = TRANSPOSED ? l / 4 : l % 4 * 2 + i;
                    memcpy(&pair[i],
                           emulator::block->shared + (w->in[tile * 8 + row][0] - emulator::SHARED_BASE) +
                               column * 2,
                           2);
                }
                memcpy(&w->out[l][tile], pair, 4);
            }
    });
    memcpy(r, emulator::lane_out(), sizeof r);
}
DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address, Site at = {}) {
    emulated_ldmatrix<false>(r, address, at);
}
DEVICE void ldmatrix_x4_transposed(uint32_t (&r)[4], uint32_t address, Site at = {}) {
    emulated_ldmatrix<true>(r, address, at);
}

/* The products of a step are summed in f32 in order of k, then added to c. */
DEVICE void emulated_mma(emulator::Warp *w) {
    if (emulator::block->counter) emulator::count_add(emulator::COUNT_MULTIPLY_ADDS, 16 * 8 * 16, w->site);
    float a[16][16], b[16][8];
    auto low = [](uint32_t u) { return __uint_as_float(u << 16); };
    auto high = [](uint32_t u) { return __uint_as_float(u & 0xffff0000u); };
    for (int l = 0; l < emulator::LANES; l++) {
        for (int i = 0; i < 4; i++) {
            int row = l / 4 + i % 2 * 8, k = l % 4 * 2 + i / 2 * 8;
            a[row][k] = low(w->in[l][i]), a[row][k + 1] = high(w->in[l][i]);
        }
        for (int i = 0; i < 2; i++) {
            int n = l / 4, k = l % 4 * 2 + i * 8;
            b[k][n] = low(w->in[l][4 + i]), b[k + 1][n] = high(w->in[l][4 + i]);
        }
    }
    for (int row = 0; row < 16; row++) {
        float sum[8] = {0};
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++) sum[n] += a[row][k] * b[k][n];
        for (int n = 0; n < 8; n++)
            memcpy(&w->out[row % 8 * 4 + n / 2][row / 8 * 2 + n % 2], &sum[n], sizeof sum[n]);
    }
}
DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site at = {}) {
    uint32_t *in = emulator::lane_in();
    memcpy(in, a, sizeof a);
    in[4] = b0, in[5] = b1;
    emulator::wait_warp(at, emulated_mma);
    float sum[4];
    memcpy(sum, emulator::lane_out(), sizeof sum);
    for (int i = 0; i < 4; i++) c[i] += sum[i];
}

/* ---- launching ---- */
struct KernelShape {
    const char *name;
    dim3 grid;
    unsigned threads;
    size_t shared_bytes;
};

template <class... P, class... A>
static cudaError_t start_kernel(cudaStream_t stream, const KernelShape &s, void (*kernel)(P...),
                                A... arguments) {
    emulator::enqueue(stream, {s.name, s.grid, dim3(s.threads), s.shared_bytes},
                      [=] { kernel(P(arguments)...); });
    return cudaGetLastError();
}

#endif

/* Vectors of floats for the packed product: as many lanes as the instruction set has, with explicit fma,
 * widening of the 16-bit formats, and the transposition of a square block.
 *
 * Pointers into weights may have any alignment. HIDE keeps the compiler from deriving (and spilling) many
 * addresses. */
#ifndef GATETAPE_GEMM_VECTOR_H
#define GATETAPE_GEMM_VECTOR_H
#include "gemm.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, TILE_VECTORS = 2, TILE_ROWS = 14, FEW_ROWS = 8, FEW_VECTORS = 1 };
#elif defined(__AVX2__)
enum { LANES = 8, TILE_VECTORS = 2, TILE_ROWS = 6, FEW_ROWS = 8, FEW_VECTORS = 2 };
#else
enum { LANES = 4, TILE_VECTORS = 1, TILE_ROWS = 2, FEW_ROWS = 1, FEW_VECTORS = 1 };
#endif
enum { TILE_COLUMNS = TILE_VECTORS * LANES, FEW_COLUMNS = FEW_VECTORS * LANES };

typedef float Floats __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), may_alias));
typedef float FloatsAnywhere __attribute__((vector_size(4 * LANES), may_alias, aligned(2)));
typedef uint16_t HalvesAnywhere __attribute__((vector_size(2 * LANES), may_alias, aligned(2)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")
#define HIDE(pointer) __asm__ volatile("" : "+r"(pointer))

INLINE Floats fma_floats(Floats x, Floats y, Floats z) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
#elif defined(__AVX2__)
    return (Floats)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
#else
    for (int i = 0; i < LANES; i++) z[i] = fmaf(x[i], y[i], z[i]);
    return z;
#endif
}

/* z + x y, of floats or of pairs of bf16 in their places */
INLINE Floats step_floats(Floats x, Floats y, Floats z, bool pairs) {
    if (!pairs) return fma_floats(x, y, z);
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)z, (__m512bh)x, (__m512bh)y);
#else
    z = fma_floats((Floats)((Words)x & 0xffff0000u), (Floats)((Words)y & 0xffff0000u), z);
    return fma_floats((Floats)((Words)x << 16), (Floats)((Words)y << 16), z);
#endif
}

INLINE Floats splat(float x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_set1_ps(x);
#elif defined(__AVX2__)
    return (Floats)_mm256_set1_ps(x);
#else
    return (Floats){x, x, x, x};
#endif
}

/* Element i of weights of type t. No step makes a denormal float, so it holds in any mode of the unit. */
INLINE float load_weight(const char *w, int64_t i, DType t) {
    float f;
    uint16_t h;
    if (t == DTYPE_F32) {
        memcpy(&f, w + 4 * i, 4);
        return f;
    }
    memcpy(&h, w + 2 * i, 2);
    return t == DTYPE_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}

/* The 16-bit floats in the low halves of u. */
INLINE Floats widen(Words u, DType t) {
    if (t == DTYPE_BF16) return (Floats)(u << 16);
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)u));
#elif defined(__F16C__)
    __m256i v = (__m256i)(u & 0xffff);
    return (Floats)_mm256_cvtph_ps(
        _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
#else
    Floats r;
    for (int i = 0; i < LANES; i++) r[i] = f16_to_f32((uint16_t)u[i]);
    return r;
#endif
}

/* ---- transposition: dealing even and odd elements apart log2(n) times transposes n x n, first inside the
 * 128-bit lanes (4 x 4), then with whole lanes ---- */
#if defined(__AVX512F__)
#define DEAL(x, y, o)                                                                                        \
    __builtin_shufflevector(x, y, o, 2 + o, 16 + o, 18 + o, 4 + o, 6 + o, 20 + o, 22 + o, 8 + o, 10 + o,     \
                            24 + o, 26 + o, 12 + o, 14 + o, 28 + o, 30 + o)
#define DEAL_LANES(x, y, o)                                                                                  \
    __builtin_shufflevector(x, y, 4 * o, 4 * o + 1, 4 * o + 2, 4 * o + 3, 8 + 4 * o, 9 + 4 * o, 10 + 4 * o,  \
                            11 + 4 * o, 16 + 4 * o, 17 + 4 * o, 18 + 4 * o, 19 + 4 * o, 24 + 4 * o,          \
                            25 + 4 * o, 26 + 4 * o, 27 + 4 * o)
#elif defined(__AVX2__)
#define DEAL(x, y, o) __builtin_shufflevector(x, y, o, 2 + o, 8 + o, 10 + o, 4 + o, 6 + o, 12 + o, 14 + o)
#define DEAL_LANES(x, y, o)                                                                                  \
    __builtin_shufflevector(x, y, 4 * o, 4 * o + 1, 4 * o + 2, 4 * o + 3, 8 + 4 * o, 9 + 4 * o, 10 + 4 * o,  \
                            11 + 4 * o)
#else
#define DEAL(x, y, o) __builtin_shufflevector(x, y, o, 2 + o, 4 + o, 6 + o)
#endif
/* p, q, r, s = the four columns of the 4 x 4 blocks of a, b, c, d */
#define DEAL_FOUR(deal, a, b, c, d, p, q, r, s)                                                              \
    do {                                                                                                     \
        Floats even0 = deal(a, b, 0), even1 = deal(c, d, 0), odd0 = deal(a, b, 1), odd1 = deal(c, d, 1);     \
        p = deal(even0, even1, 0), q = deal(odd0, odd1, 0);                                                  \
        r = deal(even0, even1, 1), s = deal(odd0, odd1, 1);                                                  \
    } while (0)

/* x[i] = words i of LANES rows of w, `stride` bytes apart; `ahead`: where the next such block lies, fetched
 * early. */
INLINE void transpose_block(Floats *x, const char *w, int64_t ahead, int64_t stride) {
    Floats y[LANES];
    UNROLL for (int g = 0; g < LANES; g += 4) {
        UNROLL for (int r = 0; r < 4; r++) {
            x[r] = *(const FloatsAnywhere *)(w + r * stride);
            __builtin_prefetch(w + ahead + r * stride, 0, 2);
        }
        DEAL_FOUR(DEAL, x[0], x[1], x[2], x[3], y[g], y[g + 1], y[g + 2], y[g + 3]);
        w += 4 * stride;
        HIDE(w);
    }
    UNROLL for (int t = 0; t < 4; t++) {
#if defined(__AVX512F__)
        DEAL_FOUR(DEAL_LANES, y[t], y[4 + t], y[8 + t], y[12 + t], x[t], x[4 + t], x[8 + t], x[12 + t]);
#elif defined(__AVX2__)
        x[t] = DEAL_LANES(y[t], y[4 + t], 0);
        x[4 + t] = DEAL_LANES(y[t], y[4 + t], 1);
#else
        x[t] = y[t];
#endif
    }
}

/* Element k of the rows in a transposed block: a word is one float or two 16-bit floats. */
INLINE Floats block_element(const Floats *x, int k, DType t) {
    if (t == DTYPE_F32) return x[k];
    Words u = (Words)x[k / 2];
    if (k % 2 == 0) return widen(u, t);
    return t == DTYPE_BF16 ? (Floats)(u & 0xffff0000u) : widen(u >> 16, t);
}

#endif

/* Sums over a row in one order on every machine: element i goes to partial sum i mod 16, and the 16 are
 * added in a fixed tree. Sixteen suits every vector width; the definition is the order, not the width.
 * Rows come in pieces of PIECE elements, a multiple of 16, so that a sum goes on from piece to piece. */
#ifndef GATETAPE_LANES_H
#define GATETAPE_LANES_H
#include "cpu.h"

#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* a debugging build may leave the loops as they are */
#endif

enum { LANES = 16 };
enum { WORTH_THREADS = 1 << 14 }; /* elements from which an op is shared among threads */

typedef struct {
    real sum[LANES];
} Lanes;

_Static_assert(PIECE % LANES == 0, "a piece must not shift the lanes");

/* s += a . b over n elements. */
static inline void lanes_dot(Lanes *s, const real *a, const real *b, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
#pragma omp simd
        for (int l = 0; l < LANES; l++) s->sum[l] = fma_real(a[i + l], b[i + l], s->sum[l]);
    }
    for (int l = 0; i + l < n; l++) s->sum[l] = fma_real(a[i + l], b[i + l], s->sum[l]);
}

/* s += the n elements of a. */
static inline void lanes_add(Lanes *s, const real *a, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
#pragma omp simd
        for (int l = 0; l < LANES; l++) s->sum[l] += a[i + l];
    }
    for (int l = 0; i + l < n; l++) s->sum[l] += a[i + l];
}

/* s += the absolute values of the n elements of a. */
static inline void lanes_add_absolute(Lanes *s, const real *a, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
#pragma omp simd
        for (int l = 0; l < LANES; l++) s->sum[l] += (real)fabs((double)a[i + l]);
    }
    for (int l = 0; i + l < n; l++) s->sum[l] += (real)fabs((double)a[i + l]);
}

static inline real lanes_total(const Lanes *s) {
    Lanes t = *s;
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) t.sum[l] += t.sum[l + half];
    return t.sum[0];
}

/* The largest of `floor` and the n elements of x; NaN is passed over. */
static inline real lanes_largest(const real *x, int64_t n, real floor) {
    real lane[LANES];
    int64_t i = 0;
    for (int l = 0; l < LANES; l++) lane[l] = floor;
    for (; i + LANES <= n; i += LANES) {
#pragma omp simd
        for (int l = 0; l < LANES; l++) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    }
    for (int l = 0; i + l < n; l++) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] = lane[l + half] > lane[l] ? lane[l + half] : lane[l];
    return lane[0];
}

/* x[0..n) as t's dtype would hold it. */
static inline void round_piece(real *x, DType dtype, int64_t n) {
    if (dtype != DTYPE_BF16) return;
    for (int64_t i = 0; i < n; i++) x[i] = (real)bf16_to_f32(f32_to_bf16((float)x[i]));
}

#endif

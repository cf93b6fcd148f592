/* What the CPU ops share. Every file of this folder is compiled once for each table: generic, avx2, avx512
 * (real = float) and f64 (real = double, for gradient checks). The sources are the same, so the arithmetic
 * is; explicit fma and -ffp-contract=off make the bits the same too.
 *
 * A table's functions are named by CPU_OP: in the table avx2, CPU_OP(rmsnorm) is avx2_rmsnorm. */
#ifndef GATETAPE_CPU_H
#define GATETAPE_CPU_H
#include "../check.h"
#include "../device.h"
#include "../half.h"
#include "../ops.h"
#include <math.h>
#include <string.h>

#ifndef CPU_TABLE
#define CPU_TABLE generic
#endif
#define CPU_PASTE_(a, b) a##_##b
#define CPU_PASTE(a, b) CPU_PASTE_(a, b)
#define CPU_OP(name) CPU_PASTE(CPU_TABLE, name)

#ifdef CPU_DOUBLE
typedef double real;
enum { DTYPE_REAL = DTYPE_F64 };
#else
typedef float real;
enum { DTYPE_REAL = DTYPE_F32 };
#endif

#define X(op) op##_fn CPU_OP(op);
OPS(X)
#undef X

/* x*y + z rounded once. */
static inline real fma_real(real x, real y, real z) {
#ifdef CPU_DOUBLE
    return fma(x, y, z);
#else
    return fmaf(x, y, z);
#endif
}

/* ---- rows in pieces: ops read and write through these, so that each is written once for f32 and bf16
 * ---- */
enum { PIECE = 256 }; /* elements converted at a time, on the stack */

/* to[0..n) = elements [first, first + n) of t, as real. */
static inline void read_piece(real *to, Tensor t, int64_t first, int64_t n) {
    if (t.dtype == (DType)DTYPE_REAL) {
        memcpy(to, (const real *)t.data + first, (size_t)n * sizeof(real));
    } else if (t.dtype == DTYPE_BF16) {
        const uint16_t *p = (const uint16_t *)t.data + first;
        for (int64_t i = 0; i < n; i++) to[i] = (real)bf16_to_f32(p[i]);
    } else if (t.dtype == DTYPE_F16) {
        const uint16_t *p = (const uint16_t *)t.data + first;
        for (int64_t i = 0; i < n; i++) to[i] = (real)f16_to_f32(p[i]);
    } else {
        check(t.dtype == DTYPE_F32, "dtype %s", dtype_name(t.dtype)); /* f32 weights in the table f64 */
        const float *p = (const float *)t.data + first;
        for (int64_t i = 0; i < n; i++) to[i] = (real)p[i];
    }
}

/* Elements [first, first + n) of t = from[0..n), rounded to t's dtype (real or bf16). */
static inline void write_piece(Tensor t, int64_t first, const real *from, int64_t n) {
    if (t.dtype == (DType)DTYPE_REAL) {
        memcpy((real *)t.data + first, from, (size_t)n * sizeof(real));
    } else {
        check(t.dtype == DTYPE_BF16, "dtype %s", dtype_name(t.dtype));
        uint16_t *p = (uint16_t *)t.data + first;
        for (int64_t i = 0; i < n; i++) p[i] = f32_to_bf16((float)from[i]);
    }
}

/* A real tensor's elements. */
static inline real *reals(Tensor t) {
    check(t.dtype == (DType)DTYPE_REAL, "dtype %s", dtype_name(t.dtype));
    return t.data;
}

static inline int32_t *ints(Tensor t) {
    check(t.dtype == DTYPE_I32, "dtype %s", dtype_name(t.dtype));
    return t.data;
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- memory for the packing of products: one block per thread, made with the queue ---- */
/* The calling thread's block of `queue`, 64-byte aligned, CPU_SCRATCH_BYTES long. */
enum { CPU_SCRATCH_BYTES = 4 << 20 };
void *cpu_scratch(Queue *queue);

#endif

/* One product of activations with the weights of one or several groups of rows (experts), and what becomes
 * of its sums.
 *
 * THE CONTRACT. Every sum is
 *     for each block of GEMM_BLOCK steps of depth, in order:
 *         p = 0; for each step, in order: p = fma(x, w, p)
 *         s = first block ? p : s + p
 * It does not depend on the batch, the row's place, the threads, the path or the vector width. Then bias,
 * then residual (or the old value, for gradients) are added, and the result is rounded once, where it is
 * stored.
 *
 * Where activations and weights are both bf16 and the weights are not read back (product_pairs), a step is
 * a pair of neighbours, the odd one first, and denormals count as zero: what the vdpbf16ps instruction of
 * AVX-512 BF16 does. The other tables make the same two fma, so the bits are the same there too. The table
 * amx alone has other sums for pairs (gemm_amx.h), and pairs weights that are read back too. */
#ifndef GATETAPE_GEMM_H
#define GATETAPE_GEMM_H
#include "cpu.h"

enum { GEMM_BLOCK = 256 };
enum { GEMM_SCRATCH_BYTES = 2 << 20 }; /* of each thread's scratch; the rest is the caller's */

typedef struct {
    Tensor y;               /* [rows, columns] */
    Tensor x;               /* [., depth] */
    Tensor w;               /* [groups, columns, depth], or with `back` [groups, depth, columns] */
    bool back;              /* y = x w instead of x w^T */
    Tensor bias;            /* [groups, columns] or absent */
    Tensor residual;        /* [rows, columns] or absent; may be y */
    bool onto;              /* the sums go on from what y (real) holds, block by block */
    const int32_t *offsets; /* [groups + 1]: the rows of a group; NULL: one group of all rows */
    const int32_t *pairs;   /* row m reads x[pairs[m] / per_token]; NULL: x[m] */
    int64_t per_token;
} Product;

void CPU_OP(product)(Queue *q, const Product *p);

#if defined(__AMX_BF16__)
#define HAVE_AMX 1
#else
#define HAVE_AMX 0
#endif
static inline bool product_pairs(const Product *p) {
    return p->x.dtype == DTYPE_BF16 && p->w.dtype == DTYPE_BF16 && (!p->back || HAVE_AMX) &&
           tensor_columns(p->x) % 2 == 0;
}

/* Group g's rows [first, first + n). */
static inline int64_t product_rows(const Product *p, int64_t group, int64_t *first) {
    *first = p->offsets ? p->offsets[group] : 0;
    return p->offsets ? p->offsets[group + 1] - p->offsets[group] : tensor_rows(p->y);
}

static inline int64_t product_groups(const Product *p) { return p->offsets ? p->w.shape[0] : 1; }

/* Elements [k, k + n) of what row m is multiplied with. */
static inline void product_read_row(const Product *p, int64_t m, int64_t k, int64_t n, real *to) {
    int64_t row = p->pairs ? p->pairs[m] / p->per_token : m;
    read_piece(to, p->x, row * tensor_columns(p->x) + k, n);
}

/* The same as n pairs of bf16, from pair k on, a pair in the place of a float. */
static inline void product_read_pairs(const Product *p, int64_t m, int64_t k, int64_t n, float *to) {
    int64_t row = p->pairs ? p->pairs[m] / p->per_token : m;
    memcpy(to, (const uint16_t *)p->x.data + row * tensor_columns(p->x) + 2 * k, (size_t)n * sizeof *to);
}

/* Stores n <= PIECE finished sums of row m from column j on. */
static inline void product_store(const Product *p, int64_t group, int64_t m, int64_t j, int64_t n,
                                 const real *sums) {
    real out[PIECE], other[PIECE];
    int64_t columns = tensor_columns(p->y);
    memcpy(out, sums, (size_t)n * sizeof *out);
    if (p->bias.data) {
        read_piece(other, p->bias, group * columns + j, n);
        for (int64_t i = 0; i < n; i++) out[i] += other[i];
    }
    if (p->residual.data) {
        read_piece(other, p->residual, m * columns + j, n);
        for (int64_t i = 0; i < n; i++) out[i] = other[i] + out[i];
    }
    write_piece(p->y, m * columns + j, out, n);
}

#endif

/* The product as its contract says it, for the table in double: one strip of columns at a time, weights
 * read into a block [depth, columns] so that the inner loop runs over neighbours. */
#include "gemm.h"

#ifdef CPU_DOUBLE
enum { STRIP = 32 };

static void read_block(const Product *p, int64_t group, int64_t k, int64_t n_k, int64_t j, int64_t n_j,
                       real *to) {
    int64_t depth = tensor_columns(p->x), columns = tensor_columns(p->y), base = group * depth * columns;
    real piece[GEMM_BLOCK];
    memset(to, 0, GEMM_BLOCK * STRIP * sizeof *to);
    if (p->back)
        for (int64_t i = 0; i < n_k; i++) read_piece(to + i * STRIP, p->w, base + (k + i) * columns + j, n_j);
    else
        for (int64_t c = 0; c < n_j; c++) {
            read_piece(piece, p->w, base + (j + c) * depth + k, n_k);
            for (int64_t i = 0; i < n_k; i++) to[i * STRIP + c] = piece[i];
        }
}

/* One row against a strip of columns; the blocks of weights are read again for each row. */
static void row_strip(const Product *p, int64_t group, int64_t m, int64_t j, int64_t n_j, real *block) {
    real x[GEMM_BLOCK], sums[STRIP] = {0};
    int64_t depth = tensor_columns(p->x);
    if (p->onto) read_piece(sums, p->y, m * tensor_columns(p->y) + j, n_j);
    for (int64_t k = 0; k < depth; k += GEMM_BLOCK) {
        int64_t n_k = least(GEMM_BLOCK, depth - k);
        real part[STRIP] = {0};
        read_block(p, group, k, n_k, j, n_j, block);
        product_read_row(p, m, k, n_k, x);
        for (int64_t i = 0; i < n_k; i++)
            for (int c = 0; c < STRIP; c++) part[c] = fma_real(x[i], block[i * STRIP + c], part[c]);
        for (int c = 0; c < STRIP; c++) sums[c] = k || p->onto ? sums[c] + part[c] : part[c];
    }
    product_store(p, group, m, j, n_j, sums);
}

void CPU_OP(product)(Queue *q, const Product *p) {
    if (q->failed_op) return;
    int64_t columns = tensor_columns(p->y), first;
    for (int64_t group = 0; group < product_groups(p); group++) {
        int64_t n_rows = product_rows(p, group, &first);
#pragma omp parallel for collapse(2) schedule(dynamic)
        for (int64_t m = first; m < first + n_rows; m++)
            for (int64_t j = 0; j < columns; j += STRIP)
                row_strip(p, group, m, j, least(STRIP, columns - j), cpu_scratch(q));
    }
}
#endif

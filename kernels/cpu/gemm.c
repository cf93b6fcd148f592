/* Matrix products, plain. */
#include "cpu.h"
#include <stdlib.h>

/* y = sum over k of x[k] * w[k*stride]: blocks of 256, each one chain of fma from 0, block sums added in order. */
enum { BLOCK = 256, COLUMNS = 32 };

/* Where weights are read: element (n, k) of expert e. back: the product runs over n. */
typedef struct {
    Tensor w;
    int64_t base, rows, columns;
    bool back;
} Matrix;

static void read_weights(real *to, const Matrix *m, int64_t k, int64_t n_k, int64_t j, int64_t n_j) {
    real piece[BLOCK];
    if (m->back) {
        for (int64_t i = 0; i < n_k; i++)
            read_piece(to + i * COLUMNS, m->w, m->base + (k + i) * m->columns + j, n_j);
        return;
    }
    for (int64_t c = 0; c < n_j; c++) {
        read_piece(piece, m->w, m->base + (j + c) * m->columns + k, n_k);
        for (int64_t i = 0; i < n_k; i++) to[i * COLUMNS + c] = piece[i];
    }
}

typedef void store_fn(void *context, int64_t row, int64_t column, int64_t n, const real *sums);
typedef void load_fn(void *context, int64_t row, int64_t k, int64_t n, real *to);

typedef struct {
    Matrix m;
    int64_t first, n_rows, depth, n_columns;
    load_fn *load;
    store_fn *store;
    void *context;
} Product;

static void product_columns(const Product *p, int64_t j) {
    real w[BLOCK * COLUMNS], x[BLOCK];
    int64_t n_j = least(COLUMNS, p->n_columns - j);
    real *sums = malloc((size_t)p->n_rows * COLUMNS * sizeof *sums);
    check(sums, "out of memory");
    for (int64_t k = 0; k == 0 || k < p->depth; k += BLOCK) {
        int64_t n_k = least(BLOCK, p->depth - k);
        memset(w, 0, sizeof w);
        read_weights(w, &p->m, k, n_k, j, n_j);
        for (int64_t r = 0; r < p->n_rows; r++) {
            real part[COLUMNS] = {0}, *sum = sums + r * COLUMNS;
            p->load(p->context, p->first + r, k, n_k, x);
            for (int64_t i = 0; i < n_k; i++)
                for (int c = 0; c < COLUMNS; c++) part[c] = fma_real(x[i], w[i * COLUMNS + c], part[c]);
            for (int c = 0; c < COLUMNS; c++) sum[c] = k ? sum[c] + part[c] : part[c];
        }
    }
    for (int64_t r = 0; r < p->n_rows; r++) p->store(p->context, p->first + r, j, n_j, sums + r * COLUMNS);
    free(sums);
}

static void product(const Product *p) {
    int64_t n_strips = (p->n_columns + COLUMNS - 1) / COLUMNS;
    if (!p->n_rows) return;
#pragma omp parallel for schedule(dynamic)
    for (int64_t s = 0; s < n_strips; s++) product_columns(p, s * COLUMNS);
}

/* ---- dense ---- */
typedef struct {
    Tensor x, y, bias, residual, pairs;
    int64_t k_per_token, bias_base, depth, columns;
    bool add;
} Rows;

static void load_rows(void *context, int64_t row, int64_t k, int64_t n, real *to) {
    const Rows *c = context;
    int64_t source = c->pairs.data ? ints(c->pairs)[row] / c->k_per_token : row;
    read_piece(to, c->x, source * c->depth + k, n);
}

static void store_rows(void *context, int64_t row, int64_t column, int64_t n, const real *sums) {
    const Rows *c = context;
    real out[COLUMNS], other[COLUMNS];
    memcpy(out, sums, (size_t)n * sizeof *out);
    if (c->bias.data) {
        read_piece(other, c->bias, c->bias_base + column, n);
        for (int64_t i = 0; i < n; i++) out[i] += other[i];
    }
    if (c->residual.data || c->add) {
        read_piece(other, c->add ? c->y : c->residual, row * c->columns + column, n);
        for (int64_t i = 0; i < n; i++) out[i] += other[i];
    }
    write_piece(c->y, row * c->columns + column, out, n);
}

void CPU_OP(dense)(Queue *q, Tensor y, Tensor x, Tensor w, Tensor bias, Tensor residual) {
    if (q->failed_op) return;
    int64_t depth = tensor_columns(x), n = tensor_columns(y);
    Rows rows = {.x = x, .y = y, .bias = bias, .residual = residual, .depth = depth, .columns = n};
    product(&(Product){{w, 0, n, depth, false}, 0, tensor_rows(y), depth, n, load_rows, store_rows, &rows});
}

void CPU_OP(dense_bwd)(Queue *q, Tensor dx, Tensor dy, Tensor w) {
    if (q->failed_op) return;
    int64_t depth = tensor_columns(dy), n = tensor_columns(dx);
    Rows rows = {.x = dy, .y = dx, .depth = depth, .columns = n, .add = true};
    product(&(Product){{w, 0, depth, n, true}, 0, tensor_rows(dx), depth, n, load_rows, store_rows, &rows});
}

/* ---- experts ---- */
static void grouped(Tensor y, Tensor x, Tensor w, Tensor bias, MoePlan plan, bool back, bool gather) {
    int64_t depth = tensor_columns(x), n = tensor_columns(y), E = w.shape[0];
    const int32_t *offsets = ints(plan.offsets);
    for (int64_t e = 0; e < E; e++) {
        Rows rows = {.x = x, .y = y, .bias = bias, .bias_base = e * n, .depth = depth, .columns = n};
        if (gather) {
            rows.pairs = plan.pairs;
            rows.k_per_token = plan.rows.shape[1];
        }
        Matrix m = {w, e * depth * n, back ? depth : n, back ? n : depth, back};
        product(
            &(Product){m, offsets[e], offsets[e + 1] - offsets[e], depth, n, load_rows, store_rows, &rows});
    }
}

void CPU_OP(moe_gate_up)(Queue *q, Tensor z, Tensor x, Tensor w, Tensor bias, MoePlan plan) {
    if (q->failed_op) return;
    grouped(z, x, w, bias, plan, false, true);
}

void CPU_OP(moe_down)(Queue *q, Tensor y, Tensor h, Tensor w, Tensor bias, MoePlan plan) {
    if (q->failed_op) return;
    grouped(y, h, w, bias, plan, false, false);
}

void CPU_OP(moe_gate_up_bwd)(Queue *q, Tensor dx, Tensor scratch, Tensor dz, Tensor w, MoePlan plan) {
    if (q->failed_op) return;
    grouped(scratch, dz, w, (Tensor){0}, plan, true, false);
    int64_t T = plan.rows.shape[0], K = plan.rows.shape[1], D = tensor_columns(dx);
    const int32_t *rows = ints(plan.rows);
#pragma omp parallel for
    for (int64_t t = 0; t < T; t++) {
        real sum[PIECE], part[PIECE];
        for (int64_t d = 0; d < D; d += PIECE) {
            int64_t n = least(PIECE, D - d);
            for (int64_t i = 0; i < n; i++) sum[i] = 0;
            for (int64_t k = 0; k < K; k++) {
                read_piece(part, scratch, rows[t * K + k] * D + d, n);
                for (int64_t i = 0; i < n; i++) sum[i] += part[i];
            }
            read_piece(part, dx, t * D + d, n);
            for (int64_t i = 0; i < n; i++) sum[i] = part[i] + sum[i];
            write_piece(dx, t * D + d, sum, n);
        }
    }
}

void CPU_OP(moe_down_bwd)(Queue *q, Tensor da, Tensor dweights, Tensor dout, Tensor w, Tensor bias,
                          MoePlan plan) {
    if (q->failed_op) return;
    grouped(da, dout, w, (Tensor){0}, plan, true, true);
    if (!bias.data || !dweights.data) return;
    int64_t T = plan.rows.shape[0], K = plan.rows.shape[1], D = tensor_columns(dout);
    const int32_t *rows = ints(plan.rows), *offsets = ints(plan.offsets);
#pragma omp parallel for
    for (int64_t i = 0; i < T * K; i++) {
        real a[PIECE], b[PIECE], sum = 0;
        int64_t e = 0;
        while (offsets[e + 1] <= rows[i]) e++;
        for (int64_t d = 0; d < D; d += PIECE) {
            int64_t n = least(PIECE, D - d);
            read_piece(a, dout, i / K * D + d, n);
            read_piece(b, bias, e * D + d, n);
            for (int64_t j = 0; j < n; j++) sum = fma_real(a[j], b[j], sum);
        }
        reals(dweights)[i] += sum;
    }
}

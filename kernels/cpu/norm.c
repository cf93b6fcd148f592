/* RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450) over the last dimension.
 *
 * A row is read twice: once for its sums, in lanes (lanes.h), once to be scaled. All arithmetic is real;
 * in bf16 the normalised row is rounded before the weight, as the published models compute it. Rows do not
 * see each other. */
#include "lanes.h"

typedef struct {
    int64_t rows, columns;
} Extent;

static Extent extent_of(Tensor y, Tensor x, Tensor w) {
    Extent n = {tensor_rows(x), tensor_columns(x)};
    check(tensor_count(y) == tensor_count(x) && tensor_columns(y) == n.columns, "%lld x %lld, columns %lld",
          (long long)n.rows, (long long)n.columns, (long long)tensor_columns(y));
    check(tensor_count(w) == n.columns, "%lld weights for %lld columns", (long long)tensor_count(w),
          (long long)n.columns);
    return n;
}

/* 1 / sqrt(mean(x^2) + eps) of a row that starts at element `first` */
static real inverse_rms(Tensor x, int64_t first, int64_t columns, float eps) {
    real piece[PIECE];
    Lanes squares = {0};
    for (int64_t c = 0; c < columns; c += PIECE) {
        int64_t n = least(PIECE, columns - c);
        read_piece(piece, x, first + c, n);
        lanes_dot(&squares, piece, piece, n);
    }
    return 1 / (real)sqrt(lanes_total(&squares) / (real)columns + (real)eps);
}

void CPU_OP(rmsnorm)(Queue *q, Tensor y, Tensor x, Tensor w, float eps) {
    if (q->failed_op) return;
    Extent e = extent_of(y, x, w);
#pragma omp parallel for schedule(static) if (e.rows * e.columns > WORTH_THREADS)
    for (int64_t r = 0; r < e.rows; r++) {
        real row[PIECE], weight[PIECE], inverse = inverse_rms(x, r * e.columns, e.columns, eps);
        for (int64_t c = 0; c < e.columns; c += PIECE) {
            int64_t n = least(PIECE, e.columns - c);
            read_piece(row, x, r * e.columns + c, n);
            read_piece(weight, w, c, n);
            for (int64_t i = 0; i < n; i++) row[i] *= inverse;
            round_piece(row, y.dtype, n);
            for (int64_t i = 0; i < n; i++) row[i] *= weight[i];
            write_piece(y, r * e.columns + c, row, n);
        }
    }
}

/* dx += s (g - x s^2 mean(g x)), g = w dy, s = 1 / rms */
void CPU_OP(rmsnorm_bwd)(Queue *q, Tensor dx, Tensor dy, Tensor x, Tensor w, float eps) {
    if (q->failed_op) return;
    Extent e = extent_of(dx, x, w);
#pragma omp parallel for schedule(static) if (e.rows * e.columns > WORTH_THREADS)
    for (int64_t r = 0; r < e.rows; r++) {
        real row[PIECE], grad[PIECE], weight[PIECE], sum[PIECE];
        real inverse = inverse_rms(x, r * e.columns, e.columns, eps);
        Lanes products = {0};
        for (int64_t c = 0; c < e.columns; c += PIECE) {
            int64_t n = least(PIECE, e.columns - c);
            read_piece(row, x, r * e.columns + c, n);
            read_piece(grad, dy, r * e.columns + c, n);
            read_piece(weight, w, c, n);
            for (int64_t i = 0; i < n; i++) grad[i] *= weight[i];
            lanes_dot(&products, grad, row, n);
        }
        real pull = -lanes_total(&products) / (real)e.columns * inverse * inverse;
        for (int64_t c = 0; c < e.columns; c += PIECE) {
            int64_t n = least(PIECE, e.columns - c);
            read_piece(row, x, r * e.columns + c, n);
            read_piece(grad, dy, r * e.columns + c, n);
            read_piece(weight, w, c, n);
            read_piece(sum, dx, r * e.columns + c, n);
            for (int64_t i = 0; i < n; i++)
                sum[i] = fma_real(inverse, fma_real(row[i], pull, grad[i] * weight[i]), sum[i]);
            write_piece(dx, r * e.columns + c, sum, n);
        }
    }
}

typedef struct {
    real mean, inverse; /* of the standard deviation */
} Moments;

static Moments moments_of(Tensor x, int64_t first, int64_t columns, float eps) {
    real piece[PIECE];
    Lanes sums = {0}, squares = {0};
    for (int64_t c = 0; c < columns; c += PIECE) {
        int64_t n = least(PIECE, columns - c);
        read_piece(piece, x, first + c, n);
        lanes_add(&sums, piece, n);
    }
    Moments m = {.mean = lanes_total(&sums) / (real)columns};
    for (int64_t c = 0; c < columns; c += PIECE) {
        int64_t n = least(PIECE, columns - c);
        read_piece(piece, x, first + c, n);
        for (int64_t i = 0; i < n; i++) piece[i] -= m.mean;
        lanes_dot(&squares, piece, piece, n);
    }
    m.inverse = 1 / (real)sqrt(lanes_total(&squares) / (real)columns + (real)eps);
    return m;
}

void CPU_OP(layernorm)(Queue *q, Tensor y, Tensor x, Tensor w, Tensor b, float eps) {
    if (q->failed_op) return;
    Extent e = extent_of(y, x, w);
#pragma omp parallel for schedule(static) if (e.rows * e.columns > WORTH_THREADS)
    for (int64_t r = 0; r < e.rows; r++) {
        real row[PIECE], weight[PIECE], bias[PIECE] = {0};
        Moments m = moments_of(x, r * e.columns, e.columns, eps);
        for (int64_t c = 0; c < e.columns; c += PIECE) {
            int64_t n = least(PIECE, e.columns - c);
            read_piece(row, x, r * e.columns + c, n);
            read_piece(weight, w, c, n);
            if (tensor_present(b)) read_piece(bias, b, c, n);
            for (int64_t i = 0; i < n; i++)
                row[i] = fma_real((row[i] - m.mean) * m.inverse, weight[i], bias[i]);
            write_piece(y, r * e.columns + c, row, n);
        }
    }
}

/* dx += s (g - mean(g) - z mean(g z)), g = w dy, z = (x - mean) s */
void CPU_OP(layernorm_bwd)(Queue *q, Tensor dx, Tensor dy, Tensor x, Tensor w, float eps) {
    if (q->failed_op) return;
    Extent e = extent_of(dx, x, w);
#pragma omp parallel for schedule(static) if (e.rows * e.columns > WORTH_THREADS)
    for (int64_t r = 0; r < e.rows; r++) {
        real row[PIECE], grad[PIECE], weight[PIECE], sum[PIECE];
        Moments m = moments_of(x, r * e.columns, e.columns, eps);
        Lanes plain = {0}, products = {0};
        for (int64_t c = 0; c < e.columns; c += PIECE) {
            int64_t n = least(PIECE, e.columns - c);
            read_piece(row, x, r * e.columns + c, n);
            read_piece(grad, dy, r * e.columns + c, n);
            read_piece(weight, w, c, n);
            for (int64_t i = 0; i < n; i++) grad[i] *= weight[i], row[i] = (row[i] - m.mean) * m.inverse;
            lanes_add(&plain, grad, n);
            lanes_dot(&products, grad, row, n);
        }
        real shift = lanes_total(&plain) / (real)e.columns, pull = -lanes_total(&products) / (real)e.columns;
        for (int64_t c = 0; c < e.columns; c += PIECE) {
            int64_t n = least(PIECE, e.columns - c);
            read_piece(row, x, r * e.columns + c, n);
            read_piece(grad, dy, r * e.columns + c, n);
            read_piece(weight, w, c, n);
            read_piece(sum, dx, r * e.columns + c, n);
            for (int64_t i = 0; i < n; i++) {
                real z = (row[i] - m.mean) * m.inverse;
                sum[i] = fma_real(m.inverse, fma_real(z, pull, grad[i] * weight[i] - shift), sum[i]);
            }
            write_piece(dx, r * e.columns + c, sum, n);
        }
    }
}

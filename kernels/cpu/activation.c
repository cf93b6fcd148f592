/* Gated activations, element by element: SwiGLU (arXiv 2002.05202) with the clamp that some models use,
 * the sigmoid gate of a shared expert, and the SwiGLU backward of expert rows with their combine weights.
 *
 * All arithmetic is real, the result is rounded where it is stored. A clamped element passes no gradient
 * beyond the limit and passes it at the limit. */
#include "../math.h"
#include "lanes.h"

/* hidden = h(gate, up) */
static void hidden_piece(real *hidden, const real *gate, const real *up, int64_t n, Activation act) {
    real limit = (real)act.limit, alpha = (real)act.alpha;
    if (limit > 0) {
        for (int64_t i = 0; i < n; i++) {
            real g = gate[i] > limit ? limit : gate[i], u = up[i] > limit ? limit : up[i];
            u = u < -limit ? -limit : u;
            hidden[i] = (u + 1) * (g * sigmoid_real(alpha * g));
        }
    } else {
        for (int64_t i = 0; i < n; i++) hidden[i] = gate[i] * sigmoid_real(gate[i]) * up[i];
    }
}

/* gate and up become the gradients of themselves for the gradient `dhidden` of the hidden elements. */
static void gradient_piece(real *gate, real *up, const real *dhidden, int64_t n, Activation act) {
    real limit = (real)act.limit, alpha = limit > 0 ? (real)act.alpha : 1, shift = limit > 0 ? 1 : 0;
    real most = limit > 0 ? limit : (real)INFINITY;
    for (int64_t i = 0; i < n; i++) {
        real g = gate[i] > most ? most : gate[i], u = up[i] > most ? most : up[i];
        u = u < -most ? -most : u;
        real s = sigmoid_real(alpha * g), swish = g * s;
        real slope = s * fma_real(alpha * g, 1 - s, 1); /* of g sigmoid(alpha g) */
        real dgate = dhidden[i] * (u + shift) * slope, dup = dhidden[i] * swish;
        gate[i] = gate[i] > most ? 0 : dgate;
        up[i] = up[i] > most || up[i] < -most ? 0 : dup;
    }
}

static int64_t hidden_size(Tensor h, Tensor z) {
    int64_t size = tensor_columns(h);
    check(tensor_columns(z) == 2 * size && tensor_rows(z) == tensor_rows(h), "%lld x %lld from %lld x %lld",
          (long long)tensor_rows(h), (long long)size, (long long)tensor_rows(z),
          (long long)tensor_columns(z));
    return size;
}

void CPU_OP(swiglu)(Queue *q, Tensor h, Tensor z, Activation act) {
    if (q->failed_op) return;
    int64_t size = hidden_size(h, z), rows = tensor_rows(h);
#pragma omp parallel for schedule(static) if (rows * size > WORTH_THREADS)
    for (int64_t m = 0; m < rows; m++) {
        real gate[PIECE], up[PIECE], hidden[PIECE];
        for (int64_t c = 0; c < size; c += PIECE) {
            int64_t n = least(PIECE, size - c);
            read_piece(gate, z, 2 * m * size + c, n);
            read_piece(up, z, (2 * m + 1) * size + c, n);
            hidden_piece(hidden, gate, up, n, act);
            write_piece(h, m * size + c, hidden, n);
        }
    }
}

void CPU_OP(swiglu_bwd)(Queue *q, Tensor dz, Tensor dh, Tensor z, Activation act) {
    if (q->failed_op) return;
    int64_t size = hidden_size(dh, z), rows = tensor_rows(dh);
#pragma omp parallel for schedule(static) if (rows * size > WORTH_THREADS)
    for (int64_t m = 0; m < rows; m++) {
        real part[2][PIECE], dhidden[PIECE], sum[PIECE];
        for (int64_t c = 0; c < size; c += PIECE) {
            int64_t n = least(PIECE, size - c);
            for (int side = 0; side < 2; side++) read_piece(part[side], z, (2 * m + side) * size + c, n);
            read_piece(dhidden, dh, m * size + c, n);
            gradient_piece(part[0], part[1], dhidden, n, act);
            for (int side = 0; side < 2; side++) {
                read_piece(sum, dz, (2 * m + side) * size + c, n);
                for (int64_t i = 0; i < n; i++) sum[i] += part[side][i];
                write_piece(dz, (2 * m + side) * size + c, sum, n);
            }
        }
    }
}

void CPU_OP(moe_swiglu_bwd)(Queue *q, Tensor dz, Tensor dweights, Tensor da, Tensor z, Tensor weights,
                            MoePlan plan, Activation act) {
    if (q->failed_op) return;
    int64_t size = hidden_size(da, z), rows = tensor_rows(da);
    check(tensor_count(plan.pairs) == rows && tensor_count(weights) == rows, "%lld rows", (long long)rows);
#pragma omp parallel for schedule(static) if (rows * size > WORTH_THREADS)
    for (int64_t m = 0; m < rows; m++) {
        real gate[PIECE], up[PIECE], grad[PIECE], hidden[PIECE];
        int64_t pair = ints(plan.pairs)[m];
        real weight = reals(weights)[pair];
        Lanes products = {0};
        for (int64_t c = 0; c < size; c += PIECE) {
            int64_t n = least(PIECE, size - c);
            read_piece(gate, z, 2 * m * size + c, n);
            read_piece(up, z, (2 * m + 1) * size + c, n);
            read_piece(grad, da, m * size + c, n);
            if (tensor_present(dweights)) {
                hidden_piece(hidden, gate, up, n, act);
                round_piece(hidden, z.dtype, n);
                lanes_dot(&products, grad, hidden, n);
            }
            if (!tensor_present(dz)) continue;
            for (int64_t i = 0; i < n; i++) grad[i] *= weight;
            gradient_piece(gate, up, grad, n, act);
            write_piece(dz, 2 * m * size + c, gate, n);
            write_piece(dz, (2 * m + 1) * size + c, up, n);
        }
        if (tensor_present(dweights)) reals(dweights)[pair] += lanes_total(&products);
    }
}

void CPU_OP(sigmoid_scale)(Queue *q, Tensor y, Tensor x, Tensor gate, Tensor residual) {
    if (q->failed_op) return;
    int64_t rows = tensor_rows(x), columns = tensor_columns(x);
    check(tensor_count(gate) == rows && tensor_count(y) == rows * columns, "%lld rows", (long long)rows);
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
    for (int64_t t = 0; t < rows; t++) {
        real row[PIECE], sum[PIECE], share = sigmoid_real(reals(gate)[t]);
        for (int64_t c = 0; c < columns; c += PIECE) {
            int64_t n = least(PIECE, columns - c), first = t * columns + c;
            read_piece(row, x, first, n);
            for (int64_t i = 0; i < n; i++) row[i] *= share;
            if (tensor_present(residual)) {
                read_piece(sum, residual, first, n);
                for (int64_t i = 0; i < n; i++) row[i] += sum[i];
            }
            write_piece(y, first, row, n);
        }
    }
}

void CPU_OP(sigmoid_scale_bwd)(Queue *q, Tensor dx, Tensor dgate, Tensor dy, Tensor x, Tensor gate) {
    if (q->failed_op) return;
    int64_t rows = tensor_rows(x), columns = tensor_columns(x);
    check(tensor_count(gate) == rows && tensor_count(dy) == rows * columns, "%lld rows", (long long)rows);
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
    for (int64_t t = 0; t < rows; t++) {
        real row[PIECE], grad[PIECE], sum[PIECE], share = sigmoid_real(reals(gate)[t]);
        Lanes products = {0};
        for (int64_t c = 0; c < columns; c += PIECE) {
            int64_t n = least(PIECE, columns - c), first = t * columns + c;
            read_piece(row, x, first, n);
            read_piece(grad, dy, first, n);
            lanes_dot(&products, row, grad, n);
            if (!tensor_present(dx)) continue;
            read_piece(sum, dx, first, n);
            for (int64_t i = 0; i < n; i++) sum[i] = fma_real(share, grad[i], sum[i]);
            write_piece(dx, first, sum, n);
        }
        if (tensor_present(dgate)) reals(dgate)[t] += lanes_total(&products) * (share * (1 - share));
    }
}

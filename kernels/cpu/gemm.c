/* The ops that are matrix products: which rows meet which weights, and what is added. The product itself
 * is in gemm_packed.c (f32 tables) and gemm_plain.c (f64). */
#include "gemm.h"
#include "lanes.h"

void CPU_OP(dense)(Queue *q, Tensor y, Tensor x, Tensor w, Tensor bias, Tensor residual) {
    CPU_OP(product)(q, &(Product){.y = y, .x = x, .w = w, .bias = bias, .residual = residual});
}

void CPU_OP(dense_bwd)(Queue *q, Tensor dx, Tensor dy, Tensor w) {
    CPU_OP(product)(q, &(Product){.y = dx, .x = dy, .w = w, .back = true, .residual = dx});
}

void CPU_OP(moe_gate_up)(Queue *q, Tensor z, Tensor x, Tensor w, Tensor bias, MoePlan plan) {
    CPU_OP(product)
    (q, &(Product){.y = z,
                   .x = x,
                   .w = w,
                   .bias = bias,
                   .offsets = ints(plan.offsets),
                   .pairs = ints(plan.pairs),
                   .per_token = plan.rows.shape[1]});
}

void CPU_OP(moe_hidden)(Queue *q, Tensor h, Tensor z, Tensor x, Tensor w, Tensor bias, MoePlan plan,
                        Activation act, bool keep) {
    (void)keep;
    CPU_OP(moe_gate_up)(q, z, x, w, bias, plan);
    if (!q->failed_op) CPU_OP(swiglu)(q, h, z, act);
}

void CPU_OP(moe_down)(Queue *q, Tensor y, Tensor h, Tensor w, Tensor bias, MoePlan plan) {
    CPU_OP(product)(q, &(Product){.y = y, .x = h, .w = w, .bias = bias, .offsets = ints(plan.offsets)});
}

void CPU_OP(moe_hidden_bwd)(Queue *q, Tensor dz, Tensor dweights, Tensor scratch, Tensor dout, Tensor z,
                            Tensor weights, Tensor w, Tensor bias, MoePlan plan, Activation act) {
    CPU_OP(moe_down_bwd)(q, scratch, dweights, dout, w, bias, plan);
    if (!q->failed_op) CPU_OP(moe_swiglu_bwd)(q, dz, dweights, scratch, z, weights, plan, act);
}

/* dx[t,n) += the rows of token t, summed in order of its choices */
static void add_choices(Tensor dx, Tensor rows_grad, const int32_t *rows, int64_t n_choices, int64_t t) {
    real sum[PIECE], part[PIECE];
    int64_t D = tensor_columns(dx);
    for (int64_t d = 0; d < D; d += PIECE) {
        int64_t n = least(PIECE, D - d);
        for (int64_t i = 0; i < n; i++) sum[i] = 0;
        for (int64_t k = 0; k < n_choices; k++) {
            read_piece(part, rows_grad, rows[t * n_choices + k] * D + d, n);
            for (int64_t i = 0; i < n; i++) sum[i] += part[i];
        }
        read_piece(part, dx, t * D + d, n);
        for (int64_t i = 0; i < n; i++) sum[i] = part[i] + sum[i];
        write_piece(dx, t * D + d, sum, n);
    }
}

void CPU_OP(moe_add_rows)(Queue *q, Tensor dx, Tensor rows, MoePlan plan) {
    if (q->failed_op) return;
    check(tensor_columns(rows) == tensor_columns(dx) && tensor_rows(dx) == plan.rows.shape[0],
          "%lld columns, %lld tokens", (long long)tensor_columns(dx), (long long)tensor_rows(dx));
#pragma omp parallel for schedule(static) if (tensor_count(rows) > WORTH_THREADS)
    for (int64_t t = 0; t < plan.rows.shape[0]; t++)
        add_choices(dx, rows, ints(plan.rows), plan.rows.shape[1], t);
}

void CPU_OP(moe_gate_up_bwd)(Queue *q, Tensor dx, Tensor scratch, Tensor dz, Tensor w, MoePlan plan) {
    CPU_OP(product)
    (q, &(Product){.y = scratch, .x = dz, .w = w, .back = true, .offsets = ints(plan.offsets)});
    if (dx.data) CPU_OP(moe_add_rows)(q, dx, scratch, plan);
}

/* dout[token,:] . bias[e,:] */
static real dot_with_bias(Tensor dout, Tensor bias, int64_t token, int64_t expert) {
    real a[PIECE], b[PIECE];
    int64_t D = tensor_columns(dout);
    Lanes sum = {0};
    for (int64_t d = 0; d < D; d += PIECE) {
        int64_t n = least(PIECE, D - d);
        read_piece(a, dout, token * D + d, n);
        read_piece(b, bias, expert * D + d, n);
        lanes_dot(&sum, a, b, n);
    }
    return lanes_total(&sum);
}

void CPU_OP(moe_down_bwd)(Queue *q, Tensor da, Tensor dweights, Tensor dout, Tensor w, Tensor bias,
                          MoePlan plan) {
    int64_t n_choices = plan.rows.shape[1], n_pairs = tensor_count(plan.rows);
    CPU_OP(product)
    (q, &(Product){.y = da,
                   .x = dout,
                   .w = w,
                   .back = true,
                   .offsets = ints(plan.offsets),
                   .pairs = ints(plan.pairs),
                   .per_token = n_choices});
    if (q->failed_op || !bias.data || !dweights.data) return;
    const int32_t *rows = ints(plan.rows), *offsets = ints(plan.offsets);
#pragma omp parallel for schedule(static) if (n_pairs * tensor_columns(dout) > WORTH_THREADS)
    for (int64_t i = 0; i < n_pairs; i++) {
        int64_t expert = 0;
        while (offsets[expert + 1] <= rows[i]) expert++;
        reals(dweights)[i] += dot_with_bias(dout, bias, i / n_choices, expert);
    }
}

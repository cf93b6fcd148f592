/* Cross entropy over the vocabulary in chunks. */
#include "../math.h"
#include "cpu.h"
#include <stdlib.h>

static Tensor chunk_of(Tensor scratch, int64_t n_rows, int64_t n) {
    return tensor_matrix(scratch.data, scratch.dtype, n_rows, n);
}

void CPU_OP(cross_entropy)(Queue *q, Tensor nll, Tensor lse, Tensor scratch, Tensor x, Tensor w, Tensor bias,
                           Tensor targets) {
    if (q->failed_op) return;
    int64_t T = tensor_rows(x), V = w.shape[0], step = tensor_columns(scratch);
    real *loss = reals(nll), *sums = reals(lse);
    const int32_t *target = ints(targets);
    real *most = malloc((size_t)(T + 1) * sizeof *most);
    check(most, "out of memory");
    for (int64_t v = 0; v < V; v += step) {
        int64_t n = least(step, V - v);
        Tensor logits = chunk_of(scratch, T, n), bias_part = bias.data ? tensor_slice(bias, v, n) : bias;
        CPU_OP(dense)(q, logits, x, tensor_slice(w, v, n), bias_part, (Tensor){0});
#pragma omp parallel for
        for (int64_t t = 0; t < T; t++) {
            const real *row = reals(logits) + t * n;
            real top = row[0], sum = 0;
            for (int64_t i = 1; i < n; i++) top = row[i] > top ? row[i] : top;
            if (v && most[t] > top) top = most[t];
            for (int64_t i = 0; i < n; i++) sum += exp_real(row[i] - top);
            sums[t] = v ? sums[t] * exp_real(most[t] - top) + sum : sum;
            most[t] = top;
            if (target[t] >= v && target[t] < v + n) loss[t] = row[target[t] - v];
        }
    }
    for (int64_t t = 0; t < T; t++) {
        sums[t] = most[t] + log_real(sums[t]);
        loss[t] = target[t] < 0 ? 0 : sums[t] - loss[t];
    }
    free(most);
}

void CPU_OP(cross_entropy_bwd)(Queue *q, Tensor dx, Tensor scratch, Tensor dnll, Tensor lse, Tensor x,
                               Tensor w, Tensor bias, Tensor targets) {
    if (q->failed_op) return;
    int64_t T = tensor_rows(x), V = w.shape[0], step = tensor_columns(scratch);
    const int32_t *target = ints(targets);
    for (int64_t v = 0; v < V; v += step) {
        int64_t n = least(step, V - v);
        Tensor logits = chunk_of(scratch, T, n), bias_part = bias.data ? tensor_slice(bias, v, n) : bias;
        CPU_OP(dense)(q, logits, x, tensor_slice(w, v, n), bias_part, (Tensor){0});
#pragma omp parallel for
        for (int64_t t = 0; t < T; t++) {
            real *row = reals(logits) + t * n, scale = reals(dnll)[t];
            for (int64_t i = 0; i < n; i++)
                row[i] = target[t] < 0
                             ? 0
                             : scale * (exp_real(row[i] - reals(lse)[t]) - (target[t] == v + i ? 1 : 0));
        }
        CPU_OP(dense_bwd)(q, dx, logits, tensor_slice(w, v, n));
    }
}

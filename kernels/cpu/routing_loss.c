/* Losses on the router's distributions, and their gradients: a row (token) at a time, sums in the order of
 * lanes.h. exp and log are those of math.h, so that a GPU has the same bits. */
#include "../math.h"
#include "lanes.h"

/* A row of logits, all multiplied by `scale`: logarithms of its softmax are x[i] * scale - lse. */
typedef struct {
    const real *x;
    real scale, lse;
} LogSoftmax;

static LogSoftmax log_softmax(const real *x, int64_t n, real scale) {
    real largest = x[0] * scale;
    Lanes sum = {0};
    for (int64_t i = 1; i < n; i++) largest = x[i] * scale > largest ? x[i] * scale : largest;
    for (int64_t i = 0; i < n; i++) sum.sum[i % LANES] += exp_real(x[i] * scale - largest);
    return (LogSoftmax){x, scale, largest + log_real(lanes_total(&sum))};
}
static real log_share(const LogSoftmax *s, int64_t i) { return s->x[i] * s->scale - s->lse; }

static void check_rows(Tensor values, Tensor logits, Tensor other, int64_t n_other) {
    check(tensor_columns(logits) > 0 && tensor_count(values) == tensor_rows(logits) &&
              tensor_count(other) == n_other,
          "%lld values, logits [%lld,%lld], %lld beside them", (long long)tensor_count(values),
          (long long)tensor_rows(logits), (long long)tensor_columns(logits), (long long)tensor_count(other));
}

/* ---- KL to a frozen router ---- */
void CPU_OP(router_kl)(Queue *q, Tensor kl, Tensor logits, Tensor frozen, float temperature) {
    if (q->failed_op) return;
    check_rows(kl, logits, frozen, tensor_count(logits));
    const int64_t rows = tensor_rows(logits), n = tensor_columns(logits);
    const real scale = 1 / (real)temperature;
#pragma omp parallel for schedule(static) if (rows * n > WORTH_THREADS)
    for (int64_t t = 0; t < rows; t++) {
        const LogSoftmax p = log_softmax(reals(frozen) + t * n, n, scale),
                         own = log_softmax(reals(logits) + t * n, n, scale);
        Lanes sum = {0};
        for (int64_t i = 0; i < n; i++) {
            const real log_p = log_share(&p, i);
            sum.sum[i % LANES] += exp_real(log_p) * (log_p - log_share(&own, i));
        }
        reals(kl)[t] = lanes_total(&sum);
    }
}

void CPU_OP(router_kl_bwd)(Queue *q, Tensor dlogits, Tensor dkl, Tensor logits, Tensor frozen,
                           float temperature) {
    if (q->failed_op) return;
    check_rows(dkl, logits, frozen, tensor_count(logits));
    const int64_t rows = tensor_rows(logits), n = tensor_columns(logits);
    const real scale = 1 / (real)temperature;
#pragma omp parallel for schedule(static) if (rows * n > WORTH_THREADS)
    for (int64_t t = 0; t < rows; t++) {
        const real factor = reals(dkl)[t] * scale;
        if (factor == 0) continue;
        const LogSoftmax p = log_softmax(reals(frozen) + t * n, n, scale),
                         own = log_softmax(reals(logits) + t * n, n, scale);
        real *to = reals(dlogits) + t * n;
        for (int64_t i = 0; i < n; i++)
            to[i] += factor * (exp_real(log_share(&own, i)) - exp_real(log_share(&p, i)));
    }
}

/* ---- distance to an aim ---- */
void CPU_OP(router_anchor)(Queue *q, Tensor distance, Tensor logits, Tensor aim) {
    if (q->failed_op) return;
    check_rows(distance, logits, aim, tensor_columns(logits));
    const int64_t rows = tensor_rows(logits), n = tensor_columns(logits);
#pragma omp parallel for schedule(static) if (rows * n > WORTH_THREADS)
    for (int64_t t = 0; t < rows; t++) {
        const LogSoftmax own = log_softmax(reals(logits) + t * n, n, 1);
        Lanes sum = {0};
        for (int64_t i = 0; i < n; i++) {
            const real off = exp_real(log_share(&own, i)) - reals(aim)[i];
            sum.sum[i % LANES] = fma_real(off, off, sum.sum[i % LANES]);
        }
        reals(distance)[t] = lanes_total(&sum);
    }
}

void CPU_OP(router_anchor_bwd)(Queue *q, Tensor dlogits, Tensor ddistance, Tensor logits, Tensor aim) {
    if (q->failed_op) return;
    check_rows(ddistance, logits, aim, tensor_columns(logits));
    const int64_t rows = tensor_rows(logits), n = tensor_columns(logits);
#pragma omp parallel for schedule(static) if (rows * n > WORTH_THREADS)
    for (int64_t t = 0; t < rows; t++) {
        const real factor = 2 * reals(ddistance)[t];
        if (factor == 0) continue;
        const LogSoftmax own = log_softmax(reals(logits) + t * n, n, 1);
        real *to = reals(dlogits) + t * n;
        Lanes sum = {0};
        for (int64_t i = 0; i < n; i++) {
            const real p = exp_real(log_share(&own, i));
            sum.sum[i % LANES] = fma_real(p - reals(aim)[i], p, sum.sum[i % LANES]);
        }
        const real mean = lanes_total(&sum);
        for (int64_t i = 0; i < n; i++) {
            const real p = exp_real(log_share(&own, i));
            to[i] += factor * p * (p - reals(aim)[i] - mean);
        }
    }
}

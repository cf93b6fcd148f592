/* Dropout of rows. What is kept of a row depends on its token's key, its choice and the rule alone. */
#include "../random.h"
#include "lanes.h"

typedef struct {
    uint64_t seed;
    int64_t id;
} RowKey;

static RowKey key_of(Tensor keys, MoePlan plan, DropoutRule rule, int64_t row) {
    const int64_t *of = keys.data;
    if (!tensor_present(plan.pairs)) return (RowKey){(uint64_t)of[row], rule.id};
    const int64_t pair = ints(plan.pairs)[row], choices = tensor_columns(plan.rows);
    return (RowKey){(uint64_t)of[pair / choices], rule.id + pair % choices};
}

/* to[i] = 1 / (1 - rate) where element first + i is kept, else 0; first is even. Two elements share 64 random
 * bits. */
static void factors_of(real *to, RowKey key, DropoutRule rule, int64_t first, int64_t n) {
    const uint32_t least_kept = (uint32_t)((double)rule.rate * 0x1p32);
    const real kept = 1 / (1 - (real)rule.rate);
    for (int64_t i = 0; i < n; i += 2) {
        const uint64_t bits = random_bits(key.seed, RANDOM_TUNING_DROPOUT, key.id, (first + i) / 2);
        to[i] = (uint32_t)bits >= least_kept ? kept : 0;
        if (i + 1 < n) to[i + 1] = (uint32_t)(bits >> 32) >= least_kept ? kept : 0;
    }
}

static void check_dropout(Tensor to, Tensor from, Tensor keys, MoePlan plan, DropoutRule rule) {
    const int64_t rows = tensor_present(plan.pairs) ? tensor_count(plan.pairs) : tensor_count(keys);
    check(tensor_count(to) == tensor_count(from) && tensor_rows(from) == rows && keys.dtype == DTYPE_I64 &&
              rule.rate >= 0 && rule.rate < 1,
          "%lld elements, rows of %lld keys, rate %g", (long long)tensor_count(from),
          (long long)tensor_count(keys), (double)rule.rate);
}

/* to = factors from, or added to it. */
static void drop(Tensor to, Tensor from, Tensor keys, MoePlan plan, DropoutRule rule, bool onto) {
    const int64_t rows = tensor_rows(from), columns = tensor_columns(from);
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        const RowKey key = key_of(keys, plan, rule, r);
        for (int64_t c = 0; c < columns; c += PIECE) {
            const int64_t n = least(PIECE, columns - c);
            real factor[PIECE], piece[PIECE], sum[PIECE] = {0};
            factors_of(factor, key, rule, c, n);
            read_piece(piece, from, r * columns + c, n);
            if (onto) read_piece(sum, to, r * columns + c, n);
            for (int64_t i = 0; i < n; i++) sum[i] += factor[i] * piece[i];
            write_piece(to, r * columns + c, sum, n);
        }
    }
}

void CPU_OP(dropout)(Queue *q, Tensor y, Tensor x, Tensor keys, MoePlan plan, DropoutRule rule) {
    if (q->failed_op) return;
    check_dropout(y, x, keys, plan, rule);
    drop(y, x, keys, plan, rule, false);
}

void CPU_OP(dropout_bwd)(Queue *q, Tensor dx, Tensor dy, Tensor keys, MoePlan plan, DropoutRule rule) {
    if (q->failed_op) return;
    check_dropout(dx, dy, keys, plan, rule);
    drop(dx, dy, keys, plan, rule, true);
}

/* What is added to chosen rows of a router: to the logits, and taken back. Products over a row have the order
 * of lanes.h; a row's gradient walks the examples in order and adds each to its binary counter. */
#include "lanes.h"

static void check_rows(Tensor logits, Tensor x, Tensor experts, Tensor rows) {
    check(tensor_count(experts) == tensor_rows(rows) && tensor_columns(x) == tensor_columns(rows) &&
              tensor_rows(x) == tensor_rows(logits),
          "%lld experts, rows [%lld,%lld], x [%lld,%lld]", (long long)tensor_count(experts),
          (long long)tensor_rows(rows), (long long)tensor_columns(rows), (long long)tensor_rows(x),
          (long long)tensor_columns(x));
    for (int64_t n = 0; n < tensor_count(experts); n++)
        check(ints(experts)[n] >= 0 && ints(experts)[n] < tensor_columns(logits), "expert %d of %lld",
              ints(experts)[n], (long long)tensor_columns(logits));
}

void CPU_OP(router_rows)(Queue *q, Tensor logits, Tensor x, Tensor experts, Tensor rows) {
    if (q->failed_op) return;
    check_rows(logits, x, experts, rows);
    const int64_t tokens = tensor_rows(x), columns = tensor_columns(x), n_rows = tensor_rows(rows);
#pragma omp parallel for schedule(static) if (tokens * n_rows * columns > WORTH_THREADS)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t n = 0; n < n_rows; n++) {
            Lanes sum = {0};
            for (int64_t c = 0; c < columns; c += PIECE) {
                const int64_t width = least(PIECE, columns - c);
                real piece[PIECE];
                read_piece(piece, x, t * columns + c, width);
                lanes_dot(&sum, piece, reals(rows) + n * columns + c, width);
            }
            reals(logits)[t * tensor_columns(logits) + ints(experts)[n]] += lanes_total(&sum);
        }
}

static void add_input_grad(Tensor dx, Tensor dlogits, Tensor experts, Tensor rows, int64_t t) {
    const int64_t columns = tensor_columns(dx);
    const real *from = reals(dlogits) + t * tensor_columns(dlogits);
    for (int64_t c = 0; c < columns; c += PIECE) {
        const int64_t width = least(PIECE, columns - c);
        real sum[PIECE] = {0}, piece[PIECE];
        for (int64_t n = 0; n < tensor_rows(rows); n++) {
            const real *row = reals(rows) + n * columns + c, factor = from[ints(experts)[n]];
            for (int64_t i = 0; i < width; i++) sum[i] = fma_real(factor, row[i], sum[i]);
        }
        read_piece(piece, dx, t * columns + c, width);
        for (int64_t i = 0; i < width; i++) piece[i] += sum[i];
        write_piece(dx, t * columns + c, piece, width);
    }
}

/* An example's sums, of elements from `at` on of a slot, into the counter. */
static void push_example(real *sum, int64_t width, Tensor slots, int64_t at, int64_t example) {
    const int64_t size = tensor_count(slots) / slots.shape[0];
    int64_t slot = 0;
    for (; example >> slot & 1; slot++) continue;
    check(slot < slots.shape[0], "example %lld, %lld slots", (long long)example, (long long)slots.shape[0]);
    for (int64_t s = 0; s < slot; s++)
        for (int64_t i = 0; i < width; i++) sum[i] = reals(slots)[s * size + at + i] + sum[i];
    memcpy(reals(slots) + slot * size + at, sum, (size_t)width * sizeof *sum);
}

/* Columns [c, c + width) of row n. */
static void sum_row(LoraSums sums, Tensor dlogits, Tensor x, int64_t expert, int64_t n, int64_t c) {
    const int64_t columns = tensor_columns(x), width = least(PIECE, columns - c);
    for (int64_t p = 0; p + 1 < tensor_count(sums.offsets); p++) {
        real sum[PIECE] = {0}, piece[PIECE];
        for (int64_t t = ints(sums.offsets)[p]; t < ints(sums.offsets)[p + 1]; t++) {
            const real factor = reals(dlogits)[t * tensor_columns(dlogits) + expert];
            read_piece(piece, x, t * columns + c, width);
            for (int64_t i = 0; i < width; i++) sum[i] = fma_real(factor, piece[i], sum[i]);
        }
        push_example(sum, width, sums.a, n * columns + c, sums.first + p);
    }
}

void CPU_OP(router_rows_bwd)(Queue *q, Tensor dx, LoraSums sums, Tensor dlogits, Tensor x, Tensor experts,
                             Tensor rows) {
    if (q->failed_op) return;
    check_rows(dlogits, x, experts, rows);
    const int64_t tokens = tensor_rows(x), columns = tensor_columns(x), n_rows = tensor_rows(rows);
    if (tensor_present(dx)) {
#pragma omp parallel for schedule(static) if (tokens * n_rows * columns > WORTH_THREADS)
        for (int64_t t = 0; t < tokens; t++) add_input_grad(dx, dlogits, experts, rows, t);
    }
    if (!tensor_present(sums.a)) return;
    const int64_t n_pieces = (columns + PIECE - 1) / PIECE;
#pragma omp parallel for schedule(static) if (tokens * n_rows * columns > WORTH_THREADS)
    for (int64_t i = 0; i < n_rows * n_pieces; i++)
        sum_row(sums, dlogits, x, ints(experts)[i / n_pieces], i / n_pieces, i % n_pieces * PIECE);
}

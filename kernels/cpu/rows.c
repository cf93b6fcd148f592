/* Rows in and out: embedding, gather, scatter, sums of two tensors. Memory-bound; a value is read and
 * written once. Sums into one row (gather_rows_bwd) go in the order of the index; the columns are what
 * threads share. */
#include "lanes.h"

static void copy_row(Tensor to, int64_t to_row, Tensor from, int64_t from_row, int64_t columns) {
    real piece[PIECE];
    if (to.dtype == from.dtype) {
        size_t size = (size_t)columns * dtype_bytes(to.dtype);
        memcpy((char *)to.data + (size_t)to_row * size, (const char *)from.data + (size_t)from_row * size,
               size);
        return;
    }
    for (int64_t c = 0; c < columns; c += PIECE) {
        int64_t n = least(PIECE, columns - c);
        read_piece(piece, from, from_row * columns + c, n);
        write_piece(to, to_row * columns + c, piece, n);
    }
}

static int64_t row_at(Tensor index, int64_t i, int64_t rows) {
    int64_t r = ints(index)[i];
    check(r >= 0 && r < rows, "entry %lld is %lld, rows %lld", (long long)i, (long long)r, (long long)rows);
    return r;
}

/* y[i] = x[index[i]] */
static void take_rows(Tensor y, Tensor x, Tensor index) {
    int64_t rows = tensor_count(index), columns = tensor_columns(x), source = tensor_rows(x);
    check(tensor_rows(y) == rows && tensor_columns(y) == columns, "%lld x %lld", (long long)rows,
          (long long)columns);
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
    for (int64_t i = 0; i < rows; i++) copy_row(y, i, x, row_at(index, i, source), columns);
}

void CPU_OP(embed)(Queue *q, Tensor y, Tensor ids, Tensor table) {
    if (q->failed_op) return;
    take_rows(y, table, ids);
}

void CPU_OP(gather_rows)(Queue *q, Tensor y, Tensor x, Tensor index) {
    if (q->failed_op) return;
    check(y.dtype == x.dtype, "%s and %s", dtype_name(y.dtype), dtype_name(x.dtype));
    take_rows(y, x, index);
}

void CPU_OP(gather_rows_bwd)(Queue *q, Tensor dx, Tensor dy, Tensor index) {
    if (q->failed_op) return;
    int64_t rows = tensor_count(index), columns = tensor_columns(dx), targets = tensor_rows(dx);
    check(tensor_rows(dy) == rows && tensor_columns(dy) == columns, "%lld x %lld", (long long)rows,
          (long long)columns);
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
    for (int64_t c = 0; c < columns; c += PIECE) {
        int64_t n = least(PIECE, columns - c);
        real sum[PIECE], piece[PIECE];
        for (int64_t i = 0; i < rows; i++) {
            int64_t r = row_at(index, i, targets);
            read_piece(sum, dx, r * columns + c, n);
            read_piece(piece, dy, i * columns + c, n);
            for (int64_t k = 0; k < n; k++) sum[k] += piece[k];
            write_piece(dx, r * columns + c, sum, n);
        }
    }
}

void CPU_OP(scatter_rows)(Queue *q, Tensor y, Tensor x, Tensor index) {
    if (q->failed_op) return;
    int64_t rows = tensor_count(index), columns = tensor_columns(x), targets = tensor_rows(y);
    check(tensor_rows(x) == rows && tensor_columns(y) == columns, "%lld x %lld", (long long)rows,
          (long long)columns);
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
    for (int64_t i = 0; i < rows; i++) copy_row(y, row_at(index, i, targets), x, i, columns);
}

void CPU_OP(add)(Queue *q, Tensor y, Tensor a, Tensor b) {
    if (q->failed_op) return;
    int64_t count = tensor_count(y);
    check(tensor_count(a) == count && tensor_count(b) == count, "%lld elements", (long long)count);
#pragma omp parallel for schedule(static) if (count > WORTH_THREADS)
    for (int64_t i = 0; i < count; i += PIECE) {
        int64_t n = least(PIECE, count - i);
        real sum[PIECE], piece[PIECE];
        read_piece(sum, a, i, n);
        read_piece(piece, b, i, n);
        for (int64_t k = 0; k < n; k++) sum[k] += piece[k];
        write_piece(y, i, sum, n);
    }
}

void CPU_OP(accumulate)(Queue *q, Tensor y, Tensor x) { CPU_OP(add)(q, y, y, x); }

/* Cross entropy over the vocabulary, a chunk of columns at a time. What a row sums does not depend on the
 * chunk: its exponentials are summed PIECE columns at a time, under the largest logit so far, and pieces
 * are added in order. So the bits are the same for every chunk that is a multiple of PIECE columns.
 *
 * Rows go in blocks whose running state stands on the stack. A gradient in bf16 is summed in f32 for a
 * block of rows in the calling thread's scratch, and rounded once. */
#include "../math.h"
#include "gemm.h"
#include "lanes.h"
#include <float.h>

enum { LOSS_ROWS = 512 };
enum { LOSS_SCRATCH_BYTES = CPU_SCRATCH_BYTES - GEMM_SCRATCH_BYTES };

/* What a row knows so far: sum of exp(logit - largest). */
typedef struct {
    real largest, sum, of_target;
} RowState;

/* Goes on with n logits that stand beside each other. */
static void add_logits(RowState *s, const real *logits, int64_t n) {
    real part[PIECE], top[LANES];
    for (int64_t first = 0; first < n; first += PIECE) {
        int64_t count = least(PIECE, n - first), i = 0;
        const real *x = logits + first;
        for (int l = 0; l < LANES; l++) top[l] = s->largest;
        for (; i + LANES <= count; i += LANES)
            for (int l = 0; l < LANES; l++) top[l] = x[i + l] > top[l] ? x[i + l] : top[l];
        for (int l = 0; i + l < count; l++) top[l] = x[i + l] > top[l] ? x[i + l] : top[l];
        real largest = top[0];
        for (int l = 1; l < LANES; l++) largest = top[l] > largest ? top[l] : largest;
        for (i = 0; i < count; i++) part[i] = exp_real(x[i] - largest);
        Lanes sum = {0};
        lanes_add(&sum, part, count);
        s->sum = s->sum * exp_real(s->largest - largest) + lanes_total(&sum);
        s->largest = largest;
    }
}

/* The logits of columns [v, v + n) of all rows of x. */
static Tensor chunk_logits(Queue *q, Tensor scratch, Tensor x, Tensor w, Tensor bias, int64_t v, int64_t n) {
    Tensor logits = tensor_matrix(scratch.data, scratch.dtype, tensor_rows(x), n);
    Tensor part = tensor_present(bias) ? tensor_slice(bias, v, n) : bias;
    CPU_OP(dense)(q, logits, x, tensor_slice(w, v, n), part, (Tensor){0});
    return logits;
}

static void check_loss(Tensor scratch, Tensor x, Tensor w, Tensor targets) {
    int64_t rows = tensor_rows(x);
    check(tensor_rows(scratch) >= rows && tensor_columns(scratch) > 0 &&
              tensor_columns(x) == tensor_columns(w) && tensor_count(targets) == rows,
          "scratch [%lld,%lld], x [%lld,%lld], w [.,%lld], %lld targets", (long long)tensor_rows(scratch),
          (long long)tensor_columns(scratch), (long long)rows, (long long)tensor_columns(x),
          (long long)tensor_columns(w), (long long)tensor_count(targets));
}

static void block_loss(Queue *q, real *nll, real *lse, Tensor scratch, Tensor x, Tensor w, Tensor bias,
                       const int32_t *targets) {
    int64_t rows = tensor_rows(x), vocabulary = w.shape[0], step = tensor_columns(scratch);
    RowState states[LOSS_ROWS];
    for (int64_t t = 0; t < rows; t++) {
        check(targets[t] < vocabulary, "target %d of %lld", targets[t], (long long)vocabulary);
        states[t] = (RowState){.largest = -FLT_MAX};
    }
    for (int64_t v = 0; v < vocabulary; v += step) {
        int64_t n = least(step, vocabulary - v);
        const real *logits = reals(chunk_logits(q, scratch, x, w, bias, v, n));
#pragma omp parallel for schedule(static) if (rows * n > WORTH_THREADS)
        for (int64_t t = 0; t < rows; t++) {
            const real *row = logits + t * n;
            add_logits(&states[t], row, n);
            if (targets[t] >= v && targets[t] < v + n) states[t].of_target = row[targets[t] - v];
        }
    }
    for (int64_t t = 0; t < rows; t++) {
        lse[t] = states[t].largest + log_real(states[t].sum);
        nll[t] = targets[t] < 0 ? 0 : lse[t] - states[t].of_target;
    }
}

void CPU_OP(cross_entropy)(Queue *q, Tensor nll, Tensor lse, Tensor scratch, Tensor x, Tensor w, Tensor bias,
                           Tensor targets) {
    if (q->failed_op) return;
    check_loss(scratch, x, w, targets);
    int64_t rows = tensor_rows(x);
    for (int64_t t = 0; t < rows; t += LOSS_ROWS)
        block_loss(q, reals(nll) + t, reals(lse) + t, scratch, tensor_slice(x, t, least(LOSS_ROWS, rows - t)),
                   w, bias, ints(targets) + t);
}

/* row = scale (softmax - onehot), from the logits of columns [v, v + n) */
static void logits_grad(real *row, int64_t n, real scale, real lse, int64_t target) {
    if (target >= 0 && target < n) {
        real of_target = scale * (exp_real(row[target] - lse) - 1);
        for (int64_t i = 0; i < n; i++) row[i] = scale * exp_real(row[i] - lse);
        row[target] = of_target;
    } else {
        for (int64_t i = 0; i < n; i++) row[i] = scale * exp_real(row[i] - lse);
    }
}

/* dx [rows, D] real */
static void block_grad(Queue *q, Tensor dx, Tensor scratch, const real *dnll, const real *lse, Tensor x,
                       Tensor w, Tensor bias, const int32_t *targets) {
    int64_t rows = tensor_rows(x), vocabulary = w.shape[0], step = tensor_columns(scratch);
    for (int64_t v = 0; v < vocabulary; v += step) {
        int64_t n = least(step, vocabulary - v);
        Tensor logits = chunk_logits(q, scratch, x, w, bias, v, n);
#pragma omp parallel for schedule(static) if (rows * n > WORTH_THREADS)
        for (int64_t t = 0; t < rows; t++) {
            real *row = reals(logits) + t * n;
            if (targets[t] < 0)
                memset(row, 0, (size_t)n * sizeof *row);
            else
                logits_grad(row, n, dnll[t], lse[t], targets[t] - v);
        }
        CPU_OP(product)
        (q, &(Product){.y = dx, .x = logits, .w = tensor_slice(w, v, n), .back = true, .onto = true});
    }
}

void CPU_OP(cross_entropy_bwd)(Queue *q, Tensor dx, Tensor scratch, Tensor dnll, Tensor lse, Tensor x,
                               Tensor w, Tensor bias, Tensor targets) {
    if (q->failed_op) return;
    check_loss(scratch, x, w, targets);
    int64_t rows = tensor_rows(x), columns = tensor_columns(x), most = LOSS_ROWS;
    bool narrow = dx.dtype != (DType)DTYPE_REAL;
    if (narrow) most = least(most, LOSS_SCRATCH_BYTES / ((int64_t)sizeof(real) * columns));
    check(most > 0, "%lld columns", (long long)columns);
    for (int64_t t = 0, n; t < rows; t += n) {
        n = least(most, rows - t);
        Tensor block = tensor_slice(dx, t, n), sums = block;
        if (narrow) {
            sums = tensor_matrix((char *)cpu_scratch(q) + GEMM_SCRATCH_BYTES, scratch.dtype, n, columns);
            read_piece(sums.data, block, 0, n * columns);
        }
        block_grad(q, sums, scratch, reals(dnll) + t, reals(lse) + t, tensor_slice(x, t, n), w, bias,
                   ints(targets) + t);
        if (narrow) write_piece(block, 0, sums.data, n * columns);
    }
}

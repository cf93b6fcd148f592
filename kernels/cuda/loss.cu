/* Cross entropy over the vocabulary, a chunk of columns at a time: the logits of a chunk by a product, then
 * one pass over them. What a row sums does not depend on the chunk: its exponentials are summed 256 columns
 * at a time, under the largest logit so far, in the order of kernels/cpu/loss.c; 16 lanes a row, bound by
 * reading the logits once.
 *
 * Going back, the gradient of the logits takes their place and is multiplied with the weights. Where both can
 * go to the tensor cores, an f32 gradient is stored in its 4 bytes as two bf16 whose sum keeps 16 bits of it,
 * and multiplied as twice as many k. A gradient in bf16 is summed over the chunks in f32, in the queue's
 * workspace, for as many rows at a time as fit there, and rounded once. */
#include "gemm.cuh"
#include <cfloat>

enum { THREADS = 256, LANES = 16, PIECE = 256, EACH = PIECE / LANES };

/* What a row knows so far: the sum of exp(logit - largest). */
struct alignas(16) RowState {
    float largest, sum, of_target;
};

/* Over each half of a warp; NaN is passed over. */
DEVICE float lanes_largest(float x) {
#pragma unroll
    for (int d = LANES / 2; d; d /= 2) {
        const float other = __shfl_xor_sync(~0u, x, d);
        x = other > x ? other : x;
    }
    return x;
}

/* A chunk's place: columns [begin, begin + n) of the vocabulary. */
struct Chunk {
    int64_t begin, n;
    bool first, last;
};

/* Each row's state goes on with its n logits of the chunk; the last chunk gives nll and lse. */
static __global__ void __launch_bounds__(THREADS)
    add_logits(RowState *states, const float *logits, const int32_t *targets, int64_t n_rows, Chunk chunk,
               float *nll, float *lse) {
    const int64_t index = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / LANES;
    const int64_t t = index < n_rows ? index : n_rows - 1; /* all lanes take part in the shuffles */
    const int lane = threadIdx.x % LANES;
    const float *row = &logits[t * chunk.n];
    const int64_t target = load(&targets[t]);
    RowState s = {-FLT_MAX, 0, 0};
    if (!chunk.first) s = load(&states[t]);
    for (int64_t first = 0; first < chunk.n; first += PIECE) {
        float x[EACH], largest = s.largest, sum = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int64_t column = first + i * LANES + lane;
            x[i] = column < chunk.n ? load(&row[column]) : -INFINITY;
            largest = x[i] > largest ? x[i] : largest;
        }
        largest = lanes_largest(largest);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (first + i * LANES + lane < chunk.n) sum += exp_f32(x[i] - largest);
        s.sum = s.sum * exp_f32(s.largest - largest) + lanes_sum(sum);
        s.largest = largest;
    }
    if (target >= chunk.begin && target < chunk.begin + chunk.n)
        s.of_target = load(&row[target - chunk.begin]);
    if (lane != 0 || index >= n_rows) return;
    store(&states[t], s);
    if (!chunk.last) return;
    const float total = s.largest + log_f32(s.sum);
    store(&lse[t], total);
    store(&nll[t], target < 0 ? 0 : total - s.of_target);
}

/* The logits of a chunk, [rows, n] in the scratch. */
static Tensor chunk_logits(const Call &call, Tensor scratch, Tensor x, Tensor w, Tensor bias, Chunk chunk) {
    Tensor logits = tensor_matrix(scratch.data, DTYPE_F32, tensor_rows(x), chunk.n);
    Tensor part = tensor_present(bias) ? tensor_slice(bias, chunk.begin, chunk.n) : bias;
    product(call, Product{.y = logits, .x = x, .w = tensor_slice(w, chunk.begin, chunk.n), .bias = part});
    return logits;
}

/* f(chunk) for all chunks of the vocabulary. */
template <class F> static void each_chunk(Tensor w, Tensor scratch, F f) {
    const int64_t step = tensor_columns(scratch), vocabulary = w.shape[0];
    for (int64_t v = 0; v < vocabulary; v += step)
        f(Chunk{v, step < vocabulary - v ? step : vocabulary - v, v == 0, v + step >= vocabulary});
}

static void check_loss(Tensor scratch, Tensor x, Tensor w, Tensor targets) {
    const int64_t rows = tensor_rows(x);
    check(tensor_rows(scratch) >= rows && tensor_columns(scratch) > 0 &&
              tensor_columns(x) == tensor_columns(w) && tensor_count(targets) == rows,
          "scratch [%lld,%lld], x [%lld,%lld], w [.,%lld], %lld targets", (long long)tensor_rows(scratch),
          (long long)tensor_columns(scratch), (long long)rows, (long long)tensor_columns(x),
          (long long)tensor_columns(w), (long long)tensor_count(targets));
}

extern "C" void cuda_cross_entropy(Queue *q, Tensor nll, Tensor lse, Tensor scratch, Tensor x, Tensor w,
                                   Tensor bias, Tensor targets) {
    const Call call(q, "cross_entropy", nll, lse, scratch, x, w, bias, targets);
    check_loss(scratch, x, w, targets);
    RowState *states = static_cast<RowState *>(queue_workspace(q));
    const int64_t most = WORKSPACE_BYTES / (int64_t)sizeof *states;
    for (int64_t t = 0; t < tensor_rows(x); t += most) {
        const int64_t n_rows = most < tensor_rows(x) - t ? most : tensor_rows(x) - t;
        each_chunk(w, scratch, [&](Chunk chunk) {
            Tensor logits = chunk_logits(call, scratch, tensor_slice(x, t, n_rows), w, bias, chunk);
            LAUNCH(call, blocks_for(n_rows * LANES, THREADS), THREADS, 0, add_logits, states, reals(logits),
                   ints(targets) + t, n_rows, chunk, reals(nll) + t, reals(lse) + t);
        });
    }
}

/* logits = dnll[t] (softmax - onehot), or two bf16 whose sum that is */
static __global__ void __launch_bounds__(THREADS)
    grade_logits(float *logits, const float *dnll, const float *lse, const int32_t *targets,
                 int64_t blocks_each, Chunk chunk, bool halves) {
    const int64_t t = blockIdx.x / blocks_each, column = blockIdx.x % blocks_each * THREADS + threadIdx.x;
    if (column >= chunk.n) return;
    const int64_t target = load(&targets[t]);
    float *place = &logits[t * chunk.n + column];
    const float p = exp_f32(load(place) - load(&lse[t]));
    const float onehot = chunk.begin + column == target ? 1.0f : 0.0f;
    const float g = target < 0 ? 0 : load(&dnll[t]) * (p - onehot);
    if (halves) {
        const float high = rounded<bf16>(g);
        store(reinterpret_cast<uint32_t *>(place), pack_bf16(high, g - high));
    } else {
        store(place, g);
    }
}

/* dx of some rows; sums [rows, D] f32 holds it between the chunks. */
static void rows_grad(const Call &call, Tensor dx, Tensor sums, Tensor scratch, const float *dnll,
                      const float *lse, Tensor x, Tensor w, Tensor bias, const int32_t *targets) {
    const int64_t n_rows = tensor_rows(x);
    each_chunk(w, scratch, [&](Chunk chunk) {
        Tensor logits = chunk_logits(call, scratch, x, w, bias, chunk);
        Product back = {.y = chunk.last ? dx : sums,
                        .x = tensor_matrix(scratch.data, DTYPE_BF16, n_rows, 2 * chunk.n),
                        .w = tensor_slice(w, chunk.begin, chunk.n),
                        .back = true,
                        .residual = chunk.first ? dx : sums,
                        .onto = true,
                        .halves = true};
        if (x.dtype != DTYPE_BF16 || !product_fits_mma(back)) back.x = logits, back.halves = false;
        const int64_t blocks_each = blocks_for(chunk.n, THREADS);
        LAUNCH(call, blocks_for(n_rows * blocks_each, 1), THREADS, 0, grade_logits, reals(logits), dnll, lse,
               targets, blocks_each, chunk, back.halves);
        product(call, back);
    });
}

extern "C" void cuda_cross_entropy_bwd(Queue *q, Tensor dx, Tensor scratch, Tensor dnll, Tensor lse, Tensor x,
                                       Tensor w, Tensor bias, Tensor targets) {
    const Call call(q, "cross_entropy_bwd", dx, scratch, dnll, lse, x, w, bias, targets);
    check_loss(scratch, x, w, targets);
    const int64_t rows = tensor_rows(x), columns = tensor_columns(x);
    if (columns == 0) return;
    const bool narrow = dx.dtype == DTYPE_BF16;
    const int64_t most = narrow ? WORKSPACE_BYTES / ((int64_t)sizeof(float) * columns) : rows;
    check(most > 0 || rows == 0, "%lld columns", (long long)columns);
    for (int64_t t = 0, n; t < rows; t += n) {
        n = most < rows - t ? most : rows - t;
        Tensor part = tensor_slice(dx, t, n);
        Tensor sums = narrow ? tensor_matrix(queue_workspace(q), DTYPE_F32, n, columns) : part;
        rows_grad(call, part, sums, scratch, reals(dnll) + t, reals(lse) + t, tensor_slice(x, t, n), w, bias,
                  ints(targets) + t);
    }
}

/* RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), forward and backward, as one pair of kernels:
 * RMSNorm is LayerNorm with mean and bias zero, and rounds the normalised row before the weight.
 *
 * Mapping: row_threads.cuh, two packs of 16 bytes a thread until a block is full. A thread keeps up to KEPT
 * packs of its row in registers (bf16 rows to 8192 columns), so that the passes over the row read memory
 * once; a longer row is read again in each pass, mostly from the cache.
 * Traffic: forward x in and y out; backward x, dy, dx in and dx out; w stays in the cache. Limit: memory.
 * Requires: all tensors of a call hold the same number of rows of w's length. */
#include "row_threads.cuh"

/* Blocks of the longest rows that share an SM, so that one loads while the other sums. */
enum { KEPT = 2, PACKS_EACH = KEPT, BLOCKS_AN_SM = 2 };

/* Elements of a pack: what suits the wider of the two types. */
template <class T, class W> constexpr int PACK = sizeof(T) > sizeof(W) ? WIDEST<T> : WIDEST<W>;

/* What a thread has of its row in TENSORS tensors. */
template <class T, int N, bool PACKED, int TENSORS> struct HeldRow {
    const T *row[TENSORS];
    int64_t start;    /* the row's first element */
    unsigned columns; /* none where the thread has no row */
    unsigned first, stride;
    unsigned held; /* the first column of the packs in registers */
    Pack<T, N> pack[KEPT][TENSORS] = {};

    template <class... P>
    __device__ __forceinline__ HeldRow(Rows rows, const P *...tensors) : row{tensors...} {
        const int64_t r = row_of_thread(rows);
        start = r * rows.columns;
        columns = r < rows.count ? (unsigned)rows.columns : 0;
        first = thread_of_row(rows) * N;
        stride = rows.threads * N;
        held = ~0u;
#pragma unroll
        for (int t = 0; t < TENSORS; t++) row[t] += start;
    }

    /* Calls f(column, v) for each pack: element v[t][i] of tensor t, zero beyond the row's end. */
    template <class F> __device__ __forceinline__ void each(F f) {
        for (unsigned begin = first; begin < columns; begin += KEPT * stride) {
#pragma unroll
            for (int k = 0; k < KEPT && held != begin; k++)
#pragma unroll
                for (int t = 0; t < TENSORS; t++)
                    if (begin + k * stride < columns)
                        pack[k][t] = read_part<PACKED, T, N>(&row[t][begin + k * stride],
                                                             columns - begin - k * stride);
            held = begin;
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                const unsigned column = begin + k * stride;
                if (column >= columns) continue;
                float v[TENSORS][N];
#pragma unroll
                for (int t = 0; t < TENSORS; t++) unpack(v[t], pack[k][t]);
                f(column, v);
            }
        }
    }
};

struct Moments {
    float mean, inverse; /* of the standard deviation, or of the root mean square */
};

/* Of tensor 0 of the row. */
template <bool CENTRED, class T, int N, bool PACKED, int TENSORS>
DEVICE Moments moments_of(HeldRow<T, N, PACKED, TENSORS> &row, Rows rows, float eps) {
    const float n = (float)rows.columns;
    float sum = 0, squares = 0;
    if (CENTRED) {
        row.each([&](unsigned, const float(&v)[TENSORS][N]) {
#pragma unroll
            for (int i = 0; i < N; i++) sum += v[0][i];
        });
        sum = row_sum(sum, rows);
    }
    const float mean = CENTRED ? sum / n : 0;
    row.each([&](unsigned column, const float(&v)[TENSORS][N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float deviation = v[0][i] - mean;
            if (PACKED || column + i < row.columns) squares = fmaf(deviation, deviation, squares);
        }
    });
    return Moments{mean, 1 / sqrtf(row_sum(squares, rows) / n + eps)};
}

template <class T, class W, bool PACKED, bool CENTRED>
static __global__ void __launch_bounds__(MOST_ROW_THREADS, BLOCKS_AN_SM)
    norm(T *__restrict__ y, const T *x, const W *w, const W *b, Rows rows, float eps) {
    constexpr int N = PACK<T, W>;
    HeldRow<T, N, PACKED, 1> row(rows, x);
    const Moments m = moments_of<CENTRED>(row, rows, eps);
    row.each([&](unsigned column, const float(&v)[1][N]) {
        float weight[N], bias[N] = {}, result[N];
        load_part<PACKED>(weight, &w[column], row.columns - column);
        if (CENTRED && b) load_part<PACKED>(bias, &b[column], row.columns - column);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float z = (v[0][i] - m.mean) * m.inverse;
            result[i] = CENTRED ? fmaf(z, weight[i], bias[i]) : rounded<T>(z) * weight[i];
        }
        store_part<PACKED>(&y[row.start + column], result, row.columns - column);
    });
}

/* dx += s (g - mean(g) - z mean(g z)) with g = w dy, z = (x - mean) s; without the means of x and g for
 * RMSNorm. */
template <class T, class W, bool PACKED, bool CENTRED>
static __global__ void __launch_bounds__(MOST_ROW_THREADS, BLOCKS_AN_SM)
    norm_bwd(T *__restrict__ dx, const T *dy, const T *x, const W *w, Rows rows, float eps) {
    constexpr int N = PACK<T, W>;
    enum { X, DY, TENSORS };
    HeldRow<T, N, PACKED, TENSORS> row(rows, x, dy);
    const Moments m = moments_of<CENTRED>(row, rows, eps);
    const float n = (float)rows.columns;
    float sum = 0, products = 0;
    row.each([&](unsigned column, const float(&v)[TENSORS][N]) {
        float weight[N];
        load_part<PACKED>(weight, &w[column], row.columns - column);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float g = v[DY][i] * weight[i];
            sum += g;
            products = fmaf(g, (v[X][i] - m.mean) * m.inverse, products);
        }
    });
    const float shift = CENTRED ? row_sum(sum, rows) / n : 0, pull = -row_sum(products, rows) / n;
    row.each([&](unsigned column, const float(&v)[TENSORS][N]) {
        float weight[N], result[N];
        load_part<PACKED>(result, &dx[row.start + column], row.columns - column);
        load_part<PACKED>(weight, &w[column], row.columns - column);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float g = v[DY][i] * weight[i], z = (v[X][i] - m.mean) * m.inverse;
            result[i] = fmaf(m.inverse, fmaf(z, pull, g - shift), result[i]);
        }
        store_part<PACKED>(&dx[row.start + column], result, row.columns - column);
    });
}

static Rows rows_of(Tensor y, Tensor x, Tensor w, int64_t each) {
    const int64_t columns = tensor_columns(x);
    check(tensor_columns(y) == columns && tensor_count(y) == tensor_count(x) && tensor_count(w) == columns,
          "%lld columns, %lld and %lld elements, %lld weights", (long long)columns,
          (long long)tensor_count(y), (long long)tensor_count(x), (long long)tensor_count(w));
    check(columns <= INT32_MAX, "%lld columns", (long long)columns);
    return rows_shared(tensor_rows(x), columns, each);
}

template <bool CENTRED>
static void launch_norm(const Call &call, Tensor y, Tensor x, Tensor w, Tensor b, float eps) {
    check(!tensor_present(b) || b.dtype == w.dtype, "bias %s, weight %s", dtype_name(b.dtype),
          dtype_name(w.dtype));
    with_act(x.dtype, [&](auto act) {
        with_weight(w.dtype, [&](auto weight) {
            using T = decltype(act);
            using W = decltype(weight);
            constexpr int N = PACK<T, W>;
            const Rows rows = rows_of(y, x, w, PACKS_EACH * N);
            if (rows_are_packed(N, rows.columns, y, x, w, b))
                LAUNCH(call, row_blocks(rows), rows.block, 0, (norm<T, W, true, CENTRED>), elements<T>(y),
                       elements<T>(x), elements<W>(w), elements<W>(b), rows, eps);
            else
                LAUNCH(call, row_blocks(rows), rows.block, 0, (norm<T, W, false, CENTRED>), elements<T>(y),
                       elements<T>(x), elements<W>(w), elements<W>(b), rows, eps);
        });
    });
}

template <bool CENTRED>
static void launch_norm_bwd(const Call &call, Tensor dx, Tensor dy, Tensor x, Tensor w, float eps) {
    with_act(x.dtype, [&](auto act) {
        with_weight(w.dtype, [&](auto weight) {
            using T = decltype(act);
            using W = decltype(weight);
            constexpr int N = PACK<T, W>;
            const Rows rows = rows_of(dx, x, w, PACKS_EACH * N);
            if (rows_are_packed(N, rows.columns, dx, dy, x, w))
                LAUNCH(call, row_blocks(rows), rows.block, 0, (norm_bwd<T, W, true, CENTRED>),
                       elements<T>(dx), elements<T>(dy), elements<T>(x), elements<W>(w), rows, eps);
            else
                LAUNCH(call, row_blocks(rows), rows.block, 0, (norm_bwd<T, W, false, CENTRED>),
                       elements<T>(dx), elements<T>(dy), elements<T>(x), elements<W>(w), rows, eps);
        });
    });
}

extern "C" void cuda_rmsnorm(Queue *q, Tensor y, Tensor x, Tensor w, float eps) {
    const Call call(q, "rmsnorm", y, x, w);
    launch_norm<false>(call, y, x, w, {}, eps);
}

extern "C" void cuda_rmsnorm_bwd(Queue *q, Tensor dx, Tensor dy, Tensor x, Tensor w, float eps) {
    const Call call(q, "rmsnorm_bwd", dx, dy, x, w);
    launch_norm_bwd<false>(call, dx, dy, x, w, eps);
}

extern "C" void cuda_layernorm(Queue *q, Tensor y, Tensor x, Tensor w, Tensor b, float eps) {
    const Call call(q, "layernorm", y, x, w, b);
    launch_norm<true>(call, y, x, w, b, eps);
}

extern "C" void cuda_layernorm_bwd(Queue *q, Tensor dx, Tensor dy, Tensor x, Tensor w, float eps) {
    const Call call(q, "layernorm_bwd", dx, dy, x, w);
    launch_norm_bwd<true>(call, dx, dy, x, w, eps);
}

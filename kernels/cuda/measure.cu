/* What the analysis measures: expert counts, largest outputs, gate-row gradients, norms and sums of rows,
 * and the search for numbers that are none. Every sum has the order of kernels/cpu/measure.c and so its bits.
 *
 *   sums over tokens   a thread an expert or column, a group a block: tokens are never shared out, loads are
 *                      in flight eight at a time; bound by latency when one group has all tokens
 *   sums over a row    sixteen lanes a row, element i in lane i % 16 (kernels/cpu/lanes.h); bound by memory
 *   gate_grad          a product: a thread has 8 experts x 4 columns, dlogits in shared memory, x from memory
 *                      once for up to 32 experts; bound by fma, T E D of them */
#include "device.cuh"

enum { THREADS = 256, LANES = 16, ROWS = THREADS / LANES };

/* ---- count_experts ---- */
enum { COUNT_PAIRS = 1024 }; /* in shared memory at a time */

/* [begin, end): from the first token of group g to the last. */
struct Range {
    int begin, end;
};
DEVICE Range range_of(const int32_t *group, int32_t g, int tokens) {
    SHARED(int, range, 2);
    if (threadIdx.x == 0) store(&range[0], tokens), store(&range[1], 0);
    __syncthreads();
    int begin = tokens, end = 0;
#pragma unroll 8
    for (int t = threadIdx.x; t < tokens; t += THREADS)
        if (load(&group[t]) == g) begin = min(begin, t), end = t + 1;
    if (end > 0) atomicMin(&range[0], begin), atomicMax(&range[1], end);
    __syncthreads();
    return {load(&range[0]), load(&range[1])};
}

static __global__ void __launch_bounds__(THREADS)
    count_tokens(int64_t *selected, float *mass, float *weight, const int32_t *ids, const float *weights,
                 const float *probs, const int32_t *group, int tokens, int experts, int choices) {
    SHARED(int32_t, chosen, COUNT_PAIRS); /* -1: the token is another group's */
    SHARED(float, share, COUNT_PAIRS);
    const int32_t g = blockIdx.x;
    const int e = blockIdx.y * THREADS + threadIdx.x;
    const Range range = range_of(group, g, tokens);
    const int64_t to = (int64_t)g * experts + e;
    int64_t n_selected = 0;
    float mass_sum = mass && e < experts ? load(&mass[to]) : 0;
    float weight_sum = weight && e < experts ? load(&weight[to]) : 0;
    for (int first = range.begin; first < range.end; first += COUNT_PAIRS / choices) {
        const int n = min(COUNT_PAIRS / choices, range.end - first);
        const int64_t pair = (int64_t)first * choices;
        __syncthreads(); /* the last pairs have been read */
        for (int i = threadIdx.x; i < n * choices; i += THREADS) {
            store(&chosen[i], load(&group[first + i / choices]) == g ? load(&ids[pair + i]) : -1);
            store(&share[i], weight ? load(&weights[pair + i]) : 0);
        }
        __syncthreads();
        if (e >= experts) continue;
#pragma unroll 8
        for (int i = 0; i < n * choices; i++)
            if (load(&chosen[i]) == e) n_selected++, weight_sum += load(&share[i]);
#pragma unroll 8
        for (int i = 0; i < (mass ? n : 0); i++) {
            const float p = load(&probs[(int64_t)(first + i) * experts + e]);
            if (load(&chosen[i * choices]) >= 0) mass_sum += p;
        }
    }
    if (e >= experts) return;
    if (selected) store(&selected[to], load(&selected[to]) + n_selected);
    if (mass) store(&mass[to], mass_sum);
    if (weight) store(&weight[to], weight_sum);
}

extern "C" void cuda_count_experts(Queue *q, Tensor selected, Tensor mass, Tensor weight, Tensor ids,
                                   Tensor weights, Tensor probs, Tensor group) {
    const Call call(q, "count_experts", selected, mass, weight, ids, weights, probs, group);
    const Tensor sums = mass.data ? mass : weight.data ? weight : selected;
    const int64_t experts = tensor_columns(sums), choices = tensor_columns(ids);
    check(choices >= 1 && choices <= COUNT_PAIRS, "%lld choices", (long long)choices);
    if (!sums.data) return;
    const dim3 grid(blocks_for(tensor_rows(sums), 1), blocks_for(experts, THREADS));
    LAUNCH(call, grid, THREADS, 0, count_tokens, longs(selected), reals(mass), reals(weight), ints(ids),
           reals(weights), reals(probs), ints(group), (int)tensor_count(group), (int)experts, (int)choices);
}

/* ---- sums over a row ---- */
struct RowSums {
    float squares, sizes, largest;
};
/* By sixteen lanes; n = 0 for lanes without a row, which take part all the same. */
template <class T> DEVICE RowSums sums_of(const T *row, int64_t n) {
    RowSums s = {0, 0, 0};
#pragma unroll 8
    for (int64_t i = threadIdx.x % LANES; i < n; i += LANES) {
        const float x = to_f32(load(&row[i]));
        s.squares = fmaf(x, x, s.squares);
        s.sizes += fabsf(x);
        s.largest = fmaxf(s.largest, fabsf(x));
    }
    s.squares = lanes_sum(s.squares), s.sizes = lanes_sum(s.sizes);
#pragma unroll
    for (int d = LANES / 2; d; d /= 2) s.largest = fmaxf(s.largest, __shfl_xor_sync(~0u, s.largest, d));
    return s;
}

static __global__ void __launch_bounds__(THREADS)
    norms_of_rows(float *l2, float *l1, const float *x, int64_t rows, int64_t columns) {
    const int64_t r = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES;
    const RowSums s = sums_of(&x[r * columns], r < rows ? columns : 0);
    if (r >= rows || threadIdx.x % LANES) return;
    if (l2) store(&l2[r], sqrtf(s.squares));
    if (l1) store(&l1[r], s.sizes);
}

extern "C" void cuda_row_norms(Queue *q, Tensor l2, Tensor l1, Tensor x) {
    const Call call(q, "row_norms", l2, l1, x);
    const int64_t rows = tensor_rows(x);
    LAUNCH(call, blocks_for(rows, ROWS), THREADS, 0, norms_of_rows, reals(l2), reals(l1), reals(x), rows,
           tensor_columns(x));
}

/* The last e with offsets[e] <= row. */
DEVICE int expert_of(const int32_t *offsets, int experts, int64_t row) {
    int low = 0, high = experts;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (load(&offsets[middle]) <= row)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Numbers >= 0 and NaN have the order of their bits, NaN last: it stays. */
DEVICE void keep_larger(float *to, float x) {
    atomicMax(reinterpret_cast<int32_t *>(to), x == x ? __float_as_int(x) : INT32_MAX);
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    peaks_of_rows(float *largest, float *norm, const T *y, const int32_t *offsets, const int32_t *pairs,
                  const int32_t *group, int64_t rows, int64_t columns, int experts, int choices) {
    const int64_t m = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES;
    const int32_t pair = m < rows && m < load(&offsets[experts]) ? load(&pairs[m]) : -1;
    const int64_t g = pair >= 0 ? load(&group[pair / choices]) : -1;
    const RowSums s = sums_of(&y[m * columns], g >= 0 ? columns : 0);
    if (g < 0 || threadIdx.x % LANES) return;
    const float l2 = sqrtf(s.squares);
    const int64_t to = g * experts + expert_of(offsets, experts, m);
    if (largest) keep_larger(&largest[to], l2 == l2 ? s.largest : l2);
    if (norm) keep_larger(&norm[to], l2);
}

extern "C" void cuda_expert_peaks(Queue *q, Tensor largest, Tensor norm, Tensor y, MoePlan plan,
                                  Tensor group) {
    const Call call(q, "expert_peaks", largest, norm, y, plan.offsets, plan.pairs, plan.rows, group);
    const int64_t rows = tensor_count(plan.pairs);
    with_act(y.dtype, [&](auto act) {
        using T = decltype(act);
        LAUNCH(call, blocks_for(rows, ROWS), THREADS, 0, peaks_of_rows<T>, reals(largest), reals(norm),
               elements<T>(y), ints(plan.offsets), ints(plan.pairs), ints(group), rows, tensor_columns(y),
               (int)tensor_count(plan.offsets) - 1, (int)tensor_columns(plan.rows));
    });
}

/* ---- route_margin: sixteen lanes a token, expert e at lane e % 16 ---- */
static __global__ void __launch_bounds__(THREADS)
    margins_of_tokens(float *margin, const int32_t *ids, const float *logits, int64_t tokens, int experts,
                      int choices) {
    const int64_t t = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES;
    float chosen = INFINITY, other = -INFINITY;
    for (int e = threadIdx.x % LANES; e < (t < tokens ? experts : 0); e += LANES) {
        const float z = load(&logits[t * experts + e]);
        bool is_chosen = false;
        for (int k = 0; k < choices; k++) is_chosen |= load(&ids[t * choices + k]) == e;
        if (is_chosen)
            chosen = fminf(chosen, z);
        else
            other = fmaxf(other, z);
    }
#pragma unroll
    for (int d = LANES / 2; d; d /= 2) {
        chosen = fminf(chosen, __shfl_xor_sync(~0u, chosen, d));
        other = fmaxf(other, __shfl_xor_sync(~0u, other, d));
    }
    if (t < tokens && threadIdx.x % LANES == 0) store(&margin[t], chosen - other);
}

extern "C" void cuda_route_margin(Queue *q, Tensor margin, Tensor ids, Tensor logits) {
    const Call call(q, "route_margin", margin, ids, logits);
    const int64_t tokens = tensor_count(margin);
    LAUNCH(call, blocks_for(tokens, ROWS), THREADS, 0, margins_of_tokens, reals(margin), ints(ids),
           reals(logits), tokens, (int)tensor_columns(logits), (int)tensor_columns(ids));
}

/* ---- gate_grad ---- */
constexpr int GRAD_EXPERTS = 8, GRAD_COLUMNS = 4;   /* a thread's part; a slab: 8 experts of a block */
constexpr int STAGED_TOKENS = 64, SUM_TOKENS = 256; /* in shared memory; of a sum (ops.h) */
constexpr int MOST_SLABS = 4;

struct GradShape {
    int64_t columns, column_blocks;
    int experts, slabs; /* slabs of a block: 1, 2 or 4 */
};

/* sum[e] += dlogits[t, e] x[t, :] over n staged tokens. */
template <class T, int N>
DEVICE void add_products(float (&sum)[GRAD_EXPERTS][N], const float4 *staged, const T *x, int n,
                         const GradShape &s) {
#pragma unroll 4
    for (int i = 0; i < n; i++) {
        float v[N], d[GRAD_EXPERTS];
        load_pack<T, N>(v, &x[i * s.columns]);
#pragma unroll
        for (int j = 0; j < GRAD_EXPERTS / 4; j++) {
            const float4 four = load(&staged[i * s.slabs * (GRAD_EXPERTS / 4) + j]);
            d[4 * j] = four.x, d[4 * j + 1] = four.y, d[4 * j + 2] = four.z, d[4 * j + 3] = four.w;
        }
#pragma unroll
        for (int e = 0; e < GRAD_EXPERTS; e++)
#pragma unroll
            for (int k = 0; k < N; k++) sum[e][k] = fmaf(d[e], v[k], sum[e][k]);
    }
}

template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    add_gate_rows(float *grad, const float *dlogits, const T *x, const int32_t *offsets, GradShape s) {
    SHARED(float4, staged, STAGED_TOKENS * MOST_SLABS * (GRAD_EXPERTS / 4)); /* [token, expert] */
    const int width = THREADS / s.slabs, slab = threadIdx.x / width, block_experts = s.slabs * GRAD_EXPERTS;
    const int64_t g = blockIdx.x / s.column_blocks;
    const int64_t column = (blockIdx.x % s.column_blocks * width + threadIdx.x % width) * N;
    const int first = blockIdx.y * block_experts;
    const int begin = load(&offsets[g]), end = load(&offsets[g + 1]);
    float total[GRAD_EXPERTS][N] = {};
    for (int from = begin; from < end; from += SUM_TOKENS) {
        const int until = min(end, from + SUM_TOKENS);
        float sum[GRAD_EXPERTS][N] = {};
        for (int t = from; t < until; t += STAGED_TOKENS) {
            const int n = min((int)STAGED_TOKENS, until - t);
            __syncthreads(); /* the last tokens have been read */
            for (int i = threadIdx.x; i < n * block_experts; i += THREADS) {
                const int e = first + i % block_experts;
                const float d =
                    e < s.experts ? load(&dlogits[(int64_t)(t + i / block_experts) * s.experts + e]) : 0;
                store(reinterpret_cast<float *>(staged) + i, d);
            }
            __syncthreads();
            if (column < s.columns)
                add_products<T, N>(sum, &staged[slab * (GRAD_EXPERTS / 4)], &x[t * s.columns + column], n, s);
        }
#pragma unroll
        for (int e = 0; e < GRAD_EXPERTS; e++)
#pragma unroll
            for (int k = 0; k < N; k++) total[e][k] += sum[e][k];
    }
    if (column >= s.columns) return;
#pragma unroll
    for (int i = 0; i < GRAD_EXPERTS; i++) {
        const int e = first + slab * GRAD_EXPERTS + i;
        if (e >= s.experts) continue;
        float *to = &grad[(g * s.experts + e) * s.columns + column], v[N];
        load_pack<float, N>(v, to);
#pragma unroll
        for (int k = 0; k < N; k++) v[k] += total[i][k];
        store_pack<float, N>(to, v);
    }
}

template <class T, int N>
static void launch_gate_grad(const Call &call, Tensor grad, Tensor dlogits, Tensor x, Tensor offsets) {
    const int64_t experts = grad.shape[1], columns = grad.shape[2];
    const int slabs = experts <= GRAD_EXPERTS ? 1 : experts <= 2 * GRAD_EXPERTS ? 2 : (int)MOST_SLABS;
    const int64_t column_blocks = blocks_for(columns, (int64_t)THREADS / slabs * N);
    const dim3 grid(blocks_for(grad.shape[0] * column_blocks, 1), blocks_for(experts, slabs * GRAD_EXPERTS));
    LAUNCH(call, grid, THREADS, 0, (add_gate_rows<T, N>), reals(grad), reals(dlogits), elements<T>(x),
           ints(offsets), GradShape{columns, column_blocks, (int)experts, slabs});
}

extern "C" void cuda_gate_grad(Queue *q, Tensor grad, Tensor dlogits, Tensor x, Tensor offsets) {
    const Call call(q, "gate_grad", grad, dlogits, x, offsets);
    with_act(x.dtype, [&](auto act) {
        using T = decltype(act);
        if (rows_are_packed(GRAD_COLUMNS, grad.shape[2], grad, x))
            launch_gate_grad<T, GRAD_COLUMNS>(call, grad, dlogits, x, offsets);
        else
            launch_gate_grad<T, 1>(call, grad, dlogits, x, offsets);
    });
}

/* ---- segment_sums ---- */
static __global__ void __launch_bounds__(THREADS)
    sum_segments(float *sum, float *absolute, const float *x, const int32_t *offsets, int64_t columns,
                 int64_t column_blocks) {
    const int64_t g = blockIdx.x / column_blocks, c = blockIdx.x % column_blocks * THREADS + threadIdx.x;
    if (c >= columns) return;
    const int64_t begin = load(&offsets[g]), end = load(&offsets[g + 1]);
    float plain = 0, sizes = 0;
#pragma unroll 8
    for (int64_t t = begin; t < end; t++) {
        const float v = load(&x[t * columns + c]);
        plain += v;
        sizes += fabsf(v);
    }
    const int64_t to = g * columns + c;
    if (sum) store(&sum[to], load(&sum[to]) + plain);
    if (absolute) store(&absolute[to], load(&absolute[to]) + sizes);
}

extern "C" void cuda_segment_sums(Queue *q, Tensor sum, Tensor absolute, Tensor x, Tensor offsets) {
    const Call call(q, "segment_sums", sum, absolute, x, offsets);
    const int64_t columns = tensor_columns(x), column_blocks = blocks_for(columns, THREADS);
    LAUNCH(call, blocks_for((tensor_count(offsets) - 1) * column_blocks, 1), THREADS, 0, sum_segments,
           reals(sum), reals(absolute), reals(x), ints(offsets), columns, column_blocks);
}

/* ---- find_nonfinite; -1 as an unsigned number is larger than every index ---- */
typedef unsigned long long Index;
constexpr int FIND_PACKS = 4; /* of a thread */

static __global__ void find_nothing(Index *first) {
    if (threadIdx.x == 0) store(first, ~(Index)0);
}

template <class T, int N>
static __global__ void __launch_bounds__(THREADS) find_first(Index *first, const T *x, int64_t count) {
    const int64_t begin = ((int64_t)blockIdx.x * FIND_PACKS * THREADS + threadIdx.x) * N;
    Index found = ~(Index)0;
#pragma unroll
    for (int p = 0; p < FIND_PACKS; p++) {
        const int64_t i = begin + p * THREADS * N;
        if (i >= count) continue;
        float v[N];
        load_pack<T, N>(v, &x[i]);
#pragma unroll
        for (int k = 0; k < N; k++)
            if (!(v[k] - v[k] == 0)) found = min(found, (Index)(i + k));
    }
    if (found != ~(Index)0) atomicMin(first, found);
}

extern "C" void cuda_find_nonfinite(Queue *q, Tensor first, Tensor x) {
    const Call call(q, "find_nonfinite", first, x);
    const int64_t count = tensor_count(x);
    Index *to = reinterpret_cast<Index *>(longs(first));
    LAUNCH(call, 1, 32, 0, find_nothing, to);
    with_act(x.dtype, [&](auto act) {
        using T = decltype(act);
        constexpr int N = WIDEST<T>;
        if (rows_are_packed(N, count, x))
            LAUNCH(call, blocks_for(count, FIND_PACKS * THREADS * N), THREADS, 0, (find_first<T, N>), to,
                   elements<T>(x), count);
        else
            LAUNCH(call, blocks_for(count, FIND_PACKS * THREADS), THREADS, 0, (find_first<T, 1>), to,
                   elements<T>(x), count);
    });
}

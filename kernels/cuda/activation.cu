/* Gated activations: SwiGLU (arXiv 2002.05202) with the clamp that some models use, the sigmoid gate of a
 * shared expert, the SwiGLU backward of expert rows with their combine weights, and the weighted sum of a
 * token's expert rows.
 *
 * Mapping: row_threads.cuh. Where rows have no sums a thread has one pack of a row, of 16 bytes or, where
 * these do not fit, of one element; where they have, it takes packs in turn and the sums keep their order.
 * Traffic: each operand once; moe_combine reads K rows a token. Limit: memory; in f32 swiglu comes near
 * the limit of issue, as exp and the division take some 55 instructions an element (gating.cuh). */
#include "gating.cuh"
#include "row_threads.cuh"

/* ---- one pack of N elements a thread ---- */
static dim3 pack_grid(Rows r, int64_t n) { return dim3(row_blocks(r), blocks_for(r.columns, r.threads * n)); }
struct Place {
    int64_t row, column;
    bool exists;
};
template <int N> DEVICE Place place_of_thread(Rows r) {
    const int64_t row = row_of_thread(r), column = ((int64_t)blockIdx.y * r.threads + thread_of_row(r)) * N;
    return Place{row, column, row < r.count && column < r.columns};
}

template <class T, int N>
static __global__ void __launch_bounds__(MOST_ROW_THREADS) swiglu(T *h, const T *z, Rows rows, Gating f) {
    const Place at = place_of_thread<N>(rows);
    if (!at.exists) return;
    const T *from = &z[2 * at.row * rows.columns + at.column];
    float gate[N], up[N], hidden[N];
    load_pack<T, N>(gate, from);
    load_pack<T, N>(up, &from[rows.columns]);
#pragma unroll
    for (int i = 0; i < N; i++) hidden[i] = pass_gate<T>(gate[i], up[i], 0, f);
    store_pack<T, N>(&h[at.row * rows.columns + at.column], hidden);
}

template <class T, int N>
static __global__ void __launch_bounds__(MOST_ROW_THREADS)
    swiglu_bwd(T *dz, const T *dh, const T *z, Rows rows, Gating f) {
    const Place at = place_of_thread<N>(rows);
    if (!at.exists) return;
    const int64_t first = 2 * at.row * rows.columns + at.column, second = first + rows.columns;
    float gate[N], up[N], dhidden[N], dgate[N], dup[N];
    load_pack<T, N>(gate, &z[first]);
    load_pack<T, N>(up, &z[second]);
    load_pack<T, N>(dhidden, &dh[at.row * rows.columns + at.column]);
    load_pack<T, N>(dgate, &dz[first]);
    load_pack<T, N>(dup, &dz[second]);
#pragma unroll
    for (int i = 0; i < N; i++) {
        pass_gate<T>(gate[i], up[i], dhidden[i], f);
        dgate[i] += gate[i], dup[i] += up[i];
    }
    store_pack<T, N>(&dz[first], dgate);
    store_pack<T, N>(&dz[second], dup);
}

template <class T, int N>
static __global__ void __launch_bounds__(MOST_ROW_THREADS)
    sigmoid_scale(T *y, const T *x, const float *gate, const T *residual, Rows rows) {
    const Place at = place_of_thread<N>(rows);
    if (!at.exists) return;
    const int64_t first = at.row * rows.columns + at.column;
    float v[N], sum[N];
    load_pack<T, N>(v, &x[first]);
    if (residual) load_pack<T, N>(sum, &residual[first]);
    const float share = sigmoid_f32(load(&gate[at.row]));
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = residual ? v[i] * share + sum[i] : v[i] * share;
    store_pack<T, N>(&y[first], v);
}

template <class T, int N>
static __global__ void __launch_bounds__(MOST_ROW_THREADS)
    moe_combine(T *out, const T *y, const float *weights, const T *residual, const int32_t *row, int choices,
                Rows rows) {
    const Place at = place_of_thread<N>(rows);
    if (!at.exists) return;
    const int64_t first = at.row * rows.columns + at.column, first_choice = at.row * choices;
    float sum[N] = {}, v[N];
#pragma unroll 4 /* that many rows are on their way at a time */
    for (int k = 0; k < choices; k++) {
        const int64_t m = load(&row[first_choice + k]);
        const float weight = load(&weights[first_choice + k]);
        load_pack<T, N>(v, &y[m * rows.columns + at.column]);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = fmaf(weight, v[i], sum[i]);
    }
    if (residual) {
        load_pack<T, N>(v, &residual[first]);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += v[i];
    }
    store_pack<T, N>(&out[first], sum);
}

/* ---- with sums over a row ---- */
enum { PACKS_EACH = 2 };

template <class T, bool PACKED>
static __global__ void __launch_bounds__(MOST_ROW_THREADS)
    sigmoid_scale_bwd(T *__restrict__ dx, float *dgate, const T *dy, const T *x, const float *gate,
                      Rows rows) {
    constexpr int N = WIDEST<T>;
    const int64_t row = row_of_thread(rows), columns = row < rows.count ? rows.columns : 0;
    const unsigned thread = thread_of_row(rows);
    const float share = columns ? sigmoid_f32(load(&gate[row])) : 0;
    float products = 0;
    for (int64_t column = (int64_t)thread * N; column < columns; column += (int64_t)rows.threads * N) {
        const int64_t at = row * columns + column, left = columns - column;
        float grad[N], v[N];
        load_part<PACKED>(grad, &dy[at], left);
        if (dgate) {
            load_part<PACKED>(v, &x[at], left);
#pragma unroll
            for (int i = 0; i < N; i++) products = fmaf(v[i], grad[i], products);
        }
        if (dx) {
            load_part<PACKED>(v, &dx[at], left);
#pragma unroll
            for (int i = 0; i < N; i++) v[i] = fmaf(share, grad[i], v[i]);
            store_part<PACKED>(&dx[at], v, left);
        }
    }
    if (!dgate) return;
    products = row_sum(products, rows);
    if (columns && thread == 0) store(&dgate[row], load(&dgate[row]) + products * (share * (1 - share)));
}

/* Packs of four elements: 16 bytes of da. */
template <class T, bool PACKED>
static __global__ void __launch_bounds__(MOST_ROW_THREADS)
    moe_swiglu_bwd(T *__restrict__ dz, float *dweights, const float *da, const T *z, const float *weights,
                   const int32_t *pairs, Rows rows, Gating f) {
    constexpr int N = WIDEST<float>;
    const int64_t row = row_of_thread(rows), columns = row < rows.count ? rows.columns : 0;
    const unsigned thread = thread_of_row(rows);
    const int64_t pair = columns ? load(&pairs[row]) : 0;
    const float weight = columns ? load(&weights[pair]) : 0;
    float products = 0;
    for (int64_t column = (int64_t)thread * N; column < columns; column += (int64_t)rows.threads * N) {
        const int64_t first = 2 * row * columns + column, second = first + columns, left = columns - column;
        float gate[N], up[N], grad[N];
        load_part<PACKED>(gate, &z[first], left);
        load_part<PACKED>(up, &z[second], left);
        load_part<PACKED>(grad, &da[row * columns + column], left);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float hidden = pass_gate<T>(gate[i], up[i], grad[i] * weight, f);
            products = fmaf(grad[i], rounded<T>(hidden), products);
        }
        if (dz) {
            store_part<PACKED>(&dz[first], gate, left);
            store_part<PACKED>(&dz[second], up, left);
        }
    }
    if (!dweights) return;
    products = row_sum(products, rows);
    if (columns && thread == 0) store(&dweights[pair], load(&dweights[pair]) + products);
}

/* ---- the ops ---- */
static Rows rows_of(Tensor x, int64_t each) { return rows_shared(tensor_rows(x), tensor_columns(x), each); }

static void check_halves(Tensor h, Tensor z) {
    check(tensor_columns(z) == 2 * tensor_columns(h) && tensor_rows(z) == tensor_rows(h),
          "%lld x %lld from %lld x %lld", (long long)tensor_rows(h), (long long)tensor_columns(h),
          (long long)tensor_rows(z), (long long)tensor_columns(z));
}

extern "C" void cuda_swiglu(Queue *q, Tensor h, Tensor z, Activation act) {
    const Call call(q, "swiglu", h, z);
    check_halves(h, z);
    with_act(h.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int N = WIDEST<T>;
        const bool packed = rows_are_packed(N, tensor_columns(h), h, z);
        const Rows rows = rows_of(h, packed ? N : 1);
        if (packed)
            LAUNCH(call, pack_grid(rows, N), rows.block, 0, (swiglu<T, N>), elements<T>(h), elements<T>(z),
                   rows, gating_of(act));
        else
            LAUNCH(call, pack_grid(rows, 1), rows.block, 0, (swiglu<T, 1>), elements<T>(h), elements<T>(z),
                   rows, gating_of(act));
    });
}

extern "C" void cuda_swiglu_bwd(Queue *q, Tensor dz, Tensor dh, Tensor z, Activation act) {
    const Call call(q, "swiglu_bwd", dz, dh, z);
    check_halves(dh, z);
    with_act(z.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int N = WIDEST<T>;
        const bool packed = rows_are_packed(N, tensor_columns(dh), dz, dh, z);
        const Rows rows = rows_of(dh, packed ? N : 1);
        if (packed)
            LAUNCH(call, pack_grid(rows, N), rows.block, 0, (swiglu_bwd<T, N>), elements<T>(dz),
                   elements<T>(dh), elements<T>(z), rows, gating_of(act));
        else
            LAUNCH(call, pack_grid(rows, 1), rows.block, 0, (swiglu_bwd<T, 1>), elements<T>(dz),
                   elements<T>(dh), elements<T>(z), rows, gating_of(act));
    });
}

extern "C" void cuda_sigmoid_scale(Queue *q, Tensor y, Tensor x, Tensor gate, Tensor residual) {
    const Call call(q, "sigmoid_scale", y, x, gate, residual);
    check(tensor_count(gate) == tensor_rows(x) && tensor_count(y) == tensor_count(x), "%lld rows",
          (long long)tensor_rows(x));
    with_act(y.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int N = WIDEST<T>;
        const bool packed = rows_are_packed(N, tensor_columns(x), y, x, residual);
        const Rows rows = rows_of(x, packed ? N : 1);
        if (packed)
            LAUNCH(call, pack_grid(rows, N), rows.block, 0, (sigmoid_scale<T, N>), elements<T>(y),
                   elements<T>(x), reals(gate), elements<T>(residual), rows);
        else
            LAUNCH(call, pack_grid(rows, 1), rows.block, 0, (sigmoid_scale<T, 1>), elements<T>(y),
                   elements<T>(x), reals(gate), elements<T>(residual), rows);
    });
}

extern "C" void cuda_moe_combine(Queue *q, Tensor out, Tensor y, Tensor weights, Tensor residual,
                                 MoePlan plan) {
    const Call call(q, "moe_combine", out, y, weights, residual, plan.rows);
    const int choices = (int)tensor_columns(plan.rows);
    check(tensor_count(weights) == tensor_rows(out) * choices && tensor_columns(y) == tensor_columns(out),
          "%lld x %lld", (long long)tensor_rows(out), (long long)tensor_columns(out));
    with_act(out.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int N = WIDEST<T>;
        const bool packed = rows_are_packed(N, tensor_columns(out), out, y, residual);
        const Rows rows = rows_of(out, packed ? N : 1);
        if (packed)
            LAUNCH(call, pack_grid(rows, N), rows.block, 0, (moe_combine<T, N>), elements<T>(out),
                   elements<T>(y), reals(weights), elements<T>(residual), ints(plan.rows), choices, rows);
        else
            LAUNCH(call, pack_grid(rows, 1), rows.block, 0, (moe_combine<T, 1>), elements<T>(out),
                   elements<T>(y), reals(weights), elements<T>(residual), ints(plan.rows), choices, rows);
    });
}

extern "C" void cuda_sigmoid_scale_bwd(Queue *q, Tensor dx, Tensor dgate, Tensor dy, Tensor x, Tensor gate) {
    const Call call(q, "sigmoid_scale_bwd", dx, dgate, dy, x, gate);
    check(tensor_count(gate) == tensor_rows(x) && tensor_count(dy) == tensor_count(x), "%lld rows",
          (long long)tensor_rows(x));
    with_act(x.dtype, [&](auto element) {
        using T = decltype(element);
        const Rows rows = rows_of(x, PACKS_EACH * WIDEST<T>);
        if (rows_are_packed(WIDEST<T>, rows.columns, dx, dy, x))
            LAUNCH(call, row_blocks(rows), rows.block, 0, (sigmoid_scale_bwd<T, true>), elements<T>(dx),
                   reals(dgate), elements<T>(dy), elements<T>(x), reals(gate), rows);
        else
            LAUNCH(call, row_blocks(rows), rows.block, 0, (sigmoid_scale_bwd<T, false>), elements<T>(dx),
                   reals(dgate), elements<T>(dy), elements<T>(x), reals(gate), rows);
    });
}

extern "C" void cuda_moe_swiglu_bwd(Queue *q, Tensor dz, Tensor dweights, Tensor da, Tensor z, Tensor weights,
                                    MoePlan plan, Activation act) {
    const Call call(q, "moe_swiglu_bwd", dz, dweights, da, z, weights, plan.pairs);
    check_halves(da, z);
    check(tensor_count(plan.pairs) == tensor_rows(da) && tensor_count(weights) == tensor_rows(da),
          "%lld rows", (long long)tensor_rows(da));
    with_act(z.dtype, [&](auto element) {
        using T = decltype(element);
        const Rows rows = rows_of(da, PACKS_EACH * WIDEST<float>);
        if (rows_are_packed(WIDEST<float>, rows.columns, dz, da, z))
            LAUNCH(call, row_blocks(rows), rows.block, 0, (moe_swiglu_bwd<T, true>), elements<T>(dz),
                   reals(dweights), reals(da), elements<T>(z), reals(weights), ints(plan.pairs), rows,
                   gating_of(act));
        else
            LAUNCH(call, row_blocks(rows), rows.block, 0, (moe_swiglu_bwd<T, false>), elements<T>(dz),
                   reals(dweights), reals(da), elements<T>(z), reals(weights), ints(plan.pairs), rows,
                   gating_of(act));
    });
}

/* Rows in and out: embed, gather, scatter, add. All are bound by memory; a block of 256 threads moves a part
 * of the rows in packs of 16 bytes where the row length and the addresses allow, else element by element.
 *
 *   y[t,:] = table[ids[t],:]    dx[index[i],:] += dy[i,:], i ascending: each thread owns its columns and
 * walks
 *   the rows in order, so the sums have the order of the CPU's. */
#include "device.cuh"

enum { THREADS = 256 };

/* y[to[t],:] = x[from[t],:]; an absent index is t itself. */
template <class Y, class X, int N>
static __global__ void __launch_bounds__(THREADS)
    copy_rows(Y *y, const X *x, const int32_t *to, const int32_t *from, int64_t rows, int64_t columns) {
    const int64_t packs = columns / N, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= rows * packs) return;
    const int64_t row = i / packs, column = i % packs * N;
    const int64_t source = from ? load(&from[row]) : row;
    const int64_t target = to ? load(&to[row]) : row;
    float v[N];
    load_pack<X, N>(v, &x[source * columns + column]);
    store_pack<Y, N>(&y[target * columns + column], v);
}

template <class Y, class X>
static void launch_copy(const Call &call, Tensor y, Tensor x, Tensor to, Tensor from, int64_t rows) {
    constexpr int N = sizeof(X) > sizeof(Y) ? WIDEST<X> : WIDEST<Y>;
    const int64_t columns = tensor_columns(y);
    if (columns == 0) return;
    if (rows_are_packed(N, columns, y, x))
        LAUNCH(call, blocks_for(rows * columns / N, THREADS), THREADS, 0, (copy_rows<Y, X, N>),
               elements<Y>(y), elements<X>(x), ints(to), ints(from), rows, columns);
    else
        LAUNCH(call, blocks_for(rows * columns, THREADS), THREADS, 0, (copy_rows<Y, X, 1>), elements<Y>(y),
               elements<X>(x), ints(to), ints(from), rows, columns);
}

extern "C" void cuda_embed(Queue *q, Tensor y, Tensor ids, Tensor table) {
    const Call call(q, "embed", y, ids, table);
    with_act(y.dtype, [&](auto act) {
        with_weight(table.dtype, [&](auto weight) {
            launch_copy<decltype(act), decltype(weight)>(call, y, table, {}, ids, tensor_count(ids));
        });
    });
}

extern "C" void cuda_gather_rows(Queue *q, Tensor y, Tensor x, Tensor index) {
    const Call call(q, "gather_rows", y, x, index);
    with_act(y.dtype, [&](auto act) {
        launch_copy<decltype(act), decltype(act)>(call, y, x, {}, index, tensor_count(index));
    });
}

extern "C" void cuda_scatter_rows(Queue *q, Tensor y, Tensor x, Tensor index) {
    const Call call(q, "scatter_rows", y, x, index);
    with_act(y.dtype, [&](auto act) {
        launch_copy<decltype(act), decltype(act)>(call, y, x, index, {}, tensor_count(index));
    });
}

/* One pack of columns a thread, all rows in order. */
template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    add_gathered(T *dx, const T *dy, const int32_t *index, int64_t rows, int64_t columns) {
    const int64_t column = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (column >= columns) return;
    for (int64_t i = 0; i < rows; i++) {
        const int64_t target = load(&index[i]);
        float sum[N], v[N];
        load_pack<T, N>(sum, &dx[target * columns + column]);
        load_pack<T, N>(v, &dy[i * columns + column]);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += v[k];
        store_pack<T, N>(&dx[target * columns + column], sum);
    }
}

extern "C" void cuda_gather_rows_bwd(Queue *q, Tensor dx, Tensor dy, Tensor index) {
    const Call call(q, "gather_rows_bwd", dx, dy, index);
    const int64_t columns = tensor_columns(dx), rows = tensor_count(index);
    with_act(dx.dtype, [&](auto act) {
        using T = decltype(act);
        constexpr int N = WIDEST<T>;
        if (rows_are_packed(N, columns, dx, dy))
            LAUNCH(call, blocks_for(columns, THREADS * N), THREADS, 0, (add_gathered<T, N>), elements<T>(dx),
                   elements<T>(dy), ints(index), rows, columns);
        else
            LAUNCH(call, blocks_for(columns, THREADS), THREADS, 0, (add_gathered<T, 1>), elements<T>(dx),
                   elements<T>(dy), ints(index), rows, columns);
    });
}

template <class T, int N>
static __global__ void __launch_bounds__(THREADS) add_elements(T *y, const T *a, const T *b, int64_t count) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= count) return;
    float sum[N], v[N];
    load_pack<T, N>(sum, &a[i]);
    load_pack<T, N>(v, &b[i]);
#pragma unroll
    for (int k = 0; k < N; k++) sum[k] += v[k];
    store_pack<T, N>(&y[i], sum);
}

extern "C" void cuda_add(Queue *q, Tensor y, Tensor a, Tensor b) {
    const Call call(q, "add", y, a, b);
    const int64_t count = tensor_count(y);
    with_act(y.dtype, [&](auto act) {
        using T = decltype(act);
        constexpr int N = WIDEST<T>;
        if (rows_are_packed(N, count, y, a, b))
            LAUNCH(call, blocks_for(count, THREADS * N), THREADS, 0, (add_elements<T, N>), elements<T>(y),
                   elements<T>(a), elements<T>(b), count);
        else
            LAUNCH(call, blocks_for(count, THREADS), THREADS, 0, (add_elements<T, 1>), elements<T>(y),
                   elements<T>(a), elements<T>(b), count);
    });
}

extern "C" void cuda_accumulate(Queue *q, Tensor y, Tensor x) { cuda_add(q, y, y, x); }

/* Products whose operands are not both bf16, or whose rows are not multiples of 16 bytes: any dtypes, any
 * sizes, in f32 on the ordinary cores.
 *
 * A block of 128 threads computes 64 x 64, a thread 8 x 4, in steps of 16 k that go from memory through
 * registers, where they are widened, to shared memory (two buffers). There both operands stand k by k; rows
 * of memory, which run along k, are transposed on the way, with their columns exchanged in eights by k / 4,
 * so that neither the writes nor the reads meet bank conflicts. 32 multiply-adds a thread for three 16-byte
 * reads of shared memory: bound by the f32 rate.
 *
 * The sums have the bits of kernels/cpu/gemm.h: fma by fma over blocks of 256 k, block sums added in order.
 * */
#include "gemm.cuh"

enum { ROWS = 64, COLUMNS = 64, STEP = 16, BLOCK_STEPS = 256 / STEP, THREADS = 128, N_M = 8, N_N = 4 };
enum { N_PACKS = ROWS * STEP / 4 / THREADS }; /* of x and of w that a thread moves every step */
enum { BUFFER = STEP * ROWS };
static_assert(ROWS == COLUMNS && 4 * BUFFER == ROWS * COLUMNS,
              "one layout for both operands, room for the sums");

/* Four elements as they are; those from n on are zero. */
template <class T> DEVICE Pack<T, 4> fetch_four(const T *p, int n, bool packed) {
    Pack<T, 4> four = {};
    if (packed && n >= 4) {
        four.word = load(reinterpret_cast<const decltype(four.word) *>(p));
        return four;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < n) four.element[i] = load(&p[i]);
    return four;
}

/* Where element (k, m) of an operand stands in a buffer. */
DEVICE int slot(int k, int m) { return k * ROWS + (m ^ (k / 4 % 4 * 8)); }

/* Four elements of row m along k; of one k, from row m on. */
template <class T> DEVICE void put_along_k(float *buffer, const Pack<T, 4> &four, int k, int m) {
#pragma unroll
    for (int i = 0; i < 4; i++) store(&buffer[slot(k + i, m)], to_f32(four.element[i]));
}
template <class T> DEVICE void put_along_m(float *buffer, const Pack<T, 4> &four, int k, int m) {
    const float wide[4] = {to_f32(four.element[0]), to_f32(four.element[1]), to_f32(four.element[2]),
                           to_f32(four.element[3])};
    store_pack<float, 4>(&buffer[slot(k, m)], wide);
}

/* What a thread moves: of x and, forward, of w the rows pack / 4 + 32 i and four k from pack % 4 * 4; back,
 * of w one k and four columns. */
template <class X, class W, bool BACK> struct Stream {
    const X *x;
    const W *w;
    int source[N_PACKS];
    int depth, columns, column;
    bool x_packed, w_packed;
    Pack<X, 4> x_four[N_PACKS];
    Pack<W, 4> w_four[N_PACKS];

    __device__ __forceinline__ Stream(const Product &p, const TilePlace &at, bool x_rows, bool w_rows)
        : x(static_cast<const X *>(p.x.data)), depth(p.depth), columns(p.columns), column(at.column),
          x_packed(x_rows), w_packed(w_rows) {
        w = static_cast<const W *>(p.w.data) + (int64_t)at.group * p.depth * p.columns;
#pragma unroll
        for (int i = 0; i < N_PACKS; i++)
            source[i] = source_row(p, at.first + i * (THREADS / 4) + (int)threadIdx.x / 4, at.end);
    }

    /* The step that begins at k, to registers. */
    __device__ __forceinline__ void fetch(int k) {
        const int row = (int)threadIdx.x / 4, along = k + (int)threadIdx.x % 4 * 4;
        const int k_row = k + (int)threadIdx.x / 16, across = column + (int)threadIdx.x % 16 * 4;
#pragma unroll
        for (int i = 0; i < N_PACKS; i++) {
            x_four[i] = fetch_four(x + ((int64_t)source[i] * depth + along),
                                   source[i] >= 0 ? depth - along : 0, x_packed);
            const int k_i = k_row + i * (THREADS / 16), j_i = column + row + i * (THREADS / 4);
            if (BACK)
                w_four[i] = fetch_four(w + ((int64_t)k_i * columns + across),
                                       k_i < depth ? columns - across : 0, w_packed);
            else
                w_four[i] = fetch_four(w + ((int64_t)j_i * depth + along), j_i < columns ? depth - along : 0,
                                       w_packed);
        }
    }

    /* From registers to the buffers. */
    __device__ __forceinline__ void put(float *x_buffer, float *w_buffer) {
        const int row = (int)threadIdx.x / 4, k = (int)threadIdx.x % 4 * 4;
#pragma unroll
        for (int i = 0; i < N_PACKS; i++) {
            put_along_k(x_buffer, x_four[i], k, i * (THREADS / 4) + row);
            if (BACK)
                put_along_m(w_buffer, w_four[i], i * (THREADS / 16) + (int)threadIdx.x / 16,
                            (int)threadIdx.x % 16 * 4);
            else
                put_along_k(w_buffer, w_four[i], k, i * (THREADS / 4) + row);
        }
    }
};

/* part += one step; m, n: the thread's first row and column. */
DEVICE void multiply_step(float (&part)[N_M][N_N], const float *x, const float *w, int m, int n) {
#pragma unroll
    for (int k = 0; k < STEP; k++) {
        float a[2][4], b[4];
        load_pack<float, 4>(a[0], &x[slot(k, m)]);
        load_pack<float, 4>(a[1], &x[slot(k, m) + 4]);
        load_pack<float, 4>(b, &w[slot(k, n)]);
#pragma unroll
        for (int i = 0; i < N_M; i++)
#pragma unroll
            for (int j = 0; j < N_N; j++) part[i][j] = fmaf(a[i / 4][i % 4], b[j], part[i][j]);
    }
}

/* s = first block ? p : s + p, and p = 0 */
DEVICE void add_block(float (&sum)[N_M][N_N], float (&part)[N_M][N_N], bool first) {
#pragma unroll
    for (int i = 0; i < N_M; i++)
#pragma unroll
        for (int j = 0; j < N_N; j++) {
            sum[i][j] = first ? part[i][j] : sum[i][j] + part[i][j];
            part[i][j] = 0;
        }
}

template <class X, class W, bool BACK>
static __global__ void __launch_bounds__(THREADS, 3)
    multiply_f32(const Product p, bool x_packed, bool w_packed) {
    SHARED(float, buffers, 4 * BUFFER); /* x, w, and once more */
    TilePlace at;
    if (!place_tile<ROWS, COLUMNS>(p, blockIdx.x, at)) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int m = (warp / 2 * 4 + lane / 8) * N_M, n = (warp % 2 * 8 + lane % 8) * N_N;
    const int row = at.first + m, column = at.column + n;
    float sum[N_M][N_N] = {}, part[N_M][N_N] = {};
    if (p.onto)
#pragma unroll
        for (int i = 0; i < N_M; i++)
#pragma unroll
            for (int j = 0; j < N_N; j++)
                if (row + i < at.end && column + j < p.columns)
                    sum[i][j] = read_one(p.residual, (int64_t)(row + i) * p.columns + (column + j));

    Stream<X, W, BACK> stream(p, at, x_packed, w_packed);
    const int n_steps = (p.depth + STEP - 1) / STEP;
    stream.fetch(0);
    stream.put(buffers, &buffers[BUFFER]);
    __syncthreads();
    for (int s = 0; s < n_steps; s++) {
        const float *now = &buffers[s % 2 * 2 * BUFFER];
        float *next = &buffers[(s + 1) % 2 * 2 * BUFFER];
        const bool more = s + 1 < n_steps;
        if (more) stream.fetch((s + 1) * STEP);
        multiply_step(part, now, &now[BUFFER], m, n);
        if ((s + 1) % BLOCK_STEPS == 0 || !more) add_block(sum, part, s < BLOCK_STEPS && !p.onto);
        if (more) stream.put(next, &next[BUFFER]);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < N_M; i++) store_pack<float, 4>(&buffers[(m + i) * COLUMNS + n], sum[i]);
    __syncthreads();
    finish_sums<ROWS, COLUMNS, COLUMNS, THREADS>(p, at.group, at.first, at.end, at.column, buffers,
                                                 (int)threadIdx.x);
}

template <class X, class W> static void launch(const Call &call, const Product &p) {
    const unsigned blocks = blocks_of_tiles(p, COLUMNS);
    const bool x_packed = rows_are_packed(4, p.depth, p.x);
    const bool w_packed = rows_are_packed(4, p.back ? p.columns : p.depth, p.w);
    if (p.back)
        LAUNCH(call, blocks, THREADS, 0, (multiply_f32<X, W, true>), p, x_packed, w_packed);
    else
        LAUNCH(call, blocks, THREADS, 0, (multiply_f32<X, W, false>), p, x_packed, w_packed);
}

void product_f32(const Call &call, Product p) {
    check(!p.halves, "halves are for the tensor cores");
    p.row_tiles = row_tiles_at_most(p, ROWS);
    with_act(p.x.dtype, [&](auto act) {
        with_weight(p.w.dtype, [&](auto weight) { launch<decltype(act), decltype(weight)>(call, p); });
    });
}

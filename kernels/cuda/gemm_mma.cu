/* Products of bf16 by bf16 on the tensor cores: mma.sync m16n8k16, any GPU from sm_80 on.
 *
 * A block computes a tile of ROWS x COLUMNS, a warp a part of it, in steps of 64 k. A ring of N_STAGES steps
 * is filled by cp.async, 16 bytes a copy: rows of x by index, so gathering tokens costs nothing, and rows or
 * columns that are not there become zeros. Rows in shared memory are 128 bytes (64 k, or back 64 columns)
 * whose 16-byte chunks are exchanged by row (swizzled): neither the copies nor ldmatrix meet bank conflicts.
 * Weights stay as they lie: x w^T reads them by ldmatrix, x w by its transposing form. Fragments are read
 * one mma step ahead. Sums go through shared memory, so that y and residual are accessed in whole lines.
 *
 * Gated, y = x w^T is gate and up of a gated MLP: half of a warp's columns are gates, the other half the ups
 * that belong to them, so that the warp has both at the end and writes the hidden row instead.
 *
 * Large is bound by the tensor cores (128 x 256: 43 multiply-adds a byte from L2), Skinny, for few rows a
 * group, by the weights' way from memory: 60 KiB of them and x under way a block, three blocks an SM. Medium
 * is between, Thin is for so few columns that Skinny would leave SMs idle. All make the same chain of mma, so
 * a row does not show in which it was computed.
 *
 * Requires rows of x and w that are multiples of 16 bytes, 16-byte aligned; columns and rows of y: any. */
#include "gemm.cuh"
#include <cstdlib>
#include <cstring>

enum { STEP = 64, ROW_BYTES = 128 };

template <int WARPS_M, int WARPS_N_, int TILES_M_, int TILES_N_, int N_STAGES_, int BLOCKS_> struct Shape {
    enum {
        WARPS_N = WARPS_N_,
        THREADS = 32 * WARPS_M * WARPS_N,
        TILES_M = TILES_M_, /* mma tiles of a warp: 16 rows each */
        TILES_N = TILES_N_, /* 8 columns each */
        WARP_ROWS = 16 * TILES_M,
        WARP_COLUMNS = 8 * TILES_N,
        ROWS = WARPS_M * WARP_ROWS,
        COLUMNS = WARPS_N * WARP_COLUMNS,
        N_STAGES = N_STAGES_,
        X_BYTES = ROWS * ROW_BYTES,
        STAGE_BYTES = X_BYTES + COLUMNS * ROW_BYTES,
        SHARED_BYTES = N_STAGES * STAGE_BYTES,
        BLOCKS = BLOCKS_ /* an SM */
    };
};
typedef Shape<2, 4, 4, 8, 3, 1> Large;  /* 128 x 256 */
typedef Shape<1, 4, 4, 4, 3, 3> Medium; /* 64 x 128 */
typedef Shape<1, 4, 2, 2, 6, 3> Skinny; /* 32 x 64 */
typedef Shape<1, 2, 2, 2, 8, 3> Thin; /* 32 x 32: few columns too, so that more SMs have some; x w^T alone */

/* Where chunk c (16 bytes) of a row stands in a tile of 128-byte rows. */
DEVICE uint32_t swizzled(unsigned row, unsigned c) { return row * ROW_BYTES + ((c ^ row % 8) << 4); }

/* The same for weights that are read back: a row is one k, every 64 columns are a tile of STEP rows. */
DEVICE uint32_t swizzled_back(unsigned k, unsigned c) {
    return c / 8 * STEP * ROW_BYTES + swizzled(k, c % 8);
}

/* What a thread copies of every step: a chunk of every X_ROWS-th row of x and of every W_ROWS-th row of w.
 * Rows of w are columns of y, or back, k. Gated, HALF gates alternate with their HALF ups. */
template <class S, Form FORM> struct Fetch {
    enum {
        CHUNKS = FORM == BACK ? S::COLUMNS / 8 : STEP / 8, /* of a row of w */
        X_ROWS = S::THREADS / 8,
        W_ROWS = S::THREADS / CHUNKS,
        N_X = S::ROWS / X_ROWS,
        N_W = (FORM == BACK ? (int)STEP : (int)S::COLUMNS) / W_ROWS,
        HALF = S::WARP_COLUMNS / 2,
        HALVES_EACH = W_ROWS / HALF /* gated: of the rows from one of the thread's to its next */
    };
    static_assert(FORM != GATED || HALVES_EACH == 1 || HALVES_EACH == 2, "a thread's rows of w");
    const char *x, *w;      /* the thread's chunk in row 0 of x, in its first row of w */
    int source[N_X];        /* its rows of x; negative: none */
    int x_stride, w_stride; /* bytes to the next row of x, to the thread's next row of w (gated: HALF rows) */
    int up_stride;          /* gated: bytes from a gate's row to its up's */
    int64_t w_step;         /* bytes of w to the next step */
    int k_left, w_rows, w_columns; /* what there is from the thread's first on: of x; rows, columns of w */

    __device__ __forceinline__ Fetch(const Product &p, const TilePlace &at) {
        const int row = threadIdx.x / 8, chunk = threadIdx.x % 8 * 8;
        const int w_row = threadIdx.x / CHUNKS, w_chunk = threadIdx.x % CHUNKS * 8;
        const int row_bytes = (FORM == BACK ? p.columns : p.depth) * 2, w_depth = p.depth >> p.halves;
        x = static_cast<const char *>(p.x.data) + chunk * 2;
        w = static_cast<const char *>(p.w.data) + (int64_t)at.group * w_depth * p.columns * 2;
        x_stride = p.depth * 2;
        k_left = p.depth - chunk;
        w_step = FORM == BACK ? (int64_t)(STEP >> p.halves) * row_bytes : STEP * 2;
        w_columns = FORM == BACK ? p.columns - at.column - w_chunk : k_left;
        if (FORM == GATED) {
            const int gate = at.column / 2 + w_row % HALF;
            w += (int64_t)(gate + (w_row / HALF) * (p.columns / 2)) * row_bytes + w_chunk * 2;
            w_stride = HALF * row_bytes, up_stride = p.columns / 2 * row_bytes;
            w_rows = p.columns / 2 - gate;
        } else {
            w += FORM == BACK ? (int64_t)(w_row >> p.halves) * row_bytes + (at.column + w_chunk) * 2
                              : (int64_t)(at.column + w_row) * row_bytes + w_chunk * 2;
            w_stride = (W_ROWS >> p.halves) * row_bytes;
            w_rows = FORM == BACK ? p.depth - w_row : p.columns - at.column - w_row;
        }
#pragma unroll
        for (int i = 0; i < N_X; i++) source[i] = source_row(p, at.first + i * X_ROWS + row, at.end);
    }

    /* The next step, to the stage at shared address `to`; beyond the last one, zeros. */
    __device__ __forceinline__ void next(uint32_t to) {
        const unsigned row = threadIdx.x / 8, w_row = threadIdx.x / CHUNKS, w_chunk = threadIdx.x % CHUNKS;
#pragma unroll
        for (int i = 0; i < N_X; i++)
            cp_async16(to + swizzled(i * X_ROWS + row, threadIdx.x % 8), x + (int64_t)source[i] * x_stride,
                       source[i] >= 0 && k_left > 0);
        to += S::X_BYTES;
#pragma unroll
        for (int i = 0; i < N_W; i++) {
            const int pairs = i * HALVES_EACH / 2, ups = i * HALVES_EACH % 2;
            const int64_t from =
                FORM == GATED ? (int64_t)pairs * w_stride + (ups ? up_stride : 0) : (int64_t)i * w_stride;
            cp_async16(to + (FORM == BACK ? swizzled_back(i * W_ROWS + w_row, w_chunk)
                                          : swizzled(i * W_ROWS + w_row, w_chunk)),
                       w + from, w_rows > (FORM == GATED ? pairs * HALF : i * W_ROWS) && w_columns > 0);
        }
        cp_async_commit();
        x += STEP * 2, w += w_step, k_left -= STEP;
        if (FORM == BACK)
            w_rows -= STEP;
        else
            w_columns -= STEP;
    }
};

/* A warp's operands of one mma step (16 k). */
template <class S> struct Fragments { uint32_t x[S::TILES_M][4], w[S::TILES_N / 2][4]; };

template <class S, Form FORM>
DEVICE void read_fragments(Fragments<S> &f, uint32_t stage, unsigned k16, unsigned warp_row,
                           unsigned warp_column) {
    const unsigned lane = threadIdx.x % 32, low = lane % 16, high = lane / 16;
#pragma unroll
    for (int i = 0; i < S::TILES_M; i++)
        ldmatrix_x4(f.x[i], stage + swizzled(warp_row + i * 16 + low, k16 * 2 + high));
#pragma unroll
    for (int j = 0; j < S::TILES_N / 2; j++)
        if (FORM ==
            BACK) /* 16 k further on: a constant more, so the sum of the rest is computed once a step */
            ldmatrix_x4_transposed(f.w[j], stage + S::X_BYTES +
                                               swizzled_back(low, warp_column / 8 + j * 2 + high) +
                                               k16 * 16 * ROW_BYTES);
        else
            ldmatrix_x4(f.w[j], stage + S::X_BYTES +
                                    swizzled(warp_column + j * 16 + lane % 8 + high * 8, k16 * 2 + low / 8));
}

/* The warp's sums to y, 16 rows at a time through its own part of shared memory. */
template <class S, Form FORM>
DEVICE void finish_warp(const Product &p, const TilePlace &at, float (&sum)[S::TILES_M][S::TILES_N][4],
                        float *own, int warp_row, int warp_column) {
    enum { LENGTH = S::WARP_COLUMNS + 8 };
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < S::TILES_M; i++) {
#pragma unroll
        for (int j = 0; j < S::TILES_N; j++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                store(reinterpret_cast<float2 *>(&own[(h * 8 + lane / 4) * LENGTH + j * 8 + lane % 4 * 2]),
                      float2{sum[i][j][h * 2], sum[i][j][h * 2 + 1]});
        __syncwarp();
        const int row = at.first + warp_row + i * 16, column = at.column + warp_column;
        if (FORM == GATED)
            finish_gated<S::WARP_COLUMNS / 2, LENGTH>(p, at.group, row, at.end, column / 2, own, lane);
        else if (FORM == BACK && p.gradient.z.data)
            finish_gradient<S::WARP_COLUMNS, LENGTH>(p, row, at.end, column, own, lane);
        else
            finish_sums<16, S::WARP_COLUMNS, LENGTH, 32>(p, at.group, row, at.end, column, own, lane);
        __syncwarp();
    }
}

template <class S, Form FORM>
static __global__ void __launch_bounds__(S::THREADS, S::BLOCKS) multiply_bf16(const Product p) {
    DYNAMIC_SHARED(shared);
    TilePlace at;
    if (!place_tile<S::ROWS, S::COLUMNS>(p, blockIdx.x, at)) return;
    const unsigned warp = threadIdx.x / 32;
    const unsigned warp_row = warp / S::WARPS_N * S::WARP_ROWS,
                   warp_column = warp % S::WARPS_N * S::WARP_COLUMNS;
    const uint32_t ring = shared_address(shared), ring_end = ring + S::SHARED_BYTES;
    float sum[S::TILES_M][S::TILES_N][4];
#pragma unroll
    for (int i = 0; i < S::TILES_M; i++)
#pragma unroll
        for (int j = 0; j < S::TILES_N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) sum[i][j][e] = 0;

    Fetch<S, FORM> fetch(p, at);
#pragma unroll
    for (int s = 0; s < S::N_STAGES - 1; s++) fetch.next(ring + s * S::STAGE_BYTES);
    uint32_t stage = ring, free_stage = ring_end - S::STAGE_BYTES;
    for (int k = 0; k < p.depth; k += STEP) {
        cp_async_wait<S::N_STAGES - 2>();
        __syncthreads(); /* the step has come for all threads, and all have read the one before it */
        Fragments<S> f[2];
        read_fragments<S, FORM>(f[0], stage, 0, warp_row, warp_column);
        fetch.next(free_stage);
#pragma unroll
        for (int k16 = 0; k16 < STEP / 16; k16++) {
            if (k16 + 1 < STEP / 16)
                read_fragments<S, FORM>(f[(k16 + 1) % 2], stage, k16 + 1, warp_row, warp_column);
            const Fragments<S> &now = f[k16 % 2];
#pragma unroll
            for (int i = 0; i < S::TILES_M; i++)
#pragma unroll
                for (int j = 0; j < S::TILES_N; j++)
                    mma_bf16(sum[i][j], now.x[i], now.w[j / 2][j % 2 * 2], now.w[j / 2][j % 2 * 2 + 1]);
        }
        free_stage = stage;
        stage = stage + S::STAGE_BYTES == ring_end ? ring : stage + S::STAGE_BYTES;
    }
    cp_async_wait<0>();
    __syncthreads(); /* the ring has been read, nothing comes any more: its memory serves the sums */
    float *own = reinterpret_cast<float *>(shared) + warp * 16 * (S::WARP_COLUMNS + 8);
    finish_warp<S, FORM>(p, at, sum, own, warp_row, warp_column);
}

/* ---- which tile ---- */
template <class S> static int64_t tiles(const Product &p) {
    return (int64_t)row_tiles_at_most(p, S::ROWS) * ((p.columns + S::COLUMNS - 1) / S::COLUMNS);
}

template <class S> static void launch(const Call &call, Product p) {
    p.row_tiles = row_tiles_at_most(p, S::ROWS);
    const unsigned blocks = blocks_of_tiles(p, S::COLUMNS);
    const Form form = form_of(p);
    if (form == GATED)
        LAUNCH(call, blocks, S::THREADS, S::SHARED_BYTES, (multiply_bf16<S, GATED>), p);
    else if (form == FORWARD)
        LAUNCH(call, blocks, S::THREADS, S::SHARED_BYTES, (multiply_bf16<S, FORWARD>), p);
    else if constexpr (S::COLUMNS >= 64) /* a step of w read back has tiles of 64 columns */
        LAUNCH(call, blocks, S::THREADS, S::SHARED_BYTES, (multiply_bf16<S, BACK>), p);
    else
        check(false, "w read back in tiles of %d columns", (int)S::COLUMNS);
}

/* The largest tile that still gives every SM one. */
void product_mma(const Call &call, Product p) {
    const int rows_each = p.rows / p.groups, sms = n_multiprocessors();
    p.onto = false; /* a chain of mma cannot be cut into blocks: residual is added to the whole */
    if (rows_each >= Medium::ROWS * 3 / 2 && tiles<Large>(p) >= sms)
        uses_hopper() && !p.halves ? product_hopper(call, p, sms) : launch<Large>(call, p);
    else if (rows_each > Skinny::ROWS && tiles<Medium>(p) >= sms)
        launch<Medium>(call, p);
    else if (p.back || tiles<Skinny>(p) >= sms)
        launch<Skinny>(call, p);
    else
        launch<Thin>(call, p);
}

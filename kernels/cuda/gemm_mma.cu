/* Products of bf16 by bf16 on the tensor cores: mma.sync m16n8k16, any GPU from sm_80 on.
 *
 * A block computes a tile of ROWS x COLUMNS, a warp a part of it, in steps of 64 k. A ring of N_STAGES steps
 * is filled by cp.async, 16 bytes a copy: rows of x by index, so gathering tokens costs nothing, and rows or
 * columns that are not there become zeros. Rows in shared memory are 128 bytes (64 k, or back 64 columns)
 * whose 16-byte chunks are exchanged by row (swizzled): neither the copies nor ldmatrix meet bank conflicts.
 * Weights stay as they lie: x w^T reads them by ldmatrix, x w by its transposing form. Fragments are read
 * one mma step ahead. Sums go through shared memory, so that y and residual are accessed in whole lines.
 *
 * Large is bound by the tensor cores (128 x 256: 85 multiply-adds a byte from L2), Skinny, for few rows a
 * group, by the weights' way from memory: 60 KiB of them and x under way a block, three blocks an SM. Medium
 * is between. All make the same chain of mma, so a row does not show in which it was computed.
 *
 * Requires rows of x and w that are multiples of 16 bytes, 16-byte aligned; columns and rows of y: any. */
#include "gemm.cuh"

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

/* Where chunk c (16 bytes) of a row stands in a tile of 128-byte rows. */
DEVICE uint32_t swizzled(int row, int c) { return (uint32_t)(row * ROW_BYTES + ((c ^ (row & 7)) << 4)); }

/* The same for weights that are read back: a row is one k, every 64 columns are a tile of STEP rows. */
DEVICE uint32_t swizzled_back(int k, int c) {
    return (uint32_t)(c / 8 * STEP * ROW_BYTES) + swizzled(k, c % 8);
}

/* What a thread copies of every step. */
template <class S, bool BACK> struct Fetch {
    enum {
        CHUNKS = BACK ? S::COLUMNS / 8 : STEP / 8, /* of a row of w */
        W_ROWS = S::THREADS / CHUNKS,              /* that the block copies at a time */
        N_W = (BACK ? (int)STEP : (int)S::COLUMNS) / W_ROWS,
        X_ROWS = S::THREADS / 8,
        N_X = S::ROWS / X_ROWS
    };
    const bf16 *x, *w;
    int source[N_X];
    int k, depth, columns, column, halves;

    __device__ __forceinline__ Fetch(const Product &p, const TilePlace &at)
        : k(0), depth(p.depth), columns(p.columns), column(at.column), halves(p.halves) {
        const int64_t group_size = (int64_t)(p.depth >> halves) * p.columns;
        x = static_cast<const bf16 *>(p.x.data);
        w = static_cast<const bf16 *>(p.w.data) + at.group * group_size;
#pragma unroll
        for (int i = 0; i < N_X; i++)
            source[i] = source_row(p, at.first + i * X_ROWS + (int)threadIdx.x / 8, at.end);
    }

    /* The next step, to the stage at shared address `to`; nothing beyond the last. */
    __device__ __forceinline__ void next(uint32_t to) {
        if (k < depth) {
            const int row = (int)threadIdx.x / 8, chunk = (int)threadIdx.x % 8;
#pragma unroll
            for (int i = 0; i < N_X; i++)
                cp_async16(to + swizzled(i * X_ROWS + row, chunk),
                           x + (int64_t)source[i] * depth + (k + chunk * 8),
                           source[i] >= 0 && k + chunk * 8 < depth);
            fetch_weights(to + S::X_BYTES);
        }
        k += STEP;
        cp_async_commit();
    }

    __device__ __forceinline__ void fetch_weights(uint32_t to) {
        const int first = (int)threadIdx.x / CHUNKS, chunk = (int)threadIdx.x % CHUNKS;
#pragma unroll
        for (int i = 0; i < N_W; i++) {
            const int r = i * W_ROWS + first;
            if (BACK)
                cp_async16(to + swizzled_back(r, chunk),
                           w + (int64_t)((k + r) >> halves) * columns + (column + chunk * 8),
                           k + r < depth && column + chunk * 8 < columns);
            else
                cp_async16(to + swizzled(r, chunk), w + (int64_t)(column + r) * depth + (k + chunk * 8),
                           column + r < columns && k + chunk * 8 < depth);
        }
    }
};

/* A warp's operands of one mma step (16 k). */
template <class S> struct Fragments { uint32_t x[S::TILES_M][4], w[S::TILES_N / 2][4]; };

template <class S, bool BACK>
DEVICE void read_fragments(Fragments<S> &f, uint32_t stage, int k16, int warp_row, int warp_column) {
    const int lane = threadIdx.x % 32, low = lane % 16, high = lane / 16;
#pragma unroll
    for (int i = 0; i < S::TILES_M; i++)
        ldmatrix_x4(f.x[i], stage + swizzled(warp_row + i * 16 + low, k16 * 2 + high));
#pragma unroll
    for (int j = 0; j < S::TILES_N / 2; j++)
        if (BACK)
            ldmatrix_x4_transposed(f.w[j], stage + S::X_BYTES +
                                               swizzled_back(k16 * 16 + low, warp_column / 8 + j * 2 + high));
        else
            ldmatrix_x4(f.w[j], stage + S::X_BYTES +
                                    swizzled(warp_column + j * 16 + lane % 8 + high * 8, k16 * 2 + low / 8));
}

/* The warp's sums to y, 16 rows at a time through its own part of shared memory. */
template <class S>
DEVICE void finish_warp(const Product &p, const TilePlace &at, float (&sum)[S::TILES_M][S::TILES_N][4],
                        float *own, int warp_row, int warp_column) {
    enum { LENGTH = S::WARP_COLUMNS + 8, LANES = S::WARP_COLUMNS / 4, AT_ONCE = 32 / LANES };
    const int lane = threadIdx.x % 32, column = at.column + warp_column + lane % LANES * 4;
#pragma unroll
    for (int i = 0; i < S::TILES_M; i++) {
#pragma unroll
        for (int j = 0; j < S::TILES_N; j++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                store(reinterpret_cast<float2 *>(&own[(h * 8 + lane / 4) * LENGTH + j * 8 + lane % 4 * 2]),
                      float2{sum[i][j][h * 2], sum[i][j][h * 2 + 1]});
        __syncwarp();
#pragma unroll
        for (int r = lane / LANES; r < 16; r += AT_ONCE) {
            const int row = at.first + warp_row + i * 16 + r;
            float four[4];
            load_pack<float, 4>(four, &own[r * LENGTH + lane % LANES * 4]);
            if (row < at.end && column < p.columns) finish_four(p, at.group, row, column, four);
        }
        __syncwarp();
    }
}

template <class S, bool BACK>
static __global__ void __launch_bounds__(S::THREADS, S::BLOCKS) multiply_bf16(const Product p) {
    DYNAMIC_SHARED(shared);
    TilePlace at;
    if (!place_tile<S::ROWS, S::COLUMNS>(p, at)) return;
    const int warp = threadIdx.x / 32;
    const int warp_row = warp / S::WARPS_N * S::WARP_ROWS, warp_column = warp % S::WARPS_N * S::WARP_COLUMNS;
    const uint32_t ring = shared_address(shared), ring_end = ring + S::SHARED_BYTES;
    float sum[S::TILES_M][S::TILES_N][4];
#pragma unroll
    for (int i = 0; i < S::TILES_M; i++)
#pragma unroll
        for (int j = 0; j < S::TILES_N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) sum[i][j][e] = 0;

    Fetch<S, BACK> fetch(p, at);
#pragma unroll
    for (int s = 0; s < S::N_STAGES - 1; s++) fetch.next(ring + s * S::STAGE_BYTES);
    uint32_t stage = ring, free_stage = ring_end - S::STAGE_BYTES;
    for (int k = 0; k < p.depth; k += STEP) {
        cp_async_wait<S::N_STAGES - 2>();
        __syncthreads(); /* the step has come for all threads, and all have read the one before it */
        Fragments<S> f[2];
        read_fragments<S, BACK>(f[0], stage, 0, warp_row, warp_column);
        fetch.next(free_stage);
#pragma unroll
        for (int k16 = 0; k16 < STEP / 16; k16++) {
            if (k16 + 1 < STEP / 16)
                read_fragments<S, BACK>(f[(k16 + 1) % 2], stage, k16 + 1, warp_row, warp_column);
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
    __syncthreads(); /* the ring has been read: its memory serves the sums */
    float *own = reinterpret_cast<float *>(shared) + warp * 16 * (S::WARP_COLUMNS + 8);
    finish_warp<S>(p, at, sum, own, warp_row, warp_column);
}

/* ---- which tile ---- */
static int n_multiprocessors() {
    static const int n = [] {
        int count = 1;
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0);
        return count;
    }();
    return n;
}

template <class S> static unsigned tiles(Product &p) {
    p.row_tiles = row_tiles_at_most(p, S::ROWS);
    return blocks_of_tiles(p, S::COLUMNS);
}

#define LAUNCH_SHAPE(S)                                                                                      \
    p.back ? LAUNCH(call, tiles<S>(p), S::THREADS, S::SHARED_BYTES, (multiply_bf16<S, true>), p)             \
           : LAUNCH(call, tiles<S>(p), S::THREADS, S::SHARED_BYTES, (multiply_bf16<S, false>), p)

void product_mma(const Call &call, Product p) {
    const int rows_each = p.rows / p.groups;
    p.onto = false; /* a chain of mma cannot be cut into blocks: residual is added to the whole */
    if (rows_each <= Skinny::ROWS)
        LAUNCH_SHAPE(Skinny);
    else if (rows_each < Medium::ROWS * 3 / 2 || tiles<Large>(p) < (unsigned)n_multiprocessors())
        LAUNCH_SHAPE(Medium);
    else
        LAUNCH_SHAPE(Large);
}

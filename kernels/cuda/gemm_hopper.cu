/* Products of bf16 by bf16 on Hopper's tensor cores: wgmma m64n256k16 fed by TMA, for groups of many rows.
 *
 * A block has an SM to itself and works off tiles of 128 x 256, every gridDim-th of them, so that the next
 * tile is on its way while the last one is written. Warpgroup 0 fetches, in steps of 64 k: w by TMA, in a
 * ring of four stages of 48 KiB; x by TMA where its rows follow one another, else by cp.async, a row by its
 * index (gathering costs no launch and no memory). Warpgroups 1 and 2 multiply, 64 rows each, and write.
 * Stage s is handed over by the mbarriers full[s] (all bytes have landed) and empty[s] (every multiplying
 * warp is done with it). Shared memory that threads filled is fenced by them before they say so: wgmma reads
 * by another way.
 *
 * Weights stay as they lie: x w^T reads 256 rows of them, x w four boxes of 64 columns, transposed by the
 * operand's descriptor; gated, 128 gates and their 128 ups (gemm_mma.cu). TMA counts in rows of the whole
 * tensor, so what a tile reads beyond its group belongs to the next one, and is not written; beyond the last
 * k, x gives zeros.
 *
 * Bound by the tensor cores: 128 x 256 takes 43 multiply-adds a byte from L2. Requires what gemm_mma.cu
 * requires. */
#include "gemm.cuh"
#include "hopper.cuh"

enum {
    TILE_ROWS = 128,
    TILE_COLUMNS = 256,
    STEP = TILE_ROW, /* of k */
    N_STAGES = 4,
    GROUP_THREADS = 128, /* of a warpgroup */
    THREADS = 3 * GROUP_THREADS,
    X_BYTES = TILE_ROWS * TILE_ROW_BYTES,
    W_BYTES = TILE_COLUMNS * TILE_ROW_BYTES,
    STAGE_BYTES = X_BYTES + W_BYTES,
    CHUNK = 32,         /* columns that a warp writes at a time */
    LENGTH = CHUNK + 8, /* of a row of its sums in shared memory */
    OWN_FLOATS = 16 * LENGTH,
    SUMS_AT = N_STAGES * STAGE_BYTES,
    BARRIERS_AT = SUMS_AT + 8 * OWN_FLOATS * 4,
    SHARED_BYTES = BARRIERS_AT + 2 * N_STAGES * 8,
    UNDER_WAY = 2 /* steps of gathered rows that a thread copies at a time */
};

/* The stage of the n-th step that a block does, and how often the ring has come round. */
struct Stage {
    uint32_t tiles, full, empty, parity;
    __device__ __forceinline__ Stage(uint32_t shared, unsigned n) {
        const uint32_t s = n % N_STAGES;
        tiles = shared + s * STAGE_BYTES;
        full = shared + BARRIERS_AT + 8 * s, empty = full + 8 * N_STAGES;
        parity = n / N_STAGES & 1;
    }
};

/* One step's part of w, by one thread. */
template <Form FORM>
DEVICE void fetch_w(const Product &p, const TilePlace &at, const TensorMap *w, const Stage &s, int k) {
    const uint32_t to = s.tiles + X_BYTES;
    if (FORM == BACK) {
#pragma unroll 1
        for (int c = 0; c < TILE_COLUMNS; c += TILE_ROW)
            tma_load(to + c / TILE_ROW * STEP * TILE_ROW_BYTES, w, s.full, at.column + c,
                     at.group * p.depth + k);
    } else if (FORM == GATED) {
        const int gate = at.group * p.columns + at.column / 2;
        tma_load(to, w, s.full, k, gate);
        tma_load(to + W_BYTES / 2, w, s.full, k, gate + p.columns / 2);
    } else {
        tma_load(to, w, s.full, k, at.group * p.columns + at.column);
    }
}

/* ---- fetching: rows of x that follow one another; one warp ---- */
template <Form FORM>
DEVICE void fetch_tiles(const Product &p, const TensorMap *x, const TensorMap *w, uint32_t shared,
                        int n_tiles) {
    unsigned n = 0;
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        TilePlace at;
        if (!place_tile<TILE_ROWS, TILE_COLUMNS>(p, tile, at)) continue;
        for (int k = 0; k < p.depth; k += STEP, n++) {
            const Stage s(shared, n);
            if (threadIdx.x != 0) continue;
            mbarrier_wait(s.empty, s.parity ^ 1);
            mbarrier_arrive_expecting(s.full, STAGE_BYTES);
            tma_load(s.tiles, x, s.full, k, at.first);
            fetch_w<FORM>(p, at, w, s, k);
        }
    }
}

/* ---- fetching: rows of x by index; a warpgroup, eight chunks of 16 bytes a thread ---- */
/* The copies of step n have landed. */
DEVICE void hand_over(uint32_t shared, unsigned n) {
    async_proxy_fence();
    mbarrier_arrive(Stage(shared, n).full);
}

template <Form FORM>
DEVICE void gather_tiles(const Product &p, const TensorMap *w, uint32_t shared, int n_tiles) {
    enum { ROWS_APART = GROUP_THREADS / 8, N = TILE_ROWS / ROWS_APART };
    const int row = threadIdx.x / 8, chunk = threadIdx.x % 8;
    unsigned n = 0;
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        TilePlace at;
        if (!place_tile<TILE_ROWS, TILE_COLUMNS>(p, tile, at)) continue;
        int source[N];
#pragma unroll
        for (int i = 0; i < N; i++) source[i] = source_row(p, at.first + row + i * ROWS_APART, at.end);
        const bf16 *x = static_cast<const bf16 *>(p.x.data) + chunk * 8;
        for (int k = 0; k < p.depth; k += STEP, n++, x += STEP) {
            const Stage s(shared, n);
            mbarrier_wait(s.empty, s.parity ^ 1);
            if (threadIdx.x == 0) {
                mbarrier_arrive_expecting(s.full, W_BYTES);
                fetch_w<FORM>(p, at, w, s, k);
            }
#pragma unroll
            for (int i = 0; i < N; i++)
                cp_async16(s.tiles + swizzled((row + i * ROWS_APART) * TILE_ROW_BYTES + chunk * 16),
                           &x[(int64_t)source[i] * p.depth], source[i] >= 0 && k + chunk * 8 < p.depth);
            cp_async_commit();
            if (n < UNDER_WAY) continue;
            cp_async_wait<UNDER_WAY>();
            hand_over(shared, n - UNDER_WAY);
        }
    }
    cp_async_wait<0>();
    for (unsigned i = n < UNDER_WAY ? 0 : n - UNDER_WAY; i < n; i++) hand_over(shared, i);
}

/* ---- multiplying; two warpgroups ---- */
/* The four products of a stage, of the warpgroup's 64 rows. */
template <Form FORM> DEVICE void multiply_stage(float (&sum)[128], uint32_t x, uint32_t w, bool first) {
#pragma unroll
    for (int k = 0; k < STEP / 16; k++) {
        const uint64_t rows = wgmma_operand(x + k * 32, 16, 1024);
        if constexpr (FORM == BACK)
            wgmma<256, N_MAJOR>(sum, rows, wgmma_operand(w + k * 2048, STEP * TILE_ROW_BYTES, 1024),
                                !first || k > 0);
        else
            wgmma<256, K_MAJOR>(sum, rows, wgmma_operand(w + k * 32, 16, 1024), !first || k > 0);
    }
}

/* A warp's 16 rows of sums to y, CHUNK columns at a time through its own part of shared memory; gated, half
 * of them gates and half their ups. */
template <Form FORM>
DEVICE void write_rows_of_warp(const Product &p, const TilePlace &at, float (&sum)[128], float *own,
                               int row) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int c = 0; c < TILE_COLUMNS / CHUNK; c++) {
#pragma unroll
        for (int j = 0; j < CHUNK / 8; j++) {
            const int from = FORM == GATED ? c * 2 + j % 2 + j / 2 * 16 : c * 4 + j;
#pragma unroll
            for (int h = 0; h < 2; h++)
                store(reinterpret_cast<float2 *>(&own[(h * 8 + lane / 4) * LENGTH + j * 8 + lane % 4 * 2]),
                      float2{sum[from * 4 + h * 2], sum[from * 4 + h * 2 + 1]});
        }
        __syncwarp();
        if (FORM == GATED)
            finish_gated<CHUNK / 2, LENGTH>(p, at.group, row, at.end, (at.column + c * CHUNK) / 2, own, lane);
        else if (FORM == BACK && p.gradient.z.data)
            finish_gradient<CHUNK, LENGTH>(p, row, at.end, at.column + c * CHUNK, own, lane);
        else
            finish_sums<16, CHUNK, LENGTH, 32>(p, at.group, row, at.end, at.column + c * CHUNK, own, lane);
        __syncwarp();
    }
}

template <Form FORM> DEVICE void multiply_tiles(const Product &p, uint32_t shared, float *own, int n_tiles) {
    const int warp = threadIdx.x / 32 - GROUP_THREADS / 32, group = warp / 4;
    const bool releases = threadIdx.x % 32 == 0;
    unsigned n = 0;
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        TilePlace at;
        if (!place_tile<TILE_ROWS, TILE_COLUMNS>(p, tile, at)) continue;
        float sum[128];
        for (int k = 0; k < p.depth; k += STEP, n++) {
            const Stage s(shared, n);
            mbarrier_wait(s.full, s.parity);
            wgmma_hold(sum);
            wgmma_fence();
            multiply_stage<FORM>(sum, s.tiles + group * 64 * TILE_ROW_BYTES, s.tiles + X_BYTES, k == 0);
            wgmma_commit();
            wgmma_hold(sum);
            if (k > 0) {
                wgmma_wait<1>();
                if (releases) mbarrier_arrive(Stage(shared, n - 1).empty);
            }
        }
        wgmma_wait<0>();
        wgmma_hold(sum);
        if (releases) mbarrier_arrive(Stage(shared, n - 1).empty);
        write_rows_of_warp<FORM>(p, at, sum, own + warp * OWN_FLOATS, at.first + warp * 16);
    }
}

template <Form FORM, bool GATHERED>
static __global__ void __launch_bounds__(THREADS, 1)
    multiply_wgmma(const Product p, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,
                   int n_tiles) {
    DYNAMIC_SHARED(memory);
    const uint32_t shared = shared_address(memory);
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int n = 0; n < N_STAGES; n++) {
            const Stage s(shared, n);
            mbarrier_init(s.full, GATHERED ? GROUP_THREADS + 1 : 1);
            mbarrier_init(s.empty, 8);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < GROUP_THREADS) {
        registers_lower<56>();
        if (GATHERED)
            gather_tiles<FORM>(p, &w, shared, n_tiles);
        else if (threadIdx.x < 32)
            fetch_tiles<FORM>(p, &x, &w, shared, n_tiles);
    } else {
        registers_raise<224>();
        multiply_tiles<FORM>(p, shared, reinterpret_cast<float *>(memory + SUMS_AT), n_tiles);
    }
}

/* ---- launching ---- */
template <Form FORM, bool GATHERED>
static void launch(const Call &call, const Product &p, int multiprocessors) {
    TensorMap x, w;
    const int64_t depth = p.back ? p.columns : p.depth; /* of a row of w */
    const int64_t w_rows = tensor_count(p.w) / depth;
    const unsigned box = FORM == BACK ? STEP : FORM == GATED ? TILE_COLUMNS / 2 : TILE_COLUMNS;
    cudaError_t error = tensor_map_new(&w, p.w.data, w_rows, depth, box);
    if (!error && !GATHERED) error = tensor_map_new(&x, p.x.data, tensor_rows(p.x), p.depth, TILE_ROWS);
    if (GATHERED) x = w; /* not read */
    if (error) return launch_finish(call, "multiply_wgmma", error);
    const unsigned tiles = blocks_of_tiles(p, TILE_COLUMNS), most = (unsigned)multiprocessors;
    LAUNCH(call, tiles < most ? tiles : most, THREADS, SHARED_BYTES, (multiply_wgmma<FORM, GATHERED>), p, x,
           w, (int)tiles);
}

template <Form FORM> static void launch(const Call &call, const Product &p, int multiprocessors) {
    p.pairs ? launch<FORM, true>(call, p, multiprocessors) : launch<FORM, false>(call, p, multiprocessors);
}

void product_hopper(const Call &call, Product p, int multiprocessors) {
    p.row_tiles = row_tiles_at_most(p, TILE_ROWS);
    switch (form_of(p)) {
    case GATED: return launch<GATED>(call, p, multiprocessors);
    case BACK: return launch<BACK>(call, p, multiprocessors);
    case FORWARD: return launch<FORWARD>(call, p, multiprocessors);
    }
}

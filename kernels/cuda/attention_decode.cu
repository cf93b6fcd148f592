/* Attention of one query row a prompt over its cache: bf16, heads of 64 and 128, the bits of
 * attention_mma.cu.
 *
 * A warp computes whole key blocks of 64 for up to 16 rows (the query heads of one key/value head), with
 * keys and values in its own part of shared memory and no barrier: the next block's keys arrive while values
 * are summed, its values while scores are computed, so each warp keeps up to 32 KiB of an SM's reads under
 * way. The blocks are joined in order, in one of three ways with the same bits:
 *   few prompts: a prompt's blocks are divided among `splits` thread blocks, which leave each key block's
 * maximum,
 *   total and values in the workspace (f32, C/32 of the traffic of its keys and values a row); a second
 * kernel joins.
 *   many: a warp takes them all, and five share an SM.
 *   else, or where the workspace is too small for the prompt: one thread block takes them all, its warps in
 * turns.
 *
 * Traffic: keys and values once; bound by memory. Prompts with more rows are right too, 16 rows at a time. */
#include "attention_mma.cuh"

namespace {
constexpr int MOST_WARPS = 4, TILE = 16;
constexpr int ENOUGH_BLOCKS = 128, MOST_SPLITS = 32; /* about one thread block an SM */
constexpr int MANY_UNITS = 2 * ENOUGH_BLOCKS;        /* so many fill an SM's memory with a warp each */
template <int C> constexpr int WARP_BYTES = (TILE + 2 * KEY_BLOCK) * ROW_BYTES<C>;
template <int C> constexpr int SUM_BYTES = TILE *(C * 4 + (int)sizeof(Running));

/* How a prompt's key blocks are shared among thread blocks. */
struct Parts {
    int splits;
    int capacity;  /* key blocks a prompt and head */
    float *memory; /* [P * J][capacity][group][C + 4]: values, maximum, total */
};

/* One key block's part of 16 rows; a lane has the rows lane / 4 and 8 more. */
template <int C> struct Block { float sum[C / 16][1][2][4], largest[1][2], total[1][2]; };
} /* namespace */

/* The key blocks that rows [i, i + TILE) see. */
DEVICE Range blocks_of(const Attention &a, const Item &t, int i) {
    const Range keys = keys_of_tile(a, t, i, TILE);
    return {keys.from / KEY_BLOCK, (keys.to + KEY_BLOCK - 1) / KEY_BLOCK};
}

/* Whether a prompt's blocks go through the workspace. Both kernels ask. */
DEVICE bool is_shared(const Attention &a, const Item &t, const Parts &parts) {
    const Range blocks = blocks_of(a, t, 0);
    return parts.splits > 1 && t.rows.n == a.group && blocks.to - blocks.from <= parts.capacity;
}

template <int C> DEVICE float *part_at(const Attention &a, const Parts &parts, int unit, int block, int row) {
    return &parts.memory[(((int64_t)unit * parts.capacity + block) * a.group + row) * (C + 4)];
}

template <int C>
DEVICE void keep_block(const Attention &a, const Parts &parts, int block, int row, const Block<C> &b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int i = row + 8 * half + lane / 4;
        if (i >= a.group) continue;
        float *to = part_at<C>(a, parts, (int)blockIdx.x / parts.splits, block, i);
#pragma unroll
        for (int n = 0; n < C / 8; n++) {
            const float *x = &b.sum[n / 2][0][n % 2][2 * half];
            store(reinterpret_cast<float2 *>(&to[8 * n + 2 * (lane % 4)]), float2{x[0], x[1]});
        }
        if (lane % 4 == 0)
            store(reinterpret_cast<float2 *>(&to[C]), float2{b.largest[0][half], b.total[0][half]});
    }
}

/* Where sums [TILE][C] in shared memory have an element: four rows, which join_block's lanes access at once,
 * lie in different banks. */
template <int C> DEVICE int sum_place(int row, int column) { return row * C + (column ^ row % 4 * 8); }

/* Adds a block to sums in shared memory. */
template <int C> DEVICE void join_block(float *sum, Running *state, const Block<C> &b) {
    const int lane = threadIdx.x % 32;
    float shrink[2], grow[2];
    Running now[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        now[half] = load(&state[8 * half + lane / 4]);
        join<exp2_approx>(now[half], b.largest[0][half], b.total[0][half], shrink[half], grow[half]);
    }
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (lane % 4 == 0) store(&state[8 * half + lane / 4], now[half]);
#pragma unroll
        for (int n = 0; n < C / 8; n++) {
            const float *x = &b.sum[n / 2][0][n % 2][2 * half];
            float2 *at =
                reinterpret_cast<float2 *>(&sum[sum_place<C>(8 * half + lane / 4, 8 * n + 2 * (lane % 4))]);
            float2 y = load(at);
            y.x = fmaf(y.x, shrink[half], x[0] * grow[half]);
            y.y = fmaf(y.y, shrink[half], x[1] * grow[half]);
            store(at, y);
        }
    }
}

/* A thread's 8 columns of row i: out and lse. */
template <int C, int N>
DEVICE void finish_row(const Forward &f, const Item &t, int i, int c, float (&y)[N], Running row) {
    const int64_t at = row_at(t.rows, i);
    const float share = 1.0f / row.total;
#pragma unroll
    for (int e = 0; e < N; e++) y[e] *= share;
    store_pack<bf16, N>(&static_cast<bf16 *>(f.out)[at * C + c], y);
    if (f.lse && c == 0) store(&f.lse[at], fmaf(row.largest, LN2, log_f32(row.total)));
}

template <int C, int WARPS>
static __global__ void __launch_bounds__(32 * WARPS, WARPS == 1 ? 5 : 1) decode(Forward f, Parts parts) {
    DYNAMIC_SHARED(memory);
    constexpr int THREADS = 32 * WARPS;
    const Attention &a = f.a;
    const int unit = (int)blockIdx.x / parts.splits, split = (int)blockIdx.x % parts.splits;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Item t = item_of(a, unit / a.kv_heads, unit % a.kv_heads);
    if (t.rows.n == 0) return;
    const bool shared = is_shared(a, t, parts);
    if (!shared && split) return;
    float *sum = reinterpret_cast<float *>(memory + WARPS * WARP_BYTES<C>);
    Running *state = reinterpret_cast<Running *>(sum + TILE * C);
    const uint32_t query = shared_address(memory) + (uint32_t)(warp * WARP_BYTES<C>);
    const uint32_t key = query + TILE * ROW_BYTES<C>, value = key + KEY_BLOCK * ROW_BYTES<C>;

    for (int row = 0; row < t.rows.n; row += TILE) {
        const Range all = blocks_of(a, t, row), by_all = keys_of_all(a, t, row, TILE);
        Range own = all;
        if (shared) {
            const int64_t n = all.to - all.from;
            own = {all.from + (int)(n * split / parts.splits),
                   all.from + (int)(n * (split + 1) / parts.splits)};
        } else {
            for (int k = threadIdx.x; k < TILE * C; k += THREADS) store(&sum[k], 0.0f);
            if (threadIdx.x < TILE)
                store(&state[threadIdx.x], begin_row(f, t, row + (int)threadIdx.x, LOG2E));
            __syncthreads();
        }
        copy_tile<C>(query, TILE, f.query, t.rows, row, lane, 32);
        if (own.from + warp < own.to)
            copy_tile<C>(key, KEY_BLOCK, f.key, t.keys, (own.from + warp) * KEY_BLOCK, lane, 32);
        cp_async_commit();
        if (own.from + warp < own.to)
            copy_tile<C>(value, KEY_BLOCK, f.value, t.keys, (own.from + warp) * KEY_BLOCK, lane, 32);
        cp_async_commit();
        for (int round = own.from; round < own.to; round += WARPS) {
            const int block = round + warp, next = block + WARPS;
            const bool present = block < own.to;
            float s[1][8][4] = {};
            Block<C> b = {};
            cp_async_wait<1>();
            __syncwarp(); /* keys */
            if (present) multiply_rows<C>(s, lane_by_rows<C>(query), lane_by_columns<C>(key));
            __syncwarp();
            if (next < own.to) copy_tile<C>(key, KEY_BLOCK, f.key, t.keys, next * KEY_BLOCK, lane, 32);
            cp_async_commit();
            cp_async_wait<1>();
            __syncwarp(); /* values */
            if (present) {
                uint32_t weight[1][4][4];
                hide(s, a, t, row, block * KEY_BLOCK, by_all);
                weigh_block(s, a.scale * LOG2E, b.largest, b.total);
                as_left(weight, s);
#pragma unroll
                for (int n = 0; n < C / 16; n++)
                    multiply_columns<C>(b.sum[n], weight, lane_by_rows<C>(value), n);
            }
            __syncwarp();
            if (next < own.to) copy_tile<C>(value, KEY_BLOCK, f.value, t.keys, next * KEY_BLOCK, lane, 32);
            cp_async_commit();
            if (shared && present) keep_block<C>(a, parts, block - all.from, row, b);
            for (int turn = 0; !shared && turn < WARPS; turn++) {
                if (turn == warp && present) join_block<C>(sum, state, b);
                __syncthreads();
            }
        }
        if (shared) continue;
        for (int k = threadIdx.x; k < min(TILE, t.rows.n - row) * (C / 8); k += THREADS) {
            const int i = k / (C / 8), c = k % (C / 8) * 8;
            float y[8];
#pragma unroll
            for (int e = 0; e < 8; e += 4) {
                float part[4];
                load_pack<float, 4>(part, &sum[sum_place<C>(i, c + e)]);
                for (int d = 0; d < 4; d++) y[e + d] = part[d];
            }
            finish_row<C>(f, t, row + i, c, y, load(&state[i]));
        }
        __syncthreads(); /* the next rows begin with other sums */
    }
}

/* A warp a row: joins the blocks in the workspace. */
template <int C>
static __global__ void __launch_bounds__(32 * MOST_WARPS) join_parts(Forward f, Parts parts) {
    constexpr int N = C / 32;
    const Attention &a = f.a;
    const int64_t i = (int64_t)blockIdx.x * MOST_WARPS + threadIdx.x / 32;
    if (i >= (int64_t)a.prompts * a.kv_heads * a.group) return;
    const int unit = (int)(i / a.group), row = (int)(i % a.group), c = threadIdx.x % 32 * N;
    const Item t = item_of(a, unit / a.kv_heads, unit % a.kv_heads);
    if (t.rows.n == 0 || !is_shared(a, t, parts)) return;
    const Range blocks = blocks_of(a, t, 0);
    Running state = begin_row(f, t, row, LOG2E);
    float y[N] = {};
#pragma unroll 8
    for (int b = 0; b < blocks.to - blocks.from; b++) {
        const float *part = part_at<C>(a, parts, unit, b, row);
        float x[N], of[2], shrink, grow;
        load_pack<float, N>(x, &part[c]);
        load_pack<float, 2>(of, &part[C]);
        join<exp2_approx>(state, of[0], of[1], shrink, grow);
#pragma unroll
        for (int e = 0; e < N; e++) y[e] = fmaf(y[e], shrink, x[e] * grow);
    }
    finish_row<C>(f, t, row, c, y, state);
}

template <int C> static void launch(const Call &call, const Forward &f) {
    const Attention &a = f.a;
    const int64_t units = (int64_t)a.prompts * a.kv_heads, splits = ENOUGH_BLOCKS / units;
    const int64_t part = a.group * (C + 4) * (int64_t)sizeof(float);
    Parts parts = {1, 0, static_cast<float *>(queue_workspace(call.queue))};
    if (splits > 1) parts.splits = (int)(splits < MOST_SPLITS ? splits : MOST_SPLITS);
    if (splits > 1) parts.capacity = (int)(WORKSPACE_BYTES / (units * part));
    if (units >= MANY_UNITS)
        LAUNCH(call, blocks_for(units, 1), 32, WARP_BYTES<C> + SUM_BYTES<C>, (decode<C, 1>), f, parts);
    else
        LAUNCH(call, blocks_for(units * parts.splits, 1), 32 * MOST_WARPS,
               MOST_WARPS * WARP_BYTES<C> + SUM_BYTES<C>, (decode<C, MOST_WARPS>), f, parts);
    if (parts.splits > 1)
        LAUNCH(call, blocks_for(units * a.group, MOST_WARPS), 32 * MOST_WARPS, 0, join_parts<C>, f, parts);
}

void attention_decode(const Call &call, const Forward &f) {
    if (f.a.size == 64)
        launch<64>(call, f);
    else
        launch<128>(call, f);
}

/* Causal attention on tensor cores (arXiv 2307.08691): bf16, heads of 64 and 128.
 *
 * A block of 4 warps owns 128 rows (head 128: 64), a warp 32 (16) of them; scores, weights and sums stay in
 * registers. Keys and values of a block of 64 each have one place in shared memory: values arrive while
 * scores are computed, the next keys while values are summed. Weights are rounded to bf16, their total is of
 * the unrounded ones. The values of each key block are summed from 0 and added with join's factors, two
 * operations an element, which is what lets attention_decode.cu have the same bits.
 *
 * Traffic: keys and values once per 128 (64) rows (tokens times heads of a group) from L2; bound by tensor
 * cores and by shared memory, which feeds 4 (2) mma with each ldmatrix of keys or values. Head 128: 48 KiB
 * of shared memory. Needs sm_80, addresses that are multiples of 16. */
#include "attention_mma.cuh"

namespace {
constexpr int THREADS = 128;
template <int C> constexpr int TILES = C == 64 ? 2 : 1; /* of 16 rows, a warp; two of head 128 would spill */
} /* namespace */

/* The warp's rows go out in 16-byte stores, by way of its own rows of the query's tile. */
template <int C>
DEVICE void store_rows(const Forward &f, const Item &t, int row, unsigned char *tile,
                       const float (&sum)[C / 16][TILES<C>][2][4], const Running (&state)[TILES<C>][2]) {
    constexpr int MT = TILES<C>, WARP_ROWS = 16 * MT;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = 16 * m + 8 * half + lane / 4;
            const float share = 1.0f / state[m][half].total;
#pragma unroll
            for (int n = 0; n < C / 8; n++) {
                const float *x = &sum[n / 2][m][n % 2][2 * half];
                store(reinterpret_cast<uint32_t *>(
                          &tile[chunk_place<C>((unsigned)i, (unsigned)n) + lane % 4 * 4]),
                      pack_bf16(x[0] * share, x[1] * share));
            }
            if (f.lse && lane % 4 == 0 && row + i < t.rows.n)
                store(&f.lse[row_at(t.rows, row + i)],
                      fmaf(state[m][half].largest, LN2, log_f32(state[m][half].total)));
        }
    __syncwarp();
    bf16 *out = static_cast<bf16 *>(f.out);
    for (int k = lane; k < WARP_ROWS * (C / 8); k += 32) {
        const int i = k / (C / 8), n = k % (C / 8);
        if (row + i >= t.rows.n) continue;
        const uint4 chunk =
            load(reinterpret_cast<const uint4 *>(&tile[chunk_place<C>((unsigned)i, (unsigned)n)]));
        store(reinterpret_cast<uint4 *>(&out[row_at(t.rows, row + i) * C + 8 * n]), chunk);
    }
}

template <int C> static __global__ void __launch_bounds__(THREADS, 2) attend_mma(Forward f) {
    DYNAMIC_SHARED(memory);
    constexpr int MT = TILES<C>, WARP_ROWS = 16 * MT, ROWS = 4 * WARP_ROWS;
    const Attention &a = f.a;
    Item t;
    if (!find_item<false>(t, a, ROWS, (int)blockIdx.x)) return;
    const int thread = threadIdx.x, lane = thread % 32, mine = thread / 32 * WARP_ROWS, row = t.first + mine;
    const uint32_t query = shared_address(memory), key = query + ROWS * ROW_BYTES<C>;
    const uint32_t value = key + KEY_BLOCK * ROW_BYTES<C>;
    const uint32_t query_lane = lane_by_rows<C>(query + (uint32_t)mine * ROW_BYTES<C>);
    const uint32_t key_lane = lane_by_columns<C>(key), value_lane = lane_by_rows<C>(value);
    const Range span = keys_of_tile(a, t, t.first, ROWS);
    const Range seen = row < t.rows.n ? keys_of_tile(a, t, row, WARP_ROWS) : Range{0, 0};
    const Range by_all = keys_of_all(a, t, row, WARP_ROWS);
    float sum[C / 16][MT][2][4] = {};
    Running state[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            state[m][half] = begin_row(f, t, row + 16 * m + 8 * half + lane / 4, LOG2E);

    const int first = span.from / KEY_BLOCK * KEY_BLOCK;
    copy_tile<C>(query, ROWS, f.query, t.rows, t.first, thread, THREADS);
    copy_tile<C>(key, KEY_BLOCK, f.key, t.keys, first, thread, THREADS);
    cp_async_commit();
    for (int k0 = first; k0 < span.to; k0 += KEY_BLOCK) {
        const bool sees = k0 < seen.to && k0 + KEY_BLOCK > seen.from;
        float s[MT][8][4] = {};
        cp_async_wait<0>();
        __syncthreads(); /* the keys are here, the last values have been used */
        copy_tile<C>(value, KEY_BLOCK, f.value, t.keys, k0, thread, THREADS);
        cp_async_commit();
        if (sees) multiply_rows<C>(s, query_lane, key_lane);
        cp_async_wait<0>();
        __syncthreads(); /* the values are here, the keys have been used */
        if (k0 + KEY_BLOCK < span.to)
            copy_tile<C>(key, KEY_BLOCK, f.key, t.keys, k0 + KEY_BLOCK, thread, THREADS);
        cp_async_commit();
        if (!sees) continue;

        float largest[MT][2], total[MT][2], shrink[MT][2], grow[MT][2];
        uint32_t weight[MT][4][4];
        hide(s, a, t, row, k0, by_all);
        weigh_block(s, a.scale * LOG2E, largest, total);
        as_left(weight, s);
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                join<exp2_approx>(state[m][half], largest[m][half], total[m][half], shrink[m][half],
                                  grow[m][half]);
#pragma unroll
        for (int n = 0; n < C / 16; n++) {
            float x[MT][2][4] = {};
            multiply_columns<C>(x, weight, value_lane, n);
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    float &y = sum[n][m][e / 4][e % 4];
                    y = fmaf(y, shrink[m][e % 4 / 2], x[m][e / 4][e % 4] * grow[m][e % 4 / 2]);
                }
        }
    }
    store_rows<C>(f, t, row, memory + mine * ROW_BYTES<C>, sum, state);
}

template <int C> static void launch(const Call &call, const Forward &f) {
    constexpr int ROWS = 64 * TILES<C>;
    LAUNCH(call, attention_blocks(f.a, f.a.tokens * f.a.group, ROWS), THREADS,
           (ROWS + 2 * KEY_BLOCK) * ROW_BYTES<C>, attend_mma<C>, f);
}

void attention_mma(const Call &call, const Forward &f) {
    if (uses_hopper())
        attention_hopper(call, f);
    else if (f.a.size == 64)
        launch<64>(call, f);
    else
        launch<128>(call, f);
}

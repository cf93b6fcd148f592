/* The gradients of attention on tensor cores: bf16, heads of 64 and 128. One kernel, two uses, which differ
 * in who owns and who walks (arXiv 2205.14135, algorithm 4, as two passes without atomics):
 *   dq        a block owns 128 query rows, head 128: 64 (a warp 32, 16) and walks keys    s = q k^T, sums ds
 * k
 *   dk, dv    a block owns 64 keys (a warp 16) and walks query rows     s = k q^T, sums ds q and p dout
 * 32 of what is walked at a time, in order from the prompt's first; the next 32 arrive meanwhile. p and ds
 * are rounded to bf16 and go from accumulators to operands in registers, sums stay there (128 a thread).
 *
 * A sum's bits depend on what its row or key sees: the rest adds 0. Seven products for the five that are
 * needed. Traffic: the walked side once per owned tile, from L2; bound by tensor cores and shared memory.
 * Head 128: 64 KiB of shared memory. Needs sm_80, addresses that are multiples of 16. */
#include "attention_gradients.cuh"

namespace {
constexpr int THREADS = 128, STEP = 32, NT = STEP / 8;
template <int C, bool OF_KEYS> constexpr int OWN_ROWS = OF_KEYS || C == 128 ? 64 : 128;
template <int C, bool OF_KEYS> constexpr size_t tiles_bytes() {
    return (size_t)(2 * OWN_ROWS<C, OF_KEYS> + 4 * STEP) * 2 * (size_t)C + 2 * STEP * sizeof(RowStatistics);
}
} /* namespace */

template <int C, bool OF_KEYS> static __global__ void __launch_bounds__(THREADS, 2) gradient_mma(Backward g) {
    DYNAMIC_SHARED(memory);
    constexpr int OWN = OWN_ROWS<C, OF_KEYS>, MT = OWN / 64, WARP_ROWS = 16 * MT, BYTES = ROW_BYTES<C>;
    const Attention &a = g.a;
    Item t;
    if (!find_item<OF_KEYS>(t, a, OWN, (int)blockIdx.x)) return;
    const int thread = threadIdx.x, lane = thread % 32, mine = thread / 32 * WARP_ROWS,
              first = t.first + mine;
    const Side own = OF_KEYS ? t.keys : t.rows, other = OF_KEYS ? t.rows : t.keys;
    const void *other_x = OF_KEYS ? g.query : g.key, *other_y = OF_KEYS ? g.dout : g.value;
    const uint32_t own_x = shared_address(memory), own_y = own_x + OWN * BYTES;
    const uint32_t x_tile = own_y + OWN * BYTES, y_tile = x_tile + 2 * STEP * BYTES; /* two places each */
    const uint32_t own_x_lane = lane_by_rows<C>(own_x + (uint32_t)(mine * BYTES));
    const uint32_t own_y_lane = lane_by_rows<C>(own_y + (uint32_t)(mine * BYTES));
    const RowStatistics *statistics = statistics_of(g, t);
    RowStatistics *walked = reinterpret_cast<RowStatistics *>(memory + (y_tile - own_x) + 2 * STEP * BYTES);
    RowStatistics of[MT][2] = {};
    if (!OF_KEYS)
        for (int m = 0; m < MT; m++)
            for (int half = 0; half < 2; half++) {
                const int row = first + 16 * m + 8 * half + lane / 4;
                if (row < t.rows.n) of[m][half] = load(&statistics[row]);
            }
    float sum_x[C / 16][MT][2][4] = {}, sum_y[OF_KEYS ? C / 16 : 1][MT][2][4] = {};

    const Range span = OF_KEYS ? rows_of_tile(a, t, t.first, OWN) : keys_of_tile(a, t, t.first, OWN);
    const auto copy_step = [&](int o) {
        const uint32_t place = (uint32_t)(o / STEP % 2 * STEP * BYTES);
        copy_tile<C>(x_tile + place, STEP, other_x, other, o, thread, THREADS);
        copy_tile<C>(y_tile + place, STEP, other_y, other, o, thread, THREADS);
        const int i = thread / 2;
        if (OF_KEYS && i < STEP)
            cp_async4(shared_address(&walked[o / STEP % 2 * STEP]) + (uint32_t)thread * 4,
                      reinterpret_cast<const float *>(&statistics[o + i < other.n ? o + i : 0]) + thread % 2,
                      o + i < other.n);
    };
    copy_tile<C>(own_x, OWN, OF_KEYS ? g.key : g.query, own, t.first, thread, THREADS);
    copy_tile<C>(own_y, OWN, OF_KEYS ? g.value : g.dout, own, t.first, thread, THREADS);
    const int begin = span.from / STEP * STEP;
    if (begin < span.to) copy_step(begin);
    cp_async_commit();
    for (int o = begin; o < span.to; o += STEP) {
        const int place = o / STEP % 2;
        const uint32_t x = x_tile + (uint32_t)(place * STEP * BYTES),
                       y = y_tile + (uint32_t)(place * STEP * BYTES);
        cp_async_wait<0>();
        __syncthreads(); /* this step is here, the last one's place is free */
        if (o + STEP < span.to) copy_step(o + STEP);
        cp_async_commit();

        float p[MT][NT][4] = {}, ds[MT][NT][4] = {};
        multiply_rows<C>(p, own_x_lane, lane_by_columns<C>(x));
        multiply_rows<C>(ds, own_y_lane, lane_by_columns<C>(y));
        const bool whole = OF_KEYS ? all_see_all(a, t, o, STEP, first, WARP_ROWS)
                                   : all_see_all(a, t, first, WARP_ROWS, o, STEP);
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int theirs = 8 * n + 2 * (lane % 4) + e % 2;
                RowStatistics row_of = {};
                if (OF_KEYS) row_of = load(&walked[place * STEP + theirs]);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    const int own_i = first + 16 * m + e / 2 * 8 + lane / 4;
                    if (!OF_KEYS) row_of = of[m][e / 2];
                    const int key = OF_KEYS ? own_i : o + theirs;
                    float weight = exp2_approx(fmaf(p[m][n][e], a.scale * LOG2E, -row_of.lse));
                    if (!whole && !sees(a, t, OF_KEYS ? o + theirs : own_i, key)) weight = 0;
                    p[m][n][e] = weight;
                    ds[m][n][e] = weight * (ds[m][n][e] - row_of.delta);
                }
            }
        uint32_t left[MT][NT / 2][4];
        as_left(left, ds);
#pragma unroll
        for (int n = 0; n < C / 16; n++) multiply_columns<C>(sum_x[n], left, lane_by_rows<C>(x), n);
        if (!OF_KEYS) continue;
        as_left(left, p);
#pragma unroll
        for (int n = 0; n < C / 16; n++)
            multiply_columns<C>(sum_y[OF_KEYS ? n : 0], left, lane_by_rows<C>(y), n);
    }
    cp_async_wait<0>();
    if (!OF_KEYS) return add_rows<C>(g.dquery, own, first, sum_x, a.scale);
    if (g.dkey) add_rows<C>(g.dkey, own, first, sum_x, a.scale);
    if constexpr (OF_KEYS)
        if (g.dvalue) add_rows<C>(g.dvalue, own, first, sum_y, 1);
}

template <int C> static void launch(const Call &call, const Backward &g) {
    const Attention &a = g.a;
    if (g.dquery)
        LAUNCH(call, attention_blocks(a, a.tokens * a.group, (OWN_ROWS<C, false>)), THREADS,
               (tiles_bytes<C, false>()), (gradient_mma<C, false>), g);
    if (g.dkey || g.dvalue)
        LAUNCH(call, attention_blocks(a, a.key_rows, (OWN_ROWS<C, true>)), THREADS, (tiles_bytes<C, true>()),
               (gradient_mma<C, true>), g);
}

void attention_bwd_mma(const Call &call, const Backward &g) {
    if (uses_hopper())
        attention_bwd_hopper(call, g);
    else if (g.a.size == 64)
        launch<64>(call, g);
    else
        launch<128>(call, g);
}

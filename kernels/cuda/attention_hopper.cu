/* Causal attention on Hopper's tensor cores (arXiv 2407.08608): bf16, heads of 64 and 128, the bits of
 * attention_mma.cu.
 *
 * Tiles and their ring are attention_hopper.cuh's: 128 query rows, key blocks of 64 with their values. The
 * scores of the next key block are computed, s = q k^T with q in shared memory, while the values of this
 * one are summed with weights in registers; the softmax runs beside the sums of values, and one warpgroup's
 * beside the other's products. The rows go out in 16-byte stores by way of the query's place.
 *
 * Traffic: keys and values once per 128 rows from L2. Bound by the tensor cores: 128 multiply-adds a byte
 * from L2; each score costs an exponential and each value sum two operations beside them. Head 128: 192 KiB
 * of shared memory. */
#include "attention_hopper.cuh"

namespace {
template <int C> using Tiles = Layout<C, 1, 2, 4, false>;

/* A thread's two rows of one key block. */
struct BlockRows {
    float largest[1][2], total[1][2];
};
} /* namespace */

/* Scores become weights. */
DEVICE void weigh(Scores &s, BlockRows &b, const Attention &a, const Item &t, int row, int k0, Range by_all) {
    hide(s, a, t, row, k0, by_all);
    weigh_block(s, a.scale * LOG2E, b.largest, b.total);
}

template <int C>
DEVICE void join_block(float (&sum)[C / 2], Running (&state)[2], const float (&x)[C / 2],
                       const BlockRows &b) {
    float shrink[2], grow[2];
#pragma unroll
    for (int half = 0; half < 2; half++)
        join<exp2_approx>(state[half], b.largest[0][half], b.total[0][half], shrink[half], grow[half]);
#pragma unroll
    for (int i = 0; i < C / 2; i++) sum[i] = fmaf(sum[i], shrink[i % 4 / 2], x[i] * grow[i % 4 / 2]);
}

/* A warp's 16 rows to out and lse, by way of its rows of the query's place. */
template <int C>
DEVICE void store_rows(const Forward &f, const Item &t, int row, unsigned char *place,
                       const float (&sum)[C / 2], const Running (&state)[2]) {
    const int lane = threadIdx.x % 32;
    const auto chunk_at = [&](int i, int n) {
        return place + n / 8 * OWN_ROWS * TILE_ROW_BYTES + i * TILE_ROW_BYTES + ((n ^ i) % 8 << 4);
    };
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int i = 8 * half + lane / 4;
        const float share = 1.0f / state[half].total;
#pragma unroll
        for (int n = 0; n < C / 8; n++)
            store(reinterpret_cast<uint32_t *>(chunk_at(i, n) + lane % 4 * 4),
                  pack_bf16(sum[4 * n + 2 * half] * share, sum[4 * n + 2 * half + 1] * share));
        if (f.lse && lane % 4 == 0 && row + i < t.rows.n)
            store(&f.lse[row_at(t.rows, row + i)],
                  fmaf(state[half].largest, LN2, log_f32(state[half].total)));
    }
    __syncwarp();
    bf16 *out = static_cast<bf16 *>(f.out);
#pragma unroll 2
    for (int k = lane; k < 16 * (C / 8); k += 32) {
        const int i = k / (C / 8), n = k % (C / 8);
        if (row + i >= t.rows.n) continue;
        const uint4 chunk = load(reinterpret_cast<const uint4 *>(chunk_at(i, n)));
        store(reinterpret_cast<uint4 *>(&out[row_at(t.rows, row + i) * C + 8 * n]), chunk);
    }
}

/* One tile of a warpgroup: its 64 rows from `first` on, the query's at `query`; n: of the tile's first
 * step. ptxas moves a wait up to the last branch: to await the stage after the next one between the softmax
 * of the next block and the wait for the values of this one is what keeps their order. */
template <int C>
DEVICE void attend_rows(const Forward &f, const Item &t, int first, Range own, unsigned n, uint32_t shared,
                        uint32_t query, float (&sum)[C / 2], Running (&state)[2]) {
    using L = Tiles<C>;
    const Attention &a = f.a;
    const int row = first + (int)(threadIdx.x / 32 % 4) * 16;
    const Range by_all = keys_of_all(a, t, row, 16);
    Scores s;
    float x[C / 2];
    uint32_t weight[1][STEP_ROWS / 16][4];
    BlockRows now, next;
    const auto await = [&](unsigned step) {
        const Stage<L> stage(shared, step);
        mbarrier_wait(stage.full, stage.parity);
    };
    const auto begin_scores = [&](unsigned step) {
        wgmma_hold(query);
        wgmma_hold(flat(s));
        wgmma_fence();
        multiply_steps<C>(s, query, Stage<L>(shared, step).x);
        wgmma_commit();
    };
    const auto begin_values = [&] {
        wgmma_hold(x);
        wgmma_hold(weight[0]);
        wgmma_fence();
        multiply_weights<C>(x, weight[0], Stage<L>(shared, n).y, false);
        wgmma_commit();
    };
    const auto end_values = [&] {
        wgmma_wait<0>();
        wgmma_hold(x);
        wgmma_hold(weight[0]);
        release(Stage<L>(shared, n).empty);
        n++;
        join_block<C>(sum, state, x, now);
    };
    await(n);
    begin_scores(n);
    wgmma_wait<0>();
    wgmma_hold(flat(s));
    weigh(s, now, a, t, row, own.from, by_all);
    as_left(weight, s);
    int k0 = own.from + STEP_ROWS;
    if (k0 < own.to) await(n + 1);
#pragma unroll 1
    for (; k0 < own.to; k0 += STEP_ROWS) {
        begin_scores(n + 1);
        begin_values();
        wgmma_wait<1>();
        wgmma_hold(flat(s));
        weigh(s, next, a, t, row, k0, by_all);
        if (k0 + STEP_ROWS < own.to) await(n + 2);
        end_values();
        as_left(weight, s);
        now = next;
    }
    begin_values();
    end_values();
}

template <int C> DEVICE void attend_tiles(const Forward &f, unsigned char *memory) {
    using L = Tiles<C>;
    const Attention &a = f.a;
    const uint32_t shared = shared_address(memory);
    unsigned n = 0;
    Item t;
    for (int tile = 0; find_item<false>(t, a, OWN_ROWS, tile_number(tile)); tile++) {
        const Place<L> place(shared, (unsigned)tile);
        uint32_t thread = threadIdx.x;
        wgmma_hold(thread); /* no register for its parts between tiles, nor while one is multiplied */
        const int group = (int)(thread / GROUP_THREADS) - 1, warp = (int)(thread / 32 % 4);
        const int first = t.first + group * GROUP_ROWS, row = first + warp * 16;
        const Range all = walk_of<false>(a, t, t.first, OWN_ROWS),
                    own = walk_of<false>(a, t, first, GROUP_ROWS);
        if (own.to > own.from) {
            float sum[C / 2] = {};
            Running state[2];
#pragma unroll
            for (int half = 0; half < 2; half++)
                state[half] = begin_row(f, t, row + 8 * half + (int)(thread % 32 / 4), LOG2E);
            pass_steps<L>(shared, n, all.from, own.from);
            attend_rows<C>(f, t, first, own, n, shared,
                           shared + place.at + group * GROUP_ROWS * TILE_ROW_BYTES, sum, state);
            n += (own.to - own.from) / STEP_ROWS;
            uint32_t again = threadIdx.x;
            wgmma_hold(again);
            const int of_tile = (int)(again / 32 % 8 ^ 4) * 16;  /* this warp's rows */
            named_barrier(again / GROUP_THREADS, GROUP_THREADS); /* its products have read the query rows */
            store_rows<C>(f, t, t.first + of_tile, memory + place.at + of_tile * TILE_ROW_BYTES, sum, state);
            pass_steps<L>(shared, n, own.to, all.to);
        } else {
            pass_steps<L>(shared, n, all.from, all.to);
        }
        release(place.empty);
    }
}

template <int C> static __global__ void __launch_bounds__(HOPPER_THREADS, 1) attend_wgmma(Forward f) {
    DYNAMIC_SHARED(memory);
    const uint32_t shared = shared_address(memory);
    begin_barriers<Tiles<C>>(shared);
    if (threadIdx.x < GROUP_THREADS) {
        registers_lower<40>();
        fetch_tiles<Tiles<C>>(shared, [&](Walk &w, int number) {
            Item t;
            if (!find_item<false>(t, f.a, OWN_ROWS, number)) return false;
            w = {f.query, nullptr, f.key,
                 f.value, nullptr, t.rows,
                 t.keys,  t.first, walk_of<false>(f.a, t, t.first, OWN_ROWS)};
            return true;
        });
    } else {
        registers_raise<232>();
        attend_tiles<C>(f, memory);
    }
}

template <int C> static void launch(const Call &call, const Forward &f) {
    const unsigned tiles = attention_blocks(f.a, f.a.tokens * f.a.group, OWN_ROWS),
                   most = (unsigned)n_multiprocessors();
    LAUNCH(call, tiles < most ? tiles : most, HOPPER_THREADS, Tiles<C>::BYTES, attend_wgmma<C>, f);
}

void attention_hopper(const Call &call, const Forward &f) {
    if (f.a.size == 64)
        launch<64>(call, f);
    else
        launch<128>(call, f);
}

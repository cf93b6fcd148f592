/* The gradients of attention on Hopper's tensor cores: bf16, heads of 64 and 128. As attention_bwd_mma.cu,
 * two passes without atomics: of one the tiles own query rows and walk keys, of the other they own keys and
 * walk query rows; owned x (query or key) and y (dout or value), walked the other two.
 *
 * Tiles and their ring are attention_hopper.cuh's. Each step is s = x x'^T, dp = y y'^T from shared memory,
 * then sums of ds x' and, of keys, p y' with p and ds in registers. Exponentials are computed while dp is,
 * and a step's sums run with the next step's first product right behind them.
 *
 * A sum's bits depend on what its row or key sees: the rest adds 0. Seven products for the five that are
 * needed. Traffic: the walked side once per 128 owned rows, from L2; bound by the tensor cores. Head 128:
 * 224 KiB of shared memory. */
#include "attention_gradients.cuh"
#include "attention_hopper.cuh"
#include <type_traits>

namespace {
template <int C, bool OF_KEYS> using Tiles = Layout<C, 2, OF_KEYS ? 1 : 2, OF_KEYS ? 4 : 3, OF_KEYS>;
} /* namespace */

/* The columns of a step that each of a warp's 16 rows sees, or is seen by. */
template <bool OF_KEYS> DEVICE Range by_all_of(const Attention &a, const Item &t, int row) {
    return OF_KEYS ? rows_of_all(a, t, row, 16) : keys_of_all(a, t, row, 16);
}

/* Scores of what does not see become -infinity. */
template <bool OF_KEYS>
DEVICE void hide_unseen(Scores &s, const Attention &a, const Item &t, int first, int o, Range by_all) {
    if (o >= by_all.from && o + STEP_ROWS <= by_all.to) return;
    uint32_t thread = threadIdx.x;
    wgmma_hold(thread); /* no register for its parts but here */
    const int lane = (int)(thread % 32), row = first + (int)(thread / 32 % 4) * 16;
#pragma unroll
    for (int n = 0; n < STEP_ROWS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int own = row + e / 2 * 8 + lane / 4, theirs = o + 8 * n + 2 * (lane % 4) + e % 2;
            if (!sees(a, t, OF_KEYS ? theirs : own, OF_KEYS ? own : theirs)) s[0][n][e] = -INFINITY;
        }
}

/* The statistics of a thread's rows: two of its own, or those of two columns of a step. */
struct RowsOf {
    RowStatistics own[2];
    const RowStatistics *walked;

    template <bool OF_KEYS> __device__ __forceinline__ float4 columns(int n) const {
        return OF_KEYS ? load(reinterpret_cast<const float4 *>(&walked[8 * n + 2 * (threadIdx.x % 4)]))
                       : float4{};
    }
};

/* s becomes p = 2^(unit s - lse). */
template <bool OF_KEYS> DEVICE void weigh(Scores &s, const RowsOf &rows, float unit) {
#pragma unroll
    for (int n = 0; n < STEP_ROWS / 8; n++) {
        const float4 of = rows.columns<OF_KEYS>(n);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float lse = OF_KEYS ? e % 2 ? of.z : of.x : rows.own[e / 2].lse;
            s[0][n][e] = exp2_approx(fmaf(s[0][n][e], unit, -lse));
        }
    }
}

/* dp becomes ds = p (dp - delta). */
template <bool OF_KEYS> DEVICE void differentiate(Scores &dp, const Scores &p, const RowsOf &rows) {
#pragma unroll
    for (int n = 0; n < STEP_ROWS / 8; n++) {
        const float4 of = rows.columns<OF_KEYS>(n);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float delta = OF_KEYS ? e % 2 ? of.w : of.y : rows.own[e / 2].delta;
            dp[0][n][e] = p[0][n][e] * (dp[0][n][e] - delta);
        }
    }
}

/* One tile of a warpgroup: its 64 rows from `first` on, their x at x; n: of the tile's first step. */
template <int C, bool OF_KEYS>
DEVICE void sum_gradients(const Backward &g, const Item &t, int first, Range steps, unsigned n,
                          unsigned char *memory, uint32_t x, RowsOf rows, float (&sum_x)[C / 2],
                          float (&sum_y)[OF_KEYS ? C / 2 : 1]) {
    using L = Tiles<C, OF_KEYS>;
    const Attention &a = g.a;
    const uint32_t shared = shared_address(memory);
    const Range by_all = by_all_of<OF_KEYS>(a, t, first + (int)(threadIdx.x / 32 % 4) * 16);
    Scores p, ds;
    uint32_t left_p[1][STEP_ROWS / 16][4], left_ds[1][STEP_ROWS / 16][4];
    const auto await = [&](unsigned step) {
        const Stage<L> stage(shared, step);
        mbarrier_wait(stage.full, stage.parity);
    };
    const auto begin = [&](Scores &s, uint32_t own, uint32_t walked) {
        wgmma_hold(own);
        wgmma_hold(flat(s));
        wgmma_fence();
        multiply_steps<C>(s, own, walked);
        wgmma_commit();
    };
    const auto step = [&](int o, auto is_last) {
        constexpr bool LAST = decltype(is_last)::value;
        const Stage<L> stage(shared, n);
        if (OF_KEYS) rows.walked = reinterpret_cast<const RowStatistics *>(memory + stage.statistics);
        begin(ds, x + L::OWN_BYTES, stage.y);
        hide_unseen<OF_KEYS>(p, a, t, first, o, by_all);
        weigh<OF_KEYS>(p, rows, a.scale * LOG2E);
        if (!LAST)
            await(n + 1); /* here, as ptxas moves no wait over it: the exponentials come before the next */
        wgmma_wait<0>();
        wgmma_hold(flat(ds));
        differentiate<OF_KEYS>(ds, p, rows);
        as_left(left_ds, ds);
        wgmma_hold(sum_x);
        wgmma_hold(left_ds[0]);
        if constexpr (OF_KEYS) {
            as_left(left_p, p);
            wgmma_hold(sum_y);
            wgmma_hold(left_p[0]);
        }
        wgmma_fence();
        multiply_weights<C>(sum_x, left_ds[0], stage.x, true);
        if constexpr (OF_KEYS) multiply_weights<C>(sum_y, left_p[0], stage.y, true);
        wgmma_commit();
        if constexpr (!LAST) begin(p, x, Stage<L>(shared, n + 1).x);
        wgmma_wait<0>(); /* at the end of a loop's body ptxas wants nothing under way */
        if (!LAST) wgmma_hold(flat(p));
        wgmma_hold(sum_x);
        wgmma_hold(left_ds[0]);
        if constexpr (OF_KEYS) {
            wgmma_hold(sum_y);
            wgmma_hold(left_p[0]);
        }
        release(stage.empty);
        n++;
    };
    await(n);
    begin(p, x, Stage<L>(shared, n).x);
    wgmma_wait<0>();
    wgmma_hold(flat(p));
    int o = steps.from;
#pragma unroll 1
    for (; o + STEP_ROWS < steps.to; o += STEP_ROWS) step(o, std::false_type{});
    step(o, std::true_type{});
}

template <int C, bool OF_KEYS> DEVICE void walk_tiles(const Backward &g, unsigned char *memory) {
    using L = Tiles<C, OF_KEYS>;
    const Attention &a = g.a;
    const uint32_t shared = shared_address(memory);
    unsigned n = 0;
    Item t;
    for (int tile = 0; find_item<OF_KEYS>(t, a, OWN_ROWS, tile_number(tile)); tile++) {
        const Place<L> place(shared, (unsigned)tile);
        uint32_t thread = threadIdx.x;
        wgmma_hold(thread); /* no register for its parts between tiles, nor while one is multiplied */
        const int group = (int)(thread / GROUP_THREADS) - 1, first = t.first + group * GROUP_ROWS;
        const Range all = walk_of<OF_KEYS>(a, t, t.first, OWN_ROWS),
                    own = walk_of<OF_KEYS>(a, t, first, GROUP_ROWS);
        float sum_x[C / 2] = {}, sum_y[OF_KEYS ? C / 2 : 1] = {};
        if (own.to > own.from) {
            RowsOf rows = {};
            const int row = first + (int)(thread / 32 % 4) * 16 + (int)(thread % 32 / 4);
            const RowStatistics *statistics = statistics_of(g, t);
            for (int half = 0; !OF_KEYS && half < 2; half++)
                if (row + 8 * half < t.rows.n) rows.own[half] = load(&statistics[row + 8 * half]);
            pass_steps<L>(shared, n, all.from, own.from);
            const uint32_t x = shared + place.at + (uint32_t)(group * GROUP_ROWS * TILE_ROW_BYTES);
            sum_gradients<C, OF_KEYS>(g, t, first, own, n, memory, x, rows, sum_x, sum_y);
            n += (unsigned)(own.to - own.from) / STEP_ROWS;
            pass_steps<L>(shared, n, own.to, all.to);
        } else {
            pass_steps<L>(shared, n, all.from, all.to);
        }
        release(place.empty);
        uint32_t again = threadIdx.x;
        wgmma_hold(again);
        const int mine = t.first + (int)(again / 32 % 8 ^ 4) * 16; /* this warp's rows */
        typedef const float(&Sums)[C / 16][1][2][4];
        if constexpr (OF_KEYS) {
            if (g.dkey) add_rows<C>(g.dkey, t.keys, mine, reinterpret_cast<Sums>(sum_x), a.scale);
            if (g.dvalue) add_rows<C>(g.dvalue, t.keys, mine, reinterpret_cast<Sums>(sum_y), 1);
            break; /* as launched, the block's only tile; its number would take one register too many */
        } else {
            add_rows<C>(g.dquery, t.rows, mine, reinterpret_cast<Sums>(sum_x), a.scale);
        }
    }
}

template <int C, bool OF_KEYS>
static __global__ void __launch_bounds__(HOPPER_THREADS, 1) gradient_wgmma(Backward g) {
    DYNAMIC_SHARED(memory);
    using L = Tiles<C, OF_KEYS>;
    const uint32_t shared = shared_address(memory);
    begin_barriers<L>(shared);
    if (threadIdx.x < GROUP_THREADS) {
        registers_lower<40>();
        fetch_tiles<L>(shared, [&](Walk &w, int number) {
            Item t;
            if (!find_item<OF_KEYS>(t, g.a, OWN_ROWS, number)) return false;
            const Range steps = walk_of<OF_KEYS>(g.a, t, t.first, OWN_ROWS);
            if (OF_KEYS)
                w = {g.key, g.value, g.query, g.dout, statistics_of(g, t), t.keys, t.rows, t.first, steps};
            else
                w = {g.query, g.dout, g.key, g.value, nullptr, t.rows, t.keys, t.first, steps};
            return true;
        });
    } else {
        registers_raise<232>();
        walk_tiles<C, OF_KEYS>(g, memory);
    }
}

template <int C, bool OF_KEYS> static void launch(const Call &call, const Backward &g, int64_t rows) {
    const unsigned tiles = attention_blocks(g.a, rows, OWN_ROWS), most = (unsigned)n_multiprocessors();
    LAUNCH(call, OF_KEYS || tiles < most ? tiles : most, HOPPER_THREADS, (Tiles<C, OF_KEYS>::BYTES),
           (gradient_wgmma<C, OF_KEYS>), g);
}

template <int C> static void launch_both(const Call &call, const Backward &g) {
    if (g.dquery) launch<C, false>(call, g, g.a.tokens * g.a.group);
    if (g.dkey || g.dvalue) launch<C, true>(call, g, g.a.key_rows);
}

void attention_bwd_hopper(const Call &call, const Backward &g) {
    if (g.a.size == 64)
        launch_both<64>(call, g);
    else
        launch_both<128>(call, g);
}

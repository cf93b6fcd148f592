/* What attention's Hopper kernels share: how tiles come to shared memory, and wgmma's operands in them.
 *
 * A block has an SM to itself. It works off tiles of 128 rows (or keys) of one prompt and key/value head,
 * every gridDim-th of them, forth and back, so that each block gets long and short ones. A tile owns one or
 * two operands of 128 rows and walks two of the other side, 64 rows a step. Warpgroup 0 fetches, in a ring
 * of stages that runs ahead into the next tile; warpgroups 1 and 2 multiply, 64 own rows each. mbarriers
 * hand over: full (of a stage, and with a tile's first step what the tile owns) and empty (of a stage, of a
 * place for an own tile).
 *
 * cp.async fetches, not TMA: rows behind a prompt's last must be zeros, whatever lies there, and the heads
 * that share keys are rows at any distance. In shared memory a tile of n rows is C / 64 parts [n][64], each
 * as TMA would swizzle it. */
#ifndef GATETAPE_CUDA_ATTENTION_HOPPER_CUH
#define GATETAPE_CUDA_ATTENTION_HOPPER_CUH
#include "attention_mma.cuh"
#include "hopper.cuh"

constexpr int OWN_ROWS = 128, GROUP_ROWS = 64, STEP_ROWS = 64, GROUP_THREADS = 128;
constexpr int HOPPER_THREADS = 3 * GROUP_THREADS, MULTIPLYING_THREADS = 2 * GROUP_THREADS;

/* Shared memory. N_OWN operands are owned, in one of PLACES (with one, a block has one tile); the ring has
 * STAGES. */
template <int C, int N_OWN, int PLACES, int STAGES, bool STATISTICS> struct Layout {
    static constexpr int WIDTH = C, OPERANDS = N_OWN, OWN_PLACES = PLACES, N_STAGES = STAGES;
    static constexpr bool HAS_STATISTICS = STATISTICS;
    static constexpr uint32_t OWN_BYTES = OWN_ROWS * ROW_BYTES<C>, STEP_BYTES = STEP_ROWS * ROW_BYTES<C>;
    static constexpr uint32_t RING_AT = PLACES * N_OWN * OWN_BYTES;
    static constexpr uint32_t STATISTICS_AT = RING_AT + STAGES * 2 * STEP_BYTES;
    static constexpr uint32_t STATISTICS_BYTES = STATISTICS ? STEP_ROWS * sizeof(RowStatistics) : 0;
    static constexpr uint32_t BARRIERS_AT = STATISTICS_AT + STAGES * STATISTICS_BYTES;
    static constexpr uint32_t BYTES = BARRIERS_AT + (2 * STAGES + PLACES) * 8;
};

/* The stage of the n-th step of a block, and the place of its n-th tile. */
template <class L> struct Stage {
    uint32_t x, y, statistics, full, empty, parity;
    __device__ __forceinline__ Stage(uint32_t shared, unsigned n) {
        const uint32_t s = n % L::N_STAGES;
        x = shared + L::RING_AT + s * 2 * L::STEP_BYTES, y = x + L::STEP_BYTES;
        statistics = L::STATISTICS_AT + s * L::STATISTICS_BYTES; /* from the start of shared memory */
        full = shared + L::BARRIERS_AT + 8 * s, empty = full + 8 * L::N_STAGES;
        parity = n / L::N_STAGES & 1;
    }
};
template <class L> struct Place {
    uint32_t at, empty, parity; /* at: from the start of shared memory */
    __device__ __forceinline__ Place(uint32_t shared, unsigned n) {
        const uint32_t s = n % L::OWN_PLACES;
        at = s * L::OPERANDS * L::OWN_BYTES;
        empty = shared + L::BARRIERS_AT + 8 * (2 * L::N_STAGES + s);
        parity = n / L::OWN_PLACES & 1;
    }
};

/* By all threads, who alone use them: a fence for the async proxy is not needed. */
template <class L> DEVICE void begin_barriers(uint32_t shared) {
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (unsigned n = 0; n < L::N_STAGES; n++) {
            const Stage<L> s(shared, n);
            mbarrier_init(s.full, GROUP_THREADS);
            mbarrier_init(s.empty, MULTIPLYING_THREADS);
        }
#pragma unroll 1
        for (unsigned n = 0; n < L::OWN_PLACES; n++)
            mbarrier_init(Place<L>(shared, n).empty, MULTIPLYING_THREADS);
    }
    __syncthreads();
}

/* A thread is done with it. Each arrives for itself: what it read with plain loads is ordered before what
 * comes there next, without a word between lanes. */
DEVICE void release(uint32_t empty) { mbarrier_arrive(empty); }

/* ---- which tiles ---- */
/* The number of a block's i-th tile: forth and back, as early tiles are longer. */
DEVICE int tile_number(int i) {
    const int blocks = (int)gridDim.x, own = (int)blockIdx.x;
    return i * blocks + (i % 2 ? blocks - 1 - own : own);
}

/* The steps of the n rows (keys) from `first` on; none where there are none. Of rows at least one. */
template <bool OF_KEYS> DEVICE Range walk_of(const Attention &a, const Item &t, int first, int n) {
    if (first >= (OF_KEYS ? t.keys.n : t.rows.n)) return {0, 0};
    const Range seen = OF_KEYS ? rows_of_tile(a, t, first, n) : keys_of_tile(a, t, first, n);
    const int from = seen.from / STEP_ROWS * STEP_ROWS, least = OF_KEYS ? from : from + STEP_ROWS;
    return {from, max((seen.to + STEP_ROWS - 1) / STEP_ROWS * STEP_ROWS, least)};
}

/* ---- fetching: warpgroup 0 ---- */
/* What a tile reads. */
struct Walk {
    const void *own_x, *own_y, *x, *y;
    const RowStatistics *statistics; /* of the prompt's rows and this head */
    Side own, other;
    int first;
    Range steps;
};

/* Begins to copy ROWS rows of x, and of y where there is one: 0 where there are none. */
template <int C, int ROWS, bool TWO>
DEVICE void copy_rows(uint32_t to_x, uint32_t to_y, const void *x, const void *y, const Side &side,
                      int first) {
    constexpr int CHUNKS = C / 8, APART = GROUP_THREADS / CHUNKS;
    const int chunk = (int)threadIdx.x % CHUNKS;
    const uint32_t part = (uint32_t)(chunk / 8 * ROWS * TILE_ROW_BYTES);
#pragma unroll 2
    for (int i = (int)threadIdx.x / CHUNKS; i < ROWS; i += APART) {
        const bool present = first + i < side.n;
        const int64_t at = present ? row_at(side, first + i) * C + chunk * 8 : 0;
        const uint32_t place = part + (uint32_t)(i * TILE_ROW_BYTES + ((chunk ^ i) % 8 << 4));
        cp_async16(to_x + place, &static_cast<const bf16 *>(x)[at], present);
        if (TWO) cp_async16(to_y + place, &static_cast<const bf16 *>(y)[at], present);
    }
}

template <class L> DEVICE void copy_own(uint32_t shared, const Walk &w, unsigned n_tiles) {
    const Place<L> p(shared, n_tiles);
    mbarrier_wait(p.empty, p.parity ^ 1);
    copy_rows<L::WIDTH, OWN_ROWS, L::OPERANDS == 2>(shared + p.at, shared + p.at + L::OWN_BYTES, w.own_x,
                                                    w.own_y, w.own, w.first);
}

template <class L> DEVICE void copy_step(uint32_t shared, const Walk &w, int o, unsigned n) {
    const Stage<L> s(shared, n);
    mbarrier_wait(s.empty, s.parity ^ 1);
    copy_rows<L::WIDTH, STEP_ROWS, true>(s.x, s.y, w.x, w.y, w.other, o);
    if (L::HAS_STATISTICS) { /* a thread has half of a row's */
        const int i = (int)threadIdx.x / 2;
        const bool present = o + i < w.other.n;
        cp_async4(shared + s.statistics + threadIdx.x * 4,
                  reinterpret_cast<const float *>(&w.statistics[present ? o + i : 0]) + threadIdx.x % 2,
                  present);
    }
}

/* The copies of the steps [from, to) have landed. */
template <class L> DEVICE void hand_over(uint32_t shared, unsigned from, unsigned to) {
    if (from == to) return;
    async_proxy_fence();
    for (; from < to; from++) mbarrier_arrive(Stage<L>(shared, from).full);
}

/* find(walk, number): false behind the last tile. */
template <class L, class Find> DEVICE void fetch_tiles(uint32_t shared, Find find) {
    unsigned n = 0, n_handed = 0;
    Walk w;
    for (int tile = 0; find(w, tile_number(tile)); tile++)
        for (int o = w.steps.from; o < w.steps.to; o += STEP_ROWS, n++) {
            if (n - n_handed > 1) { /* two steps are under way: before waiting for room */
                cp_async_wait<1>();
                hand_over<L>(shared, n_handed, n - 1);
                n_handed = n - 1;
            }
            if (o == w.steps.from) copy_own<L>(shared, w, (unsigned)tile);
            copy_step<L>(shared, w, o, n);
            cp_async_commit();
        }
    cp_async_wait<0>();
    hand_over<L>(shared, n_handed, n);
}

/* ---- multiplying: warpgroups 1 and 2 ---- */
/* The steps [from, to) of the other half, that this one does not see. */
template <class L> DEVICE void pass_steps(uint32_t shared, unsigned &n, int from, int to) {
    for (; from < to; from += STEP_ROWS, n++) {
        const Stage<L> s(shared, n);
        mbarrier_wait(s.full, s.parity);
        release(s.empty);
    }
}

/* A warp's 16 rows by 64 as attention_mma.cuh has them, and as wgmma does. */
typedef float Scores[1][STEP_ROWS / 8][4];
DEVICE float (&flat(Scores &s))[STEP_ROWS / 2] { return reinterpret_cast<float(&)[STEP_ROWS / 2]>(s); }

/* An operand so many bytes on. */
DEVICE uint64_t moved_operand(uint64_t operand, int n_bytes) { return operand + (uint64_t)(n_bytes >> 4); }

/* s = a b^T: 64 of the OWN_ROWS rows at a, the 64 rows at b. */
template <int C> DEVICE void multiply_steps(Scores &s, uint32_t a, uint32_t b) {
    const uint64_t left = wgmma_operand(a, 16, 1024), right = wgmma_operand(b, 16, 1024);
#pragma unroll
    for (int k = 0; k < C / 16; k++)
        wgmma<STEP_ROWS, K_MAJOR>(
            flat(s), moved_operand(left, k / 4 * OWN_ROWS * TILE_ROW_BYTES + k % 4 * 32),
            moved_operand(right, k / 4 * STEP_ROWS * TILE_ROW_BYTES + k % 4 * 32), k > 0);
}

/* x = p b, or x += p b, over the 64 rows at b. */
template <int C>
DEVICE void multiply_weights(float (&x)[C / 2], const uint32_t (&p)[STEP_ROWS / 16][4], uint32_t b,
                             bool accumulate) {
    const uint64_t right = wgmma_operand(b, STEP_ROWS * TILE_ROW_BYTES, 1024);
#pragma unroll
    for (int k = 0; k < STEP_ROWS / 16; k++)
        wgmma<C, N_MAJOR>(x, p[k], moved_operand(right, k * 16 * TILE_ROW_BYTES), accumulate || k > 0);
}

#endif

/* The plan that groups tokens by expert: a counting sort in three launches. Tiles of pairs are counted, the
 * counts of each expert summed over the tiles, and one warp a tile places its pairs in order. */
#include "device.cuh"

enum { PLAN_WARPS = 4, PLAN_THREADS = PLAN_WARPS * 32, MOST_TILES = 512, LEAST_SPAN = 256 };
enum { MOST_PLAN_EXPERTS = 8192 }; /* their counters fill the shared memory */

struct Tiling {
    int64_t pairs, span; /* pairs of a tile */
    int tiles, experts, expert_bits, alignment;
};

/* The pairs of this warp's tile. */
struct Tile {
    int index;
    int64_t begin, end;
};
DEVICE Tile own_tile(const Tiling &s) {
    const int index = blockIdx.x * PLAN_WARPS + threadIdx.x / 32;
    return {index, index * s.span, min((index + 1) * s.span, s.pairs)};
}

/* counts[e, tile] */
static __global__ void __launch_bounds__(PLAN_THREADS)
    count_pairs(int32_t *counts, const int32_t *ids, Tiling s) {
    DYNAMIC_SHARED(memory);
    int32_t *own = reinterpret_cast<int32_t *>(memory) + threadIdx.x / 32 * s.experts;
    const int lane = threadIdx.x % 32;
    const Tile tile = own_tile(s);
    if (tile.index >= s.tiles) return;
    for (int e = lane; e < s.experts; e += 32) store(&own[e], 0);
    __syncwarp();
    for (int64_t i = tile.begin + lane; i < tile.end; i += 32) atomicAdd(&own[load(&ids[i])], 1);
    __syncwarp();
    for (int e = lane; e < s.experts; e += 32)
        store(&counts[(int64_t)e * s.tiles + tile.index], load(&own[e]));
}

/* Calls put(i, get(0) + ... + get(i - 1)) for i < n, by a block of PLAN_THREADS; returns the sum of all. */
template <class Get, class Put> DEVICE int32_t scan(int n, Get get, Put put) {
    SHARED(int32_t, part, PLAN_WARPS);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int32_t before = 0;
    for (int from = 0; from < n; from += PLAN_THREADS) {
        const int i = from + threadIdx.x;
        const int32_t x = i < n ? get(i) : 0;
        int32_t sum = x;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int32_t y = __shfl_up_sync(~0u, sum, d);
            if (lane >= d) sum += y;
        }
        __syncthreads(); /* the last parts have been read */
        if (lane == 31) store(&part[warp], sum);
        __syncthreads();
        int32_t own = before + sum - x;
#pragma unroll
        for (int w = 0; w < PLAN_WARPS; w++) {
            const int32_t p = load(&part[w]);
            own += w < warp ? p : 0;
            before += p;
        }
        if (i < n) put(i, own);
    }
    return before;
}

/* An expert a block: its counts become the pairs of the tiles before, total[e] all its pairs. */
static __global__ void __launch_bounds__(PLAN_THREADS)
    scan_tiles(int32_t *counts, int32_t *total, int tiles) {
    int32_t *row = &counts[(int64_t)blockIdx.x * tiles];
    const int32_t sum = scan(
        tiles, [&](int i) { return load(&row[i]); }, [&](int i, int32_t before) { store(&row[i], before); });
    if (threadIdx.x == 0) store(&total[blockIdx.x], sum);
}

/* The lanes of the warp that hold the same id; an id < 0 is nobody's. */
DEVICE uint32_t lanes_with(int32_t id, int bits) {
    uint32_t same = __ballot_sync(~0u, id >= 0);
    for (int b = 0; b < bits; b++) {
        const uint32_t set = __ballot_sync(~0u, id >> b & 1);
        same &= id >> b & 1 ? set : ~set;
    }
    return same;
}

/* Each block sums the experts' totals for itself; the first also writes the offsets, and -1 as the pair of
 * rows that alignment leaves over. */
static __global__ void __launch_bounds__(PLAN_THREADS)
    place_pairs(int32_t *offsets, int32_t *pairs, int32_t *rows, const int32_t *ids, const int32_t *counts,
                const int32_t *total, Tiling s) {
    DYNAMIC_SHARED(memory);
    int32_t *begin = reinterpret_cast<int32_t *>(memory), *next = begin + (1 + threadIdx.x / 32) * s.experts;
    const int lane = threadIdx.x % 32;
    auto aligned = [&](int e) { return (load(&total[e]) + s.alignment - 1) / s.alignment * s.alignment; };
    const int32_t all = scan(s.experts, aligned, [&](int e, int32_t before) {
        store(&begin[e], before);
        if (blockIdx.x > 0) return;
        store(&offsets[e], before);
        for (int32_t m = before + load(&total[e]); m < before + aligned(e); m++) store(&pairs[m], -1);
    });
    if (blockIdx.x == 0 && threadIdx.x == 0) store(&offsets[s.experts], all);
    __syncthreads();

    const Tile tile = own_tile(s);
    if (tile.index >= s.tiles) return;
    for (int e = lane; e < s.experts; e += 32)
        store(&next[e], load(&begin[e]) + load(&counts[(int64_t)e * s.tiles + tile.index]));
    __syncwarp();
    auto id_at = [&](int64_t i) { return i < tile.end ? load(&ids[i]) : -1; };
    int32_t coming = id_at(tile.begin + lane);
    for (int64_t i = tile.begin + lane; i - lane < tile.end; i += 32) {
        const int32_t id = coming;
        coming = id_at(i + 32); /* on its way meanwhile */
        const uint32_t same = lanes_with(id, s.expert_bits);
        const int before = __popc(same & ((1u << lane) - 1));
        const int32_t row = id >= 0 ? load(&next[id]) + before : 0;
        __syncwarp();
        if (id >= 0 && before + 1 == __popc(same)) store(&next[id], row + 1);
        __syncwarp();
        if (id < 0) continue;
        store(&pairs[row], (int32_t)i);
        store(&rows[i], row);
    }
}

extern "C" void cuda_moe_plan(Queue *q, MoePlan plan, Tensor ids) {
    const Call call(q, "moe_plan", plan.offsets, plan.pairs, plan.rows, ids);
    const int64_t pairs = tensor_count(ids), experts = tensor_count(plan.offsets) - 1;
    check(experts >= 1 && experts <= MOST_PLAN_EXPERTS && pairs <= INT32_MAX, "%lld pairs of %lld experts",
          (long long)pairs, (long long)experts);
    check(plan.alignment >= 1 && tensor_count(plan.rows) == pairs &&
              tensor_count(plan.pairs) >= pairs + experts * (plan.alignment - 1),
          "%lld rows for %lld pairs", (long long)tensor_count(plan.pairs), (long long)pairs);
    const int64_t room =
        WORKSPACE_BYTES / (experts * (int64_t)sizeof(int32_t)) - 1; /* counts, and the totals */
    const int64_t most = room < MOST_TILES ? room : (int64_t)MOST_TILES;
    const int64_t span = pairs > most * LEAST_SPAN ? (pairs + most - 1) / most : (int64_t)LEAST_SPAN;
    const int tiles = pairs ? (int)((pairs + span - 1) / span) : 1;
    int bits = 0;
    while ((int64_t)1 << bits < experts) bits++;
    const Tiling s = {pairs, span, tiles, (int)experts, bits, plan.alignment};
    int32_t *total = static_cast<int32_t *>(queue_workspace(q)), *counts = total + experts;
    const size_t row_bytes = (size_t)experts * sizeof(int32_t);
    const unsigned blocks = blocks_for(tiles, PLAN_WARPS);
    LAUNCH(call, blocks, PLAN_THREADS, PLAN_WARPS * row_bytes, count_pairs, counts, ints(ids), s);
    LAUNCH(call, (unsigned)experts, PLAN_THREADS, 0, scan_tiles, counts, total, tiles);
    LAUNCH(call, blocks, PLAN_THREADS, (1 + PLAN_WARPS) * row_bytes, place_pairs, ints(plan.offsets),
           ints(plan.pairs), ints(plan.rows), ints(ids), counts, total, s);
}

/* The router: softmax and top-k in either order, their gradient, and the plan that groups tokens by expert.
 *
 * A token is sixteen lanes, expert e is in lane e % 16: sums have the order of kernels/cpu/lanes.h and
 * results its bits. Experts stand as ranks (32-bit, larger is better) in registers up to 256 of them, in the
 * token's row of probs beyond. A choice is a maximum over the lanes, then the lowest expert that has it,
 * which leaves. Logits are read from memory once and twice more from L1, probs written once; beyond a few
 * choices instructions are the limit. Experts that the bias switches off rank last: when fewer than K are
 * left, which the CPU refuses, they are chosen with weight 0, so that ids are distinct and valid whatever the
 * logits hold.
 *
 * The plan is a counting sort in three launches: tiles of pairs are counted, the counts of each expert summed
 * over the tiles, and one warp a tile places its pairs in order. */
#include "device.cuh"
#include <type_traits>

enum { THREADS = 256, LANES = 16, ROWS = THREADS / LANES };

/* ---- route ---- */
/* Ranks of what is no number; 0 is nobody's. */
enum : uint32_t { RANK_OFF = 1, RANK_NAN = 2 };

DEVICE uint32_t rank_of(float x, bool is_off) {
    return is_off ? RANK_OFF : x != x ? RANK_NAN : ordered_bits(x);
}

/* A word for each of the lane's experts: its rank, later its exponential. N = 0: in memory. */
template <int N> struct Row {
    uint32_t word[N];
    __device__ __forceinline__ explicit Row(float *) {}
    __device__ __forceinline__ uint32_t get(int i) const { return word[i]; }
    __device__ __forceinline__ void set(int i, uint32_t w) { word[i] = w; }
};
template <> struct Row<0> {
    float *memory;
    __device__ __forceinline__ explicit Row(float *p) : memory(p) {}
    __device__ __forceinline__ uint32_t get(int i) const { return __float_as_uint(load(&memory[i * LANES])); }
    __device__ __forceinline__ void set(int i, uint32_t w) { store(&memory[i * LANES], __uint_as_float(w)); }
};

template <int N>
static __global__ void __launch_bounds__(THREADS)
    route_tokens(float *probs, int32_t *ids, float *weights, const float *logits, const float *bias,
                 int64_t tokens, int experts, int choices, RouterRule rule) {
    const int lane = threadIdx.x % LANES;
    const int64_t t = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES;
    const bool present = t < tokens; /* lanes without a token take part in the shuffles */
    const int n = present ? experts : 0, n_chosen = present ? choices : 0;
    const int steps = N ? N : (n - lane + LANES - 1) / LANES;
    auto logit = [&](int e) {
        return bias ? load(&logits[t * experts + e]) + load(&bias[e]) : load(&logits[t * experts + e]);
    };
    Row<N> row(&probs[t * experts + lane]);

#pragma unroll
    for (int i = 0; i < steps; i++) {
        const int e = i * LANES + lane;
        row.set(i, e < n ? rank_of(logit(e), bias && load(&bias[e]) == -INFINITY) : 0);
    }
    int first = 0;
    for (int k = 0; k < choices; k++) {
        uint32_t best = 0;
        int chosen = 0;
#pragma unroll
        for (int i = 0; i < steps; i++)
            if (row.get(i) > best) best = row.get(i), chosen = i * LANES + lane;
        uint32_t top = best;
#pragma unroll
        for (int d = LANES / 2; d; d /= 2) top = max(top, __shfl_xor_sync(~0u, top, d));
        if (best != top) chosen = INT32_MAX;
#pragma unroll
        for (int d = LANES / 2; d; d /= 2) chosen = min(chosen, __shfl_xor_sync(~0u, chosen, d));
#pragma unroll
        for (int i = 0; i < steps; i++)
            if (i * LANES + lane == chosen) row.set(i, 0);
        if (k == 0) first = chosen;
        if (present && lane == k % LANES) store(&ids[t * choices + k], chosen);
    }

    const float largest = present ? logit(first) : 0;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < steps; i++) {
        const int e = i * LANES + lane;
        if (e >= n) continue;
        const float y = exp_f32(logit(e) - largest);
        row.set(i, __float_as_uint(y));
        sum += y;
    }
    const float total = lanes_sum(sum);
#pragma unroll
    for (int i = 0; i < steps; i++)
        if (i * LANES + lane < n)
            store(&probs[t * experts + i * LANES + lane], __uint_as_float(row.get(i)) / total);

    /* Weights: each lane goes on with the choices that it wrote. */
    auto raw = [&](int k) { return exp_f32(logit(load(&ids[t * choices + k])) - largest); };
    float divisor = total, kept = 1;
    if (rule.order == ROUTER_TOPK_SOFTMAX) {
        sum = 0;
        for (int k = lane; k < n_chosen; k += LANES) sum += raw(k);
        divisor = lanes_sum(sum);
    } else if (rule.renormalize) {
        kept = 0;
        for (int from = 0; from < choices; from += LANES) {
            const float w = from + lane < n_chosen ? raw(from + lane) / divisor : 0;
            for (int k = 0; k < min((int)LANES, choices - from); k++)
                kept += __shfl_sync(~0u, w, (threadIdx.x & LANES) + k);
        }
    }
    for (int k = lane; k < n_chosen; k += LANES)
        store(&weights[t * choices + k], raw(k) / divisor / kept * rule.scale);
}

/* Calls f with the size of Row as a constant. */
template <class F> static void with_words(int64_t experts, F f) {
    if (experts <= 2 * LANES) return f(std::integral_constant<int, 2>{});
    if (experts <= 4 * LANES) return f(std::integral_constant<int, 4>{});
    if (experts <= 8 * LANES) return f(std::integral_constant<int, 8>{});
    if (experts <= 16 * LANES) return f(std::integral_constant<int, 16>{});
    f(std::integral_constant<int, 0>{});
}

extern "C" void cuda_route(Queue *q, Tensor probs, Tensor ids, Tensor weights, Tensor logits, Tensor bias,
                           RouterRule rule) {
    const Call call(q, "route", probs, ids, weights, logits, bias);
    const int64_t tokens = tensor_rows(logits), experts = tensor_columns(logits),
                  choices = tensor_columns(ids);
    check(choices >= 1 && choices <= experts && experts < INT32_MAX / 2, "%lld of %lld experts",
          (long long)choices, (long long)experts);
    with_words(experts, [&](auto n) {
        LAUNCH(call, blocks_for(tokens, ROWS), THREADS, 0, (route_tokens<n>), reals(probs), ints(ids),
               reals(weights), reals(logits), reals(bias), tokens, (int)experts, (int)choices, rule);
    });
}

/* ---- route_bwd; the formulas are kernels/cpu/route.c's ---- */
static __global__ void __launch_bounds__(THREADS)
    route_gradient(float *dlogits, const float *dweights, const float *probs, const int32_t *ids,
                   int64_t tokens, int experts, int choices, float scale, bool weights_are_probs) {
    const int lane = threadIdx.x % LANES;
    const int64_t t = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES;
    if (t >= tokens) return;
    auto id = [&](int k) { return load(&ids[t * choices + k]); };
    auto p = [&](int k) { return load(&probs[t * experts + id(k)]); };
    auto g = [&](int k) { return scale * load(&dweights[t * choices + k]); };
    float sum = 0;
    if (weights_are_probs) {
        for (int k = 0; k < choices; k++) sum = fmaf(p(k), g(k), sum);
        for (int e = lane; e < experts; e += LANES) {
            float d = load(&dlogits[t * experts + e]);
            for (int k = 0; k < choices; k++)
                if (id(k) == e) d = fmaf(p(k), g(k), d);
            store(&dlogits[t * experts + e], fmaf(-load(&probs[t * experts + e]), sum, d));
        }
        return;
    }
    for (int k = 0; k < choices; k++) sum += p(k);
    for (int k = lane; k < choices; k += LANES) {
        const float v = p(k) / sum, own = g(k);
        float d = 0;
        for (int j = 0; j < choices; j++) d = fmaf(v * (p(j) / sum), own - g(j), d);
        float *to = &dlogits[t * experts + id(k)];
        store(to, load(to) + d);
    }
}

extern "C" void cuda_route_bwd(Queue *q, Tensor dlogits, Tensor dweights, Tensor probs, Tensor ids,
                               Tensor weights, RouterRule rule) {
    const Call call(q, "route_bwd", dlogits, dweights, probs, ids, weights);
    const int64_t tokens = tensor_rows(probs);
    LAUNCH(call, blocks_for(tokens, ROWS), THREADS, 0, route_gradient, reals(dlogits), reals(dweights),
           reals(probs), ints(ids), tokens, (int)tensor_columns(probs), (int)tensor_columns(ids), rule.scale,
           rule.order == ROUTER_SOFTMAX_TOPK && !rule.renormalize);
}

/* ---- moe_plan ---- */
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

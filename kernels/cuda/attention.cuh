/* What the variants of attention share. The H/J query heads of one key/value head are rows of one matrix: row
 * i = token * (H/J) + head in the group. A block of threads owns a tile of rows (backward also: of keys) of
 * one prompt and key/value head, and walks what they see.
 *
 * The arithmetic of a row, in every variant: key blocks of 64 from the prompt's key 0, in order. A block
 * gives its own maximum, sum of exponentials and weighted values, each begun with 0; join() adds them to the
 * row's, scaling down whichever has the smaller maximum. A block in which the row sees nothing adds nothing.
 * So a row's bits depend neither on the rows beside it nor on who computes which block: any split of the
 * keys is as good.
 *
 * A key that a row does not see has weight 0, but a NaN or infinity among its values still reaches the rows
 * of the same tile. */
#ifndef GATETAPE_CUDA_ATTENTION_CUH
#define GATETAPE_CUDA_ATTENTION_CUH
#include "device.cuh"

constexpr int KEY_BLOCK = 64, MOST_HEAD_SIZE = 640;
constexpr float LOG2E = 0x1.715476p0f, LN2 = 0x1.62e43p-1f;

/* Of a call and, by value, of its kernels. */
struct Attention {
    const int32_t *offsets, *kv_begin, *kv_length;
    int prompts, kv_heads, group, size, value_size; /* P, J, H/J, C, Cv */
    int first_head, n_heads;                        /* the key/value heads of this launch */
    int window;                                     /* 0: none */
    float scale;
    int64_t tokens, key_rows;
};

struct Forward {
    Attention a;
    void *out;
    float *lse;
    const void *query, *key, *value, *sinks;
    DType sinks_dtype;
};

/* Of a row: its log-sum-exp (times what the variant asks for) and dout . out. */
struct alignas(8) RowStatistics {
    float lse, delta;
};

struct Backward {
    Attention a;
    void *dquery, *dkey, *dvalue;
    const void *dout, *query, *key, *value;
    RowStatistics *statistics; /* [n_heads][tokens * group] */
};

/* The variants for bf16 and head sizes of 64 and 128. */
void attention_mma(const Call &call, const Forward &f);
void attention_decode(const Call &call, const Forward &f);
void attention_bwd_mma(const Call &call, const Backward &g);
void attention_hopper(const Call &call, const Forward &f);
void attention_bwd_hopper(const Call &call, const Backward &g);

/* ---- host ---- */
static inline Attention attention_of(Tensor query, Tensor key, Tensor value, Spans spans, float scale,
                                     int64_t window) {
    check(query.n_dims == 3 && key.n_dims == 3 && value.n_dims == 3, "%d, %d, %d dimensions", query.n_dims,
          key.n_dims, value.n_dims);
    const int64_t heads = query.shape[1], kv_heads = key.shape[1];
    check(kv_heads > 0 && heads % kv_heads == 0 && value.shape[1] == kv_heads, "heads %lld, %lld",
          (long long)heads, (long long)kv_heads);
    check(key.shape[2] == query.shape[2] && key.shape[2] <= MOST_HEAD_SIZE &&
              value.shape[2] <= MOST_HEAD_SIZE,
          "head sizes %lld, %lld, %lld", (long long)query.shape[2], (long long)key.shape[2],
          (long long)value.shape[2]);
    check(query.shape[0] * heads <= INT32_MAX, "%lld rows", (long long)(query.shape[0] * heads));
    Attention a = {};
    a.offsets = ints(spans.offsets), a.kv_begin = ints(spans.kv_begin), a.kv_length = ints(spans.kv_length);
    a.prompts = (int)tensor_count(spans.kv_begin);
    a.kv_heads = a.n_heads = (int)kv_heads, a.group = (int)(heads / kv_heads);
    a.size = (int)query.shape[2], a.value_size = (int)value.shape[2];
    a.window = window > 0 && window < INT32_MAX ? (int)window : 0;
    a.scale = scale;
    a.tokens = query.shape[0], a.key_rows = key.shape[0];
    return a;
}

/* Whether the tensor core variants apply. Their maxima are of unscaled scores: the scale must keep the
 * order. */
template <class... T> static bool attention_fits_mma(const Attention &a, Tensor query, T... more) {
    return query.dtype == DTYPE_BF16 && (a.size == 64 || a.size == 128) && a.size == a.value_size &&
           a.scale >= 0 && rows_are_packed(WIDEST<bf16>, a.size, query, more...);
}

/* Blocks that suffice for the tiles of `tile` of n rows, or keys, however the prompts divide them. */
static inline unsigned attention_blocks(const Attention &a, int64_t n, int tile) {
    return blocks_for((n / tile + a.prompts) * a.n_heads, 1);
}

/* ---- device: a prompt's rows and keys ---- */
/* Row i of a prompt's queries, or key i: one row of the tensors. */
struct Side {
    int64_t first;           /* token, or row of the keys */
    int stride, head, group; /* heads of the tensor; first head; heads that are rows */
    int n;
};

struct Item {
    Side rows, keys;
    int before; /* keys before the first query */
    int head;   /* of keys and values */
    int first;  /* row or key of the tile */
};

/* Keys or rows [from, to). */
struct Range {
    int from, to;
};

DEVICE int64_t row_at(const Side &s, int i) {
    if (s.group == 1) return (s.first + i) * s.stride + s.head;
    return (s.first + i / s.group) * s.stride + s.head + i % s.group;
}

DEVICE Item item_of(const Attention &a, int p, int head) {
    const int first = load(&a.offsets[p]), tokens = load(&a.offsets[p + 1]) - first,
              keys = load(&a.kv_length[p]);
    Item t;
    t.rows = {first, a.kv_heads * a.group, head * a.group, a.group, tokens * a.group};
    t.keys = {load(&a.kv_begin[p]), a.kv_heads, head, 1, keys};
    t.before = keys - tokens;
    t.head = head;
    t.first = 0;
    return t;
}

/* The tile of this number: `tile` rows, or keys, of a prompt; false when there are fewer tiles. Those that
 * see most of a prompt come first. All lanes of a warp call it. */
template <bool OF_KEYS> DEVICE bool find_item(Item &item, const Attention &a, int tile, int number) {
    const int lane = threadIdx.x % 32;
    int slot = number / a.n_heads;
    for (int p0 = 0; p0 < a.prompts; p0 += 32) {
        const int p = p0 + lane;
        int n = 0;
        if (p < a.prompts)
            n = OF_KEYS ? load(&a.kv_length[p]) : (load(&a.offsets[p + 1]) - load(&a.offsets[p])) * a.group;
        n = (n + tile - 1) / tile;
        int end = n;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int other = __shfl_up_sync(~0u, end, d);
            if (lane >= d) end += other;
        }
        const unsigned found = __ballot_sync(~0u, slot < end);
        if (found) {
            const int at = __ffs((int)found) - 1, n_tiles = __shfl_sync(~0u, n, at);
            const int index = slot - (__shfl_sync(~0u, end, at) - n_tiles);
            item = item_of(a, p0 + at, a.first_head + number % a.n_heads);
            item.first = (OF_KEYS ? index : n_tiles - 1 - index) * tile;
            return true;
        }
        slot -= __shfl_sync(~0u, end, 31);
    }
    return false;
}

/* The keys of row i; none behind the last row. */
DEVICE Range keys_of(const Attention &a, const Item &t, int i) {
    const int at = t.before + i / t.rows.group;
    return {a.window > 0 && at >= a.window ? at - a.window + 1 : 0, i < t.rows.n ? at + 1 : 0};
}

/* The keys that rows [i, i + n) see together. */
DEVICE Range keys_of_tile(const Attention &a, const Item &t, int i, int n) {
    return {keys_of(a, t, i).from, keys_of(a, t, min(i + n, t.rows.n) - 1).to};
}

/* The keys that each of the rows [i, i + n) sees that are there; none where none are. */
DEVICE Range keys_of_all(const Attention &a, const Item &t, int i, int n) {
    return {keys_of(a, t, min(i + n, t.rows.n) - 1).from, keys_of(a, t, i).to};
}

/* The rows that see one of the keys [k, k + n). */
DEVICE Range rows_of_tile(const Attention &a, const Item &t, int k, int n) {
    const int64_t behind = ((int64_t)k + n - 1 + a.window - t.before) * t.rows.group;
    return {max(k - t.before, 0) * t.rows.group,
            a.window > 0 && behind < t.rows.n ? (int)max(behind, (int64_t)0) : t.rows.n};
}

/* The rows that see each of the keys [k, k + n) that are there. */
DEVICE Range rows_of_all(const Attention &a, const Item &t, int k, int n) {
    const int64_t behind = ((int64_t)k + a.window - t.before) * t.rows.group;
    return {max(min(k + n, t.keys.n) - 1 - t.before, 0) * t.rows.group,
            a.window > 0 && behind < t.rows.n ? (int)max(behind, (int64_t)0) : t.rows.n};
}

/* Whether each of the rows [i, i + n) is there and sees all keys [k, k + n_keys). */
DEVICE bool all_see_all(const Attention &a, const Item &t, int i, int n, int k, int n_keys) {
    return i + n <= t.rows.n && keys_of(a, t, i).to >= k + n_keys && keys_of(a, t, i + n - 1).from <= k;
}

/* ---- device: the sums of a row ---- */
struct Running {
    float largest, total; /* maximum; sum of exponentials relative to it */
};

/* A row before its first key: nothing, or the sink of its head. `unit` is that of the maxima. */
DEVICE Running begin_row(const Forward &f, const Item &t, int i, float unit) {
    const int head = t.rows.head + i % t.rows.group;
    if (!f.sinks) return {-INFINITY, 0};
    if (f.sinks_dtype == DTYPE_F32) return {load(&static_cast<const float *>(f.sinks)[head]) * unit, 1};
    if (f.sinks_dtype == DTYPE_BF16)
        return {to_f32(load(&static_cast<const bf16 *>(f.sinks)[head])) * unit, 1};
    return {to_f32(load(&static_cast<const f16 *>(f.sinks)[head])) * unit, 1};
}

/* Adds a block's maximum and sum; what has been summed is to be multiplied by shrink, the block's values by
 * grow. */
template <float (*EXP)(float)>
DEVICE void join(Running &r, float largest, float total, float &shrink, float &grow) {
    const float both = fmaxf(r.largest, largest);
    shrink = r.largest == both ? 1.0f : EXP(r.largest - both);
    grow = largest == both ? 1.0f : EXP(largest - both);
    r.total = fmaf(r.total, shrink, total * grow);
    r.largest = both;
}

#endif

/* The gradients of attention, from the saved log-sum-exp (arXiv 2205.14135, algorithm 4). With p = exp(scale
 * q k - lse), delta = dout . out:  ds = scale p (dout . v - delta),  dq += ds k,  dk += ds^T q,  dv += p^T
 * dout.
 *
 * The op, delta, and the variant for any head sizes and types: one pass for each gradient, so that no sum is
 * shared among blocks and none depends on the order in which blocks run. dq's blocks own 32 rows and walk
 * key blocks, those of dk and dv own 32 keys and walk row blocks, 64 at a time in order; scores are computed
 * in each pass. */
#include "attention_general.cuh"

enum Gradient { OF_QUERY, OF_KEY, OF_VALUE };
enum { STATISTICS_WARPS = 8 };

/* A warp a row. */
template <class T, int N>
static __global__ void __launch_bounds__(32 * STATISTICS_WARPS)
    row_statistics(Backward g, const T *out, const float *lse, float unit) {
    const Attention &a = g.a;
    const int64_t rows = a.tokens * a.group, lane = threadIdx.x % 32;
    const int64_t i = (int64_t)blockIdx.x * STATISTICS_WARPS + threadIdx.x / 32;
    if (i >= rows * a.n_heads) return;
    const int64_t head = a.first_head + i / rows, row = i % rows;
    const int64_t at = (row / a.group * a.kv_heads + head) * a.group + row % a.group;
    const T *dout = static_cast<const T *>(g.dout);
    float sum = 0;
    for (int64_t c = lane * N; c < a.value_size; c += 32 * N) {
        float x[N], y[N];
        load_pack<T, N>(x, &out[at * a.value_size + c]);
        load_pack<T, N>(y, &dout[at * a.value_size + c]);
#pragma unroll
        for (int e = 0; e < N; e++) sum = fmaf(x[e], y[e], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) store(&g.statistics[i], RowStatistics{load(&lse[at]) * unit, sum});
}

template <class T, int N, Gradient OF>
static __global__ void __launch_bounds__(GENERAL_THREADS, 4) gradient(Backward g) {
    DYNAMIC_SHARED(memory);
    constexpr bool OF_KEYS = OF != OF_QUERY;
    const Attention &a = g.a;
    Item t;
    if (!find_item<OF_KEYS>(t, a, OWN, (int)blockIdx.x)) return;
    const Stage m = stage_at(memory);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const T *query = static_cast<const T *>(g.query), *key = static_cast<const T *>(g.key);
    const T *value = static_cast<const T *>(g.value), *dout = static_cast<const T *>(g.dout);
    const Side own = OF_KEYS ? t.keys : t.rows, other = OF_KEYS ? t.rows : t.keys;
    const Operand<T> own_x = {OF_KEYS ? key : query, own, t.first, a.size};
    const Operand<T> own_y = {OF_KEYS ? value : dout, own, t.first, a.value_size};
    const RowStatistics *statistics =
        &g.statistics[(t.head - a.first_head) * a.tokens * a.group + t.rows.first * a.group];
    const int width = OF == OF_VALUE ? a.value_size : a.size;
    clear_sums(m, width);

    const Range span = OF_KEYS ? rows_of_tile(a, t, t.first, OWN) : keys_of_tile(a, t, t.first, OWN);
    for (int o = span.from / OTHER * OTHER; o < span.to; o += OTHER) {
        const Operand<T> other_x = {OF_KEYS ? query : key, other, o, a.size};
        const Operand<T> other_y = {OF_KEYS ? dout : value, other, o, a.value_size};
        float p[4][4] = {}, ds[4][4] = {};
        multiply_rows<T, N>(p, m, own_x, other_x);
        if (OF != OF_VALUE) multiply_rows<T, N>(ds, m, own_y, other_y);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int mine = t.first + y + 8 * i, theirs = o + x + 16 * j;
                const int row = OF_KEYS ? theirs : mine, k = OF_KEYS ? mine : theirs;
                const Range in = keys_of(a, t, row);
                float weight = 0;
                if (k >= in.from && k < in.to) {
                    const RowStatistics of = load(&statistics[row]);
                    weight = exp_f32(fmaf(p[i][j], a.scale, -of.lse));
                    if (OF != OF_VALUE) weight = a.scale * weight * (ds[i][j] - of.delta);
                }
                store(&m.weight[(y + 8 * i) * PITCH + x + 16 * j], weight);
            }
        const float one[4] = {1, 1, 1, 1};
        add_weighted<T, N>(m, OF == OF_VALUE ? other_y : other_x, one, one);
    }

    T *to = static_cast<T *>(OF == OF_QUERY ? g.dquery : OF == OF_KEY ? g.dkey : g.dvalue);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (t.first + y + 8 * i >= own.n) continue;
        T *row = &to[row_at(own, t.first + y + 8 * i) * width];
        for (int c = x; c < width; c += 16)
            store(&row[c], from_f32<T>(to_f32(load(&row[c])) + load(&m.sum[(y + 8 * i) * width + c])));
    }
}

template <class T, int N> static void launch_gradients(const Call &call, const Backward &g) {
    const Attention &a = g.a;
    const unsigned row_blocks = attention_blocks(a, a.tokens * a.group, OWN);
    const unsigned key_blocks = attention_blocks(a, a.key_rows, OWN);
    const size_t bytes = stage_bytes(a.size), value_bytes = stage_bytes(a.value_size);
    if (g.dquery) LAUNCH(call, row_blocks, GENERAL_THREADS, bytes, (gradient<T, N, OF_QUERY>), g);
    if (g.dkey) LAUNCH(call, key_blocks, GENERAL_THREADS, bytes, (gradient<T, N, OF_KEY>), g);
    if (g.dvalue) LAUNCH(call, key_blocks, GENERAL_THREADS, value_bytes, (gradient<T, N, OF_VALUE>), g);
}

template <class T, int N>
static void launch_all(const Call &call, const Backward &g, Tensor out, Tensor lse, bool fits_mma) {
    const int64_t rows = g.a.tokens * g.a.group * g.a.n_heads;
    const float unit = fits_mma ? LOG2E : 1;
    LAUNCH(call, blocks_for(rows, STATISTICS_WARPS), 32 * STATISTICS_WARPS, 0, (row_statistics<T, N>), g,
           elements<T>(out), reals(lse), unit);
    if (fits_mma)
        attention_bwd_mma(call, g);
    else
        launch_gradients<T, N>(call, g);
}

extern "C" void cuda_attention_bwd(Queue *q, Tensor dquery, Tensor dkey, Tensor dvalue, Tensor dout,
                                   Tensor out, Tensor lse, Tensor query, Tensor key, Tensor value,
                                   Spans spans, float scale, int64_t window) {
    const Call call(q, "attention_bwd", dquery, dkey, dvalue, dout, out, lse, query, key, value,
                    spans.offsets, spans.kv_begin, spans.kv_length);
    const Attention a = attention_of(query, key, value, spans, scale, window);
    check(tensor_count(dout) == tensor_count(out) && tensor_count(lse) == tensor_rows(query), "%lld rows",
          (long long)tensor_count(lse));
    if (a.tokens == 0 || a.prompts == 0) return;
    Backward g = {a, dquery.data, dkey.data, dvalue.data, dout.data, query.data, key.data, value.data, NULL};
    g.statistics = static_cast<RowStatistics *>(queue_workspace(q));
    const int64_t at_once = WORKSPACE_BYTES / (int64_t)sizeof(RowStatistics) / (a.tokens * a.group);
    check(at_once > 0, "%lld tokens of %d heads", (long long)a.tokens, a.group);
    const bool fits_mma = attention_fits_mma(a, query, key, value, dout, out, dquery, dkey, dvalue);
    with_act(query.dtype, [&](auto act) {
        using T = decltype(act);
        constexpr int N = WIDEST<T>;
        const bool packed =
            rows_are_packed(N, a.size, query, key) && rows_are_packed(N, a.value_size, value, dout, out);
        for (int64_t head = 0; head < a.kv_heads; head += at_once) {
            g.a.first_head = (int)head,
            g.a.n_heads = (int)(at_once < a.kv_heads - head ? at_once : a.kv_heads - head);
            if (packed)
                launch_all<T, N>(call, g, out, lse, fits_mma);
            else
                launch_all<T, 1>(call, g, out, lse, fits_mma);
        }
    });
}

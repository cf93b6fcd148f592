/* Causal attention by key blocks with a running maximum (arXiv 2205.14135): the op, and the variant for any
 * head sizes and types. attention_mma.cu and attention_decode.cu are the fast ones for bf16 and heads of 64
 * and 128; all three do the arithmetic of attention.cuh, and those two give the same bits.
 *
 * A block owns 32 rows; queries and keys pass through shared memory in chunks of 64 columns, so any head
 * size fits; the sums stay in shared memory (head size 640: 112 KiB). Keys and values are read once per tile
 * of rows. */
#include "attention_general.cuh"

/* One row's scores of a key block, in 16 threads, become weights. */
DEVICE void weigh_row(const Stage &m, const float (&s)[4], int i, Range in, int k0, float scale, Running &row,
                      float &shrink, float &grow) {
    const int x = threadIdx.x % 16;
    float v[4], largest = -INFINITY, total = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int key = k0 + x + 16 * j;
        v[j] = key >= in.from && key < in.to ? s[j] * scale : -INFINITY;
        largest = fmaxf(largest, v[j]);
    }
#pragma unroll
    for (int d = 8; d; d /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
    const float shift = largest == -INFINITY ? 0.0f : largest;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        v[j] = exp_f32(v[j] - shift);
        total += v[j];
        store(&m.weight[i * PITCH + x + 16 * j], v[j]);
    }
#pragma unroll
    for (int d = 8; d; d /= 2) total += __shfl_xor_sync(~0u, total, d);
    join<exp_f32>(row, largest, total, shrink, grow);
}

template <class T, int N> static __global__ void __launch_bounds__(GENERAL_THREADS) attend(Forward f) {
    DYNAMIC_SHARED(memory);
    const Attention &a = f.a;
    Item t;
    if (!find_item<false>(t, a, OWN, (int)blockIdx.x)) return;
    const Stage m = stage_at(memory);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const T *query = static_cast<const T *>(f.query), *key = static_cast<const T *>(f.key);
    const T *value = static_cast<const T *>(f.value);
    Running row[4];
#pragma unroll
    for (int i = 0; i < 4; i++) row[i] = begin_row(f, t, t.first + y + 8 * i, 1);
    clear_sums(m, a.value_size);

    const Range span = keys_of_tile(a, t, t.first, OWN);
    for (int k0 = span.from / KEY_BLOCK * KEY_BLOCK; k0 < span.to; k0 += KEY_BLOCK) {
        float s[4][4] = {}, shrink[4], grow[4];
        multiply_rows<T, N>(s, m, {query, t.rows, t.first, a.size}, {key, t.keys, k0, a.size});
#pragma unroll
        for (int i = 0; i < 4; i++)
            weigh_row(m, s[i], y + 8 * i, keys_of(a, t, t.first + y + 8 * i), k0, a.scale, row[i], shrink[i],
                      grow[i]);
        add_weighted<T, N>(m, {value, t.keys, k0, a.value_size}, shrink, grow);
    }

#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (t.first + y + 8 * i >= t.rows.n) continue;
        const int64_t at = row_at(t.rows, t.first + y + 8 * i);
        const float share = 1.0f / row[i].total;
        for (int c = x; c < a.value_size; c += 16)
            store(&static_cast<T *>(f.out)[at * a.value_size + c],
                  from_f32<T>(load(&m.sum[(y + 8 * i) * a.value_size + c]) * share));
        if (f.lse && x == 0) store(&f.lse[at], row[i].largest + log_f32(row[i].total));
    }
}

template <class T, int N> static void launch(const Call &call, const Forward &f) {
    LAUNCH(call, attention_blocks(f.a, f.a.tokens * f.a.group, OWN), GENERAL_THREADS,
           stage_bytes(f.a.value_size), (attend<T, N>), f);
}

extern "C" void cuda_attention(Queue *q, Tensor out, Tensor lse, Tensor query, Tensor key, Tensor value,
                               Spans spans, Tensor sinks, float scale, int64_t window) {
    const Call call(q, "attention", out, lse, query, key, value, spans.offsets, spans.kv_begin,
                    spans.kv_length, sinks);
    const Attention a = attention_of(query, key, value, spans, scale, window);
    check(tensor_columns(out) == a.value_size && tensor_rows(out) == tensor_rows(query), "out %lld x %lld",
          (long long)tensor_rows(out), (long long)tensor_columns(out));
    const Forward f = {a, out.data, reals(lse), query.data, key.data, value.data, sinks.data, sinks.dtype};
    if (a.tokens == 0 || a.prompts == 0) return;
    if (attention_fits_mma(a, query, key, value, out))
        return a.tokens <= a.prompts ? attention_decode(call, f) : attention_mma(call, f);
    with_act(query.dtype, [&](auto act) {
        using T = decltype(act);
        constexpr int N = WIDEST<T>;
        if (rows_are_packed(N, a.size, query, key) && rows_are_packed(N, a.value_size, value))
            launch<T, N>(call, f);
        else
            launch<T, 1>(call, f);
    });
}

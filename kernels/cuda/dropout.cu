/* Dropout of rows: a thread two neighbouring elements, which share 64 random bits. Ten rounds of Philox for
 * two elements: integer multiplications are the limit. */
#include "../random.h"
#include "device.cuh"

enum { THREADS = 128 };

struct Dropping {
    const int64_t *keys;
    const int32_t *pairs; /* nullptr: row t is token t's */
    int64_t rows, columns, id;
    int choices;
    uint32_t least_kept;
    float kept;
};

/* to = factors from, or with ONTO added to it. */
template <class T, bool ONTO>
static __global__ void __launch_bounds__(THREADS) drop(T *to, const T *from, Dropping d) {
    const int64_t halves = (d.columns + 1) / 2, i = (int64_t)blockIdx.x * THREADS + threadIdx.x,
                  row = i / halves, half = i % halves;
    if (row >= d.rows) return;
    int64_t token = row, id = d.id;
    if (d.pairs) {
        const int pair = load(&d.pairs[row]);
        token = pair / d.choices, id += pair % d.choices;
    }
    const uint64_t bits = random_bits((uint64_t)load(&d.keys[token]), RANDOM_TUNING_DROPOUT, id, half);
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const int64_t c = 2 * half + k;
        if (c >= d.columns) return;
        const float factor = (uint32_t)(bits >> 32 * k) >= d.least_kept ? d.kept : 0;
        const int64_t at = row * d.columns + c;
        const float sum = ONTO ? to_f32(load(&to[at])) : 0;
        store(&to[at], from_f32<T>(sum + factor * to_f32(load(&from[at]))));
    }
}

template <bool ONTO>
static void launch_drop(const Call &call, Tensor to, Tensor from, Tensor keys, MoePlan plan,
                        DropoutRule rule) {
    const int64_t rows = plan.pairs.data ? tensor_count(plan.pairs) : tensor_count(keys);
    check(tensor_count(to) == tensor_count(from) && tensor_rows(from) == rows && rule.rate >= 0 &&
              rule.rate < 1,
          "%lld elements, rows of %lld keys, rate %g", (long long)tensor_count(from),
          (long long)tensor_count(keys), (double)rule.rate);
    const int64_t columns = tensor_columns(from);
    const Dropping d = {longs(keys),
                        ints(plan.pairs),
                        rows,
                        columns,
                        rule.id,
                        plan.rows.data ? (int)tensor_columns(plan.rows) : 1,
                        (uint32_t)((double)rule.rate * 0x1p32),
                        1 / (1 - rule.rate)};
    with_act(from.dtype, [&](auto act) {
        using T = decltype(act);
        LAUNCH(call, blocks_for(rows * ((columns + 1) / 2), THREADS), THREADS, 0, (drop<T, ONTO>),
               elements<T>(to), elements<T>(from), d);
    });
}

extern "C" void cuda_dropout(Queue *q, Tensor y, Tensor x, Tensor keys, MoePlan plan, DropoutRule rule) {
    launch_drop<false>(Call(q, "dropout", y, x, keys, plan.pairs), y, x, keys, plan, rule);
}

extern "C" void cuda_dropout_bwd(Queue *q, Tensor dx, Tensor dy, Tensor keys, MoePlan plan,
                                 DropoutRule rule) {
    launch_drop<true>(Call(q, "dropout_bwd", dx, dy, keys, plan.pairs), dx, dy, keys, plan, rule);
}

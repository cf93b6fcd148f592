/* What the backward kernels for tensor cores share: masks, and how sums become gradients. */
#ifndef GATETAPE_CUDA_ATTENTION_GRADIENTS_CUH
#define GATETAPE_CUDA_ATTENTION_GRADIENTS_CUH
#include "attention_mma.cuh"

DEVICE bool sees(const Attention &a, const Item &t, int row, int key) {
    const Range in = keys_of(a, t, row);
    return key >= in.from && key < in.to;
}

/* Of the rows of a prompt and this key/value head. */
DEVICE const RowStatistics *statistics_of(const Backward &g, const Item &t) {
    return &g.statistics[(t.head - g.a.first_head) * g.a.tokens * g.a.group + t.rows.first * g.a.group];
}

/* The warp's sums times scale onto its rows of a gradient. */
template <int C, int MT>
DEVICE void add_rows(void *gradient, const Side &side, int first, const float (&sum)[C / 16][MT][2][4],
                     float scale) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = first + 16 * m + 8 * half + lane / 4;
            if (i >= side.n) continue;
            bf16 *row = &static_cast<bf16 *>(gradient)[row_at(side, i) * C + 2 * (lane % 4)];
            Pack<bf16, 2> y[C / 8]; /* all reads before the first write: they wait but once */
#pragma unroll
            for (int n = 0; n < C / 8; n++) y[n].word = load(reinterpret_cast<const uint32_t *>(&row[8 * n]));
#pragma unroll
            for (int n = 0; n < C / 8; n++) {
                float z[2];
#pragma unroll
                for (int e = 0; e < 2; e++)
                    z[e] = fmaf(sum[n / 2][m][n % 2][2 * half + e], scale, to_f32(y[n].element[e]));
                store_pack<bf16, 2>(&row[8 * n], z);
            }
        }
}

#endif

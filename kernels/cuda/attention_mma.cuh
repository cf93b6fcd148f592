/* Tiles [rows][C] of bf16 in shared memory and their products by mma.sync, for attention.
 *
 * The 16-byte chunks of a row stand in an order that depends on the row: chunk c of row r at c ^ (r % 8), so
 * the eight rows that ldmatrix reads at once lie in different banks. A tile begins at a multiple of 256
 * bytes. */
#ifndef GATETAPE_CUDA_ATTENTION_MMA_CUH
#define GATETAPE_CUDA_ATTENTION_MMA_CUH
#include "attention.cuh"

template <int C> constexpr int ROW_BYTES = 2 * C;

template <int C> DEVICE uint32_t chunk_place(unsigned row, unsigned chunk) {
    return row * ROW_BYTES<C> + ((chunk ^ row % 8) << 4);
}

/* Begins to copy n rows of one side, by `threads` threads of which this is number `thread`; 0 where there
 * are none. */
template <int C>
DEVICE void copy_tile(uint32_t tile, int n, const void *x, const Side &side, int first, int thread,
                      int threads) {
    constexpr int CHUNKS = C / 8;
    const bf16 *from = static_cast<const bf16 *>(x);
#pragma unroll 4
    for (int k = thread; k < n * CHUNKS; k += threads) {
        const int i = k / CHUNKS, chunk = k % CHUNKS;
        const bool present = first + i < side.n;
        const int64_t at = present ? row_at(side, first + i) * C + chunk * 8 : 0;
        cp_async16(tile + chunk_place<C>((unsigned)i, (unsigned)chunk), &from[at], present);
    }
}

/* ---- 16 x 16 elements of a tile, as ldmatrix wants them: this lane's address ---- */
/* Of a left operand; transposed, of a right operand whose rows are summed over. */
template <int C> DEVICE uint32_t lane_by_rows(uint32_t tile) {
    const unsigned lane = threadIdx.x % 32;
    return tile + chunk_place<C>(lane % 16, lane / 16);
}
/* Of a right operand whose columns are summed over. */
template <int C> DEVICE uint32_t lane_by_columns(uint32_t tile) {
    const unsigned lane = threadIdx.x % 32;
    return tile + chunk_place<C>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}
/* The same so many times 16 rows down and 16 columns to the right. */
template <int C> DEVICE uint32_t moved(uint32_t lane, int rows16, int columns16) {
    return (lane ^ (uint32_t)(columns16 * 32)) + (uint32_t)(rows16 * 16 * ROW_BYTES<C>);
}

/* ---- products; a warp's accumulators are [tiles of 16 rows][tiles of 8 columns][4] ---- */
/* s += a b^T over the C columns. */
template <int C, int MT, int NT> DEVICE void multiply_rows(float (&s)[MT][NT][4], uint32_t a, uint32_t b) {
#pragma unroll 4 /* all of head 128 would spill */
    for (int k = 0; k < C / 16; k++) {
        uint32_t left[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) ldmatrix_x4(left[m], moved<C>(a, m, k));
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t right[4];
            ldmatrix_x4(right, moved<C>(b, n / 2, k));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma_bf16(s[m][n], left[m], right[0], right[1]);
                mma_bf16(s[m][n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/* t += p x for 16 columns of x, over its 16 KT rows. */
template <int C, int MT, int KT>
DEVICE void multiply_columns(float (&t)[MT][2][4], const uint32_t (&p)[MT][KT][4], uint32_t x,
                             int columns16) {
#pragma unroll
    for (int k = 0; k < KT; k++) {
        uint32_t right[4];
        ldmatrix_x4_transposed(right, moved<C>(x, k, columns16));
#pragma unroll
        for (int m = 0; m < MT; m++) {
            mma_bf16(t[m][0], p[m][k], right[0], right[1]);
            mma_bf16(t[m][1], p[m][k], right[2], right[3]);
        }
    }
}

/* Accumulators, rounded, as a left operand: the lanes hold what they must. */
template <int MT, int NT> DEVICE void as_left(uint32_t (&p)[MT][NT / 2][4], const float (&s)[MT][NT][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++) {
            p[m][n / 2][n % 2 * 2] = pack_bf16(s[m][n][0], s[m][n][1]);
            p[m][n / 2][n % 2 * 2 + 1] = pack_bf16(s[m][n][2], s[m][n][3]);
        }
}

/* ---- a key block of the forward pass ---- */
/* Scores of 16 MT rows from `row` on with the keys from k0 on: those that a row does not see become
 * -infinity. by_all: keys_of_all of these rows. */
template <int MT>
DEVICE void hide(float (&s)[MT][8][4], const Attention &a, const Item &t, int row, int k0, Range by_all) {
    const int lane = threadIdx.x % 32;
    if (k0 >= by_all.from && k0 + KEY_BLOCK <= by_all.to) return;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const Range in = keys_of(a, t, row + 16 * m + 8 * half + lane / 4);
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int key = k0 + 8 * n + 2 * (lane % 4) + e;
                    if (key < in.from || key >= in.to) s[m][n][2 * half + e] = -INFINITY;
                }
        }
}

/* Scores become weights 2^(unit (score - the row's largest)); largest (times unit) and total are of the
 * block. A lane has the rows lane / 4 and 8 more of each tile. */
template <int MT>
DEVICE void weigh_block(float (&s)[MT][8][4], float unit, float (&largest)[MT][2], float (&total)[MT][2]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = -INFINITY, sum = 0;
#pragma unroll
            for (int n = 0; n < 8; n++) most = fmaxf(most, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
#pragma unroll
            for (int d = 1; d < 4; d *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
            const float shift = most == -INFINITY ? 0.0f : most * unit;
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[m][n][e] = exp2_approx(fmaf(s[m][n][e], unit, -shift));
                    sum += s[m][n][e];
                }
#pragma unroll
            for (int d = 1; d < 4; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
            largest[m][half] = most == -INFINITY ? -INFINITY : shift;
            total[m][half] = sum;
        }
}

#endif

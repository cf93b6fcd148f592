/* Products of a tile of rows with a block of others, for attention of any head sizes and types: 128 threads,
 * f32 arithmetic, operands staged in chunks of 64 columns. Thread (x, y) of 16 x 8 has the cells (y + 8 i, x
 * + 16 j) of every product. Bound by shared memory: 8 reads for 16 multiply-adds. */
#ifndef GATETAPE_CUDA_ATTENTION_GENERAL_CUH
#define GATETAPE_CUDA_ATTENTION_GENERAL_CUH
#include "attention.cuh"

constexpr int OWN = 32, OTHER = KEY_BLOCK, CHUNK = 64, PITCH = CHUNK + 1, GENERAL_THREADS = 128;

/* Rows of `width` elements of one side, from `first` on. */
template <class T> struct Operand {
    const T *x;
    Side side;
    int first, width;
};

struct Stage {
    float *own, *other; /* chunks of [OWN] and [OTHER] rows */
    float *weight;      /* [OWN][OTHER] */
    float *sum;         /* [OWN][width] */
};

static inline size_t stage_bytes(int width) {
    return sizeof(float) * (size_t)(OWN * PITCH + OTHER * PITCH + OWN * PITCH + OWN * width);
}

DEVICE Stage stage_at(unsigned char *memory) {
    float *p = reinterpret_cast<float *>(memory);
    return {p, p + OWN * PITCH, p + (OWN + OTHER) * PITCH, p + (OWN + OTHER + OWN) * PITCH};
}

/* This thread's cells of the sums. */
DEVICE void clear_sums(const Stage &m, int width) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int c = x; c < width; c += 16)
        for (int i = 0; i < 4; i++) store(&m.sum[(y + 8 * i) * width + c], 0.0f);
}

/* Columns [c0, c0 + CHUNK) of n rows; 0 where there are none. */
template <class T, int N> DEVICE void stage_chunk(float *to, int n, const Operand<T> &a, int c0) {
    for (int k = threadIdx.x; k < n * (CHUNK / N); k += GENERAL_THREADS) {
        const int i = k / (CHUNK / N), c = k % (CHUNK / N) * N;
        float v[N] = {};
        if (a.first + i < a.side.n && c0 + c < a.width)
            load_pack<T, N>(v, &a.x[row_at(a.side, a.first + i) * a.width + c0 + c]);
#pragma unroll
        for (int e = 0; e < N; e++) store(&to[i * PITCH + c + e], v[e]);
    }
}

/* s += own other^T, one chain of fma over the columns. */
template <class T, int N>
DEVICE void multiply_rows(float (&s)[4][4], const Stage &m, const Operand<T> &own, const Operand<T> &other) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int c0 = 0; c0 < own.width; c0 += CHUNK) {
        __syncthreads();
        stage_chunk<T, N>(m.own, OWN, own, c0);
        stage_chunk<T, N>(m.other, OTHER, other, c0);
        __syncthreads();
        for (int c = 0; c < min(CHUNK, own.width - c0); c++) {
            float b[4];
#pragma unroll
            for (int j = 0; j < 4; j++) b[j] = load(&m.other[(x + 16 * j) * PITCH + c]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float v = load(&m.own[(y + 8 * i) * PITCH + c]);
#pragma unroll
                for (int j = 0; j < 4; j++) s[i][j] = fmaf(v, b[j], s[i][j]);
            }
        }
    }
}

/* sum = shrink sum + grow (weight other), rows of own by columns of other; the product is a chain of fma
 * from 0. */
template <class T, int N>
DEVICE void add_weighted(const Stage &m, const Operand<T> &other, const float (&shrink)[4],
                         const float (&grow)[4]) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int c0 = 0; c0 < other.width; c0 += CHUNK) {
        __syncthreads();
        stage_chunk<T, N>(m.other, OTHER, other, c0);
        __syncthreads();
        float t[4][4] = {};
        for (int k = 0; k < OTHER; k++) {
            float b[4];
#pragma unroll
            for (int j = 0; j < 4; j++) b[j] = load(&m.other[k * PITCH + x + 16 * j]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float w = load(&m.weight[(y + 8 * i) * PITCH + k]);
#pragma unroll
                for (int j = 0; j < 4; j++) t[i][j] = fmaf(w, b[j], t[i][j]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int c = c0 + x + 16 * j;
                if (c >= other.width) continue;
                float *sum = &m.sum[(y + 8 * i) * other.width + c];
                store(sum, fmaf(load(sum), shrink[i], t[i][j] * grow[i]));
            }
    }
}

#endif

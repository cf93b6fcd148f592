/* Rows shared among threads, for kernels that go along the last dimension of tensors.
 *
 * A row is cut into packs of N elements. Its threads, a power of two of neighbours, take the packs in turn;
 * short rows stand several in a block or in a warp. How many threads depends on the row's packs alone, and a
 * row that is not PACKED (odd length or address) is read element by element by the same threads: sums over a
 * row have one order, whatever the batch and the addresses. */
#ifndef GATETAPE_CUDA_ROW_THREADS_CUH
#define GATETAPE_CUDA_ROW_THREADS_CUH
#include "device.cuh"

enum { MOST_ROW_THREADS = 512, LEAST_BLOCK = 128 };

struct Rows {
    int64_t count, columns;
    unsigned threads; /* of one row: a power of two */
    unsigned block;   /* threads of a block: one row's, or those of several short ones */
};

/* Rows with a thread for every `each` elements, as far as a block goes. */
static inline Rows rows_shared(int64_t count, int64_t columns, int64_t each) {
    unsigned threads = 1;
    while (threads < MOST_ROW_THREADS && threads * each < columns) threads *= 2;
    return Rows{count, columns, threads, max(threads, (unsigned)LEAST_BLOCK)};
}
static inline unsigned row_blocks(Rows r) { return r.columns ? blocks_for(r.count, r.block / r.threads) : 0; }

/* The row of this thread, which may be past the last one, and the thread's number in it. */
DEVICE int64_t row_of_thread(Rows r) {
    return (int64_t)blockIdx.x * (r.block / r.threads) + threadIdx.x / r.threads;
}
DEVICE unsigned thread_of_row(Rows r) { return threadIdx.x & (r.threads - 1); }

/* Sum over the threads of each row; all of them get it. Every thread of the block must come here. */
DEVICE float row_sum(float x, Rows r) {
    SHARED(float, part, MOST_ROW_THREADS / 32);
    for (unsigned d = min(r.threads, 32u) / 2; d; d /= 2) x += __shfl_xor_sync(~0u, x, (int)d);
    if (r.threads <= 32) return x;
    __syncthreads(); /* the last call's parts have been read */
    if (threadIdx.x % 32 == 0) store(&part[threadIdx.x / 32], x);
    __syncthreads();
    const unsigned first = threadIdx.x / r.threads * (r.threads / 32);
    x = 0;
    for (unsigned w = 0; w < r.threads / 32; w++) x += load(&part[first + w]);
    return x;
}

/* ---- a pack of a row that has `left` more elements: one access, or one for each element, then zeros ---- */
template <bool PACKED, class T, int N> DEVICE Pack<T, N> read_part(const T *p, int64_t left) {
    Pack<T, N> pack;
    if constexpr (PACKED) {
        pack.word = load(&reinterpret_cast<const Pack<T, N> *>(p)->word);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) pack.element[i] = i < left ? load(&p[i]) : T{};
    }
    return pack;
}
template <class T, int N> DEVICE void unpack(float (&x)[N], Pack<T, N> pack) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = to_f32(pack.element[i]);
}
template <bool PACKED, class T, int N> DEVICE void load_part(float (&x)[N], const T *p, int64_t left) {
    unpack(x, read_part<PACKED, T, N>(p, left));
}
template <bool PACKED, class T, int N> DEVICE void store_part(T *p, const float (&x)[N], int64_t left) {
    if constexpr (PACKED) {
        store_pack<T, N>(p, x);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < left) store(&p[i], from_f32<T>(x[i]));
    }
}

#endif

/* kernels/cuda/hopper.cuh for the host: the same names, what the instructions do (hopper.cpp).
 *
 * TMA loads, TMA stores and wgmma take effect at once, at random, or as late as the waits allow, as cp.async
 * does. Faults beside the usual ones: mbarriers that are not initialised, not fenced or get too many
 * arrivals; TMA and wgmma on shared memory that was written and not fenced; wgmma with no wgmma_fence;
 * threads that leave and blocks that end while they have copies or products under way. */
#ifndef GATETAPE_EMULATED_HOPPER_H
#define GATETAPE_EMULATED_HOPPER_H
#include "ptx.h"

/* A row-major matrix of bf16 in global memory, and the rows of the box of 64 columns that one copy moves. */
struct TensorMap {
    unsigned char *base;
    int64_t rows, columns;
    unsigned box_rows;
};

namespace emulator {
void mbarrier_init(uint32_t barrier, unsigned n_arrivals, Site at);
void mbarrier_init_fence();
void mbarrier_arrive(uint32_t barrier, unsigned n_bytes, Site at); /* n_bytes more will land in this phase */
void mbarrier_wait(uint32_t barrier, uint32_t parity, Site at);
void tile_load(uint32_t to, const TensorMap &map, uint32_t barrier, int column, int row, Site at);
void tile_store(const TensorMap &map, uint32_t from, int column, int row, Site at);
void tile_stores_commit();
void tile_stores_wait(
    bool written); /* until the committed ones have been read from shared memory, or written */

/* One m64nNk16 as one thread issues it. */
struct WarpgroupProduct {
    uint64_t a, b;        /* descriptors */
    const uint32_t *left; /* not null: a is in registers, read when the product runs */
    unsigned n;
    bool n_major, accumulate; /* n_major: of b */
    float *c;
    Site at;
};
void product_fence();
void product_issue(const WarpgroupProduct &p);
void product_commit(Site at);
void product_wait(unsigned n_left, Site at);
} /* namespace emulator */

static inline cudaError_t tensor_map_new(TensorMap *map, const void *base, int64_t rows, int64_t columns,
                                         unsigned box_rows) {
    if (rows < 1 || columns < 1 || columns % 8 || (uintptr_t)base % 16 || box_rows < 1 || box_rows > 256)
        return cudaErrorInvalidValue;
    *map = {(unsigned char *)base, rows, columns, box_rows};
    return cudaSuccess;
}

DEVICE void named_barrier(unsigned id, unsigned n_threads, Site at = {}) {
    emulator::wait_named(id, n_threads, at);
}
template <int N> inline void registers_raise() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }
template <int N> inline void registers_lower() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }

DEVICE void mbarrier_init(uint32_t barrier, unsigned n_arrivals, Site at = {}) {
    emulator::mbarrier_init(barrier, n_arrivals, at);
}
DEVICE void mbarrier_init_fence() { emulator::mbarrier_init_fence(); }
DEVICE void mbarrier_arrive(uint32_t barrier, Site at = {}) { emulator::mbarrier_arrive(barrier, 0, at); }
DEVICE void mbarrier_arrive_expecting(uint32_t barrier, unsigned n_bytes, Site at = {}) {
    emulator::mbarrier_arrive(barrier, n_bytes, at);
}
DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity, Site at = {}) {
    emulator::mbarrier_wait(barrier, parity, at);
}

DEVICE void tma_load(uint32_t to, const TensorMap *map, uint32_t barrier, int column, int row, Site at = {}) {
    emulator::tile_load(to, *map, barrier, column, row, at);
}
DEVICE void tma_store(const TensorMap *map, uint32_t from, int column, int row, Site at = {}) {
    emulator::tile_store(*map, from, column, row, at);
}
DEVICE void tma_store_commit() { emulator::tile_stores_commit(); }
DEVICE void tma_store_wait_read() { emulator::tile_stores_wait(false); }
DEVICE void tma_store_wait() { emulator::tile_stores_wait(true); }
DEVICE void async_proxy_fence() { emulator::thread->n_proxy_fences++; }

DEVICE void wgmma_fence() { emulator::product_fence(); }
template <int N, int B_MAJOR>
inline void wgmma(float (&c)[N / 2], uint64_t a, uint64_t b, bool accumulate, Site at = {}) {
    emulator::product_issue({a, b, nullptr, N, B_MAJOR != 0, accumulate, c, at});
}
template <int N, int B_MAJOR>
inline void wgmma(float (&c)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate, Site at = {}) {
    emulator::product_issue({0, b, a, N, B_MAJOR != 0, accumulate, c, at});
}
DEVICE void wgmma_commit(Site at = {}) { emulator::product_commit(at); }
template <int N> inline void wgmma_wait(Site at = {}) { emulator::product_wait(N, at); }
template <int N> inline void wgmma_hold(float (&)[N]) {}
DEVICE void wgmma_hold(uint32_t &) {}
template <int K> inline void wgmma_hold(uint32_t (&)[K][4]) {}

#endif

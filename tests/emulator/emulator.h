/* CUDA on the host, as kernels see it. The sources in kernels/cuda/ are compiled by g++ against this header
 * in the place of nvcc's built-ins: one fibre per CUDA thread, a block at a time on each host thread.
 *
 * What it checks on every run: bounds (against the allocations of the emulated runtime) and alignment of
 * each access, races in shared memory between barriers, warps whose lanes meet at different places,
 * deadlocks, threads that leave while others wait. Shared memory starts as NaN. Blocks and threads run in
 * random order; asynchronous copies land at once, at random, or as late as the waits allow. A fault names
 * kernel, place, block and thread, and aborts. count.h counts what the kernels ask of memory.
 *
 * A thread that waits is not run until what it waits for has happened, so a block costs one switch of
 * fibres per wait. x86-64 only: a switch is a few instructions of assembly. */
#ifndef GATETAPE_EMULATOR_H
#define GATETAPE_EMULATOR_H
#include "count.h"
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(4) ushort2 {
    unsigned short x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

/* A source position. Default arguments of a constructor name the caller's place. */
struct Site {
    const char *file;
    int line;
    Site(const char *f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};

namespace emulator {

enum { LANES = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / LANES };
enum { SHARED_LIMIT = 232448, SHARED_BASE = 1024, STACK_BYTES = 64 << 10, NAMED_BARRIERS = 16 };
enum When { AT_ONCE, AT_RANDOM, AS_LATE_AS_ALLOWED }; /* when asynchronous copies take effect */

struct AsyncCopy {
    uint32_t to; /* shared address */
    const void *from;
    unsigned n_bytes;
    bool present; /* false: zeros */
};

/* One CUDA thread. */
struct Thread {
    void *stack_pointer;
    dim3 index;
    unsigned warp, lane;
    std::vector<std::vector<AsyncCopy>> copies; /* groups of cp.async, oldest first; the last is open */
    uint16_t n_proxy_fences;
};

/* Where the lanes of a warp meet, and what they hand each other there. */
struct Warp {
    uint32_t runnable, finished; /* masks of lanes */
    unsigned arrived;
    Site site;
    uint32_t in[LANES][8], out[LANES][8];
    uint32_t meetings; /* orders accesses inside the warp */
};

/* Who touched two bytes of shared memory last. An epoch is the time between two barriers of the block; epochs
 * are never reused, so old entries need no clearing. */
struct Touch {
    uint64_t write_epoch, read_epoch;
    uint32_t write_meetings, read_meetings;
    uint16_t writer, reader;
    bool many_readers; /* of several warps in read_epoch */
};

/* Who wrote four bytes of shared memory last, and how many proxy fences it had done by then: until the next,
 * TMA and wgmma do not see the write. */
struct GenericWrite {
    uint32_t block; /* its serial number */
    uint16_t writer, n_proxy_fences;
};

struct NamedBarrier {
    unsigned arrived;
    std::vector<Thread *> waiting;
    unsigned lowest; /* thread, which says where the barrier is counted */
    Site site;       /* of the lowest */
};

struct Counter; /* count.cpp */
struct Hopper;  /* hopper.cpp */

/* The block that this host thread runs. */
struct Block {
    const char *kernel;
    dim3 index, size, grid;
    unsigned n_threads, n_warps, n_alive;
    Thread threads[MAX_THREADS];
    Warp warps[MAX_WARPS];
    unsigned waiting_at_barrier;
    Site barrier_site;
    NamedBarrier named[NAMED_BARRIERS];
    unsigned char *shared; /* SHARED_LIMIT bytes, 1024-aligned */
    uint32_t dynamic_bytes, static_bytes;
    std::vector<std::pair<const void *, uint32_t>> statics; /* __shared__ variables: key, offset */
    std::vector<Touch> touches;
    uint64_t epoch;
    bool races_checked; /* off once a block synchronises by more than whole-block barriers */
    When when;
    std::mt19937 random;
    void *scheduler_stack_pointer;
    const std::function<void()> *body;
    char *stacks;
    Counter *counter; /* NULL: nothing is counted */
    Hopper *hopper;   /* NULL until the block uses mbarriers, TMA or wgmma */
    uint32_t serial;
    std::vector<GenericWrite> writes;
};

extern thread_local Block *block;
extern thread_local Thread *thread;

struct LaunchShape {
    const char *kernel;
    dim3 grid, size;
    size_t shared_bytes;
};
/* Runs all blocks in random order on all host threads. */
void run_grid(const LaunchShape &shape, const std::function<void()> &body);

/* Ends the program: a kernel did what a GPU forbids. */
[[noreturn]] void fault(Site at, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- memory ---- */
enum Access { READ, WRITE, ATOMIC };
/* Whether [address, address + n_bytes) lies in one allocation of the emulated device. */
bool is_allocated(uintptr_t address, size_t n_bytes);
void touch_shared(uint32_t offset, unsigned n_bytes, Access access, Site at);
/* Where a __shared__ variable lives, the same for all threads of the block. */
void *static_shared(const void *key, size_t n_bytes);
unsigned char *shared_pointer(uint32_t address, unsigned n_bytes, Site at);

/* ---- counting (count.cpp); all but the first only while block->counter ---- */
/* Whether this launch is counted; it may set how many blocks are run. */
bool count_launch_begin(const LaunchShape &shape, uint64_t n_blocks, uint64_t *n_run);
void count_launch_end();
Counter *count_block_begin();
void count_block_end();
void count_access(const void *p, unsigned n_bytes, Access access, Site at); /* of the running thread */
void count_run(const void *p, unsigned n_bytes, Access access, Site at);    /* global memory, without lanes */
void count_add(Count what, uint64_t n, Site at);
void count_meeting(unsigned warp);

inline void touch(const void *p, unsigned n_bytes, Access access, Site at) {
    uintptr_t address = (uintptr_t)p, offset = address - (uintptr_t)block->shared;
    if (address % n_bytes)
        fault(at, "access of %u bytes at an address that is not a multiple of it", n_bytes);
    if (offset < SHARED_LIMIT)
        touch_shared((uint32_t)offset, n_bytes, access, at);
    else if (!is_allocated(address, n_bytes))
        fault(at, "%s of %u bytes outside every allocation", access == READ ? "read" : "write", n_bytes);
    if (block->counter) count_access(p, n_bytes, access, at);
}

/* ---- waiting ---- */
void wait_warp(Site at, void (*finish)(Warp *warp)); /* the last lane to arrive runs finish */
void wait_block(Site at);
void wait_named(unsigned id, unsigned n_threads, Site at);
void sleep_until_woken(); /* the running thread is not run until someone wakes it */
void wake(const Thread &t);

void copy_later(const AsyncCopy &copy);
void copies_commit();
void copies_wait(unsigned n_left); /* until at most n_left groups have not landed */

/* ---- mbarriers, TMA, wgmma (hopper.cpp); only while block->hopper ---- */
bool hopper_advance();  /* something under way happens; false: nothing is */
void hopper_leave();    /* the running thread ends */
void hopper_finish();   /* the block ends */
void hopper_describe(); /* on stderr, for a deadlock */

} /* namespace emulator */

#define threadIdx (emulator::thread->index)
#define blockIdx (emulator::block->index)
#define blockDim (emulator::block->size)
#define gridDim (emulator::block->grid)

/* ---- what CUDA has built in ---- */
inline void __syncthreads(Site at = {}) { emulator::wait_block(at); }
inline void __syncwarp(unsigned = ~0u, Site at = {}) {
    emulator::wait_warp(at, [](emulator::Warp *) {});
}

namespace emulator {
inline uint32_t *lane_in() { return block->warps[thread->warp].in[thread->lane]; }
inline uint32_t *lane_out() { return block->warps[thread->warp].out[thread->lane]; }

/* A shuffle: lane l gets the value of the lane that it names. */
template <class T> T shuffle(T value, unsigned from, Site at) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    uint32_t *in = lane_in();
    memcpy(in, &value, sizeof value);
    in[2] = from;
    wait_warp(at, [](Warp *w) {
        for (int l = 0; l < LANES; l++) memcpy(w->out[l], w->in[w->in[l][2] % LANES], 8);
    });
    memcpy(&value, lane_out(), sizeof value);
    return value;
}
} /* namespace emulator */

template <class T> T __shfl_sync(unsigned, T v, int from, int = 32, Site at = {}) {
    return emulator::shuffle(v, (unsigned)from, at);
}
template <class T> T __shfl_xor_sync(unsigned, T v, int mask, int = 32, Site at = {}) {
    return emulator::shuffle(v, emulator::thread->lane ^ (unsigned)mask, at);
}
template <class T> T __shfl_down_sync(unsigned, T v, unsigned by, int = 32, Site at = {}) {
    unsigned lane = emulator::thread->lane;
    return emulator::shuffle(v, lane + by < 32 ? lane + by : lane, at);
}
template <class T> T __shfl_up_sync(unsigned, T v, unsigned by, int = 32, Site at = {}) {
    unsigned lane = emulator::thread->lane;
    return emulator::shuffle(v, lane >= by ? lane - by : lane, at);
}
inline unsigned __ballot_sync(unsigned, bool predicate, Site at = {}) {
    emulator::lane_in()[0] = predicate;
    emulator::wait_warp(at, [](emulator::Warp *w) {
        uint32_t mask = 0;
        for (int l = 0; l < emulator::LANES; l++) mask |= w->in[l][0] << l;
        for (int l = 0; l < emulator::LANES; l++) w->out[l][0] = mask;
    });
    return emulator::lane_out()[0];
}
inline bool __any_sync(unsigned m, bool p, Site at = {}) { return __ballot_sync(m, p, at) != 0; }
inline bool __all_sync(unsigned m, bool p, Site at = {}) { return __ballot_sync(m, p, at) == ~0u; }
inline int __syncthreads_or(int predicate, Site at = {}) {
    static thread_local int any;
    if (emulator::block->waiting_at_barrier == 0) any = 0;
    any |= predicate != 0;
    __syncthreads(at);
    int result = any;
    __syncthreads(at);
    return result;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline float __int_as_float(int i) {
    float f;
    memcpy(&f, &i, 4);
    return f;
}
inline float __uint_as_float(unsigned u) { return __int_as_float((int)u); }
inline unsigned __float_as_uint(float f) {
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
inline int __float_as_int(float f) { return (int)__float_as_uint(f); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* Only integers: sums of floats in any order would not be reproducible. */
template <class T> T atomicAdd(T *p, T v, Site at = {}) {
    static_assert(!std::is_floating_point<T>::value, "float atomics are not reproducible");
    emulator::touch(p, sizeof *p, emulator::ATOMIC, at);
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
template <class T> T atomicMax(T *p, T v, Site at = {}) {
    emulator::touch(p, sizeof *p, emulator::ATOMIC, at);
    T old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
    while (old < v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return old;
}
template <class T> T atomicMin(T *p, T v, Site at = {}) {
    emulator::touch(p, sizeof *p, emulator::ATOMIC, at);
    T old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
    while (v < old && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return old;
}

template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }

#endif

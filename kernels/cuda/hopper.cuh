/* What sm_90a adds to ptx.cuh: mbarriers, TMA, wgmma, for nvcc; tests/emulator/hopper.h is its host twin.
 *
 * Other architectures compile the same kernels, with traps in the place of these instructions: a launcher
 * chooses them for compute capability 9.0 alone. Order that the hardware demands and the emulator checks: a
 * barrier is fenced after its init; shared memory that threads wrote is fenced (async_proxy_fence, by the
 * writers, before the block's barrier) ahead of tma_store and wgmma; wgmma_fence comes before the products of
 * a group; accumulators are used after the wait, and the wait of one thread is that of its warpgroup. */
#ifndef GATETAPE_CUDA_HOPPER_CUH
#define GATETAPE_CUDA_HOPPER_CUH
#include "device.cuh"

/* How operand b of wgmma lies in shared memory: rows of k (a weight [n,k]) or rows of n (a weight [k,n]). */
enum { K_MAJOR = 0, N_MAJOR = 1 };
/* 128 bytes, 64 elements of bf16, is a row of a tile; tiles begin at multiples of 1024 bytes. */
constexpr int TILE_ROW_BYTES = 128, TILE_ROW = 64;

/* Where TMA and wgmma keep what would stand at this address of a tile without the swizzle. */
DEVICE uint32_t swizzled(uint32_t address) { return address ^ (address >> 3 & 0x70); }

/* An operand of wgmma, swizzled. stride_bytes: from 8 rows to the next 8; leading_bytes: from 64 columns to
 * the next 64 (N_MAJOR). The next 16 of k are 32 bytes on (K_MAJOR), or 16 rows. */
DEVICE uint64_t wgmma_operand(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes) {
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(leading_bytes >> 4) << 16 |
           (uint64_t)(stride_bytes >> 4) << 32 | (uint64_t)1 << 62;
}

#ifdef GATETAPE_EMULATED
#include "hopper.h"
#else
#include <cudaTypedefs.h>

typedef CUtensorMap TensorMap;

/* The map of a row-major bf16 matrix, and the box of it that one copy moves: up to 256 rows of 64 columns.
 * Base a multiple of 16 bytes, columns of 8. A kernel takes it as const __grid_constant__ TensorMap. */
static inline cudaError_t tensor_map_new(TensorMap *map, const void *base, int64_t rows, int64_t columns,
                                         unsigned box_rows) {
    void *entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    if (error || found != cudaDriverEntryPointSuccess) return error ? error : cudaErrorNotSupported;
    const cuuint64_t size[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, pitch[1] = {(cuuint64_t)columns * 2};
    const cuuint32_t box[2] = {TILE_ROW, box_rows}, step[2] = {1, 1};
    CUresult result = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry)(
        map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void *>(base), size, pitch, box, step,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define HOPPER_ASM(...) __trap()
#else
#define HOPPER_ASM(...) asm volatile(__VA_ARGS__)
#endif

/* ---- warps of a block that go their own ways ---- */
/* The barrier `id`, 1 to 15 (0 is __syncthreads), of so many threads. */
DEVICE void named_barrier(unsigned id, unsigned n_threads, Site = {}) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}
/* Registers a thread from now on, by all warps of a warpgroup; what some give up others may take. Needs
 * __launch_bounds__(threads, 1), or ptxas leaves it out. */
template <int N> DEVICE void registers_raise() { HOPPER_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void registers_lower() { HOPPER_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

/* ---- mbarriers: 8 bytes of shared memory; a phase ends when its arrivals and its bytes have come ---- */
DEVICE void mbarrier_init(uint32_t barrier, unsigned n_arrivals, Site = {}) {
    HOPPER_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(n_arrivals) : "memory");
}
DEVICE void mbarrier_init_fence() { HOPPER_ASM("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_arrive(uint32_t barrier, Site = {}) {
    HOPPER_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/* Arrives, and n_bytes more will land in this phase; a box counts in full where it hangs over the edge. */
DEVICE void mbarrier_arrive_expecting(uint32_t barrier, unsigned n_bytes, Site = {}) {
    HOPPER_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(n_bytes)
               : "memory");
}
/* Until the phase of this parity has ended: 0 for the first; a fresh barrier lets 1 pass. */
DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity, Site = {}) {
    uint32_t ended = 0;
    do {
        HOPPER_ASM("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                   "selp.u32 %0, 1, 0, p;\n}"
                   : "=r"(ended)
                   : "r"(barrier), "r"(parity)
                   : "memory");
    } while (!ended);
}

/* ---- TMA: one thread moves a box ---- */
/* Zeros come from outside the matrix. */
DEVICE void tma_load(uint32_t to, const TensorMap *map, uint32_t barrier, int column, int row, Site = {}) {
    HOPPER_ASM("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
               "l"(map), "r"(barrier), "r"(column), "r"(row)
               : "memory");
}
/* What lies outside the matrix is not written. */
DEVICE void tma_store(const TensorMap *map, uint32_t from, int column, int row, Site = {}) {
    HOPPER_ASM("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(from), "r"(column), "r"(row)
               : "memory");
}
DEVICE void tma_store_commit() { HOPPER_ASM("cp.async.bulk.commit_group;" ::: "memory"); }
/* Until this thread's committed stores have read shared memory; until they have been written. */
DEVICE void tma_store_wait_read() { HOPPER_ASM("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
DEVICE void tma_store_wait() { HOPPER_ASM("cp.async.bulk.wait_group 0;" ::: "memory"); }
/* What this thread wrote to shared memory is there for TMA and wgmma. */
DEVICE void async_proxy_fence() { HOPPER_ASM("fence.proxy.async.shared::cta;" ::: "memory"); }

/* ---- wgmma: a warpgroup's product ---- */
DEVICE void wgmma_fence() { HOPPER_ASM("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit(Site = {}) { HOPPER_ASM("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Until at most N groups are under way. */
template <int N> DEVICE void wgmma_wait(Site = {}) {
    HOPPER_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* Keeps the compiler from moving accumulators over this point; around each stretch from fence to wait. */
template <int N> DEVICE void wgmma_hold(float (&c)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}
/* The same for a number: what follows from it is not computed ahead and kept. */
DEVICE void wgmma_hold(uint32_t &x) { asm volatile("" : "+r"(x)::"memory"); }
/* The same for a left operand. */
template <int K> DEVICE void wgmma_hold(uint32_t (&a)[K][4]) {
#pragma unroll
    for (int i = 0; i < 4 * K; i++) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

#define WGMMA_C8(i)                                                                                          \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]),              \
        "+f"(c[i + 6]), "+f"(c[i + 7])
#define WGMMA_C32 WGMMA_C8(0), WGMMA_C8(8), WGMMA_C8(16), WGMMA_C8(24)
#define WGMMA_C64                                                                                            \
    WGMMA_C8(0), WGMMA_C8(8), WGMMA_C8(16), WGMMA_C8(24), WGMMA_C8(32), WGMMA_C8(40), WGMMA_C8(48),          \
        WGMMA_C8(56)
#define WGMMA_C128                                                                                           \
    WGMMA_C64, WGMMA_C8(64), WGMMA_C8(72), WGMMA_C8(80), WGMMA_C8(88), WGMMA_C8(96), WGMMA_C8(104),          \
        WGMMA_C8(112), WGMMA_C8(120)
#define WGMMA_REGISTERS_32                                                                                   \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
    "%28,%29,%30,%31"
#define WGMMA_REGISTERS_64                                                                                   \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
    "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,"   \
    "%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_REGISTERS_128                                                                                  \
    WGMMA_REGISTERS_64                                                                                       \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,"  \
    "%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,"    \
    "%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
/* The numbers of the operands that follow the accumulators: a, b, whether to accumulate, the major of b. */
#define WGMMA_ASM(n, registers, a_at, b_at, accumulate_at, major_at, ...)                                    \
    HOPPER_ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %" #accumulate_at ", 0;\n"                                  \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" registers "}, %" #a_at           \
               ", %" #b_at ", p, 1, 1, 0, %" #major_at ";\n}"                                                \
               : __VA_ARGS__                                                                                 \
               : "l"(a), "l"(b), "r"((int)accumulate), "n"(B_MAJOR))

/* The same with a in four registers. */
#define WGMMA_LEFT_ASM(n, registers, a0_at, a1_at, a2_at, a3_at, b_at, accumulate_at, major_at, ...)         \
    HOPPER_ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %" #accumulate_at ", 0;\n"                                  \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" registers "}, {%" #a0_at         \
               ", %" #a1_at ", %" #a2_at ", %" #a3_at "}, %" #b_at ", p, 1, 1, %" #major_at ";\n}"           \
               : __VA_ARGS__                                                                                 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(B_MAJOR))

/* c = a b, or c += a b: a [64,16] with rows of k, b [16,N]. Thread t of the warpgroup holds of c the columns
 * 8 j + 2 (t % 4) and the next, of the rows r = 16 (t / 32) + t % 32 / 4 and r + 8, as c[4j .. 4j+3]. */
template <int N, int B_MAJOR>
DEVICE void wgmma(float (&c)[N / 2], uint64_t a, uint64_t b, bool accumulate, Site = {}) {
    static_assert(N == 64 || N == 128 || N == 256, "wgmma of 64 x 64, 64 x 128 or 64 x 256");
    if constexpr (N == 64)
        WGMMA_ASM(64, WGMMA_REGISTERS_32, 32, 33, 34, 35, WGMMA_C32);
    else if constexpr (N == 128)
        WGMMA_ASM(128, WGMMA_REGISTERS_64, 64, 65, 66, 67, WGMMA_C64);
    else
        WGMMA_ASM(256, WGMMA_REGISTERS_128, 128, 129, 130, 131, WGMMA_C128);
}

/* The same with a in registers, a warp's 16 rows as mma_bf16 has them; not to be changed before the wait. */
template <int N, int B_MAJOR>
DEVICE void wgmma(float (&c)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate, Site = {}) {
    static_assert(N == 64 || N == 128, "wgmma of 64 x 64 or 64 x 128");
    if constexpr (N == 64)
        WGMMA_LEFT_ASM(64, WGMMA_REGISTERS_32, 32, 33, 34, 35, 36, 37, 38, WGMMA_C32);
    else
        WGMMA_LEFT_ASM(128, WGMMA_REGISTERS_64, 64, 65, 66, 67, 68, 69, 70, WGMMA_C64);
}

#endif
#endif

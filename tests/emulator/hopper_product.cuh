/* c = a b^T (K_MAJOR: b [n,k]) or a b (N_MAJOR: b [k,n]) in bf16 by TMA, mbarriers and wgmma: the least
 * kernel that uses all of kernels/cuda/hopper.cuh, to test it and its emulation.
 *
 * A block computes a tile of 64 x N. Warpgroup 0 fetches, one thread of it: 64 of k at a time, in a ring of
 * stages; warpgroup 1 multiplies. Stage s is handed over by the mbarriers full[s] (bytes have landed) and
 * empty[s] (the products that read it are done). FAULT plants one of the bugs of this protocol, for the
 * emulator to catch. */
#ifndef GATETAPE_EMULATOR_HOPPER_PRODUCT_CUH
#define GATETAPE_EMULATOR_HOPPER_PRODUCT_CUH
#include "kernels/cuda/hopper.cuh"

enum ProductFault {
    FAULT_NONE,
    FAULT_NO_INIT_FENCE,
    FAULT_NO_WAIT_EMPTY,
    FAULT_WRONG_PARITY_EMPTY,
    FAULT_FEW_BYTES,
    FAULT_NO_WAIT_FULL,
    FAULT_WRONG_PARITY_FULL,
    FAULT_NO_WGMMA_FENCE,
    FAULT_NO_WGMMA_WAIT,
    FAULT_EARLY_RELEASE,
    FAULT_NO_RELEASE,
    FAULT_NO_SWIZZLE,
    FAULT_NO_PROXY_FENCE,
    FAULT_NO_BARRIER,
    FAULT_NO_STORE_COMMIT,
    FAULT_NO_STORE_WAIT
};

constexpr int PRODUCT_ROWS = 64, PRODUCT_STAGES = 3, PRODUCT_THREADS = 256, WARPGROUP_THREADS = 128;
constexpr int BOX_BYTES = 64 * TILE_ROW_BYTES; /* 64 rows of 64 */

/* Shared memory: the stages (a, then b), c, the mbarriers. */
template <int N> struct ProductLayout {
    static constexpr int A_BYTES = PRODUCT_ROWS * TILE_ROW_BYTES, STAGE_BYTES = A_BYTES + N * TILE_ROW_BYTES,
                         C_AT = PRODUCT_STAGES * STAGE_BYTES, FULL_AT = C_AT + N / TILE_ROW * BOX_BYTES,
                         EMPTY_AT = FULL_AT + 8 * PRODUCT_STAGES, BYTES = EMPTY_AT + 8 * PRODUCT_STAGES;
};

/* Stage and parity of the step-th step. */
struct ProductStep {
    uint32_t stage, parity;
};
DEVICE ProductStep product_step(int step) {
    return {(uint32_t)step % PRODUCT_STAGES, (uint32_t)step / PRODUCT_STAGES & 1};
}

template <int N, int B_MAJOR, int FAULT>
DEVICE void product_fetch(const TensorMap *a, const TensorMap *b, uint32_t shared, int n_steps) {
    typedef ProductLayout<N> Layout;
    const int row = blockIdx.y * PRODUCT_ROWS, column = blockIdx.x * N;
    for (int step = 0; step < n_steps; step++) {
        const ProductStep at = product_step(step);
        const uint32_t a_tile = shared + at.stage * Layout::STAGE_BYTES, b_tile = a_tile + Layout::A_BYTES;
        const uint32_t full = shared + Layout::FULL_AT + 8 * at.stage, empty = full + 8 * PRODUCT_STAGES;
        if (FAULT != FAULT_NO_WAIT_EMPTY)
            mbarrier_wait(empty, at.parity ^ (FAULT != FAULT_WRONG_PARITY_EMPTY));
        mbarrier_arrive_expecting(full, FAULT == FAULT_FEW_BYTES ? Layout::A_BYTES : Layout::STAGE_BYTES);
        tma_load(a_tile, a, full, step * TILE_ROW, row);
        if (B_MAJOR == K_MAJOR)
            tma_load(b_tile, b, full, step * TILE_ROW, column);
        else
            for (int j = 0; j < N / TILE_ROW; j++)
                tma_load(b_tile + j * BOX_BYTES, b, full, column + j * TILE_ROW, step * TILE_ROW);
    }
}

/* The products of one stage: four of 16 of k. */
template <int N, int B_MAJOR> DEVICE void product_multiply(float (&c)[N / 2], uint32_t stage, bool first) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint32_t b = stage + ProductLayout<N>::A_BYTES;
        wgmma<N, B_MAJOR>(c, wgmma_operand(stage + k * 32, 16, 1024),
                          B_MAJOR == K_MAJOR ? wgmma_operand(b + k * 32, 16, 1024)
                                             : wgmma_operand(b + k * 2048, BOX_BYTES, 1024),
                          !first || k > 0);
    }
}

/* Through shared memory, so that TMA writes whole rows and clips what lies outside. */
template <int N, int FAULT>
DEVICE void product_write(const TensorMap *map, unsigned char *tile, const float (&c)[N / 2]) {
    const unsigned t = threadIdx.x % WARPGROUP_THREADS, row = t / 32 * 16 + t % 32 / 4;
    const uint32_t base = shared_address(tile);
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t at =
                j / 8 * BOX_BYTES + (row + 8 * half) * TILE_ROW_BYTES + j % 8 * 16 + t % 4 * 4;
            const uint32_t place = FAULT == FAULT_NO_SWIZZLE ? at : swizzled(base + at) - base;
            store((uint32_t *)(tile + place), pack_bf16(c[4 * j + 2 * half], c[4 * j + 2 * half + 1]));
        }
    if (FAULT != FAULT_NO_PROXY_FENCE) async_proxy_fence();
    if (FAULT != FAULT_NO_BARRIER) named_barrier(1, WARPGROUP_THREADS);
    if (t != 0) return;
    for (int j = 0; j < N / TILE_ROW; j++)
        tma_store(map, base + j * BOX_BYTES, blockIdx.x * N + j * TILE_ROW, blockIdx.y * PRODUCT_ROWS);
    if (FAULT != FAULT_NO_STORE_COMMIT) tma_store_commit();
    if (FAULT != FAULT_NO_STORE_WAIT) tma_store_wait();
}

template <int N, int B_MAJOR, int FAULT>
static __global__ void __launch_bounds__(PRODUCT_THREADS, 1)
    hopper_product(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                   const __grid_constant__ TensorMap c, int n_steps) {
    typedef ProductLayout<N> Layout;
    DYNAMIC_SHARED(tiles);
    const uint32_t shared = shared_address(tiles), full = shared + Layout::FULL_AT,
                   empty = shared + Layout::EMPTY_AT;
    if (threadIdx.x == 0) {
        for (int s = 0; s < PRODUCT_STAGES; s++) {
            mbarrier_init(full + 8 * s, 1);
            mbarrier_init(empty + 8 * s, 1);
        }
        if (FAULT != FAULT_NO_INIT_FENCE) mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP_THREADS) {
        registers_lower<40>();
        if (threadIdx.x == 0) product_fetch<N, B_MAJOR, FAULT>(&a, &b, shared, n_steps);
        return;
    }
    registers_raise<232>();
    float sum[N / 2];
    for (int step = 0; step < n_steps; step++) {
        const ProductStep at = product_step(step);
        const uint32_t release = empty + 8 * at.stage;
        const bool releases = threadIdx.x == WARPGROUP_THREADS && FAULT != FAULT_NO_RELEASE;
        if (FAULT != FAULT_NO_WAIT_FULL)
            mbarrier_wait(full + 8 * at.stage, at.parity ^ (FAULT == FAULT_WRONG_PARITY_FULL));
        wgmma_hold(sum);
        if (FAULT != FAULT_NO_WGMMA_FENCE) wgmma_fence();
        product_multiply<N, B_MAJOR>(sum, shared + at.stage * Layout::STAGE_BYTES, step == 0);
        wgmma_commit();
        wgmma_hold(sum);
        if (FAULT == FAULT_EARLY_RELEASE && releases) mbarrier_arrive(release);
        if (FAULT != FAULT_NO_WGMMA_WAIT) wgmma_wait<0>();
        if (FAULT != FAULT_EARLY_RELEASE && releases) mbarrier_arrive(release);
    }
    product_write<N, FAULT>(&c, tiles + Layout::C_AT, sum);
}

/* All of c [m,n]: a [m,k] and b in global memory, m, n and k of any size that tensor maps allow. */
template <int N, int B_MAJOR, int FAULT>
static cudaError_t hopper_product_start(cudaStream_t stream, void *c, const void *a, const void *b, int64_t m,
                                        int64_t n, int64_t k) {
    TensorMap a_map, b_map, c_map;
    cudaError_t error = tensor_map_new(&a_map, a, m, k, PRODUCT_ROWS);
    if (!error && B_MAJOR == K_MAJOR) error = tensor_map_new(&b_map, b, n, k, N);
    if (!error && B_MAJOR == N_MAJOR) error = tensor_map_new(&b_map, b, k, n, TILE_ROW);
    if (!error) error = tensor_map_new(&c_map, c, m, n, PRODUCT_ROWS);
    if (error) return error;
    const dim3 grid((unsigned)((n + N - 1) / N), (unsigned)((m + PRODUCT_ROWS - 1) / PRODUCT_ROWS));
    return start_kernel(stream, KernelShape{"hopper_product", grid, PRODUCT_THREADS, ProductLayout<N>::BYTES},
                        hopper_product<N, B_MAJOR, FAULT>, a_map, b_map, c_map,
                        (int)((k + TILE_ROW - 1) / TILE_ROW));
}

#endif

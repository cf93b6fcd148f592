/* The product of hopper_product.cuh for nvcc: its registers are checked with those of the kernels, and on a
 * Hopper GPU its results can be set beside the emulator's. */
#include "hopper_product.cuh"

extern "C" int hopper_product_run(void *stream, int tile, int b_major, void *c, const void *a, const void *b,
                                  const int64_t *m_n_k);

/* c [m,n] of device memory; tile 128 or 256. 0, or the cudaError_t. */
extern "C" int hopper_product_run(void *stream, int tile, int b_major, void *c, const void *a, const void *b,
                                  const int64_t *m_n_k) {
    auto *start = tile == 128          ? b_major == K_MAJOR ? hopper_product_start<128, K_MAJOR, FAULT_NONE>
                                                            : hopper_product_start<128, N_MAJOR, FAULT_NONE>
                           : b_major == K_MAJOR ? hopper_product_start<256, K_MAJOR, FAULT_NONE>
                                       : hopper_product_start<256, N_MAJOR, FAULT_NONE>;
    return start((cudaStream_t)stream, c, a, b, m_n_k[0], m_n_k[1], m_n_k[2]);
}

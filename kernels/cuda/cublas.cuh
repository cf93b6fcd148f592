/* The few calls of cuBLAS that dense products can be handed to. The library is found at run time: the program
 * needs it only where a job asks for it. */
#ifndef GATETAPE_CUDA_CUBLAS_CUH
#define GATETAPE_CUDA_CUBLAS_CUH
#include <cuda_runtime.h>

/* Column-major: c [m,n] = alpha op(a) op(b) + beta c. Every function returns 0 or cuBLAS's status. */
struct Cublas {
    int (*create)(void **handle);
    int (*set_stream)(void *handle, cudaStream_t stream);
    int (*set_workspace)(void *handle, void *memory, size_t n_bytes);
    int (*gemm)(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha,
                const void *a, int a_type, int lda, const void *b, int b_type, int ldb, const void *beta,
                void *c, int c_type, int ldc, int compute_type, int algorithm);
};
enum { CUBLAS_NO_TRANSPOSE = 0, CUBLAS_TRANSPOSE = 1 };
enum { CUBLAS_REAL_F32 = 0, CUBLAS_REAL_BF16 = 14, CUBLAS_COMPUTE_F32 = 68, CUBLAS_ALGORITHM_DEFAULT = -1 };

/* cublas.cu, or the emulator's. False: not found. */
bool cublas_open(Cublas *cublas);

#endif

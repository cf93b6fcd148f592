/* cublasGemmEx for the emulated device: bf16 by bf16, sums in f32 in order of k. */
#include "kernels/cuda/cublas.cuh"
#include <cstdint>
#include <cstring>

namespace {
cudaStream_t stream;

float value(const void *p, int64_t i) {
    const uint32_t bits = (uint32_t) static_cast<const uint16_t *>(p)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

int create(void **handle) {
    static char one;
    *handle = &one;
    return 0;
}
int set_stream(void *, cudaStream_t s) {
    stream = s;
    return 0;
}
int set_workspace(void *, void *, size_t) { return 0; }

/* Element (i, j) of c. */
void multiply_one(const void *a, bool turned, int lda, const void *b, int ldb, float beta, void *c,
                  int c_type, int64_t ldc, int k, int64_t i, int64_t j) {
    float sum = 0;
    for (int64_t l = 0; l < k; l++)
        sum += value(a, turned ? i * lda + l : l * lda + i) * value(b, j * ldb + l);
    float *as_f32 = static_cast<float *>(c) + j * ldc + i;
    uint16_t *as_bf16 = static_cast<uint16_t *>(c) + j * ldc + i;
    if (beta != 0) sum += beta * (c_type == CUBLAS_REAL_F32 ? *as_f32 : value(c, j * ldc + i));
    uint32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if (c_type == CUBLAS_REAL_F32)
        *as_f32 = sum;
    else
        *as_bf16 = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

int gemm(void *, int transpose_a, int, int m, int n, int k, const void *, const void *a, int, int lda,
         const void *b, int, int ldb, const void *beta, void *c, int c_type, int ldc, int, int) {
    const float onto = *static_cast<const float *>(beta);
    return emulator::enqueue_host(stream, [=] {
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < m; i++)
                multiply_one(a, transpose_a == CUBLAS_TRANSPOSE, lda, b, ldb, onto, c, c_type, ldc, k, i, j);
    });
}
} /* namespace */

bool cublas_open(Cublas *cublas) {
    *cublas = {create, set_stream, set_workspace, gemm};
    return true;
}

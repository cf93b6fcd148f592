/* Dense products by cuBLAS: "dense": "cublas" in a job, and the ceiling of the bench. Their bits are cuBLAS's
 * own and may depend on the batch; experts and what cuBLAS cannot do in one call stay with our kernels. */
#include "cublas.cuh"
#include "gemm.cuh"
#ifndef GATETAPE_EMULATED
#include <dlfcn.h>

bool cublas_open(Cublas *cublas) {
    void *library = nullptr;
    for (const char *name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"})
        if (!library) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library) return false;
    *(void **)&cublas->create = dlsym(library, "cublasCreate_v2");
    *(void **)&cublas->set_stream = dlsym(library, "cublasSetStream_v2");
    *(void **)&cublas->set_workspace = dlsym(library, "cublasSetWorkspace_v2");
    *(void **)&cublas->gemm = dlsym(library, "cublasGemmEx");
    return cublas->create && cublas->set_stream && cublas->set_workspace && cublas->gemm;
}
#endif

static Cublas cublas;
static void *handle; /* NULL: our own kernels */

bool cublas_switch(bool on, const char **why) {
    static void *opened;
    if (on && !opened && (!cublas_open(&cublas) || cublas.create(&opened))) {
        opened = nullptr;
        if (why) *why = "expected cuBLAS 12 or 13 (libcublas.so) where the loader looks: got none";
        return false;
    }
    handle = on ? opened : nullptr;
    return true;
}

bool cublas_product(const Call &call, const Product &p) {
    const bool adds = p.residual.data != nullptr;
    if (!handle || p.offsets || p.bias.data || p.halves || p.gated.data ||
        (adds && p.residual.data != p.y.data) || !product_fits_mma(p) || call.queue->failed_op)
        return false;
    const float one = 1, beta = adds ? 1 : 0;
    const int type = p.y.dtype == DTYPE_F32 ? CUBLAS_REAL_F32 : CUBLAS_REAL_BF16;
    const int w_row = p.back ? p.columns : p.depth;
    int status = cublas.set_stream(handle, queue_stream(call.queue));
    if (!status) status = cublas.set_workspace(handle, queue_workspace(call.queue), WORKSPACE_BYTES);
    if (!status)
        status = cublas.gemm(handle, p.back ? CUBLAS_NO_TRANSPOSE : CUBLAS_TRANSPOSE, CUBLAS_NO_TRANSPOSE,
                             p.columns, p.rows, p.depth, &one, p.w.data, CUBLAS_REAL_BF16, w_row, p.x.data,
                             CUBLAS_REAL_BF16, p.depth, &beta, p.y.data, type, p.columns, CUBLAS_COMPUTE_F32,
                             CUBLAS_ALGORITHM_DEFAULT);
    launch_finish(call, "cublasGemmEx", status ? cudaErrorUnknown : cudaGetLastError());
    return true;
}

/* The seat of the GPU backend in a build without CUDA: there is no such device, and whoever asks is told so.
 * A build with nvcc puts kernels/cuda/ in its place. */
#include "device.h"

const Device *cuda_device(const char **why) {
    if (why) *why = "expected a GPU: this program was built without CUDA";
    return NULL;
}

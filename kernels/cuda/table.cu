/* The table of the GPU's ops. */
#include "device.cuh"

extern "C" const Ops cuda_ops;
#define X(op) cuda_##op,
const Ops cuda_ops = {OPS(X)};

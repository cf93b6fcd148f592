/* The table of the GPU's ops. */
#include "device.cuh"

/* until every op is written */
#define X(op) extern "C" __attribute__((weak)) op##_fn cuda_##op;
OPS(X)
#undef X

extern "C" const Ops cuda_ops;
#define X(op) cuda_##op,
const Ops cuda_ops = {OPS(X)};

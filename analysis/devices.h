/* Which device and which compute type a job or a command line asks for. */
#ifndef GATETAPE_DEVICES_H
#define GATETAPE_DEVICES_H
#include "../engine/error.h"
#include "../kernels/device.h"
#include "options.h"

/* auto: the GPU when there is one, else the CPU. `place` stands before messages ("device"). ERROR_UNAVAILABLE
 * when the machine has none of that kind. */
bool devices_pick(DeviceChoice choice, const char *place, const Device **device, Error *error);
/* auto: f32 on the CPU, bf16 on a GPU. */
DType devices_compute(ComputeChoice choice, const Device *device);
/* Whose dense products this process computes with (DENSE_OWN, DENSE_CUBLAS). ERROR_UNAVAILABLE: no such
 * library. */
bool devices_pick_dense(int choice, const Device *device, Error *error);

/* The same by the names that the options have. */
bool devices_pick_named(const char *name, const Device **device, Error *error);
bool devices_compute_named(const char *name, const Device *device, DType *compute, Error *error);

#endif

/* Devices by choice, and choices by name. */
#include "devices.h"
#include <stdlib.h>
#include <string.h>

bool devices_pick(DeviceChoice choice, const char *place, const Device **device, Error *error) {
    const char *why;
    *device = choice == DEVICE_CPU ? NULL : cuda_device(&why);
    if (*device) return true;
    if (choice == DEVICE_CUDA) return error_set(error, ERROR_UNAVAILABLE, "%s: %s", place, why);
    *device = cpu_device();
    const char *isa = getenv("GATETAPE_ISA");
    return *device || error_set(error, ERROR_UNAVAILABLE,
                                "GATETAPE_ISA: expected generic, avx2, avx512, avx512bf16 or amx, as this "
                                "processor has it: got \"%s\"",
                                isa ? isa : "");
}

DType devices_compute(ComputeChoice choice, const Device *device) {
    if (choice == COMPUTE_AUTO) return device == cuda_device(NULL) ? DTYPE_BF16 : DTYPE_F32;
    return choice == COMPUTE_F32 ? DTYPE_F32 : DTYPE_BF16;
}

/* Of the job's option of that name; -1: none. */
static int find_choice(const char *option, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (!strcmp(option_choice(option, SCOPE_JOB, i), name)) return i;
    return -1;
}

bool devices_pick_named(const char *name, const Device **device, Error *error) {
    const int choice = find_choice("device", DEVICE_CUDA + 1, name);
    if (choice < 0)
        return error_set(error, ERROR_BAD_INPUT, "--device: expected auto, cpu or cuda: got \"%s\"", name);
    return devices_pick((DeviceChoice)choice, "--device", device, error);
}

bool devices_compute_named(const char *name, const Device *device, DType *compute, Error *error) {
    const int choice = find_choice("compute", COMPUTE_BF16 + 1, name);
    if (choice < 0)
        return error_set(error, ERROR_BAD_INPUT, "--compute: expected auto, f32 or bf16: got \"%s\"", name);
    *compute = devices_compute((ComputeChoice)choice, device);
    return true;
}

bool devices_pick_dense(int choice, const Device *device, Error *error) {
    const char *why = "expected a GPU for it";
    if (device->dense_by_library && device->dense_by_library(choice == DENSE_CUBLAS, &why)) return true;
    return choice == DENSE_OWN || error_set(error, ERROR_UNAVAILABLE, "dense: cublas: %s", why);
}

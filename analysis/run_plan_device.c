/* The device that a plan is for: the machine's, or that of a file, which the machine need not have. */
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/model_config.h"
#include "../engine/text.h"
#include "devices.h"
#include "run_plan_parts.h"

bool plan_read_limits(const char *name, RankDevice *limits, Error *error) {
    char *file = NULL, *path = NULL;
    if (io_exists(name)) return rank_device_read(name, limits, error);
    Text known = {0};
    text_format(&known, "devices/%s.json", io_last_name(name));
    if (!known.failed) file = io_join(model_config_folder(), known.bytes);
    path = file && io_exists(file) ? file : NULL;
    bool ok =
        path ? rank_device_read(path, limits, error)
             : error_set(error, ERROR_BAD_INPUT, "device_file: expected h100, h200 or a file: got %s", name);
    text_free(&known);
    mem_free(file);
    return ok;
}

bool run_plan_job(const Job *job, const char *out, FILE *to, Error *error) {
    const ComputeChoice compute = (ComputeChoice)job->options.compute;
    RankDevice limits;
    PlanDevice on = {.compute = compute == COMPUTE_F32 ? DTYPE_F32 : DTYPE_BF16};
    if (job->options.device_file[0]) {
        on.limits = &limits;
        return plan_read_limits(job->options.device_file, &limits, error) &&
               run_plan(job, out, &on, to, error);
    }
    if (!devices_pick((DeviceChoice)job->options.device, "device", &on.device, error) ||
        !devices_pick_dense(job->options.dense, on.device, error))
        return false;
    if (job->options.ranks > 1 && on.device == cuda_device(NULL))
        return error_set(
            error, ERROR_BAD_INPUT,
            "device_file: expected the file of the GPU's limits for a plan on %lld ranks: got none",
            (long long)job->options.ranks);
    on.compute = devices_compute(compute, on.device);
    return run_plan(job, out, &on, to, error);
}

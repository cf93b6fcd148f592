/* Where a run of one rank has the weights of a model's experts. */
#ifndef GATETAPE_RESIDENCY_H
#define GATETAPE_RESIDENCY_H
#include "../engine/rank_plan.h"
#include "../kernels/device.h"
#include "job.h"

/* Layers with experts to stream: all of them or none, as the job's residency says; auto: none where the
 * steps of the model fit into what the device has free, else as few as must be. ERROR_UNAVAILABLE for peers,
 * which one rank has not, and where nothing is enough. A device that computes in the host's memory streams
 * nothing. */
bool residency_choose(const Job *job, const ModelOptions *model, const Device *device, DType compute,
                      int64_t *n_streamed, Error *error);

#endif

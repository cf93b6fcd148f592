/* Where the ranks of a run have the weights of a model's experts: what the job says, or, for auto, what is
 * predicted fastest of what fits all steps of the model. Nothing that is measured depends on it. */
#ifndef GATETAPE_RESIDENCY_H
#define GATETAPE_RESIDENCY_H
#include "../engine/model.h"
#include "../engine/rank_plan.h"
#include "job.h"

/* On n_ranks of a device, for full passes of the steps. Where the device computes in the memory of its
 * machine, whose processes share its links, auto has the whole model on each rank as long as that fits. The
 * plan is that of the step that takes the most memory; whether it fits is left to the caller.
 * ERROR_UNAVAILABLE for peers, which one rank has not. */
bool residency_plan(const Job *job, const ModelOptions *model, DType compute, const RankDevice *device,
                    int64_t n_ranks, RankPlan *plan, Error *error);
/* Processors and memory of a machine as each of per_node ranks has them, the rates not measured. */
RankDevice residency_machine(int64_t per_node);

/* The same for a run on the ranks of comm, with what their device has free, for each of the job's models: the
 * caller frees spreads [n_models]. Collective with several ranks, and the same answer on all.
 * ERROR_UNAVAILABLE also where auto finds nothing that fits, where a device that computes in the host's
 * memory is to stream, and where the experts are to be spread over ranks that are not as many on each
 * machine, next to each other. */
bool residency_choose(const Job *job, const Device *device, DType compute, Comm *comm, Spread **spreads,
                      Error *error);
/* As a training wants it, which works where its tokens are: of experts that are spread the weights travel. */
Spread residency_of_training(const Spread *spread);
bool residency_is_same(const Spread *a, const Spread *b);
/* For people: what an open model's residency is, as this rank has it. "" where there is nothing to say. */
void residency_describe(const Model *model, int n_ranks, char to[200]);

#endif

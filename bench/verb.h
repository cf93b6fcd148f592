/* The verb `bench`: measures ops, models and counters, or writes a random checkpoint. */
#ifndef GATETAPE_BENCH_VERB_H
#define GATETAPE_BENCH_VERB_H
#include "../analysis/arguments.h"
#include "../kernels/device.h"

extern const Flag bench_flags[];
bool bench_verb(const Arguments *arguments, const Device *device, DType compute, Error *error);

#endif

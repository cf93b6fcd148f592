/* From counts to bounds and to a time that no device can beat. The least possible comes from what an op
 * reads, writes and multiplies (the cost table), never from the kernel. For C and C++. */
#ifndef GATETAPE_EMULATOR_ROOFLINE_H
#define GATETAPE_EMULATOR_ROOFLINE_H
#include "count.h"

#ifdef __cplusplus
namespace emulator {
#endif

/* What the mathematics cannot do without: every input read once, every output written once. */
typedef struct {
    double bytes, multiply_adds;
} Least;

/* A device's limits; each figure has its source in configs/devices/. */
typedef struct {
    double n_sms, clock_hz;
    double dram_bytes_per_s, l2_bytes_per_s, shared_bytes_per_clock; /* the last for each SM */
    double tensor_multiply_adds_per_s;
} DeviceLimits;

/* Seconds, were the work spread evenly over all SMs. dram: L2 keeps every sector that it has seen. */
typedef struct {
    double dram, l2, shared, tensor;
} Roofline;

static inline double count_ratio(double is, double least) {
    return least > 0 ? is / least : is > 0 ? 1e9 : 1;
}

/* 1: every request uses its sectors in full. */
static inline double sectors_per_packed(const Tally *t) {
    return count_ratio((double)(t->of[COUNT_READ] + t->of[COUNT_WRITTEN]), (double)t->of[COUNT_PACKED]);
}
/* 1: no bank conflicts. */
static inline double wavefronts_per_free(const Tally *t) {
    return count_ratio((double)t->of[COUNT_WAVEFRONTS], (double)t->of[COUNT_WAVEFRONTS_FREE]);
}
/* 1: nothing but the op's inputs and outputs comes from DRAM. */
static inline double touched_per_least(const LaunchCounts *l, Least least) {
    return count_ratio((double)((l->touched_read + l->touched_written) * SECTOR_BYTES), least.bytes);
}
/* 1: no tensor-core work is spent on padding. */
static inline double useful_share(const LaunchCounts *l, Least least) {
    return 1 / count_ratio((double)l->total.of[COUNT_MULTIPLY_ADDS], least.multiply_adds);
}

static inline Roofline launch_roofline(const LaunchCounts *l, const DeviceLimits *d) {
    const Tally *t = &l->total;
    Roofline r;
    r.dram = (double)((l->touched_read + l->touched_written) * SECTOR_BYTES) / d->dram_bytes_per_s;
    r.l2 = (double)((t->of[COUNT_READ] + t->of[COUNT_WRITTEN]) * SECTOR_BYTES) / d->l2_bytes_per_s;
    r.shared = (double)(t->of[COUNT_WAVEFRONTS] * WAVEFRONT_BYTES) /
               (d->shared_bytes_per_clock * d->n_sms * d->clock_hz);
    r.tensor = (double)t->of[COUNT_MULTIPLY_ADDS] / d->tensor_multiply_adds_per_s;
    return r;
}
static inline double roofline_seconds(Roofline r) {
    const double memory = r.dram > r.l2 ? r.dram : r.l2, core = r.shared > r.tensor ? r.shared : r.tensor;
    return memory > core ? memory : core;
}

#ifdef __cplusplus
} /* namespace emulator */
#endif
#endif

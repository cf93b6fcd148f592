/* The cost device: a program run on it computes nothing and learns how much memory and work it needs. Its
 * queues count (Queue.cost), and the calling thread's allocations are counted here. The addresses it hands
 * out are reserved but not readable: a read or write through one stops the program where the mistake is. */
#ifndef GATETAPE_COST_H
#define GATETAPE_COST_H
#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    size_t held_bytes; /* allocated and not yet freed */
    size_t peak_bytes; /* the most that was held at once */
    int64_t n_allocations;
} CostMemory;

/* Of the calling thread, since its last cost_memory_reset. */
CostMemory cost_memory(void);
/* The peak starts again at what is held now, the count of allocations at 0. */
void cost_memory_reset(void);

/* The ops that only count. */
extern const Ops cost_ops;

#ifdef __cplusplus
}
#endif
#endif

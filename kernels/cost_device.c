/* Memory and queues of the cost device (cost.h). An allocation is a reservation of addresses without
 * memory behind it, so a plan for a machine of a terabyte can be made on a laptop. The list of live
 * reservations knows their sizes. */
#include "cost.h"
#include "check.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef struct Reservation Reservation;
struct Reservation {
    void *address;
    size_t n_bytes;
    Reservation *next;
};

static _Thread_local Reservation *live;
static _Thread_local CostMemory memory;

CostMemory cost_memory(void) { return memory; }

void cost_memory_reset(void) {
    memory.peak_bytes = memory.held_bytes;
    memory.n_allocations = 0;
}

static void *cost_alloc(size_t n_bytes) {
    Reservation *r = malloc(sizeof *r);
    if (!r) return NULL;
    size_t reserved = n_bytes ? n_bytes : 1;
    void *p = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        free(r);
        return NULL;
    }
    *r = (Reservation){p, n_bytes, live};
    live = r;
    memory.held_bytes += n_bytes;
    memory.n_allocations++;
    if (memory.held_bytes > memory.peak_bytes) memory.peak_bytes = memory.held_bytes;
    return p;
}

static void cost_free(void *p) {
    if (!p) return;
    Reservation **at = &live;
    while (*at && (*at)->address != p) at = &(*at)->next;
    check(*at, "%p was not allocated by this thread's cost device", p);
    Reservation *r = *at;
    *at = r->next;
    memory.held_bytes -= r->n_bytes;
    munmap(p, r->n_bytes ? r->n_bytes : 1);
    free(r);
}

static Queue *cost_queue_new(void) { return calloc(1, sizeof(Queue)); }
static void cost_queue_free(Queue *q) { free(q); }
static void cost_zero(Queue *q, Tensor t) { q->cost.bytes += (double)tensor_bytes(t); }

static void cost_copy_in(Queue *q, Tensor to, const void *from) {
    (void)from;
    q->cost.bytes += (double)tensor_bytes(to);
}

/* Nothing was computed: the host sees zeros. */
static void cost_copy_out(Queue *q, void *to, Tensor from) {
    memset(to, 0, tensor_bytes(from));
    q->cost.bytes += (double)tensor_bytes(from);
}

static bool cost_sync(Queue *q) { return !q->failed_op; }

const Device cost_device = {
    .name = "cost",
    .ops = &cost_ops,
    .computes = false,
    .queue_new = cost_queue_new,
    .queue_free = cost_queue_free,
    .alloc = cost_alloc,
    .free = cost_free,
    .zero = cost_zero,
    .copy_in = cost_copy_in,
    .copy_out = cost_copy_out,
    .sync = cost_sync,
};

/* Memory and order of work on one backend. A Device is a table of functions; a Queue is where its ops run, in
 * order.
 *
 * A Queue keeps the first failure (which op, what shapes, why); later ops on it do nothing. Whoever needs a
 * result calls device->sync, which waits and returns whether all went well. On the CPU ops run when they are
 * called. The cost device hands out addresses that must not be read: it exists to learn how much memory and
 * work a program needs. */
#ifndef GATETAPE_DEVICE_H
#define GATETAPE_DEVICE_H
#include "ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a table of ops has done so far; only the cost table fills it. */
typedef struct {
    double flops; /* 2 per multiply-add of matrix products and attention, 1 per other arithmetic operation */
    double gemm_flops; /* the part of it that dense and grouped matrix products do */
    double bytes;      /* operands read and results written once each, caches not considered */
    int64_t n_calls;
} Cost;

struct Queue {
    const char *failed_op; /* NULL: none failed */
    char failure[200];     /* what failed and why, for people */
    Cost cost;
    void *stream; /* the backend's own */
};

typedef struct Graph Graph; /* a recorded piece of work, the backend's own */
typedef struct Mark Mark;   /* a place in the order of a queue's work, the backend's own */
typedef void kernel_look(void *context, const char *kernel, int64_t n_launches);

/* For a transport between devices, which works on the queue's own stream. */
typedef struct {
    void *(*native)(Queue *q); /* the stream itself, as the vendor's libraries take it */
    void (*copy)(Queue *q, void *to, const void *from, size_t n_bytes); /* within the device */
    int64_t *(*words)(int64_t n); /* zeroed host memory that the device can write; NULL: there is none */
    void (*store)(Queue *q, int64_t *word, int64_t value); /* one of `words`, when all before it is done */
    bool (*idle)(Queue *q); /* without waiting: all is done, or an op has failed */
} DeviceStreams;

/* A device with memory of its own, and copies to it beside the work of a queue, by a queue of their own:
 * memory of the host that the device reads itself, and marks that one queue sets and another waits for,
 * while the host goes on. A mark is waited for where it was last set. */
typedef struct {
    bool (*memory)(size_t *n_free, size_t *n_total); /* in bytes; false: it does not say */
    Queue *(*queue_new)(void); /* without what ops need; freed as others are. NULL when out of memory */
    void *(*host_alloc)(size_t n_bytes); /* NULL when out of memory */
    void (*host_free)(void *p);
    void (*copy)(Queue *q, Tensor to, const void *from); /* from: of host_alloc, unchanged until it is done */
    Mark *(*mark_new)(void);
    void (*mark_free)(Mark *mark);
    void (*mark_set)(Queue *q, Mark *mark);
    void (*mark_wait)(Queue *q, Mark *mark);
} DeviceCopies;

typedef struct Device Device;
struct Device {
    const char *name; /* "generic", "avx2", "avx512", "avx512bf16", "amx", "f64", "cost", "cuda" */
    const Ops *ops;
    bool computes;             /* false: memory must not be read (cost) */
    Queue *(*queue_new)(void); /* NULL when out of memory */
    void (*queue_free)(Queue *q);
    void *(*alloc)(size_t n_bytes); /* 256-byte aligned, contents undefined; NULL when out of memory */
    void (*free)(void *p);
    void (*zero)(Queue *q, Tensor t);
    /* tensor_bytes(to) bytes; from: the host's memory, or (large tensors) the device's own */
    void (*copy_in)(Queue *q, Tensor to, const void *from);
    void (*copy_out)(Queue *q, void *to, Tensor from); /* device -> host; valid after sync */
    bool (*sync)(Queue *q); /* waits; false when an op has failed (q->failure says which) */
    /* Work between begin and end is recorded, not done; each launch does it, reading and writing the same
     * host and device memory again. NULL: this backend records nothing. end returns NULL when an op has
     * failed. */
    void (*graph_begin)(Queue *q);
    Graph *(*graph_end)(Queue *q);
    void (*graph_launch)(Queue *q, Graph *graph);
    void (*graph_free)(Graph *graph);
    /* Tells how often each kernel has been launched by this process; NULL: the backend has no kernels. */
    void (*each_kernel)(kernel_look *look, void *context);
    /* Dense products by the vendor's library from now on, or by our own kernels again; false and *why where
     * there is none. NULL: this backend knows no library. */
    bool (*dense_by_library)(bool on, const char **why);
    const DeviceStreams *streams; /* NULL: no transport between devices works on its queues */
    const DeviceCopies *copies;   /* NULL: this backend computes in the host's memory */
};

extern const Device cost_device;

/* The CPU with the best instruction set this processor has, or the one that the environment variable
 * GATETAPE_ISA names (generic, avx2, avx512, avx512bf16, amx). NULL when it names an unknown or missing one.
 * All give the same bits, but for products of bf16 by bf16 on amx, which has bits of its own. */
const Device *cpu_device(void);
/* By name, for tests: generic, avx2, avx512, avx512bf16, amx; NULL when the processor lacks it. "f64" is the
 * table in double. */
const Device *cpu_device_named(const char *isa);
/* The GPU backend. NULL when there is none; *why (if not NULL) then says what was expected and what came. */
const Device *cuda_device(const char **why);

/* Remember the first failure of a queue. */
void queue_fail(Queue *q, const char *op, const char *format, ...) __attribute__((format(printf, 3, 4)));

#ifdef __cplusplus
}
#endif
#endif

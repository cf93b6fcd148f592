/* comm: what ranks say to each other. Collectives on Tensors, exact by construction, written once over
 * point-to-point transfers.
 *
 * Three rules make results bit-equal for any number of ranks:
 *   1. Floats are moved, never added, by the transport. The only float sum is comm_tree_sum, whose order is
 *      a binary tree over global leaf numbers (prompts), whichever rank holds which leaf.
 *   2. Integers are summed freely: that is exact in any order.
 *   3. Every rank makes the same calls. A rank with nothing to say passes a tensor of 0 rows.
 *
 * Each call is numbered, hashed and told to the watchdog (watchdog.h) before it starts and after it ends. A
 * transport that fails ends the job: collectives return when they have succeeded, or not at all. With one
 * rank the same lines run and nothing is sent. */
#ifndef GATETAPE_COMM_H
#define GATETAPE_COMM_H
#include "../kernels/device.h"
#include "comm_mpi.h"
#include "error.h"
#include "watchdog.h"
#include <stdint.h>

enum { COMM_MAX_RANKS = 256 };

typedef struct Comm Comm;

/* What a transport gives. queue NULL: host memory, done when the call returns. Otherwise memory of that
 * queue's device, in order with its work. */
typedef struct {
    const char *name; /* "self", "mpi", "nccl" */
    void (*transfer)(Comm *comm, Queue *queue, const Transfer *transfers, int n);
    /* the collective has ended, in order on the queue */
    void (*mark)(Comm *comm, Queue *queue, int64_t number);
    /* until all on the queue is done; a transport's failure ends the job instead of the wait */
    void (*wait)(Comm *comm, Queue *queue);
    void (*close)(Comm *comm);
} CommBackend;

struct Comm {
    int rank, size;
    int local_rank; /* among the ranks of this machine */
    int per_node;   /* ranks of a machine, next to each other, the last may have fewer; 0: it is not so */
    const CommBackend *backend;
    const char *kind;      /* of CommOptions */
    const Device *device;  /* of the queues that calls name; NULL until comm_use_device */
    int64_t number;        /* of the collective entered last */
    int tag;               /* a hash of all calls so far: ranks out of step exchange nothing wrong */
    uint64_t n_bytes_sent; /* to other ranks, counted by the transport */
    const CommMpi *mpi;    /* NULL with one rank */
    void *state;           /* the backend's own */
};

/* ---- start and end ---- */
typedef struct {
    /* "auto": what the launcher asks for, and NCCL for what travels between devices; "self"; "mpi": between
     * devices too, through the host; "nccl": as auto, opened in any case */
    const char *kind;
    double deadline_s; /* see watchdog_start */
} CommOptions;
/* Collective. ERROR_UNAVAILABLE when a plug-in or library is missing, with what to install. */
bool comm_open(const CommOptions *options, Comm *comm, Error *error);
/* Collective, on all ranks alike: queues that calls name are the device's from now on. `travels`: its memory
 * will be sent, so a transport for it is opened where it has memory of its own. Called again when more is
 * wanted. ERROR_UNAVAILABLE when NCCL is wanted and missing, with what to install. */
bool comm_use_device(Comm *comm, const Device *device, bool travels, Error *error);
/* One rank that nobody launched. */
Comm comm_alone(const Device *device);
/* Collective: every normal way out of a run. Nobody leaves before everybody came. */
void comm_close(Comm *comm);
/* This rank cannot go on: tells every rank, ends the job with the error's code. Does not return. */
_Noreturn void comm_fail(Comm *comm, const Error *error);
/* All ranks agree on success: false everywhere when `ok` was false anywhere. *error is then everywhere
 * that of the lowest failed rank, which it names where not all failed alike; an interruption yields to any
 * other error. After each stage that can fail on one rank alone. */
bool comm_agree(Comm *comm, bool ok, Error *error);
/* Names what comes next in the messages, the same on every rank: "%s" alone or with numbers. */
#define comm_phase watchdog_phase

/* ---- collectives ---- */
/* out [size * N, ...] = the ranks' in [N, ...] in order; all have one shape, which is checked. */
void comm_all_gather(Comm *comm, Queue *queue, Tensor out, Tensor in);
/* in: rows (first dimension) sorted by destination, in_rows[r] of them for rank r; out: rows sorted by
 * source, out_rows[r] from rank r. Rows keep their order. */
void comm_all_to_all(Comm *comm, Queue *queue, Tensor out, const int64_t *out_rows, Tensor in,
                     const int64_t *in_rows);
/* Rank 0 gets all rows in the order of ranks: rows[r] of rank r, the same array on every rank; in has
 * rows[rank] rows; out is read on rank 0 alone. Host memory. */
void comm_gather_rows(Comm *comm, Tensor out, Tensor in, const int64_t *rows);
/* Each group of consecutive ranks gathers its own rows: out [sum of rows, ...] = the in of the n ranks from
 * `first` on, in order, rows[i] of them of rank first + i; the same n counts on each rank of the group, to
 * which this rank belongs. Every rank makes the call, and nothing leaves a group. */
void comm_gather_group(Comm *comm, Queue *queue, Tensor out, Tensor in, const int64_t *rows, int first,
                       int n);
/* out_counts[r * n ...] = what rank r had in in_counts[me * n ...]: before comm_all_to_all. Host. */
void comm_exchange_counts(Comm *comm, int64_t *out_counts, const int64_t *in_counts, int64_t n);
/* x[i] = sum or maximum over ranks. Host. */
void comm_sum_i64(Comm *comm, int64_t *x, int64_t n);
void comm_max_i64(Comm *comm, int64_t *x, int64_t n);
/* out [...] f32 = tree sum over leaves 0..n_leaves-1, of out's shape each. leaf_rank[i], the same on every
 * rank, says who holds leaf i; leaves [mine, ...] are this rank's in rising order and are overwritten;
 * scratch is one leaf. A node over [low, high) splits at low + the largest power of two below high - low,
 * as scores_sum does. The result is on every rank. n_leaves >= 1. */
void comm_tree_sum(Comm *comm, Queue *queue, Tensor out, Tensor leaves, const int32_t *leaf_rank,
                   int64_t n_leaves, Tensor scratch);
void comm_barrier(Comm *comm);
/* Waits for the device where a collective may be among the work: before sync, and before reading
 * results. */
void comm_wait(Comm *comm, Queue *queue);

/* ---- for comm_*.c ---- */
/* Comm.per_node, where node[r] is the lowest rank of rank r's machine. */
int comm_per_node(const int *node, int size);
extern const CommBackend comm_self_backend;
/* Opens the plug-in and starts MPI: rank, size, local_rank, the watchdog, and transfers between hosts. */
bool comm_mpi_open(Comm *comm, double deadline_s, Error *error);
/* Through MPI; what every backend of several ranks does with queue NULL. Memory that is the device's own is
 * copied out, sent and copied in, and all before it on the queue is waited for. */
void comm_mpi_transfer(Comm *comm, Queue *queue, const Transfer *transfers, int n);
void comm_mpi_close(Comm *comm);
/* Collective, after comm_mpi_open: the library, the communicator, marks that the device writes. */
bool comm_nccl_open(Comm *comm, Error *error);

#endif

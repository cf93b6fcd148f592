/* Transfers between devices: one group of sends and receives a collective, nothing else of NCCL.
 *
 * The library is opened at run time, and what is called of it is declared here as nccl.h has had it since
 * 2.14 (tests/ranks compares where that header is). The communicator is non-blocking, so that no call can
 * hold this thread for ever: each is followed by asking until it is no longer in progress. The way out of
 * a failure is the watchdog's _exit, not ncclCommAbort, which can hang itself when ranks do not abort
 * together (nccl issues 549, 863, 1013, 1777). MPI carries the id at start-up, and host memory ever
 * after. */
#include "../kernels/check.h"
#include "comm.h"
#include "comm_nccl.h"
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static Nccl nccl;

/* ---- the library ---- */
static const struct {
    const char *name;
    size_t offset; /* in Nccl */
} symbols[] = {{"ncclGetUniqueId", offsetof(Nccl, get_unique_id)},
               {"ncclCommInitRankConfig", offsetof(Nccl, init_rank_config)},
               {"ncclCommGetAsyncError", offsetof(Nccl, get_async_error)},
               {"ncclGetErrorString", offsetof(Nccl, get_error_string)},
               {"ncclGetLastError", offsetof(Nccl, get_last_error)},
               {"ncclGroupStart", offsetof(Nccl, group_start)},
               {"ncclGroupEnd", offsetof(Nccl, group_end)},
               {"ncclSend", offsetof(Nccl, send)},
               {"ncclRecv", offsetof(Nccl, receive)},
               {"ncclCommFinalize", offsetof(Nccl, finalize)},
               {"ncclCommDestroy", offsetof(Nccl, destroy)}};

static bool load_library(Error *error) {
    const char *named = getenv("GATETAPE_NCCL"), *name = named && *named ? named : "libnccl.so.2";
    void *library = dlopen(name, RTLD_NOW);
    if (!library)
        return error_set(
            error, ERROR_UNAVAILABLE,
            "ranks: expected NCCL 2.14 or later (%.200s; install libnccl2 of NVIDIA's packages, or name its "
            "file in GATETAPE_NCCL, or let --comm mpi send through the host): got %.300s",
            name, dlerror());
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (!symbol)
            return error_set(error, ERROR_UNAVAILABLE,
                             "%.200s: expected NCCL 2.14 or later: got one without %s", name,
                             symbols[i].name);
        memcpy((char *)&nccl + symbols[i].offset, &symbol, sizeof symbol);
    }
    return true;
}

/* ---- calls ---- */
static void sleep_briefly(void) { nanosleep(&(struct timespec){0, 20000}, NULL); }

static _Noreturn void fail(Comm *comm, int result, const char *call) {
    Error error = {0};
    error_set(&error, ERROR_FAILED, "collective #%lld: %s: %s: %.300s", (long long)comm->number, call,
              nccl.get_error_string(result), comm->state ? nccl.get_last_error(comm->state) : "");
    comm_fail(comm, &error);
}

/* Waits until the call has been taken, not until its work is done. */
static void settle(Comm *comm, int result, const char *call) {
    while (result == NCCL_IN_PROGRESS) {
        int state = NCCL_SUCCESS;
        result = nccl.get_async_error(comm->state, &state);
        if (result == NCCL_SUCCESS) result = state;
        if (result == NCCL_IN_PROGRESS) sleep_briefly();
    }
    if (result != NCCL_SUCCESS) fail(comm, result, call);
}

static void transfer(Comm *comm, Queue *queue, const Transfer *transfers, int n) {
    if (!queue) {
        comm_mpi_transfer(comm, queue, transfers, n);
        return;
    }
    if (n == 0) return;
    void *stream = comm->device->streams->native(queue);
    settle(comm, nccl.group_start(), "ncclGroupStart");
    for (int i = 0; i < n; i++) {
        const Transfer *t = &transfers[i];
        int result = t->is_send ? nccl.send(t->data, t->n_bytes, NCCL_UINT8, t->peer, comm->state, stream)
                                : nccl.receive(t->data, t->n_bytes, NCCL_UINT8, t->peer, comm->state, stream);
        /* in progress: the group's end waits */
        if (result != NCCL_SUCCESS && result != NCCL_IN_PROGRESS)
            fail(comm, result, t->is_send ? "ncclSend" : "ncclRecv");
    }
    settle(comm, nccl.group_end(), "ncclGroupEnd");
}

static void mark(Comm *comm, Queue *queue, int64_t number) {
    if (queue)
        comm->device->streams->store(queue, &watchdog_words()[number % WATCHDOG_WORDS], number);
    else
        watchdog_leave(number);
}

/* A wait that sees NCCL's errors: the stream of a failed communicator never ends. */
static void wait_for_queue(Comm *comm, Queue *queue) {
    while (queue && !comm->device->streams->idle(queue)) {
        int state = NCCL_SUCCESS, result = nccl.get_async_error(comm->state, &state);
        if (result != NCCL_SUCCESS || (state != NCCL_SUCCESS && state != NCCL_IN_PROGRESS))
            fail(comm, result != NCCL_SUCCESS ? result : state, "while waiting");
        sleep_briefly();
    }
}

static void close_nccl(Comm *comm) {
    alarm(30); /* nobody watches any more */
    settle(comm, nccl.finalize(comm->state), "ncclCommFinalize");
    nccl.destroy(comm->state);
    comm_mpi_close(comm);
}

static const CommBackend backend = {"nccl", transfer, mark, wait_for_queue, close_nccl};

bool comm_nccl_open(Comm *comm, Error *error) {
    check(comm->device && comm->device->streams, "device %s has no streams", comm->device->name);
    NcclId id[COMM_MAX_RANKS] = {{{0}}}, mine = {{0}};
    int64_t *words = comm->device->streams->words(WATCHDOG_WORDS);
    bool ok = words || error_out_of_memory(error, "marks of collectives", WATCHDOG_WORDS * sizeof *words);
    ok = ok && load_library(error);
    if (ok && comm->rank == 0 && nccl.get_unique_id(&mine) != NCCL_SUCCESS)
        ok = error_set(error, ERROR_FAILED, "ncclGetUniqueId: expected an id: got \"%.300s\"",
                       nccl.get_last_error(NULL));
    if (!comm_agree(comm, ok, error)) return false;
    watchdog_use_words(words);
    comm_all_gather(comm, NULL, tensor_matrix(id, DTYPE_I64, comm->size, sizeof mine / sizeof(int64_t)),
                    tensor_matrix(&mine, DTYPE_I64, 1, sizeof mine / sizeof(int64_t)));
    NcclConfig config = {sizeof config, 0xcafebeef, NCCL_VERSION_2_14, 0};
    uint32_t signature;
    comm->number = watchdog_enter("ncclCommInitRankConfig", 0, &signature);
    int result = nccl.init_rank_config(&comm->state, comm->size, id[0], comm->rank, &config);
    settle(comm, result, "ncclCommInitRankConfig");
    watchdog_leave(comm->number);
    comm->backend = &backend;
    return true;
}

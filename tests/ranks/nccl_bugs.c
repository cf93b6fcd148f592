/* One planted communication bug a run, and what the stand-in must say of it.
 *   mpirun -n 4 nccl_bugs CASE   code 0: the expected outcome was seen on every rank that must see it */
#include <mpi.h>
#if __has_include(<nccl.h>) && __has_include(<cuda_runtime.h>)
#include <nccl.h>
#else
#include "nccl_names.h"
#endif
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { N = 300000 }; /* bytes: several chunks */
static int rank, size;
static ncclComm_t comm, comm2;
static cudaStream_t s, s2;
static char *in, *out;
static float part, g[2]; /* a rank's own and what comes of it: read until the stream is done */
static const char *name;
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Waits for both streams, at most `seconds`. The error, ncclSuccess when all is done, ncclInProgress when
 * it hangs silently. */
static ncclResult_t wait_for(double seconds) {
    for (double end = now() + seconds; now() < end; usleep(1000)) {
        ncclResult_t e = ncclSuccess, e2 = ncclSuccess;
        ncclCommGetAsyncError(comm, &e);
        if (comm2) ncclCommGetAsyncError(comm2, &e2);
        if (e > ncclSuccess && e != ncclInProgress) return e;
        if (e2 > ncclSuccess && e2 != ncclInProgress) return e2;
        if (cudaStreamQuery(s) == cudaSuccess && cudaStreamQuery(s2) == cudaSuccess) return ncclSuccess;
    }
    return ncclInProgress;
}
static void all_to_all(size_t bytes, int grouped, int wrong_rank, size_t wrong) {
    if (grouped) ncclGroupStart();
    for (int r = 0; r < size; r++) {
        ncclSend(in + (size_t)r * N, rank == wrong_rank && r == 0 ? wrong : bytes, ncclUint8, r, comm, s);
        ncclRecv(out + (size_t)r * N, bytes, ncclUint8, r, comm, s);
    }
    if (grouped) ncclGroupEnd();
}
static int same(const void *p, int value, size_t n) {
    const unsigned char *x = p;
    for (size_t i = 0; i < n; i++)
        if (x[i] != (unsigned char)value) return 0;
    return 1;
}

typedef struct {
    const char *name;
    ncclResult_t want;
    int ranks_that_must;
    const char *says;
} Case; /* ranks: bit mask */
static const Case cases[] = {
    {"good", ncclSuccess, 15, ""},            /* control: nothing is wrong, data checked */
    {"good_late", ncclSuccess, 15, ""},       /* control with late=30: data checked after the wait */
    {"read_too_early", ncclSuccess, 15, ""},  /* late=50: reading before the wait must see poison, not data
                                                 */
    {"write_too_early", ncclSuccess, 15, ""}, /* late=50: overwriting a send buffer before the wait must
                                                 show */
    {"missing_event", ncclSuccess, 15,
     ""}, /* late=50: a copy on another stream without an event must see poison */
    {"send_count", ncclInvalidUsage, 1, "calls Send/Recv"},
    {"send_type", ncclInvalidUsage, 1, "of type"},
    {"no_group", ncclInternalError, 0, "deadlock"},
    {"missing_recv", ncclInProgress, 0, ""}, /* outcome differs by rank: see below */
    {"collective_order", ncclInvalidUsage, 0,
     "AllGather"}, /* rank 1: AllGather then AllReduce; others the reverse */
    {"collective_count", ncclInvalidUsage, 0, "AllReduce"},
    {"reduce_op", ncclInvalidUsage, 0, "op"},
    {"comm_order", ncclInternalError, 0, "deadlock"}, /* two communicators in opposite orders on one stream
                                                         */
    {"p2p_order", ncclInternalError, 0, "deadlock"},  /* ring of ungrouped send-then-receive */
    {"peer_left", ncclRemoteError, 0, "has left"},
    {"peer_dead", ncclRemoteError, 0, "is dead"},
    {"peer_dead_silent", ncclInProgress, 7, ""}, /* silent: as over NVLink, nobody says anything */
    {"peer_stopped", ncclInProgress, 7, ""},
    {"async_error", ncclSystemError, 4, "asked for"},
    {"before_ready", ncclInvalidUsage, 7, "before the communicator was ready"},
    {"group_left_open", ncclInvalidUsage, 15, "never ended"},
    {"end_without_start", ncclInvalidUsage, 15, ""},
    {"float_order", ncclSuccess, 15,
     ""}, /* two float AllReduces of the same data must not promise the same bits */
    {"abort", ncclSuccess, 15, ""},
    {"gather_type", ncclInvalidUsage, 0, "AllGather"},
    {"skipped", ncclInvalidUsage, 0, "AllReduce"}, /* rank 2 leaves one call out */
    {"root_differs", ncclInProgress, 5, ""},       /* rank 2 names another root: it and the root hang */
    {"wrong_peer", ncclInProgress, 3, ""},         /* rank 0 waits for 2, rank 1 sends: both hang */
};

#define IS(x) (!strcmp(name, x))

/* What NCCL_STANDIN is for the case. */
static const char *faults_of_case(void) {
    return IS("good_late")                                                        ? "late=30"
           : IS("read_too_early") || IS("write_too_early") || IS("missing_event") ? "late=50"
           : IS("peer_dead")                                                      ? "kill=3@2"
           : IS("peer_dead_silent")                                               ? "kill=3@2,silent"
           : IS("peer_stopped")                                                   ? "stop=3@2"
           : IS("async_error")                                                    ? "async=2@2"
                                                                                  : "seed=1";
}

/* Does what the case says, behind a first exchange that is always well. What the call itself said; *good
 * becomes 0 when something that can be seen before the wait is not as it must be. */
static ncclResult_t plant(int *good_so_far) {
    ncclResult_t ret = ncclSuccess;
    int good = *good_so_far, next = (rank + 1) % size, before = (rank + size - 1) % size;
    part = rank == 0 ? 1e8f : rank == 3 ? -1e8f : 3.0f;
    if (IS("good") || IS("good_late") || IS("read_too_early") || IS("write_too_early") ||
        IS("missing_event") || IS("peer_dead") || IS("peer_dead_silent") || IS("peer_stopped") ||
        IS("async_error") || IS("abort"))
        all_to_all(N, 1, -1, 0);
    if (IS("read_too_early")) good &= !same(out + (size_t)next * N, 16 * next + rank, N);
    if (IS("write_too_early")) memset(in, 0xEE, (size_t)size * N);
    if (IS("missing_event"))
        cudaMemcpyAsync(g, out + (size_t)next * N, 4, cudaMemcpyDefault, s2), usleep(20000),
            good &= (unsigned char)((char *)g)[0] != 16 * next + rank;
    if (IS("send_count")) all_to_all(N, 1, 1, N - 100);
    if (IS("send_type")) {
        if (rank == 1) ncclSend(in, 100, ncclInt8, 0, comm, s);
        if (rank == 0) ncclRecv(out, 100, ncclUint8, 1, comm, s);
    }
    if (IS("no_group")) all_to_all(64, 0, -1, 0);
    if (IS("missing_recv")) {
        if (rank == 1) ncclSend(in, 64, ncclUint8, 0, comm, s);
    }
    if (IS("collective_order")) {
        if (rank == 1) {
            ncclAllGather(in, out, 64, ncclUint8, comm, s);
            ncclAllReduce(&part, g, 1, ncclFloat32, ncclSum, comm, s);
        } else {
            ncclAllReduce(&part, g, 1, ncclFloat32, ncclSum, comm, s);
            ncclAllGather(in, out, 64, ncclUint8, comm, s);
        }
    }
    if (IS("collective_count")) ncclAllReduce(in, out, rank == 2 ? 60 : 64, ncclInt32, ncclSum, comm, s);
    if (IS("reduce_op")) ncclAllReduce(in, out, 64, ncclInt32, rank == 2 ? ncclMax : ncclSum, comm, s);
    if (IS("gather_type")) ncclAllGather(in, out, 64, rank == 2 ? ncclInt8 : ncclUint8, comm, s);
    if (IS("skipped") && rank != 2) ncclAllReduce(in, out, 64, ncclInt32, ncclSum, comm, s);
    if (IS("skipped")) ncclAllReduce(in, out, 32, ncclInt32, ncclSum, comm, s);
    if (IS("root_differs")) ncclBroadcast(in, out, 64, ncclUint8, rank == 2, comm, s);
    if (IS("wrong_peer") && rank == 0) ncclRecv(out, 64, ncclUint8, 2, comm, s);
    if (IS("wrong_peer") && rank == 1) ncclSend(in, 64, ncclUint8, 0, comm, s);
    if (IS("comm_order")) {
        ncclAllGather(in, out, 64, ncclUint8, rank ? comm : comm2, s);
        ncclAllGather(in, out, 64, ncclUint8, rank ? comm2 : comm, s);
    }
    if (IS("p2p_order")) {
        ncclSend(in, 64, ncclUint8, next, comm, s);
        ncclRecv(out, 64, ncclUint8, before, comm, s);
    }
    if (IS("peer_left")) {
        if (rank == 3)
            ncclCommFinalize(comm);
        else
            ncclAllGather(in, out, 64, ncclUint8, comm, s);
    }
    if (IS("group_left_open")) {
        ncclGroupStart();
        ncclSend(in, 4, ncclUint8, next, comm, s);
        ret = ncclCommFinalize(comm);
    }
    if (IS("end_without_start")) ret = ncclGroupEnd();
    if (IS("float_order")) {
        ncclAllReduce(&part, &g[0], 1, ncclFloat32, ncclSum, comm, s);
        ncclAllReduce(&part, &g[1], 1, ncclFloat32, ncclSum, comm, s);
    }
    *good_so_far = good;
    return ret;
}

int main(int argc, char **argv) {
    name = argc > 1 ? argv[1] : "";
    const Case *c = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (argc < 2) printf("%s ", cases[i].name);
        if (!strcmp(cases[i].name, name)) c = &cases[i];
    }
    if (!c) return argc < 2 ? 0 : 2;
    setenv("NCCL_STANDIN", faults_of_case(), 1);
    MPI_Init(NULL, NULL);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    in = malloc((size_t)size * N);
    out = malloc((size_t)size * N);
    for (int r = 0; r < size; r++) memset(in + (size_t)r * N, 16 * rank + r, N);
    memset(out, 0, (size_t)size * N);
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&s2, cudaStreamNonBlocking);
    ncclUniqueId id = {{0}}, id2 = {{0}};
    if (rank == 0) {
        ncclGetUniqueId(&id);
        if (IS("comm_order")) ncclGetUniqueId(&id2);
    }
    MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
    MPI_Bcast(&id2, sizeof id2, MPI_BYTE, 0, MPI_COMM_WORLD);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (IS("before_ready") && rank == size - 1) MPI_Barrier(MPI_COMM_WORLD); /* the others have sent */
    ncclResult_t rc = ncclCommInitRankConfig(&comm, size, id, rank, &config), e = ncclInProgress;
    int good = rc == ncclInProgress;
    if (IS("before_ready")) {
        rc = ncclSend(in, 4, ncclUint8, 0, comm, s);
        if (rank < size - 1) MPI_Barrier(MPI_COMM_WORLD);
    } else
        for (double end = now() + 20; e == ncclInProgress && now() < end; usleep(500))
            ncclCommGetAsyncError(comm, &e);
    if (IS("comm_order")) ncclCommInitRank(&comm2, size, id2, rank);
    if (!IS("before_ready")) {
        all_to_all(N, 1, -1, 0);
        rc = wait_for(10);
        good &= rc == ncclSuccess;
    } /* operation 1 is always well */
    for (int r = 0; r < size && !IS("before_ready"); r++) good &= same(out + (size_t)r * N, 16 * r + rank, N);
    memset(out, 0, (size_t)size * N);
    ncclResult_t ret = plant(&good);
    rc = IS("before_ready") ? rc
         : ret != ncclSuccess
             ? ret
             : wait_for(IS("peer_dead_silent") ? 0.4
                        : IS("peer_stopped") || IS("missing_recv") || IS("root_differs") || IS("wrong_peer")
                            ? 2
                            : 8);
    if (IS("good") || IS("good_late"))
        for (int r = 0; r < size; r++) good &= same(out + (size_t)r * N, 16 * r + rank, N);
    if (IS("write_too_early")) {
        int spoilt = 0;
        for (int r = 0; r < size; r++) spoilt |= !same(out + (size_t)r * N, 16 * r + rank, N);
        good &= spoilt;
    }
    if (IS("float_order")) {
        printf("rank %d: %.1f and %.1f\n", rank, (double)g[0], (double)g[1]);
        good &= g[0] != g[1];
    }
    int must = c->ranks_that_must >> rank & 1;
    if (must) good &= rc == c->want && strstr(ncclGetLastError(comm), c->says) != NULL;
    if (IS("missing_recv"))
        good &= rc == (rank == 1 ? ncclInProgress : ncclSuccess); /* a hang of one rank alone: the
                                                                     watchdog's
                                                                 case */
    if (IS("abort")) good &= ncclCommAbort(comm) == ncclSuccess;
    const char *said = comm2 && !ncclGetLastError(comm)[0] ? ncclGetLastError(comm2) : ncclGetLastError(comm);
    int told = rc == c->want && (!c->says[0] || strstr(said, c->says)), any = told;
    if (IS("peer_dead") || IS("peer_dead_silent") || IS("peer_stopped")) { /* no MPI any more: someone is
                                                                              gone */
        printf("%s rank %d: %s: %s\n", good && told ? "ok" : "WRONG", rank, ncclGetErrorString(rc), said);
        fflush(stdout);
        if (rank == 0) usleep(1500000);
        _exit(good && told ? 0 : 1);
    }
    int all = good;
    MPI_Allreduce(&told, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Allreduce(&good, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (said[0] && told) printf("  rank %d: %s: %s\n", rank, ncclGetErrorString(rc), said);
    if (!good) printf("  rank %d BAD: %s: %s\n", rank, ncclGetErrorString(rc), said);
    fflush(stdout);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) printf("%s %s\n", all && any ? "ok" : "WRONG", name);
    fflush(stdout);
    MPI_Finalize();
    _exit(all && any ? 0 : 1); /* streams may hang: that was the point */
}

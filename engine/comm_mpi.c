/* The MPI plug-in: start-up of every run of several ranks, and the transfers between hosts.
 *
 * A message is cut into pieces of at most 1 GiB, because counts of MPI are int. Waiting polls and sleeps,
 * it does not spin: the ranks of a machine share its cores with each other's arithmetic. */
#include "alloc.h"
#include "comm_mpi.h"
#include <mpi.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { PIECE = 1 << 30, EAGER_POLLS = 200, SLEEP_NS = 50000 };

typedef struct {
    MPI_Request *requests;
    MPI_Status *states;
    int *expected; /* bytes of a receive; -1: a send */
    int n;
} Pieces;

static bool say(int rc, const char *call, char *why) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;
    if (rc == MPI_SUCCESS) return true;
    MPI_Error_string(rc, text, &n);
    snprintf(why, COMM_WHY, "%s: %.300s", call, text);
    return false;
}

static bool start(int *rank, int *size, char *why) {
    int up = 0, level = 0;
    MPI_Initialized(&up);
    return (up || say(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level), "MPI_Init_thread", why)) &&
           say(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", why) &&
           say(MPI_Comm_rank(MPI_COMM_WORLD, rank), "MPI_Comm_rank", why) &&
           say(MPI_Comm_size(MPI_COMM_WORLD, size), "MPI_Comm_size", why);
}

static bool broadcast(void *data, size_t n_bytes, char *why) {
    return say(MPI_Bcast(data, (int)n_bytes, MPI_BYTE, 0, MPI_COMM_WORLD), "MPI_Bcast", why);
}

/* Room for the pieces of all transfers. */
static bool make_pieces(const Transfer *transfers, int n, Pieces *p, char *why) {
    size_t n_pieces = 1;
    for (int i = 0; i < n; i++) n_pieces += (transfers[i].n_bytes + PIECE - 1) / PIECE;
    *p = (Pieces){mem_alloc(n_pieces * sizeof *p->requests), mem_alloc(n_pieces * sizeof *p->states),
                  mem_alloc(n_pieces * sizeof *p->expected), 0};
    if (p->requests && p->states && p->expected) return true;
    snprintf(why, COMM_WHY, "out of memory for %zu messages", n_pieces);
    return false;
}

static void free_pieces(Pieces *p) {
    mem_free(p->requests);
    mem_free(p->states);
    mem_free(p->expected);
}

static bool start_pieces(const Transfer *t, int tag, Pieces *p, char *why) {
    for (size_t at = 0; at < t->n_bytes; at += PIECE, p->n++) {
        int bytes = t->n_bytes - at < PIECE ? (int)(t->n_bytes - at) : PIECE;
        char *from = (char *)t->data + at;
        MPI_Request *request = &p->requests[p->n];
        p->expected[p->n] = t->is_send ? -1 : bytes;
        int rc = t->is_send ? MPI_Isend(from, bytes, MPI_BYTE, t->peer, tag, MPI_COMM_WORLD, request)
                            : MPI_Irecv(from, bytes, MPI_BYTE, t->peer, tag, MPI_COMM_WORLD, request);
        if (!say(rc, t->is_send ? "MPI_Isend" : "MPI_Irecv", why)) return false;
    }
    return true;
}

static bool wait_for_pieces(Pieces *p, char *why) {
    int done = 0, rc = MPI_SUCCESS;
    for (int i = 0; rc == MPI_SUCCESS && !done; i++) {
        rc = MPI_Testall(p->n, p->requests, &done, p->states);
        if (!done && i >= EAGER_POLLS) nanosleep(&(struct timespec){0, SLEEP_NS}, NULL);
    }
    if (rc != MPI_ERR_IN_STATUS) return say(rc, "MPI_Testall", why);
    for (int i = 0; i < p->n; i++)
        if (p->states[i].MPI_ERROR != MPI_ERR_PENDING && !say(p->states[i].MPI_ERROR, "a message", why))
            return false;
    return say(rc, "MPI_Testall", why);
}

static bool check_lengths(const Pieces *p, char *why) {
    for (int i = 0; i < p->n; i++) {
        int got = 0;
        if (p->expected[i] < 0) continue;
        MPI_Get_count(&p->states[i], MPI_BYTE, &got);
        if (got == p->expected[i]) continue;
        snprintf(why, COMM_WHY, "a message from rank %d: expected %d bytes: got %d", p->states[i].MPI_SOURCE,
                 p->expected[i], got);
        return false;
    }
    return true;
}

static bool transfer(const Transfer *transfers, int n, int tag, char *why) {
    Pieces pieces;
    bool ok = make_pieces(transfers, n, &pieces, why);
    for (int i = 0; ok && i < n; i++) ok = start_pieces(&transfers[i], tag, &pieces, why);
    ok = ok && wait_for_pieces(&pieces, why) && check_lengths(&pieces, why);
    free_pieces(&pieces);
    return ok;
}

static bool stop(char *why) { return say(MPI_Finalize(), "MPI_Finalize", why); }

__attribute__((visibility("default"))) const CommMpi *gatetape_mpi(void);
const CommMpi *gatetape_mpi(void) {
    static const CommMpi plugin = {COMM_MPI_VERSION, start, broadcast, transfer, stop};
    return &plugin;
}

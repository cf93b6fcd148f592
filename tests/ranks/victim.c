/* A job of collectives in which one rank meets a fate, as tests/ranks/fates.sh asks for.
 *   mpirun -n 4 rank_victim FATE RANK DEADLINE   ends with code 0 and "victim: done" when nothing happens
 * */
#include "engine/comm.h"
#include "engine/text.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { STEPS = 60, MEETS_AT = 20, ROWS = 100, COLUMNS = 64 };

/* Ends this rank, or not, in the way asked for; true when the step's collective is to be left out. */
static bool meet(const char *fate, Comm *comm) {
    Error error = {0};
    if (!strcmp(fate, "killed")) raise(SIGKILL);
    if (!strcmp(fate, "stopped")) raise(SIGSTOP);
    if (!strcmp(fate, "segfault")) raise(SIGSEGV);
    if (!strcmp(fate, "aborted")) abort();
    if (!strcmp(fate, "leaves")) _exit(0);
    if (!strcmp(fate, "exits")) exit(1);
    if (!strcmp(fate, "sleeps")) sleep(3600);
    if (!strcmp(fate, "spins"))
        for (volatile int x = 1; x;) {
        }
    if (!strcmp(fate, "fails")) {
        error_set(&error, ERROR_UNAVAILABLE, "weights.safetensors: expected 4 GiB of memory: got 3 GiB");
        comm_fail(comm, &error);
    }
    if (!strcmp(fate, "other")) comm_barrier(comm);
    return !strcmp(fate, "skips");
}

int main(int n, char **texts) {
    const char *fate = n > 1 ? texts[1] : "none";
    int who = n > 2 ? atoi(texts[2]) : -1;
    CommOptions options = {.kind = "mpi", .deadline_s = n > 3 ? atof(texts[3]) : 3};
    Comm comm;
    Error error = {0};
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    /* a launcher that saw a rank die asks the others to end, a second before it kills them; a run catches it,
     * and its watchdog has that second to say who died */
    signal(SIGTERM, SIG_IGN);
    if (!comm_open(&options, &comm, &error)) {
        text_print_error(&error);
        return (int)error.code;
    }
    int64_t rows[COMM_MAX_RANKS];
    for (int r = 0; r < comm.size; r++) rows[r] = ROWS;
    float *in = calloc((size_t)comm.size * ROWS * COLUMNS, sizeof *in),
          *out = calloc((size_t)comm.size * ROWS * COLUMNS, sizeof *out);
    if (!in || !out) return 3;
    for (int i = 0; i < STEPS; i++) {
        comm_phase("layer %d", i);
        if (i == MEETS_AT && comm.rank == who && meet(fate, &comm)) continue;
        if (i == MEETS_AT && comm.rank == who && !strcmp(fate, "slow")) /* alive, only slow */
            for (int k = 0; k < 5; k++, watchdog_tick()) usleep((useconds_t)(options.deadline_s * 3e5));
        comm_all_to_all(&comm, NULL, tensor_matrix(out, DTYPE_F32, comm.size * ROWS, COLUMNS), rows,
                        tensor_matrix(in, DTYPE_F32, comm.size * ROWS, COLUMNS), rows);
        usleep(5000);
    }
    int rank = comm.rank;
    comm_close(&comm);
    if (rank == 0) printf("victim: done\n");
    free(in);
    free(out);
    return 0;
}

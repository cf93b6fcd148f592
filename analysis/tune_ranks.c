/* What ranks of a training tell each other beside gradients. */
#include "../engine/alloc.h"
#include "tune_parts.h"
#include <string.h>

/* Bits are moved as integers, of which all but one rank's are 0: their sum is exact. */
void tune_share(Comm *comm, double *x, int64_t n, int64_t first, int64_t n_own) {
    if (comm->size == 1 || !n) return;
    int64_t *bits = mem_zeroed((size_t)n, sizeof *bits);
    if (!bits) {
        Error error = {0};
        error_out_of_memory(&error, "numbers of ranks", (size_t)n * sizeof *bits);
        comm_fail(comm, &error);
    }
    memcpy(bits + first, x + first, (size_t)n_own * sizeof *bits);
    comm_sum_i64(comm, bits, n);
    memcpy(x, bits, (size_t)n * sizeof *bits);
    mem_free(bits);
}

bool tune_own_texts(const Comm *comm, const int64_t *lengths, int64_t n, Range *own, Error *error) {
    int64_t total = 1;
    *own = (Range){0, n};
    if (comm->size == 1 || !n) return true;
    Home *homes = mem_zeroed((size_t)n, sizeof *homes);
    if (!homes) return error_out_of_memory(error, "texts over ranks", (size_t)n * sizeof *homes);
    for (int64_t i = 0; i < n; i++) total += lengths[i];
    placement_homes(lengths, n, comm->size, total, homes);
    own->n = 0;
    for (int64_t i = 0; i < n; i++) {
        if (homes[i].rank != comm->rank) continue;
        if (!own->n) own->first = i;
        own->n++;
    }
    mem_free(homes);
    return true;
}

bool tune_goes_on(const StepRun *run, Error *error) {
    return !*run->stop ||
           error_set(error, ERROR_INTERRUPTED,
                     "step %s: interrupted; the same command goes on from the last step that was kept",
                     run->step->name);
}

bool tune_check_alike(const Tuning *t, Error *error) {
    int64_t bounds[2] = {t->n_done, -t->n_done};
    comm_max_i64(t->run->comm, bounds, 2);
    if (bounds[0] == -bounds[1]) return true;
    return error_set(
        error, ERROR_FAILED,
        "%s/checkpoint.safetensors: expected the same file on all ranks: got one after step %lld, "
        "and after step %lld on another",
        t->run->folder, (long long)bounds[0], (long long)-bounds[1]);
}

/* Fixed-size cards, gathered on every rank and compared there. */
#include "ranks.h"
#include "../engine/alloc.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_TRAITS = 5, TRAIT_TEXT = 72 };
static const char *const trait_names[N_TRAITS] = {"program", "version", "job and inputs", "device",
                                                  "instruction set"};

typedef union {
    struct {
        char host[64], traits[N_TRAITS][TRAIT_TEXT];
    } card;
    int64_t words[(64 + N_TRAITS * TRAIT_TEXT) / 8];
} Card;

static bool fill_card(const RunFacts *facts, Card *card, Error *error) {
    memset(card, 0, sizeof *card);
    gethostname(card->card.host, sizeof card->card.host - 1);
    /* the version too: of a program that a loader of its own starts, /proc/self/exe is the loader */
    snprintf(card->card.traits[1], TRAIT_TEXT, "%s", facts->version);
    snprintf(card->card.traits[2], TRAIT_TEXT, "%s", facts->identity);
    snprintf(card->card.traits[3], TRAIT_TEXT, "%s in %s", facts->device, facts->compute);
    snprintf(card->card.traits[4], TRAIT_TEXT, "%s", facts->isa);
    return hash_file("/proc/self/exe", card->card.traits[0], error);
}

static bool compare(const Card *cards, int n, Error *error) {
    for (int r = 1; r < n; r++)
        for (int t = 0; t < N_TRAITS; t++) {
            const char *want = cards[0].card.traits[t], *got = cards[r].card.traits[t];
            if (!strcmp(want, got)) continue;
            return error_set(
                error, ERROR_BAD_INPUT,
                "ranks: expected the same %s on all: rank 0 on %s has %.24s, rank %d on %s %.24s%s",
                trait_names[t], cards[0].card.host, want, r, cards[r].card.host, got,
                t == 4 ? " (GATETAPE_ISA names one for all)" : "");
        }
    return true;
}

bool ranks_check_alike(Comm *comm, const RunFacts *facts, Error *error) {
    if (comm->size == 1) return true;
    Card mine, *all = mem_zeroed((size_t)comm->size, sizeof *all);
    bool ok = (all || error_out_of_memory(error, "ranks", (size_t)comm->size * sizeof mine)) &&
              fill_card(facts, &mine, error);
    ok = comm_agree(comm, ok, error);
    if (ok) {
        const int64_t n = sizeof mine / sizeof *mine.words;
        comm_all_gather(comm, NULL, tensor_matrix(all, DTYPE_I64, comm->size, n),
                        tensor_matrix(&mine, DTYPE_I64, 1, n));
        ok = compare(all, comm->size, error);
    }
    mem_free(all);
    return ok;
}

/* ---- GPUs of a machine ---- */
bool ranks_choose_gpu(const char *visible, int local_rank, char to[64], Error *error) {
    if (!visible) {
        snprintf(to, 64, "%d", local_rank);
        return true;
    }
    int at = 0, n = 1;
    for (const char *p = visible; *p; p++) n += *p == ',';
    if (n == 1) {
        snprintf(to, 64, "%s", visible);
        return true;
    }
    while (at < local_rank && *visible) at += *visible++ == ',';
    if (local_rank >= n)
        return error_set(
            error, ERROR_UNAVAILABLE,
            "CUDA_VISIBLE_DEVICES: expected a GPU for each rank of the machine: got %d for rank %d "
            "of it, counted from 0",
            n, local_rank);
    snprintf(to, 64, "%.*s", (int)strcspn(visible, ","), visible);
    return true;
}

bool ranks_set_gpu(const Comm *comm, Error *error) {
    char name[64];
    if (comm->size == 1) return true;
    return ranks_choose_gpu(getenv("CUDA_VISIBLE_DEVICES"), comm->local_rank, name, error) &&
           (setenv("CUDA_VISIBLE_DEVICES", name, 1) == 0 ||
            error_set(error, ERROR_FAILED, "CUDA_VISIBLE_DEVICES: expected to set it: out of memory"));
}

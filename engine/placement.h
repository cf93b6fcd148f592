/* Who holds what among ranks: pure functions of sizes, so that every rank finds the same answer without a
 * word.
 *
 * Experts are spread over a group of ranks that holds each of them once; further groups hold copies. A group
 * lies within a node where that is asked for, since what leaves a node is slow. Prompts are spread over all
 * ranks in waves; inside a wave consecutive prompts go to consecutive ranks, so rows that meet at an expert,
 * ordered by the rank they come from, stand in the order of prompts. */
#ifndef GATETAPE_PLACEMENT_H
#define GATETAPE_PLACEMENT_H
#include <stdbool.h>
#include <stdint.h>

/* How a rank has the weights of experts. The order is that of the option's names. */
typedef enum {
    RESIDENCY_AUTO,     /* what fits and is predicted fastest */
    RESIDENCY_RESIDENT, /* in the device's memory; tokens travel to the experts' ranks */
    RESIDENCY_STREAMED, /* in pinned memory of the host, copied ahead of use; tokens travel */
    RESIDENCY_PEERS,    /* as resident, but weights travel, one layer ahead, and tokens stay */
    N_RESIDENCIES
} Residency;
extern const char *const residency_names[N_RESIDENCIES + 1]; /* NULL-terminated */

typedef struct {
    int64_t n_ranks, n_experts; /* at least 1 each */
    int64_t per_node;           /* ranks of a node, by rank; the last node may have fewer */
    bool across_nodes;          /* a group may span nodes */
} Placement;

/* [first, first + n) */
typedef struct {
    int64_t first, n;
} Range;

/* The ranks among which a rank's tokens find every expert once: at most n_experts, evenly many. */
Range placement_group(const Placement *p, int64_t rank);
/* The experts of each layer that a rank holds; at most ceil(n_experts / group). */
Range placement_experts(const Placement *p, int64_t rank);
/* The rank that computes an expert for tokens of rank `home`. */
int64_t placement_owner(const Placement *p, int64_t expert, int64_t home);

/* Where a prompt is computed. */
typedef struct {
    int64_t wave, rank;
} Home;

/* Homes of all prompts; returns the number of waves. A rank gets at most wave_tokens tokens in a wave, or one
 * longer prompt. With no more waves than that takes, the most that a rank gets is as small as consecutive
 * prompts allow: few prompts are spread over many ranks. homes NULL: the number alone. */
int64_t placement_homes(const int64_t *lengths, int64_t n_prompts, int64_t n_ranks, int64_t wave_tokens,
                        Home *homes);

/* Whether the l-th of n layers with experts is one of the n_streamed that are copied from the host: they are
 * spread evenly, so that the layers between give the copies time. */
bool placement_is_streamed(int64_t l, int64_t n, int64_t n_streamed);
/* Copies of layers from the host that a pass makes through two buffers, the s-th streamed layer always
 * through buffer s % 2: each layer once, and again on the way back but for the last two, which are still
 * there. `first`: nothing is there yet; else there is what a pass of the same kind left. */
int64_t placement_count_copies(int64_t n_streamed, bool walks_back, bool first);

#endif

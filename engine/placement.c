/* Experts, prompts and streamed layers over ranks (placement.h). Shares are n * i / k: even to within one. */
#include "placement.h"
#include "../kernels/check.h"

const char *const residency_names[N_RESIDENCIES + 1] = {"auto", "resident", "streamed", "peers", NULL};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Range placement_group(const Placement *p, int64_t rank) {
    check(rank >= 0 && rank < p->n_ranks && p->n_experts > 0 && p->per_node > 0, "rank %lld of %lld",
          (long long)rank, (long long)p->n_ranks);
    Range pool = {0, p->n_ranks};
    if (!p->across_nodes) {
        pool.first = rank / p->per_node * p->per_node;
        pool.n = least(p->per_node, p->n_ranks - pool.first);
    }
    const int64_t n_groups = ceil_div(pool.n, p->n_experts),
                  i = ((rank - pool.first + 1) * n_groups - 1) / pool.n, begin = pool.n * i / n_groups,
                  end = pool.n * (i + 1) / n_groups;
    return (Range){pool.first + begin, end - begin};
}

Range placement_experts(const Placement *p, int64_t rank) {
    const Range group = placement_group(p, rank);
    const int64_t m = rank - group.first, begin = ceil_div(m * p->n_experts, group.n);
    return (Range){begin, ceil_div((m + 1) * p->n_experts, group.n) - begin};
}

int64_t placement_owner(const Placement *p, int64_t expert, int64_t home) {
    const Range group = placement_group(p, home);
    return group.first + expert * group.n / p->n_experts;
}

/* Greedy, with at most so many tokens a rank and wave; the number of waves. */
static int64_t fill(const int64_t *lengths, int64_t n, int64_t n_ranks, int64_t most, Home *homes) {
    Home at = {0};
    int64_t load = 0;
    for (int64_t p = 0; p < n; p++) {
        if (load && load + lengths[p] > most) {
            load = 0;
            if (++at.rank == n_ranks) at = (Home){at.wave + 1, 0};
        }
        if (homes) homes[p] = at;
        load += lengths[p];
    }
    return n ? at.wave + 1 : 0;
}

int64_t placement_homes(const int64_t *lengths, int64_t n_prompts, int64_t n_ranks, int64_t wave_tokens,
                        Home *homes) {
    const int64_t n_waves = fill(lengths, n_prompts, n_ranks, wave_tokens, NULL);
    int64_t low = 1, high = wave_tokens;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (fill(lengths, n_prompts, n_ranks, middle, NULL) <= n_waves)
            high = middle;
        else
            low = middle + 1;
    }
    return fill(lengths, n_prompts, n_ranks, high, homes);
}

bool placement_is_streamed(int64_t l, int64_t n, int64_t n_streamed) {
    return (l + 1) * n_streamed / n > l * n_streamed / n;
}

int64_t placement_count_copies(int64_t n_streamed, bool walks_back, bool first) {
    enum { N_BUFFERS = 2 };
    const int64_t kept = least(n_streamed, N_BUFFERS);
    if (walks_back) return 2 * n_streamed - kept - (first ? 0 : kept);
    if (first || n_streamed > N_BUFFERS + 1) return n_streamed;
    return n_streamed <= N_BUFFERS ? 0 : N_BUFFERS; /* of three the middle one stays where it is */
}

/* The radix sort, and what is read off a sorted list. */
#include "ranking.h"
#include "scores.h"
#include "../kernels/check.h"
#include <math.h>
#include <string.h>

const double ranking_shares[RANKING_SHARES] = {0.80, 0.90, 0.95};
const char *const ranking_keys[RANKING_SHARES] = {"k80", "k90", "k95"};

/* Ascending and stable; returns where the result lies: room or room + n. Digits that all keys share are
 * passed over. */
static Ranked *sort_keys(Ranked *room, int64_t n) {
    enum { BITS = 11, VALUES = 1 << BITS, DIGITS = 6 };
    Ranked *from = room, *to = room + n;
    for (int digit = 0; digit < DIGITS; digit++) {
        int64_t begin[VALUES] = {0}, sum = 0;
        int shift = digit * BITS;
        for (int64_t i = 0; i < n; i++) begin[from[i].key >> shift & (VALUES - 1)]++;
        if (n && begin[from[0].key >> shift & (VALUES - 1)] == n) continue;
        for (int v = 0; v < VALUES; v++) {
            int64_t count = begin[v];
            begin[v] = sum;
            sum += count;
        }
        for (int64_t i = 0; i < n; i++) to[begin[from[i].key >> shift & (VALUES - 1)]++] = from[i];
        Ranked *other = from;
        from = to;
        to = other;
    }
    return from;
}

static uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

void ranking_sort(const double *scores, int64_t n, Ranked *room, int64_t *order) {
    for (int64_t i = 0; i < n; i++) {
        check(scores[i] >= 0, "score %lld: %g", (long long)i, scores[i]);
        room[i] = (Ranked){~bits_of(scores[i] + 0.0), i}; /* + 0.0: -0 is 0 */
    }
    const Ranked *sorted = sort_keys(room, n);
    for (int64_t i = 0; i < n; i++) order[i] = sorted[i].item;
}

void ranking_coverage(const double *scores, const int64_t *order, int64_t n, int64_t *k) {
    double total = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) total += scores[order[i]];
    for (int s = 0; s < RANKING_SHARES; s++) k[s] = 0;
    if (total <= 0) return;
    int s = 0;
    for (int64_t i = 0; i < n && s < RANKING_SHARES; i++) {
        sum += scores[order[i]];
        while (s < RANKING_SHARES && scores_reach(sum / total, ranking_shares[s])) k[s++] = i + 1;
    }
}

/* Bits of a double in the order of its values: the sign is flipped, and all others of a negative number. */
void ranking_sort_values(double *values, int64_t n, Ranked *room) {
    const uint64_t sign = UINT64_C(1) << 63;
    for (int64_t i = 0; i < n; i++) {
        uint64_t bits = bits_of(values[i] + 0.0);
        room[i] = (Ranked){bits & sign ? ~bits : bits | sign, 0};
    }
    const Ranked *sorted = sort_keys(room, n);
    for (int64_t i = 0; i < n; i++) {
        uint64_t bits = sorted[i].key & sign ? sorted[i].key & ~sign : ~sorted[i].key;
        memcpy(&values[i], &bits, sizeof bits);
    }
}

double ranking_quantile(const double *ascending, int64_t n, double share) {
    double at = share * (double)(n - 1);
    int64_t below = (int64_t)floor(at);
    if (below >= n - 1) return ascending[n - 1];
    double low = ascending[below], high = ascending[below + 1];
    return low + (at - (double)below) * (high - low);
}

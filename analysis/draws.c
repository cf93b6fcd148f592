/* Sets of cells for controls. Each draw shuffles the cells that may be taken and goes through them; a share
 * is met by trying again, or by exchanging cells while that brings it nearer. */
#include "selection.h"
#include "../engine/alloc.h"
#include "../kernels/random.h"
#include <math.h>
#include <string.h>

enum { MOST_TRIES = 1000, MOST_EXCHANGES = 400 };

Draw draw_new(uint64_t seed, const char *condition) {
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (const char *c = condition; *c; c++) hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
    return (Draw){seed, (int64_t)(hash >> 1), 0};
}

static int64_t next_index(Draw *draw, int64_t n) {
    return (int64_t)(random_uniform(draw->seed, RANDOM_CONTROL, draw->id, draw->position++) * (double)n);
}

/* What a draw works with: the cells that may be taken, in random order, and a count of each layer. */
typedef struct {
    int64_t *pool, n_pool;
    int64_t *in_layer; /* [L] cells of the set so far */
} Hat;

static bool hat_make(const DrawFrom *from, Hat *hat) {
    *hat = (Hat){.pool = mem_alloc((size_t)from->n_cells * sizeof *hat->pool),
                 .in_layer = mem_zeroed((size_t)from->n_cells, sizeof *hat->in_layer)};
    if (!hat->pool || !hat->in_layer) return false;
    for (int64_t c = 0; c < from->n_cells; c++)
        if (!from->taken[c]) hat->pool[hat->n_pool++] = c;
    return true;
}

static void hat_free(Hat *hat) {
    mem_free(hat->pool);
    mem_free(hat->in_layer);
}

static void shuffle(Draw *draw, const DrawFrom *from, Hat *hat) {
    for (int64_t i = hat->n_pool - 1; i > 0; i--) {
        int64_t j = next_index(draw, i + 1), cell = hat->pool[i];
        hat->pool[i] = hat->pool[j];
        hat->pool[j] = cell;
    }
    memset(hat->in_layer, 0, (size_t)(from->n_cells / from->n_experts) * sizeof *hat->in_layer);
}

static void sort_cells(int64_t *cells, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        int64_t cell = cells[i], at = i;
        for (; at > 0 && cells[at - 1] > cell; at--) cells[at] = cells[at - 1];
        cells[at] = cell;
    }
}

static bool is_near(double share, double want) { return fabs(share - want) <= want * MATCH_PERCENT / 100; }

/* The first n of a shuffled hat that no layer has too many of; false: there are not so many. */
static bool take(const DrawFrom *from, Hat *hat, int64_t n, int64_t *cells) {
    int64_t n_taken = 0;
    for (int64_t i = 0; i < hat->n_pool && n_taken < n; i++) {
        int64_t layer = hat->pool[i] / from->n_experts;
        if (hat->in_layer[layer] == from->layer_most) continue;
        hat->in_layer[layer]++;
        cells[n_taken++] = hat->pool[i];
    }
    return n_taken == n;
}

int64_t draw_set(Draw *draw, const DrawFrom *from, int64_t n, int64_t *cells) {
    Hat hat;
    bool made = hat_make(from, &hat), found = false;
    if (made) shuffle(draw, from, &hat);
    if (made) found = take(from, &hat, n, cells);
    if (found) sort_cells(cells, n);
    hat_free(&hat);
    return !made ? -1 : found ? n : 0;
}

int64_t draw_layer_matched(Draw *draw, const DrawFrom *from, const int64_t *like, int64_t n, int64_t *cells) {
    Hat hat;
    bool made = hat_make(from, &hat);
    int64_t n_taken = 0;
    if (made) shuffle(draw, from, &hat);
    for (int64_t i = 0; made && i < n; i++) hat.in_layer[like[i] / from->n_experts]++;
    for (int64_t i = 0; made && i < hat.n_pool; i++) {
        int64_t *wanted = &hat.in_layer[hat.pool[i] / from->n_experts];
        if (*wanted > 0) cells[n_taken++] = hat.pool[i], --*wanted;
    }
    sort_cells(cells, n_taken);
    hat_free(&hat);
    return !made ? -1 : n_taken == n ? n : 0;
}

/* Cells of a shuffled hat that fit below the upper end; the number taken, 0 when the lower end is not
 * reached. */
static int64_t fill(const DrawFrom *from, Hat *hat, double share, int64_t *cells) {
    int64_t n = 0;
    double sum = 0;
    for (int64_t i = 0; i < hat->n_pool && !(n && is_near(sum, share)); i++) {
        int64_t cell = hat->pool[i], layer = cell / from->n_experts;
        if (sum + from->share[cell] > share * (1 + MATCH_PERCENT / 100.0)) continue;
        if (hat->in_layer[layer] == from->layer_most) continue;
        hat->in_layer[layer]++;
        sum += from->share[cell];
        cells[n++] = cell;
    }
    return is_near(sum, share) ? n : 0;
}

int64_t draw_share(Draw *draw, const DrawFrom *from, double share, int64_t *cells) {
    Hat hat;
    bool made = hat_make(from, &hat);
    int64_t n = 0;
    for (int try = 0; made && !n && try < MOST_TRIES; try++) {
        shuffle(draw, from, &hat);
        n = fill(from, &hat, share, cells);
    }
    sort_cells(cells, n);
    hat_free(&hat);
    return made ? n : -1;
}

/* Exchanges cells of the set for others of the hat while that brings its share nearer. */
static bool approach(Draw *draw, const DrawFrom *from, Hat *hat, double share, int64_t n, int64_t *cells) {
    double sum = selection_share(from->share, cells, n);
    for (int i = 0; i < MOST_EXCHANGES && !is_near(sum, share); i++) {
        int64_t place = next_index(draw, n), other = hat->pool[next_index(draw, hat->n_pool)];
        int64_t from_layer = cells[place] / from->n_experts, to_layer = other / from->n_experts;
        bool held = to_layer != from_layer && hat->in_layer[to_layer] == from->layer_most;
        for (int64_t k = 0; k < n; k++) held = held || cells[k] == other;
        double next = sum - from->share[cells[place]] + from->share[other];
        if (held || fabs(next - share) >= fabs(sum - share)) continue;
        hat->in_layer[from_layer]--;
        hat->in_layer[to_layer]++;
        cells[place] = other;
        sum = selection_share(from->share, cells, n);
    }
    return is_near(sum, share);
}

int64_t draw_traffic_matched(Draw *draw, const DrawFrom *from, double share, int64_t n, int64_t *cells) {
    Hat hat;
    bool made = hat_make(from, &hat), found = false, possible = made;
    for (int try = 0; possible && !found && try < MOST_TRIES; try++) {
        shuffle(draw, from, &hat);
        possible = take(from, &hat, n, cells);
        found = possible && approach(draw, from, &hat, share, n, cells);
    }
    if (found) sort_cells(cells, n);
    hat_free(&hat);
    return !made ? -1 : found ? n : 0;
}

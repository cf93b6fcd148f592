/* The choice of the next token. argmax takes the lowest index of the largest; sample draws with top-k and
 * top-p.
 *
 * With a cut, the candidates stand in a heap of indices, largest logit first, equal ones by index; only as
 * many are taken from it as the cut and the draw need. Without, the ids are walked upwards. Masses are f64
 * sums in that order. NaN counts as -infinity: ids are always valid, and a row without any number gives id
 * 0. */
#include "../math.h"
#include "../random.h"
#include "lanes.h"

static real number_of(real x) { return x == x ? x : -(real)INFINITY; }

static int32_t row_argmax(const real *row, int64_t n) {
    real largest = lanes_largest(row, n, -(real)INFINITY);
    int64_t v = 0;
    if (largest == -(real)INFINITY) return 0;
    while (row[v] != largest) v++;
    return (int32_t)v;
}

void CPU_OP(argmax)(Queue *q, Tensor ids, Tensor logits, int64_t n_valid) {
    if (q->failed_op) return;
    int64_t rows = tensor_rows(logits), columns = tensor_columns(logits);
    check(tensor_count(ids) == rows && (rows == 0 || (n_valid >= 1 && n_valid <= columns)),
          "%lld of %lld ids", (long long)n_valid, (long long)columns);
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
    for (int64_t i = 0; i < rows; i++) ints(ids)[i] = row_argmax(reals(logits) + i * columns, n_valid);
}

static bool comes_before(const real *row, int32_t a, int32_t b) {
    real x = number_of(row[a]), y = number_of(row[b]);
    return x > y || (x == y && a < b);
}

static void heap_sink(int32_t *heap, int64_t n, int64_t at, const real *row) {
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= n) return;
        if (child + 1 < n && comes_before(row, heap[child + 1], heap[child])) child++;
        if (!comes_before(row, heap[child], heap[at])) return;
        int32_t moved = heap[at];
        heap[at] = heap[child];
        heap[child] = moved;
        at = child;
    }
}

/* Candidates of one row: heap[0..n_left), those taken stand behind, the first at the very end. */
typedef struct {
    const real *row;
    int32_t *heap;
    int64_t n, n_left;
    double temperature, largest;
} Candidates;

static Candidates candidates_of(const real *row, int32_t *heap, int64_t n, float temperature) {
    Candidates c = {row, heap, n, n, (double)temperature, 0};
    for (int64_t v = 0; v < n; v++) heap[v] = (int32_t)v;
    for (int64_t at = n / 2 - 1; at >= 0; at--) heap_sink(heap, n, at, row);
    c.largest = (double)number_of(row[heap[0]]);
    return c;
}

static double mass_of(const Candidates *c, int32_t v) {
    double logit = (double)number_of(c->row[v]);
    return logit == c->largest ? 1 : exp_f64((logit - c->largest) / c->temperature);
}

/* The candidate at `rank`, taken from the heap if it has not been yet. */
static int32_t candidate_at(Candidates *c, int64_t rank) {
    while (c->n - c->n_left <= rank) {
        int32_t first = c->heap[0];
        c->heap[0] = c->heap[--c->n_left];
        c->heap[c->n_left] = first;
        heap_sink(c->heap, c->n_left, 0, c->row);
    }
    return c->heap[c->n - 1 - rank];
}

/* The first candidate at which the mass so far exceeds `bound`, else the last of the first n that has any
 * mass; *sum: the mass up to and with it. */
static int64_t rank_reaching(Candidates *c, double bound, int64_t n, double *sum) {
    int64_t last = 0;
    *sum = 0;
    for (int64_t rank = 0; rank < n; rank++) {
        double mass = mass_of(c, candidate_at(c, rank));
        if (mass == 0) break;
        last = rank;
        *sum += mass;
        if (*sum > bound) break;
    }
    return last;
}

/* From all of a row, in the order of the ids. */
static int32_t draw_uncut(const real *row, int64_t n, float temperature, double uniform) {
    Candidates c = {row, NULL, n, n, (double)temperature, (double)lanes_largest(row, n, -(real)INFINITY)};
    if (c.largest == -(double)INFINITY) return 0;
    double total = 0, sum = 0;
    int64_t last = 0;
    for (int64_t v = 0; v < n; v++) total += mass_of(&c, (int32_t)v);
    for (int64_t v = 0; v < n && sum <= uniform * total; v++) {
        double mass = mass_of(&c, (int32_t)v);
        if (mass > 0) last = v;
        sum += mass;
    }
    return (int32_t)last;
}

static int32_t draw(Candidates *c, SampleRule rule, double uniform) {
    if (c->largest == -(double)INFINITY) return 0;
    int64_t kept = rule.top_k > 0 ? least(rule.top_k, c->n) : c->n;
    double total = 0;
    if (kept < c->n) {
        rank_reaching(c, (double)INFINITY, kept, &total);
    } else {
        for (int64_t v = 0; v < c->n; v++) total += mass_of(c, (int32_t)v);
    }
    if (rule.top_p < 1) {
        double bound = (double)rule.top_p * total;
        kept = rank_reaching(c, nextafter(bound, 0), kept, &total) + 1;
    }
    double reached;
    return candidate_at(c, rank_reaching(c, uniform * total, kept, &reached));
}

void CPU_OP(sample)(Queue *q, Tensor ids, Tensor scratch, Tensor logits, Tensor keys, SampleRule rule) {
    if (q->failed_op) return;
    int64_t rows = tensor_rows(logits), columns = tensor_columns(logits);
    check(rows == 0 || (rule.n_valid >= 1 && rule.n_valid <= columns), "%lld of %lld ids",
          (long long)rule.n_valid, (long long)columns);
    check(tensor_count(ids) == rows && tensor_count(scratch) == rows * columns &&
              tensor_count(keys) == 2 * rows && keys.dtype == DTYPE_I64,
          "%lld rows", (long long)rows);
#pragma omp parallel for schedule(dynamic) if (rows * columns > WORTH_THREADS)
    for (int64_t i = 0; i < rows; i++) {
        const real *row = reals(logits) + i * columns;
        const int64_t *key = (const int64_t *)keys.data + 2 * i;
        if (rule.temperature <= 0) {
            ints(ids)[i] = row_argmax(row, rule.n_valid);
            continue;
        }
        double uniform = random_uniform(rule.seed, RANDOM_SAMPLE, key[0], key[1]);
        if (rule.top_p >= 1 && (rule.top_k <= 0 || rule.top_k >= rule.n_valid)) {
            ints(ids)[i] = draw_uncut(row, rule.n_valid, rule.temperature, uniform);
            continue;
        }
        Candidates c = candidates_of(row, ints(scratch) + i * columns, rule.n_valid, rule.temperature);
        ints(ids)[i] = draw(&c, rule, uniform);
    }
}

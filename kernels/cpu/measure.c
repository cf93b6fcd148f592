/* What the analysis measures: expert counts, largest outputs, gate-row gradients, norms and sums of rows,
 * and the search for numbers that are none. Tokens are added in order inside each group; threads share
 * experts or columns, never the tokens of one sum. */
#include "lanes.h"

enum { GRAD_EXPERTS = 8, GRAD_TOKENS = 256 };

void CPU_OP(count_experts)(Queue *q, Tensor selected, Tensor mass, Tensor weight, Tensor ids, Tensor weights,
                           Tensor probs, Tensor group) {
    if (q->failed_op) return;
    int64_t tokens = tensor_count(group), choices = tensor_columns(ids);
    Tensor sums = tensor_present(mass) ? mass : tensor_present(weight) ? weight : selected;
    int64_t experts = tensor_columns(sums), groups = tensor_rows(sums);
    check(tensor_rows(ids) == tokens, "%lld tokens", (long long)tokens);
    check(!tensor_present(selected) || selected.dtype == DTYPE_I64, "counts are %s",
          dtype_name(selected.dtype));
    for (int64_t t = 0; t < tokens; t++) {
        int64_t g = ints(group)[t];
        check(g < groups, "group %lld of %lld", (long long)g, (long long)groups);
        if (g < 0) continue;
        for (int64_t k = 0; k < choices; k++) {
            int64_t e = ints(ids)[t * choices + k], at = g * experts + e;
            check(e >= 0 && e < experts, "expert %lld of %lld", (long long)e, (long long)experts);
            if (tensor_present(selected)) ((int64_t *)selected.data)[at]++;
            if (tensor_present(weight)) reals(weight)[at] += reals(weights)[t * choices + k];
        }
        if (!tensor_present(mass)) continue;
        real *to = reals(mass) + g * experts;
        const real *from = reals(probs) + t * experts;
        for (int64_t e = 0; e < experts; e++) to[e] += from[e];
    }
}

typedef struct {
    real largest, norm;
} Peak;

/* A row with a NaN has NaN for both. */
static Peak row_peak(Tensor y, int64_t row, int64_t columns) {
    real piece[PIECE], largest[LANES] = {0};
    Lanes squares = {0};
    for (int64_t c = 0; c < columns; c += PIECE) {
        int64_t n = least(PIECE, columns - c);
        read_piece(piece, y, row * columns + c, n);
        lanes_dot(&squares, piece, piece, n);
        for (int64_t i = 0; i < n; i++) {
            real size = (real)fabs((double)piece[i]);
            largest[i % LANES] = size > largest[i % LANES] ? size : largest[i % LANES];
        }
    }
    Peak p = {0, (real)sqrt((double)lanes_total(&squares))};
    for (int l = 0; l < LANES; l++) p.largest = largest[l] > p.largest ? largest[l] : p.largest;
    if (p.norm != p.norm) p.largest = p.norm;
    return p;
}

static void keep_larger(real *to, real value) {
    if (value > *to || value != value) *to = value;
}

void CPU_OP(expert_peaks)(Queue *q, Tensor largest, Tensor norm, Tensor y, MoePlan plan, Tensor group) {
    if (q->failed_op) return;
    int64_t experts = tensor_count(plan.offsets) - 1, columns = tensor_columns(y);
    int64_t choices = tensor_columns(plan.rows);
#pragma omp parallel for schedule(dynamic) if (tensor_count(y) > WORTH_THREADS)
    for (int64_t e = 0; e < experts; e++) {
        for (int64_t m = ints(plan.offsets)[e]; m < ints(plan.offsets)[e + 1]; m++) {
            int64_t g = ints(group)[ints(plan.pairs)[m] / choices];
            if (g < 0) continue;
            Peak p = row_peak(y, m, columns);
            if (tensor_present(largest)) keep_larger(reals(largest) + g * experts + e, p.largest);
            if (tensor_present(norm)) keep_larger(reals(norm) + g * experts + e, p.norm);
        }
    }
}

/* One group, GRAD_EXPERTS experts from e0, PIECE columns from c0. Tokens in blocks as a product sums k
 * (ops.h). */
static void gate_grad_tile(Tensor grad, Tensor dlogits, Tensor x, int64_t g, int64_t e0, int64_t c0,
                           Tensor offsets) {
    int64_t experts = grad.shape[1], columns = grad.shape[2];
    int64_t n = least(PIECE, columns - c0), n_experts = least(GRAD_EXPERTS, experts - e0);
    int64_t begin = ints(offsets)[g], end = ints(offsets)[g + 1];
    real total[GRAD_EXPERTS][PIECE] = {{0}};
    for (int64_t block = begin; block < end; block += GRAD_TOKENS) {
        real sum[GRAD_EXPERTS][PIECE] = {{0}}, row[PIECE];
        for (int64_t t = block; t < least(end, block + GRAD_TOKENS); t++) {
            read_piece(row, x, t * columns + c0, n);
            for (int64_t e = 0; e < n_experts; e++) {
                real d = reals(dlogits)[t * experts + e0 + e];
                for (int64_t i = 0; i < n; i++) sum[e][i] = fma_real(d, row[i], sum[e][i]);
            }
        }
        for (int64_t e = 0; e < n_experts; e++)
            for (int64_t i = 0; i < n; i++) total[e][i] += sum[e][i];
    }
    for (int64_t e = 0; e < n_experts; e++) {
        real *to = reals(grad) + (g * experts + e0 + e) * columns + c0;
        for (int64_t i = 0; i < n; i++) to[i] += total[e][i];
    }
}

void CPU_OP(route_margin)(Queue *q, Tensor margin, Tensor ids, Tensor logits) {
    if (q->failed_op) return;
    int64_t tokens = tensor_count(margin), experts = tensor_columns(logits), choices = tensor_columns(ids);
#pragma omp parallel for schedule(static) if (tensor_count(logits) > WORTH_THREADS)
    for (int64_t t = 0; t < tokens; t++) {
        const int32_t *chosen = ints(ids) + t * choices;
        const real *row = reals(logits) + t * experts;
        real least_chosen = INFINITY, other = -INFINITY;
        for (int64_t e = 0; e < experts; e++) {
            bool is_chosen = false;
            for (int64_t k = 0; k < choices; k++) is_chosen = is_chosen || chosen[k] == e;
            if (is_chosen && row[e] < least_chosen) least_chosen = row[e];
            if (!is_chosen && row[e] > other) other = row[e];
        }
        reals(margin)[t] = least_chosen - other;
    }
}

void CPU_OP(gate_grad)(Queue *q, Tensor grad, Tensor dlogits, Tensor x, Tensor offsets) {
    if (q->failed_op) return;
    int64_t groups = grad.shape[0], experts = grad.shape[1], columns = grad.shape[2];
    check(tensor_columns(dlogits) == experts && tensor_columns(x) == columns &&
              tensor_count(offsets) == groups + 1,
          "%lld x %lld x %lld", (long long)groups, (long long)experts, (long long)columns);
#pragma omp parallel for collapse(3) schedule(dynamic)
    for (int64_t g = 0; g < groups; g++)
        for (int64_t e = 0; e < experts; e += GRAD_EXPERTS)
            for (int64_t c = 0; c < columns; c += PIECE) gate_grad_tile(grad, dlogits, x, g, e, c, offsets);
}

void CPU_OP(row_norms)(Queue *q, Tensor l2, Tensor l1, Tensor x) {
    if (q->failed_op) return;
    int64_t rows = tensor_rows(x), columns = tensor_columns(x);
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        const real *row = reals(x) + r * columns;
        Lanes squares = {0}, sizes = {0};
        lanes_dot(&squares, row, row, columns);
        lanes_add_absolute(&sizes, row, columns);
        if (tensor_present(l2)) reals(l2)[r] = (real)sqrt((double)lanes_total(&squares));
        if (tensor_present(l1)) reals(l1)[r] = lanes_total(&sizes);
    }
}

void CPU_OP(segment_sums)(Queue *q, Tensor sum, Tensor absolute, Tensor x, Tensor offsets) {
    if (q->failed_op) return;
    int64_t groups = tensor_count(offsets) - 1, columns = tensor_columns(x);
#pragma omp parallel for collapse(2) schedule(dynamic) if (tensor_count(x) > WORTH_THREADS)
    for (int64_t g = 0; g < groups; g++)
        for (int64_t c = 0; c < columns; c += PIECE) {
            int64_t n = least(PIECE, columns - c), to = g * columns + c;
            real plain[PIECE] = {0}, sizes[PIECE] = {0};
            for (int64_t t = ints(offsets)[g]; t < ints(offsets)[g + 1]; t++) {
                const real *row = reals(x) + t * columns + c;
                for (int64_t i = 0; i < n; i++) {
                    plain[i] += row[i];
                    sizes[i] += (real)fabs((double)row[i]);
                }
            }
            for (int64_t i = 0; i < n && tensor_present(sum); i++) reals(sum)[to + i] += plain[i];
            for (int64_t i = 0; i < n && tensor_present(absolute); i++) reals(absolute)[to + i] += sizes[i];
        }
}

/* The first of n elements that is no number, or n: an exponent of ones. */
static int64_t first_nonfinite(Tensor x, int64_t first, int64_t n) {
    real piece[PIECE];
    read_piece(piece, x, first, n);
    int bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= !(piece[i] - piece[i] == 0);
    if (!bad) return n;
    int64_t i = 0;
    while (piece[i] - piece[i] == 0) i++;
    return i;
}

void CPU_OP(find_nonfinite)(Queue *q, Tensor first, Tensor x) {
    if (q->failed_op) return;
    int64_t count = tensor_count(x), found = count;
    check(first.dtype == DTYPE_I64, "dtype %s", dtype_name(first.dtype));
#pragma omp parallel for schedule(static) reduction(min : found) if (count > WORTH_THREADS)
    for (int64_t i = 0; i < count; i += PIECE) {
        if (found < i) continue;
        int64_t n = least(PIECE, count - i), at = first_nonfinite(x, i, n);
        if (at < n) found = least(found, i + at);
    }
    *(int64_t *)first.data = found < count ? found : -1;
}

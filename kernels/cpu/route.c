/* The router: softmax and top-k in either order, the plan that groups tokens by expert, and the weighted
 * sum back.
 *
 * Everything is real, whatever the activations are. Experts are ranked by their edited logits in both orders
 * (the softmax keeps their order), so the larger logit wins even where two probabilities round to one
 * value; equal ones go to the lower index. NaN ranks below every number: ids are always K distinct
 * experts, none of them masked. A token without edits takes the same steps on its own logits. */
#include "../math.h"
#include "lanes.h"

enum { MOST_CHOICES = 64 }; /* experts per token */

typedef struct {
    int64_t tokens, experts, choices;
} RouteShape;

static RouteShape route_shape(Tensor probs, Tensor ids, Tensor weights) {
    RouteShape n = {tensor_rows(probs), tensor_columns(probs), tensor_columns(ids)};
    check(tensor_rows(ids) == n.tokens && tensor_count(weights) == n.tokens * n.choices, "%lld tokens",
          (long long)n.tokens);
    check(n.choices >= 1 && n.choices <= least(n.experts, MOST_CHOICES), "%lld of %lld experts",
          (long long)n.choices, (long long)n.experts);
    return n;
}

/* ---- edits ---- */
typedef struct {
    const int32_t *modes; /* [E]; NULL: the token has none */
    const real *values;
} TokenEdits;

static TokenEdits token_edits(RouteEdits edits, int64_t t, int64_t experts) {
    if (!tensor_present(edits.modes) || ints(edits.rows)[t] < 0) return (TokenEdits){0};
    int64_t row = ints(edits.rows)[t];
    check(row < tensor_rows(edits.modes), "row %lld of the edits", (long long)row);
    return (TokenEdits){ints(edits.modes) + row * experts, reals(edits.values) + row * experts};
}

/* A row that no token could be routed by fails the op: too few experts left, or not each place forced. */
static bool row_is_sound(Queue *q, const int32_t *modes, const real *values, RouteShape n) {
    int64_t n_masked = 0, n_forced = 0;
    uint64_t places = 0;
    for (int64_t e = 0; e < n.experts; e++) {
        n_masked += modes[e] == EDIT_MASK;
        if (modes[e] != EDIT_FORCE) continue;
        check(values[e] >= 0 && values[e] < (real)n.choices, "forced to place %g", (double)values[e]);
        n_forced++;
        places |= (uint64_t)1 << (int)values[e];
    }
    if (n_forced && (n_forced != n.choices || places != ~(uint64_t)0 >> (64 - n.choices))) {
        queue_fail(q, "route", "%lld experts are forced, each token needs %lld", (long long)n_forced,
                   (long long)n.choices);
        return false;
    }
    if (n_forced || n.experts - n_masked >= n.choices) return true;
    queue_fail(q, "route", "%lld of %lld experts are switched off, each token needs %lld",
               (long long)n_masked, (long long)n.experts, (long long)n.choices);
    return false;
}

static bool edits_are_sound(Queue *q, RouteEdits edits, RouteShape n) {
    if (!tensor_present(edits.modes)) return true;
    check(tensor_columns(edits.modes) == n.experts && tensor_count(edits.rows) == n.tokens &&
              tensor_count(edits.values) == tensor_count(edits.modes),
          "edits of %lld experts for %lld tokens", (long long)tensor_columns(edits.modes),
          (long long)tensor_count(edits.rows));
    for (int64_t row = 0; row < tensor_rows(edits.modes); row++)
        if (!row_is_sound(q, ints(edits.modes) + row * n.experts, reals(edits.values) + row * n.experts, n))
            return false;
    return true;
}

/* The largest and the least of a row, the lower index of equal ones; NaN is passed over. */
typedef struct {
    real largest, least;
    int64_t high, low;
} Extremes;

static Extremes extremes_of(const real *x, int64_t n) {
    Extremes m = {-(real)INFINITY, (real)INFINITY, 0, 0};
    for (int64_t e = 0; e < n; e++) {
        if (x[e] > m.largest) m.largest = x[e], m.high = e;
        if (x[e] < m.least) m.least = x[e], m.low = e;
    }
    return m;
}

/* p = logits as the edits leave them. */
static void edit_logits(real *p, const real *logits, TokenEdits edits, int64_t n) {
    memcpy(p, logits, (size_t)n * sizeof *p);
    if (!edits.modes) return;
    Extremes m = extremes_of(logits, n);
    for (int64_t e = 0; e < n; e++) {
        if (edits.modes[e] == EDIT_MASK) p[e] = -(real)INFINITY;
        if (edits.modes[e] == EDIT_BIAS) p[e] += edits.values[e];
        if (edits.modes[e] == EDIT_PROMOTE) p[e] = m.largest + edits.values[e];
        if (edits.modes[e] == EDIT_DEMOTE) p[e] = m.least - edits.values[e];
    }
}

/* Weights of experts that an edit sets to zero; the others make up for EDIT_ZERO_RENORMALIZE. */
static void edit_weights(real *weights, const int32_t *ids, TokenEdits edits, int64_t choices) {
    real all = 0, left = 0;
    bool makes_up = false;
    for (int64_t k = 0; edits.modes && k < choices; k++) {
        int32_t mode = edits.modes[ids[k]];
        if (mode == EDIT_ZERO) weights[k] = 0;
        all += weights[k];
        makes_up |= mode == EDIT_ZERO_RENORMALIZE;
        if (mode == EDIT_ZERO_RENORMALIZE) weights[k] = 0;
        left += weights[k];
    }
    for (int64_t k = 0; makes_up && left > 0 && k < choices; k++) weights[k] = weights[k] * all / left;
}

/* ---- the choice ---- */
/* a ranks before b; ties are the caller's: it walks indices upwards. */
static bool ranks_before(real a, real b) { return a > b || (b != b && a == a); }

static bool choose_forced(int32_t *ids, TokenEdits edits, int64_t experts) {
    bool any = false;
    for (int64_t e = 0; edits.modes && e < experts; e++) {
        if (edits.modes[e] != EDIT_FORCE) continue;
        ids[(int)edits.values[e]] = (int32_t)e;
        any = true;
    }
    return any;
}

/* The K best of the edited logits, best first, masked experts excepted. */
static void choose_experts(int32_t *ids, const real *logits, TokenEdits edits, RouteShape n) {
    if (choose_forced(ids, edits, n.experts)) return;
    int64_t n_chosen = 0;
    for (int64_t e = 0; e < n.experts; e++) {
        if (edits.modes && edits.modes[e] == EDIT_MASK) continue;
        int64_t place = n_chosen;
        while (place > 0 && ranks_before(logits[e], logits[ids[place - 1]])) place--;
        if (place == n.choices) continue;
        if (n_chosen < n.choices) n_chosen++;
        for (int64_t k = n_chosen - 1; k > place; k--) ids[k] = ids[k - 1];
        ids[place] = (int32_t)e;
    }
}

/* x = exp(x - largest) / sum of it; -infinity gives 0. */
static void softmax_row(real *x, int64_t n) {
    real largest = -(real)INFINITY;
    for (int64_t i = 0; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    for (int64_t i = 0; i < n; i++) x[i] = exp_real(x[i] - largest);
    Lanes sum = {0};
    lanes_add(&sum, x, n);
    real total = lanes_total(&sum);
    for (int64_t i = 0; i < n; i++) x[i] /= total;
}

static void combine_weights(real *weights, const int32_t *ids, const real *probs, int64_t choices,
                            RouterRule rule) {
    real sum = 0;
    for (int64_t k = 0; k < choices; k++) {
        if (rule.order == ROUTER_SOFTMAX_TOPK) weights[k] = probs[ids[k]];
        sum += weights[k];
    }
    bool divides = rule.order == ROUTER_SOFTMAX_TOPK && rule.renormalize;
    for (int64_t k = 0; k < choices; k++)
        weights[k] = (divides ? weights[k] / sum : weights[k]) * (real)rule.scale;
}

void CPU_OP(route)(Queue *q, Tensor probs, Tensor ids, Tensor weights, Tensor logits, RouteEdits edits,
                   RouterRule rule) {
    if (q->failed_op) return;
    RouteShape n = route_shape(logits, ids, weights);
    check(tensor_count(probs) == tensor_count(logits), "%lld probabilities", (long long)tensor_count(probs));
    if (!edits_are_sound(q, edits, n)) return;
#pragma omp parallel for schedule(static) if (n.tokens * n.experts > WORTH_THREADS)
    for (int64_t t = 0; t < n.tokens; t++) {
        real *p = reals(probs) + t * n.experts, *w = reals(weights) + t * n.choices;
        int32_t *chosen = ints(ids) + t * n.choices;
        TokenEdits own = token_edits(edits, t, n.experts);
        edit_logits(p, reals(logits) + t * n.experts, own, n.experts);
        choose_experts(chosen, p, own, n);
        if (rule.order == ROUTER_TOPK_SOFTMAX) {
            for (int64_t k = 0; k < n.choices; k++) w[k] = p[chosen[k]];
            softmax_row(w, n.choices);
        }
        softmax_row(p, n.experts);
        combine_weights(w, chosen, p, n.choices, rule);
        edit_weights(w, chosen, own, n.choices);
    }
}

/* ---- backward ---- */
/* Where the gradient of an edited logit goes: a promoted or demoted expert's to the extreme that it was set
 * from, any other's to itself. */
typedef struct {
    const int32_t *modes; /* NULL: everyone's own */
    int64_t high, low;
} Sources;

static int64_t source_of(Sources s, int64_t e) {
    if (!s.modes) return e;
    return s.modes[e] == EDIT_PROMOTE ? s.high : s.modes[e] == EDIT_DEMOTE ? s.low : e;
}

/* g: from the gradient of the weights after edit_weights to the one before. v: the weights before it, times
 * any factor. */
static void edit_weights_gradient(real *g, const real *v, const int32_t *ids, TokenEdits edits,
                                  int64_t choices) {
    real all = 0, left = 0, kept = 0;
    bool makes_up = false;
    for (int64_t k = 0; edits.modes && k < choices; k++) {
        int32_t mode = edits.modes[ids[k]];
        if (mode == EDIT_ZERO || mode == EDIT_ZERO_RENORMALIZE) g[k] = 0;
        if (mode == EDIT_ZERO) continue;
        all += v[k];
        makes_up |= mode == EDIT_ZERO_RENORMALIZE;
        if (mode == EDIT_ZERO_RENORMALIZE) continue;
        left += v[k];
        kept = fma_real(g[k], v[k], kept);
    }
    if (!makes_up || !(left > 0)) return;
    real mean = kept / left, ratio = all / left;
    for (int64_t k = 0; k < choices; k++) {
        int32_t mode = edits.modes[ids[k]];
        if (mode == EDIT_ZERO_RENORMALIZE)
            g[k] = mean;
        else if (mode != EDIT_ZERO)
            g[k] = fma_real(ratio, g[k] - mean, mean);
    }
}

/* Weights that are a softmax over the chosen: dlogit_k += v_k sum_j v_j (g_k - g_j). Written in
 * differences, so that it is exactly antisymmetric for two choices. */
static void chosen_gradient(real *dlogits, const real *g, const real *v, const int32_t *ids, Sources sources,
                            int64_t choices) {
    for (int64_t k = 0; k < choices; k++) {
        real sum = 0;
        for (int64_t j = 0; j < choices; j++) sum = fma_real(v[k] * v[j], g[k] - g[j], sum);
        dlogits[source_of(sources, ids[k])] += sum;
    }
}

/* Weights that are probabilities over all: dlogit_e += p_e (g_e - sum_k p_k g_k), g_e = 0 for the others. */
static void whole_gradient(real *dlogits, const real *g, const real *p, const int32_t *ids, Sources sources,
                           RouteShape n) {
    real mean = 0;
    for (int64_t k = 0; k < n.choices; k++) mean = fma_real(p[ids[k]], g[k], mean);
    for (int64_t k = 0; k < n.choices; k++) {
        real *d = &dlogits[source_of(sources, ids[k])];
        *d = fma_real(p[ids[k]], g[k], *d);
    }
    for (int64_t e = 0; e < n.experts; e++) {
        real *d = &dlogits[source_of(sources, e)];
        *d = fma_real(-p[e], mean, *d);
    }
}

void CPU_OP(route_bwd)(Queue *q, Tensor dlogits, Tensor dweights, Tensor probs, Tensor ids, Tensor weights,
                       Tensor logits, RouteEdits edits, RouterRule rule) {
    if (q->failed_op) return;
    RouteShape n = route_shape(probs, ids, weights);
    check(tensor_count(dlogits) == tensor_count(probs) && tensor_count(dweights) == tensor_count(weights),
          "%lld tokens", (long long)n.tokens);
#pragma omp parallel for schedule(static) if (n.tokens * n.experts > WORTH_THREADS)
    for (int64_t t = 0; t < n.tokens; t++) {
        const real *p = reals(probs) + t * n.experts, *dw = reals(dweights) + t * n.choices;
        const int32_t *chosen = ints(ids) + t * n.choices;
        real *d = reals(dlogits) + t * n.experts, g[MOST_CHOICES], v[MOST_CHOICES], sum = 0;
        TokenEdits own = token_edits(edits, t, n.experts);
        Sources sources = {.modes = own.modes};
        if (own.modes) {
            Extremes m = extremes_of(reals(logits) + t * n.experts, n.experts);
            sources.high = m.high, sources.low = m.low;
        }
        for (int64_t k = 0; k < n.choices; k++)
            g[k] = (real)rule.scale * dw[k], v[k] = p[chosen[k]], sum += v[k];
        edit_weights_gradient(g, v, chosen, own, n.choices);
        if (rule.order == ROUTER_SOFTMAX_TOPK && !rule.renormalize) {
            whole_gradient(d, g, p, chosen, sources, n);
            continue;
        }
        for (int64_t k = 0; k < n.choices; k++) v[k] /= sum;
        chosen_gradient(d, g, v, chosen, sources, n.choices);
    }
}

/* Counting sort by expert; offsets hold the counts, then the cursors, then the offsets. */
void CPU_OP(moe_plan)(Queue *q, MoePlan plan, Tensor ids) {
    if (q->failed_op) return;
    int64_t n_experts = tensor_count(plan.offsets) - 1, n_pairs = tensor_count(ids);
    int32_t *offsets = ints(plan.offsets), *pairs = ints(plan.pairs), *rows = ints(plan.rows);
    const int32_t *expert = ints(ids);
    check(plan.alignment == 1, "alignment %d", plan.alignment);
    check(tensor_count(plan.pairs) == n_pairs && tensor_count(plan.rows) == n_pairs, "%lld pairs",
          (long long)n_pairs);
    memset(offsets, 0, (size_t)(n_experts + 1) * sizeof *offsets);
    for (int64_t i = 0; i < n_pairs; i++) {
        check(expert[i] >= 0 && expert[i] < n_experts, "expert %d", (int)expert[i]);
        offsets[expert[i] + 1]++;
    }
    for (int64_t e = 0; e < n_experts; e++) offsets[e + 1] += offsets[e];
    for (int64_t i = n_pairs - 1; i >= 0; i--) {
        int32_t row = --offsets[expert[i] + 1];
        pairs[row] = (int32_t)i;
        rows[i] = row;
    }
    for (int64_t e = 0; e < n_experts; e++) offsets[e] = offsets[e + 1];
    offsets[n_experts] = (int32_t)n_pairs;
}

void CPU_OP(moe_combine)(Queue *q, Tensor out, Tensor y, Tensor weights, Tensor residual, MoePlan plan) {
    if (q->failed_op) return;
    int64_t tokens = tensor_rows(out), columns = tensor_columns(out), choices = tensor_columns(plan.rows);
    check(tensor_count(weights) == tokens * choices && tensor_columns(y) == columns, "%lld x %lld",
          (long long)tokens, (long long)columns);
#pragma omp parallel for schedule(static) if (tokens * columns > WORTH_THREADS)
    for (int64_t t = 0; t < tokens; t++) {
        const int32_t *rows = ints(plan.rows) + t * choices;
        const real *w = reals(weights) + t * choices;
        for (int64_t c = 0; c < columns; c += PIECE) {
            int64_t n = least(PIECE, columns - c);
            real sum[PIECE] = {0}, piece[PIECE];
            for (int64_t k = 0; k < choices; k++) {
                read_piece(piece, y, rows[k] * columns + c, n);
                for (int64_t i = 0; i < n; i++) sum[i] = fma_real(w[k], piece[i], sum[i]);
            }
            if (tensor_present(residual)) {
                read_piece(piece, residual, t * columns + c, n);
                for (int64_t i = 0; i < n; i++) sum[i] += piece[i];
            }
            write_piece(out, t * columns + c, sum, n);
        }
    }
}

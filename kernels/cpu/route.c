/* The router: softmax and top-k in either order, the plan that groups tokens by expert, and the weighted
 * sum back.
 *
 * Everything is real, whatever the activations are. Experts are ranked by logits + bias in both orders
 * (the softmax keeps their order), so the larger logit wins even where two probabilities round to one
 * value; equal ones go to the lower index. NaN ranks below every number: ids are always K distinct
 * experts, and none whose bias is -inf. */
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

/* a ranks before b; ties are the caller's: it walks indices upwards. */
static bool ranks_before(real a, real b) { return a > b || (b != b && a == a); }

/* The K best of the logits, best first, experts that the bias switches off excepted. */
static void choose_experts(int32_t *ids, const real *logits, const real *bias, RouteShape n) {
    int64_t n_chosen = 0;
    for (int64_t e = 0; e < n.experts; e++) {
        if (bias && bias[e] == -(real)INFINITY) continue;
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

void CPU_OP(route)(Queue *q, Tensor probs, Tensor ids, Tensor weights, Tensor logits, Tensor bias,
                   RouterRule rule) {
    if (q->failed_op) return;
    RouteShape n = route_shape(logits, ids, weights);
    check(tensor_count(probs) == tensor_count(logits), "%lld probabilities", (long long)tensor_count(probs));
    const real *shift = tensor_present(bias) ? reals(bias) : NULL;
    int64_t n_left = n.experts;
    for (int64_t e = 0; shift && e < n.experts; e++) n_left -= shift[e] == -(real)INFINITY;
    if (n_left < n.choices) {
        queue_fail(q, "route", "%lld of %lld experts are switched off, each token needs %lld",
                   (long long)(n.experts - n_left), (long long)n.experts, (long long)n.choices);
        return;
    }
#pragma omp parallel for schedule(static) if (n.tokens * n.experts > WORTH_THREADS)
    for (int64_t t = 0; t < n.tokens; t++) {
        const real *row = reals(logits) + t * n.experts;
        real *p = reals(probs) + t * n.experts, *w = reals(weights) + t * n.choices;
        int32_t *chosen = ints(ids) + t * n.choices;
        for (int64_t e = 0; e < n.experts; e++) p[e] = shift ? row[e] + shift[e] : row[e];
        choose_experts(chosen, p, shift, n);
        if (rule.order == ROUTER_TOPK_SOFTMAX) {
            for (int64_t k = 0; k < n.choices; k++) w[k] = p[chosen[k]];
            softmax_row(w, n.choices);
        }
        softmax_row(p, n.experts);
        combine_weights(w, chosen, p, n.choices, rule);
    }
}

/* Weights that are a softmax over the chosen: dlogit_k += v_k sum_j v_j (g_k - g_j). Written in
 * differences, so that it is exactly antisymmetric for two choices. */
static void chosen_gradient(real *dlogits, const real *g, const real *v, const int32_t *ids,
                            int64_t choices) {
    for (int64_t k = 0; k < choices; k++) {
        real sum = 0;
        for (int64_t j = 0; j < choices; j++) sum = fma_real(v[k] * v[j], g[k] - g[j], sum);
        dlogits[ids[k]] += sum;
    }
}

/* Weights that are probabilities over all: dlogit_e += p_e (g_e - sum_k p_k g_k), g_e = 0 for the others. */
static void whole_gradient(real *dlogits, const real *g, const real *p, const int32_t *ids, RouteShape n) {
    real mean = 0;
    for (int64_t k = 0; k < n.choices; k++) mean = fma_real(p[ids[k]], g[k], mean);
    for (int64_t k = 0; k < n.choices; k++) dlogits[ids[k]] = fma_real(p[ids[k]], g[k], dlogits[ids[k]]);
    for (int64_t e = 0; e < n.experts; e++) dlogits[e] = fma_real(-p[e], mean, dlogits[e]);
}

void CPU_OP(route_bwd)(Queue *q, Tensor dlogits, Tensor dweights, Tensor probs, Tensor ids, Tensor weights,
                       RouterRule rule) {
    if (q->failed_op) return;
    RouteShape n = route_shape(probs, ids, weights);
    check(tensor_count(dlogits) == tensor_count(probs) && tensor_count(dweights) == tensor_count(weights),
          "%lld tokens", (long long)n.tokens);
#pragma omp parallel for schedule(static) if (n.tokens * n.experts > WORTH_THREADS)
    for (int64_t t = 0; t < n.tokens; t++) {
        const real *p = reals(probs) + t * n.experts, *dw = reals(dweights) + t * n.choices;
        const int32_t *chosen = ints(ids) + t * n.choices;
        real *d = reals(dlogits) + t * n.experts, g[MOST_CHOICES], v[MOST_CHOICES], sum = 0;
        for (int64_t k = 0; k < n.choices; k++)
            g[k] = (real)rule.scale * dw[k], v[k] = p[chosen[k]], sum += v[k];
        if (rule.order == ROUTER_SOFTMAX_TOPK && !rule.renormalize) {
            whole_gradient(d, g, p, chosen, n);
            continue;
        }
        for (int64_t k = 0; k < n.choices; k++) v[k] /= sum;
        chosen_gradient(d, g, v, chosen, n.choices);
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

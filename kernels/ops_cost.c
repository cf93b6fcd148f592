/* The table that computes nothing: every op adds its floating-point operations and the bytes of its
 * operands.
 *
 * 2 per multiply-add of products and attention, 1 per other operation, an exp or a root counted as 1. An
 * operand counts once for a read and once for a write, an accumulated gradient twice. What only the
 * contents of index tensors tell is taken evenly: packed prompts of equal length, tokens spread over all
 * experts. */
#include "cost.h"

/* Work of one call on tensors touched once each. */
static void spend(Queue *q, double flops, double gemm_flops, const Tensor *touched, size_t n) {
    q->cost.flops += flops;
    q->cost.gemm_flops += gemm_flops;
    q->cost.n_calls++;
    for (size_t i = 0; i < n; i++)
        if (tensor_present(touched[i])) q->cost.bytes += (double)tensor_bytes(touched[i]);
}

#define TOUCHES(...) (const Tensor[]){__VA_ARGS__}, sizeof((const Tensor[]){__VA_ARGS__}) / sizeof(Tensor)

static double count(Tensor t) { return tensor_present(t) ? (double)tensor_count(t) : 0; }

/* ---- rows ---- */
static void cost_embed(Queue *q, Tensor y, Tensor ids, Tensor table) {
    Tensor rows = y;
    rows.dtype = table.dtype;
    spend(q, 0, 0, TOUCHES(y, rows, ids));
}
static void cost_gather_rows(Queue *q, Tensor y, Tensor x, Tensor index) {
    (void)x;
    spend(q, 0, 0, TOUCHES(y, y, index));
}
static void cost_gather_rows_bwd(Queue *q, Tensor dx, Tensor dy, Tensor index) {
    (void)dx;
    spend(q, count(dy), 0, TOUCHES(dy, dy, dy, index));
}
static void cost_scatter_rows(Queue *q, Tensor y, Tensor x, Tensor index) {
    (void)y;
    spend(q, 0, 0, TOUCHES(x, x, index));
}
static void cost_add(Queue *q, Tensor y, Tensor a, Tensor b) { spend(q, count(y), 0, TOUCHES(y, a, b)); }
static void cost_accumulate(Queue *q, Tensor y, Tensor x) { spend(q, count(y), 0, TOUCHES(y, y, x)); }

/* ---- norms ---- */
static void cost_rmsnorm(Queue *q, Tensor y, Tensor x, Tensor w, float eps) {
    (void)eps;
    spend(q, 4 * count(x), 0, TOUCHES(y, x, w));
}
static void cost_rmsnorm_bwd(Queue *q, Tensor dx, Tensor dy, Tensor x, Tensor w, float eps) {
    (void)eps;
    spend(q, 10 * count(x), 0, TOUCHES(dx, dx, dy, x, w));
}
static void cost_layernorm(Queue *q, Tensor y, Tensor x, Tensor w, Tensor b, float eps) {
    (void)eps;
    spend(q, 8 * count(x), 0, TOUCHES(y, x, w, b));
}
static void cost_layernorm_bwd(Queue *q, Tensor dx, Tensor dy, Tensor x, Tensor w, float eps) {
    (void)eps;
    spend(q, 16 * count(x), 0, TOUCHES(dx, dx, dy, x, w));
}

/* ---- attention ---- */
static void cost_rope(Queue *q, Tensor y, Tensor x, Tensor positions, Tensor frequencies, float scale,
                      RopeKind kind) {
    (void)scale, (void)kind;
    spend(q, 3 * count(x), 0, TOUCHES(y, x, positions, frequencies));
}
static void cost_rope_bwd(Queue *q, Tensor dx, Tensor dy, Tensor positions, Tensor frequencies, float scale,
                          RopeKind kind) {
    (void)scale, (void)kind;
    spend(q, 4 * count(dx), 0, TOUCHES(dx, dx, dy, positions, frequencies));
}

/* (query row, key) pairs of all heads that take part, the prompts being equally long. */
static double attention_pairs(Tensor query, Tensor key, Spans spans, int64_t window) {
    double prompts = count(spans.kv_begin), tokens = (double)query.shape[0], heads = (double)query.shape[1];
    if (prompts == 0) return 0;
    double queries = tokens / prompts, keys = (double)key.shape[0] / prompts, seen = keys - (queries - 1) / 2;
    if (window > 0 && seen > (double)window) seen = (double)window;
    return tokens * heads * (seen > 1 ? seen : 1);
}
static void cost_attention(Queue *q, Tensor out, Tensor lse, Tensor query, Tensor key, Tensor value,
                           Spans spans, Tensor sinks, float scale, int64_t window) {
    (void)scale;
    double pairs = attention_pairs(query, key, spans, window);
    double width = (double)(tensor_columns(query) + tensor_columns(value));
    spend(q, pairs * (2 * width + 4), 0, TOUCHES(out, lse, query, key, value, sinks));
}
static void cost_attention_bwd(Queue *q, Tensor dquery, Tensor dkey, Tensor dvalue, Tensor dout, Tensor out,
                               Tensor lse, Tensor query, Tensor key, Tensor value, Spans spans, float scale,
                               int64_t window) {
    (void)scale;
    double pairs = attention_pairs(query, key, spans, window);
    double size = (double)tensor_columns(query), width = (double)tensor_columns(value);
    double products = size + width; /* scores, and dout . v */
    if (tensor_present(dquery)) products += size;
    if (tensor_present(dkey)) products += size;
    if (tensor_present(dvalue)) products += width;
    spend(q, pairs * (2 * products + 5), 0,
          TOUCHES(dquery, dquery, dkey, dkey, dvalue, dvalue, dout, out, lse, query, key, value));
}

/* ---- dense products ---- */
static void cost_dense(Queue *q, Tensor y, Tensor x, Tensor w, Tensor bias, Tensor residual) {
    double product = 2 * count(y) * (double)tensor_columns(x);
    double sums = (tensor_present(bias) ? count(y) : 0) + count(residual);
    spend(q, product + sums, product, TOUCHES(y, x, w, bias, residual));
}
static void cost_dense_bwd(Queue *q, Tensor dx, Tensor dy, Tensor w) {
    double product = 2 * count(dx) * (double)tensor_columns(dy);
    spend(q, product, product, TOUCHES(dx, dx, dy, w));
}
static void cost_swiglu(Queue *q, Tensor h, Tensor z, Activation act) {
    (void)act;
    spend(q, 5 * count(h), 0, TOUCHES(h, z));
}
static void cost_swiglu_bwd(Queue *q, Tensor dz, Tensor dh, Tensor z, Activation act) {
    (void)act;
    spend(q, 12 * count(dh), 0, TOUCHES(dz, dz, dh, z));
}
static void cost_sigmoid_scale(Queue *q, Tensor y, Tensor x, Tensor gate, Tensor residual) {
    spend(q, count(y) + count(residual) + 3 * count(gate), 0, TOUCHES(y, x, gate, residual));
}
static void cost_sigmoid_scale_bwd(Queue *q, Tensor dx, Tensor dgate, Tensor dy, Tensor x, Tensor gate) {
    spend(q, 4 * count(x) + 5 * count(gate), 0, TOUCHES(dx, dx, dgate, dgate, dy, x, gate));
}

/* ---- routed experts ---- */
static void cost_route(Queue *q, Tensor probs, Tensor ids, Tensor weights, Tensor logits, RouteEdits edits,
                       RouterRule rule) {
    (void)rule;
    spend(q, 5 * count(logits) + 3 * count(ids), 0,
          TOUCHES(probs, ids, weights, logits, edits.modes, edits.values, edits.rows));
}
static void cost_route_bwd(Queue *q, Tensor dlogits, Tensor dweights, Tensor probs, Tensor ids,
                           Tensor weights, Tensor logits, RouteEdits edits, RouterRule rule) {
    if (!tensor_present(edits.modes)) logits = (Tensor){0}; /* read for its extremes alone */
    double choices = (double)tensor_columns(ids);
    bool whole = rule.order == ROUTER_SOFTMAX_TOPK && !rule.renormalize;
    spend(q, whole ? 2 * count(probs) + 4 * count(ids) : 4 * count(ids) * choices, 0,
          TOUCHES(dlogits, dlogits, dweights, probs, ids, weights, logits, edits.modes, edits.values,
                  edits.rows));
}
static void cost_moe_plan(Queue *q, MoePlan plan, Tensor ids) {
    spend(q, 0, 0, TOUCHES(plan.offsets, plan.pairs, plan.rows, ids));
}

/* Weights of experts that get no row are not read. */
static Tensor experts_read(Tensor w, int64_t rows) {
    if (tensor_present(w) && w.shape[0] > rows) w.shape[0] = rows;
    return w;
}
static void cost_moe_gate_up(Queue *q, Tensor z, Tensor x, Tensor w, Tensor bias, MoePlan plan) {
    double product = 2 * count(z) * (double)tensor_columns(x);
    int64_t rows = tensor_rows(z);
    spend(q, product + (tensor_present(bias) ? count(z) : 0), product,
          TOUCHES(z, x, experts_read(w, rows), experts_read(bias, rows), plan.pairs));
}
static void cost_moe_hidden(Queue *q, Tensor h, Tensor z, Tensor x, Tensor w, Tensor bias, MoePlan plan,
                            Activation act, bool keep) {
    (void)act;
    double product = 2 * count(z) * (double)tensor_columns(x);
    int64_t rows = tensor_rows(z);
    if (!keep) z.data = NULL;
    spend(q, product + (tensor_present(bias) ? 2 * count(h) : 0) + 5 * count(h), product,
          TOUCHES(h, z, x, experts_read(w, rows), experts_read(bias, rows), plan.pairs));
}
static void cost_moe_gate_up_bwd(Queue *q, Tensor dx, Tensor scratch, Tensor dz, Tensor w, MoePlan plan) {
    const bool sums = tensor_present(dx);
    double product = 2 * count(dz) * (double)tensor_columns(scratch);
    const Tensor absent = {0};
    spend(q, product + (sums ? count(scratch) : 0), product,
          TOUCHES(dx, dx, scratch, sums ? scratch : absent, dz, experts_read(w, tensor_rows(dz)),
                  sums ? plan.rows : absent));
}
static void cost_moe_add_rows(Queue *q, Tensor dx, Tensor rows, MoePlan plan) {
    spend(q, count(rows), 0, TOUCHES(dx, dx, rows, plan.rows));
}
static void cost_moe_down(Queue *q, Tensor y, Tensor h, Tensor w, Tensor bias, MoePlan plan) {
    double product = 2 * count(y) * (double)tensor_columns(h);
    int64_t rows = tensor_rows(y);
    spend(q, product + (tensor_present(bias) ? count(y) : 0), product,
          TOUCHES(y, h, experts_read(w, rows), experts_read(bias, rows), plan.offsets));
}
static void cost_moe_down_bwd(Queue *q, Tensor da, Tensor dweights, Tensor dout, Tensor w, Tensor bias,
                              MoePlan plan) {
    double product = 2 * count(da) * (double)tensor_columns(dout);
    double biased = tensor_present(bias) ? 2 * (double)tensor_rows(da) * (double)tensor_columns(dout) : 0;
    int64_t rows = tensor_rows(da);
    spend(q, product + biased, product,
          TOUCHES(da, dweights, dweights, dout, experts_read(w, rows), experts_read(bias, rows), plan.pairs));
}
static void cost_moe_swiglu_bwd(Queue *q, Tensor dz, Tensor dweights, Tensor da, Tensor z, Tensor weights,
                                MoePlan plan, Activation act) {
    (void)act;
    spend(q, 16 * count(da), 0, TOUCHES(dz, dweights, dweights, da, z, weights, plan.pairs));
}
static void cost_moe_hidden_bwd(Queue *q, Tensor dz, Tensor dweights, Tensor scratch, Tensor dout, Tensor z,
                                Tensor weights, Tensor w, Tensor bias, MoePlan plan, Activation act) {
    (void)act;
    double product = 2 * count(scratch) * (double)tensor_columns(dout);
    double biased = tensor_present(bias) ? 2 * (double)tensor_rows(z) * (double)tensor_columns(dout) : 0;
    int64_t rows = tensor_rows(z);
    spend(q, product + biased + 16 * count(scratch), product,
          TOUCHES(dz, dweights, dweights, dout, z, weights, experts_read(w, rows), experts_read(bias, rows),
                  plan.pairs));
}
static void cost_moe_combine(Queue *q, Tensor out, Tensor y, Tensor weights, Tensor residual, MoePlan plan) {
    spend(q, 2 * count(y) + count(residual), 0, TOUCHES(out, y, weights, residual, plan.rows));
}

/* ---- low-rank updates ---- */
/* Rows of the experts with a cell. */
static double adapted_rows(Lora lora, MoePlan plan) {
    return count(plan.pairs) * count(lora.experts) / (count(plan.offsets) - 1);
}
/* Work and bytes on adapted rows of so many elements, beside tensors touched once each. */
static void spend_rows(Queue *q, double product, double rows, double row_bytes, const Tensor *touched,
                       size_t n) {
    spend(q, product, product, touched, n);
    q->cost.bytes += rows * row_bytes;
}
static double row_bytes(Tensor t, int64_t columns) {
    return tensor_present(t) ? (double)columns * (double)dtype_bytes(t.dtype) : 0;
}
static void cost_lora(Queue *q, Tensor y, Tensor x, Lora lora, MoePlan plan) {
    int64_t in = lora.a.shape[2], out = lora.b.shape[1];
    double rows = adapted_rows(lora, plan), product = 2 * rows * (double)(lora.a.shape[1] * (in + out));
    spend_rows(q, product, rows, row_bytes(x, in) + 2 * row_bytes(y, out),
               TOUCHES(lora.a, lora.b, lora.experts, lora.scales));
}
static void cost_lora_bwd(Queue *q, Tensor dx, LoraSums sums, Tensor scratch, Tensor dy, Tensor x, Lora lora,
                          Tensor weights, MoePlan plan) {
    int64_t in = lora.a.shape[2], out = lora.b.shape[1], rank = lora.a.shape[1];
    double rows = adapted_rows(lora, plan), one = 2 * rows * (double)rank;
    double examples = tensor_present(sums.offsets) ? count(sums.offsets) - 1 : 0;
    double product = one * (double)(in + out), bytes = row_bytes(x, in) + row_bytes(dy, out);
    if (tensor_present(dx)) product += one * (double)in;
    if (tensor_present(sums.a)) product += one * (double)in;
    if (tensor_present(sums.b)) product += one * (double)out;
    bytes += 2 * row_bytes(dx, in) + 2 * row_bytes(scratch, 2 * rank);
    if (lora.down) bytes += row_bytes(weights, 1);
    spend_rows(q, product, rows, bytes, TOUCHES(lora.a, lora.b, lora.experts, lora.scales, sums.offsets));
    /* each example is added to two slots on average */
    if (tensor_present(sums.a)) q->cost.bytes += 4 * examples * (double)tensor_bytes(lora.a);
    if (tensor_present(sums.b)) q->cost.bytes += 4 * examples * (double)tensor_bytes(lora.b);
}
static void cost_router_rows(Queue *q, Tensor logits, Tensor x, Tensor experts, Tensor rows) {
    const double changed = (double)tensor_rows(logits) * (double)tensor_rows(rows);
    spend(q, 2 * changed * (double)tensor_columns(x), 0, TOUCHES(x, experts, rows));
    q->cost.bytes += 2 * changed * (double)dtype_bytes(logits.dtype);
}
static void cost_router_rows_bwd(Queue *q, Tensor dx, LoraSums sums, Tensor dlogits, Tensor x, Tensor experts,
                                 Tensor rows) {
    const double read = (double)tensor_rows(dlogits) * (double)tensor_rows(rows);
    const double product = 2 * read * (double)tensor_columns(rows);
    const double examples = tensor_present(sums.a) ? count(sums.offsets) - 1 : 0;
    if (!tensor_present(sums.a)) x = (Tensor){0};
    spend(q, ((tensor_present(dx) ? 1 : 0) + (tensor_present(sums.a) ? 1 : 0)) * product, 0,
          TOUCHES(dx, dx, x, experts, rows));
    q->cost.bytes += read * (double)dtype_bytes(dlogits.dtype) + 4 * examples * (double)tensor_bytes(rows);
}
static void cost_dropout(Queue *q, Tensor y, Tensor x, Tensor keys, MoePlan plan, DropoutRule rule) {
    (void)rule;
    spend(q, count(x), 0, TOUCHES(y, x, keys, plan.pairs));
}
static void cost_dropout_bwd(Queue *q, Tensor dx, Tensor dy, Tensor keys, MoePlan plan, DropoutRule rule) {
    (void)rule;
    spend(q, 2 * count(dx), 0, TOUCHES(dx, dx, dy, keys, plan.pairs));
}
static void cost_sum_slots(Queue *q, Tensor y, Tensor slots, int64_t n_examples) {
    (void)slots;
    double full = 0;
    for (; n_examples; n_examples >>= 1) full += (double)(n_examples & 1);
    spend(q, full * count(y), 0, TOUCHES(y));
    q->cost.bytes += full * (double)tensor_bytes(y);
}
static void cost_adamw(Queue *q, Tensor x, Tensor m, Tensor v, Tensor grad, AdamwRule rule) {
    (void)rule;
    spend(q, 14 * count(x), 0, TOUCHES(x, x, m, m, v, v, grad));
}

/* ---- measurements ---- */
static void cost_count_experts(Queue *q, Tensor selected, Tensor mass, Tensor weight, Tensor ids,
                               Tensor weights, Tensor probs, Tensor group) {
    double flops = (tensor_present(mass) ? count(probs) : 0) + (tensor_present(weight) ? count(weights) : 0);
    spend(q, flops, 0, TOUCHES(selected, selected, mass, mass, weight, weight, ids, weights, probs, group));
}
static void cost_expert_peaks(Queue *q, Tensor largest, Tensor norm, Tensor y, MoePlan plan, Tensor group) {
    spend(q, 3 * count(y), 0, TOUCHES(largest, largest, norm, norm, y, plan.pairs, group));
}
static void cost_route_margin(Queue *q, Tensor margin, Tensor ids, Tensor logits) {
    spend(q, count(logits), 0, TOUCHES(margin, ids, logits));
}
static void cost_gate_grad(Queue *q, Tensor grad, Tensor dlogits, Tensor x, Tensor offsets) {
    double product = 2 * count(dlogits) * (double)tensor_columns(x);
    spend(q, product, 0, TOUCHES(grad, grad, dlogits, x, offsets));
}
static void cost_row_norms(Queue *q, Tensor l2, Tensor l1, Tensor x) {
    spend(q, 4 * count(x), 0, TOUCHES(l2, l1, x));
}
static void cost_segment_sums(Queue *q, Tensor sum, Tensor absolute, Tensor x, Tensor offsets) {
    spend(q, 3 * count(x), 0, TOUCHES(sum, sum, absolute, absolute, x, offsets));
}
static void cost_find_nonfinite(Queue *q, Tensor first, Tensor x) {
    spend(q, count(x), 0, TOUCHES(first, x));
}

/* ---- loss and choice ---- */
static void cost_cross_entropy(Queue *q, Tensor nll, Tensor lse, Tensor scratch, Tensor x, Tensor w,
                               Tensor bias, Tensor targets) {
    (void)scratch;
    double logits = (double)tensor_rows(x) * (double)tensor_rows(w),
           product = 2 * logits * (double)tensor_columns(x);
    spend(q, product + 4 * logits, product, TOUCHES(nll, lse, x, w, bias, targets));
}
static void cost_cross_entropy_bwd(Queue *q, Tensor dx, Tensor scratch, Tensor dnll, Tensor lse, Tensor x,
                                   Tensor w, Tensor bias, Tensor targets) {
    (void)scratch;
    double logits = (double)tensor_rows(x) * (double)tensor_rows(w),
           product = 2 * logits * (double)tensor_columns(x);
    spend(q, 2 * product + 4 * logits, 2 * product, TOUCHES(dx, dx, dnll, lse, x, w, w, bias, targets));
}
static void cost_router_kl(Queue *q, Tensor kl, Tensor logits, Tensor frozen, float temperature) {
    (void)temperature;
    spend(q, 11 * count(logits), 0, TOUCHES(kl, logits, frozen));
}
static void cost_router_kl_bwd(Queue *q, Tensor dlogits, Tensor dkl, Tensor logits, Tensor frozen,
                               float temperature) {
    (void)temperature;
    spend(q, 13 * count(logits), 0, TOUCHES(dlogits, dlogits, dkl, logits, frozen));
}
static void cost_router_anchor(Queue *q, Tensor distance, Tensor logits, Tensor aim) {
    spend(q, 7 * count(logits), 0, TOUCHES(distance, logits, aim));
}
static void cost_router_anchor_bwd(Queue *q, Tensor dlogits, Tensor ddistance, Tensor logits, Tensor aim) {
    spend(q, 12 * count(logits), 0, TOUCHES(dlogits, dlogits, ddistance, logits, aim));
}
static void cost_argmax(Queue *q, Tensor ids, Tensor logits, int64_t n_valid) {
    spend(q, (double)tensor_rows(logits) * (double)n_valid, 0, TOUCHES(ids, logits));
}
static void cost_sample(Queue *q, Tensor ids, Tensor scratch, Tensor logits, Tensor keys, SampleRule rule) {
    spend(q, 4 * (double)tensor_rows(logits) * (double)rule.n_valid, 0,
          TOUCHES(ids, scratch, scratch, logits, keys));
}

/* A signature that drifts from ops.h fails to build here. */
const Ops cost_ops = {
#define X(op) .op = cost_##op,
    OPS(X)
#undef X
};

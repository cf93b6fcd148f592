/* THE interface: what every op means, and the table of them that a backend fills.
 *
 * Order of arguments: queue, outputs, inputs, weights, scalars; sizes come from the tensors. Forward ops
 * overwrite their outputs, `_bwd` ops add to gradients; an absent output is not computed, an absent optional
 * input is not used. No op allocates, none waits. Outputs do not overlap inputs unless the op says so.
 *
 * Types. "act": activations, f32 or bf16 (all activations of a call alike). "real": f32. Weights: f32, bf16
 * or f16, whatever the file holds. Sums inside an op are f32; the result is rounded once, where it is stored.
 * In the table "f64" (tests) act, real and weights are f64.
 *
 * Same bits. An output row depends on its own inputs alone: not on its place, the other rows, the threads or
 * the vector width. A product sums k in blocks of 256: each block one chain of fma from 0, block sums added
 * in order; bf16 by bf16 goes in pairs of k, as kernels/cpu/gemm.h says. Reductions over tokens run per
 * prompt, tokens in order. Ties go to the lower index. */
#ifndef GATETAPE_OPS_H
#define GATETAPE_OPS_H
#include "tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Queue Queue;

/* Which rows belong to which prompt. Prompt p has the query rows [offsets[p], offsets[p+1]); its keys and
 * values are the rows [kv_begin[p], kv_begin[p] + kv_length[p]) of k and v, and its last query stands at the
 * last key. */
typedef struct {
    Tensor offsets;   /* [P+1] i32 */
    Tensor kv_begin;  /* [P] i32 */
    Tensor kv_length; /* [P] i32, at least the number of the prompt's query rows */
} Spans;

typedef enum {
    ROUTER_SOFTMAX_TOPK, /* softmax over all experts, the K largest kept */
    ROUTER_TOPK_SOFTMAX  /* the K largest logits, softmax over those */
} RouterOrder;

typedef struct {
    RouterOrder order;
    bool renormalize; /* ROUTER_SOFTMAX_TOPK only: divide the K weights by their sum */
    float scale;      /* weights are multiplied by it last (1: unchanged) */
} RouterRule;

/* What an edit does to an expert of one token. Logit edits come first, then the choice, then the rule's
 * weights, then the edits of weights. */
typedef enum {
    EDIT_NONE,
    EDIT_MASK,    /* logit = -infinity; never chosen */
    EDIT_BIAS,    /* logit += value */
    EDIT_PROMOTE, /* logit = largest logit of the token before any edit + value */
    EDIT_DEMOTE,  /* logit = least of them - value */
    EDIT_FORCE,   /* chosen at place `value`, 0..K-1: K experts of a row have it, no other is chosen */
    EDIT_ZERO,    /* combine weight = 0 */
    EDIT_ZERO_RENORMALIZE /* the same, the token's other weights then scaled to the sum they had with it */
} EditMode;

/* Rows of edits, and which row each token has. */
typedef struct {
    Tensor modes;  /* [N,E] i32, EditMode; absent: nothing is edited */
    Tensor values; /* [N,E] real */
    Tensor rows;   /* [T] i32 below N; < 0: none */
} RouteEdits;

/* How the M = T*K (token, choice) pairs are grouped by expert. Pair number i = t*K + k. */
typedef struct {
    Tensor offsets; /* [E+1] i32: expert e has the rows [offsets[e], offsets[e+1]) of M */
    Tensor pairs;   /* [M] i32: the pair that stands in a row; ascending inside an expert */
    Tensor rows;    /* [T,K] i32: the row in which a pair stands */
    int alignment;  /* every expert's first row is a multiple of it (1 on the CPU) */
} MoePlan;

/* Low-rank updates W[e] + scale b a (LoRA, arXiv 2106.09685) of one projection in N experts of a layer. */
typedef struct {
    Tensor experts; /* [N] i32: distinct, ascending */
    Tensor a, b;    /* [N,R,in], [N,out,R] real, R at most LORA_MOST_RANK; a cell of lower rank has zeros */
    Tensor scales;  /* [N] real */
    int64_t column; /* of the projection's result in its row: F for up, which stands behind gate, else 0 */
    bool down;      /* false: gate or up, from tokens x to z. true: down, from expert rows h to y */
} Lora;
enum { LORA_MOST_RANK = 128 };

/* Where gradients of a Lora go. An example is a prompt; examples number `first`, first + 1, ... of a step are
 * those of the call. Each adds its whole gradient to a counter in binary: slot i holds the sum of 2^i
 * examples or is free, and a full slot is added to the next. So the sum is a tree by example number,
 * whatever calls the examples came in, packed or alone. */
typedef struct {
    Tensor a, b;    /* [S,N,R,in], [S,N,out,R] real, 2^S above the number of examples; absent: not wanted */
    Tensor offsets; /* [P+1] i32: the tokens of the call's examples */
    int64_t first;
} LoraSums;

/* Dropout of the rows that low-rank updates read: an element is left out, or multiplied by 1 / (1 - rate).
 * Which, Philox says of (the token's key, id + the pair's choice, the element), whatever is around it. */
typedef struct {
    float rate; /* in [0, 1) */
    int64_t id; /* of the projection: a multiple of the most choices */
} DropoutRule;

/* One step of AdamW (arXiv 1711.05101): g = grad_scale * grad; m = beta1 m + (1 - beta1) g; v = beta2 v +
 * (1 - beta2) g^2; x = x (1 - rate decay) - rate / correction1 * m / (sqrt(v / correction2) + eps) */
typedef struct {
    double rate, beta1, beta2, eps, decay;
    double correction1, correction2; /* 1 - beta^step, steps counted from 1 */
    double grad_scale;               /* of clipping */
} AdamwRule;

typedef enum { ROPE_HALVES, ROPE_INTERLEAVED } RopeKind; /* pairs (i, i + n/2), or (2i, 2i+1) */

/* gate, up -> hidden of a gated MLP. limit > 0: gate <= limit, |up| <= limit, and (up + 1) gate sigmoid(alpha
 * gate). */
typedef struct {
    float limit; /* 0: silu(gate) * up */
    float alpha;
} Activation;

typedef struct {
    float temperature; /* 0: argmax */
    int32_t top_k;     /* 0: all */
    float top_p;       /* 1: all */
    int64_t n_valid;   /* ids at and beyond it are never taken */
    uint64_t seed;
} SampleRule;

/* ---- rows in and out ---- */
/* y[t,:] = table[ids[t],:]                       y [T,D] act, ids [T] i32, table [V,D] weights */
typedef void embed_fn(Queue *q, Tensor y, Tensor ids, Tensor table);
/* y[i,:] = x[index[i],:]                         y [N,D], x [T,D] alike in dtype, index [N] i32 */
typedef void gather_rows_fn(Queue *q, Tensor y, Tensor x, Tensor index);
/* dx[index[i],:] += dy[i,:]                      i ascending */
typedef void gather_rows_bwd_fn(Queue *q, Tensor dx, Tensor dy, Tensor index);
/* y[index[i],:] = x[i,:]                         the indices are distinct; other rows of y stay */
typedef void scatter_rows_fn(Queue *q, Tensor y, Tensor x, Tensor index);
/* y = a + b                                      act; y may be a or b */
typedef void add_fn(Queue *q, Tensor y, Tensor a, Tensor b);
/* y += x                                         act or real */
typedef void accumulate_fn(Queue *q, Tensor y, Tensor x);

/* ---- norms: over the last dimension; x, y any shape, w [columns] ---- */
/* y = round(x / sqrt(mean(x^2) + eps)) * w       round: to act's precision (nothing in f32) */
typedef void rmsnorm_fn(Queue *q, Tensor y, Tensor x, Tensor w, float eps);
typedef void rmsnorm_bwd_fn(Queue *q, Tensor dx, Tensor dy, Tensor x, Tensor w, float eps);
/* y = (x - mean) / sqrt(var + eps) * w + b       b may be absent */
typedef void layernorm_fn(Queue *q, Tensor y, Tensor x, Tensor w, Tensor b, float eps);
typedef void layernorm_bwd_fn(Queue *q, Tensor dx, Tensor dy, Tensor x, Tensor w, float eps);

/* ---- attention ---- */
/* y = x with each pair of head elements turned by positions[t] * frequencies[i], cos and sin times scale.
 * x, y [T,heads,C] act, may be the same; positions [T] i32; frequencies [n] f32, 2n <= C, elements from 2n on
 * stay. */
typedef void rope_fn(Queue *q, Tensor y, Tensor x, Tensor positions, Tensor frequencies, float scale,
                     RopeKind kind);
typedef void rope_bwd_fn(Queue *q, Tensor dx, Tensor dy, Tensor positions, Tensor frequencies, float scale,
                         RopeKind kind);
/* Causal attention, packed prompts of any lengths; query head h reads key/value head h / (H/J).
 * out [T,H,Cv] = softmax(scale q k^T) v over the keys j <= i, and j > i - window where window > 0;
 * lse [T,H] real = log of the sum of exp (absent: not wanted). q [T,H,C], k [.,J,C], v [.,J,Cv] act;
 * sinks [H] weights: one more logit per head that takes its share and gives nothing (absent: none).
 * A row is summed over key blocks of 64 in order, the running maximum rescaling at each block. */
typedef void attention_fn(Queue *q, Tensor out, Tensor lse, Tensor query, Tensor key, Tensor value,
                          Spans spans, Tensor sinks, float scale, int64_t window);
/* Each of dq, dk, dv may be absent. */
typedef void attention_bwd_fn(Queue *q, Tensor dquery, Tensor dkey, Tensor dvalue, Tensor dout, Tensor out,
                              Tensor lse, Tensor query, Tensor key, Tensor value, Spans spans, float scale,
                              int64_t window);

/* ---- dense products ---- */
/* y = x w^T + bias + residual                    y [T,N] act or real, x [T,K] act, w [N,K], bias [N] or
 * absent, residual [T,N] like y, or absent; it may be y */
typedef void dense_fn(Queue *q, Tensor y, Tensor x, Tensor w, Tensor bias, Tensor residual);
/* dx += dy w                                     dx [T,K] act, dy [T,N] act or real */
typedef void dense_bwd_fn(Queue *q, Tensor dx, Tensor dy, Tensor w);
/* h = gate function of z, z [M,2F] act holds gate in columns [0,F), up in [F,2F); h [M,F] act */
typedef void swiglu_fn(Queue *q, Tensor h, Tensor z, Activation act);
typedef void swiglu_bwd_fn(Queue *q, Tensor dz, Tensor dh, Tensor z, Activation act);
/* y = residual + sigmoid(gate[t]) x[t,:]         gate [T,1] real, the rest [T,D] act; residual may be absent
 * or y */
typedef void sigmoid_scale_fn(Queue *q, Tensor y, Tensor x, Tensor gate, Tensor residual);
typedef void sigmoid_scale_bwd_fn(Queue *q, Tensor dx, Tensor dgate, Tensor dy, Tensor x, Tensor gate);

/* ---- routed experts; plan made by moe_plan ---- */
/* From logits [T,E] real: probs [T,E] = softmax over all experts of the edited logits; ids [T,K] i32, weights
 * [T,K] real by the rule, largest first (forced ones in the order given). */
typedef void route_fn(Queue *q, Tensor probs, Tensor ids, Tensor weights, Tensor logits, RouteEdits edits,
                      RouterRule rule);
/* dlogits += gradient through the weights, ids constant; a promoted or demoted expert's goes to the logit
 * that it was set from */
typedef void route_bwd_fn(Queue *q, Tensor dlogits, Tensor dweights, Tensor probs, Tensor ids, Tensor weights,
                          Tensor logits, RouteEdits edits, RouterRule rule);
/* Fill plan's tensors from ids [T,K]. */
typedef void moe_plan_fn(Queue *q, MoePlan plan, Tensor ids);
/* z[m,:] = x[token(m),:] w[e]^T + bias[e]        z [M,2F] act, x [T,D] act, w [E,2F,D] gate first, bias
 * [E,2F] */
typedef void moe_gate_up_fn(Queue *q, Tensor z, Tensor x, Tensor w, Tensor bias, MoePlan plan);
/* The same, and the activation of it, in one: h = gate function of z        h [M,F] act. z is rounded as if
 * it had been stored; it is written only where keep is set, else its contents are undefined. */
typedef void moe_hidden_fn(Queue *q, Tensor h, Tensor z, Tensor x, Tensor w, Tensor bias, MoePlan plan,
                           Activation act, bool keep);
/* dx[t,:] += sum over k in order of dz[row(t,k),:] w[e]      scratch [M,D] real: the terms, by plan. dx
 * absent: they are all that is wanted */
typedef void moe_gate_up_bwd_fn(Queue *q, Tensor dx, Tensor scratch, Tensor dz, Tensor w, MoePlan plan);
/* dx[t,:] += sum over k in order of rows[row(t,k),:]         dx [T,D] act, rows [M,D] real. Of plan, `rows`
 * alone is read */
typedef void moe_add_rows_fn(Queue *q, Tensor dx, Tensor rows, MoePlan plan);
/* y[m,:] = h[m,:] w[e]^T + bias[e]               y [M,D] act, h [M,F] act, w [E,D,F], bias [E,D] */
typedef void moe_down_fn(Queue *q, Tensor y, Tensor h, Tensor w, Tensor bias, MoePlan plan);
/* da[m,:] = dout[token(m),:] w[e], overwritten; dweights[t,k] += dout[t,:] . bias[e] where there is a bias.
 * da [M,F] real: the gradient of the hidden row before its combine weight */
typedef void moe_down_bwd_fn(Queue *q, Tensor da, Tensor dweights, Tensor dout, Tensor w, Tensor bias,
                             MoePlan plan);
/* dz = gradient of swiglu at z for the row gradient weights[pair] * da, overwritten (act);
 * dweights[pair] += da[m,:] . h[m,:], h recomputed from z */
typedef void moe_swiglu_bwd_fn(Queue *q, Tensor dz, Tensor dweights, Tensor da, Tensor z, Tensor weights,
                               MoePlan plan, Activation act);
/* What moe_down_bwd and then moe_swiglu_bwd do, in one: dz and dweights from dout. scratch [M,F] real */
typedef void moe_hidden_bwd_fn(Queue *q, Tensor dz, Tensor dweights, Tensor scratch, Tensor dout, Tensor z,
                               Tensor weights, Tensor w, Tensor bias, MoePlan plan, Activation act);
/* out[t,:] = residual[t,:] + sum over k in order of weights[t,k] y[row(t,k),:]      residual may be absent or
 * out */
typedef void moe_combine_fn(Queue *q, Tensor out, Tensor y, Tensor weights, Tensor residual, MoePlan plan);

/* ---- low-rank updates of chosen experts; rows of other experts are neither read nor written ---- */
/* y[m,column+j] += scale sum over r in order of u[r] b[n,j,r], u = a[n] x in real, for the rows m of expert
 * experts[n]. gate, up: y is z [M,2F], x [T,D] at the row's token; down: y [M,D], x is h [M,F]. act */
typedef void lora_fn(Queue *q, Tensor y, Tensor x, Lora lora, MoePlan plan);
/* Back from dy, the gradient of y: with g[r] = sum over j of dy[column+j] b[n,j,r],
 *   gate, up: dy is dz [M,2F] act: dx[t,:] += sum over k in order of scale g a[n] of row(t,k)    [T,D] act
 *   down:     dy is dout [T,D] act: dx[m,:] += scale g a[n]         [M,F] real, before the combine weight
 * and, added up as LoraSums says (down: times the row's combine weight, weights [T,K]; else not read),
 *   da[n,r,:] += scale g[r] x[m,:], db[n,j,r] += scale dy[column+j] u[r]       rows of an example in order
 * dx absent: not wanted. scratch [M,2R] real */
typedef void lora_bwd_fn(Queue *q, Tensor dx, LoraSums sums, Tensor scratch, Tensor dy, Tensor x, Lora lora,
                         Tensor weights, MoePlan plan);
/* logits[t,experts[n]] += x[t,:] . rows[n,:]      logits [T,E] real, x [T,D] act, experts [N] i32 distinct,
 * rows [N,D] real: what is added to those experts' rows of the router */
typedef void router_rows_fn(Queue *q, Tensor logits, Tensor x, Tensor experts, Tensor rows);
/* dx[t,:] += sum over n in order of dlogits[t,experts[n]] rows[n,:]; and, added up as LoraSums says,
 * drows[n,:] += dlogits[t,experts[n]] x[t,:], tokens of an example in order; sums.a [S,N,D]. dx, sums.a may
 * be absent */
typedef void router_rows_bwd_fn(Queue *q, Tensor dx, LoraSums sums, Tensor dlogits, Tensor x, Tensor experts,
                                Tensor rows);
/* y = x with elements left out        x, y alike, act or real: [M,F], rows by plan, or with an absent plan
 * [T,D]; keys [T] i64 */
typedef void dropout_fn(Queue *q, Tensor y, Tensor x, Tensor keys, MoePlan plan, DropoutRule rule);
/* dx += dy where elements are kept, times 1 / (1 - rate) */
typedef void dropout_bwd_fn(Queue *q, Tensor dx, Tensor dy, Tensor keys, MoePlan plan, DropoutRule rule);
/* y[i] = the slots slots[s,i] of the set bits of n_examples, the least first, each added to what comes before
 * y [N], slots [S,N] real */
typedef void sum_slots_fn(Queue *q, Tensor y, Tensor slots, int64_t n_examples);
/* x, m, v in place                                x, m, v, grad [N] real */
typedef void adamw_fn(Queue *q, Tensor x, Tensor m, Tensor v, Tensor grad, AdamwRule rule);

/* ---- what the analysis measures; group [T] i32 says which of G sums a token adds to, < 0: none ---- */
/* selected[g,e] += times chosen (i64); mass[g,e] += probs[t,e]; weight[g,e] += combine weight (real); tokens
 * in order */
typedef void count_experts_fn(Queue *q, Tensor selected, Tensor mass, Tensor weight, Tensor ids,
                              Tensor weights, Tensor probs, Tensor group);
/* largest[g,e] = max(itself, |y[m,:]|), norm[g,e] = max(itself, L2 norm of y[m,:])    [G,E] real, y as of
 * moe_down */
typedef void expert_peaks_fn(Queue *q, Tensor largest, Tensor norm, Tensor y, MoePlan plan, Tensor group);
/* margin[t] = least logit of the chosen experts less the largest of the others, infinite when there is no
 * other      margin [T] real, ids [T,K], logits [T,E] real */
typedef void route_margin_fn(Queue *q, Tensor margin, Tensor ids, Tensor logits);
/* grad[g,e,:] += sum over t in [offsets[g], offsets[g+1]) in order of dlogits[t,e] x[t,:]
 * grad [G,E,D] real, dlogits [T,E] real, x [T,D] act, offsets [G+1] i32 */
typedef void gate_grad_fn(Queue *q, Tensor grad, Tensor dlogits, Tensor x, Tensor offsets);
/* l2[r] = sqrt(sum x[r,:]^2), l1[r] = sum |x[r,:]|               x [R,D] real; each may be absent */
typedef void row_norms_fn(Queue *q, Tensor l2, Tensor l1, Tensor x);
/* sum[g,:] += sum over the group's rows of x, absolute[g,:] += of |x|     x [T,N] real, offsets [G+1] i32 */
typedef void segment_sums_fn(Queue *q, Tensor sum, Tensor absolute, Tensor x, Tensor offsets);
/* first[0] = index of the first NaN or infinity of x, or -1      first [1] i64 */
typedef void find_nonfinite_fn(Queue *q, Tensor first, Tensor x);

/* ---- loss and choice ---- */
/* nll[t] = lse[t] - logit of targets[t], 0 where targets[t] < 0; logits = x w^T + bias, never all in memory:
 * scratch [T,Vc] real holds Vc columns at a time. nll, lse [T] real, x [T,D] act, w [V,D], targets [T] i32 */
typedef void cross_entropy_fn(Queue *q, Tensor nll, Tensor lse, Tensor scratch, Tensor x, Tensor w,
                              Tensor bias, Tensor targets);
/* dx += dnll[t] (softmax - onehot) w, rows with targets[t] < 0 excepted */
typedef void cross_entropy_bwd_fn(Queue *q, Tensor dx, Tensor scratch, Tensor dnll, Tensor lse, Tensor x,
                                  Tensor w, Tensor bias, Tensor targets);
/* Losses on what a router says, a row each, p = softmax(logits[t]) with no edit; logits [T,E] real.
 * kl[t] = KL(softmax(frozen[t] / T) || softmax(logits[t] / T)), T the temperature (SafeMoE, arXiv
 * 2509.22745); exactly 0 where both rows are equal        kl [T] real, frozen [T,E] real */
typedef void router_kl_fn(Queue *q, Tensor kl, Tensor logits, Tensor frozen, float temperature);
/* dlogits[t,:] += dkl[t] (softmax(logits[t] / T) - softmax(frozen[t] / T)) / T; rows with dkl[t] 0 stay */
typedef void router_kl_bwd_fn(Queue *q, Tensor dlogits, Tensor dkl, Tensor logits, Tensor frozen,
                              float temperature);
/* distance[t] = sum over e of (p[e] - aim[e])^2 (SEUF's anchor, arXiv 2411.18797)
 * distance [T] real, aim [E] real */
typedef void router_anchor_fn(Queue *q, Tensor distance, Tensor logits, Tensor aim);
/* dlogits[t,e] += ddistance[t] p[e] (d[e] - sum of d p), d = 2 (p - aim); rows with ddistance[t] 0 stay */
typedef void router_anchor_bwd_fn(Queue *q, Tensor dlogits, Tensor ddistance, Tensor logits, Tensor aim);
/* ids[i] = argmax of logits[i, 0..n_valid)       ids [N] i32, logits [N,V] real */
typedef void argmax_fn(Queue *q, Tensor ids, Tensor logits, int64_t n_valid);
/* ids[i] drawn from softmax(logits[i] / temperature) cut to the top_k largest, then to the least number of
 * largest whose mass reaches top_p. The number drawn is Philox(seed; keys[i,0] prompt id, keys[i,1]
 * position): keys [N,2] i64. scratch [N,V] i32 */
typedef void sample_fn(Queue *q, Tensor ids, Tensor scratch, Tensor logits, Tensor keys, SampleRule rule);

/* Every op, once. A name added here makes every table fail to build until the op exists there, and the op
 * tests fail until it has a case. */
/* clang-format off */
#define OPS(X)                                                                                           \
    X(embed) X(gather_rows) X(gather_rows_bwd) X(scatter_rows) X(add) X(accumulate)                      \
    X(rmsnorm) X(rmsnorm_bwd) X(layernorm) X(layernorm_bwd)                                              \
    X(rope) X(rope_bwd) X(attention) X(attention_bwd)                                                    \
    X(dense) X(dense_bwd) X(swiglu) X(swiglu_bwd) X(sigmoid_scale) X(sigmoid_scale_bwd)                  \
    X(route) X(route_bwd) X(moe_plan) X(moe_gate_up) X(moe_hidden) X(moe_gate_up_bwd) X(moe_add_rows)    \
    X(moe_down) X(moe_down_bwd) X(moe_swiglu_bwd) X(moe_hidden_bwd) X(moe_combine)                       \
    X(lora) X(lora_bwd) X(router_rows) X(router_rows_bwd) X(dropout) X(dropout_bwd)                      \
    X(sum_slots) X(adamw)                                                                                \
    X(count_experts) X(expert_peaks) X(route_margin) X(gate_grad) X(row_norms) X(segment_sums)           \
    X(find_nonfinite)                                                                                    \
    X(cross_entropy) X(cross_entropy_bwd)                                                                \
    X(router_kl) X(router_kl_bwd) X(router_anchor) X(router_anchor_bwd) X(argmax) X(sample)
/* clang-format on */

typedef struct {
#define X(op) op##_fn *op;
    OPS(X)
#undef X
} Ops;

#ifdef __cplusplus
}
#endif
#endif

/* One case for every op of OPS: its arguments for any number of rows and any width, and the call.
 * test_ops.c runs them on every table; a missing one fails there. Variants switch optional arguments and
 * rules. */
#ifndef GATETAPE_TESTS_CASES_H
#define GATETAPE_TESTS_CASES_H
#include "op_run.h"

enum { N_HEADS = 4, N_KV_HEADS = 2, N_EXPERTS = 6, N_CHOICES = 2, N_GROUPS = 3, N_TABLE = 50 };

#define CALL(op) static void call_##op(const Ops *o, Queue *q, const Tensor *t, const Problem *p)
#define BUILD(op) static void build_##op(Problem *p)

/* ---- rows ---- */
BUILD(embed) {
    row_arg(p, OUT, ACT, p->width, NONE);
    random_ints(p, row_arg(p, IN, I32, NONE, NONE), N_TABLE);
    whole_arg(p, IN, WEIGHT, N_TABLE, p->width, NONE);
}
CALL(embed) { (void)p, o->embed(q, t[0], t[1], t[2]); }

BUILD(gather_rows) {
    row_arg(p, OUT, ACT, p->width, NONE);
    whole_arg(p, IN, ACT, N_TABLE, p->width, NONE);
    random_ints(p, row_arg(p, IN, I32, NONE, NONE), N_TABLE);
}
CALL(gather_rows) { (void)p, o->gather_rows(q, t[0], t[1], t[2]); }

BUILD(gather_rows_bwd) {
    whole_arg(p, SUM, ACT, 9, p->width, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    random_ints(p, row_arg(p, IN, I32, NONE, NONE), 9);
    p->reduction = p->n_stores = (double)p->rows + 1;
}
CALL(gather_rows_bwd) { (void)p, o->gather_rows_bwd(q, t[0], t[1], t[2]); }

BUILD(scatter_rows) {
    whole_arg(p, SUM, ACT, p->rows + 3, p->width, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    Arg *index = row_arg(p, IN, I32, NONE, NONE);
    for (int64_t i = 0; i < p->rows; i++) index->values[i] = (double)(p->rows + 1 - i);
}
CALL(scatter_rows) { (void)p, o->scatter_rows(q, t[0], t[1], t[2]); }

BUILD(add) {
    row_arg(p, OUT, ACT, p->width, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
}
CALL(add) { (void)p, o->add(q, t[0], t[1], t[2]); }

BUILD(accumulate) {
    Kind kind = p->variant ? REAL : ACT;
    row_arg(p, SUM, kind, p->width, NONE);
    row_arg(p, IN, kind, p->width, NONE);
}
CALL(accumulate) { (void)p, o->accumulate(q, t[0], t[1]); }

/* ---- norms; variant 1: of heads, without the bias ---- */
static void build_norm(Problem *p, bool has_bias) {
    int64_t b = p->variant ? 3 : p->width, c = p->variant ? p->width : NONE;
    row_arg(p, OUT, ACT, b, c);
    row_arg(p, IN, ACT, b, c);
    whole_arg(p, IN, WEIGHT, p->width, NONE, NONE);
    if (has_bias) leave_out(whole_arg(p, IN, WEIGHT, p->width, NONE, NONE), p->variant == 1);
    p->reduction = (double)p->width;
    p->n_stores = 4;
}
static void build_norm_bwd(Problem *p) {
    build_norm(p, false);
    p->arg[0].role = SUM;
    row_arg(p, IN, ACT, p->arg[0].shape[1], p->arg[0].n_dims == 3 ? p->arg[0].shape[2] : NONE);
    p->reduction *= 16; /* three sums meet, and the inverse is squared */
}
BUILD(rmsnorm) { build_norm(p, false); }
CALL(rmsnorm) { (void)p, o->rmsnorm(q, t[0], t[1], t[2], 1e-5f); }
BUILD(rmsnorm_bwd) { build_norm_bwd(p); }
CALL(rmsnorm_bwd) { (void)p, o->rmsnorm_bwd(q, t[0], t[3], t[1], t[2], 1e-2f); }
BUILD(layernorm) { build_norm(p, true); }
CALL(layernorm) { (void)p, o->layernorm(q, t[0], t[1], t[2], t[3], 1e-5f); }
BUILD(layernorm_bwd) { build_norm_bwd(p); }
CALL(layernorm_bwd) { (void)p, o->layernorm_bwd(q, t[0], t[3], t[1], t[2], 1e-2f); }

/* ---- rope; variants: halves, interleaved, a part of the head ---- */
BUILD(rope) {
    row_arg(p, OUT, ACT, 3, p->width);
    row_arg(p, IN, ACT, 3, p->width);
    random_ints(p, row_arg(p, IN, I32, NONE, NONE), 5000);
    Arg *f = whole_arg(p, IN, FIXED_F32, p->variant == 2 ? p->width / 4 : p->width / 2, NONE, NONE);
    f->low = 0;
    p->reduction = 2;
}
CALL(rope) { o->rope(q, t[0], t[1], t[2], t[3], 1.25f, p->variant == 1 ? ROPE_INTERLEAVED : ROPE_HALVES); }
BUILD(rope_bwd) {
    build_rope(p);
    p->arg[0].role = SUM;
}
CALL(rope_bwd) {
    o->rope_bwd(q, t[0], t[1], t[2], t[3], 1.25f, p->variant == 1 ? ROPE_INTERLEAVED : ROPE_HALVES);
}

/* ---- attention; variants: plain, keys before the queries, window, sinks ---- */
enum { N_PROMPTS = 4 };

/* offsets, kv_begin, kv_length of prompts of 0, a third, and two other numbers of rows; returns the keys
 * in all. */
static int64_t add_spans(Problem *p) {
    Arg *offsets = whole_arg(p, IN, I32, N_PROMPTS + 1, NONE, NONE);
    Arg *begin = whole_arg(p, IN, I32, N_PROMPTS, NONE, NONE),
        *length = whole_arg(p, IN, I32, N_PROMPTS, NONE, NONE);
    int64_t ends[N_PROMPTS] = {p->rows / 3, p->rows / 3, p->rows - p->rows / 5, p->rows}, keys = 0, first = 0;
    for (int i = 0; i < N_PROMPTS; i++) {
        int64_t n = ends[i] - first + (p->variant == 1 ? 70 * i : 0);
        offsets->values[i + 1] = (double)ends[i];
        begin->values[i] = (double)keys;
        length->values[i] = (double)n;
        keys += n + p->variant;
        first = ends[i];
    }
    return keys;
}
static int64_t window_of(const Problem *p) { return p->variant == 2 ? 5 : 0; }

BUILD(attention) {
    int64_t keys = add_spans(p), width = p->width / 2 + 1;
    row_arg(p, OUT, ACT, N_HEADS, width);
    leave_out(row_arg(p, OUT, REAL, N_HEADS, NONE), p->variant == 1);
    row_arg(p, IN, ACT, N_HEADS, p->width);
    whole_arg(p, IN, ACT, keys, N_KV_HEADS, p->width);
    whole_arg(p, IN, ACT, keys, N_KV_HEADS, width);
    leave_out(whole_arg(p, IN, WEIGHT, N_HEADS, NONE, NONE), p->variant != 3);
    p->reduction = (double)(p->width + keys);
    p->scale = p->variant == 1 ? 0.25 : 0; /* the values of many keys cancel */
}
CALL(attention) {
    Spans s = {t[0], t[1], t[2]};
    o->attention(q, t[3], t[4], t[5], t[6], t[7], s, t[8], 0.25f, window_of(p));
}
BUILD(attention_bwd) {
    int64_t keys = add_spans(p), width = p->width / 2 + 1;
    leave_out(row_arg(p, SUM, ACT, N_HEADS, p->width), p->variant == 3);
    leave_out(whole_arg(p, SUM, ACT, keys, N_KV_HEADS, p->width), p->variant == 2);
    whole_arg(p, SUM, ACT, keys, N_KV_HEADS, width);
    row_arg(p, IN, ACT, N_HEADS, width);
    row_arg(p, IN, ACT, N_HEADS, width);
    Arg *lse = row_arg(p, IN, REAL, N_HEADS, NONE);
    lse->low = 3, lse->high = 4;
    row_arg(p, IN, ACT, N_HEADS, p->width);
    whole_arg(p, IN, ACT, keys, N_KV_HEADS, p->width);
    whole_arg(p, IN, ACT, keys, N_KV_HEADS, width);
    p->reduction = 4 * (double)(p->width + 2 * p->rows);
}
CALL(attention_bwd) {
    Spans s = {t[0], t[1], t[2]};
    o->attention_bwd(q, t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11], s, 0.25f, window_of(p));
}

/* ---- dense; variants: bare, bias, bias and residual, real output ---- */
BUILD(dense) {
    int64_t n = p->rows / 2 + 3;
    Kind kind = p->variant == 3 ? REAL : ACT;
    row_arg(p, OUT, kind, n, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    whole_arg(p, IN, WEIGHT, n, p->width, NONE);
    leave_out(whole_arg(p, IN, WEIGHT, n, NONE, NONE), p->variant == 0);
    leave_out(row_arg(p, IN, kind, n, NONE), p->variant < 2);
    p->reduction = (double)p->width;
    p->scale = 1;
}
CALL(dense) { (void)p, o->dense(q, t[0], t[1], t[2], t[3], t[4]); }
BUILD(dense_bwd) {
    int64_t n = p->rows / 2 + 3;
    row_arg(p, SUM, ACT, p->width, NONE);
    row_arg(p, IN, p->variant ? REAL : ACT, n, NONE);
    whole_arg(p, IN, WEIGHT, n, p->width, NONE);
    p->reduction = (double)n;
    p->scale = 1;
}
CALL(dense_bwd) { (void)p, o->dense_bwd(q, t[0], t[1], t[2]); }

/* ---- activations; variant 1: the clamped form, with values beyond the limit ---- */
static Activation activation_of(const Problem *p) {
    return p->variant ? (Activation){1.5f, 1.702f} : (Activation){0, 0};
}
static void add_gate_up(Problem *p, int64_t rows, bool by_row) {
    Arg *z = whole_arg(p, IN, ACT, rows, 2 * p->width, NONE);
    z->by_row = by_row;
    z->low = -3, z->high = 3;
    z->avoid = p->variant ? 1.5 : 0;
    p->reduction = 64; /* the exponent's rounding */
}
BUILD(swiglu) {
    row_arg(p, OUT, ACT, p->width, NONE);
    add_gate_up(p, p->rows, true);
}
CALL(swiglu) { o->swiglu(q, t[0], t[1], activation_of(p)); }
BUILD(swiglu_bwd) {
    row_arg(p, SUM, ACT, 2 * p->width, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    add_gate_up(p, p->rows, true);
}
CALL(swiglu_bwd) { o->swiglu_bwd(q, t[0], t[1], t[2], activation_of(p)); }
BUILD(sigmoid_scale) {
    row_arg(p, OUT, ACT, p->width, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    row_arg(p, IN, REAL, 1, NONE);
    leave_out(row_arg(p, IN, ACT, p->width, NONE), p->variant == 1);
}
CALL(sigmoid_scale) { (void)p, o->sigmoid_scale(q, t[0], t[1], t[2], t[3]); }
BUILD(sigmoid_scale_bwd) {
    leave_out(row_arg(p, SUM, ACT, p->width, NONE), p->variant == 1);
    leave_out(row_arg(p, SUM, REAL, 1, NONE), p->variant == 2);
    row_arg(p, IN, ACT, p->width, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    row_arg(p, IN, REAL, 1, NONE);
    p->reduction = (double)p->width;
}
CALL(sigmoid_scale_bwd) { (void)p, o->sigmoid_scale_bwd(q, t[0], t[1], t[2], t[3], t[4]); }

#include "cases_moe.h"
#include "cases_lora.h"
#include "cases_routing_loss.h"

static const Case CASES[] = {
    {"embed", build_embed, call_embed, 1, true},
    {"gather_rows", build_gather_rows, call_gather_rows, 1, true},
    {"gather_rows_bwd", build_gather_rows_bwd, call_gather_rows_bwd, 1, false},
    {"scatter_rows", build_scatter_rows, call_scatter_rows, 1, false},
    {"add", build_add, call_add, 1, true},
    {"accumulate", build_accumulate, call_accumulate, 2, true},
    {"rmsnorm", build_rmsnorm, call_rmsnorm, 2, true},
    {"rmsnorm_bwd", build_rmsnorm_bwd, call_rmsnorm_bwd, 2, true},
    {"layernorm", build_layernorm, call_layernorm, 2, true},
    {"layernorm_bwd", build_layernorm_bwd, call_layernorm_bwd, 2, true},
    {"rope", build_rope, call_rope, 3, true},
    {"rope_bwd", build_rope_bwd, call_rope_bwd, 3, true},
    {"attention", build_attention, call_attention, 4, false},
    {"attention_bwd", build_attention_bwd, call_attention_bwd, 4, false},
    {"dense", build_dense, call_dense, 4, true},
    {"dense_bwd", build_dense_bwd, call_dense_bwd, 2, true},
    {"swiglu", build_swiglu, call_swiglu, 2, true},
    {"swiglu_bwd", build_swiglu_bwd, call_swiglu_bwd, 2, true},
    {"sigmoid_scale", build_sigmoid_scale, call_sigmoid_scale, 2, true},
    {"sigmoid_scale_bwd", build_sigmoid_scale_bwd, call_sigmoid_scale_bwd, 3, true},
    {"route", build_route, call_route, N_ROUTES, true},
    {"route_bwd", build_route_bwd, call_route_bwd, N_ROUTES, true},
    {"moe_plan", build_moe_plan, call_moe_plan, 1, false},
    {"moe_gate_up", build_moe_gate_up, call_moe_gate_up, 2, false},
    {"moe_hidden", build_moe_hidden, call_moe_hidden, 3, false},
    {"moe_gate_up_bwd", build_moe_gate_up_bwd, call_moe_gate_up_bwd, 2, false},
    {"moe_add_rows", build_moe_add_rows, call_moe_add_rows, 1, false},
    {"moe_down", build_moe_down, call_moe_down, 2, false},
    {"moe_down_bwd", build_moe_down_bwd, call_moe_down_bwd, 2, false},
    {"moe_swiglu_bwd", build_moe_swiglu_bwd, call_moe_swiglu_bwd, 2, false},
    {"moe_hidden_bwd", build_moe_hidden_bwd, call_moe_hidden_bwd, 2, false},
    {"moe_combine", build_moe_combine, call_moe_combine, 2, false},
    {"lora", build_lora, call_lora, 4, false},
    {"lora_bwd", build_lora_bwd, call_lora_bwd, 5, false},
    {"router_rows", build_router_rows, call_router_rows, 2, true},
    {"router_rows_bwd", build_router_rows_bwd, call_router_rows_bwd, 3, false},
    {"dropout", build_dropout, call_dropout, 3, false},
    {"dropout_bwd", build_dropout_bwd, call_dropout_bwd, 3, false},
    {"sum_slots", build_sum_slots, call_sum_slots, 2, false},
    {"adamw", build_adamw, call_adamw, 2, true},
    {"count_experts", build_count_experts, call_count_experts, 2, false},
    {"expert_peaks", build_expert_peaks, call_expert_peaks, 1, false},
    {"route_margin", build_route_margin, call_route_margin, 1, true},
    {"gate_grad", build_gate_grad, call_gate_grad, 1, false},
    {"row_norms", build_row_norms, call_row_norms, 3, true},
    {"segment_sums", build_segment_sums, call_segment_sums, 3, false},
    {"find_nonfinite", build_find_nonfinite, call_find_nonfinite, 1, false},
    {"cross_entropy", build_cross_entropy, call_cross_entropy, 2, true},
    {"cross_entropy_bwd", build_cross_entropy_bwd, call_cross_entropy_bwd, 2, true},
    {"router_kl", build_router_kl, call_router_kl, 2, true},
    {"router_kl_bwd", build_router_kl_bwd, call_router_kl_bwd, 2, true},
    {"router_anchor", build_router_anchor, call_router_anchor, 2, true},
    {"router_anchor_bwd", build_router_anchor_bwd, call_router_anchor_bwd, 2, true},
    {"argmax", build_argmax, call_argmax, 1, true},
    {"sample", build_sample, call_sample, 4, true},
};
enum { N_CASES = sizeof CASES / sizeof *CASES };

#endif

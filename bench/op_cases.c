/* A set of tensors for each op at given sizes. Inputs are views of the pool of random numbers, so nothing is
 * filled here but indices. */
#include "op_cases.h"
#include "../engine/alloc.h"
#include "../kernels/check.h"
#include "../kernels/random.h"
#include <math.h>

static char *deal(char *base, size_t capacity, size_t *at, size_t n) {
    n = (n + 255) / 256 * 256;
    check(n <= capacity, "%zu bytes of %zu", n, capacity);
    if (*at + n > capacity) *at = 0;
    *at += n;
    return base + *at - n;
}

static Tensor shaped(DType dtype, int64_t a, int64_t b, int64_t c) {
    return (Tensor){NULL, dtype, c ? 3 : b ? 2 : 1, {a, b, c}};
}

static Tensor add_input(Memory *m, Set *set, DType dtype, int64_t a, int64_t b, int64_t c) {
    Tensor t = shaped(dtype, a, b, c);
    t.data = deal(m->pool, m->pool_bytes, &m->pool_at, tensor_bytes(t));
    m->dealt += tensor_bytes(t);
    return set->t[set->n++] = t;
}

static Tensor add_output(Memory *m, Set *set, DType dtype, int64_t a, int64_t b, int64_t c) {
    Tensor t = shaped(dtype, a, b, c);
    t.data = deal(m->scratch, m->scratch_bytes, &m->scratch_at, tensor_bytes(t));
    m->dealt += tensor_bytes(t);
    return set->t[set->n++] = t;
}

static Tensor add_indices(Memory *m, Set *set, int64_t a, int64_t b) {
    Tensor t = shaped(DTYPE_I32, a, b, 0);
    const size_t before = m->ints_at;
    t.data = deal(m->ints, m->ints_bytes, &m->ints_at, tensor_bytes(t));
    check(m->ints_at > before, "%zu bytes of indices", m->ints_bytes);
    return set->t[set->n++] = t;
}

static Tensor add_ints(Memory *m, Set *set, const int32_t *values, int64_t a, int64_t b) {
    Tensor t = add_indices(m, set, a, b);
    m->device->copy_in(m->queue, t, values);
    check(m->device->sync(m->queue), "%s", m->queue->failure);
    return t;
}

static void add_absent(Set *set) { set->t[set->n++] = (Tensor){0}; }

/* Ids below n, all places equally likely. */
static void add_random_ints(Memory *m, Set *set, int64_t count, int64_t n) {
    int32_t *ids = mem_zeroed((size_t)count, sizeof *ids);
    check(ids, "out of memory");
    for (int64_t i = 0; i < count; i++)
        ids[i] = (int32_t)(random_bits(1, RANDOM_TEST, (int64_t)m->dealt, i) % (uint64_t)n);
    add_ints(m, set, ids, count, 0);
    mem_free(ids);
}

/* ids [T,K]: K different experts a token, drawn by popularity (Gumbel's trick). */
static Tensor add_choices(Memory *m, const Sizes *s, Set *set) {
    const int64_t E = s->shape->experts, K = s->shape->choices;
    int32_t *ids = mem_zeroed((size_t)(s->rows * K), sizeof *ids);
    check(ids, "out of memory");
    const int64_t salt = (int64_t)(m->pool_at / 256);
#pragma omp parallel for
    for (int64_t t = 0; t < s->rows; t++) {
        float key[256];
        for (int64_t e = 0; e < E; e++) {
            const double u = ((double)e + 0.5) / (double)E, z = log(u / (1 - u)) / 1.702;
            const double r = ((double)(random_bits(2, RANDOM_TEST, t + salt, e) >> 11) + 0.5) * 0x1p-53;
            key[e] = (float)(s->skew * z - log(-log(r)));
        }
        for (int64_t k = 0; k < K; k++) {
            int64_t best = 0;
            for (int64_t e = 1; e < E; e++)
                if (key[e] > key[best]) best = e;
            ids[t * K + k] = (int32_t)best;
            key[best] = -INFINITY;
        }
    }
    Tensor on_device = add_ints(m, set, ids, s->rows, K);
    mem_free(ids);
    return on_device;
}

/* The plan's tensors stand in the set from where they are added. */
static void add_plan(Memory *m, const Sizes *s, Set *set) {
    Tensor ids = add_choices(m, s, set);
    const int64_t M = s->rows * s->shape->choices;
    set->plan = (MoePlan){add_indices(m, set, s->shape->experts + 1, 0), add_indices(m, set, M, 0),
                          add_indices(m, set, s->rows, s->shape->choices), 1};
    m->device->ops->moe_plan(m->queue, set->plan, ids);
}

#define BUILD(op) static void build_##op(Memory *m, const Sizes *s, Set *set)
#define CALL(op) static void call_##op(const Ops *o, Queue *q, const Set *set)
#define T set->t
#define ROWS s->rows
#define PAIRS (s->rows * s->shape->choices)
#define SHAPE s->shape

/* ---- router ---- */
BUILD(route) {
    add_output(m, set, DTYPE_F32, ROWS, SHAPE->experts, 0);
    add_output(m, set, DTYPE_I32, ROWS, SHAPE->choices, 0);
    add_output(m, set, DTYPE_F32, ROWS, SHAPE->choices, 0);
    add_input(m, set, DTYPE_F32, ROWS, SHAPE->experts, 0);
}
CALL(route) {
    o->route(q, T[0], T[1], T[2], T[3], (RouteEdits){0}, (RouterRule){ROUTER_SOFTMAX_TOPK, true, 1});
}
BUILD(moe_plan) { add_plan(m, s, set); }
CALL(moe_plan) { o->moe_plan(q, set->plan, T[0]); }

/* ---- experts ---- */
BUILD(moe_gate_up) {
    add_output(m, set, s->act, PAIRS, 2 * SHAPE->inner, 0);
    add_input(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_input(m, set, s->act, SHAPE->experts, 2 * SHAPE->inner, SHAPE->hidden);
    add_plan(m, s, set);
}
CALL(moe_gate_up) { o->moe_gate_up(q, T[0], T[1], T[2], (Tensor){0}, set->plan); }
BUILD(moe_hidden) {
    build_moe_gate_up(m, s, set);
    add_output(m, set, s->act, PAIRS, SHAPE->inner, 0);
}
CALL(moe_hidden) {
    o->moe_hidden(q, T[set->n - 1], T[0], T[1], T[2], (Tensor){0}, set->plan, (Activation){0}, false);
}
BUILD(swiglu) {
    add_output(m, set, s->act, PAIRS, SHAPE->inner, 0);
    add_input(m, set, s->act, PAIRS, 2 * SHAPE->inner, 0);
}
CALL(swiglu) { o->swiglu(q, T[0], T[1], (Activation){0}); }
BUILD(moe_down) {
    add_output(m, set, s->act, PAIRS, SHAPE->hidden, 0);
    add_input(m, set, s->act, PAIRS, SHAPE->inner, 0);
    add_input(m, set, s->act, SHAPE->experts, SHAPE->hidden, SHAPE->inner);
    add_plan(m, s, set);
}
CALL(moe_down) { o->moe_down(q, T[0], T[1], T[2], (Tensor){0}, set->plan); }
BUILD(moe_combine) {
    add_output(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_input(m, set, s->act, PAIRS, SHAPE->hidden, 0);
    add_input(m, set, DTYPE_F32, ROWS, SHAPE->choices, 0);
    add_plan(m, s, set);
}
CALL(moe_combine) { o->moe_combine(q, T[0], T[1], T[2], T[0], set->plan); }
BUILD(moe_down_bwd) {
    add_output(m, set, DTYPE_F32, PAIRS, SHAPE->inner, 0);
    add_input(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_input(m, set, s->act, SHAPE->experts, SHAPE->hidden, SHAPE->inner);
    add_plan(m, s, set);
}
CALL(moe_down_bwd) { o->moe_down_bwd(q, T[0], (Tensor){0}, T[1], T[2], (Tensor){0}, set->plan); }
BUILD(moe_swiglu_bwd) {
    add_output(m, set, s->act, PAIRS, 2 * SHAPE->inner, 0);
    add_output(m, set, DTYPE_F32, ROWS, SHAPE->choices, 0);
    add_input(m, set, DTYPE_F32, PAIRS, SHAPE->inner, 0);
    add_input(m, set, s->act, PAIRS, 2 * SHAPE->inner, 0);
    add_input(m, set, DTYPE_F32, ROWS, SHAPE->choices, 0);
    add_plan(m, s, set);
}
CALL(moe_swiglu_bwd) { o->moe_swiglu_bwd(q, T[0], T[1], T[2], T[3], T[4], set->plan, (Activation){0}); }
BUILD(moe_hidden_bwd) {
    add_output(m, set, s->act, PAIRS, 2 * SHAPE->inner, 0);
    add_output(m, set, DTYPE_F32, ROWS, SHAPE->choices, 0);
    add_output(m, set, DTYPE_F32, PAIRS, SHAPE->inner, 0);
    add_input(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_input(m, set, s->act, PAIRS, 2 * SHAPE->inner, 0);
    add_input(m, set, DTYPE_F32, ROWS, SHAPE->choices, 0);
    add_input(m, set, s->act, SHAPE->experts, SHAPE->hidden, SHAPE->inner);
    add_plan(m, s, set);
}
CALL(moe_hidden_bwd) {
    o->moe_hidden_bwd(q, T[0], T[1], T[2], T[3], T[4], T[5], T[6], (Tensor){0}, set->plan, (Activation){0});
}
BUILD(moe_gate_up_bwd) {
    add_output(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_output(m, set, DTYPE_F32, PAIRS, SHAPE->hidden, 0);
    add_input(m, set, s->act, PAIRS, 2 * SHAPE->inner, 0);
    add_input(m, set, s->act, SHAPE->experts, 2 * SHAPE->inner, SHAPE->hidden);
    add_plan(m, s, set);
}
CALL(moe_gate_up_bwd) { o->moe_gate_up_bwd(q, T[0], T[1], T[2], T[3], set->plan); }

/* ---- low-rank updates of the gate projection of a twentieth of the experts, or of all ---- */
enum { EXAMPLES = 32, EXAMPLE_SLOTS = 6 };

/* y or dy [M,2F], x [T,D], then the plan and the update. */
static void add_lora(Memory *m, const Sizes *s, Set *set, int64_t rank, bool all) {
    const int64_t n = all ? SHAPE->experts : (SHAPE->experts + 19) / 20;
    int32_t experts[256];
    for (int64_t i = 0; i < n; i++) experts[i] = (int32_t)((2 * i + 1) * SHAPE->experts / (2 * n));
    add_output(m, set, s->act, PAIRS, 2 * SHAPE->inner, 0);
    add_input(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_plan(m, s, set);
    set->lora.experts = add_ints(m, set, experts, n, 0);
    set->lora.a = add_input(m, set, DTYPE_F32, n, rank, SHAPE->hidden);
    set->lora.b = add_input(m, set, DTYPE_F32, n, SHAPE->inner, rank);
    set->lora.scales = add_input(m, set, DTYPE_F32, n, 0, 0);
}
BUILD(lora_r16) { add_lora(m, s, set, 16, false); }
BUILD(lora_r64) { add_lora(m, s, set, 64, false); }
BUILD(lora_all_r16) { add_lora(m, s, set, 16, true); }
CALL(lora_r16) { o->lora(q, T[0], T[1], set->lora, set->plan); }
#define call_lora_r64 call_lora_r16
#define call_lora_all_r16 call_lora_r16

/* The rows are EXAMPLES prompts of the same length. */
static void add_lora_bwd(Memory *m, const Sizes *s, Set *set, int64_t rank) {
    int32_t offsets[EXAMPLES + 1];
    for (int64_t i = 0; i <= EXAMPLES; i++) offsets[i] = (int32_t)(i * ROWS / EXAMPLES);
    add_lora(m, s, set, rank, false);
    const int64_t n = set->lora.a.shape[0];
    set->sums.a = add_output(m, set, DTYPE_F32, EXAMPLE_SLOTS, n * rank, SHAPE->hidden);
    set->sums.b = add_output(m, set, DTYPE_F32, EXAMPLE_SLOTS, n * SHAPE->inner, rank);
    set->sums.offsets = add_ints(m, set, offsets, EXAMPLES + 1, 0);
    add_output(m, set, DTYPE_F32, PAIRS, 2 * rank, 0);
    add_output(m, set, s->act, ROWS, SHAPE->hidden, 0);
}
BUILD(lora_bwd_r16) { add_lora_bwd(m, s, set, 16); }
BUILD(lora_bwd_r64) { add_lora_bwd(m, s, set, 64); }
CALL(lora_bwd_r16) {
    o->lora_bwd(q, T[set->n - 1], set->sums, T[set->n - 2], T[0], T[1], set->lora, (Tensor){0}, set->plan);
}
#define call_lora_bwd_r64 call_lora_bwd_r16
BUILD(adamw) {
    for (int i = 0; i < 3; i++) add_output(m, set, DTYPE_F32, ROWS, SHAPE->hidden, 0);
    add_input(m, set, DTYPE_F32, ROWS, SHAPE->hidden, 0);
}
CALL(adamw) {
    const AdamwRule rule = {.rate = 1e-4,
                            .beta1 = 0.9,
                            .beta2 = 0.999,
                            .eps = 1e-8,
                            .correction1 = 0.1,
                            .correction2 = 0.001,
                            .grad_scale = 1};
    o->adamw(q, T[0], T[1], T[2], T[3], rule);
}

/* ---- dense: the query projection ---- */
BUILD(dense) {
    add_output(m, set, s->act, ROWS, SHAPE->heads * SHAPE->head, 0);
    add_input(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_input(m, set, s->act, SHAPE->heads * SHAPE->head, SHAPE->hidden, 0);
}
CALL(dense) { o->dense(q, T[0], T[1], T[2], (Tensor){0}, (Tensor){0}); }
BUILD(dense_bwd) {
    add_output(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_input(m, set, s->act, ROWS, SHAPE->heads * SHAPE->head, 0);
    add_input(m, set, s->act, SHAPE->heads * SHAPE->head, SHAPE->hidden, 0);
}
CALL(dense_bwd) { o->dense_bwd(q, T[0], T[1], T[2]); }

/* ---- memory-bound ---- */
BUILD(rmsnorm) {
    add_output(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_input(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_input(m, set, s->act, SHAPE->hidden, 0, 0);
}
CALL(rmsnorm) { o->rmsnorm(q, T[0], T[1], T[2], 1e-5f); }
BUILD(rmsnorm_bwd) {
    build_rmsnorm(m, s, set);
    add_input(m, set, s->act, ROWS, SHAPE->hidden, 0);
}
CALL(rmsnorm_bwd) { o->rmsnorm_bwd(q, T[0], T[3], T[1], T[2], 1e-5f); }
BUILD(rope) {
    add_output(m, set, s->act, ROWS, SHAPE->heads, SHAPE->head);
    add_input(m, set, s->act, ROWS, SHAPE->heads, SHAPE->head);
    add_random_ints(m, set, ROWS, 4096);
    add_input(m, set, DTYPE_F32, SHAPE->head / 2, 0, 0);
}
CALL(rope) { o->rope(q, T[0], T[1], T[2], T[3], 1, ROPE_HALVES); }
BUILD(embed) {
    add_output(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_random_ints(m, set, ROWS, SHAPE->vocabulary);
    add_input(m, set, s->act, SHAPE->vocabulary, SHAPE->hidden, 0);
}
CALL(embed) { o->embed(q, T[0], T[1], T[2]); }

/* ---- loss ---- */
BUILD(cross_entropy) {
    add_output(m, set, DTYPE_F32, ROWS, 0, 0);
    add_output(m, set, DTYPE_F32, ROWS, 0, 0);
    add_output(m, set, DTYPE_F32, ROWS, 4096, 0);
    add_input(m, set, s->act, ROWS, SHAPE->hidden, 0);
    add_input(m, set, s->act, SHAPE->vocabulary, SHAPE->hidden, 0);
    add_absent(set);
    add_random_ints(m, set, ROWS, SHAPE->vocabulary);
}
CALL(cross_entropy) { o->cross_entropy(q, T[0], T[1], T[2], T[3], T[4], T[5], T[6]); }

/* ---- attention: ROWS tokens of `prompts` prompts of the same length ---- */
static void add_spans(Memory *m, Set *set, int64_t prompts, int64_t queries, int64_t keys) {
    int32_t *numbers = mem_zeroed((size_t)(3 * prompts + 1), sizeof *numbers);
    check(numbers, "out of memory");
    int32_t *begin = numbers + prompts + 1, *length = begin + prompts;
    for (int64_t p = 0; p < prompts; p++) {
        numbers[p + 1] = (int32_t)((p + 1) * queries);
        begin[p] = (int32_t)(p * keys);
        length[p] = (int32_t)keys;
    }
    set->spans = (Spans){add_ints(m, set, numbers, prompts + 1, 0), add_ints(m, set, begin, prompts, 0),
                         add_ints(m, set, length, prompts, 0)};
    mem_free(numbers);
}
static void add_attention(Memory *m, const Sizes *s, Set *set, int64_t queries, int64_t keys) {
    add_output(m, set, s->act, queries, SHAPE->heads, SHAPE->head);
    add_output(m, set, DTYPE_F32, queries, SHAPE->heads, 0);
    add_input(m, set, s->act, queries, SHAPE->heads, SHAPE->head);
    add_input(m, set, s->act, keys, SHAPE->kv_heads, SHAPE->head);
    add_input(m, set, s->act, keys, SHAPE->kv_heads, SHAPE->head);
    add_spans(m, set, s->prompts, queries / s->prompts, keys / s->prompts);
}
BUILD(attention) { add_attention(m, s, set, ROWS, ROWS); }
CALL(attention) { o->attention(q, T[0], T[1], T[2], T[3], T[4], set->spans, (Tensor){0}, 0.09f, 0); }
BUILD(attention_decode) { add_attention(m, s, set, s->prompts, ROWS); }
#define call_attention_decode call_attention
BUILD(attention_bwd) {
    add_attention(m, s, set, ROWS, ROWS);
    add_output(m, set, s->act, ROWS, SHAPE->heads, SHAPE->head);
    add_output(m, set, s->act, ROWS, SHAPE->kv_heads, SHAPE->head);
    add_output(m, set, s->act, ROWS, SHAPE->kv_heads, SHAPE->head);
    add_input(m, set, s->act, ROWS, SHAPE->heads, SHAPE->head);
    m->device->ops->attention(m->queue, T[0], T[1], T[2], T[3], T[4], set->spans, (Tensor){0}, 0.09f, 0);
}
CALL(attention_bwd) {
    o->attention_bwd(q, T[8], T[9], T[10], T[11], T[0], T[1], T[2], T[3], T[4], set->spans, 0.09f, 0);
}

#define OP(name)                                                                                             \
    { #name, build_##name, call_##name }
const OpBench op_benches[] = {OP(route),           OP(moe_plan),
                              OP(moe_gate_up),     OP(moe_hidden),
                              OP(swiglu),          OP(moe_down),
                              OP(moe_combine),     OP(moe_down_bwd),
                              OP(moe_swiglu_bwd),  OP(moe_hidden_bwd),
                              OP(moe_gate_up_bwd), OP(lora_r16),
                              OP(lora_r64),        OP(lora_all_r16),
                              OP(lora_bwd_r16),    OP(lora_bwd_r64),
                              OP(adamw),           OP(dense),
                              OP(dense_bwd),       OP(rmsnorm),
                              OP(rmsnorm_bwd),     OP(rope),
                              OP(embed),           OP(cross_entropy),
                              OP(attention),       OP(attention_decode),
                              OP(attention_bwd),   {0}};

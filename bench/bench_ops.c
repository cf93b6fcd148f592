/* Time of single ops: `gatetape bench ops`.
 *
 * Inputs are views of one large pool of normal random numbers, each call of a case at other places of it, so
 * that no call finds its operands in a cache that a real pass would not have. Calls are recorded as a graph
 * where the device can record, so that launches by the host are no part of the time. */
#include "bench.h"
#include "../engine/alloc.h"
#include "../engine/clock.h"
#include "../kernels/check.h"
#include "../kernels/random.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- a case: its tensors, made anew for each call in turn ---- */
enum { MOST_TENSORS = 16, MOST_SETS = 8, SPREAD_BYTES = 256 << 20 };

typedef struct {
    const BenchShape *shape;
    int64_t rows, prompts; /* tokens in all; attention: of this many prompts */
    double skew;
    int64_t experts_hit; /* of a routed case */
    DType act;
} Sizes;

typedef struct {
    Tensor t[MOST_TENSORS];
    int n;
    MoePlan plan;
    Spans spans;
} Set;

/* Device memory: `pool` holds random numbers, `scratch` results, both dealt out round and round; `ints` holds
 * indices and plans of the case at hand. */
typedef struct {
    const Device *device;
    Queue *queue;
    char *pool, *scratch, *ints;
    size_t pool_bytes, scratch_bytes, ints_bytes, pool_at, scratch_at, ints_at;
    size_t dealt; /* by the case at hand */
} Memory;

typedef struct {
    const char *op;
    void (*build)(Memory *m, const Sizes *s, Set *set);
    void (*call)(const Ops *o, Queue *q, const Set *set);
} OpBench;

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

static int64_t count_hit(Memory *m, const Set *set, int64_t E) {
    int32_t offsets[257];
    m->device->copy_out(m->queue, offsets, set->plan.offsets);
    check(m->device->sync(m->queue), "%s", m->queue->failure);
    int64_t hit = 0;
    for (int64_t e = 0; e < E; e++) hit += offsets[e + 1] > offsets[e];
    return hit;
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
static const OpBench OP_BENCHES[] = {
    OP(route),          OP(moe_plan),       OP(moe_gate_up),     OP(moe_hidden),
    OP(swiglu),         OP(moe_down),       OP(moe_combine),     OP(moe_down_bwd),
    OP(moe_swiglu_bwd), OP(moe_hidden_bwd), OP(moe_gate_up_bwd), OP(dense),
    OP(dense_bwd),      OP(rmsnorm),        OP(rmsnorm_bwd),     OP(rope),
    OP(embed),          OP(cross_entropy),  OP(attention),       OP(attention_decode),
    OP(attention_bwd)};
enum { N_OP_BENCHES = sizeof OP_BENCHES / sizeof *OP_BENCHES };

/* ---- one case ---- */
/* What the cost table says of the call, with the experts that are hit and the keys that causality leaves. */
static Cost least_cost(const OpBench *b, const Sizes *s, const Set *set) {
    Queue *q = cost_device.queue_new();
    check(q, "out of memory");
    b->call(cost_device.ops, q, set);
    Cost cost = q->cost;
    cost_device.queue_free(q);
    const int64_t counted = SHAPE->experts < ROWS * SHAPE->choices ? SHAPE->experts : ROWS * SHAPE->choices;
    for (int i = 0; i < set->n; i++)
        if (set->plan.offsets.data && set->t[i].n_dims == 3)
            cost.bytes -=
                (double)tensor_bytes(set->t[i]) * (double)(counted - s->experts_hit) / (double)SHAPE->experts;
    const double length = (double)ROWS / (double)(s->prompts ? s->prompts : 1);
    const double pairs = strcmp(b->op, "attention_decode") ? (double)ROWS * (length + 1) / 2 : (double)ROWS;
    if (s->prompts)
        cost.flops = pairs * (double)(SHAPE->heads * SHAPE->head) * (strcmp(b->op, "attention_bwd") ? 4 : 10);
    return cost;
}

static double time_replay(Memory *m, Graph *graph, const OpBench *b, const Set *sets, int n_sets, int calls) {
    const Device *d = m->device;
    const double begin = clock_seconds();
    if (graph) d->graph_launch(m->queue, graph);
    for (int i = 0; !graph && i < calls; i++) b->call(d->ops, m->queue, &sets[i % n_sets]);
    check(d->sync(m->queue), "%s: %s", m->queue->failed_op, m->queue->failure);
    return (clock_seconds() - begin) / calls;
}

static Timing time_case(Memory *m, const OpBench *b, const Set *sets, int n_sets) {
    const Device *d = m->device;
    for (int i = 0; i < n_sets; i++) time_replay(m, NULL, b, &sets[i], 1, 1);
    const double once = time_replay(m, NULL, b, sets, n_sets, n_sets);
    int calls = (int)(2e-3 / once) + 1;
    calls = calls > 64 ? 64 : calls < n_sets ? n_sets : calls;
    Graph *graph = NULL;
    if (d->graph_begin) {
        d->graph_begin(m->queue);
        for (int i = 0; i < calls; i++) b->call(d->ops, m->queue, &sets[i % n_sets]);
        graph = d->graph_end(m->queue);
        check(graph, "%s: %s", m->queue->failed_op, m->queue->failure);
    }
    double seconds[BENCH_RUNS];
    for (int run = -2; run < BENCH_RUNS; run++)
        seconds[run < 0 ? 0 : run] = time_replay(m, graph, b, sets, n_sets, calls);
    if (graph) d->graph_free(graph);
    return timing_of(seconds, BENCH_RUNS);
}

static void run_case(Memory *m, const OpBench *b, Sizes *s, const char *name, FILE *to) {
    Set sets[MOST_SETS] = {0};
    int n_sets = 0;
    for (m->dealt = m->ints_at = 0; n_sets < MOST_SETS && m->dealt < SPREAD_BYTES; n_sets++)
        b->build(m, s, &sets[n_sets]);
    if (sets[0].plan.offsets.data) s->experts_hit = count_hit(m, &sets[0], SHAPE->experts);
    const Timing t = time_case(m, b, sets, n_sets);
    const Cost cost = least_cost(b, s, &sets[0]);
    fprintf(to, "%s,%s,%.9f,%.9f,%.9f,%.4f,%.6f,%.1f,%.1f\n", name, m->device->name, t.median, t.least,
            t.most, cost.flops / 1e9, cost.bytes / 1e9, cost.flops / t.median / 1e12,
            cost.bytes / t.median / 1e9);
    fflush(to);
}

static bool read_case(const char *name, const OpBench **b, Sizes *s, Error *error) {
    char shape[32] = "", op[32] = "";
    long long first = 0, second = 0;
    int used = 0;
    const char *rest = name;
    if (sscanf(name, "%31[^/]/%31[^/]/%lld%n", shape, op, &first, &used) == 3) rest = name + used;
    if (*rest == 'x' && sscanf(rest, "x%lld%n", &second, &used) == 1) rest += used;
    if (*rest == '/' && sscanf(rest, "/%lf%n", &s->skew, &used) == 1) rest += used;
    *b = NULL;
    for (int i = 0; i < N_OP_BENCHES; i++)
        if (!strcmp(OP_BENCHES[i].op, op)) *b = &OP_BENCHES[i];
    SHAPE = bench_shape(shape);
    if (!*b || !SHAPE || *rest || first < 1 || (strstr(op, "attention") != NULL) != (second > 0))
        return error_set(error, ERROR_BAD_INPUT, "case: expected SHAPE/OP/ROWS[/SKEW]: got \"%s\"", name);
    ROWS = second ? first * second : first;
    s->prompts = second ? first : 0;
    return true;
}

/* ---- the list ---- */
static void print_names(FILE *to) {
    static const char *const routed[] = {"moe_hidden", "moe_down"};
    static const int rows[] = {1, 8, 32, 100, 512, 2048, 8192, 16384, 32768};
    static const char *const shapes[] = {"mixtral", "qwen3", "olmoe"};
    for (int i = 0; i < 3; i++) {
        const char *shape = shapes[i];
        for (size_t op = 0; op < 2; op++)
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
                fprintf(to, "%s/%s/%d/0.5\n", shape, routed[op], rows[r]);
        fprintf(to, "%s/moe_hidden/16384/0\n%s/moe_hidden/16384/1.5\n%s/moe_gate_up/16384/0.5\n", shape,
                shape, shape);
        fprintf(to, "%s/moe_hidden_bwd/16384/0.5\n%s/moe_gate_up_bwd/16384/0.5\n", shape, shape);
        fprintf(to, "%s/route/32768\n%s/moe_plan/32768/0.5\n%s/swiglu/16384\n", shape, shape, shape);
        fprintf(to, "%s/moe_combine/16384/0.5\n%s/moe_swiglu_bwd/16384/0.5\n", shape, shape);
        fprintf(to, "%s/dense/16384\n%s/dense_bwd/16384\n%s/dense/100\n", shape, shape, shape);
        fprintf(to, "%s/rmsnorm/16384\n%s/rmsnorm_bwd/16384\n%s/rope/16384\n%s/embed/16384\n", shape, shape,
                shape, shape);
        fprintf(to, "%s/cross_entropy/8192\n", shape);
        if (i < 2)
            for (int length = 128; length <= 8192; length *= 4)
                fprintf(to, "%s/attention/%dx%d\n%s/attention_bwd/%dx%d\n", shape, 16384 / length, length,
                        shape, 16384 / length, length);
        fprintf(to, "%s/attention_decode/100x640\n", shape);
    }
}

/* ---- memory ---- */
static bool memory_open(Memory *m, const BenchOps *request, Error *error) {
    const Device *device = request->device;
    const size_t part = (size_t)request->memory_gib << 27; /* of eight */
    *m = (Memory){.device = device,
                  .queue = device->queue_new(),
                  .pool_bytes = 3 * part,
                  .scratch_bytes = 4 * part,
                  .ints_bytes = part};
    m->pool = device->alloc(m->pool_bytes);
    m->scratch = device->alloc(m->scratch_bytes);
    m->ints = device->alloc(m->ints_bytes);
    if (!m->queue || !m->pool || !m->scratch || !m->ints)
        return error_set(error, ERROR_UNAVAILABLE, "--memory: expected %lld GiB on %s: got less",
                         (long long)request->memory_gib, device->name);
    bench_fill(device, m->queue, m->pool, m->pool_bytes);
    device->zero(m->queue, tensor_vector(m->scratch, DTYPE_F32, (int64_t)m->scratch_bytes / 4));
    check(device->sync(m->queue), "%s", m->queue->failure);
    return true;
}

static void memory_close(Memory *m) {
    if (m->pool) m->device->free(m->pool);
    if (m->scratch) m->device->free(m->scratch);
    if (m->ints) m->device->free(m->ints);
    if (m->queue) m->device->queue_free(m->queue);
}

bool bench_ops(const BenchOps *request, Error *error) {
    if (request->list) {
        print_names(request->to);
        return true;
    }
    Memory m;
    bool ok = memory_open(&m, request, error);
    FILE *names = request->from ? request->from : tmpfile();
    if (!names) ok = error_set(error, ERROR_FAILED, "bench: expected a temporary file: got none");
    if (ok && !request->from) {
        print_names(names);
        rewind(names);
    }
    char name[128];
    while (ok && fgets(name, sizeof name, names)) {
        name[strcspn(name, "\n")] = 0;
        const OpBench *b;
        Sizes s = {.act = request->act};
        ok = read_case(name, &b, &s, error);
        if (ok) run_case(&m, b, &s, name, request->to);
    }
    if (names && !request->from) fclose(names);
    memory_close(&m);
    return ok;
}

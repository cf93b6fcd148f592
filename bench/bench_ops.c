/* Time of single ops: `gatetape bench ops`.
 *
 * Inputs are views of one large pool of normal random numbers, each call of a case at other places of it, so
 * that no call finds its operands in a cache that a real pass would not have. Calls are recorded as a graph
 * where the device can record, so that launches by the host are no part of the time. */
#include "op_cases.h"
#include "../engine/alloc.h"
#include "../engine/clock.h"
#include "../kernels/check.h"
#include <stdlib.h>
#include <string.h>

/* ---- one case ---- */
static int64_t count_hit(Memory *m, const Set *set, int64_t E) {
    int32_t offsets[257];
    m->device->copy_out(m->queue, offsets, set->plan.offsets);
    check(m->device->sync(m->queue), "%s", m->queue->failure);
    int64_t hit = 0;
    for (int64_t e = 0; e < E; e++) hit += offsets[e + 1] > offsets[e];
    return hit;
}

/* What the cost table says of the call, with the experts that are hit and the keys that causality leaves. */
static Cost least_cost(const OpBench *b, const Sizes *s, const Set *set) {
    Queue *q = cost_device.queue_new();
    check(q, "out of memory");
    b->call(cost_device.ops, q, set);
    Cost cost = q->cost;
    cost_device.queue_free(q);
    const int64_t counted =
        s->shape->experts < s->rows * s->shape->choices ? s->shape->experts : s->rows * s->shape->choices;
    for (int i = 0; i < set->n; i++)
        if (set->plan.offsets.data && set->t[i].n_dims == 3 && set->t[i].shape[0] == s->shape->experts)
            cost.bytes -= (double)tensor_bytes(set->t[i]) * (double)(counted - s->experts_hit) /
                          (double)s->shape->experts;
    const double length = (double)s->rows / (double)(s->prompts ? s->prompts : 1);
    const double pairs =
        strcmp(b->op, "attention_decode") ? (double)s->rows * (length + 1) / 2 : (double)s->rows;
    if (s->prompts)
        cost.flops =
            pairs * (double)(s->shape->heads * s->shape->head) * (strcmp(b->op, "attention_bwd") ? 4 : 10);
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
    if (sets[0].plan.offsets.data) s->experts_hit = count_hit(m, &sets[0], s->shape->experts);
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
    for (const OpBench *one = op_benches; one->op; one++)
        if (!strcmp(one->op, op)) *b = one;
    s->shape = bench_shape(shape);
    if (!*b || !s->shape || *rest || first < 1 || (strstr(op, "attention") != NULL) != (second > 0))
        return error_set(error, ERROR_BAD_INPUT, "case: expected SHAPE/OP/ROWS[/SKEW]: got \"%s\"", name);
    s->rows = second ? first * second : first;
    s->prompts = second ? first : 0;
    return true;
}

/* ---- the list ---- */
typedef bool name_fn(void *context, const char *name);

/* Of one shape: OP/ROWS and the like, apart by a space. */
static const char cases_of_a_shape[] =
    "moe_hidden/1/0.5 moe_hidden/8/0.5 moe_hidden/32/0.5 moe_hidden/100/0.5 moe_hidden/512/0.5 "
    "moe_hidden/2048/0.5 moe_hidden/8192/0.5 moe_hidden/16384/0.5 moe_hidden/32768/0.5 "
    "moe_down/1/0.5 moe_down/8/0.5 moe_down/32/0.5 moe_down/100/0.5 moe_down/512/0.5 "
    "moe_down/2048/0.5 moe_down/8192/0.5 moe_down/16384/0.5 moe_down/32768/0.5 moe_hidden/16384/0 "
    "moe_hidden/16384/1.5 moe_gate_up/16384/0.5 moe_hidden_bwd/16384/0.5 "
    "moe_gate_up_bwd/16384/0.5 route/32768 moe_plan/32768/0.5 swiglu/16384 moe_combine/16384/0.5 "
    "moe_swiglu_bwd/16384/0.5 moe_gate_up/16384/0 lora_r16/16384/0 lora_r64/16384/0 lora_all_r16/16384/0 "
    "lora_bwd_r16/16384/0 lora_bwd_r64/16384/0 adamw/1024 dense/16384 dense_bwd/16384 dense/100 "
    "rmsnorm/16384 "
    "rmsnorm_bwd/16384 rope/16384 embed/16384 cross_entropy/8192 attention/128x128 "
    "attention_bwd/128x128 attention/32x512 attention_bwd/32x512 attention/8x2048 "
    "attention_bwd/8x2048 attention/2x8192 attention_bwd/2x8192 attention_decode/100x640";

/* Every case in order; false: `each` said so. OLMoE's attention is Mixtral's at another number of heads. */
static bool each_name(name_fn *each, void *context) {
    static const char *const shapes[] = {"mixtral", "qwen3", "olmoe"};
    char name[128];
    for (int s = 0; s < 3; s++)
        for (const char *one = cases_of_a_shape; *one; one += strspn(one, " ")) {
            const int n = (int)strcspn(one, " ");
            const bool left_out =
                s == 2 && (!strncmp(one, "attention/", 10) || !strncmp(one, "attention_bwd/", 14));
            snprintf(name, sizeof name, "%s/%.*s", shapes[s], n, one);
            if (!left_out && !each(context, name)) return false;
            one += n;
        }
    return true;
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

/* ---- the front door ---- */
typedef struct {
    const BenchOps *request;
    Memory memory;
    Error *error;
} Bench;

static bool print_name(void *context, const char *name) {
    const Bench *b = context;
    return fprintf(b->request->to, "%s\n", name) > 0;
}

static bool run_named(void *context, const char *name) {
    Bench *b = context;
    const OpBench *op;
    Sizes s = {.act = b->request->act};
    if (!read_case(name, &op, &s, b->error)) return false;
    run_case(&b->memory, op, &s, name, b->request->to);
    return true;
}

bool bench_ops(const BenchOps *request, Error *error) {
    Bench b = {.request = request, .error = error};
    if (request->list) return each_name(print_name, &b);
    bool ok = memory_open(&b.memory, request, error);
    if (!request->from) {
        ok = ok && each_name(run_named, &b);
    } else {
        char name[128];
        while (ok && fgets(name, sizeof name, request->from)) {
            name[strcspn(name, "\n")] = 0;
            ok = run_named(&b, name);
        }
    }
    memory_close(&b.memory);
    return ok;
}

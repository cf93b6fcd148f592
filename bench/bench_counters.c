/* How efficiently the GPU's kernels move data, counted on the emulated device (`gatetape bench counters`),
 * and the time that a device could not beat with those counts: predictions, not measurements.
 *
 * Memory-bound ops at 512 rows of 2048 (heads of 128) in bf16, the router at 2048 tokens, attention at
 * Mixtral's heads, products at the shapes of real models with 8192 tokens, and with 100 as when decoding,
 * their experts of unequal popularity (log-normal, 0.5). Of large grids a sample of blocks is counted and
 * scaled up; the column `blocks` says how many of how many. The least possible is what the cost table
 * says. */
#include "bench.h"
#include "engine/alloc.h"
#include "engine/io.h"
#include "engine/json.h"
#include "engine/model_config.h"
#include "engine/text.h"
#include "tests/emulator/roofline.h"
#include "tests/kernels/cases.h"

enum { T = 8192, DECODED = 100, ROUTED = 2048, SAMPLED_BLOCKS = 12, SAMPLED_SMALL_BLOCKS = 96 };

/* The table at hand. */
typedef struct {
    DeviceLimits limits;
    FILE *to;
    Text rows; /* as CSV */
    int n_broken;
} Table;

/* ---- a device by its limits ---- */
/* {"value": ., "source": "..."}: a number without its source is refused. */
static bool read_limit(const Json *root, const char *key, double *to, Error *error) {
    const Json entry = json_member(root, key);
    const Json value = json_member(&entry, "value");
    const char *source;
    if (!json_number(value, to, error) || !json_string(json_member(&entry, "source"), &source, error))
        return false;
    return *to > 0 || json_error(value, error, "expected a number above 0: got %g", *to);
}

static bool read_limits(const char *path, DeviceLimits *d, Text *name, Error *error) {
    const struct {
        const char *key;
        double *to;
    } keys[] = {{"n_sms", &d->n_sms},
                {"clock_hz", &d->clock_hz},
                {"dram_bytes_per_s", &d->dram_bytes_per_s},
                {"l2_bytes_per_s", &d->l2_bytes_per_s},
                {"shared_bytes_per_clock", &d->shared_bytes_per_clock},
                {"tensor_multiply_adds_per_s", &d->tensor_multiply_adds_per_s}};
    enum { N_KEYS = sizeof keys / sizeof *keys };
    JsonDocument *document = json_read(path, 1 << 20, error);
    if (!document) return false;
    const Json root = json_root(document);
    const char *called;
    bool ok = json_string(json_member(&root, "name"), &called, error);
    if (ok) text_put_string(name, called);
    for (size_t i = 0; ok && i < N_KEYS; i++) ok = read_limit(&root, keys[i].key, keys[i].to, error);
    for (Json at = {0}; ok && json_next(&root, &at);) {
        bool known = !strcmp(at.key, "name") || !strcmp(at.key, "ranks"); /* of rank_device_read */
        for (size_t i = 0; i < N_KEYS; i++) known = known || !strcmp(at.key, keys[i].key);
        if (!known)
            ok = json_error(at, error, "expected a limit that is used (such as %s): got this one",
                            keys[0].key);
    }
    json_free(document);
    return ok;
}

/* ---- bounds ---- */
/* What CI holds: memory-bound ops touch nothing twice, products meet no bank conflict, waste little and
 * move no more than their tiles imply. 0: none. */
typedef struct {
    double sectors, touched, wavefronts; /* at most */
    double useful;                       /* at least */
    double moved;                        /* at most, in bytes */
} Bounds;

static void hold(Table *table, const char *name, const char *what, double is, double bound, bool holds) {
    if (bound == 0 || holds) return;
    fprintf(table->to, "%s: %s: %.3f, bound %.3f\n", name, what, is, bound);
    table->n_broken++;
}

static const char *limit_of(Roofline r) {
    const double t = roofline_seconds(r);
    return t == r.dram ? "DRAM" : t == r.l2 ? "L2" : t == r.shared ? "shared memory" : "tensor cores";
}

/* All launches of one op, the sampled ones scaled up. */
typedef struct {
    size_t n;
    uint64_t n_run, n_blocks;
    Tally tally;
    double touched, seconds; /* touched: bytes, known of whole launches alone */
    const char *limit;
} Counted;

static Counted count_launches(const DeviceLimits *limits, Least least) {
    Counted c = {.limit = ""};
    const LaunchCounts *l = count_end(&c.n);
    double slowest = 0;
    for (size_t i = 0; i < c.n; i++) {
        const double scale = (double)l[i].n_blocks / (double)l[i].n_run;
        Roofline r = launch_roofline(&l[i], limits);
        if (l[i].n_run < l[i].n_blocks) r.dram = 0; /* what the blocks share is not known */
        for (int k = 0; k < N_COUNTS; k++) c.tally.of[k] += (uint64_t)((double)l[i].total.of[k] * scale);
        c.touched += (double)((l[i].touched_read + l[i].touched_written) * SECTOR_BYTES);
        c.seconds += roofline_seconds(r) * scale;
        if (roofline_seconds(r) * scale > slowest)
            slowest = roofline_seconds(r) * scale, c.limit = limit_of(r);
        c.n_run += l[i].n_run, c.n_blocks += l[i].n_blocks;
    }
    const double dram = least.bytes / limits->dram_bytes_per_s;
    if (c.n_run < c.n_blocks && dram > c.seconds) c.seconds = dram, c.limit = "DRAM";
    return c;
}

static void print_counts(Table *table, const char *name, Least least, Bounds bounds) {
    const Counted c = count_launches(&table->limits, least);
    const double multiplied = (double)c.tally.of[COUNT_MULTIPLY_ADDS],
                 useful = least.multiply_adds / multiplied;
    const double moved = (double)((c.tally.of[COUNT_READ] + c.tally.of[COUNT_WRITTEN]) * SECTOR_BYTES);
    const double sectors = sectors_per_packed(&c.tally), wavefronts = wavefronts_per_free(&c.tally);
    const double touched = count_ratio(c.touched, least.bytes), again = count_ratio(moved, least.bytes);
    char touched_text[32] = "-", useful_text[32] = "-";
    if (c.n_run == c.n_blocks) snprintf(touched_text, sizeof touched_text, "%.3f", touched);
    if (multiplied > 0) snprintf(useful_text, sizeof useful_text, "%.3f", useful);
    hold(table, name, "sectors", sectors, bounds.sectors, sectors <= bounds.sectors);
    hold(table, name, "wavefronts", wavefronts, bounds.wavefronts, wavefronts <= bounds.wavefronts);
    hold(table, name, "touched", touched, bounds.touched, c.n_run == c.n_blocks && touched <= bounds.touched);
    hold(table, name, "useful share", useful, bounds.useful, useful >= bounds.useful);
    hold(table, name, "moved, of what the tiles imply", moved / bounds.moved, bounds.moved > 0,
         moved <= bounds.moved);
    fprintf(table->to, "%-34s %2zu %6llu/%-6llu %7.3f %7.3f %8s %8.2f %7s %10.2f  %s\n", name, c.n,
            (unsigned long long)c.n_run, (unsigned long long)c.n_blocks, sectors, wavefronts, touched_text,
            again, useful_text, c.seconds * 1e6, c.limit);
    text_format(&table->rows, "%s,%zu,%llu,%llu,%.3f,%.3f,%s,%.3f,%s,%.2f,%s\n", name, c.n,
                (unsigned long long)c.n_run, (unsigned long long)c.n_blocks, sectors, wavefronts,
                touched_text, again, useful_text, c.seconds * 1e6, c.limit);
}

/* ---- memory-bound ops, from the cases of the tests ---- */
/* What the cost table says of a call on tensors of these shapes. */
static Least least_of(const Case *c, const Problem *p, const Run *run) {
    Queue *q = cost_device.queue_new();
    check(q, "out of memory");
    c->call(cost_device.ops, q, run->on_device, p);
    const Least least = {q->cost.bytes, q->cost.gemm_flops / 2};
    cost_device.queue_free(q);
    return least;
}

static void count_op(Table *table, const char *op, int64_t width) {
    const Case *c = CASES;
    while (strcmp(c->op, op)) c++;
    Problem p = problem_new(c, 512, width, 0);
    const Setting s = {"cuda", DTYPE_BF16, DTYPE_BF16, 1};
    Run run = run_new(&p, &s);
    run.device->sync(run.queue);
    count_begin();
    c->call(run.device->ops, run.queue, run.on_device, &p);
    check(run.device->sync(run.queue), "%s", run.queue->failure);
    print_counts(table, op, least_of(c, &p, &run), (Bounds){.sectors = 1.05, .touched = 1.05});
    run_free(&run, &p);
    problem_free(&p);
}

/* ---- the others, on tensors without contents ---- */
typedef struct {
    const Device *device;
    Queue *queue;
    Tensor owned[16];
    int n;
    Tensor x, y, z, w, scratch; /* experts: tokens, rows out, gate and up */
    Tensor query, key, value, out, lse, dquery, dkey, dvalue, dout; /* attention */
    Tensor probs, ids, weights, logits;                             /* router */
    MoePlan plan;
    Spans spans;
    Lora lora;
    LoraSums sums;
} Set;

typedef void call_fn(const Ops *o, Queue *q, const Set *s);

static Set set_new(void) {
    Set s = {.device = cuda_device(NULL)};
    s.queue = s.device->queue_new();
    check(s.queue, "out of memory");
    return s;
}

static void set_free(Set *s) {
    for (int i = 0; i < s->n; i++) s->device->free(s->owned[i].data);
    s->device->queue_free(s->queue);
}

static Tensor add(Set *s, DType dtype, int64_t a, int64_t b, int64_t c) {
    check(s->n < (int)(sizeof s->owned / sizeof *s->owned), "%d tensors", s->n);
    Tensor t = {.dtype = dtype, .n_dims = c ? 3 : b ? 2 : 1, .shape = {a, b, c}};
    t.data = s->device->alloc(tensor_bytes(t));
    check(t.data, "no memory for %zu bytes", tensor_bytes(t));
    return s->owned[s->n++] = t;
}

static void fill(Set *s, Tensor t, const void *values) {
    s->device->copy_in(s->queue, t, values);
    check(s->device->sync(s->queue), "%s", s->queue->failure);
}

static Tensor add_filled(Set *s, const int32_t *values, int64_t n) {
    Tensor t = add(s, DTYPE_I32, n, 0, 0);
    fill(s, t, values);
    return t;
}

/* What the cost table says of the call: bytes, and the work of all its products. */
static Cost cost_of(call_fn *call, const Set *s) {
    Queue *q = cost_device.queue_new();
    check(q, "out of memory");
    call(cost_device.ops, q, s);
    const Cost cost = q->cost;
    cost_device.queue_free(q);
    return cost;
}

static void count_call(Table *table, const char *name, const Set *s, call_fn *call, Least least,
                       uint64_t sample, Bounds bounds) {
    count_sample(sample);
    count_begin();
    call(s->device->ops, s->queue, s);
    check(s->device->sync(s->queue), "%s: %s", name, s->queue->failure);
    print_counts(table, name, least, bounds);
    count_sample(0);
}

#define CALLS(op) static void calls_##op(const Ops *o, Queue *q, const Set *s)
CALLS(gate_up) { o->moe_gate_up(q, s->z, s->x, s->w, (Tensor){0}, s->plan); }
/* down's operands in the memory of gate and up */
static Tensor hidden_of(const Set *s, DType dtype) {
    return tensor_matrix(s->z.data, dtype, s->z.shape[0], s->z.shape[1] / 2);
}
static Tensor down_of(const Set *s) {
    return tensor_cube(s->w.data, s->w.dtype, s->w.shape[0], s->w.shape[2], s->w.shape[1] / 2);
}
CALLS(down) { o->moe_down(q, s->y, hidden_of(s, DTYPE_BF16), down_of(s), (Tensor){0}, s->plan); }
CALLS(down_bwd) {
    o->moe_down_bwd(q, hidden_of(s, DTYPE_F32), (Tensor){0}, s->x, down_of(s), (Tensor){0}, s->plan);
}
CALLS(gate_up_bwd) { o->moe_gate_up_bwd(q, s->x, s->scratch, s->z, s->w, s->plan); }
CALLS(dense) { o->dense(q, s->y, s->x, s->w, (Tensor){0}, (Tensor){0}); }
CALLS(lora) { o->lora(q, s->z, s->x, s->lora, s->plan); }
CALLS(lora_bwd) { o->lora_bwd(q, s->x, s->sums, s->scratch, s->z, s->x, s->lora, (Tensor){0}, s->plan); }
CALLS(route) {
    o->route(q, s->probs, s->ids, s->weights, s->logits, (RouteEdits){0},
             (RouterRule){ROUTER_SOFTMAX_TOPK, true, 1});
}
CALLS(attention) {
    o->attention(q, s->out, s->lse, s->query, s->key, s->value, s->spans, (Tensor){0}, 0.09f, 0);
}
CALLS(attention_bwd) {
    o->attention_bwd(q, s->dquery, s->dkey, s->dvalue, s->dout, s->out, s->lse, s->query, s->key, s->value,
                     s->spans, 0.09f, 0);
}

/* ---- router ---- */
static void count_route(Table *table, int64_t experts, int64_t choices) {
    Set s = set_new();
    s.probs = add(&s, DTYPE_F32, ROUTED, experts, 0);
    s.ids = add(&s, DTYPE_I32, ROUTED, choices, 0);
    s.weights = add(&s, DTYPE_F32, ROUTED, choices, 0);
    s.logits = add(&s, DTYPE_F32, ROUTED, experts, 0);
    float *values = calloc((size_t)(ROUTED * experts), sizeof *values);
    check(values, "out of memory");
    for (int64_t i = 0; i < ROUTED * experts; i++)
        values[i] = (float)random_uniform(2, RANDOM_TEST, experts, i);
    fill(&s, s.logits, values);
    free(values);
    char name[64];
    snprintf(name, sizeof name, "route %lld of %lld experts", (long long)choices, (long long)experts);
    const Least least = {cost_of(calls_route, &s).bytes, 0};
    /* A token's ids are read back, and with them the logits of the chosen: 4 bytes of a sector, from L1. */
    const double touched = (least.bytes + (double)tensor_bytes(s.ids)) / least.bytes;
    count_call(table, name, &s, calls_route, least, 0, (Bounds){.sectors = 1.8, .touched = 1.01 * touched});
    set_free(&s);
}

/* ---- attention of prompts of the same length, at Mixtral's heads ---- */
enum { HEADS = 32, KV_HEADS = 8, HEAD = 128 };

static void add_prompts(Set *s, int64_t prompts, int64_t queries, int64_t keys) {
    int32_t offsets[65], begin[64], length[64];
    check(prompts <= 64, "%lld prompts", (long long)prompts);
    offsets[0] = 0;
    for (int64_t p = 0; p < prompts; p++) {
        offsets[p + 1] = (int32_t)((p + 1) * queries);
        begin[p] = (int32_t)(p * keys);
        length[p] = (int32_t)keys;
    }
    s->spans = (Spans){add_filled(s, offsets, prompts + 1), add_filled(s, begin, prompts),
                       add_filled(s, length, prompts)};
    s->query = add(s, DTYPE_BF16, prompts * queries, HEADS, HEAD);
    s->out = add(s, DTYPE_BF16, prompts * queries, HEADS, HEAD);
    s->lse = add(s, DTYPE_F32, prompts * queries, HEADS, 0);
    s->key = add(s, DTYPE_BF16, prompts * keys, KV_HEADS, HEAD);
    s->value = add(s, DTYPE_BF16, prompts * keys, KV_HEADS, HEAD);
}

/* `others`: operations that the cost table counts for a pair of query and key beside the products. */
static Least least_of_attention(call_fn *call, const Set *s, double products, double others) {
    const Cost cost = cost_of(call, s);
    const double of_products = 2 * products * HEAD;
    return (Least){cost.bytes, cost.flops * of_products / (of_products + others) / 2};
}

static void count_attention(Table *table, int64_t prompts, int64_t tokens, uint64_t sample, Bounds bounds,
                            Bounds bounds_bwd) {
    Set s = set_new();
    add_prompts(&s, prompts, tokens, tokens);
    char name[64];
    snprintf(name, sizeof name, "mixtral attention %lldx%lld", (long long)prompts, (long long)tokens);
    count_call(table, name, &s, calls_attention, least_of_attention(calls_attention, &s, 2, 4), sample,
               bounds);
    s.dquery = add(&s, DTYPE_BF16, prompts * tokens, HEADS, HEAD);
    s.dout = add(&s, DTYPE_BF16, prompts * tokens, HEADS, HEAD);
    s.dkey = add(&s, DTYPE_BF16, prompts * tokens, KV_HEADS, HEAD);
    s.dvalue = add(&s, DTYPE_BF16, prompts * tokens, KV_HEADS, HEAD);
    snprintf(name, sizeof name, "mixtral attention_bwd %lldx%lld", (long long)prompts, (long long)tokens);
    count_call(table, name, &s, calls_attention_bwd, least_of_attention(calls_attention_bwd, &s, 5, 5),
               sample, bounds_bwd);
    set_free(&s);
}

/* One token a prompt. */
static void count_decode(Table *table, int64_t prompts, int64_t keys, Bounds bounds) {
    Set s = set_new();
    add_prompts(&s, prompts, 1, keys);
    char name[64];
    snprintf(name, sizeof name, "mixtral decode attention %lldx%lld", (long long)prompts, (long long)keys);
    count_call(table, name, &s, calls_attention, least_of_attention(calls_attention, &s, 2, 4), 0, bounds);
    set_free(&s);
}

/* Keys are taken in blocks of 64, so of few a part is masked; the backward pass has seven products for the
 * five that are needed. Its launches read query, key, value and dout in turn, and a warp's gradients go
 * out in pieces of 16 bytes: half a sector, twice (old sum, new sum), which weighs less the longer the
 * prompt. */
static void count_attentions(Table *table) {
    const Bounds shorter = {.sectors = 1.05, .touched = 1.05, .wavefronts = 1.01, .useful = 0.80};
    const Bounds shorter_bwd = {.sectors = 1.18, .touched = 1.56, .wavefronts = 1.01, .useful = 0.59};
    const Bounds longer = {.sectors = 1.05, .wavefronts = 1.01},
                 longer_bwd = {.sectors = 1.10, .wavefronts = 1.01};
    count_attention(table, 1, 256, 0, shorter, shorter_bwd);
    count_attention(table, 8, 1024, SAMPLED_SMALL_BLOCKS, longer, longer_bwd);
}

/* The parts of a prompt that several blocks share go through the workspace. */
static void count_decoding(Table *table) {
    count_decode(table, 16, 256, (Bounds){.sectors = 1.05, .touched = 1.05, .wavefronts = 1.01});
    count_decode(table, 1, 4096, (Bounds){.sectors = 1.05, .touched = 1.15, .wavefronts = 1.01});
}

/* ---- products ---- */
typedef struct {
    const char *model;
    double least_useful; /* share of tensor-core work */
} Model;

static const Model MODELS[] = {{"mixtral", 0.93}, {"qwen3", 0.85}, {"olmoe", 0.85}};

/* A block's part of y (kernels/cuda/gemm_mma.cu); of a case, the one that its rows call for. */
typedef struct {
    int rows, columns;
} TileSize;
static const TileSize LARGE = {128, 256}, MEDIUM = {64, 128}, SKINNY = {32, 64};

/* Rows of an expert in proportion to exp(0.5 x), x normal. */
static void popular_offsets(const BenchShape *s, int64_t tokens, int32_t *offsets) {
    double weight[256], total = 0, sum = 0;
    for (int64_t e = 0; e < s->experts; e++) {
        double x = -6;
        for (int i = 0; i < 12; i++) x += random_uniform(1, RANDOM_TEST, e, i);
        total += weight[e] = exp(0.5 * x);
    }
    for (int64_t e = 0; e <= s->experts; e++) {
        offsets[e] = (int32_t)((double)(tokens * s->choices) * sum / total + 0.5);
        if (e < s->experts) sum += weight[e];
    }
}

/* Bytes that a product's tiles read and write before any cache: x once for each column of tiles, w once
 * for each row of tiles, y once. */
static double implied_bytes(const int32_t *offsets, int64_t groups, int64_t columns, int64_t depth,
                            size_t y_bytes, TileSize tile) {
    double row_tiles = 0;
    for (int64_t e = 0; e < groups; e++)
        row_tiles += (offsets[e + 1] - offsets[e] + tile.rows - 1) / tile.rows;
    const double column_tiles = (double)((columns + tile.columns - 1) / tile.columns), rows = offsets[groups];
    return 2 * (double)depth * (rows * column_tiles + (double)columns * row_tiles) +
           rows * (double)columns * (double)y_bytes;
}

/* Offsets and the trivial order of rows, for so many tokens of the set's tensors. */
static void make_plan(Set *s, const BenchShape *shape, int64_t tokens, int32_t *offsets) {
    const int64_t M = tokens * shape->choices;
    int32_t *pairs = calloc((size_t)M, sizeof *pairs);
    check(pairs, "out of memory");
    popular_offsets(shape, tokens, offsets);
    for (int64_t i = 0; i < M; i++) pairs[i] = (int32_t)i;
    s->plan = (MoePlan){add_filled(s, offsets, shape->experts + 1), add_filled(s, pairs, M),
                        tensor_as_matrix(add_filled(s, pairs, M), tokens, shape->choices), 1};
    free(pairs);
    s->x.shape[0] = tokens;
    s->y.shape[0] = s->z.shape[0] = s->scratch.shape[0] = M;
}

/* Of a whole grid what is moved and touched is known; of a sample, moved within what the sample leaves
 * open. */
static Bounds bounds_of_product(double useful, double implied, TileSize tile, bool whole) {
    const bool skinny = tile.rows == SKINNY.rows;
    return (Bounds){.sectors = 1.05,
                    .touched = whole ? 1.05 : 0,
                    .wavefronts = skinny ? 1.04 : 1.01, /* sums of 16 columns leave by two-way conflicts */
                    .useful = useful,
                    .moved = implied * (skinny && !whole ? 1.15 : 1.05)};
}

/* SAMPLE 0: all blocks. */
static void count_experts_at(Table *table, const BenchShape *shape, Set *s, int64_t tokens, TileSize tile,
                             double useful, uint64_t sample) {
    const int64_t D = shape->hidden, F = shape->inner, E = shape->experts;
    int32_t offsets[257];
    make_plan(s, shape, tokens, offsets);
    const double adds =
        (double)s->y.shape[0] * 4 * (double)D + 2 * 2 * (double)tokens * (double)D; /* of choices */
    const struct {
        const char *op;
        call_fn *call;
        double moved;
        int64_t depth;
    } products[] = {
        {"moe_gate_up", calls_gate_up, implied_bytes(offsets, E, 2 * F, D, 2, tile), D},
        {"moe_down", calls_down, implied_bytes(offsets, E, D, F, 2, tile), F},
        {"moe_down_bwd", calls_down_bwd, implied_bytes(offsets, E, F, D, 4, tile), D},
        {"moe_gate_up_bwd", calls_gate_up_bwd, implied_bytes(offsets, E, D, 2 * F, 4, tile) + adds, 2 * F}};
    for (int i = 0; i < (tile.rows == LARGE.rows ? 4 : 2); i++) {
        char name[64], at[32] = "";
        if (tokens != T) snprintf(at, sizeof at, " %lld tokens", (long long)tokens);
        snprintf(name, sizeof name, "%s %s%s", shape->name, products[i].op, at);
        const Cost cost = cost_of(products[i].call, s);
        const uint64_t blocks = products[i].depth > 16384 ? sample / 3 : sample;
        count_call(table, name, s, products[i].call, (Least){cost.bytes, cost.gemm_flops / 2}, blocks,
                   bounds_of_product(useful, products[i].moved, tile, !sample));
    }
}

/* Tensors for the products of so many tokens. */
static Set new_experts(const BenchShape *shape, int64_t tokens) {
    const int64_t M = tokens * shape->choices;
    Set s = set_new();
    s.x = add(&s, DTYPE_BF16, tokens, shape->hidden, 0);
    s.y = add(&s, DTYPE_BF16, M, shape->hidden, 0);
    s.z = add(&s, DTYPE_BF16, M, 2 * shape->inner, 0);
    s.w = add(&s, DTYPE_BF16, shape->experts, 2 * shape->inner, shape->hidden);
    s.scratch = add(&s, DTYPE_F32, M, shape->hidden, 0);
    return s;
}

static void count_experts(Table *table, const Model *m) {
    const BenchShape *shape = bench_shape(m->model);
    Set s = new_experts(shape, T);
    count_experts_at(table, shape, &s, T, LARGE, m->least_useful, SAMPLED_BLOCKS);
    count_experts_at(table, shape, &s, DECODED, SKINNY, 0, SAMPLED_SMALL_BLOCKS);
    set_free(&s);
}

/* The same rows, but those of an expert belong to different tokens. */
static void spread_plan(Set *s, int64_t tokens, int64_t choices) {
    const int64_t M = tokens * choices;
    int32_t *pairs = calloc((size_t)(2 * M), sizeof *pairs), *rows = pairs + M;
    check(pairs, "out of memory");
    for (int64_t m = 0; m < M; m++) {
        pairs[m] = (int32_t)(m % tokens * choices + m / tokens);
        rows[pairs[m]] = (int32_t)m;
    }
    fill(s, s->plan.pairs, pairs);
    fill(s, s->plan.rows, rows);
    free(pairs);
}

/* Low-rank updates of the gate projection of a twentieth of the experts: all blocks, so few tokens; one
 * example. Of the rows of those experts alone is anything read or written. The gradient reads x and dz twice,
 * for g and u and then for the sums, and adds to dx. `sectors`: every block looks up where the cells' rows
 * are, scattered numbers that weigh at so few tokens. */
static void count_lora(Table *table, const char *model, int64_t tokens, int64_t rank, double sectors) {
    const BenchShape *shape = bench_shape(model);
    Set s =
        new_experts(&(BenchShape){.hidden = shape->hidden, .inner = shape->inner, .experts = 1, .choices = 1},
                    tokens * shape->choices);
    int32_t offsets[257], experts[256];
    make_plan(&s, shape, tokens, offsets);
    spread_plan(&s, tokens, shape->choices);
    const int64_t n = (shape->experts + 19) / 20;
    double rows = 0;
    for (int64_t i = 0; i < n; i++) {
        experts[i] = (int32_t)((2 * i + 1) * shape->experts / (2 * n));
        rows += offsets[experts[i] + 1] - offsets[experts[i]];
    }
    s.lora = (Lora){add_filled(&s, experts, n),
                    add(&s, DTYPE_F32, n, rank, shape->hidden),
                    add(&s, DTYPE_F32, n, shape->inner, rank),
                    add(&s, DTYPE_F32, n, 0, 0),
                    0,
                    false};
    const int32_t whole[2] = {0, (int32_t)tokens};
    s.sums = (LoraSums){add(&s, DTYPE_F32, 1, n * rank, shape->hidden),
                        add(&s, DTYPE_F32, 1, n * shape->inner, rank), add_filled(&s, whole, 2), 0};
    s.scratch.shape[1] = 2 * rank;
    /* the cost table spreads the rows evenly over the experts */
    const double even = (double)(tokens * shape->choices) * (double)n / (double)shape->experts;
    const double weights = (double)(tensor_bytes(s.lora.a) + tensor_bytes(s.lora.b));
    struct {
        const char *op;
        call_fn *call;
    } calls[] = {{"lora", calls_lora}, {"lora_bwd", calls_lora_bwd}};
    for (int i = 0; i < 2; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s %s r=%lld", model, calls[i].op, (long long)rank);
        const double bytes = cost_of(calls[i].call, &s).bytes;
        count_call(table, name, &s, calls[i].call, (Least){weights + (bytes - weights) * rows / even, 0}, 0,
                   (Bounds){.sectors = sectors, .touched = 1.05, .wavefronts = 1.17});
    }
    set_free(&s);
}

/* Few rows an expert, every block. */
static void count_few_rows(Table *table) {
    const BenchShape shape = {.name = "small", .hidden = 512, .inner = 256, .experts = 16, .choices = 4};
    Set s = new_experts(&shape, 40);
    count_experts_at(table, &shape, &s, 40, SKINNY, 0, 0);
    set_free(&s);
}

/* The query projection. */
static void count_dense(Table *table, const Model *m, int64_t tokens, TileSize tile) {
    const BenchShape *shape = bench_shape(m->model);
    const int64_t N = shape->heads * shape->head, D = shape->hidden;
    Set s = set_new();
    s.x = add(&s, DTYPE_BF16, tokens, D, 0);
    s.y = add(&s, DTYPE_BF16, tokens, N, 0);
    s.w = add(&s, DTYPE_BF16, N, D, 0);
    const int32_t offsets[] = {0, (int32_t)tokens};
    char name[64];
    snprintf(name, sizeof name, "%s dense%s", m->model, tokens == T ? "" : " 100 tokens");
    const Cost cost = cost_of(calls_dense, &s);
    count_call(table, name, &s, calls_dense, (Least){cost.bytes, cost.gemm_flops / 2}, SAMPLED_BLOCKS,
               bounds_of_product(tokens == T ? m->least_useful : 0, implied_bytes(offsets, 1, N, D, 2, tile),
                                 tile, false));
    set_free(&s);
}

/* ---- all of it ---- */
static void count_all(Table *table) {
    static const char *const ops[] = {"embed",  "add",        "rmsnorm",     "rmsnorm_bwd", "rope",
                                      "swiglu", "swiglu_bwd", "moe_combine", "row_norms",   "find_nonfinite",
                                      "adamw",  "sum_slots"};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        count_op(table, ops[i], strcmp(ops[i], "rope") ? 2048 : 128);
    count_route(table, 8, 2);
    count_route(table, 64, 8);
    count_route(table, 128, 8);
    count_attentions(table);
    count_decoding(table);
    count_few_rows(table);
    count_lora(table, "mixtral", 256, 16, 1.05);
    count_lora(table, "qwen3", 512, 16, 1.65);
    count_lora(table, "qwen3", 512, 64, 1.65);
    for (size_t i = 0; i < sizeof MODELS / sizeof *MODELS; i++) {
        count_experts(table, &MODELS[i]);
        count_dense(table, &MODELS[i], T, LARGE);
        count_dense(table, &MODELS[i], DECODED, MEDIUM);
    }
}

bool bench_counters(const BenchCounters *request, bool *kept, Error *error) {
    const char *why;
    if (!cuda_device(&why)) return error_set(error, ERROR_UNAVAILABLE, "bench counters: %s", why);
    Table table = {.to = request->to};
    Text name = {0};
    char *path = io_join(model_config_folder(), "devices/h100.json");
    bool ok = path || error_out_of_memory(error, "a path", 0);
    ok = ok && read_limits(request->limits ? request->limits : path, &table.limits, &name, error);
    if (ok) {
        fprintf(table.to, "predicted for %s, not measured\n%-34s %2s %13s %7s %7s %8s %8s %7s %10s  %s\n",
                name.bytes, "case", "n", "blocks", "sectors", "waves", "touched", "moved", "useful", "us",
                "limit");
        text_put_string(&table.rows,
                        "case,launches,blocks_counted,blocks,sectors_per_packed,wavefronts_per_free,"
                        "touched_per_least,moved_per_least,useful_share,predicted_us,limit\n");
        count_all(&table);
        fprintf(table.to, "%d bounds broken\n", table.n_broken);
        ok = !table.rows.failed || error_out_of_memory(error, "the rows", table.rows.length);
    }
    if (ok && request->out) ok = io_write_all(request->out, table.rows.bytes, table.rows.length, error);
    *kept = table.n_broken == 0;
    mem_free(path);
    text_free(&name);
    text_free(&table.rows);
    return ok;
}

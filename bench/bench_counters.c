/* How efficiently the GPU's kernels move data, counted on the emulated device, and the time that an H100
 * could not beat with those counts: predictions, not measurements.
 *
 *   bench_counters [OUT.csv]
 *
 * Memory-bound ops at 512 rows of 2048 (heads of 128) in bf16, products at the shapes of real models with
 * 8192 tokens and experts of unequal popularity (log-normal, 0.5). Of large grids a sample of blocks is
 * counted and scaled up; the column `blocks` says how many of how many. The least possible is what the cost
 * table says. */
#include "tests/emulator/roofline.h"
#include "tests/kernels/cases.h"

enum { T = 8192, SAMPLED_BLOCKS = 12 };

static const DeviceLimits H100 = {132, 1.755e9, 3.0e12, 5.5e12, 128, 3.99e14}; /* configs/devices/h100.json */
static FILE *to_file;
static int n_broken;

/* What CI holds: memory-bound ops touch nothing twice, products meet no bank conflict and waste little. */
typedef struct {
    double sectors, touched, wavefronts, useful; /* at most, at most, at most, at least; 0: none */
} Bounds;

static void hold(const char *name, const char *what, double is, double bound, bool holds) {
    if (bound == 0 || holds) return;
    printf("%s: %s: %.3f, bound %.3f\n", name, what, is, bound);
    n_broken++;
}

static const char *limit_of(Roofline r) {
    const double t = roofline_seconds(r);
    return t == r.dram ? "DRAM" : t == r.l2 ? "L2" : t == r.shared ? "shared memory" : "tensor cores";
}

/* All launches of one op as one. */
static void print_counts(const char *name, Least least, Bounds bounds) {
    size_t n;
    const LaunchCounts *l = count_end(&n);
    Tally sum = {{0}};
    double touched = 0, seconds = 0, slowest = 0;
    uint64_t run = 0, blocks = 0;
    const char *limit = "";
    for (size_t i = 0; i < n; i++) {
        const double scale = (double)l[i].n_blocks / (double)l[i].n_run;
        Roofline r = launch_roofline(&l[i], &H100);
        if (l[i].n_run < l[i].n_blocks)
            r.dram = least.bytes / scale / H100.dram_bytes_per_s; /* L2 keeps it */
        for (int c = 0; c < N_COUNTS; c++) sum.of[c] += (uint64_t)((double)l[i].total.of[c] * scale);
        touched += (double)((l[i].touched_read + l[i].touched_written) * SECTOR_BYTES);
        seconds += roofline_seconds(r) * scale;
        if (roofline_seconds(r) * scale > slowest) slowest = roofline_seconds(r) * scale, limit = limit_of(r);
        run += l[i].n_run, blocks += l[i].n_blocks;
    }
    const bool whole = run == blocks;
    char touched_text[32] = "-", useful_text[32] = "-";
    if (whole) snprintf(touched_text, sizeof touched_text, "%.3f", count_ratio(touched, least.bytes));
    if (sum.of[COUNT_MULTIPLY_ADDS])
        snprintf(useful_text, sizeof useful_text, "%.3f",
                 least.multiply_adds / (double)sum.of[COUNT_MULTIPLY_ADDS]);
    const double useful = least.multiply_adds / (double)sum.of[COUNT_MULTIPLY_ADDS];
    hold(name, "sectors", sectors_per_packed(&sum), bounds.sectors,
         sectors_per_packed(&sum) <= bounds.sectors);
    hold(name, "wavefronts", wavefronts_per_free(&sum), bounds.wavefronts,
         wavefronts_per_free(&sum) <= bounds.wavefronts);
    hold(name, "touched", count_ratio(touched, least.bytes), bounds.touched,
         count_ratio(touched, least.bytes) <= bounds.touched);
    hold(name, "useful share", useful, bounds.useful, useful >= bounds.useful);
    FILE *const outs[] = {stdout, to_file};
    for (int i = 0; i < 2; i++)
        if (outs[i])
            fprintf(outs[i],
                    i ? "%s,%zu,%llu,%llu,%.3f,%.3f,%s,%s,%.2f,%s\n"
                      : "%-28s %3zu %6llu/%-6llu %8.3f %8.3f %8s %8s %10.2f  %s\n",
                    name, n, (unsigned long long)run, (unsigned long long)blocks, sectors_per_packed(&sum),
                    wavefronts_per_free(&sum), touched_text, useful_text, seconds * 1e6, limit);
}

/* What the cost table says of a call on tensors of these shapes. */
static Least least_of(const Case *c, const Problem *p, const Run *run) {
    Tensor t[MOST_ARGS] = {0};
    Queue *q = cost_device.queue_new();
    for (int a = 0; a < p->n_args; a++) {
        t[a] = run->t[a];
        if (t[a].data) t[a].data = cost_device.alloc(tensor_bytes(t[a]));
    }
    c->call(cost_device.ops, q, t, p);
    const Least least = {q->cost.bytes, q->cost.gemm_flops / 2};
    for (int a = 0; a < p->n_args; a++)
        if (t[a].data) cost_device.free(t[a].data);
    cost_device.queue_free(q);
    return least;
}

static void count_op(const char *op, int64_t width) {
    const Case *c = CASES;
    while (strcmp(c->op, op)) c++;
    Problem p = problem_new(c, 512, width, 0);
    const Setting s = {"cuda", DTYPE_BF16, DTYPE_BF16, 1};
    Run run = run_new(&p, &s);
    run.device->sync(run.queue);
    count_begin();
    c->call(run.device->ops, run.queue, run.on_device, &p);
    check(run.device->sync(run.queue), "%s", run.queue->failure);
    print_counts(op, least_of(c, &p, &run), (Bounds){.sectors = 1.05, .touched = 1.05});
    run_free(&run, &p);
    problem_free(&p);
}

/* ---- products of a model's experts ---- */
typedef struct {
    const char *model;
    int64_t hidden, inner, experts, choices;
    double least_useful; /* share of tensor-core work */
} Shape;

static const Shape SHAPES[] = {{"mixtral", 4096, 14336, 8, 2, 0.93},
                               {"qwen3", 2048, 768, 128, 8, 0.85},
                               {"olmoe", 2048, 1024, 64, 8, 0.85}};

static Tensor device_tensor(const Device *d, DType dtype, int n_dims, int64_t a, int64_t b, int64_t c) {
    Tensor t = {.dtype = dtype, .n_dims = n_dims, .shape = {a, b, c}};
    t.data = d->alloc(tensor_bytes(t));
    check(t.data, "no memory for %zu bytes", tensor_bytes(t));
    return t;
}

/* Rows of an expert in proportion to exp(0.5 x), x normal. */
static void popular_offsets(const Shape *s, int32_t *offsets) {
    double weight[256], total = 0, sum = 0;
    for (int64_t e = 0; e < s->experts; e++) {
        double x = -6;
        for (int i = 0; i < 12; i++) x += random_uniform(1, RANDOM_TEST, e, i);
        total += weight[e] = exp(0.5 * x);
    }
    for (int64_t e = 0; e <= s->experts; e++) {
        offsets[e] = (int32_t)((double)(T * s->choices) * sum / total + 0.5);
        if (e < s->experts) sum += weight[e];
    }
}

static void count_products(const Shape *s) {
    const Device *d = cuda_device(NULL);
    const int64_t M = T * s->choices;
    Queue *q = d->queue_new();
    int32_t offsets[257], *pairs = calloc((size_t)M, sizeof *pairs);
    check(q && pairs, "out of memory");
    popular_offsets(s, offsets);
    for (int64_t i = 0; i < M; i++) pairs[i] = (int32_t)i;
    MoePlan plan = {device_tensor(d, DTYPE_I32, 1, s->experts + 1, 1, 1),
                    device_tensor(d, DTYPE_I32, 1, M, 1, 1), device_tensor(d, DTYPE_I32, 2, T, s->choices, 1),
                    1};
    Tensor x = device_tensor(d, DTYPE_BF16, 2, T, s->hidden, 1),
           z = device_tensor(d, DTYPE_BF16, 2, M, 2 * s->inner, 1);
    Tensor h = tensor_as_matrix(z, M, s->inner), y = device_tensor(d, DTYPE_BF16, 2, M, s->hidden, 1);
    Tensor w = device_tensor(d, DTYPE_BF16, 3, s->experts, 2 * s->inner, s->hidden);
    Tensor down = tensor_cube(w.data, DTYPE_BF16, s->experts, s->hidden, s->inner);
    d->copy_in(q, plan.offsets, offsets);
    d->copy_in(q, plan.pairs, pairs);
    check(d->sync(q), "%s", q->failure);
    count_sample(SAMPLED_BLOCKS);
    char name[64];
    const Bounds bounds = {.sectors = 1.05, .wavefronts = 1.01, .useful = s->least_useful};
    Least least = {(double)(tensor_bytes(x) + tensor_bytes(w) + tensor_bytes(z)),
                   (double)M * 2 * (double)s->inner * (double)s->hidden};
    snprintf(name, sizeof name, "%s moe_gate_up", s->model);
    count_begin();
    d->ops->moe_gate_up(q, z, x, w, (Tensor){0}, plan);
    check(d->sync(q), "%s", q->failure);
    print_counts(name, least, bounds);
    least =
        (Least){(double)(tensor_bytes(h) + tensor_bytes(down) + tensor_bytes(y)), least.multiply_adds / 2};
    snprintf(name, sizeof name, "%s moe_down", s->model);
    count_begin();
    d->ops->moe_down(q, y, h, down, (Tensor){0}, plan);
    check(d->sync(q), "%s", q->failure);
    print_counts(name, least, bounds);
    count_sample(0);
    Tensor all[] = {plan.offsets, plan.pairs, plan.rows, x, z, y, w};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) d->free(all[i].data);
    d->queue_free(q);
    free(pairs);
}

int main(int argc, char **argv) {
    static const char *const ops[] = {"embed",  "add",        "rmsnorm",     "rmsnorm_bwd", "rope",
                                      "swiglu", "swiglu_bwd", "moe_combine", "row_norms",   "find_nonfinite"};
    to_file = argc > 1 ? fopen(argv[1], "w") : NULL;
    if (to_file)
        fprintf(
            to_file,
            "case,launches,blocks_counted,blocks,sectors_per_packed,wavefronts_per_free,touched_per_least,"
            "useful_share,predicted_us,limit\n");
    printf("%-28s %3s %13s %8s %8s %8s %8s %10s  %s\n", "case (predicted, not measured)", "n", "blocks",
           "sectors", "waves", "touched", "useful", "us on H100", "limit");
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        count_op(ops[i], strcmp(ops[i], "rope") ? 2048 : 128);
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) count_products(&SHAPES[i]);
    const bool written = !to_file || !fclose(to_file);
    printf("%d bounds broken\n", n_broken);
    return n_broken || !written;
}

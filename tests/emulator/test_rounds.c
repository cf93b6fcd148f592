/* The device cuda at sizes beyond those of the op cases (test_parity.c): rows, columns, experts, ids and
 * chunks so many that every loop of a kernel over packs, tiles, pieces and batches goes round again; plans
 * with rows that alignment leaves over; numbers that are none; zeros of both signs. Near the table f64, the
 * same bits on a second run. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "tests/kernels/cases.h"

/* ---- cases with other constants than those of cases.h ---- */
enum { MANY_EXPERTS = 75, LONG_CHUNK = 600, LONG_IDS = 1500, WIDE_EXPERT = 40, ALIGNMENT = 16 };

static void build_gate_grad_of_many(Problem *p) {
    whole_arg(p, SUM, REAL, N_GROUPS, MANY_EXPERTS, p->width);
    row_arg(p, IN, REAL, MANY_EXPERTS, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    add_offsets(p);
    p->reduction = (double)p->rows + 1;
}

/* The two losses, a chunk of several pieces. */
static void lengthen_loss(Problem *p, int first) {
    for (int i = first; i < p->n_args; i++) free(p->arg[i].values);
    p->n_args = first;
    row_arg(p, SCRATCH, REAL, LONG_CHUNK, NONE);
    Arg *x = row_arg(p, IN, ACT, p->width, NONE);
    x->high = 2 / sqrt((double)p->width), x->low = -x->high;
    whole_arg(p, IN, WEIGHT, LONG_IDS, p->width, NONE);
    leave_out(whole_arg(p, IN, WEIGHT, LONG_IDS, NONE, NONE), p->variant == 0);
    random_ints(p, row_arg(p, IN, I32, NONE, NONE), LONG_IDS);
}
static void build_long_loss(Problem *p) {
    build_cross_entropy(p);
    lengthen_loss(p, 2);
    p->reduction = 400; /* the exponentials of a lane and of the pieces */
}
static void build_long_loss_bwd(Problem *p) {
    build_cross_entropy_bwd(p);
    lengthen_loss(p, 3);
    p->reduction = LONG_IDS;
}

static void build_moe_down_bwd_of_wide(Problem *p) {
    add_plan(p, IN);
    whole_arg(p, OUT, REAL, p->rows * N_CHOICES, p->width, NONE);
    row_arg(p, SUM, REAL, N_CHOICES, NONE);
    row_arg(p, IN, ACT, WIDE_EXPERT, NONE);
    whole_arg(p, IN, WEIGHT, N_EXPERTS, WIDE_EXPERT, p->width);
    whole_arg(p, IN, WEIGHT, N_EXPERTS, WIDE_EXPERT, NONE);
    p->reduction = WIDE_EXPERT;
    p->scale = 1;
}

static void build_long_swiglu_bwd(Problem *p) {
    build_moe_swiglu_bwd(p);
    p->scale = 1.5 * sqrt((double)p->width); /* as many rounded terms meet in a combine weight's gradient */
}

/* Variant 0: nothing but numbers; then an infinity at the last, the first, some other place, and at two. */
static void build_find_infinite(Problem *p) {
    build_find_nonfinite(p);
    const int64_t n = p->rows * p->width;
    const int64_t places[][2] = {{-1, -1}, {n - 1, n - 1}, {0, n - 2}, {n / 2, n / 2}, {n - 3, n / 3}};
    Arg *x = &p->arg[1];
    x->filled = true;
    for (int64_t i = 0; i < n; i++) x->values[i] = problem_draw(p);
    for (int i = 0; i < 2; i++)
        if (places[p->variant][i] >= 0) x->values[places[p->variant][i]] = i ? INFINITY : -INFINITY;
}

/* More experts, and more tiles of pairs, than the threads that scan them. */
static void build_plan_of_many(Problem *p) {
    enum { PLANNED = 300 };
    whole_arg(p, OUT, I32, PLANNED + 1, NONE, NONE);
    whole_arg(p, OUT, I32, p->rows * N_CHOICES, NONE, NONE);
    row_arg(p, OUT, I32, N_CHOICES, NONE);
    add_ids(p, IN, N_CHOICES, PLANNED);
}

/* Zeros of both signs are equal: the lower id comes first. */
static void tie_zeros(Problem *p, Arg *logits, int64_t columns) {
    logits->filled = true;
    for (int64_t i = 0; i < p->rows * columns; i++)
        logits->values[i] = i % columns % 3 == 1 ? -0.0 : i % columns % 3 == 2 ? 0.0 : -1 - problem_draw(p);
}
static void build_argmax_of_zeros(Problem *p) {
    build_argmax(p);
    tie_zeros(p, &p->arg[1], p->width + 2);
}
static void build_route_of_zeros(Problem *p) {
    build_route(p);
    tie_zeros(p, &p->arg[3], p->width);
}

static const Case GATE_GRAD = {"gate_grad", build_gate_grad_of_many, call_gate_grad, 1, false},
                  LOSS = {"cross_entropy", build_long_loss, call_cross_entropy, 2, false},
                  LOSS_BWD = {"cross_entropy_bwd", build_long_loss_bwd, call_cross_entropy_bwd, 2, false},
                  DOWN_BWD = {"moe_down_bwd", build_moe_down_bwd_of_wide, call_moe_down_bwd, 1, false},
                  SWIGLU_BWD = {"moe_swiglu_bwd", build_long_swiglu_bwd, call_moe_swiglu_bwd, 2, false},
                  PLAN = {"moe_plan", build_plan_of_many, call_moe_plan, 1, false},
                  ARGMAX = {"argmax", build_argmax_of_zeros, call_argmax, 1, false},
                  ROUTE = {"route", build_route_of_zeros, call_route, 3, false},
                  FIND = {"find_nonfinite", build_find_infinite, call_find_nonfinite, 5, false};

/* ---- what is run; a case of cases.h where none is given ---- */
typedef struct {
    const char *op;
    int64_t rows, width;
    const Case *c;
} Size;

static const Size SIZES[] = {{"rmsnorm", 2, 9000, NULL},
                             {"rmsnorm", 2, 8999, NULL},
                             {"rmsnorm_bwd", 2, 9000, NULL},
                             {"rmsnorm_bwd", 2, 8999, NULL},
                             {"layernorm", 2, 9000, NULL},
                             {"layernorm", 2, 8999, NULL},
                             {"layernorm_bwd", 2, 9000, NULL},
                             {"layernorm_bwd", 2, 8999, NULL},
                             {"sigmoid_scale_bwd", 2, 9000, NULL},
                             {"moe_swiglu_bwd", 2, 9001, &SWIGLU_BWD},
                             {"swiglu", 2, 9000, NULL},
                             {"add", 3, 3000, NULL},
                             {"gather_rows_bwd", 20, 3000, NULL},
                             {"row_norms", 2, 3000, NULL},
                             {"segment_sums", 40, 600, NULL},
                             {"count_experts", 900, 300, NULL},
                             {"expert_peaks", 40, 700, NULL},
                             {"argmax", 3, 3000, NULL},
                             {"sample", 3, 3000, NULL},
                             {"moe_plan", 1300, 1, NULL},
                             {"route", 3, 700, NULL},
                             {"gate_grad", 900, 9, &GATE_GRAD},
                             {"gate_grad", 40, 1100, &GATE_GRAD},
                             {"cross_entropy", 5, 64, &LOSS},
                             {"cross_entropy_bwd", 5, 64, &LOSS_BWD},
                             {"moe_down_bwd", 20, 24, &DOWN_BWD},
                             {"moe_plan", 17000, 1, &PLAN},
                             {"argmax", 2, 40, &ARGMAX},
                             {"route", 3, 40, &ROUTE},
                             {"find_nonfinite", 100, 321, &FIND},
                             {"find_nonfinite", 64, 320, &FIND}};
enum { N_SIZES = sizeof SIZES / sizeof *SIZES };

static const Case *case_of(const Size *size) {
    for (int i = 0; i < N_CASES && !size->c; i++)
        if (!strcmp(CASES[i].op, size->op)) return &CASES[i];
    return size->c;
}

static void check_size(const Size *size, int variant, DType dtype) {
    const Case *c = case_of(size);
    Problem p = problem_new(c, size->rows, size->width, variant);
    Setting gpu = {"cuda", dtype, dtype, 1}, exact = gpu;
    exact.isa = "f64";
    Finding why;
    Run first = run_case(c, &p, &gpu), reference = run_case(c, &p, &exact);
    setenv("GATETAPE_EMULATOR_WHEN", "1", 1);
    Run again = run_case(c, &p, &gpu);
    unsetenv("GATETAPE_EMULATOR_WHEN");
    const char *what = !run_is_clean(&first, &p, &gpu, &why)              ? "not clean"
                       : !run_is_near(&first, &reference, &p, &gpu, &why) ? "far from f64"
                       : !runs_equal(&first, &again, &p, &why)            ? "differs on a second run"
                                                                          : NULL;
    if (what)
        fail_msg("%s %lld x %lld, variant %d, %s: %s: %s", c->op, (long long)p.rows, (long long)p.width,
                 variant, dtype_name(dtype), what, why.text);
    run_free(&first, &p), run_free(&again, &p), run_free(&reference, &p);
    problem_free(&p);
}

static void test_op(void **state) {
    for (int i = 0; i < N_SIZES; i++)
        for (int variant = 0; !strcmp(SIZES[i].op, *state) && variant < case_of(&SIZES[i])->n_variants;
             variant++) {
            check_size(&SIZES[i], variant, DTYPE_F32);
            check_size(&SIZES[i], variant, DTYPE_BF16);
        }
}

/* Where the CPU has no plan to compare with: experts begin at multiples of ALIGNMENT, rows that are left over
 * have the pair -1. */
static void test_aligned_plan(void **state) {
    (void)state;
    enum { T = 330, PAIRS = T * N_CHOICES, ROWS = PAIRS + N_EXPERTS * (ALIGNMENT - 1) };
    const Device *d = cuda_device(NULL);
    Queue *q = d->queue_new();
    int32_t ids[PAIRS], offsets[N_EXPERTS + 1], pairs[ROWS], rows[PAIRS];
    for (int i = 0; i < PAIRS; i++) ids[i] = i * i % 7 % (N_EXPERTS - 1); /* the last gets nothing */
    Tensor t[] = {tensor_vector(offsets, DTYPE_I32, N_EXPERTS + 1), tensor_vector(pairs, DTYPE_I32, ROWS),
                  tensor_matrix(rows, DTYPE_I32, T, N_CHOICES), tensor_matrix(ids, DTYPE_I32, T, N_CHOICES)};
    void *host[] = {offsets, pairs, rows, ids};
    for (int i = 0; i < 4; i++) t[i].data = d->alloc(tensor_bytes(t[i]));
    d->copy_in(q, t[3], ids);
    d->ops->moe_plan(q, (MoePlan){t[0], t[1], t[2], ALIGNMENT}, t[3]);
    for (int i = 0; i < 3; i++) d->copy_out(q, host[i], t[i]);
    assert_true(d->sync(q));
    int32_t row = 0;
    for (int e = 0; e < N_EXPERTS; e++) {
        assert_int_equal(offsets[e], row);
        for (int i = 0; i < PAIRS; i++)
            if (ids[i] == e) assert_int_equal(rows[i], row), assert_int_equal(pairs[row++], i);
        while (row % ALIGNMENT) assert_int_equal(pairs[row++], -1);
    }
    assert_int_equal(offsets[N_EXPERTS], row);
    for (int i = 0; i < 4; i++) d->free(t[i].data);
    d->queue_free(q);
}

/* ---- logits that are no numbers and experts that are switched off: the CPU's choices ---- */
enum { ODD_ROWS = 30, MOST_ODD = 300, ODD_CHOICES = 4 };

static void choose(const Device *d, int32_t *ids, const float *logits, const float *bias, int64_t experts,
                   RouterRule rule) {
    Queue *q = d->queue_new();
    Tensor t[] = {tensor_matrix(NULL, DTYPE_F32, ODD_ROWS, experts),
                  tensor_matrix(NULL, DTYPE_I32, ODD_ROWS, ODD_CHOICES),
                  tensor_matrix(NULL, DTYPE_F32, ODD_ROWS, ODD_CHOICES),
                  tensor_matrix(NULL, DTYPE_F32, ODD_ROWS, experts),
                  tensor_matrix(NULL, DTYPE_I32, 1, experts),
                  tensor_matrix(NULL, DTYPE_F32, 1, experts),
                  tensor_vector(NULL, DTYPE_I32, ODD_ROWS)};
    enum { N = sizeof t / sizeof *t };
    int32_t modes[MOST_ODD], rows[ODD_ROWS] = {0};
    for (int64_t e = 0; e < experts; e++) modes[e] = isinf(bias[e]) ? EDIT_MASK : EDIT_BIAS;
    for (int i = 0; i < N; i++) t[i].data = d->alloc(tensor_bytes(t[i]));
    d->copy_in(q, t[3], logits), d->copy_in(q, t[4], modes), d->copy_in(q, t[5], bias);
    d->copy_in(q, t[6], rows);
    d->ops->route(q, t[0], t[1], t[2], t[3], (RouteEdits){t[4], t[5], t[6]}, rule);
    d->copy_out(q, ids, t[1]);
    assert_true(d->sync(q));
    for (int i = 0; i < N; i++) d->free(t[i].data);
    d->queue_free(q);
}

static void test_odd_logits(void **state) {
    (void)state;
    static const float odd[] = {NAN, INFINITY, -INFINITY, 0, -0.0f, 1};
    static const int64_t experts[] = {5, 40, 200, MOST_ODD};
    static float logits[ODD_ROWS * MOST_ODD], bias[MOST_ODD];
    int32_t want[ODD_ROWS * ODD_CHOICES], got[ODD_ROWS * ODD_CHOICES];
    for (int i = 0; i < 8; i++) {
        const int64_t n = experts[i / 2];
        const RouterRule rule = {i % 2 ? ROUTER_TOPK_SOFTMAX : ROUTER_SOFTMAX_TOPK, true, 1};
        for (int64_t k = 0; k < ODD_ROWS * n; k++) {
            const double draw = random_uniform(5, RANDOM_TEST, i, k);
            logits[k] = draw < 0.6 ? odd[(int)(draw * 10)] : (float)draw;
        }
        for (int64_t e = 0; e < n; e++) bias[e] = e % 7 == 3 ? -INFINITY : (float)(e % 3);
        choose(cpu_device(), want, logits, bias, n, rule);
        choose(cuda_device(NULL), got, logits, bias, n, rule);
        for (int k = 0; k < ODD_ROWS * ODD_CHOICES; k++)
            if (got[k] != want[k])
                fail_msg("choice %d of row %d of %lld experts is %d, on the CPU %d", k % ODD_CHOICES,
                         k / ODD_CHOICES, (long long)n, got[k], want[k]);
    }
}

static const struct CMUnitTest TESTS[] = {
#define X(op) {#op, test_op, NULL, NULL, #op},
    OPS(X)
#undef X
        {"moe_plan with alignment", test_aligned_plan, NULL, NULL, NULL},
    {"route of odd logits", test_odd_logits, NULL, NULL, NULL}};

/* test_rounds [OP]: all ops, or one. */
int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cuda_device(NULL) ? cmocka_run_group_tests(TESTS, NULL, NULL) : 0;
}

/* Every _bwd op against 4-point finite differences, in the table f64, where they agree to 1e-8 or better.
 *
 * For a forward f, a fixed cotangent c and a direction d:  sum over x of gradient . d  against (L(-2h) - 8
 * L(-h) + 8 L(h) - L(2h)) / 12h,  L(s) = c . f(x + s d). Directions: random ones, and single elements.
 * Gradients begin with values, which shows that backward ops add. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "cases.h"

enum { MOST_INPUTS = 4, N_DIRECTIONS = 24 };

/* input[i] of the forward problem gets gradient[i] from the backward; output is what the cotangent weighs. */
typedef struct {
    const char *op;
    int input[MOST_INPUTS], n_inputs;
    int output;
    void (*backward)(const Ops *o, Queue *q, const Tensor *t, const Tensor *g, Tensor c, const Problem *p);
    const Case *forward; /* NULL: the case named op */
    const char *covers;  /* NULL: op_bwd */
} Gradient;

#define BACKWARD(op)                                                                                         \
    static void backward_##op(const Ops *o, Queue *q, const Tensor *t, const Tensor *g, Tensor c,            \
                              const Problem *p)

BACKWARD(gather_rows) { (void)p, o->gather_rows_bwd(q, g[0], c, t[2]); }
BACKWARD(rmsnorm) { (void)p, o->rmsnorm_bwd(q, g[0], c, t[1], t[2], 1e-5f); }
BACKWARD(layernorm) { (void)p, o->layernorm_bwd(q, g[0], c, t[1], t[2], 1e-5f); }
BACKWARD(rope) {
    o->rope_bwd(q, g[0], c, t[2], t[3], 1.25f, p->variant == 1 ? ROPE_INTERLEAVED : ROPE_HALVES);
}
BACKWARD(attention) {
    Spans s = {t[0], t[1], t[2]};
    o->attention_bwd(q, g[0], g[1], g[2], c, t[3], t[4], t[5], t[6], t[7], s, 0.25f, window_of(p));
}
BACKWARD(dense) { (void)p, o->dense_bwd(q, g[0], c, t[2]); }
BACKWARD(swiglu) { o->swiglu_bwd(q, g[0], c, t[1], activation_of(p)); }
BACKWARD(sigmoid_scale) { (void)p, o->sigmoid_scale_bwd(q, g[0], g[1], c, t[1], t[2]); }
BACKWARD(route) { o->route_bwd(q, g[0], c, t[0], t[1], t[2], t[3], edits_at(t + 4), rule_of(p)); }
BACKWARD(cross_entropy) { (void)p, o->cross_entropy_bwd(q, g[0], t[2], c, t[1], t[3], t[4], t[5], t[6]); }
BACKWARD(router_kl) { o->router_kl_bwd(q, g[0], c, t[1], t[2], temperature_of(p)); }
BACKWARD(router_anchor) { (void)p, o->router_anchor_bwd(q, g[0], c, t[1], t[2]); }

BACKWARD(moe_gate_up) {
    Tensor dx = g[0], scratch = t[7];
    (void)p, o->moe_gate_up_bwd(q, dx, scratch, c, t[5], plan_at(t));
}

/* moe_gate_up with the scratch of its backward. */
static void build_gate_up(Problem *p) {
    build_moe_gate_up(p);
    whole_arg(p, SCRATCH, REAL, p->rows * N_CHOICES, p->width, NONE);
}
static const Case GATE_UP = {"moe_gate_up", build_gate_up, call_moe_gate_up, 2, false};

/* The expert path from z: swiglu, down, combine. Its backward is moe_hidden_bwd: moe_down_bwd,
 * moe_swiglu_bwd. t[3] out, t[4] z, t[5] combine weights, t[6] w, t[7] bias, t[8] h, t[9] y, t[10] da. */
static void build_expert(Problem *p) {
    int64_t n = p->rows * N_CHOICES;
    add_plan(p, IN);
    row_arg(p, OUT, ACT, OTHER_SIZE, NONE);
    add_gate_up(p, n, false);
    row_arg(p, IN, REAL, N_CHOICES, NONE);
    whole_arg(p, IN, WEIGHT, N_EXPERTS, OTHER_SIZE, p->width);
    leave_out(whole_arg(p, IN, WEIGHT, N_EXPERTS, OTHER_SIZE, NONE), p->variant == 0);
    whole_arg(p, SCRATCH, ACT, n, p->width, NONE);
    whole_arg(p, SCRATCH, ACT, n, OTHER_SIZE, NONE);
    whole_arg(p, SCRATCH, REAL, n, p->width, NONE);
}
static void call_expert(const Ops *o, Queue *q, const Tensor *t, const Problem *p) {
    o->swiglu(q, t[8], t[4], activation_of(p));
    o->moe_down(q, t[9], t[8], t[6], t[7], plan_at(t));
    o->moe_combine(q, t[3], t[9], t[5], (Tensor){0}, plan_at(t));
}
BACKWARD(expert) {
    Tensor dz = g[0]; /* overwritten, so made to add here */
    size_t n = (size_t)tensor_count(dz);
    double *before = malloc(n * sizeof *before);
    check(before, "out of memory");
    memcpy(before, dz.data, n * sizeof *before);
    o->moe_hidden_bwd(q, dz, g[1], t[10], c, t[4], t[5], t[6], t[7], plan_at(t), activation_of(p));
    for (size_t i = 0; i < n; i++) ((double *)dz.data)[i] += before[i];
    free(before);
}
static const Case EXPERT = {"expert", build_expert, call_expert, 2, false};

/* The examples' sum in slots, added to a gradient. */
static void add_slots(const Ops *o, Queue *q, Tensor slots, Tensor g) {
    Tensor total = g;
    total.data = calloc((size_t)tensor_count(total) + 1, sizeof(double));
    check(total.data, "out of memory");
    o->sum_slots(q, total, slots, FIRST_EXAMPLE + N_GROUPS);
    o->accumulate(q, g, total);
    free(total.data);
}

/* The sums of lora_bwd, added to the gradients of a and b. */
static void add_lora_grads(const Ops *o, Queue *q, const Tensor *sums, const Tensor *g) {
    for (int i = 0; i < 2; i++) add_slots(o, q, sums[i], g[i]);
}

static void zero_arg(Arg *x) { x->low = x->high = 0; }

/* What is added to projections of tokens: 0 to 2 plan, 3 z, 4 x, 5 to 8 lora, 9 w, 10 and 11 slots, 12
 * offsets, 13 and 14 scratch. */
static void build_lora_tokens(Problem *p) {
    int64_t n = p->rows * N_CHOICES, rank = lora_rank(p);
    build_lora(p);
    p->arg[3].role = OUT;
    whole_arg(p, IN, WEIGHT, N_EXPERTS, 2 * lora_out(p), p->width);
    zero_arg(whole_arg(p, IN, REAL, N_SLOTS, N_CELLS * rank, p->width));
    zero_arg(whole_arg(p, IN, REAL, N_SLOTS, N_CELLS * lora_out(p), rank));
    add_offsets(p);
    whole_arg(p, SCRATCH, REAL, n, 2 * rank, NONE);
    whole_arg(p, SCRATCH, REAL, n, p->width, NONE);
}
static void call_lora_tokens(const Ops *o, Queue *q, const Tensor *t, const Problem *p) {
    o->moe_gate_up(q, t[3], t[4], t[9], (Tensor){0}, plan_at(t));
    o->lora(q, t[3], t[4], lora_at(t + 5, p), plan_at(t));
}
BACKWARD(lora_tokens) {
    LoraSums sums = {t[10], t[11], t[12], FIRST_EXAMPLE};
    o->moe_gate_up_bwd(q, g[0], t[14], c, t[9], plan_at(t));
    o->lora_bwd(q, g[0], sums, t[13], c, t[4], lora_at(t + 5, p), (Tensor){0}, plan_at(t));
    add_lora_grads(o, q, t + 10, g + 1);
}
static const Case LORA_TOKENS = {"lora tokens", build_lora_tokens, call_lora_tokens, 2, false};

/* What is added to outputs of experts: 0 to 2 plan, 3 out, 4 h, 5 weights, 6 to 9 lora, 10 w, 11 and 12
 * slots, 13 offsets, 14 y. Scratch is made here: a problem has sixteen arguments. */
static void build_lora_rows(Problem *p) {
    int64_t n = p->rows * N_CHOICES;
    p->variant += 2;
    add_plan(p, IN);
    row_arg(p, OUT, ACT, lora_out(p), NONE);
    whole_arg(p, IN, ACT, n, p->width, NONE);
    row_arg(p, IN, REAL, N_CHOICES, NONE);
    add_lora(p);
    whole_arg(p, IN, WEIGHT, N_EXPERTS, lora_out(p), p->width);
    zero_arg(whole_arg(p, IN, REAL, N_SLOTS, N_CELLS * lora_rank(p), p->width));
    zero_arg(whole_arg(p, IN, REAL, N_SLOTS, N_CELLS * lora_out(p), lora_rank(p)));
    add_offsets(p);
    whole_arg(p, SCRATCH, ACT, n, lora_out(p), NONE);
}
static void call_lora_rows(const Ops *o, Queue *q, const Tensor *t, const Problem *p) {
    o->moe_down(q, t[14], t[4], t[10], (Tensor){0}, plan_at(t));
    o->lora(q, t[14], t[4], lora_at(t + 6, p), plan_at(t));
    o->moe_combine(q, t[3], t[14], t[5], (Tensor){0}, plan_at(t));
}
BACKWARD(lora_rows) {
    int64_t n = p->rows * N_CHOICES;
    double *da = calloc((size_t)(n * p->width) + 1, sizeof *da),
           *scratch = calloc((size_t)(n * 2 * lora_rank(p)) + 1, sizeof *scratch);
    check(da && scratch, "out of memory");
    const double *h = t[4].data, *weights = t[5].data;
    const int32_t *pairs = t[1].data;
    LoraSums sums = {t[11], t[12], t[13], FIRST_EXAMPLE};
    o->moe_down_bwd(q, tensor_matrix(da, DTYPE_F64, n, p->width), (Tensor){0}, c, t[10], (Tensor){0},
                    plan_at(t));
    o->lora_bwd(q, tensor_matrix(da, DTYPE_F64, n, p->width), sums,
                tensor_matrix(scratch, DTYPE_F64, n, 2 * lora_rank(p)), c, t[4], lora_at(t + 6, p), t[5],
                plan_at(t));
    for (int64_t i = 0; i < n * p->width; i++) {
        ((double *)g[0].data)[i] += weights[pairs[i / p->width]] * da[i];
        ((double *)g[1].data)[pairs[i / p->width]] += da[i] * h[i];
    }
    add_lora_grads(o, q, t + 11, g + 2);
    free(da), free(scratch);
}
static const Case LORA_ROWS = {"lora rows", build_lora_rows, call_lora_rows, 2, false};

BACKWARD(dropout) { o->dropout_bwd(q, g[0], c, t[5], dropout_plan(t, p), DROPOUT); }

/* A router with rows added to it: 0 logits, 1 x, 2 and 3 rows, 4 w, 5 slots, 6 offsets. */
static void build_changed_router(Problem *p) {
    build_router_rows(p);
    p->arg[0].role = OUT;
    whole_arg(p, IN, WEIGHT, N_EXPERTS, p->width, NONE);
    zero_arg(whole_arg(p, IN, REAL, N_SLOTS, p->variant == 1 ? 1 : 3, p->width));
    add_offsets(p);
}
static void call_changed_router(const Ops *o, Queue *q, const Tensor *t, const Problem *p) {
    (void)p;
    o->dense(q, t[0], t[1], t[4], (Tensor){0}, (Tensor){0});
    o->router_rows(q, t[0], t[1], t[2], t[3]);
}
BACKWARD(changed_router) {
    const LoraSums sums = {.a = t[5], .offsets = t[6], .first = FIRST_EXAMPLE};
    (void)p;
    o->dense_bwd(q, g[0], c, t[4]);
    o->router_rows_bwd(q, g[0], sums, c, t[1], t[2], t[3]);
    add_slots(o, q, sums.a, g[1]);
}
static const Case CHANGED_ROUTER = {"changed router", build_changed_router, call_changed_router, 2, false};

static const Gradient GRADIENTS[] = {
    {"gather_rows", {1}, 1, 0, backward_gather_rows, NULL, NULL},
    {"rmsnorm", {1}, 1, 0, backward_rmsnorm, NULL, NULL},
    {"layernorm", {1}, 1, 0, backward_layernorm, NULL, NULL},
    {"rope", {1}, 1, 0, backward_rope, NULL, NULL},
    {"attention", {5, 6, 7}, 3, 3, backward_attention, NULL, NULL},
    {"dense", {1}, 1, 0, backward_dense, NULL, NULL},
    {"swiglu", {1}, 1, 0, backward_swiglu, NULL, NULL},
    {"sigmoid_scale", {1, 2}, 2, 0, backward_sigmoid_scale, NULL, NULL},
    {"route", {3}, 1, 2, backward_route, NULL, NULL},
    {"cross_entropy", {3}, 1, 0, backward_cross_entropy, NULL, NULL},
    {"router_kl", {1}, 1, 0, backward_router_kl, NULL, NULL},
    {"router_anchor", {1}, 1, 0, backward_router_anchor, NULL, NULL},
    {"dropout", {4}, 1, 3, backward_dropout, NULL, NULL},
    {"changed router", {1, 3}, 2, 0, backward_changed_router, &CHANGED_ROUTER, "router_rows_bwd"},
    {"moe_gate_up", {4}, 1, 3, backward_moe_gate_up, &GATE_UP, NULL},
    {"expert", {4, 5}, 2, 3, backward_expert, &EXPERT, "moe_down_bwd moe_swiglu_bwd moe_hidden_bwd"},
    {"lora tokens", {4, 6, 7}, 3, 3, backward_lora_tokens, &LORA_TOKENS, "lora_bwd"},
    {"lora rows", {4, 5, 7, 8}, 4, 3, backward_lora_rows, &LORA_ROWS, "lora_bwd"},
};

static double *doubles(Tensor t) { return t.data; }

/* L(x + s d) */
static double loss_at(const Case *c, const Problem *p, Run *r, const Gradient *g, Tensor const *direction,
                      Tensor cotangent, double s) {
    for (int i = 0; i < g->n_inputs; i++) {
        Tensor x = r->t[g->input[i]];
        for (int64_t k = 0; k < tensor_count(x); k++) doubles(x)[k] += s * doubles(direction[i])[k];
    }
    c->call(r->device->ops, r->queue, r->t, p);
    double sum = 0;
    for (int64_t k = 0; k < tensor_count(cotangent); k++)
        sum += doubles(cotangent)[k] * doubles(r->t[g->output])[k];
    Setting exact = {"f64", DTYPE_F32, DTYPE_F32, 1};
    for (int i = 0; i < g->n_inputs; i++) arg_fill(r->t[g->input[i]], &p->arg[g->input[i]], &exact);
    return sum;
}

static Tensor doubles_new(int64_t n) {
    Tensor t = tensor_vector(calloc((size_t)n + 1, sizeof(double)), DTYPE_F64, n);
    check(t.data, "out of memory");
    return t;
}

static Tensor like(Tensor t) {
    t.data = doubles_new(tensor_count(t)).data;
    return t;
}

/* Direction number n: random for even n, a single element for odd ones. */
static void choose_direction(const Gradient *g, Problem *p, Tensor *direction, int n) {
    int64_t count = 0;
    for (int i = 0; i < g->n_inputs; i++) count += tensor_count(direction[i]);
    int64_t single = problem_index(p, count);
    for (int i = 0; i < g->n_inputs; i++)
        for (int64_t k = 0; k < tensor_count(direction[i]); k++, single--)
            doubles(direction[i])[k] = n % 2 == 0 ? 2 * problem_draw(p) - 1 : single == 0;
}

static double difference(const Case *c, const Problem *p, Run *r, const Gradient *g, const Tensor *direction,
                         Tensor cotangent) {
    const double h = 2e-4;
    double near =
        loss_at(c, p, r, g, direction, cotangent, h) - loss_at(c, p, r, g, direction, cotangent, -h);
    double far =
        loss_at(c, p, r, g, direction, cotangent, 2 * h) - loss_at(c, p, r, g, direction, cotangent, -2 * h);
    return (8 * near - far) / (12 * h);
}

/* Largest error of one shape, relative to the largest directional derivative seen. */
static double gradient_error(const Gradient *g, const Case *c, int64_t rows, int64_t width, int variant,
                             int fault) {
    Problem p = problem_new(c, rows, width, variant);
    Setting exact = {"f64", DTYPE_F32, DTYPE_F32, 1};
    Run r = run_case(c, &p, &exact);
    Tensor cotangent = like(r.t[g->output]), grad[MOST_INPUTS], direction[MOST_INPUTS];
    for (int64_t k = 0; k < tensor_count(cotangent); k++) doubles(cotangent)[k] = 2 * problem_draw(&p) - 1;
    for (int i = 0; i < g->n_inputs; i++) {
        grad[i] = like(r.t[g->input[i]]);
        direction[i] = like(grad[i]);
        for (int64_t k = 0; k < tensor_count(grad[i]); k++) doubles(grad[i])[k] = 100;
    }
    g->backward(r.device->ops, r.queue, r.t, grad, cotangent, &p);
    assert_true(r.device->sync(r.queue));
    for (int i = 0; i < g->n_inputs; i++)
        for (int64_t k = 0; k < tensor_count(grad[i]); k++) doubles(grad[i])[k] -= 100;
    if (fault) doubles(grad[0])[0] += 1e-5;
    double worst = 0, largest = 0;
    for (int n = 0; n < N_DIRECTIONS; n++) {
        choose_direction(g, &p, direction, n);
        double want = difference(c, &p, &r, g, direction, cotangent), got = 0;
        for (int i = 0; i < g->n_inputs; i++)
            for (int64_t k = 0; k < tensor_count(grad[i]); k++)
                got += doubles(grad[i])[k] * doubles(direction[i])[k];
        worst = fabs(got - want) > worst || got != got ? fabs(got - want) : worst;
        largest = fmax(largest, fabs(want));
    }
    for (int i = 0; i < g->n_inputs; i++) free(grad[i].data), free(direction[i].data);
    free(cotangent.data);
    run_free(&r, &p);
    problem_free(&p);
    return worst / (largest + 1e-3);
}

static const Case *forward_of(const Gradient *g) {
    for (int i = 0; i < N_CASES && !g->forward; i++)
        if (!strcmp(CASES[i].op, g->op)) return &CASES[i];
    return g->forward;
}

static void test_gradient(void **state) {
    const Gradient *g = *state;
    const Case *c = forward_of(g);
    static const int64_t sizes[][2] = {{1, 5}, {7, 7}, {33, 12}, {70, 4}};
    double worst = 0;
    for (int variant = 0; variant < c->n_variants; variant++)
        for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
            if (!strcmp(g->op, "attention") && variant == 1) continue; /* has no lse */
            double error = gradient_error(g, c, sizes[n][0], sizes[n][1], variant, 0);
            worst = fmax(worst, error);
            if (!(error < 5e-9))
                fail_msg("%s variant %d, %lld x %lld: relative error %.3g", g->op, variant,
                         (long long)sizes[n][0], (long long)sizes[n][1], error);
        }
    print_message("%s: %.1e\n", g->op, worst);
}

static bool gradient_covers(const Gradient *g, const char *op) {
    char own[64];
    snprintf(own, sizeof own, "%s_bwd", g->op);
    return strstr(g->covers ? g->covers : own, op) != NULL;
}

static void test_every_backward_op_is_covered(void **state) {
    (void)state;
    static const char *const names[] = {
#define X(op) #op,
        OPS(X)
#undef X
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t length = strlen(names[i]), covered = 0;
        if (length < 4 || strcmp(names[i] + length - 4, "_bwd")) continue;
        for (size_t g = 0; g < sizeof GRADIENTS / sizeof *GRADIENTS; g++)
            covered += gradient_covers(&GRADIENTS[g], names[i]);
        if (!covered) fail_msg("no gradient check for %s", names[i]);
    }
}

/* A gradient element off by 1e-5 must be seen. */
static void test_planted_gradient_fault_is_found(void **state) {
    (void)state;
    assert_true(gradient_error(&GRADIENTS[1], forward_of(&GRADIENTS[1]), 7, 7, 0, 1) > 1e-7);
}

int main(void) {
    enum { N = sizeof GRADIENTS / sizeof *GRADIENTS };
    struct CMUnitTest tests[N + 2];
    for (int i = 0; i < N; i++)
        tests[i] =
            (struct CMUnitTest){GRADIENTS[i].op, test_gradient, NULL, NULL, (void *)(uintptr_t)&GRADIENTS[i]};
    tests[N + 1] = (struct CMUnitTest)cmocka_unit_test(test_every_backward_op_is_covered);
    tests[N] = (struct CMUnitTest)cmocka_unit_test(test_planted_gradient_fault_is_found);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

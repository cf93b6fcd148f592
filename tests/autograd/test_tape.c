/* The tape: every rule of nn_*.c against 4-point finite differences in double, blocks kept and replayed with
 * the same bits, nothing recorded that nobody asks for, and memory exactly as on the cost device. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "autograd/nn.h"
#include "kernels/cost.h"

enum { MOST_VARS = 64, MOST_STEPS = 64, ARENA_BYTES = 1 << 20, T = 7, MOST_LEAVES = 4 };

static double next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(*state >> 40) / 8388608.0 - 1;
}

/* A context and the numbers of a small problem. */
typedef struct {
    Context c;
    Tape tape;
    Step steps[MOST_STEPS];
    Var vars[MOST_VARS];
    _Alignas(256) char memory[ARENA_BYTES];
    uint64_t state;
    Tensor leaf[MOST_LEAVES]; /* what gradients are asked for */
    int n_leaves;
    Var *leaf_var[MOST_LEAVES];
} Problem;

static Problem *problem_new(const Device *device, DType real) {
    Problem *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->c = (Context){.device = device, .queue = device->queue_new(), .act = real, .real = real};
    p->c.arena = (Arena){.base = device->computes ? p->memory : NULL, .capacity = ARENA_BYTES};
    p->c.vars = p->vars, p->c.var_capacity = MOST_VARS;
    p->tape = (Tape){p->steps, 0, MOST_STEPS};
    p->c.tape = &p->tape;
    p->state = 99;
    return p;
}

static void problem_free(Problem *p) {
    p->c.device->queue_free(p->c.queue);
    for (int i = 0; i < p->n_leaves; i++) free(p->leaf[i].data);
    free(p);
}

static Tensor random_tensor(Problem *p, int64_t rows, int64_t columns) {
    Tensor t = tensor_matrix(NULL, p->c.real, rows, columns);
    t.data = malloc(tensor_bytes(t));
    assert_non_null(t.data);
    for (int64_t i = 0; i < rows * columns; i++) {
        double value = next_random(&p->state);
        if (t.dtype == DTYPE_F64)
            ((double *)t.data)[i] = value;
        else
            ((float *)t.data)[i] = (float)value;
    }
    return t;
}

/* The leaf number i of the problem, made at its first use. */
static Var *leaf(Problem *p, int i, int64_t rows, int64_t columns) {
    if (i == p->n_leaves) p->leaf[p->n_leaves++] = random_tensor(p, rows, columns);
    assert_true(i < p->n_leaves);
    return p->leaf_var[i] = tape_leaf(&p->c, p->leaf[i], p->c.tape != NULL);
}

/* Frozen numbers, the same at every call of a case. */
static Tensor frozen(Problem *p, uint64_t seed, int n_dims, int64_t a, int64_t b, int64_t c) {
    Tensor t = {.dtype = p->c.real, .n_dims = n_dims, .shape = {a, b, c}};
    if (n_dims < 3) t.shape[2] = 0;
    Tensor flat = tape_vector(&p->c, p->c.real, tensor_count(t));
    for (int64_t i = 0; p->c.device->computes && i < tensor_count(t); i++) {
        double value = next_random(&seed) * 0.7;
        if (t.dtype == DTYPE_F64)
            ((double *)flat.data)[i] = value;
        else
            ((float *)flat.data)[i] = (float)value;
    }
    t.data = flat.data;
    return t;
}

static Tensor indices(Problem *p, int64_t n, const int32_t *from) {
    return tape_upload(&p->c, DTYPE_I32, n, from);
}

/* ---- one problem per rule; each returns what the loss weighs ---- */
typedef Var *build_fn(Problem *p);
static const Tensor absent = {0};

static Var *build_linear(Problem *p) {
    Var *x = leaf(p, 0, T, 5);
    return nn_linear(&p->c, x, frozen(p, 1, 2, 4, 5, 0), frozen(p, 2, 1, 4, 0, 0));
}
/* x is used twice, and the residual after it has been taken over. */
static Var *build_linear_add(Problem *p) {
    Var *x = leaf(p, 0, T, 5), *residual = leaf(p, 1, T, 5);
    Var *y = nn_linear_add(&p->c, NULL, x, frozen(p, 1, 2, 5, 5, 0), absent, residual);
    Var *z = nn_linear_add(&p->c, NULL, nn_rmsnorm(&p->c, y, frozen(p, 3, 1, 5, 0, 0), 1e-5f),
                           frozen(p, 2, 2, 5, 5, 0), absent, y);
    return nn_linear_add(&p->c, NULL, z, frozen(p, 4, 2, 5, 5, 0), absent, residual);
}
static Var *build_rmsnorm_heads(Problem *p) {
    return nn_rmsnorm(&p->c, leaf(p, 0, T, 12), frozen(p, 1, 1, 4, 0, 0), 1e-5f);
}
static Var *build_swiglu(Problem *p) { return nn_swiglu(&p->c, leaf(p, 0, T, 10), (Activation){0}); }
static Var *build_swiglu_clamped(Problem *p) {
    return nn_swiglu(&p->c, leaf(p, 0, T, 10), (Activation){.limit = 0.8f, .alpha = 1.7f});
}
/* In place: the leaf's values must survive, so a copy is turned. */
static Var *build_rope(Problem *p) {
    Rope rope = {.positions = indices(p, T, (const int32_t[]){0, 1, 2, 3, 0, 1, 2}),
                 .frequencies = tape_upload(&p->c, DTYPE_F32, 2, (const float[]){1.0f, 0.3f}),
                 .scale = 1.1f,
                 .head_size = 6};
    Var *x = nn_linear(&p->c, leaf(p, 0, T, 12), frozen(p, 1, 2, 12, 12, 0), absent);
    return nn_rope(&p->c, x, rope);
}
static Spans two_prompts(Problem *p) {
    return (Spans){indices(p, 3, (const int32_t[]){0, 4, 7}), indices(p, 2, (const int32_t[]){0, 4}),
                   indices(p, 2, (const int32_t[]){4, 3})};
}
static Var *build_attention(Problem *p) {
    AttentionRule rule = {.spans = two_prompts(p), .heads = 4, .kv_heads = 2, .scale = 0.6f, .window = 3};
    Var *query = leaf(p, 0, T, 12), *key = leaf(p, 1, T, 6), *value = leaf(p, 2, T, 4);
    return nn_attention(&p->c, NULL, tape_matrix(&p->c, p->c.real, T, 4), query, key, value, rule);
}
static Var *route_case(Problem *p, RouterRule rule) {
    static const int32_t modes[] = {EDIT_BIAS, EDIT_NONE, EDIT_MASK, EDIT_PROMOTE, EDIT_ZERO_RENORMALIZE,
                                    0,         EDIT_NONE, EDIT_ZERO, EDIT_BIAS,    EDIT_DEMOTE,
                                    EDIT_NONE, 0};
    RouteEdits edits = {.modes = tensor_as_matrix(indices(p, 12, modes), 2, 6),
                        .values = frozen(p, 1, 2, 2, 6, 0),
                        .rows = indices(p, T, (const int32_t[]){0, 1, -1, 0, 1, 0, -1})};
    return nn_route(&p->c, leaf(p, 0, T, 6), edits, 3, rule).weights;
}
static Var *build_route(Problem *p) { return route_case(p, (RouterRule){ROUTER_SOFTMAX_TOPK, false, 1.5f}); }
static Var *build_route_renormalised(Problem *p) {
    return route_case(p, (RouterRule){ROUTER_SOFTMAX_TOPK, true, 1});
}
static Var *build_route_chosen(Problem *p) {
    return route_case(p, (RouterRule){ROUTER_TOPK_SOFTMAX, false, 1});
}
/* Router, experts and residual of a layer; the combine weights' gradient goes on to the logits. */
static Var *build_experts(Problem *p) {
    Var *x = leaf(p, 0, T, 5), *residual = leaf(p, 1, T, 5);
    Var *logits = nn_linear_real(&p->c, x, frozen(p, 1, 2, 4, 5, 0), absent);
    Routed routed = nn_route(&p->c, logits, (RouteEdits){0}, 2, (RouterRule){ROUTER_SOFTMAX_TOPK, false, 1});
    MoePlan plan = nn_moe_plan(&p->c, routed.ids, 4);
    const Experts e = {.x = x,
                       .gate_up = frozen(p, 2, 3, 4, 6, 5),
                       .gate_up_bias = frozen(p, 3, 2, 4, 6, 0),
                       .down = frozen(p, 4, 3, 4, 5, 3),
                       .down_bias = frozen(p, 5, 2, 4, 5, 0),
                       .plan = plan};
    Tensor outputs;
    Var *z = nn_moe_gate_up(&p->c, NULL, e);
    return nn_moe_output(&p->c, NULL, &outputs, z, routed.weights, residual, e);
}
static Var *build_cross_entropy(Problem *p) {
    Tensor targets = indices(p, T, (const int32_t[]){3, 0, -1, 8, 2, 2, -1});
    return nn_cross_entropy(&p->c, leaf(p, 0, T, 5), frozen(p, 1, 2, 9, 5, 0), frozen(p, 2, 1, 9, 0, 0),
                            targets);
}

/* A block with a residual around it, as a layer has. */
typedef struct {
    Var *x, *out;
    Tensor w, down, norm;
    int n_runs;
    bool taken_back;
} Block;

static void look(Context *c, void *arguments) {
    (void)c;
    ((Block *)arguments)->taken_back = true;
}

static void block_run(Context *c, void *arguments) {
    Block *b = arguments;
    b->n_runs++;
    Var *h = nn_rmsnorm(c, b->x, b->norm, 1e-5f);
    Var *z = nn_linear(c, h, b->w, absent);
    tape_tap(c, z, look, b);
    nn_linear_add(c, b->out, nn_swiglu(c, z, (Activation){0}), b->down, absent, b->x);
}

static Block blocks[2];

static Var *build_blocks(Problem *p, bool recompute) {
    Var *x = leaf(p, 0, T, 5);
    for (int i = 0; i < 2; i++) {
        blocks[i] = (Block){.x = x, .w = frozen(p, 7, 2, 10, 5, 0)};
        blocks[i].down = frozen(p, 6, 2, 5, 5, 0), blocks[i].norm = frozen(p, 8, 1, 5, 0, 0);
        x = blocks[i].out = tape_leaf(&p->c, tape_matrix(&p->c, p->c.act, T, 5), false);
        tape_block(&p->c, block_run, &blocks[i], x, recompute);
    }
    return x;
}
static Var *build_kept(Problem *p) { return build_blocks(p, false); }
static Var *build_recomputed(Problem *p) { return build_blocks(p, true); }

static const struct {
    const char *name;
    build_fn *build;
} CASES[] = {
    {"linear", build_linear},
    {"linear_add", build_linear_add},
    {"rmsnorm of heads", build_rmsnorm_heads},
    {"swiglu", build_swiglu},
    {"swiglu, clamped", build_swiglu_clamped},
    {"rope", build_rope},
    {"attention", build_attention},
    {"route", build_route},
    {"route, renormalised", build_route_renormalised},
    {"route, softmax of the chosen", build_route_chosen},
    {"experts", build_experts},
    {"cross_entropy", build_cross_entropy},
    {"blocks, kept", build_kept},
    {"blocks, recomputed", build_recomputed},
};
enum { N_CASES = sizeof CASES / sizeof *CASES };

/* ---- running them ---- */
static void reset(Problem *p) {
    p->c.arena.used = 0;
    p->c.n_vars = 0;
    p->tape.n = 0;
}

static double cotangent(int64_t i) { return sin(1.3 * (double)i + 0.4); }

static double loss_of(Problem *p, build_fn *build) {
    p->c.tape = NULL;
    reset(p);
    Var *y = build(p);
    double sum = 0;
    for (int64_t i = 0; i < tensor_count(y->x); i++) sum += cotangent(i) * ((const double *)y->x.data)[i];
    assert_int_equal(p->tape.n, 0);
    return sum;
}

/* Forward and walk; the gradients stand in leaf_var[i]->g. */
static void walk_back(Problem *p, build_fn *build) {
    p->c.tape = &p->tape;
    reset(p);
    Var *y = build(p);
    assert_true(y->wanted);
    Tensor g = tape_grad(&p->c, y);
    for (int64_t i = 0; p->c.device->computes && i < tensor_count(g); i++) {
        if (g.dtype == DTYPE_F64)
            ((double *)g.data)[i] = cotangent(i);
        else
            ((float *)g.data)[i] = (float)cotangent(i);
    }
    tape_backward(&p->c);
    assert_true(p->c.device->sync(p->c.queue));
}

static void check_case(int i) {
    Problem *p = problem_new(cpu_device_named("f64"), DTYPE_F64);
    walk_back(p, CASES[i].build);
    double worst = 0, largest = 0;
    for (int l = 0; l < p->n_leaves; l++) {
        int64_t n = tensor_count(p->leaf[l]);
        double *x = p->leaf[l].data, *exact = calloc((size_t)n, sizeof *exact);
        assert_non_null(exact);
        walk_back(p, CASES[i].build);
        memcpy(exact, p->leaf_var[l]->g.data, (size_t)n * sizeof *exact);
        for (int64_t j = 0; j < n; j++) {
            const double h = 1e-3, start = x[j];
            double loss[4];
            for (int s = 0; s < 4; s++) {
                x[j] = start + h * (const double[]){-2, -1, 1, 2}[s];
                loss[s] = loss_of(p, CASES[i].build);
            }
            x[j] = start;
            double error = fabs(exact[j] - (loss[0] - 8 * loss[1] + 8 * loss[2] - loss[3]) / (12 * h));
            worst = error > worst ? error : worst;
            largest = fabs(exact[j]) > largest ? fabs(exact[j]) : largest;
        }
        free(exact);
    }
    if (!(worst <= 1e-8 * largest)) print_error("%s: error %g, largest %g\n", CASES[i].name, worst, largest);
    assert_true(largest > 1e-2 && worst <= 1e-8 * largest);
    problem_free(p);
}

static void test_rules_against_differences(void **state) {
    (void)state;
    for (int i = 0; i < N_CASES; i++) check_case(i);
}

/* f32: the kept and the replayed block give the same gradient bits; how often each ran; taps. */
static void test_replay_gives_the_same_bits(void **state) {
    (void)state;
    Problem *kept = problem_new(cpu_device(), DTYPE_F32), *replayed = problem_new(cpu_device(), DTYPE_F32);
    walk_back(kept, build_kept);
    assert_int_equal(blocks[0].n_runs, 1);
    assert_true(blocks[0].taken_back && blocks[1].taken_back);
    walk_back(replayed, build_recomputed);
    assert_int_equal(blocks[0].n_runs, 2);
    assert_int_equal(blocks[1].n_runs, 2);
    assert_true(blocks[0].taken_back && blocks[1].taken_back);
    assert_memory_equal(kept->leaf_var[0]->g.data, replayed->leaf_var[0]->g.data, T * 5 * sizeof(float));
    assert_int_equal(kept->tape.n, 0);
    problem_free(kept);
    problem_free(replayed);
}

/* The same program on the cost device has the same high-water mark. */
static void test_cost_device_knows_the_memory(void **state) {
    (void)state;
    for (int i = 0; i < N_CASES; i++) {
        Problem *real = problem_new(cpu_device(), DTYPE_F32), *plan = problem_new(&cost_device, DTYPE_F32);
        walk_back(real, CASES[i].build);
        walk_back(plan, CASES[i].build);
        assert_true(real->c.arena.peak > 0);
        assert_int_equal(real->c.arena.peak, plan->c.arena.peak);
        problem_free(real);
        problem_free(plan);
    }
}

static void test_nothing_wanted_nothing_recorded(void **state) {
    (void)state;
    Problem *p = problem_new(cpu_device(), DTYPE_F32);
    Tensor x = frozen(p, 3, 2, T, 5, 0);
    Var *constant = tape_leaf(&p->c, x, false);
    Var *y = nn_rmsnorm(&p->c, nn_linear(&p->c, constant, frozen(p, 1, 2, 5, 5, 0), absent),
                        frozen(p, 2, 1, 5, 0, 0), 1e-5f);
    assert_int_equal(p->tape.n, 0);
    assert_false(y->wanted);
    assert_null(tape_grad(&p->c, y).data);
    /* asked for in the middle: only what stands behind is recorded */
    y->wanted = true;
    Var *z = nn_linear_add(&p->c, NULL, y, frozen(p, 4, 2, 5, 5, 0), absent, constant);
    assert_int_equal(p->tape.n, 1);
    tape_grad(&p->c, z);
    tape_backward(&p->c);
    assert_non_null(y->g.data);
    assert_null(constant->g.data);
    problem_free(p);
}

/* A residual's gradient is the memory of the sum's. */
static void test_residual_takes_the_gradient_over(void **state) {
    (void)state;
    Problem *p = problem_new(cpu_device(), DTYPE_F32);
    Var *x = leaf(p, 0, T, 5), *residual = leaf(p, 1, T, 5);
    Var *y = nn_linear_add(&p->c, NULL, x, frozen(p, 1, 2, 5, 5, 0), absent, residual);
    tape_grad(&p->c, y);
    tape_backward(&p->c);
    assert_ptr_equal(residual->g.data, y->g.data);
    assert_ptr_not_equal(x->g.data, y->g.data);
    problem_free(p);
}

static void test_scopes_release(void **state) {
    (void)state;
    Problem *p = problem_new(cpu_device(), DTYPE_F32);
    Tensor a = tape_vector(&p->c, DTYPE_F32, 3);
    Scope scope = scope_open(&p->c);
    Tensor b = tape_vector(&p->c, DTYPE_F32, 1000);
    tape_leaf(&p->c, b, false);
    assert_int_equal((char *)b.data - (char *)a.data, ARENA_ALIGNMENT);
    scope_close(&p->c, scope);
    assert_int_equal(p->c.arena.used, ARENA_ALIGNMENT);
    assert_int_equal(p->c.n_vars, 0);
    assert_ptr_equal(tape_vector(&p->c, DTYPE_I64, 1).data, b.data);
    assert_int_equal(p->c.arena.peak, ARENA_ALIGNMENT + 4096);
    problem_free(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules_against_differences),
        cmocka_unit_test(test_replay_gives_the_same_bits),
        cmocka_unit_test(test_cost_device_knows_the_memory),
        cmocka_unit_test(test_nothing_wanted_nothing_recorded),
        cmocka_unit_test(test_residual_takes_the_gradient_over),
        cmocka_unit_test(test_scopes_release),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

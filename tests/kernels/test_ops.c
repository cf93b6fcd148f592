/* Every op of OPS on every table of this processor: sizes 0, 1, 7, 33, 130 and 300, all dtypes, all
 * optional arguments. For each: guards and inputs untouched, all outputs written, near the table f64, and
 * the same bits on generic, AVX2 and AVX-512, for 1 and 3 threads, and for a row alone. The first tests
 * plant faults: a comparator that lets one pass is worth nothing. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "cases.h"

#ifdef __SANITIZE_ADDRESS__ /* every path once: all sizes take a sanitized build ten minutes */
static const int64_t SIZES[][2] = {{0, 33}, {1, 1}, {7, 130}, {33, 7}};
#else
static const int64_t SIZES[][2] = {{0, 33}, {1, 1},   {1, 130},  {7, 7},   {7, 300},
                                   {33, 1}, {33, 33}, {33, 300}, {130, 7}, {130, 130}};
#endif
enum { N_SIZES = sizeof SIZES / sizeof *SIZES };

static const DType DTYPES[][2] = {/* activations, weights */
                                  {DTYPE_F32, DTYPE_F32},
                                  {DTYPE_F32, DTYPE_BF16},
                                  {DTYPE_F32, DTYPE_F16},
                                  {DTYPE_BF16, DTYPE_BF16}};

static const Case *case_of(const char *op) {
    for (int i = 0; i < N_CASES; i++)
        if (!strcmp(CASES[i].op, op)) return &CASES[i];
    return NULL;
}

static const char *best_isa(void) { return cpu_device()->name; }

/* ---- planted faults ---- */
enum { FLIPPED_BIT, WRONG_ELEMENT, NOT_A_NUMBER, GUARD_BYTE, CHANGED_INPUT };

static bool fault_is_found(int fault) {
    const Case *c = case_of("dense");
    Problem p = problem_new(c, 7, 33, 0);
    Setting s = {"generic", DTYPE_F32, DTYPE_F32, 1}, exact = s;
    exact.isa = "f64";
    Run good = run_case(c, &p, &s), bad = run_case(c, &p, &s), reference = run_case(c, &p, &exact);
    Finding why;
    assert_true(run_is_clean(&bad, &p, &s, &why));
    assert_true(runs_equal(&good, &bad, &p, &why));
    assert_true(run_is_near(&bad, &reference, &p, &s, &why));
    float *y = bad.t[0].data;
    if (fault == FLIPPED_BIT) ((uint32_t *)bad.t[0].data)[20] ^= 1;
    if (fault == WRONG_ELEMENT) y[20] += 1e-5f;
    if (fault == NOT_A_NUMBER) y[20] = (float)NAN;
    if (fault == GUARD_BYTE) bad.memory[0][GUARD_BYTES + tensor_bytes(bad.t[0])] = 0;
    if (fault == CHANGED_INPUT) ((float *)bad.t[1].data)[3] += 0.5f;
    bool found = !run_is_clean(&bad, &p, &s, &why) || !run_is_near(&bad, &reference, &p, &s, &why);
    if (fault == FLIPPED_BIT) found = !runs_equal(&good, &bad, &p, &why);
    run_free(&good, &p), run_free(&bad, &p), run_free(&reference, &p);
    problem_free(&p);
    return found;
}

static void test_planted_faults_are_found(void **state) {
    (void)state;
    for (int fault = FLIPPED_BIT; fault <= CHANGED_INPUT; fault++)
        if (!fault_is_found(fault)) fail_msg("planted fault %d was not found", fault);
}

/* ---- the cases ---- */
typedef struct {
    const Case *c;
    Problem *p;
    Setting s;
} Trial;

static void refuse(const Trial *t, const char *what, const Finding *why) {
    fail_msg("%s rows %lld width %lld variant %d, %s/%s: %s: %s", t->c->op, (long long)t->p->rows,
             (long long)t->p->width, t->p->variant, dtype_name(t->s.act), dtype_name(t->s.weight), what,
             why->text);
}

/* A row alone: the by_row arguments cut to row r give row r of the whole. */
static void check_row_alone(const Trial *t, const Run *whole, int64_t r) {
    Run one = run_new(t->p, &t->s);
    Tensor cut[MOST_ARGS];
    Finding why = {""};
    for (int i = 0; i < t->p->n_args; i++)
        cut[i] = t->p->arg[i].by_row && tensor_present(one.t[i]) ? tensor_slice(one.t[i], r, 1) : one.t[i];
    t->c->call(one.device->ops, one.queue, cut, t->p);
    for (int i = 0; i < t->p->n_args; i++) {
        if (!is_result(&t->p->arg[i]) || !t->p->arg[i].by_row) continue;
        Tensor want = tensor_slice(whole->t[i], r, 1);
        if (memcmp(cut[i].data, want.data, tensor_bytes(want))) {
            snprintf(why.text, sizeof why.text, "argument %d row %lld", i, (long long)r);
            refuse(t, "differs alone", &why);
        }
    }
    run_free(&one, t->p);
}

static void check_same_bits(const Trial *t, const Run *first, const char *isa, int threads) {
    if (!cpu_device_named(isa)) return;
    Setting other = t->s;
    Finding why = {""};
    other.isa = isa, other.threads = threads;
    Run again = run_case(t->c, t->p, &other);
    if (!run_is_clean(&again, t->p, &other, &why)) refuse(t, isa, &why);
    if (!runs_equal(first, &again, t->p, &why)) refuse(t, isa, &why);
    run_free(&again, t->p);
}

/* Products of bf16 on AMX; everybody else agrees with everybody. */
static bool has_own_bits(const Setting *s) {
    return !strcmp(s->isa, "amx") && s->act == DTYPE_BF16 && s->weight == DTYPE_BF16;
}

static void check_trial(const Trial *t) {
    Setting exact = t->s;
    Finding why = {""};
    exact.isa = "f64";
    Run first = run_case(t->c, t->p, &t->s), reference = run_case(t->c, t->p, &exact);
    if (!run_is_clean(&first, t->p, &t->s, &why)) refuse(t, "not clean", &why);
    if (!run_is_clean(&reference, t->p, &exact, &why)) refuse(t, "f64 not clean", &why);
    if (!run_is_near(&first, &reference, t->p, &t->s, &why)) refuse(t, "far from f64", &why);
    check_same_bits(t, &first, t->s.isa, 3);
    if (!has_own_bits(&t->s)) {
        check_same_bits(t, &first, "generic", 2);
        check_same_bits(t, &first, "avx2", 2);
        check_same_bits(t, &first, "avx512", 2);
    }
    for (int64_t r = 0; t->c->rowwise && r < t->p->rows; r += 1 + t->p->rows / 4)
        check_row_alone(t, &first, r);
    run_free(&first, t->p), run_free(&reference, t->p);
}

static void test_case(void **state) {
    const Case *c = case_of(*state);
    if (!c) fail_msg("no case for the op %s", (const char *)*state);
    for (int variant = 0; variant < c->n_variants; variant++)
        for (int n = 0; n < N_SIZES; n++)
            for (size_t d = 0; d < sizeof DTYPES / sizeof *DTYPES; d++) {
                Problem p = problem_new(c, SIZES[n][0], SIZES[n][1], variant);
                Trial trial = {c, &p, {best_isa(), DTYPES[d][0], DTYPES[d][1], 1}};
                check_trial(&trial);
                if (has_own_bits(&trial.s)) trial.s.isa = "avx512bf16", check_trial(&trial);
                problem_free(&p);
            }
}

/* A queue that has failed does nothing more. */
static void test_failed_queue_is_left_alone(void **state) {
    (void)state;
    for (int i = 0; i < N_CASES; i++) {
        Problem p = problem_new(&CASES[i], 7, 33, 0);
        Setting s = {best_isa(), DTYPE_F32, DTYPE_F32, 1};
        Run run = run_new(&p, &s), before = run_new(&p, &s);
        queue_fail(run.queue, "planted", "for the test");
        CASES[i].call(run.device->ops, run.queue, run.t, &p);
        Finding why;
        if (!runs_equal(&run, &before, &p, &why))
            fail_msg("%s ran after a failure: %s", CASES[i].op, why.text);
        assert_false(run.device->sync(run.queue));
        run_free(&run, &p), run_free(&before, &p);
        problem_free(&p);
    }
}

/* The cost table takes every case, reads nothing (its addresses would trap) and counts something. */
static void test_cost_table_counts(void **state) {
    (void)state;
    for (int i = 0; i < N_CASES; i++) {
        Problem p = problem_new(&CASES[i], 7, 33, 0);
        Tensor t[MOST_ARGS] = {0};
        Queue *q = cost_device.queue_new();
        for (int a = 0; a < p.n_args; a++) {
            t[a] = (Tensor){.dtype = DTYPE_F32, .n_dims = p.arg[a].n_dims};
            memcpy(t[a].shape, p.arg[a].shape, sizeof t[a].shape);
            t[a].data = cost_device.alloc(tensor_bytes(t[a]));
        }
        CASES[i].call(cost_device.ops, q, t, &p);
        assert_true(cost_device.sync(q));
        assert_int_equal(q->cost.n_calls, 1);
        assert_true(q->cost.bytes > 0 && q->cost.flops >= q->cost.gemm_flops);
        for (int a = 0; a < p.n_args; a++) cost_device.free(t[a].data);
        cost_device.queue_free(q);
        problem_free(&p);
    }
}

static const struct CMUnitTest TESTS[] = {cmocka_unit_test(test_planted_faults_are_found),
                                          cmocka_unit_test(test_failed_queue_is_left_alone),
                                          cmocka_unit_test(test_cost_table_counts),
#define X(op) {#op, test_case, NULL, NULL, #op},
                                          OPS(X)
#undef X
};

int main(void) { return cmocka_run_group_tests(TESTS, NULL, NULL); }

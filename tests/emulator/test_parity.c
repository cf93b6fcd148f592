/* Every op of OPS on the device cuda: the cases of the CPU (tests/kernels/cases.h), on the emulated device
 * or on a GPU. For each: all outputs written and nothing else, near the table f64, the same bits again with
 * threads and blocks in another order and copies landing at another time, and for a row alone. An op without
 * a case fails. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "tests/kernels/cases.h"

static const int64_t SIZES[][2] = {{0, 33}, {1, 1},   {1, 130}, {7, 7},   {7, 320},
                                   {33, 1}, {33, 33}, {33, 64}, {130, 7}, {130, 128}};
enum { N_SIZES = sizeof SIZES / sizeof *SIZES };
static int64_t only_rows = -1; /* -1: of any size */

static const DType DTYPES[][2] = {/* activations, weights */
                                  {DTYPE_F32, DTYPE_F32},
                                  {DTYPE_F32, DTYPE_BF16},
                                  {DTYPE_F32, DTYPE_F16},
                                  {DTYPE_BF16, DTYPE_F32},
                                  {DTYPE_BF16, DTYPE_BF16}};

static const Case *case_of(const char *op) {
    for (int i = 0; i < N_CASES; i++)
        if (!strcmp(CASES[i].op, op)) return &CASES[i];
    return NULL;
}

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
        cut[i] = t->p->arg[i].by_row && tensor_present(one.t[i]) ? tensor_slice(one.on_device[i], r, 1)
                                                                 : one.on_device[i];
    t->c->call(one.device->ops, one.queue, cut, t->p);
    run_fetch(&one);
    for (int i = 0; i < t->p->n_args; i++) {
        if (!is_result(&t->p->arg[i]) || !t->p->arg[i].by_row) continue;
        Tensor want = tensor_slice(whole->t[i], r, 1), got = tensor_slice(one.t[i], r, 1);
        if (memcmp(got.data, want.data, tensor_bytes(want))) {
            snprintf(why.text, sizeof why.text, "argument %d row %lld", i, (long long)r);
            refuse(t, "differs alone", &why);
        }
    }
    run_free(&one, t->p);
}

static void check_again(const Trial *t, const Run *first, const char *when) {
    Finding why = {""};
    setenv("GATETAPE_EMULATOR_WHEN", when, 1);
    Run again = run_case(t->c, t->p, &t->s);
    if (!runs_equal(first, &again, t->p, &why)) refuse(t, "differs on a second run", &why);
    run_free(&again, t->p);
    unsetenv("GATETAPE_EMULATOR_WHEN");
}

static void check_trial(const Trial *t) {
    Setting exact = t->s;
    Finding why = {""};
    exact.isa = "f64";
    Run first = run_case(t->c, t->p, &t->s), reference = run_case(t->c, t->p, &exact);
    if (!run_is_clean(&first, t->p, &t->s, &why)) refuse(t, "not clean", &why);
    if (!run_is_near(&first, &reference, t->p, &t->s, &why)) refuse(t, "far from f64", &why);
    check_again(t, &first, "0");
    check_again(t, &first, "1");
    for (int64_t r = 0; t->c->rowwise && r < t->p->rows; r += 1 + t->p->rows / 3)
        check_row_alone(t, &first, r);
    run_free(&first, t->p), run_free(&reference, t->p);
}

static void test_case(void **state) {
    if (!cuda_device(NULL)) skip();
    const Case *c = case_of(*state);
    if (!c) fail_msg("no case for the op %s", (const char *)*state);
    for (int variant = 0; variant < c->n_variants; variant++)
        for (int n = 0; n < N_SIZES; n++)
            for (size_t d = 0; d < sizeof DTYPES / sizeof *DTYPES; d++) {
                if (only_rows >= 0 && SIZES[n][0] != only_rows) continue;
                Problem p = problem_new(c, SIZES[n][0], SIZES[n][1], variant);
                check_trial(&(Trial){c, &p, {"cuda", DTYPES[d][0], DTYPES[d][1], 1}});
                problem_free(&p);
            }
}

static const struct CMUnitTest TESTS[] = {
#define X(op) {#op, test_case, NULL, NULL, #op},
    OPS(X)
#undef X
};

/* test_parity [PATTERN [ROWS]]: all ops, or those whose name PATTERN (with * and ?) is; at all sizes, or at
 * those of so many rows. */
int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) only_rows = atoll(argv[2]);
    return cmocka_run_group_tests(TESTS, NULL, NULL);
}

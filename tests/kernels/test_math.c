/* exp, log, sigmoid, sine and cosine against libm in higher precision, with the errors that kernels/math.h
 * states; Philox against the known answers published with Random123 (kat_vectors). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "kernels/math.h"
#include "kernels/random.h"
#include <float.h>

/* Distance in units of the last place of `want`, rounded to f32. */
static double ulps_f32(float got, double want) {
    float near = (float)want;
    if (got == near) return 0;
    int exponent;
    frexp(want, &exponent);
    double unit = ldexp(1, exponent - 24 < -149 ? -149 : exponent - 24);
    return fabs((double)got - want) / unit;
}

static double ulps_f64(double got, long double want) {
    if (got == (double)want) return 0;
    int exponent;
    frexpl(want, &exponent);
    long double unit = ldexpl(1, exponent - 53 < -1074 ? -1074 : exponent - 53);
    return (double)(fabsl((long double)got - want) / unit);
}

static double larger(double a, double b) { return b > a || b != b ? b : a; }

static void test_f32_errors(void **state) {
    (void)state;
    double e = 0, l = 0, s = 0;
    for (uint64_t u = 0; u < 0xffffffffu; u += 977) { /* every kind of f32 */
        float x = f32_from_bits((uint32_t)u);
        if (!isfinite(x)) continue;
        if (x > -103.9f && x < 88.72f) e = larger(e, ulps_f32(exp_f32(x), exp((double)x)));
        if (x > -87 && x < 88.72f) s = larger(s, ulps_f32(sigmoid_f32(x), 1 / (1 + exp(-(double)x))));
        if (x > 0) l = larger(l, ulps_f32(log_f32(x), log((double)x)));
    }
    print_message("f32, largest errors in ulp: exp %.3f, log %.3f, sigmoid %.3f\n", e, l, s);
    assert_true(e <= 1 && l <= 1 && s <= 2.5);
}

static void test_f64_errors(void **state) {
    (void)state;
    double e = 0, l = 0, s = 0;
    for (int64_t i = 0; i < 2000000; i++) {
        double x = 1400 * random_uniform(1, RANDOM_TEST, 0, i) - 700, y = exp(x);
        e = larger(e, ulps_f64(exp_f64(x), expl((long double)x)));
        s = larger(s, ulps_f64(sigmoid_f64(x), 1 / (1 + expl(-(long double)x))));
        l = larger(l, ulps_f64(log_f64(y), logl((long double)y)));
        y = 0.5 + random_uniform(1, RANDOM_TEST, 1, i); /* near 1, where log is small */
        l = larger(l, ulps_f64(log_f64(y), logl((long double)y)));
    }
    print_message("f64, largest errors in ulp: exp %.3f, log %.3f, sigmoid %.3f\n", e, l, s);
    assert_true(e <= 1 && l <= 1 && s <= 2.5);
}

static void test_sine_and_cosine(void **state) {
    (void)state;
    double worst = 0;
    for (int64_t i = 0; i < 2000000; i++) {
        double size = exp2(31 * random_uniform(2, RANDOM_TEST, 0, i) - 1), s, c;
        double x = (i & 1 ? 1 : -1) * (size < 0x1p30 ? size : 0.25);
        sincos_f64(x, &s, &c);
        worst = larger(worst, ulps_f64(s, sinl((long double)x)));
        worst = larger(worst, ulps_f64(c, cosl((long double)x)));
    }
    print_message("sine and cosine, largest error in ulp: %.3f\n", worst);
    assert_true(worst <= 1.6);
}

static void test_ends_of_the_range(void **state) {
    (void)state;
    assert_true(exp_f32(0) == 1 && exp_f32(-INFINITY) == 0 && exp_f32(INFINITY) == INFINITY);
    assert_true(exp_f32(89) == INFINITY && exp_f32(-105) == 0 && exp_f32(-100) > 0 && isnan(exp_f32(NAN)));
    assert_true(exp_f64(0) == 1 && exp_f64(-(double)INFINITY) == 0 && exp_f64(711) == (double)INFINITY);
    assert_true(exp_f64(-740) > 0 && exp_f64(-747) == 0 && isnan(exp_f64((double)NAN)));
    assert_true(log_f32(1) == 0 && log_f32(0) == -INFINITY && log_f32(INFINITY) == INFINITY);
    assert_true(isnan(log_f32(-1)) && isnan(log_f32(NAN)) && isnan(log_f64(-1)) &&
                isnan(log_f64((double)NAN)));
    assert_true(log_f64(1) == 0 && log_f64(0) == -(double)INFINITY &&
                log_f64((double)INFINITY) == (double)INFINITY);
    assert_true(log_f32(FLT_TRUE_MIN) < -103 && log_f64(DBL_TRUE_MIN) < -744);
    assert_true(sigmoid_f32(0) == 0.5f && sigmoid_f32(-INFINITY) == 0 && sigmoid_f32(INFINITY) == 1);
}

/* A checksum over bit patterns: another compiler, processor or instruction set must reach the same. */
static void test_bits_are_those_of_every_machine(void **state) {
    (void)state;
    uint64_t sum = 0;
    for (uint64_t u = 0; u < 0xffffffffu; u += 65521) {
        float x = f32_from_bits((uint32_t)u);
        if (!isfinite(x)) continue;
        double s, c;
        sincos_f64((double)x < 1e9 && (double)x > -1e9 ? (double)x : 0.5, &s, &c);
        sum = sum * 31 + f32_bits(exp_f32(x));
        sum = sum * 31 + (x > 0 ? f32_bits(log_f32(x)) : 0);
        sum = sum * 31 + f64_bits(exp_f64((double)x));
        sum = sum * 31 + (x > 0 ? f64_bits(log_f64((double)x)) : 0);
        sum = sum * 31 + f64_bits(s) + 3 * f64_bits(c);
    }
    assert_int_equal(sum, 0xe4b89afc745c45fe);
}

static void test_philox_known_answers(void **state) {
    (void)state;
    static const uint32_t known[3][10] = {{0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                          {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff,
                                           0xffffffff, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                          {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822,
                                           0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
    for (int i = 0; i < 3; i++) {
        uint32_t counter[4] = {known[i][0], known[i][1], known[i][2], known[i][3]};
        philox4x32(counter, known[i] + 4);
        assert_memory_equal(counter, known[i] + 6, sizeof counter);
    }
}

static void test_uniform_numbers(void **state) {
    (void)state;
    double sum = 0, squares = 0;
    enum { N = 100000 };
    for (int64_t i = 0; i < N; i++) {
        double u = random_uniform(7, RANDOM_SAMPLE, i / 100, i % 100);
        assert_true(u >= 0 && u < 1);
        sum += u, squares += u * u;
    }
    assert_true(fabs(sum / N - 0.5) < 0.004 && fabs(squares / N - 1.0 / 3) < 0.004); /* 4 standard errors */
    assert_true(random_bits(7, RANDOM_SAMPLE, 1, 2) != random_bits(7, RANDOM_SPLIT, 1, 2));
    assert_true(random_bits(7, RANDOM_SAMPLE, 1, 2) != random_bits(7, RANDOM_SAMPLE, 2, 1));
    assert_true(random_bits(7, RANDOM_SAMPLE, 1, 2) != random_bits(8, RANDOM_SAMPLE, 1, 2));
    assert_true(random_bits(7, RANDOM_SAMPLE, 1, 2) != random_bits(7 + (1ll << 40), RANDOM_SAMPLE, 1, 2));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32_errors),
        cmocka_unit_test(test_f64_errors),
        cmocka_unit_test(test_sine_and_cosine),
        cmocka_unit_test(test_ends_of_the_range),
        cmocka_unit_test(test_bits_are_those_of_every_machine),
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_uniform_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

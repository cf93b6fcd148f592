/* AdamW over a flat vector: against its formula in double, with clipping and decay; the norm; schedules. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include "autograd/optimizer.h"

enum { N = 2 * OPTIMIZER_COLUMNS };

static float values[N], grad[N], means[N], squares[N], norms[2], host_norms[2];

static Optimizer optimizer(void) {
    return (Optimizer){.values = tensor_vector(values, DTYPE_F32, N),
                       .grad = tensor_vector(grad, DTYPE_F32, N),
                       .means = tensor_vector(means, DTYPE_F32, N),
                       .squares = tensor_vector(squares, DTYPE_F32, N),
                       .norms = tensor_vector(norms, DTYPE_F32, 2),
                       .host_norms = host_norms};
}

/* Thirty steps on the gradient x - 1, large at first: clipped, then not. */
static void test_steps_follow_the_formula(void **state) {
    (void)state;
    const Device *device = cpu_device();
    Queue *queue = device->queue_new();
    Optimizer o = optimizer();
    AdamwOptions options = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .decay = 0.05, .clip_norm = 20};
    double x = 3, m = 0, v = 0, p1 = 1, p2 = 1;
    int n_clipped = 0;
    for (int i = 0; i < N; i++) values[i] = 3;
    for (int step = 0; step < 30; step++) {
        double norm, want = 0, g = x - 1, rate = 0.05 + 0.001 * step;
        for (int i = 0; i < N; i++) grad[i] = values[i] - 1, want += (double)grad[i] * (double)grad[i];
        assert_true(optimizer_norm(device, queue, &o, &norm));
        assert_true(fabs(norm - sqrt(want)) < 1e-6 * norm);
        n_clipped += norm > 20;
        optimizer_step(device, queue, &o, &options, rate, norm);
        g *= fmin(1, 20 / (fabs(g) * sqrt(N) + 1e-6));
        m = 0.9 * m + 0.1 * g, v = 0.999 * v + 0.001 * g * g, p1 *= 0.9, p2 *= 0.999;
        x = x * (1 - rate * 0.05) - rate * (m / (1 - p1)) / (sqrt(v / (1 - p2)) + 1e-8);
        for (int i = 0; i < N; i += 7) assert_true(fabs((double)values[i] - x) < 2e-5);
    }
    assert_int_equal(o.n_steps, 30);
    assert_true(n_clipped > 3 && n_clipped < 30);
    device->queue_free(queue);
}

static void test_schedules(void **state) {
    (void)state;
    Schedule s = {SCHEDULE_COSINE, 2, 4, 12};
    assert_true(schedule_rate(&s, 0) == 0.5 && schedule_rate(&s, 3) == 2 && schedule_rate(&s, 4) == 2);
    assert_true(fabs(schedule_rate(&s, 8) - 1) < 1e-15);
    assert_true(fabs(schedule_rate(&s, 6) - (1 + sqrt(0.5))) < 1e-15);
    assert_true(fabs(schedule_rate(&s, 12)) < 1e-15 && fabs(schedule_rate(&s, 100)) < 1e-15);
    s.kind = SCHEDULE_LINEAR;
    assert_true(schedule_rate(&s, 1) == 1 && schedule_rate(&s, 6) == 1.5 && schedule_rate(&s, 12) == 0);
    s.kind = SCHEDULE_CONSTANT;
    assert_true(schedule_rate(&s, 11) == 2 && schedule_rate(&s, 100) == 2);
    s.n_warmup = 0;
    assert_true(schedule_rate(&s, 0) == 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps_follow_the_formula),
                                       cmocka_unit_test(test_schedules)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The choice of tokens: against the definition for every cut, frequencies against the softmax, ties, NaN,
 * and that a draw depends on its key alone. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "op_run.h"

enum { V = 50, N = 20000 };

static Queue *queue;
static const Device *device;
static float logits[V];
static int32_t scratch[V];

static int setup(void **state) {
    (void)state;
    device = cpu_device();
    queue = device->queue_new();
    for (int v = 0; v < V; v++)
        logits[v] = (float)(4 * random_uniform(3, RANDOM_TEST, 0, v / 2)); /* pairs tie */
    return queue ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    device->queue_free(queue);
    return 0;
}

static int32_t sample_at(SampleRule rule, int64_t id, int64_t position) {
    int64_t keys[2] = {id, position};
    int32_t got = -1;
    device->ops->sample(queue, tensor_vector(&got, DTYPE_I32, 1), tensor_matrix(scratch, DTYPE_I32, 1, V),
                        tensor_matrix(logits, DTYPE_F32, 1, V), tensor_matrix(keys, DTYPE_I64, 1, 2), rule);
    return got;
}

/* Probabilities of the rule's softmax, by sorting everything. */
static void reference(SampleRule rule, double *p) {
    int order[V], n = rule.top_k > 0 && rule.top_k < rule.n_valid ? rule.top_k : (int)rule.n_valid;
    double total = 0, mass = 0;
    for (int i = 0; i < rule.n_valid; i++) {
        int at = i;
        for (; at > 0 && logits[order[at - 1]] < logits[i]; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    memset(p, 0, sizeof *p * V);
    for (int i = 0; i < n; i++)
        total += p[order[i]] = exp((double)logits[order[i]] / (double)rule.temperature);
    int kept = 0;
    while (kept < n && (kept == 0 || mass < (double)rule.top_p * total)) mass += p[order[kept++]];
    for (int i = kept; i < n; i++) p[order[i]] = 0;
    for (int v = 0; v < V; v++) p[v] /= mass;
}

static void test_frequencies(void **state) {
    (void)state;
    static const SampleRule rules[] = {{1, 0, 1, V, 1},    {0.5f, 0, 1, 40, 2}, {2, 5, 1, V, 3},
                                       {1, 0, 0.7f, V, 4}, {1, 9, 0.5f, V, 5},  {1, 0, 0.001f, V, 6},
                                       {1, 1, 1, V, 7},    {1, 99, 1, V, 8}};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        double p[V], count[V] = {0};
        reference(rules[i], p);
        for (int n = 0; n < N; n++) {
            int32_t id = sample_at(rules[i], n / 7, n % 7);
            assert_true(id >= 0 && id < V);
            if (p[id] == 0) fail_msg("rule %zu drew %d, which it cuts", i, (int)id);
            count[id]++;
        }
        for (int v = 0; v < V; v++)
            if (fabs(count[v] - N * p[v]) > 5 * sqrt(N * p[v] * (1 - p[v])) + 1)
                fail_msg("rule %zu id %d: %g times, expected %g", i, v, count[v], N * p[v]);
    }
}

/* The same key draws the same id, in any row of any batch. */
static void test_a_draw_depends_on_its_key(void **state) {
    (void)state;
    enum { ROWS = 33 };
    static float rows[ROWS * V];
    static int32_t memory[ROWS * V], ids[ROWS];
    int64_t keys[ROWS * 2];
    SampleRule rule = {0.9f, 0, 0.9f, V, 42};
    for (int i = 0; i < ROWS; i++) {
        memcpy(rows + i * V, logits, sizeof logits);
        keys[2 * i] = i * 1000, keys[2 * i + 1] = i % 5;
    }
    device->ops->sample(queue, tensor_vector(ids, DTYPE_I32, ROWS), tensor_matrix(memory, DTYPE_I32, ROWS, V),
                        tensor_matrix(rows, DTYPE_F32, ROWS, V), tensor_matrix(keys, DTYPE_I64, ROWS, 2),
                        rule);
    int n_different = 0;
    for (int i = 0; i < ROWS; i++) {
        assert_int_equal(ids[i], sample_at(rule, i * 1000, i % 5));
        n_different += ids[i] != ids[0];
    }
    assert_true(n_different > 5);
}

static int32_t argmax_of(const float *values, int n) {
    float copy[8];
    int32_t id = -1;
    memcpy(copy, values, sizeof *copy * (size_t)n);
    device->ops->argmax(queue, tensor_vector(&id, DTYPE_I32, 1), tensor_matrix(copy, DTYPE_F32, 1, n), n);
    return id;
}

static void test_argmax(void **state) {
    (void)state;
    assert_int_equal(argmax_of((float[]){1, 3, 3, 2}, 4), 1);
    assert_int_equal(argmax_of((float[]){NAN, -1, NAN, -1}, 4), 1);
    assert_int_equal(argmax_of((float[]){NAN, NAN}, 2), 0);
    assert_int_equal(argmax_of((float[]){-INFINITY, -INFINITY, -5}, 3), 2);
    assert_int_equal(argmax_of((float[]){-INFINITY, INFINITY, INFINITY}, 3), 1);
    int32_t id = -1;
    float values[3] = {0, 1, 2};
    device->ops->argmax(queue, tensor_vector(&id, DTYPE_I32, 1), tensor_matrix(values, DTYPE_F32, 1, 3), 2);
    assert_int_equal(id, 1); /* the third is not valid */
}

static void test_odd_logits(void **state) {
    (void)state;
    SampleRule rule = {1, 0, 1, V, 9}, greedy = {0, 0, 1, V, 9};
    int best = 0;
    for (int v = 1; v < V; v++) best = logits[v] > logits[best] ? v : best;
    assert_int_equal(sample_at(greedy, 1, 1), best);
    for (int v = 0; v < V; v++) logits[v] = v % 3 ? NAN : -INFINITY;
    assert_int_equal(sample_at(rule, 1, 1), 0);
    logits[7] = 2;
    for (int n = 0; n < 50; n++) assert_int_equal(sample_at(rule, n, 1), 7);
    logits[11] = INFINITY;
    for (int n = 0; n < 50; n++) assert_int_equal(sample_at(rule, n, 1), 11);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_frequencies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_draw_depends_on_its_key, setup, teardown),
        cmocka_unit_test_setup_teardown(test_argmax, setup, teardown),
        cmocka_unit_test_setup_teardown(test_odd_logits, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

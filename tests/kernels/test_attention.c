/* Attention's promises: the definition in double, a row's bits whatever is beside it (prompts packed or
 * alone, prefilled or one row over the cache, one thread or three, any instruction set), and that no row
 * sees a later key. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "op_run.h"

enum { H = 6, J = 2, C = 20, CV = 12, MOST = 300 };

/* One packed batch; keys and values may reach further than the queries. */
typedef struct {
    float *query, *key, *value, *out, *lse, sinks[H];
    int32_t offsets[8], begin[8], length[8];
    int prompts;
} Batch;

static float *floats(size_t n) {
    float *p = calloc(n, sizeof *p);
    check(p, "out of memory");
    return p;
}

static Batch batch_new(void) {
    Batch b = {.query = floats(MOST * H * C),
               .key = floats(MOST * J * C),
               .value = floats(MOST * J * CV),
               .out = floats(MOST * H * CV),
               .lse = floats(MOST * H)};
    for (int i = 0; i < MOST * H * C; i++) b.query[i] = (float)(4 * random_uniform(1, RANDOM_TEST, 1, i) - 2);
    for (int i = 0; i < MOST * J * C; i++) b.key[i] = (float)(4 * random_uniform(1, RANDOM_TEST, 2, i) - 2);
    for (int i = 0; i < MOST * J * CV; i++)
        b.value[i] = (float)(2 * random_uniform(1, RANDOM_TEST, 3, i) - 1);
    for (int h = 0; h < H; h++) b.sinks[h] = 0.3f * (float)h;
    return b;
}

static void batch_free(Batch *b) { free(b->query), free(b->key), free(b->value), free(b->out), free(b->lse); }

/* Prompts of these lengths, one behind the other. */
static void batch_set_prompts(Batch *b, const int *lengths, int n) {
    b->prompts = n;
    for (int p = 0; p < n; p++) {
        b->begin[p] = b->offsets[p];
        b->length[p] = lengths[p];
        b->offsets[p + 1] = b->offsets[p] + lengths[p];
    }
}

static void attend(const char *isa, Batch *b, float scale, int64_t window, bool has_sinks) {
    const Device *d = cpu_device_named(isa);
    Queue *q = d->queue_new();
    Spans s = {tensor_vector(b->offsets, DTYPE_I32, b->prompts + 1),
               tensor_vector(b->begin, DTYPE_I32, b->prompts),
               tensor_vector(b->length, DTYPE_I32, b->prompts)};
    d->ops->attention(q, tensor_cube(b->out, DTYPE_F32, MOST, H, CV),
                      tensor_matrix(b->lse, DTYPE_F32, MOST, H), tensor_cube(b->query, DTYPE_F32, MOST, H, C),
                      tensor_cube(b->key, DTYPE_F32, MOST, J, C),
                      tensor_cube(b->value, DTYPE_F32, MOST, J, CV), s,
                      has_sinks ? tensor_vector(b->sinks, DTYPE_F32, H) : (Tensor){0}, scale, window);
    assert_true(d->sync(q));
    d->queue_free(q);
}

/* The definition. */
static void check_row(const Batch *b, int p, int i, int h, double scale, int64_t window, bool has_sinks) {
    int row = (b->offsets[p] + i) * H + h, at = b->length[p] - (b->offsets[p + 1] - b->offsets[p]) + i;
    double sum = has_sinks ? exp((double)b->sinks[h]) : 0, out[CV] = {0};
    for (int j = 0; j <= at; j++) {
        int key = (b->begin[p] + j) * J + h / (H / J);
        double s = 0;
        if (window > 0 && j <= at - window) continue;
        for (int c = 0; c < C; c++) s += (double)b->query[row * C + c] * (double)b->key[key * C + c];
        s = exp(s * scale);
        sum += s;
        for (int c = 0; c < CV; c++) out[c] += s * (double)b->value[key * CV + c];
    }
    for (int c = 0; c < CV; c++) assert_true(fabs((double)b->out[row * CV + c] - out[c] / sum) < 2e-6);
    assert_true(fabs((double)b->lse[row] - log(sum)) < 4e-6);
}

static const int LENGTHS[] = {1, 130, 0, 64, 65, 7};

static void test_the_definition(void **state) {
    (void)state;
    Batch b = batch_new();
    batch_set_prompts(&b, LENGTHS, 6);
    static const int64_t windows[] = {0, 1, 5, 64, 100, 1000};
    for (size_t w = 0; w < sizeof windows / sizeof *windows; w++)
        for (int sinks = 0; sinks < 2; sinks++) {
            attend(cpu_device()->name, &b, 0.5f, windows[w], sinks);
            for (int p = 0; p < b.prompts; p++)
                for (int i = 0; i < LENGTHS[p]; i++)
                    for (int h = 0; h < H; h++) check_row(&b, p, i, h, 0.5, windows[w], sinks);
        }
    batch_free(&b);
}

/* A prompt alone, and its rows one at a time over the cache, give the bits of the packed batch. */
static void test_rows_keep_their_bits(void **state) {
    (void)state;
    static const int64_t windows[] = {0, 5, 70};
    for (size_t w = 0; w < 3; w++) {
        Batch packed = batch_new(), one = batch_new();
        batch_set_prompts(&packed, LENGTHS, 6);
        attend(cpu_device()->name, &packed, 0.5f, windows[w], w == 1);
        for (int p = 0; p < 6; p++)
            for (int first = 0; first < LENGTHS[p]; first++) {
                int n = first == 0 ? LENGTHS[p] : 1; /* the whole prompt, then its later rows */
                int at = packed.offsets[p] + first;
                memcpy(one.query, packed.query + at * H * C, sizeof(float) * (size_t)(n * H * C));
                one.prompts = 1;
                one.offsets[1] = n;
                one.begin[0] = packed.begin[p];
                one.length[0] = first + n;
                attend(cpu_device()->name, &one, 0.5f, windows[w], w == 1);
                assert_memory_equal(one.out, packed.out + at * H * CV, sizeof(float) * (size_t)(n * H * CV));
                assert_memory_equal(one.lse, packed.lse + at * H, sizeof(float) * (size_t)(n * H));
            }
        batch_free(&packed), batch_free(&one);
    }
}

/* Keys and values behind a row may be NaN or infinite, also those before its window. */
static void test_no_row_sees_a_hidden_key(void **state) {
    (void)state;
    Batch b = batch_new(), clean = batch_new();
    enum { N = 150, BAD = 100, WINDOW = 20 };
    static const int lengths[] = {N};
    batch_set_prompts(&b, lengths, 1);
    batch_set_prompts(&clean, lengths, 1);
    attend(cpu_device()->name, &clean, 0.5f, WINDOW, false);
    for (int c = 0; c < J * C; c++) b.key[BAD * J * C + c] = c % 2 ? NAN : INFINITY;
    for (int c = 0; c < J * CV; c++) b.value[BAD * J * CV + c] = c % 2 ? NAN : INFINITY;
    attend(cpu_device()->name, &b, 0.5f, WINDOW, false);
    for (int i = 0; i < N; i++) {
        bool sees = i >= BAD && i < BAD + WINDOW;
        bool equal = !memcmp(b.out + i * H * CV, clean.out + i * H * CV, sizeof(float) * H * CV);
        if (equal == sees) fail_msg("row %d %s key %d", i, sees ? "does not see" : "sees", BAD);
    }
    batch_free(&b), batch_free(&clean);
}

static void test_threads_and_instruction_sets(void **state) {
    (void)state;
    static const char *const isas[] = {"generic", "avx2", "avx512"};
    Batch first = batch_new(), other = batch_new();
    batch_set_prompts(&first, LENGTHS, 6);
    batch_set_prompts(&other, LENGTHS, 6);
    omp_set_num_threads(1);
    attend("generic", &first, 0.5f, 40, true);
    for (size_t i = 0; i < 3; i++)
        for (int threads = 1; threads <= 3; threads++) {
            if (!cpu_device_named(isas[i])) continue;
            omp_set_num_threads(threads);
            memset(other.out, 0xff, sizeof(float) * MOST * H * CV);
            attend(isas[i], &other, 0.5f, 40, true);
            assert_memory_equal(other.out, first.out, sizeof(float) * 267 * H * CV);
            assert_memory_equal(other.lse, first.lse, sizeof(float) * 267 * H);
        }
    batch_free(&first), batch_free(&other);
}

/* Scores far apart: the running maximum keeps exp in range. */
static void test_large_scores(void **state) {
    (void)state;
    Batch b = batch_new();
    static const int lengths[] = {200};
    batch_set_prompts(&b, lengths, 1);
    attend(cpu_device()->name, &b, 1000.0f, 0, false);
    for (int i = 0; i < 200 * H * CV; i++) assert_true(isfinite(b.out[i]) && fabsf(b.out[i]) <= 1.0f);
    batch_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_definition),
        cmocka_unit_test(test_rows_keep_their_bits),
        cmocka_unit_test(test_no_row_sees_a_hidden_key),
        cmocka_unit_test(test_threads_and_instruction_sets),
        cmocka_unit_test(test_large_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

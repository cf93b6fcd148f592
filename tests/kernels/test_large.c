/* Element offsets beyond 2^32: tensors of sparse memory, of which only the touched pages exist. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "op_run.h"
#include "kernels/cost.h"
#include <sys/mman.h>

static const Device *device;
static Queue *queue;

/* n_bytes of zeros that take no memory until they are written; skips the test where the system refuses. */
static void *sparse(size_t n_bytes) {
    void *p = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) skip();
    return p;
}

static int setup(void **state) {
    (void)state;
    device = cpu_device();
    queue = device->queue_new();
    return queue ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    device->queue_free(queue);
    return 0;
}

/* Rows of 2^11: row 2^21 + 7 begins beyond element 2^32. */
enum { WIDTH = 1 << 11, FAR_ROW = (1 << 21) + 7, FAR_ROWS = FAR_ROW + 1 };

static void test_far_rows(void **state) {
    (void)state;
    size_t n_bytes = (size_t)FAR_ROWS * WIDTH * 2;
    uint16_t *table = sparse(n_bytes);
    float y[WIDTH];
    int32_t index = FAR_ROW;
    Tensor far = tensor_matrix(table, DTYPE_BF16, FAR_ROWS, WIDTH), one = tensor_vector(&index, DTYPE_I32, 1);
    for (int i = 0; i < WIDTH; i++)
        table[(size_t)FAR_ROW * WIDTH + (size_t)i] = f32_to_bf16((float)(i % 128));
    device->ops->embed(queue, tensor_matrix(y, DTYPE_F32, 1, WIDTH), one, far);
    for (int i = 0; i < WIDTH; i++) assert_true(y[i] == (float)(i % 128));
    uint16_t row[WIDTH];
    device->ops->gather_rows(queue, tensor_matrix(row, DTYPE_BF16, 1, WIDTH), far, one);
    assert_memory_equal(row, table + (size_t)FAR_ROW * WIDTH, sizeof row);
    device->ops->gather_rows_bwd(queue, far, tensor_matrix(row, DTYPE_BF16, 1, WIDTH), one);
    assert_true(bf16_to_f32(table[(size_t)FAR_ROW * WIDTH + 100]) == 200);
    device->ops->scatter_rows(queue, far, tensor_matrix(row, DTYPE_BF16, 1, WIDTH), one);
    assert_memory_equal(row, table + (size_t)FAR_ROW * WIDTH, sizeof row);
    munmap(table, n_bytes);
}

/* A cache of 2^26 rows of 2 x 64: keys and values of the prompt begin beyond element 2^32. */
static void test_far_keys(void **state) {
    (void)state;
    enum { ROWS = 1 << 26, HEADS = 2, SIZE = 64, KEYS = 70, ROW = HEADS * SIZE };
    size_t n_bytes = (size_t)ROWS * ROW * 2;
    uint16_t *cache = sparse(n_bytes), query[ROW], out[ROW], near[KEYS * ROW], want[ROW];
    for (int i = 0; i < KEYS * ROW; i++) near[i] = f32_to_bf16((float)(i % 61) / 61 - 0.5f);
    for (int i = 0; i < ROW; i++) query[i] = f32_to_bf16((float)(i % 13) / 13);
    memcpy(cache + (size_t)(ROWS - KEYS) * ROW, near, sizeof near);
    int32_t offsets[2] = {0, 1}, begin = 0, length = KEYS;
    Spans s = {tensor_vector(offsets, DTYPE_I32, 2), tensor_vector(&begin, DTYPE_I32, 1),
               tensor_vector(&length, DTYPE_I32, 1)};
    Tensor q = tensor_cube(query, DTYPE_BF16, 1, HEADS, SIZE), none = {0};
    Tensor close = tensor_cube(near, DTYPE_BF16, KEYS, HEADS, SIZE),
           far = tensor_cube(cache, DTYPE_BF16, ROWS, HEADS, SIZE);
    device->ops->attention(queue, tensor_cube(want, DTYPE_BF16, 1, HEADS, SIZE), none, q, close, close, s,
                           none, 1, 0);
    begin = ROWS - KEYS;
    device->ops->attention(queue, tensor_cube(out, DTYPE_BF16, 1, HEADS, SIZE), none, q, far, far, s, none, 1,
                           0);
    assert_memory_equal(out, want, sizeof out);
    munmap(cache, n_bytes);
}

/* The plan of a large dry run: no memory stands behind it. */
static void test_cost_device_plans_beyond_memory(void **state) {
    (void)state;
    cost_memory_reset();
    size_t terabyte = (size_t)1 << 40;
    void *a = cost_device.alloc(terabyte), *b = cost_device.alloc(5);
    assert_true(a && b && (uintptr_t)a % 256 == 0 && (uintptr_t)b % 256 == 0);
    assert_true(cost_memory().held_bytes == terabyte + 5 && cost_memory().n_allocations == 2);
    cost_device.free(a);
    assert_true(cost_memory().held_bytes == 5 && cost_memory().peak_bytes == terabyte + 5);
    cost_memory_reset();
    assert_true(cost_memory().peak_bytes == 5);
    cost_device.free(b);
    cost_device.free(NULL);
    assert_true(cost_memory().held_bytes == 0);
    Queue *q = cost_device.queue_new();
    Tensor x = tensor_matrix(&q, DTYPE_F32, 8, 16), w = tensor_matrix(&q, DTYPE_BF16, 32, 16), none = {0};
    cost_device.ops->dense(q, tensor_matrix(&q, DTYPE_F32, 8, 32), x, w, none, none);
    assert_true(q->cost.gemm_flops == 2 * 8 * 16 * 32 && q->cost.flops == q->cost.gemm_flops);
    assert_true(q->cost.bytes == 4 * 8 * 32 + 4 * 8 * 16 + 2 * 32 * 16);
    cost_device.queue_free(q);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_far_rows, setup, teardown),
        cmocka_unit_test_setup_teardown(test_far_keys, setup, teardown),
        cmocka_unit_test(test_cost_device_plans_beyond_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* How fast this machine is, for the times of a plan: measured where it is printed. */
#include "../engine/clock.h"
#include "run_plan_parts.h"

enum { RATE_FLOATS = 1 << 23 };

Rates plan_measure_rates(const Device *device, int64_t n, int64_t k, Error *error) {
    int64_t n_product = RATE_ROWS * (k + n) + n * k;
    size_t n_bytes = sizeof(float) * (size_t)(n_product > 2 * RATE_FLOATS ? n_product : 2 * RATE_FLOATS);
    Queue *q = device->queue_new();
    float *block = device->alloc(n_bytes);
    Rates best = {0};
    if (!q || !block) error_out_of_memory(error, "a product to measure", n_bytes);
    if (q && block) {
        Tensor x = tensor_matrix(block, DTYPE_F32, RATE_ROWS, k),
               w = tensor_matrix(block + RATE_ROWS * k, DTYPE_F32, n, k),
               y = tensor_matrix(block + (RATE_ROWS + n) * k, DTYPE_F32, RATE_ROWS, n),
               from = tensor_vector(block, DTYPE_F32, RATE_FLOATS),
               to = tensor_vector(block + RATE_FLOATS, DTYPE_F32, RATE_FLOATS);
        device->zero(q, tensor_vector(block, DTYPE_F32, (int64_t)(n_bytes / sizeof(float))));
        for (int i = 0; i <= 12; i++) {
            device->sync(q);
            double begun = clock_seconds();
            device->ops->dense(q, y, x, w, (Tensor){0}, (Tensor){0});
            device->sync(q);
            double middle = clock_seconds();
            device->ops->accumulate(q, to, from);
            if (!device->sync(q)) error_set(error, ERROR_UNAVAILABLE, "%s: %s", q->failed_op, q->failure);
            double flops = 2.0 * RATE_ROWS * (double)n * (double)k / (middle - begun),
                   bytes = 3.0 * sizeof(float) * RATE_FLOATS / (clock_seconds() - middle);
            if (i && flops > best.flops) best.flops = flops;
            if (i && bytes > best.bytes) best.bytes = bytes;
        }
    }
    if (block) device->free(block);
    if (q) device->queue_free(q);
    return best;
}

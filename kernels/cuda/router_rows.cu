/* What is added to chosen rows of a router, and its gradient, in the order of kernels/cpu/router_rows.c and
 * with its bits: to logits sixteen lanes a (token, row), to inputs a thread an element, to rows a thread an
 * element, which walks the examples. A few rows beside a router of many: no share of a step worth a tile. */
#include "device.cuh"

enum { LANES = 16, THREADS = 128, DOTS = THREADS / LANES };

static void check_rows(Tensor logits, Tensor x, Tensor experts, Tensor rows) {
    check(tensor_count(experts) == tensor_rows(rows) && tensor_columns(x) == tensor_columns(rows) &&
              tensor_rows(x) == tensor_rows(logits),
          "%lld experts, rows [%lld,%lld], x [%lld,%lld]", (long long)tensor_count(experts),
          (long long)tensor_rows(rows), (long long)tensor_columns(rows), (long long)tensor_rows(x),
          (long long)tensor_columns(x));
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    add_to_logits(float *logits, const T *x, const int32_t *experts, const float *rows, int64_t tokens,
                  int n_rows, int64_t columns, int n_experts) {
    const int64_t i = (int64_t)blockIdx.x * DOTS + threadIdx.x / LANES, t = i / n_rows;
    const int n = (int)(i % n_rows);
    float sum = 0;
    for (int64_t c = threadIdx.x % LANES; c < (t < tokens ? columns : 0); c += LANES)
        sum = fmaf(to_f32(load(&x[t * columns + c])), load(&rows[n * columns + c]), sum);
    sum = lanes_sum(sum);
    if (t >= tokens || threadIdx.x % LANES) return;
    float *to = &logits[t * n_experts + load(&experts[n])];
    store(to, load(to) + sum);
}

extern "C" void cuda_router_rows(Queue *q, Tensor logits, Tensor x, Tensor experts, Tensor rows) {
    const Call call(q, "router_rows", logits, x, experts, rows);
    check_rows(logits, x, experts, rows);
    with_act(x.dtype, [&](auto act) {
        using T = decltype(act);
        LAUNCH(call, blocks_for(tensor_rows(x) * tensor_rows(rows), DOTS), THREADS, 0, add_to_logits<T>,
               reals(logits), elements<T>(x), ints(experts), reals(rows), tensor_rows(x),
               (int)tensor_rows(rows), tensor_columns(x), (int)tensor_columns(logits));
    });
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    add_to_inputs(T *dx, const float *dlogits, const int32_t *experts, const float *rows, int64_t count,
                  int n_rows, int64_t columns, int n_experts) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    const int64_t t = i / columns, c = i % columns;
    float sum = 0;
    for (int n = 0; n < n_rows; n++)
        sum = fmaf(load(&dlogits[t * n_experts + load(&experts[n])]), load(&rows[n * columns + c]), sum);
    store(&dx[i], from_f32<T>(to_f32(load(&dx[i])) + sum));
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    sum_examples(float *slots, const int32_t *offsets, const float *dlogits, const T *x,
                 const int32_t *experts, int64_t size, int64_t columns, int n_experts, int n_examples,
                 int64_t first) {
    const int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (c >= columns) return;
    const int expert = load(&experts[blockIdx.y]);
    for (int p = 0; p < n_examples; p++) {
        float sum = 0;
        for (int64_t t = load(&offsets[p]); t < load(&offsets[p + 1]); t++)
            sum = fmaf(load(&dlogits[t * n_experts + expert]), to_f32(load(&x[t * columns + c])), sum);
        float *to = &slots[blockIdx.y * columns + c];
        for (int64_t example = first + p; example & 1; example >>= 1, to += size) sum = load(to) + sum;
        store(to, sum);
    }
}

extern "C" void cuda_router_rows_bwd(Queue *q, Tensor dx, LoraSums sums, Tensor dlogits, Tensor x,
                                     Tensor experts, Tensor rows) {
    const Call call(q, "router_rows_bwd", dx, sums.a, sums.offsets, dlogits, x, experts, rows);
    check_rows(dlogits, x, experts, rows);
    const int64_t columns = tensor_columns(x);
    const int n_rows = (int)tensor_rows(rows), n_experts = (int)tensor_columns(dlogits);
    with_act(x.dtype, [&](auto act) {
        using T = decltype(act);
        if (dx.data)
            LAUNCH(call, blocks_for(tensor_count(dx), THREADS), THREADS, 0, add_to_inputs<T>, elements<T>(dx),
                   reals(dlogits), ints(experts), reals(rows), tensor_count(dx), n_rows, columns, n_experts);
        if (!sums.a.data) return;
        const int n_examples = (int)tensor_count(sums.offsets) - 1;
        check((sums.first + n_examples) >> sums.a.shape[0] == 0, "%lld examples, %lld slots",
              (long long)(sums.first + n_examples), (long long)sums.a.shape[0]);
        LAUNCH(call, dim3(blocks_for(columns, THREADS), (unsigned)n_rows), THREADS, 0, sum_examples<T>,
               reals(sums.a), ints(sums.offsets), reals(dlogits), elements<T>(x), ints(experts),
               tensor_count(rows), columns, n_experts, n_examples, sums.first);
    });
}

/* The ops that are matrix products: which rows meet which weights, what is added, and which kernel does it
 * (gemm.cuh). */
#include "gemm.cuh"

enum { THREADS = 256 };

/* ---- from a product to a kernel ---- */
bool product_fits_mma(const Product &p) {
    return p.x.dtype == DTYPE_BF16 && p.w.dtype == DTYPE_BF16 &&
           rows_are_packed(8, tensor_columns(p.x), p.x) && rows_are_packed(8, tensor_columns(p.w), p.w);
}

/* The kernels count rows, columns and k, and the bytes of 32 rows of weights, in 32 bits. */
static int extent(int64_t n, int64_t most) {
    check(n <= most, "a product of extent %lld", (long long)n);
    return (int)n;
}

void product(const Call &call, Product p) {
    enum { MOST_ROWS = 1 << 30, MOST_COLUMNS = 1 << 24 };
    p.groups = p.offsets ? extent(p.w.shape[0], MOST_COLUMNS) : 1;
    p.rows = extent(tensor_rows(p.y), MOST_ROWS);
    p.columns = extent(tensor_columns(p.y), MOST_COLUMNS),
    p.depth = extent(tensor_columns(p.x), MOST_COLUMNS);
    const int64_t depth = p.halves ? p.depth / 2 : p.depth;
    check(tensor_count(p.w) == p.groups * depth * p.columns,
          "%d groups of %d columns, x [.,%d], %lld weights", p.groups, p.columns, p.depth,
          (long long)tensor_count(p.w));
    if (p.rows == 0 || p.columns == 0) return;
    p.packed =
        rows_are_packed(4, p.gated.data ? p.columns / 2 : p.columns, p.y, p.bias, p.residual, p.gated) &&
        rows_are_packed(4, p.columns, p.gradient.z, p.gradient.dz);
    if (cublas_product(call, p)) return;
    if (product_fits_mma(p))
        product_mma(call, p);
    else
        product_f32(call, p);
}

/* ---- dense ---- */
extern "C" void cuda_dense(Queue *q, Tensor y, Tensor x, Tensor w, Tensor bias, Tensor residual) {
    const Call call(q, "dense", y, x, w, bias, residual);
    product(call, Product{.y = y, .x = x, .w = w, .bias = bias, .residual = residual});
}

extern "C" void cuda_dense_bwd(Queue *q, Tensor dx, Tensor dy, Tensor w) {
    const Call call(q, "dense_bwd", dx, dy, w);
    product(call, Product{.y = dx, .x = dy, .w = w, .back = true, .residual = dx});
}

/* ---- experts ---- */
extern "C" void cuda_moe_gate_up(Queue *q, Tensor z, Tensor x, Tensor w, Tensor bias, MoePlan plan) {
    const Call call(q, "moe_gate_up", z, x, w, bias, plan.rows);
    product(call, Product{.y = z,
                          .x = x,
                          .w = w,
                          .bias = bias,
                          .offsets = ints(plan.offsets),
                          .pairs = ints(plan.pairs),
                          .per_token = (int)plan.rows.shape[1]});
}

extern "C" void cuda_moe_hidden(Queue *q, Tensor h, Tensor z, Tensor x, Tensor w, Tensor bias, MoePlan plan,
                                Activation act, bool keep) {
    const Call call(q, "moe_hidden", h, z, x, w, bias, plan.rows);
    Product p = {.y = z,
                 .x = x,
                 .w = w,
                 .bias = bias,
                 .gated = h,
                 .gating = gating_of(act),
                 .offsets = ints(plan.offsets),
                 .pairs = ints(plan.pairs),
                 .per_token = (int)plan.rows.shape[1]};
    const int64_t half_bytes = tensor_columns(h) * tensor_columns(w) * 2; /* of an expert's weights */
    if (!product_fits_mma(p) || half_bytes > INT32_MAX) {
        cuda_moe_gate_up(q, z, x, w, bias, plan);
        return cuda_swiglu(q, h, z, act);
    }
    if (!keep) p.y.data = NULL;
    product(call, p);
}

extern "C" void cuda_moe_down(Queue *q, Tensor y, Tensor h, Tensor w, Tensor bias, MoePlan plan) {
    const Call call(q, "moe_down", y, h, w, bias, plan.rows);
    product(call, Product{.y = y, .x = h, .w = w, .bias = bias, .offsets = ints(plan.offsets)});
}

/* dx[t,:] += the rows of token t, summed in order of its choices; a thread has N columns of a token. */
template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    add_choices(T *dx, const float *rows_grad, const int32_t *rows, int64_t tokens, int choices,
                int64_t columns) {
    const int64_t packs = columns / N, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= tokens * packs) return;
    const int64_t token = i / packs, column = i % packs * N;
    float sum[N] = {}, v[N];
    for (int c = 0; c < choices; c++) {
        const int64_t row = load(&rows[token * choices + c]);
        load_pack<float, N>(v, &rows_grad[row * columns + column]);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += v[k];
    }
    load_pack<T, N>(v, &dx[token * columns + column]);
#pragma unroll
    for (int k = 0; k < N; k++) sum[k] = v[k] + sum[k];
    store_pack<T, N>(&dx[token * columns + column], sum);
}

extern "C" void cuda_moe_add_rows(Queue *q, Tensor dx, Tensor rows, MoePlan plan) {
    const Call call(q, "moe_add_rows", dx, rows, plan.rows);
    const int64_t tokens = tensor_rows(plan.rows), columns = tensor_columns(dx);
    const int choices = (int)tensor_columns(plan.rows);
    check(tensor_columns(rows) == columns && tensor_rows(dx) == tokens, "%lld columns, %lld tokens",
          (long long)columns, (long long)tensor_rows(dx));
    with_act(dx.dtype, [&](auto act) {
        using T = decltype(act);
        if (rows_are_packed(4, columns, dx, rows))
            LAUNCH(call, blocks_for(tokens * columns / 4, THREADS), THREADS, 0, (add_choices<T, 4>),
                   elements<T>(dx), reals(rows), ints(plan.rows), tokens, choices, columns);
        else
            LAUNCH(call, blocks_for(tokens * columns, THREADS), THREADS, 0, (add_choices<T, 1>),
                   elements<T>(dx), reals(rows), ints(plan.rows), tokens, choices, columns);
    });
}

extern "C" void cuda_moe_gate_up_bwd(Queue *q, Tensor dx, Tensor scratch, Tensor dz, Tensor w, MoePlan plan) {
    const Call call(q, "moe_gate_up_bwd", dx, scratch, dz, w, plan.rows);
    product(call, Product{.y = scratch, .x = dz, .w = w, .back = true, .offsets = ints(plan.offsets)});
    if (dx.data) cuda_moe_add_rows(q, dx, scratch, plan);
}

/* dweights[pair] += dout[token,:] . bias[expert,:], 16 lanes a pair: lane l sums the columns l, l + 16, ...,
 * as the CPU does. */
template <class T, class W>
static __global__ void __launch_bounds__(THREADS)
    add_bias_dots(float *dweights, const T *dout, const W *bias, const int32_t *offsets, const int32_t *rows,
                  int64_t n_pairs, int choices, int64_t columns) {
    const int64_t index = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 16;
    const int64_t pair = index < n_pairs ? index : n_pairs - 1; /* all lanes take part in the shuffles */
    const int lane = threadIdx.x % 16, row = load(&rows[pair]);
    int64_t expert = 0;
    while (load(&offsets[expert + 1]) <= row) expert++;
    const T *a = &dout[pair / choices * columns];
    const W *b = &bias[expert * columns];
    float sum = 0;
    for (int64_t d = lane; d < columns; d += 16) sum = fmaf(to_f32(load(&a[d])), to_f32(load(&b[d])), sum);
#pragma unroll
    for (int d = 8; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (lane == 0 && index < n_pairs) store(&dweights[pair], load(&dweights[pair]) + sum);
}

/* The bias's part of the gradient of the combine weights. */
static void add_bias_part(const Call &call, Tensor dweights, Tensor dout, Tensor bias, MoePlan plan) {
    const int64_t n_pairs = tensor_count(plan.rows);
    if (!bias.data || !dweights.data) return;
    with_act(dout.dtype, [&](auto act) {
        with_weight(bias.dtype, [&](auto weight) {
            using T = decltype(act);
            using W = decltype(weight);
            LAUNCH(call, blocks_for(n_pairs * 16, THREADS), THREADS, 0, (add_bias_dots<T, W>),
                   reals(dweights), elements<T>(dout), elements<W>(bias), ints(plan.offsets), ints(plan.rows),
                   n_pairs, (int)tensor_columns(plan.rows), tensor_columns(dout));
        });
    });
}

extern "C" void cuda_moe_down_bwd(Queue *q, Tensor da, Tensor dweights, Tensor dout, Tensor w, Tensor bias,
                                  MoePlan plan) {
    const Call call(q, "moe_down_bwd", da, dweights, dout, w, bias, plan.rows);
    product(call, Product{.y = da,
                          .x = dout,
                          .w = w,
                          .back = true,
                          .offsets = ints(plan.offsets),
                          .pairs = ints(plan.pairs),
                          .per_token = (int)tensor_columns(plan.rows)});
    add_bias_part(call, dweights, dout, bias, plan);
}

/* dweights[pair] += the sum of the row's dots, 16 lanes a row: lane l sums the dots l, l + 16, ... */
static __global__ void __launch_bounds__(THREADS)
    add_dots(float *dweights, const float *dots, const int32_t *pairs, int64_t rows, int n_dots) {
    const int64_t index = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 16;
    const int64_t row = index < rows ? index : rows - 1; /* all lanes take part in the shuffles */
    const int lane = threadIdx.x % 16;
    float sum = 0;
    for (int i = lane; i < n_dots; i += 16) sum += load(&dots[row * n_dots + i]);
    sum = lanes_sum(sum);
    if (lane != 0 || index >= rows) return;
    float *to = &dweights[load(&pairs[row])];
    store(to, load(to) + sum);
}

extern "C" void cuda_moe_hidden_bwd(Queue *q, Tensor dz, Tensor dweights, Tensor scratch, Tensor dout,
                                    Tensor z, Tensor weights, Tensor w, Tensor bias, MoePlan plan,
                                    Activation act) {
    const Call call(q, "moe_hidden_bwd", dz, dweights, scratch, dout, z, weights, w, bias, plan.rows);
    Product p = {.y = scratch,
                 .x = dout,
                 .w = w,
                 .back = true,
                 .gating = gating_of(act),
                 .gradient = {dz, z, weights, dweights.data ? scratch : Tensor{}},
                 .offsets = ints(plan.offsets),
                 .pairs = ints(plan.pairs),
                 .per_token = (int)tensor_columns(plan.rows)};
    if (!product_fits_mma(p) || z.dtype != DTYPE_BF16) {
        cuda_moe_down_bwd(q, scratch, dweights, dout, w, bias, plan);
        return cuda_moe_swiglu_bwd(q, dz, dweights, scratch, z, weights, plan, act);
    }
    const int64_t rows = tensor_rows(z);
    add_bias_part(call, dweights, dout, bias, plan);
    product(call, p);
    if (dweights.data)
        LAUNCH(call, blocks_for(rows * 16, THREADS), THREADS, 0, add_dots, reals(dweights), reals(scratch),
               ints(plan.pairs), rows, (int)((tensor_columns(scratch) + 15) / 16));
}

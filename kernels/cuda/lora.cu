/* Low-rank updates of chosen experts: lora, lora_bwd. The order of every sum over examples is that of
 * kernels/cpu/lora.c.
 *
 *   lora, g and u      a block a row; one whose expert has no cell ends at once. A warp a rank for the dot
 *                      products, then a thread a column
 *   dx                 a block a row, or a token with the rows of its choices; a thread a column
 *   gradients of A, B  a thread a column of x (or of dy) and eight ranks: it walks the rows of its expert,
 *                      example by example, and adds each example to its counter
 * A and B are small beside the rows: what binds is latency, and the memory of x and y. Ranks up to 128. */
#include "device.cuh"

constexpr int THREADS = 128, WARPS = THREADS / 32, TILE_RANKS = 8, SUM_ROWS = 256;

/* What all kernels here read. */
struct Cells {
    const int32_t *experts, *offsets, *pairs, *rows;
    const float *a, *b, *scales;
    int64_t in, out;
    int n_cells, rank, choices;
    bool down;
};

static Cells cells_of(Lora lora, MoePlan plan) {
    const Cells c = {
        ints(lora.experts), ints(plan.offsets),   ints(plan.pairs),     ints(plan.rows),
        reals(lora.a),      reals(lora.b),        reals(lora.scales),   lora.a.shape[2],
        lora.b.shape[1],    (int)lora.a.shape[0], (int)lora.a.shape[1], (int)tensor_columns(plan.rows),
        lora.down};
    check(lora.b.shape[2] == c.rank && c.rank <= LORA_MOST_RANK, "a of rank %d, b of rank %lld", c.rank,
          (long long)lora.b.shape[2]);
    return c;
}

/* The cell whose rows `row` is one of; -1: its expert has none. */
DEVICE int cell_of(const Cells &c, int64_t row) {
    int low = 0, high = c.n_cells;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (load(&c.offsets[load(&c.experts[middle])]) <= row)
            low = middle;
        else
            high = middle;
    }
    const int expert = load(&c.experts[low]);
    return load(&c.offsets[expert]) <= row && row < load(&c.offsets[expert + 1]) ? low : -1;
}

/* to[r] = scale x . rows[r,:] over n elements, a warp a rank; rows is [R,n], or with `back` [n,R]. */
template <class T>
DEVICE void dot_ranks(float *to, const T *x, const float *rows, int64_t n, int rank, bool back) {
    for (int r = threadIdx.x / 32; r < rank; r += WARPS) {
        float sum = 0;
#pragma unroll 4
        for (int64_t i = threadIdx.x % 32; i < n; i += 32)
            sum = fmaf(to_f32(load(&x[i])), load(&rows[back ? i * rank + r : r * n + i]), sum);
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) store(&to[r], sum);
    }
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    add_updates(T *y, const T *x, Cells c, int64_t columns, int64_t column) {
    SHARED(float, u, LORA_MOST_RANK);
    const int64_t m = blockIdx.x;
    const int cell = cell_of(c, m);
    if (cell < 0) return;
    const int64_t source = c.down ? m : load(&c.pairs[m]) / c.choices;
    dot_ranks(u, &x[source * c.in], &c.a[(int64_t)cell * c.rank * c.in], c.in, c.rank, false);
    __syncthreads();
    const float scale = load(&c.scales[cell]);
    const float *b = &c.b[(int64_t)cell * c.out * c.rank];
    T *row = &y[m * columns + column];
    for (int64_t j = threadIdx.x; j < c.out; j += THREADS) {
        float sum = 0;
#pragma unroll 4
        for (int r = 0; r < c.rank; r++) sum = fmaf(load(&u[r]), load(&b[j * c.rank + r]), sum);
        store(&row[j], from_f32<T>(fmaf(scale, sum, to_f32(load(&row[j])))));
    }
}

extern "C" void cuda_lora(Queue *q, Tensor y, Tensor x, Lora lora, MoePlan plan) {
    const Call call(q, "lora", y, x, lora.a, lora.b, plan.pairs);
    const Cells c = cells_of(lora, plan);
    with_act(y.dtype, [&](auto act) {
        using T = decltype(act);
        LAUNCH(call, blocks_for(tensor_count(plan.pairs), 1), THREADS, 0, add_updates<T>, elements<T>(y),
               elements<T>(x), c, tensor_columns(y), lora.column);
    });
}

/* ---- backward ---- */
/* scratch[m] = g[R], u[R] */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    pull_rows(float *scratch, const T *dy, const T *x, Cells c, int64_t columns, int64_t column) {
    const int64_t m = blockIdx.x;
    const int cell = cell_of(c, m);
    if (cell < 0) return;
    const int64_t token = load(&c.pairs[m]) / c.choices, target = c.down ? token : m;
    float *g = &scratch[m * 2 * c.rank];
    dot_ranks(g, &dy[target * columns + column], &c.b[(int64_t)cell * c.out * c.rank], c.out, c.rank, true);
    dot_ranks(g + c.rank, &x[(c.down ? m : token) * c.in], &c.a[(int64_t)cell * c.rank * c.in], c.in, c.rank,
              false);
}

/* scale times g a of one row at column i */
DEVICE float input_grad(const float *scratch, const Cells &c, int cell, int64_t row, int64_t i) {
    const float *g = &scratch[row * 2 * c.rank], *a = &c.a[(int64_t)cell * c.rank * c.in + i];
    float sum = 0;
#pragma unroll 4
    for (int r = 0; r < c.rank; r++) sum = fmaf(load(&g[r]), load(&a[r * c.in]), sum);
    return load(&c.scales[cell]) * sum;
}

static __global__ void __launch_bounds__(THREADS) add_to_rows(float *dx, const float *scratch, Cells c) {
    const int64_t m = blockIdx.x;
    const int cell = cell_of(c, m);
    if (cell < 0) return;
    for (int64_t i = threadIdx.x; i < c.in; i += THREADS) {
        float *to = &dx[m * c.in + i];
        store(to, load(to) + input_grad(scratch, c, cell, m, i));
    }
}

template <class T>
static __global__ void __launch_bounds__(THREADS) add_to_tokens(T *dx, const float *scratch, Cells c) {
    const int64_t t = blockIdx.x;
    bool adapted = false;
    for (int k = 0; k < c.choices; k++) adapted |= cell_of(c, load(&c.rows[t * c.choices + k])) >= 0;
    for (int64_t i = threadIdx.x; i < (adapted ? c.in : 0); i += THREADS) {
        float sum = 0;
        for (int k = 0; k < c.choices; k++) {
            const int64_t row = load(&c.rows[t * c.choices + k]);
            const int cell = cell_of(c, row);
            if (cell >= 0) sum += input_grad(scratch, c, cell, row, i);
        }
        T *to = &dx[t * c.in + i];
        store(to, from_f32<T>(to_f32(load(to)) + sum));
    }
}

/* What the gradients of A and B read besides. */
struct Sums {
    float *slots;
    const int32_t *offsets;
    const float *scratch, *weights;
    int64_t first, size, wide; /* of a slot; wide: columns of A or rows of B */
    int n_examples;
};

/* Eight elements of the counter, `stride` apart. */
DEVICE void push_example(float (&sum)[TILE_RANKS], const Sums &s, int64_t at, int64_t stride, int n,
                         int64_t example) {
    float *to = &s.slots[at];
    for (; example & 1; example >>= 1, to += s.size)
#pragma unroll
        for (int k = 0; k < TILE_RANKS; k++)
            if (k < n) sum[k] = load(&to[k * stride]) + sum[k];
#pragma unroll
    for (int k = 0; k < TILE_RANKS; k++)
        if (k < n) store(&to[k * stride], sum[k]);
}

/* wide[row, i] is x (of A) or dy (of B, from its first column on, rows `columns` apart). */
template <class T, bool OF_B>
static __global__ void __launch_bounds__(THREADS) sum_rows(Sums s, const T *wide, Cells c, int64_t columns) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int cell = blockIdx.z, r0 = blockIdx.y * TILE_RANKS, n = min(TILE_RANKS, c.rank - r0);
    if (i >= s.wide) return;
    const int expert = load(&c.experts[cell]);
    const int64_t end = load(&c.offsets[expert + 1]);
    const float scale = load(&c.scales[cell]);
    const bool by_token = OF_B == c.down; /* x of gate and up, dy of down */
    const int64_t at =
        OF_B ? ((int64_t)cell * c.out + i) * c.rank + r0 : ((int64_t)cell * c.rank + r0) * c.in + i;
    int64_t m = load(&c.offsets[expert]);
    for (int p = 0; p < s.n_examples; p++) {
        const int32_t last = load(&s.offsets[p + 1]);
        float total[TILE_RANKS] = {0};
        while (m < end && load(&c.pairs[m]) / c.choices < last) {
            float part[TILE_RANKS] = {0};
            for (int rows = 0; rows < SUM_ROWS && m < end; rows++, m++) {
                const int pair = load(&c.pairs[m]), token = pair / c.choices;
                if (token >= last) break;
                const float factor = c.down ? scale * load(&s.weights[pair]) : scale;
                const float x = to_f32(load(&wide[(by_token ? token : m) * columns + i]));
                const float *ranks = &s.scratch[m * 2 * c.rank + (OF_B ? c.rank : 0) + r0];
#pragma unroll
                for (int k = 0; k < TILE_RANKS; k++) {
                    const float rank = k < n ? load(&ranks[k]) : 0;
                    part[k] = OF_B ? fmaf(factor * x, rank, part[k]) : fmaf(factor * rank, x, part[k]);
                }
            }
#pragma unroll
            for (int k = 0; k < TILE_RANKS; k++) total[k] += part[k];
        }
        push_example(total, s, at, OF_B ? 1 : c.in, n, s.first + p);
    }
}

template <class T, bool OF_B>
static void launch_sums(const Call &call, Tensor slots, const LoraSums &sums, Tensor scratch, const T *wide,
                        int64_t columns, Tensor weights, const Cells &c) {
    if (!slots.data) return;
    const int64_t n = OF_B ? c.out : c.in;
    const Sums s = {reals(slots),
                    ints(sums.offsets),
                    reals(scratch),
                    reals(weights),
                    sums.first,
                    c.n_cells * n * c.rank,
                    n,
                    (int)tensor_count(sums.offsets) - 1};
    check((sums.first + s.n_examples) >> slots.shape[0] == 0, "%lld examples, %lld slots",
          (long long)(sums.first + s.n_examples), (long long)slots.shape[0]);
    const dim3 grid(blocks_for(n, THREADS), blocks_for(c.rank, TILE_RANKS), (unsigned)c.n_cells);
    LAUNCH(call, grid, THREADS, 0, (sum_rows<T, OF_B>), s, wide, c, columns);
}

extern "C" void cuda_lora_bwd(Queue *q, Tensor dx, LoraSums sums, Tensor scratch, Tensor dy, Tensor x,
                              Lora lora, Tensor weights, MoePlan plan) {
    const Call call(q, "lora_bwd", dx, sums.a, sums.b, scratch, dy, x, lora.a, lora.b, weights, plan.pairs);
    const Cells c = cells_of(lora, plan);
    const int64_t columns = tensor_columns(dy);
    with_act(x.dtype, [&](auto act) {
        using T = decltype(act);
        const unsigned rows = blocks_for(tensor_count(plan.pairs), 1);
        LAUNCH(call, rows, THREADS, 0, pull_rows<T>, reals(scratch), elements<T>(dy), elements<T>(x), c,
               columns, lora.column);
        if (dx.data && c.down)
            LAUNCH(call, rows, THREADS, 0, add_to_rows, reals(dx), reals(scratch), c);
        else if (dx.data)
            LAUNCH(call, blocks_for(tensor_rows(plan.rows), 1), THREADS, 0, add_to_tokens<T>, elements<T>(dx),
                   reals(scratch), c);
        launch_sums<T, false>(call, sums.a, sums, scratch, elements<T>(x), c.in, weights, c);
        launch_sums<T, true>(call, sums.b, sums, scratch, elements<T>(dy) + lora.column, columns, weights, c);
    });
}

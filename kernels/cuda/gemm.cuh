/* One product of activations with the weights of one or several groups of rows (experts), and what the
 * kernels of all products share: which rows and columns a block computes, and what becomes of four finished
 * sums.
 *
 * An output element is one chain over ascending k, whatever the batch, the tile or the grid: in f32 that of
 * kernels/cpu/gemm.h (gemm_f32.cu), in bf16 one mma after the other, 16 k each (gemm_mma.cu). Which of the
 * two runs depends on dtypes, widths and addresses alone. Then bias, then residual are added, and the result
 * is rounded once.
 *
 * How many rows a group has is known on the device alone. So as many blocks start as any routing could need;
 * each looks its group up in the offsets, and those left over leave. */
#ifndef GATETAPE_CUDA_GEMM_CUH
#define GATETAPE_CUDA_GEMM_CUH
#include "gating.cuh"
#include "row_tiles.cuh"

/* y as the gradient da of hidden rows: dz [rows, 2 columns] the gradient of the gate function at z for
 * weights[pairs[row]] da; dots [rows, columns / 16] f32: of every 16 elements of da with the hidden row. dz
 * and dots may be absent. */
struct GateGradient {
    Tensor dz, z, weights, dots;
};

struct Product {
    Tensor y;             /* [rows, columns] f32 or bf16; with `gated` may be absent */
    Tensor x;             /* [., depth] */
    Tensor w;             /* [groups, columns, depth], or with `back` [groups, depth, columns] */
    bool back = false;    /* y = x w instead of x w^T */
    Tensor bias = {};     /* [groups, columns] or absent */
    Tensor residual = {}; /* [rows, columns] or absent, of a dtype of its own; may be y */
    bool onto = false;    /* in f32 the sums go on from residual, block by block of depth */
    bool halves = false;  /* back: x [., 2 depth] bf16, the sum of each two is what w multiplies */
    Tensor gated = {};    /* [rows, columns / 2]: not y is wanted but the gate function of its two halves */
    Gating gating = {};
    GateGradient gradient = {};       /* back: not y is wanted but what it makes of these */
    const int32_t *offsets = nullptr; /* [groups + 1]: the rows of a group; absent: one group of all rows */
    const int32_t *pairs = nullptr;   /* row m reads x[pairs[m] / per_token], nothing if < 0; absent: x[m] */
    int per_token = 1;
    /* product() sets these */
    int groups = 1, rows = 0, columns = 0, depth = 0; /* depth: columns of x */
    int row_tiles = 0;                                /* what any division of the rows needs at most */
    bool packed = false; /* y, bias and residual can be accessed four at a time */
};

/* What the tensor cores compute: x w^T, x w, or the gate function of x w^T. */
enum Form { FORWARD, BACK, GATED };
static inline Form form_of(const Product &p) { return p.back ? BACK : p.gated.data ? GATED : FORWARD; }

/* cublas.cu: whether dense products go to cuBLAS from now on; false and why where it is missing. The product,
 * if it has been put on the queue so. */
bool cublas_switch(bool on, const char **why);
bool cublas_product(const Call &call, const Product &p);
/* products.cu: puts the product on the queue. */
void product(const Call &call, Product p);
/* Whether the tensor cores can do it: bf16 by bf16, rows that are multiples of 16 bytes. */
bool product_fits_mma(const Product &p);
/* gemm_mma.cu, gemm_f32.cu; gemm_hopper.cu: on compute capability 9.0, for groups of many rows */
void product_mma(const Call &call, Product p);
void product_f32(const Call &call, Product p);
void product_hopper(const Call &call, Product p, int multiprocessors);

/* Tiles of tile_rows rows that cover the rows of all groups, however they fall. */
static inline int row_tiles_at_most(const Product &p, int tile_rows) {
    const int64_t filled = p.groups < p.rows ? p.groups : p.rows;
    return (int)((p.rows + filled * (tile_rows - 1)) / tile_rows);
}

static inline unsigned blocks_of_tiles(const Product &p, int tile_columns) {
    return blocks_for((int64_t)p.row_tiles * ((p.columns + tile_columns - 1) / tile_columns), 1);
}

/* ---- where a block works ---- */
struct TilePlace : RowTile { /* rows of y */
    int column;
};

/* The rows of tile number `tile`. */
template <int TILE_ROWS> DEVICE bool find_rows(const Product &p, int tile, TilePlace &at) {
    if (!p.offsets) {
        at.group = 0, at.first = tile * TILE_ROWS, at.end = min(at.first + TILE_ROWS, p.rows);
        return at.first < p.rows;
    }
    return find_row_tile<TILE_ROWS>(p.groups, tile, at, [&](int group, int &begin, int &end) {
        begin = load(&p.offsets[group]), end = load(&p.offsets[group + 1]);
    });
}

/* Blocks that run together should share what they read: they go down bands of 16 row tiles, column tile by
 * column tile. False: a block too many. */
template <int TILE_ROWS, int TILE_COLUMNS>
DEVICE bool place_tile(const Product &p, int block, TilePlace &at) {
    enum { BAND = 16 };
    const int column_tiles = (p.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const int band = block / (BAND * column_tiles), inside = block % (BAND * column_tiles);
    const int height = min((int)BAND, p.row_tiles - band * BAND);
    at.column = inside / height * TILE_COLUMNS;
    return find_rows<TILE_ROWS>(p, band * BAND + inside % height, at);
}

/* The row of x that row m of y is made of; negative: none. */
DEVICE int source_row(const Product &p, int m, int end) {
    if (m >= end) return -1;
    if (!p.pairs) return m;
    const int pair = load(&p.pairs[m]);
    return pair < 0 ? -1 : pair / p.per_token;
}

/* ---- from sums to y ---- */
DEVICE float read_one(const Tensor &t, int64_t index) {
    if (t.dtype == DTYPE_F32) return load(static_cast<const float *>(t.data) + index);
    if (t.dtype == DTYPE_BF16) return to_f32(load(static_cast<const bf16 *>(t.data) + index));
    return to_f32(load(static_cast<const f16 *>(t.data) + index));
}
DEVICE void read_four(float (&to)[4], const Tensor &t, int64_t index) {
    if (t.dtype == DTYPE_F32) return load_pack<float, 4>(to, static_cast<const float *>(t.data) + index);
    if (t.dtype == DTYPE_BF16) return load_pack<bf16, 4>(to, static_cast<const bf16 *>(t.data) + index);
    load_pack<f16, 4>(to, static_cast<const f16 *>(t.data) + index);
}

/* N rows, `stride` elements apart, of which n are there. */
template <class T, int N>
DEVICE void add_rows(float (&sum)[N][4], const Tensor &t, int64_t index, int64_t stride, int n) {
    const T *p = static_cast<const T *>(t.data) + index;
    float other[N][4] = {};
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < n) load_pack<T, 4>(other[i], &p[i * stride]);
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = other[i][j] + sum[i][j];
}
template <class T, int N>
DEVICE void write_rows(const Tensor &t, int64_t index, int64_t stride, int n, const float (&sum)[N][4]) {
    T *p = static_cast<T *>(t.data) + index;
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < n) store_pack<T, 4>(&p[i * stride], sum[i]);
}

DEVICE void finish_one(const Product &p, int group, int row, int column, float sum) {
    const int64_t index = (int64_t)row * p.columns + column;
    if (p.bias.data) sum += read_one(p.bias, (int64_t)group * p.columns + column);
    if (p.residual.data && !p.onto) sum = read_one(p.residual, index) + sum;
    if (p.y.dtype == DTYPE_F32)
        store(static_cast<float *>(p.y.data) + index, sum);
    else
        store(static_cast<bf16 *>(p.y.data) + index, from_f32<bf16>(sum));
}

/* ROWS x COLUMNS sums in shared memory, rows LENGTH apart, become elements of y from (row, column) on, as
 * far as row `end` and the width of y go. THREADS threads share them; each has four columns of several rows.
 * */
template <int ROWS, int COLUMNS, int LENGTH, int THREADS>
DEVICE void finish_sums(const Product &p, int group, int row, int end, int column, const float *sums,
                        int thread) {
    enum { LANES = COLUMNS / 4, AT_ONCE = THREADS / LANES, N = ROWS / AT_ONCE };
    if (!p.packed) {
#pragma unroll 1
        for (int i = thread; i < ROWS * COLUMNS; i += THREADS)
            if (row + i / COLUMNS < end && column + i % COLUMNS < p.columns)
                finish_one(p, group, row + i / COLUMNS, column + i % COLUMNS,
                           load(&sums[i / COLUMNS * LENGTH + i % COLUMNS]));
        return;
    }
    const int r = thread / LANES, c = thread % LANES * 4;
    if (column + c >= p.columns) return;
    const int n = (end - row - r + AT_ONCE - 1) / AT_ONCE;
    const int64_t index = (int64_t)(row + r) * p.columns + (column + c),
                  stride = (int64_t)AT_ONCE * p.columns;
    float sum[N][4], bias[4] = {};
    if (p.bias.data) read_four(bias, p.bias, (int64_t)group * p.columns + (column + c));
#pragma unroll
    for (int i = 0; i < N; i++) {
        load_pack<float, 4>(sum[i], &sums[(r + i * AT_ONCE) * LENGTH + c]);
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = p.bias.data ? sum[i][j] + bias[j] : sum[i][j];
    }
    if (p.residual.data && !p.onto) {
        if (p.residual.dtype == DTYPE_F32)
            add_rows<float>(sum, p.residual, index, stride, n);
        else
            add_rows<bf16>(sum, p.residual, index, stride, n);
    }
    if (p.y.dtype == DTYPE_F32)
        write_rows<float>(p.y, index, stride, n, sum);
    else
        write_rows<bf16>(p.y, index, stride, n, sum);
}

/* N gates and their ups, `half` apart in shared memory. */
template <int N>
DEVICE void gate_elements(const Product &p, const float *sums, int half, int64_t z_at, int64_t h_at,
                          int64_t bias_at) {
    const int features = p.columns / 2;
    float gate[N], up[N], h[N];
    load_pack<float, N>(gate, sums);
    load_pack<float, N>(up, &sums[half]);
#pragma unroll
    for (int j = 0; j < N; j++) {
        if (p.bias.data) gate[j] += read_one(p.bias, bias_at + j);
        if (p.bias.data) up[j] += read_one(p.bias, bias_at + features + j);
        gate[j] = to_f32(from_f32<bf16>(gate[j])), up[j] = to_f32(from_f32<bf16>(up[j]));
    }
    bf16 *z = static_cast<bf16 *>(p.y.data);
    if (z) store_pack<bf16, N>(&z[z_at], gate);
    if (z) store_pack<bf16, N>(&z[z_at + features], up);
#pragma unroll
    for (int j = 0; j < N; j++) h[j] = pass_gate<bf16>(gate[j], up[j], 0, p.gating);
    store_pack<bf16, N>(&static_cast<bf16 *>(p.gated.data)[h_at], h);
}

/* N elements of da with their gate and up: dz is written; returns dot + their product with the hidden
 * row. */
template <int N>
DEVICE float gradient_elements(const Product &p, const float *da, float (&gate)[N], float (&up)[N],
                               float weight, int64_t z_at, float dot) {
    bf16 *dz = static_cast<bf16 *>(p.gradient.dz.data);
    float grad[N];
    load_pack<float, N>(grad, da);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const float hidden = pass_gate<bf16>(gate[j], up[j], grad[j] * weight, p.gating);
        dot = fmaf(grad[j], rounded<bf16>(hidden), dot);
    }
    if (dz) store_pack<bf16, N>(&dz[z_at], gate);
    if (dz) store_pack<bf16, N>(&dz[z_at + p.columns], up);
    return dot;
}

/* Of four elements or what is left of them, one by one. */
DEVICE float gradient_one_by_one(const Product &p, const float *da, float weight, int64_t z_at, int left) {
    const bf16 *z = static_cast<const bf16 *>(p.gradient.z.data);
    float dot = 0;
#pragma unroll 1
    for (int j = 0; j < 4 && j < left; j++) {
        float gate[1] = {to_f32(load(&z[z_at + j]))}, up[1] = {to_f32(load(&z[z_at + j + p.columns]))};
        dot = gradient_elements<1>(p, &da[j], gate, up, weight, z_at + j, dot);
    }
    return dot;
}

/* The same for a warp whose 16 rows of COLUMNS sums are da (GateGradient). A lane asks for z of several rows
 * before it uses the first. A dot product is of 16 columns in every tile, so that its bits do not show the
 * tile. */
template <int COLUMNS, int LENGTH>
DEVICE void finish_gradient(const Product &p, int row, int end, int column, const float *sums, int lane) {
    enum { LANES = COLUMNS / 4, AT_ONCE = 32 / LANES, N = 16 / AT_ONCE, BATCH = N < 4 ? N : 4 };
    const int c = lane % LANES * 4, left = p.columns - column - c, n_dots = (p.columns + 15) / 16;
    const bf16 *z = static_cast<const bf16 *>(p.gradient.z.data);
    const float *weights = static_cast<const float *>(p.gradient.weights.data);
    float *dots = static_cast<float *>(p.gradient.dots.data);
#pragma unroll 1
    for (int first = lane / LANES; first < 16; first += BATCH * AT_ONCE) {
        float gate[BATCH][4], up[BATCH][4], weight[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int m = row + first + b * AT_ONCE;
            const int64_t z_at = (int64_t)m * p.columns * 2 + column + c;
            if (m >= end || left <= 0) continue;
            weight[b] = load(&weights[load(&p.pairs[m])]);
            if (p.packed) load_pack<bf16, 4>(gate[b], &z[z_at]);
            if (p.packed) load_pack<bf16, 4>(up[b], &z[z_at + p.columns]);
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int i = first + b * AT_ONCE, m = row + i;
            const int64_t z_at = (int64_t)m * p.columns * 2 + column + c;
            const bool exists = m < end && left > 0;
            const float *da = &sums[i * LENGTH + c];
            float dot = 0;
            if (exists)
                dot = p.packed ? gradient_elements<4>(p, da, gate[b], up[b], weight[b], z_at, 0)
                               : gradient_one_by_one(p, da, weight[b], z_at, left);
            dot += __shfl_xor_sync(~0u, dot, 1);
            dot += __shfl_xor_sync(~0u, dot, 2);
            if (dots && lane % 4 == 0 && exists) store(&dots[(int64_t)m * n_dots + (column + c) / 16], dot);
        }
    }
}

/* The same for a warp whose 16 rows of sums hold HALF gates, then their HALF ups: `column` is the first
 * gate's. z is rounded before the gate function reads it, as if it had been stored. */
template <int HALF, int LENGTH>
DEVICE void finish_gated(const Product &p, int group, int row, int end, int column, const float *sums,
                         int lane) {
    enum { LANES = HALF / 4, AT_ONCE = 32 / LANES };
    const int features = p.columns / 2, c = lane % LANES * 4, left = features - column - c;
#pragma unroll 1
    for (int i = lane / LANES; i < 16 && row + i < end; i += AT_ONCE) {
        const float *from = &sums[i * LENGTH + c];
        const int64_t z_at = (int64_t)(row + i) * p.columns + (column + c),
                      h_at = (int64_t)(row + i) * features + (column + c),
                      bias_at = (int64_t)group * p.columns + (column + c);
        if (p.packed && left > 0) gate_elements<4>(p, from, HALF, z_at, h_at, bias_at);
#pragma unroll 1
        for (int j = 0; !p.packed && j < 4 && j < left; j++)
            gate_elements<1>(p, &from[j], HALF, z_at + j, h_at + j, bias_at + j);
    }
}

#endif

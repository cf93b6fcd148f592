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
#include "device.cuh"

struct Product {
    Tensor y;             /* [rows, columns] f32 or bf16 */
    Tensor x;             /* [., depth] */
    Tensor w;             /* [groups, columns, depth], or with `back` [groups, depth, columns] */
    bool back = false;    /* y = x w instead of x w^T */
    Tensor bias = {};     /* [groups, columns] or absent */
    Tensor residual = {}; /* [rows, columns] or absent, of a dtype of its own; may be y */
    bool onto = false;    /* in f32 the sums go on from residual, block by block of depth */
    bool halves = false;  /* back: x [., 2 depth] bf16, the sum of each two is what w multiplies */
    const int32_t *offsets = nullptr; /* [groups + 1]: the rows of a group; absent: one group of all rows */
    const int32_t *pairs = nullptr;   /* row m reads x[pairs[m] / per_token], nothing if < 0; absent: x[m] */
    int per_token = 1;
    /* product() sets these */
    int groups = 1, rows = 0, columns = 0, depth = 0; /* depth: columns of x */
    int row_tiles = 0;                                /* what any division of the rows needs at most */
    bool packed = false; /* y, bias and residual can be accessed four at a time */
};

/* products.cu: puts the product on the queue. */
void product(const Call &call, Product p);
/* Whether the tensor cores can do it: bf16 by bf16, rows that are multiples of 16 bytes. */
bool product_fits_mma(const Product &p);
/* gemm_mma.cu, gemm_f32.cu */
void product_mma(const Call &call, Product p);
void product_f32(const Call &call, Product p);

/* Tiles of tile_rows rows that cover the rows of all groups, however they fall. */
static inline int row_tiles_at_most(const Product &p, int tile_rows) {
    const int64_t filled = p.groups < p.rows ? p.groups : p.rows;
    return (int)((p.rows + filled * (tile_rows - 1)) / tile_rows);
}

static inline unsigned blocks_of_tiles(const Product &p, int tile_columns) {
    return blocks_for((int64_t)p.row_tiles * ((p.columns + tile_columns - 1) / tile_columns), 1);
}

/* ---- where a block works ---- */
struct TilePlace {
    int group, first, end; /* rows [first, end) of y, no more than the tile has */
    int column;
};

/* The rows of tile number `tile`. All lanes of a warp look together, 32 groups at a time. */
template <int TILE_ROWS> DEVICE bool find_rows(const Product &p, int tile, TilePlace &at) {
    if (!p.offsets) {
        at.group = 0, at.first = tile * TILE_ROWS, at.end = min(at.first + TILE_ROWS, p.rows);
        return at.first < p.rows;
    }
    const int lane = threadIdx.x % 32;
    for (int base = 0; base < p.groups; base += 32) {
        const int group = min(base + lane, p.groups - 1);
        const int begin = load(&p.offsets[group]), end = load(&p.offsets[group + 1]);
        const int tiles = base + lane < p.groups ? (end - begin + TILE_ROWS - 1) / TILE_ROWS : 0;
        int up_to = tiles; /* tiles of the groups from base to this lane's */
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int below = __shfl_up_sync(~0u, up_to, d);
            up_to += lane >= d ? below : 0;
        }
        const unsigned beyond = __ballot_sync(~0u, tile < up_to);
        if (beyond) {
            const int owner = __ffs(beyond) - 1;
            at.group = base + owner;
            at.first = __shfl_sync(~0u, begin + (tile - (up_to - tiles)) * TILE_ROWS, owner);
            at.end = min(at.first + TILE_ROWS, __shfl_sync(~0u, end, owner));
            return true;
        }
        tile -= __shfl_sync(~0u, up_to, 31);
    }
    return false;
}

/* Blocks that run together should share what they read: they go down bands of 16 row tiles, column tile by
 * column tile. False: a block too many. */
template <int TILE_ROWS, int TILE_COLUMNS> DEVICE bool place_tile(const Product &p, TilePlace &at) {
    enum { BAND = 16 };
    const int column_tiles = (p.columns + TILE_COLUMNS - 1) / TILE_COLUMNS, block = (int)blockIdx.x;
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

/* ---- four neighbouring elements, of which n are in the row ---- */
template <class T> DEVICE void read_four(float (&to)[4], const Tensor &t, int64_t index, int n, bool packed) {
    const T *p = static_cast<const T *>(t.data) + index;
    if (packed) return load_pack<T, 4>(to, p);
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = i < n ? to_f32(load(&p[i])) : 0;
}
DEVICE void read_four(float (&to)[4], const Tensor &t, int64_t index, int n, bool packed) {
    if (t.dtype == DTYPE_F32) return read_four<float>(to, t, index, n, packed);
    if (t.dtype == DTYPE_BF16) return read_four<bf16>(to, t, index, n, packed);
    read_four<f16>(to, t, index, n, packed);
}
template <class T>
DEVICE void write_four(const Tensor &t, int64_t index, const float (&from)[4], int n, bool packed) {
    T *p = static_cast<T *>(t.data) + index;
    if (packed) return store_pack<T, 4>(p, from);
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < n) store(&p[i], from_f32<T>(from[i]));
}

/* Four sums of a row from `column` on become elements of y. */
DEVICE void finish_four(const Product &p, int group, int row, int column, float (&sum)[4]) {
    const int n = p.columns - column;
    const int64_t index = (int64_t)row * p.columns + column;
    float other[4];
    if (p.bias.data) {
        read_four(other, p.bias, (int64_t)group * p.columns + column, n, p.packed);
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += other[i];
    }
    if (p.residual.data && !p.onto) {
        read_four(other, p.residual, index, n, p.packed);
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] = other[i] + sum[i];
    }
    if (p.y.dtype == DTYPE_F32)
        write_four<float>(p.y, index, sum, n, p.packed);
    else
        write_four<bf16>(p.y, index, sum, n, p.packed);
}

#endif

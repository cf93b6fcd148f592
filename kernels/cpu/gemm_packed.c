/* The product of the f32 tables: weights packed into panels, rows of activations beside them, a tile of
 * sums in registers.
 *
 * A group's rows fall into blocks of at most BLOCK_ROWS, its columns into strips; a block and a strip are
 * one item, and threads take items as they get free. An item packs what it needs for itself: no thread
 * waits for another. For a few rows the weights are read straight, without a packed copy. Weights are
 * widened to f32 while they are packed, never as a whole. All paths make the same chains of fma (gemm.h),
 * so the bits do not tell which one ran. */
#include "gemm.h"
#ifndef CPU_DOUBLE
#include "gemm_amx.h"
#include <omp.h>

enum { BLOCK_ROWS = 384, STRIP_COLUMNS = 512 };
enum {
    N_PANEL = GEMM_BLOCK * TILE_COLUMNS,
    N_ROWS = GEMM_BLOCK * BLOCK_ROWS,
    N_SUMS = BLOCK_ROWS * STRIP_COLUMNS
};
_Static_assert((N_PANEL + N_ROWS + N_SUMS) * (int)sizeof(float) <= GEMM_SCRATCH_BYTES, "scratch");

INLINE int64_t weight_bytes(DType t) { return t == DTYPE_F32 ? 4 : 2; }

/* ---- packing: panel[k][j] for n_k steps and n_j <= TILE_COLUMNS columns ---- */
/* from w[j][k], rows `ldw` elements apart */
INLINE void pack_forward(float *panel, const char *w, int64_t ahead, int64_t ldw, int n_j, int n_k, DType t) {
    int step = (int)(4 * LANES / weight_bytes(t)), k;
    if (n_j < TILE_COLUMNS) memset(panel, 0, sizeof *panel * TILE_COLUMNS * (size_t)n_k);
    int whole = n_j == TILE_COLUMNS ? n_k / step * step : 0;
    for (int j = 0; j < TILE_COLUMNS; j += LANES)
        for (k = 0; k < whole; k += step) {
            Floats x[LANES];
            transpose_block(x, w + (j * ldw + k) * weight_bytes(t), ahead, ldw * weight_bytes(t));
            UNROLL for (int i = 0; i < step; i++) * (Floats *)(panel + (k + i) * TILE_COLUMNS + j) =
                block_element(x, i, t);
        }
    for (k = whole; k < n_k; k++)
        for (int j = 0; j < n_j; j++) panel[k * TILE_COLUMNS + j] = load_weight(w, j * ldw + k, t);
}

/* from w[k][j] */
INLINE void pack_back(float *panel, const char *w, int64_t ahead, int64_t ldw, int n_j, int n_k, DType t) {
    for (int k = 0; k < n_k; k++, panel += TILE_COLUMNS, w += ldw * weight_bytes(t))
        for (int j = 0; j < TILE_COLUMNS; j += LANES) {
            const char *from = w + j * weight_bytes(t);
            __builtin_prefetch(from + ahead, 0, 2);
            if (n_j < TILE_COLUMNS)
                for (int i = 0; i < LANES; i++) panel[j + i] = j + i < n_j ? load_weight(from, i, t) : 0;
            else if (t == DTYPE_F32)
                *(Floats *)(panel + j) = (Floats) * (const FloatsAnywhere *)from;
            else
                *(Floats *)(panel + j) =
                    widen(__builtin_convertvector(*(const HalvesAnywhere *)from, Words), t);
        }
}

/* pairs of steps from w[k][j], a pair in the place of a float; ldw halves from row to row */
INLINE void pack_back_pairs(float *panel, const char *w, int64_t ahead, int64_t ldw, int n_j, int n_k) {
    for (int k = 0; k < n_k; k++, panel += TILE_COLUMNS, w += 4 * ldw) {
        const uint16_t *even = (const uint16_t *)w, *odd = even + ldw;
        uint32_t words[TILE_COLUMNS] = {0};
        __builtin_prefetch(w + ahead, 0, 2);
        __builtin_prefetch(w + ahead + 2 * ldw, 0, 2);
        if (n_j == TILE_COLUMNS)
            for (int j = 0; j < TILE_COLUMNS; j++) words[j] = even[j] | (uint32_t)odd[j] << 16;
        else
            for (int j = 0; j < n_j; j++) words[j] = even[j] | (uint32_t)odd[j] << 16;
        memcpy(panel, words, sizeof words);
    }
}

/* One panel's place in the weights. */
typedef struct {
    const char *w;
    int64_t ahead, ldw; /* bytes to the panel that comes next; elements from row to row */
    int n_j, n_k;
    DType dtype; /* pairs of bf16 are moved like floats */
    bool back, pairs;
} Panel;

static void pack(float *panel, const Panel *p) {
    if (p->pairs && p->back) {
        pack_back_pairs(panel, p->w, p->ahead, p->ldw, p->n_j, p->n_k);
        return;
    }
    switch (p->dtype) {
    case DTYPE_F32:
        if (p->back)
            pack_back(panel, p->w, p->ahead, p->ldw, p->n_j, p->n_k, DTYPE_F32);
        else
            pack_forward(panel, p->w, p->ahead, p->ldw, p->n_j, p->n_k, DTYPE_F32);
        break;
    case DTYPE_BF16:
        if (p->back)
            pack_back(panel, p->w, p->ahead, p->ldw, p->n_j, p->n_k, DTYPE_BF16);
        else
            pack_forward(panel, p->w, p->ahead, p->ldw, p->n_j, p->n_k, DTYPE_BF16);
        break;
    default:
        if (p->back)
            pack_back(panel, p->w, p->ahead, p->ldw, p->n_j, p->n_k, DTYPE_F16);
        else
            pack_forward(panel, p->w, p->ahead, p->ldw, p->n_j, p->n_k, DTYPE_F16);
    }
}

INLINE void put(float *to, Floats sum, bool first) {
    if (first)
        *(Floats *)to = sum;
    else
        *(Floats *)to += sum;
}

/* ---- sums[m][TILE_COLUMNS] (+)= rows[m][n_k] panel[n_k][TILE_COLUMNS]; rows are GEMM_BLOCK apart ---- */
INLINE void tile(int m, const float *rows, const float *panel, int n_k, float *sums, int64_t ld_sums,
                 bool first, bool pairs) {
    Floats s[TILE_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < m; i++) UNROLL for (int j = 0; j < TILE_VECTORS; j++) s[i][j] = splat(0);
    for (int k = 0; k < n_k; k++) {
        Floats y[TILE_VECTORS];
        UNROLL for (int j = 0; j < TILE_VECTORS; j++) y[j] =
            *(const Floats *)(panel + k * TILE_COLUMNS + j * LANES);
        UNROLL for (int i = 0; i < m; i++) {
            Floats x = splat(rows[i * GEMM_BLOCK + k]);
            UNROLL for (int j = 0; j < TILE_VECTORS; j++) s[i][j] = step_floats(x, y[j], s[i][j], pairs);
        }
    }
    UNROLL for (int i = 0; i < m; i++) UNROLL for (int j = 0; j < TILE_VECTORS; j++)
        put(sums + i * ld_sums + j * LANES, s[i][j], first);
}

static void tiles(int m, const float *rows, const float *panel, const Panel *p, float *sums, int64_t ld_sums,
                  bool first) {
#define CASE_OF(n, pairs)                                                                                    \
    case 2 * n + pairs:                                                                                      \
        if (n <= TILE_ROWS) tile(n <= TILE_ROWS ? n : 1, rows, panel, p->n_k, sums, ld_sums, first, pairs);  \
        break;
#define CASE(n) CASE_OF(n, 0) CASE_OF(n, 1)
    switch (2 * m + p->pairs) {
        CASE(1)
        CASE(2)
        CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
    }
#undef CASE
#undef CASE_OF
}

/* ---- the same straight from the weights, for so few rows that a packed copy does not pay ----
 * Reading the weights is what takes time here. No more than 16 of their rows are read side by side, from end
 * to end: with twice as many, prefetching by the processor breaks down and the rate falls by half. */
INLINE void skinny(int m, const float *rows, const Panel *p, float *sums, int64_t ld_sums, bool first,
                   DType t, bool pairs) {
    int step = (int)(4 * LANES / weight_bytes(t)), k = 0;
    int64_t ldw = p->ldw, size = weight_bytes(t);
    Floats s[FEW_VECTORS][FEW_ROWS];
    UNROLL for (int j = 0; j < FEW_VECTORS; j++) UNROLL for (int i = 0; i < m; i++) s[j][i] = splat(0);
    for (; k + step <= p->n_k; k += step)
        for (int j = 0; j < FEW_VECTORS; j++) {
            const float *from = rows + k;
            Floats x[LANES], z[FEW_ROWS];
            HIDE(from);
            UNROLL for (int i = 0; i < m; i++) z[i] = s[j][i];
            transpose_block(x, p->w + (j * LANES * ldw + k) * size, p->ahead, ldw * size);
            UNROLL for (int e = 0; e < step; e++) {
                Floats y = block_element(x, e, t);
                UNROLL for (int i = 0; i < m; i++) z[i] =
                    step_floats(splat(from[i * GEMM_BLOCK + e]), y, z[i], pairs);
            }
            UNROLL for (int i = 0; i < m; i++) s[j][i] = z[i];
        }
    for (; k < p->n_k; k++)
        for (int j = 0; j < FEW_VECTORS; j++) {
            Floats y = splat(0);
            for (int i = 0; i < LANES; i++) y[i] = load_weight(p->w, (j * LANES + i) * ldw + k, t);
            for (int i = 0; i < m; i++)
                s[j][i] = step_floats(splat(rows[i * GEMM_BLOCK + k]), y, s[j][i], pairs);
        }
    for (int i = 0; i < m; i++)
        for (int j = 0; j < FEW_VECTORS; j++) put(sums + i * ld_sums + j * LANES, s[j][i], first);
}

static void skinnies(int m, const float *rows, const Panel *p, float *sums, int64_t ld_sums, bool first) {
#define CASE_OF(n, t, pairs)                                                                                 \
    case n * 2 * N_DTYPES + 2 * t + pairs:                                                                   \
        if (n <= FEW_ROWS) skinny(n <= FEW_ROWS ? n : 1, rows, p, sums, ld_sums, first, t, pairs);           \
        break;
#define CASE(n)                                                                                              \
    CASE_OF(n, DTYPE_F32, 0) CASE_OF(n, DTYPE_F32, 1) CASE_OF(n, DTYPE_BF16, 0) CASE_OF(n, DTYPE_F16, 0)
    switch ((m * N_DTYPES + (int)p->dtype) * 2 + p->pairs) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
    }
#undef CASE
#undef CASE_OF
}

/* ---- one item ---- */
typedef struct {
    int64_t group, first, n_rows; /* rows of y */
    int64_t j, n_j;               /* columns */
} Item;

typedef struct {
    float *panel, *rows, *sums;
} Scratch;

static bool few_rows(const Item *item, bool back) { return item->n_rows <= 2 * FEW_ROWS && !back; }

/* The same on AMX tiles; few rows lie as [step][16]. */
static void panel_by_tiles(const Item *item, const Panel *p, const Scratch *s, const float *rows, float *sums,
                           int64_t ld_sums, bool first) {
    if (few_rows(item, p->back)) {
        amx_few(item->n_rows, rows, p->w, p->ldw, p->n_j, p->n_k, sums, ld_sums, first);
        return;
    }
    int n_words = (p->n_k + AMX_SIDE - 1) / AMX_SIDE * AMX_SIDE;
    pack(s->panel, p);
    memset(s->panel + p->n_k * TILE_COLUMNS, 0, sizeof(float) * TILE_COLUMNS * (size_t)(n_words - p->n_k));
    for (int64_t r = 0; r < item->n_rows; r += 2 * AMX_SIDE)
        amx_tile((int)least(2 * AMX_SIDE, item->n_rows - r), rows + r * GEMM_BLOCK, s->panel, n_words,
                 sums + r * ld_sums, ld_sums, first);
}

/* All rows of an item against one panel. */
static void panel_by_rows(const Item *item, const Panel *p, const Scratch *s, const float *rows, float *sums,
                          int64_t ld_sums, bool first) {
    if (HAVE_AMX && p->pairs) {
        panel_by_tiles(item, p, s, rows, sums, ld_sums, first);
        return;
    }
    bool few = few_rows(item, p->back) && p->n_j == FEW_COLUMNS;
    int64_t most = few ? FEW_ROWS : TILE_ROWS;
    if (!few) pack(s->panel, p);
    for (int64_t r = 0, left = (item->n_rows + most - 1) / most, m; left > 0; r += m, left--) {
        m = (item->n_rows - r + left - 1) / left; /* tiles of even height */
        if (few)
            skinnies((int)m, rows + r * GEMM_BLOCK, p, sums + r * ld_sums, ld_sums, first);
        else
            tiles((int)m, rows + r * GEMM_BLOCK, s->panel, p, sums + r * ld_sums, ld_sums, first);
    }
}

/* Steps [k, k + n) of the item's pairs for AMX: few rows as [step][16], more as they are, zeros up to a whole
 * tile. */
static void hold_pairs(const Product *p, const Item *item, int64_t k, int64_t n, float *to) {
    float row[GEMM_BLOCK];
    int64_t whole = (n + AMX_SIDE - 1) / AMX_SIDE * AMX_SIDE;
    if (!few_rows(item, p->back)) {
        for (int64_t r = 0; r < item->n_rows; r++, to += GEMM_BLOCK) {
            product_read_pairs(p, item->first + r, k, n, to);
            memset(to + n, 0, (size_t)(whole - n) * sizeof *to);
        }
        return;
    }
    memset(to, 0, (size_t)(whole * AMX_SIDE) * sizeof *to);
    for (int64_t r = 0; r < item->n_rows; r++) {
        product_read_pairs(p, item->first + r, k, n, row);
        for (int64_t i = 0; i < n; i++) to[i * AMX_SIDE + r] = row[i];
    }
}

/* The item's rows of activations for the steps [begin, end), block after block of depth, height rows each. */
static void hold_rows(const Product *p, const Item *item, int64_t begin, int64_t end, int64_t height,
                      float *rows) {
    if (HAVE_AMX && product_pairs(p)) {
        for (int64_t k = begin; k < end; k += GEMM_BLOCK)
            hold_pairs(p, item, k, least(GEMM_BLOCK, end - k), rows + (k - begin) * height);
        return;
    }
    for (int64_t k = begin; k < end; k += GEMM_BLOCK)
        for (int64_t r = 0; r < item->n_rows; r++) {
            float *to = rows + (k - begin) * height + r * GEMM_BLOCK;
            if (product_pairs(p))
                product_read_pairs(p, item->first + r, k, least(GEMM_BLOCK, end - k), to);
            else
                product_read_row(p, item->first + r, k, least(GEMM_BLOCK, end - k), to);
        }
}

/* The sums of an item, [n_rows][ld_sums]. As many blocks of depth as fit beside each other are held at a
 * time. */
static void sum_item(const Product *p, const Item *item, const Scratch *s, int64_t ld_sums) {
    bool pairs = product_pairs(p), few = few_rows(item, p->back);
    DType dtype = pairs ? DTYPE_F32 : p->w.dtype;
    int64_t depth = tensor_columns(p->x), columns = tensor_columns(p->y), size = weight_bytes(p->w.dtype);
    const size_t group_bytes = (size_t)(depth * columns * size);
    int64_t ldw = p->back ? columns : depth, step_k = p->back ? columns * size : size,
            step_j = p->back ? size : depth * size, width = few ? FEW_COLUMNS : TILE_COLUMNS;
    if (pairs) depth /= 2, step_k *= 2, ldw /= p->back ? 1 : 2; /* a step is a pair */
    const char *w = (const char *)p->w.data + (size_t)item->group * group_bytes;
    int64_t height = HAVE_AMX && pairs && few ? AMX_SIDE : item->n_rows;
    int64_t span = BLOCK_ROWS / height * GEMM_BLOCK, block = HAVE_AMX && pairs && few ? span : GEMM_BLOCK;
    if (depth == 0 && !p->onto) memset(s->sums, 0, (size_t)(item->n_rows * ld_sums) * sizeof *s->sums);
    for (int64_t begin = 0; begin < depth; begin += span) {
        int64_t end = least(begin + span, depth);
        hold_rows(p, item, begin, end, height, s->rows);
        for (int64_t j = 0; j < item->n_j; j += width)
            for (int64_t k = begin; k < end; k += block) {
                Panel panel = {.w = w + k * step_k + (item->j + j) * step_j,
                               .ahead =
                                   k + block < end ? block * step_k : width * step_j - (k - begin) * step_k,
                               .ldw = ldw,
                               .n_j = (int)least(width, item->n_j - j),
                               .n_k = (int)least(block, end - k),
                               .dtype = dtype,
                               .back = p->back,
                               .pairs = pairs};
                panel_by_rows(item, &panel, s, s->rows + (k - begin) * height, s->sums + j, ld_sums,
                              k == 0 && !p->onto);
            }
    }
}

static void run_item(const Product *p, const Item *item, float *scratch) {
    Scratch s = {scratch, scratch + N_PANEL, scratch + N_PANEL + N_ROWS};
    int64_t ld_sums = (item->n_j + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS;
    if (few_rows(item, p->back)) ld_sums += TILE_COLUMNS; /* a last, packed panel begins anywhere */
#if defined(__x86_64__)
    unsigned mode = _mm_getcsr();
    _mm_setcsr(product_pairs(p) ? 0x9fc0
                                : 0x1f80); /* denormals: zero, or as IEEE says, whatever the caller's mode */
#endif
    for (int64_t r = 0; r < item->n_rows && p->onto; r++)
        read_piece(s.sums + r * ld_sums, p->y, (item->first + r) * tensor_columns(p->y) + item->j, item->n_j);
    sum_item(p, item, &s, ld_sums);
    if (HAVE_AMX && product_pairs(p)) amx_end();
#if defined(__x86_64__)
    _mm_setcsr(0x1f80);
#endif
    for (int64_t r = 0; r < item->n_rows; r++)
        for (int64_t j = 0; j < item->n_j; j += PIECE)
            product_store(p, item->group, item->first + r, item->j + j, least(PIECE, item->n_j - j),
                          s.sums + r * ld_sums + j);
#if defined(__x86_64__)
    _mm_setcsr(mode);
#endif
}

/* ---- items ---- */
static int64_t n_blocks_of(int64_t n_rows) { return (n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }

/* Block number b of all is which block of which group. */
static Item find_block(const Product *p, int64_t b) {
    int64_t group = 0, first, n_rows, n_blocks;
    for (;; group++, b -= n_blocks) {
        n_rows = product_rows(p, group, &first);
        n_blocks = n_blocks_of(n_rows);
        if (b < n_blocks) break;
    }
    int64_t begin = n_rows * b / n_blocks, end = n_rows * (b + 1) / n_blocks;
    return (Item){.group = group, .first = first + begin, .n_rows = end - begin};
}

/* Columns of a strip: few strips for a thread where many rows would be packed again for each, more where the
 * weights are all that counts. */
static int64_t strip_width(int64_t columns, int64_t n_rows, int64_t n_blocks) {
    int64_t panels = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    int64_t strips = (n_rows <= 64 * n_blocks ? 8 : 2) * omp_get_max_threads();
    int64_t width = panels * n_blocks / strips;
    width = least(width < 1 ? 1 : width, STRIP_COLUMNS / TILE_COLUMNS);
    return width * TILE_COLUMNS;
}

enum { WORTH_THREADS = 1 << 18 }; /* multiply-adds from which a product is shared among threads */

void CPU_OP(product)(Queue *q, const Product *p) {
    if (q->failed_op) return;
    int64_t columns = tensor_columns(p->y), n_blocks = 0, n_rows = 0, first;
    for (int64_t group = 0; group < product_groups(p); group++) {
        int64_t n = product_rows(p, group, &first);
        n_blocks += n_blocks_of(n);
        n_rows += n;
    }
    if (n_blocks == 0 || columns == 0) return;
    check(p->w.dtype == DTYPE_F32 || p->w.dtype == DTYPE_BF16 || p->w.dtype == DTYPE_F16, "weights of %s",
          dtype_name(p->w.dtype));
    int64_t width = strip_width(columns, n_rows, n_blocks), n_strips = (columns + width - 1) / width;
    bool share = n_rows * columns * tensor_columns(p->x) > WORTH_THREADS;
#pragma omp parallel for schedule(dynamic, 1) if (share)
    for (int64_t i = 0; i < n_blocks * n_strips; i++) {
        Item item = find_block(p, i / n_strips);
        item.j = i % n_strips * width;
        item.n_j = least(width, columns - item.j);
        run_item(p, &item, cpu_scratch(q));
    }
}
#endif

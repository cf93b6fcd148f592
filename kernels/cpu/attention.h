/* What attention and its backward share: the work items and the small product of a few packed rows.
 *
 * The H/J query heads of one key/value head are rows of one matrix: row r = token * (H/J) + head in the
 * group. An item is ATTENTION_ROWS such rows (backward also: ATTENTION_KEYS keys) of one prompt and
 * key/value head. Key blocks count from the prompt's key 0. Nothing in a row's arithmetic depends on the
 * rows beside it. */
#ifndef GATETAPE_ATTENTION_H
#define GATETAPE_ATTENTION_H
#include "lanes.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum { ATTENTION_ROWS = 128, ATTENTION_KEYS = 64, ATTENTION_MOST = 640 /* head elements */ };

typedef struct {
    Tensor query, key, value;
    Spans spans;
    real scale;
    int64_t window;
    int64_t heads, kv_heads, group, size, value_size; /* H, J, H/J, C, Cv */
} Attention;

/* One prompt. */
typedef struct {
    int64_t first_token, tokens, first_key, keys;
} Prompt;

/* Keys [from, to) of a row. */
typedef struct {
    int64_t from, to;
} KeyRange;

static inline Attention attention_of(Tensor query, Tensor key, Tensor value, Spans spans, float scale,
                                     int64_t window) {
    check(query.n_dims == 3 && key.n_dims == 3 && value.n_dims == 3, "%d, %d, %d dimensions", query.n_dims,
          key.n_dims, value.n_dims);
    Attention a = {query,          key,          value, spans,          (real)scale,   window,
                   query.shape[1], key.shape[1], 0,     query.shape[2], value.shape[2]};
    check(a.kv_heads > 0 && a.heads % a.kv_heads == 0 && value.shape[1] == a.kv_heads, "heads %lld, %lld",
          (long long)a.heads, (long long)a.kv_heads);
    check(key.shape[2] == a.size && a.size <= ATTENTION_MOST && a.value_size <= ATTENTION_MOST,
          "head sizes %lld, %lld, %lld", (long long)a.size, (long long)key.shape[2], (long long)a.value_size);
    a.group = a.heads / a.kv_heads;
    return a;
}

static inline Prompt attention_prompt(const Attention *a, int64_t p) {
    const int32_t *offsets = ints(a->spans.offsets);
    Prompt b = {offsets[p], offsets[p + 1] - offsets[p], ints(a->spans.kv_begin)[p],
                ints(a->spans.kv_length)[p]};
    check(b.tokens <= b.keys && b.first_key + b.keys <= a->key.shape[0] &&
              b.first_token + b.tokens <= a->query.shape[0],
          "prompt %lld: %lld queries, %lld keys from %lld", (long long)p, (long long)b.tokens,
          (long long)b.keys, (long long)b.first_key);
    return b;
}

/* The most tokens, or keys, that a prompt has. */
static inline int64_t attention_longest(const Attention *a, bool of_keys) {
    int64_t most = 0;
    for (int64_t p = 0; p < tensor_count(a->spans.kv_begin); p++) {
        Prompt b = attention_prompt(a, p);
        int64_t n = of_keys ? b.keys : b.tokens;
        most = n > most ? n : most;
    }
    return most;
}

static inline KeyRange attention_keys(const Attention *a, Prompt b, int64_t row) {
    int64_t at = b.keys - b.tokens + row / a->group;
    return (KeyRange){a->window > 0 && at >= a->window ? at - a->window + 1 : 0, at + 1};
}

/* The place of row r among the [T,H] rows of query, out and lse. */
static inline int64_t attention_row(const Attention *a, Prompt b, int64_t kv_head, int64_t r) {
    return (b.first_token + r / a->group) * a->heads + kv_head * a->group + r % a->group;
}

/* to[n][width] = rows [r0, r0 + n) of x, which is shaped like query. */
static inline void attention_pack_rows(real *to, const Attention *a, Tensor x, Prompt b, int64_t kv_head,
                                       int64_t r0, int64_t n) {
    int64_t width = tensor_columns(x);
    for (int64_t r = 0; r < n; r++)
        read_piece(to + r * width, x, attention_row(a, b, kv_head, r0 + r) * width, width);
}

/* to[n][width] = keys [k0, k0 + n) of x, which is shaped like key or value. */
static inline void attention_pack_keys(real *to, const Attention *a, Tensor x, Prompt b, int64_t kv_head,
                                       int64_t k0, int64_t n) {
    int64_t width = tensor_columns(x);
    for (int64_t j = 0; j < n; j++)
        read_piece(to + j * width, x, ((b.first_key + k0 + j) * a->kv_heads + kv_head) * width, width);
}

/* ---- vectors ---- */
#if defined(__AVX512F__) && !defined(CPU_DOUBLE)
enum { WIDE = 16, WIDE_COLUMNS = 4 }; /* elements of a vector; vectors of a tile's row */
#elif defined(__AVX2__) && defined(__FMA__) && !defined(CPU_DOUBLE)
enum { WIDE = 8, WIDE_COLUMNS = 2 };
#else
enum { WIDE = 4, WIDE_COLUMNS = 2 };
#endif
enum { WIDE_ROWS = 4 }; /* rows of a tile */

typedef real Wide __attribute__((vector_size(WIDE * sizeof(real)), aligned(sizeof(real)), may_alias));
typedef real Four __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));

/* *z += x y, each element rounded once. */
static inline __attribute__((always_inline)) void wide_fma(Wide *z, real x, const Wide *y) {
#if defined(__AVX512F__) && !defined(CPU_DOUBLE)
    *z = (Wide)_mm512_fmadd_ps(_mm512_set1_ps(x), (__m512)*y, (__m512)*z);
#elif defined(__AVX2__) && defined(__FMA__) && !defined(CPU_DOUBLE)
    *z = (Wide)_mm256_fmadd_ps(_mm256_set1_ps(x), (__m256)*y, (__m256)*z);
#else
    for (int i = 0; i < WIDE; i++) (*z)[i] = fma_real(x, (*y)[i], (*z)[i]);
#endif
}

static inline Four *four_at(real *p) { return (Four *)p; }

/* to[width][ATTENTION_KEYS] = from[n][width] transposed; columns from n on are 0. */
static inline void attention_transpose(real *to, const real *from, int64_t n, int64_t width) {
    int64_t whole = n / 4 * 4, c = 0;
    if (n < ATTENTION_KEYS) memset(to, 0, (size_t)(width * ATTENTION_KEYS) * sizeof *to);
    for (; c + 4 <= width; c += 4)
        for (int64_t j = 0; j < whole; j += 4) {
            const real *p = from + j * width + c;
            Four a = *(const Four *)p, b = *(const Four *)(p + width), d = *(const Four *)(p + 2 * width);
            Four e = *(const Four *)(p + 3 * width);
            Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                 de = __builtin_shufflevector(d, e, 0, 4, 1, 5);
            Four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
            Four de_high = __builtin_shufflevector(d, e, 2, 6, 3, 7);
            real *out = to + c * ATTENTION_KEYS + j;
            *four_at(out) = __builtin_shufflevector(ab, de, 0, 1, 4, 5);
            *four_at(out + ATTENTION_KEYS) = __builtin_shufflevector(ab, de, 2, 3, 6, 7);
            *four_at(out + 2 * ATTENTION_KEYS) = __builtin_shufflevector(ab_high, de_high, 0, 1, 4, 5);
            *four_at(out + 3 * ATTENTION_KEYS) = __builtin_shufflevector(ab_high, de_high, 2, 3, 6, 7);
        }
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = j < whole ? c : 0; i < width; i++) to[i * ATTENTION_KEYS + j] = from[j * width + i];
}

/* A matrix inside a packed block: element (i, k) stands at data[i * row + k * step]. */
typedef struct {
    const real *data;
    int64_t row, step;
} Packed;

/* A product's target: out[r][c] = fma chain over k in [k.from, k.to), ascending, of a(r, k) b[k][c], begun
 * with out. */
typedef struct {
    real *out;
    int64_t ld_out;
    Packed a;
    const real *b;
    int64_t ld_b;
    KeyRange k;
} Product;

static inline __attribute__((always_inline)) void product_tile(const Product *p, int64_t r0, int64_t c0,
                                                               int rows, int vectors) {
    Wide sum[WIDE_ROWS][WIDE_COLUMNS];
    real *out = p->out + r0 * p->ld_out + c0;
    const real *a = p->a.data + r0 * p->a.row + p->k.from * p->a.step, *b = p->b + p->k.from * p->ld_b + c0;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[r][v] = *(const Wide *)(out + r * p->ld_out + v * WIDE);
    for (int64_t k = p->k.from; k < p->k.to; k++, a += p->a.step, b += p->ld_b) {
        Wide y[WIDE_COLUMNS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) y[v] = *(const Wide *)(b + v * WIDE);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) wide_fma(&sum[r][v], a[r * p->a.row], &y[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) *(Wide *)(out + r * p->ld_out + v * WIDE) = sum[r][v];
}

/* Columns behind the last whole vector. */
static inline void product_edge(const Product *p, int64_t r0, int64_t rows, int64_t c0, int64_t columns) {
    for (int64_t r = r0; r < r0 + rows; r++)
        for (int64_t k = p->k.from; k < p->k.to; k++)
            for (int64_t c = c0; c < columns; c++)
                p->out[r * p->ld_out + c] = fma_real(p->a.data[r * p->a.row + k * p->a.step],
                                                     p->b[k * p->ld_b + c], p->out[r * p->ld_out + c]);
}

/* Rows [r0, r0 + rows), rows <= WIDE_ROWS, and columns [0, columns). */
static inline void attention_product(const Product *p, int64_t r0, int64_t rows, int64_t columns) {
    int64_t c = 0;
    if (p->k.from >= p->k.to) return;
    for (; c + WIDE_COLUMNS * WIDE <= columns; c += WIDE_COLUMNS * WIDE) {
        if (rows == WIDE_ROWS)
            product_tile(p, r0, c, WIDE_ROWS, WIDE_COLUMNS);
        else
            for (int64_t r = 0; r < rows; r++) product_tile(p, r0 + r, c, 1, WIDE_COLUMNS);
    }
    for (; c + WIDE <= columns; c += WIDE) {
        if (rows == WIDE_ROWS)
            product_tile(p, r0, c, WIDE_ROWS, 1);
        else
            for (int64_t r = 0; r < rows; r++) product_tile(p, r0 + r, c, 1, 1);
    }
    if (c < columns) product_edge(p, r0, rows, c, columns);
}

/* The key ranges of up to WIDE_ROWS rows that stand together. */
typedef struct {
    KeyRange row[WIDE_ROWS], hull, common; /* within the block of keys at k0 */
    int64_t n;
} RowGroup;

static inline RowGroup attention_group(const Attention *a, Prompt b, int64_t row, int64_t n, int64_t k0) {
    RowGroup g = {.hull = {ATTENTION_KEYS, 0}, .common = {0, ATTENTION_KEYS}, .n = least(n, WIDE_ROWS)};
    for (int64_t r = 0; r < g.n; r++) {
        KeyRange in = attention_keys(a, b, row + r);
        in.from = in.from > k0 ? least(in.from - k0, ATTENTION_KEYS) : 0;
        in.to = in.to > k0 ? least(in.to - k0, ATTENTION_KEYS) : 0;
        g.row[r] = in;
        g.hull.from = least(g.hull.from, in.from);
        g.hull.to = in.to > g.hull.to ? in.to : g.hull.to;
        g.common.from = in.from > g.common.from ? in.from : g.common.from;
        g.common.to = least(g.common.to, in.to);
    }
    return g;
}

/* Up to a whole vector and no further than the block. */
static inline int64_t attention_columns(KeyRange in) {
    return least((in.to + WIDE - 1) / WIDE * WIDE, ATTENTION_KEYS);
}

#endif

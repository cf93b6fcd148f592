/* What attention and its backward share: the work items and the small product of a few packed rows.
 *
 * The H/J query heads of one key/value head are rows of one matrix: row r = token * (H/J) + head in the group. An item
 * is ATTENTION_ROWS such rows (backward also: ATTENTION_KEYS keys) of one prompt and key/value head. Key blocks count
 * from the prompt's key 0. Nothing in a row's arithmetic depends on the rows beside it. */
#ifndef GATETAPE_ATTENTION_H
#define GATETAPE_ATTENTION_H
#include "lanes.h"

enum { ATTENTION_ROWS = 64, ATTENTION_KEYS = 64, ATTENTION_MOST = 1024 /* head elements */ };

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

/* to[width][ATTENTION_KEYS] = from[n][width] transposed; columns from n on are 0. */
static inline void attention_transpose(real *to, const real *from, int64_t n, int64_t width) {
    if (n < ATTENTION_KEYS) memset(to, 0, (size_t)(width * ATTENTION_KEYS) * sizeof *to);
    for (int64_t j = 0; j < n; j++)
        for (int64_t c = 0; c < width; c++) to[c * ATTENTION_KEYS + j] = from[j * width + c];
}

/* A matrix inside a packed block: element (i, k) stands at data[i * row + k * step]. */
typedef struct {
    const real *data;
    int64_t row, step;
} Packed;

/* out[r][0..columns) = fma chain over k in [k0, k1), ascending, of a(r, k) b[k][0..columns), begun with out. */
static inline void attention_product(real *out, int64_t ld_out, Packed a, const real *b, int64_t ld_b,
                                     int64_t rows, KeyRange k, int64_t columns) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = k.from; i < k.to; i++) {
            real x = a.data[r * a.row + i * a.step];
            for (int64_t c = 0; c < columns; c++)
                out[r * ld_out + c] = fma_real(x, b[i * ld_b + c], out[r * ld_out + c]);
        }
}

#endif

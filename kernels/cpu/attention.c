/* Causal attention by key blocks with a running maximum (arXiv 2205.14135), grouped heads, sliding window,
 * sinks.
 *
 * An item (attention.h) packs its query rows once and each key block once for all heads of the group: keys
 * transposed, so that scores are products over vectors of keys. A row's chain: scores over head elements
 * in order; the block's maximum; exp; the block's sum in lanes; values added key by key. So a row has the
 * same bits in a prompt and as a single row over the cache. */
#include "../math.h"
#include "attention.h"

/* The packed blocks of a thread. */
typedef struct {
    real *query, *key, *key_t, *value, *sum, *score; /* query, sum and score: a line for each row */
    real largest[ATTENTION_ROWS], total[ATTENTION_ROWS];
} Forward;

static Forward forward_memory(Queue *q, const Attention *a) {
    real *p = cpu_scratch(q);
    Forward f = {.query = p};
    f.key = f.query + ATTENTION_ROWS * a->size;
    f.key_t = f.key + ATTENTION_KEYS * a->size;
    f.value = f.key_t + ATTENTION_KEYS * a->size;
    f.sum = f.value + ATTENTION_KEYS * a->value_size;
    f.score = f.sum + ATTENTION_ROWS * a->value_size;
    check((size_t)(f.score + ATTENTION_ROWS * ATTENTION_KEYS - p) * sizeof *p <= CPU_SCRATCH_BYTES,
          "head sizes %lld, %lld", (long long)a->size, (long long)a->value_size);
    return f;
}

/* Scores of a row become exp(score - maximum), 0 outside its keys, up to the last lane that the values
 * need; the running sums are rescaled. Whole lanes are computed, so no element is left to a scalar loop. */
static void block_softmax(Forward *f, int64_t r, KeyRange in, real scale, int64_t value_size) {
    real *s = f->score + r * ATTENTION_KEYS;
    int64_t first = in.from / LANES * LANES, end = (in.to + LANES - 1) / LANES * LANES;
    for (int64_t j = first; j < end; j++) s[j] *= scale;
    for (int64_t j = first; j < in.from; j++) s[j] = -(real)INFINITY;
    for (int64_t j = in.to; j < end; j++) s[j] = -(real)INFINITY;
    real largest = lanes_largest(s + first, end - first, f->largest[r]);
    for (int64_t j = first; j < end; j++) s[j] = exp_real(s[j] - largest);
    Lanes sum = {0};
    lanes_add(&sum, s + first, end - first);
    real shrink = largest > f->largest[r] ? exp_real(f->largest[r] - largest) : 1;
    f->largest[r] = largest;
    f->total[r] = fma_real(f->total[r], shrink, lanes_total(&sum));
    if (shrink == 1) return; /* multiplying would change nothing */
    for (int64_t c = 0; c < value_size; c++) f->sum[r * value_size + c] *= shrink;
}

/* Rows [r, r + g.n): scores, softmax, values. Each row takes its keys in order; those that all share go as
 * a tile. */
static void forward_group(Forward *f, const Attention *a, const RowGroup *g, int64_t r) {
    Product scores = {f->score, ATTENTION_KEYS, {f->query, a->size, 1},
                      f->key_t, ATTENTION_KEYS, {0, a->size}};
    Product values = {f->sum, a->value_size, {f->score, ATTENTION_KEYS, 1}, f->value, a->value_size, {0, 0}};
    int64_t width = a->value_size;
    memset(f->score + r * ATTENTION_KEYS, 0, (size_t)(g->n * ATTENTION_KEYS) * sizeof(real));
    attention_product(&scores, r, g->n, attention_columns(g->hull));
    for (int64_t i = 0; i < g->n; i++)
        if (g->row[i].from < g->row[i].to) block_softmax(f, r + i, g->row[i], a->scale, width);
    KeyRange common = g->common.from < g->common.to ? g->common : (KeyRange){ATTENTION_KEYS, ATTENTION_KEYS};
    for (int64_t i = 0; i < g->n; i++) {
        values.k = (KeyRange){g->row[i].from, least(common.from, g->row[i].to)};
        attention_product(&values, r + i, 1, width);
    }
    values.k = common;
    attention_product(&values, r, g->n, width);
    for (int64_t i = 0; i < g->n; i++) {
        values.k = (KeyRange){common.to, g->row[i].to};
        attention_product(&values, r + i, 1, width);
    }
}

static void forward_block(Forward *f, const Attention *a, Prompt b, int64_t kv_head, KeyRange rows,
                          int64_t k0) {
    int64_t n_keys = least(ATTENTION_KEYS, b.keys - k0);
    attention_pack_keys(f->key, a, a->key, b, kv_head, k0, n_keys);
    attention_transpose(f->key_t, f->key, n_keys, a->size);
    attention_pack_keys(f->value, a, a->value, b, kv_head, k0, n_keys);
    for (int64_t r = rows.from; r < rows.to; r += WIDE_ROWS) {
        RowGroup g = attention_group(a, b, r, rows.to - r, k0);
        if (g.hull.from < g.hull.to) forward_group(f, a, &g, r - rows.from);
    }
}

static void forward_item(Queue *q, Tensor out, Tensor lse, const Attention *a, Tensor sinks, int64_t p,
                         int64_t kv_head, int64_t first_row) {
    Prompt b = attention_prompt(a, p);
    KeyRange rows = {first_row, least(first_row + ATTENTION_ROWS, b.tokens * a->group)};
    int64_t n = rows.to - rows.from, width = a->value_size;
    if (n <= 0) return;
    Forward f = forward_memory(q, a);
    attention_pack_rows(f.query, a, a->query, b, kv_head, first_row, n);
    memset(f.sum, 0, (size_t)(n * width) * sizeof(real));
    for (int64_t r = 0; r < n; r++) {
        f.largest[r] = -(real)INFINITY;
        f.total[r] = 0;
        if (!tensor_present(sinks)) continue;
        read_piece(&f.largest[r], sinks, kv_head * a->group + (first_row + r) % a->group, 1);
        f.total[r] = 1;
    }
    int64_t first_key = attention_keys(a, b, rows.from).from / ATTENTION_KEYS * ATTENTION_KEYS;
    for (int64_t k0 = first_key; k0 < attention_keys(a, b, rows.to - 1).to; k0 += ATTENTION_KEYS)
        forward_block(&f, a, b, kv_head, rows, k0);
    for (int64_t r = 0; r < n; r++) {
        int64_t at = attention_row(a, b, kv_head, first_row + r);
        real share = 1 / f.total[r];
        for (int64_t c = 0; c < width; c++) f.sum[r * width + c] *= share;
        write_piece(out, at * width, f.sum + r * width, width);
        if (tensor_present(lse)) reals(lse)[at] = f.largest[r] + log_real(f.total[r]);
    }
}

void CPU_OP(attention)(Queue *q, Tensor out, Tensor lse, Tensor query, Tensor key, Tensor value, Spans spans,
                       Tensor sinks, float scale, int64_t window) {
    if (q->failed_op) return;
    Attention a = attention_of(query, key, value, spans, scale, window);
    check(tensor_columns(out) == a.value_size && tensor_rows(out) == tensor_rows(query), "out %lld x %lld",
          (long long)tensor_rows(out), (long long)tensor_columns(out));
    int64_t prompts = tensor_count(spans.kv_begin), most = attention_longest(&a, false) * a.group;
#pragma omp parallel for collapse(3) schedule(dynamic)
    for (int64_t p = 0; p < prompts; p++)
        for (int64_t j = 0; j < a.kv_heads; j++)
            for (int64_t r = 0; r < most; r += ATTENTION_ROWS) forward_item(q, out, lse, &a, sinks, p, j, r);
}

/* The gradients of attention, from the saved log-sum-exp (arXiv 2205.14135, algorithm 4). With p =
 * exp(scale q k - lse), delta = dout . out:  ds = scale p (dout . v - delta),  dq += ds k,  dk += ds^T q,
 * dv += p^T dout.
 *
 * Two passes, so that no sum is shared among threads: one over query rows for dq (key blocks in order),
 * one over keys for dk and dv (query blocks in order, the heads of a group inside a token). Scores are
 * computed in both. */
#include "../math.h"
#include "attention.h"

typedef struct {
    real *query, *dout, *key, *key_t, *value, *value_t, *p, *ds, *sum, *value_sum;
    real delta[ATTENTION_ROWS], lse[ATTENTION_ROWS];
} Backward;

/* The tensors of a call beside the attention itself. */
typedef struct {
    Tensor dquery, dkey, dvalue, dout, out, lse;
} Gradients;

static Backward backward_memory(Queue *q, const Attention *a) {
    real *p = cpu_scratch(q), *start = p;
    Backward b;
    b.query = p, p += ATTENTION_ROWS * a->size;
    b.dout = p, p += ATTENTION_ROWS * a->value_size;
    b.key = p, p += ATTENTION_KEYS * a->size;
    b.key_t = p, p += ATTENTION_KEYS * a->size;
    b.value = p, p += ATTENTION_KEYS * a->value_size;
    b.value_t = p, p += ATTENTION_KEYS * a->value_size;
    b.sum = p, p += ATTENTION_ROWS * a->size; /* of rows, or of the fewer keys */
    b.value_sum = p, p += ATTENTION_KEYS * a->value_size;
    b.p = p, p += ATTENTION_ROWS * ATTENTION_KEYS;
    b.ds = p, p += ATTENTION_ROWS * ATTENTION_KEYS;
    _Static_assert(ATTENTION_ROWS >= ATTENTION_KEYS, "sum holds either");
    check((size_t)(p - start) * sizeof *p <= CPU_SCRATCH_BYTES, "head sizes %lld, %lld", (long long)a->size,
          (long long)a->value_size);
    return b;
}

/* Rows [r0, r0 + n): query, dout, lse and delta. */
static void load_rows(Backward *w, const Attention *a, const Gradients *g, Prompt b, int64_t kv_head,
                      int64_t r0, int64_t n) {
    attention_pack_rows(w->query, a, a->query, b, kv_head, r0, n);
    attention_pack_rows(w->dout, a, g->dout, b, kv_head, r0, n);
    for (int64_t r = 0; r < n; r++) {
        real row[ATTENTION_MOST];
        int64_t at = attention_row(a, b, kv_head, r0 + r);
        Lanes sum = {0};
        read_piece(row, g->out, at * a->value_size, a->value_size);
        lanes_dot(&sum, row, w->dout + r * a->value_size, a->value_size);
        w->delta[r] = lanes_total(&sum);
        w->lse[r] = reals(g->lse)[at];
    }
}

static void load_keys(Backward *w, const Attention *a, Prompt b, int64_t kv_head, int64_t k0) {
    int64_t n = least(ATTENTION_KEYS, b.keys - k0);
    attention_pack_keys(w->key, a, a->key, b, kv_head, k0, n);
    attention_transpose(w->key_t, w->key, n, a->size);
    attention_pack_keys(w->value, a, a->value, b, kv_head, k0, n);
    attention_transpose(w->value_t, w->value, n, a->value_size);
}

/* p and ds of a row: p holds the scores, ds dout . v; 0 outside the row's keys. */
static void row_gradients(Backward *w, int64_t r, KeyRange in, real scale) {
    real *p = w->p + r * ATTENTION_KEYS, *ds = w->ds + r * ATTENTION_KEYS, lse = w->lse[r],
         delta = w->delta[r];
    int64_t first = in.from / LANES * LANES, end = (in.to + LANES - 1) / LANES * LANES;
    for (int64_t j = first; j < end; j++) {
        p[j] = exp_real(fma_real(p[j], scale, -lse));
        ds[j] = scale * p[j] * (ds[j] - delta);
    }
    for (int64_t j = 0; j < in.from; j++) p[j] = ds[j] = 0;
    for (int64_t j = in.to > in.from ? in.to : in.from; j < ATTENTION_KEYS; j++) p[j] = ds[j] = 0;
}

/* p and ds of n rows from r0 against the loaded keys from k0. */
static void block_gradients(Backward *w, const Attention *a, Prompt b, int64_t r0, int64_t n, int64_t k0) {
    size_t size = (size_t)(n * ATTENTION_KEYS) * sizeof(real);
    memset(w->p, 0, size);
    memset(w->ds, 0, size);
    Product scores = {w->p, ATTENTION_KEYS, {w->query, a->size, 1}, w->key_t, ATTENTION_KEYS, {0, a->size}};
    Product slopes = {w->ds,      ATTENTION_KEYS, {w->dout, a->value_size, 1},
                      w->value_t, ATTENTION_KEYS, {0, a->value_size}};
    for (int64_t r = 0; r < n; r += WIDE_ROWS) {
        RowGroup g = attention_group(a, b, r0 + r, n - r, k0);
        if (g.hull.from >= g.hull.to) continue;
        attention_product(&scores, r, g.n, attention_columns(g.hull));
        attention_product(&slopes, r, g.n, attention_columns(g.hull));
        for (int64_t i = 0; i < g.n; i++) row_gradients(w, r + i, g.row[i], a->scale);
    }
}

/* sum[r] += ds[r] . keys, over the keys that a group of rows sees. */
static void query_sums(Backward *w, const Attention *a, Prompt b, int64_t r0, int64_t n, int64_t k0) {
    Product p = {w->sum, a->size, {w->ds, ATTENTION_KEYS, 1}, w->key, a->size, {0, 0}};
    for (int64_t r = 0; r < n; r += WIDE_ROWS) {
        RowGroup g = attention_group(a, b, r0 + r, n - r, k0);
        p.k = g.hull;
        attention_product(&p, r, g.n, a->size);
    }
}

/* sum[key] += ds^T query and value_sum[key] += p^T dout, over the rows of the block that may see a group
 * of keys. */
static void key_sums(Backward *w, const Attention *a, Prompt b, int64_t r0, int64_t n, int64_t k0,
                     int64_t n_keys) {
    Product keys = {w->sum, a->size, {w->ds, 1, ATTENTION_KEYS}, w->query, a->size, {0, n}};
    Product values = {w->value_sum, a->value_size, {w->p, 1, ATTENTION_KEYS}, w->dout, a->value_size, {0, n}};
    for (int64_t j = 0; j < n_keys; j += WIDE_ROWS) {
        int64_t first = (k0 + j - (b.keys - b.tokens)) * a->group - r0; /* no earlier row sees key j */
        keys.k.from = values.k.from = first > 0 ? first : 0;
        attention_product(&keys, j, least(WIDE_ROWS, n_keys - j), a->size);
        attention_product(&values, j, least(WIDE_ROWS, n_keys - j), a->value_size);
    }
}

/* to[at..] += from[0..n) */
static void add_piece(Tensor to, int64_t at, const real *from, int64_t n) {
    real sum[ATTENTION_MOST];
    read_piece(sum, to, at, n);
    for (int64_t i = 0; i < n; i++) sum[i] += from[i];
    write_piece(to, at, sum, n);
}

static void query_item(Queue *q, const Attention *a, const Gradients *g, int64_t p, int64_t kv_head,
                       int64_t r0) {
    Prompt b = attention_prompt(a, p);
    int64_t n = least(ATTENTION_ROWS, b.tokens * a->group - r0);
    if (n <= 0) return;
    Backward w = backward_memory(q, a);
    load_rows(&w, a, g, b, kv_head, r0, n);
    memset(w.sum, 0, (size_t)(n * a->size) * sizeof(real));
    int64_t k0 = attention_keys(a, b, r0).from / ATTENTION_KEYS * ATTENTION_KEYS;
    for (; k0 < attention_keys(a, b, r0 + n - 1).to; k0 += ATTENTION_KEYS) {
        load_keys(&w, a, b, kv_head, k0);
        block_gradients(&w, a, b, r0, n, k0);
        query_sums(&w, a, b, r0, n, k0);
    }
    for (int64_t r = 0; r < n; r++)
        add_piece(g->dquery, attention_row(a, b, kv_head, r0 + r) * a->size, w.sum + r * a->size, a->size);
}

static void key_item(Queue *q, const Attention *a, const Gradients *g, int64_t p, int64_t kv_head,
                     int64_t k0) {
    Prompt b = attention_prompt(a, p);
    int64_t n_keys = least(ATTENTION_KEYS, b.keys - k0), rows = b.tokens * a->group;
    if (n_keys <= 0) return;
    Backward w = backward_memory(q, a);
    load_keys(&w, a, b, kv_head, k0);
    memset(w.sum, 0, (size_t)(n_keys * a->size) * sizeof(real));
    memset(w.value_sum, 0, (size_t)(n_keys * a->value_size) * sizeof(real));
    for (int64_t r0 = 0; r0 < rows; r0 += ATTENTION_ROWS) {
        int64_t n = least(ATTENTION_ROWS, rows - r0);
        if (attention_keys(a, b, r0 + n - 1).to <= k0) continue;
        if (attention_keys(a, b, r0).from >= k0 + n_keys) break;
        load_rows(&w, a, g, b, kv_head, r0, n);
        block_gradients(&w, a, b, r0, n, k0);
        key_sums(&w, a, b, r0, n, k0, n_keys);
    }
    for (int64_t j = 0; j < n_keys; j++) {
        int64_t at = (b.first_key + k0 + j) * a->kv_heads + kv_head;
        if (tensor_present(g->dkey)) add_piece(g->dkey, at * a->size, w.sum + j * a->size, a->size);
        if (tensor_present(g->dvalue))
            add_piece(g->dvalue, at * a->value_size, w.value_sum + j * a->value_size, a->value_size);
    }
}

void CPU_OP(attention_bwd)(Queue *q, Tensor dquery, Tensor dkey, Tensor dvalue, Tensor dout, Tensor out,
                           Tensor lse, Tensor query, Tensor key, Tensor value, Spans spans, float scale,
                           int64_t window) {
    if (q->failed_op) return;
    Attention a = attention_of(query, key, value, spans, scale, window);
    Gradients g = {dquery, dkey, dvalue, dout, out, lse};
    check(tensor_count(dout) == tensor_count(out) && tensor_count(lse) == tensor_rows(query), "%lld rows",
          (long long)tensor_count(lse));
    int64_t prompts = tensor_count(spans.kv_begin), rows = attention_longest(&a, false) * a.group;
    int64_t keys = attention_longest(&a, true);
    if (tensor_present(dquery)) {
#pragma omp parallel for collapse(3) schedule(dynamic)
        for (int64_t p = 0; p < prompts; p++)
            for (int64_t j = 0; j < a.kv_heads; j++)
                for (int64_t r = 0; r < rows; r += ATTENTION_ROWS) query_item(q, &a, &g, p, j, r);
    }
    if (tensor_present(dkey) || tensor_present(dvalue)) {
#pragma omp parallel for collapse(3) schedule(dynamic)
        for (int64_t p = 0; p < prompts; p++)
            for (int64_t j = 0; j < a.kv_heads; j++)
                for (int64_t k = 0; k < keys; k += ATTENTION_KEYS) key_item(q, &a, &g, p, j, k);
    }
}

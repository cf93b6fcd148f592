/* The gradients of attention, from the saved log-sum-exp (arXiv 2205.14135, algorithm 4). With p = exp(scale q k - lse),
 * delta = dout . out:  ds = scale p (dout . v - delta),  dq += ds k,  dk += ds^T q,  dv += p^T dout.
 *
 * Two passes, so that no sum is shared among threads: one over query rows for dq (key blocks in order), one over keys
 * for dk and dv (query blocks in order, the heads of a group inside a token). Scores are computed in both. */
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
    int64_t block = ATTENTION_ROWS * a->size, value_block = ATTENTION_ROWS * a->value_size;
    b.query = p, p += block;
    b.dout = p, p += value_block;
    b.key = p, p += block;
    b.key_t = p, p += block;
    b.value = p, p += value_block;
    b.value_t = p, p += value_block;
    b.sum = p, p += block;
    b.value_sum = p, p += value_block;
    b.p = p, p += ATTENTION_ROWS * ATTENTION_KEYS;
    b.ds = p, p += ATTENTION_ROWS * ATTENTION_KEYS;
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

/* p and ds of n rows from r0 against the loaded keys from k0; 0 where a row does not see a key. */
static void block_gradients(Backward *w, const Attention *a, Prompt b, int64_t r0, int64_t n, int64_t k0) {
    size_t size = (size_t)(n * ATTENTION_KEYS) * sizeof(real);
    memset(w->p, 0, size);
    memset(w->ds, 0, size);
    attention_product(w->p, ATTENTION_KEYS, (Packed){w->query, a->size, 1}, w->key_t, ATTENTION_KEYS, n,
                      (KeyRange){0, a->size}, ATTENTION_KEYS);
    attention_product(w->ds, ATTENTION_KEYS, (Packed){w->dout, a->value_size, 1}, w->value_t, ATTENTION_KEYS,
                      n, (KeyRange){0, a->value_size}, ATTENTION_KEYS);
    for (int64_t r = 0; r < n; r++) {
        KeyRange in = attention_keys(a, b, r0 + r);
        real *p = w->p + r * ATTENTION_KEYS, *ds = w->ds + r * ATTENTION_KEYS;
        for (int64_t j = 0; j < ATTENTION_KEYS; j++) {
            bool seen = k0 + j >= in.from && k0 + j < in.to;
            real share = exp_real(fma_real(p[j], a->scale, -w->lse[r]));
            p[j] = seen ? share : 0;
            ds[j] = seen ? a->scale * share * (ds[j] - w->delta[r]) : 0;
        }
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
        attention_product(w.sum, a->size, (Packed){w.ds, ATTENTION_KEYS, 1}, w.key, a->size, n,
                          (KeyRange){0, least(ATTENTION_KEYS, b.keys - k0)}, a->size);
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
        attention_product(w.sum, a->size, (Packed){w.ds, 1, ATTENTION_KEYS}, w.query, a->size, n_keys,
                          (KeyRange){0, n}, a->size);
        attention_product(w.value_sum, a->value_size, (Packed){w.p, 1, ATTENTION_KEYS}, w.dout, a->value_size,
                          n_keys, (KeyRange){0, n}, a->value_size);
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

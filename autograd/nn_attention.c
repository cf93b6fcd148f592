/* Norm, rotary embedding, attention. Heads lie side by side in a row; the ops see them as a third
 * dimension. */
#include "../kernels/check.h"
#include "nn.h"

/* Seen with rows of n elements. */
static Tensor in_rows_of(Tensor t, int64_t n) {
    return tensor_present(t) ? tensor_as_matrix(t, tensor_count(t) / n, n) : t;
}

/* [T,N] seen as [T,heads,N/heads] */
static Tensor by_head(Tensor t, int64_t heads) {
    return tensor_present(t) ? tensor_as_cube(t, tensor_rows(t), heads, tensor_columns(t) / heads) : t;
}

/* in: x; saved: w */
static void rmsnorm_back(Context *c, const Step *s) {
    int64_t n = tensor_count(s->saved[0]);
    Tensor dy = in_rows_of(tape_grad(c, s->out), n), dx = in_rows_of(tape_grad(c, s->in[0]), n);
    c->device->ops->rmsnorm_bwd(c->queue, dx, dy, in_rows_of(s->in[0]->x, n), s->saved[0], s->of.eps);
}

Var *nn_rmsnorm(Context *c, Var *x, Tensor w, float eps) {
    int64_t n = tensor_count(w);
    check(tensor_columns(x->x) % n == 0, "%lld columns, %lld weights", (long long)tensor_columns(x->x),
          (long long)n);
    Step step = {.backward = rmsnorm_back, .in = {x}, .saved = {w}, .of.eps = eps};
    Var *y = tape_record(c, NULL, c->act, tensor_rows(x->x), tensor_columns(x->x), step);
    c->device->ops->rmsnorm(c->queue, in_rows_of(y->x, n), in_rows_of(x->x, n), w, eps);
    return y;
}

/* in: x; saved: positions, frequencies */
static void rope_back(Context *c, const Step *s) {
    int64_t heads = tensor_columns(s->out->x) / s->of.rope.head_size;
    Tensor dy = by_head(tape_grad(c, s->out), heads), dx = by_head(tape_grad(c, s->in[0]), heads);
    c->device->ops->rope_bwd(c->queue, dx, dy, s->saved[0], s->saved[1], s->of.rope.scale, s->of.rope.kind);
}

Var *nn_rope(Context *c, Var *x, Rope rope) {
    int64_t rows = tensor_rows(x->x), columns = tensor_columns(x->x), heads = columns / rope.head_size;
    check(columns % rope.head_size == 0 && tensor_count(rope.positions) == rows,
          "[%lld,%lld], heads of %lld, %lld positions", (long long)rows, (long long)columns,
          (long long)rope.head_size, (long long)tensor_count(rope.positions));
    Step step = {.backward = rope_back,
                 .in = {x},
                 .saved = {rope.positions, rope.frequencies},
                 .of.rope = {rope.scale, rope.kind, rope.head_size}};
    Var *y = tape_record(c, tape_leaf(c, x->x, false), c->act, rows, columns, step);
    c->device->ops->rope(c->queue, by_head(y->x, heads), by_head(x->x, heads), rope.positions,
                         rope.frequencies, rope.scale, rope.kind);
    return y;
}

/* in: query, key, value; saved: lse */
static void attention_back(Context *c, const Step *s) {
    int64_t heads = s->of.attention.heads, kv_heads = s->of.attention.kv_heads;
    Tensor dout = by_head(tape_grad(c, s->out), heads);
    Tensor dquery = by_head(tape_grad(c, s->in[0]), heads);
    Tensor dkey = by_head(tape_grad(c, s->in[1]), kv_heads),
           dvalue = by_head(tape_grad(c, s->in[2]), kv_heads);
    c->device->ops->attention_bwd(c->queue, dquery, dkey, dvalue, dout, by_head(s->out->x, heads),
                                  s->saved[0], by_head(s->in[0]->x, heads), by_head(s->in[1]->x, kv_heads),
                                  by_head(s->in[2]->x, kv_heads), s->of.attention.spans,
                                  s->of.attention.scale, s->of.attention.window);
}

Var *nn_attention(Context *c, Var *place, Tensor lse, Var *query, Var *key, Var *value, AttentionRule rule) {
    int64_t rows = tensor_rows(query->x), h = rule.heads, j = rule.kv_heads;
    int64_t size = tensor_columns(query->x) / h, value_size = tensor_columns(value->x) / j;
    check(tensor_columns(query->x) == h * size && tensor_columns(key->x) == j * size &&
              tensor_rows(key->x) == tensor_rows(value->x),
          "query %lld, key %lld, value %lld columns, heads %lld and %lld",
          (long long)tensor_columns(query->x), (long long)tensor_columns(key->x),
          (long long)tensor_columns(value->x), (long long)h, (long long)j);
    Step step = {.backward = attention_back, .in = {query, key, value}, .saved = {lse}};
    step.of.attention.spans = rule.spans;
    step.of.attention.scale = rule.scale, step.of.attention.window = rule.window;
    step.of.attention.heads = h, step.of.attention.kv_heads = j;
    Var *out = tape_record(c, place, c->act, rows, h * value_size, step);
    check(!c->tape || !out->wanted || tensor_present(lse), "attention to walk back without lse, %lld rows",
          (long long)rows);
    if (!tape_has_value(c, place))
        c->device->ops->attention(c->queue, by_head(out->x, h), lse, by_head(query->x, h), by_head(key->x, j),
                                  by_head(value->x, j), rule.spans, rule.sinks, rule.scale, rule.window);
    return out;
}

/* Embedding, linear maps, SwiGLU, and the loss over the vocabulary. A linear map's backward needs its weight
 * alone, so its input need not be kept for it. */
#include "../kernels/check.h"
#include "nn.h"

Var *nn_embed(Context *c, Var *place, Tensor ids, Tensor table, bool wanted) {
    int64_t rows = tensor_count(ids), columns = tensor_columns(table);
    Var *y = tape_record(c, place, c->act, rows, columns, (Step){0});
    y->wanted = wanted;
    c->device->ops->embed(c->queue, y->x, ids, table);
    return y;
}

/* in: x, residual; saved: w */
static void linear_back(Context *c, const Step *s) {
    Var *x = s->in[0], *residual = s->in[1];
    Tensor dy = tape_grad(c, s->out);
    if (x->wanted) c->device->ops->dense_bwd(c->queue, tape_grad(c, x), dy, s->saved[0]);
    tape_pass_grad(c, residual, s->out);
}

static Var *linear(Context *c, Var *place, DType dtype, Var *x, Tensor w, Tensor bias, Var *residual) {
    int64_t rows = tensor_rows(x->x), n = tensor_rows(w);
    check(tensor_columns(x->x) == tensor_columns(w), "x [%lld,%lld], w [%lld,%lld]", (long long)rows,
          (long long)tensor_columns(x->x), (long long)n, (long long)tensor_columns(w));
    Step step = {.backward = linear_back, .in = {x, residual}, .saved = {w}};
    Var *y = tape_record(c, place, dtype, rows, n, step);
    if (!tape_has_value(c, place))
        c->device->ops->dense(c->queue, y->x, x->x, w, bias, residual ? residual->x : (Tensor){0});
    return y;
}

Var *nn_linear(Context *c, Var *x, Tensor w, Tensor bias) {
    return linear(c, NULL, c->act, x, w, bias, NULL);
}

Var *nn_linear_real(Context *c, Var *x, Tensor w, Tensor bias) {
    return linear(c, NULL, c->real, x, w, bias, NULL);
}

Var *nn_linear_add(Context *c, Var *place, Var *x, Tensor w, Tensor bias, Var *residual) {
    return linear(c, place, c->act, x, w, bias, residual);
}

static void swiglu_back(Context *c, const Step *s) {
    Tensor dh = tape_grad(c, s->out);
    c->device->ops->swiglu_bwd(c->queue, tape_grad(c, s->in[0]), dh, s->in[0]->x, s->of.activation);
}

Var *nn_swiglu(Context *c, Var *z, Activation activation) {
    check(tensor_columns(z->x) % 2 == 0, "z of %lld columns", (long long)tensor_columns(z->x));
    Step step = {.backward = swiglu_back, .in = {z}, .of.activation = activation};
    Var *h = tape_record(c, NULL, c->act, tensor_rows(z->x), tensor_columns(z->x) / 2, step);
    c->device->ops->swiglu(c->queue, h->x, z->x, activation);
    return h;
}

/* ---- the loss ---- */
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static Tensor loss_scratch(Context *c, Tensor x, Tensor head) {
    return tape_matrix(c, c->real, least(tensor_rows(x), LOSS_ROWS), least(tensor_rows(head), LOSS_COLUMNS));
}

/* in: x; saved: head, bias, targets, lse */
static void cross_entropy_back(Context *c, const Step *s) {
    Tensor dnll = tape_grad(c, s->out), dx = tape_grad(c, s->in[0]), x = s->in[0]->x, lse = s->saved[3];
    int64_t rows = tensor_rows(x);
    Scope scope = scope_open(c);
    Tensor scratch = loss_scratch(c, x, s->saved[0]);
    for (int64_t t = 0; t < rows; t += LOSS_ROWS) {
        int64_t n = least(LOSS_ROWS, rows - t);
        c->device->ops->cross_entropy_bwd(c->queue, tensor_slice(dx, t, n), tensor_slice(scratch, 0, n),
                                          tensor_slice(dnll, t, n), tensor_slice(lse, t, n),
                                          tensor_slice(x, t, n), s->saved[0], s->saved[1],
                                          tensor_slice(s->saved[2], t, n));
    }
    scope_close(c, scope);
}

Var *nn_cross_entropy(Context *c, Var *x, Tensor head, Tensor bias, Tensor targets) {
    int64_t rows = tensor_rows(x->x);
    check(tensor_columns(x->x) == tensor_columns(head) && tensor_count(targets) == rows,
          "x [%lld,%lld], head [%lld,%lld], %lld targets", (long long)rows, (long long)tensor_columns(x->x),
          (long long)tensor_rows(head), (long long)tensor_columns(head), (long long)tensor_count(targets));
    Var *nll = tape_leaf(c, tape_vector(c, c->real, rows), false);
    Tensor lse = tape_vector(c, c->real, rows);
    Step step = {.backward = cross_entropy_back, .in = {x}, .saved = {head, bias, targets, lse}};
    tape_record(c, nll, c->real, rows, 1, step);
    Scope scope = scope_open(c);
    Tensor scratch = loss_scratch(c, x->x, head);
    for (int64_t t = 0; t < rows; t += LOSS_ROWS) {
        int64_t n = least(LOSS_ROWS, rows - t);
        c->device->ops->cross_entropy(c->queue, tensor_slice(nll->x, t, n), tensor_slice(lse, t, n),
                                      tensor_slice(scratch, 0, n), tensor_slice(x->x, t, n), head, bias,
                                      tensor_slice(targets, t, n));
    }
    scope_close(c, scope);
    return nll;
}

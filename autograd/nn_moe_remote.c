/* Experts that lie on other ranks: a row of x for each pair goes out, a result comes back, and the sum over a
 * token's choices is taken here, in their order, as it is where nothing travels. So what a token gets has the
 * same bits wherever its experts are.
 *
 * Nothing is kept for the walk but the choices: it sends the rows once more, with the gradients of the
 * results. The terms of the gradient of x come back one by one, unrounded, and are summed here. */
#include "../kernels/check.h"
#include "nn.h"

/* The rows of pairs, from rows of tokens or of pairs. */
static Tensor take(Context *c, Tensor from, Tensor index) {
    Tensor rows = tape_matrix(c, from.dtype, tensor_count(index), tensor_columns(from));
    c->device->ops->gather_rows(c->queue, rows, from, index);
    return rows;
}

static Tensor as_column(Tensor t) { return tensor_present(t) ? tensor_as_matrix(t, tensor_count(t), 1) : t; }

/* in: x, weights, residual; saved: ids */
static void remote_back(Context *c, const Step *s) {
    const Ops *ops = c->device->ops;
    const RemoteExperts *remote = s->of.remote.experts;
    Var *x = s->in[0], *weights = s->in[1];
    Tensor dout = tape_grad(c, s->out), dx = tape_grad(c, x), dweights = tape_grad(c, weights);
    const int64_t pairs = tensor_count(s->saved[0]);
    Scope scope = scope_open(c);
    TravelOrder order;
    remote->arrange(remote, c, s->saved[0], &order);
    TravelGradients g = {.x = take(c, x->x, order.tokens),
                         .dout = take(c, dout, order.tokens),
                         .weights = take(c, as_column(weights->x), order.pairs),
                         .dweights = tape_matrix(c, c->real, pairs, 1)};
    for (int i = 0; tensor_present(dx) && i < N_TRAVEL_TERMS; i++)
        if (i == TRAVEL_PRODUCT || experts_updated(s->of.remote.updates, travel_projection(i)))
            g.dx[i] = tape_matrix(c, c->real, pairs, tensor_columns(dx));
    remote->backward(remote, c, &g);
    for (int i = 0; i < N_TRAVEL_TERMS; i++)
        if (tensor_present(g.dx[i])) ops->moe_add_rows(c->queue, dx, g.dx[i], (MoePlan){.rows = order.rows});
    if (tensor_present(dweights))
        ops->gather_rows_bwd(c->queue, as_column(dweights), g.dweights, order.pairs);
    scope_close(c, scope);
    tape_pass_grad(c, s->in[2], s->out);
}

Var *nn_moe_remote(Context *c, Var *place, Tensor *outputs, Routed routed, Var *residual, Experts e) {
    const Ops *ops = c->device->ops;
    const int64_t tokens = tensor_rows(e.x->x), columns = tensor_columns(e.x->x),
                  pairs = tensor_count(routed.ids);
    check(tensor_rows(routed.ids) == tokens && tensor_count(routed.weights->x) == pairs,
          "x [%lld,%lld], %lld choices", (long long)tokens, (long long)columns, (long long)pairs);
    for (int p = 0; e.updates && p < N_PROJECTIONS; p++)
        check(!tensor_present(e.updates->sums[p].a) && !tensor_present(e.updates->dropout_keys),
              "training of experts on other ranks, projection %d", p);
    Step step = {.backward = remote_back, .in = {e.x, routed.weights, residual}, .saved = {routed.ids}};
    step.of.remote.experts = e.remote, step.of.remote.updates = e.updates;
    Var *out = tape_record(c, place, c->act, tokens, columns, step);
    if (tape_has_value(c, place)) return out;
    TravelOrder order;
    e.remote->arrange(e.remote, c, routed.ids, &order);
    Tensor rows = take(c, e.x->x, order.tokens), results = tape_matrix(c, c->act, pairs, columns);
    e.remote->forward(e.remote, c, results, rows);
    ops->moe_combine(c->queue, out->x, results, routed.weights->x, residual->x,
                     (MoePlan){.rows = order.rows});
    if (outputs) *outputs = take(c, results, order.by_plan);
    return out;
}

/* What a training does to routers: rows added to theirs, and losses on their distributions. Values of these
 * are no one's input: a caller that wants their gradient gives the values one. */
#include "../kernels/check.h"
#include "nn.h"

static void check_place(const Var *place, const Var *logits, Tensor other, int64_t n_other) {
    check(tensor_count(place->x) == tensor_rows(logits->x) && tensor_count(other) == n_other,
          "%lld values, logits [%lld,%lld], %lld beside them", (long long)tensor_count(place->x),
          (long long)tensor_rows(logits->x), (long long)tensor_columns(logits->x),
          (long long)tensor_count(other));
}

/* in: logits; saved: frozen */
static void router_kl_back(Context *c, const Step *s) {
    c->device->ops->router_kl_bwd(c->queue, tape_grad(c, s->in[0]), s->out->g, s->in[0]->x, s->saved[0],
                                  s->of.temperature);
}

void nn_router_kl(Context *c, Var *place, Var *logits, Tensor frozen, float temperature) {
    check_place(place, logits, frozen, tensor_count(logits->x));
    Step step = {.backward = router_kl_back, .in = {logits}, .saved = {frozen}};
    step.of.temperature = temperature;
    tape_record(c, place, c->real, tensor_rows(logits->x), 1, step);
    if (!tape_has_value(c, place))
        c->device->ops->router_kl(c->queue, place->x, logits->x, frozen, temperature);
}

/* in: logits; saved: aim */
static void router_anchor_back(Context *c, const Step *s) {
    c->device->ops->router_anchor_bwd(c->queue, tape_grad(c, s->in[0]), s->out->g, s->in[0]->x, s->saved[0]);
}

void nn_router_anchor(Context *c, Var *place, Var *logits, Tensor aim) {
    check_place(place, logits, aim, tensor_columns(logits->x));
    Step step = {.backward = router_anchor_back, .in = {logits}, .saved = {aim}};
    tape_record(c, place, c->real, tensor_rows(logits->x), 1, step);
    if (!tape_has_value(c, place)) c->device->ops->router_anchor(c->queue, place->x, logits->x, aim);
}

/* in: x; out: logits, whose gradient is complete and goes on to the router itself */
static void router_rows_back(Context *c, const Step *s) {
    const RouterRows *r = s->of.router_rows;
    c->device->ops->router_rows_bwd(c->queue, tape_grad(c, s->in[0]), r->sums, tape_grad(c, s->out),
                                    s->in[0]->x, r->experts, r->rows);
}

void nn_router_rows(Context *c, Var *logits, Var *x, const RouterRows *rows) {
    check(tensor_columns(x->x) == tensor_columns(rows->rows) && tensor_rows(x->x) == tensor_rows(logits->x),
          "x [%lld,%lld], rows [.,%lld]", (long long)tensor_rows(x->x), (long long)tensor_columns(x->x),
          (long long)tensor_columns(rows->rows));
    Step step = {.backward = router_rows_back, .in = {x}, .trains = tensor_present(rows->sums.a)};
    step.of.router_rows = rows;
    tape_record(c, logits, c->real, tensor_rows(logits->x), tensor_columns(logits->x), step);
    c->device->ops->router_rows(c->queue, logits->x, x->x, rows->experts, rows->rows);
}

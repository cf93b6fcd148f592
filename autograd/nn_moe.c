/* Router and experts. Nothing between z and the layer's output is kept for the walk: the gradient of a
 * combine weight is h . (down^T dout), which moe_hidden_bwd gets from z, so neither h nor the experts'
 * outputs are needed again. Only the gradient of an updated down projection asks for h, which is
 * made from z then. */
#include "../kernels/check.h"
#include "nn.h"

/* in: logits; saved: probs, ids */
static void route_back(Context *c, const Step *s) {
    Tensor dweights = tape_grad(c, s->out);
    c->device->ops->route_bwd(c->queue, tape_grad(c, s->in[0]), dweights, s->saved[0], s->saved[1], s->out->x,
                              s->in[0]->x, s->of.route.edits, s->of.route.rule);
}

Routed nn_route(Context *c, Var *logits, RouteEdits edits, int64_t n_chosen, RouterRule rule) {
    int64_t rows = tensor_rows(logits->x), n_experts = tensor_columns(logits->x);
    check(n_chosen >= 1 && n_chosen <= n_experts, "%lld of %lld experts", (long long)n_chosen,
          (long long)n_experts);
    Routed r = {.probs = tape_matrix(c, c->real, rows, n_experts),
                .ids = tape_matrix(c, DTYPE_I32, rows, n_chosen)};
    Step step = {.backward = route_back, .in = {logits}, .saved = {r.probs, r.ids}};
    step.of.route.edits = edits, step.of.route.rule = rule;
    r.weights = tape_record(c, NULL, c->real, rows, n_chosen, step);
    c->device->ops->route(c->queue, r.probs, r.ids, r.weights->x, logits->x, edits, rule);
    return r;
}

MoePlan nn_moe_plan(Context *c, Tensor ids, int64_t n_experts) {
    MoePlan plan = {.offsets = tape_vector(c, DTYPE_I32, n_experts + 1),
                    .pairs = tape_vector(c, DTYPE_I32, tensor_count(ids)),
                    .rows = tape_matrix(c, DTYPE_I32, tensor_rows(ids), tensor_columns(ids)),
                    .alignment = 1};
    c->device->ops->moe_plan(c->queue, plan, ids);
    return plan;
}

/* ---- low-rank updates ---- */
static bool trains(const ExpertUpdates *u, Projection p) {
    return experts_updated(u, p) && tensor_present(u->sums[p].a);
}

static bool updates_z(const ExpertUpdates *u) {
    return experts_updated(u, PROJECTION_GATE) || experts_updated(u, PROJECTION_UP);
}

static DropoutRule dropout_of(const ExpertUpdates *u, Projection p) {
    return (DropoutRule){u->dropout_rate, u->dropout_id + (int)p * u->dropout_choices};
}
/* Rows of tokens need no plan. */
static MoePlan dropout_plan(Projection p, MoePlan plan) { return p == PROJECTION_DOWN ? plan : (MoePlan){0}; }

/* What an update reads of x: in the arena where elements are left out. */
static Tensor kept_input(Context *c, Tensor x, const ExpertUpdates *u, Projection p, MoePlan plan) {
    if (!tensor_present(u->dropout_keys)) return x;
    Tensor kept = tape_matrix(c, x.dtype, tensor_rows(x), tensor_columns(x));
    c->device->ops->dropout(c->queue, kept, x, u->dropout_keys, dropout_plan(p, plan), dropout_of(u, p));
    return kept;
}

static void add_update(Context *c, Tensor y, Tensor x, const ExpertUpdates *u, Projection p, MoePlan plan) {
    if (!experts_updated(u, p)) return;
    Scope scope = scope_open(c);
    c->device->ops->lora(c->queue, y, kept_input(c, x, u, p, plan), u->lora[p], plan);
    scope_close(c, scope);
}

/* z of all experts, updates included. */
static void compute_z(Context *c, Tensor z, const Experts *e) {
    c->device->ops->moe_gate_up(c->queue, z, e->x->x, e->gate_up, e->gate_up_bias, e->plan);
    add_update(c, z, e->x->x, e->updates, PROJECTION_GATE, e->plan);
    add_update(c, z, e->x->x, e->updates, PROJECTION_UP, e->plan);
}

static void update_back(Context *c, Tensor dx, Tensor dy, Tensor x, Tensor weights, const Step *s,
                        Projection p) {
    const ExpertUpdates *u = s->of.moe.updates;
    if (!experts_updated(u, p) || !(tensor_present(dx) || trains(u, p))) return;
    const int64_t rank = u->lora[p].a.shape[1];
    const MoePlan plan = s->of.moe.plan;
    const bool drops = tensor_present(u->dropout_keys) && tensor_present(dx);
    Scope scope = scope_open(c);
    Tensor scratch = tape_matrix(c, c->real, tensor_count(plan.pairs), 2 * rank), to = dx;
    if (drops) {
        to = tape_matrix(c, dx.dtype, tensor_rows(dx), tensor_columns(dx));
        c->device->zero(c->queue, to);
    }
    x = kept_input(c, x, u, p, plan);
    c->device->ops->lora_bwd(c->queue, to, u->sums[p], scratch, dy, x, u->lora[p], weights, plan);
    if (drops)
        c->device->ops->dropout_bwd(c->queue, dx, to, u->dropout_keys, dropout_plan(p, plan),
                                    dropout_of(u, p));
    scope_close(c, scope);
}

/* ---- from rows to z ---- */
/* in: x; saved: w */
static void gate_up_back(Context *c, const Step *s) {
    Var *x = s->in[0];
    Tensor dz = tape_grad(c, s->out), dx = tape_grad(c, x);
    if (tensor_present(dx)) {
        Scope scope = scope_open(c);
        Tensor scratch = tape_matrix(c, c->real, tensor_rows(dz), tensor_columns(dx));
        c->device->ops->moe_gate_up_bwd(c->queue, dx, scratch, dz, s->saved[0], s->of.moe.plan);
        scope_close(c, scope);
    }
    update_back(c, dx, dz, x->x, (Tensor){0}, s, PROJECTION_GATE);
    update_back(c, dx, dz, x->x, (Tensor){0}, s, PROJECTION_UP);
}

Var *nn_moe_gate_up(Context *c, Var *place, Experts e) {
    const Tensor w = e.gate_up;
    check(w.n_dims == 3 && w.shape[2] == tensor_columns(e.x->x) &&
              tensor_rows(e.plan.rows) == tensor_rows(e.x->x),
          "x [%lld,%lld], w of %d dimensions", (long long)tensor_rows(e.x->x),
          (long long)tensor_columns(e.x->x), w.n_dims);
    Step step = {.backward = gate_up_back, .in = {e.x}, .saved = {w}};
    step.of.moe.plan = e.plan, step.of.moe.updates = e.updates;
    step.trains = trains(e.updates, PROJECTION_GATE) || trains(e.updates, PROJECTION_UP);
    Var *z = tape_record(c, NULL, c->act, tensor_count(e.plan.pairs), w.shape[1], step);
    if (tape_has_value(c, place)) compute_z(c, z->x, &e);
    return z;
}

/* ---- from z to the layer's output ---- */
/* What moe_hidden_bwd does, with the update of down between its halves. */
static void updated_hidden_back(Context *c, const Step *s, Tensor dz, Tensor dweights, Tensor dout) {
    const Ops *ops = c->device->ops;
    const MoePlan plan = s->of.moe.plan;
    Tensor z = s->in[0]->x, weights = s->in[1]->x, da = {0};
    int64_t rows = tensor_rows(z), size = tensor_columns(z) / 2;
    if (tensor_present(dz) || tensor_present(dweights)) {
        da = tape_matrix(c, c->real, rows, size);
        ops->moe_down_bwd(c->queue, da, dweights, dout, s->saved[0], s->saved[1], plan);
    }
    Scope scope = scope_open(c);
    Tensor h = tape_matrix(c, c->act, rows, size);
    ops->swiglu(c->queue, h, z, s->of.moe.activation);
    update_back(c, da, dout, h, weights, s, PROJECTION_DOWN);
    scope_close(c, scope);
    if (tensor_present(da))
        ops->moe_swiglu_bwd(c->queue, dz, dweights, da, z, weights, plan, s->of.moe.activation);
}

/* in: z, weights, residual; saved: w, bias */
static void output_back(Context *c, const Step *s) {
    Var *z = s->in[0], *weights = s->in[1], *residual = s->in[2];
    Tensor dout = tape_grad(c, s->out), dweights = tape_grad(c, weights);
    Tensor dz = tape_grad_overwritten(c, z);
    Scope scope = scope_open(c);
    if (experts_updated(s->of.moe.updates, PROJECTION_DOWN)) {
        updated_hidden_back(c, s, dz, dweights, dout);
    } else {
        Tensor scratch = tape_matrix(c, c->real, tensor_rows(z->x), tensor_columns(z->x) / 2);
        c->device->ops->moe_hidden_bwd(c->queue, dz, dweights, scratch, dout, z->x, weights->x, s->saved[0],
                                       s->saved[1], s->of.moe.plan, s->of.moe.activation);
    }
    scope_close(c, scope);
    tape_pass_grad(c, residual, s->out);
}

/* h, and z where it is kept or updated. */
static void compute_hidden(Context *c, Tensor h, Tensor z, const Experts *e, bool keep) {
    const Ops *ops = c->device->ops;
    if (updates_z(e->updates)) {
        compute_z(c, z, e);
        ops->swiglu(c->queue, h, z, e->activation);
        return;
    }
    ops->moe_hidden(c->queue, h, z, e->x->x, e->gate_up, e->gate_up_bias, e->plan, e->activation, keep);
}

Var *nn_moe_output(Context *c, Var *place, Tensor *outputs, Var *z, Var *weights, Var *residual, Experts e) {
    int64_t pairs = tensor_rows(z->x), tokens = tensor_rows(weights->x), columns = e.down.shape[1];
    check(e.down.n_dims == 3 && 2 * e.down.shape[2] == tensor_columns(z->x) &&
              tensor_count(weights->x) == pairs,
          "z [%lld,%lld], %lld weights, w of %d dimensions", (long long)pairs,
          (long long)tensor_columns(z->x), (long long)tensor_count(weights->x), e.down.n_dims);
    Step step = {.backward = output_back, .in = {z, weights, residual}, .saved = {e.down, e.down_bias}};
    step.of.moe.plan = e.plan, step.of.moe.activation = e.activation, step.of.moe.updates = e.updates;
    step.trains = trains(e.updates, PROJECTION_DOWN);
    Var *out = tape_record(c, place, c->act, tokens, columns, step);
    *outputs = (Tensor){0};
    if (tape_has_value(c, place)) return out;
    const Ops *ops = c->device->ops;
    Tensor h = tape_matrix(c, c->act, pairs, tensor_columns(z->x) / 2);
    *outputs = tape_matrix(c, c->act, pairs, columns);
    const bool walked = c->tape && out->wanted; /* the weights of a layer may want z that nothing else does */
    compute_hidden(c, h, z->x, &e, walked);
    ops->moe_down(c->queue, *outputs, h, e.down, e.down_bias, e.plan);
    add_update(c, *outputs, h, e.updates, PROJECTION_DOWN, e.plan);
    ops->moe_combine(c->queue, out->x, *outputs, weights->x, residual->x, e.plan);
    return out;
}

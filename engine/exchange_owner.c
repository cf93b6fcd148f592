/* The owner's part of an exchange (exchange.h): rows come in, its experts run, results go back in the order
 * in which the rows came. A row is a token of one choice here.
 *
 * The plan is over all experts of the layer, of which this rank's alone get rows: so updates of experts find
 * theirs by the numbers that they have everywhere, and the products see the part of the offsets that is
 * theirs. */
#include "../kernels/check.h"
#include "exchange_parts.h"

/* NULL: rows lie in the host's memory. */
static Queue *transport_queue(const Exchange *e, Queue *queue) { return e->device->copies ? queue : NULL; }

/* Rows by all experts of the layer, as the numbers of updates have them; products see the own ones. */
typedef struct {
    MoePlan all, own;
    Tensor rows; /* [n] i32: where a row that came in stands */
} OwnerPlan;

Owner exchange_owner(const Model *model, int64_t layer, const Context *c) {
    Owner o = {.e = model->exchange,
               .config = &model->config,
               .weights = &model->weights.layers[layer],
               .c = {.device = c->device, .queue = c->queue, .act = c->act, .real = c->real}};
    const LoraPass frozen = {0};
    o.updated = lora_layer(model->adapter, &frozen, layer, &o.updates);
    return o;
}

static bool has_update(const Owner *o, Projection p) { return o->updated && experts_updated(&o->updates, p); }

static bool has_term(const Owner *o, int term) {
    return o->wants_dx && (term == TRAVEL_PRODUCT || has_update(o, travel_projection(term)));
}

static OwnerPlan make_plan(Owner *o) {
    Context *c = &o->c;
    Tensor ids = tape_upload(c, DTYPE_I32, o->n, o->e->received.data);
    OwnerPlan plan = {.all = nn_moe_plan(c, tensor_as_matrix(ids, o->n, 1), o->config->n_experts)};
    plan.own = plan.all;
    plan.own.offsets = tensor_slice(plan.all.offsets, o->e->own.first, o->e->own.n + 1);
    plan.rows = tensor_vector(plan.all.rows.data, DTYPE_I32, o->n);
    return plan;
}

/* Rows from all homes into the block. */
static Tensor receive(Owner *o, Tensor home) {
    Context *c = &o->c;
    Tensor rows = tape_matrix(c, home.dtype, o->n, tensor_columns(home));
    if (c->device->computes)
        comm_all_to_all(o->e->comm, transport_queue(o->e, c->queue), rows, o->e->in, home, o->e->out);
    return rows;
}

static void send_back(Owner *o, Tensor home, Tensor rows) {
    if (o->c.device->computes)
        comm_all_to_all(o->e->comm, transport_queue(o->e, o->c.queue), home, o->e->out, rows, o->e->in);
}

static void add_update(Owner *o, Tensor y, Tensor x, Projection p, const OwnerPlan *plan) {
    if (has_update(o, p)) o->c.device->ops->lora(o->c.queue, y, x, o->updates.lora[p], plan->all);
}

static Tensor compute_z(Owner *o, Tensor x, const OwnerPlan *plan) {
    Context *c = &o->c;
    Tensor z = tape_matrix(c, c->act, o->n, o->weights->gate_up.shape[1]);
    c->device->ops->moe_gate_up(c->queue, z, x, o->weights->gate_up, (Tensor){0}, plan->own);
    add_update(o, z, x, PROJECTION_GATE, plan);
    add_update(o, z, x, PROJECTION_UP, plan);
    return z;
}

/* The results take the place of the rows that came in. */
static void run_experts(Owner *o, Tensor x) {
    Context *c = &o->c;
    const Ops *ops = c->device->ops;
    const LayerWeights *w = o->weights;
    const OwnerPlan plan = make_plan(o);
    Tensor h = tape_matrix(c, c->act, o->n, w->down.shape[2]), z;
    if (has_update(o, PROJECTION_GATE) || has_update(o, PROJECTION_UP)) {
        z = compute_z(o, x, &plan);
        ops->swiglu(c->queue, h, z, o->config->activation);
    } else {
        z = tape_matrix(c, c->act, o->n, w->gate_up.shape[1]);
        ops->moe_hidden(c->queue, h, z, x, w->gate_up, (Tensor){0}, plan.own, o->config->activation, false);
    }
    Tensor y = tape_matrix(c, c->act, o->n, w->down.shape[1]);
    ops->moe_down(c->queue, y, h, w->down, (Tensor){0}, plan.own);
    add_update(o, y, h, PROJECTION_DOWN, &plan);
    ops->gather_rows(c->queue, x, y, plan.rows);
}

static void forward_program(Owner *o, Tensor y, Tensor x) {
    Tensor rows = receive(o, x);
    if (o->n) run_experts(o, rows);
    send_back(o, y, rows);
}

/* ---- the owner's way back ---- */
/* The gradient of z, and what nn_moe.c does for it where down is updated. */
static Tensor hidden_back(Owner *o, const TravelGradients *in, Tensor z, const OwnerPlan *plan) {
    Context *c = &o->c;
    const Ops *ops = c->device->ops;
    const Activation activation = o->config->activation;
    const Tensor absent = {0}, down = o->weights->down;
    Tensor dz = o->wants_dx ? tape_matrix(c, c->act, o->n, tensor_columns(z)) : absent;
    Tensor da = tape_matrix(c, c->real, o->n, down.shape[2]);
    if (!has_update(o, PROJECTION_DOWN)) {
        ops->moe_hidden_bwd(c->queue, dz, in->dweights, da, in->dout, z, in->weights, down, absent, plan->own,
                            activation);
        return dz;
    }
    const Lora lora = o->updates.lora[PROJECTION_DOWN];
    Tensor h = tape_matrix(c, c->act, o->n, down.shape[2]),
           scratch = tape_matrix(c, c->real, o->n, 2 * lora.a.shape[1]);
    ops->moe_down_bwd(c->queue, da, in->dweights, in->dout, down, absent, plan->own);
    ops->swiglu(c->queue, h, z, activation);
    ops->lora_bwd(c->queue, da, (LoraSums){0}, scratch, in->dout, h, lora, in->weights, plan->all);
    ops->moe_swiglu_bwd(c->queue, dz, in->dweights, da, z, in->weights, plan->own, activation);
    return dz;
}

/* The term of an update of gate or up, [n,D] real by plan: what lora_bwd gives rows of down, since a token of
 * its own stands in each. */
static void update_term(Owner *o, Tensor term, Tensor dz, Tensor x, Projection p, const OwnerPlan *plan) {
    Context *c = &o->c;
    Lora lora = o->updates.lora[p];
    Tensor scratch = tape_matrix(c, c->real, o->n, 2 * lora.a.shape[1]);
    int32_t *counting = exchange_reserve(o->e, &o->e->counting, o->n);
    for (int64_t i = 0; i < o->n; i++) counting[i] = (int32_t)i;
    Tensor own = tape_upload(c, DTYPE_I32, o->n, counting);
    const MoePlan rows = {plan->all.offsets, own, tensor_as_matrix(own, o->n, 1), plan->all.alignment};
    lora.down = true;
    c->device->zero(c->queue, term);
    c->device->ops->lora_bwd(c->queue, term, (LoraSums){0}, scratch, dz, x, lora, (Tensor){0}, rows);
}

static void walk_experts(Owner *o, const TravelGradients *in) {
    Context *c = &o->c;
    const Ops *ops = c->device->ops;
    const OwnerPlan plan = make_plan(o);
    Tensor z = compute_z(o, in->x, &plan);
    c->device->zero(c->queue, in->dweights);
    Tensor dz = hidden_back(o, in, z, &plan);
    for (int i = 0; i < N_TRAVEL_TERMS; i++) {
        if (!has_term(o, i)) continue;
        Scope scope = scope_open(c);
        Tensor term = tape_matrix(c, c->real, o->n, o->config->hidden_size);
        if (i == TRAVEL_PRODUCT)
            ops->moe_gate_up_bwd(c->queue, (Tensor){0}, term, dz, o->weights->gate_up, plan.own);
        else
            update_term(o, term, dz, in->x, travel_projection(i), &plan);
        ops->gather_rows(c->queue, in->dx[i], term, plan.rows);
        scope_close(c, scope);
    }
}

static void backward_program(Owner *o, const TravelGradients *home) {
    Context *c = &o->c;
    TravelGradients in = {.x = receive(o, home->x),
                          .dout = receive(o, home->dout),
                          .weights = receive(o, home->weights),
                          .dweights = tape_matrix(c, c->real, o->n, 1)};
    for (int i = 0; i < N_TRAVEL_TERMS; i++)
        if (has_term(o, i)) in.dx[i] = tape_matrix(c, c->real, o->n, o->config->hidden_size);
    if (o->n) walk_experts(o, &in);
    for (int i = 0; i < N_TRAVEL_TERMS; i++)
        if (has_term(o, i)) send_back(o, home->dx[i], in.dx[i]);
    send_back(o, home->dweights, in.dweights);
}

void exchange_owner_run(Owner *o, Tensor y, Tensor x, const TravelGradients *back) {
    if (back)
        backward_program(o, back);
    else
        forward_program(o, y, x);
}

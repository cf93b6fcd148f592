/* The front door of the ops: per op the check of its shapes, the forward call, and the rule that walks it
 * back, side by side in nn_*.c. On a Context without a tape they only compute.
 *
 * Values are matrices [T,N], heads lying side by side in a row. Weights and biases are frozen tensors: they
 * get no gradient; an absent bias is none. `place` is where the result goes: NULL for memory of the arena,
 * else a Var of the caller whose x is the memory, and is the value already when the block is replayed.
 * Formulas stand in kernels/ops.h. */
#ifndef GATETAPE_NN_H
#define GATETAPE_NN_H
#include "tape.h"

/* ---- dense ---- */
Var *nn_embed(Context *c, Var *place, Tensor ids, Tensor table, bool wanted); /* [T,D]; wanted: see Var */
/* y = x w^T + bias                                                   [T,N] act */
Var *nn_linear(Context *c, Var *x, Tensor w, Tensor bias);
/* The same, not rounded: router logits                               [T,N] real */
Var *nn_linear_real(Context *c, Var *x, Tensor w, Tensor bias);
/* y = residual + x w^T + bias; place->x may be residual->x where no gradient is wanted */
Var *nn_linear_add(Context *c, Var *place, Var *x, Tensor w, Tensor bias, Var *residual);
Var *nn_swiglu(Context *c, Var *z, Activation activation); /* [T,2F] -> [T,F] */
/* Columns of logits worked on at a time, and the rows: what bounds the scratch of a loss. */
enum { LOSS_COLUMNS = 2048, LOSS_ROWS = 2048 };
/* nll[t] = -log softmax(x head^T + bias)[targets[t]], 0 where targets[t] < 0      [T] real */
Var *nn_cross_entropy(Context *c, Var *x, Tensor head, Tensor bias, Tensor targets);

/* ---- norm and attention ---- */
/* Over groups of as many columns as w has elements: a row, or each head of it. */
Var *nn_rmsnorm(Context *c, Var *x, Tensor w, float eps);

typedef struct {
    Tensor positions;   /* [T] i32 */
    Tensor frequencies; /* [n] f32 */
    float scale;
    RopeKind kind;
    int64_t head_size;
} Rope;
/* In the memory of x, whose own values are gone afterwards. */
Var *nn_rope(Context *c, Var *x, Rope rope);

typedef struct {
    Spans spans;
    Tensor sinks;
    int64_t heads, kv_heads;
    float scale;
    int64_t window;
} AttentionRule;
/* [T,H*Cv] from query [T,H*C], key [.,J*C], value [.,J*Cv]; lse [T,H] real is filled where it is present: a
 * walk needs it. In a replay, lse of the caller is there already like place. */
Var *nn_attention(Context *c, Var *place, Tensor lse, Var *query, Var *key, Var *value, AttentionRule rule);

/* ---- routed experts ---- */
typedef struct {
    Var *weights; /* [T,K] real */
    Tensor probs; /* [T,E] real */
    Tensor ids;   /* [T,K] i32 */
} Routed;
Routed nn_route(Context *c, Var *logits, RouteEdits edits, int64_t n_chosen, RouterRule rule);
/* A value a row in `place` [T] real: KL to frozen [T,E] real, distance to aim [E] real. The caller sets
 * place->g to what each row weighs in its loss. */
void nn_router_kl(Context *c, Var *place, Var *logits, Tensor frozen, float temperature);
void nn_router_anchor(Context *c, Var *place, Var *logits, Tensor aim);
/* What is added to rows of a router, and where gradients of it go. */
struct RouterRows {
    Tensor experts, rows; /* [N] i32, [N,D] real */
    LoraSums sums;        /* a [S,N,D]; absent: frozen */
};
/* logits + x rows^T at their experts, in the memory of logits, which must not have been used. rows: the
 * caller's until the walk is over */
void nn_router_rows(Context *c, Var *logits, Var *x, const RouterRows *rows);
MoePlan nn_moe_plan(Context *c, Tensor ids, int64_t n_experts);
/* What low-rank updates add to a layer's experts, and where gradients of them go. */
typedef enum { PROJECTION_GATE, PROJECTION_UP, PROJECTION_DOWN, N_PROJECTIONS } Projection;
struct ExpertUpdates {
    Lora lora[N_PROJECTIONS];     /* a absent: none */
    LoraSums sums[N_PROJECTIONS]; /* a absent: frozen */
    /* of what the updates read: id + projection * dropout_choices is the rule's */
    Tensor dropout_keys; /* [T] i64; absent: none */
    float dropout_rate;
    int64_t dropout_id, dropout_choices;
};
static inline bool experts_updated(const ExpertUpdates *u, Projection p) {
    return u && tensor_present(u->lora[p].a);
}
/* The rows x of one layer's experts, and their weights. */
typedef struct {
    Var *x;                         /* [T,D] */
    Tensor gate_up, down;           /* [E,2F,D], [E,D,F] */
    Tensor gate_up_bias, down_bias; /* [E,2F], [E,D] or absent */
    MoePlan plan;
    Activation activation;
    const ExpertUpdates *updates; /* NULL: none; else the caller's until the walk is over */
    const RemoteExperts *remote;  /* for nn_moe_remote alone, which reads no weights; the caller's, too */
} Experts;
/* z [M,2F]: what gate and up say of the rows. `place` is the place of the output to come: only in a replay,
 * where that is there already, z is computed here; else nn_moe_output makes it on its way. */
Var *nn_moe_gate_up(Context *c, Var *place, Experts e);
/* residual + sum of weights x (down of swiglu(z)). *outputs: the experts' outputs [M,D] before their
 * weights, in the arena; absent in a replay. The caller may release it, and with it all that this call took,
 * by a scope around. */
Var *nn_moe_output(Context *c, Var *place, Tensor *outputs, Var *z, Var *weights, Var *residual, Experts e);

/* ---- experts on other ranks ---- */
/* The M pairs of (token, choice) in the order in which they travel. */
typedef struct {
    Tensor rows;          /* [T,K] i32: where a pair stands */
    Tensor pairs, tokens; /* [M] i32: the pair that stands in a row, and its token */
    Tensor by_plan;       /* [M] i32: where that stands which moe_plan puts in a row */
} TravelOrder;
/* What the gradient of x is the sum of, in this order: products with gate_up, updates of gate, and of up. */
typedef enum { TRAVEL_PRODUCT, TRAVEL_GATE, TRAVEL_UP, N_TRAVEL_TERMS } TravelTerm;
static inline Projection travel_projection(int term) {
    return term == TRAVEL_GATE ? PROJECTION_GATE : PROJECTION_UP;
}
/* A row each pair, as they travel. */
typedef struct {
    Tensor x, dout;            /* [M,D] act */
    Tensor weights;            /* [M,1] real */
    Tensor dx[N_TRAVEL_TERMS]; /* [M,D] real, filled; absent: not wanted, the first only where all are */
    Tensor dweights;           /* [M,1] real, filled */
} TravelGradients;
/* How such experts are reached. All ranks call forward and backward alike. */
struct RemoteExperts {
    const void *site; /* the maker's own */
    int64_t layer;
    /* from ids [T,K] i32, into the arena; waits */
    void (*arrange)(const RemoteExperts *remote, Context *c, Tensor ids, TravelOrder *order);
    /* y [M,D] act: the experts' outputs for x [M,D] act, in the order arranged last */
    void (*forward)(const RemoteExperts *remote, Context *c, Tensor y, Tensor x);
    void (*backward)(const RemoteExperts *remote, Context *c, const TravelGradients *g);
};
/* What nn_moe_gate_up and nn_moe_output do, in one. outputs, where not NULL: as there, rows by moe_plan; not
 * in a replay. Updates are frozen. */
Var *nn_moe_remote(Context *c, Var *place, Tensor *outputs, Routed routed, Var *residual, Experts e);

#endif

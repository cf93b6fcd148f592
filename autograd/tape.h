/* The reverse-mode tape: the forward pass is the one of inference, with its steps remembered.
 *
 * A Step knows how to add to the gradients of its inputs from the gradient of its output. Steps stand in
 * execution order, so walking them backwards meets every consumer of a value before its producer: no graph,
 * no sort, no counts. With tape == NULL the same calls compute and remember nothing.
 *
 * Memory is one block of the device. Blocks of the network (tape_block) are scopes: what a block made is
 * released after it, unless it must stay for the backward. A recomputed block keeps only what its caller
 * gave it a place for, and runs again when the walk reaches it. The same program run on the cost device
 * tells the exact size beforehand. */
#ifndef GATETAPE_TAPE_H
#define GATETAPE_TAPE_H
#include "../kernels/device.h"

/* A value and its gradient. The gradient is made when the walk first reaches the value, and only if it is
 * wanted: if something that a caller asked gradients for stands before it. */
typedef struct {
    Tensor x, g;
    bool wanted;
} Var;

typedef struct Context Context;
typedef struct Step Step;
typedef struct ExpertUpdates ExpertUpdates; /* nn.h */
typedef struct RouterRows RouterRows;       /* nn.h */
typedef struct RemoteExperts RemoteExperts; /* nn.h */

typedef void backward_fn(Context *c, const Step *step);
typedef void block_fn(Context *c, void *arguments);

enum { STEP_INPUTS = 3, STEP_SAVED = 4 };

/* One op that happened. */
struct Step {
    backward_fn *backward;
    Var *in[STEP_INPUTS], *out;
    Tensor saved[STEP_SAVED]; /* what else the backward op reads */
    union {                   /* the op's other arguments */
        float eps;
        struct {
            float scale;
            RopeKind kind;
            int64_t head_size;
        } rope;
        struct {
            Spans spans;
            float scale;
            int64_t window, heads, kv_heads;
        } attention;
        struct {
            MoePlan plan;
            Activation activation;
            const ExpertUpdates *updates; /* NULL: none */
        } moe;
        struct {
            const RemoteExperts *experts;
            const ExpertUpdates *updates;
        } remote;
        struct {
            RouteEdits edits;
            RouterRule rule;
        } route;
        Activation activation;
        float temperature;
        const RouterRows *router_rows;
        struct {
            block_fn *run;
            void *arguments;
        } block;
    } of;
    bool trains;     /* parameters of the step itself are wanted a gradient of, whatever its inputs are */
    int64_t n_inner; /* a kept block: its own steps, just before it */
};

typedef struct {
    Step *steps; /* [capacity], the caller's */
    int64_t n, capacity;
} Tape;

/* A block of device memory handed out from its start. */
typedef struct {
    char *base; /* NULL: no memory behind it, addresses for the cost device alone */
    size_t capacity, used, peak;
} Arena;

/* Where ops run, where results go, whether they are remembered. */
struct Context {
    const Device *device;
    Queue *queue;
    DType act, real; /* of activations, and of what is never rounded: f32 (f64 in the table f64) */
    Arena arena;
    Var *vars; /* [var_capacity], the caller's */
    int64_t n_vars, var_capacity;
    Tape *tape;   /* NULL: inference */
    bool replay;  /* a block runs again: values that the caller gave a place for are there already */
    bool stopped; /* set by a tape_tap that failed: the walk ends */
};

/* ---- memory ---- */
enum { ARENA_ALIGNMENT = 256 };

/* Tensors in the arena, contents undefined. */
Tensor tape_vector(Context *c, DType dtype, int64_t n);
Tensor tape_matrix(Context *c, DType dtype, int64_t rows, int64_t columns);
/* A vector of n elements filled from host memory, which must stay until the next sync. */
Tensor tape_upload(Context *c, DType dtype, int64_t n, const void *from);

/* What is taken from the arena and the Vars after scope_open is free again after scope_close. */
typedef struct {
    size_t used;
    int64_t n_vars;
} Scope;
Scope scope_open(const Context *c);
void scope_close(Context *c, Scope scope);

/* ---- values ---- */
/* A value from outside the tape. Wanted: its gradient is asked for, though nothing stands before it. */
Var *tape_leaf(Context *c, Tensor x, bool wanted);
/* For nn_*.c: the output of an op. `given` NULL: new, its memory from the arena; else the caller's Var,
 * whose x is the place for the values. Sets whether it is wanted from the step's inputs, and records the
 * step if so. */
Var *tape_record(Context *c, Var *given, DType dtype, int64_t rows, int64_t columns, Step step);
/* For nn_*.c: true when an op whose output the caller gave need not run, the values being there. */
bool tape_has_value(const Context *c, const Var *given);

/* ---- the walk ---- */
/* The gradient of v, made and set to zero if it is new; absent when v is NULL or not wanted. */
Tensor tape_grad(Context *c, Var *v);
/* The same for an op that overwrites it: not set to zero. v must not have one. */
Tensor tape_grad_overwritten(Context *c, Var *v);
/* `to` gets all of the gradient of `from` (y = ... + to): it takes the memory over, from's being needed no
 * more. */
void tape_pass_grad(Context *c, Var *to, Var *from);
/* Walks all steps back, from gradients that the caller has set (v->g of the last values). The tape is then
 * empty. */
void tape_backward(Context *c);

/* Runs part of the network whose result is `out` (the caller's Var with a place for its values). On a tape
 * the block's steps are kept, or, with recompute, run again at the walk: the arguments must live until then,
 * and `out` and the Vars and places in the arguments must be made before the block. */
void tape_block(Context *c, block_fn *run, void *arguments, Var *out, bool recompute);

/* Calls look(c, arguments) when the walk has completed v's gradient. */
void tape_tap(Context *c, Var *v, block_fn *look, void *arguments);

#endif

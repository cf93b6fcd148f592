/* Memory, recording and the walk. The arena is a bump allocator with marks: the order of releases is the
 * order of scopes, so its high-water mark is a property of the program, the same on every run and on the
 * cost device. */
#include "tape.h"
#include "../kernels/check.h"

/* ---- memory ---- */
/* Where addresses without memory begin. Nothing reads them; no such address is ever NULL. */
enum { NOWHERE = 1 << 20 };

static void *arena_take(Arena *arena, size_t n_bytes) {
    n_bytes = (n_bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
    check(n_bytes <= arena->capacity - arena->used, "%zu bytes wanted, %zu of %zu used", n_bytes, arena->used,
          arena->capacity);
    size_t at = arena->used;
    arena->used += n_bytes;
    if (arena->used > arena->peak) arena->peak = arena->used;
    return arena->base ? (void *)(arena->base + at) : (void *)(NOWHERE + (uintptr_t)at);
}

static Tensor take(Context *c, Tensor shape) {
    shape.data = arena_take(&c->arena, tensor_bytes(shape));
    return shape;
}

Tensor tape_vector(Context *c, DType dtype, int64_t n) { return take(c, tensor_vector(NULL, dtype, n)); }

Tensor tape_matrix(Context *c, DType dtype, int64_t rows, int64_t columns) {
    return take(c, tensor_matrix(NULL, dtype, rows, columns));
}

Tensor tape_upload(Context *c, DType dtype, int64_t n, const void *from) {
    Tensor t = tape_vector(c, dtype, n);
    c->device->copy_in(c->queue, t, from);
    return t;
}

Scope scope_open(const Context *c) { return (Scope){c->arena.used, c->n_vars}; }

void scope_close(Context *c, Scope scope) {
    check(scope.used <= c->arena.used && scope.n_vars <= c->n_vars, "scopes closed out of order: %zu, %zu",
          scope.used, c->arena.used);
    c->arena.used = scope.used;
    c->n_vars = scope.n_vars;
}

/* ---- values ---- */
Var *tape_leaf(Context *c, Tensor x, bool wanted) {
    check(c->n_vars < c->var_capacity, "%lld values", (long long)c->n_vars);
    Var *v = &c->vars[c->n_vars++];
    *v = (Var){.x = x, .wanted = wanted};
    return v;
}

static Step *add_step(Context *c, Step step) {
    Tape *tape = c->tape;
    check(tape->n < tape->capacity, "%lld steps", (long long)tape->n);
    tape->steps[tape->n] = step;
    return &tape->steps[tape->n++];
}

Var *tape_record(Context *c, Var *given, DType dtype, int64_t rows, int64_t columns, Step step) {
    Var *out = given ? given : tape_leaf(c, tape_matrix(c, dtype, rows, columns), false);
    check(out->x.dtype == dtype && tensor_count(out->x) == rows * columns, "%s %lld, wanted %s %lld x %lld",
          dtype_name(out->x.dtype), (long long)tensor_count(out->x), dtype_name(dtype), (long long)rows,
          (long long)columns);
    if (step.trains) out->wanted = true;
    for (int i = 0; i < STEP_INPUTS; i++)
        if (step.in[i] && step.in[i]->wanted) out->wanted = true;
    if (!c->tape || !out->wanted) return out;
    step.out = out;
    add_step(c, step);
    return out;
}

bool tape_has_value(const Context *c, const Var *given) { return c->replay && given; }

/* ---- the walk ---- */
Tensor tape_grad(Context *c, Var *v) {
    if (!v || !v->wanted) return (Tensor){0};
    if (!tensor_present(v->g)) {
        v->g = take(c, v->x);
        c->device->zero(c->queue, v->g);
    }
    return v->g;
}

Tensor tape_grad_overwritten(Context *c, Var *v) {
    if (!v->wanted) return (Tensor){0};
    check(!tensor_present(v->g), "%lld elements have a gradient already", (long long)tensor_count(v->g));
    return v->g = take(c, v->x);
}

void tape_pass_grad(Context *c, Var *to, Var *from) {
    if (!to || !to->wanted) return;
    if (tensor_present(to->g))
        c->device->ops->accumulate(c->queue, to->g, from->g);
    else
        to->g = from->g;
}

/* Steps [first, end), last first. A kept block walks its inner steps itself. */
static void walk(Context *c, int64_t first, int64_t end) {
    for (int64_t i = end - 1; i >= first && !c->stopped; i--) {
        const Step *step = &c->tape->steps[i];
        step->backward(c, step);
        i -= step->n_inner;
    }
}

void tape_backward(Context *c) {
    walk(c, 0, c->tape->n);
    c->tape->n = 0;
}

/* ---- blocks ---- */
static void kept_block_back(Context *c, const Step *step) {
    int64_t end = step - c->tape->steps;
    tape_grad(c, step->out);
    Scope scope = scope_open(c);
    walk(c, end - step->n_inner, end);
    scope_close(c, scope);
}

/* The block's steps are recorded behind all others, walked, and forgotten. */
static void recomputed_block_back(Context *c, const Step *step) {
    int64_t first = c->tape->n;
    tape_grad(c, step->out);
    Scope scope = scope_open(c);
    c->replay = true;
    step->of.block.run(c, step->of.block.arguments);
    c->replay = false;
    walk(c, first, c->tape->n);
    c->tape->n = first;
    scope_close(c, scope);
}

void tape_block(Context *c, block_fn *run, void *arguments, Var *out, bool recompute) {
    Tape *tape = c->tape;
    check(!c->replay, "a block inside a recomputed block");
    if (tape && !recompute) {
        int64_t first = tape->n;
        run(c, arguments);
        if (tape->n > first)
            add_step(c, (Step){.backward = kept_block_back, .out = out, .n_inner = tape->n - first});
        return;
    }
    Scope scope = scope_open(c);
    c->tape = NULL;
    run(c, arguments);
    c->tape = tape;
    scope_close(c, scope);
    if (tape && out->wanted)
        add_step(c, (Step){.backward = recomputed_block_back, .out = out, .of.block = {run, arguments}});
}

static void tap_back(Context *c, const Step *step) {
    tape_grad(c, step->in[0]);
    step->of.block.run(c, step->of.block.arguments);
}

void tape_tap(Context *c, Var *v, block_fn *look, void *arguments) {
    if (!c->tape || !v->wanted) return;
    add_step(c, (Step){.backward = tap_back, .in = {v}, .of.block = {look, arguments}});
}

/* The op cases of losses on the router's distributions, of trained router rows, and of dropout. */
#ifndef GATETAPE_TESTS_CASES_ROUTING_LOSS_H
#define GATETAPE_TESTS_CASES_ROUTING_LOSS_H

/* variants: a temperature that flattens, one that sharpens */
static float temperature_of(const Problem *p) { return p->variant ? 0.25f : 1.75f; }

/* Two sets of logits, then. */
static void add_routers(Problem *p) {
    for (int i = 0; i < 2; i++) {
        Arg *logits = row_arg(p, IN, REAL, p->width, NONE);
        logits->low = -2, logits->high = 2;
    }
    p->reduction = 64 * (double)p->width; /* logarithms of sixteen times the logits' size */
}
BUILD(router_kl) {
    row_arg(p, OUT, REAL, NONE, NONE);
    add_routers(p);
    p->scale = 1;
}
CALL(router_kl) { o->router_kl(q, t[0], t[1], t[2], temperature_of(p)); }
/* Every third row has no gradient. */
static void add_row_gradients(Problem *p) {
    Arg *gradient = row_arg(p, IN, REAL, NONE, NONE);
    for (int64_t t = 0; t < p->rows; t++) gradient->values[t] = t % 3 ? 2 * problem_draw(p) - 1 : 0;
    gradient->filled = true;
}
BUILD(router_kl_bwd) {
    row_arg(p, SUM, REAL, p->width, NONE);
    add_row_gradients(p);
    add_routers(p);
}
CALL(router_kl_bwd) { o->router_kl_bwd(q, t[0], t[1], t[2], t[3], temperature_of(p)); }

/* variant 1: half at two experts */
static void add_aim(Problem *p) {
    Arg *logits = row_arg(p, IN, REAL, p->width, NONE), *aim = whole_arg(p, IN, REAL, p->width, NONE, NONE);
    logits->low = -2, logits->high = 2;
    aim->values[p->width / 3] = p->variant ? 0.5 : 1;
    if (p->variant) aim->values[p->width - 1] += 0.5;
    aim->filled = true;
    p->reduction = 16 * (double)p->width;
}
BUILD(router_anchor) {
    row_arg(p, OUT, REAL, NONE, NONE);
    add_aim(p);
    p->scale = 1;
}
CALL(router_anchor) { (void)p, o->router_anchor(q, t[0], t[1], t[2]); }
BUILD(router_anchor_bwd) {
    row_arg(p, SUM, REAL, p->width, NONE);
    add_row_gradients(p);
    add_aim(p);
}
CALL(router_anchor_bwd) { (void)p, o->router_anchor_bwd(q, t[0], t[1], t[2], t[3]); }

/* ---- router rows; variant 1: a single one ---- */
static void add_router_rows(Problem *p) {
    static const double chosen[] = {1, 2, 5};
    const int64_t n = p->variant == 1 ? 1 : 3;
    memcpy(whole_arg(p, IN, I32, n, NONE, NONE)->values, chosen, (size_t)n * sizeof *chosen);
    whole_arg(p, IN, REAL, n, p->width, NONE);
    p->reduction = (double)p->width + 1;
    p->scale = 1;
}
BUILD(router_rows) {
    row_arg(p, SUM, REAL, N_EXPERTS, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    add_router_rows(p);
}
CALL(router_rows) { (void)p, o->router_rows(q, t[0], t[1], t[2], t[3]); }
/* variant 0 has no dx, variant 2 no sums */
BUILD(router_rows_bwd) {
    leave_out(row_arg(p, SUM, ACT, p->width, NONE), p->variant == 0);
    leave_out(whole_arg(p, SUM, REAL, N_SLOTS, p->variant == 1 ? 1 : 3, p->width), p->variant == 2);
    add_offsets(p);
    row_arg(p, IN, REAL, N_EXPERTS, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    add_router_rows(p);
    p->reduction = (double)p->rows + 8;
}
CALL(router_rows_bwd) {
    (void)p;
    o->router_rows_bwd(q, t[0], (LoraSums){.a = t[1], .offsets = t[2], .first = FIRST_EXAMPLE}, t[3], t[4],
                       t[5], t[6]);
}

/* ---- dropout; variants: tokens, rows by plan, the same of reals. 0 to 2 plan, 3 y, 4 x, 5 keys ---- */
static const DropoutRule DROPOUT = {0.3f, 8};
BUILD(dropout) {
    const int64_t n = p->variant ? p->rows * N_CHOICES : p->rows;
    const Kind kind = p->variant == 2 ? REAL : ACT;
    add_plan(p, IN);
    whole_arg(p, OUT, kind, n, p->width, NONE);
    whole_arg(p, IN, kind, n, p->width, NONE);
    random_ints(p, row_arg(p, IN, I64, NONE, NONE), 1 << 30);
}
static MoePlan dropout_plan(const Tensor *t, const Problem *p) {
    return p->variant ? plan_at(t) : (MoePlan){0};
}
CALL(dropout) { o->dropout(q, t[3], t[4], t[5], dropout_plan(t, p), DROPOUT); }
BUILD(dropout_bwd) {
    build_dropout(p);
    p->arg[3].role = SUM;
}
CALL(dropout_bwd) { o->dropout_bwd(q, t[3], t[4], t[5], dropout_plan(t, p), DROPOUT); }

#endif

/* The op cases of losses on the router's distributions. */
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

#endif

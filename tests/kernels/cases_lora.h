/* The op cases of low-rank updates and of the optimizer. Adapted are three experts, one of which has no
 * rows. */
#ifndef GATETAPE_TESTS_CASES_LORA_H
#define GATETAPE_TESTS_CASES_LORA_H

enum { N_CELLS = 3, N_SLOTS = 4, FIRST_EXAMPLE = 5 };

/* variants: gate; up, of a rank that is no multiple of a tile's; down; the highest rank, down */
static bool lora_is_down(const Problem *p) { return p->variant >= 2; }
static int64_t lora_rank(const Problem *p) {
    static const int64_t ranks[] = {3, 17, 4, LORA_MOST_RANK, 8};
    return ranks[p->variant];
}

/* of variant 2 more than a block of the GPU has threads; of variant 3 whole packs, but no whole tile */
static int64_t lora_out(const Problem *p) { return p->variant == 2 ? 131 : p->variant == 3 ? 136 : 37; }

/* Four arguments: experts, a, b, scales. */
static void add_lora(Problem *p) {
    static const double experts[N_CELLS] = {1, 4, 5};
    Arg *expert = whole_arg(p, IN, I32, N_CELLS, NONE, NONE);
    memcpy(expert->values, experts, sizeof experts);
    whole_arg(p, IN, REAL, N_CELLS, lora_rank(p), p->width);
    whole_arg(p, IN, REAL, N_CELLS, lora_out(p), lora_rank(p));
    whole_arg(p, IN, REAL, N_CELLS, NONE, NONE);
}
static Lora lora_at(const Tensor *t, const Problem *p) {
    return (Lora){t[0], t[1], t[2], t[3], p->variant == 1 ? lora_out(p) : 0, lora_is_down(p)};
}

/* 0 to 2 plan, 3 y, 4 x, 5 to 8 lora */
BUILD(lora) {
    int64_t n = p->rows * N_CHOICES;
    add_plan(p, IN);
    whole_arg(p, SUM, ACT, n, lora_is_down(p) ? lora_out(p) : 2 * lora_out(p), NONE);
    whole_arg(p, IN, ACT, lora_is_down(p) ? n : p->rows, p->width, NONE);
    add_lora(p);
    p->reduction = (double)p->width * (double)lora_rank(p);
    p->scale = sqrt((double)lora_rank(p));
}
CALL(lora) { o->lora(q, t[3], t[4], lora_at(t + 5, p), plan_at(t)); }

/* 0 to 2 plan, 3 dx, 4 and 5 slots, 6 offsets, 7 scratch, 8 dy, 9 x, 10 weights, 11 to 14 lora. Variant 3
 * has no dx, variant 4 no sums. */
BUILD(lora_bwd) {
    int64_t n = p->rows * N_CHOICES, rank = lora_rank(p);
    bool down = lora_is_down(p);
    add_plan(p, IN);
    leave_out(whole_arg(p, SUM, down ? REAL : ACT, down ? n : p->rows, p->width, NONE), p->variant == 3);
    leave_out(whole_arg(p, SUM, REAL, N_SLOTS, N_CELLS * rank, p->width), p->variant == 4);
    leave_out(whole_arg(p, SUM, REAL, N_SLOTS, N_CELLS * lora_out(p), rank), p->variant == 4);
    add_offsets(p);
    whole_arg(p, SCRATCH, REAL, n, 2 * rank, NONE);
    whole_arg(p, IN, ACT, down ? p->rows : n, down ? lora_out(p) : 2 * lora_out(p), NONE);
    whole_arg(p, IN, ACT, down ? n : p->rows, p->width, NONE);
    row_arg(p, IN, REAL, N_CHOICES, NONE);
    add_lora(p);
    p->reduction = (double)(p->width + lora_out(p)) * (double)(rank + p->rows);
    p->scale = sqrt((double)rank);
}
CALL(lora_bwd) {
    LoraSums sums = {t[4], t[5], t[6], FIRST_EXAMPLE};
    o->lora_bwd(q, t[3], sums, t[7], t[8], t[9], lora_at(t + 11, p), t[10], plan_at(t));
}

/* variants: 11 examples (slots 0, 1 and 3), none */
BUILD(sum_slots) {
    whole_arg(p, OUT, REAL, p->rows, p->width, NONE);
    whole_arg(p, IN, REAL, N_SLOTS, p->rows, p->width);
    p->reduction = N_SLOTS;
}
CALL(sum_slots) { o->sum_slots(q, t[0], t[1], p->variant ? 0 : 11); }

/* variant 1: the first step, without decay, clipped */
BUILD(adamw) {
    for (int i = 0; i < 3; i++) row_arg(p, SUM, REAL, p->width, NONE);
    p->arg[2].low = 0.01;
    row_arg(p, IN, REAL, p->width, NONE);
    p->reduction = 16;
}
CALL(adamw) {
    AdamwRule rule = {.rate = 0.01, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .decay = 0.1};
    rule.correction1 = 0.19, rule.correction2 = 0.001999, rule.grad_scale = 1;
    if (p->variant)
        rule.decay = 0, rule.correction1 = 0.1, rule.correction2 = 0.001, rule.grad_scale = 0.3,
        rule.eps = 0.1;
    o->adamw(q, t[0], t[1], t[2], t[3], rule);
}

#endif

/* The op cases (cases.h) of routing, experts, measurements, loss and choice. */
#ifndef GATETAPE_TESTS_CASES_MOE_H
#define GATETAPE_TESTS_CASES_MOE_H

/* ---- route; variants: renormalised, not, top-k first, then each kind of edits under one of these rules. The
 * width and the rows of a kind: EDIT_ROWS of them, and tokens without any. ---- */
enum { N_ROUTES = 12, EDIT_ROWS = 3 };
static RouterRule rule_of(const Problem *p) {
    int rule = p->variant % 3;
    return (RouterRule){rule == 2 ? ROUTER_TOPK_SOFTMAX : ROUTER_SOFTMAX_TOPK, rule != 1,
                        rule == 1 ? 2.5f : 1.0f};
}
static int64_t choices_of(const Problem *p) { return least(p->width, 4); }

/* Values of a row in [-4, 4], shuffled, none near another: the choice stays when one moves a little. */
static void spread_row(Problem *p, double *row) {
    double step = 8 / (double)p->width;
    for (int64_t e = 0; e < p->width; e++) {
        int64_t other = problem_index(p, e + 1);
        row[e] = row[other];
        row[other] = -4 + step * ((double)e + 0.3 * problem_draw(p));
    }
}

/* One row of edits. Kinds 0..2: logits; forced experts, some zeroed; weights. */
static void add_edit_row(Problem *p, double *modes, double *values, int kind) {
    static const int logit_modes[] = {EDIT_MASK, EDIT_BIAS, EDIT_PROMOTE, EDIT_DEMOTE};
    int64_t n = p->width, k = choices_of(p), first = problem_index(p, n), n_masked = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t e = (first + i) % n;
        values[e] = 0;
        if (kind == 1) {
            modes[e] = i < k ? EDIT_FORCE : problem_draw(p) < 0.3 ? EDIT_BIAS : EDIT_NONE;
            values[e] = i < k ? (double)(k - 1 - i) : 0.75;
            continue;
        }
        bool edited = problem_draw(p) < 0.4;
        modes[e] = EDIT_NONE;
        if (edited && kind == 0) modes[e] = logit_modes[i % 4];
        if (edited && kind == 2) modes[e] = i % 3 ? EDIT_ZERO_RENORMALIZE : EDIT_ZERO;
        if (modes[e] == EDIT_MASK && ++n_masked > n - k) modes[e] = EDIT_NONE;
        values[e] = 0.31 * (double)i / (double)n + 0.01; /* promoted ones far from each other */
    }
}

/* Three arguments: modes, values, rows; left out in the variants 0..2. */
static void add_edits(Problem *p) {
    Arg *modes = whole_arg(p, IN, I32, EDIT_ROWS, p->width, NONE);
    Arg *values = whole_arg(p, IN, REAL, EDIT_ROWS, p->width, NONE);
    Arg *rows = row_arg(p, IN, I32, NONE, NONE);
    for (int i = 0; i < EDIT_ROWS; i++)
        add_edit_row(p, modes->values + i * p->width, values->values + i * p->width, p->variant / 3 - 1);
    for (int64_t t = 0; t < p->rows; t++) rows->values[t] = (double)problem_index(p, EDIT_ROWS + 1) - 1;
    values->filled = true;
    leave_out(modes, p->variant < 3);
    leave_out(values, p->variant < 3);
    leave_out(rows, p->variant < 3);
}
static RouteEdits edits_at(const Tensor *t) { return (RouteEdits){t[0], t[1], t[2]}; }

BUILD(route) {
    row_arg(p, OUT, REAL, p->width, NONE);
    row_arg(p, OUT, I32, choices_of(p), NONE);
    row_arg(p, OUT, REAL, choices_of(p), NONE);
    Arg *logits = row_arg(p, IN, REAL, p->width, NONE);
    for (int64_t t = 0; t < p->rows; t++) spread_row(p, logits->values + t * p->width);
    logits->filled = true;
    add_edits(p);
    p->reduction = 64;
}
CALL(route) { o->route(q, t[0], t[1], t[2], t[3], edits_at(t + 4), rule_of(p)); }

/* ids [rows, choices], distinct inside a row */
static void add_ids(Problem *p, Role role, int64_t choices, int64_t experts) {
    Arg *ids = row_arg(p, role, I32, choices, NONE);
    for (int64_t t = 0; t < p->rows; t++) {
        int64_t first = problem_index(p, experts);
        for (int64_t k = 0; k < choices; k++) ids->values[t * choices + k] = (double)((first + k) % experts);
    }
}
BUILD(route_bwd) {
    row_arg(p, SUM, REAL, p->width, NONE);
    row_arg(p, IN, REAL, choices_of(p), NONE);
    Arg *probs = row_arg(p, IN, REAL, p->width, NONE);
    probs->low = 0.02, probs->high = 0.2;
    add_ids(p, IN, choices_of(p), p->width);
    row_arg(p, IN, REAL, choices_of(p), NONE);
    row_arg(p, IN, REAL, p->width, NONE);
    add_edits(p);
    p->reduction = 16;
}
CALL(route_bwd) { o->route_bwd(q, t[0], t[1], t[2], t[3], t[4], t[5], edits_at(t + 6), rule_of(p)); }

/* ---- experts. The plan's three tensors: offsets, pairs, rows. Expert 4 gets nothing. ---- */
static void add_plan(Problem *p, Role role) {
    int64_t pairs = p->rows * N_CHOICES, at = 0;
    Arg *offsets = whole_arg(p, role, I32, N_EXPERTS + 1, NONE, NONE);
    Arg *pair = whole_arg(p, role, I32, pairs, NONE, NONE), *row = row_arg(p, role, I32, N_CHOICES, NONE);
    Arg ids = {.n_dims = 2, .shape = {p->rows, N_CHOICES}};
    ids.values = calloc((size_t)pairs + 1, sizeof *ids.values);
    check(ids.values, "out of memory");
    static const int64_t allowed[N_EXPERTS - 1] = {0, 1, 2, 3, 5};
    for (int64_t t = 0; t < p->rows; t++) {
        int64_t first = problem_index(p, N_EXPERTS - 1);
        for (int64_t k = 0; k < N_CHOICES; k++)
            ids.values[t * N_CHOICES + k] = (double)allowed[(first + 2 * k) % (N_EXPERTS - 1)];
    }
    for (int64_t e = 0; e < N_EXPERTS; e++) {
        for (int64_t i = 0; i < pairs; i++) {
            if ((int64_t)ids.values[i] != e) continue;
            row->values[i] = (double)at;
            pair->values[at++] = (double)i;
        }
        offsets->values[e + 1] = (double)at;
    }
    free(ids.values);
}
static MoePlan plan_at(const Tensor *t) { return (MoePlan){t[0], t[1], t[2], 1}; }

BUILD(moe_plan) {
    whole_arg(p, OUT, I32, N_EXPERTS + 1, NONE, NONE);
    whole_arg(p, OUT, I32, p->rows * N_CHOICES, NONE, NONE);
    row_arg(p, OUT, I32, N_CHOICES, NONE);
    add_ids(p, IN, N_CHOICES, N_EXPERTS);
}
CALL(moe_plan) { (void)p, o->moe_plan(q, plan_at(t), t[3]); }

enum { OTHER_SIZE = 5 };
BUILD(moe_gate_up) {
    int64_t n = p->rows * N_CHOICES;
    add_plan(p, IN);
    whole_arg(p, OUT, ACT, n, 2 * OTHER_SIZE, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    whole_arg(p, IN, WEIGHT, N_EXPERTS, 2 * OTHER_SIZE, p->width);
    leave_out(whole_arg(p, IN, WEIGHT, N_EXPERTS, 2 * OTHER_SIZE, NONE), p->variant == 0);
    p->reduction = (double)p->width;
    p->scale = 1;
}
CALL(moe_gate_up) { (void)p, o->moe_gate_up(q, t[3], t[4], t[5], t[6], plan_at(t)); }
/* variant 1 with bias, 2 with the clamped activation too; 0 and 1 keep z */
BUILD(moe_hidden) {
    build_moe_gate_up(p);
    whole_arg(p, OUT, ACT, p->rows * N_CHOICES, OTHER_SIZE, NONE);
    if (p->variant == 2) p->arg[3].role = SCRATCH;
    p->n_stores = 2;
    p->reduction *= 2; /* of gate and up each, and their errors meet */
}
CALL(moe_hidden) {
    const Activation act = p->variant == 2 ? (Activation){.limit = 7, .alpha = 1.702f} : (Activation){0};
    o->moe_hidden(q, t[7], t[3], t[4], t[5], t[6], plan_at(t), act, p->variant < 2);
}
BUILD(moe_gate_up_bwd) {
    int64_t n = p->rows * N_CHOICES;
    add_plan(p, IN);
    leave_out(row_arg(p, SUM, ACT, p->width, NONE), p->variant == 1);
    whole_arg(p, p->variant == 1 ? OUT : SCRATCH, REAL, n, p->width, NONE); /* variant 1: the terms alone */
    whole_arg(p, IN, ACT, n, 2 * OTHER_SIZE, NONE);
    whole_arg(p, IN, WEIGHT, N_EXPERTS, 2 * OTHER_SIZE, p->width);
    p->reduction = 2 * OTHER_SIZE * N_CHOICES;
    p->scale = 1;
}
CALL(moe_gate_up_bwd) { (void)p, o->moe_gate_up_bwd(q, t[3], t[4], t[5], t[6], plan_at(t)); }
BUILD(moe_add_rows) {
    add_plan(p, IN);
    row_arg(p, SUM, ACT, p->width, NONE);
    whole_arg(p, IN, REAL, p->rows * N_CHOICES, p->width, NONE);
    p->reduction = N_CHOICES + 1;
    p->scale = 1;
}
CALL(moe_add_rows) { (void)p, o->moe_add_rows(q, t[3], t[4], plan_at(t)); }
BUILD(moe_down) {
    int64_t n = p->rows * N_CHOICES;
    add_plan(p, IN);
    whole_arg(p, OUT, ACT, n, OTHER_SIZE, NONE);
    whole_arg(p, IN, ACT, n, p->width, NONE);
    whole_arg(p, IN, WEIGHT, N_EXPERTS, OTHER_SIZE, p->width);
    leave_out(whole_arg(p, IN, WEIGHT, N_EXPERTS, OTHER_SIZE, NONE), p->variant == 0);
    p->reduction = (double)p->width;
    p->scale = 1;
}
CALL(moe_down) { (void)p, o->moe_down(q, t[3], t[4], t[5], t[6], plan_at(t)); }
BUILD(moe_down_bwd) {
    add_plan(p, IN);
    whole_arg(p, OUT, REAL, p->rows * N_CHOICES, p->width, NONE);
    row_arg(p, SUM, REAL, N_CHOICES, NONE);
    row_arg(p, IN, ACT, OTHER_SIZE, NONE);
    whole_arg(p, IN, WEIGHT, N_EXPERTS, OTHER_SIZE, p->width);
    leave_out(whole_arg(p, IN, WEIGHT, N_EXPERTS, OTHER_SIZE, NONE), p->variant == 0);
    p->reduction = OTHER_SIZE;
    p->scale = 1;
}
CALL(moe_down_bwd) { (void)p, o->moe_down_bwd(q, t[3], t[4], t[5], t[6], t[7], plan_at(t)); }
BUILD(moe_swiglu_bwd) {
    int64_t n = p->rows * N_CHOICES;
    add_plan(p, IN);
    whole_arg(p, OUT, ACT, n, 2 * p->width, NONE);
    row_arg(p, SUM, REAL, N_CHOICES, NONE);
    whole_arg(p, IN, REAL, n, p->width, NONE);
    row_arg(p, IN, REAL, N_CHOICES, NONE);
    add_gate_up(p, n, false);
    p->reduction = 64 + (double)p->width;
    p->rounds_inside = true;
}
CALL(moe_swiglu_bwd) { o->moe_swiglu_bwd(q, t[3], t[4], t[5], t[7], t[6], plan_at(t), activation_of(p)); }
/* variant 1: with bias, the clamped activation */
BUILD(moe_hidden_bwd) {
    int64_t n = p->rows * N_CHOICES;
    add_plan(p, IN);
    whole_arg(p, OUT, ACT, n, 2 * p->width, NONE);
    row_arg(p, SUM, REAL, N_CHOICES, NONE);
    whole_arg(p, SCRATCH, REAL, n, p->width, NONE);
    row_arg(p, IN, ACT, OTHER_SIZE, NONE);
    add_gate_up(p, n, false);
    row_arg(p, IN, REAL, N_CHOICES, NONE);
    whole_arg(p, IN, WEIGHT, N_EXPERTS, OTHER_SIZE, p->width);
    leave_out(whole_arg(p, IN, WEIGHT, N_EXPERTS, OTHER_SIZE, NONE), p->variant == 0);
    p->reduction = (64 + (double)p->width) * OTHER_SIZE;
    p->rounds_inside = true;
}
CALL(moe_hidden_bwd) {
    o->moe_hidden_bwd(q, t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], plan_at(t), activation_of(p));
}
BUILD(moe_combine) {
    add_plan(p, IN);
    row_arg(p, OUT, ACT, p->width, NONE);
    whole_arg(p, IN, ACT, p->rows * N_CHOICES, p->width, NONE);
    row_arg(p, IN, REAL, N_CHOICES, NONE);
    leave_out(row_arg(p, IN, ACT, p->width, NONE), p->variant == 1);
    p->reduction = N_CHOICES + 1;
}
CALL(moe_combine) { (void)p, o->moe_combine(q, t[3], t[4], t[5], t[6], plan_at(t)); }

/* ---- measurements; tokens of group -1 count nowhere ---- */
static void add_group(Problem *p) {
    Arg *group = random_ints(p, row_arg(p, IN, I32, NONE, NONE), N_GROUPS + 1);
    for (int64_t t = 0; t < p->rows; t++) group->values[t] -= 1;
}
static void add_offsets(Problem *p) { /* the second group is empty */
    Arg *offsets = whole_arg(p, IN, I32, N_GROUPS + 1, NONE, NONE);
    double ends[N_GROUPS] = {(double)(p->rows / 3), (double)(p->rows / 3), (double)p->rows};
    for (int g = 0; g < N_GROUPS; g++) offsets->values[g + 1] = ends[g];
}
BUILD(count_experts) {
    whole_arg(p, SUM, I64, N_GROUPS, p->width, NONE);
    leave_out(whole_arg(p, SUM, REAL, N_GROUPS, p->width, NONE), p->variant == 1);
    whole_arg(p, SUM, REAL, N_GROUPS, p->width, NONE);
    add_ids(p, IN, choices_of(p), p->width);
    row_arg(p, IN, REAL, choices_of(p), NONE);
    row_arg(p, IN, REAL, p->width, NONE);
    add_group(p);
    p->reduction = (double)p->rows + 1;
}
CALL(count_experts) { (void)p, o->count_experts(q, t[0], t[1], t[2], t[3], t[4], t[5], t[6]); }
BUILD(expert_peaks) {
    add_plan(p, IN);
    whole_arg(p, SUM, REAL, N_GROUPS, N_EXPERTS, NONE);
    whole_arg(p, SUM, REAL, N_GROUPS, N_EXPERTS, NONE);
    whole_arg(p, IN, ACT, p->rows * N_CHOICES, p->width, NONE);
    add_group(p);
    p->reduction = (double)p->width;
}
CALL(expert_peaks) { (void)p, o->expert_peaks(q, t[3], t[4], t[5], plan_at(t), t[6]); }
BUILD(route_margin) { /* one expert more than can be chosen: a margin is finite */
    row_arg(p, OUT, REAL, NONE, NONE);
    add_ids(p, IN, choices_of(p), p->width + 1);
    row_arg(p, IN, REAL, p->width + 1, NONE);
    p->reduction = 2;
}
CALL(route_margin) { (void)p, o->route_margin(q, t[0], t[1], t[2]); }
BUILD(gate_grad) {
    whole_arg(p, SUM, REAL, N_GROUPS, 11, p->width);
    row_arg(p, IN, REAL, 11, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
    add_offsets(p);
    p->reduction = (double)p->rows + 1;
}
CALL(gate_grad) { (void)p, o->gate_grad(q, t[0], t[1], t[2], t[3]); }
BUILD(row_norms) {
    leave_out(row_arg(p, OUT, REAL, NONE, NONE), p->variant == 1);
    leave_out(row_arg(p, OUT, REAL, NONE, NONE), p->variant == 2);
    row_arg(p, IN, REAL, p->width, NONE);
    p->reduction = (double)p->width;
}
CALL(row_norms) { (void)p, o->row_norms(q, t[0], t[1], t[2]); }
BUILD(segment_sums) {
    leave_out(whole_arg(p, SUM, REAL, N_GROUPS, p->width, NONE), p->variant == 1);
    leave_out(whole_arg(p, SUM, REAL, N_GROUPS, p->width, NONE), p->variant == 2);
    row_arg(p, IN, REAL, p->width, NONE);
    add_offsets(p);
    p->reduction = (double)p->rows + 1;
}
CALL(segment_sums) { (void)p, o->segment_sums(q, t[0], t[1], t[2], t[3]); }
BUILD(find_nonfinite) {
    whole_arg(p, OUT, I64, 1, NONE, NONE);
    row_arg(p, IN, ACT, p->width, NONE);
}
CALL(find_nonfinite) { (void)p, o->find_nonfinite(q, t[0], t[1]); }

/* ---- loss and choice; variant 1 has a bias. 43 ids in chunks of 16 ---- */
enum { N_IDS = 43, CHUNK = 16 };
static void add_loss_inputs(Problem *p) {
    row_arg(p, SCRATCH, REAL, CHUNK, NONE);
    Arg *x = row_arg(p, IN, ACT, p->width, NONE);
    x->high = 2 / sqrt((double)p->width); /* keeps the logits small */
    x->low = -x->high;
    whole_arg(p, IN, WEIGHT, N_IDS, p->width, NONE);
    leave_out(whole_arg(p, IN, WEIGHT, N_IDS, NONE, NONE), p->variant == 0);
    Arg *targets = random_ints(p, row_arg(p, IN, I32, NONE, NONE), N_IDS + 4);
    for (int64_t t = 0; t < p->rows; t++)
        if (targets->values[t] >= N_IDS) targets->values[t] = -1;
    p->reduction = 32 + 4 * (double)p->width;
    p->scale = 1;
}
BUILD(cross_entropy) {
    row_arg(p, OUT, REAL, NONE, NONE);
    row_arg(p, OUT, REAL, NONE, NONE);
    add_loss_inputs(p);
}
CALL(cross_entropy) { (void)p, o->cross_entropy(q, t[0], t[1], t[2], t[3], t[4], t[5], t[6]); }
BUILD(cross_entropy_bwd) {
    row_arg(p, SUM, ACT, p->width, NONE);
    row_arg(p, IN, REAL, NONE, NONE);
    Arg *lse = row_arg(p, IN, REAL, NONE, NONE);
    lse->low = 4, lse->high = 5;
    add_loss_inputs(p);
    p->n_stores = 3; /* one for each chunk */
}
CALL(cross_entropy_bwd) { (void)p, o->cross_entropy_bwd(q, t[0], t[3], t[1], t[2], t[4], t[5], t[6], t[7]); }
BUILD(argmax) {
    row_arg(p, OUT, I32, NONE, NONE);
    row_arg(p, IN, REAL, p->width + 2, NONE);
}
CALL(argmax) { o->argmax(q, t[0], t[1], p->width); }

/* variants: all ids, greedy, top-k, top-p */
BUILD(sample) {
    row_arg(p, OUT, I32, NONE, NONE);
    row_arg(p, SCRATCH, I32, p->width + 2, NONE);
    row_arg(p, IN, REAL, p->width + 2, NONE);
    random_ints(p, row_arg(p, IN, I64, 2, NONE), 1 << 30);
}
CALL(sample) {
    SampleRule rule = {.temperature = 0.7f, .top_p = 1, .n_valid = p->width, .seed = 11};
    if (p->variant == 1) rule.temperature = 0;
    if (p->variant == 2) rule.top_k = 3;
    if (p->variant == 3) rule.top_p = 0.6f;
    o->sample(q, t[0], t[1], t[2], t[3], rule);
}

#endif

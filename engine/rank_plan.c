/* The formulas of memory, bytes and time (rank_plan.h). docs/ranks.md has them in words; they are
 * counted as the engine allocates and sends. */
#include "rank_plan.h"
#include "../kernels/check.h"
#include <math.h>

enum { N_BUFFERS = 2, EXCHANGES_FORWARD = 2, EXCHANGES_BACK = 3 };
/* Rows that a rank can take of a layer, over its even share, where nobody knows better. */
static const double SKEW = 2;
/* Of an exchange: start and count exchange, and one message a peer. */
static const double EXCHANGE_SECONDS = 30e-6, MESSAGE_SECONDS = 5e-6;

/* Sizes as doubles: products of them pass 2^63 on the way to being refused. */
typedef struct {
    double T, D, H, J, C, Cv, L, E, K, F, V; /* L: layers with experts */
    double n_layers, act, weight;            /* bytes of an element */
    double expert_bytes, shared_bytes;       /* of one expert; of all else */
} Sizes;

static Sizes sizes_of(const ModelConfig *c, const RankWork *w) {
    int64_t n_total, n_active;
    Sizes s = {.T = (double)w->n_tokens,
               .D = (double)c->hidden_size,
               .H = (double)c->n_heads,
               .J = (double)c->n_kv_heads,
               .C = (double)c->head_size,
               .Cv = (double)c->value_head_size,
               .L = (double)c->n_moe_layers,
               .E = (double)c->n_experts,
               .K = (double)c->n_experts_per_token,
               .F = (double)c->expert_size,
               .V = (double)c->vocab_size,
               .n_layers = (double)c->n_layers,
               .act = (double)dtype_bytes(w->compute),
               .weight = (double)dtype_bytes(w->weights)};
    model_config_count(c, &n_total, &n_active);
    s.expert_bytes = 3 * s.D * s.F * s.weight;
    s.shared_bytes = (double)n_total * s.weight - s.L * s.E * s.expert_bytes;
    return s;
}

/* ---- work ---- */
/* Of a token: every weight that it uses once, forward; on the way back products with their transposes, and
 * q, k, v, gate and up again. */
static double flops_of(const ModelConfig *c, const Sizes *s, const RankWork *w) {
    int64_t n_total, n_active;
    model_config_count(c, &n_total, &n_active);
    const double looked_up = c->tie_embeddings ? 0 : s->V * s->D,
                 forward = 2 * ((double)n_active - looked_up),
                 attention = s->n_layers * s->H * (s->C + s->Cv) * w->mean_length,
                 qkv = 2 * s->n_layers * s->D * (s->H * s->C + s->J * (s->C + s->Cv)),
                 gate_up = 2 * s->L * s->K * 2 * s->D * s->F;
    if (!w->walks_back) return forward + attention;
    return 2 * forward + qkv + gate_up + 3.5 * attention; /* 2 products forward, 5 back */
}

/* ---- memory ---- */
static double saved_bytes(const Sizes *s, const RankWork *w) {
    if (!w->walks_back) return 0;
    const double layer = (2 * s->D + s->H * s->Cv) * s->act + s->H * sizeof(float);
    return s->T * (s->n_layers * layer + s->D * s->act);
}

/* Rows of tokens and numbers of their choices around a layer's experts. */
static double around_bytes(const Sizes *s, const RankWork *w) {
    const double row = s->T * s->D * s->act, routes = s->T * (2 * s->E + 5 * s->K) * sizeof(float);
    return w->walks_back ? 4 * row + routes + s->T * s->E * sizeof(float) : 2 * row + routes;
}

/* What a layer with experts at home holds beside that. Forward: z, h and the results. Back: z, its gradient
 * and the sums of the products, f32, twice with different widths. */
static double expert_bytes(const Sizes *s, const RankWork *w) {
    const double sums = sizeof(float) * fmax(s->F, s->D),
                 pair = w->walks_back ? 4 * s->F * s->act + sums : (3 * s->F + s->D) * s->act;
    return s->T * s->K * pair;
}

/* Where tokens travel. A home has rows of all pairs, on the way back of two kinds, and what comes back:
 * results, and a copy by expert for who looks at them, or f32 terms. An owner has as many kinds for the pairs
 * that come to it, f32 terms in both orders, and the work of its experts, the sums of both widths at once. */
static void travel_bytes(const Sizes *s, const RankWork *w, RankMemory *m) {
    const double pairs = s->T * s->K, comes = pairs * (w->skew > 0 ? w->skew : SKEW), row = s->D * s->act,
                 term = s->D * sizeof(float), F = s->F;
    if (w->walks_back) {
        m->exchange = pairs * (2 * row + term) + comes * (2 * row + 2 * term);
        m->experts = around_bytes(s, w) + comes * F * (4 * s->act + sizeof(float));
    } else {
        m->exchange = pairs * 3 * row + comes * 2 * row;
        m->experts = around_bytes(s, w) + comes * F * 3 * s->act;
    }
}

static double lora_bytes(const Sizes *s, const RankWork *w, double group) {
    const double here = ceil((double)w->n_cells / group);
    return here * 3 * (double)w->lora_rank * (s->D + s->F) * sizeof(float) * (double)w->lora_copies;
}

/* All but the weights. */
static RankMemory work_memory(const Sizes *s, const RankWork *w, int64_t group, bool tokens_travel) {
    RankMemory m = {.saved = saved_bytes(s, w),
                    .experts = around_bytes(s, w) + expert_bytes(s, w),
                    .lora = lora_bytes(s, w, tokens_travel ? (double)group : 1)};
    if (tokens_travel) travel_bytes(s, w, &m);
    if (w->walks_back) m.gates = (double)w->n_prompts * s->E * s->D * sizeof(float);
    if (w->n_decoded)
        m.cache =
            (s->T + (double)(w->n_prompts * w->n_decoded)) * s->n_layers * s->J * (s->C + s->Cv) * s->act;
    return m;
}

static double sum_of(const RankMemory *m) {
    return m->weights + m->saved + m->exchange + m->experts + m->gates + m->cache + m->lora;
}

/* Layers to stream, so that the others stay beside the rest; all of them where even that is too much. */
static int64_t count_streamed(const Sizes *s, double layer_bytes, double rest, double usable) {
    const double fit = floor((usable - rest - s->shared_bytes - N_BUFFERS * layer_bytes) / layer_bytes);
    return (int64_t)(s->L - fmin(fmax(fit, 0), s->L));
}

static double weight_bytes(const RankPlan *p, const Sizes *s) {
    const double layer = (double)p->n_experts * s->expert_bytes;
    const int64_t buffers = p->n_streamed < N_BUFFERS ? p->n_streamed : N_BUFFERS;
    if (p->residency == RESIDENCY_STREAMED)
        return s->shared_bytes + (s->L - (double)p->n_streamed + (double)buffers) * layer;
    if (p->residency == RESIDENCY_PEERS && p->group > 1)
        return s->shared_bytes + s->L * layer + fmin(N_BUFFERS, s->L) * s->E * s->expert_bytes;
    return s->shared_bytes + s->L * layer;
}

/* ---- time ---- */
/* Seconds to send so many bytes evenly to the other members of a group, each of which has 1 / n of it: those
 * of the node over its link, the others over the network, at once. */
static double send_seconds(const RankPlan *p, const RankDevice *d, double n_bytes) {
    const double n = (double)p->group, here = fmin(n, (double)p->placement.per_node);
    return n_bytes / n * fmax((here - 1) / d->node_bytes_per_s, (n - here) / d->network_bytes_per_s);
}

static double latency(const RankPlan *p) {
    return EXCHANGE_SECONDS + MESSAGE_SECONDS * (double)(p->group - 1);
}

/* What is sent for a token in a pass, were every expert elsewhere. Of each choice, forward: its row, the
 * result, the expert's number. Back: the row again, the gradient of the result, the combine weight and the
 * number; from the owner the gradient of the weight, and, f32, that of the row, which nobody wants in the
 * lowest layer. */
static double moved_bytes(const Sizes *s, const RankWork *w) {
    const double number = sizeof(float), row = s->D * s->act, term = s->D * sizeof(float),
                 forward = 2 * row + number, back = 2 * row + term + 3 * number;
    return s->K * (s->L * forward + (w->walks_back ? s->L * back - term : 0));
}

/* Of a rank in a pass, whatever its tokens: two integers to each other one say what comes. */
static double count_bytes(const RankPlan *p, const Sizes *s, const RankWork *w) {
    return (w->walks_back ? 2 : 1) * s->L * (double)(p->group - 1) * 2 * sizeof(int64_t);
}

/* Of the fullest rank's own weights, those that it sends to each of the others in a pass. */
static double own_gathered(const RankPlan *p, const Sizes *s, bool walks_back) {
    const int64_t n = placement_count_copies((int64_t)s->L, walks_back, false);
    return (double)(n * p->n_experts) * s->expert_bytes;
}

static void time_pass(RankPlan *p, const Sizes *s, const RankWork *w, const RankDevice *d) {
    const bool tokens_travel = p->group > 1 && p->residency != RESIDENCY_PEERS;
    const double row = s->K * s->D * s->act, share = (double)(p->group - 1) / (double)p->group;
    p->compute_seconds = s->T * p->flops / d->flops_per_s;
    if (tokens_travel) {
        const double moved = moved_bytes(s, w);
        p->n_exchanges = EXCHANGES_FORWARD + (w->walks_back ? EXCHANGES_BACK : 0);
        p->sent_bytes = row * share;
        p->moved_bytes = moved * share;
        p->count_bytes = count_bytes(p, s, w);
        p->exchange_seconds = s->T * send_seconds(p, d, moved) + (double)p->n_exchanges * s->L * latency(p);
    } else if (p->group > 1) {
        const double own = own_gathered(p, s, w->walks_back);
        p->gathered_bytes = own * (double)(p->group - 1);
        p->copy_seconds = send_seconds(p, d, own * (double)p->group);
    }
    if (p->residency == RESIDENCY_STREAMED) {
        const int64_t n = placement_count_copies(p->n_streamed, w->walks_back, false);
        p->copied_bytes = (double)(n * p->n_experts) * s->expert_bytes;
        p->copy_seconds = p->copied_bytes / d->host_bytes_per_s;
    }
    p->pass_seconds = fmax(p->compute_seconds + p->exchange_seconds, p->copy_seconds);
    p->efficiency = p->pass_seconds > 0 ? p->compute_seconds / p->pass_seconds : 1;
    p->hidden_from = p->copy_seconds * d->flops_per_s / p->flops;
}

/* Weights read once, and whatever has to come from elsewhere. */
static void time_step(RankPlan *p, const Sizes *s, const RankWork *w, const RankDevice *d) {
    if (!w->n_decoded) return;
    const double held = s->shared_bytes + s->L * (double)p->n_experts * s->expert_bytes,
                 all = s->L * s->E * s->expert_bytes;
    double read = held / d->dram_bytes_per_s, copied = 0;
    if (p->residency == RESIDENCY_STREAMED)
        copied = (double)(placement_count_copies(p->n_streamed, false, false) * p->n_experts) *
                 s->expert_bytes / d->host_bytes_per_s;
    if (p->group > 1 && p->residency == RESIDENCY_PEERS) {
        copied = send_seconds(p, d, own_gathered(p, s, false) * (double)p->group);
        read = (s->shared_bytes + all) / d->dram_bytes_per_s;
    } else if (p->group > 1) {
        read += EXCHANGES_FORWARD * s->L * latency(p);
    }
    p->step_seconds = fmax(read, copied);
}

/* ---- the plans ---- */
/* The group with the fewest ranks has ranks with the most experts. */
static void find_fullest(RankPlan *p) {
    for (int64_t r = 0; r < p->placement.n_ranks; r++) {
        const int64_t n = placement_experts(&p->placement, r).n, group = placement_group(&p->placement, r).n;
        if (n > p->n_experts) p->n_experts = n;
        if (group > p->group) p->group = group;
    }
}

RankPlan rank_plan_make(const ModelConfig *config, const RankWork *work, const RankDevice *device,
                        Placement placement, Residency residency, int64_t n_streamed) {
    check(residency != RESIDENCY_AUTO && config->n_moe_layers > 0, "residency %d", (int)residency);
    const Sizes s = sizes_of(config, work);
    RankPlan p = {.residency = residency, .placement = placement, .usable_bytes = device->usable_bytes};
    find_fullest(&p);
    p.memory = work_memory(&s, work, p.group, p.group > 1 && residency != RESIDENCY_PEERS);
    if (residency == RESIDENCY_STREAMED) {
        p.n_streamed = n_streamed;
        if (n_streamed < 0)
            p.n_streamed = count_streamed(&s, (double)p.n_experts * s.expert_bytes, sum_of(&p.memory),
                                          device->usable_bytes);
    }
    p.memory.weights = weight_bytes(&p, &s);
    p.memory.sum = sum_of(&p.memory);
    p.fits = p.memory.sum <= p.usable_bytes;
    p.flops = flops_of(config, &s, work);
    time_pass(&p, &s, work, device);
    time_step(&p, &s, work, device);
    p.seconds = p.pass_seconds + (double)work->n_decoded * p.step_seconds;
    return p;
}

RankMemory rank_plan_memory(const ModelConfig *config, const RankWork *work, const RankPlan *plan,
                            int64_t rank) {
    const Sizes s = sizes_of(config, work);
    RankPlan of_rank = *plan;
    of_rank.n_experts = placement_experts(&plan->placement, rank).n;
    of_rank.memory.weights = weight_bytes(&of_rank, &s);
    of_rank.memory.sum = sum_of(&of_rank.memory);
    return of_rank.memory;
}

/* Of two that fit the faster one, of two that do not the smaller one. */
static bool is_better(const RankPlan *p, const RankPlan *than) {
    if (p->fits != than->fits) return p->fits;
    return p->fits ? p->seconds < than->seconds : p->memory.sum < than->memory.sum;
}

Placement rank_plan_whole(const ModelConfig *config, int64_t n_ranks) {
    return (Placement){.n_ranks = n_ranks, .n_experts = config->n_experts, .per_node = 1};
}

static Residency residency_of(const RankWork *work, Placement placement, Residency residency) {
    return work->n_cells && placement_group(&placement, 0).n > 1 ? RESIDENCY_PEERS : residency;
}

/* As few as must be for all of the works. */
static int64_t least_streamed(const ModelConfig *config, const RankWork *works, int64_t n_works,
                              const RankDevice *device, Placement placement) {
    int64_t most = 0;
    for (int64_t i = 0; i < n_works; i++) {
        const Residency residency = residency_of(&works[i], placement, RESIDENCY_STREAMED);
        const int64_t n = rank_plan_make(config, &works[i], device, placement, residency, -1).n_streamed;
        if (n > most) most = n;
    }
    return most;
}

RankPlan rank_plan_make_all(const ModelConfig *config, const RankWork *works, int64_t n_works,
                            const RankDevice *device, Placement placement, Residency residency,
                            int64_t n_streamed) {
    RankPlan largest = {0};
    double seconds = 0;
    if (residency == RESIDENCY_STREAMED && n_streamed < 0)
        n_streamed = least_streamed(config, works, n_works, device, placement);
    for (int64_t i = 0; i < n_works; i++) {
        const Residency own = residency_of(&works[i], placement, residency);
        const RankPlan p = rank_plan_make(config, &works[i], device, placement, own, n_streamed);
        seconds += p.seconds;
        if (i == 0 || p.memory.sum > largest.memory.sum) largest = p;
    }
    largest.residency = residency;
    largest.n_streamed = residency == RESIDENCY_STREAMED ? n_streamed : 0;
    largest.seconds = seconds;
    return largest;
}

RankPlan rank_plan_choose_all(const ModelConfig *config, const RankWork *works, int64_t n_works,
                              const RankDevice *device, int64_t n_ranks, Residency residency) {
    const bool any = residency == RESIDENCY_AUTO;
    const Placement whole = rank_plan_whole(config, n_ranks),
                    within = {n_ranks, config->n_experts, device->per_node, false},
                    across = {n_ranks, config->n_experts, device->per_node, true};
    /* of equals the first is taken: the whole model on each rank needs nothing of the others, while copies
     * from the host take its memory once for each rank */
    const struct {
        Placement placement;
        Residency residency;
        bool of_auto;
    } ways[] = {{whole, RESIDENCY_RESIDENT, true},   {within, RESIDENCY_RESIDENT, false},
                {within, RESIDENCY_STREAMED, false}, {within, RESIDENCY_PEERS, false},
                {across, RESIDENCY_RESIDENT, false}, {across, RESIDENCY_STREAMED, false},
                {across, RESIDENCY_PEERS, false},    {whole, RESIDENCY_STREAMED, true}};
    RankPlan best = {0};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        const Residency r = ways[i].residency;
        const bool alone = placement_group(&ways[i].placement, 0).n == 1;
        if (!any && (r != residency || ways[i].of_auto)) continue;
        if (r == RESIDENCY_PEERS && alone && n_ranks > 1) continue;
        if (any && r == RESIDENCY_STREAMED && device->host_bytes_per_s == 0) continue;
        const int64_t n_streamed = any ? -1 : config->n_moe_layers;
        const RankPlan p =
            rank_plan_make_all(config, works, n_works, device, ways[i].placement, r, n_streamed);
        if (!best.group || is_better(&p, &best)) best = p;
    }
    return best;
}

RankPlan rank_plan_choose(const ModelConfig *config, const RankWork *work, const RankDevice *device,
                          int64_t n_ranks, Residency residency) {
    return rank_plan_choose_all(config, work, 1, device, n_ranks, residency);
}

int64_t rank_plan_least_ranks(const ModelConfig *config, const RankWork *work, const RankDevice *device,
                              Residency residency) {
    for (int64_t n = 1; n <= RANK_PLAN_MOST_RANKS; n++)
        if (rank_plan_choose(config, work, device, n, residency).fits) return n;
    return 0;
}

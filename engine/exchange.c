/* Order at home, counts, and the memory of the owner's part (exchange.h), whose program runs on the cost
 * device first: that says how large the block must be. */
#include "../kernels/check.h"
#include "alloc.h"
#include "exchange_parts.h"
#include "queue.h"
#include "watchdog.h"
#include <string.h>

/* ---- start and end ---- */
Exchange *exchange_new(const Model *model, Error *error) {
    const Spread *spread = &model->spread;
    const int64_t n_experts = model->config.n_experts;
    Exchange *e = mem_zeroed(1, sizeof *e);
    if (e) {
        *e = (Exchange){.device = model->device, .comm = spread->comm};
        e->own = placement_experts(&spread->placement, e->comm->rank);
        e->owner = mem_zeroed((size_t)n_experts, sizeof *e->owner);
        e->cursor = mem_zeroed((size_t)n_experts, sizeof *e->cursor);
        e->cost = cost_device.queue_new();
        for (int64_t i = 0; e->owner && i < n_experts; i++)
            e->owner[i] = (int32_t)placement_owner(&spread->placement, i, e->comm->rank);
        if (e->owner && e->cursor && e->cost) return e;
    }
    error_out_of_memory(error, "an exchange of tokens", (size_t)n_experts * sizeof *e->owner);
    exchange_free(e);
    return NULL;
}

void exchange_free(Exchange *e) {
    if (!e) return;
    const Numbers all[] = {e->ids,     e->rows, e->pairs,    e->tokens,
                           e->by_plan, e->sent, e->received, e->counting};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i].data);
    if (e->block) e->device->free(e->block);
    if (e->cost) cost_device.queue_free(e->cost);
    mem_free(e->owner);
    mem_free(e->cursor);
    mem_free(e);
}

size_t exchange_bytes(const Exchange *e) { return e->block_bytes; }

/* ---- what all calls share ---- */
static Exchange *exchange_of(const RemoteExperts *remote) { return ((const Model *)remote->site)->exchange; }

int32_t *exchange_reserve(Exchange *e, Numbers *numbers, int64_t n) {
    if (n <= numbers->n && numbers->data) return numbers->data;
    mem_free(numbers->data);
    *numbers = (Numbers){mem_alloc((size_t)(n + 1) * sizeof *numbers->data), n};
    if (numbers->data) return numbers->data;
    Error error = {0};
    error_out_of_memory(&error, "the order of travelling tokens", (size_t)n * sizeof *numbers->data);
    comm_fail(e->comm, &error);
}

/* Until all before is done: the block and the numbers of the host are free again. */
static void wait_for(Exchange *e, Queue *queue) {
    Error error = {0};
    comm_wait(e->comm, queue);
    if (!queue_wait(e->device, queue, &error)) comm_fail(e->comm, &error);
}

static int64_t sum(const int64_t *x, int n) {
    int64_t s = 0;
    for (int r = 0; r < n; r++) s += x[r];
    return s;
}

/* ---- at home: the order ---- */
static void check_ids(Exchange *e, const int32_t *ids, int64_t n, int64_t n_experts) {
    Error error = {0};
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] >= 0 && ids[i] < n_experts) continue;
        error_set(&error, ERROR_FAILED, "router: expected an expert from 0 to %lld: got %d",
                  (long long)n_experts - 1, (int)ids[i]);
        comm_fail(e->comm, &error);
    }
}

/* by_plan: as moe_plan orders, by expert, a counting sort. */
static void order_by_plan(Exchange *e, const int32_t *ids, const int32_t *rows, int64_t n,
                          int64_t n_experts) {
    int32_t *by_plan = exchange_reserve(e, &e->by_plan, n), *cursor = e->cursor, first = 0;
    memset(cursor, 0, (size_t)n_experts * sizeof *cursor);
    for (int64_t i = 0; i < n; i++) cursor[ids[i]]++;
    for (int64_t x = 0; x < n_experts; x++) {
        const int32_t count = cursor[x];
        cursor[x] = first;
        first += count;
    }
    for (int64_t i = 0; i < n; i++) by_plan[cursor[ids[i]]++] = rows[i];
}

static void order_pairs(Exchange *e, const int32_t *ids, int64_t n, int64_t n_chosen) {
    int32_t *rows = exchange_reserve(e, &e->rows, n), *pairs = exchange_reserve(e, &e->pairs, n),
            *tokens = exchange_reserve(e, &e->tokens, n), *sent = exchange_reserve(e, &e->sent, n);
    int64_t at[COMM_MAX_RANKS] = {0};
    memset(e->out, 0, sizeof e->out);
    for (int64_t i = 0; i < n; i++) e->out[e->owner[ids[i]]]++;
    for (int r = 1; r < e->comm->size; r++) at[r] = at[r - 1] + e->out[r - 1];
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = at[e->owner[ids[i]]]++;
        rows[i] = (int32_t)row;
        pairs[row] = (int32_t)i;
        tokens[row] = (int32_t)(i / n_chosen);
        sent[row] = ids[i];
    }
}

static void arrange(const RemoteExperts *remote, Context *c, Tensor ids, TravelOrder *order) {
    Exchange *e = exchange_of(remote);
    const Model *model = remote->site;
    const int64_t n = tensor_count(ids), n_chosen = tensor_columns(ids);
    if (c->device->computes) {
        int32_t *chosen = exchange_reserve(e, &e->ids, n);
        c->device->copy_out(c->queue, chosen, ids);
        wait_for(e, c->queue);
        check_ids(e, chosen, n, model->config.n_experts);
        order_pairs(e, chosen, n, n_chosen);
        order_by_plan(e, chosen, e->rows.data, n, model->config.n_experts);
    }
    *order = (TravelOrder){
        .rows = tensor_as_matrix(tape_upload(c, DTYPE_I32, n, e->rows.data), tensor_rows(ids), n_chosen),
        .pairs = tape_upload(c, DTYPE_I32, n, e->pairs.data),
        .tokens = tape_upload(c, DTYPE_I32, n, e->tokens.data),
        .by_plan = tape_upload(c, DTYPE_I32, n, e->by_plan.data)};
}

/* ---- a layer ---- */
static void grow_block(Exchange *e, size_t n_bytes) {
    if (n_bytes <= e->block_bytes) return;
    if (e->block) e->device->free(e->block);
    e->block = e->device->alloc(n_bytes);
    e->block_bytes = e->block ? n_bytes : 0;
    if (e->block) return;
    Error error = {0};
    error_set(&error, ERROR_UNAVAILABLE,
              "rows of other ranks' tokens: expected %zu bytes on device %s: got none", n_bytes,
              e->device->name);
    comm_fail(e->comm, &error);
}

/* Who sends how many rows, of which experts. Ranks with rows want the gradient of x alike. */
static void announce(Owner *o, bool wants_dx) {
    Exchange *e = o->e;
    int64_t mine[2 * COMM_MAX_RANKS], theirs[2 * COMM_MAX_RANKS];
    for (int r = 0; r < e->comm->size; r++) mine[2 * r] = e->out[r], mine[2 * r + 1] = wants_dx;
    comm_exchange_counts(e->comm, theirs, mine, 2);
    o->wants_dx = wants_dx;
    for (int r = 0; r < e->comm->size; r++) {
        e->in[r] = theirs[2 * r];
        o->wants_dx = o->wants_dx || theirs[2 * r + 1];
    }
    o->n = sum(e->in, e->comm->size);
    const int64_t n_out = sum(e->out, e->comm->size);
    check(!n_out || o->wants_dx == wants_dx, "rank %d walks another way back, with %lld rows", e->comm->rank,
          (long long)n_out);
    if (o->n > INT32_MAX) {
        Error error = {0};
        error_set(&error, ERROR_FAILED, "rows of other ranks' tokens: expected at most %d: got %lld",
                  INT32_MAX, (long long)o->n);
        comm_fail(e->comm, &error);
    }
    const Tensor sent = tensor_matrix(exchange_reserve(e, &e->sent, n_out), DTYPE_I32, n_out, 1),
                 received = tensor_matrix(exchange_reserve(e, &e->received, o->n), DTYPE_I32, o->n, 1);
    comm_all_to_all(e->comm, NULL, received, e->in, sent, e->out);
}

static size_t program_bytes(const Owner *o, Tensor y, Tensor x, const TravelGradients *back) {
    Owner plan = *o;
    plan.c.device = &cost_device;
    plan.c.arena = (Arena){.capacity = SIZE_MAX / 2};
    if (o->c.device->computes || !o->c.queue) plan.c.queue = o->e->cost;
    exchange_owner_run(&plan, y, x, back);
    return plan.c.arena.peak;
}

/* The program's memory, then the program. What the cost device is asked to count is the work of the rank's
 * own rows, as if it had their experts. */
static void run_layer(Owner *o, Tensor y, Tensor x, const TravelGradients *back) {
    const size_t n_bytes = program_bytes(o, y, x, back);
    if (!o->c.device->computes) return;
    watchdog_tick();
    grow_block(o->e, n_bytes);
    o->c.arena = (Arena){.base = o->e->block, .capacity = o->e->block_bytes};
    exchange_owner_run(o, y, x, back);
    check(o->c.arena.peak == n_bytes, "%zu bytes planned, %zu used", n_bytes, o->c.arena.peak);
}

static void forward(const RemoteExperts *remote, Context *c, Tensor y, Tensor x) {
    Owner o = exchange_owner(remote->site, remote->layer, c);
    o.n = tensor_rows(x);
    if (c->device->computes) announce(&o, false);
    run_layer(&o, y, x, NULL);
}

static void backward(const RemoteExperts *remote, Context *c, const TravelGradients *g) {
    Owner o = exchange_owner(remote->site, remote->layer, c);
    o.n = tensor_rows(g->x);
    o.wants_dx = tensor_present(g->dx[TRAVEL_PRODUCT]);
    if (c->device->computes) announce(&o, o.wants_dx);
    run_layer(&o, (Tensor){0}, (Tensor){0}, g);
}

RemoteExperts exchange_experts(const Model *model, int64_t layer) {
    return (RemoteExperts){
        .site = model, .layer = layer, .arrange = arrange, .forward = forward, .backward = backward};
}

/* ---- without rows of its own ---- */
static int64_t nothing; /* where 0 rows lie */

static Context context_of(const Model *model, Queue *queue) {
    const DType real = model->compute == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
    return (Context){.device = model->device, .queue = queue, .act = model->compute, .real = real};
}

static Tensor no_rows(DType dtype, int64_t columns) { return tensor_matrix(&nothing, dtype, 0, columns); }

static TravelGradients no_gradients(const Context *c, int64_t columns) {
    const Tensor rows = no_rows(c->act, columns), terms = no_rows(c->real, columns);
    return (TravelGradients){.x = rows,
                             .dout = rows,
                             .weights = no_rows(c->real, 1),
                             .dx = {terms, terms, terms},
                             .dweights = no_rows(c->real, 1)};
}

void exchange_serve(const Model *model, Queue *queue, int64_t layer, bool back) {
    Exchange *e = model->exchange;
    const Context c = context_of(model, queue);
    const Tensor rows = no_rows(c.act, model->config.hidden_size);
    const TravelGradients home = no_gradients(&c, model->config.hidden_size);
    Owner o = exchange_owner(model, layer, &c);
    wait_for(e, queue);
    memset(e->out, 0, sizeof e->out);
    announce(&o, false);
    run_layer(&o, rows, rows, back ? &home : NULL);
}

size_t exchange_expected_growth(const Model *model, int64_t n_tokens, bool walks_back) {
    const Exchange *e = model->exchange;
    const Context c = context_of(model, NULL);
    const Tensor rows = no_rows(c.act, model->config.hidden_size);
    const TravelGradients home = no_gradients(&c, model->config.hidden_size);
    size_t most = 0;
    for (int64_t layer = 0; layer < model->config.n_layers; layer++) {
        if (model->config.layer_is_dense[layer]) continue;
        Owner o = exchange_owner(model, layer, &c);
        o.n = 2 * n_tokens * model->config.n_experts_per_token;
        o.wants_dx = walks_back;
        const size_t n_bytes = program_bytes(&o, rows, rows, walks_back ? &home : NULL);
        if (n_bytes > most) most = n_bytes;
    }
    return most > e->block_bytes ? most - e->block_bytes : 0;
}

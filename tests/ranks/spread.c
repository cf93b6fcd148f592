/* Tokens that travel: on any number of ranks, with experts spread over them, every number that a hook or a
 * result shows of a prompt has the bits that the whole model gives it on one rank; and the transport has sent
 * the bytes that exchange.h says, counted from the choices themselves.
 *   mpirun -n N rank_spread               prints "ok N ranks, C cases, B bytes compared on rank 0"
 *   mpirun -n N rank_spread hook|memory   rank 1 fails in a hook, or has no memory for the others' rows */
#include "engine/exchange.h"
#include "engine/generate.h"
#include "engine/lora.h"
#include "engine/text.h"
#include "kernels/check.h"
#include "tests/engine/random_model.h"

enum { N_NEW = 7, N_HOMES = 3 };

/* ---- what a run shows ---- */
typedef struct {
    char *bytes;
    size_t n, capacity;
    int64_t n_routes, n_remote; /* pairs of the whole pass whose expert is elsewhere, of all its layers */
    const Model *model;         /* NULL: nothing is counted */
} Log;

static void put(Log *log, const void *from, size_t n) {
    while (log->n + n > log->capacity) {
        log->capacity = 2 * log->capacity + n;
        char *grown = mem_alloc(log->capacity);
        check(grown, "out of memory: %zu bytes", log->capacity);
        if (log->n) memcpy(grown, log->bytes, log->n);
        mem_free(log->bytes);
        log->bytes = grown;
    }
    memcpy(log->bytes + log->n, from, n);
    log->n += n;
}

static void put_tensor(Log *log, HookSite *site, Tensor t) {
    char *host = mem_alloc(tensor_bytes(t) + 1);
    site->device->copy_out(site->queue, host, t);
    check(site->device->sync(site->queue), "%s", site->queue->failure);
    put(log, host, tensor_bytes(t));
    mem_free(host);
}

static void count_remote(Log *log, Tensor ids) {
    const Spread *spread = &log->model->spread;
    const int32_t *chosen = ids.data;
    for (int64_t i = 0; i < tensor_count(ids); i++)
        log->n_remote +=
            placement_owner(&spread->placement, chosen[i], spread->comm->rank) != spread->comm->rank;
}

static bool on_route(void *context, HookSite *site, const RouteView *v) {
    Log *log = context;
    const Tensor shown[] = {v->input, v->logits, v->probs, v->ids, v->weights, v->outputs, v->plan.pairs};
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) put_tensor(log, site, shown[i]);
    log->n_routes++;
    if (log->model) count_remote(log, v->ids);
    return true;
}

static bool on_residual(void *context, HookSite *site, int64_t layer, Tensor x) {
    put(context, &layer, sizeof layer);
    put_tensor(context, site, x);
    return true;
}

static bool on_route_grad(void *context, HookSite *site, const RouteGradView *v) {
    put_tensor(context, site, v->logits_grad);
    put_tensor(context, site, v->weights_grad);
    return true;
}

static bool on_embedding_grad(void *context, HookSite *site, Tensor grad) {
    put_tensor(context, site, grad);
    return true;
}

/* ---- a case ---- */
typedef struct {
    RandomModel r;
    DType compute;
    int64_t per_node; /* 0: all ranks */
    int homes;        /* which rank has which prompt */
    bool walks, recomputes, to_embedding, edited, adapted;
} Case;

typedef struct {
    const Case *c;
    Comm *comm;
    Model whole, part;
    EditTable edits;
    Adapter adapter;
    LoraWeights lora;
    int64_t n_prompts, offsets[R_PROMPTS + 1]; /* this rank's */
    int32_t tokens[R_TOKENS];
    float loss_weights[R_TOKENS];
    int64_t keys[R_PROMPTS];
} Setup;

static void must(bool ok, const Error *error) { check(ok, "%s", error->text); }

/* The same model with this rank's experts alone. */
static void open_part(Setup *s) {
    Error error = {0};
    const int64_t n_experts = s->c->r.n_experts;
    s->part = s->whole;
    s->part.spare = mem_zeroed(1, sizeof *s->part.spare);
    s->part.spread = (Spread){
        .comm = s->comm,
        .residency = RESIDENCY_RESIDENT,
        .placement = {s->comm->size, n_experts, s->c->per_node ? s->c->per_node : s->comm->size, false}};
    const Range own = placement_experts(&s->part.spread.placement, s->comm->rank);
    s->part.weights.layers = mem_zeroed(R_LAYERS, sizeof(LayerWeights));
    for (int64_t l = 0; l < R_LAYERS; l++) {
        LayerWeights *w = &s->part.weights.layers[l];
        *w = s->whole.weights.layers[l];
        if (s->whole.config.layer_is_dense[l]) continue;
        w->gate_up = tensor_slice(w->gate_up, own.first, own.n);
        w->down = tensor_slice(w->down, own.first, own.n);
    }
    if (spread_tokens_travel(&s->part.spread)) {
        s->part.exchange = exchange_new(&s->part, &error);
        must(s->part.exchange != NULL, &error);
    }
}

/* Cells of every projection, in layers with experts, several of a layer and experts of several ranks; and a
 * row of a router. */
static void open_adapter(Setup *s) {
    Error error = {0};
    uint64_t state = 5;
    const ModelConfig *config = &s->whole.config;
    for (int64_t layer = 0; layer < R_LAYERS; layer += 2)
        for (int64_t i = 0; i < 3 * N_PROJECTIONS; i++) {
            const AdapterCell like = {.layer = layer,
                                      .expert = i / N_PROJECTIONS * 2,
                                      .projection = (Projection)(i % N_PROJECTIONS),
                                      .rank = 1 + i % 4,
                                      .scale = 0.7f};
            AdapterCell *cell;
            must(adapter_add(&s->adapter, config, like, &cell, &error), &error);
            const int64_t n_a = cell->rank * projection_in(config, cell->projection),
                          n_b = cell->rank * projection_out(config, cell->projection);
            for (int64_t k = 0; k < n_a; k++) cell->a[k] = 0.4f * (float)random_value(&state);
            for (int64_t k = 0; k < n_b; k++) cell->b[k] = 0.4f * (float)random_value(&state);
        }
    RouterRow *row;
    must(adapter_add_row(&s->adapter, config, 0, 1, &row, &error), &error);
    for (int64_t k = 0; k < R_HIDDEN; k++) row->values[k] = 0.1f * (float)random_value(&state);
    must(lora_weights_make(&s->adapter, &s->whole, &s->lora, &error), &error);
    s->whole.adapter = s->part.adapter = &s->lora;
}

static int home_of(const Setup *s, int p) {
    const int size = s->comm->size, homes[N_HOMES] = {p % size, size - 1, p / 3};
    return homes[s->c->homes] < size ? homes[s->c->homes] : size - 1;
}

static void open_setup(Setup *s, const Case *c, Comm *comm) {
    Error error = {0};
    int32_t tokens[R_TOKENS];
    *s = (Setup){.c = c, .comm = comm};
    random_model_open(&s->whole, c->r, c->compute == DTYPE_F64 ? cpu_device_named("f64") : cpu_device(),
                      c->compute, 11);
    open_part(s);
    if (c->adapted) open_adapter(s);
    must(edit_table_make(&s->whole.config, 1, &s->edits, &error), &error);
    must(edit_table_put(&s->edits, &s->whole.config, 0, (CellEdit){0, 1, EDIT_MASK, 0}, &error), &error);
    must(edit_table_put(&s->edits, &s->whole.config, 0, (CellEdit){2, 3, EDIT_ZERO, 0}, &error), &error);
    random_tokens(tokens, 23);
    for (int p = 0; p < R_PROMPTS; p++) {
        if (home_of(s, p) != comm->rank) continue;
        const int64_t n = R_OFFSETS[p + 1] - R_OFFSETS[p], at = s->offsets[s->n_prompts];
        memcpy(s->tokens + at, tokens + R_OFFSETS[p], (size_t)n * sizeof *tokens);
        for (int64_t i = 0; i < n; i++) s->loss_weights[at + i] = 0.02f + 0.001f * (float)(R_OFFSETS[p] + i);
        s->keys[s->n_prompts++] = p;
        s->offsets[s->n_prompts] = at + n;
    }
}

static void close_setup(Setup *s) {
    exchange_free(s->part.exchange);
    if (s->part.spare->block) s->part.device->free(s->part.spare->block);
    mem_free(s->part.spare);
    mem_free(s->part.weights.layers);
    if (s->c->adapted) lora_weights_free(&s->lora);
    adapter_free(&s->adapter);
    edit_table_free(&s->edits);
    random_model_close(&s->whole);
}

static void compare(const Setup *s, const Log *whole, const Log *part, const char *what) {
    check(whole->n == part->n, "%s: %zu bytes, %zu of one rank", what, part->n, whole->n);
    for (size_t i = 0; i < whole->n; i++)
        check(whole->bytes[i] == part->bytes[i], "%s, rank %d: byte %zu of %zu differs from one rank's", what,
              s->comm->rank, i, whole->n);
}

/* ---- passes ---- */
/* Some cases have ranks that keep what others compute again, by choice or because of their memory. */
static PassOptions options_of(const Setup *s) {
    const bool odd = s->comm->rank % 2, recomputes = s->c->recomputes != (s->c->homes == 2 && odd);
    PassOptions options = {.loss_weights = s->c->walks ? s->loss_weights : NULL,
                           .edits = s->c->edited ? &s->edits : NULL,
                           .recompute = recomputes ? RECOMPUTE_ALWAYS : RECOMPUTE_NEVER,
                           .want_nll = true};
    if (s->c->homes) return options;
    options.recompute = RECOMPUTE_AUTO;
    options.memory_limit_bytes = odd ? 1 << 16 : 0;
    return options;
}

static void pass(const Setup *s, const Model *model, Log *log) {
    const PromptBatch batch = {s->n_prompts, s->offsets, s->tokens};
    const PassOptions options = options_of(s);
    Hooks hooks = {.context = log, .route = on_route, .residual = on_residual, .route_grad = on_route_grad};
    if (s->c->to_embedding) hooks.embedding_grad = on_embedding_grad;
    PassResult result;
    Error error = {0};
    must(model_pass(model, &batch, &options, &hooks, &result, &error), &error);
    put(log, result.nll, (size_t)s->offsets[s->n_prompts] * sizeof *result.nll);
    pass_result_free(&result);
}

/* Bytes of a layer's pairs, sent by their homes and their owners; exchange.h. */
static int64_t pair_bytes(const Setup *s, int64_t layer) {
    const int64_t act = (int64_t)dtype_bytes(s->c->compute), d = R_HIDDEN,
                  real = s->c->compute == DTYPE_F64 ? 8 : 4, forward = 2 * d * act + 4,
                  terms = s->c->adapted && layer % 2 == 0 ? N_TRAVEL_TERMS : 1;
    if (!s->c->walks) return forward;
    const bool wants_dx = layer > 0 || s->c->to_embedding;
    return forward + 2 * d * act + 2 * real + 4 + (wants_dx ? terms * d * real : 0);
}

typedef struct {
    Log log;
    const Setup *s;
    int64_t n_bytes;
} Counted;

/* Every rank's choices, from its own whole model. */
static bool count_route(void *context, HookSite *site, const RouteView *v) {
    (void)site;
    Counted *counted = context;
    counted->log.n_remote = 0;
    count_remote(&counted->log, v->ids);
    counted->n_bytes += counted->log.n_remote * pair_bytes(counted->s, v->layer);
    return true;
}

static int64_t expected_bytes(const Setup *s) {
    const int64_t size = s->comm->size, layers = s->whole.config.n_moe_layers * (s->c->walks ? 2 : 1);
    Counted counted = {.log = {.model = &s->part}, .s = s, .n_bytes = layers * (size - 1) * 16};
    const PromptBatch batch = {s->n_prompts, s->offsets, s->tokens};
    PassOptions options = options_of(s);
    PassResult result;
    Error error = {0};
    options.loss_weights = NULL;
    if (s->n_prompts) {
        must(model_pass(&s->whole, &batch, &options, &(Hooks){.context = &counted, .route = count_route},
                        &result, &error),
             &error);
        pass_result_free(&result);
    }
    return counted.n_bytes;
}

static size_t test_pass(const Setup *s, const char *what) {
    Log whole = {0}, part = {0};
    const PassOptions options = options_of(s);
    int64_t sums[2] = {0, expected_bytes(s)};
    const bool spread = spread_any(&s->part.spread);
    if (s->n_prompts) pass(s, &s->whole, &whole);
    const int64_t n_passes = model_agree_passes(&s->part, s->n_prompts > 0);
    const uint64_t before = s->comm->n_bytes_sent;
    for (int64_t i = 0; i < n_passes; i++) {
        if (s->n_prompts)
            pass(s, &s->part, &part);
        else
            model_serve(&s->part, &options);
    }
    sums[0] = (int64_t)(s->comm->n_bytes_sent - before);
    comm_sum_i64(s->comm, sums, 2);
    check(!spread || sums[0] == sums[1], "%s: %lld bytes sent, %lld expected", what, (long long)sums[0],
          (long long)sums[1]);
    compare(s, &whole, &part, what);
    mem_free(whole.bytes);
    mem_free(part.bytes);
    return whole.n;
}

/* ---- generation: prompts end at unlike steps ---- */
static GenerateOptions generate_options(const Setup *s, int32_t *stops) {
    for (int32_t i = 0; i < 5; i++) stops[i] = 9 * i;
    return (GenerateOptions){.max_new_tokens = N_NEW + s->comm->rank % 3,
                             .rule = {.temperature = 0.9f, .top_p = 0.95f, .seed = 77},
                             .prompt_keys = s->keys,
                             .stop_tokens = stops,
                             .n_stop_tokens = 5,
                             .edits = s->c->edited ? &s->edits : NULL,
                             .n_forks = 2};
}

static void make(const Setup *s, const Model *model, Log *log) {
    int32_t stops[5], sets[2 * R_PROMPTS];
    const PromptBatch batch = {s->n_prompts, s->offsets, s->tokens};
    GenerateOptions options = generate_options(s, stops);
    for (int i = 0; i < 2 * R_PROMPTS; i++) sets[i] = i % 2 - 1;
    if (s->c->edited) options.generated_edits = sets;
    Generation made;
    Error error = {0};
    const Hooks hooks = {.context = log, .route = on_route};
    must(generate(model, &batch, &options, s->c->recomputes ? &hooks : NULL, &made, &error), &error);
    put(log, made.offsets, (size_t)(made.n_prompts + 1) * sizeof *made.offsets);
    put(log, made.tokens, (size_t)made.offsets[made.n_prompts] * sizeof *made.tokens);
    generation_free(&made);
}

static size_t test_generation(const Setup *s, const char *what) {
    Log whole = {0}, part = {0};
    int32_t stops[5];
    Error error = {0};
    const GenerateOptions options = generate_options(s, stops);
    if (s->n_prompts) make(s, &s->whole, &whole);
    const int64_t n = model_agree_passes(&s->part, s->n_prompts > 0);
    for (int64_t i = 0; i < n; i++) {
        if (s->n_prompts)
            make(s, &s->part, &part);
        else
            must(generate_serve(&s->part, &options, &error), &error);
    }
    compare(s, &whole, &part, what);
    mem_free(whole.bytes);
    mem_free(part.bytes);
    return whole.n;
}

/* The last rank says no after its third step; all end there. */
static bool stop_at_third(void *context, int64_t step, int64_t n_running) {
    (void)n_running;
    const Comm *comm = context;
    return step < 2 || comm->rank != comm->size - 1;
}

static void test_interruption(const Setup *s) {
    const PromptBatch batch = {s->n_prompts, s->offsets, s->tokens};
    GenerateOptions options = {.max_new_tokens = N_NEW,
                               .rule = {.top_p = 1},
                               .progress = stop_at_third,
                               .progress_context = s->comm};
    Generation made;
    Error error = {0};
    if (!spread_any(&s->part.spread)) return;
    const bool ok = s->n_prompts ? generate(&s->part, &batch, &options, NULL, &made, &error)
                                 : generate_serve(&s->part, &options, &error);
    check(!ok && error.code == ERROR_INTERRUPTED && strstr(error.text, "after 3 tokens"), "%s", error.text);
}

/* ---- all cases ---- */
static size_t run_case(const Case *c, Comm *comm, int number) {
    Setup *s = mem_alloc(sizeof *s);
    char what[80];
    snprintf(what, sizeof what, "case %d, %s, %lld experts", number, dtype_name(c->compute),
             (long long)c->r.n_experts);
    comm_phase("%s", what);
    open_setup(s, c, comm);
    size_t n = test_pass(s, what);
    if (!c->walks || number % 4 == 0) n += test_generation(s, what);
    if (number < 2) test_interruption(s);
    close_setup(s);
    mem_free(s);
    return n;
}

static size_t run_cases(Comm *comm, int *n_cases) {
    const struct {
        RandomModel (*like)(DType weights);
        DType weights, compute;
    } models[] = {{like_mixtral, DTYPE_F32, DTYPE_F32},
                  {like_olmoe, DTYPE_BF16, DTYPE_BF16},
                  {like_qwen3, DTYPE_BF16, DTYPE_F32},
                  {like_mixtral, DTYPE_BF16, DTYPE_BF16},
                  {like_olmoe, DTYPE_F64, DTYPE_F64}};
    size_t n = 0;
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (int i = 0; i < 8; i++) {
            const RandomModel r = models[m].like(models[m].weights);
            const Case c = {.r = r,
                            .compute = models[m].compute,
                            .per_node = i == 5 ? 2 : 0,
                            .homes = i % N_HOMES,
                            .walks = i > 1,
                            .recomputes = i % 2,
                            .to_embedding = i == 3 || i == 6,
                            .edited = i == 1 || i == 4,
                            .adapted = i > 4};
            n += run_case(&c, comm, (*n_cases)++);
        }
    return n;
}

/* ---- a rank that fails inside a pass ends all ---- */
static bool fail_in_last_layer(void *context, HookSite *site, const RouteView *v) {
    (void)context;
    return v->layer < R_LAYERS - 1 || error_set(site->error, ERROR_BAD_INPUT, "a hook of a test");
}

static void *no_memory(size_t n_bytes) {
    (void)n_bytes;
    return NULL;
}

/* Does not return. */
static void run_failure(Comm *comm, bool in_hook) {
    const Case c = {.r = like_mixtral(DTYPE_F32), .compute = DTYPE_F32};
    Setup *s = mem_alloc(sizeof *s);
    PassResult result;
    Error error = {0};
    open_setup(s, &c, comm);
    Device device = *s->part.device;
    const PromptBatch batch = {s->n_prompts, s->offsets, s->tokens};
    const PassOptions options = {.want_nll = true};
    const bool mine = comm->rank == 1;
    if (!in_hook && mine) {
        device.alloc = no_memory;
        s->part.device = &device;
        exchange_free(s->part.exchange);
        s->part.exchange = exchange_new(&s->part, &error);
    }
    comm_phase("a failure");
    if (s->n_prompts && (in_hook || !mine))
        model_pass(&s->part, &batch, &options, in_hook && mine ? &(Hooks){.route = fail_in_last_layer} : NULL,
                   &result, &error);
    else
        model_serve(&s->part, &options);
    comm_barrier(comm);
    check(false, "rank %d went on", comm->rank);
}

int main(int n_texts, char **texts) {
    Comm comm;
    Error error = {0};
    int n_cases = 0;
    if (!comm_open(&(CommOptions){.kind = "auto", .deadline_s = 60}, &comm, &error)) {
        text_print_error(&error);
        return (int)error.code;
    }
    if (n_texts > 1) run_failure(&comm, !strcmp(texts[1], "hook"));
    const int rank = comm.rank, size = comm.size;
    const size_t n = run_cases(&comm, &n_cases);
    comm_close(&comm);
    if (rank == 0) printf("ok %d ranks, %d cases, %zu bytes compared on rank 0\n", size, n_cases, n);
    return 0;
}

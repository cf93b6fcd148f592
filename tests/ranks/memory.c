/* What a rank takes and sends beside what the plan says it would: weights to the byte, a pass's memory and
 * the bytes that were sent within 5 %.
 *   mpirun -n N rank_memory MODEL resident|peers     a line a pass and rank; code 1 when one is off
 *
 * The plan is given the skew that the passes had, since no router is even; the gradients of router gates are
 * a hook's and not among the pass's bytes. */
#include "engine/alloc.h"
#include "engine/exchange.h"
#include "engine/rank_plan.h"
#include "engine/text.h"
#include "kernels/check.h"
#include <math.h>
#include <string.h>

enum { LENGTH = 100, PROMPTS = 12, TOKENS = LENGTH * PROMPTS };
static const double TOLERANCE = 0.05;

typedef struct {
    Comm *comm;
    Model model;
    int32_t tokens[TOKENS];
    int64_t offsets[PROMPTS + 1];
    float weights[TOKENS];
    int64_t rows[COMM_MAX_RANKS]; /* of the layer at hand, by the rank that computes them */
    double most;                  /* of a layer to this rank, over its even share */
} Setup;

static void must(bool ok, const Error *error) { check(ok, "%s", error->text); }

/* Ranks make the same passes, so a hook may ask them all. */
static bool on_route(void *context, HookSite *site, const RouteView *v) {
    Setup *s = context;
    const int size = s->comm->size;
    int32_t ids[TOKENS * 16];
    const int64_t n = tensor_count(v->ids);
    check(n <= TOKENS * 16, "%lld choices", (long long)n);
    site->device->copy_out(site->queue, ids, v->ids);
    check(site->device->sync(site->queue), "%s", site->queue->failure);
    memset(s->rows, 0, sizeof s->rows);
    for (int64_t i = 0; i < n; i++)
        s->rows[placement_owner(&s->model.spread.placement, ids[i], s->comm->rank)]++;
    if (size > 1) comm_sum_i64(s->comm, s->rows, size);
    s->most = fmax(s->most, (double)s->rows[s->comm->rank] / (double)n);
    return true;
}

/* As every step of a run, which looks at routes. */
static bool on_look(void *context, HookSite *site, const RouteView *v) {
    (void)context, (void)site, (void)v;
    return true;
}

static void open_setup(Setup *s, const char *folder, Residency residency) {
    Error error = {0};
    ModelConfig config;
    uint64_t state = 99 + (uint64_t)s->comm->rank;
    must(model_config_read(folder, &config, &error), &error);
    const Spread spread = {.comm = s->comm->size > 1 ? s->comm : NULL,
                           .residency = residency,
                           .placement = {s->comm->size, config.n_experts, s->comm->size, true}};
    must(model_open_spread(folder, cpu_device(), DTYPE_BF16, &spread, &s->model, &error), &error);
    s->model.spread.placement = spread.placement;
    for (int i = 0; i < TOKENS; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        s->tokens[i] = (int32_t)((state >> 33) % (uint64_t)config.vocab_size);
        s->weights[i] = 0.01f;
    }
    for (int p = 0; p <= PROMPTS; p++) s->offsets[p] = p * LENGTH;
    model_config_free(&config);
}

static bool near(const char *what, double got, double planned, double tolerance, const Setup *s, bool back) {
    const bool good = fabs(got - planned) <= tolerance * planned;
    printf("%s rank %d of %d, %s%s: %s: %.0f bytes, planned %.0f, %.4f of it\n", good ? "ok" : "WRONG",
           s->comm->rank, s->comm->size, residency_names[s->model.spread.residency], back ? ", back" : "",
           what, got, planned, planned > 0 ? got / planned : 1);
    return good;
}

/* Two passes, of which the second is looked at: the first fills buffers. */
static bool check_pass(Setup *s, bool back) {
    const PromptBatch batch = {PROMPTS, s->offsets, s->tokens};
    const PassOptions options = {
        .want_nll = true, .loss_weights = back ? s->weights : NULL, .recompute = RECOMPUTE_ALWAYS};
    const Hooks hooks = {.context = s, .route = on_route}, looks = {.route = on_look};
    PassResult result = {0};
    Error error = {0};
    s->most = 0;
    must(model_pass(&s->model, &batch, &options, &hooks, &result, &error), &error);
    pass_result_free(&result);
    const uint64_t before = s->comm->n_bytes_sent;
    must(model_pass(&s->model, &batch, &options, &looks, &result, &error), &error);
    int64_t sent = (int64_t)(s->comm->n_bytes_sent - before);
    const double pass = (double)result.activation_bytes +
                        (s->model.exchange ? (double)exchange_bytes(s->model.exchange) : 0),
                 held = (double)result.weights_bytes;
    pass_result_free(&result);
    if (s->comm->size > 1) comm_sum_i64(s->comm, &sent, 1);

    const RankDevice device = {"any", 1e15, 1, 1, 1, 1, 1, s->comm->size};
    const RankWork work = {.n_tokens = TOKENS,
                           .n_prompts = PROMPTS,
                           .walks_back = back,
                           .skew = s->most,
                           .compute = DTYPE_BF16,
                           .weights = DTYPE_BF16};
    const RankPlan plan = rank_plan_make(&s->model.config, &work, &device, s->model.spread.placement,
                                         s->model.spread.residency, -1);
    const RankMemory m = rank_plan_memory(&s->model.config, &work, &plan, s->comm->rank);
    const double moved = (TOKENS * plan.moved_bytes + plan.count_bytes + plan.gathered_bytes) * s->comm->size;
    bool good = near("weights", held, m.weights, 0, s, back);
    good = near("a pass", pass, m.saved + m.exchange + m.experts, TOLERANCE, s, back) && good;
    if (s->comm->size == 1 || s->comm->rank) return good;
    return near("sent by all", (double)sent, moved, TOLERANCE, s, back) && good;
}

int main(int n, char **texts) {
    Comm comm;
    Error error = {0};
    check(n == 3, "%d words", n);
    if (!comm_open(&(CommOptions){.kind = "auto", .deadline_s = 60}, &comm, &error)) {
        text_print_error(&error);
        return (int)error.code;
    }
    Setup *s = mem_zeroed(1, sizeof *s);
    check(s != NULL, "no memory for %zu bytes", sizeof *s);
    s->comm = &comm;
    open_setup(s, texts[1], strcmp(texts[2], "peers") != 0 ? RESIDENCY_RESIDENT : RESIDENCY_PEERS);
    const bool forward = check_pass(s, false), good = check_pass(s, true) && forward;
    model_close(&s->model);
    comm_close(&comm);
    mem_free(s);
    return good ? 0 : 1;
}

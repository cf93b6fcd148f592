/* A spread model: passes of several ranks, forward and back, give each prompt the bits that one rank gives
 * it, whatever travels; layers of peers are gathered as often as the formula says, with the bytes of the
 * plan; a rank without prompts serves the others' passes.
 *   mpirun -n N rank_peers MODEL f32|bf16 RANKS_OF_A_NODE [RESIDENCY [COMM]]
 * prints "ok N ranks HASH", the same for every N and residency (peers unless said). With COMM (mpi, nccl) on
 * the device cuda, else on the CPU. */
#include "engine/hash.h"
#include "engine/model.h"
#include "engine/rank_plan.h"
#include "engine/text.h"
#include "kernels/check.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPTS = 11, MOST_TOKENS = 24, A_PASS = 2, MOST_LAYERS = 8, MOST_EXPERTS = 16 };
static const int64_t lengths[PROMPTS] = {11, 1, 13, 9, 20, 3, 7, 2, 24, 5, 16};
enum { FORWARD, BACK, BACK_KEPT, N_KINDS };

static int32_t token(const Model *model, int64_t prompt, int64_t i) {
    return (int32_t)((prompt * 7919 + i * i * 31 + i * 17 + 3) % model->config.vocab_size);
}

/* ---- one pass ---- */
typedef struct {
    const Model *model;
    int64_t n_tokens;
    float grads[MOST_LAYERS][A_PASS * MOST_TOKENS * MOST_EXPERTS];
} Seen;

static bool take_grad(void *context, HookSite *site, const RouteGradView *view) {
    Seen *seen = context;
    check(view->moe_layer < MOST_LAYERS && tensor_columns(view->logits_grad) <= MOST_EXPERTS, "layer %lld",
          (long long)view->moe_layer);
    site->device->copy_out(site->queue, seen->grads[view->moe_layer], view->logits_grad);
    return true;
}

/* 64 bits of all that a pass says of rows [first, end). */
static int64_t digest(const Seen *seen, const PassResult *pass, bool back, int64_t first, int64_t end) {
    const ModelConfig *c = &seen->model->config;
    Hash hash;
    char text[HASH_TEXT];
    int64_t bits = 0;
    hash_begin(&hash);
    hash_add(&hash, pass->nll + first, (size_t)(end - first) * sizeof *pass->nll);
    for (int64_t l = 0; back && l < c->n_moe_layers; l++)
        hash_add(&hash, seen->grads[l] + first * c->n_experts,
                 (size_t)((end - first) * c->n_experts) * sizeof(float));
    hash_end(&hash, text);
    for (int i = 0; i < 15; i++) bits = 16 * bits + (text[i] > '9' ? text[i] - 'a' + 10 : text[i] - '0');
    return bits;
}

/* Prompts first, first + step, ..., at most A_PASS of them; digests go where their prompts' are. */
static void run_pass(const Model *model, int kind, int64_t first, int64_t step, int64_t digests[PROMPTS]) {
    static Seen seen;
    int64_t offsets[A_PASS + 1] = {0}, n = 0;
    int32_t tokens[A_PASS * MOST_TOKENS];
    float loss[A_PASS * MOST_TOKENS];
    for (int64_t p = first; p < PROMPTS && n < A_PASS; p += step, n++) {
        for (int64_t i = 0; i < lengths[p]; i++) tokens[offsets[n] + i] = token(model, p, i);
        offsets[n + 1] = offsets[n] + lengths[p];
    }
    for (int64_t i = 0; i < offsets[n]; i++) loss[i] = 1;
    const PassOptions options = {.want_nll = true,
                                 .loss_weights = kind == FORWARD ? NULL : loss,
                                 .recompute = kind == BACK_KEPT ? RECOMPUTE_NEVER : RECOMPUTE_ALWAYS};
    const Hooks hooks = {.context = &seen, .route_grad = take_grad};
    PassResult pass;
    Error error = {0};
    memset(&seen, 0, sizeof seen);
    seen.model = model;
    if (!model_pass(model, &(PromptBatch){n, offsets, tokens}, &options, &hooks, &pass, &error))
        comm_fail(model->spread.comm, &error);
    for (int64_t i = 0; i < n; i++)
        digests[first + i * step] = digest(&seen, &pass, kind != FORWARD, offsets[i], offsets[i + 1]);
    pass_result_free(&pass);
}

/* ---- all passes of a kind ---- */
/* After the first one they follow one of their kind. */
static void check_traffic(const Model *model, int kind, int64_t n_passes, int64_t n_copies,
                          uint64_t n_bytes) {
    const ModelConfig *c = &model->config;
    const Placement *placement = &model->spread.placement;
    const int rank = model->spread.comm->rank;
    const RankDevice device = {"any", 1e12, 1, 1, 1, 1, 1, placement->per_node};
    const RankWork work = {.n_tokens = 1,
                           .n_prompts = 1,
                           .walks_back = kind != FORWARD,
                           .compute = model->compute,
                           .weights = model->weights.layers[0].gate_up.dtype};
    const RankPlan plan = rank_plan_make(c, &work, &device, *placement, RESIDENCY_PEERS, -1);
    const int64_t n = placement_experts(placement, rank).n, group = placement_group(placement, rank).n,
                  of_pass = placement_count_copies(c->n_moe_layers, kind != FORWARD, false);
    check(n_copies == (n_passes - 1) * of_pass, "%lld layers gathered in %lld passes of %lld",
          (long long)n_copies, (long long)n_passes - 1, (long long)of_pass);
    /* the plan's are those of the fullest rank of the largest group */
    const double sent =
        plan.gathered_bytes * (double)(n * (group - 1)) / (double)(plan.n_experts * (plan.group - 1));
    check(group == 1 || (double)n_bytes == (double)(n_passes - 1) * sent, "%llu bytes sent, the plan says %g",
          (unsigned long long)n_bytes, (double)(n_passes - 1) * sent);
}

static void run_kind(const Model *model, int kind, int64_t digests[PROMPTS]) {
    Comm *comm = model->spread.comm;
    WeightStream *stream = model->weights.stream;
    const int64_t mine = (PROMPTS - comm->rank + comm->size - 1) / comm->size,
                  n = model_agree_passes(model, (mine + A_PASS - 1) / A_PASS);
    const float any = 1;
    const PassOptions options = {.loss_weights = kind == FORWARD ? NULL : &any};
    int64_t n_copies = 0;
    uint64_t n_bytes = 0;
    check(n > 1 || comm->size > 5, "%lld passes: none that follows another", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        const int64_t first = comm->rank + i * A_PASS * comm->size;
        if (first < PROMPTS)
            run_pass(model, kind, first, comm->size, digests);
        else
            model_serve(model, &options);
        if (i == 0) n_copies = weight_stream_copies(stream), n_bytes = comm->n_bytes_sent;
    }
    if (spread_weights_travel(&model->spread))
        check_traffic(model, kind, n, weight_stream_copies(stream) - n_copies, comm->n_bytes_sent - n_bytes);
}

static void open_model(char **texts, int n, Comm *comm, Model *model) {
    ModelConfig config = {0};
    Error error = {0};
    const Device *device = n > 5 ? cuda_device(NULL) : cpu_device();
    const DType compute = strcmp(texts[2], "bf16") ? DTYPE_F32 : DTYPE_BF16;
    Residency residency = n > 4 ? RESIDENCY_AUTO : RESIDENCY_PEERS;
    while (n > 4 && residency < N_RESIDENCIES && strcmp(residency_names[residency], texts[4]) != 0)
        residency++;
    check(device && residency < N_RESIDENCIES, "no such device or residency");
    bool ok = model_config_read(texts[1], &config, &error);
    const Spread spread = {.comm = comm,
                           .residency = residency,
                           .placement = {comm->size, ok ? config.n_experts : 1, atoi(texts[3]), false},
                           .n_streamed = residency == RESIDENCY_STREAMED ? config.n_moe_layers : 0};
    ok = ok && model_open_spread(texts[1], device, compute, &spread, model, &error);
    if (!ok) comm_fail(comm, &error);
    check(residency != RESIDENCY_PEERS || !!model->weights.stream == spread_any(&spread),
          "a stream without peers: %d ranks", comm->size);
    model_config_free(&config);
}

int main(int n, char **texts) {
    const CommOptions options = {.kind = n > 5 ? texts[5] : "auto", .deadline_s = 20};
    Comm comm;
    Model model;
    Error error = {0};
    int64_t digests[N_KINDS][PROMPTS] = {{0}};
    char text[HASH_TEXT];
    Hash hash;
    if (n < 4 || !comm_open(&options, &comm, &error)) {
        text_print_error(&error);
        return 2;
    }
    open_model(texts, n, &comm, &model);
    for (int kind = 0; kind < N_KINDS; kind++) {
        comm_phase("kind %d", kind);
        run_kind(&model, kind, digests[kind]);
    }
    comm_sum_i64(&comm, digests[0], N_KINDS * PROMPTS); /* others' are 0 */
    hash_begin(&hash);
    hash_add(&hash, digests, sizeof digests);
    hash_end(&hash, text);
    if (comm.rank == 0) printf("ok %d ranks %s\n", comm.size, text);
    model_close(&model);
    comm_close(&comm);
    return 0;
}

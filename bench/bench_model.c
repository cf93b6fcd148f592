/* Speed and memory of the whole decoder on a checkpoint: `gatetape bench model`.
 *
 * A row gives the median of several runs, the limit measured in the same process and the share of it: of
 * passes a large matrix product, of decoding a memory copy, and of decode_of_forward what a pass over as many
 * tokens as there are prompts reaches. Work is what the cost table counts for the pass; recomputation is part
 * of the work. What decoding must read per step is the weights of the attention, of the experts that were
 * chosen, and of the head. */
#include "bench.h"
#include "../engine/alloc.h"
#include "../engine/clock.h"
#include "../engine/generate.h"
#include "../engine/lora.h"
#include <omp.h>
#include <string.h>
#include <sys/resource.h>

enum { RUNS = 5, MOST_EXPERTS = 256 };

typedef struct {
    const BenchModel *request;
    Model model;
    Ceilings ceilings;
    Error *error;
} Bench;

static void print_row(const Bench *b, const char *name, double seconds, double rate, double ceiling,
                      double share) {
    const BenchModel *r = b->request;
    fprintf(r->to, "%s,%s,%d,%s,%.6f,%.4g,tokens/s,%.4g,%.3f,,,\n", name,
            b->model.device->ops == cpu_device()->ops ? "cpu" : r->device->name, omp_get_max_threads(),
            dtype_name(r->compute), seconds, rate, ceiling, ceiling > 0 ? share : 0);
    fflush(r->to);
}

typedef struct {
    int64_t *offsets;
    int32_t *tokens;
    float *loss_weights;
    PromptBatch batch;
} Prompts;

static void prompts_free(Prompts *p) {
    mem_free(p->offsets);
    mem_free(p->tokens);
    mem_free(p->loss_weights);
}

static bool prompts_new(const Bench *b, int64_t n, Prompts *p) {
    const int64_t length = b->request->tokens, total = n * length;
    *p = (Prompts){mem_zeroed((size_t)n + 1, sizeof(int64_t)),
                   mem_zeroed((size_t)total, sizeof(int32_t)),
                   mem_zeroed((size_t)total, sizeof(float)),
                   {0}};
    if (!p->offsets || !p->tokens || !p->loss_weights) {
        prompts_free(p);
        return error_out_of_memory(b->error, "prompts", (unsigned long long)total * 8);
    }
    for (int64_t i = 0; i < total; i++) {
        p->tokens[i] = (int32_t)((i * 7919 + 13) % b->model.config.vocab_size);
        p->loss_weights[i] = i % length == length - 1 ? 0 : 1.0f / (float)(length - 1);
    }
    for (int64_t i = 0; i <= n; i++) p->offsets[i] = i * length;
    p->batch = (PromptBatch){n, p->offsets, p->tokens};
    return true;
}

/* ---- passes ---- */
/* The median of passes after a first that does not count. *result is that of the last, the caller's. */
static bool time_pass(const Bench *b, const Prompts *prompts, const PassOptions *options, PassResult *result,
                      double *median) {
    double seconds[RUNS];
    for (int run = -1; run < RUNS; run++) {
        pass_result_free(result);
        *result = (PassResult){0};
        const double begin = clock_seconds();
        if (!model_pass(&b->model, &prompts->batch, options, NULL, result, b->error)) return false;
        seconds[run < 0 ? 0 : run] = clock_seconds() - begin;
    }
    *median = timing_of(seconds, RUNS).median;
    return true;
}

static bool bench_pass(const Bench *b, const char *name, int64_t n, PassOptions options, bool gradient) {
    Prompts prompts;
    if (!prompts_new(b, n, &prompts)) return false;
    options.loss_weights = gradient ? prompts.loss_weights : NULL;
    options.want_nll = true;
    PassResult plan = {0}, result = {0};
    const Model *m = &b->model;
    bool ok =
        model_plan(&m->config, m->compute, m->weights.head.dtype, &prompts.batch, &options, &plan, b->error);
    double median = 0;
    ok = ok && time_pass(b, &prompts, &options, &result, &median);
    if (ok) {
        const double tokens = (double)(n * b->request->tokens);
        print_row(b, name, median, tokens / median, b->ceilings.product,
                  plan.cost.flops / median / b->ceilings.product);
        const double row = (double)m->config.hidden_size * (double)dtype_bytes(m->compute);
        fprintf(stderr, "%s: %.1f TFLOP/s", name, plan.cost.flops / median / 1e12);
        if (gradient)
            fprintf(stderr,
                    "; %.2f hidden rows kept per token and layer; activations %.1f MB, planned %.1f MB",
                    (double)result.saved_bytes / tokens / (double)m->config.n_layers / row,
                    (double)result.activation_bytes / 1e6, (double)plan.activation_bytes / 1e6);
        fprintf(stderr, "\n");
    }
    pass_result_free(&result);
    pass_result_free(&plan);
    prompts_free(&prompts);
    return ok;
}

/* ---- low-rank updates of a twentieth of the cells ---- */
enum { LORA_RANK = 16, CELLS_OF_ALL = 20 };

/* All projections of every 20th cell; a small b, so that no gradient vanishes. */
static bool add_cells(const Model *m, Adapter *adapter, Error *error) {
    const ModelConfig *c = &m->config;
    for (int64_t at = CELLS_OF_ALL / 2; at < c->n_layers * c->n_experts; at += CELLS_OF_ALL)
        for (int p = 0; p < N_PROJECTIONS; p++) {
            AdapterCell like = {.layer = at / c->n_experts,
                                .expert = at % c->n_experts,
                                .projection = (Projection)p,
                                .rank = LORA_RANK,
                                .scale = 2},
                        *cell;
            if (!adapter_add(adapter, c, like, &cell, error)) return false;
            const int64_t n_a = LORA_RANK * projection_in(c, like.projection),
                          n_b = LORA_RANK * projection_out(c, like.projection);
            for (int64_t i = 0; i < n_a; i++) cell->a[i] = (float)(i * 7919 % 257 - 128) * 1e-4f;
            for (int64_t i = 0; i < n_b; i++) cell->b[i] = (float)(i * 104729 % 257 - 128) * 1e-5f;
        }
    return true;
}

/* A step: pass with gradients (recomputing), their sum, AdamW. */
static bool train_step(const Bench *b, const Prompts *prompts, LoraTraining *training, PassResult *result) {
    const PassOptions options = {
        .loss_weights = prompts->loss_weights, .training = training, .recompute = RECOMPUTE_ALWAYS};
    double norm;
    return model_pass(&b->model, &prompts->batch, &options, NULL, result, b->error) &&
           lora_training_gather(training, prompts->batch.n_prompts, &norm, b->error) &&
           lora_training_step(training, &adamw_usual, 1e-4, norm, b->error);
}

static bool time_steps(const Bench *b, const Prompts *prompts, LoraWeights *weights, double *median,
                       PassResult *result) {
    LoraTraining training;
    if (!lora_training_make(weights, prompts->batch.n_prompts, &training, b->error)) return false;
    double seconds[RUNS];
    bool ok = true;
    for (int run = -1; ok && run < RUNS; run++) {
        pass_result_free(result);
        *result = (PassResult){0};
        const double begin = clock_seconds();
        ok = train_step(b, prompts, &training, result);
        seconds[run < 0 ? 0 : run] = clock_seconds() - begin;
    }
    if (ok) *median = timing_of(seconds, RUNS).median;
    fprintf(stderr, "training: weights, moments, gradient %.1f MB, counters %.1f MB, kept rows %.1f MB\n",
            16 * (double)weights->n_values / 1e6,
            4 * (double)training.n_slots * (double)weights->n_values / 1e6,
            (double)result->saved_bytes / 1e6);
    lora_training_free(&training);
    return ok;
}

/* The frozen forward, that with updates, and a training step, in turn in one process: lora_forward's share is
 * frozen over adapted time (goal: at least 1 / 1.10), lora_step's forward over step (goal: 1 / 3.2). */
static bool bench_lora(Bench *b, int64_t n) {
    Prompts prompts;
    if (!prompts_new(b, n, &prompts)) return false;
    Adapter adapter = {0};
    LoraWeights weights = {0};
    PassResult result = {0};
    const PassOptions forward = {.want_nll = true};
    double frozen = 0, adapted = 0, step = 0;
    bool ok = add_cells(&b->model, &adapter, b->error) &&
              lora_weights_make(&adapter, &b->model, &weights, b->error) &&
              time_pass(b, &prompts, &forward, &result, &frozen);
    if (ok) {
        b->model.adapter = &weights;
        ok = time_pass(b, &prompts, &forward, &result, &adapted) &&
             time_steps(b, &prompts, &weights, &step, &result);
        b->model.adapter = NULL;
    }
    if (ok) {
        const double tokens = (double)(n * b->request->tokens);
        print_row(b, "lora_forward", adapted, tokens / adapted, tokens / frozen, frozen / adapted);
        print_row(b, "lora_step", step, tokens / step, tokens / adapted, adapted / step);
    }
    pass_result_free(&result);
    lora_weights_free(&weights);
    adapter_free(&adapter);
    prompts_free(&prompts);
    return ok;
}

/* ---- decoding ---- */
/* Experts that the steps of a generation read: each chosen one once per step and layer. */
typedef struct {
    int64_t n_prompts, n_read, n_layer_steps;
} Reads;

static bool count_reads(void *context, HookSite *site, const RouteView *view) {
    Reads *reads = context;
    if (view->ids.shape[0] > reads->n_prompts) return true; /* the prefill */
    bool seen[MOST_EXPERTS] = {false};
    int32_t *ids = mem_zeroed((size_t)tensor_count(view->ids), sizeof *ids);
    if (!ids) return error_out_of_memory(site->error, "ids", tensor_bytes(view->ids));
    site->device->copy_out(site->queue, ids, view->ids);
    const bool ok = site->device->sync(site->queue);
    for (int64_t i = 0; i < tensor_count(view->ids); i++) {
        reads->n_read += !seen[ids[i]];
        seen[ids[i]] = true;
    }
    reads->n_layer_steps++;
    mem_free(ids);
    return ok;
}

static bool time_generation(const Bench *b, const PromptBatch *batch, int64_t n_tokens, const Hooks *hooks,
                            double *seconds) {
    GenerateOptions options = {.max_new_tokens = n_tokens,
                               .rule = {.top_p = 1, .n_valid = b->model.config.vocab_size}};
    Generation generation = {0};
    const double begin = clock_seconds();
    const bool ok = generate(&b->model, batch, &options, hooks, &generation, b->error);
    *seconds = clock_seconds() - begin;
    generation_free(&generation);
    return ok;
}

/* Of a pass over one prompt of n tokens: what it does, and its median time. A decoding step of n prompts has
 * the same products, so its time says how much of their rate decoding reaches. */
static bool time_width(const Bench *b, int64_t n, double *flops, double *median) {
    BenchModel request = *b->request;
    request.tokens = n;
    Bench wide = *b;
    wide.request = &request;
    Prompts prompts;
    if (!prompts_new(&wide, 1, &prompts)) return false;
    const PassOptions options = {.recompute = RECOMPUTE_ALWAYS, .want_nll = true};
    const Model *m = &b->model;
    PassResult result = {0};
    bool ok = model_plan(&m->config, m->compute, m->weights.head.dtype, &prompts.batch, &options, &result,
                         b->error);
    *flops = result.cost.flops;
    ok = ok && time_pass(b, &prompts, &options, &result, median);
    pass_result_free(&result);
    prompts_free(&prompts);
    return ok;
}

/* Decoding beside a pass of the same width; the goal is 0.5 of its rate at 100 prompts. */
static bool bench_width(const Bench *b, int64_t n, double step) {
    double flops, seconds;
    char name[40];
    if (!time_width(b, n, &flops, &seconds)) return false;
    snprintf(name, sizeof name, "decode_of_forward_%lld", (long long)n);
    print_row(b, name, step, (double)n / step, flops / seconds, seconds / step);
    return true;
}

static bool bench_decode(const Bench *b, int64_t n) {
    Prompts prompts;
    if (!prompts_new(b, n, &prompts)) return false;
    Reads reads = {.n_prompts = n};
    const Hooks hooks = {.context = &reads, .route = count_reads};
    const int64_t steps = b->request->decode_tokens;
    double seconds[RUNS], shorter, longer;
    bool ok = time_generation(b, &prompts.batch, 3, &hooks, &longer);
    for (int run = 0; ok && run < RUNS; run++) {
        ok = time_generation(b, &prompts.batch, 3, NULL, &shorter) &&
             time_generation(b, &prompts.batch, 3 + steps, NULL, &longer);
        seconds[run] = (longer - shorter) / (double)steps;
    }
    const ModelConfig *c = &b->model.config;
    if (ok) {
        const double step = timing_of(seconds, RUNS).median;
        const double hidden = (double)c->hidden_size, head = (double)c->head_size;
        double weights = (double)c->n_layers * hidden * head * (double)(2 * c->n_heads + 2 * c->n_kv_heads);
        weights += 3 * hidden * (double)c->expert_size * (double)c->n_layers * (double)reads.n_read /
                   (double)reads.n_layer_steps;
        weights += (double)c->vocab_size * hidden;
        const double bytes = weights * (double)dtype_bytes(b->model.weights.head.dtype);
        char name[32];
        snprintf(name, sizeof name, "decode_batch_%lld", (long long)n);
        print_row(b, name, step, (double)n / step, b->ceilings.copy, bytes / step / b->ceilings.copy);
        if (n > 1) ok = bench_width(b, n, step);
    }
    prompts_free(&prompts);
    return ok;
}

bool bench_model(const BenchModel *request, Error *error) {
    Bench b = {.request = request, .ceilings = ceilings_of(request->device), .error = error};
    fprintf(stderr, "product %.1f GFLOP/s, copy %.1f GB/s (read + written), %d threads\n",
            b.ceilings.product / 1e9, b.ceilings.copy / 1e9, omp_get_max_threads());
    const double begin = clock_seconds();
    if (!model_open_spread(request->folder, request->device, request->compute,
                           &(Spread){.residency = RESIDENCY_STREAMED, .n_streamed = request->streamed},
                           &b.model, error))
        return false;
    fprintf(stderr, "opened in %.1f s, experts of %lld layers streamed\n", clock_seconds() - begin,
            (long long)request->streamed);
    const PassOptions keep = {.recompute = RECOMPUTE_NEVER}, recompute = {.recompute = RECOMPUTE_ALWAYS};
    const int64_t n = request->prompts;
    bool ok = bench_pass(&b, "forward", n, recompute, false) &&
              bench_pass(&b, "forward_4x", 4 * n, recompute, false) &&
              bench_pass(&b, "forward_gate_gradient", n, recompute, true) &&
              bench_pass(&b, "forward_gate_gradient_kept", n, keep, true) && bench_lora(&b, n);
    for (const int64_t *batch = request->batches; ok && *batch; batch++) ok = bench_decode(&b, *batch);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    fprintf(stderr, "peak memory of the process %.1f MB, weights %.1f MB\n", (double)usage.ru_maxrss / 1e3,
            (double)b.model.weights.n_bytes / 1e6);
    model_close(&b.model);
    return ok;
}

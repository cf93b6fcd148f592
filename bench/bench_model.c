/* Speed and memory of the decoder on the CPU, beside this machine's own limits.
 *
 *   bench_model make FOLDER f32|bf16     writes a random Mixtral: hidden 1024, expert 3584, 4 layers, 8
 * experts,
 *                                        16/4 heads, vocabulary 8192
 *   bench_model run FOLDER [f32|bf16]    prints rows of bench/results/cpu.csv; the last argument is the
 * compute mode
 *
 * A row gives the median of several runs, the limit measured in the same process (OpenBLAS sgemm for passes,
 * memory copy for decoding) and the share of it. Work is what the cost table counts for the pass;
 * recomputation is part of the work. What decoding must read per step is the weights of the attention, of the
 * experts that were chosen, and of the head. */
#include "engine/alloc.h"
#include "engine/clock.h"
#include "engine/generate.h"
#include "engine/safetensors.h"
#include "engine/text.h"
#include "kernels/check.h"
#include "kernels/random.h"
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

enum {
    HIDDEN = 1024,
    EXPERT = 3584,
    LAYERS = 4,
    EXPERTS = 8,
    HEADS = 16,
    KV_HEADS = 4,
    HEAD = 64,
    VOCABULARY = 8192
};
enum { N_PROMPTS = 16, PROMPT_TOKENS = 128, N_RUNS = 5, DECODE_TOKENS = 24 };

static Error error;

static void require(bool fine) {
    if (fine) return;
    text_print_error(&error);
    exit(1);
}

/* ---- the checkpoint ---- */
typedef struct {
    NamedTensor *tensors;
    int64_t n;
    DType dtype;
} Checkpoint;

static void add_random(Checkpoint *to, const char *name, int64_t rows, int64_t columns, bool ones) {
    Tensor t = rows ? tensor_matrix(NULL, to->dtype, rows, columns) : tensor_vector(NULL, to->dtype, columns);
    t.data = mem_alloc(tensor_bytes(t));
    check(t.data, "%zu bytes", tensor_bytes(t));
    uint64_t state = 0x9e3779b97f4a7c15u * (uint64_t)(to->n + 1);
    for (int64_t i = 0; i < tensor_count(t); i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        float value = ones ? 1.0f : ((float)(uint32_t)(state >> 40) / 16777216.0f - 0.5f) * 0.08f;
        uint32_t bits;
        memcpy(&bits, &value, 4);
        if (to->dtype == DTYPE_F32)
            ((float *)t.data)[i] = value;
        else
            ((uint16_t *)t.data)[i] = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
    }
    to->tensors[to->n++] = (NamedTensor){mem_copy_text(name, strlen(name)), t};
}

static void add_layer(Checkpoint *to, int layer) {
    static const struct {
        const char *name;
        int64_t rows, columns;
    } parts[] = {{"input_layernorm", 0, HIDDEN},
                 {"post_attention_layernorm", 0, HIDDEN},
                 {"self_attn.q_proj", HEADS * HEAD, HIDDEN},
                 {"self_attn.k_proj", KV_HEADS * HEAD, HIDDEN},
                 {"self_attn.v_proj", KV_HEADS * HEAD, HIDDEN},
                 {"self_attn.o_proj", HIDDEN, HEADS * HEAD},
                 {"block_sparse_moe.gate", EXPERTS, HIDDEN}};
    char name[128];
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, parts[i].name);
        add_random(to, name, parts[i].rows, parts[i].columns, parts[i].rows == 0);
    }
    for (int e = 0; e < EXPERTS; e++)
        for (int w = 1; w <= 3; w++) {
            snprintf(name, sizeof name, "model.layers.%d.block_sparse_moe.experts.%d.w%d.weight", layer, e,
                     w);
            add_random(to, name, w == 2 ? HIDDEN : EXPERT, w == 2 ? EXPERT : HIDDEN, false);
        }
}

static void make_checkpoint(const char *folder, const char *dtype) {
    Checkpoint all = {mem_zeroed(1024, sizeof(NamedTensor)), 0,
                      strcmp(dtype, "f32") ? DTYPE_BF16 : DTYPE_F32};
    check(all.tensors, "out of memory");
    add_random(&all, "model.embed_tokens.weight", VOCABULARY, HIDDEN, false);
    add_random(&all, "model.norm.weight", 0, HIDDEN, true);
    add_random(&all, "lm_head.weight", VOCABULARY, HIDDEN, false);
    for (int layer = 0; layer < LAYERS; layer++) add_layer(&all, layer);
    require(io_make_folders(folder, &error));
    char *path = io_join(folder, "model.safetensors");
    require(safetensors_write(path, all.tensors, all.n, NULL, 0, &error));
    Text config = {0};
    text_format(
        &config,
        "{\"architectures\": [\"MixtralForCausalLM\"], \"model_type\": \"mixtral\", \"vocab_size\": %d, "
        "\"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": %d, "
        "\"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"num_local_experts\": %d, "
        "\"num_experts_per_tok\": 2, \"rope_theta\": 1000000.0, \"rms_norm_eps\": 1e-05, "
        "\"max_position_embeddings\": 4096, \"sliding_window\": null, \"hidden_act\": \"silu\", "
        "\"tie_word_embeddings\": false, \"bos_token_id\": 1, \"eos_token_id\": 2, \"torch_dtype\": "
        "\"%s\"}\n",
        VOCABULARY, HIDDEN, EXPERT, LAYERS, HEADS, KV_HEADS, EXPERTS,
        all.dtype == DTYPE_F32 ? "float32" : "bfloat16");
    require(io_write_all(io_join(folder, "config.json"), config.bytes, config.length, &error));
}

/* ---- limits of this machine ---- */
static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

/* FLOP/s of OpenBLAS sgemm at a size that keeps every core busy; 0 without OpenBLAS. */
static double sgemm_rate(void) {
#ifdef HAVE_OPENBLAS
    enum { N = 2048 };
    float *a = mem_zeroed((size_t)N * N, 12), *b = a + (size_t)N * N, *c = b + (size_t)N * N;
    check(a, "out of memory");
    for (int i = 0; i < 2 * N * N; i++) a[i] = (float)(i % 97) * 0.01f;
    double seconds[N_RUNS + 1];
    for (int run = 0; run <= N_RUNS; run++) {
        double begin = clock_seconds();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, N, N, N, 1, a, N, b, N, 0, c, N);
        seconds[run] = clock_seconds() - begin;
    }
    mem_free(a);
    usleep(300000); /* its threads spin for a while after their last call */
    return 2.0 * N * N * N / median(seconds + 1, N_RUNS);
#else
    return 0;
#endif
}

/* Bytes read plus written per second by a copy much larger than the caches, on all cores. */
static double copy_rate(void) {
    const size_t n = (size_t)256 << 20;
    char *from = mem_zeroed(n, 1), *to = mem_zeroed(n, 1);
    check(from && to, "out of memory");
    double seconds[N_RUNS + 1];
    for (int run = 0; run <= N_RUNS; run++) {
        double begin = clock_seconds();
#pragma omp parallel
        {
            size_t threads = (size_t)omp_get_num_threads(), part = n / threads;
            memcpy(to + part * (size_t)omp_get_thread_num(), from + part * (size_t)omp_get_thread_num(),
                   part);
        }
        seconds[run] = clock_seconds() - begin;
    }
    mem_free(from);
    mem_free(to);
    return 2.0 * (double)n / median(seconds + 1, N_RUNS);
}

/* ---- cases ---- */
typedef struct {
    Model model;
    const char *weights, *compute;
    double sgemm, copy;
} Bench;

static void print_row(const Bench *b, const char *name, double seconds, double rate, const char *unit,
                      double ceiling, double share) {
    printf("%s,cpu,%d,%s,%.6f,%.4g,%s,%.4g,%.3f,,,\n", name, omp_get_max_threads(), b->compute, seconds, rate,
           unit, ceiling, share);
    fflush(stdout);
}

typedef struct {
    int64_t offsets[8 * N_PROMPTS + 1];
    int32_t *tokens;
    float *loss_weights;
    PromptBatch batch;
} Prompts;

static void make_prompts(Prompts *p, int64_t n, int64_t length) {
    p->tokens = mem_zeroed((size_t)(n * length), sizeof(int32_t));
    p->loss_weights = mem_zeroed((size_t)(n * length), sizeof(float));
    check(p->tokens && p->loss_weights, "out of memory");
    for (int64_t i = 0; i < n * length; i++) {
        p->tokens[i] = (int32_t)((i * 7919 + 13) % VOCABULARY);
        p->loss_weights[i] = i % length == length - 1 ? 0 : 1.0f / (float)(length - 1);
    }
    for (int64_t i = 0; i <= n; i++) p->offsets[i] = i * length;
    p->batch = (PromptBatch){n, p->offsets, p->tokens};
}

static double time_pass(const Bench *b, const Prompts *prompts, const PassOptions *options, int n_runs,
                        PassResult *last) {
    double seconds[N_RUNS + 1];
    for (int run = 0; run <= n_runs; run++) {
        if (run) pass_result_free(last);
        *last = (PassResult){0};
        double begin = clock_seconds();
        require(model_pass(&b->model, &prompts->batch, options, NULL, last, &error));
        seconds[run] = clock_seconds() - begin;
    }
    return median(seconds + 1, n_runs);
}

static void bench_pass(const Bench *b, const char *name, int64_t n_prompts, PassOptions options,
                       bool gradient) {
    Prompts prompts = {0};
    make_prompts(&prompts, n_prompts, PROMPT_TOKENS);
    options.loss_weights = gradient ? prompts.loss_weights : NULL;
    options.want_nll = true;
    PassResult plan = {0}, result = {0};
    require(model_plan(&b->model.config, b->model.compute, b->model.weights.head.dtype, &prompts.batch,
                       &options, &plan, &error));
    double seconds = time_pass(b, &prompts, &options, N_RUNS, &result);
    double tokens = (double)(n_prompts * PROMPT_TOKENS);
    print_row(b, name, seconds, tokens / seconds, "tokens/s", b->sgemm, plan.cost.flops / seconds / b->sgemm);
    double hidden_row = (double)HIDDEN * (double)dtype_bytes(b->model.compute);
    if (gradient)
        fprintf(stderr,
                "%s: %.2f hidden rows kept per token and layer; activations %.1f MB, planned %.1f MB\n", name,
                (double)result.saved_bytes / tokens / LAYERS / hidden_row,
                (double)result.activation_bytes / 1e6, (double)plan.activation_bytes / 1e6);
    pass_result_free(&result);
    pass_result_free(&plan);
    mem_free(prompts.tokens);
    mem_free(prompts.loss_weights);
}

/* Bytes of expert weights that the steps of a generation read: each chosen expert once per step and layer. */
typedef struct {
    double expert_bytes;
    int64_t n_experts_read, n_layer_steps;
} Reads;

static bool count_reads(void *context, HookSite *site, const RouteView *view) {
    (void)site;
    Reads *reads = context;
    bool seen[EXPERTS] = {false};
    const int32_t *ids = view->ids.data;
    if (view->ids.shape[0] > N_PROMPTS) return true; /* the prefill */
    for (int64_t i = 0; i < tensor_count(view->ids); i++) seen[ids[i]] = true;
    for (int e = 0; e < EXPERTS; e++) reads->n_experts_read += seen[e];
    reads->n_layer_steps++;
    return true;
}

static void bench_decode(const Bench *b, const char *name, int64_t n_prompts) {
    Prompts prompts = {0};
    make_prompts(&prompts, n_prompts, PROMPT_TOKENS);
    GenerateOptions options = {.max_new_tokens = 1, .rule = {.top_p = 1, .n_valid = VOCABULARY}};
    double seconds[N_RUNS + 1];
    Reads reads = {0};
    Hooks hooks = {.context = &reads, .route = count_reads};
    for (int run = 0; run <= N_RUNS; run++) {
        double took[2];
        for (int longer = 0; longer < 2; longer++) {
            Generation generation = {0};
            options.max_new_tokens = longer ? 1 + DECODE_TOKENS : 1;
            reads = (Reads){0};
            double begin = clock_seconds();
            require(generate(&b->model, &prompts.batch, &options, &hooks, &generation, &error));
            took[longer] = clock_seconds() - begin;
            generation_free(&generation);
        }
        seconds[run] = (took[1] - took[0]) / DECODE_TOKENS;
    }
    double step = median(seconds + 1, N_RUNS), item = (double)dtype_bytes(b->model.weights.head.dtype);
    double attention = (double)LAYERS * HIDDEN * HEAD * (2.0 * HEADS + 2.0 * KV_HEADS);
    double experts = 3.0 * HIDDEN * EXPERT * (double)reads.n_experts_read / DECODE_TOKENS;
    double bytes = item * (attention + experts + (double)VOCABULARY * HIDDEN);
    print_row(b, name, step, (double)n_prompts / step, "tokens/s", b->copy, bytes / step / b->copy);
    mem_free(prompts.tokens);
    mem_free(prompts.loss_weights);
}

static void run(const char *folder, const char *compute) {
    Bench b = {.compute = compute, .sgemm = sgemm_rate(), .copy = copy_rate()};
    fprintf(stderr, "sgemm %.1f GFLOP/s, copy %.1f GB/s (read + written), %d threads\n", b.sgemm / 1e9,
            b.copy / 1e9, omp_get_max_threads());
    const Device *device = cpu_device();
    check(device, "no CPU device");
    require(model_open(folder, device, strcmp(compute, "bf16") ? DTYPE_F32 : DTYPE_BF16, &b.model, &error));
    PassOptions keep = {.recompute = RECOMPUTE_NEVER}, recompute = {.recompute = RECOMPUTE_ALWAYS};
    bench_pass(&b, "forward", N_PROMPTS, recompute, false);
    bench_pass(&b, "forward_4x", 4 * N_PROMPTS, recompute, false);
    bench_pass(&b, "forward_gate_gradient", N_PROMPTS, recompute, true);
    bench_pass(&b, "forward_gate_gradient_kept", N_PROMPTS, keep, true);
    bench_decode(&b, "decode_batch_1", 1);
    bench_decode(&b, "decode_batch_16", 16);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    fprintf(stderr, "peak memory of the process %.1f MB, weights %.1f MB\n", (double)usage.ru_maxrss / 1e3,
            (double)b.model.weights.n_bytes / 1e6);
    model_close(&b.model);
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "make"))
        make_checkpoint(argv[2], argv[3]);
    else if (argc >= 3 && !strcmp(argv[1], "run"))
        run(argv[2], argc > 3 ? argv[3] : "f32");
    else {
        fprintf(stderr, "usage: bench_model make FOLDER f32|bf16 | run FOLDER [f32|bf16]\n");
        return 2;
    }
    return 0;
}

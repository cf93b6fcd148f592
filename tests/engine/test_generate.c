/* Generation: the cache gives the bits of a packed pass, and a prompt's tokens do not depend on its batch. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "engine/generate.h"
#include "random_model.h"
#include "residual_stream.h"

enum { N_NEW = 12 };

static Generation make(Model *model, const PromptBatch *batch, const GenerateOptions *options,
                       const Hooks *hooks) {
    Generation made;
    Error error = {0};
    bool ok = generate(model, batch, options, hooks, &made, &error);
    if (!ok) print_error("%s\n", error.text);
    assert_true(ok);
    return made;
}

static GenerateOptions greedy(void) {
    return (GenerateOptions){.max_new_tokens = N_NEW, .rule = {.top_p = 1, .n_valid = R_VOCABULARY}};
}

static GenerateOptions sampled(void) {
    return (GenerateOptions){
        .max_new_tokens = N_NEW,
        .rule = {.temperature = 0.9f, .top_p = 0.95f, .n_valid = R_VOCABULARY, .seed = 77}};
}

/* Prompts and what was generated, packed. */
static void join(const PromptBatch *batch, const Generation *made, int64_t *offsets, int32_t *tokens) {
    offsets[0] = 0;
    for (int64_t p = 0; p < batch->n_prompts; p++) {
        int32_t *to = tokens + offsets[p];
        int64_t n = batch->offsets[p + 1] - batch->offsets[p], more = made->offsets[p + 1] - made->offsets[p];
        memcpy(to, batch->tokens + batch->offsets[p], (size_t)n * sizeof *to);
        memcpy(to + n, made->tokens + made->offsets[p], (size_t)more * sizeof *to);
        offsets[p + 1] = offsets[p] + n + more;
    }
}

static int32_t argmax(const float *x) {
    int32_t best = 0;
    for (int32_t i = 1; i < R_VOCABULARY; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* Decoding one token at a time against one packed pass over the whole texts: same tokens, same residual
 * bits. */
static void check_against_packed(RandomModel r) {
    Model model;
    int32_t tokens[R_TOKENS], whole[R_TOKENS + R_PROMPTS * N_NEW];
    int64_t offsets[R_PROMPTS + 1];
    random_tokens(tokens, 31);
    random_model_open(&model, r, cpu_device(), DTYPE_F32, 8);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    GenerateOptions options = greedy();
    Stream *decoded = mem_zeroed(1, sizeof *decoded), *packed = mem_zeroed(1, sizeof *packed);
    Generation made = make(&model, &batch, &options, &(Hooks){.context = decoded, .residual = on_residual});
    join(&batch, &made, offsets, whole);
    PromptBatch texts = {R_PROMPTS, offsets, whole};
    PassResult result;
    Error error = {0};
    assert_true(model_pass(&model, &texts, &(PassOptions){.want_logits = true},
                           &(Hooks){.context = packed, .residual = on_residual}, &result, &error));
    for (int64_t p = 0; p < R_PROMPTS; p++) {
        assert_int_equal(made.offsets[p + 1] - made.offsets[p], N_NEW);
        int64_t n = R_OFFSETS[p + 1] - R_OFFSETS[p];
        for (int64_t i = 0; i < N_NEW; i++) {
            int64_t row = offsets[p] + n + i;
            assert_int_equal(whole[row], argmax(result.logits + (row - 1) * R_VOCABULARY));
            /* step i + 1 has one row of each prompt, behind the prefill's rows */
            for (int64_t layer = 0; i + 1 < N_NEW && layer < R_LAYERS; layer++)
                assert_memory_equal(decoded->rows[layer][R_TOKENS + i * R_PROMPTS + p],
                                    packed->rows[layer][row], R_HIDDEN * sizeof(float));
        }
    }
    pass_result_free(&result);
    generation_free(&made);
    mem_free(decoded);
    mem_free(packed);
    random_model_close(&model);
}

static void test_cache_gives_the_packed_bits(void **state) {
    (void)state;
    check_against_packed(like_mixtral(DTYPE_F32)); /* its window is shorter than the texts */
    check_against_packed(like_olmoe(DTYPE_BF16));
    check_against_packed(like_qwen3(DTYPE_F32));
}

/* Each prompt alone, with its own key, gives what it gave in the batch. */
static void check_alone(GenerateOptions options, DType compute) {
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 32);
    random_model_open(&model, like_qwen3(DTYPE_F32), cpu_device(), compute, 9);
    int64_t keys[R_PROMPTS] = {5, 6, 900, 2};
    options.prompt_keys = keys;
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    Generation all = make(&model, &batch, &options, NULL);
    for (int64_t p = 0; p < R_PROMPTS; p++) {
        PromptBatch one = {1, (const int64_t[]){0, R_OFFSETS[p + 1] - R_OFFSETS[p]}, tokens + R_OFFSETS[p]};
        options.prompt_keys = keys + p;
        Generation alone = make(&model, &one, &options, NULL);
        assert_int_equal(alone.offsets[1], all.offsets[p + 1] - all.offsets[p]);
        assert_memory_equal(alone.tokens, all.tokens + all.offsets[p],
                            (size_t)alone.offsets[1] * sizeof *alone.tokens);
        generation_free(&alone);
    }
    generation_free(&all);
    random_model_close(&model);
}

static void test_batch_does_not_matter(void **state) {
    (void)state;
    check_alone(greedy(), DTYPE_F32);
    check_alone(sampled(), DTYPE_F32);
    check_alone(sampled(), DTYPE_BF16);
}

static void test_keys_and_seed_decide(void **state) {
    (void)state;
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 32);
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 9);
    PromptBatch one = {1, (const int64_t[]){0, 11}, tokens};
    GenerateOptions options = sampled();
    Generation a = make(&model, &one, &options, NULL), again = make(&model, &one, &options, NULL);
    assert_memory_equal(a.tokens, again.tokens, N_NEW * sizeof *a.tokens);
    options.prompt_keys = (const int64_t[]){1};
    Generation key = make(&model, &one, &options, NULL);
    assert_memory_not_equal(a.tokens, key.tokens, N_NEW * sizeof *a.tokens);
    options.prompt_keys = NULL;
    options.rule.seed++;
    Generation seed = make(&model, &one, &options, NULL);
    assert_memory_not_equal(a.tokens, seed.tokens, N_NEW * sizeof *a.tokens);
    generation_free(&a), generation_free(&again), generation_free(&key), generation_free(&seed);
    random_model_close(&model);
}

typedef struct {
    int64_t running[N_NEW], n_steps, stop_at;
} Progress;

static bool on_progress(void *context, int64_t step, int64_t n_running) {
    Progress *p = context;
    assert_int_equal(step, p->n_steps);
    p->running[p->n_steps++] = n_running;
    return step != p->stop_at;
}

/* A stop token ends its prompt alone; the others' tokens stay what they were. */
static void test_stop_tokens(void **state) {
    (void)state;
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 33);
    random_model_open(&model, like_olmoe(DTYPE_F32), cpu_device(), DTYPE_F32, 10);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    GenerateOptions options = sampled();
    Progress progress = {.stop_at = -1};
    Generation free_run = make(&model, &batch, &options, NULL);
    int32_t stop = free_run.tokens[free_run.offsets[2] + 3];
    options.stop_tokens = &stop, options.n_stop_tokens = 1;
    options.progress = on_progress, options.progress_context = &progress;
    Generation made = make(&model, &batch, &options, NULL);
    int64_t n_stopped = 0;
    for (int64_t p = 0; p < R_PROMPTS; p++) {
        const int32_t *before = free_run.tokens + free_run.offsets[p];
        int64_t n = 0, n_made = made.offsets[p + 1] - made.offsets[p];
        while (n < N_NEW && before[n] != stop) n++;
        assert_int_equal(made.stopped[p], n < N_NEW);
        assert_int_equal(n_made, n < N_NEW ? n + 1 : N_NEW);
        assert_memory_equal(made.tokens + made.offsets[p], before, (size_t)n_made * sizeof *before);
        n_stopped += made.stopped[p];
    }
    assert_true(made.stopped[2] && n_stopped < R_PROMPTS);
    assert_int_equal(progress.n_steps, N_NEW);
    assert_in_range(progress.running[N_NEW - 2], 1, R_PROMPTS - 1);
    assert_int_equal(progress.running[N_NEW - 1], 0);
    generation_free(&free_run), generation_free(&made);
    random_model_close(&model);
}

static void test_interruption(void **state) {
    (void)state;
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 33);
    random_model_open(&model, like_olmoe(DTYPE_F32), cpu_device(), DTYPE_F32, 10);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    Progress progress = {.stop_at = 2};
    GenerateOptions options = greedy();
    options.progress = on_progress, options.progress_context = &progress;
    Generation made;
    Error error = {0};
    assert_false(generate(&model, &batch, &options, NULL, &made, &error));
    assert_int_equal(error.code, ERROR_INTERRUPTED);
    assert_int_equal(progress.n_steps, 3);
    assert_null(made.tokens);
    random_model_close(&model);
}

static void assert_refused(const Model *model, const PromptBatch *batch, GenerateOptions options,
                           ErrorCode code, const char *text) {
    Generation made;
    Error error = {0};
    assert_false(generate(model, batch, &options, NULL, &made, &error));
    assert_int_equal(error.code, code);
    assert_string_equal(error.text, text);
}

static void *no_memory(size_t n_bytes) {
    (void)n_bytes;
    return NULL;
}

static void test_bad_input(void **state) {
    (void)state;
    Model model;
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 33);
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 10);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    GenerateOptions options = greedy();
    options.max_new_tokens = R_POSITIONS - 12;
    assert_refused(
        &model, &batch, options, ERROR_BAD_INPUT,
        "prompt 2: over-long: expected at most 40 tokens, the model's positions: got 13, and 28 to "
        "generate");
    options.max_new_tokens = 0;
    assert_refused(&model, &batch, options, ERROR_BAD_INPUT, "max_new_tokens: expected at least 1: got 0");
    ((float *)model.weights.head.data)[9 * R_HIDDEN] = NAN;
    assert_refused(
        &model, &batch, greedy(), ERROR_FAILED,
        "head, token 10 of prompt 0: logit of id 9: expected a finite number: got nan or infinity");
    ((float *)model.weights.embedding.data)[tokens[11] * R_HIDDEN] = INFINITY; /* prompt 1's only token */
    assert_refused(
        &model, &batch, greedy(), ERROR_FAILED,
        "layer 0, token 0 of prompt 1: router logit of expert 0: expected a finite number: got nan or "
        "infinity");
    Device poor = *cpu_device();
    poor.alloc = no_memory;
    model.device = &poor;
    Generation made;
    Error error = {0};
    options = greedy();
    assert_false(generate(&model, &batch, &options, NULL, &made, &error));
    assert_int_equal(error.code, ERROR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "key/value cache"));
    random_model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cache_gives_the_packed_bits),
        cmocka_unit_test(test_batch_does_not_matter),
        cmocka_unit_test(test_keys_and_seed_decide),
        cmocka_unit_test(test_stop_tokens),
        cmocka_unit_test(test_interruption),
        cmocka_unit_test(test_bad_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

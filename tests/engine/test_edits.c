/* Edits of the router in the decoder: tables and what they refuse, sets by prompt and by token, prompt
 * tokens and generated ones apart, decoding over the cache against a packed pass, and the replay of recorded
 * routes. */
#include "engine/generate.h"
#include "random_model.h"
#include "residual_stream.h"
#include "scratch.h"

enum { N_NEW = 7, N_SETS = 4, MOST_ROWS = R_TOKENS + R_PROMPTS * N_NEW };

static void put(EditTable *table, const Model *model, int64_t set, CellEdit edit) {
    Error error = {0};
    if (!edit_table_put(table, &model->config, set, edit, &error)) fail_msg("%s", error.text);
}

/* Four sets that do different things to every layer with experts. */
static void fill(EditTable *table, const Model *model) {
    Error error = {0};
    assert_true(edit_table_make(&model->config, N_SETS, table, &error));
    for (int64_t layer = 0; layer < R_LAYERS; layer++) {
        if (model->config.layer_is_dense[layer]) continue;
        put(table, model, 0, (CellEdit){layer, 1, EDIT_MASK, 0});
        put(table, model, 0, (CellEdit){layer, 4, EDIT_BIAS, 0.5f});
        put(table, model, 1, (CellEdit){layer, 2, EDIT_PROMOTE, 0.25f});
        put(table, model, 1, (CellEdit){layer, 0, EDIT_DEMOTE, 0.25f});
        put(table, model, 2, (CellEdit){layer, 3, EDIT_ZERO_RENORMALIZE, 0});
        put(table, model, 2, (CellEdit){layer, 0, EDIT_ZERO, 0});
        for (int64_t k = 0; k < model->config.n_experts_per_token; k++)
            put(table, model, 3, (CellEdit){layer, 4 - 2 * k, EDIT_FORCE, 0});
    }
}

/* ---- tables ---- */
static void test_bad_edits(void **state) {
    (void)state;
    Model model;
    EditTable table;
    Error error = {0};
    random_model_open(&model, like_qwen3(DTYPE_F32), cpu_device(), DTYPE_F32, 5); /* layer 1 is dense */
    assert_true(edit_table_make(&model.config, 1, &table, &error));
    static const struct {
        CellEdit edit;
        const char *said;
    } cases[] = {
        {{-1, 0, EDIT_MASK, 0}, "layer: expected 0 to 2: got -1"},
        {{3, 0, EDIT_MASK, 0}, "layer: expected 0 to 2: got 3"},
        {{1, 0, EDIT_MASK, 0}, "layer: expected one with experts: got 1, which is dense"},
        {{0, 5, EDIT_MASK, 0}, "expert of layer 0: expected 0 to 4: got 5"},
        {{0, 0, EDIT_BIAS, INFINITY}, "value of layer 0, expert 0: expected a finite number"},
        {{2, 3, EDIT_ZERO, 0}, "layer 2, expert 3: expected one edit of a cell: got mask and zero"},
    };
    put(&table, &model, 0, (CellEdit){2, 3, EDIT_MASK, 0});
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error = (Error){0};
        assert_false(edit_table_put(&table, &model.config, 0, cases[i].edit, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_string_equal(error.text, cases[i].said);
    }
    error = (Error){0};
    assert_true(edit_table_check(&table, &model.config, &error));
    put(&table, &model, 0, (CellEdit){2, 0, EDIT_FORCE, 0});
    assert_false(edit_table_check(&table, &model.config, &error));
    assert_string_equal(error.text, "layer 2: expected 2 forced experts, as many as a token takes: got 1");
    edit_table_free(&table);
    random_model_close(&model);
}

/* ---- generation against a packed pass ---- */
typedef struct {
    int64_t offsets[R_PROMPTS + 1];
    int32_t tokens[MOST_ROWS], edits[MOST_ROWS];
} Texts;

/* Prompts with what was generated, and the set of each token. */
static void join(const PromptBatch *batch, const Generation *made, const GenerateOptions *options,
                 Texts *to) {
    to->offsets[0] = 0;
    for (int64_t p = 0; p < batch->n_prompts; p++) {
        int64_t n = batch->offsets[p + 1] - batch->offsets[p], at = to->offsets[p];
        for (int64_t i = 0; i < n + N_NEW; i++) {
            to->tokens[at + i] =
                i < n ? batch->tokens[batch->offsets[p] + i] : made->tokens[made->offsets[p] + i - n];
            to->edits[at + i] = i < n ? options->prompt_edits[p] : options->generated_edits[p];
        }
        to->offsets[p + 1] = at + n + N_NEW;
    }
}

static void check_generation(RandomModel like, DType compute, const int32_t *prompt_edits,
                             const int32_t *generated_edits) {
    Model model;
    EditTable table;
    Error error = {0};
    int32_t tokens[R_TOKENS];
    random_tokens(tokens, 31);
    random_model_open(&model, like, cpu_device(), compute, 8);
    fill(&table, &model);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    GenerateOptions options = {.max_new_tokens = N_NEW,
                               .rule = {.top_p = 1, .n_valid = R_VOCABULARY},
                               .edits = &table,
                               .prompt_edits = prompt_edits,
                               .generated_edits = generated_edits};
    Stream *decoded = mem_zeroed(1, sizeof *decoded), *packed = mem_zeroed(1, sizeof *packed);
    Texts *texts = mem_zeroed(1, sizeof *texts);
    Generation made;
    assert_true(generate(&model, &batch, &options, &(Hooks){.context = decoded, .residual = on_residual},
                         &made, &error));
    join(&batch, &made, &options, texts);
    PassResult result;
    PassOptions pass = {.want_logits = true, .edits = &table, .token_edits = texts->edits};
    PromptBatch whole = {R_PROMPTS, texts->offsets, texts->tokens};
    assert_true(model_pass(&model, &whole, &pass, &(Hooks){.context = packed, .residual = on_residual},
                           &result, &error));
    for (int64_t p = 0; p < R_PROMPTS; p++)
        for (int64_t i = 0; i + 1 < N_NEW; i++) {
            int64_t row = texts->offsets[p] + R_OFFSETS[p + 1] - R_OFFSETS[p] + i;
            for (int64_t layer = 0; layer < R_LAYERS; layer++)
                assert_memory_equal(decoded->rows[layer][R_TOKENS + i * R_PROMPTS + p],
                                    packed->rows[layer][row], R_HIDDEN * sizeof(float));
        }
    pass_result_free(&result);
    generation_free(&made);
    edit_table_free(&table);
    mem_free(decoded), mem_free(packed), mem_free(texts);
    random_model_close(&model);
}

static void test_decoding_has_the_bits_of_a_packed_pass(void **state) {
    (void)state;
    static const int32_t sets[R_PROMPTS] = {2, 0, -1, 3}, others[R_PROMPTS] = {1, 1, 2, 0},
                         none[R_PROMPTS] = {-1, -1, -1, -1};
    check_generation(like_mixtral(DTYPE_F32), DTYPE_F32, sets, sets);
    check_generation(like_olmoe(DTYPE_F32), DTYPE_F32, sets, others);
    check_generation(like_qwen3(DTYPE_F32), DTYPE_F32, none, sets);
    check_generation(like_mixtral(DTYPE_F32), DTYPE_F32, others, none);
}

/* A prompt's tokens under its set do not depend on the sets of the others; without one, on the table. */
static void test_sets_do_not_touch_each_other(void **state) {
    (void)state;
    Model model;
    EditTable table;
    Error error = {0};
    int32_t tokens[R_TOKENS], sets[R_PROMPTS] = {3, -1, 0, 2};
    random_tokens(tokens, 32);
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 9);
    fill(&table, &model);
    GenerateOptions options = {.max_new_tokens = N_NEW,
                               .rule = {.top_p = 1, .n_valid = R_VOCABULARY},
                               .edits = &table,
                               .prompt_edits = sets,
                               .generated_edits = sets};
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    Generation all, one;
    assert_true(generate(&model, &batch, &options, NULL, &all, &error));
    int n_changed = 0;
    for (int64_t p = 0; p < R_PROMPTS; p++) {
        PromptBatch alone = {1, (const int64_t[]){0, R_OFFSETS[p + 1] - R_OFFSETS[p]}, tokens + R_OFFSETS[p]};
        GenerateOptions own = options;
        own.prompt_edits = own.generated_edits = &sets[p];
        if (sets[p] < 0) own.edits = NULL, own.prompt_edits = own.generated_edits = NULL;
        assert_true(generate(&model, &alone, &own, NULL, &one, &error));
        assert_memory_equal(all.tokens + all.offsets[p], one.tokens, N_NEW * sizeof *one.tokens);
        generation_free(&one);
        own.edits = NULL;
        assert_true(generate(&model, &alone, &own, NULL, &one, &error));
        n_changed += memcmp(all.tokens + all.offsets[p], one.tokens, N_NEW * sizeof *one.tokens) != 0;
        generation_free(&one);
    }
    assert_true(n_changed >= 2 && n_changed <= 3);
    generation_free(&all);
    edit_table_free(&table);
    random_model_close(&model);
}

/* Continuations that share one pass over their prompt have the tokens of prompts run each for itself. */
static void test_forks_are_prompts_of_their_own(void **state) {
    (void)state;
    enum { N_FORKS = 3 };
    Model model;
    EditTable table;
    Error error = {0};
    int32_t tokens[R_TOKENS], sets[R_PROMPTS * N_FORKS];
    int64_t keys[R_PROMPTS] = {4, 9, 1, 7};
    random_tokens(tokens, 34);
    for (int s = 0; s < R_PROMPTS * N_FORKS; s++) sets[s] = s % (N_SETS + 1) - 1;
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 9);
    fill(&table, &model);
    for (int sampled = 0; sampled < 2; sampled++) {
        GenerateOptions options = {
            .max_new_tokens = N_NEW,
            .rule = {.temperature = 0.8f * (float)sampled, .top_p = 1, .n_valid = R_VOCABULARY, .seed = 5},
            .prompt_keys = keys,
            .stop_tokens = (const int32_t[]){3, 17, 40},
            .n_stop_tokens = 3,
            .edits = &table,
            .generated_edits = sets,
            .n_forks = N_FORKS};
        PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
        Generation forked, one;
        assert_true(generate(&model, &batch, &options, NULL, &forked, &error));
        assert_int_equal(forked.n_prompts, R_PROMPTS * N_FORKS);
        for (int64_t s = 0; s < R_PROMPTS * N_FORKS; s++) {
            int64_t p = s / N_FORKS, n = R_OFFSETS[p + 1] - R_OFFSETS[p];
            PromptBatch alone = {1, (const int64_t[]){0, n}, tokens + R_OFFSETS[p]};
            GenerateOptions own = options;
            own.n_forks = 1, own.generated_edits = &sets[s], own.prompt_keys = &keys[p];
            assert_true(generate(&model, &alone, &own, NULL, &one, &error));
            assert_int_equal(one.offsets[1], forked.offsets[s + 1] - forked.offsets[s]);
            assert_memory_equal(one.tokens, forked.tokens + forked.offsets[s],
                                (size_t)one.offsets[1] * sizeof *one.tokens);
            assert_int_equal(one.stopped[0], forked.stopped[s]);
            generation_free(&one);
        }
        generation_free(&forked);
    }
    edit_table_free(&table);
    random_model_close(&model);
}

/* ---- gradients ---- */
typedef struct {
    float logits[R_LAYERS][R_TOKENS][7];
} Gradients;

static bool on_route_grad(void *context, HookSite *site, const RouteGradView *view) {
    (void)site;
    Gradients *g = context;
    int64_t n = tensor_columns(view->logits_grad);
    for (int64_t t = 0; t < R_TOKENS; t++)
        memcpy(g->logits[view->moe_layer][t], (const float *)view->logits_grad.data + t * n,
               (size_t)n * sizeof(float));
    return true;
}

/* Recomputed or kept, the walk goes back through the same edits; what an edit fixes gets no gradient: a
 * masked, a promoted and a demoted logit. (Ops and tape are checked against differences elsewhere.) */
static void test_gradients_go_through_the_edits(void **state) {
    (void)state;
    static Gradients kept, again;
    Model model;
    EditTable table;
    Error error = {0};
    int32_t tokens[R_TOKENS], sets[R_TOKENS];
    float loss[R_TOKENS];
    random_tokens(tokens, 35);
    for (int t = 0; t < R_TOKENS; t++) sets[t] = t % N_SETS, loss[t] = 0.1f;
    random_model_open(&model, like_olmoe(DTYPE_F32), cpu_device(), DTYPE_F32, 9);
    fill(&table, &model);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    PassOptions options = {
        .loss_weights = loss, .edits = &table, .token_edits = sets, .recompute = RECOMPUTE_NEVER};
    PassResult result;
    assert_true(model_pass(&model, &batch, &options, &(Hooks){.context = &kept, .route_grad = on_route_grad},
                           &result, &error));
    pass_result_free(&result);
    options.recompute = RECOMPUTE_ALWAYS;
    assert_true(model_pass(&model, &batch, &options, &(Hooks){.context = &again, .route_grad = on_route_grad},
                           &result, &error));
    pass_result_free(&result);
    assert_memory_equal(&kept, &again, sizeof kept);
    for (int l = 0; l < R_LAYERS; l++)
        for (int t = 0; t < R_TOKENS; t++) {
            const float *row = kept.logits[l][t];
            int n_zero = 0;
            for (int e = 0; e < 7; e++) n_zero += row[e] == 0;
            bool last =
                t + 1 == R_OFFSETS[1] || t + 1 == R_OFFSETS[2] || t + 1 == R_OFFSETS[3] || t + 1 == R_TOKENS;
            if (last) continue; /* has no loss of its own; in the last layer no gradient at all */
            if (sets[t] == 0) assert_true(row[1] == 0 && n_zero == 1);
            if (sets[t] == 2 || sets[t] == 3) assert_int_equal(n_zero, 0);
            double sum = 0;
            for (int e = 0; e < 7; e++) sum += (double)row[e];
            assert_true(fabs(sum) < 1e-6);
        }
    edit_table_free(&table);
    random_model_close(&model);
}

/* ---- replay ---- */
typedef struct {
    int32_t ids[R_LAYERS * R_TOKENS * 3];
    float weights[R_LAYERS * R_TOKENS * 3];
} Record;

static bool on_route(void *context, HookSite *site, const RouteView *view) {
    (void)site;
    Record *r = context;
    memcpy(r->ids + view->moe_layer * tensor_count(view->ids), view->ids.data, tensor_bytes(view->ids));
    memcpy(r->weights + view->moe_layer * tensor_count(view->ids), view->weights.data,
           tensor_bytes(view->weights));
    return true;
}

/* A pass without edits on the routes of one with them has its bits; it is looked at as what it is. */
static void test_replay(void **state) {
    (void)state;
    static Record record, seen;
    Model model;
    EditTable table;
    Error error = {0};
    int32_t tokens[R_TOKENS], sets[R_TOKENS];
    random_tokens(tokens, 33);
    for (int t = 0; t < R_TOKENS; t++) sets[t] = t % (N_SETS + 1) - 1;
    random_model_open(&model, like_olmoe(DTYPE_F32), cpu_device(), DTYPE_F32, 9);
    fill(&table, &model);
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    PassOptions edited = {.want_logits = true, .edits = &table, .token_edits = sets};
    RouteReplay replay = {record.ids, record.weights};
    PassOptions replayed = {.want_logits = true, .replay = &replay}, plain = {.want_logits = true};
    PassResult a, b, c;
    assert_true(
        model_pass(&model, &batch, &edited, &(Hooks){.context = &record, .route = on_route}, &a, &error));
    assert_true(
        model_pass(&model, &batch, &replayed, &(Hooks){.context = &seen, .route = on_route}, &b, &error));
    assert_true(model_pass(&model, &batch, &plain, NULL, &c, &error));
    size_t n_bytes = R_TOKENS * R_VOCABULARY * sizeof(float);
    assert_memory_equal(a.logits, b.logits, n_bytes);
    assert_true(memcmp(a.logits, c.logits, n_bytes) != 0);
    assert_memory_equal(&record, &seen, sizeof record);
    pass_result_free(&a), pass_result_free(&b), pass_result_free(&c);

    float loss[R_TOKENS] = {1};
    replayed.loss_weights = loss;
    assert_false(model_pass(&model, &batch, &replayed, NULL, &b, &error));
    assert_string_equal(error.text, "replay: expected a pass without gradients: recorded routes have none");
    replayed.loss_weights = NULL;
    static const int32_t bad[] = {7, -1};
    for (int i = 0; i < 3; i++) {
        error = (Error){0};
        int32_t *id = &record.ids[(R_TOKENS + 4) * 3 + 1], kept = *id;
        *id = i < 2 ? bad[i] : id[-1];
        assert_false(model_pass(&model, &batch, &replayed, NULL, &b, &error));
        assert_contains(error.text,
                        "replay: expert layer 1, token 4: expected 3 distinct experts from 0 to 6");
        *id = kept;
    }
    edit_table_free(&table);
    random_model_close(&model);
}

/* The same under every failing allocation: one line, nothing lost. */
static bool generate_edited(void *context, Error *error) {
    const Model *model = context;
    EditTable table;
    int32_t tokens[R_TOKENS], sets[R_PROMPTS] = {0, 0, -1, 0};
    random_tokens(tokens, 32);
    Generation made = {0};
    bool ok = edit_table_make(&model->config, 1, &table, error) &&
              edit_table_put(&table, &model->config, 0, (CellEdit){0, 1, EDIT_MASK, 0}, error);
    GenerateOptions options = {.max_new_tokens = 2,
                               .rule = {.top_p = 1, .n_valid = R_VOCABULARY},
                               .edits = &table,
                               .prompt_edits = sets,
                               .generated_edits = sets};
    PromptBatch batch = {R_PROMPTS, R_OFFSETS, tokens};
    ok = ok && generate(model, &batch, &options, NULL, &made, error);
    generation_free(&made);
    edit_table_free(&table);
    return ok;
}

static void test_without_memory(void **state) {
    (void)state;
    Model model;
    random_model_open(&model, like_mixtral(DTYPE_F32), cpu_device(), DTYPE_F32, 9);
    fail_each_allocation(generate_edited, &model);
    random_model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_edits),
        cmocka_unit_test(test_decoding_has_the_bits_of_a_packed_pass),
        cmocka_unit_test(test_sets_do_not_touch_each_other),
        cmocka_unit_test(test_forks_are_prompts_of_their_own),
        cmocka_unit_test(test_gradients_go_through_the_edits),
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

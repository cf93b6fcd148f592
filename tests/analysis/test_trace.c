/* A trace that a job has written is read back and replayed: the pass has the bits of the one that was
 * traced, also under edits that would send its tokens elsewhere. */
#include "../../analysis/run.h"
#include "../../analysis/trace.h"
#include "../../kernels/device.h"
#include "../engine/scratch.h"

#define DEMO SOURCE_DIR "/configs/demo/"

static const char job_text[] =
    "{\"schema_version\": 1, \"models\": {\"demo\": {\"path\": \"" DEMO
    "model\", \"chat_template\": \"phi35moe\"}},\n"
    " \"prompts\": {\"a\": {\"path\": \"" DEMO "prompts/rank_ordinary.jsonl\", \"limit\": 5}},\n"
    " \"steps\": [{\"name\": \"act\", \"kind\": \"activation\", \"trace\": \"choices\"}]}\n";

static Model model;
static Trace trace;

static int set_up(void **state) {
    (void)state;
    Error error = {0};
    scratch_write_text("job.json", job_text);
    RunRequest request = {
        .job = scratch_path("job.json"), .out = scratch_path("run"), .version = "test", .to = stdout};
    if (!run_job(&request, &error) || !model_open(DEMO "model", cpu_device(), DTYPE_F32, &model, &error) ||
        !trace_read(scratch_path("run/act/traces/a.0000.safetensors"), &model.config, &trace, &error)) {
        fprintf(stderr, "%s\n", error.text);
        return -1;
    }
    return 0;
}

static int tear_down(void **state) {
    trace_free(&trace);
    model_close(&model);
    return scratch_remove(state);
}

static float *logits_of(PassOptions options) {
    Error error = {0};
    PassResult result;
    PromptBatch batch = {trace.n_prompts, trace.prompt_offsets, trace.tokens};
    options.want_logits = true;
    if (!model_pass(&model, &batch, &options, NULL, &result, &error)) fail_msg("%s", error.text);
    float *logits = result.logits;
    result.logits = NULL;
    pass_result_free(&result);
    return logits;
}

static void test_replays_what_was_traced(void **state) {
    (void)state;
    assert_int_equal(trace.n_prompts, 5);
    Error error = {0};
    EditTable table;
    assert_true(edit_table_make(&model.config, 1, &table, &error));
    for (int64_t layer = 0; layer < model.config.n_layers; layer++)
        assert_true(edit_table_put(&table, &model.config, 0, (CellEdit){layer, 2, EDIT_MASK, 0}, &error));
    RouteReplay replay = trace_replay(&trace);
    float *plain = logits_of((PassOptions){0}), *replayed = logits_of((PassOptions){.replay = &replay}),
          *edited = logits_of((PassOptions){.edits = &table}),
          *both = logits_of((PassOptions){.edits = &table, .replay = &replay});
    size_t n_bytes = (size_t)(trace.n_tokens * model.config.vocab_size) * sizeof(float);
    assert_memory_equal(plain, replayed, n_bytes);
    assert_memory_equal(plain, both, n_bytes);
    assert_true(memcmp(plain, edited, n_bytes) != 0);
    mem_free(plain), mem_free(replayed), mem_free(edited), mem_free(both);
    edit_table_free(&table);
}

static void test_other_traces_are_refused(void **state) {
    (void)state;
    Error error = {0};
    Trace other;
    ModelConfig config = model.config;
    config.n_experts_per_token++;
    assert_false(trace_read(scratch_path("run/act/traces/a.0000.safetensors"), &config, &other, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text,
                    "a.0000.safetensors: expected a trace of this model with a tensor expert_ids");
    error = (Error){0};
    assert_false(trace_read(scratch_path("run/act/per_prompt.safetensors"), &model.config, &other, &error));
    assert_contains(error.text, "token_id");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_replays_what_was_traced),
                                       cmocka_unit_test(test_other_traces_are_refused)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

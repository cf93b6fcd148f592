/* conform on the training of a golden case: it agrees, is written under the names of the reference, faults
 * planted in what is expected are found, and plans that make no sense are refused. */
#define GOLDEN SOURCE_DIR "/tests/golden/qwen3_moe"
#include "golden_case.h"
#include <math.h>

static int set_up(void **state) {
    (void)state;
    scratch_make_folder("case");
    copy_file("expected.safetensors");
    copy_file("expected_lora.safetensors");
    copy_file("lora.json");
    return 0;
}

/* By a comparison made here, and the loss falls. */
static void test_agrees_and_is_written(void **state) {
    (void)state;
    static char printed[16384];
    bool agrees;
    Error error = {0};
    assert_true(conform(&agrees, printed, &error));
    if (!agrees) fail_msg("%s", printed);
    assert_contains(printed, "same bits: lora, packed and one prompt at a time: equal");
    File want = read_file(GOLDEN "/expected_lora.safetensors"),
         got = read_file(scratch_path("out/actual_lora.safetensors"));
    assert_int_equal(want.n, got.n);
    for (int64_t i = 0; i < want.n; i++) {
        const char *name = want.tensors[i].name;
        Tensor a = *find(&got, name), b = want.tensors[i].tensor;
        assert_true(a.n_dims == b.n_dims && !memcmp(a.shape, b.shape, sizeof *a.shape * (size_t)a.n_dims));
        double largest = 0, worst = 0, bound = strncmp(name, "grad0", 5) ? 1e-4 : 1e-5;
        for (int64_t k = 0; k < tensor_count(b); k++) {
            worst = fmax(worst, fabs((double)((float *)a.data)[k] - (double)((float *)b.data)[k]));
            largest = fmax(largest, fabs((double)((float *)b.data)[k]));
        }
        if (!(worst <= bound * largest)) fail_msg("%s: %g of %g", name, worst, largest);
    }
    const float *losses = find(&got, "losses")->data;
    assert_true(losses[19] < losses[0]);
    free_file(&want);
    free_file(&got);
}

static void plant(const char *name, float by, const char *said) {
    static char printed[16384];
    bool agrees;
    Error error = {0};
    File f = read_file(GOLDEN "/expected_lora.safetensors");
    Tensor *t = find(&f, name);
    ((float *)t->data)[tensor_count(*t) - 1] += by;
    assert_true(
        safetensors_write(scratch_path("case/expected_lora.safetensors"), f.tensors, f.n, NULL, 0, &error));
    assert_true(conform(&agrees, printed, &error));
    if (agrees) fail_msg("nothing found in %s", name);
    assert_contains(printed, said);
    free_file(&f);
    copy_file("expected_lora.safetensors");
}

static void test_faults_are_found(void **state) {
    (void)state;
    plant("losses", 2e-3f, "worst losses  FAILED");
    plant("grad_norms", 1e-2f, "worst grad_norms  FAILED");
    plant("grad0.layers.1.experts.12.down.lora_B", 1e-4f,
          "worst grad0.layers.1.experts.12.down.lora_B  FAILED");
    plant("final.layers.2.experts.7.gate.lora_A", 1e-3f,
          "worst final.layers.2.experts.7.gate.lora_A  FAILED");
    plant("final_logits", 1e-2f, "worst final_logits  FAILED");
    plant("init.layers.2.experts.7.down.lora_A", 1e-1f, "FAILED");
}

static void test_bad_plans_are_refused(void **state) {
    (void)state;
#define REST "\"alpha\": 4, \"lr\": 0.002, \"weight_decay\": 0, \"clip_norm\": 1, \"prompts_per_step\": 3, "
    static const struct {
        const char *text, *said;
    } cases[] = {
        {"[]", "rank: expected"},
        {"{\"rank\": 0}", "rank: expected an integer from 1 to 128"},
        {"{\"rank\": 2, \"steps\": 1, " REST "\"cells\": []}",
         "cells: expected an array of [layer, expert, "},
        {"{\"rank\": 2, \"steps\": 1, " REST "\"cells\": [[0, 3]]}", "cells[0]: expected [layer, expert, "},
        {"{\"rank\": 2, \"steps\": 1, " REST "\"cells\": [[0, 3, \"gat\"]]}",
         "cells[0][2]: expected gate, up or down: got \"gat\""},
        {"{\"rank\": 2, \"steps\": 1, " REST "\"cells\": [[0, 16, \"gate\"]]}",
         "cells[0]: expert of layer 0: expected 0 to 15: got 16"},
        {"{\"rank\": 33, \"steps\": 1, " REST "\"cells\": [[0, 3, \"gate\"]]}",
         "cells[0]: rank: expected 1 to 32: got 33"},
        {"{\"rank\": 2, \"steps\": 1, " REST "\"cells\": [[0, 4, \"gate\"]]}",
         "expected a tensor init.layers.0.experts.4.gate.lora_A: got none"},
        {"{\"rank\": 3, \"steps\": 1, " REST "\"cells\": [[0, 3, \"gate\"]]}",
         "init.layers.0.experts.3.gate.lora_A: expected [3,64]"},
    };
    static char printed[16384];
    bool agrees;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error = {0};
        scratch_write_text("case/lora.json", cases[i].text);
        assert_false(conform(&agrees, printed, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, cases[i].said);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agrees_and_is_written),
        cmocka_unit_test(test_faults_are_found),
        cmocka_unit_test(test_bad_plans_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_remove);
}

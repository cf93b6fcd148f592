/* conform on the interventions of a golden case: they agree, are written under the names of the reference,
 * and a fault planted in their expected values is found; files that are not such a list are refused. */
#define GOLDEN SOURCE_DIR "/tests/golden/olmoe"
#include "golden_case.h"
#include <errno.h>

static int set_up(void **state) {
    (void)state;
    scratch_make_folder("case");
    copy_file("expected.safetensors");
    copy_file("interventions.json");
    copy_file("expected_interventions.safetensors");
    return 0;
}

/* Every expected tensor stands in the file written, near it by a comparison made here. */
static void test_agrees_and_is_written(void **state) {
    (void)state;
    static char printed[16384];
    bool agrees;
    Error error = {0};
    assert_true(conform(&agrees, printed, &error));
    assert_true(agrees);
    assert_contains(printed, "zero_renormalize.topk_ids          0        0  147 of 147 choices");
    assert_contains(printed, "force.logits ");
    assert_contains(printed, "all 37 checks passed");
    File want = read_file(GOLDEN "/expected_interventions.safetensors"),
         got = read_file(scratch_path("out/actual_interventions.safetensors"));
    assert_int_equal(want.n, got.n);
    for (int64_t i = 0; i < want.n; i++) {
        Tensor a = *find(&got, want.tensors[i].name), b = want.tensors[i].tensor;
        assert_true(a.dtype == b.dtype && a.n_dims == b.n_dims && tensor_count(a) == tensor_count(b));
        if (b.dtype == DTYPE_I64) assert_memory_equal(a.data, b.data, tensor_bytes(b));
        double largest = 0, worst = 0;
        for (int64_t k = 0; b.dtype == DTYPE_F32 && k < tensor_count(b); k++) {
            double x = (double)((float *)a.data)[k], y = (double)((float *)b.data)[k];
            largest = y > largest ? y : -y > largest ? -y : largest;
            worst = x - y > worst ? x - y : y - x > worst ? y - x : worst;
        }
        if (worst > 5e-6 * largest) fail_msg("%s: %g of %g", want.tensors[i].name, worst, largest);
    }
    free_file(&want);
    free_file(&got);
}

static void plant(const char *name, double by) {
    static char printed[16384];
    bool agrees;
    Error error = {0};
    File f = read_file(GOLDEN "/expected_interventions.safetensors");
    Tensor *t = find(&f, name);
    int64_t last = tensor_count(*t) - 1;
    if (t->dtype == DTYPE_I64)
        ((int64_t *)t->data)[last] = (((int64_t *)t->data)[last] + 7) % 16;
    else
        ((float *)t->data)[last] += (float)by;
    assert_true(safetensors_write(scratch_path("case/expected_interventions.safetensors"), f.tensors, f.n,
                                  NULL, 0, &error));
    assert_true(conform(&agrees, printed, &error));
    if (agrees) fail_msg("nothing found in %s", name);
    assert_contains(printed, "1 of 37 checks failed");
    free_file(&f);
    copy_file("expected_interventions.safetensors");
}

static void test_faults_are_found(void **state) {
    (void)state;
    plant("mask.logits", 1e-3);
    plant("zero.nll", 1e-3);
    plant("zero_renormalize.topk_weights", 1e-4);
    plant("force.topk_ids", 0);
}

/* Without expected values the actual ones are written all the same. */
static void test_without_expected_values(void **state) {
    (void)state;
    static char printed[16384];
    bool agrees;
    Error error = {0};
    unlink(scratch_path("case/expected_interventions.safetensors"));
    unlink(scratch_path("out/actual_interventions.safetensors"));
    assert_true(conform(&agrees, printed, &error));
    assert_contains(printed,
                    "not checked: interventions (the case has no expected_interventions.safetensors)");
    assert_true(io_exists(scratch_path("out/actual_interventions.safetensors")));
    copy_file("expected_interventions.safetensors");
}

static void test_bad_lists_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *said;
    } cases[] = {
        {"{}", "expected an array of at most"},
        {"[{\"name\": \"a\", \"mode\": \"masc\", \"cells\": [[0, 1]]}]",
         "[0].mode: expected a mode of an edit: got \"masc\""},
        {"[{\"name\": \"a\", \"mode\": \"mask\", \"cells\": []}]",
         "[0].cells: expected an array of [layer, expert]"},
        {"[{\"name\": \"a\", \"mode\": \"mask\", \"cells\": [[0]]}]",
         "[0].cells[0]: expected [layer, expert]"},
        {"[{\"name\": \"a\", \"mode\": \"mask\", \"cells\": [[0, 16]]}]",
         "[0].cells[0]: expert of layer 0: expected 0 to 15: got 16"},
        {"[{\"name\": \"a\", \"mode\": \"mask\", \"cells\": [[3, 0]]}]",
         "[0].cells[0]: layer: expected 0 to 2: got 3"},
        {"[{\"name\": \"a\", \"mode\": \"force\", \"cells\": [[1, 0]]}]",
         "[0]: layer 1: expected 4 forced experts, as many as a token takes: got 1"},
        {"[{\"name\": \"a\", \"mode\": \"zero\", \"cells\": [[1, 0]]}, {\"name\": \"a\", \"mode\": \"mask\", "
         "\"cells\": [[1, "
         "0]]}]",
         "[1]: expected another name than that of [0]: got \"a\""},
    };
    static char printed[16384];
    bool agrees;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error = {0};
        scratch_write_text("case/interventions.json", cases[i].text);
        assert_false(conform(&agrees, printed, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, cases[i].said);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agrees_and_is_written),
        cmocka_unit_test(test_faults_are_found),
        cmocka_unit_test(test_without_expected_values),
        cmocka_unit_test(test_bad_lists_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_remove);
}

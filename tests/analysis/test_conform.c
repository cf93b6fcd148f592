/* conform: it passes on a true case, and finds a fault planted in each of the case's tensors, a little beyond
 * its bound.
 *
 * One case is computed once; what is planted goes into copies of its expected file. */
#include "tests/engine/scratch.h"
#include "analysis/conform.h"
#include "analysis/conform_parts.h"
#include "engine/safetensors.h"
#include "kernels/device.h"
#include <errno.h>
#include <math.h>

static const char golden[] = SOURCE_DIR "/tests/golden/qwen3_moe_dense_layer";
static Model model;
static ConformValues computed;

enum { MAX_TENSORS = 32 };

typedef struct {
    NamedTensor tensors[MAX_TENSORS];
    int64_t n;
    TensorSet *set;
} Expected;

static Expected read_expected(void) {
    Error error = {0};
    Expected e = {.set = safetensors_open(
                      SOURCE_DIR "/tests/golden/qwen3_moe_dense_layer/expected.safetensors", &error)};
    if (!e.set) fail_msg("%s", error.text);
    for (e.n = 0; e.n < safetensors_count(e.set); e.n++) {
        const TensorEntry *entry = safetensors_entry(e.set, e.n);
        Tensor t = {
            .dtype = entry->dtype, .n_dims = entry->n_dims, .data = mem_alloc((size_t)entry->n_bytes)};
        memcpy(t.shape, entry->shape, (size_t)entry->n_dims * sizeof *entry->shape);
        assert_true(safetensors_read(e.set, entry, 0, t.data, (size_t)entry->n_bytes, &error));
        e.tensors[e.n] = (NamedTensor){entry->name, t};
    }
    return e;
}

static Tensor *find(Expected *e, const char *name) {
    for (int64_t i = 0; i < e->n; i++)
        if (!strcmp(e->tensors[i].name, name)) return &e->tensors[i].tensor;
    fail_msg("no tensor %s", name);
    return NULL;
}

static void free_expected(Expected *e) {
    for (int64_t i = 0; i < e->n; i++) mem_free(e->tensors[i].tensor.data);
    safetensors_close(e->set);
}

static void write_case(const Expected *e) {
    Error error = {0};
    scratch_make_folder("case");
    if (!safetensors_write(scratch_path("case/expected.safetensors"), e->tensors, e->n, NULL, 0, &error))
        fail_msg("%s", error.text);
}

static void open_case(ConformCase *c) {
    Error error = {0};
    if (!conform_case_read(scratch_path("case"), c, &error)) fail_msg("%s", error.text);
}

/* Runs conform on the written case with the golden case's model; what it printed. */
static const char *run_case(const char *folder, bool *agrees) {
    static char printed[16384];
    Error error = {0};
    FILE *to = tmpfile();
    ConformOptions options = {
        .folder = folder, .model = golden, .device = cpu_device(), .compute = DTYPE_F32};
    if (!conform_run(&options, to, agrees, &error)) fail_msg("%s", error.text);
    rewind(to);
    printed[fread(printed, 1, sizeof printed - 1, to)] = '\0';
    fclose(to);
    return printed;
}

static void test_passes(void **state) {
    (void)state;
    bool agrees;
    const char *printed = run_case(golden, &agrees);
    assert_true(agrees);
    assert_contains(printed, "all 17 checks passed");
    assert_contains(printed, "same bits: packed and split in two: equal");
    assert_null(strstr(printed, "FAILED"));
}

/* Every tensor of the case stands in actual.safetensors under the same name, and agrees by a comparison made
 * here. */
static void test_writes_actual(void **state) {
    (void)state;
    Error error = {0};
    bool agrees;
    FILE *to = tmpfile();
    const char *out = scratch_path("out");
    ConformOptions options = {.folder = golden, .out = out, .device = cpu_device(), .compute = DTYPE_F32};
    assert_true(conform_run(&options, to, &agrees, &error));
    fclose(to);
    TensorSet *actual = safetensors_open(scratch_path("out/actual.safetensors"), &error);
    assert_non_null(actual);
    Expected e = read_expected();
    assert_int_equal(safetensors_count(actual), e.n);
    for (int64_t i = 0; i < e.n; i++) {
        const TensorEntry *entry = safetensors_find(actual, e.tensors[i].name);
        Tensor b = e.tensors[i].tensor;
        assert_non_null(entry);
        assert_int_equal(entry->dtype, b.dtype);
        assert_int_equal(entry->n_bytes, tensor_bytes(b));
        void *data = mem_alloc((size_t)entry->n_bytes);
        assert_true(safetensors_read(actual, entry, 0, data, (size_t)entry->n_bytes, &error));
        if (b.dtype == DTYPE_I64) assert_memory_equal(data, b.data, tensor_bytes(b));
        float error_max = 0, largest = 0;
        for (int64_t k = 0; b.dtype == DTYPE_F32 && k < tensor_count(b); k++) {
            error_max = fmaxf(error_max, fabsf(((float *)data)[k] - ((float *)b.data)[k]));
            largest = fmaxf(largest, fabsf(((float *)b.data)[k]));
        }
        if (error_max > 5e-6f * largest) fail_msg("%s: %g of %g", e.tensors[i].name, error_max, largest);
        mem_free(data);
    }
    free_expected(&e);
    safetensors_close(actual);
}

/* The error that conform finds in a tensor of the written case. */
static double error_of(ConformName name) {
    Error error = {0};
    ConformCase c;
    ConformReach reach;
    ConformDifference d;
    open_case(&c);
    if (!conform_reach(&c, &computed, 1e-4f, &reach, &error) ||
        !conform_compare(&c, &reach, name, computed.tensors[name], &d, &error))
        fail_msg("%s", error.text);
    assert_int_equal(d.n_compared, d.n_rows);
    conform_reach_free(&reach);
    conform_case_free(&c);
    return d.error;
}

static void test_finds_a_fault_in_each_tensor(void **state) {
    (void)state;
    for (ConformName name = 0; name < N_CONFORM_TENSORS; name++) {
        if (conform_infos[name].kind == CONFORM_EXACT) continue;
        Expected e = read_expected();
        Tensor *t = find(&e, conform_infos[name].name);
        float *values = t->data, largest = 0;
        int64_t n = tensor_count(*t), at = n - 1;
        for (int64_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(values[i]));
        double bound = conform_infos[name].kind == CONFORM_GRADIENT ? 1e-5 : 5e-6;
        write_case(&e);
        assert_true(error_of(name) < bound);
        values[at] = ((float *)computed.tensors[name].data)[at] + (float)(1.5 * bound) * largest;
        write_case(&e);
        if (error_of(name) <= bound) fail_msg("%s: nothing found", conform_infos[name].name);
        values[at] = NAN;
        write_case(&e);
        assert_true(isinf(error_of(name)));
        free_expected(&e);
    }
}

static void test_finds_wrong_ids_and_tokens(void **state) {
    (void)state;
    static const struct {
        const char *tensor, *said;
    } cases[] = {
        {"topk_ids", "topk_ids                    1        0"},
        {"greedy_tokens", "greedy_tokens               1        0"},
        {"moe_layers", "moe_layers             differ        0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Expected e = read_expected();
        Tensor *t = find(&e, cases[i].tensor);
        int64_t *last = (int64_t *)t->data + tensor_count(*t) - 1;
        if (!strcmp(cases[i].tensor, "topk_ids")) { /* an expert that the token does not have */
            int64_t k = tensor_columns(*t), other = 0;
            for (int64_t j = 0; j < k; j++)
                if (last[-j] == other) other++, j = -1;
            *last = other;
        } else {
            *last += 1;
        }
        write_case(&e);
        bool agrees;
        const char *printed = run_case(scratch_path("case"), &agrees);
        assert_false(agrees);
        assert_contains(printed, cases[i].said);
        assert_contains(printed, "1 of 17 checks failed");
        free_expected(&e);
    }
}

/* A choice that is nearer than the bound and came out otherwise: it and what it reaches are left out, nothing
 * fails. */
static void test_leaves_out_what_a_near_choice_reaches(void **state) {
    (void)state;
    Expected e = read_expected();
    Tensor *ids = find(&e, "topk_ids"), *logits = find(&e, "router_logits");
    int64_t k = tensor_columns(*ids), n_experts = tensor_columns(*logits), n_tokens = ids->shape[1];
    int64_t *offsets = find(&e, "prompt_offsets")->data,
            token = offsets[1] + 2; /* of the second prompt, layer 0 */
    int64_t *row = (int64_t *)ids->data + token * k;
    float *z = (float *)logits->data + token * n_experts;
    int64_t next = -1;
    for (int64_t i = 0; i < n_experts; i++) {
        bool taken = false;
        for (int64_t j = 0; j < k; j++) taken = taken || row[j] == i;
        if (!taken && (next < 0 || z[i] > z[next])) next = i;
    }
    z[next] = z[row[k - 1]] + 1e-5f;
    row[k - 1] = next;
    write_case(&e);
    ConformCase c;
    ConformReach reach;
    Error error = {0};
    open_case(&c);
    assert_true(conform_reach(&c, &computed, 1e-4f, &reach, &error));
    int64_t behind = offsets[2] - token;
    assert_int_equal(reach.n_wrong, 0);
    assert_int_equal(reach.n_loose, 1);
    assert_int_equal(reach.n_near, 1);
    assert_int_equal(reach.n_after, behind); /* of the one layer above */
    ConformDifference d;
    assert_true(conform_compare(&c, &reach, CONFORM_LOGITS, computed.tensors[CONFORM_LOGITS], &d, &error));
    assert_int_equal(d.n_compared, n_tokens - behind);
    assert_true(conform_compare(&c, &reach, CONFORM_ROUTER_LOGITS, computed.tensors[CONFORM_ROUTER_LOGITS],
                                &d, &error));
    assert_int_equal(d.n_compared, 2 * n_tokens - behind - 1);
    assert_true(d.error < 5e-6); /* the changed logit is the diverted choice's own */
    assert_true(
        conform_compare(&c, &reach, CONFORM_GATE_GRAD, computed.tensors[CONFORM_GATE_GRAD], &d, &error));
    assert_int_equal(d.n_compared, 1);
    conform_reach_free(&reach);
    assert_true(conform_reach(&c, &computed, 1e-6f, &reach, &error)); /* not that near: a fault */
    assert_int_equal(reach.n_wrong, 1);
    conform_reach_free(&reach);
    conform_case_free(&c);
    free_expected(&e);
}

static void test_names_what_it_does_not_check(void **state) {
    (void)state;
    Expected e = read_expected();
    find(&e, "nll"); /* there, and renamed */
    for (int64_t i = 0; i < e.n; i++)
        if (!strcmp(e.tensors[i].name, "nll")) e.tensors[i].name = "other\x1b[2J";
    write_case(&e);
    scratch_write_text("case/expected_lora.safetensors", "");
    bool agrees;
    const char *printed = run_case(scratch_path("case"), &agrees);
    assert_true(agrees);
    assert_contains(printed, "not checked: tensor nll (the case does not have it)");
    assert_contains(printed, "not checked: tensor other\\x1b[2J (not a tensor of the golden cases)");
    assert_contains(printed, "not checked: expected_lora.safetensors (the case has no lora.json)");
    assert_int_equal(remove(scratch_path("case/expected_lora.safetensors")), 0);
    free_expected(&e);
}

static void assert_refused(const char *tensor, int64_t at, int64_t value, const char *said) {
    Expected e = read_expected();
    ((int64_t *)find(&e, tensor)->data)[at] = value;
    write_case(&e);
    ConformCase c;
    Error error = {0};
    bool ok = conform_case_read(scratch_path("case"), &c, &error);
    if (ok) {
        ok = conform_case_fits(&c, &model.config, &error);
        conform_case_free(&c);
    }
    assert_false(ok);
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, said);
    free_expected(&e);
}

static void test_refuses_bad_cases(void **state) {
    (void)state;
    assert_refused("tokens", 3, -1, "tokens[3]: expected 0 to");
    assert_refused("tokens", 3, 160, "tokens[3]: expected less than the vocabulary's 160: got 160");
    assert_refused("prompt_offsets", 0, 1, "prompt_offsets: expected to reach from 0");
    assert_refused("prompt_offsets", 1, 1, "prompt_offsets[1]: expected prompts of 2 tokens or more");
    assert_refused("prompt_offsets", 2, 1000, "prompt_offsets[2]: expected 0 to 32: got 1000");
    assert_refused("target_starts", 0, 0, "target_starts[0]: expected 1 to");
    assert_refused("target_starts", 0, 31, "target_starts[0]: expected less than the prompt's");
    Error error = {0};
    ConformCase c;
    assert_false(conform_case_read("nowhere", &c, &error));
    assert_contains(error.text, "nowhere/expected.safetensors");
}

static bool read_again(void *context, Error *error) {
    (void)context;
    ConformCase c;
    bool ok = conform_case_read(golden, &c, error);
    if (ok) conform_case_free(&c);
    return ok;
}

static bool compute_again(void *context, Error *error) {
    ConformValues values;
    bool ok = conform_compute(&model, context, 1, RECOMPUTE_ALWAYS, &values, error);
    if (ok) conform_values_free(&values);
    return ok;
}

static void test_faults(void **state) {
    (void)state;
    assert_true(fail_each_allocation(read_again, NULL) > 10);
    assert_true(fail_each_file_call(read_again, NULL, EIO) > 5);
    ConformCase c;
    Error error = {0};
    assert_true(conform_case_read(golden, &c, &error));
    for (int64_t k = 1; k < 20; k++) { /* its own, before the first pass */
        error = (Error){0};
        mem_fail_after(k, true);
        bool ok = compute_again(&c, &error);
        mem_fail_after(0, false);
        assert_false(ok);
        assert_clean_error(&error, ERROR_UNAVAILABLE);
    }
    conform_case_free(&c);
}

static int setup(void **state) {
    (void)state;
    Error error = {0};
    ConformCase c;
    if (!model_open(golden, cpu_device(), DTYPE_F32, &model, &error) ||
        !conform_case_read(golden, &c, &error) ||
        !conform_compute(&model, &c, 1, RECOMPUTE_ALWAYS, &computed, &error)) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    conform_case_free(&c);
    return 0;
}

static int teardown(void **state) {
    conform_values_free(&computed);
    model_close(&model);
    return scratch_remove(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_passes),
        cmocka_unit_test(test_writes_actual),
        cmocka_unit_test(test_finds_a_fault_in_each_tensor),
        cmocka_unit_test(test_finds_wrong_ids_and_tokens),
        cmocka_unit_test(test_leaves_out_what_a_near_choice_reaches),
        cmocka_unit_test(test_names_what_it_does_not_check),
        cmocka_unit_test(test_refuses_bad_cases),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

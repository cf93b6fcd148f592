/* Adapters in files: every form written and read again, other layouts and patterns read, checkpoints merged
 * with all other bytes as they were, and what is refused. */
#include "scratch.h"
#include "engine/adapter_file.h"
#include "engine/safetensors.h"
#include "random_model.h"

#define GOLDEN SOURCE_DIR "/tests/golden/qwen3_moe"

static ModelConfig config;

static int set_up(void **state) {
    (void)state;
    Error error = {0};
    if (!model_config_read(GOLDEN, &config, &error)) fail_msg("%s", error.text);
    return 0;
}

static int tear_down(void **state) {
    model_config_free(&config);
    return scratch_remove(state);
}

/* Gate alone, gate and up, all three; two layers; ranks and scales as given. */
static Adapter make_adapter(int64_t other_rank, float other_scale) {
    static const struct {
        int64_t layer, expert;
        Projection projection;
        bool other;
    } cells[] = {{0, 3, PROJECTION_GATE, false}, {0, 15, PROJECTION_UP, true}, {0, 15, PROJECTION_GATE, true},
                 {2, 0, PROJECTION_DOWN, false}, {2, 7, PROJECTION_UP, false}, {2, 7, PROJECTION_DOWN, true}};
    Adapter adapter = {0};
    Error error = {0};
    uint64_t state = 5;
    for (size_t i = 0; i < sizeof cells / sizeof *cells; i++) {
        AdapterCell like = {cells[i].layer, cells[i].expert, cells[i].projection, 3, 0.5f, NULL, NULL}, *cell;
        if (cells[i].other) like.rank = other_rank, like.scale = other_scale;
        if (!adapter_add(&adapter, &config, like, &cell, &error)) fail_msg("%s", error.text);
        for (int64_t k = 0; k < cell->rank * projection_in(&config, cell->projection); k++)
            cell->a[k] = (float)random_value(&state);
        for (int64_t k = 0; k < cell->rank * projection_out(&config, cell->projection); k++)
            cell->b[k] = (float)random_value(&state);
    }
    return adapter;
}

/* scale b a, [out,in] */
static double *update_of(const AdapterCell *cell) {
    int64_t in = projection_in(&config, cell->projection), out = projection_out(&config, cell->projection);
    double *to = mem_zeroed((size_t)(in * out), sizeof *to);
    for (int64_t k = 0; k < in * out; k++)
        for (int64_t r = 0; r < cell->rank; r++)
            to[k] += (double)cell->scale * (double)cell->b[k / in * cell->rank + r] *
                     (double)cell->a[r * in + k % in];
    return to;
}

static void assert_same_updates(const Adapter *a, const Adapter *b, double bound) {
    assert_int_equal(a->n, b->n);
    for (int64_t i = 0; i < a->n; i++) {
        const AdapterCell *x = &a->cells[i], *y = &b->cells[i];
        assert_true(x->layer == y->layer && x->expert == y->expert && x->projection == y->projection);
        double *u = update_of(x), *v = update_of(y);
        for (int64_t k = 0; k < config.hidden_size * config.expert_size; k++)
            if (fabs(u[k] - v[k]) > bound) fail_msg("cell %d element %d: %g %g", (int)i, (int)k, u[k], v[k]);
        mem_free(u);
        mem_free(v);
    }
}

static Adapter read_back(const char *folder, const AdapterReading *reading, AdapterAbout *about) {
    Adapter adapter;
    Error error = {0};
    if (!adapter_read(folder, &config, reading, &adapter, about, &error)) fail_msg("%s", error.text);
    return adapter;
}

/* One rank and scale: the numbers come back as they were. Several: the same updates, padded and scaled. The
 * dense form holds all three layers, the fused one those two that have cells. */
static void test_forms_come_back(void **state) {
    (void)state;
    Error error = {0};
    for (int mixed = 0; mixed < 2; mixed++)
        for (int form = 0; form < N_ADAPTER_FORMS; form++) {
            Adapter adapter = mixed ? make_adapter(2, 1.5f) : make_adapter(3, 0.5f);
            AdapterAbout about;
            const char *folder = scratch_path("form");
            if (!adapter_write(folder, &adapter, &config, (AdapterForm)form, &error))
                fail_msg("%s", error.text);
            Adapter again = read_back(folder, NULL, &about);
            assert_same_updates(&adapter, &again, mixed ? 1e-6 : 0);
            assert_true(about.fused == (form == ADAPTER_FUSED) && about.n_touched == 2);
            const int n_zero[N_ADAPTER_FORMS] = {3 * 16 * 3 - 6, 0, 2 * 16 * 3 - 6},
                      n_tensors[N_ADAPTER_FORMS] = {2 * 3 * 16 * 3, 12, 8};
            assert_int_equal(about.n_zero, n_zero[form]);
            assert_int_equal(about.n_tensors, n_tensors[form]);
            adapter_free(&again);
            adapter_free(&adapter);
        }
}

/* ---- fused files of other makes ---- */
enum { E = 16, D = 64, F = 32, R = 3 };
static float fused_a[E * 2 * R * D], fused_b[2 * F * 2 * R * E];

static void write_fused(const char *patterns, int64_t a_rows, int64_t a_columns, int64_t b_rows,
                        int64_t b_columns) {
    Error error = {0};
    char text[1000];
    NamedTensor tensors[] = {{"base_model.model.model.layers.1.mlp.experts.lora_A.weight",
                              tensor_matrix(fused_a, DTYPE_F32, a_rows, a_columns)},
                             {"base_model.model.model.layers.1.mlp.experts.lora_B.weight",
                              tensor_matrix(fused_b, DTYPE_F32, b_rows, b_columns)}};
    scratch_make_folder("fused");
    snprintf(text, sizeof text, "{\"peft_type\": \"LORA\", \"r\": %d, \"lora_alpha\": 6%s}", R, patterns);
    scratch_write_text("fused/adapter_config.json", text);
    assert_true(
        safetensors_write(scratch_path("fused/adapter_model.safetensors"), tensors, 2, NULL, 0, &error));
}

/* Element (r, i) of expert e's A and (j, r) of its B for down. */
static float a_of(int e, int r, int i) {
    return (float)(e % 5 + 1) * 0.1f + (float)((r * 7 + i) % 11) * 0.03f;
}
static float b_of(int e, int j, int r) {
    return (float)(e % 3 + 1) * 0.2f - (float)((r * 5 + j) % 13) * 0.02f;
}

static void fill_down(bool swapped, bool expert_major) {
    for (int e = 0; e < E; e++)
        for (int r = 0; r < R; r++) {
            int column = expert_major ? e * R + r : r * E + e;
            for (int i = 0; i < F; i++)
                *(swapped ? &fused_b[i * R * E + column] : &fused_a[(e * R + r) * F + i]) = a_of(e, r, i);
            for (int j = 0; j < D; j++)
                *(swapped ? &fused_a[(e * R + r) * D + j] : &fused_b[j * R * E + column]) = b_of(e, j, r);
        }
}

static void check_down(const AdapterReading *reading, float scale) {
    Adapter adapter = read_back(scratch_path("fused"), reading, NULL);
    assert_int_equal(adapter.n, E);
    for (int e = 0; e < E; e++) {
        const AdapterCell *cell = &adapter.cells[e];
        assert_true(cell->layer == 1 && cell->expert == e && cell->projection == PROJECTION_DOWN);
        assert_true(fabsf(cell->scale - scale) < 1e-6f && cell->rank == R);
        for (int r = 0; r < R; r++) {
            for (int i = 0; i < F; i++) assert_true(cell->a[r * F + i] == a_of(e, r, i));
            for (int j = 0; j < D; j++) assert_true(cell->b[j * R + r] == b_of(e, j, r));
        }
    }
    adapter_free(&adapter);
}

static void test_layouts_of_other_versions(void **state) {
    (void)state;
#define DOWN ", \"target_parameters\": [\"mlp.experts.down_proj\"]"
    const AdapterReading expert_major = {.expert_major = true};
    fill_down(false, false);
    write_fused(DOWN, E * R, F, D, R * E);
    check_down(NULL, 2);
    fill_down(true, false); /* PEFT 0.18: told by the shapes */
    write_fused(DOWN, E * R, D, F, R * E);
    check_down(NULL, 2);
    fill_down(false, true);
    write_fused(DOWN, E * R, F, D, R * E);
    check_down(&expert_major, 2);
    fill_down(false, false);
    write_fused(DOWN ", \"use_rslora\": true", E * R, F, D, R * E);
    check_down(NULL, 6 / sqrtf(3));
    write_fused(DOWN ", \"alpha_pattern\": {\"down_pro\": 1, \"experts\\\\.down_[a-z]+\": 12}", E * R, F, D,
                R * E);
    check_down(NULL, 4);
}

static void assert_refused(const char *folder, const AdapterReading *reading, const char *said) {
    Error error = {0};
    Adapter adapter;
    assert_false(adapter_read(scratch_path(folder), &config, reading, &adapter, NULL, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, said);
    adapter_free(&adapter);
}

/* gate_up of this model is square, 2F = D: shapes tell nothing. Gate and up share A. */
static void test_square_matrices(void **state) {
    (void)state;
#define GATE_UP ", \"target_parameters\": [\"layers.1.mlp.experts.gate_up_proj\"]"
    const AdapterReading old = {.layout = "0.18"}, new = {.layout = "0.19.1"};
    uint64_t seed = 3;
    for (int i = 0; i < E * R * D; i++)
        fused_a[i] = (float)random_value(&seed), fused_b[i] = (float)random_value(&seed);
    write_fused(GATE_UP, E * R, D, 2 * F, R * E);
    assert_refused("fused", NULL, "expected a peft_version that tells which way round square matrices are");
    write_fused(GATE_UP ", \"peft_version\": \"0.19.0\"", E * R, D, 2 * F, R * E);
    assert_refused("fused", NULL, "got neither");
    const char *versions[] = {", \"peft_version\": \"0.21.2\"", ", \"peft_version\": \"0.18.1\"", "", ""};
    for (int i = 0; i < 4; i++) {
        char text[200];
        snprintf(text, sizeof text, GATE_UP "%s", versions[i]);
        write_fused(text, E * R, D, 2 * F, R * E);
        Adapter adapter = read_back(scratch_path("fused"), i == 2 ? &new : i == 3 ? &old : NULL, NULL);
        assert_int_equal(adapter.n, 2 * E);
        for (int e = 0; e < E; e++) {
            const AdapterCell *gate = adapter_find(&adapter, 1, PROJECTION_GATE, e),
                              *up = adapter_find(&adapter, 1, PROJECTION_UP, e);
            bool swapped = i % 2;
            float a = swapped ? fused_b[5 * R * E + 2 * E + e] : fused_a[(e * R + 2) * D + 5];
            assert_true(gate->a[2 * D + 5] == a && up->a[2 * D + 5] == a);
            float b = swapped ? fused_a[(e * R + 1) * D + F + 4] : fused_b[(F + 4) * R * E + E + e];
            assert_true(up->b[4 * R + 1] == b && gate->rank == R);
        }
        adapter_free(&adapter);
    }
}

/* ---- merging ---- */
static char *bytes_of(TensorSet *set, const TensorEntry *entry) {
    Error error = {0};
    char *to = mem_alloc((size_t)entry->n_bytes);
    assert_true(safetensors_read(set, entry, 0, to, (size_t)entry->n_bytes, &error));
    return to;
}

static float bf16_at(const char *bytes, int64_t i) {
    uint32_t bits = (uint32_t)((const uint16_t *)(const void *)bytes)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Every tensor but the cells' is byte by byte what it was, and so is the header; theirs are W + update,
 * rounded once. */
static void check_merge(const char *folder, const char *down_name) {
    Error error = {0};
    ModelConfig own = config;
    if (!model_config_read(folder, &config, &error)) fail_msg("%s", error.text);
    Adapter adapter = {0};
    AdapterCell *cell;
    uint64_t seed = 8;
    for (int p = 0; p < N_PROJECTIONS; p++) {
        AdapterCell like = {2, 5, (Projection)p, 2, 0.25f, NULL, NULL};
        assert_true(adapter_add(&adapter, &config, like, &cell, &error));
        for (int64_t k = 0; k < 2 * projection_in(&config, like.projection); k++)
            cell->a[k] = (float)random_value(&seed);
        for (int64_t k = 0; k < 2 * projection_out(&config, like.projection); k++)
            cell->b[k] = (float)random_value(&seed);
    }
    MergeAbout about;
    if (!adapter_merge(&adapter, &config, scratch_path("merged"), &about, &error)) fail_msg("%s", error.text);
    TensorSet *before = safetensors_open(folder, &error),
              *after = safetensors_open(scratch_path("merged"), &error);
    assert_true(before && after && safetensors_count(before) == safetensors_count(after));
    int n_changed = 0;
    double *update = update_of(&adapter.cells[2]), worst = 0;
    for (int64_t i = 0; i < safetensors_count(before); i++) {
        const TensorEntry *x = safetensors_entry(before, i), *y = safetensors_entry(after, i);
        assert_true(!strcmp(x->name, y->name) && x->offset == y->offset && x->dtype == y->dtype);
        char *a = bytes_of(before, x), *b = bytes_of(after, y);
        n_changed += memcmp(a, b, (size_t)x->n_bytes) != 0;
        for (int64_t k = 0; !strcmp(x->name, down_name) && k < config.hidden_size * config.expert_size; k++) {
            bool wide = x->dtype == DTYPE_F32;
            double w = wide ? (double)((float *)(void *)a)[k] : (double)bf16_at(a, k),
                   got = wide ? (double)((float *)(void *)b)[k] : (double)bf16_at(b, k), want = w + update[k];
            worst = fmax(worst, fabs(got - want) / (fabs(want) + 1e-9));
        }
        mem_free(a);
        mem_free(b);
    }
    assert_int_equal(n_changed, 3);
    bool wide = dtype_bytes(safetensors_find(before, down_name)->dtype) == 4;
    if (!(worst > 0 && worst <= (wide ? 0x1p-24 : 0x1p-8) * 1.0001)) fail_msg("off by %g", worst);
    assert_int_equal(about.n_merged, 3);
    Error same = {0};

    assert_false(adapter_merge(&adapter, &config, folder, NULL, &same));
    assert_contains(same.text, "expected another folder than the checkpoint's own");
    mem_free(update);
    safetensors_close(before);
    safetensors_close(after);
    adapter_free(&adapter);
    model_config_free(&config);
    config = own;
}

static void test_merging_leaves_all_else_as_it_was(void **state) {
    (void)state;
    check_merge(GOLDEN, "model.layers.2.mlp.experts.5.down_proj.weight");
    check_merge(SOURCE_DIR "/tests/golden/olmoe", "model.layers.2.mlp.experts.5.down_proj.weight");
}

static void test_sums_beyond_the_dtype_are_refused(void **state) {
    (void)state;
    Adapter adapter = {0};
    AdapterCell *cell;
    Error error = {0};
    assert_true(adapter_add(&adapter, &config, (AdapterCell){2, 5, PROJECTION_UP, 1, 3e38f, NULL, NULL},
                            &cell, &error));
    cell->a[1] = 2, cell->b[0] = 3;
    assert_false(adapter_merge(&adapter, &config, scratch_path("beyond"), NULL, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, "layer 2, expert 5, up: expected sums that ");
    adapter_free(&adapter);
}

/* A scale of 0 is no scale that others could be brought to. */
static void test_updates_without_scale_are_zeros(void **state) {
    (void)state;
    Adapter adapter = make_adapter(4, 0), again;
    Error error = {0};
    for (int form = 0; form < N_ADAPTER_FORMS; form++) {
        if (!adapter_write(scratch_path("unscaled"), &adapter, &config, (AdapterForm)form, &error))
            fail_msg("%s", error.text);
        again = read_back(scratch_path("unscaled"), NULL, NULL);
        for (int64_t i = 0; i < adapter.n; i++) {
            const AdapterCell *x = &adapter.cells[i],
                              *y = adapter_find(&again, x->layer, x->projection, x->expert);
            const double before = adapter_cell_norm(x, &config),
                         after = y ? adapter_cell_norm(y, &config) : 0;
            if (!(fabs(before - after) <= 1e-6 * before)) fail_msg("cell %d: %g %g", (int)i, before, after);
        }
        adapter_free(&again);
    }
    adapter_free(&adapter);
}

/* ---- what is refused ---- */
static void write_sparse(void) {
    Error error = {0};
    Adapter adapter = make_adapter(3, 0.5f);
    assert_true(adapter_write(scratch_path("bad"), &adapter, &config, ADAPTER_SPARSE, &error));
    adapter_free(&adapter);
}

static void test_bad_configurations_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *said;
    } cases[] = {
        {"[]", "expected an object"},
        {"{\"peft_type\": \"LOHA\"}", "peft_type: expected \"LORA\": got \"LOHA\""},
        {"{\"peft_type\": \"LORA\", \"bias\": \"all\"}",
         "bias: expected \"none\", weights alone: got \"all\""},
        {"{\"peft_type\": \"LORA\", \"use_dora\": true}", "use_dora: expected none"},
        {"{\"peft_type\": \"LORA\", \"modules_to_save\": [\"lm_head\"]}", "modules_to_save: expected none"},
        {"{\"peft_type\": \"LORA\", \"lora_alpha\": 1}", "r: expected"},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 1}",
         "the rank by adapter_config.json: got [3,64]"},
        {"{\"peft_type\": \"LORA\", \"r\": 2.5, \"lora_alpha\": 1}",
         "expected a whole number from 1: got 2.5"},
        {"{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 1, \"rank_pattern\": {\"(\": 1}}",
         "expected a regular expression"},
    };
    write_sparse();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_write_text("bad/adapter_config.json", cases[i].text);
        assert_refused("bad", NULL, cases[i].said);
    }
}

static void test_bad_tensors_are_refused(void **state) {
    (void)state;
    Error error = {0};
    float numbers[3 * 64] = {1, (float)NAN};
    const Tensor a = tensor_matrix(numbers + 2, DTYPE_F32, 2, 64),
                 b = tensor_matrix(numbers + 2, DTYPE_F32, 32, 2);
#define STEM "base_model.model.model.layers.0."
    const struct {
        NamedTensor tensors[2];
        int64_t n;
        const char *said;
    } cases[] = {
        {{{STEM "mlp.experts.3.gate_proj.lora_A.weight", a}}, 1, "beside its other half: got none"},
        {{{STEM "self_attn.q_proj.lora_A.weight", a}, {STEM "self_attn.q_proj.lora_B.weight", b}},
         2,
         "expected updates of experts of a qwen3_moe model alone: got 2 other tensors of 2"},
        {{{STEM "mlp.experts.3.gate_proj.lora_A.weight", b},
          {STEM "mlp.experts.3.gate_proj.lora_B.weight", a}},
         2,
         "expected A [2,64] and B [32,2], the rank by adapter_config.json: got [32,2] and [2,64]"},
        {{{STEM "mlp.experts.3.gate_proj.lora_A.weight", tensor_matrix(numbers, DTYPE_F32, 2, 64)},
          {STEM "mlp.experts.3.gate_proj.lora_B.weight", b}},
         2,
         "expected finite numbers: got nan at element 1"},
        {{{STEM "mlp.experts.3.gate_proj.lora_A.weight", tensor_matrix(numbers, DTYPE_I32, 2, 64)},
          {STEM "mlp.experts.3.gate_proj.lora_B.weight", b}},
         2,
         "expected F32, BF16 or F16 of 2 dimensions"},
    };
    scratch_make_folder("bad");
    scratch_write_text("bad/adapter_config.json", "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 1}");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_true(safetensors_write(scratch_path("bad/adapter_model.safetensors"), cases[i].tensors,
                                      cases[i].n, NULL, 0, &error));
        assert_refused("bad", NULL, cases[i].said);
    }
}

/* ---- memory and disk ---- */
static bool write_and_read(void *context, Error *error) {
    Adapter *adapter = context, again = {0};
    bool ok = adapter_write(scratch_path("faults"), adapter, &config, ADAPTER_FUSED, error) &&
              adapter_read(scratch_path("faults"), &config, NULL, &again, NULL, error);
    adapter_free(&again);
    return ok;
}

static void test_allocations_fail_cleanly(void **state) {
    (void)state;
    Adapter adapter = make_adapter(3, 0.5f);
    assert_true(fail_each_allocation(write_and_read, &adapter) > 20);
    adapter_free(&adapter);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms_come_back),
        cmocka_unit_test(test_layouts_of_other_versions),
        cmocka_unit_test(test_square_matrices),
        cmocka_unit_test(test_merging_leaves_all_else_as_it_was),
        cmocka_unit_test(test_sums_beyond_the_dtype_are_refused),
        cmocka_unit_test(test_updates_without_scale_are_zeros),
        cmocka_unit_test(test_bad_configurations_are_refused),
        cmocka_unit_test(test_bad_tensors_are_refused),
        cmocka_unit_test(test_allocations_fail_cleanly),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

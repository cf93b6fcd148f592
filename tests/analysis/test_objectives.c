/* The objectives of a training against PyTorch: tests/data/objectives holds losses, gradients and trained
 * weights of each, made by tools/make_objectives_golden.py on a golden checkpoint. The steps here are those
 * of a job: tune_step on options as a job has them. Options a little off are seen; the bits do not depend on
 * the passes. */
#include "tests/engine/scratch.h"
#include "analysis/tune_parts.h"
#include "engine/json.h"
#include "engine/safetensors.h"
#include <math.h>

#define DATA SOURCE_DIR "/tests/data/objectives/"
#define GOLDEN SOURCE_DIR "/tests/golden/qwen3_moe"
enum { MOST_PAIRS = 8, MOST_TEXT = 32, MOST_NAME = 120 };

static struct {
    JsonDocument *document;
    TensorSet *set;
    Model model;
    EncodedPrompt texts[2][MOST_PAIRS];
    int32_t tokens[2][MOST_PAIRS][2 * MOST_TEXT];
    PromptEntry entry;
    int64_t n_pairs, rank, n_steps;
    double alpha;
} golden;

static Json member(Json object, const char *key) { return json_member(&object, key); }

/* ---- the golden file ---- */
static int64_t read_ids(Json ids, int32_t *to) {
    Error error = {0};
    int64_t n = 0, id;
    for (Json at = {0}; json_next(&ids, &at);) {
        assert_true(json_integer(at, 0, 1 << 20, &id, &error) && n < MOST_TEXT);
        to[n++] = (int32_t)id;
    }
    return n;
}

static int open_golden(void **state) {
    (void)state;
    Error error = {0};
    golden.document = json_read(DATA "cases.json", 1 << 20, &error);
    golden.set = safetensors_open(DATA "expected.safetensors", &error);
    if (!golden.document || !golden.set) fail_msg("%s", error.text);
    if (!model_open(GOLDEN, cpu_device(), DTYPE_F32, &golden.model, &error)) fail_msg("%s", error.text);
    const Json root = json_root(golden.document), pairs = member(root, "pairs");
    static const char *const sides[] = {"target", "other_target"};
    assert_true(json_integer(member(root, "rank"), 1, 8, &golden.rank, &error) &&
                json_integer(member(root, "steps"), 1, 100, &golden.n_steps, &error) &&
                json_number(member(root, "alpha"), &golden.alpha, &error));
    golden.entry.id = "golden";
    for (Json at = {0}; json_next(&pairs, &at); golden.n_pairs++)
        for (int s = 0; s < 2; s++) {
            int32_t *tokens = golden.tokens[s][golden.n_pairs];
            const int64_t n_prompt = read_ids(json_member(&at, "prompt"), tokens);
            golden.texts[s][golden.n_pairs] =
                (EncodedPrompt){.entry = &golden.entry,
                                .tokens = tokens,
                                .n_prompt = n_prompt,
                                .n_target = read_ids(json_member(&at, sides[s]), tokens + n_prompt)};
        }
    return 0;
}

static int close_golden(void **state) {
    json_free(golden.document);
    safetensors_close(golden.set);
    model_close(&golden.model);
    return scratch_remove(state);
}

static void read_tensor(const char *name, float *to, int64_t n) {
    Error error = {0};
    const TensorEntry *entry = safetensors_find(golden.set, name);
    if (!entry) fail_msg("no tensor %s", name);
    assert_int_equal(entry->n_bytes, n * (int64_t)sizeof *to);
    assert_true(safetensors_read(golden.set, entry, 0, to, (size_t)entry->n_bytes, &error));
}

/* ---- a training as a job has it, without a run around it ---- */
typedef struct {
    const char *name;
    Job job;
    StepOptions step;
    StepRun run;
    Tuning t;
    Adapter grad; /* of the first step */
    volatile sig_atomic_t stop;
    Comm comm; /* of one rank */
} Training;

static void read_cells(Adapter *adapter) {
    const Json cells = member(json_root(golden.document), "cells");
    Error error = {0};
    for (Json at = {0}; json_next(&cells, &at);) {
        AdapterCell like = {.rank = golden.rank, .scale = (float)(golden.alpha / (double)golden.rank)}, *cell;
        Json part = {0};
        const char *projection;
        assert_true(json_next(&at, &part) && json_integer(part, 0, 100, &like.layer, &error));
        assert_true(json_next(&at, &part) && json_integer(part, 0, 100, &like.expert, &error));
        assert_true(json_next(&at, &part) && json_string(part, &projection, &error));
        assert_true(projection_find(projection, &like.projection));
        if (!adapter_add(adapter, &golden.model.config, like, &cell, &error)) fail_msg("%s", error.text);
    }
}

static int64_t side_count(const AdapterCell *cell, int64_t side) {
    const ModelConfig *config = &golden.model.config;
    return cell->rank *
           (side ? projection_out(config, cell->projection) : projection_in(config, cell->projection));
}

static void side_name(const AdapterCell *cell, const char *prefix, int64_t side, char to[MOST_NAME]) {
    snprintf(to, MOST_NAME, "%s.layers.%lld.experts.%lld.%s.lora_%c", prefix, (long long)cell->layer,
             (long long)cell->expert, projection_names[cell->projection], "AB"[side]);
}

static void read_options(Training *x) {
    const Json options = member(member(json_root(golden.document), "cases"), x->name);
    Error error = {0};
    assert_true(options_preset(SCOPE_JOB, &x->job.options, &x->job.pool, &error));
    assert_true(options_preset(SCOPE_STEP, &x->step, &x->job.pool, &error));
    x->step.kind = STEP_TUNE;
    x->step.name = x->name;
    x->step.schedule = SCHEDULE_CONSTANT;
    x->step.examples = golden.n_pairs;
    for (Json at = {0}; json_next(&options, &at);) {
        const Option *option = option_find(SCOPE_STEP, STEP_TUNE, at.key, at, &error);
        if (!option || !option_read(option, at, &x->step, "", &x->job.pool, &error))
            fail_msg("%s", error.text);
    }
}

static void open_training(Training *x, const char *name, int64_t batch_prompts) {
    *x = (Training){.name = name};
    Error error = {0};
    read_options(x);
    x->job.options.batch_prompts = batch_prompts;
    x->comm = comm_alone(cpu_device());
    x->run = (StepRun){
        .job = &x->job, .step = &x->step, .model = &golden.model, .stop = &x->stop, .comm = &x->comm};
    Tuning *t = &x->t;
    *t = (Tuning){.run = &x->run, .model = golden.model, .leaves = {.comm = &x->comm}};
    read_cells(&t->adapter);
    read_cells(&x->grad);
    char key[MOST_NAME];
    for (int64_t i = 0; i < 2 * t->adapter.n; i++) {
        AdapterCell *cell = &t->adapter.cells[i / 2];
        side_name(cell, "init", i % 2, key);
        read_tensor(key, i % 2 ? cell->b : cell->a, side_count(cell, i % 2));
    }
    const int64_t n = golden.n_pairs, pairs = x->step.objective == OBJECTIVE_PREFERENCE;
    t->data = (TuneData){.n = n, .n_total = n * golden.n_steps, .n_of_step = n, .n_steps = golden.n_steps};
    t->data.epoch = -1;
    t->data.list = mem_zeroed((size_t)n, sizeof *t->data.list);
    t->data.order = mem_zeroed((size_t)n, sizeof *t->data.order);
    t->rows = mem_zeroed((size_t)golden.n_steps + 1, sizeof *t->rows);
    for (int64_t i = 0; i < n; i++)
        t->data.list[i] = (TuneExample){.prompt = &golden.texts[0][i],
                                        .other = pairs ? &golden.texts[1][i] : NULL,
                                        .group = "golden",
                                        .key = i,
                                        .reference = {(double)NAN, (double)NAN}};
    assert_true(tune_rows_make(&x->step, &golden.model.config, &t->adapter, &error));
    assert_true(tune_rows_make(&x->step, &golden.model.config, &x->grad, &error));
    assert_true(tune_aims_make(&t->adapter, &golden.model.config, &t->aims, &error));
    assert_true(lora_weights_make(&t->adapter, &golden.model, &t->weights, &error));
    assert_true(lora_training_make(&t->weights, n * (pairs + 1), &t->training, &error));
    t->model.adapter = &t->weights;
}

static void close_training(Training *x) {
    Tuning *t = &x->t;
    lora_training_free(&t->training);
    lora_weights_free(&t->weights);
    adapter_free(&t->adapter);
    adapter_free(&x->grad);
    tune_aims_free(&t->aims);
    tune_data_free(&t->data);
    mem_free(t->rows);
    options_free(SCOPE_STEP, &x->step);
    pool_free(&x->job.pool);
}

static void train(Training *x) {
    Error error = {0};
    for (int64_t i = 0; i < golden.n_steps; i++) {
        if (!tune_step(&x->t, &error)) fail_msg("%s: %s", x->name, error.text);
        if (i == 0)
            assert_true(lora_weights_read(&x->t.weights, x->t.training.optimizer.grad, &x->grad, &error));
    }
    assert_true(lora_weights_read(&x->t.weights, x->t.weights.values, &x->t.adapter, &error));
}

/* ---- comparing: largest difference as a share of the largest magnitude ---- */
static double off(const float *got, const float *want, int64_t n) {
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        const double by = fabs((double)got[i] - (double)want[i]);
        worst = by > worst || by != by ? by : worst;
        largest = fmax(largest, fabs((double)want[i]));
    }
    return largest > 0 ? worst / largest : worst;
}

static double curve_off(const Training *x, const char *curve, size_t offset) {
    float got[100], want[100];
    char name[MOST_NAME];
    snprintf(name, sizeof name, "%s.%s", x->name, curve);
    read_tensor(name, want, golden.n_steps);
    for (int64_t i = 0; i < golden.n_steps; i++)
        got[i] = (float)*(const double *)(const void *)((const char *)&x->t.rows[i + 1] + offset);
    return off(got, want, golden.n_steps);
}

static double cells_off(const Training *x, const char *what, const Adapter *adapter) {
    static float want[1 << 14];
    char prefix[60], name[MOST_NAME];
    double worst = 0;
    snprintf(prefix, sizeof prefix, "%s.%s", x->name, what);
    for (int64_t i = 0; i < 2 * adapter->n; i++) {
        const AdapterCell *cell = &adapter->cells[i / 2];
        side_name(cell, prefix, i % 2, name);
        read_tensor(name, want, side_count(cell, i % 2));
        worst = fmax(worst, off(i % 2 ? cell->b : cell->a, want, side_count(cell, i % 2)));
    }
    for (int64_t i = 0; i < adapter->n_rows; i++) {
        const RouterRow *row = &adapter->rows[i];
        snprintf(name, sizeof name, "%s.%lld.%lld.row", prefix, (long long)row->layer,
                 (long long)row->expert);
        read_tensor(name, want, golden.model.config.hidden_size);
        worst = fmax(worst, off(row->values, want, golden.model.config.hidden_size));
    }
    return worst;
}

typedef struct {
    double loss, norm, kl, distance, margin, gradient, weights;
} Differences;

static Differences differences_of(const Training *x) {
    Differences d = {.loss = curve_off(x, "losses", offsetof(TuneRow, loss)),
                     .norm = curve_off(x, "norms", offsetof(TuneRow, norm)),
                     .gradient = cells_off(x, "grad0", &x->grad),
                     .weights = cells_off(x, "final", &x->t.adapter)};
    if (x->step.router_kl > 0) d.kl = curve_off(x, "kl", offsetof(TuneRow, router_kl));
    if (x->step.router_anchor > 0) d.distance = curve_off(x, "distance", offsetof(TuneRow, router_distance));
    if (x->step.objective == OBJECTIVE_PREFERENCE)
        d.margin = curve_off(x, "margin", offsetof(TuneRow, margin));
    return d;
}

static bool agrees(const Differences *d) {
    return d->loss <= 1e-4 && d->norm <= 1e-4 && d->kl <= 1e-4 && d->distance <= 1e-4 && d->margin <= 1e-4 &&
           d->gradient <= 1e-5 && d->weights <= 1e-4;
}

static void test_case(void **state) {
    Training x;
    open_training(&x, *state, 0);
    train(&x);
    const Differences d = differences_of(&x);
    print_message("%s: losses %.1e, norms %.1e, kl %.1e, distance %.1e, margin %.1e, first gradients %.1e, "
                  "weights %.1e\n",
                  x.name, d.loss, d.norm, d.kl, d.distance, d.margin, d.gradient, d.weights);
    assert_true(agrees(&d));
    close_training(&x);
}

/* One example a pass, and two. */
static void test_same_bits(void **state) {
    Training whole, parts;
    open_training(&whole, *state, 0);
    train(&whole);
    for (int64_t each = 1; each < golden.n_pairs; each++) {
        open_training(&parts, *state, each);
        train(&parts);
        const Tensor a = whole.t.weights.values, b = parts.t.weights.values;
        assert_memory_equal(a.data, b.data, tensor_bytes(a));
        assert_memory_equal(whole.t.rows, parts.t.rows, (size_t)(golden.n_steps + 1) * sizeof *whole.t.rows);
        close_training(&parts);
    }
    close_training(&whole);
}

/* Options a little off are other losses, other gradients and other weights. */
static void must_disagree(const char *name, const char *option, const char *value) {
    Training x;
    Error error = {0};
    const Json nowhere = {0};
    open_training(&x, name, 0);
    const Option *o = option_find(SCOPE_STEP, STEP_TUNE, option, nowhere, &error);
    assert_true(o && option_read_text(o, value, "here", &x.step, &x.job.pool, &error));
    train(&x);
    const Differences d = differences_of(&x);
    if (agrees(&d) || d.gradient <= 1e-4 || d.weights <= 2e-4)
        fail_msg("%s: %s %s: not seen, gradient %g, weights %g", name, option, value, d.gradient, d.weights);
    close_training(&x);
}

static void test_other_options_are_seen(void **state) {
    (void)state;
    must_disagree("preference", "beta", "0.302");
    must_disagree("kl", "router_kl", "2.52");
    must_disagree("kl", "router_temperature", "0.402");
    must_disagree("kl", "router_tokens", "all");
    must_disagree("anchor", "router_anchor", "0.81");
    must_disagree("all", "router_temperature", "1.72");
    must_disagree("rows", "router_anchor", "1.32");
}

int main(void) {
    static char *const names[] = {"preference", "kl", "anchor", "all", "rows"};
    enum { N = sizeof names / sizeof *names };
    struct CMUnitTest tests[2 * N + 1];
    for (int i = 0; i < N; i++) {
        tests[2 * i] = (struct CMUnitTest){names[i], test_case, NULL, NULL, names[i]};
        tests[2 * i + 1] = (struct CMUnitTest){"same bits", test_same_bits, NULL, NULL, names[i]};
    }
    tests[2 * N] = (struct CMUnitTest)cmocka_unit_test(test_other_options_are_seen);
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}

/* What is measured of prompts against the reference implementation, and what scores are made of it
 * against hand computation. */
#include "../../analysis/gate_gradient.h"
#include "../../analysis/routing.h"
#include "../../analysis/scores.h"
#include "../../engine/alloc.h"
#include "../../engine/safetensors.h"
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- arithmetic ---- */
static void sums_split_at_powers_of_two(void **state) {
    (void)state;
    double values[200];
    for (int i = 0; i < 200; i++) values[i] = 1.0 / (i + 1) * (i % 3 ? 1 : 1e10);
    /* 5 values: ((a+b)+(c+d))+e */
    double five = ((values[0] + values[1]) + (values[2] + values[3])) + values[4];
    assert_true(scores_sum(values, 5, 1) == five);
    /* blocks of 64 are subtrees: their sums can be added later with the same bits */
    double blocks =
        (scores_sum(values, 64, 1) + scores_sum(values + 64, 64, 1)) + scores_sum(values + 128, 72, 1);
    assert_true(scores_sum(values, 200, 1) == blocks);
    assert_true(scores_sum(values, 3, 2) == (values[0] + values[2]) + values[4]);
    assert_true(scores_sum(values, 0, 1) == 0);
}

static void curves_cover_their_share(void **state) {
    (void)state;
    const double scores[6] = {1, 5, 0, 2, 2, 0};
    const int64_t want[6] = {1, 3, 4, 0, 2, 5};
    int64_t order[6];
    double cumulative[6];
    assert_true(scores_sort(scores, 6, order));
    assert_memory_equal(order, want, sizeof want);
    scores_accumulate(scores, order, 6, cumulative);
    assert_true(cumulative[0] == 0.5 && cumulative[1] == 0.7 && cumulative[2] == 0.9 && cumulative[5] == 1);
    assert_int_equal(scores_coverage(cumulative, 6, 0.5), 1);
    assert_int_equal(scores_coverage(cumulative, 6, 0.8), 3);
    assert_int_equal(scores_coverage(cumulative, 6, 0.9), 3);
    assert_int_equal(scores_coverage(cumulative, 6, 0.95), 4);
    const double none[2] = {0, 0};
    const int64_t both[2] = {0, 1};
    scores_accumulate(none, both, 2, cumulative);
    assert_int_equal(scores_coverage(cumulative, 2, 0.8), 0);
}

static bool near(double a, double b) { return fabs(a - b) <= 1e-12 * fabs(b); }

static void layers_have_their_statistics(void **state) {
    (void)state;
    const double even[4] = {3, 3, 3, 3}, skewed[4] = {0.5, 0.25, 0.25, 0}, none[4] = {0};
    LayerScores s = scores_of_layer(even, 4, DOMINANT_SHARE);
    assert_true(near(s.dominant, 0.25) && near(s.entropy, log(4)) && near(s.effective, 4) &&
                near(s.effective_simpson, 4));
    s = scores_of_layer(skewed, 4, DOMINANT_SHARE);
    assert_true(near(s.dominant, 0.5) && near(s.entropy, 1.5 * log(2)) && near(s.effective, pow(2, 1.5)) &&
                near(s.effective_simpson, 1 / 0.375));
    assert_true(near(scores_of_layer(even, 4, DOMINANT_RAW).dominant, 3));
    s = scores_of_layer(none, 4, DOMINANT_SHARE);
    assert_true(s.dominant == 0 && s.entropy == 0 && s.effective == 0);
}

static void activation_scores_follow_their_definitions(void **state) {
    (void)state;
    /* two prompts, one layer of two experts, top-1: 2 and 4 tokens */
    Measures m;
    Error error = {0};
    assert_true(measures_make(STEP_ACTIVATION, 2, 1, 2, &m, &error));
    const int64_t selected[4] = {2, 0, 1, 3}, counted[2] = {2, 4};
    const float mass[4] = {1.5f, 0.5f, 2, 2};
    memcpy(m.selected, selected, sizeof selected);
    memcpy(m.n_counted, counted, sizeof counted);
    memcpy(m.mass, mass, sizeof mass);
    StepOptions step = {.kind = STEP_ACTIVATION};
    static const double want[][2] = {{0.625, 0.375}, {0.625, 0.375}, {0.625, 0.375}, {0.625, 0.375}, {0, 0}};
    double scores[2];
    for (int score = SCORE_RATE; score <= SCORE_COMBINE_WEIGHT; score++) {
        step.activation_score = score;
        float *per_prompt = scores_of_prompts(&step, &m, 1, 8);
        assert_true(scores_of_group(&step, &m, per_prompt, 1, scores));
        assert_true(scores[0] == want[score][0] && scores[1] == want[score][1]);
        mem_free(per_prompt);
    }
    step.activation_score = SCORE_LAYER_SHARE;
    float *halves = scores_of_prompts(&step, &m, 2, 8);
    assert_true(halves[0] == 0.5f && halves[3] == 0.375f);
    step.average = AVERAGE_TOKENS;
    step.activation_score = SCORE_RATE;
    assert_true(scores_of_group(&step, &m, halves, 1, scores));
    assert_true(scores[0] == 0.5 && scores[1] == 0.5);
    LayerScores layer;
    step.layer_statistics = LAYERS_OF_PROMPTS;
    assert_true(scores_of_layers(&step, scores, halves, &m, &layer));
    assert_true(layer.dominant == 0.875);
    mem_free(halves);
    measures_free(&m);
}

/* ---- against the reference ---- */
typedef struct {
    Model model;
    TensorSet *expected;
    PromptGroup group;
    PromptEntry entry;
    int64_t n_prompts, n_tokens;
    int64_t *offsets;
} Golden;

static void *read_tensor(const Golden *golden, const char *name, size_t *n_bytes) {
    Error error = {0};
    const TensorEntry *entry = safetensors_find(golden->expected, name);
    if (!entry) fail_msg("no %s", name);
    void *bytes = mem_alloc((size_t)entry->n_bytes);
    if (!safetensors_read(golden->expected, entry, 0, bytes, (size_t)entry->n_bytes, &error))
        fail_msg("%s", error.text);
    if (n_bytes) *n_bytes = (size_t)entry->n_bytes;
    return bytes;
}

/* Integers of whatever width. */
static int64_t *read_integers(const Golden *golden, const char *name, int64_t *n) {
    size_t n_bytes;
    void *bytes = read_tensor(golden, name, &n_bytes);
    const TensorEntry *entry = safetensors_find(golden->expected, name);
    size_t width = dtype_bytes(entry->dtype);
    *n = (int64_t)(n_bytes / width);
    int64_t *values = mem_zeroed((size_t)*n + 1, sizeof *values);
    for (int64_t i = 0; i < *n; i++)
        values[i] = width == 8 ? ((int64_t *)bytes)[i] : (int64_t)((int32_t *)bytes)[i];
    mem_free(bytes);
    return values;
}

/* Prompts of the case; with_targets splits each at its target's start. */
static void open_golden(Golden *g, const char *name, bool with_targets) {
    char folder[500], path[600];
    Error error = {0};
    *g = (Golden){.entry = {.id = "golden"}};
    snprintf(folder, sizeof folder, "%s/tests/golden/%s", SOURCE_DIR, name);
    snprintf(path, sizeof path, "%s/expected.safetensors", folder);
    if (!model_open(folder, cpu_device(), DTYPE_F32, &g->model, &error)) fail_msg("%s", error.text);
    if (!(g->expected = safetensors_open(path, &error))) fail_msg("%s", error.text);
    int64_t n, n_starts;
    int64_t *tokens = read_integers(g, "tokens", &g->n_tokens),
            *starts = read_integers(g, "target_starts", &n_starts);
    g->offsets = read_integers(g, "prompt_offsets", &n);
    g->n_prompts = g->group.n = n - 1;
    g->group.prompts = mem_zeroed((size_t)n, sizeof *g->group.prompts);
    for (int64_t p = 0; p < g->n_prompts; p++) {
        EncodedPrompt *prompt = &g->group.prompts[p];
        int64_t length = g->offsets[p + 1] - g->offsets[p];
        prompt->entry = &g->entry;
        prompt->n_prompt = with_targets ? starts[p] : length;
        prompt->n_target = length - prompt->n_prompt;
        prompt->tokens = mem_zeroed((size_t)length, sizeof *prompt->tokens);
        prompt->roles = mem_zeroed((size_t)length, 1);
        for (int64_t t = 0; t < length; t++) prompt->tokens[t] = (int32_t)tokens[g->offsets[p] + t];
    }
    mem_free(tokens);
    mem_free(starts);
}

static void close_golden(Golden *g) {
    prompt_group_free(&g->group);
    safetensors_close(g->expected);
    mem_free(g->offsets);
    model_close(&g->model);
}

/* All prompts in batches of at most n. */
static void measure(const Golden *g, const StepOptions *step, int64_t n, Measures *m, float *rows,
                    Trace *trace) {
    const ModelConfig *config = &g->model.config;
    Error error = {0};
    Block block = {.step = step, .group = &g->group, .n = g->n_prompts};
    assert_true(measures_make(step->kind, g->n_prompts, config->n_moe_layers, config->n_experts, m, &error));
    if (trace) assert_true(trace_make(TRACE_FULL, config, g->n_prompts, g->n_tokens, trace, &error));
    for (int64_t at = 0; at < g->n_prompts;) {
        Batch batch;
        GateGradientOptions options = {.recompute = RECOMPUTE_ALWAYS, .rows = rows};
        int64_t size = batch_size(&block, at, 0, (BatchLimits){1000000, n});
        assert_true(batch_make(&block, at, size, &batch, &error));
        bool ok = step->kind == STEP_ACTIVATION
                      ? routing_measure(&g->model, &batch, at, 0.01, m, trace, &error)
                      : gate_gradient_measure(&g->model, &batch, at, &options, m, &error);
        if (!ok) fail_msg("%s", error.text);
        if (trace) trace_put_batch(trace, &batch, &g->group, at);
        batch_free(&batch);
        at += size;
    }
}

/* Largest |a - b| over n as a share of the largest |b|. */
static void assert_close(const char *what, const float *a, const double *b, int64_t n, double bound) {
    double largest = 0, error = 0;
    for (int64_t i = 0; i < n; i++) {
        largest = fmax(largest, fabs(b[i]));
        error = fmax(error, fabs((double)a[i] - b[i]));
    }
    if (!(error <= bound * largest)) fail_msg("%s: expected within %g: got %g", what, bound, error / largest);
}

static void check_counts(const Golden *g, const Measures *m) {
    const int64_t L = m->n_layers, E = m->n_experts, T = g->n_tokens, K = g->model.config.n_experts_per_token;
    int64_t n, *ids = read_integers(g, "topk_ids", &n);
    float *weights = read_tensor(g, "topk_weights", NULL), *logits = read_tensor(g, "router_logits", NULL);
    int64_t *selected = mem_zeroed((size_t)(m->n_prompts * L * E), sizeof *selected);
    double *weight = mem_zeroed((size_t)(m->n_prompts * L * E), sizeof *weight),
           *mass = mem_zeroed((size_t)(m->n_prompts * L * E), sizeof *mass);
    for (int64_t p = 0; p < m->n_prompts; p++)
        for (int64_t l = 0; l < L; l++)
            for (int64_t t = g->offsets[p]; t < g->offsets[p + 1]; t++) {
                const float *z = logits + (l * T + t) * E;
                double sum = 0;
                for (int64_t e = 0; e < E; e++) sum += exp((double)z[e]);
                for (int64_t e = 0; e < E; e++) mass[(p * L + l) * E + e] += exp((double)z[e]) / sum;
                for (int64_t k = 0; k < K; k++) {
                    int64_t row = (l * T + t) * K + k, cell = (p * L + l) * E + ids[row];
                    selected[cell]++;
                    weight[cell] += (double)weights[row];
                }
            }
    assert_int_equal(n, L * T * K);
    assert_memory_equal(m->selected, selected, (size_t)(m->n_prompts * L * E) * sizeof *selected);
    assert_close("combine weights", m->weight, weight, m->n_prompts * L * E, 5e-6);
    assert_close("router mass", m->mass, mass, m->n_prompts * L * E, 5e-6);
    for (int64_t c = 0; c < m->n_prompts * L * E; c++) {
        assert_true((m->largest[c] > 0) == (m->selected[c] > 0));
        assert_true(m->norm[c] >= m->largest[c]);
    }
    mem_free(ids);
    mem_free(weights);
    mem_free(logits);
    mem_free(selected);
    mem_free(weight);
    mem_free(mass);
}

static const char *const cases[] = {"mixtral", "olmoe", "qwen3_moe_dense_layer"};

static void activations_agree_with_the_reference(void **state) {
    (void)state;
    StepOptions step = {.kind = STEP_ACTIVATION, .tokens = COUNT_PROMPT, .last_tokens = 1};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Golden g;
        Measures all, single;
        Trace trace;
        open_golden(&g, cases[i], false);
        measure(&g, &step, 1000, &all, NULL, &trace);
        measure(&g, &step, 1, &single, NULL, NULL);
        check_counts(&g, &all);
        size_t n = (size_t)(g.n_prompts * all.n_layers * all.n_experts);
        assert_memory_equal(all.mass, single.mass, n * sizeof *all.mass);
        assert_memory_equal(all.largest, single.largest, n * sizeof *all.largest);
        assert_memory_equal(all.norm, single.norm, n * sizeof *all.norm);
        int64_t n_ids, *ids = read_integers(&g, "topk_ids", &n_ids);
        for (int64_t k = 0; k < n_ids; k++) assert_int_equal(trace.ids[k], ids[k]);
        for (int64_t k = 0; k < trace.n_layers * trace.n_tokens; k++) assert_true(trace.margin[k] > 0);
        assert_int_equal(trace.prompt_offsets[g.n_prompts], g.n_tokens);
        mem_free(ids);
        trace_free(&trace);
        measures_free(&all);
        measures_free(&single);
        close_golden(&g);
    }
}

static void check_norms(const Golden *g, const Measures *m, const float *rows, bool target) {
    size_t n_bytes;
    float *want = read_tensor(g, target ? "gate_grad_target" : "gate_grad", &n_bytes),
          *nll = read_tensor(g, target ? "nll_target" : "nll", NULL);
    int64_t D = g->model.config.hidden_size, n = m->n_prompts * m->n_layers * m->n_experts;
    assert_int_equal(n_bytes, (size_t)(n * D) * sizeof *want);
    double *l2 = mem_zeroed((size_t)n, sizeof *l2), *l1 = mem_zeroed((size_t)n, sizeof *l1),
           *full = mem_zeroed((size_t)(n * D), sizeof *full);
    for (int64_t c = 0; c < n; c++) {
        for (int64_t d = 0; d < D; d++) {
            double x = full[c * D + d] = (double)want[c * D + d];
            l2[c] += x * x;
            l1[c] += fabs(x);
        }
        l2[c] = sqrt(l2[c]);
    }
    assert_close("l2", m->l2, l2, n, 1e-5);
    assert_close("l1", m->l1, l1, n, 1e-5);
    assert_close("gate rows", rows, full, n * D, 1e-5);
    for (int64_t p = 0; p < m->n_prompts; p++)
        assert_true(fabs(m->nll[p] - (double)nll[p]) <= 5e-6 * fabs(nll[p]));
    mem_free(want);
    mem_free(nll);
    mem_free(l2);
    mem_free(l1);
    mem_free(full);
}

static void check_logit_gradients(const Golden *g, const Measures *m) {
    float *grad = read_tensor(g, "router_logit_grad", NULL);
    int64_t L = m->n_layers, E = m->n_experts, n = m->n_prompts * L * E;
    double *want = mem_zeroed((size_t)n, sizeof *want);
    for (int64_t p = 0; p < m->n_prompts; p++)
        for (int64_t l = 0; l < L; l++)
            for (int64_t t = g->offsets[p]; t < g->offsets[p + 1]; t++)
                for (int64_t e = 0; e < E; e++)
                    want[(p * L + l) * E + e] += fabs((double)grad[(l * g->n_tokens + t) * E + e]);
    assert_close("logit_abs", m->logit_abs, want, n, 1e-5);
    mem_free(grad);
    mem_free(want);
}

static void gradients_agree_with_the_reference(void **state) {
    (void)state;
    for (size_t i = 0; i < 2 * sizeof cases / sizeof *cases; i++) {
        Golden g;
        Measures all, single;
        bool target = i % 2;
        StepOptions step = {.kind = STEP_GRADIENT, .loss = target ? LOSS_TARGET : LOSS_PROMPT};
        open_golden(&g, cases[i / 2], target);
        const ModelConfig *config = &g.model.config;
        size_t n = (size_t)(g.n_prompts * config->n_moe_layers * config->n_experts);
        float *rows = mem_zeroed(n * (size_t)config->hidden_size, sizeof *rows);
        measure(&g, &step, 1000, &all, rows, NULL);
        measure(&g, &step, 1, &single, NULL, NULL);
        check_norms(&g, &all, rows, target);
        if (!target) check_logit_gradients(&g, &all);
        assert_memory_equal(all.l2, single.l2, n * sizeof *all.l2);
        assert_memory_equal(all.l1, single.l1, n * sizeof *all.l1);
        assert_memory_equal(all.logit_abs, single.logit_abs, n * sizeof *all.logit_abs);
        assert_memory_equal(all.nll, single.nll, (size_t)g.n_prompts * sizeof *all.nll);
        mem_free(rows);
        measures_free(&all);
        measures_free(&single);
        close_golden(&g);
    }
}

/* Which tokens count: those of the prompt's end, of the target, of both. */
static void tokens_are_counted_as_asked(void **state) {
    (void)state;
    Golden g;
    open_golden(&g, "mixtral", true);
    static const struct {
        int tokens, last;
    } asked[] = {
        {COUNT_PROMPT, 1}, {COUNT_LAST, 1}, {COUNT_LAST, 3}, {COUNT_TARGET, 1}, {COUNT_PROMPT_TARGET, 1}};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        Measures m;
        StepOptions step = {.kind = STEP_ACTIVATION, .tokens = asked[i].tokens, .last_tokens = asked[i].last};
        measure(&g, &step, 2, &m, NULL, NULL);
        for (int64_t p = 0; p < g.n_prompts; p++) {
            const EncodedPrompt *prompt = &g.group.prompts[p];
            int64_t last = asked[i].last < prompt->n_prompt ? asked[i].last : prompt->n_prompt;
            const int64_t want[] = {prompt->n_prompt, last, prompt->n_target, 0,
                                    prompt->n_prompt + prompt->n_target};
            assert_int_equal(m.n_counted[p], want[asked[i].tokens]);
            for (int64_t l = 0; l < m.n_layers; l++) {
                int64_t sum = 0;
                for (int64_t e = 0; e < m.n_experts; e++)
                    sum += m.selected[(p * m.n_layers + l) * m.n_experts + e];
                assert_int_equal(sum, m.n_counted[p] * g.model.config.n_experts_per_token);
            }
        }
        measures_free(&m);
    }
    close_golden(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_split_at_powers_of_two),
        cmocka_unit_test(curves_cover_their_share),
        cmocka_unit_test(layers_have_their_statistics),
        cmocka_unit_test(activation_scores_follow_their_definitions),
        cmocka_unit_test(activations_agree_with_the_reference),
        cmocka_unit_test(gradients_agree_with_the_reference),
        cmocka_unit_test(tokens_are_counted_as_asked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Contrasts: closed forms; every number of contrast.json against an implementation of its own in NumPy
 * (tools/make_contrast_golden.py), on the same draws, the same bits for any batch and number of threads;
 * the gradient of a contrast against the two gate gradients that it is made of and against differences
 * in double. */
#include "analysis/contrast.h"
#include "analysis/gate_gradient.h"
#include "engine/safetensors.h"
#include "tests/analysis/statistics_file.h"
#include <omp.h>

/* ---- two distributions ---- */
static void closed_forms(void **state) {
    (void)state;
    uint8_t mark[16];
    double v[N_CURVES];
    const double p[] = {0.5, 0.25, 0.125, 0.125}, permuted[] = {0.125, 0.125, 0.25, 0.5},
                 first[] = {0.5, 0.5, 0, 0}, last[] = {0, 0, 0.5, 0.5}, one[] = {1, 0, 0, 0},
                 half[] = {0.5, 0.5, 0, 0};
    contrast_compare(p, p, 4, 2, mark, v);
    assert_true(v[CURVE_JS] == 0 && v[CURVE_OVERLAP] == 2 && v[CURVE_JACCARD] == 1);
    contrast_compare(first, last, 4, 2, mark, v);
    assert_true(fabs(v[CURVE_JS] - log(2)) < 1e-15 && v[CURVE_OVERLAP] == 0 && v[CURVE_JACCARD] == 0);
    /* the two largest of p are 0 and 1, of the permuted 3 and 2; of three, ties go to the lower: 2 and 0 */
    contrast_compare(p, permuted, 4, 2, mark, v);
    assert_true(v[CURVE_OVERLAP] == 0);
    assert_true(fabs(v[CURVE_JACCARD] - 0.5 / 1.5) < 1e-15);
    contrast_compare(p, permuted, 4, 3, mark, v);
    assert_true(v[CURVE_OVERLAP] == 2);
    contrast_compare(p, permuted, 4, 4, mark, v);
    assert_true(v[CURVE_OVERLAP] == 4);
    contrast_compare(p, permuted, 4, 0, mark, v);
    assert_true(v[CURVE_OVERLAP] == 0);
    /* m = (3/4, 1/4): 1/2 ln(4/3) + 1/4 ln(2/3) + 1/4 ln 2 */
    contrast_compare(one, half, 4, 1, mark, v);
    assert_true(fabs(v[CURVE_JS] - (0.5 * log(4.0 / 3) + 0.25 * log(2.0 / 3) + 0.25 * log(2))) < 1e-15);
    double there = v[CURVE_JS];
    contrast_compare(half, one, 4, 1, mark, v);
    assert_true(v[CURVE_JS] == there);
}

/* ---- golden files ---- */
typedef struct {
    JsonDocument *document;
    ModelConfig config;
    StepOptions step;
    TextPool pool;
    int64_t n_pairs, n_layers, n_experts;
    const char *topics[16];
    int64_t keys[16];
    Measures measures;
} Case;

static int64_t integer_of(Json at) { return (int64_t)number_of(at); }

static int64_t integer_at(const JsonDocument *d, const char *path) { return integer_of(find(d, path)); }

static void read_options(Case *c) {
    Error error = {0};
    if (!options_preset(SCOPE_STEP, &c->step, &c->pool, &error)) fail_msg("%s", error.text);
    c->step.kind = STEP_CONTRAST;
    c->step.name = "golden";
    Json root = json_root(c->document), options = json_member(&root, "options"), at = {0};
    while (json_next(&options, &at)) {
        const Option *o = option_find(SCOPE_STEP, STEP_CONTRAST, at.key, at, &error);
        if (!o || !option_read(o, at, &c->step, ".", &c->pool, &error)) fail_msg("%s", error.text);
    }
    if (!c->step.prefix[0] && c->step.contrast == CONTRAST_PREFIX) c->step.prefix = "x";
}

static void read_shape(Case *c) {
    const JsonDocument *d = c->document;
    Json layers = find(d, "moe_layers"), at = {0};
    c->config = (ModelConfig){.family = "golden",
                              .n_layers = integer_at(d, "n_layers"),
                              .n_experts = c->n_experts = integer_at(d, "n_experts"),
                              .n_experts_per_token = integer_at(d, "n_chosen"),
                              .hidden_size = integer_at(d, "shape.hidden_size"),
                              .expert_size = integer_at(d, "shape.expert_size"),
                              .dense_size = integer_at(d, "shape.dense_size"),
                              .vocab_size = integer_at(d, "shape.vocab_size"),
                              .n_heads = integer_at(d, "shape.n_heads"),
                              .n_kv_heads = integer_at(d, "shape.n_kv_heads"),
                              .head_size = integer_at(d, "shape.head_size")};
    c->config.layer_is_dense = mem_zeroed((size_t)c->config.n_layers, sizeof(bool));
    for (int64_t l = 0; l < c->config.n_layers; l++) c->config.layer_is_dense[l] = true;
    while (json_next(&layers, &at)) {
        c->config.layer_is_dense[integer_of(at)] = false;
        c->config.n_moe_layers++;
    }
    c->n_layers = c->config.n_moe_layers;
}

static Json member(Json at, const char *key) {
    static Json held[64];
    static int next;
    Json *own = &held[next++ % 64];
    *own = at;
    return json_member(own, key);
}

/* Texts of the pairs [first, first + n), as a pass leaves them on the host. */
typedef struct {
    Batch batch;
    float *probs;
    int32_t *ids;
} Texts;

static void put_rows(const Case *c, Json text, Texts *t, int64_t begin) {
    Json probs = member(text, "probs"), ids = member(text, "ids"), layer = {0}, row = {0}, x = {0};
    const int64_t T = t->batch.n_tokens, E = c->n_experts, K = c->config.n_experts_per_token;
    for (int64_t l = 0; json_next(&probs, &layer); l++, row = (Json){0})
        for (int64_t j = begin; json_next(&layer, &row); j++, x = (Json){0})
            for (int64_t e = 0; json_next(&row, &x); e++) t->probs[(l * T + j) * E + e] = (float)number_of(x);
    layer = row = x = (Json){0};
    for (int64_t l = 0; json_next(&ids, &layer); l++, row = (Json){0})
        for (int64_t j = begin; json_next(&layer, &row); j++, x = (Json){0})
            for (int64_t k = 0; json_next(&row, &x); k++)
                t->ids[(l * T + j) * K + k] = (int32_t)integer_of(x);
}

static int64_t count_tokens(Json pairs, int64_t first, int64_t n) {
    int64_t n_tokens = 0;
    Json pair = {0};
    for (int64_t i = 0; json_next(&pairs, &pair); i++) {
        Json texts = member(pair, "texts"), text = {0};
        while (i >= first && i < first + n && json_next(&texts, &text))
            n_tokens += json_count(member(text, "counted"));
    }
    return n_tokens;
}

static void read_texts(const Case *c, int64_t first, int64_t n, Texts *t) {
    Error error = {0};
    Json pairs = find(c->document, "pairs"), pair = {0};
    int64_t n_tokens = count_tokens(pairs, first, n), s = 0;
    assert_true(batch_make_room(&t->batch, 2 * n, n_tokens, &error));
    t->probs = mem_zeroed((size_t)(c->n_layers * n_tokens * c->n_experts), sizeof *t->probs);
    t->ids = mem_zeroed((size_t)(c->n_layers * n_tokens * c->config.n_experts_per_token), sizeof *t->ids);
    for (int64_t i = 0; json_next(&pairs, &pair); i++) {
        Json texts = member(pair, "texts"), text = {0};
        while (i >= first && i < first + n && json_next(&texts, &text)) {
            Json counted = member(text, "counted"), at = {0};
            int64_t begin = t->batch.offsets[s], j = begin;
            for (bool is; json_next(&counted, &at); j++) {
                assert_true(json_bool(at, &is, &error));
                t->batch.counted[j] = is ? (int32_t)s : -1;
            }
            t->batch.offsets[++s] = j;
            put_rows(c, text, t, begin);
        }
    }
}

static void texts_free(Texts *t) {
    batch_free(&t->batch);
    mem_free(t->probs);
    mem_free(t->ids);
}

static int64_t count_marked(const Batch *b, int64_t text) {
    int64_t n = 0;
    for (int64_t t = b->offsets[text]; t < b->offsets[text + 1]; t++) n += b->counted[t] >= 0;
    return n;
}

/* All pairs in batches of n. */
static void measure_case(const Case *c, int64_t n, Measures *m) {
    Error error = {0};
    assert_true(measures_make(STEP_CONTRAST, c->n_pairs, c->n_layers, c->n_experts, m, &error));
    for (int64_t at = 0; at < c->n_pairs; at += n) {
        int64_t size = c->n_pairs - at < n ? c->n_pairs - at : n;
        Texts t;
        read_texts(c, at, size, &t);
        ContrastRoutes routes = {.batch = &t.batch,
                                 .probs = t.probs,
                                 .ids = t.ids,
                                 .n_layers = c->n_layers,
                                 .n_experts = c->n_experts,
                                 .n_chosen = c->config.n_experts_per_token,
                                 .overlap_k = contrast_overlap_k(&c->step, &c->config),
                                 .token_by_token = step_reads_targets(&c->step)};
        if (!contrast_reduce(&routes, at, m, &error)) fail_msg("%s", error.text);
        for (int64_t i = 0; i < size; i++) {
            m->n_first[at + i] = count_marked(&t.batch, 2 * i);
            m->n_second[at + i] = count_marked(&t.batch, 2 * i + 1);
        }
        texts_free(&t);
    }
}

static void read_case(const char *name, Case *c) {
    char path[300];
    *c = (Case){0};
    snprintf(path, sizeof path, "%s/tests/data/contrast/%s.json", SOURCE_DIR, name);
    c->document = read_json(path);
    read_options(c);
    read_shape(c);
    Json pairs = find(c->document, "pairs"), pair = {0};
    c->n_pairs = json_count(pairs);
    measure_case(c, c->n_pairs, &c->measures);
    for (int64_t i = 0; json_next(&pairs, &pair); i++) {
        Json l2 = member(pair, "l2"), layer = {0}, x = {0};
        c->topics[i] = string_of(member(pair, "topic"));
        c->keys[i] = integer_of(member(pair, "key"));
        for (int64_t l = 0; json_next(&l2, &layer); l++, x = (Json){0})
            for (int64_t e = 0; json_next(&layer, &x); e++)
                c->measures.contrast_l2[(i * c->n_layers + l) * c->n_experts + e] = (float)number_of(x);
    }
}

static void case_free(Case *c) {
    json_free(c->document);
    measures_free(&c->measures);
    mem_free(c->config.layer_is_dense);
    options_free(SCOPE_STEP, &c->step);
    pool_free(&c->pool);
}

static void put_case(const Case *c, Text *json) {
    Error error = {0};
    ContrastInput in = {.step = &c->step,
                        .config = &c->config,
                        .seed = (uint64_t)integer_at(c->document, "seed"),
                        .measures = &c->measures,
                        .topics = c->topics,
                        .keys = c->keys};
    ContrastStatistics s;
    if (!contrast_statistics_make(&in, &s, &error)) fail_msg("%s", error.text);
    contrast_put_json(&in, &s, NULL, json);
    contrast_statistics_free(&s);
    assert_false(json->failed);
}

static int64_t n_compared;
static double worst;

static void compare(Json want, Json got) {
    Json at = {0}, other = {0};
    char path[300];
    json_path(want, path, sizeof path);
    if (json_type(want) != json_type(got)) fail_msg("%s: another type", path);
    if (json_type(want) == JSON_OBJECT) {
        while (json_next(&want, &at)) {
            other = json_member(&got, at.key);
            if (!other.node) fail_msg("%s.%s: missing", path, at.key);
            compare(at, other);
        }
    } else if (json_type(want) == JSON_ARRAY) {
        if (json_count(want) != json_count(got))
            fail_msg("%s: expected %d entries: got %d", path, (int)json_count(want), (int)json_count(got));
        while (json_next(&want, &at) && json_next(&got, &other)) compare(at, other);
    } else if (json_type(want) == JSON_NUMBER) {
        double a = number_of(want), b = number_of(got), off = fabs(a - b) / fmax(1, fabs(a));
        if (!(off <= 1e-12)) fail_msg("%s: expected %.17g: got %.17g", path, a, b);
        worst = fmax(worst, off);
        n_compared++;
    } else if (json_type(want) == JSON_STRING) {
        assert_string_equal(string_of(want), string_of(got));
    }
}

static const char *const cases[] = {"continuations", "one_sided", "prefix", "matched"};
enum { N_CASES = 4 };

static JsonDocument *parse(const Text *text) {
    Error error = {0};
    JsonDocument *d = json_parse(text->bytes, text->length, "contrast.json", &error);
    if (!d) fail_msg("%s", error.text);
    return d;
}

static void numbers_are_those_of_numpy(void **state) {
    (void)state;
    n_compared = 0;
    for (int i = 0; i < N_CASES; i++) {
        Case c;
        Text json = {0};
        read_case(cases[i], &c);
        put_case(&c, &json);
        JsonDocument *got = parse(&json);
        Json root = json_root(c.document);
        compare(json_member(&root, "expected"), json_root(got));
        json_free(got);
        text_free(&json);
        case_free(&c);
    }
    print_message("%d numbers, largest difference %.2g\n", (int)n_compared, worst);
    assert_true(n_compared > 500);
}

static void batches_and_threads_change_no_bit(void **state) {
    (void)state;
    int n_threads = omp_get_max_threads();
    for (int i = 0; i < N_CASES; i++) {
        Case c;
        Text one = {0}, two = {0};
        read_case(cases[i], &c);
        omp_set_num_threads(1);
        put_case(&c, &one);
        omp_set_num_threads(2);
        put_case(&c, &two);
        for (int64_t n = 1; n < c.n_pairs; n += 3) {
            Measures m;
            size_t layers = (size_t)(c.n_pairs * c.n_layers), cells = layers * (size_t)c.n_experts;
            measure_case(&c, n, &m);
            assert_memory_equal(m.js, c.measures.js, layers * sizeof *m.js);
            assert_memory_equal(m.overlap, c.measures.overlap, layers * sizeof *m.overlap);
            assert_memory_equal(m.jaccard, c.measures.jaccard, layers * sizeof *m.jaccard);
            assert_memory_equal(m.mean_second, c.measures.mean_second, cells * sizeof *m.mean_second);
            assert_memory_equal(m.shift, c.measures.shift, cells * sizeof *m.shift);
            assert_memory_equal(m.selected_first, c.measures.selected_first,
                                cells * sizeof *m.selected_first);
            measures_free(&m);
        }
        omp_set_num_threads(n_threads);
        assert_int_equal(one.length, two.length);
        assert_memory_equal(one.bytes, two.bytes, one.length);
        text_free(&one);
        text_free(&two);
        case_free(&c);
    }
}

/* ---- definitions ---- */
static void use(const char *path, int *used) {
    for (int64_t i = 0; i < n_contrast_definitions; i++)
        if (!strcmp(contrast_definitions[i].path, path)) {
            used[i]++;
            return;
        }
    fail_msg("%s: no definition", path);
}

/* A key as the table has it, where `path` holds it. */
static void name_key(const char *path, const char *own, char key[100]) {
    static const char *const parts[] = {"contrast", "control", "difference"};
    static const char *const rankings[] = {"rate", "probability", "gradient"};
    snprintf(key, 100, "%s", own ? own : "");
    for (int i = 0; i < 3; i++) {
        if (!strcmp(key, parts[i]) && *path) strcpy(key, "PART");
        if (!strcmp(key, rankings[i]) && !strcmp(path, "rankings")) strcpy(key, "RANKING");
    }
    if (!ends_with(key, "_low") && !ends_with(key, "_high")) return;
    *strrchr(key, '_') = '\0';
    strcat(key, "_low|high");
}

static bool is_list(Json at, const char *name) {
    bool plain = !strcmp(name, "switches") || !strcmp(name, "warnings");
    return !plain && (json_type(at) == JSON_ARRAY || json_type(at) == JSON_OBJECT);
}

static void find_all(Json at, const char *path, int *used) {
    Json entry = {0};
    while (json_next(&at, &entry)) {
        char key[100], name[400];
        if (entry.key && ends_with(entry.key, "_reason")) continue;
        name_key(path, entry.key, key);
        snprintf(name, sizeof name, "%s%s%s", path, *path && *key ? "." : "", entry.key ? key : "[]");
        if (is_set(entry)) {
            strcat(name, ".SET");
            use(name, used), use("SET.n", used), use("SET.mean_depth", used), use("SET.cells", used);
            continue;
        }
        if (is_list(entry, name)) find_all(entry, name, used);
        if (!is_list(entry, name) && json_type(entry) != JSON_NULL) use(name, used);
    }
}

static void every_number_has_its_definition(void **state) {
    (void)state;
    int *used = mem_zeroed((size_t)n_contrast_definitions, sizeof *used);
    for (int i = 0; i < N_CASES; i++) {
        Case c;
        Text json = {0};
        read_case(cases[i], &c);
        put_case(&c, &json);
        JsonDocument *d = parse(&json);
        find_all(json_root(d), "", used);
        json_free(d);
        text_free(&json);
        case_free(&c);
    }
    for (int64_t i = 0; i < n_contrast_definitions; i++)
        if (!used[i]) fail_msg("%s is defined and nowhere written", contrast_definitions[i].path);
    mem_free(used);
}

/* ---- which tokens ---- */
static void tokens_are_counted_as_asked(void **state) {
    (void)state;
    int32_t first[] = {9, 1, 2, 3, 4, 9}, second[] = {9, 3, 4, 9, 5};
    uint8_t first_roles[] = {ROLE_TEMPLATE, ROLE_USER, ROLE_USER, ROLE_USER, ROLE_ASSISTANT, ROLE_TEMPLATE},
            second_roles[] = {ROLE_TEMPLATE, ROLE_USER, ROLE_USER, ROLE_TEMPLATE, ROLE_USER};
    EncodedPrompt prompts[2] = {{.tokens = first, .roles = first_roles, .n_prompt = 6},
                                {.tokens = second, .roles = second_roles, .n_prompt = 4}};
    ContrastPairs pairs = {.side = {{.prompts = &prompts[0], .n = 1}, {.prompts = &prompts[1], .n = 1}},
                           .n = 1};
    StepOptions step = {.kind = STEP_CONTRAST, .contrast = CONTRAST_PREFIX, .last_tokens = 2};
    static const struct {
        int tokens;
        int64_t counted[2];
    } want[] = {{CONTRAST_ALL, {6, 4}},
                {CONTRAST_CONTENT, {4, 2}},
                {CONTRAST_LAST, {2, 2}},
                {CONTRAST_SHARED, {3, 3}}};
    int64_t counted[2], n_aligned;
    for (int i = 0; i < 4; i++) {
        step.contrast_tokens = want[i].tokens;
        contrast_count_tokens(&step, &pairs, 0, counted, &n_aligned);
        assert_memory_equal(counted, want[i].counted, sizeof counted);
        assert_int_equal(n_aligned, 0);
    }
    /* behind a prompt of three: targets 3 4 9 and 9 5; of position 0, 3 counts and 9 is the template's */
    prompts[0].n_prompt = prompts[1].n_prompt = 3;
    prompts[0].n_target = 3;
    prompts[1].n_target = 2;
    step.contrast = CONTRAST_CONTINUATIONS;
    step.contrast_tokens = CONTRAST_ALL;
    contrast_count_tokens(&step, &pairs, 0, counted, &n_aligned);
    assert_true(counted[0] == 3 && counted[1] == 2 && n_aligned == 2);
    step.contrast_tokens = CONTRAST_CONTENT;
    contrast_count_tokens(&step, &pairs, 0, counted, &n_aligned);
    assert_true(counted[0] == 2 && counted[1] == 1 && n_aligned == 1);
    Batch batch;
    Error error = {0};
    assert_true(contrast_batch_make(&step, &pairs, 0, 1, &batch, &error));
    static const int32_t marks[] = {-1, -1, -1, 0, 0, -1, -1, -1, -1, -1, 1};
    static const float third = (float)(1.0 / 3);
    const float loss[] = {0, 0, -third, -third, -third, 0, 0, 0, 0.5f, 0.5f, 0};
    assert_int_equal(batch.n_tokens, 11);
    assert_memory_equal(batch.counted, marks, sizeof marks);
    assert_memory_equal(batch.loss, loss, sizeof loss);
    batch_free(&batch);
}

/* ---- one pair, no resample, nothing to select ---- */
static void what_is_not_defined_says_why(void **state) {
    (void)state;
    Case c;
    Text json = {0};
    read_case("continuations", &c);
    c.measures.n_prompts = 1;
    c.step.contrast_gradient = false;
    memset(c.measures.shift, 0, (size_t)(c.n_layers * c.n_experts) * sizeof *c.measures.shift);
    put_case(&c, &json);
    JsonDocument *d = parse(&json);
    assert_undefined(d, "bootstrap", "one pair has no resamples");
    assert_undefined(d, "overall.control", "have no control");
    assert_undefined(d, "rankings.gradient", "gradient is false");
    assert_undefined(d, "rankings.rate.stable", "one pair");
    assert_int_equal(integer_at(d, "rankings.probability.n_selected"), 0);
    assert_false(find(d, "overall.contrast.js_low").node);
    json_free(d);
    text_free(&json);
    case_free(&c);
}

/* ---- the gradient of a contrast ---- */
#define GOLDEN SOURCE_DIR "/tests/golden/mixtral"
enum { N_PAIRS = 3 };

/* Invented pairs over the golden model's vocabulary: one prompt, continuations of unlike lengths. */
typedef struct {
    ContrastPairs pairs;
    PromptEntry entry;
} Invented;

static void invent_pairs(Invented *to) {
    static const int64_t n_prompt[N_PAIRS] = {4, 9, 6}, n_target[N_PAIRS][2] = {{3, 5}, {7, 2}, {4, 4}};
    *to = (Invented){.entry = {.id = "invented"}};
    to->pairs.n = N_PAIRS;
    uint32_t word = 7;
    for (int s = 0; s < 2; s++) {
        PromptGroup *group = &to->pairs.side[s];
        group->n = N_PAIRS;
        group->prompts = mem_zeroed(N_PAIRS, sizeof *group->prompts);
        for (int i = 0; i < N_PAIRS; i++) {
            EncodedPrompt *prompt = &group->prompts[i];
            size_t n = (size_t)(n_prompt[i] + n_target[i][s]);
            *prompt = (EncodedPrompt){.entry = &to->entry,
                                      .tokens = mem_zeroed(n, sizeof *prompt->tokens),
                                      .roles = mem_zeroed(n, 1),
                                      .n_prompt = n_prompt[i],
                                      .n_target = n_target[i][s]};
            for (size_t t = 0; t < n; t++) {
                word = word * 1664525u + 1013904223u;
                bool shared = s && (int64_t)t < n_prompt[i];
                prompt->tokens[t] =
                    shared ? to->pairs.side[0].prompts[i].tokens[t] : (int32_t)(word >> 16) % 160;
                prompt->roles[t] = ROLE_USER;
            }
        }
    }
}

static void measure_pairs(const Model *model, const Invented *of, int64_t n, Recompute recompute,
                          Measures *m) {
    StepOptions step = {.kind = STEP_CONTRAST, .contrast_gradient = true, .recompute = (int)recompute};
    ContrastPass pass = {.model = model, .step = &step, .pairs = &of->pairs};
    const ModelConfig *config = &model->config;
    Error error = {0};
    assert_true(measures_make(STEP_CONTRAST, N_PAIRS, config->n_moe_layers, config->n_experts, m, &error));
    for (int64_t at = 0; at < N_PAIRS; at += n) {
        int64_t size = N_PAIRS - at < n ? N_PAIRS - at : n;
        if (!contrast_measure(&pass, at, size, at, m, &error)) fail_msg("%s", error.text);
    }
}

/* One side's gate rows [P,L,E,D] and losses, as a gradient step has them. */
static float *gate_rows(const Model *model, const PromptGroup *group, Measures *m) {
    const ModelConfig *config = &model->config;
    StepOptions step = {.kind = STEP_GRADIENT, .loss = LOSS_TARGET};
    Block block = {.step = &step, .group = group, .n = N_PAIRS};
    Batch batch;
    Error error = {0};
    size_t n = (size_t)(N_PAIRS * config->n_moe_layers * config->n_experts * config->hidden_size);
    float *rows = mem_zeroed(n, sizeof *rows);
    GateGradientOptions options = {.rows = rows};
    bool ok = measures_make(STEP_GRADIENT, N_PAIRS, config->n_moe_layers, config->n_experts, m, &error) &&
              batch_make(&block, 0, N_PAIRS, &batch, &error) &&
              gate_gradient_measure(model, &batch, 0, &options, m, &error);
    if (!ok) fail_msg("%s", error.text);
    batch_free(&batch);
    return rows;
}

static void gradient_is_the_difference_of_two(void **state) {
    (void)state;
    Model model;
    Error error = {0};
    Invented invented;
    Measures whole, single, side[2];
    float *rows[2];
    if (!model_open(GOLDEN, cpu_device(), DTYPE_F32, &model, &error)) fail_msg("%s", error.text);
    invent_pairs(&invented);
    measure_pairs(&model, &invented, N_PAIRS, RECOMPUTE_NEVER, &whole);
    measure_pairs(&model, &invented, 1, RECOMPUTE_ALWAYS, &single);
    int64_t D = model.config.hidden_size, n = N_PAIRS * whole.n_layers * whole.n_experts;
    assert_memory_equal(whole.contrast_l2, single.contrast_l2, (size_t)n * sizeof *whole.contrast_l2);
    assert_memory_equal(whole.js, single.js, (size_t)(N_PAIRS * whole.n_layers) * sizeof *whole.js);
    for (int s = 0; s < 2; s++) rows[s] = gate_rows(&model, &invented.pairs.side[s], &side[s]);
    double largest = 0, off = 0, apart = 0;
    for (int64_t c = 0; c < n; c++) {
        double sum = 0;
        for (int64_t d = 0; d < D; d++) {
            double x = (double)rows[1][c * D + d] - (double)rows[0][c * D + d];
            sum += x * x;
        }
        largest = fmax(largest, sqrt(sum));
        off = fmax(off, fabs(sqrt(sum) - (double)whole.contrast_l2[c]));
        apart = fmax(apart, fabs((double)(side[1].l2[c] - side[0].l2[c]) - (double)whole.contrast_l2[c]));
    }
    print_message("largest norm %.3g, off by %.2g\n", largest, off);
    assert_true(largest > 1e-2 && off <= 2e-6 * largest);
    assert_true(apart > 1e-2 * largest); /* not the difference of two norms */
    for (int i = 0; i < N_PAIRS; i++) {
        assert_true(fabs(whole.nll_first[i] - side[0].nll[i]) < 1e-6);
        assert_true(fabs(whole.nll_second[i] - side[1].nll[i]) < 1e-6);
        assert_int_equal(whole.n_first[i], invented.pairs.side[0].prompts[i].n_target);
    }
    for (int s = 0; s < 2; s++) measures_free(&side[s]), mem_free(rows[s]);
    measures_free(&whole);
    measures_free(&single);
    contrast_pairs_free(&invented.pairs);
    model_close(&model);
}

static bool take_nll(void *context, HookSite *site, Tensor nll) {
    (void)site;
    memcpy(context, nll.data, tensor_bytes(nll));
    return true;
}

/* NLL(second) - NLL(first) of each pair, in double. */
static void contrasts(const Model *model, const Batch *batch, double to[N_PAIRS]) {
    double nll[200];
    PromptBatch view = batch_view(batch);
    Hooks hooks = {.context = nll, .loss = take_nll};
    PassResult result;
    Error error = {0};
    if (!model_pass(model, &view, &(PassOptions){.want_nll = true}, &hooks, &result, &error))
        fail_msg("%s", error.text);
    pass_result_free(&result);
    for (int64_t i = 0; i < N_PAIRS; i++) {
        int64_t n[2] = {0};
        double sum[2] = {0};
        for (int64_t s = 0; s < 2; s++)
            for (int64_t t = batch->offsets[2 * i + s]; t < batch->offsets[2 * i + s + 1]; t++) {
                n[s] += batch->loss[t] != 0;
                sum[s] += batch->loss[t] != 0 ? nll[t] : 0;
            }
        to[i] = sum[1] / (double)n[1] - sum[0] / (double)n[0];
    }
}

/* Of each pair the slope along a direction of a router row, by the stencil (1, -8, 8, -1) / 12h. */
static void slopes(const Model *exact, const Batch *batch, double *row, const double *direction, int64_t n,
                   double to[N_PAIRS]) {
    const double h = 1e-4, steps[4] = {-2, -1, 1, 2};
    double at[4][N_PAIRS], start[64];
    memcpy(start, row, (size_t)n * sizeof *row);
    for (int k = 0; k < 4; k++) {
        for (int64_t d = 0; d < n; d++) row[d] = start[d] + h * steps[k] * direction[d];
        contrasts(exact, batch, at[k]);
    }
    memcpy(row, start, (size_t)n * sizeof *row);
    for (int i = 0; i < N_PAIRS; i++) to[i] = (at[0][i] - 8 * at[1][i] + 8 * at[2][i] - at[3][i]) / (12 * h);
}

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t d = 0; d < n; d++) sum += a[d] * b[d];
    return sum;
}

/* u: a pair's gradient of a cell over its length; v: a unit vector at right angles to it. */
static void make_directions(const float *first, const float *second, int64_t n, double *u, double *v) {
    for (int64_t d = 0; d < n; d++) {
        u[d] = (double)second[d] - (double)first[d];
        v[d] = (double)(d * 7 % 5) - 2;
    }
    double length = sqrt(dot(u, u, n));
    for (int64_t d = 0; d < n; d++) u[d] /= length;
    double along = dot(u, v, n);
    for (int64_t d = 0; d < n; d++) v[d] -= along * u[d];
    length = sqrt(dot(v, v, n));
    for (int64_t d = 0; d < n; d++) v[d] /= length;
}

/* Along its gradient a pair's contrast rises by the norm, across it not at all. */
static void gradient_is_that_of_differences(void **state) {
    (void)state;
    Model model, exact;
    Error error = {0};
    Invented invented;
    Measures m, side[2];
    StepOptions step = {.kind = STEP_CONTRAST, .contrast_gradient = true};
    Batch batch;
    float *rows[2];
    if (!model_open(GOLDEN, cpu_device(), DTYPE_F32, &model, &error) ||
        !model_open(GOLDEN, cpu_device_named("f64"), DTYPE_F64, &exact, &error))
        fail_msg("%s", error.text);
    invent_pairs(&invented);
    measure_pairs(&model, &invented, N_PAIRS, RECOMPUTE_AUTO, &m);
    for (int s = 0; s < 2; s++) rows[s] = gate_rows(&model, &invented.pairs.side[s], &side[s]);
    assert_true(contrast_batch_make(&step, &invented.pairs, 0, N_PAIRS, &batch, &error));
    const int64_t D = model.config.hidden_size, L = m.n_layers, E = m.n_experts;
    double off = 0, across = 0, largest = 0;
    for (int64_t l = 0; l < L; l++) {
        Tensor *router = &exact.weights.layers[l].router, before = *router;
        double *w = mem_alloc((size_t)(E * D) * sizeof *w), u[64], v[64], slope[N_PAIRS];
        assert_true(D <= 64 && before.dtype == DTYPE_F32);
        for (int64_t i = 0; i < E * D; i++) w[i] = (double)((const float *)before.data)[i];
        *router = tensor_matrix(w, DTYPE_F64, E, D);
        /* a pair for each layer, and its largest cell there */
        int64_t i = l % N_PAIRS, e = 0, first = (i * L + l) * E;
        for (int64_t k = 1; k < E; k++)
            if (m.contrast_l2[first + k] > m.contrast_l2[first + e]) e = k;
        double norm = (double)m.contrast_l2[first + e];
        make_directions(rows[0] + (first + e) * D, rows[1] + (first + e) * D, D, u, v);
        slopes(&exact, &batch, w + e * D, u, D, slope);
        off = fmax(off, fabs(slope[i] - norm));
        largest = fmax(largest, norm);
        slopes(&exact, &batch, w + e * D, v, D, slope);
        across = fmax(across, fabs(slope[i]));
        *router = before;
        mem_free(w);
    }
    print_message("largest norm %.3g, off by %.2g, across %.2g\n", largest, off, across);
    assert_true(largest > 1e-2 && off <= 1e-5 * largest && across <= 1e-5 * largest);
    batch_free(&batch);
    for (int s = 0; s < 2; s++) measures_free(&side[s]), mem_free(rows[s]);
    measures_free(&m);
    contrast_pairs_free(&invented.pairs);
    model_close(&model);
    model_close(&exact);
}

/* Equal continuations: nothing differs, to the last bit. */
static void equal_continuations_do_not_differ(void **state) {
    (void)state;
    Model model;
    Error error = {0};
    Invented invented;
    Measures m;
    if (!model_open(GOLDEN, cpu_device(), DTYPE_F32, &model, &error)) fail_msg("%s", error.text);
    invent_pairs(&invented);
    for (int i = 0; i < N_PAIRS; i++) {
        EncodedPrompt *from = &invented.pairs.side[0].prompts[i], *to = &invented.pairs.side[1].prompts[i];
        size_t n = (size_t)(from->n_prompt + from->n_target);
        to->tokens = mem_resize(to->tokens, n, sizeof *to->tokens);
        to->roles = mem_resize(to->roles, n, 1);
        memcpy(to->tokens, from->tokens, n * sizeof *to->tokens);
        memcpy(to->roles, from->roles, n);
        to->n_target = from->n_target;
    }
    measure_pairs(&model, &invented, N_PAIRS, RECOMPUTE_AUTO, &m);
    for (int64_t i = 0; i < N_PAIRS * m.n_layers; i++)
        assert_true(m.js[i] == 0 && m.jaccard[i] == 1 && m.overlap[i] == 2);
    for (int64_t i = 0; i < N_PAIRS * m.n_layers * m.n_experts; i++)
        assert_true(m.shift[i] == 0 && m.selected_first[i] == m.selected_second[i] &&
                    m.contrast_l2[i] < 1e-6f);
    measures_free(&m);
    contrast_pairs_free(&invented.pairs);
    model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(closed_forms),
        cmocka_unit_test(numbers_are_those_of_numpy),
        cmocka_unit_test(batches_and_threads_change_no_bit),
        cmocka_unit_test(every_number_has_its_definition),
        cmocka_unit_test(tokens_are_counted_as_asked),
        cmocka_unit_test(what_is_not_defined_says_why),
        cmocka_unit_test(gradient_is_the_difference_of_two),
        cmocka_unit_test(gradient_is_that_of_differences),
        cmocka_unit_test(equal_continuations_do_not_differ),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

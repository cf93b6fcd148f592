/* Statistics: every number of statistics.json against an implementation of its own in NumPy and SciPy
 * (tools/make_statistics_golden.py), on the same draws; closed forms; what is not defined; definitions. */
#include "analysis/analyze.h"
#include "analysis/classify.h"
#include "analysis/options.h"
#include "analysis/ranking.h"
#include "analysis/resample.h"
#include "engine/text.h"
#include "tests/analysis/statistics_file.h"
#include <errno.h>
#include <omp.h>

#define GOLDEN SOURCE_DIR "/tests/data/statistics/"
/* ---- analyze ---- */
static bool analyze(const char *counts, const char *out, const char *const *sets, int64_t n_sets,
                    int64_t seed, Error *error) {
    AnalyzeRequest request = {
        .counts = counts, .out = scratch_path(out), .sets = sets, .n_sets = n_sets, .seed = seed};
    *error = (Error){0};
    return analyze_run(&request, error);
}

static JsonDocument *must_analyze(const char *counts, const char *out, const char *const *sets,
                                  int64_t n_sets, int64_t seed) {
    Error error;
    char name[200];
    if (!analyze(counts, out, sets, n_sets, seed, &error)) fail_msg("%s", error.text);
    snprintf(name, sizeof name, "%s/statistics.json", out);
    return read_json(scratch_path(name));
}

static JsonDocument *analyze_text(const char *table) {
    return must_analyze(scratch_write_text("t.csv", table), "text", NULL, 0, 0);
}

/* ---- golden ---- */
static int64_t n_compared;
static double worst;

static void compare(Json want, Json got);

/* What only one of the two writes. */
static bool is_own(const char *key) {
    static const char *const own[] = {"score", "switches", "warnings", "indices"};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(own[i], key)) return true;
    return ends_with(key, "_reason");
}

static void compare_objects(Json want, Json got) {
    Json at = {0};
    char path[300];
    while (json_next(&want, &at)) {
        if (is_own(at.key)) continue;
        json_path(at, path, sizeof path);
        Json other = json_member(&got, at.key);
        if (!other.node) fail_msg("%s: missing", path);
        compare(at, other);
    }
    at = (Json){0};
    while (json_next(&got, &at)) {
        json_path(at, path, sizeof path);
        if (!is_own(at.key) && !json_member(&want, at.key).node) fail_msg("%s: too much", path);
    }
}

static void compare_numbers(Json want, Json got) {
    double a = number_of(want), b = number_of(got), off = fabs(a - b) / fmax(1, fabs(a));
    char path[300];
    json_path(want, path, sizeof path);
    if (!(off <= 1e-12)) fail_msg("%s: expected %.17g: got %.17g", path, a, b);
    if (off > worst) worst = off;
    n_compared++;
}

static void compare(Json want, Json got) {
    char path[300];
    json_path(want, path, sizeof path);
    if (json_type(want) != json_type(got))
        fail_msg("%s: expected %s: got %s", path, json_type_name(json_type(want)),
                 json_type_name(json_type(got)));
    Json a = {0}, b = {0};
    switch (json_type(want)) {
    case JSON_OBJECT: compare_objects(want, got); break;
    case JSON_ARRAY:
        if (json_count(want) != json_count(got))
            fail_msg("%s: expected %d entries: got %d", path, (int)json_count(want), (int)json_count(got));
        while (json_next(&want, &a) && json_next(&got, &b)) compare(a, b);
        break;
    case JSON_NUMBER: compare_numbers(want, got); break;
    case JSON_STRING: assert_string_equal(string_of(want), string_of(got)); break;
    default: break;
    }
}

static void every_number_is_that_of_scipy(void **state) {
    (void)state;
    JsonDocument *cases = read_json(GOLDEN "cases.json");
    Json root = json_root(cases), one = {0};
    while (json_next(&root, &one)) {
        const char *sets[32], *name = string_of(json_member(&one, "name"));
        char table[300], expected[300];
        int64_t n_sets = 0;
        Json list = json_member(&one, "sets"), set = {0};
        while (json_next(&list, &set)) sets[n_sets++] = string_of(set);
        snprintf(table, sizeof table, GOLDEN "%s", string_of(json_member(&one, "table")));
        snprintf(expected, sizeof expected, GOLDEN "%s.json", name);
        n_compared = 0, worst = 0;
        JsonDocument *got = must_analyze(table, name, sets, n_sets,
                                         (int64_t)number_of(json_member(&one, "seed"))),
                     *want = read_json(expected);
        compare(json_root(want), json_root(got));
        print_message("%s: %d numbers, the farthest is off by %.2g\n", name, (int)n_compared, worst);
        assert_true(n_compared > 300);
        json_free(want);
        json_free(got);
    }
    json_free(cases);
}

static void a_share_of_no_expert_selects_none(void **state) {
    (void)state;
    const char *const sets[] = {"stable_share=0.1"};
    JsonDocument *d = must_analyze(GOLDEN "prompts.csv", "share", sets, 1, 7);
    assert_undefined(d, "groups.a.stable_selection.layer_top", "is less than one");
    assert_undefined(d, "stable_selection", "is less than one");
    json_free(d);
}

/* A comparison that cannot fail proves nothing. */
static void the_comparison_sees_a_difference(void **state) {
    (void)state;
    const char *const sets[] = {"bootstraps=41", "permutations=0", "splits=0"};
    JsonDocument *few = must_analyze(GOLDEN "prompts.csv", "few", sets, 3, 7),
                 *want = read_json(GOLDEN "prompts.json");
    assert_true(value_at(few, "groups.a.curve[0].score_low") !=
                value_at(want, "groups.a.curve[0].score_low"));
    assert_undefined(few, "permutation", "permutations: 0");
    assert_undefined(few, "groups.a.split_half", "splits: 0");
    json_free(few);
    json_free(want);
}

/* ---- draws ---- */
static void assert_indices(const JsonDocument *want, const char *key, const Resamples *got) {
    Json root = json_root(want), all = json_member(&root, "indices"), rows = json_member(&all, key),
         row = {0};
    assert_int_equal(json_count(rows), got->n);
    for (int64_t b = 0; json_next(&rows, &row); b++) {
        Json at = {0};
        assert_int_equal(json_count(row), got->n_drawn);
        for (int64_t i = 0; json_next(&row, &at); i++)
            assert_int_equal((int64_t)number_of(at), got->index[b * got->n_drawn + i]);
    }
}

static void draws_are_those_of_the_golden_files(void **state) {
    (void)state;
    JsonDocument *want = read_json(GOLDEN "prompts.json");
    Resamples r;
    Error error = {0};
    assert_true(resamples_bootstrap(7, 1, 40, 12, &r, &error));
    assert_indices(want, "bootstrap b", &r);
    resamples_free(&r);
    assert_true(resamples_shuffle(7, RANDOM_PERMUTATION, 1, 60, 21, &r, &error));
    assert_indices(want, "permutation a b", &r);
    resamples_free(&r);
    assert_true(resamples_shuffle(7, RANDOM_SPLIT, 0, 12, 9, &r, &error));
    assert_indices(want, "split a", &r);
    resamples_free(&r);
    json_free(want);
}

static char *read_result(const char *out, size_t *n) {
    char name[100];
    Error error = {0};
    snprintf(name, sizeof name, "%s/statistics.json", out);
    char *bytes = io_read_all(scratch_path(name), MOST, n, &error);
    if (!bytes) fail_msg("%s", error.text);
    return bytes;
}

static void threads_change_no_byte(void **state) {
    (void)state;
    int before = omp_get_max_threads();
    size_t n, m;
    char *one = NULL;
    for (int threads = 1; threads <= 5; threads += 2) {
        omp_set_num_threads(threads);
        json_free(must_analyze(GOLDEN "prompts.csv", "threads", NULL, 0, 3));
        char *other = read_result("threads", &m);
        if (one) assert_true(n == m && !memcmp(one, other, n));
        if (one)
            mem_free(other);
        else
            one = other, n = m;
    }
    omp_set_num_threads(before);
    json_free(must_analyze(GOLDEN "prompts.csv", "threads", NULL, 0, 4));
    char *seed = read_result("threads", &m);
    assert_true(n != m || memcmp(one, seed, n) != 0);
    mem_free(seed);
    mem_free(one);
}

/* ---- closed forms ---- */
static void small_tables_have_their_numbers(void **state) {
    (void)state;
    JsonDocument *d = analyze_text("layer,expert,group,selected,tokens\n"
                                   "0,0,a,8,10\n0,1,a,2,10\n1,0,a,5,10\n1,1,a,5,10\n"
                                   "0,0,b,4,20\n0,1,b,16,20\n1,0,b,20,20\n1,1,b,0,20\n");
    assert_value(d, "groups.a.k80", 3);
    assert_value(d, "groups.a.k90", 3); /* 0.8 + 0.5 + 0.5 of 2: 90 % to the last bit but rounding */
    assert_value(d, "groups.a.k95", 4);
    assert_value(d, "groups.a.layers[0].dominant_score", 0.8);
    assert_value(d, "groups.a.layers[1].entropy", log(2));
    assert_value(d, "groups.a.layers[1].effective_experts", 2);
    assert_value(d, "groups.a.layers[0].effective_experts_simpson", 1 / 0.68);
    assert_value(d, "groups.b.layers[1].effective_experts", 1);
    assert_value(d, "groups.b.unused_cells", 1);
    assert_value(d, "differences[0].risk_difference", 0.8 - 0.2);
    assert_value(d, "differences[0].expert", 0);
    assert_value(d, "differences[1].risk_difference", 0.2 - 0.8);
    assert_value(d, "differences[2].risk_ratio", 0.5);
    assert_undefined(d, "differences[3].risk_ratio", "the score in group b is 0");
    assert_value(d, "selectivity[0].max_abs_difference", 0.8 - 0.2);
    assert_value(d, "selectivity[1].js_divergence",
                 0.5 * (0.5 * log(0.5 / 0.75) + 0.5 * log(0.5 / 0.25)) + 0.5 * log(1 / 0.75));
    assert_undefined(d, "overlap[0].shared", "k is larger than the number of cells, 4");
    assert_undefined(d, "groups.a.bootstrap", "the table has no column prompt");
    assert_undefined(d, "permutation", "the table has no column prompt");
    assert_undefined(d, "between_steps", "no gradients");
    json_free(d);
}

/* n equal scores of 1 / n: four fifths of them are 80 %, which the last bit of their sum must not miss. */
static void shares_are_met_exactly(void **state) {
    (void)state;
    for (int n = 5; n <= 200; n += 5) {
        Text table = {0};
        text_put_string(&table, "layer,expert,group,selected,tokens\n");
        for (int e = 0; e < n; e++) text_format(&table, "0,%d,a,%d,%d\n", e, 1, n);
        JsonDocument *d = analyze_text(table.bytes);
        assert_value(d, "groups.a.k80", n * 4 / 5);
        assert_value(d, "groups.a.concentration.uniform.k80", n * 4 / 5);
        assert_value(d, "groups.a.layers[0].effective_experts", n);
        json_free(d);
        text_free(&table);
    }
}

static void sorting_keeps_the_order_of_ties(void **state) {
    (void)state;
    enum { N = 3000 };
    static double scores[N], values[N];
    static Ranked room[2 * N];
    static int64_t order[N];
    for (int i = 0; i < N; i++) {
        scores[i] = floor(40 * random_uniform(1, RANDOM_TEST, 0, i)) / 7;
        values[i] = floor(1e6 * (random_uniform(1, RANDOM_TEST, 1, i) - 0.5)) / 3;
    }
    ranking_sort(scores, N, room, order);
    ranking_sort_values(values, N, room);
    for (int i = 1; i < N; i++) {
        double a = scores[order[i - 1]], b = scores[order[i]];
        assert_true(a > b || (a == b && order[i - 1] < order[i]));
        assert_true(values[i - 1] <= values[i]);
    }
    const double five[5] = {-2, 0, 1, 4, 10};
    assert_true(ranking_quantile(five, 5, 0.25) == 0 && fabs(ranking_quantile(five, 5, 0.9) - 7.6) < 1e-14);
    assert_true(ranking_quantile(five, 5, 1) == 10 && ranking_quantile(five, 1, 0.5) == -2);
}

static void classes_follow_the_ratio(void **state) {
    (void)state;
    const double a[6] = {3, 1, 2, 0, 0, 1}, b[6] = {2, 1, 3, 0, 1, 0}, c[6] = {0, 0, 0, 0, 0, 3};
    const double *const scores[3] = {a, b, c};
    int64_t got[6];
    const int64_t two[6] = {2, 2, 2, 2, 1, 0}, wide[6] = {0, 2, 1, 2, 1, 0}, three[6] = {0, 3, 1, 3, 1, 2};
    classify_cells(&(Classifier){CLASS_RATIO, 1.5, NULL}, scores, 2, 6, got);
    assert_memory_equal(got, two, sizeof got);
    classify_cells(&(Classifier){CLASS_RATIO, 1.4, NULL}, scores, 2, 6, got);
    assert_memory_equal(got, wide, sizeof got);
    classify_cells(&(Classifier){CLASS_RATIO, 1.4, NULL}, scores, 3, 6, got);
    assert_memory_equal(got, three, sizeof got);
    classify_cells(&(Classifier){CLASS_DIFFERENCE, 0.9, NULL}, scores, 2, 6, got);
    assert_memory_equal(got, wide, sizeof got);
    classify_cells(&(Classifier){CLASS_DIFFERENCE, 1, NULL}, scores, 2, 6, got);
    for (int i = 0; i < 6; i++) assert_int_equal(got[i], 2);
    const double none[6] = {0}, some[6] = {0.25, 0, 0.26, 0, 0, 1};
    const double *const errors[2] = {none, some};
    const int64_t z[6] = {2, 2, 2, 2, 1, 2};
    classify_cells(&(Classifier){CLASS_Z, 2, errors}, scores, 2, 6, got);
    assert_memory_equal(got, z, sizeof got);
}

/* One cell is never the same in both groups, the other has no difference: p is the least that 999
 * permutations can give, and 1. */
static void a_planted_difference_is_found(void **state) {
    (void)state;
    Text table = {0};
    text_put_string(&table, "layer,expert,group,selected,tokens,prompt\n");
    for (int p = 0; p < 24; p++)
        for (int e = 0; e < 4; e++) {
            bool first = p < 12;
            int selected = e == 0   ? (first ? 80 : 20) + p % 5
                           : e == 1 ? 30
                                    : 10 + (7 * p * p + 5 * p * e) % 13;
            text_format(&table, "0,%d,%s,%d,100,p%d\n", e, first ? "a" : "b", selected, p);
        }
    const char *const sets[] = {"permutations=999"};
    JsonDocument *d = must_analyze(scratch_write_text("t.csv", table.bytes), "planted", sets, 1, 1);
    assert_value(d, "differences[0].expert", 0);
    assert_value(d, "differences[0].p_value_max", 0.001);
    assert_value(d, "selectivity[0].p_value", 0.001);
    assert_value(d, "differences[3].expert", 1);
    assert_value(d, "differences[3].risk_difference", 0);
    assert_value(d, "differences[3].p_value", 1);
    assert_true(value_at(d, "differences[1].p_value_max") > 0.05);
    assert_true(value_at(d, "differences[0].risk_difference_low") > 0.55);
    assert_true(value_at(d, "groups.a.split_half.reliability") > 0.99);
    json_free(d);
    text_free(&table);
}

/* ---- what is not defined ---- */
static void equal_scores_give_no_ranking(void **state) {
    (void)state;
    Text table = {0};
    text_put_string(&table, "layer,expert,group,selected,tokens\n");
    for (int i = 0; i < 12; i++) text_format(&table, "%d,%d,%s,5,10\n", i % 6 / 3, i % 3, i < 6 ? "a" : "b");
    JsonDocument *d = analyze_text(table.bytes);
    assert_value(d, "groups.a.k80", 5);
    assert_undefined(d, "overlap[0].shared", "all scores of a group are equal");
    assert_undefined(d, "groups.a.depth[0].mean_depth", "all scores of a group are equal");
    assert_value(d, "classes[0].counts.shared", 6);
    assert_contains(string_of(find(d, "warnings[0]")), "group a: all scores are equal");
    json_free(d);
    text_free(&table);
}

static void unused_layers_and_experts_are_said(void **state) {
    (void)state;
    JsonDocument *d = analyze_text("layer,expert,group,selected,tokens\n"
                                   "4,0,a,0,10\n4,1,a,0,10\n4,0,b,3,10\n4,1,b,7,10\n");
    assert_undefined(d, "groups.a.k80", "all scores are 0");
    assert_undefined(d, "groups.a.layers[0].entropy", "all scores of the layer are 0");
    assert_undefined(d, "selectivity[0].js_divergence", "all scores of the layer are 0 in one of the groups");
    assert_value(d, "n_decoder_layers", 5);
    assert_value(d, "classes[0].counts.b", 2);
    assert_contains(string_of(find(d, "warnings[0]")), "group a: 2 of 2 cells have score 0");
    json_free(d);
}

static void few_prompts_and_groups_are_said(void **state) {
    (void)state;
    JsonDocument *d = analyze_text("layer,expert,group,selected,tokens,prompt\n"
                                   "0,0,a,3,10,x\n0,1,a,7,10,x\n0,0,b,5,90,x\n0,1,b,6,90,x\n");
    assert_undefined(d, "groups.a.bootstrap", "the group has one prompt");
    assert_undefined(d, "permutation", "nothing to permute");
    assert_undefined(d, "groups.a.concentration.rotation", "the group has one prompt");
    assert_undefined(d, "groups.a.depth[0].mean_depth", "k is larger");
    assert_contains(string_of(find(d, "warnings[0]")), "groups a and b have 10 and 90 tokens a prompt");
    json_free(d);
    d = analyze_text("layer,expert,group,selected,tokens\n0,0,a,3,10\n0,1,a,7,10\n");
    assert_undefined(d, "differences", "there is one group");
    assert_undefined(d, "classes", "there is one group");
    assert_value(d, "groups.a.k80", 2);
    json_free(d);
}

/* ---- tables that contradict themselves ---- */
static void refuse(const char *table, const char *want) {
    Error error;
    assert_false(analyze(scratch_write_text("t.csv", table), "refused", NULL, 0, 0, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, "t.csv");
    assert_contains(error.text, want);
    assert_false(io_exists(scratch_path("refused/statistics.json")));
}

static void tables_that_contradict_themselves_are_refused(void **state) {
    (void)state;
#define HEAD "layer,expert,group,selected,tokens\n"
    refuse(HEAD, ":2: expected a row of counts: got the end of the file");
    refuse("layer,expert,group,selected\n0,0,a,1\n",
           ":1: expected a column tokens: got layer, expert, group, selected");
    refuse(HEAD "0,0,a,11,10\n", ":2: column selected: expected at most the 10 tokens of its row: got 11");
    refuse(HEAD "0,0,a,-1,10\n", ":2: column selected: expected an integer from 0");
    refuse(HEAD "0,0,a,1.5,10\n", ":2: column selected: expected an integer");
    refuse(HEAD "0,0,a,0,0\n", ":2: column tokens: expected an integer from 1");
    refuse(HEAD "0,0,,1,10\n", ":2: column group: expected the name of a group");
    refuse(HEAD "0,0,shared,1,10\n", "column group: expected the name of a group, not \"shared\"");
    refuse(HEAD "x,0,a,1,10\n", ":2: column layer: expected an integer from 0 to 99999: got \"x\"");
    refuse(HEAD "0,0,a,1,10\n0,1,a,2,10\n0,0,a,1,10\n",
           ":4: column expert: expected one row for layer 0, expert 0 of group a: got another on line 2");
    refuse(HEAD "0,0,a,1,10\n0,1,a,2,12\n",
           ":3: column tokens: expected the 10 tokens that the same layer and group have on line 2: got 12");
    refuse(HEAD "0,0,a,1,10\n0,1,a,2,10\n0,0,b,1,10\n",
           ":3: column group: expected a row for this layer 0, expert 1 of group b too: got none");
    refuse(HEAD "0,0,a,1,10\n0,2,a,2,10\n",
           "expected a row for layer 0, expert 1, as its layer has experts up to 2: got none");
    refuse("layer,expert,group,selected,tokens,prompt\n0,0,a,1,10,p\n0,1,a,2,10,p\n0,0,a,1,10,q\n",
           ":3: column group: expected a row for this layer 0, expert 1 of group a, prompt q too: got none");
    refuse("layer,expert,group,selected,tokens,prompt\n0,0,a,1,10,\n",
           "column prompt: expected the name of a prompt");
    refuse(HEAD "0,99999,a,1,10\n1,0,a,1,10\n", "expected a row for layer 0, expert 0");
#undef HEAD
}

static void counts_may_be_written_as_reals(void **state) {
    (void)state;
    JsonDocument *d = analyze_text("layer,expert,group,selected,tokens,note\n"
                                   "0,0,a,3.0,10.0,x\n0,1,a,7.0,10.0,\n0,0,b,5,10,\n0,1,b,5,10,\n");
    assert_value(d, "groups.a.curve[0].score", 0.7);
    assert_contains(string_of(find(d, "warnings[0]")), "column note was not read");
    json_free(d);
}

static void settings_are_checked(void **state) {
    (void)state;
    static const char *const wrong[][2] = {
        {"bootstraps=-1", "--set bootstraps: expected an integer from 0 to 1000000"},
        {"thresholds=1.5,1.2", "expected ascending numbers: got 1.2 after 1.5"},
        {"top_sets=2.5", "--set top_sets: [0]: expected an integer"},
        {"tresholds=2", "expected an option of statistics: got another (did you mean thresholds?)"},
        {"model=x", "expected an option of statistics"},
        {"thresholds=0.5", "thresholds: expected at least 1 where class_rule is ratio"},
        {"average", "expected OPTION=VALUE"},
        {"test_statistic=z", "expected one of t, difference"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        Error error;
        assert_false(analyze(GOLDEN "counts.csv", "wrong", &wrong[i][0], 1, 0, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, wrong[i][1]);
    }
}

/* ---- definitions ---- */
/* Near ties and other steps belong to jobs: tests/analysis/test_run.c walks those. */
static void every_number_has_its_definition(void **state) {
    (void)state;
    int *used = mem_zeroed((size_t)n_definitions, sizeof *used);
    const char *const sets[] = {"bootstraps=20", "permutations=20", "splits=4", "top_sets=2"};
    JsonDocument *d = must_analyze(GOLDEN "prompts.csv", "defined", sets, 4, 0);
    walk(d, json_root(d), "", used);
    for (int64_t i = 0; i < n_definitions; i++) {
        const char *path = definition_table[i].path;
        bool of_jobs =
            strstr(path, "near_ties") || strstr(path, "between_steps") || strstr(path, "other_pairs");
        if (!used[i] && !of_jobs) fail_msg("%s is defined and nowhere written", path);
    }
    json_free(d);
    mem_free(used);
    Text text = {0};
    definitions_document(&text);
    assert_contains(text.bytes, "groups.NAME.k80 (cells)\n    least number of cells whose scores");
    text_free(&text);
}

/* ---- faults ---- */
static bool scenario(void *context, Error *error) {
    const char *const sets[] = {"bootstraps=3", "permutations=3", "splits=2", "layer_statistics=prompts"};
    bool ok = analyze(context, "fault", sets, 4, 0, error);
    return ok;
}

static void memory_and_files_may_fail_anywhere(void **state) {
    (void)state;
    char table[] = GOLDEN "three.csv";
    assert_true(fail_each_allocation(scenario, table) > 100);
    assert_true(fail_each_file_call(scenario, table, ENOSPC) > 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_number_is_that_of_scipy),
        cmocka_unit_test(the_comparison_sees_a_difference),
        cmocka_unit_test(a_share_of_no_expert_selects_none),
        cmocka_unit_test(draws_are_those_of_the_golden_files),
        cmocka_unit_test(threads_change_no_byte),
        cmocka_unit_test(small_tables_have_their_numbers),
        cmocka_unit_test(shares_are_met_exactly),
        cmocka_unit_test(sorting_keeps_the_order_of_ties),
        cmocka_unit_test(classes_follow_the_ratio),
        cmocka_unit_test(a_planted_difference_is_found),
        cmocka_unit_test(equal_scores_give_no_ranking),
        cmocka_unit_test(unused_layers_and_experts_are_said),
        cmocka_unit_test(few_prompts_and_groups_are_said),
        cmocka_unit_test(tables_that_contradict_themselves_are_refused),
        cmocka_unit_test(counts_may_be_written_as_reals),
        cmocka_unit_test(settings_are_checked),
        cmocka_unit_test(every_number_has_its_definition),
        cmocka_unit_test(memory_and_files_may_fail_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

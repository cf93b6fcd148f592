/* Replies of an intervention on the demo model as they are scored and judged: likelihoods against those of
 * logits, one text at a time, and labels by what the perplexity allows. */
#include "../../analysis/csv.h"
#include "../../analysis/judge_folder.h"
#include "demo_model.h"
#include <math.h>

static const char job_text[] =
    "{\"schema_version\": 1, \"seed\": 3, \"device\": \"cpu\",\n"
    " \"models\": {\"demo\": {\"path\": \"" DEMO "model\", \"chat_template\": \"phi35moe\"}},\n"
    " \"prompts\": {" PROMPTS("a", "rank_ordinary", "6") ", " PROMPTS(
        "b", "rank_restricted",
        "6") ",\n"
             "  " PROMPTS("o", "test_ordinary", "4") ", " PROMPTS(
                 "t", "test_restricted",
                 "5") "},\n"
                      " \"steps\": [\n"
                      "  {\"name\": \"act\", \"kind\": \"activation\", \"groups\": [\"a\", \"b\"]},\n"
                      "  {\"name\": \"edit\", \"kind\": \"intervention\", \"from\": [\"act\"], \"groups\": "
                      "[\"t\", \"o\"],\n"
                      "   \"rank_groups\": [\"b\", \"a\"], \"top\": [3], \"random_sets\": 1, "
                      "\"layer_matched_sets\": 0,\n"
                      "   \"traffic_matched_sets\": 0, \"max_new_tokens\": 12}]}\n";

static Error error;

static int set_up(void **state) {
    (void)state;
    scratch_write_text("job.json", job_text);
    must_run("whole", NULL, 0);
    open_demo_model();
    return 0;
}

static void read_group(const char *path, int64_t limit, PromptGroup *group) {
    static PromptOptions options;
    PromptFile file = {0};
    assert_true(options_preset(SCOPE_PROMPTS, &options, &pool, &error));
    options.name = "group";
    options.path = path;
    options.limit = limit;
    assert_true(prompts_read(&options, &file, &error));
    if (!prompts_encode(&encoder, &options, (EncodeNeeds){.target = true}, &file, group, &error))
        fail_msg("%s", error.text);
}

/* ---- the model, one text at a time ---- */
/* Mean of -log p of the tokens [begin, n), from the logits of a pass of this text alone. */
static double score_by_logits(const int32_t *tokens, int64_t begin, int64_t n, const PassOptions *more) {
    const int64_t offsets[] = {0, n}, V = model.config.vocab_size;
    PromptBatch batch = {1, offsets, tokens};
    PassOptions options = *more;
    options.want_logits = true;
    PassResult result;
    if (!model_pass(&model, &batch, &options, NULL, &result, &error)) fail_msg("%s", error.text);
    double sum = 0;
    for (int64_t t = begin; t < n; t++) {
        const float *row = result.logits + (t - 1) * V;
        double most = row[0], all = 0;
        for (int64_t v = 0; v < V; v++) most = fmax(most, row[v]);
        for (int64_t v = 0; v < V; v++) all += exp(row[v] - most);
        sum += most + log(all) - row[tokens[t]];
    }
    pass_result_free(&result);
    return sum / (double)(n - begin);
}

static void near(double got, double want, const char *what) {
    if (!(fabs(got - want) <= 2e-5 * (1 + fabs(want))))
        fail_msg("%s: expected %.9g: got %.9g", what, want, got);
}

/* The tokens of a line of responses, put behind `to`; how many. */
static int64_t read_tokens(const char *line, int32_t *to) {
    const char *at = strstr(line, "\"tokens\": [") + 11;
    int64_t n = 0;
    for (; *at != ']'; at += strspn(at, ", ")) {
        char *end;
        to[n++] = (int32_t)strtol(at, &end, 10);
        at = end;
    }
    return n;
}

static double read_number(const char *line, const char *key) {
    const char *at = strstr(line, key);
    if (!at) fail_msg("expected %s: got %.200s", key, line);
    return strtod(at + strlen(key), NULL);
}

/* ---- likelihood of replies ---- */
static void check_replies(const char *file, int64_t *n_checked) {
    PromptGroup group;
    char *lines = read_file(file, NULL);
    const char *line = lines;
    read_group(DEMO "prompts/test_restricted.jsonl", 5, &group);
    for (int64_t p = 0; p < group.n; p++, line = strchr(line, '\n') + 1, ++*n_checked) {
        int32_t tokens[512];
        int64_t n = group.prompts[p].n_prompt;
        memcpy(tokens, group.prompts[p].tokens, (size_t)n * sizeof *tokens);
        const int64_t n_reply = read_tokens(line, tokens + n);
        near(read_number(line, "\"nll\": "), score_by_logits(tokens, n, n + n_reply, &(PassOptions){0}),
             file);
    }
    prompt_group_free(&group);
    mem_free(lines);
}

static void the_unedited_model_scores_every_reply(void **state) {
    (void)state;
    int64_t n = 0;
    check_replies("whole/edit/responses/baseline.jsonl", &n);
    check_replies("whole/edit/responses/act.top3.jsonl", &n);
    check_replies("whole/edit/responses/random.top3.0.jsonl", &n);
    assert_int_equal(n, 15);
}

static void read_labels(const char *out, Csv *csv) {
    char name[100];
    snprintf(name, sizeof name, "%s/labels.csv", out);
    if (!csv_read(scratch_path(name), 1 << 20, csv, &error)) fail_msg("%s", error.text);
}

static const char *field(const Csv *csv, int64_t row, const char *column) {
    int64_t c;
    if (!csv_need_column(csv, column, &c, &error)) fail_msg("%s", error.text);
    return csv_field(csv, row, c).text;
}

static bool judge(const char *folder, double limit, int reference) {
    const JudgeFolder request = {.folder = scratch_path(folder),
                                 .resamples = 50,
                                 .perplexity_limit = limit,
                                 .perplexity_reference = reference};
    error = (Error){0};
    return judge_folder(&request, &error);
}

/* Every reply beyond the limit is degraded for that, no other; the reference is the baseline's largest. */
static void perplexity_degrades_beyond_its_limit(void **state) {
    (void)state;
    static const double limits[] = {0, 0.9, 1, 3};
    for (int i = 0; i < 4; i++) {
        Csv csv = {0};
        double largest = 0;
        int n_degraded = 0, n_beyond = 0;
        if (!judge("whole/edit", limits[i], PERPLEXITY_LARGEST)) fail_msg("%s", error.text);
        read_labels("whole/edit", &csv);
        assert_int_equal(csv.n_rows, 27);
        for (int64_t r = 0; r < 9; r++) {
            assert_string_equal(field(&csv, r, "condition"), "baseline");
            largest = fmax(largest, strtod(field(&csv, r, "perplexity"), NULL));
        }
        assert_true(largest > 1);
        for (int64_t r = 0; r < csv.n_rows; r++) {
            const double perplexity = strtod(field(&csv, r, "perplexity"), NULL);
            const bool unlikely = !strcmp(field(&csv, r, "why"), "perplexity"),
                       degraded = !strcmp(field(&csv, r, "label"), "degraded");
            assert_true(perplexity >= 1);
            if (unlikely) assert_true(degraded);
            if (limits[i] > 0 && perplexity > limits[i] * largest) assert_true(degraded), n_beyond++;
            if (limits[i] == 0 || perplexity <= limits[i] * largest) assert_false(unlikely);
            n_degraded += unlikely;
        }
        assert_true(i != 1 || (n_degraded > 0 && n_beyond > 0));
        assert_true(i || !n_degraded);
        csv_free(&csv);
        char *facts = read_file("whole/edit/judge.json", NULL);
        near(read_number(facts, "\"value\": "), largest, "judge.json");
        mem_free(facts);
    }
    assert_true(judge("whole/edit", 0, PERPLEXITY_LARGEST));
}

/* Folders without it are judged, and say so; a limit is refused there. */
static void perplexity_may_be_absent(void **state) {
    (void)state;
    static const char *const sets[] = {"steps.edit.reply_perplexity=false"};
    must_run("without", sets, 1);
    char *lines = read_file("without/edit/responses/baseline.jsonl", NULL),
         *facts = read_file("without/edit/judge.json", NULL);
    assert_null(strstr(lines, "nll"));
    assert_non_null(
        strstr(facts, "\"value\": null, \"reason\": \"not defined: the baseline's replies have no nll\""));
    mem_free(lines);
    mem_free(facts);
    Csv csv = {0};
    read_labels("without/edit", &csv);
    for (int64_t r = 0; r < csv.n_rows; r++) assert_string_equal(field(&csv, r, "perplexity"), "");
    csv_free(&csv);
    assert_false(judge("without/edit", 2, PERPLEXITY_ABSOLUTE));
    assert_non_null(strstr(error.text, "responses/baseline.jsonl: expected nll of every reply, which "
                                       "perplexity_limit compares: got none of \"test-restricted-001\""));
}

/* ---- side effects ---- */
/* Sets of edits of a prompt's tokens and of those behind it: set 0 masks the cells of the condition. */
static double score_edited(const EncodedPrompt *prompt, bool target, const EditTable *edits, bool edit_prompt,
                           bool edit_behind) {
    int32_t sets[512];
    int64_t n = prompt->n_prompt + prompt->n_target;
    for (int64_t t = 0; t < n; t++) sets[t] = (t < prompt->n_prompt ? edit_prompt : edit_behind) ? 0 : -1;
    return score_by_logits(prompt->tokens, target ? prompt->n_prompt : 1, target ? n : prompt->n_prompt,
                           &(PassOptions){.edits = edits, .token_edits = edits ? sets : NULL});
}

static void read_edits(const char *out, const char *condition, EditTable *edits) {
    char name[100];
    Csv csv = {0};
    snprintf(name, sizeof name, "%s/edit/cells.csv", out);
    assert_true(csv_read(scratch_path(name), 1 << 20, &csv, &error));
    assert_true(edit_table_make(&model.config, 1, edits, &error));
    for (int64_t r = 0; r < csv.n_rows; r++)
        if (!strcmp(field(&csv, r, "condition"), condition))
            assert_true(edit_table_put(edits, &model.config, 0,
                                       (CellEdit){.layer = strtol(field(&csv, r, "layer"), NULL, 10),
                                                  .expert = strtol(field(&csv, r, "expert"), NULL, 10),
                                                  .mode = EDIT_MASK},
                                       &error));
    csv_free(&csv);
}

/* Row `condition`, `group` of a table against passes of one text each. */
static void check_effects(const char *out, bool targets, const char *group_name, const char *path,
                          bool edit_prompt, bool edit_behind) {
    char name[100];
    Csv csv = {0};
    PromptGroup group;
    EditTable edits;
    double before = 0, after = 0;
    int64_t n_tokens = 0, n_rows = 0;
    read_group(path, !strcmp(group_name, "t") ? 5 : 4, &group);
    read_edits(out, "random.top3.0", &edits);
    for (int64_t p = 0; p < group.n; p++) {
        const EncodedPrompt *prompt = &group.prompts[p];
        before += score_edited(prompt, targets, NULL, false, false) / (double)group.n;
        after += score_edited(prompt, targets, &edits, edit_prompt, edit_behind) / (double)group.n;
        n_tokens += targets ? prompt->n_target : prompt->n_prompt - 1;
    }
    snprintf(name, sizeof name, "%s/edit/side_effects%s.csv", out, targets ? "_targets" : "");
    if (!csv_read(scratch_path(name), 1 << 20, &csv, &error)) fail_msg("%s", error.text);
    for (int64_t r = 0; r < csv.n_rows; r++) {
        if (strcmp(field(&csv, r, "condition"), "random.top3.0") ||
            strcmp(field(&csv, r, "group"), group_name))
            continue;
        const double change = strtod(field(&csv, r, "change"), NULL);
        assert_string_equal(field(&csv, r, "kind"), "random");
        assert_int_equal(strtol(field(&csv, r, "prompts"), NULL, 10), group.n);
        assert_int_equal(strtol(field(&csv, r, "tokens"), NULL, 10), n_tokens);
        near(strtod(field(&csv, r, "nll_before"), NULL), before, "nll_before");
        near(strtod(field(&csv, r, "nll_after"), NULL), after, "nll_after");
        near(change, after - before, "change");
        near(strtod(field(&csv, r, "perplexity_ratio"), NULL), exp(after - before), "perplexity_ratio");
        assert_true(strtod(field(&csv, r, "low"), NULL) <= change);
        assert_true(strtod(field(&csv, r, "high"), NULL) >= change);
        assert_true(fabs(change) > 1e-4);
        n_rows++;
    }
    assert_int_equal(n_rows, 1);
    edit_table_free(&edits);
    csv_free(&csv);
    prompt_group_free(&group);
}

static void side_effects_are_those_of_one_text(void **state) {
    (void)state;
    check_effects("whole", false, "t", DEMO "prompts/test_restricted.jsonl", true, true);
    check_effects("whole", false, "o", DEMO "prompts/test_ordinary.jsonl", true, true);
    check_effects("whole", true, "o", DEMO "prompts/test_ordinary.jsonl", true, true);
    char *table = read_file("whole/edit/side_effects.csv", NULL);
    assert_non_null(strstr(table, "\nact.top3,selected,t,5,"));
    assert_true(strstr(table, "\nact.top3,selected,t,") < strstr(table, "\nrandom.top3.0,random,t,5,"));
    assert_true(strstr(table, "\nrandom.top3.0,random,t,") < strstr(table, "\nact.top3,selected,o,4,"));
    assert_null(strstr(table, "baseline"));
    mem_free(table);
}

/* What the edits do not touch has no number. */
static void untouched_prompts_are_not_defined(void **state) {
    (void)state;
    static const char *const sets[] = {"steps.edit.applies_to=generated"};
    must_run("generated", sets, 1);
    char *table = read_file("generated/edit/side_effects.csv", NULL);
    assert_non_null(strstr(table,
                           ",,,,,,\"not defined: generated tokens alone are edited, the prompt's stay as "
                           "they are\"\n"));
    mem_free(table);
    check_effects("generated", true, "o", DEMO "prompts/test_ordinary.jsonl", false, true);
    static const char *const prompt[] = {"steps.edit.applies_to=prompt"};
    must_run("prompt", prompt, 1);
    check_effects("prompt", true, "o", DEMO "prompts/test_ordinary.jsonl", true, false);
    static const char *const none[] = {"steps.edit.side_effects=none", "steps.edit.random_sets=0"};
    must_run("none", none, 2);
    assert_false(io_exists(scratch_path("none/edit/side_effects.csv")));
    static const char *const one[] = {"steps.edit.side_effects=prompt", "steps.edit.random_sets=0",
                                      "prompts.t.limit=1"};
    must_run("one", one, 3);
    assert_false(io_exists(scratch_path("one/edit/side_effects_targets.csv")));
    table = read_file("one/edit/side_effects.csv", NULL);
    assert_non_null(strstr(table, "no interval: one prompt"));
    mem_free(table);
}

static void batches_change_no_number(void **state) {
    (void)state;
    static const char *const sets[] = {"batch_prompts=2", "batch_tokens=64"};
    static const char *const files[] = {"side_effects.csv", "side_effects_targets.csv", "labels.csv",
                                        "responses/act.top3.jsonl"};
    must_run("split", sets, 2);
    for (int i = 0; i < 4; i++) {
        char one[100], other[100];
        snprintf(one, sizeof one, "whole/edit/%s", files[i]);
        snprintf(other, sizeof other, "split/edit/%s", files[i]);
        char *a = read_file(one, NULL), *b = read_file(other, NULL);
        assert_string_equal(a, b);
        mem_free(a);
        mem_free(b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_unedited_model_scores_every_reply),
        cmocka_unit_test(perplexity_degrades_beyond_its_limit),
        cmocka_unit_test(perplexity_may_be_absent),
        cmocka_unit_test(side_effects_are_those_of_one_text),
        cmocka_unit_test(untouched_prompts_are_not_defined),
        cmocka_unit_test(batches_change_no_number),
    };
    return cmocka_run_group_tests(tests, set_up, close_demo_model);
}

/* The table of options: presets are values, reading checks them, and what is written reads back as the
 * same. */
#include "../../analysis/options.h"
#include "../../engine/alloc.h"
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

typedef union {
    JobOptions job;
    ModelOptions model;
    PromptOptions prompts;
    StepOptions step;
} Record;

static const Option *find(OptionScope scope, int kind, const char *name) {
    Error error = {0};
    const Option *option = option_find(scope, kind, name, (Json){.file = "test"}, &error);
    if (!option) fail_msg("%s", error.text);
    return option;
}

/* Reads a value; the message must hold `want` when that is not NULL. */
static void read_value(const Option *option, void *record, TextPool *pool, const char *json,
                       const char *want) {
    Error error = {0};
    JsonDocument *document = json_parse(json, strlen(json), "job.json", &error);
    assert_non_null(document);
    bool ok = option_read(option, json_root(document), record, ".", pool, &error);
    if (want && (ok || !strstr(error.text, want)))
        fail_msg("%s: wanted \"%s\": got \"%s\"", json, want, error.text);
    if (!want && !ok) fail_msg("%s: %s", json, error.text);
    json_free(document);
}

static void presets_are_what_the_table_says(void **state) {
    (void)state;
    Error error = {0};
    TextPool pool = {0};
    Record r = {.job = {0}};
    assert_true(options_preset(SCOPE_JOB, &r, &pool, &error));
    assert_int_equal(r.job.batch_tokens, 4096);
    assert_int_equal(r.job.schema_version, 0);
    r = (Record){.model = {0}};
    assert_true(options_preset(SCOPE_MODEL, &r, &pool, &error));
    assert_string_equal(r.model.chat_template, "auto");
    assert_true(r.model.parse_special_in_content);
    assert_null(r.model.path);
    r = (Record){.prompts = {0}};
    assert_true(options_preset(SCOPE_PROMPTS, &r, &pool, &error));
    assert_int_equal(r.prompts.over_long, OVER_LONG_REFUSE);
    r = (Record){.step = {0}};
    assert_true(options_preset(SCOPE_STEP, &r, &pool, &error));
    assert_int_equal(r.step.last_tokens, 1);
    assert_int_equal(r.step.activation_score, SCORE_RATE);
    assert_int_equal(r.step.gradient_score, SCORE_L2);
    assert_true(r.step.top_p == 1);
    assert_int_equal(r.step.groups.n, 0);
    options_free(SCOPE_STEP, &r.step);
    pool_free(&pool);
}

static void values_are_checked(void **state) {
    (void)state;
    TextPool pool = {0};
    Record r = {.job = {0}};
    const Option *tokens = find(SCOPE_JOB, -1, "batch_tokens"), *compute = find(SCOPE_JOB, -1, "compute");
    read_value(tokens, &r, &pool, "7", NULL);
    assert_int_equal(r.job.batch_tokens, 7);
    read_value(tokens, &r, &pool, "0", "expected an integer from 1 to 1000000000: got 0");
    read_value(tokens, &r, &pool, "1.5", "expected an integer");
    read_value(tokens, &r, &pool, "\"7\"", "expected a number: got \"7\"");
    read_value(compute, &r, &pool, "\"bf16\"", NULL);
    assert_int_equal(r.job.compute, COMPUTE_BF16);
    read_value(compute, &r, &pool, "\"f23\"",
               "expected one of auto, f32, bf16: got \"f23\" (did you mean \"f32\"?)");
    r = (Record){.step = {0}};
    const Option *top_p = find(SCOPE_STEP, STEP_GRADIENT, "top_p"),
                 *rows = find(SCOPE_STEP, STEP_GRADIENT, "gate_rows"),
                 *groups = find(SCOPE_STEP, STEP_GRADIENT, "groups");
    read_value(top_p, &r, &pool, "1.5", "expected a number from 0 to 1: got 1.5");
    read_value(rows, &r, &pool, "1", "expected true or false: got 1");
    read_value(groups, &r, &pool, "[\"a\", \"b\"]", NULL);
    assert_int_equal(r.step.groups.n, 2);
    assert_string_equal(r.step.groups.names[1], "b");
    read_value(groups, &r, &pool, "[\"a\", \"a\"]", "expected each name once: got \"a\" again");
    read_value(groups, &r, &pool, "\"a\"", "expected an array of names: got a string");
    mem_free(r.step.groups.names);
    const Option *sizes = find(SCOPE_STEP, STEP_GRADIENT, "top_sets"),
                 *thresholds = find(SCOPE_STEP, STEP_GRADIENT, "thresholds");
    read_value(sizes, &r, &pool, "[2, 30]", NULL);
    assert_true(r.step.top_sets.n == 2 && r.step.top_sets.values[1] == 30);
    read_value(sizes, &r, &pool, "[2, 2.5]", "[1]: expected an integer");
    read_value(sizes, &r, &pool, "[0]", "[0]: expected an integer from 1 to 1000000000: got 0");
    read_value(sizes, &r, &pool, "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]",
               "an array of at most 16 numbers");
    read_value(thresholds, &r, &pool, "[2, 1.5]", "[1]: expected ascending numbers: got 1.5 after 2");
    read_value(thresholds, &r, &pool, "1.5", "expected an array of at most 16 numbers: got a number");
    read_value(thresholds, &r, &pool, "[\"a\"]", "expected a number: got \"a\"");
    r = (Record){.model = {0}};
    read_value(find(SCOPE_MODEL, -1, "path"), &r, &pool, "\"\"", "expected a path: got an empty text");
    pool_free(&pool);
}

static void names_are_found_or_a_near_one_is_named(void **state) {
    (void)state;
    static const struct {
        OptionScope scope;
        int kind;
        const char *name, *want;
    } cases[] = {
        {SCOPE_JOB, -1, "batch_token", "(did you mean \"batch_tokens\"?)"},
        {SCOPE_MODEL, -1, "chat_templte", "(did you mean \"chat_template\"?)"},
        {SCOPE_STEP, STEP_GRADIENT, "tokens",
         "expected an option of kind gradient: got one of kind activation"},
        {SCOPE_STEP, STEP_REPORT, "model", "expected an option of kind report: got one of kind activation"},
        {SCOPE_PROMPTS, -1, "zzzzzzzz", "expected a known option: got \"zzzzzzzz\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error = {0};
        assert_null(option_find(cases[i].scope, cases[i].kind, cases[i].name, (Json){.file = "f"}, &error));
        if (!strstr(error.text, cases[i].want))
            fail_msg("wanted \"%s\": got \"%s\"", cases[i].want, error.text);
    }
    assert_ptr_not_equal(find(SCOPE_STEP, STEP_ACTIVATION, "score"),
                         find(SCOPE_STEP, STEP_GRADIENT, "score"));
}

/* Every option of the table, with its preset, comes back from its own writing. */
static void what_is_written_reads_back(void **state) {
    (void)state;
    for (int64_t i = 0; i < n_options; i++) {
        const Option *option = &option_table[i];
        if (!option->preset) continue;
        TextPool pool = {0};
        Text first = {0}, again = {0};
        Record a = {.step = {0}}, b = {.step = {0}};
        read_value(option, &a, &pool, option->preset, NULL);
        option_write(option, &a, &first);
        char json[400];
        const char *colon = strstr(first.bytes, ": ");
        snprintf(json, sizeof json, "%s", colon + 2);
        read_value(option, &b, &pool, json, NULL);
        option_write(option, &b, &again);
        assert_string_equal(first.bytes, again.bytes);
        if (option->type == OPTION_NAMES) {
            mem_free(*(void **)((char *)&a + option->offset));
            mem_free(*(void **)((char *)&b + option->offset));
        }
        text_free(&first);
        text_free(&again);
        pool_free(&pool);
    }
}

static void help_names_every_option(void **state) {
    (void)state;
    Text help = {0};
    options_document(&help);
    assert_false(help.failed);
    for (int64_t i = 0; i < n_options; i++) {
        char line[100];
        snprintf(line, sizeof line, "\n  %s", option_table[i].name);
        if (!strstr(help.bytes, line) || !strstr(help.bytes, option_table[i].help))
            fail_msg("%s is not in the help", option_table[i].name);
    }
    text_free(&help);
}

static void choices_have_their_names(void **state) {
    (void)state;
    assert_string_equal(option_choice("tokens", SCOPE_STEP, COUNT_PROMPT_GENERATED), "prompt+generated");
    assert_string_equal(option_choice("loss", SCOPE_STEP, LOSS_GENERATED), "generated");
    assert_string_equal(option_choice("over_long", SCOPE_PROMPTS, OVER_LONG_SKIP), "skip");
    assert_string_equal(option_choice("use", SCOPE_PROMPTS, USE_TESTING), "testing");
    assert_string_equal(option_choice("recompute", SCOPE_STEP, 2), "never");
    for (const char *const *choice = step_kind_names; *choice; choice++) assert_true(strlen(*choice) > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(presets_are_what_the_table_says),
        cmocka_unit_test(values_are_checked),
        cmocka_unit_test(names_are_found_or_a_near_one_is_named),
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(help_names_every_option),
        cmocka_unit_test(choices_have_their_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

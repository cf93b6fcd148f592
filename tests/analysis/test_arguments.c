/* The command line: flags in both spellings, and what is said of wrong ones. */
#include "tests/engine/scratch.h"
#include "analysis/arguments.h"

static const Flag flags[] = {
    {"--out", "FOLDER", "where", false},
    {"--set", "a=b", "an option", true},
    {"--dry-run", NULL, "only say", false},
    {0},
};
static const Verb verbs[] = {
    {"run", "JOB", "runs", NULL, flags, NULL},
    {"report", "FOLDER", "reports", NULL, NULL, NULL},
    {"options", NULL, "lists", NULL, NULL, NULL},
    {"diff", "RUN RUN", "compares", NULL, NULL, NULL},
    {0},
};

enum { MAX_WORDS = 12 };

static bool read_words(const Verb *verb, const char *words, Arguments *arguments, Error *error) {
    static char copy[400], *texts[MAX_WORDS];
    int n = 0;
    snprintf(copy, sizeof copy, "%s", words);
    for (char *word = strtok(copy, " "); word && n < MAX_WORDS; word = strtok(NULL, " ")) texts[n++] = word;
    *error = (Error){0};
    return arguments_read(verb, n, texts, arguments, error);
}

static void test_flags(void **state) {
    (void)state;
    Arguments a;
    Error error;
    assert_true(read_words(&verbs[0], "--set x=1 job.json --out=there --set y=2 --dry-run", &a, &error));
    assert_string_equal(a.operand, "job.json");
    assert_string_equal(arguments_value(&a, "--out", "else"), "there");
    const char *sets[MAX_ARGUMENTS];
    assert_int_equal(arguments_values(&a, "--set", sets), 2);
    assert_string_equal(sets[0], "x=1");
    assert_string_equal(sets[1], "y=2");
    assert_true(arguments_have(&a, "--dry-run"));
    assert_true(read_words(&verbs[0], "-- --odd-name.json", &a, &error));
    assert_string_equal(a.operand, "--odd-name.json");
    assert_false(arguments_have(&a, "--dry-run"));
    assert_string_equal(arguments_value(&a, "--out", "else"), "else");
    assert_true(read_words(&verbs[0], "--help", &a, &error) && a.help);
}

static void test_refused(void **state) {
    (void)state;
    static const struct {
        int verb;
        const char *words, *said;
    } cases[] = {
        {0, "", "run: expected JOB: got nothing"},
        {0, "a b", "run: expected one JOB: got \"b\" too"},
        {3, "a", "diff: expected RUN RUN: got one"},
        {3, "a b c", "diff: expected RUN RUN: got \"c\" too"},
        {2, "a", "options: expected no operand: got \"a\" too"},
        {0, "a --outt x", "got --outt (did you mean --out?)"},
        {1, "a --out x", "report: expected a flag of this verb: got --out"},
        {0, "a --out", "--out: expected FOLDER behind it: got nothing"},
        {0, "a --out x --out y", "--out: expected once"},
        {0, "a --dry-run=yes", "--dry-run: expected no value: got yes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Arguments a;
        Error error;
        assert_false(read_words(&verbs[cases[i].verb], cases[i].words, &a, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, cases[i].said);
    }
}

static void test_numbers(void **state) {
    (void)state;
    static const char *const wrong[] = {"--out=",   "--out=1x", "--out=-",  "--out= 1",
                                        "--out=11", "--out=-1", "--out=1e1"};
    Arguments a;
    Error error;
    int64_t n = 5;
    double x = 5;
    assert_true(read_words(&verbs[0], "a", &a, &error) && arguments_integer(&a, "--out", 0, 10, &n, &error));
    assert_int_equal(n, 5);
    assert_true(read_words(&verbs[0], "a --out 10", &a, &error) &&
                arguments_integer(&a, "--out", 0, 10, &n, &error));
    assert_int_equal(n, 10);
    assert_true(read_words(&verbs[0], "a --out .5", &a, &error) &&
                arguments_number(&a, "--out", 0, 1, &x, &error));
    assert_true(x == 0.5);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        a = (Arguments){.verb = &verbs[0], .n = 1};
        a.given[0].flag = &flags[0];
        a.given[0].value = wrong[i] + 6;
        error = (Error){0};
        assert_false(arguments_integer(&a, "--out", 0, 10, &n, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        error = (Error){0};
        if (strcmp(wrong[i], "--out=1e1") != 0)
            assert_false(arguments_number(&a, "--out", 0, 10, &x, &error));
    }
}

static void test_verbs(void **state) {
    (void)state;
    Error error = {0};
    assert_ptr_equal(verb_find(verbs, "report", &error), &verbs[1]);
    assert_null(verb_find(verbs, "reprot", &error));
    assert_contains(error.text, "expected a verb: got \"reprot\" (did you mean report?)");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_flags), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_numbers), cmocka_unit_test(test_verbs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

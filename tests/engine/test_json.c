/* Strict JSON: what must pass, what must not and with which words, getters and places, memory that runs out.
 *
 * The lists follow the public JSON test suites' naming: every text of `accepted` parses, none of `refused`
 * does. */
#include "tests/engine/scratch.h"
#include "engine/json.h"
#include <errno.h>
#include <time.h>

#define TEXT(s) s, sizeof(s) - 1

static const struct {
    const char *text;
    size_t length;
} accepted[] = {
    {TEXT("{}")},
    {TEXT("[]")},
    {TEXT(" \t\r\n[] \t\r\n")},
    {TEXT("null")},
    {TEXT("true")},
    {TEXT("false")},
    {TEXT("0")},
    {TEXT("-0")},
    {TEXT("-1.5e+10")},
    {TEXT("[1E22,1e-2,0e1,0.5,123456789012345678901234567890]")},
    {TEXT("[-0.000000000000000000000000000000000000000000000000000000000000000000000000000001]")},
    {TEXT("[1000000000000000000000000000000000000000000000000000000000000000000000000000000000]")},
    {TEXT("\"\"")},
    {TEXT("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"")},
    {TEXT("\"\\u00e9\\uD834\\uDD1E\"")},
    {TEXT("\"\xc3\xa9\xe2\x82\xac\xf0\x9d\x84\x9e\x7f\"")},
    {TEXT("\"\\\\u0000\"")},
    {TEXT("\"\\u0001\"")},
    {TEXT("{\"a\":1,\"A\":2,\"\":3,\"a.b\":{\"a\":1}}")},
    {TEXT("{\"\\u0061b\":1,\"a\\u0062c\":2}")},
    {TEXT("[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["
          "]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]")},
};

static const struct {
    const char *text;
    size_t length;
    const char *says; /* place and reason */
} refused[] = {
    {TEXT(""), "t:1:1: expected JSON: got the end"},
    {TEXT("   "), "got the end"},
    {TEXT("\xef\xbb\xbf{}"), "t:1:1: expected JSON: got a byte order mark"},
    {TEXT("{} x"), "t:1:4: expected JSON: got a word"},
    {TEXT("{}\n {}"), "t:2:2: expected JSON: got text after the value"},
    {TEXT("1 2"), "text after the value"},
    {TEXT("[1,2"), "got the end of the text too early"},
    {TEXT("{\"a\":"), "got the end of the text too early"},
    {TEXT("\"abc"), "a string without end"},
    {TEXT("\"abc\\"), "a string without end"},
    {TEXT("\"abc\\\""), "a string without end"},
    {TEXT("[1,]"), "t:1:"},
    {TEXT("[,1]"), "t:1:2"},
    {TEXT("[1 2]"), "t:1:"},
    {TEXT("{\"a\" 1}"), "t:1:"},
    {TEXT("{\"a\":1,}"), "t:1:"},
    {TEXT("{a:1}"), "t:1:2: expected JSON: got a word"},
    {TEXT("{'a':1}"), "t:1:2"},
    {TEXT("{1:1}"), "t:1:"},
    {TEXT("[1}"), "t:1:"},
    {TEXT("]"), "t:1:"},
    {TEXT("{\"a\":1,\n \"a\":2}"), "t: expected each key once: got \"a\" twice"},
    {TEXT("{\"x\":[0,{\"ab\":1,\"\\u0061b\":2}]}"), "t: x[1]: expected each key once: got \"ab\" twice"},
    {TEXT("\"a\\u0000b\""), "t:1:3: expected JSON: got \\u0000 in a string"},
    {TEXT("{\"a\\u0000\":1}"), "\\u0000 in a string"},
    {TEXT("\"\\\\\\u0000\""), "\\u0000 in a string"},
    {"\"a\0b\"", 5, "a control character in a string"},
    {"{}\0", 3, "t:1:3: expected JSON: got a NUL byte"},
    {TEXT("\"a\nb\""), "t:1:3: expected JSON: got a control character in a string"},
    {TEXT("\"\x01\""), "a control character in a string"},
    {TEXT("[\x0c 1]"), "t:1:2"},
    {TEXT("[\x01 1]"), "t:1:2"},
    {TEXT("\"\xff\""), "t:1:2: expected JSON: got invalid UTF-8"},
    {TEXT("\"\xc0\x80\""), "invalid UTF-8"},
    {TEXT("\"\xed\xa0\x80\""), "invalid UTF-8"},
    {TEXT("\"\\uD834\""), "t:1:"},
    {TEXT("\"\\uDD1E\""), "t:1:"},
    {TEXT("\"\\uD834\\uD834\""), "t:1:"},
    {TEXT("\"\\u00g0\""), "t:1:2: expected JSON: got a malformed \\u escape"},
    {TEXT("\"\\u12\""), "a malformed \\u escape"},
    {TEXT("\"\\u12"), "a malformed \\u escape"},
    {TEXT("\"\\x\""), "t:1:"},
    {TEXT("[1e999]"), "t: [0]: expected a finite number"},
    {TEXT("{\"a\":-1e999}"), "t: a: expected a finite number"},
    {TEXT("{\"a\":1e99999999999999999999999999999999999999999999999999999999999999999}"),
     "expected a finite"},
    {TEXT("01"), "t:1:1: expected JSON: got a malformed number"},
    {TEXT("[-01]"), "a malformed number"},
    {TEXT("[1.]"), "a malformed number"},
    {TEXT("[.5]"), "t:1:2"},
    {TEXT("[+1]"), "t:1:2"},
    {TEXT("[-]"), "a malformed number"},
    {TEXT("[1e]"), "a malformed number"},
    {TEXT("[1e+]"), "a malformed number"},
    {TEXT("[1.5.5]"), "a malformed number"},
    {TEXT("[0x10]"), "t:1:"},
    {TEXT("[NaN]"), "t:1:2: expected JSON: got a word"},
    {TEXT("[Infinity]"), "a word that is not"},
    {TEXT("[-Infinity]"), "a malformed number"},
    {TEXT("[TRUE]"), "a word that is not"},
    {TEXT("[nul]"), "a word that is not"},
    {TEXT("[truefalse]"), "a word that is not"},
    {TEXT("[1] // x"), "t:1:5"},
    {TEXT("/* x */ 1"), "t:1:1"},
    {TEXT("[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["
          "]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]"),
     "t:1:65: expected JSON: got nesting deeper than 64"},
};

/* From memory of exactly the text's size, so that a read beyond it is caught by the sanitizer. */
static JsonDocument *parse(const char *text, size_t length, Error *error) {
    char *exact = malloc(length ? length : 1);
    memcpy(exact, text, length);
    JsonDocument *document = json_parse(exact, length, "t", error);
    free(exact);
    return document;
}

static void test_accepts(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) {
        Error error = {0};
        JsonDocument *document = parse(accepted[i].text, accepted[i].length, &error);
        if (!document) fail_msg("%s: %s", accepted[i].text, error.text);
        json_free(document);
    }
}

static void test_refuses_with_words(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        Error error = {0};
        JsonDocument *document = parse(refused[i].text, refused[i].length, &error);
        if (document) fail_msg("accepted: %s", refused[i].text);
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, refused[i].says);
    }
}

static void test_every_prefix_is_refused(void **state) {
    (void)state;
    static const char whole[] = "{\"a\":[1.5e3,true,null,\"x\\u00e9\\\\\"],\"b\":{\"c\":false}}";
    for (size_t n = 0; n < sizeof whole - 1; n++) {
        Error error = {0};
        JsonDocument *document = parse(whole, n, &error);
        if (document) fail_msg("accepted %.*s", (int)n, whole);
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, "t:1:");
    }
}

static void test_numbers(void **state) {
    (void)state;
    static const char text[] =
        "[9007199254740991, 9007199254740993e3, 1.5, -3, 2147483648, 0.1, 1000000000000000019884624838656,"
        " 0.100000000000000005551115123125782702118158340454101562500000000000000000000000000000, 7]";
    Error error = {0};
    JsonDocument *document = parse(text, sizeof text - 1, &error);
    assert_non_null(document);
    Json root = json_root(document), at = {0};
    static const double expected[] = {9007199254740991.0,
                                      9007199254740993e3,
                                      1.5,
                                      -3,
                                      2147483648.0,
                                      0.1,
                                      1000000000000000019884624838656.0,
                                      0.1,
                                      7};
    for (size_t i = 0; json_next(&root, &at); i++) {
        double value;
        assert_true(json_number(at, &value, &error));
        if (value != expected[i]) fail_msg("[%zu]: %.17g", i, value);
        int64_t integer;
        Error refusal = {0};
        bool whole = i == 0 || i == 3 || i == 4 || i == 8;
        assert_int_equal(json_integer(at, INT64_MIN, INT64_MAX, &integer, &refusal), whole);
        if (whole) assert_true((double)integer == expected[i]);
        if (!whole) assert_contains(refusal.text, "expected an integer from");
    }
    json_free(document);
}

static void test_getters_name_the_place(void **state) {
    (void)state;
    static const char text[] =
        "{\"steps\":[{\"kind\":\"count\"},{\"kind\":7,\"n\":99,\"on\":true,\"o\":{\"p\":null}}]}";
    Error error = {0};
    JsonDocument *document = json_parse(text, sizeof text - 1, "job.json", &error);
    Json root = json_root(document), steps = json_member(&root, "steps"), step = {0};
    json_next(&steps, &step);
    Json first = step;
    json_next(&steps, &step);
    const char *string;
    bool flag;
    double number;
    int64_t integer;
    assert_true(json_string(json_member(&first, "kind"), &string, &error));
    assert_string_equal(string, "count");
    assert_true(json_bool(json_member(&step, "on"), &flag, &error) && flag);
    assert_true(json_integer(json_member(&step, "n"), 0, 99, &integer, &error) && integer == 99);
    assert_int_equal(json_count(steps), 2);
    assert_int_equal(json_count(step), 4);

    struct {
        bool fine;
        Error error;
        const char *says;
    } cases[6] = {{.says = "job.json: steps[1].kind: expected a string: got 7"},
                  {.says = "job.json: steps[1].n: expected an integer from 1 to 98: got 99"},
                  {.says = "job.json: steps[1].KIND: expected a string: got nothing"},
                  {.says = "job.json: steps[0].kind: expected a number: got \"count\""},
                  {.says = "job.json: steps[1].o: expected true or false: got an object"},
                  {.says = "job.json: steps[1].o.p: expected a string: got null"}};
    Json inner = json_member(&step, "o");
    cases[0].fine = json_string(json_member(&step, "kind"), &string, &cases[0].error);
    cases[1].fine = json_integer(json_member(&step, "n"), 1, 98, &integer, &cases[1].error);
    cases[2].fine = json_string(json_member(&step, "KIND"), &string, &cases[2].error);
    cases[3].fine = json_number(json_member(&first, "kind"), &number, &cases[3].error);
    cases[4].fine = json_bool(inner, &flag, &cases[4].error);
    cases[5].fine = json_string(json_member(&inner, "p"), &string, &cases[5].error);
    for (size_t i = 0; i < 6; i++) {
        assert_false(cases[i].fine);
        assert_string_equal(cases[i].error.text, cases[i].says);
    }
    json_free(document);
}

static void test_nearest_name(void **state) {
    (void)state;
    static const char *const known[] = {"activation", "gradient", "generate", "report"};
    assert_string_equal(json_nearest("activations", known, 4), "activation");
    assert_string_equal(json_nearest("gradeint", known, 4), "gradient");
    assert_null(json_nearest("zzzzzzzzzzz", known, 4));
}

/* A vocabulary of 400,000 keys: no step may be quadratic. */
static void test_large_objects_take_linear_time(void **state) {
    (void)state;
    enum { N = 400000 };
    char *text = malloc(N * 24 + 16);
    size_t length = 1;
    text[0] = '{';
    for (int i = 0; i < N; i++)
        length += (size_t)sprintf(text + length, "%s\"token %d\":%d", i ? "," : "", (int)(i * 7919LL % N), i);
    text[length++] = '}';
    Error error = {0};
    clock_t begin = clock();
    JsonDocument *document = json_parse(text, length, "t", &error);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    assert_non_null(document);
    assert_int_equal(json_count(json_root(document)), N);
    json_free(document);
    if (seconds > 10) fail_msg("%.1f s", seconds);
    text[length - 1] = ',';
    length += (size_t)sprintf(text + length, "\"token 5\":1}");
    assert_null(json_parse(text, length, "t", &error));
    assert_contains(error.text, "got \"token 5\" twice");
    free(text);
}

static bool parse_sample(void *context, Error *error) {
    const char *text = context;
    JsonDocument *document = json_parse(text, strlen(text), "sample", error);
    json_free(document);
    return document != NULL;
}

static bool read_sample(void *context, Error *error) {
    JsonDocument *document = json_read(context, 1000, error);
    json_free(document);
    return document != NULL;
}

static void test_each_allocation_and_file_call_fails(void **state) {
    (void)state;
    char text[] = "{\"a\":[1.5e3,true,null,\"x\\u00e9\"],\"b\":{\"c\":[{},[]]},\"n\":"
                  "0.000000000000000000000000000000000000000000000000000000000000000000000000000001}";
    assert_true(fail_each_allocation(parse_sample, text) > 30);
    char path[512];
    snprintf(path, sizeof path, "%s", scratch_write_text("sample.json", text));
    fail_each_allocation(read_sample, path);
    fail_each_file_call(read_sample, path, EIO);
    fail_each_file_call(read_sample, path, EMFILE);
    Error error = {0};
    char big[1002] = "";
    memset(big, 32, 1001);
    snprintf(path, sizeof path, "%s", scratch_write_text("big.json", big));
    assert_false(read_sample(path, &error));
    assert_contains(error.text, "expected at most 1000 bytes: got 1001");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepts),
        cmocka_unit_test(test_refuses_with_words),
        cmocka_unit_test(test_every_prefix_is_refused),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_getters_name_the_place),
        cmocka_unit_test(test_nearest_name),
        cmocka_unit_test(test_large_objects_take_linear_time),
        cmocka_unit_test(test_each_allocation_and_file_call_fails),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

/* The CSV reader: what RFC 4180 says, and every way in which a file can break it. */
#include "tests/engine/scratch.h"
#include "analysis/csv.h"
#include "engine/text.h"
#include <errno.h>

static Csv parse(const char *text) {
    Csv csv;
    Error error = {0};
    if (!csv_parse(text, strlen(text), "t.csv", &csv, &error)) fail_msg("%s", error.text);
    return csv;
}

static void assert_field(const Csv *csv, int64_t row, int64_t column, const char *text) {
    assert_string_equal(csv_field(csv, row, column).text, text);
    assert_int_equal(csv_field(csv, row, column).length, strlen(text));
}

static void assert_refused(const char *text, size_t length, const char *part) {
    Csv csv;
    Error error = {0};
    assert_false(csv_parse(text, length, "t.csv", &csv, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, "t.csv");
    assert_contains(error.text, part);
    csv_free(&csv);
}

static void test_plain(void **state) {
    (void)state;
    Csv csv = parse("id,prompt\n1,one\n2,two\n");
    assert_int_equal(csv.n_columns, 2);
    assert_int_equal(csv.n_rows, 2);
    assert_int_equal(csv_find_column(&csv, "prompt"), 1);
    assert_int_equal(csv_find_column(&csv, "Prompt"), -1);
    assert_field(&csv, 0, 1, "one");
    assert_field(&csv, 1, 0, "2");
    csv_free(&csv);
}

static void test_quotes_lines_and_ends(void **state) {
    (void)state;
    Csv csv = parse("\xef\xbb\xbf"
                    "a,b\r\n\"x, \"\"y\"\"\r\nz\",\"\"\r\n,last");
    assert_int_equal(csv_find_column(&csv, "a"), 0);
    assert_int_equal(csv.n_rows, 2);
    assert_field(&csv, 0, 0, "x, \"y\"\r\nz");
    assert_field(&csv, 0, 1, "");
    assert_field(&csv, 1, 0, "");
    assert_field(&csv, 1, 1, "last");
    assert_int_equal(csv.lines[0], 2);
    assert_int_equal(csv.lines[1], 4);
    csv_free(&csv);
}

static void test_header_alone_and_one_column(void **state) {
    (void)state;
    Csv csv = parse("a");
    assert_int_equal(csv.n_rows, 0);
    csv_free(&csv);
    csv = parse("a\n\nx\n");
    assert_int_equal(csv.n_rows, 2);
    assert_field(&csv, 0, 0, "");
    csv_free(&csv);
}

static void test_many_rows(void **state) {
    (void)state;
    Text text = {0};
    text_put_string(&text, "a,b,c\n");
    for (int i = 0; i < 5000; i++) text_format(&text, "%d,\"q\"\"%d\",\n", i, i);
    Csv csv = parse(text.bytes);
    assert_int_equal(csv.n_rows, 5000);
    assert_field(&csv, 4321, 1, "q\"4321");
    csv_free(&csv);
    text_free(&text);
}

static void test_refused(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"", "expected a header line: got an empty file"},
        {"a,b\n1\n", "t.csv:2: expected 2 fields as in the header: got 1"},
        {"a,b\n1,2\n1,2,3\n", "t.csv:3: expected 2 fields as in the header: got 3"},
        {"a,a\n", "expected unique column names: got a twice"},
        {"a,\n", "expected a name for column 2"},
        {"a\n\"x", "t.csv:2: expected a closing quote"},
        {"a\n\"x\"y\n", "t.csv:2: expected a comma or line end after a closing quote"},
        {"a\nx\"y\n", "expected quotes around a field that contains a quote"},
        {"a\nx\ry\n", "expected a line feed after a carriage return"},
        {"a\n\xff\n", "byte 2: expected UTF-8: got 0xff"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_refused(cases[i][0], strlen(cases[i][0]), cases[i][1]);
    assert_refused("a\nx\0y\n", 6, "byte 3: expected text: got NUL");
}

static void test_numbers(void **state) {
    (void)state;
    Csv csv = parse("n\n1.5\n-2e3\ninf\nnan\n0x10\n1 \n\n7\n9223372036854775808\n");
    Error error = {0};
    double value;
    int64_t whole;
    assert_true(csv_number(&csv, 0, 0, &value, &error) && value == 1.5);
    assert_true(csv_number(&csv, 1, 0, &value, &error) && value == -2000);
    for (int64_t row = 2; row < 7; row++) {
        error = (Error){0};
        assert_false(csv_number(&csv, row, 0, &value, &error));
        assert_contains(error.text, "column n: expected a number");
    }
    error = (Error){0};
    assert_true(csv_integer(&csv, 7, 0, 0, 7, &whole, &error) && whole == 7);
    assert_false(csv_integer(&csv, 7, 0, 0, 6, &whole, &error));
    assert_contains(error.text, "t.csv:9: column n: expected an integer from 0 to 6: got \"7\"");
    error = (Error){0};
    assert_false(csv_integer(&csv, 8, 0, 0, INT64_MAX, &whole, &error));
    error = (Error){0};
    assert_false(csv_need_column(&csv, "m", &whole, &error));
    assert_contains(error.text, "expected a column m: got n");
    csv_free(&csv);
}

static bool read_again(void *path, Error *error) {
    Csv csv;
    bool ok = csv_read(path, 1000, &csv, error);
    csv_free(&csv);
    return ok;
}

static void test_faults(void **state) {
    (void)state;
    char path[512];
    snprintf(path, sizeof path, "%s", scratch_write_text("f.csv", "a,b\n1,2\n\"3\",4\n"));
    assert_true(fail_each_allocation(read_again, path) > 8);
    assert_true(fail_each_file_call(read_again, path, EIO) > 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),     cmocka_unit_test(test_quotes_lines_and_ends),
        cmocka_unit_test(test_refused),   cmocka_unit_test(test_header_alone_and_one_column),
        cmocka_unit_test(test_many_rows), cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

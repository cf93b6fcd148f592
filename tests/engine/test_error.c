/* Error: the first one stays, places come before it, and what files put into it stays one line of UTF-8. */
#include "tests/engine/scratch.h"
#include "engine/text.h"

static void test_first_error_stays(void **state) {
    (void)state;
    Error error = {0};
    assert_false(error_set(&error, ERROR_BAD_INPUT, "%s: expected %d: got %d", "a.json", 1, 2));
    assert_false(error_set(&error, ERROR_FAILED, "later"));
    assert_string_equal(error.text, "a.json: expected 1: got 2");
    assert_int_equal(error.code, ERROR_BAD_INPUT);
}

static void test_places_come_before(void **state) {
    (void)state;
    Error error = {0};
    assert_false(error_add_place(&error, "nowhere"));
    assert_int_equal(error.code, ERROR_NONE);
    error_set(&error, ERROR_FAILED, "expected this");
    error_add_place(&error, "tensor %d", 7);
    error_add_place(&error, "file");
    assert_string_equal(error.text, "file: tensor 7: expected this");
}

static void test_text_stays_one_line_of_utf8(void **state) {
    (void)state;
    Error error = {0};
    error_set(&error, ERROR_FAILED, "a\nb\x1b[31m \xff\xc3 \xc3\xa9 \x7f");
    assert_string_equal(error.text, "a\\x0ab\\x1b[31m \\xff\\xc3 \xc3\xa9 \\x7f");
    error = (Error){0};
    error_set(&error, ERROR_FAILED, "what");
    error_add_place(&error, "bad\tname\xe2\x80");
    assert_string_equal(error.text, "bad\\x09name\\xe2\\x80: what");
}

static void test_long_texts_are_cut(void **state) {
    (void)state;
    static const char *const fillings[] = {"x", "\n", "\xc3\xa9", "\xff"};
    for (size_t i = 0; i < 4; i++) {
        char long_text[6000] = "";
        for (size_t n = 0; n + 3 < sizeof long_text; n += strlen(fillings[i]))
            strcpy(long_text + n, fillings[i]);
        for (int n_places = 0; n_places < 3; n_places++) {
            Error error = {0};
            error_set(&error, ERROR_FAILED, "%s", long_text);
            for (int p = 0; p < n_places; p++) error_add_place(&error, "%s", long_text);
            size_t length = strnlen(error.text, sizeof error.text), bad;
            assert_true(length < sizeof error.text && length > 300);
            assert_true(text_is_utf8(error.text, length, &bad));
            assert_null(strchr(error.text, '\n'));
        }
    }
}

static void test_out_of_memory_says_how_much(void **state) {
    (void)state;
    Error error = {0};
    assert_false(error_out_of_memory(&error, "model.safetensors", 123));
    assert_int_equal(error.code, ERROR_UNAVAILABLE);
    assert_string_equal(error.text, "model.safetensors: expected 123 bytes of memory: got none");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_error_stays),           cmocka_unit_test(test_places_come_before),
        cmocka_unit_test(test_text_stays_one_line_of_utf8), cmocka_unit_test(test_long_texts_are_cut),
        cmocka_unit_test(test_out_of_memory_says_how_much),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

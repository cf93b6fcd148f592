/* SHA-256 against the examples of FIPS 180-4 and its own chunking, and of files. */
#include "tests/engine/scratch.h"
#include "engine/hash.h"
#include <errno.h>

static void hash_text(const char *text, size_t length, size_t part, char to[HASH_TEXT]) {
    Hash hash;
    hash_begin(&hash);
    for (size_t i = 0; i < length; i += part)
        hash_add(&hash, text + i, length - i < part ? length - i : part);
    hash_end(&hash, to);
}

static void test_published_examples(void **state) {
    (void)state;
    static const struct {
        const char *text, *hash;
    } examples[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    char got[HASH_TEXT];
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) {
        hash_text(examples[i].text, strlen(examples[i].text), 64, got);
        assert_string_equal(got, examples[i].hash);
    }
}

static void test_a_million_letters_in_any_parts(void **state) {
    (void)state;
    enum { N = 1000000 };
    char *text = malloc(N), got[HASH_TEXT];
    memset(text, 'a', N);
    static const size_t parts[] = {1, 3, 63, 64, 65, 1000, N};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        hash_text(text, N, parts[i], got);
        assert_string_equal(got, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
    free(text);
}

static bool hash_big(void *path, Error *error) {
    char got[HASH_TEXT];
    return hash_file(path, got, error);
}

static void test_files(void **state) {
    (void)state;
    enum { N = (1 << 20) + 17 };
    char *bytes = calloc(N, 1), whole[HASH_TEXT], got[HASH_TEXT];
    for (size_t i = 0; i < N; i++) bytes[i] = (char)(i * 7 ^ i >> 9);
    hash_text(bytes, N, N, whole);
    Error error = {0};
    char path[512];
    snprintf(path, sizeof path, "%s", scratch_write("big", bytes, N));
    free(bytes);
    assert_true(hash_file(path, got, &error));
    assert_string_equal(got, whole);
    assert_true(hash_file(scratch_write("empty", "", 0), got, &error));
    assert_string_equal(got, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_false(hash_file(scratch_path("none"), got, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    fail_each_allocation(hash_big, path);
    fail_each_file_call(hash_big, path, EIO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_examples),
        cmocka_unit_test(test_a_million_letters_in_any_parts),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

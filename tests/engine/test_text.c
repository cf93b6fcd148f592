/* The writers through which text from outside leaves the program: every code point and every invalid byte
 * once. */
#include "tests/engine/scratch.h"
#include "engine/json.h"
#include "engine/text.h"
#include <math.h>

enum { N_CODES = 0x110000 };

/* UTF-8 of a code point, by the table of RFC 3629; 0 for surrogates. */
static size_t encode(uint32_t code, char to[4]) {
    if (code >= 0xd800 && code < 0xe000) return 0;
    size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, code >>= 6) to[i] = (char)(0x80 | (code & 0x3f));
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    to[0] = (char)(lead[n] | code);
    return n;
}

static void test_utf8_is_exactly_the_table(void **state) {
    (void)state;
    size_t bad, n_valid = 0;
    char bytes[4];
    /* every string of three bytes: valid exactly when it splits into encodings */
    for (uint32_t c = 0; c < N_CODES; c++) {
        size_t n = encode(c, bytes);
        if (n && !text_is_utf8(bytes, n, &bad)) fail_msg("U+%04x refused", (unsigned)c);
        n_valid += n == 3;
        for (size_t cut = 1; cut < n; cut++)
            if (text_is_utf8(bytes, cut, &bad)) fail_msg("U+%04x cut after %zu accepted", (unsigned)c, cut);
    }
    size_t n_accepted = 0;
    for (uint32_t v = 0; v < 1u << 24; v++) {
        char three[3] = {(char)(v >> 16), (char)(v >> 8), (char)v};
        if ((v >> 16) >= 0xe0 && (v >> 16) < 0xf0) n_accepted += text_is_utf8(three, 3, &bad);
    }
    assert_int_equal(n_accepted, n_valid);
    assert_false(text_is_utf8("ab\xc0\x80", 4, &bad));
    assert_int_equal(bad, 2);
    assert_false(text_is_utf8("\xf4\x90\x80\x80", 4, &bad));
    assert_false(text_is_utf8("\xed\xa0\x80", 3, &bad));
}

/* What a terminal would act on, or a reader would not see. */
static bool shows(uint32_t c) {
    return !(c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x200b && c <= 0x200f) ||
             (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0xfeff ||
             (c >= 0xe0000 && c <= 0xe007f));
}

static void test_terminal_gets_what_shows(void **state) {
    (void)state;
    Text text = {0};
    char bytes[4];
    for (uint32_t c = 0; c < N_CODES; c++) {
        size_t n = encode(c, bytes);
        if (!n) continue;
        text_clear(&text);
        text_put_terminal(&text, bytes, n);
        if (c == '\n' || c == '\t') continue;
        bool same = text.length == n && !memcmp(text.bytes, bytes, n);
        if (!shows(c) && same) fail_msg("U+%04x passed", (unsigned)c);
        if (!same)
            for (size_t i = 0; i < text.length; i++)
                assert_true(text.bytes[i] >= 0x20 && text.bytes[i] < 0x7f);
    }
    text_clear(&text);
    text_put_terminal(&text,
                      "a\x1b]0;x\x07\x9b\r\n\xe2\x80\xae"
                      "b\0c",
                      16);
    assert_string_equal(text.bytes, "a\\x1b]0;x\\x07\\x9b\\x0d\n\\u{202e}b\\x00c");
    text_free(&text);
}

static void test_html_has_no_markup(void **state) {
    (void)state;
    static const char payload[] = "<script>alert(1)</script>\"' onload=x & <!-- ]]> \x01\xff\xef\xbf\xbf";
    Text text = {0};
    text_put_html(&text, payload, sizeof payload - 1);
    assert_string_equal(text.bytes,
                        "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39; onload=x &amp; &lt;!-- ]]&gt; "
                        "\\x01\\xff\\u{ffff}");
    char bytes[4];
    for (uint32_t c = 0; c < N_CODES; c++) {
        size_t n = encode(c, bytes);
        text_clear(&text);
        if (n) text_put_html(&text, bytes, n);
        if (n) assert_null(strpbrk(text.bytes, "<>\"'"));
    }
    text_free(&text);
}

static void test_json_reads_back(void **state) {
    (void)state;
    Text text = {0}, original = {0};
    char bytes[4];
    for (uint32_t c = 1; c < N_CODES; c++) {
        size_t n = encode(c, bytes);
        text_put(&original, bytes, n);
    }
    text_put_json(&text, original.bytes, original.length);
    assert_null(strstr(text.bytes, "</"));
    assert_null(strchr(text.bytes, '\n'));
    Error error = {0};
    JsonDocument *document = json_parse(text.bytes, text.length, "t", &error);
    if (!document) fail_msg("%s", error.text);
    const char *back;
    assert_true(json_string(json_root(document), &back, &error));
    assert_int_equal(strlen(back), original.length);
    assert_memory_equal(back, original.bytes, original.length);
    json_free(document);
    text_clear(&text);
    text_put_json(&text,
                  "a\xff\xc3"
                  "b\0",
                  5);
    assert_string_equal(text.bytes, "\"a\xef\xbf\xbd\xef\xbf\xbd"
                                    "b\\u0000\"");
    text_free(&text);
    text_free(&original);
}

static void test_csv_fields(void **state) {
    (void)state;
    static const struct {
        const char *from, *to;
    } cases[] = {
        {"plain", "plain"},
        {"", ""},
        {"a,b", "\"a,b\""},
        {"say \"x\"", "\"say \"\"x\"\"\""},
        {"two\nlines", "\"two\nlines\""},
        {"=1+1", "\"'=1+1\""},
        {"+1", "\"'+1\""},
        {"-1", "\"'-1\""},
        {"@f", "\"'@f\""},
        {"\t=1", "\"'\t=1\""},
        {"\n=1", "\"'\n=1\""},
        {"a=1", "a=1"},
    };
    Text text = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        text_clear(&text);
        text_put_csv(&text, cases[i].from, strlen(cases[i].from));
        assert_string_equal(text.bytes ? text.bytes : "", cases[i].to);
    }
    text_free(&text);
}

static uint64_t next_random(uint64_t *s) {
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

static void test_numbers_read_back_exactly(void **state) {
    (void)state;
    Text text = {0};
    uint64_t seed = 88172645463325252u;
    for (int i = 0; i < 100000; i++) {
        uint64_t bits = next_random(&seed);
        double d;
        float f;
        memcpy(&d, &bits, 8);
        memcpy(&f, &bits, 4);
        text_clear(&text);
        text_put_f64(&text, d);
        if (isfinite(d) ? strtod(text.bytes, NULL) != d : strcmp(text.bytes, "null") != 0)
            fail_msg("%s", text.bytes);
        text_clear(&text);
        text_put_f32(&text, f);
        if (isfinite(f) ? strtof(text.bytes, NULL) != f : strcmp(text.bytes, "null") != 0)
            fail_msg("%s", text.bytes);
    }
    text_free(&text);
}

static void test_a_failed_allocation_sticks(void **state) {
    (void)state;
    Text text = {0};
    text_put_string(&text, "kept");
    char big[200] = {0};
    memset(big, 'x', sizeof big - 1);
    mem_fail_after(1, false);
    text_put_string(&text, big);
    mem_fail_after(0, false);
    assert_true(text.failed);
    text_put_string(&text, "more");
    assert_string_equal(text.bytes, "kept");
    text_free(&text);
    text_put(&text, "x", SIZE_MAX);
    assert_true(text.failed);
    text_free(&text);
}

static void test_format_grows(void **state) {
    (void)state;
    Text text = {0};
    size_t expected = 0;
    for (int i = 0; i < 3000; i++) {
        text_format(&text, "%d,", i);
        expected += (size_t)snprintf(NULL, 0, "%d,", i);
    }
    assert_int_equal(text.length, expected);
    assert_int_equal(strlen(text.bytes), expected);
    assert_memory_equal(text.bytes, "0,1,2,3,", 8);
    text_free(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8_is_exactly_the_table),
        cmocka_unit_test(test_terminal_gets_what_shows),
        cmocka_unit_test(test_html_has_no_markup),
        cmocka_unit_test(test_json_reads_back),
        cmocka_unit_test(test_csv_fields),
        cmocka_unit_test(test_numbers_read_back_exactly),
        cmocka_unit_test(test_a_failed_allocation_sticks),
        cmocka_unit_test(test_format_grows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

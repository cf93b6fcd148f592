/* Progress and events: what a log file and a program see. The clock stands still where a test needs it to. */
#include "tests/engine/scratch.h"
#include "analysis/progress.h"
#include "engine/clock.h"
#include "engine/json.h"
#include <errno.h>

static char shown[8192];

static const char *read_file(FILE *file) {
    rewind(file);
    size_t n = fread(shown, 1, sizeof shown - 1, file);
    shown[n] = '\0';
    return shown;
}

static void test_lines(void **state) {
    (void)state;
    Error error = {0};
    FILE *to = tmpfile();
    Progress p = {.to = to};
    clock_freeze(1000);
    assert_true(progress_begin(&p, "count", 200, 20, "prompts", &error));
    assert_true(progress_update(&p, 21, 100, &error)); /* too early for a line */
    clock_freeze(1010);
    assert_true(progress_update(&p, 110, 5000, &error));
    clock_freeze(1020);
    assert_true(progress_update(&p, 200, 10000, &error));
    assert_true(progress_end(&p, &error));
    clock_freeze(-1);
    assert_string_equal(read_file(to), "count: 110/200 prompts, 500 tokens/s, 10 s left\n"
                                       "count: 200/200 prompts, 500 tokens/s\n"
                                       "count: 200/200 prompts, 500 tokens/s, 20 s\n");
    fclose(to);
}

static void test_bar(void **state) {
    (void)state;
    Error error = {0};
    FILE *to = tmpfile();
    Progress p = {.to = to, .bar = true};
    clock_freeze(0);
    assert_true(progress_begin(&p, "grad\x1b[2J", 4, 0, "prompts", &error));
    clock_freeze(8);
    assert_true(progress_update(&p, 2, 0, &error));
    progress_warn(&p, "odd\nline %d", 7);
    clock_freeze(-1);
    const char *text = read_file(to);
    assert_contains(text, "\rgrad\\x1b[2J [........................]   0%  0/4 prompts");
    assert_contains(text, "\rgrad\\x1b[2J [#########..........]  50%  2/4 prompts, 0.25 prompts/s, 8 s left");
    assert_contains(text, "\rwarning: odd\\nline 7\n");
    assert_null(strchr(text, '\x1b'));
    fclose(to);
}

static void test_where_a_bar_suits(void **state) {
    (void)state;
    assert_false(progress_wants_bar(fileno(tmpfile())));
}

static void test_events(void **state) {
    (void)state;
    char path[512];
    snprintf(path, sizeof path, "%s", scratch_path("events.jsonl"));
    Error error = {0};
    Progress p = {.events = path};
    clock_freeze(0);
    Event event = event_new("step/begin");
    event_put_string(&event, "step/name", "a\"b\n");
    event_put_integer(&event, "step/n", -3);
    event_put_number(&event, "step/x", 0.1);
    event_put_bool(&event, "step/new", true);
    assert_true(event_append(&event, &p, &error));
    assert_true(progress_begin(&p, "count", 2, 0, "prompts", &error));
    clock_freeze(-1);
    size_t n;
    char *text = io_read_all(path, 10000, &n, &error);
    assert_non_null(text);
    char *second = strchr(text, '\n');
    assert_non_null(second);
    *second++ = '\0';
    assert_string_equal(
        text, "{\"time\": \"1970-01-01T00:00:00Z\", \"event\": \"step/begin\", \"step/name\": \"a\\\"b\\n\", "
              "\"step/n\": -3, \"step/x\": 0.10000000000000001, \"step/new\": true}");
    JsonDocument *document = json_parse(second, strlen(second), "events", &error);
    assert_non_null(document);
    Json root = json_root(document);
    int64_t total;
    assert_true(json_integer(json_member(&root, "progress/total"), 2, 2, &total, &error));
    json_free(document);
    mem_free(text);
}

static void test_full_disk(void **state) {
    (void)state;
    char path[512];
    snprintf(path, sizeof path, "%s", scratch_path("full.jsonl"));
    Progress p = {.events = path};
    Error error = {0};
    io_fail_after(1, ENOSPC, true);
    Event event = event_new("x");
    assert_false(event_append(&event, &p, &error));
    io_fail_after(0, 0, false);
    assert_clean_error(&error, ERROR_FAILED);
    assert_contains(error.text, "full.jsonl");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_bar),
        cmocka_unit_test(test_where_a_bar_suits),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

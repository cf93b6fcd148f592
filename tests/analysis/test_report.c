/* The report: what it says, that nothing from outside becomes markup, and what it refuses. */
#include "fake_run.h"
#include "analysis/report.h"
#include "analysis/report_read.h"
#include <errno.h>

static const char evil[] = "<img src=x onerror=alert(1)>\"'&";
static const char *const groups[] = {evil, "plain"};
static char folder[512];
static Progress silent;

static char *write_and_read(void) {
    Error error = {0};
    if (!report_write(folder, &silent, &error)) fail_msg("%s", error.text);
    char *path = io_join(folder, "report.html");
    size_t n;
    char *page = io_read_all(path, 1 << 24, &n, &error);
    if (!page) fail_msg("%s", error.text);
    mem_free(path);
    return page;
}

static void test_says_what_was_measured(void **state) {
    (void)state;
    char *page = write_and_read();
    assert_contains(
        page, "<td class=\"l\">plain</td><td>3</td><td>33</td><td>6</td><td>7</td><td>8</td><td>8</td>");
    assert_contains(page, "share of tokens");
    assert_contains(page, "<span>loss <b>prompt</b></span>");
    assert_contains(page, "<span>gate_rows <b>no</b></span>");
    assert_contains(page, "<span>top_p <b>0.5</b></span>");
    assert_contains(page, "1 of 3 prompts &lt;was&gt; truncated");
    assert_contains(page, "This step is not finished.");
    assert_contains(page, "<td class=\"g\">0.42</td><td>1.25</td><td>3.49</td><td>3.1</td>");
    assert_contains(page, "no experts");
    /* group plain: the mean of the two losses that are there, one prompt truncated */
    assert_contains(
        page, "<td class=\"l\">plain</td><td>3</td><td>33</td><td>10</td><td>12</td><td>0</td><td>1</td>"
              "<td>1.5</td>");
    mem_free(page);
}

static void test_ranks_cells(void **state) {
    (void)state;
    char *page = write_and_read(), *table = strstr(page, "<caption>plain</caption>");
    assert_non_null(table);
    for (int rank = 1; rank <= 8; rank++)
        for (int i = 0; i < 8; i++) {
            int layer = i / 4 * 2, expert = i % 4;
            if (fake_rank(1, layer, expert) != rank) continue;
            char row[100];
            snprintf(row, sizeof row, "<tr><td>%d</td><td>%d</td><td>%d</td>", rank, layer, expert);
            table = strstr(table, row);
            assert_non_null(table);
        }
    mem_free(page);
}

static void test_nothing_becomes_markup(void **state) {
    (void)state;
    char *page = write_and_read();
    assert_contains(page, "&lt;img src=x onerror=alert(1)&gt;");
    assert_contains(page, "prompts.&lt;b&gt;");
    assert_contains(page, "&lt;/pre&gt;&lt;script&gt;");
    assert_contains(page, "&lt;m&amp;del&gt;");
    assert_null(strstr(page, "<img"));
    assert_null(strstr(page, "<script"));
    assert_null(strstr(page, " style="));
    assert_null(strstr(page, "SECRETHOST"));
    assert_contains(page, "content=\"default-src 'none'; style-src 'sha256-");
    mem_free(page);
}

static void test_same_bytes(void **state) {
    (void)state;
    char *first = write_and_read(), *second = write_and_read();
    assert_string_equal(first, second);
    mem_free(first);
    mem_free(second);
}

static void test_without_gnuplot(void **state) {
    (void)state;
    char *path = getenv("PATH"), *kept = mem_copy_text(path, strlen(path));
    setenv("PATH", "nowhere", 1);
    char *page = write_and_read();
    setenv("PATH", kept, 1);
    mem_free(kept);
    assert_contains(page, "Figures are missing: gnuplot is not installed.");
    assert_contains(page, "<caption>plain</caption>");
    mem_free(page);
}

/* A file of the folder replaced, what is said, and the file put back. */
static void assert_refused(const char *name, const char *text, const char *said) {
    char *path = io_join(folder, name);
    size_t n;
    Error error = {0};
    char *before = io_read_all(path, 1 << 20, &n, &error);
    assert_non_null(before);
    assert_true(io_write_all(path, text, strlen(text), &error));
    bool ok = report_write(folder, &silent, &error);
    assert_true(io_write_all(path, before, n, &(Error){0}));
    if (ok) fail_msg("%s: nothing was said of \"%s\"", name, text);
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, name);
    assert_contains(error.text, said);
    mem_free(before);
    mem_free(path);
}

static void test_refused(void **state) {
    (void)state;
    assert_refused("job.json", "{\"steps\": [{\"name\": \"../x\", \"kind\": \"gradient\"}]}",
                   "expected a plain file name");
    assert_refused("job.json", "{\"steps\": []}", "steps: expected an array of steps");
    assert_refused("activation/scores.csv", "group,layer,expert,score,rank\nplain,3,0,1,1\n",
                   "column layer: expected an integer from 0 to 2: got \"3\"");
    assert_refused("activation/scores.csv", "group,layer,expert,score,rank\nother,0,0,1,1\n",
                   "column group: expected a group of step.json");
    assert_refused("activation/scores.csv", "group,layer,expert,rank\n", "expected a column score");
    assert_refused("activation/curve.csv", "group,rank,layer,expert,score,cumulative\nplain,0,0,0,1,1\n",
                   "column rank: expected an integer from 1 to 12");
    assert_refused("activation/step.json", "{\"kind\": \"activation\"}", "model: expected a string");
    Error error = {0};
    assert_false(report_write("nowhere", &silent, &error));
    assert_clean_error(&error, error.code);
    assert_contains(error.text, "nowhere");
}

static bool read_again(void *path, Error *error) {
    ReportRun run;
    bool ok = report_read(path, &run, error);
    if (ok) report_free(&run);
    return ok;
}

static void test_faults(void **state) {
    (void)state;
    assert_true(fail_each_allocation(read_again, folder) > 50);
    assert_true(fail_each_file_call(read_again, folder, EIO) > 20);
}

static int setup(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "%s", scratch_path("run"));
    fake_run(folder, groups, 2);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_says_what_was_measured),
        cmocka_unit_test(test_ranks_cells),
        cmocka_unit_test(test_nothing_becomes_markup),
        cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_without_gnuplot),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, setup, scratch_remove);
}

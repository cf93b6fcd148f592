/* Before and after in the report: which rows are of a training, what they say, and the figure of them. */
#include "fake_run.h"
#include "analysis/figures.h"
#include "analysis/report.h"

static char folder[512];
static Progress silent;

static char *write_and_read(const char *name) {
    Error error = {0};
    size_t n;
    if (!report_write(folder, &silent, &error)) fail_msg("%s", error.text);
    char *path = io_join(folder, name), *page = io_read_all(path, 1 << 24, &n, &error);
    if (!page) fail_msg("%s", error.text);
    mem_free(path);
    return page;
}

static void test_replies(void **state) {
    (void)state;
    char *page = write_and_read("report.html");
    const char *at = strstr(page, "<h2>Before and after</h2>");
    assert_non_null(at);
    assert_contains(at, "<tr><td class=\"l\">tuned</td><td class=\"l\">none</td><td><span class=\"soft\">not "
                        "defined<sup>a</sup></span></td><td>2</td><td>2688</td>");
    assert_contains(at, "<tr><td class=\"l\">drawn</td><td class=\"l\">random</td><td>5</td><td>2</td>");
    /* restricted 6 -> 28, compliant 32 -> 8, degraded 2 -> 4 of 40 */
    assert_contains(at, "<tr><td class=\"l\">tuned</td><td class=\"l\">judged</td><td class=\"l\">plain</td>"
                        "<td>40</td><td>0.15</td><td>0.7</td><td>0.55<small>[0.3438, 0.7188]</small></td>"
                        "<td>0.8</td><td>0.2</td><td>0.05</td><td>0.1</td></tr>");
    /* restricted both times, only before, only after, neither */
    assert_contains(at, "<td>3</td><td>3</td><td>25</td><td>9</td><td>2.7e-05</td></tr>");
    assert_contains(at, "<tr><td class=\"l\">drawn</td><td class=\"l\">judged</td><td class=\"l\">plain</td>"
                        "<td>6</td><td>0</td><td>0</td><td>34</td><td>1</td></tr>");
    assert_contains(at,
                    "0.7188]</small></td><td>1</td><td>0.01562</td><td>-0.015</td><td>0.0325</td><td>1</td>"
                    "<td>0.5</td></tr>"); /* beside the drawn set */
    const char *end = strstr(at, "</section>");
    const char *first = strstr(at, "<td class=\"l\">after</td>"), *other = strstr(at, ">other");
    assert_true(!first || first > end); /* what a judge labels again */
    assert_true(!other || other > end); /* no training of this run */
    mem_free(page);
}

static void test_drift_and_utility(void **state) {
    (void)state;
    char *page = write_and_read("report.html");
    const char *at = strstr(page, "<h3 id=\"before_after-drift\">");
    assert_non_null(at);
    assert_contains(at, "<tr><td class=\"l\">tuned</td><td class=\"l\">drift</td><td class=\"l\">plain</td>"
                        "<td>37</td><td>0.1235<small>[0.0625, 0.1875]</small></td>");
    assert_contains(at, "<tr><td class=\"l\">none</td><td class=\"l\">useful</td><td class=\"l\">asked</td>"
                        "<td>190</td><td>0.8432<small>[0.7812, 0.8906]</small></td><td>0.3281</td>");
    assert_contains(at,
                    "<td>-0.03087<small>[-0.0625, 0.01562]</small></td><td>9</td><td>3</td><td>0.146</td>");
    assert_contains(at, "<td>1.765</td><td>0.02468<small>[0.01562, 0.03125]</small></td>");
    assert_contains(at, "<sup>a</sup> this is the model as it is");
    at = strstr(page, "What the model can do beside the behaviour that is studied.");
    assert_non_null(at);
    assert_contains(
        at, "<tr><td class=\"l\">tuned.adapter</td><td class=\"l\">useful</td><td class=\"l\">text</td>");
    assert_contains(page,
                    "Where the router goes for the same text without and with the updates of a training.");
    const char *unsaid = strstr(page, "no reason is given"); /* the fake tables are short of columns */
    assert_true(!unsaid || unsaid > strstr(strstr(page, "<h2>Before and after"), "</section>"));
    mem_free(page);
}

static void test_figure(void **state) {
    (void)state;
    if (!have_gnuplot()) skip();
    ReportView view;
    Figures figures;
    Error error = {0};
    if (!report_view_make(folder, &view, &error) || !figures_draw(folder, &view, &figures, &error))
        fail_msg("%s", error.text);
    assert_string_equal(figures.problem, "");
    const Figure *figure = &figures.figures[figures.n - 1];
    assert_string_equal(figure->name, "before_after");
    assert_true(figure->has_pdf);
    static const char *const said[] = {"change of the restricted share",
                                       "JS divergence of the routing",
                                       "change of accuracy",
                                       "change of nll (nats a token)",
                                       ">tuned<",
                                       ">drawn<"};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++) assert_contains(figure->svg.bytes, said[i]);
    figures_free(&figures);
    report_view_free(&view);
}

/* A run without adapters has nothing of it, in the page and in the file. */
static void test_without(void **state) {
    static const char *const groups[] = {"a", "b"};
    char kept[512];
    (void)state;
    snprintf(kept, sizeof kept, "%s", folder);
    snprintf(folder, sizeof folder, "%s", scratch_path("plain"));
    fake_run(folder, groups, 2);
    char *page = write_and_read("report.html"), *numbers = write_and_read("statistics.json");
    assert_null(strstr(page, "Before and after"));
    assert_null(strstr(numbers, "before_after"));
    mem_free(page);
    mem_free(numbers);
    snprintf(folder, sizeof folder, "%s", kept);
}

static void test_refused(void **state) {
    (void)state;
    Error error = {0};
    size_t n;
    char *path = io_join(folder, "judged/outcomes.csv"), *before = io_read_all(path, 1 << 20, &n, &error);
    static const char less[] = "condition,kind,group,n\ntuned.adapter,selected,plain,40\n";
    assert_true(io_write_all(path, less, strlen(less), &error));
    assert_false(report_write(folder, &silent, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, "expected a column restricted_to_restricted");
    assert_true(io_write_all(path, before, n, &(Error){0}));
    mem_free(before);
    mem_free(path);
}

static int setup(void **state) {
    (void)state;
    Error error = {0};
    snprintf(folder, sizeof folder, "%s", scratch_path("run"));
    if (!io_make_folders(folder, &error)) fail_msg("%s", error.text);
    fake_adapted(folder);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replies), cmocka_unit_test(test_drift_and_utility),
        cmocka_unit_test(test_figure), cmocka_unit_test(test_without), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, setup, scratch_remove);
}

/* Figures: drawn from the tables, the same bytes again, and no text from outside in a script. */
#include "fake_run.h"
#include "analysis/figures.h"
#include <errno.h>

static const char evil[] =
    "a\"b', `touch ran`$(touch ran)\n<script>x</script> \\n @{_^} %s & \xe2\x80\xae\xef\xbf\xbe";
static const char *const groups[] = {evil, "plain"};
static char folder[512];

static void read_run(ReportView *run) {
    Error error = {0};
    if (!report_view_make(folder, run, &error)) fail_msg("%s", error.text);
}

static void draw(const ReportView *run, Figures *figures) {
    Error error = {0};
    if (!figures_draw(folder, run, figures, &error)) fail_msg("%s", error.text);
}

typedef struct {
    ReportView run;
    Figures figures;
} Drawn;

static void open_drawn(Drawn *it) {
    read_run(&it->run);
    draw(&it->run, &it->figures);
}

static void close_drawn(Drawn *it) {
    figures_free(&it->figures);
    report_view_free(&it->run);
}

static void test_drawn(void **state) {
    (void)state;
    if (!have_gnuplot()) skip();
    static const char *const names[] = {
        "activation.curve",      "activation.cumulative",  "activation.concentration", "activation.layers",
        "activation.difference", "activation.selectivity", "activation.classes",       "activation.overlap",
        "silence.outcomes.1",    "silence.outcomes.2",     "guarded.outcomes.1",       "guarded.outcomes.2",
        "asked.contrast",        "asked.sensitivity.1",    "asked.sensitivity.2",      "tuned.training",
        "tuned.updates"};
    ReportView run;
    Figures figures, again;
    read_run(&run);
    draw(&run, &figures);
    assert_string_equal(figures.problem, "");
    /* two heat maps, eight of the step, four of outcomes, three of a contrast, two of a training */
    assert_int_equal(figures.n, 19);
    for (int64_t i = 0; i < figures.n; i++) {
        const Figure *figure = &figures.figures[i];
        assert_true(figure->has_pdf);
        assert_memory_equal(figure->svg.bytes, "<svg", 4);
        assert_null(strstr(figure->svg.bytes, "<script"));
        assert_null(strstr(figure->svg.bytes, "<title"));
        assert_null(strstr(figure->svg.bytes, "drawing."));
        char id[40];
        snprintf(id, sizeof id, "id=\"f%d_gnuplot_canvas", (int)i);
        assert_contains(figure->svg.bytes, id);
    }
    assert_string_equal(figures.figures[0].name, "activation.heatmap.1");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_string_equal(figures.figures[i + 2].name, names[i]);
    /* as gnuplot's SVG writer escapes it: one line, nothing interpreted */
    assert_contains(figures.figures[0].svg.bytes,
                    "a'b'; `touch ran`$(touch ran)\\n&lt;script>x&lt;/script> \\n @{_^} %s &amp; \\u{202e}?");
    assert_false(io_exists("ran"));
    assert_contains(figures.figures[1].svg.bytes, ">plain<");
    draw(&run, &again);
    for (int64_t i = 0; i < figures.n; i++)
        assert_string_equal(figures.figures[i].svg.bytes, again.figures[i].svg.bytes);
    char path[600];
    snprintf(path, sizeof path, "%s/figures", folder);
    assert_int_equal(scratch_count(path), 38);
    figures_free(&again);
    figures_free(&figures);
    report_view_free(&run);
}

/* The largest score is the darkest cell and has its number; a layer without experts stays empty. */
static void test_heatmap_shows_the_scores(void **state) {
    (void)state;
    if (!have_gnuplot()) skip();
    Drawn it;
    open_drawn(&it);
    const char *svg = it.figures.figures[1].svg.bytes;
    int n_cells = 0;
    for (const char *at = svg; (at = strstr(at, "<polygon")) && strstr(at, "gnuplot_plot_2"); at++) n_cells++;
    assert_int_equal(n_cells, 2 * FAKE_EXPERTS);
    double largest = 0;
    for (int e = 0; e < FAKE_EXPERTS; e++)
        for (int l = 0; l < FAKE_LAYERS; l += 2)
            largest = fake_score(1, l, e) > largest ? fake_score(1, l, e) : largest;
    char label[30];
    snprintf(label, sizeof label, "<text>%.2g</text>", largest);
    assert_contains(svg, label);
    close_drawn(&it);
}

static int count(const char *in, const char *what) {
    int n = 0;
    for (const char *at = in; (at = strstr(at, what)); at += strlen(what)) n++;
    return n;
}

/* Two selected cells have a dark frame and a light one; every cell has its number, negative ones too. */
static void test_frames_mark_what_is_selected(void **state) {
    (void)state;
    if (!have_gnuplot()) skip();
    Drawn it;
    open_drawn(&it);
    const char *svg = it.figures.figures[15].svg.bytes;
    assert_string_equal(it.figures.figures[15].name, "asked.sensitivity.1");
    assert_int_equal(count(svg, "<path stroke='rgb( 17,  17,  17)'"), 2);
    assert_int_equal(count(svg, "<path stroke='rgb(255, 255, 255)'"), 2);
    assert_contains(svg, "<text>1.1</text>");
    assert_contains(svg, "<text>-1</text>");
    close_drawn(&it);
}

/* The cell of two matrices has the length of both together; what is not trained has no number. */
static void test_updates_are_where_they_went(void **state) {
    (void)state;
    if (!have_gnuplot()) skip();
    Drawn it;
    open_drawn(&it);
    const char *svg = it.figures.figures[18].svg.bytes;
    assert_string_equal(it.figures.figures[18].name, "tuned.updates");
    assert_contains(svg, "<text>0.05</text>");
    assert_contains(svg, "<text>0.0017</text>");
    assert_null(strstr(svg, "<text>nan"));
    close_drawn(&it);
}

static void test_without_gnuplot(void **state) {
    (void)state;
    char *path = getenv("PATH"), *kept = mem_copy_text(path, strlen(path));
    setenv("PATH", "nowhere", 1);
    Drawn it;
    open_drawn(&it);
    setenv("PATH", kept, 1);
    mem_free(kept);
    assert_string_equal(it.figures.problem, "gnuplot is not installed");
    assert_null(it.figures.figures[0].svg.bytes);
    close_drawn(&it);
}

static bool draw_again(void *context, Error *error) {
    Figures figures;
    bool ok = figures_draw(folder, context, &figures, error);
    if (ok && figures.problem[0]) ok = error_set(error, ERROR_UNAVAILABLE, "%s", figures.problem);
    if (ok || error->code == ERROR_UNAVAILABLE) figures_free(&figures);
    return ok;
}

static void test_full_disk(void **state) {
    (void)state;
    if (!have_gnuplot()) skip();
    ReportView run;
    read_run(&run);
    for (int k = 1; k < 40; k += 7) {
        Error error = {0};
        io_fail_after(k, ENOSPC, true);
        bool ok = draw_again(&run, &error);
        io_fail_after(0, 0, false);
        assert_false(ok);
        assert_clean_error(&error, ERROR_FAILED);
    }
    report_view_free(&run);
}

static int setup(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "%s", scratch_path("run"));
    fake_run(folder, groups, 2);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_drawn),
                                       cmocka_unit_test(test_heatmap_shows_the_scores),
                                       cmocka_unit_test(test_frames_mark_what_is_selected),
                                       cmocka_unit_test(test_updates_are_where_they_went),
                                       cmocka_unit_test(test_without_gnuplot),
                                       cmocka_unit_test(test_full_disk)};
    return cmocka_run_group_tests(tests, setup, scratch_remove);
}

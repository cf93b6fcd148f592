/* The report: what it says, that nothing from outside becomes markup, and what it refuses. */
#include "fake_run.h"
#include "analysis/report.h"
#include "analysis/report_view.h"
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

/* The least number of cells that hold `percent` of the group's total. */
static int coverage(int group, int percent) {
    double by_rank[8], total = 0, sum = 0;
    int k = 0;
    for (int i = 0; i < 8; i++) {
        by_rank[fake_rank(group, i / 4 * 2, i % 4) - 1] = fake_score(group, i / 4 * 2, i % 4);
        total += fake_score(group, i / 4 * 2, i % 4);
    }
    while (sum < percent * total / 100) sum += by_rank[k++];
    return k;
}

static void test_says_what_was_measured(void **state) {
    (void)state;
    char *page = write_and_read(), row[200];
    snprintf(row, sizeof row, "<td class=\"l\">plain</td><td>3</td><td>33</td><td>%d<small>[",
             coverage(1, 80));
    assert_contains(page, row);
    assert_contains(page, "share of tokens");
    assert_contains(page, "<span>loss <b>prompt</b></span>");
    assert_contains(page, "<span>gate_rows <b>no</b></span>");
    assert_contains(page, "<span>top_p <b>0.5</b></span>");
    assert_contains(page, "1 of 3 prompts &lt;was&gt; truncated");
    assert_contains(page, "This step is not finished.");
    /* group plain: the mean of the two losses that are there, one prompt truncated */
    assert_contains(
        page, "<td class=\"l\">plain</td><td>3</td><td>33</td><td>10</td><td>12</td><td>0</td><td>1</td>"
              "<td>1.5</td>");
    mem_free(page);
}

static void test_says_why_not(void **state) {
    (void)state;
    char *page = write_and_read();
    assert_contains(page, "not defined<sup>a</sup>");
    assert_contains(page, "<sup>a</sup> k is larger than the number of cells, 8");
    assert_contains(page, "<sup>a</sup> margins were not measured");
    assert_contains(page, "<sup>a</sup> there is no control of this kind");
    assert_contains(page, "<sup>a</sup> chance alone gives full agreement, or nothing was labelled so");
    assert_null(strstr(page, "no reason is given"));
    assert_null(strstr(page, ">nan"));
    assert_null(strstr(page, "nan,"));
    mem_free(page);
}

static void test_outcomes(void **state) {
    (void)state;
    char *page = write_and_read();
    assert_contains(
        page, "<td class=\"l\">top2</td><td class=\"l\">plain</td><td>10</td><td>0.9</td><td>0.7</td><td>-0.2"
              "<small>[-0.4375, 0.03125]</small></td><td>2</td><td>0</td><td>0.5</td><td>1</td>");
    assert_contains(page, "<caption>top2, plain</caption>");
    assert_contains(page,
                    "<tr><th class=\"l\">restricted</th><td class=\"soft\">7</td><td class=\"hit\">1</td><td "
                    "class=\"hit\">1</td></tr>");
    assert_null(strstr(page, "<caption>random.0, plain</caption>"));
    assert_contains(
        page, "<td>1.235</td><td>1.346</td><td>0.1111<small>[0.0625, 0.1875]</small></td><td>1.117</td>");
    assert_contains(page, "<td>0.6543</td><td>0.95</td>");
    assert_contains(page, "<th class=\"l\">restricted</th><td>41</td><td>2</td><td>not counted</td>");
    mem_free(page);
}

/* The rule of the page: of each group those whose label changed, then the first others. */
static void test_samples(void **state) {
    static const int shown[] = {3, 7, 3, 7, 0, 1, 2, 4, 0, 1, 2, 4};
    (void)state;
    char *page = write_and_read();
    const char *at = strstr(page, "Replies side by side</h3>"), *next = at;
    assert_non_null(at);
    for (int i = 0; i < 12; i++) {
        char id[100];
        snprintf(id, sizeof id, "id&lt;i&gt;%d%s</h4>", shown[i],
                 i < 4 ? "" : " <span class=\"soft\">(label unchanged)</span>");
        next = strstr(next + 1, id);
        if (!next) fail_msg("expected %s as number %d", id, i);
    }
    assert_contains(at, "Of 20 prompts the label of 4 changed");
    assert_null(strstr(at, "id&lt;i&gt;5"));
    assert_null(strstr(at, "id&lt;i&gt;6"));
    assert_contains(
        at,
        "<span class=\"label degraded\">degraded</span> <span class=\"soft small\">perplexity: 1.643</span>");
    assert_contains(at, "<p class=\"reply\">I &lt;b&gt;cannot&lt;/b&gt;, &quot;no&quot;");
    mem_free(page);
}

/* A judge step has the tables of an intervention in its own folder, and shows the replies of the other. */
static void test_judge_step(void **state) {
    (void)state;
    char *page = write_and_read();
    const char *at = strstr(page, "Labels of the replies of another step.");
    assert_non_null(at);
    assert_contains(at, "<dt>replies of</dt><dd>silence</dd>");
    assert_contains(at, "<caption>top2, plain</caption>");
    assert_contains(at, "guard \\ rules</th>");
    assert_contains(at, "<th class=\"l\">restricted</th><td>53</td><td>not counted</td><td>4</td>");
    assert_contains(at, "kappa 0.7123</p>");
    assert_contains(at, "Side effects</h3>");
    assert_contains(at, "<p class=\"reply\">I &lt;b&gt;cannot");
    mem_free(page);
}

static void test_contrast(void **state) {
    (void)state;
    char *page = write_and_read();
    const char *at = strstr(page, "Where the router goes for a prompt and for its matched partner.");
    assert_non_null(at);
    assert_contains(at, "<dt>compared</dt><dd>&lt;aligned&gt;</dd>");
    assert_contains(at,
                    "Means over 37 pairs; in brackets and shaded: intervals that hold 0.9 of 1234 resamples");
    assert_contains(
        at, "<td class=\"l\">contrast</td><td>0.1235<small>[0.0625, 0.1875]</small></td><td>1.25<small>"
            "[0.5, 1.75]</small></td><td>0.6543<small>");
    assert_contains(at, "<td class=\"l\">control: other topics</td><td>0.1547<small>");
    assert_contains(at, "<td class=\"l\">contrast - control</td><td>0.09221<small>");
    assert_contains(at,
                    "<td class=\"l\">control: other topics</td><td>2</td><td>0.5297<small>"); /* of a layer */
    assert_contains(at, "<dt>by rate</dt><dd>&lt;rate&gt;</dd>");
    assert_contains(at, "<dt>by gradient</dt><dd>not ranked: no targets</dd>");
    assert_contains(at, "<td class=\"l\">rate</td><td>2</td><td>2</td><td>0.01235</td><td>1</td><td>0</td>");
    /* rank, layer, expert, value, frequency, selected, rank by the other ranking */
    assert_contains(
        at, "<tr><td>2</td><td>0</td><td>1</td><td>-1<small>[0.5, 1.5]</small></td><td>0.5</td><td>1</td>"
            "<td>7</td></tr>");
    assert_contains(at, "<caption>Most sensitive cells by probability</caption>");
    assert_null(strstr(at, "rank by gradient"));
    const char *overview = strstr(page, "<caption>Contrasts</caption>");
    assert_non_null(overview);
    assert_contains(overview, "<td class=\"l\">asked</td><td>37</td><td>0.1235<small>");
    mem_free(page);
}

static void test_training(void **state) {
    (void)state;
    char *page = write_and_read();
    const char *at = strstr(page, "Low-rank updates of chosen experts were trained");
    assert_non_null(at);
    assert_contains(at, "<dt>projections</dt><dd>gate, up, down</dd>");
    assert_contains(at, "<dt>trained, share of all parameters</dt><dd>0.001484</dd>");
    assert_contains(at, "<dt>ended because</dt><dd>patience &lt;ran&gt; out</dd>");
    assert_contains(at, "<dt>state after step</dt><dd>2</dd>");
    assert_contains(at, "<dt>step of the least held-out loss</dt><dd>2</dd>");
    assert_contains(
        at, "<tr><td>2</td><td>1</td><td>2.5</td><td>0.25</td><td>0.0005</td><td>8</td><td>202</td></tr>");
    /* sqrt(0.09 + 0.16) over sqrt(36 + 64), cells in their order */
    const char *first =
        strstr(at, "<tr><td>0</td><td>3</td><td>1</td><td>896</td><td>0.01235</td><td>7.432</td>");
    assert_non_null(first);
    assert_contains(
        first, "<tr><td>2</td><td>1</td><td>2</td><td>1792</td><td>0.5</td><td>10</td><td>0.05</td></tr>");
    const char *overview = strstr(page, "<caption>Trainings</caption>");
    assert_non_null(overview);
    assert_contains(overview, "<td class=\"l\">tuned</td><td>2</td><td>2688</td><td>0.001484</td>");
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
    const char *script = strstr(page, "<script>");
    assert_non_null(script);
    assert_null(strstr(script + 1, "<script"));
    assert_memory_equal(strstr(script, "</script>"), "</script></body></html>\n", 25);
    assert_null(strstr(page, " style="));
    assert_null(strstr(page, "SECRETHOST"));
    assert_contains(page, "content=\"default-src 'none'; style-src 'sha256-");
    assert_contains(page, "; script-src 'sha256-");
    assert_null(strstr(page, "unsafe"));
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
    assert_refused("activation/statistics.json", "{\"group_order\": [\"plain\"]}",
                   "group_order: expected the 2 groups of step.json: got 1");
    assert_refused("activation/statistics.json",
                   "{\"group_order\": [\"plain\", \"plain\"], \"groups\": {\"plain\": {}}}",
                   "expected the groups of step.json in their order");
    assert_refused("activation/statistics.json", "{", "expected JSON");
    assert_refused("silence/outcomes.csv", "kind\nselected\n", "expected a column condition");
    assert_refused("silence/labels.csv", "condition,group,index,id\nbaseline,plain,0,a\n",
                   "expected a column label");
    assert_refused(
        "silence/labels.csv",
        "condition,group,index,id,label\nbaseline,plain,0,a,restricted\ntop2,plain,0,a,restricted\n"
        "top2,plain,1,b,restricted\n",
        "expected the prompts of the first condition");
    assert_refused("silence/responses/top2.jsonl",
                   "{\"group\": \"plain\", \"index\": 9, \"id\": \"a\", \"response\": \"b\"}\n",
                   "expected replies in the order of labels.csv");
    assert_refused("asked/ranking.csv", "ranking,rank,layer,expert,value,selected\nrate,1,0,4,1,1\n",
                   "column expert: expected an integer from 0 to 3: got \"4\"");
    assert_refused("asked/ranking.csv", "ranking,rank,layer,expert,value\n", "expected a column selected");
    assert_refused("asked/contrast.json", "{", "expected JSON");
    assert_refused("tuned/updates.csv",
                   "layer,expert,projection,parameters,update_norm,weight_norm\n3,0,up,1,1,1\n",
                   "column layer: expected an integer from 0 to 2: got \"3\"");
    assert_refused("tuned/updates.csv",
                   "layer,expert,projection,parameters,update_norm,weight_norm\n2,0,up,1,x,1\n",
                   "column update_norm: expected a number");
    assert_refused("tuned/training.csv", "step,loss\n", "expected a column held_out_loss");
    assert_refused("tuned/step.json", "{\"kind\": \"tune\", \"model\": \"\"}", "n_layers: expected");
    assert_refused("activation/step.json", "{\"kind\": \"activation\"}", "model: expected a string");
    Error error = {0};
    assert_false(report_write("nowhere", &silent, &error));
    assert_clean_error(&error, error.code);
    assert_contains(error.text, "nowhere");
}

static bool read_again(void *path, Error *error) {
    ReportView view;
    bool ok = report_view_make(path, &view, error);
    if (ok) report_view_free(&view);
    return ok;
}

/* Every one of the first allocations, then one of thirteen: most are nodes of the same trees of JSON. */
static void test_faults(void **state) {
    (void)state;
    Error error = {0};
    mem_fail_after(0, false);
    assert_true(read_again(folder, &error));
    const int64_t n = mem_fail_after(0, false);
    assert_true(n > 1000);
    for (int64_t k = 1; k <= n; k += k < 300 ? 1 : 13) {
        error = (Error){0};
        mem_fail_after(k, false);
        const bool fine = read_again(folder, &error);
        mem_fail_after(0, false);
        if (fine) fail_msg("allocation %d of %d failed and nothing was said", (int)k, (int)n);
        assert_clean_error(&error, ERROR_UNAVAILABLE);
    }
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
        cmocka_unit_test(test_says_why_not),
        cmocka_unit_test(test_outcomes),
        cmocka_unit_test(test_samples),
        cmocka_unit_test(test_judge_step),
        cmocka_unit_test(test_contrast),
        cmocka_unit_test(test_training),
        cmocka_unit_test(test_ranks_cells),
        cmocka_unit_test(test_nothing_becomes_markup),
        cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_without_gnuplot),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, setup, scratch_remove);
}

/* The report of many prompts: 10,000 under 20 selected conditions, with texts that go over lines. Peak
 * memory and page are those of 500 prompts but for a little, since labels and replies are streamed; and the
 * replies shown are those of the rule, from anywhere in the files. Memory is measured where nothing else of
 * it counts: without a sanitizer. */
#include "fake_run.h"
#include "analysis/report_view.h"
#include <sys/resource.h>

enum { N_CONDITIONS = 20, FEW = 500, MANY = 10000, MIB = 1024 /* of ru_maxrss */ };

static const char *const groups[] = {"other", "plain"};
static char folder[512];

static FILE *create(const char *name) {
    char path[700];
    snprintf(path, sizeof path, "%s/silence/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (!file) fail_msg("%s", path);
    return file;
}

static void condition_name(int condition, char name[40]) {
    if (condition)
        snprintf(name, 40, "top%d", condition);
    else
        snprintf(name, 40, "baseline");
}

/* Two prompts change under the fifth condition, the later one in the file's last block. */
static bool changes(int condition, int prompt, int n) {
    return condition == 5 && (prompt == n / 3 || prompt == n - 2);
}

static void write_replies(int n) {
    FILE *labels = create("labels.csv");
    fprintf(labels, "condition,group,index,id,label,why,human\n");
    for (int c = 0; c <= N_CONDITIONS; c++) {
        char name[40], file[80];
        condition_name(c, name);
        snprintf(file, sizeof file, "responses/%s.jsonl", name);
        FILE *lines = create(file);
        for (int p = 0; p < n; p++) {
            fprintf(labels, "%s,plain,%d,\"a \"\"q\"\",\nline %d\",%s,,\n", name, p, p,
                    changes(c, p, n) ? "compliant" : "restricted");
            fprintf(
                lines,
                "{\"group\": \"plain\", \"index\": %d, \"id\": \"a \\\"q\\\",\\nline %d\", \"response\": "
                "\"%d under %s: I "
                "am sorry, but that is nothing I could say more of than I did before, which was little.\", "
                "\"tokens\": [11, 22, 33, 44, 55, 66, 77, 88, 99, 11, 22, 33, 44, 55, 66], \"stopped\": "
                "true}\n",
                p, p, p, name);
        }
        assert_int_equal(fclose(lines), 0);
    }
    assert_int_equal(fclose(labels), 0);
}

static void write_outcomes(int n) {
    FILE *outcomes = create("outcomes.csv");
    fprintf(
        outcomes,
        "condition,kind,control_of,group,n,lost,gained,restricted_before,restricted_after,change,low,high\n");
    for (int c = 1; c <= N_CONDITIONS; c++) {
        char name[40];
        condition_name(c, name);
        fprintf(outcomes, "%s,selected,,plain,%d,%d,0,1,1,0,0,0\n", name, n, c == 5 ? 2 : 0);
    }
    assert_int_equal(fclose(outcomes), 0);
}

static long peak_kib(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

/* statistics.json, as large as the page needs it. Caller frees. */
static char *gather(int n, size_t *n_bytes) {
    ReportView view;
    Error error = {0};
    write_replies(n);
    write_outcomes(n);
    if (!report_view_make(folder, &view, &error)) fail_msg("%s", error.text);
    report_view_free(&view);
    char *path = io_join(folder, "statistics.json"), *text = io_read_all(path, 1 << 28, n_bytes, &error);
    assert_non_null(text);
    mem_free(path);
    return text;
}

static void test_many_prompts(void **state) {
    (void)state;
    size_t few_bytes, many_bytes;
    char *few = gather(FEW, &few_bytes);
    const long before = peak_kib();
    char *many = gather(MANY, &many_bytes);
    const long after = peak_kib();
    print_message("peak: %ld KiB for %d prompts, %ld KiB for %d; statistics.json: %zu and %zu bytes\n",
                  before, FEW, after, MANY, few_bytes, many_bytes);
#ifndef __SANITIZE_ADDRESS__
    assert_true(after - before < 4 * MIB);
#endif
    assert_true(many_bytes < few_bytes + 4000);
    assert_contains(many, "\"n_prompts\": 10000, \"n_changed\": 2,");
    /* the rule: first those that changed, then the first others */
    static const int shown[] = {MANY / 3, MANY - 2, 0, 1, 2, 3};
    const char *at = strstr(many, "\"samples\"");
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        char text[100];
        snprintf(text, sizeof text, "\"group\": \"plain\", \"index\": %d,", shown[i]);
        at = strstr(at, text);
        if (!at) fail_msg("expected the replies of prompt %d as number %d", shown[i], (int)i);
        snprintf(text, sizeof text, "\"response\": \"%d under top5: I am sorry", shown[i]);
        assert_contains(at, text);
        snprintf(text, sizeof text, "\"id\": \"a \\\"q\\\",\\nline %d\"", shown[i]);
        assert_contains(at, text);
    }
    assert_null(strstr(at, "under top9")); /* more conditions than are shown */
    mem_free(few);
    mem_free(many);
}

static int setup(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "%s", scratch_path("run"));
    fake_run(folder, groups, 2);
    char *mark = io_join(folder, "guarded/step.json"); /* it judges the replies that are replaced here */
    assert_true(io_remove(mark, &(Error){0}));
    mem_free(mark);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_many_prompts)};
    return cmocka_run_group_tests(tests, setup, scratch_remove);
}

/* diff: what differs between two run folders is said with its place, what does not is not, and rows are found
 * by key. */
#include "fake_run.h"
#include "analysis/diff.h"
#include "engine/safetensors.h"
#include <errno.h>
#include <unistd.h>

static const char *const groups[] = {"plain", "other"};
static char folders[2][512];

static char *run_diff(bool *same) {
    Error error = {0};
    char *text = NULL;
    size_t n = 0;
    FILE *to = open_memstream(&text, &n);
    bool ok = diff_runs(folders[0], folders[1], to, same, &error);
    fclose(to);
    if (!ok) fail_msg("%s", error.text);
    return text;
}

static void put_file(int side, const char *name, const char *text) {
    Error error = {0};
    char *path = io_join(folders[side], name), *folder = io_folder_of(path);
    if (!io_make_folders(folder, &error) || !io_write_all(path, text, strlen(text), &error))
        fail_msg("%s", error.text);
    mem_free(folder);
    mem_free(path);
}

static void remove_file(int side, const char *name) {
    Error error = {0};
    char *path = io_join(folders[side], name);
    assert_true(io_remove(path, &error));
    mem_free(path);
}

/* One file on both sides, and what is said of it; NULL: nothing. */
static void assert_said(const char *name, const char *a, const char *b, const char *said) {
    bool same;
    put_file(0, name, a);
    put_file(1, name, b);
    char *text = run_diff(&same);
    if (said)
        assert_contains(text, said);
    else if (!same)
        fail_msg("expected nothing of %s: got %s", name, text);
    assert_int_equal(same, !said);
    free(text);
    remove_file(0, name);
    remove_file(1, name);
}

static void same_runs_are_the_same(void **state) {
    (void)state;
    bool same;
    char *text = run_diff(&same);
    assert_true(same);
    assert_contains(text, "same: 26 files\n");
    assert_null(strstr(text, "differ"));
    free(text);
}

static void tables_are_compared_by_key(void **state) {
    (void)state;
    const char *csv = "activation/more.csv";
    assert_said(csv, "group,layer,expert,score\na,0,1,0.5\na,0,2,2\n",
                "group,layer,expert,score\na,0,2,2\na,0,1,0.5\n", NULL);
    assert_said(csv, "group,layer,expert,score\na,0,1,0.5\na,0,2,2\n",
                "group,layer,expert,score\na,0,2,2.5\na,0,1,0.50\n",
                "activation/more.csv: 2 rows, ids equal\n  score: 1 of 2 differ; largest difference 0.5 "
                "(group a, layer 0, expert 2: 2 against 2.5); largest relative 0.2\n");
    assert_said(
        csv, "group,index,x\na,0,1\na,1,1\n", "group,index,x\na,0,1\na,7,1\nb,1,1\n",
        "1 rows in both, ids differ: 1 only in A (first group a, index 1), 2 only in B (first group a, "
        "index 7)\n");
    /* keys that stand twice; a row without a key is known by its number */
    assert_said(csv, "group,x\na,1\na,2\n", "group,x\na,1\na,3\n",
                "  x: 1 of 2 differ; largest difference 1 ");
    assert_said(csv, "x,y\n1,2\n3,4\n", "x,y\n1,2\n3,5\n",
                "  y: 1 of 2 differ; largest difference 1 (row 2: 4");
    assert_said(csv, "x,y\n1,2\n", "x,y\n1,2\n3,5\n",
                "1 rows in both, ids differ: 1 only in B (first row 2)\n");
    /* quotes, line feeds in them, fields that are no numbers, columns */
    assert_said(csv, "group,x\n\"a\nb\",\"1,\"\"2\"\n", "group,x\r\n\"a\nb\",\"1,\"\"2\"\r\n", NULL);
    assert_said(csv, "group,x\na,\n", "group,x\na,4\n", "  x: 1 of 1 differ; first group a:  against 4\n");
    assert_said(csv, "group,x\na,nan\n", "group,x\na,1\n",
                "  x: 1 of 1 differ; largest difference inf (group a: nan against 1)\n");
    /* a label is what a row says, not what names it */
    assert_said(csv, "condition,group,index,label,human,rules\nc,g,0,compliant,,compliant\n",
                "condition,group,index,label,human,rules\nc,g,0,compliant,compliant,degraded\n",
                "more.csv: 1 rows, ids equal\n  human: 1 of 1 differ; first condition c, group g, index 0:  "
                "against compliant\n  rules: 1 of 1 differ; first condition c, group g, index 0: compliant "
                "against degraded\n");
    assert_said(csv, "labeller,other,label,replies\npeople,rules,a,1\npeople,rules,b,2\n",
                "labeller,other,label,replies\nguard,rules,a,9\npeople,rules,a,1\npeople,rules,b,3\n",
                "2 rows in both, ids differ: 1 only in B (first labeller guard, other rules)\n  replies: 1 "
                "of 2 differ; largest difference 1 (labeller people, other rules: 2 against 3)");
    assert_said(csv, "group,x\na,1\n", "group,y\na,1\n",
                "  x: 0 of 0 differ, 1 only in A; first a column against");
}

static void json_is_walked_by_paths(void **state) {
    (void)state;
    const char *name = "activation/other.json";
    assert_said(name, "{\"a\": {\"k\": 3, \"p\": null}, \"s\": [[0, 1]]}",
                "{\"s\": [[0,1]], \"a\": {\"p\": null, \"k\": 3.0}}", NULL);
    assert_said(name, "{\"a\": {\"p\": null}}", "{\"a\": {\"p\": 0.5}}",
                "  a.p: 1 of 1 differ; first null against 0.5\n");
    assert_said(
        name,
        "{\"differences\": [{\"layer\": 0, \"expert\": 1, \"d\": 4}, {\"layer\": 2, \"expert\": 1, \"d\": "
        "1}]}",
        "{\"differences\": [{\"layer\": 2, \"expert\": 1, \"d\": 1.5}, {\"layer\": 0, \"expert\": 1, \"d\": "
        "4}]}",
        "  differences[].d: 1 of 2 differ; largest difference 0.5 (layer 2, expert 1: 1 against 1.5); "
        "largest relative 0.333\n");
    assert_said(
        name, "{\"overlap\": [{\"k\": 5, \"shared\": 1}]}", "{\"overlap\": [{\"k\": 10, \"shared\": 1}]}",
        "  overlap[]: 0 of 0 differ, 1 only in A, 1 only in B; first k 5: {k: 5, shared: 1} against nothing");
    assert_said(name, "{\"cells\": [[0, 1]]}", "{\"cells\": [[0, 2]]}",
                "  cells: 1 of 1 differ; first [[0, 1]] against [[0, 2]]\n");
}

static void responses_are_compared_by_prompt(void **state) {
    (void)state;
    const char *name = "silence/responses/other.jsonl";
    const char *one =
        "{\"condition\": \"c\", \"group\": \"g\", \"index\": 0, \"response\": \"yes\", \"tokens\": 3}\n"
        "{\"condition\": \"c\", \"group\": \"g\", \"index\": 4, \"response\": \"no\", \"tokens\": 3}\n";
    const char *other =
        "{\"condition\": \"c\", \"group\": \"g\", \"index\": 4, \"response\": \"no\", \"tokens\": 3}\n"
        "{\"condition\": \"c\", \"group\": \"g\", \"index\": 0, \"response\": \"yes\", \"tokens\": 3}";
    assert_said(name, one, other, NULL);
    other =
        "{\"condition\": \"c\", \"group\": \"g\", \"index\": 4, \"response\": \"n\\u001bo\", \"tokens\": 5}\n"
        "{\"condition\": \"c\", \"group\": \"g\", \"index\": 0, \"response\": \"yes\", \"tokens\": 3}\n";
    assert_said(
        name, one, other,
        "silence/responses/other.jsonl: 2 rows, ids equal\n  response: 1 of 2 differ; first condition c, "
        "group g, index 4: no against n\\x1bo\n  tokens: 1 of 2 differ; largest difference 2 ");
}

/* "10" and "10.0" are one number, but not one reply or id. */
static void texts_that_look_like_numbers_are_texts(void **state) {
    (void)state;
    assert_said("silence/responses/other.jsonl", "{\"group\": \"g\", \"index\": 0, \"response\": \"10\"}\n",
                "{\"group\": \"g\", \"index\": 0, \"response\": \"10.0\"}\n",
                "  response: 1 of 1 differ; first group g, index 0: 10 against 10.0\n");
    assert_said("activation/more.csv", "group,index,id,x\na,0,7,10\n", "group,index,id,x\na,0,07,10.0\n",
                "more.csv: 1 rows, ids equal\n  id: 1 of 1 differ; first group a, index 0: 7 against 07\n");
}

static void write_array(int side, double *values, int64_t n) {
    Error error = {0};
    NamedTensor tensor = {"x", tensor_matrix(values, DTYPE_F64, n / 2, 2)};
    char *path = io_join(folders[side], "activation/a.safetensors");
    if (!safetensors_write(path, &tensor, 1, NULL, 0, &error)) fail_msg("%s", error.text);
    mem_free(path);
}

static void arrays_are_compared_by_element(void **state) {
    (void)state;
    bool same;
    double a[4] = {1, 2, 3, 4}, b[4] = {1, 2, 3, 8};
    write_array(0, a, 4);
    write_array(1, b, 4);
    char *text = run_diff(&same);
    assert_false(same);
    assert_contains(
        text, "activation/a.safetensors:\n  x: 1 of 4 differ; largest difference 4 ([1, 1]: 4 against 8); "
              "largest relative 0.5\n");
    free(text);
    const int64_t large[2][2] = {{1, 9007199254740992}, {1, 9007199254740993}};
    for (int side = 0; side < 2; side++) {
        Error error = {0};
        NamedTensor tensor = {"x", tensor_matrix((void *)large[side], DTYPE_I64, 1, 2)};
        char *path = io_join(folders[side], "activation/a.safetensors");
        if (!safetensors_write(path, &tensor, 1, NULL, 0, &error)) fail_msg("%s", error.text);
        mem_free(path);
    }
    text = run_diff(&same);
    assert_false(same);
    assert_contains(text, "  x: 1 of 2 differ; first [0, 1]: 9007199254740992 against 9007199254740993\n");
    free(text);
    write_array(0, a, 4);
    write_array(1, b, 2);
    text = run_diff(&same);
    assert_contains(text, "  x: 1 of 1 differ; first F64 2 2 against F64 1 2\n");
    free(text);
    remove_file(0, "activation/a.safetensors");
    text = run_diff(&same);
    assert_contains(text, "only in B: activation/a.safetensors\n");
    assert_contains(text, "different: 1 settings, inputs and files; 26 files are the same\n");
    free(text);
    remove_file(1, "activation/a.safetensors");
}

/* A file that is read by its own rules, replaced on the second side. */
static void assert_own(const char *name, const char *a, const char *b, const char *said, bool want_same) {
    bool same;
    char *kept[2];
    Error error = {0};
    for (int side = 0; side < 2; side++) {
        size_t n;
        char *path = io_join(folders[side], name);
        if (!(kept[side] = io_read_all(path, 1 << 20, &n, &error))) fail_msg("%s", error.text);
        put_file(side, name, side ? b : a);
        mem_free(path);
    }
    char *text = run_diff(&same);
    assert_contains(text, said);
    assert_int_equal(same, want_same);
    free(text);
    for (int side = 0; side < 2; side++) {
        put_file(side, name, kept[side]);
        mem_free(kept[side]);
    }
}

static void settings_and_inputs(void **state) {
    (void)state;
    assert_own("job.json", "{\"steps\": [{\"name\": \"s\", \"kind\": \"gradient\", \"loss\": \"prompt\"}]}",
               "{\"steps\": [{\"name\": \"s\", \"kind\": \"gradient\", \"loss\": \"target\"}]}",
               "option steps[s].loss: prompt against target\n", false);
    assert_own("job.json", "{\"seed\": 1, \"steps\": [{\"name\": \"s\"}, {\"name\": \"t\"}]}",
               "{\"seed\": 2, \"steps\": [{\"name\": \"t\"}, {\"name\": \"s\"}]}",
               "option seed: 1 against 2\n", false);
    assert_own("job.json", "{\"batch_tokens\": 1, \"models\": {\"m\": {\"path\": \"/a\"}}, \"steps\": []}",
               "{\"batch_tokens\": 2, \"models\": {\"m\": {\"path\": \"/b\"}}, \"steps\": []}",
               "note: models.m.path: /a against /b (changes no number)\n", true);
    assert_own("manifest.json", "{\"version\": \"1\", \"host\": \"x\", \"inputs\": []}",
               "{\"version\": \"2\", \"host\": \"y\", \"inputs\": []}",
               "note: version: 1 against 2\nsame: 26 files", true);
    assert_own("manifest.json", "{\"inputs\": [{\"name\": \"p\", \"sha256\": \"0123456789abcdef\"}]}",
               "{\"inputs\": [{\"name\": \"p\", \"sha256\": \"f123456789abcdef\"}]}",
               "input p: sha256 0123456789ab... against f123456789ab...\n", false);
    assert_own("manifest.json", "{\"inputs\": [{\"name\": \"p\", \"sha256\": \"01\"}]}", "{\"inputs\": []}",
               "input p: only in A\n", false);
}

static void what_is_made_from_the_rest_is_passed_over(void **state) {
    (void)state;
    static const char *const names[] = {"report.html",
                                        "methods.txt",
                                        "statistics.json",
                                        "README.txt",
                                        "events.jsonl",
                                        "figures/a.svg",
                                        "activation/blocks/a.0000.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) assert_said(names[i], "a", "b", NULL);
    assert_said("activation/other.bin", "a", "b", "activation/other.bin: bytes differ\n");
}

/* More rows than the reader holds at once, longer ones too. */
static void long_tables_are_read_in_pieces(void **state) {
    (void)state;
    enum { N = 20000, LONG = 200000 };
    Text a = {0}, b = {0};
    text_put_string(&a, "group,index,id,x\n");
    text_put_string(&b, "group,index,id,x\n");
    for (int i = 0; i < N; i++) {
        text_format(&a, "g,%d,p%d,%d\n", i, i, i);
        text_format(&b, "g,%d,p%d,%d\n", N - 1 - i, N - 1 - i, N - 1 - i == 777 ? 1777 : N - 1 - i);
    }
    for (Text *t = &a;; t = &b) {
        text_put_string(t, "h,0,\"");
        for (int i = 0; i < LONG; i++) text_put_string(t, "\n");
        text_put_string(t, t == &a ? "x\",0\n" : "y\",0\n");
        if (t == &b) break;
    }
    assert_said("activation/long.csv", a.bytes, b.bytes,
                "20001 rows, ids equal\n  id: 1 of 20001 differ; first group h, index 0: ");
    assert_said("activation/long.csv", a.bytes, b.bytes,
                "  x: 1 of 20001 differ; largest difference 1e+03 (group g, index 777: 777 against 1777)");
    text_free(&a);
    text_free(&b);
}

static void assert_refused(const char *a, const char *b, const char *said) {
    bool same;
    Error error = {0};
    FILE *to = fopen("/dev/null", "w");
    assert_false(diff_runs(a, b, to, &same, &error));
    fclose(to);
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, said);
    assert_false(same);
}

static void what_is_no_run_is_refused(void **state) {
    (void)state;
    assert_refused(folders[0], "nowhere", "nowhere: expected a run folder: got no job.json in it");
    assert_refused("nowhere", folders[0], "nowhere: expected a run folder");
    put_file(0, "a/b/c/d/e/f.csv", "a\n");
    assert_refused(folders[0], folders[1], "folders at most 4 deep: got a/b/c/d/e");
    char *deep = io_join(folders[0], "a/b/c/d/e");
    remove_file(0, "a/b/c/d/e/f.csv");
    assert_int_equal(rmdir(deep), 0);
    mem_free(deep);
    put_file(0, "activation/x.csv", "a,b\n1,2\n");
    put_file(1, "activation/x.csv", "a,b\n1,2,3\n");
    assert_refused(folders[0], folders[1], "activation/x.csv: row 1: expected 2 fields as in the header");
    put_file(1, "activation/x.csv", "a,b\n1,\"2\n");
    assert_refused(folders[0], folders[1], "activation/x.csv: row 1: expected 2 fields");
    remove_file(0, "activation/x.csv");
    remove_file(1, "activation/x.csv");
}

static bool scenario(void *context, Error *error) {
    (void)context;
    bool same;
    FILE *to = fopen("/dev/null", "w");
    bool ok = diff_runs(folders[0], folders[1], to, &same, error);
    fclose(to);
    return ok;
}

static void faults_are_errors(void **state) {
    (void)state;
    put_file(0, "activation/x.csv", "group,b\na,2\n");
    put_file(1, "activation/x.csv", "group,b\na,3\n");
    put_file(0, "activation/y.json", "{\"a\": [{\"k\": 1}]}");
    put_file(1, "activation/y.json", "{\"a\": [{\"k\": 2}]}");
    fail_each_allocation(scenario, NULL);
    fail_each_file_call(scenario, NULL, EIO);
}

static int make_runs(void **state) {
    (void)state;
    for (int side = 0; side < 2; side++) {
        snprintf(folders[side], sizeof folders[side], "%s", scratch_path(side ? "b" : "a"));
        fake_run(folders[side], groups, 2);
    }
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_runs_are_the_same),
        cmocka_unit_test(tables_are_compared_by_key),
        cmocka_unit_test(json_is_walked_by_paths),
        cmocka_unit_test(responses_are_compared_by_prompt),
        cmocka_unit_test(texts_that_look_like_numbers_are_texts),
        cmocka_unit_test(arrays_are_compared_by_element),
        cmocka_unit_test(settings_and_inputs),
        cmocka_unit_test(what_is_made_from_the_rest_is_passed_over),
        cmocka_unit_test(long_tables_are_read_in_pieces),
        cmocka_unit_test(what_is_no_run_is_refused),
        cmocka_unit_test(faults_are_errors),
    };
    return cmocka_run_group_tests(tests, make_runs, scratch_remove);
}

/* Folders of replies that come from somebody else: their names lead nowhere and stay whole in the tables. */
#include "../../analysis/csv.h"
#include "../../analysis/judge_folder.h"
#include "../../engine/text.h"
#include "../engine/scratch.h"

static Error error;

static void put_folder(const char *name, const char *const *nll) {
    Text text = {0};
    scratch_make_folder("f");
    scratch_make_folder("f/responses");
    text_put_string(&text, "condition,kind,control_of,rule,amount,defined\nbaseline,baseline,,,,1\n");
    text_put_csv(&text, name, strlen(name));
    text_put_string(&text, ",selected,,top,1,1\n");
    scratch_write_text("f/conditions.csv", text.bytes);
    text_clear(&text);
    for (int i = 0; i < 2; i++) {
        text_format(
            &text,
            "{\"group\": \"a, \\\"b\\\"\", \"id\": \"r%d\", \"index\": %d, \"response\": \"I cannot.\"", i,
            i);
        text_format(&text, "%s%s}\n", nll[i] ? ", \"nll\": " : "", nll[i] ? nll[i] : "");
    }
    scratch_write_text("f/responses/baseline.jsonl", text.bytes);
    scratch_write_text("f/responses/x, y.jsonl", text.bytes);
    scratch_write_text("f/elsewhere.jsonl", text.bytes);
    text_free(&text);
}

static bool judge(double limit) {
    error = (Error){0};
    return judge_folder(&(JudgeFolder){.folder = scratch_path("f"),
                                       .rules = SOURCE_DIR "/configs/judge/refusals_en.json",
                                       .resamples = 10,
                                       .perplexity_limit = limit},
                        &error);
}

static void names_lead_nowhere(void **state) {
    (void)state;
    static const char *const nll[] = {"0.5", "0.25"}, *const names[] = {"../elsewhere", ".hidden", ""};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        put_folder(names[i], nll);
        assert_false(judge(0));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        if (!strstr(error.text, "conditions.csv:3: column condition: expected a plain file name: got \""))
            fail_msg("%s: %s", names[i], error.text);
    }
}

static void names_stay_whole(void **state) {
    (void)state;
    static const char *const nll[] = {"0.5", "0.25"}, *const tables[] = {"f/labels.csv", "f/outcomes.csv"};
    put_folder("x, y", nll);
    if (!judge(3)) fail_msg("%s", error.text);
    for (int i = 0; i < 2; i++) {
        Csv csv;
        int64_t condition, group;
        if (!csv_read(scratch_path(tables[i]), 1 << 20, &csv, &error)) fail_msg("%s", error.text);
        assert_true(csv_need_column(&csv, "condition", &condition, &error) &&
                    csv_need_column(&csv, "group", &group, &error));
        assert_string_equal(csv_field(&csv, csv.n_rows - 1, condition).text, "x, y");
        assert_string_equal(csv_field(&csv, csv.n_rows - 1, group).text, "a, \"b\"");
        csv_free(&csv);
    }
}

static void the_reply_without_nll_is_named(void **state) {
    (void)state;
    static const char *const nll[] = {"0.5", NULL};
    put_folder("x, y", nll);
    assert_false(judge(3));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    if (!strstr(error.text, "responses/baseline.jsonl: ") || !strstr(error.text, "got none of \"r1\""))
        fail_msg("%s", error.text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_lead_nowhere),
        cmocka_unit_test(names_stay_whole),
        cmocka_unit_test(the_reply_without_nll_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

/* The step kind intervention on the demo model: its conditions are what the options say, the baseline is
 * what the model says without any, every run has the same bytes, stopped or batched as it may be; and what
 * is refused. */
#include "../../analysis/conditions.h"
#include "../../kernels/device.h"
#include "scratch_run.h"
#include <errno.h>

static const char job_text[] =
    "{\"schema_version\": 1, \"seed\": 3,\n"
    " \"models\": {\"demo\": {\"path\": \"" DEMO "model\", \"chat_template\": \"phi35moe\"}},\n"
    " \"prompts\": {" PROMPTS("a", "rank_ordinary", "6") ", " PROMPTS(
        "b", "rank_restricted",
        "6") ",\n"
             "  " PROMPTS(
                 "t", "test_restricted",
                 "66") "},\n"
                       " \"steps\": [\n"
                       "  {\"name\": \"act\", \"kind\": \"activation\", \"groups\": [\"a\", \"b\"]},\n"
                       "  {\"name\": \"grad\", \"kind\": \"gradient\", \"groups\": [\"a\", \"b\"]},\n"
                       "  {\"name\": \"said\", \"kind\": \"activation\", \"tokens\": \"generated\", "
                       "\"groups\": [\"t\"],\n"
                       "   \"max_new_tokens\": 4, \"temperature\": 0.8},\n"
                       "  {\"name\": \"edit\", \"kind\": \"intervention\", \"from\": [\"act\", \"grad\"], "
                       "\"groups\": [\"t\"],\n"
                       "   \"rank_groups\": [\"b\", \"a\"], \"top\": [2], \"traffic\": [0.01, 6], \"cells\": "
                       "[\"0:1\", \"3:2\"],\n"
                       "   \"random_sets\": 1, \"layer_matched_sets\": 1, \"traffic_matched_sets\": 1, "
                       "\"max_new_tokens\": 4,\n"
                       "   \"temperature\": 0.8}]}\n";

static const char *const tables[] = {"edit/step.json",
                                     "edit/conditions.csv",
                                     "edit/cells.csv",
                                     "edit/excluded.csv",
                                     "edit/prompts.csv",
                                     "edit/responses/baseline.jsonl",
                                     "edit/responses/grad.top2.jsonl",
                                     "edit/responses/act.top2.jsonl",
                                     "edit/responses/grad.traffic6.jsonl",
                                     "edit/responses/random.top2.0.jsonl",
                                     "edit/responses/cells.jsonl",
                                     "edit/responses/cells.layer_matched.0.jsonl",
                                     "edit/responses/grad.top2.traffic_matched.0.jsonl"};

static void assert_same_run(const char *a, const char *b) {
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        char path[200];
        snprintf(path, sizeof path, "%s/%s", a, tables[i]);
        if (i >= 7 && !io_exists(scratch_path(path))) continue; /* a condition that this job has not */
        assert_same_table(a, b, tables[i]);
    }
}

static int set_up(void **state) {
    (void)state;
    scratch_write_text("job.json", job_text);
    must_run("whole", NULL, 0);
    return 0;
}

/* ---- what is written ---- */
static void conditions_are_listed(void **state) {
    (void)state;
    char *conditions = read_table("whole", "edit/conditions.csv", NULL),
         *cells = read_table("whole", "edit/cells.csv", NULL),
         *facts = read_table("whole", "edit/step.json", NULL);
    assert_contains(conditions, "baseline,baseline,,,,,,0,,1,\n");
    assert_contains(conditions, "act.top2,selected,act,top,2,,,2,0.");
    assert_contains(conditions, "act.traffic0.01,selected,act,traffic,0.01,,,0,0,0,the first cell alone");
    assert_contains(conditions, "random.top2.0,random,,top,2,0,act.top2,2,0.");
    assert_contains(conditions, "random.traffic6.0,random,,traffic,6,0,act.traffic6,");
    assert_contains(conditions, "cells,selected,,cells,2,,,2,0.");
    assert_contains(conditions, "random.cells.0,random,,cells,2,0,cells,2,0.");
    assert_contains(conditions,
                    "act.traffic0.01.layer_matched.0,layer_matched,act,traffic,0.01,0,act.traffic0.01,0,,0,"
                    "act.traffic0.01 is not defined");
    assert_null(strstr(conditions, "random.top2.1"));
    assert_contains(cells, "cells,0,0,1,mask,0.");
    assert_contains(cells, "cells,1,3,2,mask,0.");
    assert_contains(facts, "\"edit\": \"router logit set to -infinity");
    assert_contains(facts, "condition grad.traffic0.01 is not defined: the first cell alone");
    mem_free(conditions);
    mem_free(cells);
    mem_free(facts);
}

/* The number after `key` in the row that begins with `row`. */
static double traffic_of(const char *conditions, const char *row) {
    const char *at = strstr(conditions, row);
    if (!at) fail_msg("no row %s", row);
    for (int i = 0; i < 8; i++) at = strchr(at, ',') + 1;
    return strtod(at, NULL);
}

static void controls_match(void **state) {
    (void)state;
    char *conditions = read_table("whole", "edit/conditions.csv", NULL);
    double selected = traffic_of(conditions, "\ngrad.top2,"),
           matched = traffic_of(conditions, "\ngrad.top2.traffic_matched.0,"),
           random = traffic_of(conditions, "\nrandom.traffic6.0,"),
           budget = traffic_of(conditions, "\nact.traffic6,");
    assert_true(selected > 0 && matched >= 0.95 * selected && matched <= 1.05 * selected);
    assert_true(random >= 0.057 && random <= 0.063);
    assert_true(budget > 0 && budget <= 0.06);
    mem_free(conditions);
}

/* The text between `"response": ` and `, "tokens"` of line n. */
static const char *response(const char *lines, int n, size_t *length) {
    for (int i = 0; i < n; i++) lines = strchr(lines, '\n') + 1;
    const char *begin = strstr(lines, "\"response\": "), *end = strstr(begin, ", \"tokens\": ");
    *length = (size_t)(end - begin);
    return begin;
}

/* The baseline is what a step without interventions generates, sampled with the same seeds; silenced experts
 * change some replies. */
static void the_baseline_is_the_model(void **state) {
    (void)state;
    char *said = read_table("whole", "said/responses.jsonl", NULL),
         *baseline = read_table("whole", "edit/responses/baseline.jsonl", NULL),
         *top = read_table("whole", "edit/responses/act.top2.jsonl", NULL);
    int n_changed = 0;
    for (int i = 0; i < 66; i++) {
        size_t n, m, k;
        const char *a = response(said, i, &n), *b = response(baseline, i, &m), *c = response(top, i, &k);
        assert_true(n == m && !memcmp(a, b, n));
        n_changed += n != k || memcmp(a, c, n) != 0;
    }
    assert_true(n_changed > 0);
    mem_free(said);
    mem_free(baseline);
    mem_free(top);
}

/* ---- same bytes ---- */
/* Two blocks of prompts and few conditions. */
static const char *const small[] = {"steps.edit.random_sets=1",
                                    "steps.edit.layer_matched_sets=0",
                                    "steps.edit.traffic_matched_sets=0",
                                    "steps.edit.from=grad",
                                    "steps.edit.traffic=[]",
                                    "steps.edit.counts=act",
                                    "steps.edit.cells=[]",
                                    "batch_prompts=5"};
enum { N_SMALL = sizeof small / sizeof *small };

static void batches_change_no_byte(void **state) {
    (void)state;
    must_run("small", small, N_SMALL - 1);
    must_run("batch", small, N_SMALL);
    assert_same_run("small", "batch");
    remove_run("batch");
}

static void a_stopped_run_is_gone_on_with(void **state) {
    (void)state;
    Error error;
    io_fail_after(0, 0, false);
    must_run("stopped", small, N_SMALL - 1);
    remove_run("stopped");
    int64_t n_calls = io_fail_after(0, 0, false), n_resumed = 0;
    for (int64_t k = n_calls / 2; k < n_calls; k += 1 + n_calls / 12) {
        io_fail_after(k, ENOSPC, true);
        bool ok = run("stopped", small, N_SMALL - 1, &error);
        io_fail_after(0, 0, false);
        if (ok) fail_msg("file call %d failed and nothing was said", (int)k);
        assert_clean_error(&error, error.code);
        n_resumed += io_exists(scratch_path("stopped/edit/blocks/t.0000.safetensors"));
        must_run("stopped", small, N_SMALL - 1);
        assert_same_run("small", "stopped");
        assert_false(io_exists(scratch_path("stopped/edit/blocks")));
        remove_run("stopped");
    }
    assert_true(n_resumed > 0);
}

static void memory_may_run_out_anywhere(void **state) {
    (void)state;
    Error error;
    static const char *const few[] = {"prompts.t.limit=2"};
    mem_fail_after(0, false);
    must_run("short", few, 1);
    int64_t n = mem_fail_after(0, false);
    for (int64_t k = n / 2; k < n; k += 1 + n / 20) {
        remove_run("short");
        mem_fail_after(k, true);
        bool ok = run("short", few, 1, &error);
        mem_fail_after(0, false);
        if (ok) fail_msg("allocation %d failed and nothing was said", (int)k);
        assert_clean_error(&error, ERROR_UNAVAILABLE);
    }
    remove_run("short");
}

/* ---- other options ---- */
/* Edits of generated tokens alone leave the first token as it was; of the prompt alone change it. */
static void tokens_are_edited_where_asked(void **state) {
    (void)state;
    static const char *const sets[] = {
        "steps.edit.applies_to=generated", "prompts.t.limit=8",    "steps.edit.mode=zero", "steps.edit.top=6",
        "steps.edit.temperature=0",        "steps.edit.traffic=[]"};
    must_run("generated", sets, 6);
    char *baseline = read_table("generated", "edit/responses/baseline.jsonl", NULL),
         *edited = read_table("generated", "edit/responses/grad.top6.jsonl", NULL);
    const char *a = baseline, *b = edited;
    int n_changed = 0;
    for (int i = 0; i < 8; i++) {
        a = strstr(a, "\"tokens\": [") + 11, b = strstr(b, "\"tokens\": [") + 11;
        assert_int_equal(strtol(a, NULL, 10), strtol(b, NULL, 10));
        n_changed += strncmp(a, b, strcspn(a, "]")) != 0;
    }
    assert_true(n_changed > 0);
    mem_free(baseline);
    mem_free(edited);
    remove_run("generated");
}

static void a_selection_is_imported(void **state) {
    (void)state;
    char set[300];
    scratch_write_text("mine.csv", "layer,expert,why\n2,5,x\n0,3,y\n");
    snprintf(set, sizeof set, "steps.edit.selection=%s", scratch_path("mine.csv"));
    const char *const sets[] = {set, "prompts.t.limit=1", "steps.edit.top=[]", "steps.edit.traffic=[]",
                                "steps.edit.cells=[]"};
    must_run("import", sets, 5);
    char *cells = read_table("import", "edit/cells.csv", NULL),
         *manifest = read_table("import", "manifest.json", NULL);
    assert_contains(cells, "selection,0,2,5,mask,");
    assert_contains(cells, "selection,1,0,3,mask,");
    assert_contains(manifest, "steps.edit.selection");
    mem_free(cells);
    mem_free(manifest);
    scratch_write_text("mine.csv", "layer,expert,why\n2,5,x\n");
    Error error;
    assert_false(run("import", sets, 5, &error));
    assert_contains(error.text, "expected steps.edit.selection with sha256");
    remove_run("import");
}

/* Two groups with the same prompts: every difference is 0, and the first two of equal cells mean nothing. */
static void equal_scores_select_nothing(void **state) {
    (void)state;
    static const char *const sets[] = {"prompts.b.path=" DEMO "prompts/rank_ordinary.jsonl",
                                       "prompts.t.limit=1", "steps.edit.top=2,40", "steps.edit.cells=[]",
                                       "steps.edit.mode=zero"};
    must_run("alike", sets, 5);
    char *conditions = read_table("alike", "edit/conditions.csv", NULL);
    assert_contains(conditions, "act.top2,selected,act,top,2,,,0,0,0,all ");
    assert_contains(conditions, " cells that can be ranked have the same value\n");
    assert_contains(conditions, "act.traffic6,selected,act,traffic,6,,,0,0,0,all ");
    assert_contains(conditions, "random.top2.0,random,,top,2,0,act.top2,0,,0,act.top2 is not defined");
    assert_false(io_exists(scratch_path("alike/edit/responses/act.top2.jsonl")));
    mem_free(conditions);
    remove_run("alike");
}

static void a_plan_counts_conditions(void **state) {
    (void)state;
    char *text = NULL;
    size_t n = 0;
    FILE *to = open_memstream(&text, &n);
    Error error = {0};
    RunRequest plan = {.job = scratch_path("job.json"),
                       .out = scratch_path("plan"),
                       .dry_run = true,
                       .version = "test",
                       .to = to};
    if (!run_job(&plan, &error)) fail_msg("%s", error.text);
    fclose(to);
    assert_contains(text, "step edit: intervention of model demo");
    assert_contains(text, "at most 26 conditions"); /* baseline, 7 selected, 14 matched, 4 random */
    free(text);
}

/* ---- refusals ---- */
static void refuse(const char *set, const char *want) {
    Error error;
    assert_false(run("refused", &set, 1, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, want);
    remove_run("refused");
}

static void bad_steps_are_refused(void **state) {
    (void)state;
    refuse("prompts.t.path=" DEMO "prompts/rank_restricted.jsonl",
           "prompts.t: expected no prompt in common with prompts.b (step act ranks, step edit tests): got 6, "
           "the first \"rank-restricted-001\"");
    refuse("steps.edit.groups=a",
           "prompts.a: expected no prompt in common with prompts.a (step act ranks, step edit tests)");
    refuse("steps.edit.cells=0:0,0:1,0:2,0:3,0:4,0:5,0:6",
           "step edit: condition cells: layer 0: expected at least 2 experts left, as many as a token takes: "
           "got 1 of 8, 7 masked");
    refuse("steps.edit.cells=0:8", "steps.edit.cells: expected LAYER:EXPERT");
    refuse("steps.edit.cells=1:1,1:01", "steps.edit.cells: expected each cell once: got \"1:01\" again");
    refuse("steps.edit.from=said", "expected groups of the step said: got \"b\"");
    refuse("steps.edit.from=nobody", "steps[3].from: expected a step before this one: got \"nobody\"");
    refuse("steps.edit.from=grad", "steps[3].counts: expected an activation step before this one");
    refuse("steps.edit.rank_groups=a", "steps[3].rank_groups: expected two groups of the ranking steps");
    refuse("steps.edit.rank_by=score", "steps[3].rank_groups: expected one group for rank_by score");
    refuse("steps.edit.traffic_group=c",
           "steps[3].traffic_group: expected a group of the step act: got \"c\"");
    refuse("steps.edit.top=1.5", "steps[3].top: expected whole numbers of cells");
    refuse("steps.edit.top=3,2", "expected ascending numbers: got 2 after 3");
    refuse("steps.edit.mode=force",
           "steps[3].random_sets: expected 0, and traffic_matched_sets 0, with mode force");
    refuse("steps.edit.mode=masc",
           "expected one of mask, bias, promote, demote, force, zero, zero_renormalize");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conditions_are_listed),         cmocka_unit_test(controls_match),
        cmocka_unit_test(the_baseline_is_the_model),     cmocka_unit_test(batches_change_no_byte),
        cmocka_unit_test(a_stopped_run_is_gone_on_with), cmocka_unit_test(memory_may_run_out_anywhere),
        cmocka_unit_test(tokens_are_edited_where_asked), cmocka_unit_test(a_selection_is_imported),
        cmocka_unit_test(equal_scores_select_nothing),   cmocka_unit_test(a_plan_counts_conditions),
        cmocka_unit_test(bad_steps_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_remove);
}

/* Runs of a small job on the demo model: same bytes whatever the batch and wherever it was stopped; what
 * is refused; what a full disk leaves. */
#include "../../analysis/csv.h"
#include "../../engine/safetensors.h"
#include "../../kernels/device.h"
#include "scratch_run.h"
#include "statistics_file.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>

static const char job_text[] =
    "{\"schema_version\": 1,\n"
    " \"models\": {\"demo\": {\"path\": \"" DEMO "model\", \"chat_template\": \"phi35moe\"}},\n"
    " \"prompts\": {\"a\": {\"path\": \"" DEMO "prompts/rank_ordinary.jsonl\", \"limit\": 67},\n"
    "             \"b\": {\"path\": \"" DEMO "prompts/rank_restricted.jsonl\", \"limit\": 3}},\n"
    " \"steps\": [{\"name\": \"act\", \"kind\": \"activation\", \"trace\": \"full\", \"groups\": [\"b\"]},\n"
    "           {\"name\": \"grad\", \"kind\": \"gradient\"}]}\n";

static const char *const tables[] = {"README.txt",
                                     "job.json",
                                     "act/step.json",
                                     "act/scores.csv",
                                     "act/curve.csv",
                                     "act/coverage.csv",
                                     "act/layers.csv",
                                     "act/prompts.csv",
                                     "grad/step.json",
                                     "grad/scores.csv",
                                     "grad/curve.csv",
                                     "grad/coverage.csv",
                                     "grad/layers.csv",
                                     "grad/prompts.csv",
                                     "act/statistics.json",
                                     "grad/statistics.json",
                                     "act/per_prompt.safetensors",
                                     "grad/per_prompt.safetensors",
                                     "act/traces/b.0000.safetensors"};

static void assert_same_run(const char *a, const char *b) {
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) assert_same_table(a, b, tables[i]);
}

static int n_partials;
static int count_partial(const char *path, const struct stat *about, int type, struct FTW *at) {
    (void)about;
    (void)type;
    (void)at;
    n_partials += strstr(path, ".partial-") != NULL;
    return 0;
}

static int64_t count_partials(const char *out) {
    n_partials = 0;
    nftw(scratch_path(out), count_partial, 16, FTW_PHYS);
    return n_partials;
}

static int set_up(void **state) {
    (void)state;
    scratch_write_text("job.json", job_text);
    must_run("whole", NULL, 0);
    return 0;
}

/* ---- same bytes ---- */
static void a_second_run_changes_nothing(void **state) {
    (void)state;
    must_run("again", NULL, 0);
    assert_same_run("whole", "again");
    size_t before, after;
    mem_free(read_table("again", "act/scores.csv", &before));
    must_run("again", NULL, 0);
    mem_free(read_table("again", "act/scores.csv", &after));
    assert_int_equal(before, after);
    assert_same_run("whole", "again");
    assert_false(io_exists(scratch_path("again/grad/blocks")));
    remove_run("again");
}

static void batches_change_no_byte(void **state) {
    (void)state;
    static const char *const sets[][2] = {
        {"batch_prompts=1", "steps.grad.recompute=always"},
        {"batch_prompts=7", "memory_limit_mib=1"},
        {"batch_tokens=64", "steps.grad.recompute=never"},
    };
    for (int i = 0; i < 3; i++) {
        must_run("batch", sets[i], 2);
        for (size_t k = 0; k < sizeof tables / sizeof *tables; k++)
            if (strcmp(tables[k], "job.json") != 0) assert_same_table("whole", "batch", tables[k]);
        remove_run("batch");
    }
}

/* ---- stopped at any file call, then gone on with ---- */
static void a_stopped_run_is_gone_on_with(void **state) {
    (void)state;
    Error error;
    io_fail_after(0, 0, false);
    must_run("count", NULL, 0);
    remove_run("count");
    int64_t n_calls = io_fail_after(0, 0, false), n_resumed = 0;
    assert_true(n_calls > 100);
    for (int64_t k = 1; k < n_calls; k += 1 + n_calls / 20) {
        for (int for_ever = 0; for_ever < 2; for_ever++) {
            io_fail_after(k, ENOSPC, for_ever);
            bool ok = run("stopped", NULL, 0, &error);
            io_fail_after(0, 0, false);
            /* how much memory is free is the one thing that may stay unread */
            if (ok && for_ever) fail_msg("file call %d failed and nothing was said", (int)k);
            if (!ok) assert_clean_error(&error, error.code);
            n_resumed += !ok && io_exists(scratch_path("stopped/manifest.json"));
            must_run("stopped", NULL, 0);
            assert_same_run("whole", "stopped");
            assert_int_equal(count_partials("stopped"), 0);
            remove_run("stopped");
        }
    }
    assert_true(n_resumed > 10);
}

/* What blocks were finished is not measured again: a block of other numbers shows in the tables. */
static void finished_blocks_are_taken_as_they_are(void **state) {
    (void)state;
    Error error;
    int64_t k = 1;
    const char *block = "stopped/grad/blocks/a.0000.safetensors";
    for (; !io_exists(scratch_path(block)); k++) {
        remove_run("stopped");
        io_fail_after(10 * k, ENOSPC, true);
        bool ok = run("stopped", NULL, 0, &error);
        io_fail_after(0, 0, false);
        assert_false(ok);
    }
    size_t n;
    char *bytes = read_table(".", block, &n);
    float two = 2;
    memcpy(bytes + n - 4, &two, 4);
    scratch_write(block, bytes, n);
    mem_free(bytes);
    must_run("stopped", NULL, 0);
    assert_same_table("whole", "stopped", "act/scores.csv");
    size_t m;
    char *ours = read_table("whole", "grad/scores.csv", &n),
         *theirs = read_table("stopped", "grad/scores.csv", &m);
    assert_true(n != m || memcmp(ours, theirs, n) != 0);
    mem_free(ours);
    mem_free(theirs);
    remove_run("stopped");
}

static void a_broken_block_is_measured_again(void **state) {
    (void)state;
    must_run("broken", NULL, 0);
    unlink(scratch_path("broken/grad/step.json"));
    scratch_make_folder("broken/grad/blocks");
    scratch_write_text("broken/grad/blocks/a.0000.safetensors", "half a blo");
    scratch_write_text("broken/grad/scores.csv.partial-99", "half a ta");
    must_run("broken", NULL, 0);
    assert_same_run("whole", "broken");
    assert_int_equal(count_partials("broken"), 0);
    remove_run("broken");
}

static void memory_may_run_out_anywhere(void **state) {
    (void)state;
    Error error;
    mem_fail_after(0, false);
    must_run("count", NULL, 0);
    remove_run("count");
    int64_t n = mem_fail_after(0, false);
    assert_true(n > 500);
    for (int64_t k = 1; k < n; k += 1 + n / 20) {
        mem_fail_after(k, true);
        bool ok = run("short", NULL, 0, &error);
        mem_fail_after(0, false);
        if (ok) fail_msg("allocation %d failed and nothing was said", (int)k);
        assert_clean_error(&error, ERROR_UNAVAILABLE);
        must_run("short", NULL, 0);
        assert_same_run("whole", "short");
        remove_run("short");
    }
}

/* ---- refusals ---- */
static void refuse(const char *out, const char *set, ErrorCode code, const char *want) {
    Error error;
    assert_false(run(out, &set, set ? 1 : 0, &error));
    assert_clean_error(&error, code);
    assert_contains(error.text, want);
}

static void another_job_is_refused(void **state) {
    (void)state;
    refuse("whole", "steps.grad.loss=target", ERROR_BAD_INPUT,
           "it holds another job: expected \"loss\": \"prompt\": got \"loss\": \"target\"; choose another "
           "--out");
    refuse("whole", "prompts.b.limit=4", ERROR_BAD_INPUT, "expected \"limit\": 3: got \"limit\": 4");
    refuse("whole", "prompts.b.path=" DEMO "prompts/test_ordinary.jsonl", ERROR_BAD_INPUT,
           "expected prompts.b with sha256");
    assert_true(io_exists(scratch_path("whole/grad/step.json")));
}

static void another_folder_is_refused(void **state) {
    (void)state;
    scratch_make_folder("mine");
    scratch_write_text("mine/thesis.txt", "precious");
    refuse("mine", NULL, ERROR_BAD_INPUT,
           "expected an empty folder or a run of this job: got a folder with \"thesis.txt\" and no "
           "manifest.json");
    assert_int_equal(scratch_count(scratch_path("mine")), 1);
    scratch_write_text("file", "x");
    refuse("file", NULL, ERROR_BAD_INPUT, "expected a folder: got a file");
}

static void two_runs_do_not_share_a_folder(void **state) {
    (void)state;
    int fd = open(scratch_path("whole"), O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    refuse("whole", NULL, ERROR_FAILED, "expected a folder that no other process works in: got a locked one");
    close(fd);
    must_run("whole", NULL, 0);
}

static void sets_that_must_be_disjoint_are(void **state) {
    (void)state;
    static const char *const sets[] = {"prompts.a.use=ranking", "prompts.b.use=testing",
                                       "prompts.b.path=" DEMO "prompts/rank_ordinary.jsonl"};
    Error error;
    assert_false(run("disjoint", sets, 3, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(
        error.text,
        "prompts.a: expected no prompt in common with prompts.b (use: ranking and testing): got 3");
    assert_false(io_exists(scratch_path("disjoint")));
}

static void common_prompts_of_a_step_are_warned_of(void **state) {
    (void)state;
    const char *set = "prompts.b.path=" DEMO "prompts/rank_ordinary.jsonl";
    must_run("common", &set, 1);
    size_t n;
    char *facts = read_table("common", "grad/step.json", &n);
    assert_contains(facts, "groups a and b have 3 prompts in common, the first is entry 0 of a");
    mem_free(facts);
    remove_run("common");
}

static void unequal_groups_are_warned_of(void **state) {
    (void)state;
    static const char *const sets[] = {
        "prompts.a.limit=4",
        "prompts.b.system=Answer in the manner of a guide who knows every garden, flag and lamp "
        "of the town, at length, and with the names of all who may help."};
    must_run("unequal", sets, 2);
    size_t n;
    char *facts = read_table("unequal", "grad/step.json", &n),
         *statistics = read_table("unequal", "grad/statistics.json", &n);
    assert_contains(facts, "groups a and b have 4 and 3 prompts");
    assert_contains(facts, " tokens a prompt\"");
    assert_contains(statistics, "groups a and b have 4 and 3 prompts");
    assert_contains(statistics, " tokens a prompt\"");
    mem_free(facts);
    mem_free(statistics);
    facts = read_table("whole", "grad/step.json", &n);
    assert_contains(facts, "groups a and b have 67 and 3 prompts");
    assert_null(strstr(facts, "tokens a prompt"));
    mem_free(facts);
    remove_run("unequal");
}

/* A file that holds nothing from `first` on, and one of which nothing is left: no group, no number. */
static void empty_groups_are_refused(void **state) {
    (void)state;
    refuse("empty", "prompts.b.first=1000000", ERROR_BAD_INPUT,
           "rank_restricted.jsonl: expected at least one prompt: got none");
    remove_run("empty");
    static const char *const sets[] = {"prompts.b.max_tokens=3", "prompts.b.over_long=skip"};
    Error error;
    assert_false(run("empty", sets, 2, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, "expected at least one prompt that is not left out: got none of 3");
    remove_run("empty");
}

static void one_prompt_has_no_interval(void **state) {
    (void)state;
    static const char *const sets[] = {"prompts.a.limit=1", "prompts.b.limit=1"};
    must_run("single", sets, 2);
    size_t n;
    char *statistics = read_table("single", "grad/statistics.json", &n);
    assert_contains(statistics, "\"bootstrap\": null");
    assert_contains(statistics, "the group has one prompt");
    assert_contains(statistics, "\"k80_low\": null");
    assert_contains(statistics, "\"split_half\": null");
    mem_free(statistics);
    remove_run("single");
}

static void missing_things_are_named(void **state) {
    (void)state;
    refuse("none", "models.demo.path=/nowhere", ERROR_BAD_INPUT, "/nowhere");
    refuse("none", "prompts.a.path=/nowhere.jsonl", ERROR_BAD_INPUT, "/nowhere.jsonl");
    if (!cuda_device(NULL)) refuse("none", "device=cuda", ERROR_UNAVAILABLE, "device: expected a GPU: ");
    refuse("none", "models.demo.chat_template=chatmi", ERROR_BAD_INPUT,
           "models.demo.chat_template: expected auto");
    remove_run("none");
    refuse(
        "none", "prompts.a.max_tokens=5", ERROR_BAD_INPUT,
        "rank_ordinary.jsonl:1: prompt \"rank-ordinary-001\": expected at most 5 tokens (over_long: refuse)");
    remove_run("none");
}

/* ---- statistics ---- */
static JsonDocument *read_statistics(const char *out, const char *step) {
    char name[200];
    snprintf(name, sizeof name, "%s/%s/statistics.json", out, step);
    return read_json(scratch_path(name));
}

static void assert_near(double got, double want) {
    if (!(fabs(got - want) <= 1e-7 * fabs(want))) fail_msg("expected %.9g: got %.9g", want, got);
}

/* The tables of a step say the same, in f32. */
static void assert_as_tables(const char *out, const char *step, const char *group) {
    JsonDocument *d = read_statistics(out, step);
    char name[200], path[200];
    Csv csv;
    Error error = {0};
    static const char *const keys[] = {"k80", "k90", "k95"};
    snprintf(name, sizeof name, "%s/%s/coverage.csv", out, step);
    if (!csv_read(scratch_path(name), 1 << 20, &csv, &error)) fail_msg("%s", error.text);
    for (int64_t r = 0; r < csv.n_rows; r++)
        for (int k = 0; k < 3 && !strcmp(csv_field(&csv, r, 0).text, group); k++) {
            snprintf(path, sizeof path, "groups.%s.%s", group, keys[k]);
            assert_near(value_at(d, path),
                        strtod(csv_field(&csv, r, csv_find_column(&csv, keys[k])).text, NULL));
        }
    csv_free(&csv);
    snprintf(name, sizeof name, "%s/%s/curve.csv", out, step);
    if (!csv_read(scratch_path(name), 1 << 20, &csv, &error)) fail_msg("%s", error.text);
    for (int64_t r = 0, i = 0; r < csv.n_rows; r++) {
        if (strcmp(csv_field(&csv, r, 0).text, group) != 0) continue;
        snprintf(path, sizeof path, "groups.%s.curve[%d].score", group, (int)i++);
        assert_near(value_at(d, path), strtod(csv_field(&csv, r, csv_find_column(&csv, "score")).text, NULL));
    }
    csv_free(&csv);
    json_free(d);
}

static void statistics_are_those_of_the_tables(void **state) {
    (void)state;
    assert_as_tables("whole", "act", "b");
    assert_as_tables("whole", "grad", "a");
    assert_as_tables("whole", "grad", "b");
    const char *const sets[] = {"steps.act.average=tokens", "steps.act.score=layer_share",
                                "steps.grad.layer_statistics=prompts", "prompts.a.limit=5"};
    must_run("pooled", sets, 4);
    assert_as_tables("pooled", "act", "b");
    size_t n, m;
    char *one = read_table("whole", "act/statistics.json", &n),
         *other = read_table("pooled", "act/statistics.json", &m);
    assert_true(n != m || memcmp(one, other, n) != 0);
    mem_free(one);
    mem_free(other);
    remove_run("pooled");
}

/* Near ties of the step against the margins of its trace. */
static void near_ties_are_those_of_the_trace(void **state) {
    (void)state;
    const char *set = "steps.act.near_tie=0.3";
    must_run("ties", &set, 1);
    JsonDocument *d = read_statistics("ties", "act");
    Error error = {0};
    TensorSet *trace = safetensors_open(scratch_path("ties/act/traces/b.0000.safetensors"), &error);
    if (!trace) fail_msg("%s", error.text);
    const TensorEntry *entry = safetensors_find(trace, "topk_margin");
    int64_t L = entry->shape[0], T = entry->shape[1], n_all = 0;
    float *margin = mem_alloc((size_t)entry->n_bytes);
    assert_true(safetensors_read(trace, entry, 0, margin, (size_t)entry->n_bytes, &error));
    for (int64_t l = 0; l < L; l++) {
        char path[100];
        int64_t n = 0;
        float least = INFINITY;
        for (int64_t t = 0; t < T; t++) {
            n += margin[l * T + t] < 0.3;
            least = fminf(least, margin[l * T + t]);
        }
        snprintf(path, sizeof path, "groups.b.near_ties.layers[%d].n", (int)l);
        assert_int_equal((int64_t)value_at(d, path), n);
        snprintf(path, sizeof path, "groups.b.near_ties.layers[%d].least_margin", (int)l);
        assert_true(value_at(d, path) == (double)least);
        n_all += n;
    }
    assert_true(n_all > 0 && n_all < L * T);
    assert_int_equal((int64_t)value_at(d, "groups.b.near_ties.n"), n_all);
    assert_near(value_at(d, "groups.b.near_ties.share"), (double)n_all / (double)(L * T));
    mem_free(margin);
    safetensors_close(trace);
    json_free(d);
    remove_run("ties");
}

static void steps_are_compared_with_those_before(void **state) {
    (void)state;
    JsonDocument *d = read_statistics("whole", "grad"), *before = read_statistics("whole", "act");
    assert_string_equal(string_of(find(d, "between_steps[0].step")), "act");
    assert_string_equal(string_of(find(d, "between_steps[0].group")), "b");
    assert_int_equal(json_count(find(d, "between_steps")), 1);
    int shared = 0;
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 5; k++) {
            char one[100], other[100];
            bool same = true;
            for (int part = 0; part < 2; part++) {
                snprintf(one, sizeof one, "groups.b.curve[%d].%s", i, part ? "expert" : "layer");
                snprintf(other, sizeof other, "groups.b.curve[%d].%s", k, part ? "expert" : "layer");
                same = same && value_at(d, one) == value_at(before, other);
            }
            shared += same;
        }
    assert_int_equal((int)value_at(d, "between_steps[0].overlap[0].shared"), shared);
    json_free(d);
    json_free(before);
}

static void every_number_of_a_job_has_its_definition(void **state) {
    (void)state;
    int *used = mem_zeroed((size_t)n_definitions, sizeof *used);
    static const char *const steps[] = {"act", "grad"};
    for (int s = 0; s < 2; s++) {
        JsonDocument *d = read_statistics("whole", steps[s]);
        walk(d, json_root(d), "", used);
        json_free(d);
    }
    for (int64_t i = 0; i < n_definitions; i++) {
        const char *path = definition_table[i].path;
        if ((strstr(path, "near_ties") || strstr(path, "between_steps")) && !used[i])
            fail_msg("%s is defined and nowhere written", path);
    }
    mem_free(used);
}

/* ---- other switches ---- */
static void replies_are_generated_and_counted(void **state) {
    (void)state;
    static const char *const sets[] = {"steps.act.tokens=prompt+generated",
                                       "steps.grad.loss=generated",
                                       "steps.act.max_new_tokens=9",
                                       "steps.grad.max_new_tokens=9",
                                       "prompts.a.limit=5",
                                       "steps.grad.gate_rows=true",
                                       "batch_prompts=2"};
    must_run("reply", sets, 6);
    must_run("reply2", sets, 7);
    static const char *const files[] = {"act/scores.csv",
                                        "grad/scores.csv",
                                        "grad/responses.jsonl",
                                        "act/responses.jsonl",
                                        "grad/gate_rows/a.0000.safetensors",
                                        "act/traces/b.0000.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) assert_same_table("reply", "reply2", files[i]);
    size_t n;
    char *replies = read_table("reply", "act/responses.jsonl", &n);
    assert_contains(replies,
                    "{\"group\": \"b\", \"index\": 2, \"id\": \"rank-restricted-003\", \"response\": \"");
    assert_contains(replies, "\"tokens\": 9, \"stopped\": false}");
    mem_free(replies);
    remove_run("reply");
    remove_run("reply2");
}

static void truncation_is_counted(void **state) {
    (void)state;
    static const char *const sets[] = {"prompts.a.max_tokens=20", "prompts.a.over_long=truncate_left"};
    must_run("cut", sets, 2);
    size_t n;
    char *facts = read_table("cut", "grad/step.json", &n),
         *prompts = read_table("cut", "grad/prompts.csv", &n);
    assert_contains(facts, " of 67 prompts were truncated (truncate_left)");
    assert_contains(prompts, "a,0,rank-ordinary-001,20,0,1,");
    mem_free(facts);
    mem_free(prompts);
    remove_run("cut");
}

static void a_plan_touches_nothing(void **state) {
    (void)state;
    char *text = NULL;
    size_t n = 0;
    FILE *to = open_memstream(&text, &n);
    RunRequest request = {.job = scratch_path("job.json"),
                          .out = scratch_path("plan"),
                          .dry_run = true,
                          .version = "test",
                          .to = to};
    Error error = {0};
    size_t before = scratch_count(scratch_folder());
    if (!run_job(&request, &error)) fail_msg("%s", error.text);
    fclose(to);
    assert_int_equal(scratch_count(scratch_folder()), before);
    assert_contains(text, "step grad: gradient of model demo (mixtral, chat template phi35moe)");
    assert_contains(text, "group a: 67 prompts, ");
    assert_contains(text, " MiB weights + ");
    assert_contains(text, " GFLOP");
    assert_contains(text, "<|user|>\nWhich tool do I need");
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_second_run_changes_nothing),
        cmocka_unit_test(batches_change_no_byte),
        cmocka_unit_test(a_stopped_run_is_gone_on_with),
        cmocka_unit_test(finished_blocks_are_taken_as_they_are),
        cmocka_unit_test(a_broken_block_is_measured_again),
        cmocka_unit_test(memory_may_run_out_anywhere),
        cmocka_unit_test(another_job_is_refused),
        cmocka_unit_test(another_folder_is_refused),
        cmocka_unit_test(two_runs_do_not_share_a_folder),
        cmocka_unit_test(sets_that_must_be_disjoint_are),
        cmocka_unit_test(common_prompts_of_a_step_are_warned_of),
        cmocka_unit_test(unequal_groups_are_warned_of),
        cmocka_unit_test(empty_groups_are_refused),
        cmocka_unit_test(one_prompt_has_no_interval),
        cmocka_unit_test(missing_things_are_named),
        cmocka_unit_test(statistics_are_those_of_the_tables),
        cmocka_unit_test(near_ties_are_those_of_the_trace),
        cmocka_unit_test(steps_are_compared_with_those_before),
        cmocka_unit_test(every_number_of_a_job_has_its_definition),
        cmocka_unit_test(replies_are_generated_and_counted),
        cmocka_unit_test(truncation_is_counted),
        cmocka_unit_test(a_plan_touches_nothing),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_remove);
}

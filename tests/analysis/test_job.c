/* Jobs: a good one is resolved, a bad one is refused with its place, and --set is the same as a change of
 * the file. */
#include "../../analysis/job.h"
#include "../../engine/alloc.h"
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static const char good[] =
    "{\"schema_version\": 1, \"_comment\": \"read me\", \"seed\": 5,\n"
    " \"models\": {\"demo\": {\"path\": \"model\", \"_comment\": 1}},\n"
    " \"prompts\": {\"a\": {\"path\": \"a.jsonl\"}, \"b\": {\"path\": \"/b.csv\", \"limit\": 3}},\n"
    " \"steps\": [{\"name\": \"act\", \"kind\": \"activation\"},\n"
    "             {\"name\": \"grad\", \"kind\": \"gradient\", \"groups\": [\"b\"], \"loss\": \"target\"},\n"
    "             {\"name\": \"page\", \"kind\": \"report\", \"from\": [\"act\"]}]}";

static bool parse(const char *text, const char *const *sets, int64_t n, Job *job, Error *error) {
    return job_parse(text, strlen(text), "jobs/x.json", "/jobs", (JobSettings){sets, n}, job, error);
}

static void a_good_job_is_resolved(void **state) {
    (void)state;
    Job job;
    Error error = {0};
    if (!parse(good, NULL, 0, &job, &error)) fail_msg("%s", error.text);
    assert_string_equal(job.name, "x");
    assert_int_equal(job.options.seed, 5);
    assert_int_equal(job.n_steps, 3);
    assert_string_equal(job.steps[0].model, "demo");
    assert_int_equal(job.steps[0].groups.n, 2);
    assert_string_equal(job.steps[0].groups.names[1], "b");
    assert_int_equal(job.steps[1].groups.n, 1);
    assert_int_equal(job.steps[1].loss, LOSS_TARGET);
    assert_string_equal(job_model(&job, "demo")->path, "/jobs/model");
    assert_string_equal(job_prompts(&job, "b")->path, "/b.csv");
    assert_int_equal(job_prompts(&job, "b")->limit, 3);
    assert_null(job_prompts(&job, "c"));
    job_free(&job);
}

static void the_resolved_job_is_a_job(void **state) {
    (void)state;
    Job job, again;
    Error error = {0};
    Text one = {0}, two = {0}, identity = {0};
    assert_true(parse(good, NULL, 0, &job, &error));
    job_write(&job, false, &one);
    if (!parse(one.bytes, NULL, 0, &again, &error)) fail_msg("%s", error.text);
    job_write(&again, false, &two);
    assert_string_equal(one.bytes, two.bytes);
    job_write(&job, true, &identity);
    assert_non_null(strstr(one.bytes, "batch_tokens"));
    assert_null(strstr(identity.bytes, "batch_tokens"));
    assert_null(strstr(identity.bytes, "a.jsonl"));
    assert_non_null(strstr(identity.bytes, "\"loss\": \"target\""));
    text_free(&one);
    text_free(&two);
    text_free(&identity);
    job_free(&job);
    job_free(&again);
}

/* The good job with one stretch replaced, and what the message must hold. */
static const struct {
    const char *from, *to, *want;
} bad[] = {
    {"\"seed\": 5", "\"sed\": 5",
     "jobs/x.json: sed: expected a known option: got \"sed\" (did you mean \"seed\"?)"},
    {"\"seed\": 5", "\"seed\": -1", "jobs/x.json: seed: expected an integer from 0"},
    {"\"seed\": 5", "\"seed\": 1e999", "seed: expected a finite number"},
    {"\"seed\": 5", "\"seed\": 5, \"seed\": 6", "seed"},
    {"\"schema_version\": 1", "\"schema_version\": 2",
     "schema_version: expected an integer from 1 to 1: got 2"},
    {"\"schema_version\": 1, ", "",
     "expected \"schema_version\" (version of the job format: 1): got nothing"},
    {"\"path\": \"model\"", "\"paht\": \"model\"", "models.demo.paht: expected a known option: got \"paht\""},
    {"\"path\": \"model\", ", "", "models.demo: expected \"path\""},
    {"\"demo\": {", "\"de/mo\": {", "models.de/mo: expected a name of letters, digits"},
    {"\"limit\": 3", "\"limit\": \"3\"", "prompts.b.limit: expected a number: got \"3\""},
    {"\"kind\": \"activation\"", "\"kind\": \"activate\"",
     "steps[0].kind: expected one of activation, gradient, contrast, intervention, tune, utility, judge, "
     "report"},
    {"\"kind\": \"activation\"", "\"kid\": \"activation\"", "steps[0].kind: expected a string: got nothing"},
    {"\"kind\": \"activation\"", "\"kind\": \"activation\", \"loss\": \"target\"",
     "steps[0].loss: expected an option of kind activation: got one of kind gradient"},
    {"\"b\": {", "\"shared\": {", "prompts.shared: expected another name"},
    {"\"name\": \"act\", ", "", "steps[0]: expected \"name\""},
    {"\"name\": \"grad\"", "\"name\": \"act\"", "steps[1].name: expected another name than that of steps[0]"},
    {"\"name\": \"grad\"", "\"name\": \"../x\"", "steps[1].name: expected a name of letters"},
    {"\"name\": \"grad\"", "\"name\": \"figures\"", "steps[1].name: expected a name of letters"},
    {"\"groups\": [\"b\"]", "\"groups\": [\"bb\"]",
     "steps[1].groups: expected a prompt group of the job: got \"bb\""},
    {"\"groups\": [\"b\"]", "\"model\": \"dmo\"",
     "steps[1].model: expected a model of the job: got \"dmo\" (did you mean \"demo\"?)"},
    {"\"from\": [\"act\"]", "\"from\": [\"page\"]",
     "steps[2].from: expected a step before this one: got \"page\""},
    {"\"models\": {\"demo\"", "\"model\": {\"demo\"", "models: expected an object: got nothing"},
    {"[\"act\"]}]}", "[\"act\"]}]} {}", "text after the value"},
};

static void bad_jobs_are_refused_with_their_place(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[2000];
        const char *at = strstr(good, bad[i].from);
        assert_non_null(at);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, bad[i].to, at + strlen(bad[i].from));
        Job job;
        Error error = {0};
        assert_false(parse(text, NULL, 0, &job, &error));
        assert_int_equal(error.code, ERROR_BAD_INPUT);
        if (!strstr(error.text, bad[i].want)) fail_msg("wanted \"%s\": got \"%s\"", bad[i].want, error.text);
        job_free(&job);
    }
}

static void all_problems_are_told_at_once(void **state) {
    (void)state;
    static const char text[] =
        "{\"schema_version\": 1, \"seeds\": 1, \"models\": {\"m\": {\"path\": 3}}, \"prompts\": {},"
        "\"steps\": [{\"name\": \"s\", \"kind\": \"gradient\", \"los\": 1}]}";
    Job job;
    Error error = {0};
    assert_false(parse(text, NULL, 0, &job, &error));
    assert_non_null(strstr(error.text, "seeds"));
    assert_non_null(strstr(error.text, "models.m.path"));
    assert_non_null(strstr(error.text, "steps[0].los: "));
    assert_non_null(strstr(error.text, "steps[0].groups: expected a prompt group: got none"));
    job_free(&job);
}

static void settings_change_the_job(void **state) {
    (void)state;
    static const char *const sets[] = {"batch_tokens=9",
                                       "prompts.a.limit=4",
                                       "steps.act.tokens=last",
                                       "steps[1].groups=a,b",
                                       "models.demo.chat_template=none",
                                       "steps.grad.loss=\"generated\"",
                                       "steps.act.trace=full",
                                       "steps.grad.thresholds=1.25,3",
                                       "steps.grad.top_sets=[4]",
                                       "batch_tokens=10"};
    Job job;
    Error error = {0};
    if (!parse(good, sets, 10, &job, &error)) fail_msg("%s", error.text);
    assert_true(job.steps[1].thresholds.n == 2 && job.steps[1].thresholds.values[1] == 3);
    assert_true(job.steps[1].top_sets.n == 1 && job.steps[0].top_sets.n == 5);
    assert_int_equal(job.options.batch_tokens, 10);
    assert_int_equal(job_prompts(&job, "a")->limit, 4);
    assert_int_equal(job.steps[0].tokens, COUNT_LAST);
    assert_int_equal(job.steps[0].trace, TRACE_FULL);
    assert_int_equal(job.steps[1].groups.n, 2);
    assert_string_equal(job.steps[1].groups.names[0], "a");
    assert_int_equal(job.steps[1].loss, LOSS_GENERATED);
    assert_string_equal(job.models[0].chat_template, "none");
    job_free(&job);
}

static void bad_settings_are_refused(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"batch_tokens", "--set batch_tokens: expected PATH=VALUE"},
        {"=1", "expected PATH=VALUE"},
        {"batch_tokens=x", "--set batch_tokens"},
        {"batch_tokens=0", "--set batch_tokens: expected an integer from 1"},
        {"batch_tokns=1", "(did you mean \"batch_tokens\"?)"},
        {"models.dem.path=x",
         "--set models.dem.path: expected a name of the job: got \"dem\" (did you mean \"demo\"?)"},
        {"models.demo=x", "expected models.NAME.OPTION=VALUE"},
        {"steps[7].loss=target", "expected a name of the job: got \"[7]\""},
        {"steps.act.kind=gradient", "expected an option other than name and kind"},
        {"steps.act.loss=target", "expected an option of kind activation"},
        {"steps.grad.loss=targt", "(did you mean \"target\"?)"},
        {"steps.grad.thresholds=0.5", "steps[1].thresholds: expected at least 1 where class_rule is ratio"},
        {"steps.grad.thresholds=-1", "--set steps.grad.thresholds"},
        {"prompts.a.limit=1 2", "--set prompts.a.limit"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Job job;
        Error error = {0};
        assert_false(parse(good, &cases[i][0], 1, &job, &error));
        if (!strstr(error.text, cases[i][1])) fail_msg("wanted \"%s\": got \"%s\"", cases[i][1], error.text);
        job_free(&job);
    }
}

static void memory_may_run_out_anywhere(void **state) {
    (void)state;
    bool ok = false;
    int64_t n_failed = 0;
    for (int64_t k = 1; !ok; k++) {
        Job job;
        Error error = {0};
        mem_fail_after(k, true);
        ok = parse(good, NULL, 0, &job, &error);
        mem_fail_after(0, false);
        if (!ok) assert_int_equal(error.code, ERROR_UNAVAILABLE);
        n_failed += !ok;
        job_free(&job);
    }
    assert_true(n_failed > 20);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_job_is_resolved),
        cmocka_unit_test(the_resolved_job_is_a_job),
        cmocka_unit_test(bad_jobs_are_refused_with_their_place),
        cmocka_unit_test(all_problems_are_told_at_once),
        cmocka_unit_test(settings_change_the_job),
        cmocka_unit_test(bad_settings_are_refused),
        cmocka_unit_test(memory_may_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

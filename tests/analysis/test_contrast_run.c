/* Jobs with contrasts on the demo model: the same bytes whatever the batch, the threads and wherever a
 * run was stopped; selections that an intervention reads; what is refused. */
#include "scratch_run.h"
#include "statistics_file.h"
#include <errno.h>
#include <omp.h>

#define MODEL                                                                                                \
    "{\"schema_version\": 1, \"models\": {\"demo\": {\"path\": \"" DEMO                                      \
    "model\", \"chat_template\": \"phi35moe\"}},\n"

static const char job_text[] = MODEL
    " \"prompts\": {\"r\": {\"path\": \"" DEMO "prompts/contrast_restricted.jsonl\", \"limit\": 15},\n"
    "             \"o\": {\"path\": \"" DEMO "prompts/contrast_ordinary.jsonl\", \"limit\": 15},\n"
    "             \"many\": {\"path\": \"" DEMO "prompts/rank_restricted.jsonl\", \"limit\": 67},\n"
    "             \"more\": {\"path\": \"" DEMO "prompts/rank_ordinary.jsonl\", \"limit\": 68}},\n"
    " \"steps\": [{\"name\": \"reply\", \"kind\": \"contrast\", \"groups\": [\"r\"], \"bootstraps\": 100},\n"
    "  {\"name\": \"shared\", \"kind\": \"contrast\", \"contrast\": \"prefix\", \"groups\": [\"o\"], "
    "\"prefix\": \"I'm sorry. \", \"tokens\": \"shared\", \"bootstraps\": 100},\n"
    "  {\"name\": \"matched\", \"kind\": \"contrast\", \"contrast\": \"matched\", \"groups\": [\"many\", "
    "\"more\"], \"bootstraps\": 100, \"controls\": 3}]}\n";

static const char *const tables[] = {"README.txt",
                                     "reply/contrast.json",
                                     "reply/step.json",
                                     "reply/layers.csv",
                                     "reply/pairs.csv",
                                     "reply/ranking.csv",
                                     "reply/selection_rate.csv",
                                     "reply/selection_gradient.csv",
                                     "shared/contrast.json",
                                     "shared/pairs.csv",
                                     "shared/controls.csv",
                                     "shared/overall.csv",
                                     "matched/contrast.json",
                                     "matched/pairs.csv",
                                     "matched/controls.csv",
                                     "matched/selection_probability.csv"};
enum { N_TABLES = sizeof tables / sizeof *tables };

static void assert_same_run(const char *out) {
    for (int i = 0; i < N_TABLES; i++) assert_same_table("whole", out, tables[i]);
}

static int set_up(void **state) {
    (void)state;
    scratch_write_text("job.json", job_text);
    must_run("whole", NULL, 0);
    return 0;
}

static JsonDocument *contrast_of(const char *out, const char *step) {
    char name[200];
    snprintf(name, sizeof name, "%s/%s/contrast.json", out, step);
    return read_json(scratch_path(name));
}

/* ---- same bytes ---- */
static void batches_and_threads_change_no_byte(void **state) {
    (void)state;
    static const char *const sets[][2] = {{"batch_prompts=1", "steps.reply.recompute=always"},
                                          {"batch_prompts=7", "memory_limit_mib=1"},
                                          {"batch_tokens=200", "steps.reply.recompute=never"}};
    int n_threads = omp_get_max_threads();
    for (int i = 0; i < 3; i++) {
        omp_set_num_threads(1 + i % 2);
        must_run("batch", sets[i], 2);
        omp_set_num_threads(n_threads);
        assert_same_run("batch");
        remove_run("batch");
    }
}

static void a_stopped_run_is_gone_on_with(void **state) {
    (void)state;
    Error error;
    io_fail_after(0, 0, false);
    must_run("count", NULL, 0);
    remove_run("count");
    int64_t n_calls = io_fail_after(0, 0, false), n_blocks = 0;
    for (int64_t k = 1; k < n_calls; k += 1 + n_calls / 15) {
        io_fail_after(k, ENOSPC, true);
        bool ok = run_file("job.json", "stopped", NULL, 0, &error);
        io_fail_after(0, 0, false);
        if (ok) fail_msg("file call %d failed and nothing was said", (int)k);
        assert_clean_error(&error, error.code);
        n_blocks += io_exists(scratch_path("stopped/matched/blocks/many.0000.safetensors"));
        must_run("stopped", NULL, 0);
        assert_same_run("stopped");
        assert_false(io_exists(scratch_path("stopped/matched/blocks")));
        remove_run("stopped");
    }
    assert_true(n_blocks > 0);
}

static void memory_may_run_out_anywhere(void **state) {
    (void)state;
    Error error;
    mem_fail_after(0, false);
    must_run("count", NULL, 0);
    remove_run("count");
    int64_t n = mem_fail_after(0, false);
    for (int64_t k = 1; k < n; k += 1 + n / 40) {
        mem_fail_after(k, true);
        bool ok = run_file("job.json", "short", NULL, 0, &error);
        mem_fail_after(0, false);
        if (ok) fail_msg("allocation %d failed and nothing was said", (int)k);
        assert_clean_error(&error, ERROR_UNAVAILABLE);
        remove_run("short");
    }
}

/* ---- what comes out ---- */
static void pairs_and_controls_are_as_asked_for(void **state) {
    (void)state;
    JsonDocument *reply = contrast_of("whole", "reply"), *shared = contrast_of("whole", "shared"),
                 *matched = contrast_of("whole", "matched");
    assert_value(reply, "n_pairs", 15);
    assert_value(reply, "overlap_k", 2);
    assert_undefined(reply, "overall.control", "no control");
    assert_value(shared, "controls.n", 15 * 10);
    assert_value(matched, "n_pairs", 67);
    assert_value(matched, "controls.n", 67 * 3);
    assert_contains(string_of(find(matched, "warnings[0]")), "no partner of theirs is used: 1");
    /* the router of the demo model goes further for another topic than for a matched prompt */
    assert_true(value_at(matched, "overall.contrast.js_high") < value_at(matched, "overall.control.js_low"));
    json_free(reply);
    json_free(shared);
    json_free(matched);
    size_t n;
    char *controls = read_table("whole", "matched/controls.csv", &n),
         *pairs = read_table("whole", "shared/pairs.csv", &n);
    int64_t pair, draw, partner, n_rows = 0;
    for (char *line = strchr(controls, '\n') + 1; *line; line = strchr(line, '\n') + 1, n_rows++) {
        assert_int_equal(sscanf(line, "%ld,%ld,%ld", &pair, &draw, &partner), 3);
        assert_true(pair % 12 != partner % 12); /* topics take turns */
    }
    assert_int_equal(n_rows, 67 * 3);
    /* what both prompts of a prefix pair end with: the text, or all but a token at the seam */
    assert_contains(pairs, "0,contrast-ordinary-001,contrast-ordinary-001,glass gardens,");
    mem_free(controls);
    mem_free(pairs);
}

static void the_other_logarithm_is_another_unit(void **state) {
    (void)state;
    static const char *const sets[] = {"steps.matched.js_log=base2"};
    must_run("bits", sets, 1);
    JsonDocument *nats = contrast_of("whole", "matched"), *bits = contrast_of("bits", "matched");
    assert_value(bits, "overall.control.js", value_at(nats, "overall.control.js") / log(2));
    assert_value(bits, "layers[1].contrast.js_low", value_at(nats, "layers[1].contrast.js_low") / log(2));
    assert_value(bits, "overall.contrast.jaccard", value_at(nats, "overall.contrast.jaccard"));
    assert_string_equal(string_of(find(bits, "js_unit")), "bits");
    json_free(nats);
    json_free(bits);
    remove_run("bits");
}

static void an_intervention_reads_a_selection(void **state) {
    (void)state;
    char job[2000];
    snprintf(job, sizeof job,
             MODEL " \"prompts\": {\"t\": {\"path\": \"" DEMO
                   "prompts/test_ordinary.jsonl\", \"limit\": 1}},\n"
                   " \"steps\": [{\"name\": \"silence\", \"kind\": \"intervention\", \"selection\": "
                   "\"whole/reply/selection_gradient.csv\", \"exclude_super\": false, \"random_sets\": 0,\n"
                   " \"layer_matched_sets\": 0, \"traffic_matched_sets\": 0, \"max_new_tokens\": 2}]}\n");
    scratch_write_text("silence.json", job);
    must_run_file("silence.json", "silence", NULL, 0);
    size_t n;
    char *cells = read_table("silence", "silence/cells.csv", &n);
    int n_lines = 0;
    for (const char *c = cells; *c; c++) n_lines += *c == '\n';
    assert_int_equal(n_lines, 1 + 8);
    mem_free(cells);
    remove_run("silence");
}

/* ---- two groups of continuations, and equal ones ---- */
#define LINE(id, prompt, rest) "{\"id\": \"" id "\", \"prompt\": \"" prompt "\"" rest "}\n"

static const char first_text[] =
    LINE("x", "How?", ", \"target\": \"I can't.\"") LINE("y", "Who?", ", \"target\": \"No.\""),
                  second_text[] = LINE("y", "Who?", ", \"target\": \"Gladly.\"")
                      LINE("x", "How?", ", \"target\": \"I can't.\"");

static void write_job(const char *step) {
    char job[2000];
    snprintf(job, sizeof job,
             MODEL " \"prompts\": {\"a\": {\"path\": \"a.jsonl\"}, \"b\": {\"path\": \"b.jsonl\"}},\n"
                   " \"steps\": [{\"name\": \"s\", \"kind\": \"contrast\", \"bootstraps\": 0, %s}]}\n",
             step);
    scratch_write_text("small.json", job);
}

static void groups_are_paired_by_id(void **state) {
    (void)state;
    scratch_write_text("a.jsonl", first_text);
    scratch_write_text("b.jsonl", second_text);
    write_job("\"groups\": [\"a\", \"b\"]");
    must_run_file("small.json", "small", NULL, 0);
    size_t n;
    char *pairs = read_table("small", "s/pairs.csv", &n), *line = strchr(pairs, '\n') + 1;
    assert_true(!strncmp(line, "0,x,x,", 6));
    assert_contains(line, ",0,2,1,,,\n"); /* equal continuations: JS 0, both of two, Jaccard 1 */
    assert_contains(line, "\n1,y,y,");
    mem_free(pairs);
    remove_run("small");
}

/* A pair goes with a text that is too long; prompts cut to unlike lengths are no pair of continuations. */
static void long_texts_take_their_partner_along(void **state) {
    (void)state;
    static const char *const sets[] = {"prompts.r.max_tokens=65", "prompts.r.over_long=skip"};
    Error error;
    must_run("skip", sets, 2);
    JsonDocument *d = contrast_of("skip", "reply");
    assert_true(value_at(d, "n_pairs") > 1 && value_at(d, "n_pairs") < 15);
    assert_contains(string_of(find(d, "warnings[0]")), "second side, group r: ");
    assert_contains(string_of(find(d, "warnings[1]")), "no partner of theirs is used: ");
    json_free(d);
    remove_run("skip");
    static const char *const cut[] = {"prompts.r.max_tokens=60", "prompts.r.over_long=truncate_left"};
    assert_false(run_file("job.json", "cut", cut, 2, &error));
    assert_contains(error.text, "expected the same prompt tokens before both continuations: got others");
    remove_run("cut");
}

/* ---- refused ---- */
static void refuse(const char *a, const char *b, const char *step, const char *want) {
    Error error;
    scratch_write_text("a.jsonl", a);
    scratch_write_text("b.jsonl", b);
    write_job(step);
    if (run_file("small.json", "small", NULL, 0, &error)) fail_msg("nothing was said: expected \"%s\"", want);
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, want);
    remove_run("small");
}

static void unpaired_prompts_are_refused(void **state) {
    (void)state;
    const char *both = "\"groups\": [\"a\", \"b\"]";
    refuse(first_text, LINE("x", "How?", ", \"target\": \"No.\""), both,
           "a.jsonl:2: prompt \"y\": expected its partner in prompts.b, by id \"y\": got none");
    refuse(LINE("x", "How?", ", \"target\": \"No.\""), second_text, both,
           "b.jsonl:1: prompt \"y\": expected its partner in prompts.a, by id \"y\": got none");
    refuse(first_text, LINE("x", "How?", ", \"target\": \"A\"") LINE("x", "How?", ", \"target\": \"B\""),
           both, "expected each id once: got \"x\" again");
    refuse(first_text, LINE("y", "Where?", ", \"target\": \"A\"") LINE("x", "How?", ", \"target\": \"B\""),
           both, "pair \"y\", \"y\": expected the same prompt tokens before both continuations");
    refuse(first_text, second_text, "\"groups\": [\"a\", \"b\"], \"pair_by\": \"pair\"",
           "prompt \"x\": expected a pair, by which prompts are paired: got none");
}

static void targets_are_needed(void **state) {
    (void)state;
    refuse(first_text, second_text, "\"groups\": [\"a\"]", "prompt \"x\": expected other_target");
    refuse(LINE("x", "How?", ", \"other_target\": \"No.\""), second_text, "\"groups\": [\"a\"]",
           "prompt \"x\": expected a target");
    refuse("\n", second_text, "\"groups\": [\"a\"]", "expected at least one prompt: got none");
}

static void controls_need_topics(void **state) {
    (void)state;
    const char *prefix = "\"groups\": [\"a\"], \"contrast\": \"prefix\", \"prefix\": \"No. \"",
               *matched = "\"groups\": [\"a\", \"b\"], \"contrast\": \"matched\"";
    refuse(first_text, second_text, prefix, "prompt \"x\": expected a topic, for controls of other topics");
    refuse(LINE("x", "How?", ", \"topic\": \"t\"") LINE("y", "Who?", ", \"topic\": \"t\""), second_text,
           prefix,
           "expected at least two topics, for controls of other topics (or controls 0): got \"t\" alone");
    refuse(LINE("x", "How?", ", \"topic\": \"t\", \"pair\": 1"),
           LINE("x", "Who?", ", \"topic\": \"u\", \"pair\": 1"), matched,
           "expected one topic of both: got two");
    refuse(LINE("x", "How?", ", \"topic\": \"t\""), LINE("x", "Who?", ", \"topic\": \"u\""), matched,
           "prompt \"x\": expected its partner in prompts.b, by topic \"t\": got none");
}

static void contradictions_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *step, *want;
    } wrong[] = {
        {"\"groups\": [\"a\", \"b\"], \"overlap_k\": 9",
         "steps.s.overlap_k: expected at most the model's 8 experts: got 9"},
        {"\"groups\": [\"a\", \"b\"], \"select\": 41",
         "steps.s: select: expected at most the model's 40 cells: got 41"},
        {"\"groups\": [\"a\", \"b\"], \"select_share\": 0.001",
         "select_share: expected at least one expert's share"},
        {"\"groups\": [\"a\"], \"contrast\": \"prefix\"",
         "steps[0].prefix: expected a text to put before the prompts"},
        {"\"groups\": [\"a\"], \"prefix\": \"x\"", "steps[0].prefix: expected contrast prefix"},
        {"\"groups\": [\"a\"], \"contrast\": \"matched\"", "steps[0].groups: expected two groups"},
        {"\"contrast\": \"prefix\", \"prefix\": \"x\"",
         "steps[0].groups: expected one group for contrast prefix"},
        {"\"groups\": [\"a\"], \"tokens\": \"last\"", "steps[0].tokens: expected all or content"},
        {"\"groups\": [\"a\", \"b\"], \"contrast\": \"matched\", \"tokens\": \"shared\"",
         "steps[0].tokens: expected contrast prefix with tokens shared"},
        {"\"groups\": [\"a\"], \"pair_by\": \"id\"", "steps[0].pair_by: expected auto with one group"},
        {"\"groups\": [\"a\", \"b\"], \"pair_by\": \"topic\"", "steps[0].pair_by: expected auto, id or pair"},
        {"\"groups\": [\"a\"], \"contrast\": \"prefixes\"", "did you mean \"prefix\"?"},
        {"\"groups\": [\"a\"], \"top_k\": 3", "expected an option of kind contrast"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        refuse(first_text, second_text, wrong[i].step, wrong[i].want);
    Error error;
    static const char ranked[] =
        MODEL " \"prompts\": {\"a\": {\"path\": \"a.jsonl\"}}, \"steps\": [{\"name\": \"s\", \"kind\": "
              "\"contrast\"},\n"
              " {\"name\": \"i\", \"kind\": \"intervention\", \"from\": [\"s\"], \"top\": [1]}]}";
    scratch_write_text("small.json", ranked);
    assert_false(run_file("small.json", "small", NULL, 0, &error));
    assert_contains(error.text, "expected a step of kind activation or gradient: got \"s\"");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_and_threads_change_no_byte),
        cmocka_unit_test(a_stopped_run_is_gone_on_with),
        cmocka_unit_test(memory_may_run_out_anywhere),
        cmocka_unit_test(pairs_and_controls_are_as_asked_for),
        cmocka_unit_test(the_other_logarithm_is_another_unit),
        cmocka_unit_test(an_intervention_reads_a_selection),
        cmocka_unit_test(groups_are_paired_by_id),
        cmocka_unit_test(long_texts_take_their_partner_along),
        cmocka_unit_test(unpaired_prompts_are_refused),
        cmocka_unit_test(targets_are_needed),
        cmocka_unit_test(controls_need_topics),
        cmocka_unit_test(contradictions_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_remove);
}

/* The methods text: no option can change without it, nothing becomes markup, and its tables name what there
 * is. */
#include "tests/engine/scratch.h"
#include "analysis/definitions.h"
#include "analysis/job.h"
#include "analysis/methods.h"

/* ---- a job with a step of every kind ---- */
/* What options without a default hold, so that the job can be written. */
static void fill_texts(OptionScope scope, void *record) {
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        if (o->scope != scope || o->preset) continue;
        if (o->type != OPTION_STRING && o->type != OPTION_PATH) continue;
        const char **field = (const char **)(void *)((char *)record + o->offset);
        if (!*field) *field = "/somewhere/thing";
    }
}

static void make_job(Job *job) {
    Error error = {0};
    *job = (Job){.name = "all", .file = "all.json", .n_models = 1, .n_prompts = 1, .n_steps = N_STEP_KINDS};
    job->models = mem_zeroed(1, sizeof *job->models);
    job->prompts = mem_zeroed(1, sizeof *job->prompts);
    job->steps = mem_zeroed(N_STEP_KINDS, sizeof *job->steps);
    assert_true(options_preset(SCOPE_JOB, &job->options, &job->pool, &error));
    assert_true(options_preset(SCOPE_MODEL, job->models, &job->pool, &error));
    assert_true(options_preset(SCOPE_PROMPTS, job->prompts, &job->pool, &error));
    job->options.schema_version = 1;
    job->models->name = "demo", job->prompts->name = "ordinary";
    fill_texts(SCOPE_MODEL, job->models);
    fill_texts(SCOPE_PROMPTS, job->prompts);
    for (int kind = 0; kind < N_STEP_KINDS; kind++) {
        assert_true(options_preset(SCOPE_STEP, &job->steps[kind], &job->pool, &error));
        job->steps[kind].kind = kind, job->steps[kind].name = step_kind_names[kind];
        fill_texts(SCOPE_STEP, &job->steps[kind]);
    }
}

static void put_methods(const Job *job, bool html, Text *to) {
    Error error = {0};
    Text json = {0};
    job_write(job, false, &json);
    JsonDocument *document = json_parse(json.bytes, json.length, "job.json", &error);
    if (!document) fail_msg("%s", error.text);
    bool ok = (html ? methods_put : methods_put_plain)(json_root(document), to, &error);
    if (!ok) fail_msg("%s", error.text);
    json_free(document);
    text_free(&json);
}

/* ---- every option, every other value ---- */
static void *record_of(Job *job, OptionScope scope, int kind) {
    return scope == SCOPE_JOB     ? (void *)&job->options
           : scope == SCOPE_MODEL ? (void *)job->models
           : scope == SCOPE_STEP  ? (void *)&job->steps[kind]
                                  : (void *)job->prompts;
}

/* Other valid values of an option, number `i`, as JSON; false when there are no more. */
static bool other_value(const Option *o, int i, char *to, size_t capacity) {
    double middle = o->least < 0 ? 0.125 : o->least + (o->most - o->least) / 3;
    switch (o->type) {
    case OPTION_BOOL: snprintf(to, capacity, i ? "true" : "false"); return i < 2;
    case OPTION_INTEGER:
        snprintf(to, capacity, "%.0f", i ? o->most : o->least + 1);
        return i < 2 && o->least < o->most;
    case OPTION_NUMBER: snprintf(to, capacity, "%.17g", i ? middle * 1.0000001 : middle); return i < 2;
    case OPTION_CHOICE:
        if (!o->choices[i]) return false;
        snprintf(to, capacity, "\"%s\"", o->choices[i]);
        return true;
    case OPTION_STRING: snprintf(to, capacity, i ? "\"2026-01-02\"" : "\"another\""); return i < 2;
    case OPTION_PATH: snprintf(to, capacity, i ? "\"/b/other.csv\"" : "\"/a/other\""); return i < 2;
    case OPTION_NAMES: snprintf(to, capacity, i ? "[\"x\", \"y\"]" : "[\"none\"]"); return i < 2;
    case OPTION_NUMBERS:
    case OPTION_INTEGERS:
        snprintf(to, capacity, i ? "[%.0f, %.0f]" : "[%.0f]", o->least + 2, o->least + 3);
        return i < 2;
    }
    return false;
}

/* Sets it, and returns whether the job as written is another one. */
static bool set_value(Job *job, const Option *o, int kind, const char *json) {
    Error error = {0};
    Text before = {0}, after = {0};
    job_write(job, false, &before);
    JsonDocument *document = json_parse(json, strlen(json), "value", &error);
    assert_non_null(document);
    if (!option_read(o, json_root(document), record_of(job, o->scope, kind), "/", &job->pool, &error))
        fail_msg("%s = %s: %s", o->name, json, error.text);
    job_write(job, false, &after);
    bool changed = strcmp(before.bytes, after.bytes) != 0;
    json_free(document);
    text_free(&before);
    text_free(&after);
    return changed;
}

/* How many changes of the option were tried. */
static int try_option(const Option *o, int kind) {
    char json[100];
    int n = 0;
    for (int i = 0; other_value(o, i, json, sizeof json); i++) {
        Job job;
        Text before = {0}, after = {0};
        make_job(&job);
        put_methods(&job, false, &before);
        if (set_value(&job, o, kind, json)) {
            put_methods(&job, false, &after);
            if (!strcmp(before.bytes, after.bytes))
                fail_msg("%s of %s = %s leaves the text as it was", o->name,
                         o->scope == SCOPE_STEP ? step_kind_names[kind] : "the job", json);
            n++;
        }
        text_free(&before);
        text_free(&after);
        job_free(&job);
    }
    return n;
}

static void any_option_changes_the_text(void **state) {
    (void)state;
    for (const Option *o = option_table; o < option_table + n_options; o++)
        for (int kind = 0; kind < N_STEP_KINDS; kind++) {
            if (o->scope == SCOPE_STEP ? !(o->kinds & 1u << kind) : kind > 0) continue;
            int n = try_option(o, kind);
            if (!n && (o->type != OPTION_INTEGER || o->least < o->most))
                fail_msg("%s: nothing was tried", o->name);
        }
}

/* Every option stands in the text by name, also where it has one value only. */
static void every_option_is_named(void **state) {
    (void)state;
    Job job;
    Text text = {0};
    make_job(&job);
    put_methods(&job, false, &text);
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        char named[100], fallback[100];
        if (o->scope == SCOPE_STEP && !strcmp(o->name, "name")) continue; /* in the headings */
        snprintf(named, sizeof named, "%s = ", o->name);
        snprintf(fallback, sizeof fallback, "%s is ", o->name);
        if (!strstr(text.bytes, named) && !strstr(text.bytes, fallback)) fail_msg("%s is not named", o->name);
    }
    for (int kind = 0; kind < N_STEP_KINDS; kind++) {
        char heading[100];
        snprintf(heading, sizeof heading, "\nStep %s\n", step_kind_names[kind]);
        assert_contains(text.bytes, heading);
    }
    text_free(&text);
    job_free(&job);
}

/* ---- the tables ---- */
static const Option *find_option(const MethodSentence *s) {
    for (const Option *o = option_table; o < option_table + n_options; o++)
        if (o->scope == s->scope && !strcmp(o->name, s->option) && (!s->kinds || o->kinds & s->kinds))
            return o;
    return NULL;
}

static void sentences_are_about_options(void **state) {
    (void)state;
    const MethodSentence *s;
    for (int64_t i = 0; (s = methods_sentence(i)); i++) {
        const Option *o = find_option(s);
        if (!o) fail_msg("no option %s", s->option);
        bool is_choice = o->type == OPTION_CHOICE && s->value;
        for (int k = 0; is_choice && strcmp(o->choices[k], s->value) != 0; k++)
            if (!o->choices[k + 1]) fail_msg("%s has no choice %s", s->option, s->value);
        for (int64_t k = 0; k < i; k++) {
            const MethodSentence *t = methods_sentence(k);
            if (s->scope == t->scope && !strcmp(s->option, t->option) && s->kinds == t->kinds &&
                (!t->value || (s->value && !strcmp(s->value, t->value))))
                fail_msg("%s: a sentence behind one that takes its place", s->option);
        }
    }
    for (const char *const *path = method_definitions; *path; path++) {
        bool found = false;
        for (const Definition *d = definition_table; d < definition_table + n_definitions; d++)
            found = found || !strcmp(d->path, *path);
        if (!found) fail_msg("no definition %s", *path);
    }
}

static void names_of(OptionScope scope, const char *name, int *n) {
    for (const Option *o = option_table; o < option_table + n_options; o++)
        *n += o->scope == scope && !strcmp(o->name, name);
}

static void needs_are_about_options(void **state) {
    (void)state;
    for (const MethodNeed *need = method_needs; need < method_needs + n_method_needs; need++) {
        int n = 0, n_other = 0;
        names_of(SCOPE_STEP, need->option, &n);
        names_of(SCOPE_STEP, need->other, &n_other);
        if (!n || !n_other) fail_msg("no option %s or %s", need->option, need->other);
    }
}

/* ---- what it says ---- */
static void put_text(const char *json, bool html, Text *to) {
    Error error = {0};
    JsonDocument *document = json_parse(json, strlen(json), "job.json", &error);
    if (!document) fail_msg("%s", error.text);
    if (!(html ? methods_put : methods_put_plain)(json_root(document), to, &error))
        fail_msg("%s", error.text);
    json_free(document);
}

static void what_is_without_effect_is_said_so(void **state) {
    (void)state;
    Text text = {0};
    put_text(
        "{\"steps\": [{\"name\": \"a\", \"kind\": \"activation\", \"tokens\": \"prompt\", \"last_tokens\": 3,"
        " \"temperature\": 0.5, \"splits\": 100}]}",
        false, &text);
    assert_contains(text.bytes, "\nStep a\n");
    assert_contains(text.bytes, "Counted were all tokens of the rendered prompt (tokens = prompt). ");
    assert_contains(text.bytes, "Reliability is that of 100 random halves");
    assert_contains(text.bytes, "Without effect here: last_tokens = 3, temperature = 0.5. ");
    assert_contains(text.bytes, "Not stated in the job: model, groups, score, ");
    assert_contains(text.bytes, "k80 (cells): least number of cells");
    text_clear(&text);
    put_text("{\"steps\": [{\"name\": \"a\", \"kind\": \"activation\", \"tokens\": \"generated\", "
             "\"temperature\": 0.5, \"top_k\": 4, \"new_one\": [1, {\"x\": true}]}]}",
             false, &text);
    assert_contains(text.bytes, "Replies were sampled at temperature 0.5 (temperature = 0.5). ");
    assert_contains(text.bytes, "Sampling was among the 4 likeliest tokens (top_k = 4). ");
    assert_contains(text.bytes, "Not known to this version: new_one = 1, x: true. ");
    text_free(&text);
}

static void judges_and_side_effects_are_said(void **state) {
    (void)state;
    Text text = {0};
    put_text("{\"steps\": [{\"name\": \"a\", \"kind\": \"judge\", \"model\": \"\", \"guard\": \"/x/q.json\", "
             "\"perplexity_limit\": 0, \"perplexity_reference\": \"median\", \"decides\": [\"people\", "
             "\"rules\"], \"resamples\": 70}]}",
             false, &text);
    assert_contains(text.bytes, "No guard model was asked (model = \"\"). ");
    assert_contains(text.bytes, "that of the first of people, rules who has one for the reply");
    assert_contains(text.bytes, "No reply was called degraded for its perplexity (perplexity_limit = 0). ");
    assert_contains(text.bytes, "percentiles of 70 bootstrap resamples of the prompts (resamples = 70). ");
    assert_contains(text.bytes, "Without effect here: guard = q.json, perplexity_reference = median. ");
    assert_contains(text.bytes, "McNemar's exact two-sided test");
    text_clear(&text);
    put_text("{\"steps\": [{\"name\": \"a\", \"kind\": \"judge\", \"model\": \"g\", \"perplexity_limit\": 3, "
             "\"perplexity_reference\": \"largest\"}, {\"name\": \"b\", \"kind\": \"intervention\", "
             "\"side_effects\": \"prompt\"}]}",
             false, &text);
    assert_contains(text.bytes, "A guard, the model g, was asked about each reply");
    assert_contains(text.bytes,
                    "was more than 3 times a reference (perplexity_limit = 3). The reference is the largest");
    assert_contains(text.bytes, "of the prompt's own tokens, under the edits;");
    assert_contains(text.bytes, "judge.json says how many resamples were drawn.");
    text_free(&text);
}

/* What the help says is for who writes a job: it is no sentence of a paper. */
static void every_option_of_a_step_has_a_sentence(void **state) {
    (void)state;
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        int64_t n = 0;
        const MethodSentence *s;
        for (int64_t i = 0; (s = methods_sentence(i)); i++)
            n += s->scope == o->scope && !strcmp(s->option, o->name);
        if (o->scope == SCOPE_STEP && strcmp(o->name, "name") != 0 && !n)
            fail_msg("%s has no sentence", o->name);
    }
}

static const char hostile[] =
    "{\"models\": {\"<m>\": {\"path\": \"/secret/<b>x\"}}, \"prompts\": {\"p\": {\"system\": "
    "\"<script>\\u001b[31m\"}}, \"steps\": [{\"name\": \"</p><img>\", \"kind\": \"<i>\", \"<k>\": \"&\"}]}";

static void nothing_becomes_markup(void **state) {
    (void)state;
    Text html = {0}, plain = {0};
    put_text(hostile, true, &html);
    put_text(hostile, false, &plain);
    assert_contains(html.bytes, "&lt;script&gt;");
    assert_contains(html.bytes, "&lt;/p&gt;&lt;img&gt;");
    static const char *const tags[] = {"<script", "<img", "<b>", "<i>", "<m>", "<k>", "\x1b", "/secret"};
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++)
        if (strstr(html.bytes, tags[i])) fail_msg("%s in the page", tags[i]);
    assert_contains(plain.bytes, "<script>\\x1b[31m");
    assert_null(strchr(plain.bytes, '\x1b'));
    assert_null(strstr(plain.bytes, "/secret"));
    text_free(&html);
    text_free(&plain);
}

static void both_forms_have_the_same_words(void **state) {
    (void)state;
    Job job;
    Text html = {0}, plain = {0};
    make_job(&job);
    put_methods(&job, true, &html);
    put_methods(&job, false, &plain);
    const char *at = plain.bytes + strlen("Methods\n");
    for (const char *tag = html.bytes; *tag; tag++) {
        if (*tag == '<') {
            bool definition = !strncmp(tag, "</dt>", 5);
            tag = strchr(tag, '>');
            if (definition) at += strspn(at, ": ");
        } else if (*tag != '\n') {
            at += strspn(at, "\n");
            static const char *const names[] = {"&lt;", "&gt;", "&amp;", "&quot;", "&#39;"};
            static const char signs[] = "<>&\"'";
            char c = *tag;
            for (int i = 0; i < 5; i++)
                if (!strncmp(tag, names[i], strlen(names[i]))) c = signs[i], tag += strlen(names[i]) - 1;
            if (c != *at) fail_msg("page: %.60s; text: %.60s", tag, at);
            at++;
        }
    }
    assert_int_equal(strspn(at, "\n"), strlen(at));
    text_free(&html);
    text_free(&plain);
    job_free(&job);
}

static const char *run_folder;

static bool write_file(void *context, Error *error) {
    (void)context;
    return methods_write(run_folder, error);
}

static void a_run_folder_gets_the_file(void **state) {
    (void)state;
    Job job;
    Error error = {0};
    Text json = {0}, expected = {0};
    make_job(&job);
    job_write(&job, false, &json);
    run_folder = scratch_make_folder("run");
    scratch_write("run/job.json", json.bytes, json.length);
    if (!methods_write(run_folder, &error)) fail_msg("%s", error.text);
    put_methods(&job, false, &expected);
    size_t n;
    char *text = io_read_all(scratch_path("run/methods.txt"), 1 << 20, &n, &error);
    if (!text) fail_msg("%s", error.text);
    assert_string_equal(text, expected.bytes);
    mem_free(text);
    scratch_write_text("run/job.json", "{\"steps\": [{\"name\": \"a\", \"kind\": \"report\"}]}");
    fail_each_allocation(write_file, NULL);
    scratch_write_text("run/job.json", "{\"steps\": []}");
    assert_false(methods_write(run_folder, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, "steps: expected an array of steps");
    text_free(&json);
    text_free(&expected);
    job_free(&job);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_option_changes_the_text),
        cmocka_unit_test(every_option_is_named),
        cmocka_unit_test(sentences_are_about_options),
        cmocka_unit_test(needs_are_about_options),
        cmocka_unit_test(what_is_without_effect_is_said_so),
        cmocka_unit_test(judges_and_side_effects_are_said),
        cmocka_unit_test(every_option_of_a_step_has_a_sentence),
        cmocka_unit_test(nothing_becomes_markup),
        cmocka_unit_test(both_forms_have_the_same_words),
        cmocka_unit_test(a_run_folder_gets_the_file),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

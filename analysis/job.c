/* Reading a job file into its records, and writing them out again resolved. */
#include "job.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include <ctype.h>
#include <string.h>

enum { MAX_JOB_BYTES = 1 << 24, MAX_PROBLEMS = 8, MAX_NAME = 64, MAX_RECORDS = 10000 };

/* ---- problems ---- */
void problems_add(Problems *problems, const Error *error) {
    if (error->code == ERROR_NONE) return;
    if (!problems->n) problems->first = *error;
    if (problems->n++ >= MAX_PROBLEMS) return;
    if (problems->n > 1) text_put_string(&problems->text, "; ");
    text_put_string(&problems->text, error->text);
}

bool problems_end(Problems *problems, Error *error) {
    bool fine = problems->n == 0;
    if (problems->n > MAX_PROBLEMS)
        text_format(&problems->text, "; and %lld more", (long long)(problems->n - MAX_PROBLEMS));
    const char *text = problems->text.failed ? problems->first.text : problems->text.bytes;
    if (!fine) error_set(error, problems->first.code, "%s", text);
    text_free(&problems->text);
    return fine;
}

bool job_is_name(const char *name) {
    size_t n = strlen(name);
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)name[i]) && name[i] != '_' && name[i] != '-') return false;
    return n > 0 && n <= MAX_NAME;
}

/* ---- reading ---- */
typedef struct {
    Job *job;
    const char *folder;
    Problems *problems;
} Reader;

static bool is_comment(Json at) { return at.key && !strncmp(at.key, "_comment", 8); }

static bool expect_type(Reader *r, Json at, JsonType type) {
    if (at.node && json_type(at) == type) return true;
    Error error = {0};
    json_error(at, &error, "expected %s: got %s", json_type_name(type),
               at.node ? json_type_name(json_type(at)) : "nothing");
    problems_add(r->problems, &error);
    return false;
}

static void read_member(Reader *r, OptionScope scope, int kind, Json at, void *record) {
    Error error = {0};
    const Option *option = option_find(scope, kind, at.key, at, &error);
    if (option) option_read(option, at, record, r->folder, &r->job->pool, &error);
    problems_add(r->problems, &error);
}

/* Fills presets and the members of one model, prompt group or step. */
static void read_record(Reader *r, OptionScope scope, int kind, Json at, void *record) {
    Error error = {0};
    options_preset(scope, record, &r->job->pool, &error);
    problems_add(r->problems, &error);
    Json member = {0};
    while (json_next(&at, &member))
        if (!is_comment(member)) read_member(r, scope, kind, member, record);
}

/* Room for the members of `at`, zeroed; NULL when there are none. */
static void *make_records(Reader *r, Json at, size_t item_bytes) {
    int64_t n = json_count(at);
    Error error = {0};
    if (n > MAX_RECORDS)
        json_error(at, &error, "expected at most %d entries: got %lld", MAX_RECORDS, (long long)n);
    void *records = n && n <= MAX_RECORDS ? mem_zeroed((size_t)n, item_bytes) : NULL;
    if (n && n <= MAX_RECORDS && !records)
        error_out_of_memory(&error, "records of the job", (size_t)n * item_bytes);
    problems_add(r->problems, &error);
    return records;
}

static const char *read_name(Reader *r, Json at) {
    Error error = {0};
    if (!job_is_name(at.key))
        json_error(at, &error, "expected a name of letters, digits, _ and -, at most %d: got \"%.80s\"",
                   MAX_NAME, at.key);
    const char *name = pool_put(&r->job->pool, at.key, strlen(at.key), &error);
    problems_add(r->problems, &error);
    return name ? name : "";
}

static void read_models(Reader *r, Json models) {
    Job *job = r->job;
    if (!expect_type(r, models, JSON_OBJECT) || !(job->models = make_records(r, models, sizeof *job->models)))
        return;
    Json at = {0};
    while (json_next(&models, &at)) {
        if (is_comment(at) || !expect_type(r, at, JSON_OBJECT)) continue;
        ModelOptions *model = &job->models[job->n_models++];
        read_record(r, SCOPE_MODEL, -1, at, model);
        model->name = read_name(r, at);
    }
}

static void read_prompts(Reader *r, Json prompts) {
    Job *job = r->job;
    if (!expect_type(r, prompts, JSON_OBJECT) ||
        !(job->prompts = make_records(r, prompts, sizeof *job->prompts)))
        return;
    Json at = {0};
    while (json_next(&prompts, &at)) {
        if (is_comment(at) || !expect_type(r, at, JSON_OBJECT)) continue;
        PromptOptions *group = &job->prompts[job->n_prompts++];
        read_record(r, SCOPE_PROMPTS, -1, at, group);
        group->name = read_name(r, at);
    }
}

/* The kind comes first: it says which options there are. */
static void read_steps(Reader *r, Json steps) {
    Job *job = r->job;
    if (!expect_type(r, steps, JSON_ARRAY) || !(job->steps = make_records(r, steps, sizeof *job->steps)))
        return;
    Json at = {0};
    while (json_next(&steps, &at)) {
        if (!expect_type(r, at, JSON_OBJECT)) continue;
        Error error = {0};
        StepOptions *step = &job->steps[job->n_steps], kind = {0};
        Json member = json_member(&at, "kind");
        const Option *option = option_find(SCOPE_STEP, -1, "kind", member, &error);
        bool known = option_read(option, member, &kind, r->folder, &job->pool, &error);
        problems_add(r->problems, &error);
        if (!known) continue;
        job->n_steps++;
        read_record(r, SCOPE_STEP, kind.kind, at, step);
    }
}

static void read_root(Reader *r, Json root) {
    if (!expect_type(r, root, JSON_OBJECT)) return;
    Job *job = r->job;
    Error error = {0};
    options_preset(SCOPE_JOB, &job->options, &job->pool, &error);
    problems_add(r->problems, &error);
    Json at = {0};
    while (json_next(&root, &at)) {
        bool own = !strcmp(at.key, "models") || !strcmp(at.key, "prompts") || !strcmp(at.key, "steps");
        if (!own && !is_comment(at)) read_member(r, SCOPE_JOB, -1, at, &job->options);
    }
    read_models(r, json_member(&root, "models"));
    read_prompts(r, json_member(&root, "prompts"));
    read_steps(r, json_member(&root, "steps"));
}

bool job_parse(const char *text, size_t length, const char *file, const char *folder, JobSettings settings,
               Job *job, Error *error) {
    *job = (Job){.name = "", .file = ""};
    JsonDocument *document = json_parse(text, length, file, error);
    if (!document) return false;
    Problems problems = {0};
    read_root(&(Reader){job, folder, &problems}, json_root(document));
    json_free(document);
    const char *base = io_last_name(file);
    size_t n = strlen(base);
    if (n > 5 && !strcmp(base + n - 5, ".json")) n -= 5;
    Error own = {0};
    job->name = pool_put(&job->pool, base, n, &own);
    job->file = job->name ? pool_put(&job->pool, file, strlen(file), &own) : NULL;
    problems_add(&problems, &own);
    for (int64_t i = 0; i < settings.n; i++) {
        Error one = {0};
        job_apply_setting(job, settings.texts[i], &one);
        problems_add(&problems, &one);
    }
    if (job->file) job_check(job, &problems);
    return problems_end(&problems, error);
}

bool job_read(const char *path, JobSettings settings, Job *job, Error *error) {
    *job = (Job){.name = "", .file = ""};
    size_t n;
    char *text = io_read_all(path, MAX_JOB_BYTES, &n, error);
    char *folder = text ? io_folder_of(path) : NULL;
    bool ok = text && (folder || error_out_of_memory(error, "a path", strlen(path)));
    ok = ok && job_parse(text, n, path, folder, settings, job, error);
    mem_free(folder);
    mem_free(text);
    return ok;
}

void job_free(Job *job) {
    for (int64_t i = 0; i < job->n_steps; i++) options_free(SCOPE_STEP, &job->steps[i]);
    mem_free(job->models);
    mem_free(job->prompts);
    mem_free(job->steps);
    pool_free(&job->pool);
    *job = (Job){0};
}

/* ---- writing ---- */
static void write_named(const char *name, OptionScope scope, const void *record, bool identity, Text *to) {
    text_put_string(to, "    ");
    text_put_json(to, name, strlen(name));
    text_put_string(to, ": {\n");
    options_write(scope, -1, record, 6, identity, to);
    text_put_string(to, "\n    }");
}

void job_write(const Job *job, bool identity, Text *to) {
    text_put_string(to, "{\n");
    options_write(SCOPE_JOB, -1, &job->options, 2, identity, to);
    text_put_string(to, ",\n  \"models\": {\n");
    for (int64_t i = 0; i < job->n_models; i++) {
        if (i) text_put_string(to, ",\n");
        write_named(job->models[i].name, SCOPE_MODEL, &job->models[i], identity, to);
    }
    text_put_string(to, "\n  },\n  \"prompts\": {\n");
    for (int64_t i = 0; i < job->n_prompts; i++) {
        if (i) text_put_string(to, ",\n");
        write_named(job->prompts[i].name, SCOPE_PROMPTS, &job->prompts[i], identity, to);
    }
    text_put_string(to, "\n  },\n  \"steps\": [\n");
    for (int64_t i = 0; i < job->n_steps; i++) {
        text_put_string(to, i ? ",\n    {\n" : "    {\n");
        options_write(SCOPE_STEP, job->steps[i].kind, &job->steps[i], 6, identity, to);
        text_put_string(to, "\n    }");
    }
    text_put_string(to, "\n  ]\n}\n");
}

const ModelOptions *job_model(const Job *job, const char *name) {
    for (int64_t i = 0; i < job->n_models; i++)
        if (!strcmp(job->models[i].name, name)) return &job->models[i];
    return NULL;
}

const PromptOptions *job_prompts(const Job *job, const char *name) {
    for (int64_t i = 0; i < job->n_prompts; i++)
        if (!strcmp(job->prompts[i].name, name)) return &job->prompts[i];
    return NULL;
}

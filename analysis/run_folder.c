/* Opening a run folder, the manifest. */
#include "run_folder.h"
#include "../engine/alloc.h"
#include "../engine/clock.h"
#include "../engine/io.h"
#include "results.h"
#include "scores.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { MAX_MANIFEST_BYTES = 64 << 20 };

/* ---- which job ---- */
/* What distinguishes the folder's job from ours: the first of its settings that differs, or a changed
 * input. */
static bool refuse_other_job(const RunFolder *folder, const RunFacts *facts, Json manifest, Error *error) {
    char *path = io_join(folder->path, "job.json");
    Error own = {0};
    Job job = {0};
    Text theirs = {0}, ours = {0};
    const char *what = "it holds another job";
    bool known = path && job_read(path, (JobSettings){0}, &job, &own);
    if (known) job_write(&job, true, &theirs);
    job_write(facts->job, true, &ours);
    mem_free(path);
    const char *a = theirs.bytes ? theirs.bytes : "", *b = ours.bytes ? ours.bytes : "";
    while (known && *a && *b) {
        size_t n = strcspn(a, "\n"), m = strcspn(b, "\n");
        if (n != m || memcmp(a, b, n) != 0) {
            a += strspn(a, " ");
            b += strspn(b, " ");
            error_set(error, ERROR_BAD_INPUT, "%s: %s: expected %.*s: got %.*s; choose another --out",
                      folder->path, what, (int)strcspn(a, ",\n"), a, (int)strcspn(b, ",\n"), b);
            break;
        }
        a += n + (a[n] == '\n');
        b += m + (b[m] == '\n');
    }
    Json inputs = json_member(&manifest, "inputs"), at = {0};
    while (error->code == ERROR_NONE && json_next(&inputs, &at)) {
        const char *name, *hash;
        if (!json_string(json_member(&at, "name"), &name, &own) ||
            !json_string(json_member(&at, "sha256"), &hash, &own))
            break;
        const InputFile *input = inputs_find(facts->inputs, name);
        if (!input || strcmp(input->hash, hash) != 0)
            error_set(error, ERROR_BAD_INPUT,
                      "%s: %s: expected %s with sha256 %.12s...: got %.12s...; choose another --out",
                      folder->path, what, name, hash, input ? input->hash : "none");
    }
    error_set(error, ERROR_BAD_INPUT, "%s: %s (settings, device or inputs differ); choose another --out",
              folder->path, what);
    job_free(&job);
    text_free(&theirs);
    text_free(&ours);
    return false;
}

static bool check_manifest(RunFolder *folder, const RunFacts *facts, const char *path, Error *error) {
    JsonDocument *document = json_read(path, MAX_MANIFEST_BYTES, error);
    if (!document) return false;
    Json root = json_root(document);
    const char *identity, *begun;
    bool ok = json_string(json_member(&root, "identity"), &identity, error) &&
              json_string(json_member(&root, "begun"), &begun, error);
    if (ok && strcmp(identity, facts->identity) != 0) ok = refuse_other_job(folder, facts, root, error);
    if (ok) snprintf(folder->first_begun, sizeof folder->first_begun, "%s", begun);
    folder->resumed = ok;
    json_free(document);
    return ok;
}

/* ---- what a killed run left ---- */
static bool is_partial(const char *name) { return strstr(name, ".partial-") != NULL; }

/* Removes half-written files of a folder and, one level down, of its folders. */
static bool clear_partials(const char *path, int depth, Error *error) {
    char **names = NULL;
    size_t n = 0;
    bool ok = io_list(path, &names, &n, error);
    for (size_t i = 0; i < n; i++) {
        char *inside = io_join(path, names[i]);
        ok = ok && (inside || error_out_of_memory(error, "a path", strlen(path)));
        if (ok && is_partial(names[i]))
            ok = io_remove(inside, error);
        else if (ok && depth > 0 && io_is_folder(inside))
            ok = clear_partials(inside, depth - 1, error);
        mem_free(inside);
        mem_free(names[i]);
    }
    mem_free(names);
    return ok;
}

/* A folder without manifest must be empty but for what a run killed at its very begin left. */
static bool check_empty(const char *path, Error *error) {
    char **names = NULL;
    size_t n = 0;
    bool ok = io_list(path, &names, &n, error);
    for (size_t i = 0; i < n; i++) {
        if (ok && !is_partial(names[i]))
            ok = error_set(
                error, ERROR_BAD_INPUT,
                "%s: expected an empty folder or a run of this job: got a folder with \"%.80s\" and no "
                "manifest.json",
                path, names[i]);
        mem_free(names[i]);
    }
    mem_free(names);
    return ok;
}

/* Where a file system has no locks we go on without. */
static bool lock_folder(RunFolder *folder, Error *error) {
    folder->lock = open(folder->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder->lock < 0)
        return error_set(error, ERROR_FAILED, "%s: expected a readable folder: got \"%s\"", folder->path,
                         strerror(errno));
    if (flock(folder->lock, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return true;
    return error_set(error, ERROR_FAILED,
                     "%s: expected a folder that no other process works in: got a locked one", folder->path);
}

/* ---- the manifest ---- */
static void put_string(Text *to, const char *key, const char *value) {
    text_format(to, ",\n  \"%s\": ", key);
    text_put_json(to, value, strlen(value));
}

static void put_inputs(const Inputs *inputs, Text *to) {
    text_put_string(to, ",\n  \"inputs\": [");
    for (int64_t i = 0; i < inputs->n; i++) {
        const InputFile *f = &inputs->files[i];
        text_put_string(to, i ? ",\n    {\"name\": " : "\n    {\"name\": ");
        text_put_json(to, f->name, strlen(f->name));
        text_put_string(to, ", \"path\": ");
        text_put_json(to, f->path, strlen(f->path));
        text_format(to, ", \"bytes\": %llu, \"sha256\": \"%s\", \"sha256_of\": \"%s\"}",
                    (unsigned long long)f->n_bytes, f->hash, f->header_only ? "header" : "file");
    }
    text_put_string(to, "\n  ]");
}

static void put_definitions(const Job *job, Text *to) {
    text_put_string(to, ",\n  \"definitions\": {");
    bool first = true;
    for (int64_t s = 0; s < job->n_steps; s++) {
        if (job->steps[s].kind == STEP_REPORT) continue;
        const char *words = scores_definition(&job->steps[s]);
        text_format(to, "%s\n    \"%s\": ", first ? "" : ",", job->steps[s].name);
        text_put_json(to, words, strlen(words));
        first = false;
    }
    text_put_string(to, "\n  }");
}

bool run_folder_write_manifest(RunFolder *folder, const RunFacts *facts, const char *state, Error *error) {
    char now[32], host[256] = "";
    clock_utc(now);
    gethostname(host, sizeof host - 1);
    if (!folder->first_begun[0]) snprintf(folder->first_begun, sizeof folder->first_begun, "%s", now);
    Text text = {0};
    text_put_string(&text, "{\n  \"format\": 1");
    put_string(&text, "program", "gatetape");
    put_string(&text, "version", facts->version);
    put_string(&text, "identity", facts->identity);
    put_string(&text, "state", state);
    put_string(&text, "begun", folder->first_begun);
    put_string(&text, "written", now);
    put_string(&text, "job", facts->job->file);
    put_string(&text, "device", facts->device);
    put_string(&text, "isa", facts->isa);
    put_string(&text, "compute", facts->compute);
    put_string(&text, "dense", facts->job->options.dense == DENSE_CUBLAS ? "cublas" : "own");
    put_string(&text, "host", host);
    text_format(&text, ",\n  \"ranks\": %d,\n  \"threads\": %d,\n  \"seed\": %lld", facts->n_ranks,
                facts->n_threads, (long long)facts->job->options.seed);
    text_put_string(&text, ",\n  \"parse_special_in_content\": {");
    for (int64_t i = 0; i < facts->job->n_models; i++)
        text_format(&text, "%s\"%s\": %s", i ? ", " : "", facts->job->models[i].name,
                    facts->job->models[i].parse_special_in_content ? "true" : "false");
    text_put_string(&text, "}");
    put_definitions(facts->job, &text);
    put_inputs(facts->inputs, &text);
    text_put_string(&text, "\n}\n");
    return results_write_text(folder->path, "manifest.json", &text, error);
}

static bool write_job(const RunFolder *folder, const Job *job, Error *error) {
    char *path = io_join(folder->path, "job.json");
    bool there = path && io_exists(path),
         ok = path || error_out_of_memory(error, "a path", strlen(folder->path));
    mem_free(path);
    if (!ok || there) return ok;
    Text text = {0};
    job_write(job, false, &text);
    return results_write_text(folder->path, "job.json", &text, error);
}

bool run_folder_open(RunFolder *folder, const char *path, const RunFacts *facts, Error *error) {
    *folder = (RunFolder){.path = mem_copy_text(path, strlen(path)), .lock = -1};
    char *manifest = folder->path ? io_join(path, "manifest.json") : NULL;
    bool ok = manifest || error_out_of_memory(error, "a path", strlen(path));
    ok = ok && io_make_folders(path, error) && lock_folder(folder, error);
    ok = ok &&
         (io_exists(manifest) ? check_manifest(folder, facts, manifest, error) : check_empty(path, error));
    ok = ok && clear_partials(path, 2, error) && run_folder_write_manifest(folder, facts, "running", error) &&
         write_job(folder, facts->job, error);
    mem_free(manifest);
    return ok;
}

void run_folder_close(RunFolder *folder) {
    if (folder->path && folder->lock >= 0) close(folder->lock);
    mem_free(folder->path);
    *folder = (RunFolder){.lock = -1};
}

/* Listing and hashing what a job reads. */
#include "inputs.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "judge_folder.h"
#include <string.h>

static const uint64_t whole_file_bytes = (uint64_t)1 << 30, max_header_bytes = (uint64_t)100 << 20;

void inputs_free(Inputs *inputs) {
    for (int64_t i = 0; i < inputs->n; i++) {
        mem_free(inputs->files[i].name);
        mem_free(inputs->files[i].path);
    }
    mem_free(inputs->files);
    *inputs = (Inputs){0};
}

const InputFile *inputs_find(const Inputs *inputs, const char *name) {
    for (int64_t i = 0; i < inputs->n; i++)
        if (!strcmp(inputs->files[i].name, name)) return &inputs->files[i];
    return NULL;
}

/* The length that a safetensors file begins with, and the header that it counts. */
static bool hash_header(const IoFile *file, char hash[HASH_TEXT], Error *error) {
    uint8_t length[8];
    if (!io_read_at(file, 0, length, 8, error)) return false;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | length[i];
    if (n > max_header_bytes || n + 8 > file->n_bytes)
        return error_set(error, ERROR_BAD_INPUT, "%s: expected a safetensors header: got a length of %llu",
                         file->path, (unsigned long long)n);
    char *header = mem_alloc((size_t)n);
    if (!header) return error_out_of_memory(error, file->path, n);
    bool ok = io_read_at(file, 8, header, (size_t)n, error);
    Hash state;
    hash_begin(&state);
    hash_add(&state, length, 8);
    if (ok) hash_add(&state, header, (size_t)n);
    hash_end(&state, hash);
    mem_free(header);
    return ok;
}

static bool add_file(Inputs *to, const char *name, const char *path, Error *error) {
    if (to->n == to->capacity) {
        int64_t more = to->capacity ? 2 * to->capacity : 16;
        InputFile *files = mem_resize(to->files, (size_t)more, sizeof *files);
        if (!files) return error_out_of_memory(error, "inputs", (size_t)more * sizeof *files);
        to->files = files;
        to->capacity = more;
    }
    InputFile *input = &to->files[to->n++];
    *input =
        (InputFile){.name = mem_copy_text(name, strlen(name)), .path = mem_copy_text(path, strlen(path))};
    if (!input->name || !input->path) return error_out_of_memory(error, "inputs", strlen(path));
    IoFile file;
    if (!io_open(&file, path, error)) return false;
    input->n_bytes = file.n_bytes;
    size_t n = strlen(path);
    bool weights = n > 12 && !strcmp(path + n - 12, ".safetensors");
    input->header_only = weights && file.n_bytes >= whole_file_bytes;
    bool ok =
        input->header_only ? hash_header(&file, input->hash, error) : hash_file(path, input->hash, error);
    io_close(&file);
    return ok;
}

static bool is_model_file(const char *name) {
    static const char *const names[] = {"config.json", "generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json", "model.safetensors.index.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return true;
    size_t n = strlen(name);
    return n > 12 && !strcmp(name + n - 12, ".safetensors");
}

bool inputs_add_model(Inputs *to, const char *model, const char *folder, Error *error) {
    char **names = NULL;
    size_t n_names = 0;
    bool ok = io_list(folder, &names, &n_names, error);
    for (size_t i = 0; i < n_names; i++) {
        char *path = ok && is_model_file(names[i]) ? io_join(folder, names[i]) : NULL;
        char name[400];
        snprintf(name, sizeof name, "models.%s/%s", model, names[i]);
        if (path) ok = add_file(to, name, path, error);
        mem_free(path);
        mem_free(names[i]);
    }
    mem_free(names);
    return ok;
}

static bool is_used(const Job *job, const char *model, const char *group) {
    for (int64_t s = 0; s < job->n_steps; s++) {
        const StepOptions *step = &job->steps[s];
        if (step->kind == STEP_REPORT) continue;
        if (model && !strcmp(step->model, model)) return true;
        for (int64_t g = 0; group && g < step->groups.n; g++)
            if (!strcmp(step->groups.names[g], group)) return true;
        for (int64_t g = 0; group && g < step->evaluate.n; g++)
            if (!strcmp(step->evaluate.names[g], group)) return true;
    }
    return false;
}

static bool add_option(Inputs *to, const StepOptions *step, const char *option, const char *path,
                       Error *error) {
    char name[160];
    snprintf(name, sizeof name, "steps.%.64s.%.60s", step->name, option);
    return !path[0] || add_file(to, name, path, error) || error_add_place(error, "%s", name);
}

static bool add_adapter(Inputs *to, const StepOptions *step, Error *error) {
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors"};
    bool ok = true;
    for (int i = 0; ok && step->adapter_path[0] && i < 2; i++) {
        char option[60], *path = io_join(step->adapter_path, names[i]);
        snprintf(option, sizeof option, "adapter_path/%s", names[i]);
        ok = path ? add_option(to, step, option, path, error) : error_out_of_memory(error, "a path", 1);
        mem_free(path);
    }
    return ok;
}

/* Files that options of a step name; those of a judge stand for themselves where they are left out. */
static bool add_step(Inputs *to, const StepOptions *step, Error *error) {
    if (!add_adapter(to, step, error)) return false;
    if (step->kind == STEP_INTERVENTION || step->kind == STEP_TUNE)
        return add_option(to, step, "selection", step->selection, error);
    if (step->kind != STEP_JUDGE) return true;
    char *rules = judge_path(step->rules, JUDGE_STANDARD_RULES, error),
         *guard = step->model[0] ? judge_path(step->guard, JUDGE_STANDARD_GUARD, error) : NULL;
    bool ok = rules && (guard || !step->model[0]) && add_option(to, step, "rules", rules, error) &&
              add_option(to, step, "labels", step->labels, error) &&
              (!guard || add_option(to, step, "guard", guard, error));
    mem_free(rules);
    mem_free(guard);
    return ok;
}

bool inputs_gather(const Job *job, Inputs *inputs, Error *error) {
    *inputs = (Inputs){0};
    bool ok = true;
    for (int64_t i = 0; ok && i < job->n_models; i++)
        if (is_used(job, job->models[i].name, NULL))
            ok = inputs_add_model(inputs, job->models[i].name, job->models[i].path, error) ||
                 error_add_place(error, "models.%s", job->models[i].name);
    for (int64_t i = 0; ok && i < job->n_prompts; i++) {
        char name[100];
        snprintf(name, sizeof name, "prompts.%s", job->prompts[i].name);
        if (is_used(job, NULL, job->prompts[i].name))
            ok = add_file(inputs, name, job->prompts[i].path, error) || error_add_place(error, "%s", name);
    }
    for (int64_t s = 0; ok && s < job->n_steps; s++) ok = add_step(inputs, &job->steps[s], error);
    return ok;
}

void inputs_identity(const Job *job, const char *device, const char *compute, const Inputs *inputs,
                     char hash[HASH_TEXT], Error *error) {
    Text text = {0};
    text_format(&text, "results 1\ndevice %s\ncompute %s\n", device, compute);
    job_write(job, true, &text);
    for (int64_t i = 0; i < inputs->n; i++)
        text_format(&text, "%s %llu %s\n", inputs->files[i].name,
                    (unsigned long long)inputs->files[i].n_bytes, inputs->files[i].hash);
    Hash state;
    hash_begin(&state);
    if (text.failed)
        error_out_of_memory(error, "a job's identity", text.length);
    else
        hash_add(&state, text.bytes, text.length);
    hash_end(&state, hash);
    text_free(&text);
}

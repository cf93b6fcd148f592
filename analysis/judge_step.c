/* A judge step: who labels by the options, what a guard says to each reply in blocks, and step.json. */
#include "judge_step.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/safetensors.h"
#include "guard.h"
#include "judge_parts.h"
#include "scores.h"
#include <math.h>
#include <string.h>

const StepOptions *judge_step_source(const Job *job, const StepOptions *step) {
    for (int64_t s = 0; s < job->n_steps; s++)
        if (!strcmp(job->steps[s].name, step->from.names[0])) return &job->steps[s];
    return NULL;
}

typedef struct {
    const StepRun *run;
    const StepOptions *source;
    Guard *guard;
    PromptFile *files; /* [source->groups.n]: the requests that were replied to */
    Judging *judging;
    int64_t n_done;
    Error *error;
} Asking;

/* ---- requests ---- */
static bool read_requests(Asking *a) {
    const int64_t n = a->source->groups.n;
    a->files = mem_zeroed((size_t)n, sizeof *a->files);
    if (!a->files) return error_out_of_memory(a->error, "prompts", (size_t)n * sizeof *a->files);
    for (int64_t g = 0; g < n; g++) {
        const PromptOptions *options = job_prompts(a->run->job, a->source->groups.names[g]);
        char name[100];
        snprintf(name, sizeof name, "prompts.%s", options->name);
        const InputFile *input = inputs_find(a->run->inputs, name);
        if (!prompts_read(options, &a->files[g], a->error)) return error_add_place(a->error, "%s", name);
        if (input && strcmp(input->hash, a->files[g].hash) != 0)
            return error_set(a->error, ERROR_FAILED,
                             "%s: expected the file as it was when the run began: got another",
                             options->path);
    }
    return true;
}

static const ChatMessage *find_request(const Asking *a, const Judged *j, const Reply *reply) {
    for (int64_t g = 0; g < a->source->groups.n; g++) {
        const PromptFile *file = &a->files[g];
        if (strcmp(a->source->groups.names[g], reply->group) != 0 || !file->n) continue;
        const int64_t at = reply->index - file->entries[0].index;
        const ChatMessage *request = at >= 0 && at < file->n ? guard_prompt(&file->entries[at]) : NULL;
        if (request) return request;
    }
    error_set(a->error, ERROR_BAD_INPUT,
              "%s/responses/%s.jsonl: expected replies to user messages of the job's prompts: got none for "
              "entry %lld of %s",
              a->source->name, j->name, (long long)reply->index, reply->group);
    return NULL;
}

/* ---- a block of replies of one condition ---- */
static char *block_path(Asking *a, const Judged *j, int64_t first) {
    char name[300];
    snprintf(name, sizeof name, "%.200s.%04lld.safetensors", j->name, (long long)(first / BLOCK_PROMPTS));
    char *folder = io_join(a->run->folder, "blocks"), *path = folder ? io_join(folder, name) : NULL;
    if (!path)
        error_out_of_memory(a->error, "a path", strlen(name));
    else if (!io_make_folders(folder, a->error)) {
        mem_free(path);
        path = NULL;
    }
    mem_free(folder);
    return path;
}

static Tensor block_tensor(double *log_p, int64_t n) { return tensor_matrix(log_p, DTYPE_F64, n, N_LABELS); }

/* A block that cannot be read is asked again. */
static bool load_block(Asking *a, const char *path, int64_t n, double *log_p, bool *there) {
    Error own = {0};
    *there = false;
    if (!io_exists(path)) return true;
    TensorSet *set = safetensors_open(path, &own);
    const TensorEntry *entry = set ? safetensors_find(set, "log_p") : NULL;
    const Tensor to = block_tensor(log_p, n);
    if (entry && (!entry->dtype_known || entry->dtype != to.dtype || entry->n_bytes != tensor_bytes(to)))
        entry = NULL;
    *there = entry && safetensors_read(set, entry, 0, log_p, tensor_bytes(to), &own);
    if (set) safetensors_close(set);
    if (*there) return true;
    if (own.code == ERROR_UNAVAILABLE) return error_set(a->error, own.code, "%s", own.text);
    progress_warn(a->run->progress, "%s: expected answers to %lld replies; they are asked for again", path,
                  (long long)n);
    return true;
}

static bool ask_block(Asking *a, const Judged *j, int64_t first, int64_t n, double *log_p) {
    GuardText texts[BLOCK_PROMPTS];
    PromptGroup questions = {0};
    for (int64_t i = 0; i < n; i++) {
        const Reply *reply = &j->replies[first + i];
        texts[i] = (GuardText){reply->id, find_request(a, j, reply), reply->text};
        if (!texts[i].prompt) return false;
    }
    bool ok = guard_encode(a->guard, texts, n, &questions, a->error) &&
              guard_ask(a->guard, a->run->model, &questions, step_limits(a->run->job), log_p, a->error);
    if (!ok) error_add_place(a->error, "condition %s", j->name);
    prompt_group_free(&questions);
    return ok && step_goes_on(a->run, a->error);
}

static bool take_block(Asking *a, Judged *j, int64_t first) {
    const int64_t n = j->n - first < BLOCK_PROMPTS ? j->n - first : BLOCK_PROMPTS;
    double log_p[BLOCK_PROMPTS * N_LABELS] = {0};
    bool there = false;
    char *path = block_path(a, j, first);
    bool ok = path && load_block(a, path, n, log_p, &there);
    if (ok && !there) {
        const NamedTensor block = {"log_p", block_tensor(log_p, n)};
        ok = ask_block(a, j, first, n, log_p) && safetensors_write(path, &block, 1, NULL, 0, a->error);
    }
    for (int64_t i = 0; ok && i < n; i++) {
        Reply *reply = &j->replies[first + i];
        const GuardVerdict v = guard_verdict(a->guard, log_p + i * N_LABELS);
        reply->guard = (int)v.label;
        reply->other = v.other;
        memcpy(reply->probability, v.probability, sizeof v.probability);
    }
    a->n_done += n;
    mem_free(path);
    return ok && progress_update(a->run->progress, a->n_done, 0, a->error);
}

static bool ask(void *context, Judging *w) {
    Asking *a = context;
    int64_t n = 0;
    for (int64_t i = 0; i < w->n; i++) n += w->list[i].n;
    bool ok =
        read_requests(a) && progress_begin(a->run->progress, a->run->step->name, n, 0, "replies", a->error);
    for (int64_t i = 0; ok && i < w->n; i++)
        for (int64_t first = 0; ok && first < w->list[i].n; first += BLOCK_PROMPTS)
            ok = take_block(a, &w->list[i], first);
    return ok && progress_end(a->run->progress, a->error);
}

/* ---- the step ---- */
static bool write_facts(const StepRun *run, const StepOptions *source, Error *error) {
    const StepOptions *step = run->step;
    const char *definition = scores_definition(step);
    Text text = {0};
    text_put_string(&text, "{\n  \"schema_version\": 1,\n  \"name\": ");
    text_put_json(&text, step->name, strlen(step->name));
    text_put_string(&text, ",\n  \"kind\": \"judge\",\n  \"model\": ");
    text_put_json(&text, step->model, strlen(step->model));
    text_put_string(&text, ",\n  \"from\": ");
    text_put_json(&text, source->name, strlen(source->name));
    text_put_string(&text, ",\n  \"definition\": ");
    text_put_json(&text, definition, strlen(definition));
    text_put_string(&text, ",\n  \"switches\": {\n");
    options_write(SCOPE_STEP, step->kind, step, 4, true, &text);
    text_put_string(&text, "\n  }\n}\n");
    return results_write_text(run->folder, "step.json", &text, error);
}

static void fill_request(const StepRun *run, JudgeFolder *request) {
    const StepOptions *step = run->step;
    *request = (JudgeFolder){.out = run->folder,
                             .rules = step->rules,
                             .labels = step->labels[0] ? step->labels : NULL,
                             .resamples = step->resamples,
                             .seed = run->job->options.seed,
                             .perplexity_limit = step->perplexity_limit,
                             .perplexity_reference = step->perplexity_reference};
    for (int64_t i = 0; i < step->decides.n && request->n_decides < N_LABELLERS; i++)
        for (Labeller l = LABELLER_PEOPLE; l < N_LABELLERS; l++)
            if (!strcmp(labeller_names[l], step->decides.names[i]))
                request->decides[request->n_decides++] = l;
}

/* The guard's file and answers; without a model nothing. */
static bool open_guard(Asking *a, JudgeFolder *request, Text *facts) {
    const StepOptions *step = a->run->step;
    if (!step->model[0]) return true;
    char *path = judge_path(step->guard, JUDGE_STANDARD_GUARD, a->error);
    a->guard = path ? guard_read(path, a->error) : NULL;
    mem_free(path);
    if (!a->guard || !guard_open(a->guard, a->run->encoder, a->error)) return false;
    guard_put_facts(a->guard, step->model, facts);
    request->ask_guard = ask;
    request->context = a;
    request->guard_facts = facts->bytes;
    request->guard_degrades = guard_has(a->guard, LABEL_DEGRADED);
    return !facts->failed || error_out_of_memory(a->error, "a guard", facts->length);
}

bool judge_step_run(const StepRun *run, Error *error) {
    JudgeFolder request;
    Text facts = {0};
    Asking asking = {.run = run, .source = judge_step_source(run->job, run->step), .error = error};
    char *parent = io_folder_of(run->folder), *folder = parent ? io_join(parent, asking.source->name) : NULL;
    fill_request(run, &request);
    request.folder = folder;
    bool ok = (folder || error_out_of_memory(error, "a path", strlen(run->folder))) &&
              io_make_folders(run->folder, error) && open_guard(&asking, &request, &facts) &&
              judge_folder(&request, error) && write_facts(run, asking.source, error) &&
              step_remove_blocks(run, error);
    for (int64_t g = 0; asking.files && g < asking.source->groups.n; g++) prompts_free(&asking.files[g]);
    mem_free(asking.files);
    guard_free(asking.guard);
    text_free(&facts);
    mem_free(folder);
    mem_free(parent);
    return ok;
}

/* ---- before the run ---- */
static bool check_guard(const Job *job, const StepOptions *step, Error *error) {
    const ModelOptions *options = job_model(job, step->model);
    ModelConfig config = {0};
    PromptEncoder encoder = {0};
    char *path = judge_path(step->guard, JUDGE_STANDARD_GUARD, error);
    Guard *guard = path ? guard_read(path, error) : NULL;
    bool ok = guard && (model_config_read(options->path, &config, error) &&
                                prompt_encoder_open(options, &config, &encoder, error)
                            ? guard_open(guard, &encoder, error)
                            : error_add_place(error, "models.%s", options->name));
    guard_free(guard);
    prompt_encoder_close(&encoder);
    model_config_free(&config);
    mem_free(path);
    return ok;
}

static bool check_labels(const StepOptions *step, Error *error) {
    Csv csv = {0};
    int64_t column;
    bool ok = csv_read(step->labels, JUDGE_MOST_BYTES, &csv, error) &&
              csv_need_column(&csv, "condition", &column, error) &&
              csv_need_column(&csv, "group", &column, error) && csv_need_column(&csv, "id", &column, error) &&
              (csv_find_column(&csv, "human") >= 0 || csv_need_column(&csv, "label", &column, error));
    csv_free(&csv);
    return ok;
}

bool judge_step_check(const Job *job, const StepOptions *step, Error *error) {
    char *path = judge_path(step->rules, JUDGE_STANDARD_RULES, error);
    JudgeRules *rules = path ? judge_rules_read(path, error) : NULL;
    bool ok = rules && (!step->labels[0] || check_labels(step, error)) &&
              (!step->model[0] || check_guard(job, step, error));
    judge_rules_free(rules);
    mem_free(path);
    return ok || error_add_place(error, "step %s", step->name);
}

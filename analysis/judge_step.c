/* A judge step: who labels by the options, what a guard says to each reply, by all ranks, and step.json. */
#include "judge_step.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "guard.h"
#include "judge_parts.h"
#include "likelihood.h"
#include "scores.h"
#include "share.h"
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
    PromptFile *files;      /* [source->groups.n]: the requests that were replied to */
    PromptGroup *questions; /* [n]: of each condition's replies */
    ShareList *lists;       /* [n] */
    int64_t n;
    bool agreed; /* with the other ranks, on having read what the guard is asked about */
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

/* ---- questions ---- */
static bool encode_questions(Asking *a, const Judged *j, PromptGroup *questions) {
    GuardText *texts = mem_zeroed((size_t)j->n + 1, sizeof *texts);
    bool ok = texts || error_out_of_memory(a->error, "questions", (size_t)j->n * sizeof *texts);
    for (int64_t i = 0; ok && i < j->n; i++) {
        const Reply *reply = &j->replies[i];
        texts[i] = (GuardText){reply->id, find_request(a, j, reply), reply->text};
        ok = texts[i].prompt != NULL;
    }
    ok = ok && (guard_encode(a->guard, texts, j->n, questions, a->error) ||
                error_add_place(a->error, "condition %s", j->name));
    mem_free(texts);
    return ok;
}

static bool make_lists(Asking *a, const Judging *w) {
    a->n = w->n;
    a->questions = mem_zeroed((size_t)w->n, sizeof *a->questions);
    a->lists = mem_zeroed((size_t)w->n, sizeof *a->lists);
    bool ok = (a->questions && a->lists) ||
              error_out_of_memory(a->error, "questions", (size_t)w->n * sizeof *a->questions);
    for (int64_t i = 0; ok && i < w->n; i++) {
        const Judged *j = &w->list[i];
        const size_t n = (size_t)j->n * N_LABELS;
        if (!j->n) continue;
        a->lists[i] = (ShareList){
            .name = j->name, .n = j->n, .n_each = 1, .values = mem_zeroed(n, sizeof *a->lists[i].values)};
        ok = (a->lists[i].values || error_out_of_memory(a->error, "answers", n * sizeof(double))) &&
             encode_questions(a, j, &a->questions[i]);
    }
    return ok;
}

/* ---- shared by ranks: an item is a reply ---- */
static const EncodedPrompt *question_of(const Share *share, int64_t list, int64_t item) {
    const Asking *a = share->context;
    return &a->questions[list].prompts[item];
}

static int64_t question_cost(const Share *share, int64_t list, int64_t item) {
    const Asking *a = share->context;
    return guard_question_tokens(a->guard, question_of(share, list, item));
}

static int64_t batch_questions(const Share *share, const SharePart *part, int stage, int64_t at) {
    const Asking *a = share->context;
    (void)stage;
    return guard_batch_size(a->guard, question_of(share, part->block->list, part->first + at), part->n - at,
                            step_limits(share->run->job));
}

static bool ask_batch(const Share *share, SharePart *part, int stage, int64_t at, int64_t n, Error *error) {
    const Asking *a = share->context;
    const int64_t list = part->block->list;
    (void)stage;
    return guard_ask(a->guard, share->run->model, question_of(share, list, part->first + at), n,
                     part->values + at * N_LABELS, error) ||
           error_add_place(error, "condition %s", share->lists[list].name);
}

static bool serve_batch(const Share *share, int stage, Error *error) {
    (void)stage;
    (void)error;
    likelihood_serve(share->run->model, NULL);
    return true;
}

static void put_verdict(const Asking *a, const double log_p[N_LABELS], Reply *reply) {
    const GuardVerdict v = guard_verdict(a->guard, log_p);
    reply->guard = (int)v.label;
    reply->other = v.other;
    memcpy(reply->probability, v.probability, sizeof v.probability);
}

static bool ask(void *context, Judging *w) {
    Asking *a = context;
    bool ok = read_requests(a) && make_lists(a, w);
    ok = comm_agree(a->run->comm, ok, a->error);
    a->agreed = true;
    Share share = {.run = a->run,
                   .context = a,
                   .unit = "replies",
                   .lists = a->lists,
                   .n_lists = a->n,
                   .n_stages = 1,
                   .n_values = N_LABELS,
                   .values_name = "log_p",
                   .cost = question_cost,
                   .batch = batch_questions,
                   .measure = ask_batch,
                   .serve = serve_batch};
    ok = ok && share_run(&share, a->error);
    for (int64_t i = 0; ok && i < w->n; i++)
        for (int64_t r = 0; r < w->list[i].n; r++)
            put_verdict(a, a->lists[i].values + r * N_LABELS, &w->list[i].replies[r]);
    share_free(&share);
    return ok;
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

static void free_asking(Asking *a) {
    for (int64_t g = 0; a->files && g < a->source->groups.n; g++) prompts_free(&a->files[g]);
    for (int64_t i = 0; a->questions && i < a->n; i++) prompt_group_free(&a->questions[i]);
    for (int64_t i = 0; a->lists && i < a->n; i++) mem_free(a->lists[i].values);
    mem_free(a->files);
    mem_free(a->questions);
    mem_free(a->lists);
    guard_free(a->guard);
}

/* With a model by all ranks, else by the first alone. A rank that fails before it asks says so to the others,
 * which wait for it in `ask`. */
bool judge_step_run(const StepRun *run, Error *error) {
    JudgeFolder request;
    Text facts = {0};
    Asking asking = {.run = run, .source = judge_step_source(run->job, run->step), .error = error};
    char *parent = io_folder_of(run->folder), *folder = parent ? io_join(parent, asking.source->name) : NULL;
    const bool first = run->comm->rank == 0, together = run->step->model[0];
    fill_request(run, &request);
    request.folder = folder;
    request.asks_alone = !first;
    bool ok = (folder || error_out_of_memory(error, "a path", strlen(run->folder))) &&
              (!first || io_make_folders(run->folder, error)) && open_guard(&asking, &request, &facts);
    if (together) ok = comm_agree(run->comm, ok, error);
    if (ok) {
        ok = judge_folder(&request, error);
        if (together && !asking.agreed) ok = comm_agree(run->comm, ok, error);
    }
    ok = ok && (!first || (write_facts(run, asking.source, error) && step_remove_blocks(run, error)));
    free_asking(&asking);
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

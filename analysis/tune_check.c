/* What a job says of trainings and adapters, before anything is computed; and the adapter of a step. */
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "contrast.h"
#include "tune_parts.h"
#include <string.h>

static void complain(const Job *job, Problems *problems, int64_t s, const char *key, const char *what) {
    Error error = {0};
    error_set(&error, ERROR_BAD_INPUT, "%s: steps[%lld].%s: %s", job->file, (long long)s, key, what);
    problems_add(problems, &error);
}

static void check_uses(const Job *job, int64_t s, Problems *problems) {
    const StepOptions *step = &job->steps[s];
    for (int64_t i = 0; i < step->groups.n; i++) {
        const PromptOptions *group = job_prompts(job, step->groups.names[i]);
        if (!group || group->use == USE_TUNING || group->use == USE_ANY) continue;
        char what[200];
        snprintf(what, sizeof what, "expected groups whose use is tuning: got %.64s, whose use is %s",
                 group->name, option_choice("use", SCOPE_PROMPTS, group->use));
        complain(job, problems, s, "groups", what);
    }
}

const StepOptions *tune_contrast_source(const Job *job, const StepOptions *step) {
    for (int64_t i = 0; step->from.n == 1 && job->steps + i < step; i++)
        if (job->steps[i].kind == STEP_CONTRAST && job->steps[i].name &&
            !strcmp(job->steps[i].name, step->from.names[0]))
            return &job->steps[i];
    return NULL;
}

static void check_contrast(const Job *job, int64_t s, Problems *problems) {
    const StepOptions *step = &job->steps[s], *source = tune_contrast_source(job, step);
    if (!source) return;
    if (step->top.n || step->cells.n || step->selection[0])
        complain(job, problems, s, "from", "expected no top, cells and selection beside a contrast step's");
    if (strcmp(source->model, step->model) != 0)
        complain(job, problems, s, "from", "expected a contrast step of the same model");
    if (step->ranking == RANKING_GRADIENT && !contrast_walks_back(source))
        complain(job, problems, s, "ranking", "expected rate or probability: the contrast has no gradient");
}

static void check_evaluate(const Job *job, int64_t s, Problems *problems) {
    const StepOptions *step = &job->steps[s];
    char what[200];
    for (int64_t i = 0; i < step->evaluate.n; i++) {
        snprintf(what, sizeof what, "expected a prompt group of the job: got \"%.80s\"",
                 step->evaluate.names[i]);
        if (!job_prompts(job, step->evaluate.names[i])) complain(job, problems, s, "evaluate", what);
    }
    if (step->patience && !step->evaluate.n)
        complain(job, problems, s, "patience", "expected groups to evaluate: got none");
}

void tune_check_options(const Job *job, int64_t s, Problems *problems) {
    const StepOptions *step = &job->steps[s];
    char what[200];
    if (step->top.n + (step->cells.n > 0) + (step->selection[0] != 0) > 1)
        complain(job, problems, s, "top", "expected one of top (one number), cells and selection: got more");
    if (step->from.n > 1) complain(job, problems, s, "from", "expected one step whose scores rank the cells");
    if (!step->projections.n)
        complain(job, problems, s, "projections", "expected gate, up or down: got none");
    for (int64_t i = 0; i < step->projections.n; i++) {
        Projection projection;
        if (projection_find(step->projections.names[i], &projection)) continue;
        snprintf(what, sizeof what, "expected gate, up or down: got \"%.80s\"", step->projections.names[i]);
        complain(job, problems, s, "projections", what);
    }
    const bool drawn = step->control != CONTROL_NONE && step->control != CONTROL_ALL;
    if (step->draw && !drawn)
        complain(job, problems, s, "draw", "expected 0 with control none or all, which draw nothing");
    if (step->control == CONTROL_ALL && (step->from.n || step->top.n || step->cells.n || step->selection[0]))
        complain(job, problems, s, "control", "expected no from, top, cells and selection with control all");
    if (step->steps && step->warmup > step->steps)
        complain(job, problems, s, "warmup", "expected at most steps: got more");
    check_uses(job, s, problems);
    check_contrast(job, s, problems);
    check_evaluate(job, s, problems);
}

const StepOptions *step_adapter_source(const Job *job, const StepOptions *step) {
    for (int64_t i = 0; step->adapter[0] && job->steps + i < step; i++)
        if (job->steps[i].name && !strcmp(job->steps[i].name, step->adapter)) return &job->steps[i];
    return NULL;
}

void tune_check_adapter(const Job *job, int64_t s, Problems *problems) {
    const StepOptions *step = &job->steps[s], *source = step_adapter_source(job, step);
    char what[300];
    if (!step->adapter[0]) return;
    if (step->adapter_path[0])
        complain(job, problems, s, "adapter", "expected adapter or adapter_path: got both");
    if (!source || source->kind != STEP_TUNE) {
        snprintf(what, sizeof what,
                 "expected a tune step before this one (or adapter_path, a folder): got \"%.80s\"",
                 step->adapter);
        complain(job, problems, s, "adapter", what);
    } else if (strcmp(source->model, step->model) != 0) {
        snprintf(what, sizeof what, "expected a tune step of the model %.64s: got \"%.64s\" of %.64s",
                 step->model, step->adapter, source->model);
        complain(job, problems, s, "adapter", what);
    }
}

static bool check_warmup(const StepOptions *step, const PromptGroup *groups, Error *error) {
    int64_t n = 0, n_total;
    for (int64_t g = 0; g < step->groups.n; g++) n += groups[g].n;
    n = tune_count_steps(step, n, &n_total);
    return step->warmup <= n || error_set(error, ERROR_BAD_INPUT,
                                          "warmup: expected at most the %lld steps of the training: got %lld",
                                          (long long)n, (long long)step->warmup);
}

bool tune_check(const Job *job, const StepOptions *step, Error *error) {
    const ModelOptions *options = job_model(job, step->model);
    ModelConfig config = {0};
    PromptEncoder encoder = {0};
    PromptGroup *groups = NULL, *held_out = NULL;
    Adapter adapter = {0};
    Text notes = {0};
    bool ok = model_config_read(options->path, &config, error) &&
              prompt_encoder_open(options, &config, &encoder, error);
    if (!ok) error_add_place(error, "models.%s", options->name);
    ok = ok && tune_adapter_make(job, step, &config, NULL, &adapter, error) &&
         ((step_read_groups(job, step, &encoder, NULL, &groups, &notes, error) &&
           tune_read_held_out(job, step, &encoder, NULL, &held_out, &notes, error) &&
           check_warmup(step, groups, error)) ||
          error_add_place(error, "step %s", step->name));
    step_free_groups(groups, step->groups.n);
    step_free_groups(held_out, step->evaluate.n);
    text_free(&notes);
    adapter_free(&adapter);
    prompt_encoder_close(&encoder);
    model_config_free(&config);
    return ok;
}

/* ---- the adapter of a step ---- */
static char *folder_of(const StepOptions *tuned, const char *run_folder) {
    char name[40];
    tune_adapter_name(tuned, name);
    char *folder = io_join(run_folder, tuned->name), *path = folder ? io_join(folder, name) : NULL;
    mem_free(folder);
    return path;
}

static bool open_folder(const char *path, Model *model, StepAdapter *adapter, Error *error) {
    bool ok = adapter_read(path, &model->config, NULL, &adapter->adapter, NULL, error);
    if (ok && !adapter->adapter.n)
        ok = error_set(error, ERROR_BAD_INPUT, "%s: expected an adapter that changes something: got zeros",
                       path);
    ok = ok && lora_weights_make(&adapter->adapter, model, &adapter->weights, error);
    if (ok) model->adapter = &adapter->weights;
    return ok;
}

bool step_adapter_open_tuned(const StepOptions *tuned, const char *run_folder, Model *model,
                             StepAdapter *adapter, Error *error) {
    *adapter = (StepAdapter){0};
    char *path = folder_of(tuned, run_folder);
    bool ok = (path || error_out_of_memory(error, "a path", strlen(run_folder))) &&
              open_folder(path, model, adapter, error);
    mem_free(path);
    return ok;
}

bool step_adapter_open(const Job *job, const StepOptions *step, const char *run_folder, Model *model,
                       StepAdapter *adapter, Error *error) {
    const StepOptions *tuned = step_adapter_source(job, step);
    *adapter = (StepAdapter){0};
    if (!tuned && !step->adapter_path[0]) return true;
    return (tuned ? step_adapter_open_tuned(tuned, run_folder, model, adapter, error)
                  : open_folder(step->adapter_path, model, adapter, error)) ||
           error_add_place(error, "step %s: %s", step->name, tuned ? "adapter" : "adapter_path");
}

void step_adapter_close(Model *model, StepAdapter *adapter) {
    if (model->adapter == &adapter->weights) model->adapter = NULL;
    if (adapter->weights.device) lora_weights_free(&adapter->weights);
    adapter_free(&adapter->adapter);
}

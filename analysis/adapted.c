/* The models that a step compares: the weights of one, and an adapter for each of the others. */
#include "adapted.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "selection.h"
#include "tune_parts.h"
#include <string.h>

const StepOptions *adapted_source(const Job *job, const StepOptions *step, int64_t i) {
    for (int64_t s = 0; job->steps + s < step; s++)
        if (job->steps[s].name && !strcmp(job->steps[s].name, step->adapters.names[i])) return &job->steps[s];
    return NULL;
}

bool adapted_models_open(const StepRun *run, AdaptedModels *models, Error *error) {
    const int64_t n = run->step->adapters.n;
    *models = (AdaptedModels){.list = mem_zeroed((size_t)n + 1, sizeof *models->list),
                              .adapters = mem_zeroed((size_t)n + 1, sizeof *models->adapters)};
    char *folder = io_folder_of(run->folder);
    bool ok = (models->list && models->adapters && folder) ||
              error_out_of_memory(error, "models", (size_t)(n + 1) * sizeof *models->list);
    if (ok) models->list[0] = *run->model;
    if (ok) models->n = 1;
    for (int64_t i = 0; ok && i < n; i++) {
        models->list[models->n] = *run->model;
        ok = step_adapter_open_tuned(adapted_source(run->job, run->step, i), folder, &models->list[models->n],
                                     &models->adapters[i], error) ||
             error_add_place(error, "step %s: adapters", run->step->name);
        models->n++;
    }
    mem_free(folder);
    return ok;
}

void adapted_models_close(AdaptedModels *models) {
    for (int64_t i = 0; i + 1 < models->n; i++)
        step_adapter_close(&models->list[1 + i], &models->adapters[i]);
    mem_free(models->list);
    mem_free(models->adapters);
    *models = (AdaptedModels){0};
}

bool adapted_cells(const StepOptions *tuned, const char *run_folder, const ModelConfig *config,
                   int64_t *cells, int64_t *n, Error *error) {
    const int64_t n_all = config->n_moe_layers * config->n_experts;
    char name[40];
    tune_adapter_name(tuned, name);
    char *folder = io_join(run_folder, tuned->name), *path = folder ? io_join(folder, name) : NULL;
    Adapter adapter = {0};
    bool *has = mem_zeroed((size_t)n_all, sizeof *has),
         ok = (path && has) || error_out_of_memory(error, "cells of an adapter", (size_t)n_all);
    ok = ok && adapter_read(path, config, NULL, &adapter, NULL, error);
    for (int64_t i = 0; ok && i < adapter.n; i++)
        has[selection_cell(config, adapter.cells[i].layer, adapter.cells[i].expert)] = true;
    *n = 0;
    for (int64_t cell = 0; ok && cell < n_all; cell++)
        if (has[cell]) cells[(*n)++] = cell;
    adapter_free(&adapter);
    mem_free(has);
    mem_free(path);
    mem_free(folder);
    return ok;
}

static void complain(const Job *job, Problems *problems, int64_t s, const char *what) {
    Error error = {0};
    error_set(&error, ERROR_BAD_INPUT, "%s: steps[%lld].adapters: %s", job->file, (long long)s, what);
    problems_add(problems, &error);
}

void adapted_check(const Job *job, int64_t s, Problems *problems) {
    const StepOptions *step = &job->steps[s];
    char what[300];
    if (step->adapters.n && (step->adapter[0] || step->adapter_path[0]))
        complain(job, problems, s,
                 "expected no adapter and adapter_path beside them: the model as it is is "
                 "what they are compared with");
    for (int64_t i = 0; i < step->adapters.n; i++) {
        const StepOptions *source = adapted_source(job, step, i);
        what[0] = '\0';
        if (!source || source->kind != STEP_TUNE)
            snprintf(what, sizeof what, "expected a tune step before this one: got \"%.80s\"",
                     step->adapters.names[i]);
        else if (strcmp(source->model, step->model) != 0)
            snprintf(what, sizeof what, "expected a tune step of the model %.64s: got \"%.64s\" of %.64s",
                     step->model, source->name, source->model);
        if (what[0]) complain(job, problems, s, what);
    }
}

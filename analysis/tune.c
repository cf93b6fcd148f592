/* A training from its first step, or its last checkpoint, to the adapter. */
#include "tune.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "tune_parts.h"
#include <string.h>

/* ---- what it is a training of ---- */
static void hash_model(const StepRun *run, char hash[HASH_TEXT]) {
    Hash state;
    char prefix[100];
    int n = snprintf(prefix, sizeof prefix, "models.%.80s/", run->step->model);
    hash_begin(&state);
    for (int64_t i = 0; i < run->inputs->n; i++) {
        const InputFile *file = &run->inputs->files[i];
        if (strncmp(file->name, prefix, (size_t)n) != 0) continue;
        hash_add(&state, file->name + n, strlen(file->name + n) + 1);
        hash_add(&state, file->hash, HASH_TEXT);
    }
    hash_end(&state, hash);
}

/* The identity of the run, and which of its steps. */
static bool hash_job(const StepRun *run, char hash[HASH_TEXT], Error *error) {
    const Model *model = run->model;
    Hash state;
    inputs_identity(run->job, model->device == cuda_device(NULL) ? "cuda" : "cpu", dtype_name(model->compute),
                    run->inputs, hash, error);
    if (error->code != ERROR_NONE) return false;
    hash_begin(&state);
    hash_add(&state, hash, HASH_TEXT);
    hash_add(&state, run->step->name, strlen(run->step->name));
    hash_end(&state, hash);
    return true;
}

/* ---- the steps ---- */
/* Where a run ends, its state stays: a later run goes on from there, and a diverged one can be looked at. */
static bool stop(Tuning *t, Error *error) {
    Error own = {0};
    int64_t kept = t->run->comm->rank == 0 && t->n_done > 0 && tune_checkpoint_write(t, &own) &&
                   tune_write_rows(t, &own) && (error->code != ERROR_FAILED || tune_write_adapter(t, &own));
    comm_max_i64(t->run->comm, &kept, 1); /* as rank 0 says */
    if (error->code != ERROR_FAILED) return false;
    const long long step = (long long)t->n_done + 1;
    const char *name = t->run->step->name;
    if (!kept)
        error_add_place(error, "step %s, training step %lld, not taken%s%s", name, step,
                        own.text[0] ? ": " : "", own.text);
    else
        error_add_place(error,
                        "step %s, training step %lld, not taken (%s/checkpoint.safetensors and adapter-%s: "
                        "after step %lld)",
                        name, step, name, adapter_form_names[t->run->step->form], step - 1);
    return false;
}

/* After a step: what rank 0 shows and keeps. */
static bool keep(Tuning *t, int64_t n_tokens, Error *error) {
    const StepRun *run = t->run;
    const bool due = t->n_done % run->step->checkpoint_every == 0 && t->n_done < t->data.n_steps;
    bool ok = progress_update(run->progress, t->n_done, n_tokens, error);
    if (due && run->comm->rank == 0) ok = ok && tune_checkpoint_write(t, error) && tune_write_rows(t, error);
    return comm_agree(run->comm, ok, error);
}

/* Every rank takes every step, and has the same state after it. */
static bool train(Tuning *t, Error *error) {
    const StepRun *run = t->run;
    int64_t n_tokens = 0;
    bool ok = progress_begin(run->progress, run->step->name, t->data.n_steps, t->n_done, "steps", error);
    if (!comm_agree(run->comm, ok, error) || (!t->n_done && !tune_evaluate(t, error))) return false;
    while (!tune_is_over(t)) {
        if (!tune_step(t, error)) return stop(t, error);
        n_tokens += (int64_t)t->rows[t->n_done].n_tokens;
        if (!tune_evaluate(t, error) || !keep(t, n_tokens, error)) return false;
    }
    const TuneRow *first = &t->rows[1], *last = &t->rows[t->n_done];
    progress_note(run->progress, "%s: loss %.4g in the first step, %.4g in the last", run->step->name,
                  first->loss, last->loss);
    const int64_t best = tune_best_step(t);
    if (best >= 0)
        progress_note(run->progress, "%s: held-out loss %.4g before, %.4g at its least, after step %lld",
                      run->step->name, t->rows[0].held_out, t->rows[best].held_out, (long long)best);
    ok = progress_end(run->progress, error) && tune_take_best(t, error);
    return comm_agree(run->comm, ok, error);
}

/* What stays of a training, rank 0's; all fetch the weights that updates are measured by. */
static bool finish(Tuning *t, Error *error) {
    const bool first = t->run->comm->rank == 0;
    bool ok = !first || (tune_write_rows(t, error) && tune_write_adapter(t, error));
    ok = comm_agree(t->run->comm, ok, error) && tune_write_updates(t, error);
    return ok && (!first || (tune_write_facts(t, error) && tune_checkpoint_remove(t, error)));
}

/* ---- the step ---- */
/* Low-rank updates of a layer move the routers of later layers alone. */
static void warn_of_idle_terms(const Tuning *t) {
    const StepOptions *step = t->run->step;
    int64_t first = t->adapter.cells[0].layer, last = first, last_router = 0;
    for (int64_t i = 0; i < t->adapter.n; i++) {
        const int64_t layer = t->adapter.cells[i].layer;
        first = layer < first ? layer : first;
        last = layer > last ? layer : last;
    }
    for (int64_t l = 0; l < t->model.config.n_layers; l++)
        if (!t->model.config.layer_is_dense[l]) last_router = l;
    if (step->gate_rows) return;
    if (step->router_kl > 0 && first == last_router)
        progress_warn(t->run->progress, "%s: router_kl has no effect: no router stands behind the cells",
                      step->name);
    if (step->router_anchor > 0 && first == last)
        progress_warn(t->run->progress,
                      "%s: router_anchor has no effect: cells of one layer move the routers of later layers "
                      "alone",
                      step->name);
}

static bool open_training(Tuning *t, Error *error) {
    const StepRun *run = t->run;
    char *folder = io_folder_of(run->folder);
    bool ok = (folder || error_out_of_memory(error, "a path", strlen(run->folder))) &&
              tune_adapter_make(run->job, run->step, &run->model->config, folder, &t->adapter, error) &&
              tune_rows_make(run->step, &run->model->config, &t->adapter, error) &&
              tune_aims_make(&t->adapter, &run->model->config, &t->aims, error) &&
              tune_held_out_open(t, error) && tune_data_make(run, &t->groups, &t->data, error);
    mem_free(folder);
    if (!ok) return false;
    t->rows = mem_zeroed((size_t)t->data.n_steps + 1, sizeof *t->rows);
    if (!t->rows)
        return error_out_of_memory(error, "rows of a training", (size_t)t->data.n_steps * sizeof *t->rows);
    const int64_t each = run->step->objective == OBJECTIVE_PREFERENCE ? 2 : 1;
    if (!lora_weights_make(&t->adapter, run->model, &t->weights, error) ||
        !lora_training_make(&t->weights, each * tune_step_length(&t->data, 0), &t->training, error))
        return false;
    warn_of_idle_terms(t);
    t->model.adapter = &t->weights;
    t->best = run->step->patience ? mem_zeroed(1, tensor_bytes(t->weights.values)) : NULL;
    if (run->step->patience && !t->best)
        return error_out_of_memory(error, "the best state", tensor_bytes(t->weights.values));
    return true;
}

static bool read_groups(Tuning *t, Text *notes, Error *error) {
    const StepRun *run = t->run;
    const StepOptions held_out = tune_held_out_of(run->step);
    return tune_groups_read(run->job, run->step, run->encoder, run->inputs, &t->groups, notes, error) &&
           tune_groups_read(run->job, &held_out, run->encoder, run->inputs, &t->held_out, notes, error);
}

bool tune_run(const StepRun *run, Error *error) {
    Tuning t = {.run = run, .model = *run->model, .leaves = {.comm = run->comm}};
    Text notes = {0};
    hash_model(run, t.model_hash);
    bool ok = hash_job(run, t.job_hash, error) && (run->comm->rank || io_make_folders(run->folder, error)) &&
              read_groups(&t, &notes, error);
    if (ok) step_show_notes(run, &notes);
    t.warnings = notes.bytes;
    ok = ok && open_training(&t, error) && tune_checkpoint_read(&t, error);
    ok = comm_agree(run->comm, ok, error) && tune_check_alike(&t, error);
    if (ok && t.n_done)
        progress_note(run->progress, "%s: goes on after step %lld", run->step->name, (long long)t.n_done);
    ok = ok && train(&t, error) && finish(&t, error);
    lora_leaves_free(&t.leaves);
    lora_training_free(&t.training);
    lora_weights_free(&t.weights);
    adapter_free(&t.adapter);
    tune_data_free(&t.data);
    mem_free(t.rows);
    mem_free(t.best);
    mem_free(t.held_out_references);
    tune_aims_free(&t.aims);
    tune_groups_free(&t.held_out);
    tune_groups_free(&t.groups);
    text_free(&notes);
    return ok;
}

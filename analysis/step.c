/* A step: its groups, the blocks that are there already, those that are not, the tables. */
#include "step.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include <string.h>
#include <unistd.h>

BatchLimits step_limits(const Job *job) {
    return (BatchLimits){job->options.batch_tokens, job->options.batch_prompts};
}

/* ---- groups ---- */
void step_free_groups(PromptGroup *groups, int64_t n) {
    for (int64_t i = 0; groups && i < n; i++) prompt_group_free(&groups[i]);
    mem_free(groups);
}

static EncodeNeeds needs_of(const StepOptions *step) {
    bool own_loss = (step->kind == STEP_GRADIENT && step->loss == LOSS_PROMPT) ||
                    (step->kind == STEP_UTILITY && step->measured_text == TEXT_PROMPT);
    return (EncodeNeeds){.target = step_reads_targets(step),
                         .target_if_given =
                             step->kind == STEP_INTERVENTION && step->side_effects == EFFECTS_PROMPT_TARGET,
                         .n_reserved = step_generates(step) ? step->max_new_tokens : 0,
                         .n_prompt_least = own_loss ? 2 : 1};
}

bool step_read_file(const PromptOptions *options, const Inputs *inputs, PromptFile *file, Error *error) {
    char name[100];
    snprintf(name, sizeof name, "prompts.%s", options->name);
    const InputFile *input = inputs ? inputs_find(inputs, name) : NULL;
    return prompts_read(options, file, error) &&
           (!input || !strcmp(input->hash, file->hash) ||
            error_set(error, ERROR_FAILED, "%s: expected the file as it was when the run began: got another",
                      options->path));
}

static bool read_group(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                       const Inputs *inputs, int64_t g, PromptGroup *group, Error *error) {
    const PromptOptions *options = job_prompts(job, step->groups.names[g]);
    PromptFile file;
    bool ok = step_read_file(options, inputs, &file, error) &&
              prompts_encode(encoder, options, needs_of(step), &file, group, error);
    prompts_free(&file);
    return ok || error_add_place(error, "prompts.%s", options->name);
}

static bool note_common(const StepOptions *step, const PromptGroup *groups, Text *notes, Error *error) {
    for (int64_t a = 0; a < step->groups.n; a++)
        for (int64_t b = a + 1; b < step->groups.n; b++) {
            int64_t first = 0, n = prompts_count_common(&groups[a].file, &groups[b].file,
                                                        step_reads_targets(step), &first);
            if (n < 0)
                return error_out_of_memory(error, "hashes of prompts", (size_t)groups[b].file.n * HASH_TEXT);
            if (n)
                text_format(notes,
                            "groups %s and %s have %lld prompts in common, the first is entry %lld of %s\n",
                            groups[a].options->name, groups[b].options->name, (long long)n,
                            (long long)groups[a].file.entries[first].index, groups[a].options->name);
        }
    return true;
}

bool step_read_groups(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                      const Inputs *inputs, PromptGroup **groups, Text *notes, Error *error) {
    *groups = mem_zeroed((size_t)step->groups.n, sizeof **groups);
    if (!*groups) return error_out_of_memory(error, "groups", (size_t)step->groups.n * sizeof **groups);
    bool ok = true;
    for (int64_t g = 0; ok && g < step->groups.n; g++)
        ok = read_group(job, step, encoder, inputs, g, &(*groups)[g], error);
    return ok && note_common(step, *groups, notes, error);
}

/* ---- blocks ---- */
char *step_block_path(const StepRun *run, const char *kind, const char *name, int64_t first, Error *error) {
    char file[300];
    snprintf(file, sizeof file, "%.200s.%04lld.safetensors", name, (long long)(first / BLOCK_PROMPTS));
    char *folder = io_join(run->folder, kind), *path = folder ? io_join(folder, file) : NULL;
    if (!path)
        error_out_of_memory(error, "a path", strlen(run->folder));
    else if (!io_make_folders(folder, error)) {
        mem_free(path);
        path = NULL;
    }
    mem_free(folder);
    return path;
}

int64_t step_block_length(const PromptGroup *group, int64_t first) {
    return group->n - first < BLOCK_PROMPTS ? group->n - first : BLOCK_PROMPTS;
}

bool step_load_block(const StepRun *run, const char *path, const Measures *whole, int64_t n, Measures *block,
                     bool *there, Error *error) {
    *there = false;
    if (!io_exists(path)) return true;
    Error own = {0};
    *there = measures_load(path, whole->kind, n, whole->n_layers, whole->n_experts, block, &own);
    if (*there) return true;
    measures_free(block);
    if (own.code == ERROR_UNAVAILABLE) return error_set(error, own.code, "%s", own.text);
    progress_warn(run->progress, "%s; it is measured again", own.text);
    return true;
}

bool step_remove_blocks(const StepRun *run, Error *error) {
    char *folder = io_join(run->folder, "blocks"), **names = NULL;
    size_t n = 0;
    bool ok = folder || error_out_of_memory(error, "a path", strlen(run->folder));
    if (ok && io_is_folder(folder)) {
        ok = io_list(folder, &names, &n, error);
        for (size_t i = 0; i < n; i++) {
            char *path = io_join(folder, names[i]);
            ok = ok && (path || error_out_of_memory(error, "a path", 1)) && io_remove(path, error);
            mem_free(path);
            mem_free(names[i]);
        }
        mem_free(names);
        if (ok) rmdir(folder);
    }
    mem_free(folder);
    return ok;
}

void step_show_notes(const StepRun *run, const Text *notes) {
    const char *line = notes->bytes;
    while (line && *line) {
        size_t n = strcspn(line, "\n");
        progress_warn(run->progress, "%s: %.*s", run->step->name, (int)n, line);
        line += n + (line[n] == '\n');
    }
}

/* The tables, of rank 0. */
static bool write_step(const StepRun *run, const PromptGroup *groups, const Measures *measures,
                       const Text *notes, Error *error) {
    StepResults results = {.job = run->job,
                           .step = run->step,
                           .config = &run->model->config,
                           .encoder = run->encoder,
                           .groups = groups,
                           .measures = measures,
                           .n_groups = run->step->groups.n,
                           .folder = run->folder,
                           .warnings = notes->bytes};
    return results_write(&results, error) && step_remove_blocks(run, error);
}

bool step_run(const StepRun *run, Error *error) {
    int64_t n = run->step->groups.n;
    PromptGroup *groups = NULL;
    Text notes = {0};
    Measures *measures = mem_zeroed((size_t)n, sizeof *measures);
    bool first = run->comm->rank == 0;
    bool ok = measures || error_out_of_memory(error, "measures", (size_t)n * sizeof *measures);
    ok = ok && (!first || io_make_folders(run->folder, error)) &&
         step_read_groups(run->job, run->step, run->encoder, run->inputs, &groups, &notes, error);
    if (ok) step_show_notes(run, &notes);
    ok = comm_agree(run->comm, ok, error) && step_measure_groups(run, groups, measures, error) &&
         (!first || write_step(run, groups, measures, &notes, error));
    for (int64_t g = 0; measures && g < n; g++) measures_free(&measures[g]);
    mem_free(measures);
    step_free_groups(groups, n);
    text_free(&notes);
    return ok;
}

/* The likelihoods of a utility step, block by block, and each block model by model. */
#include "utility.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/safetensors.h"
#include "likelihood.h"
#include <string.h>

/* ---- groups ---- */
int64_t utility_count(const StepOptions *step, const EncodedPrompt *text) {
    return step_reads_targets(step) ? text->n_target : text->n_prompt - 1;
}

void utility_free_groups(UtilityGroup *groups, int64_t n) {
    for (int64_t g = 0; groups && g < n; g++) {
        choices_free(&groups[g].choices);
        prompt_group_free(&groups[g].texts);
        mem_free(groups[g].begin);
        mem_free(groups[g].sums);
    }
    mem_free(groups);
}

static bool read_choices(const PromptOptions *options, ChoiceForm form, const PromptEncoder *encoder,
                         const Inputs *inputs, ChoiceSet *set, Text *notes, Error *error) {
    PromptFile file = {0};
    bool ok = step_read_file(options, inputs, &file, error) &&
              choices_read(encoder, options, form, &file, set, error);
    prompts_free(&file);
    if (ok && set->n_left_out)
        text_format(notes, "group %s: %lld questions were left out, a choice of theirs being too long\n",
                    options->name, (long long)set->n_left_out);
    return ok || error_add_place(error, "prompts.%s", options->name);
}

static bool set_units(const StepOptions *step, UtilityGroup *to, Error *error) {
    const bool choices = step->measure == MEASURE_CHOICES;
    to->group = choices ? &to->choices.texts : &to->texts;
    to->n = choices ? to->choices.n : to->texts.n;
    to->begin = mem_zeroed((size_t)to->n + 1, sizeof *to->begin);
    if (!to->begin) return error_out_of_memory(error, "units", (size_t)to->n * sizeof *to->begin);
    for (int64_t u = 0; u <= to->n; u++) to->begin[u] = u;
    /* texts of questions that were left out stay out: their begin is no unit's */
    for (int64_t u = 0; choices && u < to->n; u++) to->begin[u] = to->choices.list[u].first;
    if (choices) to->begin[to->n] = to->begin[to->n - 1] + to->choices.list[to->n - 1].n;
    return true;
}

/* Of one group, by the way every step reads them. */
static bool read_texts(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                       const Inputs *inputs, UtilityGroup *groups, Text *notes, Error *error) {
    PromptGroup *texts = NULL;
    const bool ok = step_read_groups(job, step, encoder, inputs, &texts, notes, error);
    for (int64_t g = 0; ok && g < step->groups.n; g++) {
        groups[g].texts = texts[g];
        texts[g] = (PromptGroup){0};
    }
    step_free_groups(texts, step->groups.n);
    return ok;
}

bool utility_read_groups(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                         const Inputs *inputs, UtilityGroup **groups, Text *notes, Error *error) {
    const int64_t n = step->groups.n;
    *groups = mem_zeroed((size_t)n, sizeof **groups);
    if (!*groups) return error_out_of_memory(error, "groups", (size_t)n * sizeof **groups);
    bool ok = true;
    for (int64_t g = 0; ok && step->measure == MEASURE_CHOICES && g < n; g++)
        ok = read_choices(job_prompts(job, step->groups.names[g]), (ChoiceForm)step->choice_form, encoder,
                          inputs, &(*groups)[g].choices, notes, error);
    if (step->measure == MEASURE_PERPLEXITY)
        ok = read_texts(job, step, encoder, inputs, *groups, notes, error);
    for (int64_t g = 0; ok && g < n; g++) ok = set_units(step, &(*groups)[g], error);
    return ok;
}

/* ---- a block: units [first, first + n) of a group, under every model ---- */
typedef struct {
    const StepRun *run;
    const AdaptedModels *models;
    int64_t n_done, n_tokens;
} Work;

/* As many texts from number `at` on, before `end`, as one pass takes. */
static int64_t pass_length(const Work *w, const PromptGroup *group, int64_t at, int64_t end) {
    int64_t n = 0, n_tokens = 0;
    for (; at + n < end; n++) {
        const EncodedPrompt *text = &group->prompts[at + n];
        n_tokens += text->n_prompt + (step_reads_targets(w->run->step) ? text->n_target : 0);
        if (n && !batch_fits(step_limits(w->run->job), n + 1, n_tokens)) break;
    }
    return n;
}

/* Log-likelihoods of texts [at, at + n). */
static bool score(const Work *w, const Model *model, const PromptGroup *group, int64_t at, int64_t n,
                  double *sums, Error *error) {
    const bool targets = step_reads_targets(w->run->step);
    ScoredText *texts = mem_zeroed((size_t)n, sizeof *texts);
    double *means = mem_zeroed((size_t)n, sizeof *means);
    bool ok = (texts && means) || error_out_of_memory(error, "texts", (size_t)n * sizeof *texts);
    for (int64_t i = 0; ok && i < n; i++) {
        const EncodedPrompt *text = &group->prompts[at + i];
        texts[i] = (ScoredText){.prompt = text,
                                .behind = text->tokens + text->n_prompt,
                                .n_behind = targets ? text->n_target : 0,
                                .prompt_set = -1,
                                .behind_set = -1};
    }
    ok = ok &&
         likelihood_of_texts(model, NULL, texts, n, targets ? NULL : means, targets ? means : NULL, error);
    for (int64_t i = 0; ok && i < n; i++)
        sums[i] = -means[i] * (double)utility_count(w->run->step, &group->prompts[at + i]);
    mem_free(texts);
    mem_free(means);
    if (!ok && error->code != ERROR_INTERRUPTED)
        error_add_place(error, "group %s, prompts from \"%.60s\"", group->options->name,
                        group->prompts[at].entry->id);
    return ok && step_goes_on(w->run, error);
}

/* sums [n_models, n_texts] of texts from `begin` on. */
static bool measure_block(Work *w, const PromptGroup *group, int64_t begin, int64_t n_texts, double *sums,
                          Error *error) {
    bool ok = true;
    for (int64_t m = 0; ok && m < w->models->n; m++)
        for (int64_t at = 0, n; ok && at < n_texts; at += n) {
            n = pass_length(w, group, begin + at, begin + n_texts);
            ok = score(w, &w->models->list[m], group, begin + at, n, sums + m * n_texts + at, error);
            for (int64_t i = 0; i < n; i++) {
                const EncodedPrompt *text = &group->prompts[begin + at + i];
                w->n_tokens += text->n_prompt + (step_reads_targets(w->run->step) ? text->n_target : 0);
            }
        }
    return ok;
}

/* A block that cannot be read is measured again. */
static bool load_block(const Work *w, const char *path, Tensor to, bool *there, Error *error) {
    Error own = {0};
    *there = false;
    if (!io_exists(path)) return true;
    TensorSet *set = safetensors_open(path, &own);
    const TensorEntry *entry = set ? safetensors_find(set, "log_likelihood") : NULL;
    if (entry && (!entry->dtype_known || entry->dtype != to.dtype || entry->n_bytes != tensor_bytes(to)))
        entry = NULL;
    *there = entry && safetensors_read(set, entry, 0, to.data, tensor_bytes(to), &own);
    if (set) safetensors_close(set);
    if (*there) return true;
    if (own.code == ERROR_UNAVAILABLE) return error_set(error, own.code, "%s", own.text);
    progress_warn(w->run->progress, "%s: expected likelihoods of %lld texts; they are measured again", path,
                  (long long)to.shape[1]);
    return true;
}

static bool take_block(Work *w, UtilityGroup *group, int64_t first, Error *error) {
    const int64_t left = group->n - first, n = left < BLOCK_PROMPTS ? left : BLOCK_PROMPTS,
                  begin = group->begin[first], n_texts = group->begin[first + n] - begin;
    double *sums = mem_zeroed((size_t)(w->models->n * n_texts), sizeof *sums);
    if (!sums) return error_out_of_memory(error, "likelihoods", (size_t)n_texts * sizeof *sums);
    const NamedTensor block = {"log_likelihood", tensor_matrix(sums, DTYPE_F64, w->models->n, n_texts)};
    bool there = false;
    char *path = step_block_path(w->run, "blocks", group->group, first, error);
    bool ok = path && load_block(w, path, block.tensor, &there, error);
    if (ok && !there)
        ok = measure_block(w, group->group, begin, n_texts, sums, error) &&
             safetensors_write(path, &block, 1, NULL, 0, error);
    for (int64_t m = 0; ok && m < w->models->n; m++)
        memcpy(group->sums + m * group->group->n + begin, sums + m * n_texts, (size_t)n_texts * sizeof *sums);
    w->n_done += n;
    mem_free(path);
    mem_free(sums);
    return ok && progress_update(w->run->progress, w->n_done, w->n_tokens, error);
}

static bool measure_groups(Work *w, UtilityGroup *groups, Error *error) {
    const int64_t n_groups = w->run->step->groups.n;
    int64_t n = 0;
    for (int64_t g = 0; g < n_groups; g++) n += groups[g].n;
    bool ok = progress_begin(w->run->progress, w->run->step->name, n, 0, "prompts", error);
    for (int64_t g = 0; ok && g < n_groups; g++) {
        const size_t n_sums = (size_t)(w->models->n * groups[g].group->n);
        groups[g].sums = mem_zeroed(n_sums, sizeof *groups[g].sums);
        ok = groups[g].sums || error_out_of_memory(error, "likelihoods", n_sums * sizeof *groups[g].sums);
        for (int64_t first = 0; ok && first < groups[g].n; first += BLOCK_PROMPTS)
            ok = take_block(w, &groups[g], first, error);
    }
    return ok && progress_end(w->run->progress, error);
}

/* ---- the step ---- */
bool utility_run(const StepRun *run, Error *error) {
    UtilityGroup *groups = NULL;
    AdaptedModels models = {0};
    Text notes = {0};
    bool ok = io_make_folders(run->folder, error) &&
              utility_read_groups(run->job, run->step, run->encoder, run->inputs, &groups, &notes, error);
    if (ok) step_show_notes(run, &notes);
    ok = ok && adapted_models_open(run, &models, error);
    Work work = {.run = run, .models = &models};
    ok = ok && measure_groups(&work, groups, error);
    if (ok) {
        const Utility utility = {run, groups, models.n, notes.bytes};
        ok = utility_write(&utility, error) && step_remove_blocks(run, error);
    }
    adapted_models_close(&models);
    utility_free_groups(groups, run->step->groups.n);
    text_free(&notes);
    return ok;
}

bool utility_check(const Job *job, const StepOptions *step, Error *error) {
    const ModelOptions *options = job_model(job, step->model);
    ModelConfig config = {0};
    PromptEncoder encoder = {0};
    UtilityGroup *groups = NULL;
    Text notes = {0};
    bool ok = model_config_read(options->path, &config, error) &&
              prompt_encoder_open(options, &config, &encoder, error);
    if (!ok) error_add_place(error, "models.%s", options->name);
    ok = ok && (utility_read_groups(job, step, &encoder, NULL, &groups, &notes, error) ||
                error_add_place(error, "step %s", step->name));
    utility_free_groups(groups, step->groups.n);
    text_free(&notes);
    prompt_encoder_close(&encoder);
    model_config_free(&config);
    return ok;
}

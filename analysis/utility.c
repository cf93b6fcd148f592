/* The likelihoods of a utility step, shared by ranks, and each rank's model by model. */
#include "utility.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "likelihood.h"
#include "share.h"

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

/* ---- shared by ranks: items are texts, stages models ---- */
typedef struct {
    const StepRun *run;
    const AdaptedModels *models;
    const UtilityGroup *groups;
} Work;

static const Work *work_of(const Share *share) { return share->context; }

static int64_t text_tokens(const StepOptions *step, const EncodedPrompt *text) {
    return text->n_prompt + (step_reads_targets(step) ? text->n_target : 0);
}

static int64_t text_cost(const Share *share, int64_t list, int64_t item) {
    return text_tokens(share->run->step, &work_of(share)->groups[list].group->prompts[item]);
}

/* As many texts as one pass takes. */
static int64_t batch_texts(const Share *share, const SharePart *part, int stage, int64_t at) {
    int64_t n = 0, n_tokens = 0;
    (void)stage;
    for (; at + n < part->n; n++) {
        n_tokens += text_cost(share, part->block->list, part->first + at + n);
        if (n && !batch_fits(step_limits(share->run->job), n + 1, n_tokens)) break;
    }
    return n;
}

/* Log-likelihoods of n texts, to sums[0], sums[n_values], ... */
static bool score(const Share *share, const Model *model, const EncodedPrompt *prompts, int64_t n,
                  double *sums, Error *error) {
    const StepOptions *step = share->run->step;
    const bool targets = step_reads_targets(step);
    ScoredText *texts = mem_zeroed((size_t)n, sizeof *texts);
    double *means = mem_zeroed((size_t)n, sizeof *means);
    bool ok = (texts && means) || error_out_of_memory(error, "texts", (size_t)n * sizeof *texts);
    for (int64_t i = 0; ok && i < n; i++)
        texts[i] = (ScoredText){.prompt = &prompts[i],
                                .behind = prompts[i].tokens + prompts[i].n_prompt,
                                .n_behind = targets ? prompts[i].n_target : 0,
                                .prompt_set = -1,
                                .behind_set = -1};
    ok = ok &&
         likelihood_of_texts(model, NULL, texts, n, targets ? NULL : means, targets ? means : NULL, error);
    for (int64_t i = 0; ok && i < n; i++) {
        sums[i * share->n_values] = -means[i] * (double)utility_count(step, &prompts[i]);
        share->run->progress->n_tokens += text_tokens(step, &prompts[i]);
    }
    mem_free(texts);
    mem_free(means);
    return ok;
}

static bool measure_texts(const Share *share, SharePart *part, int stage, int64_t at, int64_t n,
                          Error *error) {
    const Work *w = work_of(share);
    const PromptGroup *group = w->groups[part->block->list].group;
    const EncodedPrompt *prompts = &group->prompts[part->first + at];
    const bool ok =
        score(share, &w->models->list[stage], prompts, n, part->values + at * share->n_values + stage, error);
    if (!ok && error->code != ERROR_INTERRUPTED)
        error_add_place(error, "group %s, prompts from \"%.60s\"", group->options->name,
                        prompts[0].entry->id);
    return ok;
}

static bool serve_texts(const Share *share, int stage, Error *error) {
    (void)error;
    likelihood_serve(&work_of(share)->models->list[stage], NULL);
    return true;
}

static bool make_lists(const Work *w, UtilityGroup *groups, ShareList *lists, Error *error) {
    for (int64_t g = 0; g < w->run->step->groups.n; g++) {
        const size_t n_sums = (size_t)(w->models->n * groups[g].group->n);
        groups[g].sums = mem_zeroed(n_sums, sizeof *groups[g].sums);
        if (!groups[g].sums) return error_out_of_memory(error, "likelihoods", n_sums * sizeof(double));
        lists[g] = (ShareList){.name = groups[g].group->options->name,
                               .n = groups[g].n,
                               .begin = groups[g].begin,
                               .values = groups[g].sums};
    }
    return true;
}

static bool measure_groups(const Work *w, UtilityGroup *groups, Error *error) {
    const StepRun *run = w->run;
    const int64_t n = run->step->groups.n;
    ShareList *lists = mem_zeroed((size_t)n, sizeof *lists);
    Share share = {.run = run,
                   .context = (void *)(uintptr_t)w,
                   .unit = "texts",
                   .lists = lists,
                   .n_lists = n,
                   .n_stages = (int)w->models->n,
                   .n_values = w->models->n,
                   .values_name = "log_likelihoods",
                   .cost = text_cost,
                   .batch = batch_texts,
                   .measure = measure_texts,
                   .serve = serve_texts};
    bool ok = (lists || error_out_of_memory(error, "groups", (size_t)n * sizeof *lists)) &&
              make_lists(w, groups, lists, error);
    ok = comm_agree(run->comm, ok, error) && share_run(&share, error);
    share_free(&share);
    mem_free(lists);
    return ok;
}

/* ---- the step ---- */
bool utility_run(const StepRun *run, Error *error) {
    UtilityGroup *groups = NULL;
    AdaptedModels models = {0};
    Text notes = {0};
    const bool first = run->comm->rank == 0;
    bool ok = (!first || io_make_folders(run->folder, error)) &&
              utility_read_groups(run->job, run->step, run->encoder, run->inputs, &groups, &notes, error);
    if (ok) step_show_notes(run, &notes);
    ok = ok && adapted_models_open(run, &models, error);
    const Work work = {.run = run, .models = &models, .groups = groups};
    ok = comm_agree(run->comm, ok, error) && measure_groups(&work, groups, error);
    if (ok && first) {
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

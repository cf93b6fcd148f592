/* The replies of an intervention step, block by block. A batch mixes prompts and conditions: each sequence
 * has its set of edits, and a reply does not depend on what else is decoded with it. */
#include "intervene.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../kernels/check.h"
#include "likelihood.h"
#include <string.h>

typedef struct {
    const StepRun *run;
    const Conditions *conditions;
    int64_t *running, n_run;
    int64_t n_forks; /* edits of generated tokens alone: conditions that go on from one pass; else 1 */
    int64_t n_done;  /* replies, earlier runs included */
} Work;

/* ---- a batch: replies [at, at + n) of a block, number p * n_run + i; at and n multiples of n_forks ---- */
typedef struct {
    int64_t n_prompts;
    int64_t *offsets, *keys;
    int32_t *tokens, *prompt_edits, *generated_edits; /* [n_prompts], [n_prompts], [n] */
} Sequences;

static void sequences_free(Sequences *s) {
    mem_free(s->offsets);
    mem_free(s->keys);
    mem_free(s->tokens);
    mem_free(s->prompt_edits);
    mem_free(s->generated_edits);
}

static bool sequences_room(Sequences *s, int64_t n, int64_t n_tokens, Error *error) {
    s->offsets = mem_zeroed((size_t)n + 1, sizeof *s->offsets);
    s->keys = mem_zeroed((size_t)n, sizeof *s->keys);
    s->tokens = mem_zeroed((size_t)n_tokens, sizeof *s->tokens);
    s->prompt_edits = mem_zeroed((size_t)n, sizeof *s->prompt_edits);
    s->generated_edits = mem_zeroed((size_t)n, sizeof *s->generated_edits);
    return (s->offsets && s->keys && s->tokens && s->prompt_edits && s->generated_edits) ||
           error_out_of_memory(error, "a batch", (size_t)n_tokens * sizeof *s->tokens);
}

static bool sequences_make(const Work *w, const PromptGroup *group, int64_t first, int64_t at, int64_t n,
                           Sequences *s, Error *error) {
    int64_t n_tokens = 0;
    int applies_to = w->run->step->applies_to;
    *s = (Sequences){.n_prompts = n / w->n_forks};
    for (int64_t i = 0; i < n; i += w->n_forks)
        n_tokens += group->prompts[first + (at + i) / w->n_run].n_prompt;
    if (!sequences_room(s, n, n_tokens, error)) return false;
    for (int64_t i = 0; i < n; i++) {
        int64_t p = first + (at + i) / w->n_run, own = i / w->n_forks;
        int32_t set = (int32_t)w->conditions->list[w->running[(at + i) % w->n_run]].set;
        s->generated_edits[i] = applies_to == APPLIES_TO_PROMPT ? -1 : set;
        if (i % w->n_forks) continue;
        const EncodedPrompt *prompt = &group->prompts[p];
        memcpy(s->tokens + s->offsets[own], prompt->tokens, (size_t)prompt->n_prompt * sizeof *s->tokens);
        s->offsets[own + 1] = s->offsets[own] + prompt->n_prompt;
        s->keys[own] = step_prompt_key(w->run, group, p);
        s->prompt_edits[own] = applies_to == APPLIES_TO_GENERATED ? -1 : set;
    }
    return true;
}

/* As many as batch_tokens and batch_prompts allow, the forks of one prompt at least. */
static int64_t batch_length(const Work *w, const PromptGroup *group, int64_t first, int64_t at,
                            int64_t n_all) {
    BatchLimits limits = step_limits(w->run->job);
    int64_t n = 0, n_tokens = 0;
    for (; at + n < n_all; n += w->n_forks) {
        int64_t n_prompt = group->prompts[first + (at + n) / w->n_run].n_prompt;
        int64_t n_behind = group->prompts[first + (at + n) / w->n_run].n_target;
        if (n_behind < w->run->step->max_new_tokens) n_behind = w->run->step->max_new_tokens;
        n_tokens += w->n_forks * (n_prompt + n_behind);
        if (n && !batch_fits(limits, n / w->n_forks + 1, n_tokens)) break;
    }
    return n;
}

static bool generate_sequences(const Work *w, const Sequences *s, Generation *made, Error *error) {
    GenerateOptions options = step_generate_options(w->run);
    options.prompt_keys = s->keys;
    options.edits = w->conditions->table.n_sets ? &w->conditions->table : NULL;
    options.prompt_edits = s->prompt_edits;
    options.generated_edits = s->generated_edits;
    options.n_forks = w->n_forks;
    PromptBatch batch = {s->n_prompts, s->offsets, s->tokens};
    if (!generate(w->run->model, &batch, &options, NULL, made, error)) return false;
    check(made->n_prompts == s->n_prompts * w->n_forks, "%lld replies", (long long)made->n_prompts);
    return step_goes_on(w->run, error);
}

/* ---- how likely the replies are ---- */
/* Under the model as it is, whatever condition made them. */
static bool score_replies(const Work *w, const PromptGroup *group, int64_t first, int64_t at,
                          const Generation *made, double *nll, Error *error) {
    int64_t n = made->n_prompts;
    if (!w->run->step->reply_perplexity) return true;
    ScoredText *texts = mem_zeroed((size_t)n, sizeof *texts);
    if (!texts) return error_out_of_memory(error, "replies to score", (size_t)n * sizeof *texts);
    for (int64_t i = 0; i < n; i++)
        texts[i] = (ScoredText){.prompt = &group->prompts[first + (at + i) / w->n_run],
                                .behind = made->tokens + made->offsets[i],
                                .n_behind = made->offsets[i + 1] - made->offsets[i]};
    bool ok =
        likelihood_of_texts(w->run->model, NULL, texts, n, NULL, nll, error) && step_goes_on(w->run, error);
    mem_free(texts);
    return ok;
}

/* ---- how likely prompts and targets become ---- */
/* Where generated tokens alone are edited, a prompt's stay as they are: only targets are worth a pass. */
static bool scores_effects(const Work *w, const PromptGroup *group, int64_t first, int64_t at, int64_t n) {
    const StepOptions *step = w->run->step;
    if (step->side_effects == EFFECTS_NONE || step->applies_to != APPLIES_TO_GENERATED)
        return step->side_effects != EFFECTS_NONE;
    for (int64_t i = 0; i < n; i++)
        if (group->prompts[first + (at + i) / w->n_run].n_target) return true;
    return false;
}

/* Targets are edited as the replies are whose place they take. */
static bool score_effects(const Work *w, const PromptGroup *group, int64_t first, int64_t at, int64_t n,
                          Measures *to, Error *error) {
    const EditTable *edits = w->conditions->table.n_sets ? &w->conditions->table : NULL;
    int applies_to = w->run->step->applies_to;
    if (!scores_effects(w, group, first, at, n)) return true;
    ScoredText *texts = mem_zeroed((size_t)n, sizeof *texts);
    if (!texts) return error_out_of_memory(error, "prompts to score", (size_t)n * sizeof *texts);
    for (int64_t i = 0; i < n; i++) {
        const EncodedPrompt *prompt = &group->prompts[first + (at + i) / w->n_run];
        int32_t set = (int32_t)w->conditions->list[w->running[(at + i) % w->n_run]].set;
        texts[i] = (ScoredText){.prompt = prompt,
                                .behind = prompt->tokens + prompt->n_prompt,
                                .n_behind = prompt->n_target,
                                .prompt_set = applies_to == APPLIES_TO_GENERATED ? -1 : set,
                                .behind_set = applies_to == APPLIES_TO_PROMPT ? -1 : set};
    }
    bool ok = likelihood_of_texts(w->run->model, edits, texts, n, to->prompt_nll + at, to->target_nll + at,
                                  error) &&
              step_goes_on(w->run, error);
    mem_free(texts);
    return ok;
}

/* ---- a block ---- */
static bool run_batch(Work *w, const PromptGroup *group, int64_t first, int64_t at, int64_t n, Measures *to,
                      Error *error) {
    Sequences sequences;
    Generation made = {0};
    bool ok = sequences_make(w, group, first, at, n, &sequences, error) &&
              generate_sequences(w, &sequences, &made, error) && measures_put_replies(to, at, &made, error) &&
              score_replies(w, group, first, at, &made, to->nll + at, error) &&
              score_effects(w, group, first, at, n, to, error);
    if (!ok && error->code != ERROR_INTERRUPTED)
        error_add_place(error, "group %s, prompts from \"%.60s\"", group->options->name,
                        group->prompts[first + at / w->n_run].entry->id);
    w->n_done += n;
    ok = ok && progress_update(w->run->progress, w->n_done,
                               w->run->progress->n_tokens + made.offsets[made.n_prompts], error);
    generation_free(&made);
    sequences_free(&sequences);
    return ok;
}

static bool run_block(Work *w, const PromptGroup *group, int64_t first, int64_t n_all, Measures *to,
                      Error *error) {
    bool ok = measures_make(STEP_INTERVENTION, n_all, 0, 0, to, error) && measures_make_replies(to, 0, error);
    for (int64_t at = 0; ok && at < n_all;) {
        int64_t n = batch_length(w, group, first, at, n_all);
        ok = run_batch(w, group, first, at, n, to, error);
        at += n;
    }
    return ok;
}

static bool take_block(Work *w, const PromptGroup *group, int64_t first, Measures *whole, Error *error) {
    int64_t n = step_block_length(group, first) * w->n_run;
    Measures block = {0};
    bool there;
    char *path = step_block_path(w->run, "blocks", group, first, error);
    bool ok = path && step_load_block(w->run, path, whole, n, &block, &there, error);
    if (ok && there) w->n_done += n;
    if (ok && !there) ok = run_block(w, group, first, n, &block, error) && measures_save(&block, path, error);
    ok = ok && measures_append(whole, first * w->n_run, &block, error);
    measures_free(&block);
    mem_free(path);
    return ok;
}

static bool run_groups(Work *w, const PromptGroup *groups, Measures *replies, Error *error) {
    const StepRun *run = w->run;
    int64_t n_total = 0, n_groups = run->step->groups.n;
    for (int64_t g = 0; g < n_groups; g++) n_total += groups[g].n * w->n_run;
    int64_t n_begun = step_count_finished(run, groups, error) * w->n_run;
    bool ok = error->code == ERROR_NONE &&
              progress_begin(run->progress, run->step->name, n_total, n_begun, "replies", error);
    for (int64_t g = 0; ok && g < n_groups; g++) {
        ok = measures_make(STEP_INTERVENTION, groups[g].n * w->n_run, 0, 0, &replies[g], error) &&
             measures_make_replies(&replies[g], 0, error);
        for (int64_t first = 0; ok && first < groups[g].n; first += BLOCK_PROMPTS)
            ok = take_block(w, &groups[g], first, &replies[g], error);
    }
    return ok && progress_end(run->progress, error);
}

/* ---- the step ---- */
static bool list_running(const Conditions *conditions, Work *w, Text *notes, Error *error) {
    w->running = mem_zeroed((size_t)conditions->n, sizeof *w->running);
    if (!w->running)
        return error_out_of_memory(error, "conditions", (size_t)conditions->n * sizeof *w->running);
    for (int64_t i = 0; i < conditions->n; i++) {
        const Condition *c = &conditions->list[i];
        if (c->reason[0])
            text_format(notes, "condition %s is not defined: %s\n", c->name, c->reason);
        else
            w->running[w->n_run++] = i;
    }
    w->n_forks = w->run->step->applies_to == APPLIES_TO_GENERATED ? w->n_run : 1;
    return true;
}

static bool run_conditions(const StepRun *run, const Conditions *conditions, Error *error) {
    int64_t n = run->step->groups.n;
    PromptGroup *groups = NULL;
    Text notes = {0};
    Work work = {.run = run, .conditions = conditions};
    Measures *replies = mem_zeroed((size_t)n, sizeof *replies);
    bool ok = (replies || error_out_of_memory(error, "replies", (size_t)n * sizeof *replies)) &&
              io_make_folders(run->folder, error) &&
              step_read_groups(run->job, run->step, run->encoder, run->inputs, &groups, &notes, error) &&
              list_running(conditions, &work, &notes, error);
    if (ok) step_show_notes(run, &notes);
    ok = ok && run_groups(&work, groups, replies, error);
    if (ok) {
        Intervention all = {run, conditions, groups, replies, work.running, work.n_run, notes.bytes};
        ok = intervene_write(&all, error) && step_remove_blocks(run, error);
    }
    for (int64_t g = 0; replies && g < n; g++) measures_free(&replies[g]);
    mem_free(replies);
    mem_free(work.running);
    step_free_groups(groups, n);
    text_free(&notes);
    return ok;
}

bool intervene_run(const StepRun *run, Error *error) {
    Conditions conditions = {0};
    char *folder = io_folder_of(run->folder);
    bool ok = (folder || error_out_of_memory(error, "a path", strlen(run->folder))) &&
              conditions_make(run->job, run->step, &run->model->config, folder, &conditions, error) &&
              run_conditions(run, &conditions, error);
    conditions_free(&conditions);
    mem_free(folder);
    return ok;
}

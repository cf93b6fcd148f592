/* The replies of an intervention step, block by block. A batch mixes prompts and conditions: each sequence
 * has its set of edits, and a reply does not depend on what else is decoded with it. */
#include "intervene.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../kernels/check.h"
#include "adapted.h"
#include "likelihood.h"
#include <string.h>

typedef struct {
    const StepRun *run;
    const Conditions *conditions;
    AdaptedModels models; /* as it is, and with the adapters */
    int64_t *running, n_run;
    int64_t n_forks; /* edits of generated tokens alone: conditions that go on from one pass; else 1 */
    int64_t n_done;  /* replies, earlier runs included */
} Work;

/* ---- sequences that are decoded together ---- */
/* Of replies [at, at + n) of a block, reply number p * n_run + i; at and n multiples of n_forks, and where
 * there are adapters of n_run. */
typedef struct {
    const PromptGroup *group;
    int64_t first, at, n;
} Span;

typedef struct {
    const int32_t *tokens; /* of a Generation */
    int64_t n;
    bool stopped;
} Reply;

/* Those of a span that one model gives. */
typedef struct {
    int64_t n, n_prompts;
    int64_t *reply; /* [n]: which of the span */
    int64_t *offsets, *keys;
    int32_t *tokens, *prompt_edits, *generated_edits; /* [n_prompts], [n_prompts], [n] */
} Sequences;

static void sequences_free(Sequences *s) {
    mem_free(s->reply);
    mem_free(s->offsets);
    mem_free(s->keys);
    mem_free(s->tokens);
    mem_free(s->prompt_edits);
    mem_free(s->generated_edits);
}

static const EncodedPrompt *prompt_of(const Work *w, const Span *span, int64_t i) {
    return &span->group->prompts[span->first + (span->at + i) / w->n_run];
}

static const Condition *condition_of(const Work *w, const Span *span, int64_t i) {
    return &w->conditions->list[w->running[(span->at + i) % w->n_run]];
}

static bool sequences_room(const Work *w, const Span *span, Sequences *s, Error *error) {
    const size_t n = (size_t)span->n;
    int64_t n_tokens = 0;
    for (int64_t i = 0; i < span->n; i += w->n_forks) n_tokens += prompt_of(w, span, i)->n_prompt;
    *s = (Sequences){.reply = mem_zeroed(n, sizeof *s->reply),
                     .offsets = mem_zeroed(n + 1, sizeof *s->offsets),
                     .keys = mem_zeroed(n, sizeof *s->keys),
                     .tokens = mem_zeroed((size_t)n_tokens, sizeof *s->tokens),
                     .prompt_edits = mem_zeroed(n, sizeof *s->prompt_edits),
                     .generated_edits = mem_zeroed(n, sizeof *s->generated_edits)};
    return (s->reply && s->offsets && s->keys && s->tokens && s->prompt_edits && s->generated_edits) ||
           error_out_of_memory(error, "a batch", (size_t)n_tokens * sizeof *s->tokens);
}

static bool sequences_make(const Work *w, const Span *span, int64_t model, Sequences *s, Error *error) {
    int applies_to = w->run->step->applies_to;
    if (!sequences_room(w, span, s, error)) return false;
    for (int64_t i = 0; i < span->n; i++) {
        const Condition *condition = condition_of(w, span, i);
        if (condition->adapter != model) continue;
        const EncodedPrompt *prompt = prompt_of(w, span, i);
        int64_t own = s->n_prompts;
        int32_t set = (int32_t)condition->set;
        s->reply[s->n] = i;
        s->generated_edits[s->n++] = applies_to == APPLIES_TO_PROMPT ? -1 : set;
        if (i % w->n_forks) continue;
        memcpy(s->tokens + s->offsets[own], prompt->tokens, (size_t)prompt->n_prompt * sizeof *s->tokens);
        s->offsets[own + 1] = s->offsets[own] + prompt->n_prompt;
        s->keys[own] = step_prompt_key(w->run, span->group, prompt - span->group->prompts);
        s->prompt_edits[own] = applies_to == APPLIES_TO_GENERATED ? -1 : set;
        s->n_prompts++;
    }
    return true;
}

/* As many as batch_tokens and batch_prompts allow, the forks of one prompt at least; with adapters all
 * conditions of a prompt, each model on its own. */
static int64_t batch_length(const Work *w, const PromptGroup *group, int64_t first, int64_t at,
                            int64_t n_all) {
    BatchLimits limits = step_limits(w->run->job);
    const int64_t n_together = w->models.n > 1 ? w->n_run : w->n_forks;
    const int64_t n_beside = w->models.n > 1 ? w->n_run - (w->models.n - 1) : w->n_forks; /* of one model */
    int64_t n = 0, n_tokens = 0;
    for (; at + n < n_all; n += n_together) {
        int64_t n_prompt = group->prompts[first + (at + n) / w->n_run].n_prompt;
        int64_t n_behind = group->prompts[first + (at + n) / w->n_run].n_target;
        if (n_behind < w->run->step->max_new_tokens) n_behind = w->run->step->max_new_tokens;
        n_tokens += n_beside * (n_prompt + n_behind);
        const int64_t n_sequences = (n / n_together + 1) * (w->models.n > 1 ? n_beside : 1);
        if (n && !batch_fits(limits, n_sequences, n_tokens)) break;
    }
    return n;
}

static bool generate_sequences(const Work *w, const Sequences *s, const Model *model, Generation *made,
                               Error *error) {
    GenerateOptions options = step_generate_options(w->run);
    options.prompt_keys = s->keys;
    options.edits = w->conditions->table.n_sets ? &w->conditions->table : NULL;
    options.prompt_edits = s->prompt_edits;
    options.generated_edits = s->generated_edits;
    options.n_forks = w->n_forks;
    PromptBatch batch = {s->n_prompts, s->offsets, s->tokens};
    if (!generate(model, &batch, &options, NULL, made, error)) return false;
    check(made->n_prompts == s->n, "%lld replies", (long long)made->n_prompts);
    return step_goes_on(w->run, error);
}

/* ---- how likely the replies are ---- */
/* Under the model as it is, whatever condition made them; nll of the span's replies. */
static bool score_replies(const Work *w, const Span *span, const Sequences *s, const Generation *made,
                          double *nll, Error *error) {
    if (!w->run->step->reply_perplexity) return true;
    ScoredText *texts = mem_zeroed((size_t)s->n, sizeof *texts);
    double *own = mem_zeroed((size_t)s->n, sizeof *own);
    bool ok = (texts && own) || error_out_of_memory(error, "replies to score", (size_t)s->n * sizeof *texts);
    for (int64_t i = 0; ok && i < s->n; i++)
        texts[i] = (ScoredText){.prompt = prompt_of(w, span, s->reply[i]),
                                .behind = made->tokens + made->offsets[i],
                                .n_behind = made->offsets[i + 1] - made->offsets[i]};
    ok = ok && likelihood_of_texts(w->run->model, NULL, texts, s->n, NULL, own, error) &&
         step_goes_on(w->run, error);
    for (int64_t i = 0; ok && i < s->n; i++) nll[s->reply[i]] = own[i];
    mem_free(texts);
    mem_free(own);
    return ok;
}

/* ---- how likely prompts and targets become ---- */
/* Where generated tokens alone are edited, a prompt's stay as they are: only targets are worth a pass. */
static bool scores_effects(const Work *w, const Span *span) {
    const StepOptions *step = w->run->step;
    if (step->side_effects == EFFECTS_NONE || step->applies_to != APPLIES_TO_GENERATED || w->models.n > 1)
        return step->side_effects != EFFECTS_NONE;
    for (int64_t i = 0; i < span->n; i++)
        if (prompt_of(w, span, i)->n_target) return true;
    return false;
}

/* Targets are edited as the replies are whose place they take. */
static bool score_effects(const Work *w, const Span *span, const Sequences *s, const Model *model,
                          Measures *to, Error *error) {
    const EditTable *edits = w->conditions->table.n_sets ? &w->conditions->table : NULL;
    int applies_to = w->run->step->applies_to;
    if (!scores_effects(w, span)) return true;
    ScoredText *texts = mem_zeroed((size_t)s->n, sizeof *texts);
    double *own = mem_zeroed((size_t)s->n, 2 * sizeof *own);
    bool ok = (texts && own) || error_out_of_memory(error, "prompts to score", (size_t)s->n * sizeof *texts);
    for (int64_t i = 0; ok && i < s->n; i++) {
        const EncodedPrompt *prompt = prompt_of(w, span, s->reply[i]);
        int32_t set = (int32_t)condition_of(w, span, s->reply[i])->set;
        texts[i] = (ScoredText){.prompt = prompt,
                                .behind = prompt->tokens + prompt->n_prompt,
                                .n_behind = prompt->n_target,
                                .prompt_set = applies_to == APPLIES_TO_GENERATED ? -1 : set,
                                .behind_set = applies_to == APPLIES_TO_PROMPT ? -1 : set};
    }
    ok = ok && likelihood_of_texts(model, edits, texts, s->n, own, own + s->n, error) &&
         step_goes_on(w->run, error);
    for (int64_t i = 0; ok && i < s->n; i++) {
        to->prompt_nll[span->at + s->reply[i]] = own[i];
        to->target_nll[span->at + s->reply[i]] = own[s->n + i];
    }
    mem_free(texts);
    mem_free(own);
    return ok;
}

/* ---- a block ---- */
/* What one model makes of a span; its replies go to where they belong among [span->n] of `replies`. */
static bool run_model(const Work *w, const Span *span, int64_t m, Reply *replies, Generation *made,
                      Measures *to, Error *error) {
    const Model *model = &w->models.list[m];
    Sequences sequences;
    bool ok = sequences_make(w, span, m, &sequences, error);
    if (ok && sequences.n) {
        ok = generate_sequences(w, &sequences, model, made, error) &&
             score_replies(w, span, &sequences, made, to->nll + span->at, error) &&
             score_effects(w, span, &sequences, model, to, error);
        for (int64_t i = 0; ok && i < sequences.n; i++)
            replies[sequences.reply[i]] = (Reply){made->tokens + made->offsets[i],
                                                  made->offsets[i + 1] - made->offsets[i], made->stopped[i]};
    }
    sequences_free(&sequences);
    return ok;
}

/* Replies of several generations in the order of the span. */
static bool put_replies(const Span *span, const Reply *replies, Measures *to, Error *error) {
    int64_t n_tokens = 0;
    for (int64_t i = 0; i < span->n; i++) n_tokens += replies[i].n;
    Generation all = {.n_prompts = span->n,
                      .offsets = mem_zeroed((size_t)span->n + 1, sizeof *all.offsets),
                      .tokens = mem_zeroed((size_t)n_tokens + 1, sizeof *all.tokens),
                      .stopped = mem_zeroed((size_t)span->n + 1, sizeof *all.stopped)};
    bool ok = (all.offsets && all.tokens && all.stopped) ||
              error_out_of_memory(error, "replies", (size_t)n_tokens * sizeof *all.tokens);
    for (int64_t i = 0; ok && i < span->n; i++) {
        if (replies[i].n)
            memcpy(all.tokens + all.offsets[i], replies[i].tokens, (size_t)replies[i].n * sizeof *all.tokens);
        all.offsets[i + 1] = all.offsets[i] + replies[i].n;
        all.stopped[i] = replies[i].stopped;
    }
    ok = ok && measures_put_replies(to, span->at, &all, error);
    generation_free(&all);
    return ok;
}

static bool run_batch(Work *w, const Span *span, Measures *to, Error *error) {
    Generation *made = mem_zeroed((size_t)w->models.n, sizeof *made);
    Reply *replies = mem_zeroed((size_t)span->n, sizeof *replies);
    int64_t n_tokens = 0;
    bool ok = (made && replies) || error_out_of_memory(error, "replies", (size_t)span->n * sizeof *replies);
    for (int64_t m = 0; ok && m < w->models.n; m++) {
        ok = run_model(w, span, m, replies, &made[m], to, error);
        if (ok && made[m].n_prompts) n_tokens += made[m].offsets[made[m].n_prompts];
    }
    ok = ok && put_replies(span, replies, to, error);
    if (!ok && error->code != ERROR_INTERRUPTED)
        error_add_place(error, "group %s, prompts from \"%.60s\"", span->group->options->name,
                        prompt_of(w, span, 0)->entry->id);
    w->n_done += span->n;
    ok = ok && progress_update(w->run->progress, w->n_done, w->run->progress->n_tokens + n_tokens, error);
    for (int64_t m = 0; made && m < w->models.n; m++) generation_free(&made[m]);
    mem_free(made);
    mem_free(replies);
    return ok;
}

static bool run_block(Work *w, const PromptGroup *group, int64_t first, int64_t n_all, Measures *to,
                      Error *error) {
    bool ok = measures_make(STEP_INTERVENTION, n_all, 0, 0, to, error) && measures_make_replies(to, 0, error);
    for (int64_t at = 0; ok && at < n_all;) {
        const Span span = {group, first, at, batch_length(w, group, first, at, n_all)};
        ok = run_batch(w, &span, to, error);
        at += span.n;
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
    const bool forks = w->run->step->applies_to == APPLIES_TO_GENERATED && w->models.n == 1;
    w->n_forks = forks ? w->n_run : 1;
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
              adapted_models_open(run, &work.models, error) && list_running(conditions, &work, &notes, error);
    if (ok) step_show_notes(run, &notes);
    ok = ok && run_groups(&work, groups, replies, error);
    if (ok) {
        Intervention all = {run, conditions, groups, replies, work.running, work.n_run, notes.bytes};
        ok = intervene_write(&all, error) && step_remove_blocks(run, error);
    }
    for (int64_t g = 0; replies && g < n; g++) measures_free(&replies[g]);
    mem_free(replies);
    mem_free(work.running);
    adapted_models_close(&work.models);
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

/* One turn of an intervention: the replies of a span, and how likely they, prompts and targets are. A batch
 * mixes prompts and conditions: each sequence has its set of edits, and a reply does not depend on what else
 * is decoded with it. */
#include "intervene_parts.h"
#include "../engine/alloc.h"
#include "../kernels/check.h"
#include "likelihood.h"
#include <string.h>

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
    return &span->group->prompts[(span->at + i) / w->n_run];
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

static const EditTable *edits_of(const Work *w) {
    return w->conditions->table.n_sets ? &w->conditions->table : NULL;
}

static GenerateOptions generate_options(const Work *w) {
    GenerateOptions options = step_generate_options(w->run);
    options.edits = edits_of(w);
    options.n_forks = w->n_forks;
    return options;
}

static bool generate_sequences(const Work *w, const Sequences *s, const Model *model, Generation *made,
                               Error *error) {
    GenerateOptions options = generate_options(w);
    options.prompt_keys = s->keys;
    options.prompt_edits = s->prompt_edits;
    options.generated_edits = s->generated_edits;
    PromptBatch batch = {s->n_prompts, s->offsets, s->tokens};
    if (!generate(model, &batch, &options, NULL, made, error)) return false;
    check(made->n_prompts == s->n, "%lld replies", (long long)made->n_prompts);
    return true;
}

/* ---- how likely the replies are ---- */
/* Under the model as it is, whatever condition made them. */
static bool score_replies(const Work *w, const Span *span, const Sequences *s, const Generation *made,
                          Error *error) {
    if (!w->run->step->reply_perplexity) return true;
    ScoredText *texts = mem_zeroed((size_t)s->n, sizeof *texts);
    double *own = mem_zeroed((size_t)s->n, sizeof *own);
    bool ok = (texts && own) || error_out_of_memory(error, "replies to score", (size_t)s->n * sizeof *texts);
    for (int64_t i = 0; ok && i < s->n; i++)
        texts[i] = (ScoredText){.prompt = prompt_of(w, span, s->reply[i]),
                                .behind = made->tokens + made->offsets[i],
                                .n_behind = made->offsets[i + 1] - made->offsets[i]};
    ok = ok && likelihood_of_texts(w->run->model, NULL, texts, s->n, NULL, own, error);
    for (int64_t i = 0; ok && i < s->n; i++) span->to->nll[span->row + s->reply[i]] = own[i];
    mem_free(texts);
    mem_free(own);
    return ok;
}

/* ---- how likely prompts and targets become ---- */
/* Where generated tokens alone are edited, a prompt's stay as they are: only targets are worth a pass. */
static bool scores_effects(const Work *w) {
    const StepOptions *step = w->run->step;
    return step->side_effects != EFFECTS_NONE &&
           (step->applies_to != APPLIES_TO_GENERATED || w->models.n > 1 || w->has_targets);
}

/* Targets are edited as the replies are whose place they take. */
static bool score_effects(const Work *w, const Span *span, const Sequences *s, const Model *model,
                          Error *error) {
    int applies_to = w->run->step->applies_to;
    if (!scores_effects(w)) return true;
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
    ok = ok && likelihood_of_texts(model, edits_of(w), texts, s->n, own, own + s->n, error);
    for (int64_t i = 0; ok && i < s->n; i++) {
        span->to->prompt_nll[span->row + s->reply[i]] = own[i];
        span->to->target_nll[span->row + s->reply[i]] = own[s->n + i];
    }
    mem_free(texts);
    mem_free(own);
    return ok;
}

/* ---- a turn ---- */
/* What one model makes of a span; its replies go to where they belong among [span->n] of `replies`. */
static bool run_model(const Work *w, const Span *span, int64_t m, Reply *replies, Generation *made,
                      Error *error) {
    const Model *model = &w->models.list[m];
    Sequences sequences;
    bool ok = sequences_make(w, span, m, &sequences, error);
    if (ok && sequences.n) {
        ok = generate_sequences(w, &sequences, model, made, error) &&
             score_replies(w, span, &sequences, made, error) &&
             score_effects(w, span, &sequences, model, error);
        for (int64_t i = 0; ok && i < sequences.n; i++)
            replies[sequences.reply[i]] = (Reply){made->tokens + made->offsets[i],
                                                  made->offsets[i + 1] - made->offsets[i], made->stopped[i]};
    }
    sequences_free(&sequences);
    return ok;
}

/* Replies of several generations in the order of the span. */
static bool put_replies(const Span *span, const Reply *replies, Error *error) {
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
    ok = ok && measures_put_replies(span->to, span->row, &all, error);
    generation_free(&all);
    return ok;
}

bool intervene_span(const Work *w, const Span *span, Error *error) {
    Generation *made = mem_zeroed((size_t)w->models.n, sizeof *made);
    Reply *replies = mem_zeroed((size_t)span->n, sizeof *replies);
    bool ok = (made && replies) || error_out_of_memory(error, "replies", (size_t)span->n * sizeof *replies);
    for (int64_t m = 0; ok && m < w->models.n; m++) {
        ok = run_model(w, span, m, replies, &made[m], error);
        if (ok && made[m].n_prompts) w->run->progress->n_tokens += made[m].offsets[made[m].n_prompts];
    }
    ok = ok && put_replies(span, replies, error);
    if (!ok && error->code != ERROR_INTERRUPTED)
        error_add_place(error, "group %s, prompts from \"%.60s\"", span->group->options->name,
                        prompt_of(w, span, 0)->entry->id);
    for (int64_t m = 0; made && m < w->models.n; m++) generation_free(&made[m]);
    mem_free(made);
    mem_free(replies);
    return ok;
}

/* Whether any condition is the model's, so that it has a part in every turn. */
static bool has_conditions(const Work *w, int64_t m) {
    for (int64_t i = 0; i < w->n_run; i++)
        if (w->conditions->list[w->running[i]].adapter == m) return true;
    return false;
}

/* The passes of a turn in their order. */
bool intervene_serve(const Work *w, Error *error) {
    const GenerateOptions options = generate_options(w);
    bool ok = true;
    for (int64_t m = 0; ok && m < w->models.n; m++) {
        if (!has_conditions(w, m)) continue;
        ok = generate_serve(&w->models.list[m], &options, error);
        if (ok && w->run->step->reply_perplexity) likelihood_serve(w->run->model, NULL);
        if (ok && scores_effects(w)) likelihood_serve(&w->models.list[m], edits_of(w));
    }
    return ok;
}

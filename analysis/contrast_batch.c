/* Which tokens of a pair are counted, and pairs packed for one pass, both texts of a pair side by side. */
#include "contrast.h"
#include <string.h>

bool contrast_by_token(const StepOptions *step) {
    return step->contrast == CONTRAST_CONTINUATIONS || step->contrast == CONTRAST_ADAPTER;
}

bool contrast_walks_back(const StepOptions *step) {
    return step->contrast == CONTRAST_CONTINUATIONS && step->contrast_gradient;
}

static int64_t text_length(const StepOptions *step, const EncodedPrompt *prompt) {
    return prompt->n_prompt + (step_reads_targets(step) ? prompt->n_target : 0);
}

/* Tokens that both prompts end with. */
static int64_t count_shared(const EncodedPrompt *a, const EncodedPrompt *b) {
    int64_t most = a->n_prompt < b->n_prompt ? a->n_prompt : b->n_prompt, n = 0;
    while (n < most && a->tokens[a->n_prompt - 1 - n] == b->tokens[b->n_prompt - 1 - n]) n++;
    return n;
}

static bool is_counted(const StepOptions *step, const EncodedPrompt *prompt, int64_t n_shared, int64_t t) {
    if (step->contrast == CONTRAST_CONTINUATIONS && t < prompt->n_prompt) return false;
    switch (step->contrast_tokens) {
    case CONTRAST_CONTENT: return prompt->roles[t] != ROLE_TEMPLATE;
    case CONTRAST_LAST: return t >= prompt->n_prompt - step->last_tokens;
    case CONTRAST_SHARED: return t >= prompt->n_prompt - n_shared;
    default: return true;
    }
}

void contrast_count_tokens(const StepOptions *step, const ContrastPairs *pairs, int64_t pair,
                           int64_t counted[2], int64_t *n_aligned) {
    const EncodedPrompt *text[2] = {&pairs->side[0].prompts[pair], &pairs->side[1].prompts[pair]};
    int64_t n_shared = count_shared(text[0], text[1]), n[2];
    for (int s = 0; s < 2; s++) {
        n[s] = text_length(step, text[s]);
        counted[s] = 0;
        for (int64_t t = 0; t < n[s]; t++) counted[s] += is_counted(step, text[s], n_shared, t);
    }
    *n_aligned = 0;
    if (!contrast_by_token(step)) return;
    for (int64_t t = 0; t < n[0] && t < n[1]; t++)
        *n_aligned += is_counted(step, text[0], n_shared, t) && is_counted(step, text[1], n_shared, t);
}

int64_t contrast_pair_tokens(const StepOptions *step, const ContrastPairs *pairs, int64_t pair) {
    return text_length(step, &pairs->side[0].prompts[pair]) +
           text_length(step, &pairs->side[1].prompts[pair]);
}

int64_t contrast_batch_size(const StepOptions *step, const ContrastPairs *pairs, int64_t first, int64_t end,
                            BatchLimits limits) {
    int64_t n = 0, n_tokens = 0;
    for (; first + n < end; n++) {
        n_tokens += contrast_pair_tokens(step, pairs, first + n);
        if (n && !batch_fits(limits, 2 * (n + 1), n_tokens)) break;
    }
    return n;
}

static void mark_text(const StepOptions *step, const EncodedPrompt *prompt, int64_t n_shared, int64_t text,
                      Batch *batch) {
    int64_t begin = batch->offsets[text], n = batch->offsets[text + 1] - begin;
    for (int64_t t = 0; t < n; t++)
        batch->counted[begin + t] = is_counted(step, prompt, n_shared, t) ? (int32_t)text : -1;
    double weight = n > prompt->n_prompt ? 1.0 / (double)(n - prompt->n_prompt) : 0;
    for (int64_t t = prompt->n_prompt; t < n; t++)
        batch->loss[begin + t - 1] = (float)(text % 2 ? weight : -weight);
}

bool contrast_batch_make(const StepOptions *step, const ContrastPairs *pairs, int64_t first, int64_t n,
                         Batch *batch, Error *error) {
    int64_t n_tokens = 0;
    for (int64_t i = 0; i < 2 * n; i++)
        n_tokens += text_length(step, &pairs->side[i % 2].prompts[first + i / 2]);
    if (!batch_make_room(batch, 2 * n, n_tokens, error)) return false;
    for (int64_t i = 0; i < 2 * n; i++) {
        const EncodedPrompt *prompt = &pairs->side[i % 2].prompts[first + i / 2];
        int64_t n_shared = count_shared(prompt, &pairs->side[1 - i % 2].prompts[first + i / 2]);
        batch_put_prompt(batch, i, prompt, step_reads_targets(step));
        mark_text(step, prompt, n_shared, i, batch);
    }
    return true;
}

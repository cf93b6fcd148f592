/* Packing prompts: tokens, roles and spans one after another, and which of them are counted or enter the
 * loss. */
#include "batches.h"
#include "../engine/alloc.h"
#include <string.h>

bool batch_fits(BatchLimits limits, int64_t n_prompts, int64_t n_tokens) {
    return n_tokens <= limits.most_tokens && (!limits.most_prompts || n_prompts <= limits.most_prompts);
}

bool step_reads_targets(const StepOptions *step) {
    if (step->kind == STEP_INTERVENTION) return false;
    if (step->kind == STEP_CONTRAST)
        return step->contrast == CONTRAST_CONTINUATIONS || step->contrast == CONTRAST_ADAPTER;
    if (step->kind == STEP_UTILITY)
        return step->measure == MEASURE_CHOICES || step->measured_text == TEXT_TARGET;
    if (step->kind == STEP_TUNE) return true;
    if (step->kind == STEP_GRADIENT) return step->loss == LOSS_TARGET;
    return step->tokens == COUNT_TARGET || step->tokens == COUNT_PROMPT_TARGET;
}

bool step_generates(const StepOptions *step) {
    if (step->kind == STEP_INTERVENTION) return true;
    if (step->kind == STEP_CONTRAST || step->kind == STEP_TUNE || step->kind == STEP_UTILITY) return false;
    if (step->kind == STEP_GRADIENT) return step->loss == LOSS_GENERATED;
    return step->tokens == COUNT_GENERATED || step->tokens == COUNT_PROMPT_GENERATED;
}

static int64_t reply_length(const Measures *replies, int64_t i) {
    return replies && replies->reply_offsets ? replies->reply_offsets[i + 1] - replies->reply_offsets[i] : 0;
}

int64_t block_prompt_tokens(const Block *block, int64_t i) {
    const EncodedPrompt *prompt = &block->group->prompts[block->first + i];
    int64_t n = prompt->n_prompt;
    if (block->step && step_reads_targets(block->step)) n += prompt->n_target;
    if (block->step && step_generates(block->step)) n += reply_length(block->replies, i);
    return n;
}

int64_t batch_size(const Block *block, int64_t at, int64_t extra, BatchLimits limits) {
    int64_t n = 0, n_tokens = 0;
    while (at + n < block->n) {
        n_tokens += extra + block_prompt_tokens(block, at + n);
        if (n && !batch_fits(limits, n + 1, n_tokens)) break;
        n++;
    }
    return n;
}

/* ---- which tokens ---- */
static bool is_counted(const StepOptions *step, TokenSpan span, int64_t t, int64_t n_prompt) {
    switch (step->tokens) {
    case COUNT_LAST: return span == SPAN_PROMPT && t >= n_prompt - step->last_tokens;
    case COUNT_TARGET: return span == SPAN_TARGET;
    case COUNT_GENERATED: return span == SPAN_GENERATED;
    case COUNT_PROMPT: return span == SPAN_PROMPT;
    default: return true;
    }
}

/* Whether the loss asks for the probability of a token. A text's first token has none. */
static bool is_in_loss(const StepOptions *step, TokenSpan span, int64_t t) {
    static const TokenSpan spans[] = {SPAN_PROMPT, SPAN_TARGET, SPAN_GENERATED};
    if (step->kind == STEP_TUNE) return span == SPAN_TARGET;
    return t > 0 && span == spans[step->loss];
}

static void mark_tokens(const StepOptions *step, Batch *batch, int64_t p, int64_t n_prompt) {
    int64_t begin = batch->offsets[p], n = batch->offsets[p + 1] - begin, n_loss = 0;
    const uint8_t *spans = batch->spans + begin;
    for (int64_t t = 0; t < n; t++) {
        bool counted = step->kind == STEP_ACTIVATION && is_counted(step, (TokenSpan)spans[t], t, n_prompt);
        batch->counted[begin + t] = counted ? (int32_t)p : -1;
        n_loss += (step->kind == STEP_GRADIENT || step->kind == STEP_TUNE) &&
                  is_in_loss(step, (TokenSpan)spans[t], t);
    }
    for (int64_t t = 1; n_loss && t < n; t++)
        if (is_in_loss(step, (TokenSpan)spans[t], t))
            batch->loss[begin + t - 1] = (float)(1.0 / (double)n_loss);
}

/* ---- packing ---- */
bool batch_make_room(Batch *batch, int64_t n_prompts, int64_t n_tokens, Error *error) {
    size_t n = (size_t)n_tokens + 1;
    *batch = (Batch){.n_prompts = n_prompts,
                     .n_tokens = n_tokens,
                     .offsets = mem_zeroed((size_t)n_prompts + 1, sizeof *batch->offsets),
                     .tokens = mem_zeroed(n, sizeof *batch->tokens),
                     .roles = mem_zeroed(n, 1),
                     .spans = mem_zeroed(n, 1),
                     .counted = mem_zeroed(n, sizeof *batch->counted),
                     .loss = mem_zeroed(n, sizeof *batch->loss)};
    if (batch->offsets && batch->tokens && batch->roles && batch->spans && batch->counted && batch->loss)
        return true;
    return error_out_of_memory(error, "a batch", n * 14);
}

void batch_put_prompt(Batch *batch, int64_t p, const EncodedPrompt *prompt, bool with_target) {
    int64_t at = batch->offsets[p], n_target = with_target ? prompt->n_target : 0;
    size_t n = (size_t)(prompt->n_prompt + n_target);
    memcpy(batch->tokens + at, prompt->tokens, n * sizeof *batch->tokens);
    memcpy(batch->roles + at, prompt->roles, n);
    memset(batch->spans + at, SPAN_PROMPT, (size_t)prompt->n_prompt);
    memset(batch->spans + at + prompt->n_prompt, SPAN_TARGET, (size_t)n_target);
    batch->offsets[p + 1] = at + (int64_t)n;
}

static void put_reply(Batch *batch, int64_t p, const Measures *replies, int64_t i) {
    int64_t at = batch->offsets[p + 1], n = reply_length(replies, i);
    if (!n) return;
    memcpy(batch->tokens + at, replies->reply_tokens + replies->reply_offsets[i],
           (size_t)n * sizeof *batch->tokens);
    memset(batch->roles + at, ROLE_ASSISTANT, (size_t)n);
    memset(batch->spans + at, SPAN_GENERATED, (size_t)n);
    batch->offsets[p + 1] = at + n;
}

bool batch_make(const Block *block, int64_t at, int64_t n, Batch *batch, Error *error) {
    const StepOptions *step = block->step;
    int64_t n_tokens = 0;
    for (int64_t p = 0; p < n; p++) n_tokens += block_prompt_tokens(block, at + p);
    if (!batch_make_room(batch, n, n_tokens, error)) return false;
    for (int64_t p = 0; p < n; p++) {
        const EncodedPrompt *prompt = &block->group->prompts[block->first + at + p];
        batch_put_prompt(batch, p, prompt, step && step_reads_targets(step));
        if (step && step_generates(step)) put_reply(batch, p, block->replies, at + p);
        if (step) mark_tokens(step, batch, p, prompt->n_prompt);
    }
    return true;
}

void batch_free(Batch *batch) {
    mem_free(batch->offsets);
    mem_free(batch->tokens);
    mem_free(batch->roles);
    mem_free(batch->spans);
    mem_free(batch->counted);
    mem_free(batch->loss);
    *batch = (Batch){0};
}

PromptBatch batch_view(const Batch *batch) {
    return (PromptBatch){.n_prompts = batch->n_prompts, .offsets = batch->offsets, .tokens = batch->tokens};
}

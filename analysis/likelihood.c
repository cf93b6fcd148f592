/* How likely a model finds texts: one packed forward pass without a tape. The loss comes token by token from
 * the device; a text's tokens are summed here in their order, so that no number depends on the batch. */
#include "likelihood.h"
#include "../engine/alloc.h"
#include <string.h>

typedef struct {
    int64_t *offsets;
    int32_t *tokens, *sets;
} Packed;

static void packed_free(Packed *packed) {
    mem_free(packed->offsets);
    mem_free(packed->tokens);
    mem_free(packed->sets);
}

static bool pack(const ScoredText *texts, int64_t n, Packed *packed, Error *error) {
    int64_t n_tokens = 0;
    for (int64_t i = 0; i < n; i++) n_tokens += texts[i].prompt->n_prompt + texts[i].n_behind;
    *packed = (Packed){.offsets = mem_zeroed((size_t)n + 1, sizeof *packed->offsets),
                       .tokens = mem_zeroed((size_t)n_tokens + 1, sizeof *packed->tokens),
                       .sets = mem_zeroed((size_t)n_tokens + 1, sizeof *packed->sets)};
    if (!packed->offsets || !packed->tokens || !packed->sets)
        return error_out_of_memory(error, "texts to score", (size_t)n_tokens * 2 * sizeof *packed->tokens);
    for (int64_t i = 0; i < n; i++) {
        const ScoredText *t = &texts[i];
        int64_t at = packed->offsets[i], n_prompt = t->prompt->n_prompt;
        memcpy(packed->tokens + at, t->prompt->tokens, (size_t)n_prompt * sizeof *packed->tokens);
        if (t->n_behind)
            memcpy(packed->tokens + at + n_prompt, t->behind, (size_t)t->n_behind * sizeof *packed->tokens);
        packed->offsets[i + 1] = at + n_prompt + t->n_behind;
        for (int64_t k = at; k < packed->offsets[i + 1]; k++)
            packed->sets[k] = k < at + n_prompt ? t->prompt_set : t->behind_set;
    }
    return true;
}

/* nll[k] is of the token behind token k. */
static double mean(const float *nll, int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t k = begin; k < end; k++) sum += nll[k];
    return end > begin ? sum / (double)(end - begin) : 0;
}

bool likelihood_of_texts(const Model *model, const EditTable *edits, const ScoredText *texts, int64_t n,
                         double *prompt, double *behind, Error *error) {
    Packed packed;
    PassResult result = {0};
    bool ok = pack(texts, n, &packed, error);
    if (ok) {
        PromptBatch batch = {n, packed.offsets, packed.tokens};
        PassOptions options = {.want_nll = true, .edits = edits, .token_edits = edits ? packed.sets : NULL};
        ok = model_pass(model, &batch, &options, NULL, &result, error);
    }
    for (int64_t i = 0; ok && i < n; i++) {
        int64_t begin = packed.offsets[i], reply = begin + texts[i].prompt->n_prompt;
        if (prompt) prompt[i] = mean(result.nll, begin, reply - 1);
        if (behind) behind[i] = mean(result.nll, reply - 1, packed.offsets[i + 1] - 1);
    }
    pass_result_free(&result);
    packed_free(&packed);
    return ok;
}

void likelihood_serve(const Model *model, const EditTable *edits) {
    model_serve(model, &(PassOptions){.want_nll = true, .edits = edits});
}

/* The greedy choices seen again: prompt and continuation in one packed pass must choose the same tokens as
 * decoding over the cache did. Its logits also say how near each choice was, which the case does not hold. */
#include "conform_parts.h"
#include "../engine/alloc.h"
#include <math.h>
#include <string.h>

typedef struct {
    const Model *model;
    const ConformCase *c;
    float bound;
    int64_t n_tokens;
    int64_t *offsets; /* [P+1] of prompt + continuation but its last token */
    int32_t *tokens;
    int32_t *ids;     /* [T,K] */
    float *logits;    /* [T,E] of one layer */
    int64_t *nearest; /* [P]: first token with a routing closer than the bound, else the number of tokens */
} Again;

/* The distance between the K-th and the next largest. */
static float routing_gap(const float *z, const int32_t *ids, int64_t n_experts, int64_t k) {
    float least_in = INFINITY, most_out = -INFINITY;
    for (int64_t e = 0; e < n_experts; e++) {
        bool in = false;
        for (int64_t i = 0; i < k; i++) in = in || ids[i] == e;
        if (in)
            least_in = fminf(least_in, z[e]);
        else
            most_out = fmaxf(most_out, z[e]);
    }
    return least_in - most_out;
}

static bool on_route(void *context, HookSite *site, const RouteView *view) {
    Again *again = context;
    int64_t n_experts = tensor_columns(view->logits), k = tensor_columns(view->ids);
    site->device->copy_out(site->queue, again->logits, view->logits);
    site->device->copy_out(site->queue, again->ids, view->ids);
    if (!site->device->sync(site->queue))
        return error_set(site->error, ERROR_UNAVAILABLE, "%s: %s", site->queue->failed_op,
                         site->queue->failure);
    for (int64_t p = 0; p < again->c->n_prompts; p++) {
        int64_t begin = again->offsets[p];
        for (int64_t t = begin; t < again->offsets[p + 1] && t - begin < again->nearest[p]; t++)
            if (routing_gap(again->logits + t * n_experts, again->ids + t * k, n_experts, k) < again->bound)
                again->nearest[p] = t - begin;
    }
    return true;
}

static void join_tokens(Again *again, const int64_t *continuations) {
    const ConformCase *c = again->c;
    for (int64_t p = 0; p < c->n_prompts; p++) {
        int64_t n = c->offsets[p + 1] - c->offsets[p], begin = again->offsets[p];
        memcpy(again->tokens + begin, c->tokens + c->offsets[p], (size_t)n * sizeof *again->tokens);
        for (int64_t i = 0; i + 1 < c->n_steps; i++)
            again->tokens[begin + n + i] = (int32_t)continuations[p * c->n_steps + i];
        again->nearest[p] = n + c->n_steps - 1;
    }
}

static void choose(const Again *again, const float *logits, ConformGreedy *greedy) {
    const ConformCase *c = again->c;
    int64_t n_vocab = again->model->config.vocab_size;
    for (int64_t p = 0; p < c->n_prompts; p++) {
        int64_t last = c->offsets[p + 1] - c->offsets[p] - 1;
        int64_t sure = again->nearest[p] - last;
        greedy->sure[p] = sure < 0 ? 0 : sure > c->n_steps ? c->n_steps : sure;
        for (int64_t i = 0; i < c->n_steps; i++) {
            const float *row = logits + (again->offsets[p] + last + i) * n_vocab;
            int64_t best = 0;
            float second = -INFINITY;
            for (int64_t v = 1; v < n_vocab; v++)
                if (row[v] > row[best])
                    second = row[best], best = v;
                else
                    second = fmaxf(second, row[v]);
            greedy->argmax[p * c->n_steps + i] = best;
            greedy->margins[p * c->n_steps + i] = row[best] - second;
        }
    }
}

static bool greedy_new(const ConformCase *c, ConformGreedy *greedy, Error *error) {
    size_t n = (size_t)(c->n_prompts * c->n_steps);
    *greedy = (ConformGreedy){.margins = mem_alloc(n * sizeof(float)),
                              .argmax = mem_alloc(n * sizeof(int64_t)),
                              .sure = mem_alloc((size_t)c->n_prompts * sizeof(int64_t))};
    if (greedy->margins && greedy->argmax && greedy->sure) return true;
    return error_out_of_memory(error, "greedy tokens", n * sizeof(int64_t));
}

static bool look_again(const Model *model, const ConformCase *c, const int64_t *continuations, float bound,
                       ConformGreedy *greedy, Error *error) {
    const ModelConfig *config = &model->config;
    Again again = {
        .model = model, .c = c, .bound = bound, .n_tokens = c->n_tokens + c->n_prompts * (c->n_steps - 1)};
    size_t n = (size_t)again.n_tokens;
    bool ok = greedy_new(c, greedy, error);
    again.offsets = mem_alloc((size_t)(c->n_prompts + 1) * sizeof *again.offsets);
    again.nearest = mem_alloc((size_t)c->n_prompts * sizeof *again.nearest);
    again.tokens = mem_alloc(n * sizeof *again.tokens);
    again.ids = mem_alloc(n * (size_t)config->n_experts_per_token * sizeof *again.ids);
    again.logits = mem_alloc(n * (size_t)config->n_experts * sizeof *again.logits);
    if (ok && (!again.offsets || !again.nearest || !again.tokens || !again.ids || !again.logits))
        ok =
            error_out_of_memory(error, "router logits", n * (size_t)config->n_experts * sizeof *again.logits);
    for (int64_t p = 0; ok && p <= c->n_prompts; p++) again.offsets[p] = c->offsets[p] + p * (c->n_steps - 1);
    PassResult result = {0};
    const PassOptions options = {.want_logits = true};
    if (ok && !c->n_prompts) {
        if (spread_any(&model->spread)) model_serve(model, &options);
    } else if (ok) {
        join_tokens(&again, continuations);
        PromptBatch batch = {c->n_prompts, again.offsets, again.tokens};
        Hooks hooks = {.context = &again, .route = on_route};
        ok = model_pass(model, &batch, &options, &hooks, &result, error);
    }
    if (ok)
        choose(&again, result.logits, greedy);
    else
        conform_greedy_free(greedy);
    pass_result_free(&result);
    mem_free(again.offsets);
    mem_free(again.nearest);
    mem_free(again.tokens);
    mem_free(again.ids);
    mem_free(again.logits);
    return ok;
}

/* Own choices to those of all. */
static bool gather_greedy(const ConformCase *c, const ConformCase *own, const ConformGreedy *mine,
                          ConformGreedy *all, Error *error) {
    const int64_t n = own->n_prompts, p = c->n_prompts, steps = c->n_steps;
    return conform_gather(c, true, 0, tensor_matrix(mine->margins, DTYPE_F32, n, steps),
                          tensor_matrix(all->margins, DTYPE_F32, p, steps), error) &&
           conform_gather(c, true, 0, tensor_matrix(mine->argmax, DTYPE_I64, n, steps),
                          tensor_matrix(all->argmax, DTYPE_I64, p, steps), error) &&
           conform_gather(c, true, 0, tensor_vector(mine->sure, DTYPE_I64, n),
                          tensor_vector(all->sure, DTYPE_I64, p), error);
}

bool conform_greedy(const Model *model, const ConformCase *c, const ConformValues *values, float bound,
                    ConformGreedy *greedy, Error *error) {
    const int64_t *tokens = values->tensors[CONFORM_GREEDY_TOKENS].data;
    ConformCase own = {0};
    ConformGreedy mine = {0};
    if (!conform_is_shared(c)) return look_again(model, c, tokens, bound, greedy, error);
    tokens += conform_prompts(c, c->comm->rank).first * c->n_steps;
    bool ok = greedy_new(c, greedy, error) && conform_own(c, &own, error) &&
              look_again(model, &own, tokens, bound, &mine, error) &&
              gather_greedy(c, &own, &mine, greedy, error);
    conform_own_free(&own);
    conform_greedy_free(&mine);
    if (!ok) conform_greedy_free(greedy);
    return ok;
}

void conform_greedy_free(ConformGreedy *greedy) {
    mem_free(greedy->margins);
    mem_free(greedy->argmax);
    mem_free(greedy->sure);
    *greedy = (ConformGreedy){0};
}

/* What a training minimises, pass by pass: the mean NLL of targets, or the loss of preferences (DPO, arXiv
 * 2305.18290); and what is held of routers.
 *
 * The frozen model is the same weights without the updates: where its losses or routers are asked for, a
 * forward pass over the same texts goes before. Its losses of a pair are computed once in a run; a resumed
 * run computes them again, with the same bits. A pair is in one pass whole: what its gradient weighs is known
 * between the forward and the walk back. */
#include "../engine/alloc.h"
#include "../kernels/math.h"
#include "../kernels/random.h"
#include "tune_parts.h"
#include <string.h>

/* ---- packing ---- */
void tune_pack_free(TunePack *p) {
    mem_free(p->examples);
    mem_free(p->texts);
    mem_free(p->offsets);
    mem_free(p->tokens);
    mem_free(p->loss_weights);
    mem_free(p->kl_weights);
    mem_free(p->anchor_weights);
    mem_free(p->dropout_keys);
    mem_free(p->sums);
    lora_deal_free(&p->deal);
    *p = (TunePack){0};
}

static int64_t text_length(const EncodedPrompt *text) { return text->n_prompt + text->n_target; }

static bool take_examples(TunePack *p, int64_t step, Error *error) {
    TuneData *data = &p->tuning->data;
    const bool all = p->tuning->run->step->router_tokens == ROUTER_TOKENS_ALL;
    p->n = tune_step_length(data, step);
    p->each = p->tuning->run->step->objective == OBJECTIVE_PREFERENCE ? 2 : 1;
    const size_t n_texts = (size_t)(p->n * p->each);
    p->examples = mem_zeroed((size_t)p->n, sizeof *p->examples);
    p->texts = mem_zeroed(n_texts, sizeof *p->texts);
    p->offsets = mem_zeroed(n_texts + 1, sizeof *p->offsets);
    bool ok = p->examples && p->texts && p->offsets;
    for (int64_t i = 0; ok && i < p->n; i++) {
        TuneExample *e = p->examples[i] = tune_example(data, step * data->n_of_step + i);
        ok = e != NULL;
        for (int64_t k = i * p->each; ok && k < (i + 1) * p->each; k++) {
            const EncodedPrompt *text = p->texts[k] = k % p->each ? e->other : e->prompt;
            p->offsets[k + 1] = p->offsets[k] + text_length(text);
            p->n_targets += text->n_target;
            p->n_counted += all ? text_length(text) : 1;
        }
        p->wants_references = p->wants_references || (ok && p->each == 2 && isnan(e->reference[0]));
    }
    return ok || error_out_of_memory(error, "examples", n_texts * sizeof *p->examples);
}

/* Weights of the terms on routers: `weight` shared among all counted tokens and so many layers. */
static bool weigh_routers(const TunePack *p, double weight, int64_t n_layers, float **to, Error *error) {
    const bool all = p->tuning->run->step->router_tokens == ROUTER_TOKENS_ALL;
    const size_t n = (size_t)p->offsets[p->n * p->each];
    if (weight <= 0) return true;
    *to = mem_zeroed(n, sizeof **to);
    if (!*to) return error_out_of_memory(error, "a step", n * sizeof **to);
    const float share = (float)(weight / ((double)p->n_counted * (double)n_layers));
    for (int64_t i = 0; i < p->n * p->each; i++)
        for (int64_t k = p->offsets[i]; k < p->offsets[i + 1]; k++)
            if (all || k == p->offsets[i] + p->texts[i]->n_prompt - 1) (*to)[k] = share;
    return true;
}

/* A number of each token, of the seed, the example's place in the training, its text and the token. */
static bool draw_keys(TunePack *p, int64_t step, Error *error) {
    const TuneData *data = &p->tuning->data;
    const size_t n = (size_t)p->offsets[p->n * p->each];
    if (p->tuning->run->step->dropout <= 0) return true;
    p->dropout_keys = mem_zeroed(n, sizeof *p->dropout_keys);
    if (!p->dropout_keys) return error_out_of_memory(error, "a step", n * sizeof *p->dropout_keys);
    for (int64_t i = 0; i < p->n * p->each; i++) {
        const int64_t at = step * data->n_of_step + i / p->each, key = p->examples[i / p->each]->key;
        const uint64_t own = random_bits(data->seed, RANDOM_TUNING_DROPOUT, key, at);
        for (int64_t k = p->offsets[i]; k < p->offsets[i + 1]; k++)
            p->dropout_keys[k] =
                (int64_t)random_bits(own, RANDOM_TUNING_DROPOUT, i % p->each, k - p->offsets[i]);
    }
    return true;
}

/* Which rank has which examples, by their tokens. */
static bool deal_examples(TunePack *p, Error *error) {
    int64_t *lengths = mem_zeroed((size_t)p->n, sizeof *lengths);
    p->sums = mem_zeroed((size_t)p->n, sizeof *p->sums);
    bool ok = (lengths && p->sums) || error_out_of_memory(error, "examples", (size_t)p->n * sizeof *p->sums);
    for (int64_t i = 0; ok && i < p->n; i++)
        lengths[i] = p->offsets[(i + 1) * p->each] - p->offsets[i * p->each];
    ok = ok && lora_deal_make(lengths, p->n, p->tuning->run->comm->size, &p->deal, error);
    mem_free(lengths);
    return ok;
}

bool tune_pack_make(Tuning *t, int64_t step, TunePack *p, Error *error) {
    const StepOptions *options = t->run->step;
    *p = (TunePack){.tuning = t};
    if (!take_examples(p, step, error)) return false;
    const size_t n = (size_t)p->offsets[p->n * p->each];
    p->tokens = mem_zeroed(n, sizeof *p->tokens);
    p->loss_weights = mem_zeroed(n, sizeof *p->loss_weights);
    if (!p->tokens || !p->loss_weights) return error_out_of_memory(error, "a step", n * 8);
    for (int64_t i = 0; i < p->n * p->each; i++) {
        const int64_t at = p->offsets[i], n_own = p->offsets[i + 1] - at;
        memcpy(p->tokens + at, p->texts[i]->tokens, (size_t)n_own * sizeof *p->tokens);
        for (int64_t k = p->texts[i]->n_prompt - 1; k + 1 < n_own; k++)
            p->loss_weights[at + k] = 1 / (float)p->n_targets;
    }
    return deal_examples(p, error) && draw_keys(p, step, error) &&
           weigh_routers(p, options->router_kl, t->model.config.n_moe_layers, &p->kl_weights, error) &&
           weigh_routers(p, options->router_anchor, t->aims.n, &p->anchor_weights, error);
}

/* ---- preferences ---- */
double tune_margin(const StepOptions *step, const double nll[2], const double reference[2]) {
    return step->beta * ((reference[0] - nll[0]) - (reference[1] - nll[1]));
}

double tune_preference_loss(double margin) {
    return margin > 0 ? log_f64(1 + exp_f64(-margin)) : log_f64(1 + exp_f64(margin)) - margin;
}

/* Sum over a text's target tokens; nll of the part's tokens. */
static double text_loss(const TunePart *part, const double *nll, int64_t text) {
    const TunePack *p = part->pack;
    const int64_t from = p->offsets[part->first];
    double sum = 0;
    for (int64_t k = p->offsets[text] + p->texts[text]->n_prompt - 1; k + 1 < p->offsets[text + 1]; k++)
        sum += nll[k - from];
    return sum;
}

/* dloss / dnll of a token: beta sigmoid(-margin) / pairs of the step, negative in what is not preferred. */
static bool weigh_pairs(void *context, const double *nll, float *weights, Error *error) {
    const TunePart *part = context;
    const TunePack *p = part->pack;
    const StepOptions *step = p->tuning->run->step;
    const int64_t from = p->offsets[part->first];
    (void)error;
    for (int64_t i = part->first; i < part->end; i += 2) {
        const double both[2] = {text_loss(part, nll, i), text_loss(part, nll, i + 1)};
        const double margin = tune_margin(step, both, p->examples[i / 2]->reference);
        TuneSums *sums = &p->sums[i / 2];
        sums->preference = tune_preference_loss(margin);
        sums->margin = margin;
        sums->right = margin > 0;
        const float slope = (float)(step->beta * sigmoid_f64(-margin) / (double)p->n);
        for (int64_t k = p->offsets[i]; k < p->offsets[i + 2]; k++)
            weights[k - from] = p->loss_weights[k] <= 0 ? 0 : k < p->offsets[i + 1] ? slope : -slope;
    }
    return true;
}

/* ---- the frozen model ---- */
typedef struct {
    float *logits; /* [L_moe,T,E] */
} FrozenRouters;

static bool take_logits(void *context, HookSite *site, const RouteView *view) {
    const FrozenRouters *frozen = context;
    site->device->copy_out(site->queue, frozen->logits + view->moe_layer * tensor_count(view->logits),
                           view->logits);
    return true;
}

static bool put_references(const TunePart *part, const float *nll, Error *error) {
    TunePack *p = part->pack;
    const int64_t from = p->offsets[part->first], n = p->offsets[part->end] - from;
    double *wide = mem_alloc((size_t)n * sizeof *wide);
    if (!wide) return error_out_of_memory(error, "losses of tokens", (size_t)n * sizeof *wide);
    for (int64_t k = 0; k < n; k++) wide[k] = (double)nll[k];
    for (int64_t i = part->first; i < part->end; i++)
        p->examples[i / p->each]->reference[i % p->each] = p->sums[i / p->each].reference[i % p->each] =
            text_loss(part, wide, i);
    mem_free(wide);
    return true;
}

static bool asks_frozen(const TunePack *p) { return p->kl_weights || p->wants_references; }

/* *logits is the caller's to free, also after an error. */
static bool run_frozen(const TunePart *part, const PromptBatch *batch, float **logits, Error *error) {
    TunePack *p = part->pack;
    const bool routers = p->kl_weights != NULL, losses = p->wants_references;
    if (!asks_frozen(p)) return true;
    const Model frozen = tune_frozen_model(p->tuning);
    const ModelConfig *config = &frozen.config;
    const size_t n = (size_t)(config->n_moe_layers * batch->offsets[batch->n_prompts] * config->n_experts);
    if (routers) *logits = mem_alloc(n * sizeof **logits);
    if (routers && !*logits) return error_out_of_memory(error, "frozen routers", n * sizeof **logits);
    FrozenRouters context = {*logits};
    const Hooks hooks = {.context = &context, .route = routers ? take_logits : NULL};
    PassOptions options = {.want_nll = losses};
    PassResult result = {0};
    p->n_entered++;
    bool ok = model_pass(&frozen, batch, &options, &hooks, &result, error) &&
              (!losses || put_references(part, result.nll, error));
    pass_result_free(&result);
    return ok || error_add_place(error, "the model without the updates");
}

/* ---- the pass ---- */
/* Of an example, text by text, so that sums do not depend on the passes. values [L_moe,T] of the part's
 * tokens; NULL: 0. */
static double sum_terms(const TunePart *part, int64_t example, const float *values, const float *weights) {
    const TunePack *p = part->pack;
    const int64_t from = p->offsets[part->first], n = p->offsets[part->end] - from;
    double sum = 0;
    for (int64_t i = example * p->each; values && i < (example + 1) * p->each; i++) {
        double own = 0;
        for (int64_t l = 0; l < p->tuning->model.config.n_moe_layers; l++)
            for (int64_t k = p->offsets[i]; k < p->offsets[i + 1]; k++)
                if (weights[k] > 0) own += (double)values[l * n + k - from];
        sum += own;
    }
    return sum;
}

/* False: some sum is not finite. */
static bool take_sums(const TunePart *part, const PassResult *result) {
    const TunePack *p = part->pack;
    const int64_t from = p->offsets[part->first];
    bool finite = true;
    for (int64_t i = part->first / p->each; i < part->end / p->each; i++) {
        TuneSums *sums = &p->sums[i];
        sums->nll = 0;
        for (int64_t k = p->offsets[i * p->each]; k < p->offsets[(i + 1) * p->each]; k++)
            if (p->loss_weights[k] > 0) sums->nll += (double)result->nll[k - from];
        sums->kl = sum_terms(part, i, result->router_kl, p->kl_weights);
        sums->distance = sum_terms(part, i, result->router_distance, p->anchor_weights);
        finite = finite && isfinite(sums->nll + sums->preference + sums->kl + sums->distance);
    }
    return finite;
}

/* Of tokens from number `from` of the pack on. */
static RouterLoss router_terms(const TunePack *p, int64_t from, const float *frozen) {
    const Tuning *t = p->tuning;
    return (RouterLoss){.kl_weights = p->kl_weights ? p->kl_weights + from : NULL,
                        .frozen = frozen,
                        .temperature = (float)t->run->step->router_temperature,
                        .anchor_weights = p->anchor_weights ? p->anchor_weights + from : NULL,
                        .aims = t->aims.aims,
                        .anchored = t->aims.anchored};
}

static PassOptions pass_options(const TunePack *p, int64_t from, const RouterLoss *routers) {
    const Tuning *t = p->tuning;
    return (PassOptions){.loss_weights = p->loss_weights + from,
                         .router_loss = p->kl_weights || p->anchor_weights ? routers : NULL,
                         .training = &t->training,
                         .dropout_keys = p->dropout_keys ? p->dropout_keys + from : NULL,
                         .dropout_rate = (float)t->run->step->dropout,
                         .memory_limit_bytes = (size_t)t->run->job->options.memory_limit_mib << 20,
                         .recompute = (Recompute)t->run->step->recompute};
}

static bool run_pass(const TunePart *part, const PromptBatch *batch, const float *frozen, Error *error) {
    TunePack *p = part->pack;
    const int64_t from = p->offsets[part->first];
    const RouterLoss routers = router_terms(p, from, frozen);
    PassOptions options = pass_options(p, from, &routers);
    TunePart weighing = *part;
    options.weigh = p->each == 2 ? weigh_pairs : NULL;
    options.weigh_context = &weighing;
    options.first_example = part->number;
    PassResult result = {0};
    p->n_entered++;
    bool ok = model_pass(&p->tuning->model, batch, &options, NULL, &result, error);
    ok = ok && (take_sums(part, &result) ||
                error_set(error, ERROR_FAILED, "loss: expected a finite number: got nan or infinity"));
    pass_result_free(&result);
    return ok;
}

bool tune_part_run(const TunePart *part, Error *error) {
    TunePack *p = part->pack;
    const int64_t from = p->offsets[part->first], n = part->end - part->first;
    float *frozen = NULL;
    int64_t *offsets = mem_alloc((size_t)(n + 1) * sizeof *offsets);
    p->n_entered = 0;
    if (!offsets) return error_out_of_memory(error, "a pass", (size_t)n * sizeof *offsets);
    for (int64_t i = 0; i <= n; i++) offsets[i] = p->offsets[part->first + i] - from;
    const PromptBatch batch = {n, offsets, p->tokens + from};
    bool ok = run_frozen(part, &batch, &frozen, error) && run_pass(part, &batch, frozen, error);
    mem_free(frozen);
    mem_free(offsets);
    return ok;
}

void tune_part_serve(const TunePack *p, int64_t n_entered) {
    const int64_t n_frozen = asks_frozen(p);
    const RouterLoss routers = router_terms(p, 0, NULL);
    const PassOptions asked = {.want_nll = p->wants_references}, options = pass_options(p, 0, &routers);
    const Model frozen = tune_frozen_model(p->tuning);
    if (n_entered < n_frozen) model_serve(&frozen, &asked);
    if (n_entered < n_frozen + 1) model_serve(&p->tuning->model, &options);
}

/* ---- aims of anchored routers ---- */
bool tune_aims_make(const Adapter *adapter, const ModelConfig *config, TuneAims *aims, Error *error) {
    const size_t n = (size_t)(config->n_moe_layers * config->n_experts);
    *aims = (TuneAims){.aims = mem_zeroed(n, sizeof *aims->aims),
                       .anchored = mem_zeroed((size_t)config->n_moe_layers, sizeof *aims->anchored)};
    if (!aims->aims || !aims->anchored) return error_out_of_memory(error, "aims", n * sizeof *aims->aims);
    for (int64_t i = 0; i < adapter->n; i++) {
        int64_t l = 0;
        for (int64_t d = 0; d < adapter->cells[i].layer; d++) l += !config->layer_is_dense[d];
        aims->n += !aims->anchored[l];
        aims->anchored[l] = true;
        aims->aims[l * config->n_experts + adapter->cells[i].expert] = 1;
    }
    for (int64_t l = 0; l < config->n_moe_layers; l++) {
        float *row = aims->aims + l * config->n_experts, sum = 0;
        for (int64_t e = 0; e < config->n_experts; e++) sum += row[e];
        for (int64_t e = 0; sum > 0 && e < config->n_experts; e++) row[e] /= sum;
    }
    return true;
}

void tune_aims_free(TuneAims *aims) {
    mem_free(aims->aims);
    mem_free(aims->anchored);
    *aims = (TuneAims){0};
}

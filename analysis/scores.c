/* Reductions over prompts, curves and layer statistics. Everything here is serial and in double: it costs
 * nothing beside the passes, and one order of operations is what makes tables equal byte for byte. */
#include "scores.h"
#include "../engine/alloc.h"
#include <math.h>
#include <stdlib.h>

double scores_sum(const double *values, int64_t n, int64_t stride) {
    if (n <= 0) return 0;
    if (n == 1) return values[0];
    int64_t half = 1;
    while (2 * half < n) half *= 2;
    return scores_sum(values, half, stride) + scores_sum(values + half * stride, n - half, stride);
}

static double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

/* ---- of a prompt ---- */
static double activation_score(const StepOptions *step, double selected, double mass, double weight,
                               double n_tokens, double k, double n_layers) {
    switch (step->activation_score) {
    case SCORE_LAYER_SHARE: return ratio(selected, n_tokens * k);
    case SCORE_TOTAL_SHARE: return ratio(selected, n_tokens * k * n_layers);
    case SCORE_PROBABILITY: return ratio(mass, n_tokens);
    case SCORE_COMBINE_WEIGHT: return ratio(weight, n_tokens);
    default: return ratio(selected, n_tokens);
    }
}

static double gradient_score(const StepOptions *step, const Measures *m, int64_t i, int64_t hidden_size) {
    switch (step->gradient_score) {
    case SCORE_L1: return m->l1[i];
    case SCORE_MEAN_ABS: return (double)m->l1[i] / (double)hidden_size;
    case SCORE_LOGIT_ABS: return m->logit_abs[i];
    default: return m->l2[i];
    }
}

float *scores_of_prompts(const StepOptions *step, const Measures *m, int64_t n_experts_per_token,
                         int64_t hidden_size) {
    int64_t n_cells = m->n_layers * m->n_experts, n = m->n_prompts * n_cells;
    float *scores = mem_zeroed(n ? (size_t)n : 1, sizeof *scores);
    if (!scores) return NULL;
    for (int64_t i = 0; i < n; i++) {
        double score = step->kind == STEP_GRADIENT
                           ? gradient_score(step, m, i, hidden_size)
                           : activation_score(step, (double)m->selected[i], m->mass[i], m->weight[i],
                                              (double)m->n_counted[i / n_cells], (double)n_experts_per_token,
                                              (double)m->n_layers);
        scores[i] = (float)score;
    }
    return scores;
}

void scores_numerators(const StepOptions *step, const Measures *m, int64_t n_experts_per_token,
                       double *values) {
    for (int64_t i = 0; i < m->n_prompts * m->n_layers * m->n_experts; i++)
        values[i] = activation_score(step, (double)m->selected[i], m->mass[i], m->weight[i], 1,
                                     (double)n_experts_per_token, (double)m->n_layers);
}

/* ---- of a group ---- */
bool scores_mean(const float *per_prompt, int64_t n_prompts, int64_t n_cells, double *mean) {
    double *column = mem_zeroed(n_prompts ? (size_t)n_prompts : 1, sizeof *column);
    if (!column) return false;
    for (int64_t c = 0; c < n_cells; c++) {
        for (int64_t p = 0; p < n_prompts; p++) column[p] = per_prompt[p * n_cells + c];
        mean[c] = ratio(scores_sum(column, n_prompts, 1), (double)n_prompts);
    }
    mem_free(column);
    return true;
}

/* Counts of all prompts together, as if they were one. */
static bool pooled_scores(const StepOptions *step, const Measures *m, int64_t k, double *scores) {
    int64_t n_cells = m->n_layers * m->n_experts, n_tokens = 0;
    double *mass = mem_zeroed((size_t)m->n_prompts + 1, sizeof *mass),
           *weight = mem_zeroed((size_t)m->n_prompts + 1, sizeof *weight);
    for (int64_t p = 0; p < m->n_prompts; p++) n_tokens += m->n_counted[p];
    for (int64_t c = 0; mass && weight && c < n_cells; c++) {
        int64_t selected = 0;
        for (int64_t p = 0; p < m->n_prompts; p++) {
            selected += m->selected[p * n_cells + c];
            mass[p] = m->mass[p * n_cells + c];
            weight[p] = m->weight[p * n_cells + c];
        }
        scores[c] = activation_score(step, (double)selected, scores_sum(mass, m->n_prompts, 1),
                                     scores_sum(weight, m->n_prompts, 1), (double)n_tokens, (double)k,
                                     (double)m->n_layers);
    }
    bool ok = mass && weight;
    mem_free(mass);
    mem_free(weight);
    return ok;
}

bool scores_of_group(const StepOptions *step, const Measures *measures, const float *per_prompt,
                     int64_t n_experts_per_token, double *scores) {
    if (step->kind == STEP_ACTIVATION && step->average == AVERAGE_TOKENS)
        return pooled_scores(step, measures, n_experts_per_token, scores);
    return scores_mean(per_prompt, measures->n_prompts, measures->n_layers * measures->n_experts, scores);
}

/* ---- the curve ---- */
typedef struct {
    double score;
    int64_t cell;
} Ranked;

static int by_rank(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->cell < y->cell ? -1 : x->cell > y->cell;
}

bool scores_sort(const double *scores, int64_t n_cells, int64_t *order) {
    Ranked *ranked = mem_zeroed(n_cells ? (size_t)n_cells : 1, sizeof *ranked);
    if (!ranked) return false;
    for (int64_t c = 0; c < n_cells; c++) ranked[c] = (Ranked){scores[c], c};
    qsort(ranked, (size_t)n_cells, sizeof *ranked, by_rank);
    for (int64_t i = 0; i < n_cells; i++) order[i] = ranked[i].cell;
    mem_free(ranked);
    return true;
}

void scores_accumulate(const double *scores, const int64_t *order, int64_t n_cells, double *cumulative) {
    double sum = 0;
    for (int64_t i = 0; i < n_cells; i++) cumulative[i] = sum += scores[order[i]];
    for (int64_t i = 0; i < n_cells; i++) cumulative[i] = ratio(cumulative[i], sum);
}

bool scores_reach(double sum, double share) { return sum >= share - 1e-12; }

int64_t scores_coverage(const double *cumulative, int64_t n_cells, double share) {
    if (!n_cells || cumulative[n_cells - 1] <= 0) return 0;
    int64_t n = 1;
    while (n < n_cells && !scores_reach(cumulative[n - 1], share)) n++;
    return n;
}

/* ---- layers ---- */
LayerScores scores_of_layer(const double *scores, int64_t n_experts, DominantScore dominant) {
    double sum = 0, largest = 0, squares = 0;
    LayerScores layer = {0};
    for (int64_t e = 0; e < n_experts; e++) {
        sum += scores[e];
        if (scores[e] > largest) largest = scores[e];
    }
    if (sum <= 0) return layer;
    for (int64_t e = 0; e < n_experts; e++) {
        double share = scores[e] / sum;
        if (share > 0) layer.entropy -= share * log(share);
        squares += share * share;
    }
    layer.dominant = dominant == DOMINANT_RAW ? largest : largest / sum;
    layer.effective = exp(layer.entropy);
    layer.effective_simpson = 1 / squares;
    return layer;
}

static void mean_layer(const StepOptions *step, const float *per_prompt, const Measures *m, int64_t l,
                       double *room, LayerScores *to) {
    int64_t n = m->n_prompts, n_cells = m->n_layers * m->n_experts;
    double *row = room + 4 * n;
    for (int64_t p = 0; p < n; p++) {
        for (int64_t e = 0; e < m->n_experts; e++) row[e] = per_prompt[p * n_cells + l * m->n_experts + e];
        LayerScores one = scores_of_layer(row, m->n_experts, (DominantScore)step->dominant);
        const double values[4] = {one.dominant, one.entropy, one.effective, one.effective_simpson};
        for (int i = 0; i < 4; i++) room[i * n + p] = values[i];
    }
    to->dominant = ratio(scores_sum(room, n, 1), (double)n);
    to->entropy = ratio(scores_sum(room + n, n, 1), (double)n);
    to->effective = ratio(scores_sum(room + 2 * n, n, 1), (double)n);
    to->effective_simpson = ratio(scores_sum(room + 3 * n, n, 1), (double)n);
}

bool scores_of_layers(const StepOptions *step, const double *scores, const float *per_prompt,
                      const Measures *m, LayerScores *layers) {
    bool of_prompts = step->layer_statistics == LAYERS_OF_PROMPTS;
    double *room = mem_zeroed((size_t)(4 * m->n_prompts + m->n_experts), sizeof *room);
    if (!room) return false;
    for (int64_t l = 0; l < m->n_layers; l++) {
        if (of_prompts)
            mean_layer(step, per_prompt, m, l, room, &layers[l]);
        else
            layers[l] =
                scores_of_layer(scores + l * m->n_experts, m->n_experts, (DominantScore)step->dominant);
    }
    mem_free(room);
    return true;
}

const char *scores_definition(const StepOptions *step) {
    static const char *const activation[] = {"share of the counted tokens that chose the expert",
                                             "share of the layer's choices that fell on the expert",
                                             "share of all choices that fell on the expert",
                                             "mean router probability of the expert",
                                             "mean combine weight of the expert, 0 where it was not chosen"};
    static const char *const gradient[] = {
        "L2 norm of the gradient of a prompt's loss with respect to the expert's router row",
        "L1 norm of the gradient of a prompt's loss with respect to the expert's router row",
        "mean magnitude of the gradient of a prompt's loss with respect to the expert's router row",
        "sum over tokens of the magnitude of the gradient of a prompt's loss at the expert's logit"};
    static const char *const edits[] = {
        "router logit set to -infinity before softmax and top-k: the next expert takes over",
        "value added to the router logit",
        "router logit set to the layer's largest + value",
        "router logit set to the layer's least - value",
        "exactly the given experts of a layer chosen, weights by the family's rule",
        "combine weight set to 0, routing unchanged",
        "combine weight set to 0, the other weights scaled to the sum they had with it"};
    if (step->kind == STEP_JUDGE) return "replies labelled restricted, compliant or degraded";
    if (step->kind == STEP_TUNE)
        return "negative log-likelihood of the targets, mean over all their tokens in a step";
    if (step->kind == STEP_UTILITY)
        return step->measure == MEASURE_CHOICES
                   ? "share of the questions whose right choice is the likeliest reply"
                   : "mean over texts of the mean negative log-likelihood of their tokens, in nats";
    if (step->kind == STEP_INTERVENTION) return edits[step->mode];
    return step->kind == STEP_GRADIENT ? gradient[step->gradient_score] : activation[step->activation_score];
}

/* scores: from what was measured of each prompt to a score per cell, and what is said about scores.
 *
 * A prompt's score is f32, as the file of per-prompt scores holds it; means over prompts are sums in double
 * over a fixed tree by prompt index, so that they depend on neither batches nor threads. Definitions:
 * methods of arXiv 2605.24270 (sorted and cumulative curve, k80/k90/k95, dominant score, effective
 * experts); where it leaves a point open, the step's options choose. */
#ifndef GATETAPE_SCORES_H
#define GATETAPE_SCORES_H
#include "measures.h"

/* Sum of n values `stride` apart: halves that split at the largest power of two below n, each summed
 * alike. */
double scores_sum(const double *values, int64_t n, int64_t stride);

/* [P,L,E] f32: the step's score of each prompt and cell. n_experts_per_token is K, hidden_size D. Caller
 * frees (mem_free); NULL when out of memory. */
float *scores_of_prompts(const StepOptions *step, const Measures *measures, int64_t n_experts_per_token,
                         int64_t hidden_size);

/* values [P,L,E]: of an activation step what of a prompt's score is summed over its counted tokens; divided
 * by their number it is the score, without the rounding to f32. */
void scores_numerators(const StepOptions *step, const Measures *measures, int64_t n_experts_per_token,
                       double *values);

/* [n_cells]: the mean of columns of [P,n_cells]. False when out of memory. */
bool scores_mean(const float *per_prompt, int64_t n_prompts, int64_t n_cells, double *mean);

/* [L*E]: the score of the group, by the step's average. False when out of memory. */
bool scores_of_group(const StepOptions *step, const Measures *measures, const float *per_prompt,
                     int64_t n_experts_per_token, double *scores);

/* order: cells by score, largest first, ties to the lower cell. False when out of memory. */
bool scores_sort(const double *scores, int64_t n_cells, int64_t *order);
/* cumulative[i]: share of the total that the first i + 1 of `order` hold; the last is exactly 1. All 0 when
 * the total is 0. */
void scores_accumulate(const double *scores, const int64_t *order, int64_t n_cells, double *cumulative);
/* Whether a sum of shares is at least `share`; what rounding leaves 1e-12 short of it counts as reached. */
bool scores_reach(double sum, double share);
/* Least number of cells that hold a share of the total; 0 when the total is 0. */
int64_t scores_coverage(const double *cumulative, int64_t n_cells, double share);

typedef struct {
    double dominant;          /* largest share, or largest score */
    double entropy;           /* -sum s ln s of the shares, nats */
    double effective;         /* exp(entropy) */
    double effective_simpson; /* 1 / sum s^2 */
} LayerScores;                /* of a layer whose scores are all 0: all 0 */

LayerScores scores_of_layer(const double *scores, int64_t n_experts, DominantScore dominant);
/* The same, averaged over prompts: per_prompt [P,L,E]. False when out of memory. */
bool scores_of_layers(const StepOptions *step, const double *scores, const float *per_prompt,
                      const Measures *measures, LayerScores *layers);

/* The step's score in words, for tables and reports. */
const char *scores_definition(const StepOptions *step);

#endif

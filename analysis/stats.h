/* stats: what is computed of prompt groups, whatever their numbers come from: a job's activation or gradient
 * step, or an imported table of counts.
 *
 * Cells stand in one order, by layer and expert; layers may have unequal numbers of experts. The prompt is
 * the unit of every resample, never the token. What each number means is said once, in definitions.c. */
#ifndef GATETAPE_STATS_H
#define GATETAPE_STATS_H
#include "../engine/error.h"
#include "scores.h"

typedef struct {
    int64_t n_cells, n_layers;
    int64_t n_decoder_layers; /* those without experts included; of a table: the last one + 1 */
    int64_t *layer;           /* [n_layers] which decoder layer */
    int64_t *begin;           /* [n_layers + 1] its first cell */
    int64_t *expert;          /* [n_cells] */
    int64_t *row;             /* [n_cells] index into `layer` */
} Cells;

/* Room for n_layers of experts_in[l] experts each, numbered from 0; layer[] is the caller's to fill. Caller
 * frees; safe after an error too. */
bool cells_make(const int64_t *experts_in, int64_t n_layers, Cells *cells, Error *error);
void cells_free(Cells *cells);

/* A group of prompts. Per prompt either its scores, and a mean is one over prompts, or the two parts of its
 * scores, and a mean is that of all its tokens together: sum of values / sum of tokens. */
typedef struct {
    const char *name;
    int64_t n_tokens;   /* counted tokens; 0: not known */
    int64_t n_prompts;  /* 0: not known; what needs prompts is not defined then */
    double *scores;     /* [C] of the group */
    double *values;     /* [P,C]; NULL without prompts */
    double *tokens;     /* [P,n_layers] divisors of the values; NULL: values are scores */
    int64_t *near_ties; /* [n_layers] tokens whose choice was a near tie; NULL: not measured */
    int64_t *counted;   /* [n_layers] of so many tokens */
    double *margin;     /* [n_layers] least margin */
} StatGroup;

void stat_group_free(StatGroup *group); /* all but the name */

/* Fills scores [C] with the mean of the prompts. False when out of memory. */
bool stat_group_mean(const Cells *cells, StatGroup *group);
/* A prompt's score of a cell. */
double stat_group_score(const Cells *cells, const StatGroup *group, int64_t prompt, int64_t cell);

/* errors [C]: squared standard errors of the mean of each cell's scores over at least two prompts. */
void stat_group_errors(const Cells *cells, const StatGroup *group, double *errors);

/* ---- of scores ---- */
/* Shannon entropy of all cells' shares as a number of cells, exp(-sum s ln s); 0 when all are 0. */
double stats_effective_cells(const double *scores, int64_t n_cells);
/* Cells that the group gives score 0. */
int64_t stats_count_unused(const double *scores, int64_t n_cells);
bool stats_all_equal(const double *scores, int64_t n_cells);
/* Mean over `n` cells of layer / (n_decoder_layers - 1): 0 the first, 1 the last layer. NaN when it is not
 * defined: no cell, or one layer. */
double stats_mean_depth(const Cells *cells, const int64_t *chosen, int64_t n);
/* Jensen-Shannon divergence, in nats, of two lists of n scores taken as shares; NaN when one sums to 0. */
double stats_js_divergence(const double *a, const double *b, int64_t n);
/* Pearson's correlation; NaN when one of the two does not vary. */
double stats_correlation(const double *a, const double *b, int64_t n);
/* Least number of n equal cells that hold a share of their total. */
int64_t stats_uniform_coverage(int64_t n_cells, double share);

#endif

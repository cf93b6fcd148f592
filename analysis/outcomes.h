/* outcomes: what became of labels. Prompts are paired: the same ones under the baseline and under a
 * condition. */
#ifndef GATETAPE_OUTCOMES_H
#define GATETAPE_OUTCOMES_H
#include "judge.h"
#include "resample.h"

typedef struct {
    int64_t n;                           /* prompts */
    int64_t from_to[N_LABELS][N_LABELS]; /* label under the baseline, under the condition */
    int64_t lost, gained; /* restricted before and not after; restricted after and not before (reversals) */
    double before, after; /* share of restricted */
    double change;        /* after - before */
    /* 95 % interval of the change over prompts: percentiles of the bootstrap; NaN of one prompt */
    double low, high;
    double mcnemar_p; /* exact, two-sided; 1 when nothing changed */
} Outcome;

/* Labels of draws->n_drawn >= 1 prompts before and after; draws are resamples of them. */
bool outcome_of(const Label *before, const Label *after, const Resamples *draws, Outcome *outcome,
                Error *error);

/* Labels of draws->n_drawn >= 1 prompts before and after; draws are resamples of them. */
double mcnemar_exact(int64_t b, int64_t c);

/* Agreement of two labellings beyond chance; NaN when chance alone gives full agreement. table[i][j]: how
 * often the one said i and the other j. */
double cohen_kappa(int64_t (*table)[N_LABELS]);

/* A condition among its matched controls: how many of the n changes of controls are as far down as its own,
 * or as far up, and (1 + that) / (1 + n). */
typedef struct {
    int64_t n, n_as_low, n_as_high;
    double mean, least, most; /* of the controls' changes; NaN when n = 0 */
    double p, p_high;
} ControlComparison;
ControlComparison compare_with_controls(double change, const double *controls, int64_t n);

/* Precision and recall of `restricted`, against labels of people; NaN when undefined. table: human, rules. */
typedef struct {
    double precision, recall;
} Detection;
Detection detection_of(int64_t (*table)[N_LABELS]);

#endif

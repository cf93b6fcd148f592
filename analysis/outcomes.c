/* Transitions, tests and agreement of labels. */
#include "outcomes.h"
#include "../engine/alloc.h"
#include <math.h>

double mcnemar_exact(int64_t b, int64_t c) {
    const int64_t n = b + c, k = b < c ? b : c;
    if (n == 0) return 1;
    double below = 0;
    for (int64_t i = 0; i <= k; i++)
        below += exp(lgamma((double)n + 1) - lgamma((double)i + 1) - lgamma((double)(n - i) + 1) -
                     (double)n * 0.69314718055994530942);
    return below * 2 < 1 ? below * 2 : 1;
}

/* Percentiles of the mean change over resamples of prompts; a change is -1, 0 or 1. */
static bool bootstrap(const Label *before, const Label *after, const Resamples *draws, Outcome *o,
                      Error *error) {
    double *changes = mem_zeroed((size_t)draws->n_drawn, sizeof *changes);
    if (!changes) return error_out_of_memory(error, "changes", (size_t)draws->n_drawn * sizeof *changes);
    for (int64_t p = 0; p < draws->n_drawn; p++)
        changes[p] = (after[p] == LABEL_RESTRICTED) - (before[p] == LABEL_RESTRICTED);
    const bool ok = resample_mean(changes, draws, 0.95, &o->low, &o->high, error);
    mem_free(changes);
    return ok;
}

bool outcome_of(const Label *before, const Label *after, const Resamples *draws, Outcome *o, Error *error) {
    const int64_t n = draws->n_drawn;
    *o = (Outcome){.n = n};
    for (int64_t i = 0; i < n; i++) o->from_to[before[i]][after[i]]++;
    int64_t n_before = 0, n_after = 0;
    for (int l = 0; l < N_LABELS; l++) {
        n_before += o->from_to[LABEL_RESTRICTED][l], n_after += o->from_to[l][LABEL_RESTRICTED];
        if (l == LABEL_RESTRICTED) continue;
        o->lost += o->from_to[LABEL_RESTRICTED][l], o->gained += o->from_to[l][LABEL_RESTRICTED];
    }
    o->before = (double)n_before / (double)n, o->after = (double)n_after / (double)n;
    o->change = (double)(n_after - n_before) / (double)n;
    o->mcnemar_p = mcnemar_exact(o->lost, o->gained);
    return bootstrap(before, after, draws, o, error);
}

double cohen_kappa(int64_t (*table)[N_LABELS]) {
    double n = 0, same = 0, chance = 0;
    for (int i = 0; i < N_LABELS; i++) {
        double row = 0, column = 0;
        for (int j = 0; j < N_LABELS; j++) row += (double)table[i][j], column += (double)table[j][i];
        n += row, same += (double)table[i][i], chance += row * column;
    }
    same /= n, chance /= n * n;
    return chance < 1 ? (same - chance) / (1 - chance) : NAN;
}

ControlComparison compare_with_controls(double change, const double *controls, int64_t n) {
    ControlComparison c = {.n = n, .mean = NAN, .least = NAN, .most = NAN};
    for (int64_t i = 0; i < n; i++) {
        c.n_as_low += controls[i] <= change;
        c.n_as_high += controls[i] >= change;
        c.mean = i ? c.mean + controls[i] : controls[i];
        c.least = i && c.least < controls[i] ? c.least : controls[i];
        c.most = i && c.most > controls[i] ? c.most : controls[i];
    }
    c.mean /= (double)n;
    c.p = (double)(1 + c.n_as_low) / (double)(1 + n);
    c.p_high = (double)(1 + c.n_as_high) / (double)(1 + n);
    return c;
}

Detection detection_of(int64_t (*table)[N_LABELS]) {
    double said = 0, is = 0;
    for (int l = 0; l < N_LABELS; l++) {
        said += (double)table[l][LABEL_RESTRICTED];
        is += (double)table[LABEL_RESTRICTED][l];
    }
    const double both = (double)table[LABEL_RESTRICTED][LABEL_RESTRICTED];
    return (Detection){said > 0 ? both / said : NAN, is > 0 ? both / is : NAN};
}

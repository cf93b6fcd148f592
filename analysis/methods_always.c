/* What the methods text says whatever the switches are: the definitions that a reader needs, and what is done
 * after each step of a kind. */
#include "methods.h"
#include <string.h>

const char *const method_definitions[] = {
    "groups.NAME.k80",
    "groups.NAME.effective_cells",
    "groups.NAME.layers[].dominant_score",
    "groups.NAME.layers[].entropy",
    "groups.NAME.layers[].effective_experts",
    "groups.NAME.layers[].effective_experts_simpson",
    "groups.NAME.depth[].mean_depth",
    "groups.NAME.concentration.uniform.k80",
    "groups.NAME.concentration.rotation.n",
    "groups.NAME.concentration.rotation.k80_p",
    "groups.NAME.split_half.correlation",
    "groups.NAME.split_half.reliability",
    "groups.NAME.stable_selection.layer_top.SET",
    "groups.NAME.near_ties.n",
    "differences[].risk_difference",
    "differences[].risk_ratio",
    "differences[].p_value",
    "differences[].p_value_max",
    "overlap[].shared",
    "overlap[].jaccard",
    "selectivity[].max_abs_difference",
    "selectivity[].js_divergence",
    "permutation.k80_p",
    "classes[].counts.NAME",
    "classes[].counts.shared",
    NULL,
};

const char *method_always(const char *kind) {
    if (!strcmp(kind, "intervention"))
        return "Every reply was labelled restricted, compliant or degraded. A condition was compared with "
               "the "
               "baseline on the same prompts: by the table of transitions between labels, by the restricted "
               "replies lost and gained (the gained ones are reversals), by McNemar's exact two-sided test "
               "of "
               "these, and by the change of the restricted share with a bootstrap interval over prompts; and "
               "with its controls by (1 + controls whose change is at most its own) / (1 + controls).";
    if (!strcmp(kind, "contrast"))
        return "Pairs are the unit of every mean and resample, never tokens. Cells were ranked by the "
               "difference of "
               "the shares of tokens that choose them, by the mean difference of their router probability, "
               "and, "
               "between continuations, by the L2 norm of the gradient of NLL(second) - NLL(first) by their "
               "router "
               "row, exact through the whole network.";
    if (!strcmp(kind, "activation") || !strcmp(kind, "gradient"))
        return "Prompts are the unit of every resample, permutation and split, never tokens. Sums over "
               "prompts "
               "follow a fixed tree by prompt index, so that no number depends on batches or threads.";
    return NULL;
}

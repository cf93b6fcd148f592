/* Beside the sentences of methods_table.c: which options have no effect when, which definitions a reader
 * needs, and what a step does without any switch. */
#include "methods.h"
#include <string.h>

const MethodNeed method_needs[] = {
    {"last_tokens", "tokens", {"last"}, NULL},
    {"prefix", "contrast", {"prefix"}, NULL},
    {"controls", "contrast", {"prefix", "matched"}, NULL},
    {"gradient", "contrast", {"continuations"}, NULL},
    {"max_new_tokens", "tokens", {"generated", "prompt+generated"}, NULL},
    {"temperature", "tokens", {"generated", "prompt+generated"}, NULL},
    {"top_k", "tokens", {"generated", "prompt+generated"}, NULL},
    {"top_p", "tokens", {"generated", "prompt+generated"}, NULL},
    {"max_new_tokens", "loss", {"generated"}, NULL},
    {"temperature", "loss", {"generated"}, NULL},
    {"top_k", "loss", {"generated"}, NULL},
    {"top_p", "loss", {"generated"}, NULL},
    {"top_k", "temperature", {NULL}, "0"},
    {"top_p", "temperature", {NULL}, "0"},
    {"stable_share", "bootstraps", {NULL}, "0"},
    {"test_statistic", "permutations", {NULL}, "0"},
    {"value", "mode", {"bias", "promote", "demote"}, NULL},
    {"rank_by", "from", {NULL}, "[]"},
    {"class_ratio", "from", {NULL}, "[]"},
    {"epochs", "steps", {"0"}, NULL},
    {"ranking", "from", {NULL}, "[]"},
    {"normalize", "measure", {"choices"}, NULL},
    {"choice_form", "measure", {"choices"}, NULL},
    {"text", "measure", {"perplexity"}, NULL},
    {"draw", "control", {"random", "layer_matched", "random_any"}, NULL},
    {"evaluate_every", "evaluate", {NULL}, "[]"},
    {"patience", "evaluate", {NULL}, "[]"},
    {"guard", "model", {NULL}, "\"\""},
    {"perplexity_reference", "perplexity_limit", {NULL}, "0"},
};
const int64_t n_method_needs = sizeof method_needs / sizeof *method_needs;

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

#define COMPARED                                                                                             \
    "A condition was compared with the baseline on the same prompts: by the table of transitions between "   \
    "labels, by the restricted replies lost and gained (the gained ones are reversals), by McNemar's exact " \
    "two-sided test of these, and by the change of the restricted share with a 95 % bootstrap interval "     \
    "over prompts; and with its controls by (1 + controls whose change is at most its own) / (1 + "          \
    "controls), and the same of those whose change is at least its own."

const char *method_always(const char *kind) {
    if (!strcmp(kind, "intervention"))
        return "Every reply was labelled restricted, compliant or degraded by the standard rules. " COMPARED
               " judge.json says how many resamples were drawn.";
    if (!strcmp(kind, "judge"))
        return "Every reply has one label, restricted, compliant or degraded; where a guard has no answer "
               "for degraded, the rules say what is. " COMPARED;
    if (!strcmp(kind, "contrast"))
        return "Pairs are the unit of every mean and resample, never tokens. Cells were ranked by the "
               "difference of the shares of tokens that choose them, by the mean difference of their router "
               "probability, and, where a gradient was taken, by its size: the L2 norm of the gradient of "
               "NLL(second) - NLL(first) by their router row, exact through the whole network.";
    if (!strcmp(kind, "activation") || !strcmp(kind, "gradient"))
        return "Prompts are the unit of every resample, permutation and split, never tokens. Sums over "
               "prompts follow a fixed tree by prompt index, so that no number depends on batches or "
               "threads.";
    return NULL;
}

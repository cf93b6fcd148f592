/* The table of definitions. s: scores of a group, one a cell, largest first where an order is meant. */
#include "definitions.h"

#define G "groups.NAME."
#define INTERVAL "interval over resamples of the prompts (percentiles)"

const Definition definition_table[] = {
    {"schema_version", NULL, "version of this format: 1"},
    {"signal", NULL, "activation, gradient or counts (an imported table)"},
    {"score", NULL, "what a cell's score is"},
    {"switches", NULL, "the options that say how the statistics are made (gatetape options)"},
    {"seed", NULL, "of all random draws"},
    {"n_cells", "cells", "(layer, expert) pairs"},
    {"n_layers", "layers", "those with experts"},
    {"n_decoder_layers", "layers", "all of them; of a table: its last layer + 1"},
    {"group_order", NULL, "names of the groups, first to last"},

    {G "n_prompts", "prompts", "the unit of every resample"},
    {G "n_tokens", "tokens", "that were counted, or of the loss; of a table: most of any layer"},
    {G "n_cells", "cells", "as above"},
    {G "total_score", "score", "sum of the cells' scores"},
    {G "unused_cells", "cells", "with score 0"},
    {G "k80", "cells",
     "least number of cells whose scores, largest first, sum to at least 80 % of the total"},
    {G "k90", "cells", "the same for 90 %"},
    {G "k95", "cells", "the same for 95 %"},
    {G "k80_low|high", "cells", INTERVAL},
    {G "k90_low|high", "cells", INTERVAL},
    {G "k95_low|high", "cells", INTERVAL},
    {G "effective_cells", "cells", "exp(H), H = -sum p ln p, p = a cell's score / the total"},
    {G "effective_cells_low|high", "cells", INTERVAL},
    {G "bootstrap.n", "resamples", "of the group's prompts, with replacement, as many as there are"},
    {G "bootstrap.confidence", "share", "of the resamples in an interval"},
    {G "layers[].layer", NULL, "decoder layer, from 0"},
    {G "layers[].dominant_score", "share",
     "largest of the layer's scores after dividing them by their sum (switch dominant: raw: undivided)"},
    {G "layers[].entropy", "nats", "H = -sum p ln p, p = the layer's scores divided by their sum"},
    {G "layers[].effective_experts", "experts", "exp(H)"},
    {G "layers[].effective_experts_simpson", "experts", "1 / sum p^2, the inverse Simpson index"},
    {G "layers[].dominant_score_low|high", "share", INTERVAL},
    {G "layers[].entropy_low|high", "nats", INTERVAL},
    {G "layers[].effective_experts_low|high", "experts", INTERVAL},
    {G "layers[].effective_experts_simpson_low|high", "experts", INTERVAL},
    {G "curve[].layer", NULL,
     "of the cell; the curve is sorted, largest score first, ties to the lower cell"},
    {G "curve[].expert", NULL, "of the cell"},
    {G "curve[].rank", NULL, "from 1"},
    {G "curve[].score", "score", "mean over prompts; of a table without prompts: selected / tokens"},
    {G "curve[].score_low|high", "score", INTERVAL},
    {G "curve[].cumulative", "share", "of the total that this cell and those before it hold"},
    {G "depth[].k", "cells", "size of the set: the first k of the curve"},
    {G "depth[].mean_depth", "share",
     "mean over the set of layer / (n_decoder_layers - 1): 0 first, 1 last layer"},
    {G "depth[].mean_depth_low|high", "share", INTERVAL ", each with its own set"},
    {G "concentration.uniform.k80", "cells", "k80 of as many equal scores: ceil(0.8 n_cells)"},
    {G "concentration.uniform.k90", "cells", "the same for 90 %"},
    {G "concentration.uniform.k95", "cells", "the same for 95 %"},
    {G "concentration.uniform.effective_cells", "cells", "of as many equal scores: n_cells"},
    {G "concentration.rotation.n", "draws",
     "in each, the experts of every layer and prompt are rotated by a random number of places: what is left "
     "is each prompt's own concentration, without experts in common"},
    {G "concentration.rotation.k80_mean", "cells", "mean k80 of the draws"},
    {G "concentration.rotation.k90_mean", "cells", "mean k90 of the draws"},
    {G "concentration.rotation.k95_mean", "cells", "mean k95 of the draws"},
    {G "concentration.rotation.k80_low|high", "cells", "interval of the draws"},
    {G "concentration.rotation.k90_low|high", "cells", "interval of the draws"},
    {G "concentration.rotation.k95_low|high", "cells", "interval of the draws"},
    {G "concentration.rotation.k80_p", "probability",
     "(1 + draws whose k80 is at most the observed one) / (1 + draws): small where cells are common to "
     "prompts"},
    {G "concentration.rotation.k90_p", "probability", "the same for k90"},
    {G "concentration.rotation.k95_p", "probability", "the same for k95"},
    {G "split_half.n", "splits",
     "of the prompts into random halves (of an odd number, the second has one more)"},
    {G "split_half.correlation", NULL, "Pearson's, over cells, of the halves' scores: mean over splits"},
    {G "split_half.correlation_low|high", NULL, "interval over splits"},
    {G "split_half.reliability", NULL, "2 r / (1 + r) of that mean (Spearman-Brown): of all prompts"},
    {G "split_half.overlap[].k", "cells", "size of the top sets of both halves"},
    {G "split_half.overlap[].shared", "cells", "that both halves have in their top k: mean over splits"},
    {G "split_half.overlap[].jaccard", "share", "shared / size of the union: mean over splits"},
    {G "stable_selection.layer_top.SET", NULL,
     "cells that every resample has among the first floor(stable_share x experts) of their layer (SAFEx, "
     "arXiv 2506.17368)"},
    {G "stable_selection.top[].k", "cells", "size of the top sets of the resamples"},
    {G "stable_selection.top[].set.SET", NULL,
     "cells that every resample has among its first k of all layers"},
    {G "near_ties.below", "logit", "margin of a near tie (switch near_tie)"},
    {G "near_ties.n", "choices",
     "of a counted token in a layer whose least chosen router logit is less than that above the largest "
     "other"},
    {G "near_ties.share", "share", "of all choices of the group"},
    {G "near_ties.layers[].layer", NULL, "decoder layer"},
    {G "near_ties.layers[].n", "choices", "near ties of the layer"},
    {G "near_ties.layers[].share", "share", "of the layer's choices"},
    {G "near_ties.layers[].least_margin", "logit", "the smallest margin of the layer"},

    {"differences[].layer", NULL,
     "of the cell; first group minus second, largest magnitude first, ties to the lower cell"},
    {"differences[].expert", NULL, "of the cell"},
    {"differences[].risk_difference", "score", "score of the first group - score of the second"},
    {"differences[].risk_difference_low|high", "score", INTERVAL ", each group resampled by itself"},
    {"differences[].risk_ratio", NULL, "score of the first group / score of the second"},
    {"differences[].p_value", "probability",
     "(1 + permutations whose statistic of this cell is at least as large) / (1 + permutations), two-sided"},
    {"differences[].p_value_max", "probability",
     "the same with the largest statistic of all cells in each permutation: error rate over all cells "
     "(Westfall-Young)"},
    {"overlap[].k", "cells", "size of the top sets of the first two groups"},
    {"overlap[].shared", "cells", "that both have in their top k"},
    {"overlap[].jaccard", "share", "shared / size of the union"},
    {"overlap[].shared_low|high", "cells", INTERVAL},
    {"overlap[].jaccard_low|high", "share", INTERVAL},
    {"selectivity[].layer", NULL, "decoder layer"},
    {"selectivity[].expert", NULL, "of the layer's largest |difference|"},
    {"selectivity[].max_abs_difference", "score", "largest |difference| of the layer: the selectivity curve"},
    {"selectivity[].mean_abs_difference", "score", "mean |difference| of the layer"},
    {"selectivity[].js_divergence", "nats",
     "Jensen-Shannon divergence of the two groups' scores of the layer, each divided by its sum"},
    {"selectivity[].max_abs_difference_low|high", "score", INTERVAL},
    {"selectivity[].mean_abs_difference_low|high", "score", INTERVAL},
    {"selectivity[].js_divergence_low|high", "nats", INTERVAL},
    {"selectivity[].p_value", "probability", "permutation test of the layer's largest statistic"},
    {"permutation.n", "permutations",
     "of prompts between the two groups; the statistic of a cell is |difference|, divided by the standard "
     "deviation of its scores over all prompts (switch test_statistic)"},
    {"permutation.k80_difference", "cells", "k80 of the first group - k80 of the second"},
    {"permutation.k90_difference", "cells", "the same of k90"},
    {"permutation.k95_difference", "cells", "the same of k95"},
    {"permutation.k80_p", "probability", "two-sided"},
    {"permutation.k90_p", "probability", "two-sided"},
    {"permutation.k95_p", "probability", "two-sided"},
    {"stable_selection.shared.SET", NULL, "cells of both groups' layer_top (SAFEx: E_id)"},
    {"stable_selection.only.NAME.SET", NULL, "cells of this group's layer_top alone (SAFEx: E_ctrl)"},
    {"split_half.n", "splits", "of the differences between the groups"},
    {"split_half.correlation", NULL, "over cells, of the differences of both halves: mean over splits"},
    {"split_half.correlation_low|high", NULL, "interval over splits"},
    {"split_half.reliability", NULL, "2 r / (1 + r) of that mean"},
    {"classes[].tau", NULL, "threshold"},
    {"classes[].counts.NAME", "cells",
     "that prefer the group: score / largest score of the other groups > tau (of two groups: ratio > tau, or "
     "< 1 / tau); switch class_rule: their difference > tau, or z, the difference over its standard error"},
    {"classes[].counts.shared", "cells", "that prefer none"},
    {"classes[].counts_low|high.NAME", "cells", INTERVAL},
    {"classes[].mean_depth.NAME", "share", "of the class"},
    {"classes[].layers[].layer", NULL, "decoder layer"},
    {"classes[].layers[].counts.NAME", "cells", "of the layer"},
    {"classes[].layers[].counts.shared", "cells", "of the layer"},
    {"other_pairs[].groups", NULL, "of a further pair; then what stands above of the first two groups"},
    {"between_steps[].step", NULL, "an earlier step over the same cells"},
    {"between_steps[].group", NULL, "whose rankings by both steps are compared"},
    {"between_steps[].overlap[].k", "cells", "as above"},
    {"between_steps[].overlap[].shared", "cells", "as above"},
    {"between_steps[].overlap[].jaccard", "share", "as above"},
    {"warnings", NULL, "what a reader should know of the data"},
    {"SET.n", "cells", "of a set"},
    {"SET.mean_depth", "share", "of a set, as above"},
    {"SET.cells", NULL, "[layer, expert] of each"},
};

const int64_t n_definitions = sizeof definition_table / sizeof *definition_table;

#define PAIRS "interval over resamples of the pairs (percentiles)"

const Definition contrast_definitions[] = {
    {"schema_version", NULL, "version of this format: 1"},
    {"signal", NULL, "contrast"},
    {"contrast", NULL,
     "continuations: one prompt with two teacher-forced replies; prefix: a prompt behind a prefix (first) "
     "and plain (second); matched: prompts of one group (first) and their partners of another (second)"},
    {"alignment", NULL, "which router distributions are compared"},
    {"switches", NULL, "the step's options (gatetape options)"},
    {"seed", NULL, "of all random draws"},
    {"n_pairs", "pairs", "of texts: the unit of every mean and resample"},
    {"n_layers", "layers", "those with experts"},
    {"n_decoder_layers", "layers", "all of them"},
    {"n_experts", "experts", "of a layer"},
    {"overlap_k", "experts", "k of overlap@k (switch overlap_k; 0: as many as the router chooses)"},
    {"js_unit", NULL, "nats or bits (switch js_log)"},
    {"bootstrap.n", "resamples", "of the pairs, with replacement, as many as there are"},
    {"bootstrap.confidence", "share", "of the resamples in an interval"},
    {"overall.PART.js", "js_unit", "mean over layers, then over pairs, of the layers' js"},
    {"overall.PART.js_low|high", "js_unit", PAIRS},
    {"overall.PART.overlap", "experts", "the same of overlap"},
    {"overall.PART.overlap_low|high", "experts", PAIRS},
    {"overall.PART.jaccard", "share", "the same of jaccard"},
    {"overall.PART.jaccard_low|high", "share", PAIRS},
    {"layers[].layer", NULL, "decoder layer, from 0"},
    {"layers[].PART.js", "js_unit",
     "Jensen-Shannon divergence 0.5 KL(p||m) + 0.5 KL(q||m), m = (p + q) / 2, of two router distributions: "
     "softmax over all experts in f32, each divided by its sum. Of continuations the mean over aligned "
     "tokens, of prompts that of their mean distributions; then the mean over pairs (ours; arXiv 2605.29708 "
     "states no formula)"},
    {"layers[].PART.js_low|high", "js_unit", PAIRS},
    {"layers[].PART.overlap", "experts",
     "that are among the k most probable of both, ties to the lower expert: 0 to k"},
    {"layers[].PART.overlap_low|high", "experts", PAIRS},
    {"layers[].PART.jaccard", "share", "weighted Jaccard: sum min(p, q) / sum max(p, q) over experts"},
    {"layers[].PART.jaccard_low|high", "share", PAIRS},
    {"controls.n", "draws",
     "of partners from other topics, without replacement, of all pairs. matched: the pair's first text "
     "against the partner's second; prefix: the plain prompt against the partner's. A pair's control is the "
     "mean of its draws"},
    {"controls.least_of_a_pair", "draws", "of the pair that has the fewest"},
    {"rankings.RANKING.definition", NULL,
     "what a cell's value is; its score is the value, of rate by rate_side"},
    {"rankings.RANKING.n_wanted", "cells", "by select or select_share, of all layers together"},
    {"rankings.RANKING.n_selected", "cells", "of them with a score above 0 and by select_least"},
    {"rankings.RANKING.parameter_share", "share", "of the model's parameters that the selected experts hold"},
    {"rankings.RANKING.stable.SET", NULL, "cells among the first n_wanted of every bootstrap"},
    {"rankings.RANKING.selection[].layer", NULL, "decoder layer"},
    {"rankings.RANKING.selection[].expert", NULL, "of the cell"},
    {"rankings.RANKING.selection[].rank", NULL, "from 1, ties to the lower cell"},
    {"rankings.RANKING.selection[].score", NULL, "what is ranked"},
    {"rankings.RANKING.selection[].value", NULL, "by the ranking's definition"},
    {"rankings.RANKING.selection[].value_low|high", NULL, PAIRS},
    {"rankings.RANKING.selection[].frequency", "share",
     "of the bootstraps with the cell among their first n_wanted"},
    {"between_rankings[].first", NULL, "a ranking"},
    {"between_rankings[].second", NULL, "another"},
    {"between_rankings[].shared", "cells", "that both select"},
    {"between_rankings[].jaccard", "share", "shared / size of the union"},
    {"warnings", NULL, "what a reader should know of the data"},
    {"SET.n", "cells", "of a set"},
    {"SET.mean_depth", "share", "mean over the set of layer / (n_decoder_layers - 1)"},
    {"SET.cells", NULL, "[layer, expert] of each"},
};

const int64_t n_contrast_definitions = sizeof contrast_definitions / sizeof *contrast_definitions;

static void document(const Definition *table, int64_t n, Text *to) {
    for (const Definition *d = table; d < table + n; d++)
        text_format(to, "%s%s%s%s\n    %s\n", d->path, d->unit ? " (" : "", d->unit ? d->unit : "",
                    d->unit ? ")" : "", d->meaning);
}

void definitions_document(Text *to) {
    text_put_string(
        to,
        "statistics.json: one object. NAME stands for the name of a group, [] for the entries of an array,\n"
        "SET for an object {n, mean_depth, cells}, low|high for two keys. A number that is not defined is\n"
        "null; why stands under the same key with _reason, or at bootstrap_reason and permutation_reason\n"
        "for the columns of long lists. Logarithms are natural.\n\n");
    document(definition_table, n_definitions, to);
    text_put_string(to,
                    "\ncontrast.json: one object, of a step of kind contrast. PART is contrast, control, or "
                    "difference\n(contrast - control); RANKING is rate, probability or gradient.\n\n");
    document(contrast_definitions, n_contrast_definitions, to);
}

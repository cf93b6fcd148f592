/* The sentences of the methods text. Where the published methods leave a point open, the sentence says so;
 * sources are named by their arXiv number. */
#include "methods.h"

enum {
    ACTIVATION = 1 << STEP_ACTIVATION,
    GRADIENT = 1 << STEP_GRADIENT,
    CONTRAST = 1 << STEP_CONTRAST,
    INTERVENTION = 1 << STEP_INTERVENTION,
    TUNE = 1 << STEP_TUNE,
    REPORT = 1 << STEP_REPORT
};

#define JOB(option, value, text)                                                                             \
    { SCOPE_JOB, 0, option, value, text }
#define MODEL(option, value, text)                                                                           \
    { SCOPE_MODEL, 0, option, value, text }
#define PROMPTS(option, value, text)                                                                         \
    { SCOPE_PROMPTS, 0, option, value, text }
#define STEP(kinds, option, value, text)                                                                     \
    { SCOPE_STEP, kinds, option, value, text }

/* The first row that fits counts: a row for one value stands before the one for all others. */
const MethodSentence method_sentences[] = {
    JOB("schema_version", NULL, "The job is written in version {} of its format"),
    JOB("seed", NULL,
        "All random numbers are Philox4x32-10 counters keyed by the seed {}, the purpose and the prompt, "
        "never "
        "by the order of the work"),
    JOB("device", "auto", "A GPU was used if there was one, else the CPU; the manifest says which"),
    JOB("device", NULL, "The device was asked for: {}"),
    JOB("compute", "auto",
        "Activations were stored in f32 on a CPU and in bf16 on a GPU, router, softmax and losses always in "
        "f32; the manifest says which"),
    JOB("compute", NULL,
        "Activations were stored in {}, router, softmax and losses in f32; a CPU and a GPU differ in "
        "rounding"),
    JOB("dense", "own", "All matrix products are the program's own, so that no result depends on a batch"),
    JOB("dense", NULL,
        "On a GPU, products of all tokens with one matrix were left to {}, so that results may depend on the "
        "batch"),
    JOB("batch_tokens", NULL, "One pass took at most {} tokens; no number depends on it"),
    JOB("batch_prompts", "0", "One pass took as many prompts as these tokens allow; no number depends on it"),
    JOB("batch_prompts", NULL, "One pass took at most {} prompts; no number depends on it"),
    JOB("memory_limit_mib", "0", "Passes took what memory was free; no number depends on it"),
    JOB("memory_limit_mib", NULL, "Passes took at most {} MiB of memory; no number depends on it"),

    MODEL("path", NULL,
          "The checkpoint {} was read as published; the manifest holds the hashes of its files"),
    MODEL("chat_template", "auto", "Prompts were rendered by the chat template of the model's family"),
    MODEL("chat_template", "none", "Prompts were plain text, without a chat template"),
    MODEL("chat_template", NULL, "Prompts were rendered by the chat template {}"),
    MODEL("parse_special_in_content", "true",
          "Control tokens written out in a prompt acted as such, as they do in the reference implementation"),
    MODEL("parse_special_in_content", "false", "Control tokens written out in a prompt were plain text"),
    MODEL("add_special", "true", "Plain text got the tokens that the tokenizer puts around a text"),
    MODEL("add_special", "false", "Plain text got no tokens around it"),
    MODEL("generation_prompt", "true", "A rendered prompt ended with the begin of the assistant's reply"),
    MODEL("generation_prompt", "false", "A rendered prompt ended with the user's turn"),
    MODEL("thinking", "true", "Models that can think before they answer were left to do so"),
    MODEL("thinking", "false", "Models that can think before they answer were kept from it"),
    MODEL("date", "\"\"", "No date was put into the system text"),
    MODEL("date", NULL, "The date in the system text was {}, where the template has one"),

    PROMPTS("path", NULL, "The prompts were read from {}; the manifest holds its hash"),
    PROMPTS("first", "0", "They begin with the first entry of the file"),
    PROMPTS("first", NULL, "The first {} entries of the file were passed over"),
    PROMPTS("limit", "0", "All entries from there on were taken"),
    PROMPTS("limit", NULL, "At most {} entries were taken"),
    PROMPTS("system", "\"\"", "No system text was added"),
    PROMPTS("system", NULL, "Prompts without a system text got: {}"),
    PROMPTS("max_tokens", "0", "A prompt with its target or reply could be as long as the model can take"),
    PROMPTS("max_tokens", NULL, "A prompt with its target or reply could have at most {} tokens"),
    PROMPTS("over_long", "refuse", "A longer one would have ended the run"),
    PROMPTS("over_long", "skip", "Longer ones were left out, and counted"),
    PROMPTS("over_long", "truncate_left", "Longer ones were cut at their begin, and counted"),
    PROMPTS("over_long", "truncate_right", "Longer ones were cut at their end, and counted"),
    PROMPTS("empty", "refuse", "A prompt without text would have ended the run"),
    PROMPTS("empty", "skip", "Prompts without text were left out, and counted"),
    PROMPTS("target_end", "true", "A target ended with the end of the assistant's turn"),
    PROMPTS("target_end", "false", "A target ended with its text, its turn left open"),
    PROMPTS("use", "any", "The prompts were declared for no one purpose"),
    PROMPTS(
        "use", NULL,
        "The prompts were declared for {}; no prompt of theirs is in a group for another purpose, by hash of "
        "its text"),

    STEP(ACTIVATION, "kind", NULL, "The step counts which experts the router picks on each prompt"),
    STEP(GRADIENT, "kind", NULL,
         "The step takes the loss of each prompt back through the whole network to the rows of every router, "
         "exactly"),
    STEP(CONTRAST, "kind", NULL,
         "The step compares the router's distributions over experts (softmax over all of a layer) between "
         "the two "
         "texts of each pair, by Jensen-Shannon divergence, overlap@k and weighted Jaccard, and ranks cells "
         "by how "
         "differently the texts use them (as in arXiv 2605.29708, whose formulas are open; these are ours)"),
    STEP(INTERVENTION, "kind", NULL,
         "The step edits experts inside the router and answers the same prompts under a baseline and every "
         "condition, with the same random numbers"),
    STEP(TUNE, "kind", NULL,
         "The step trains low-rank updates (LoRA) of the matrices of chosen experts and freezes all else, "
         "routers included, by the negative log-likelihood of the targets' tokens, the mean over all of them "
         "in an optimizer step"),
    STEP(REPORT, "kind", NULL, "The step draws the figures and writes this page"),
    STEP(0, "model", NULL, "The model was {}"),
    STEP(0, "groups", NULL, "The prompt groups were, in this order, {}"),
    STEP(INTERVENTION, "from", "[]", "No cells were ranked"),
    STEP(TUNE, "from", "[]", "No scores ranked the cells"),
    STEP(TUNE, "from", NULL,
         "Cells were ranked by the scores of: {}; none of the prompts there is an example here, by hash"),
    STEP(TUNE, "top", "[]", "No number of ranked cells was asked for"),
    STEP(TUNE, "top", NULL, "Trained were the first {} cells"),
    STEP(TUNE, "ranking", NULL, "Of a contrast the selection of its ranking by {} is trained"),
    STEP(TUNE, "control", "none", "The chosen cells themselves were trained"),
    STEP(TUNE, "control", "random",
         "In place of the chosen cells a random set of as many others was trained"),
    STEP(TUNE, "control", "layer_matched",
         "In place of the chosen cells a random set of others was trained, as many in each layer"),
    STEP(TUNE, "cells", "[]", "No cells were listed"),
    STEP(TUNE, "selection", "\"\"", "No selection was imported"),
    STEP(TUNE, "cells", NULL, "Trained were the cells LAYER:EXPERT {}"),
    STEP(TUNE, "selection", NULL, "Trained were the cells of {}"),
    STEP(REPORT, "from", "[]", "All finished steps are shown"),
    STEP(INTERVENTION, "from", NULL,
         "Cells were ranked by the scores of: {}; none of the prompts there is a test prompt here, by hash"),
    STEP(REPORT, "from", NULL, "It follows: {}"),

    STEP(ACTIVATION, "score", "rate",
         "The score of a cell is the share of the counted tokens that chose the expert (as arXiv 2605.24270; "
         "the normalisation is open there)"),
    STEP(ACTIVATION, "score", "layer_share",
         "The score of a cell is its share of all choices in its layer, the rate over the number of chosen "
         "experts"),
    STEP(ACTIVATION, "score", "total_share", "The score of a cell is its share of all choices of all layers"),
    STEP(ACTIVATION, "score", "probability",
         "The score of a cell is the mean router probability over the counted tokens"),
    STEP(ACTIVATION, "score", "combine_weight",
         "The score of a cell is the mean weight of its output over the counted tokens"),
    STEP(GRADIENT, "score", "l2",
         "The score of a cell is the L2 norm of dL/dW_gate[layer][expert,:], the gradient of its router row "
         "(the sensitivity of arXiv 2605.24270; the norm is open there)"),
    STEP(GRADIENT, "score", "l1",
         "The score of a cell is the L1 norm of dL/dW_gate[layer][expert,:], the gradient of its router row"),
    STEP(GRADIENT, "score", "mean_abs",
         "The score of a cell is the mean magnitude of the entries of dL/dW_gate[layer][expert,:]"),
    STEP(GRADIENT, "score", "logit_abs",
         "The score of a cell is |dL/dlogit| of its router logit, summed over the tokens"),
    STEP(CONTRAST, "contrast", "continuations",
         "The texts of a pair are one prompt with two teacher-forced continuations; the j-th token of one is "
         "compared with the j-th of the other up to the end of the shorter, behind the same prompt tokens"),
    STEP(
        CONTRAST, "contrast", "prefix",
        "The texts of a pair are a prompt behind a prefix and the plain prompt; their mean distributions are "
        "compared"),
    STEP(CONTRAST, "contrast", "matched",
         "The texts of a pair are a prompt of the first group and its partner of the second; their mean "
         "distributions are compared"),
    STEP(CONTRAST, "tokens", "all", "Counted were all tokens of the continuations, else of the prompts"),
    STEP(CONTRAST, "tokens", "content", "Tokens of the chat template were not counted"),
    STEP(CONTRAST, "tokens", "shared", "Counted were the tokens that both prompts of a pair end with"),
    STEP(CONTRAST, "controls", "0", "There were no control pairs"),
    STEP(CONTRAST, "controls", NULL,
         "Beside each pair with a topic stand up to {} controls with prompts of other topics, drawn without "
         "replacement; a pair's control is their mean"),
    STEP(CONTRAST, "prefix", NULL, "The prefix, put before the text of the last message, was \"{}\""),
    STEP(CONTRAST, "overlap_k", "0", "The k of overlap@k is the number of experts that the router chooses"),
    STEP(CONTRAST, "overlap_k", NULL, "The k of overlap@k is {}"),
    STEP(CONTRAST, "js_log", "natural", "Divergences are in nats (the base is open in the literature)"),
    STEP(CONTRAST, "js_log", "base2", "Divergences are in bits (the base is open in the literature)"),
    STEP(CONTRAST, "bootstraps", "0", "No intervals were computed"),
    STEP(CONTRAST, "bootstraps", NULL,
         "Intervals are percentiles of {} bootstrap resamples of the pairs; a cell's frequency is the share "
         "of them "
         "that select it"),
    STEP(CONTRAST, "rate_side", "both", "The ranking by rate takes the magnitude of the rates' difference"),
    STEP(CONTRAST, "rate_side", NULL, "The ranking by rate takes only cells that the {} texts pick more"),
    STEP(CONTRAST, "select", NULL, "Each ranking selects {} cells of all layers together"),
    STEP(CONTRAST, "select_share", "0", "No share of the parameters bounds the selections"),
    STEP(CONTRAST, "select_share", NULL,
         "Each ranking selects, in place of that number, as many cells as have at most the share {} of the "
         "parameters"),
    STEP(0, "tokens", "prompt", "Counted were all tokens of the rendered prompt"),
    STEP(0, "tokens", "last", "Counted were the last tokens of the rendered prompt"),
    STEP(0, "tokens", "target", "Counted were the tokens of the given target"),
    STEP(0, "tokens", "generated", "Counted were the tokens of the generated reply"),
    STEP(0, "tokens", "prompt+target", "Counted were the tokens of prompt and given target"),
    STEP(0, "tokens", "prompt+generated", "Counted were the tokens of prompt and generated reply"),
    STEP(0, "last_tokens", NULL, "Of these the last {} at the prompt's end were taken"),
    STEP(0, "average", "prompts", "In a group's score every prompt counts alike"),
    STEP(0, "average", "tokens", "In a group's score every counted token counts alike"),
    STEP(0, "loss", "prompt",
         "The loss L is the mean negative log-likelihood of the prompt's own tokens (the sequence loss of "
         "arXiv 2605.24270 and 2610.02910)"),
    STEP(0, "loss", "target", "The loss L is the mean negative log-likelihood of the given target alone"),
    STEP(0, "loss", "generated", "The loss L is the mean negative log-likelihood of the generated reply"),
    STEP(0, "dominant", "share", "The dominant score of a layer is the largest share of the layer's sum"),
    STEP(0, "dominant", "raw", "The dominant score of a layer is its largest score, undivided"),
    STEP(0, "layer_statistics", "scores", "Layer statistics are those of the group's scores"),
    STEP(0, "layer_statistics", "prompts", "Layer statistics are means over those of each prompt"),
    STEP(0, "class_rule", "ratio",
         "A cell prefers a group when its score there exceeds a threshold times its largest score elsewhere"),
    STEP(0, "class_rule", "difference",
         "A cell prefers a group when its score there is more than a threshold above its largest elsewhere"),
    STEP(0, "class_rule", "z",
         "A cell prefers a group when the difference from its largest score elsewhere, over its standard "
         "error, "
         "exceeds a threshold"),
    STEP(0, "thresholds", NULL, "The thresholds were {}; cells that prefer no group are shared"),
    STEP(0, "top_sets", NULL, "Sets of the largest k cells were compared for k = {}"),
    STEP(0, "bootstraps", "0", "No intervals and no stable selection were computed"),
    STEP(0, "bootstraps", NULL,
         "Intervals are percentiles of {} bootstrap resamples of the prompts, each group by itself"),
    STEP(0, "confidence", NULL, "An interval holds the share {} of its draws"),
    STEP(0, "stable_share", NULL,
         "A stable selection holds the cells that are in every resample among the first share {} of their "
         "layer's experts (SAFEx, arXiv 2506.17368, where the share is open)"),
    STEP(0, "permutations", "0", "No permutation tests and no rotation null were computed"),
    STEP(0, "permutations", NULL,
         "Groups were tested by {} permutations of prompts between them, with the error rate held over all "
         "cells by the largest statistic (Westfall-Young); concentration was set beside as many rotations of "
         "the experts of each prompt and layer"),
    STEP(0, "test_statistic", "t",
         "The statistic of a cell is the difference of the groups over the standard deviation of its scores"),
    STEP(0, "test_statistic", "difference", "The statistic of a cell is the difference of the groups"),
    STEP(0, "splits", "0", "No split-half reliability was computed"),
    STEP(0, "splits", NULL,
         "Reliability is that of {} random halves of the prompts, stepped up by Spearman-Brown"),
    STEP(0, "near_tie", NULL,
         "A choice is a near tie when the least chosen router logit is less than {} above the largest other"),
    STEP(0, "max_new_tokens", NULL, "A generated reply had at most {} tokens, the end token included"),
    STEP(0, "temperature", "0", "Replies were decoded greedily"),
    STEP(0, "temperature", NULL, "Replies were sampled at temperature {}"),
    STEP(0, "top_k", "0", "Sampling was not limited to a number of tokens"),
    STEP(0, "top_k", NULL, "Sampling was among the {} likeliest tokens"),
    STEP(0, "top_p", "1", "Sampling was not limited to a share of the probability"),
    STEP(0, "top_p", NULL, "Sampling was among the likeliest tokens that hold the share {}"),
    STEP(0, "trace", "none", "The routes of single tokens were not written"),
    STEP(0, "trace", "choices", "The routes of all tokens were written"),
    STEP(0, "trace", "full", "The routes of all tokens were written, with logits and probabilities"),
    STEP(0, "gate_rows", "false", "Of the router gradients only norms were kept"),
    STEP(0, "gate_rows", "true", "The full router gradients of each prompt were written"),
    STEP(0, "recompute", "auto",
         "Activations were recomputed when they did not fit; no number depends on it"),
    STEP(0, "recompute", NULL, "Activations were recomputed: {}; no number depends on it"),

    STEP(0, "top", "[]", "No set was chosen by its number of cells"),
    STEP(0, "top", NULL, "For each ranking the first n cells were taken, n = {}"),
    STEP(0, "traffic", "[]", "No set was chosen by its traffic"),
    STEP(
        0, "traffic", NULL,
        "For each ranking cells were added by rank until the first that would exceed a budget of {} % of all "
        "choices (as arXiv 2610.02910)"),
    STEP(0, "cells", "[]", "No cells were listed"),
    STEP(0, "cells", NULL, "One condition edits the listed cells LAYER:EXPERT {}"),
    STEP(0, "selection", "\"\"", "No selection was imported"),
    STEP(0, "selection", NULL, "One condition edits the cells imported from {}"),
    STEP(0, "rank_groups", "[]", "No groups rank cells"),
    STEP(0, "rank_groups", NULL, "The groups whose scores rank the cells were {}"),
    STEP(0, "rank_by", "difference",
         "Cells were ranked by the score of the first group minus that of the second, largest first, ties to "
         "the lower cell"),
    STEP(0, "rank_by", "ratio",
         "Cells were ranked by the score of the first group over that of the second, largest first, ties to "
         "the "
         "lower cell"),
    STEP(0, "rank_by", "score",
         "Cells were ranked by the score of the group alone, largest first, ties to the lower cell"),
    STEP(0, "class_ratio", "0", "Cells of all ratios of the two scores could be ranked"),
    STEP(0, "class_ratio", NULL, "Only cells whose first score is more than {} times the second were ranked"),
    STEP(
        0, "mode", "mask",
        "The router logit of a selected cell was set to minus infinity before softmax and top-k, so that the "
        "next expert took over (the form of all public code; open in arXiv 2605.24270)"),
    STEP(0, "mode", "bias", "A value was added to the router logit of a selected cell"),
    STEP(
        0, "mode", "promote",
        "The router logit of a selected cell was set above the largest of its layer by a value (as SteerMoE, "
        "arXiv 2509.09660)"),
    STEP(0, "mode", "demote",
         "The router logit of a selected cell was set below the least of its layer by a value (as SteerMoE, "
         "arXiv 2509.09660)"),
    STEP(0, "mode", "force", "In layers with selected cells tokens went to these and no others"),
    STEP(0, "mode", "zero", "The combine weight of a selected cell was set to 0, the others kept theirs"),
    STEP(0, "mode", "zero_renormalize",
         "The combine weight of a selected cell was set to 0 and the others made up for it"),
    STEP(0, "value", NULL, "That value was {}"),
    STEP(0, "applies_to", "both", "Tokens of the prompt and generated ones were edited"),
    STEP(0, "applies_to", "prompt", "Only tokens of the prompt were edited"),
    STEP(0, "applies_to", "generated",
         "Only generated tokens were edited; all conditions go on from one pass over the prompt"),
    STEP(0, "counts", "\"\"", "No step gave counts"),
    STEP(0, "counts", NULL, "Traffic and outputs of experts were those of the step {}"),
    STEP(0, "traffic_group", "\"\"", "No group's choices were counted as traffic"),
    STEP(0, "traffic_group", NULL, "Traffic is the share of the choices of the group {}"),
    STEP(0, "exclude_super", "true",
         "Super experts (arXiv 2507.23279: largest output beyond the 99.5th percentile and a tenth of the "
         "largest, in the first 75 % of the layers) were neither selected nor drawn"),
    STEP(0, "exclude_super", "false", "Super experts (arXiv 2507.23279) were treated like all others"),
    STEP(0, "random_sets", "0", "There were no random sets"),
    STEP(0, "random_sets", NULL,
         "Controls: {} random sets as large as each selected one, of a traffic budget within 5 % of it"),
    STEP(0, "layer_matched_sets", "0", "There were no layer-matched sets"),
    STEP(0, "layer_matched_sets", NULL, "Controls: {} random sets with as many cells in each layer"),
    STEP(0, "traffic_matched_sets", "0", "There were no traffic-matched sets"),
    STEP(0, "traffic_matched_sets", NULL,
         "Controls: {} random sets of as many cells with traffic within 5 % of the selected set's"),
    STEP(0, "adapter", "\"\"", "The model had no updates of an earlier step"),
    STEP(0, "adapter", NULL, "The model had the low-rank updates trained in the step {} throughout"),
    STEP(0, "adapter_path", "\"\"", "It had no adapter of a file"),
    STEP(0, "adapter_path", NULL, "The model had the low-rank updates of the adapter {} throughout"),
    STEP(0, "projections", NULL, "Of each cell these matrices were updated: {}"),
    STEP(0, "rank", NULL, "The updates B A have rank {}"),
    STEP(0, "alpha", NULL, "They are scaled by {} / rank"),
    STEP(0, "examples", NULL,
         "An optimizer step has {} examples; their gradients are summed in a fixed tree, so that no bit "
         "depends on how they share passes"),
    STEP(0, "steps", "0", "The number of steps is that of the epochs"),
    STEP(0, "steps", NULL, "There were {} optimizer steps"),
    STEP(0, "epochs", NULL, "Each example was taken {} times, every time in another order"),
    STEP(0, "learning_rate", NULL, "The largest learning rate was {}"),
    STEP(0, "warmup", "0", "There was no warm-up"),
    STEP(0, "warmup", NULL, "The rate rose in proportion over the first {} steps"),
    STEP(0, "schedule", "constant", "Then the rate stayed"),
    STEP(0, "schedule", "linear", "Then the rate fell to 0 in proportion"),
    STEP(0, "schedule", "cosine", "Then the rate fell to 0 as half a cosine"),
    STEP(0, "weight_decay", NULL, "AdamW (0.9, 0.999, 1e-8, bias-corrected) decayed the weights by {}"),
    STEP(0, "clip_norm", "0", "Gradients were not clipped"),
    STEP(0, "clip_norm", NULL, "Gradients longer than {} were scaled to that"),
    STEP(TUNE, "seed", "-1", "A and the order of examples come from the seed of the job; B begins at 0"),
    STEP(TUNE, "seed", NULL, "A and the order of examples come from the seed {}; B begins at 0"),
    STEP(0, "form", NULL, "The adapter was written in the form {}"),
    STEP(0, "evaluate", "[]", "Nothing was held out"),
    STEP(0, "evaluate", NULL, "Held out, and measured by the same loss, were the groups {}"),
    STEP(0, "evaluate_every", NULL,
         "They were measured before the first step, every {} steps, after the last"),
    STEP(0, "patience", "0", "The last state was taken"),
    STEP(0, "patience", NULL,
         "The state with the least held-out loss was taken; {} measures in a row without a better one ended "
         "the "
         "training"),
    STEP(0, "checkpoint_every", NULL, "A checkpoint was kept every {} steps; no number depends on it"),
};
const int64_t n_method_sentences = sizeof method_sentences / sizeof *method_sentences;

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
    {"evaluate_every", "evaluate", {NULL}, "[]"},
    {"patience", "evaluate", {NULL}, "[]"},
};
const int64_t n_method_needs = sizeof method_needs / sizeof *method_needs;

/* The table of options. Defaults that stand for an open question of the published methods are said so in
 * the help; a step prints the values that it used. */
#include "options.h"
#include "../engine/adapter_file.h"
#include "../engine/edits.h"
#include "../engine/rank_plan.h"
#include "judge_folder.h"
#include "option_choices.h"
#include <stddef.h>

const char *const step_kind_names[N_STEP_KINDS + 1] = {
    "activation", "gradient", "contrast", "intervention", "tune", "utility", "judge", "report", NULL};

enum {
    ACTIVATION = 1 << STEP_ACTIVATION,
    GRADIENT = 1 << STEP_GRADIENT,
    REPORT = 1 << STEP_REPORT,
    MEASURING = ACTIVATION | GRADIENT,
    CONTRAST = 1 << STEP_CONTRAST,
    INTERVENTION = 1 << STEP_INTERVENTION,
    JUDGE = 1 << STEP_JUDGE,
    COMPUTING = MEASURING | INTERVENTION,
    TUNE = 1 << STEP_TUNE,
    UTILITY = 1 << STEP_UTILITY,
    RANKED = INTERVENTION | TUNE,
    COMPARING = INTERVENTION | UTILITY
};

#define JOB(field) .scope = SCOPE_JOB, .name = #field, .offset = offsetof(JobOptions, field)
#define MODEL(field) .scope = SCOPE_MODEL, .name = #field, .offset = offsetof(ModelOptions, field)
#define PROMPTS(field) .scope = SCOPE_PROMPTS, .name = #field, .offset = offsetof(PromptOptions, field)
#define STEP(which, field)                                                                                   \
    .scope = SCOPE_STEP, .kinds = (which), .name = #field, .offset = offsetof(StepOptions, field)
#define INTEGER(a, b, value) .type = OPTION_INTEGER, .least = (a), .most = (b), .preset = (value)
#define NUMBER(a, b, value) .type = OPTION_NUMBER, .least = (a), .most = (b), .preset = (value)
#define CHOICE(names, value) .type = OPTION_CHOICE, .choices = (names), .preset = (value)
#define NUMBERS(a, b, value) .type = OPTION_NUMBERS, .least = (a), .most = (b), .preset = (value)
#define INTEGERS(a, b, value) .type = OPTION_INTEGERS, .least = (a), .most = (b), .preset = (value)
#define BOOL(value) .type = OPTION_BOOL, .preset = (value)
#define STRING(value) .type = OPTION_STRING, .preset = (value)

const Option option_table[] = {
    {JOB(schema_version), INTEGER(1, 1, NULL), .help = "version of the job format: 1"},
    {JOB(seed), INTEGER(0, 9007199254740991, "0"), .help = "of all random numbers (sampled replies)"},
    {JOB(device), CHOICE(devices, "\"auto\""), .help = "auto: the GPU when there is one, else the CPU"},
    {JOB(compute), CHOICE(computes, "\"auto\""),
     .help = "how activations are stored; auto: f32 on the CPU, bf16 on a GPU"},
    {JOB(dense), CHOICE(denses, "\"own\""),
     .help = "products of all tokens with one matrix: own kernels, or on a GPU cuBLAS (results may depend on "
             "the batch)"},
    {JOB(batch_tokens), INTEGER(1, 1e9, "4096"), .same_results = true,
     .help = "most tokens in one pass (a longer prompt goes alone)"},
    {JOB(batch_prompts), INTEGER(0, 1e6, "0"), .same_results = true,
     .help = "most prompts in one pass; 0: as many as fit batch_tokens"},
    {JOB(memory_limit_mib), INTEGER(0, 1e9, "0"), .same_results = true,
     .help = "memory a pass may take before it recomputes; 0: what the machine has free"},
    {JOB(residency), CHOICE(residency_names, "\"auto\""), .same_results = true,
     .help = "where weights of experts are: resident in the device's memory; streamed from pinned memory of "
             "the host ahead of use; peers: sent by the rank that holds them; auto: what fits and is "
             "predicted fastest"},
    {JOB(ranks), INTEGER(0, RANK_PLAN_MOST_RANKS, "0"), .same_results = true,
     .help = "ranks that --dry-run plans for; 0: one. A run has those that started it, and refuses another "
             "number"},
    {JOB(device_file), .type = OPTION_PATH, .preset = "\"\"", .same_results = true,
     .help = "--dry-run plans for this device, whatever the machine has: h100, h200, or a file like "
             "configs/devices/h100.json"},

    {MODEL(path), .type = OPTION_PATH, .help = "checkpoint folder, as published by its family"},
    {MODEL(chat_template), STRING("\"auto\""),
     .help = "auto: the family's; none: prompts are plain text; else a template's name"},
    {MODEL(parse_special_in_content), BOOL("true"),
     .help = "control tokens written out in a prompt's text act as such (as the reference does)"},
    {MODEL(add_special), BOOL("true"),
     .help = "plain text gets the tokens that the tokenizer puts around a text"},
    {MODEL(generation_prompt), BOOL("true"),
     .help = "the template ends with the begin of the assistant's reply"},
    {MODEL(thinking), BOOL("false"), .help = "qwen3: false puts an empty think block before the reply"},
    {MODEL(date), STRING("\"\""), .help = "gpt_oss: the date in its system text, YYYY-MM-DD"},

    {PROMPTS(path), .type = OPTION_PATH,
     .help = "JSON lines or CSV with prompt or messages, and optionally target and id"},
    {PROMPTS(format), CHOICE(formats, "\"auto\""), .help = "auto: by the file's ending"},
    {PROMPTS(first), INTEGER(0, 1e12, "0"), .help = "entries of the file to pass over"},
    {PROMPTS(limit), INTEGER(0, 1e12, "0"), .help = "most entries to take; 0: all"},
    {PROMPTS(system), STRING("\"\""), .help = "system text put before every prompt that has none"},
    {PROMPTS(max_tokens), INTEGER(0, 1e9, "0"),
     .help = "longest prompt with its target or reply; 0: what the model can take"},
    {PROMPTS(over_long), CHOICE(over_longs, "\"refuse\""),
     .help = "what becomes of a longer one; the target stays whole"},
    {PROMPTS(empty), CHOICE(empties, "\"refuse\""), .help = "what becomes of a prompt without text"},
    {PROMPTS(target_end), BOOL("true"),
     .help = "with a chat template the target ends with the end of the turn"},
    {PROMPTS(use), CHOICE(uses, "\"any\""),
     .help = "groups for ranking, tuning and testing must have no prompt in common"},

    {STEP(COMPUTING | CONTRAST | TUNE | UTILITY | JUDGE | REPORT, name), STRING(NULL),
     .help = "names its folder"},
    {STEP(COMPUTING | CONTRAST | TUNE | UTILITY | JUDGE | REPORT, kind), CHOICE(step_kind_names, NULL),
     .help = "what the step does"},
    {STEP(COMPUTING | CONTRAST | TUNE | UTILITY | JUDGE, model), STRING("\"\""),
     .help =
         "a model of the job; may be left out where there is one. judge: the guard model; left out: none"},
    {STEP(COMPUTING | CONTRAST | TUNE | UTILITY, groups), .type = OPTION_NAMES, .preset = "[]",
     .help = "prompt groups of the job, in this order; left out: all"},
    {STEP(RANKED | JUDGE | REPORT, from), .type = OPTION_NAMES, .preset = "[]",
     .help = "steps that it needs, checked to come before it. report: all finished ones are shown. "
             "intervention, tune: those whose scores rank the cells (tune: one, or a contrast step, whose "
             "selection it takes); their prompts must not be "
             "those of its groups. judge: the intervention step whose replies are judged"},
    {.scope = SCOPE_STEP,
     .kinds = ACTIVATION,
     .name = "score",
     .offset = offsetof(StepOptions, activation_score),
     CHOICE(activation_scores, "\"rate\""),
     .help =
         "rate: share of the counted tokens that chose the expert; layer_share: of the choices of its layer "
         "(rate / K); total_share: of all choices (sums to 1); probability: mean router probability; "
         "combine_weight: mean weight of its output (open in the literature)"},
    {.scope = SCOPE_STEP,
     .kinds = GRADIENT,
     .name = "score",
     .offset = offsetof(StepOptions, gradient_score),
     CHOICE(gradient_scores, "\"l2\""),
     .help = "norm of dL/dW_gate[layer][expert,:]: l2, l1, mean_abs (l1 / D); or logit_abs: |dL/dlogit| "
             "summed over the tokens (open in the literature)"},
    {STEP(ACTIVATION, tokens), CHOICE(counted, "\"prompt\""),
     .help = "which tokens are counted (open in the literature)"},
    {STEP(ACTIVATION | CONTRAST, last_tokens), INTEGER(1, 1e9, "1"),
     .help = "tokens last: how many at the prompt's end"},
    {STEP(ACTIVATION, average), CHOICE(averages, "\"prompts\""), .statistics = true,
     .help = "of the score: each prompt counts alike, or each token"},
    {STEP(GRADIENT, loss), CHOICE(losses, "\"prompt\""),
     .help =
         "mean negative log-likelihood of the prompt's own tokens, of its target, or of the generated reply"},
    {STEP(MEASURING, dominant), CHOICE(dominants, "\"share\""), .statistics = true,
     .help = "dominant score of a layer: largest share of the layer's sum, or largest score"},
    {STEP(MEASURING, layer_statistics), CHOICE(layer_statistics, "\"scores\""), .statistics = true,
     .help = "layer statistics of the group's scores, or the mean of each prompt's"},
    {STEP(MEASURING, class_rule), CHOICE(class_rules, "\"ratio\""), .statistics = true,
     .help =
         "statistics: what makes a cell prefer a group: the ratio of its score there to its largest score "
         "elsewhere, their difference, or z, the difference over its standard error (open in the "
         "literature)"},
    {STEP(MEASURING, thresholds), NUMBERS(0, 1e6, "[1.2, 1.5, 2]"), .statistics = true,
     .help = "statistics: what that must exceed; of a ratio at least 1"},
    {STEP(MEASURING, top_sets), INTEGERS(1, 1e9, "[5, 10, 20, 50, 100]"), .statistics = true,
     .help = "statistics: sizes of the sets of largest cells that are compared"},
    {STEP(MEASURING | CONTRAST | UTILITY, bootstraps), INTEGER(0, 1e6, "1000"), .statistics = true,
     .help = "statistics: resamples of the prompts for intervals and stable selection; 0: none"},
    {STEP(MEASURING | CONTRAST | UTILITY, confidence), NUMBER(0.01, 0.9999, "0.95"), .statistics = true,
     .help = "statistics: share of the resamples that an interval holds"},
    {STEP(MEASURING, stable_share), NUMBER(0, 1, "0.25"), .statistics = true,
     .help =
         "statistics: share of a layer's experts that a stable selection takes in every resample (SAFEx's "
         "alpha, open in the literature)"},
    {STEP(MEASURING, permutations), INTEGER(0, 1e6, "1000"), .statistics = true,
     .help = "statistics: permutations of prompts between groups, and rotations of experts; 0: none"},
    {STEP(MEASURING, test_statistic), CHOICE(test_statistics, "\"t\""), .statistics = true,
     .help = "statistics: what permutations compare: t, the difference over the standard deviation of the "
             "cell's scores; or the difference itself"},
    {STEP(MEASURING, splits), INTEGER(0, 1e6, "100"), .statistics = true,
     .help = "statistics: random halves of the prompts for reliability; 0: none"},
    {STEP(ACTIVATION, near_tie), NUMBER(0, 1e6, "0.001"), .statistics = true,
     .help =
         "statistics: a token's choice is a near tie when the least chosen router logit is less than this "
         "above the largest other"},
    {STEP(COMPUTING, max_new_tokens), INTEGER(1, 1e6, "64"),
     .help = "longest generated reply, where one is needed"},
    {STEP(COMPUTING, temperature), NUMBER(0, 100, "0"), .help = "of the generated reply; 0: greedy"},
    {STEP(COMPUTING, top_k), INTEGER(0, 1e6, "0"), .help = "of the generated reply; 0: all"},
    {STEP(COMPUTING, top_p), NUMBER(0, 1, "1"), .help = "of the generated reply; 1: all"},
    {STEP(ACTIVATION, trace), CHOICE(traces, "\"none\""),
     .help =
         "writes what every token was routed to: choices, or full with router logits and probabilities. As "
         "sensitive as the prompts: the texts can be had back from it"},
    {STEP(GRADIENT, gate_rows), BOOL("false"), .help = "writes the full gradient of the gate, per prompt"},
    {STEP(GRADIENT | CONTRAST | TUNE, recompute), CHOICE(recomputes, "\"auto\""), .same_results = true,
     .help = "auto: activations are kept for the backward pass when they fit"},

    {STEP(CONTRAST, contrast), CHOICE(contrasts, "\"continuations\""),
     .help =
         "continuations: one prompt, two teacher-forced replies (target against other_target of one group, "
         "or the targets of two groups); prefix: the prompt behind a prefix against the plain prompt; "
         "matched: prompts of one group against their partners in another; adapter: the same text (prompt, "
         "and "
         "target where there is one) without the step's adapter and with it"},
    {STEP(CONTRAST, pair_by), CHOICE(pair_bys, "\"auto\""),
     .help =
         "column that pairs the prompts of two groups: id, pair, or topic (the n-th of a topic with the "
         "n-th); auto: id for continuations, pair for matched where the first prompt has one, else topic"},
    {STEP(CONTRAST, prefix), STRING("\"\""),
     .help = "prefix: put before the text of the last message of every prompt, as it stands"},
    {.scope = SCOPE_STEP,
     .kinds = CONTRAST,
     .name = "tokens",
     .offset = offsetof(StepOptions, contrast_tokens),
     CHOICE(contrast_tokens, "\"all\""),
     .help = "of the continuations (adapter: of prompt and target), else of the prompts: all; content: "
             "without the "
             "chat template's; last: the "
             "prompts' last_tokens; shared: those that both prompts of a prefix pair end with (open in the "
             "literature)"},
    {STEP(CONTRAST, overlap_k), INTEGER(0, 1e6, "0"),
     .help = "overlap@k: of the k largest router probabilities; 0: as many as the router chooses"},
    {STEP(CONTRAST, js_log), CHOICE(js_logs, "\"natural\""),
     .help =
         "logarithm of the Jensen-Shannon divergence: natural (at most ln 2) or base2 (at most 1; open in "
         "the literature)"},
    {STEP(CONTRAST, controls), INTEGER(0, 10000, "10"),
     .help = "prefix, matched: prompts of other topics drawn for each pair; 0: no control"},
    {.scope = SCOPE_STEP,
     .kinds = CONTRAST,
     .name = "gradient",
     .offset = offsetof(StepOptions, contrast_gradient),
     BOOL("true"),
     .help = "continuations: cells are ranked by the gradient of NLL(second) - NLL(first) too, which needs a "
             "backward pass"},
    {STEP(CONTRAST, rate_side), CHOICE(rate_sides, "\"both\""),
     .help =
         "rank by rate: both: |rate(first) - rate(second)|; first, second: only cells that side picks more"},
    {STEP(CONTRAST, select), INTEGER(1, 1e9, "8"),
     .help = "cells selected by each ranking, of all layers together"},
    {STEP(CONTRAST, select_share), NUMBER(0, 1, "0"),
     .help =
         "instead of select: as many cells as have at most that share of the model's parameters; 0: select"},
    {STEP(CONTRAST, select_least), NUMBER(0, 1, "0"),
     .help = "of these only cells that at least so large a share of the bootstraps has in its selection"},

    {STEP(RANKED, top), .type = OPTION_NUMBERS, .preset = "[]", .least = 1, .most = 1e6,
     .help =
         "a condition for each step of from and each number: so many cells, highest rank first. tune: one "
         "number of cells"},
    {STEP(INTERVENTION, traffic), .type = OPTION_NUMBERS, .preset = "[]", .least = 0.001, .most = 100,
     .help = "the same by percent of all choices of traffic_group: cells by rank until the first that would "
             "exceed it"},
    {STEP(RANKED, cells), .type = OPTION_NAMES, .preset = "[]",
     .help = "a condition of cells listed as LAYER:EXPERT; tune: the cells that are trained"},
    {STEP(RANKED, selection), .type = OPTION_PATH, .preset = "\"\"",
     .help =
         "a condition of the cells of a CSV file with the columns layer and expert; tune: those are trained"},
    {STEP(RANKED, rank_groups), .type = OPTION_NAMES, .preset = "[]",
     .help = "the two groups whose scores are compared, or the one of rank_by score"},
    {STEP(RANKED, rank_by), CHOICE(rank_bys, "\"difference\""),
     .help = "score of the first group minus the second's, their ratio (x / 0 comes first), or the first's "
             "alone"},
    {STEP(RANKED, class_ratio), NUMBER(0, 1e6, "0"),
     .help = "only cells whose first score is more than so many times the second; 0: all"},
    {STEP(INTERVENTION, mode), CHOICE(edit_mode_names, "\"mask\""),
     .help =
         "what is done to a selected cell. mask: router logit -infinity, the next expert takes over; bias: "
         "logit + value; promote, demote: above the largest or below the least logit by value; force: these "
         "and no others; zero: combine weight 0; zero_renormalize: the others make up for it (open in the "
         "literature)"},
    {STEP(INTERVENTION, value), NUMBER(-1e6, 1e6, "0"), .help = "of mode bias, promote or demote"},
    {STEP(INTERVENTION, applies_to), CHOICE(applies, "\"both\""),
     .help = "tokens that are edited: of the prompt, generated, or both"},
    {STEP(INTERVENTION, counts), STRING("\"\""),
     .help = "activation step that traffic and super experts are taken from; left out: the first of from"},
    {STEP(INTERVENTION, traffic_group), STRING("\"\""),
     .help = "its group whose choices are the traffic; left out: the last of rank_groups"},
    {STEP(INTERVENTION, exclude_super), BOOL("true"),
     .help =
         "super experts (arXiv 2507.23279) are neither selected nor drawn: largest output beyond the 99.5th "
         "percentile and a tenth of the largest, in the first 75 % of the layers"},
    {STEP(INTERVENTION, random_sets), INTEGER(0, 1000, "10"),
     .help = "controls: random sets as large as the selected one; with traffic within 5 % of the budget"},
    {STEP(INTERVENTION, layer_matched_sets), INTEGER(0, 1000, "10"),
     .help = "controls: random sets with as many cells in each layer"},
    {STEP(INTERVENTION, traffic_matched_sets), INTEGER(0, 1000, "10"),
     .help = "controls: random sets of as many cells, with traffic within 5 % of the selected set's"},
    {STEP(INTERVENTION, side_effects), CHOICE(effects, "\"prompt+target\""),
     .help =
         "what is measured beside replies, by one more pass a condition: the likelihood of the prompt's own "
         "tokens, and of its target where it has one, under the edits (side_effects.csv, "
         "side_effects_targets.csv)"},
    {STEP(INTERVENTION, reply_perplexity), BOOL("true"),
     .help = "how likely the unedited model finds every reply: one more pass over prompt and reply, mean "
             "negative log-likelihood of the reply's tokens (its end token included) in responses/ as nll"},

    {STEP(COMPUTING | CONTRAST | UTILITY, adapter), STRING("\"\""),
     .help = "a tune step before this one, whose low-rank updates the model has throughout the step; left "
             "out: none"},
    {STEP(COMPUTING | CONTRAST | UTILITY, adapter_path), .type = OPTION_PATH, .preset = "\"\"",
     .help = "the same from a folder with adapter_config.json and adapter_model.safetensors (PEFT)"},
    {STEP(COMPARING, adapters), .type = OPTION_NAMES, .preset = "[]",
     .help = "tune steps before this one, a condition each: the model with its updates, compared with the "
             "model as it is. Those with a control are controls of the first without"},
    {STEP(TUNE, ranking), CHOICE(rankings, "\"gradient\""),
     .help = "from a contrast step: the ranking whose selection is trained"},
    {STEP(TUNE, control), CHOICE(controls, "\"none\""),
     .help =
         "another set is trained instead. random, layer_matched: as large as the selected one, or with as "
         "many cells in each layer, without any of its cells; random_any: as large, of all cells; all: "
         "every cell of the model"},
    {STEP(TUNE, draw), INTEGER(0, 999, "0"),
     .help = "control random, layer_matched or random_any: which of its draws"},
    {STEP(TUNE, projections), .type = OPTION_NAMES, .preset = "[\"gate\", \"up\", \"down\"]",
     .help = "matrices of the chosen cells that get a low-rank update; all else is frozen"},
    {STEP(TUNE, objective), CHOICE(objectives, "\"nll\""),
     .help = "nll: negative log-likelihood of the targets; preference: DPO (arXiv 2305.18290), target "
             "preferred to other_target, against the model without the updates"},
    {STEP(TUNE, beta), NUMBER(1e-6, 1e6, "0.1"),
     .help = "objective preference: how much a nat of likelihood against that model counts"},
    {STEP(TUNE, router_kl), NUMBER(0, 1e6, "0"),
     .help = "weight in the loss of the routers' KL divergence from the model without the updates, mean over "
             "router_tokens and layers (SafeMoE, arXiv 2509.22745); one more forward pass a step; 0: none"},
    {STEP(TUNE, router_temperature), NUMBER(1e-3, 1e3, "0.1"),
     .help = "router_kl: both routers' logits are divided by it"},
    {STEP(TUNE, router_anchor), NUMBER(0, 1e6, "0"),
     .help = "weight in the loss of the squared distance between a layer's router probabilities and its "
             "trained cell (several: equal shares), mean over router_tokens and layers with cells (SEUF, "
             "arXiv 2411.18797); 0: none"},
    {STEP(TUNE, router_tokens), CHOICE(router_tokens, "\"last\""),
     .help = "tokens whose routers these two hold: the last of the prompt, or all of prompt and target"},
    {STEP(TUNE, gate_rows), BOOL("false"),
     .help =
         "the trained cells' rows of their routers are trained too (RASA, arXiv 2602.04448): what is added "
         "to them stands in router_rows.safetensors beside the adapter"},
    {STEP(TUNE, gate_rate), NUMBER(0, 1e6, "0.000001"),
     .help = "gate_rows: their largest learning rate; the schedule is the same, weights do not decay"},
    {STEP(TUNE, dropout), NUMBER(0, 0.99, "0"),
     .help = "share of what an update reads that is left out in a training pass, by numbers of the seed, the "
             "example and the token; 0: nothing"},
    {STEP(TUNE, rank), INTEGER(1, 128, "8"), .help = "of each update B A"},
    {STEP(TUNE, alpha), NUMBER(1e-6, 1e6, "16"), .help = "an update is B A times alpha / rank"},
    {STEP(TUNE, examples), INTEGER(1, 1e6, "8"),
     .help = "prompts with target of one optimizer step; batch_tokens and batch_prompts split them into "
             "passes whose gradients are accumulated, with the same bits however they are split"},
    {STEP(TUNE, steps), INTEGER(0, 1e6, "0"), .help = "optimizer steps; 0: as many as the epochs take"},
    {STEP(TUNE, epochs), INTEGER(1, 1e6, "1"),
     .help = "steps 0: how often each example is taken, each time in another order"},
    {STEP(TUNE, learning_rate), NUMBER(0, 1e6, "0.0001"),
     .help = "the largest of the schedule; 0 with gate_rows: the rows alone are trained"},
    {STEP(TUNE, warmup), INTEGER(0, 1e6, "0"), .help = "first steps in which the rate rises to that"},
    {STEP(TUNE, schedule), CHOICE(schedules, "\"cosine\""),
     .help = "what it does then: stays, or falls to 0 at the last step, linear or as half a cosine"},
    {STEP(TUNE, weight_decay), NUMBER(0, 1e6, "0"), .help = "of AdamW, on A and B"},
    {STEP(TUNE, clip_norm), NUMBER(0, 1e9, "1"),
     .help = "the gradient of a step is scaled to this length where it is longer; 0: never"},
    {STEP(TUNE, seed), INTEGER(-1, 9007199254740991, "-1"),
     .help = "of the first A and the order of examples; -1: the job's"},
    {STEP(TUNE, form), CHOICE(adapter_form_names, "\"dense\""),
     .help = "of the adapter that is written: dense (zeros for all other experts, as PEFT on "
             "transformers 5 reads it), sparse (the updates alone) or fused"},
    {STEP(TUNE, evaluate), .type = OPTION_NAMES, .preset = "[]",
     .help = "groups that are held out: their loss by the objective, without what is held of routers, is "
             "measured before the first step, every evaluate_every steps and after the last"},
    {STEP(TUNE, evaluate_every), INTEGER(1, 1e6, "10"), .help = "steps between these measures"},
    {STEP(TUNE, patience), INTEGER(0, 1e6, "0"),
     .help = "the training ends after so many measures in a row that are no better than the best, and the "
             "best state is written, in any case; 0: neither"},
    {STEP(TUNE, checkpoint_every), INTEGER(1, 1e6, "10"), .same_results = true,
     .help = "steps between checkpoints; a run that was killed goes on from the last"},

    {STEP(UTILITY, measure), CHOICE(utility_measures, "\"choices\""),
     .help =
         "choices: how often the right one of a question's choices is the likeliest reply; perplexity: how "
         "likely the groups' texts are"},
    {STEP(UTILITY, normalize), CHOICE(normalizes, "\"none\""),
     .help = "choices: what is compared: none: the log-likelihood of the whole choice; tokens, bytes: of one "
             "token or byte of it (open in the literature)"},
    {STEP(UTILITY, choice_form), CHOICE(choice_forms, "\"text\""),
     .help = "choices: text: the question alone is asked, the choices are replies; letter: the choices are "
             "listed as A, B, ... behind the question, the letters are replies"},
    {.scope = SCOPE_STEP,
     .kinds = UTILITY,
     .name = "text",
     .offset = offsetof(StepOptions, measured_text),
     CHOICE(measured_texts, "\"target\""),
     .help = "perplexity: of the prompts' own tokens behind the first, or of the targets"},

    {STEP(JUDGE, rules), .type = OPTION_PATH, .preset = "\"\"",
     .help = "phrases that decline, and limits of degraded text; left out: configs/judge/refusals_en.json"},
    {STEP(JUDGE, labels), .type = OPTION_PATH, .preset = "\"\"",
     .help = "labels of people: CSV with condition, group, id and label (or human, as in labels.csv)"},
    {STEP(JUDGE, guard), .type = OPTION_PATH, .preset = "\"\"",
     .help = "with a model: what it is asked and the answers whose probabilities are compared; left out: "
             "configs/judge/guard_three_way.json"},
    {STEP(JUDGE, decides), .type = OPTION_NAMES, .preset = "[\"people\", \"guard\", \"rules\"]",
     .help = "whose label counts: the first of these that has one for the reply (open in the literature)"},
    {STEP(JUDGE, perplexity_limit), NUMBER(0, 1e9, "0"),
     .help =
         "the rules call a reply degraded whose perplexity under the unedited model is more than so many "
         "times the reference; 0: no such test. Off, since a model that declines finds the answers unlikely "
         "too that an intervention brings about (open in the literature)"},
    {STEP(JUDGE, perplexity_reference), CHOICE(perplexity_reference_names, "\"largest\""),
     .help =
         "the largest or the median perplexity of the baseline's replies, all groups together, or absolute: "
         "1"},
    {STEP(JUDGE, resamples), INTEGER(1, 1 << 20, "2000"), .help = "of the prompts, for intervals"},
};

const int64_t n_options = sizeof option_table / sizeof *option_table;

/* step.json, the mark of a finished step with what a reader must know of it, and README.txt. */
#include "results.h"
#include "definitions.h"
#include "scores.h"
#include "trace.h"
#include <string.h>

/* ---- warnings: each a JSON string ---- */
typedef struct {
    Text json;
    int64_t n;
} Warnings;

static void warn(Warnings *to, const char *text, size_t length) {
    if (to->n++) text_put_string(&to->json, ",\n    ");
    text_put_json(&to->json, text, length);
}

static void warn_lines(Warnings *to, const char *lines) {
    while (lines && *lines) {
        size_t n = strcspn(lines, "\n");
        warn(to, lines, n);
        lines += n + (lines[n] == '\n');
    }
}

static void warn_of_prompts(const PromptGroup *group, Warnings *to) {
    char text[300];
    if (group->n_truncated) {
        snprintf(text, sizeof text, "group %s: %lld of %lld prompts were truncated (%s)",
                 group->options->name, (long long)group->n_truncated, (long long)group->n,
                 option_choice("over_long", SCOPE_PROMPTS, group->options->over_long));
        warn(to, text, strlen(text));
    }
    if (group->n_left_out) {
        snprintf(text, sizeof text, "group %s: %lld of %lld prompts were left out as empty or too long",
                 group->options->name, (long long)group->n_left_out,
                 (long long)(group->n + group->n_left_out));
        warn(to, text, strlen(text));
    }
}

/* Groups that differ in size or in length from the first: what is said of them rests on unequal evidence. */
static void warn_of_sizes(const StepResults *r, int64_t g, Warnings *to) {
    const char *first = r->groups[0].options->name, *name = r->groups[g].options->name;
    int64_t n = r->groups[0].n, m = r->groups[g].n, counted[2] = {0};
    char text[300];
    for (int64_t p = 0; p < n; p++) counted[0] += r->measures[0].n_counted[p];
    for (int64_t p = 0; p < m; p++) counted[1] += r->measures[g].n_counted[p];
    double x = (double)counted[0] / (double)n, y = (double)counted[1] / (double)m;
    if (n != m) {
        snprintf(text, sizeof text, "groups %s and %s have %lld and %lld prompts", first, name, (long long)n,
                 (long long)m);
        warn(to, text, strlen(text));
    }
    if (x > 1.5 * y || y > 1.5 * x) {
        snprintf(text, sizeof text, "groups %s and %s have %.4g and %.4g tokens a prompt", first, name, x, y);
        warn(to, text, strlen(text));
    }
}

/* Cells without any score: data that never reached an expert says nothing about it. */
static void warn_of_cells(const StepResults *r, int64_t g, const GroupScores *scores, Warnings *to) {
    int64_t n_cells = r->measures[g].n_layers * r->measures[g].n_experts, n_zero = 0;
    for (int64_t c = 0; c < n_cells; c++) n_zero += scores->scores[c] <= 0;
    if (!n_zero) return;
    char text[300];
    const char *name = r->groups[g].options->name;
    if (r->step->kind == STEP_GRADIENT)
        snprintf(text, sizeof text, "group %s: %lld of %lld router rows have gradient 0 in every prompt",
                 name, (long long)n_zero, (long long)n_cells);
    else
        snprintf(text, sizeof text,
                 "group %s: %lld of %lld experts have score 0: no counted token reached them", name,
                 (long long)n_zero, (long long)n_cells);
    warn(to, text, strlen(text));
}

/* ---- step.json ---- */
static void put_string(Text *to, const char *text) { text_put_json(to, text, strlen(text)); }

static void put_score(const StepResults *r, Text *to) {
    const RouterRule *rule = &r->config->router;
    bool chosen_only = rule->order == ROUTER_TOPK_SOFTMAX || rule->renormalize;
    Text words = {0};
    text_put_string(&words, scores_definition(r->step));
    if (r->step->kind == STEP_GRADIENT)
        text_put_string(
            &words, chosen_only ? "; this router renormalises over the chosen experts, so that a token gives "
                                  "no gradient to the rows of the others: other families may"
                                : "; this router does not renormalise, so that a token gives a gradient to "
                                  "every row, chosen or not: other families may not");
    to->failed = to->failed || words.failed;
    put_string(to, words.bytes ? words.bytes : "");
    text_free(&words);
}

static void put_groups(const StepResults *r, Text *to) {
    int64_t n_truncated = 0, n_left_out = 0, n_prompts = 0, n_tokens = 0;
    text_put_string(to, ",\n  \"groups\": [");
    for (int64_t g = 0; g < r->n_groups; g++) {
        if (g) text_put_string(to, ", ");
        put_string(to, r->groups[g].options->name);
        n_truncated += r->groups[g].n_truncated;
        n_left_out += r->groups[g].n_left_out;
        n_prompts += r->groups[g].n;
        for (int64_t p = 0; p < r->groups[g].n; p++) n_tokens += r->measures[g].n_tokens[p];
    }
    text_format(
        to, "],\n  \"n_prompts\": %lld,\n  \"n_tokens\": %lld,\n  \"truncated\": %lld,\n  \"refused\": %lld",
        (long long)n_prompts, (long long)n_tokens, (long long)n_truncated, (long long)n_left_out);
}

void results_put_shape(const ModelConfig *config, Text *to) {
    text_format(to,
                ",\n  \"family\": \"%s\",\n  \"n_layers\": %lld,\n  \"n_experts\": %lld,\n"
                "  \"n_experts_per_token\": %lld,\n  \"moe_layers\": [",
                config->family, (long long)config->n_layers, (long long)config->n_experts,
                (long long)config->n_experts_per_token);
    for (int64_t l = 0; l < config->n_moe_layers; l++)
        text_format(to, "%s%lld", l ? ", " : "", (long long)model_config_decoder_layer(config, l));
    text_put_string(to, "]");
}

void results_put_warnings(const char *lines, Text *to) {
    for (const char *separator = "\n    "; lines && *lines; separator = ",\n    ") {
        const size_t n = strcspn(lines, "\n");
        text_put_string(to, separator);
        text_put_json(to, lines, n);
        lines += n + (lines[n] == '\n');
    }
}

bool results_write_facts(const StepResults *r, const GroupScores *scores, Error *error) {
    Warnings warnings = {0};
    warn_lines(&warnings, r->warnings);
    for (int64_t g = 0; g < r->n_groups; g++) warn_of_prompts(&r->groups[g], &warnings);
    for (int64_t g = 1; g < r->n_groups; g++) warn_of_sizes(r, g, &warnings);
    for (int64_t g = 0; g < r->n_groups; g++) warn_of_cells(r, g, &scores[g], &warnings);
    if (r->step->kind == STEP_ACTIVATION && r->step->trace != TRACE_NONE)
        warn(&warnings, trace_warning, strlen(trace_warning));
    Text text = {0};
    text_put_string(&text, "{\n  \"name\": ");
    put_string(&text, r->step->name);
    text_put_string(&text, ",\n  \"kind\": ");
    put_string(&text, step_kind_names[r->step->kind]);
    text_put_string(&text, ",\n  \"model\": ");
    put_string(&text, r->step->model);
    text_put_string(&text, ",\n  \"chat_template\": ");
    put_string(&text, r->encoder->chat_template ? r->encoder->chat_template : "none");
    text_put_string(&text, ",\n  \"score\": ");
    put_score(r, &text);
    put_groups(r, &text);
    results_put_shape(r->config, &text);
    text_put_string(&text, ",\n  \"switches\": {\n");
    options_write(SCOPE_STEP, r->step->kind, r->step, 4, true, &text);
    text_put_string(&text, "\n  },\n  \"warnings\": [\n    ");
    text_put(&text, warnings.json.bytes ? warnings.json.bytes : "", warnings.json.length);
    text_put_string(&text, "\n  ]\n}\n");
    text.failed = text.failed || warnings.json.failed;
    text_free(&warnings.json);
    return results_write_text(r->folder, "step.json", &text, error);
}

/* ---- README.txt ---- */
static const char readme[] =
    "A run of gatetape\n"
    "=================\n"
    "\n"
    "job.json       the job with every option filled in; a job file itself\n"
    "manifest.json  what went in (hashes), program, device, times\n"
    "events.jsonl   progress, one JSON object a line\n"
    "report.html    everything on one page\n"
    "methods.txt    what was done, in sentences: every option of the job with its value\n"
    "statistics.json  every number of that page, with all its digits: statistics and tables of all steps\n"
    "figures/       the figures of that page\n"
    "STEP/          one folder a step: step.json (definitions, switches, warnings) and the files below\n"
    "\n"
    "A cell is (layer, expert), both counted from 0, the layer over all decoder layers. CSV: UTF-8, one\n"
    "header line, empty fields are not available or not defined. Numbers are f32 with 9 digits (nll: f64\n"
    "with 17). Losses and entropies are natural logarithms (nats). Means over prompts give each prompt\n"
    "the same weight.\n"
    "\n"
    "scores.csv       one row a group and cell\n"
    "  score                the step's score, as step.json defines it\n"
    "  rank                 1: the largest of the group; ties to the lower cell\n"
    "  selected             times that a counted token chose the expert (activation)\n"
    "  tokens               counted tokens of the group (activation)\n"
    "  mass, weight         sums over counted tokens of router probability and of combine weight\n"
    "                       (activation)\n"
    "  largest_output       largest magnitude in the expert's outputs, before the combine weight\n"
    "                       (activation)\n"
    "  largest_output_norm  largest L2 norm of such an output (activation)\n"
    "  l2, l1, mean_abs     norms of d loss / d router row, mean over prompts; mean_abs is l1 / hidden\n"
    "                       size (gradient)\n"
    "  logit_abs            sum over tokens of |d loss / d router logit|, mean over prompts (gradient)\n"
    "curve.csv        cells of a group by score, largest first; cumulative: share of the total so far, 0\n"
    "                 to 1\n"
    "coverage.csv     k80, k90, k95: least number of cells that hold 80, 90, 95 % of the total, of\n"
    "                 n_cells\n"
    "layers.csv       dominant_score, entropy (nats) of the layer's scores as shares, effective_experts\n"
    "                 exp(entropy), effective_experts_simpson 1 / sum of squared shares\n"
    "prompts.csv      index: entry of the prompt file from 0; tokens and target_tokens; truncated 0 or 1;\n"
    "                 nll: mean negative log-likelihood of the tokens of the loss (gradient)\n"
    "per_prompt.safetensors   GROUP.score [P,L,E] f32 and GROUP.selected [P,L,E] i64 (activation); P as\n"
    "                 in prompts.csv, L over layers with experts\n"
    "statistics.json  all statistics of the step's groups, with intervals and tests; see below\n"
    "responses.jsonl  generated replies, where the step needs them\n";

/* Of interventions and judges, and what is only written where asked for. */
static const char readme_more[] =
    "contrast.json    of a contrast: curves, controls and rankings, with intervals; see below. All numbers "
    "of\n"
    "                 a contrast are f64 with 17 digits\n"
    "overall.csv, layers.csv   js, overlap and jaccard with intervals: contrast, control, their difference\n"
    "pairs.csv        tokens, those counted, aligned positions, nll of both continuations, the pair's own\n"
    "                 numbers (mean over layers) and its control's; controls.csv: each draw, the partner by\n"
    "                 number of its pair\n"
    "ranking.csv      cells by each ranking; frequency: share of the bootstraps that select the cell\n"
    "selection_*.csv  the cells that a ranking selects; an intervention reads it as its selection\n"
    "conditions.csv   of an intervention: kind (baseline, selected, random, layer_matched,\n"
    "                 traffic_matched), where its cells come from (rule adapter: the tune step whose "
    "updates\n"
    "                 the model has), their number and traffic (share of all\n"
    "                 choices of the traffic group), and why it is not defined (defined 0)\n"
    "cells.csv        the cells of each condition; excluded.csv: super experts that no set holds\n"
    "responses/       replies of each condition, a JSON object a line, prompts in the order of\n"
    "                 prompts.csv; nll: mean negative log-likelihood of the reply's tokens under the\n"
    "                 unedited model\n"
    "labels.csv       each reply's label (restricted, compliant, degraded) that counts, why by the rules,\n"
    "                 the label of people, its perplexity exp(nll), the labels of rules and guard, and\n"
    "                 the guard's probabilities of its answers among themselves (p_) and of none\n"
    "                 (p_other); judge.json: by what files and limits\n"
    "outcomes.csv     each condition beside the baseline, a row a group: transitions, exact McNemar,\n"
    "                 bootstrap interval of the change of the restricted share, controls\n"
    "side_effects.csv of each condition beside the baseline, a row a group: mean negative log-likelihood\n"
    "                 of the prompts' own tokens before and after, its change with a bootstrap interval\n"
    "                 over prompts, and exp(change); side_effects_targets.csv: the same of the targets\n"
    "training.csv     of a tuning, a row an optimizer step: loss (mean over all target tokens of the step),\n"
    "                 length of its gradient, rate, examples, tokens, loss of held-out groups;\n"
    "                 updates.csv: Frobenius norm of each trained update scale B A and of the frozen weight\n"
    "                 below it; adapter-FORM/: the adapter as PEFT stores it\n"
    "utility.csv      of a utility step, a row a condition (baseline, ADAPTER.adapter) and group: accuracy "
    "with\n"
    "                 Wilson's interval and its value by chance, or nll (nats, mean over texts) with a\n"
    "                 bootstrap interval, and perplexity; change against the baseline prompt by prompt, "
    "lost\n"
    "                 and gained questions with McNemar's exact p\n"
    "questions.csv    each question: number of choices, the right one and the chosen one from 0, margin: "
    "what\n"
    "                 is compared of the right one less the largest other; choices.csv: log_likelihood of "
    "each\n"
    "                 choice in nats, its tokens and bytes; texts.csv: nll of each text\n"
    "agreement.csv    how often one labeller said this and another that, and Cohen's kappa of the pair\n"
    "traces/          routing of every token, where asked for; as sensitive as the prompts\n"
    "gate_rows/       full gradients of the router rows, where asked for\n";

bool results_write_readme(const char *folder, Error *error) {
    Text text = {0};
    text_put_string(&text, readme);
    text_put_string(&text, readme_more);
    text_put_string(&text, "\n");
    definitions_document(&text);
    return results_write_text(folder, "README.txt", &text, error);
}

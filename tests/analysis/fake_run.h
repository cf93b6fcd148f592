/* Tests of figures and report: a small run folder, made by formula, with group names of the caller's choice:
 * an activation step with the statistics of its scores, a gradient step that is not finished, and an
 * intervention whose replies are labelled, a contrast, a training. */
#ifndef GATETAPE_TEST_FAKE_RUN_H
#define GATETAPE_TEST_FAKE_RUN_H
#include "tests/engine/scratch.h"
#include "fake_tuning.h"
#include "analysis/judge.h"
#include "analysis/statistics.h"
#include "engine/text.h"

enum { FAKE_LAYERS = 3, FAKE_EXPERTS = 4, FAKE_PROMPTS = 3, FAKE_REPLIES = 10 }; /* layer 1 is dense */

static inline void fake_file(const char *folder, const char *name, Text *text) {
    Error error = {0};
    char *path = io_join(folder, name);
    if (text->failed || !io_write_all(path, text->bytes, text->length, &error)) fail_msg("%s", error.text);
    mem_free(path);
    text_free(text);
}

static inline double fake_score(int group, int layer, int expert) {
    return (double)(1 + (layer * FAKE_EXPERTS + expert * 5 + group) % 7) / 8;
}

/* How many cells of the group come before this one. */
static inline int fake_rank(int group, int layer, int expert) {
    double own = fake_score(group, layer, expert);
    int rank = 1;
    for (int l = 0; l < FAKE_LAYERS; l += 2)
        for (int e = 0; e < FAKE_EXPERTS; e++) {
            double other = fake_score(group, l, e);
            rank += other > own || (other == own && (l < layer || (l == layer && e < expert)));
        }
    return rank;
}

/* A field, behind a comma where one is due. */
static inline void fake_field(Text *to, const char *text) {
    if (to->length && to->bytes[to->length - 1] != '\n') text_put_string(to, ",");
    text_put_csv(to, text, strlen(text));
}

static inline void fake_tables(const char *folder, const char *const *groups, int n_groups) {
    Text scores = {0}, prompts = {0};
    text_put_string(&scores, "group,layer,expert,score,rank,selected\n");
    text_put_string(&prompts, "group,index,id,tokens,target_tokens,truncated,nll\n");
    for (int g = 0; g < n_groups; g++) {
        for (int l = 0; l < FAKE_LAYERS; l += 2)
            for (int e = 0; e < FAKE_EXPERTS; e++) {
                fake_field(&scores, groups[g]);
                text_format(&scores, ",%d,%d,%.9g,%d,%d\n", l, e, fake_score(g, l, e), fake_rank(g, l, e),
                            10 * l + e);
            }
        for (int i = 0; i < FAKE_PROMPTS; i++) {
            fake_field(&prompts, groups[g]);
            text_format(&prompts, ",%d,p%d,%d,0,%d,%s\n", i, i, 10 + i, i == 0, i ? "1.5" : "");
        }
    }
    fake_file(folder, "scores.csv", &scores);
    fake_file(folder, "prompts.csv", &prompts);
}

/* statistics.json of prompts whose scores are those of the group, and one sixteenth less and more. */
static inline void fake_statistics(const char *folder, const char *const *groups, int n_groups) {
    enum { CELLS = 8 };
    static double scores[4][CELLS], values[4][FAKE_PROMPTS * CELLS];
    StatGroup list[4] = {{0}};
    StepOptions options = {.kind = STEP_ACTIVATION};
    TextPool pool = {0};
    Cells cells = {0};
    Error error = {0};
    const int64_t experts_in[] = {FAKE_EXPERTS, FAKE_EXPERTS};
    if (!options_preset(SCOPE_STEP, &options, &pool, &error) || !cells_make(experts_in, 2, &cells, &error))
        fail_msg("%s", error.text);
    cells.layer[0] = 0, cells.layer[1] = 2, cells.n_decoder_layers = FAKE_LAYERS;
    options.bootstraps = 40, options.permutations = 40, options.splits = 5;
    for (int g = 0; g < n_groups; g++) {
        for (int c = 0; c < CELLS; c++) {
            scores[g][c] = fake_score(g, c / FAKE_EXPERTS * 2, c % FAKE_EXPERTS);
            for (int p = 0; p < FAKE_PROMPTS; p++) values[g][p * CELLS + c] = scores[g][c] + (p - 1) / 16.0;
        }
        list[g] = (StatGroup){.name = groups[g],
                              .n_tokens = 33,
                              .n_prompts = FAKE_PROMPTS,
                              .scores = scores[g],
                              .values = values[g]};
    }
    const StatisticsInput input = {.signal = "activation",
                                   .score = "share of tokens",
                                   .cells = &cells,
                                   .groups = list,
                                   .n_groups = n_groups,
                                   .options = &options,
                                   .seed = 1,
                                   .no_prompts = "no prompts",
                                   .no_margins = "margins were not measured"};
    if (!statistics_write(&input, folder, &error)) fail_msg("%s", error.text);
    cells_free(&cells);
    options_free(SCOPE_STEP, &options);
    pool_free(&pool);
}

/* ---- an intervention ---- */
/* The label of a prompt under a condition: prompts 3 and 7 change under the first selected one. */
static inline Label fake_label(int condition, int prompt) {
    if (condition == 1 && (prompt == 3 || prompt == 7)) return prompt == 3 ? LABEL_COMPLIANT : LABEL_DEGRADED;
    return prompt == 5 ? LABEL_COMPLIANT : LABEL_RESTRICTED;
}

/* Of condition c: 0 baseline, 1 selected, 2 random. id and reply: what each begins with. */
static inline void fake_replies(const char *folder, const char *const *groups, const char *const *conditions,
                                const char *id, const char *reply) {
    Text labels = {0};
    text_put_string(&labels, "condition,group,index,id,label,why,human,perplexity\n");
    for (int c = 0; c < 3; c++) {
        Text lines = {0};
        char name[300], unique[200];
        for (int g = 0; g < 2; g++)
            for (int p = 0; p < FAKE_REPLIES; p++) {
                snprintf(unique, sizeof unique, "%.150s%d", id, p);
                fake_field(&labels, conditions[c]);
                fake_field(&labels, groups[g]);
                text_format(&labels, ",%d", p);
                fake_field(&labels, unique);
                fake_field(&labels, label_names[fake_label(c, p)]);
                fake_field(&labels, p ? "" : reply);
                text_format(&labels, ",,%.17g\n", 1.5 + c / 7.0);
                text_put_string(&lines, "{\"group\": ");
                text_put_json(&lines, groups[g], strlen(groups[g]));
                text_format(&lines, ", \"index\": %d, \"id\": ", p);
                text_put_json(&lines, unique, strlen(unique));
                text_put_string(&lines, ", \"response\": ");
                text_put_json(&lines, reply, strlen(reply));
                text_put_string(&lines, ", \"tokens\": [1, 2], \"stopped\": true}\n");
            }
        snprintf(name, sizeof name, "responses/%.200s.jsonl", conditions[c]);
        fake_file(folder, name, &lines);
    }
    fake_file(folder, "labels.csv", &labels);
}

static inline void fake_outcomes(const char *folder, const char *const *groups,
                                 const char *const *conditions) {
    Text outcomes = {0}, side = {0}, agreement = {0}, list = {0};
    static const char *const kinds[] = {"baseline", "selected", "random"};
    text_put_string(&outcomes, "condition,kind,control_of,group,n");
    for (int a = 0; a < N_LABELS; a++)
        for (int b = 0; b < N_LABELS; b++)
            text_format(&outcomes, ",%s_to_%s", label_names[a], label_names[b]);
    text_put_string(&outcomes,
                    ",lost,gained,restricted_before,restricted_after,change,low,high,mcnemar_p,random_n,"
                    "random_mean,random_least,random_most,random_p,layer_n,layer_mean,layer_least,"
                    "layer_most,layer_p,traffic_n,traffic_mean,traffic_least,traffic_most,traffic_p\n");
    text_put_string(&side, "condition,kind,group,prompts,tokens,nll_before,nll_after,change,low,high,"
                           "perplexity_ratio\n");
    text_put_string(&list,
                    "condition,kind,source,rule,amount,draw,control_of,n_cells,traffic,defined,reason\n");
    for (int g = 0; g < 2; g++)
        for (int c = 1; c < 3; c++) {
            fake_field(&outcomes, conditions[c]), fake_field(&outcomes, kinds[c]), fake_field(&outcomes, "");
            fake_field(&outcomes, groups[g]);
            text_format(&outcomes,
                        ",10,%d,%d,%d,0,1,0,0,0,0,%d,0,0.9,%.17g,%.17g,%.17g,0.03125,0.5,%s,0,,,,,0,,,,\n",
                        c == 1 ? 7 : 9, c == 1, c == 1, c == 1 ? 2 : 0, c == 1 ? 0.7 : 0.9, c == 1 ? -0.2 : 0,
                        c == 1 ? -0.4375 : 0, c == 1 ? "1,0,0,0,0.5" : "0,,,,");
            fake_field(&side, conditions[c]), fake_field(&side, kinds[c]), fake_field(&side, groups[g]);
            text_put_string(&side, ",10,321,1.23456,1.34567,0.11111,0.0625,0.1875,1.1175\n");
        }
    for (int c = 0; c < 3; c++) {
        fake_field(&list, conditions[c]), fake_field(&list, kinds[c]);
        text_format(&list, ",activation,top,2,,,%d,%s,1,\n", c ? 2 : 0, c ? "0.0234375" : "");
    }
    text_put_string(&agreement, "human,rules,replies\nrestricted,restricted,41\nrestricted,compliant,2\n");
    fake_file(folder, "outcomes.csv", &outcomes);
    fake_file(folder, "side_effects.csv", &side);
    fake_file(folder, "agreement.csv", &agreement);
    fake_file(folder, "conditions.csv", &list);
}

static inline void fake_intervention(const char *folder, const char *const *groups,
                                     const char *const *conditions, const char *id, const char *reply) {
    Error error = {0};
    Text facts = {0}, judge = {0};
    char *responses = io_join(folder, "responses");
    if (!io_make_folders(responses, &error)) fail_msg("%s", error.text);
    mem_free(responses);
    text_put_string(&facts, "{\"name\": \"silence\", \"kind\": \"intervention\", \"model\": \"<m&del>\", "
                            "\"switches\": {\"top\": [2]}, \"warnings\": []}\n");
    text_put_string(&judge, "{\"rules\": \"x.json\", \"seed\": 1, \"kappa\": 0.6543, \"precision\": 0.95, "
                            "\"recall\": null}\n");
    fake_replies(folder, groups, conditions, id, reply);
    fake_outcomes(folder, groups, conditions);
    fake_file(folder, "judge.json", &judge);
    fake_file(folder, "step.json", &facts);
}

static inline void fake_step(const char *folder, const char *kind, const char *const *groups, int n_groups) {
    Error error = {0};
    if (!io_make_folders(folder, &error)) fail_msg("%s", error.text);
    Text facts = {0};
    text_format(&facts,
                "{\"name\": \"%s\", \"kind\": \"%s\", \"model\": \"<m&del>\", \"score\": \"share of "
                "tokens\", \"groups\": [",
                kind, kind);
    for (int g = 0; g < n_groups; g++) {
        if (g) text_put_string(&facts, ", ");
        text_put_json(&facts, groups[g], strlen(groups[g]));
    }
    text_format(
        &facts,
        "], \"n_layers\": %d, \"n_experts\": %d, \"n_experts_per_token\": 2, \"moe_layers\": [0, 2],\n"
        "\"switches\": {\"name\": \"x\", \"loss\": \"prompt\", \"gate_rows\": false, \"top_p\": 0.5},\n"
        "\"truncated\": 1, \"refused\": 0, \"warnings\": [\"1 of 3 prompts <was> truncated\"]}\n",
        FAKE_LAYERS, FAKE_EXPERTS);
    fake_file(folder, "step.json", &facts);
    fake_tables(folder, groups, n_groups);
    fake_statistics(folder, groups, n_groups);
}

/* A step that judges the replies of the intervention again, in a folder without replies of its own. */
static inline void fake_judge(const char *run, const char *const *groups, const char *const *conditions) {
    Error error = {0};
    char *folder = io_join(run, "guarded"), *labels = io_join(run, "silence/labels.csv");
    size_t n;
    char *bytes = io_read_all(labels, 1 << 20, &n, &error);
    if (!bytes || !io_make_folders(folder, &error)) fail_msg("%s", error.text);
    Text text = {0}, facts = {0}, agreement = {0};
    text_put(&text, bytes, n);
    text_put_string(&facts,
                    "{\"kind\": \"judge\", \"model\": \"\", \"from\": \"silence\", \"switches\": {\"from\": "
                    "[\"silence\"]}}\n");
    text_put_string(&agreement, "labeller,other,label,other_label,replies,kappa\n"
                                "guard,rules,restricted,restricted,53,0.71234\n"
                                "guard,rules,restricted,degraded,4,0.71234\n");
    fake_outcomes(folder, groups, conditions);
    fake_file(folder, "labels.csv", &text);
    fake_file(folder, "agreement.csv", &agreement);
    fake_file(folder, "step.json", &facts);
    mem_free(bytes);
    mem_free(labels);
    mem_free(folder);
}

static const char *const fake_conditions[] = {"baseline", "top2", "random.0"};

static inline void fake_run(const char *folder, const char *const *groups, int n_groups) {
    Error error = {0};
    if (!io_make_folders(folder, &error)) fail_msg("%s", error.text);
    Text job = {0}, manifest = {0};
    text_put_string(&job, "{\"schema_version\": 1, \"note\": \"</pre><script>\", \"steps\": [\n"
                          "{\"name\": \"activation\", \"kind\": \"activation\"},\n"
                          "{\"name\": \"later\", \"kind\": \"gradient\"}, {\"name\": \"silence\", \"kind\": "
                          "\"intervention\"}, {\"name\": \"guarded\", \"kind\": \"judge\"}, "
                          "{\"name\": \"asked\", \"kind\": \"contrast\"}, {\"name\": \"tuned\", \"kind\": "
                          "\"tune\"}, {\"name\": \"page\", \"kind\": \"report\"}]}\n");
    text_put_string(
        &manifest,
        "{\"version\": \"0\", \"device\": \"cpu\", \"host\": \"SECRETHOST\", \"inputs\": [{\"name\": "
        "\"prompts.<b>\", \"bytes\": 12, \"sha256\": \"ab\", \"sha256_of\": \"file\"}]}\n");
    fake_file(folder, "job.json", &job);
    fake_file(folder, "manifest.json", &manifest);
    char *step = io_join(folder, "activation");
    fake_step(step, "activation", groups, n_groups);
    mem_free(step);
    step = io_join(folder, "silence");
    fake_intervention(step, groups, fake_conditions, "id<i>", "I <b>cannot</b>, \"no\"\n\xe2\x80\xae=1+1");
    mem_free(step);
    fake_judge(folder, groups, fake_conditions);
    fake_contrast(folder, "asked", "matched", "");
    fake_tune(folder, "tuned", "none");
}

static inline bool have_gnuplot(void) { return system("gnuplot --version > /dev/null 2>&1") == 0; }

#endif

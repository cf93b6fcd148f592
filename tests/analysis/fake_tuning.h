/* Tests of figures and report: folders of a contrast and of a training, as fake_run.h makes those of
 * other steps. */
#ifndef GATETAPE_TEST_FAKE_TUNING_H
#define GATETAPE_TEST_FAKE_TUNING_H
#include "tests/engine/scratch.h"
#include "engine/text.h"

enum { FAKE_RANKED = 8, FAKE_STEPS = 4 }; /* layers 0 and 2, four experts each */

static inline void fake_write(const char *folder, const char *name, Text *text) {
    Error error = {0};
    char *path = io_join(folder, name);
    if (text->failed || !io_write_all(path, text->bytes, text->length, &error)) fail_msg("%s", error.text);
    mem_free(path);
    text_free(text);
}

static inline char *fake_folder(const char *run, const char *name) {
    Error error = {0};
    char *folder = io_join(run, name);
    if (!folder || !io_make_folders(folder, &error)) fail_msg("%s", error.text);
    return folder;
}

/* Beginning and end of step.json; `kind` and what else it says in between. */
static inline void fake_facts(const char *folder, const char *kind, const char *more) {
    Text facts = {0};
    text_format(&facts,
                "{\"kind\": \"%s\", \"model\": \"<m&del>\", \"n_layers\": 3, \"n_experts\": 4, "
                "\"n_experts_per_token\": 2, \"moe_layers\": [0, 2], %s, \"warnings\": [\"<mind>\"]}\n",
                kind, more);
    fake_write(folder, "step.json", &facts);
}

/* ---- contrast ---- */
static inline void fake_part(Text *to, const char *name, double by) {
    text_format(to,
                "\"%s\": {\"js\": %.17g, \"js_low\": %.17g, \"js_high\": %.17g, \"overlap\": %.17g, "
                "\"overlap_low\": 0.5, \"overlap_high\": 1.75, \"jaccard\": %.17g, \"jaccard_low\": 0.25, "
                "\"jaccard_high\": 0.875}",
                name, 0.123456 + by, 0.0625 + by, 0.1875 + by, 1.25 - by, 0.65432 - by);
}

static inline void fake_parts(Text *to, double by) {
    fake_part(to, "contrast", by);
    text_put_string(to, ", ");
    fake_part(to, "control", by + 0.03125);
    text_put_string(to, ", ");
    fake_part(to, "difference", by - 0.03125);
}

/* Cell i has rank i + 1 by rate and 8 - i by probability; the first two of each are selected. */
static inline void fake_rankings(const char *folder) {
    static const char *const names[] = {"rate", "probability"};
    Text text = {0};
    text_put_string(&text,
                    "ranking,rank,layer,expert,score,value,value_low,value_high,frequency,stable,selected\n");
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < FAKE_RANKED; i++) {
            const int cell = k ? FAKE_RANKED - 1 - i : i;
            const double value = (FAKE_RANKED - i) / 7.0;
            text_format(&text, "%s,%d,%d,%d,%.17g,%.17g,%.17g,%.17g,%.17g,%d,%d\n", names[k], i + 1,
                        cell / 4 * 2, cell % 4, value, !k && i % 2 ? -value : value, value - 0.5, value + 0.5,
                        1.0 / (i + 1), i == 0, i < 2);
        }
    fake_write(folder, "ranking.csv", &text);
}

/* kind: of contrast; adapter: of its switches. */
static inline void fake_contrast(const char *run, const char *name, const char *kind, const char *adapter) {
    char *folder = fake_folder(run, name);
    Text text = {0};
    text_format(&text,
                "{\"contrast\": \"%s\", \"switches\": {\"groups\": [\"plain\"], \"adapter\": \"%s\"}, ", kind,
                adapter);
    text_put_string(&text, "\"n_pairs\": 37, \"overlap_k\": 2, \"js_unit\": \"nats\", "
                           "\"bootstrap\": {\"n\": 1234, \"confidence\": 0.9},\n\"overall\": {");
    fake_parts(&text, 0);
    text_put_string(&text, "},\n\"layers\": [{\"layer\": 0, ");
    fake_parts(&text, 0.25);
    text_put_string(&text, "}, {\"layer\": 2, ");
    fake_parts(&text, 0.375);
    text_put_string(
        &text,
        "}],\n\"rankings\": {\"rate\": {\"definition\": \"<rate>\", \"n_wanted\": 2, \"n_selected\": 2, "
        "\"parameter_share\": 0.0123456, \"stable\": {\"n\": 1, \"mean_depth\": 0}},\n\"probability\": "
        "{\"definition\": \"mean |p - q|\", \"n_wanted\": 2, \"n_selected\": 2, \"parameter_share\": "
        "0.0123456, \"stable\": {\"n\": 0, \"mean_depth\": null, \"mean_depth_reason\": \"the set is "
        "empty\"}},\n\"gradient\": null, \"gradient_reason\": \"no targets\"},\n\"between_rankings\": "
        "[{\"first\": \"rate\", \"second\": \"probability\", \"shared\": 0, \"jaccard\": 0}], "
        "\"warnings\": []}\n");
    fake_write(folder, "contrast.json", &text);
    fake_rankings(folder);
    fake_facts(
        folder, "contrast",
        "\"score\": \"x\", \"alignment\": \"<aligned>\", \"n_pairs\": 37, \"switches\": {\"select\": 2}");
    mem_free(folder);
}

/* ---- training ---- */
/* Two cells, the first with two matrices, so that its norms are those of both together. */
static inline void fake_tune(const char *run, const char *name, const char *control) {
    static const double held_out[] = {3.5, -1, 2.5, -1, 2.75};
    char *folder = fake_folder(run, name), more[1200];
    Text rows = {0}, updates = {0};
    text_put_string(&rows,
                    "step,loss,gradient_norm,learning_rate,examples,target_tokens,tokens,held_out_loss\n");
    for (int i = 0; i <= FAKE_STEPS; i++) {
        if (i)
            text_format(&rows, "%d,%.17g,%.17g,%.17g,8,%d,400,", i, 4.0 / (i + 2), 0.5 / i, 0.001 / i,
                        200 + i);
        else
            text_put_string(&rows, "0,,,,,,,");
        if (held_out[i] > 0) text_format(&rows, "%.17g", held_out[i]);
        text_put_string(&rows, "\n");
    }
    text_put_string(&updates, "layer,expert,projection,rank,parameters,update_norm,weight_norm\n"
                              "2,1,gate,4,896,0.3,6\n2,1,up,4,896,0.4,8\n0,3,down,4,896,0.0123456,7.4321\n");
    fake_write(folder, "training.csv", &rows);
    fake_write(folder, "updates.csv", &updates);
    snprintf(
        more, sizeof more,
        "\"objective\": \"<nll>\", \"n_cells\": 2, \"n_updates\": 3, \"n_trained\": 2688, \"n_parameters\": "
        "1811232, \"share_of_parameters\": 0.00148407, \"share_of_cells_parameters\": 0.0407126, "
        "\"n_examples\": 32, \"n_steps\": 4, \"n_planned\": 6, \"held_out_before\": 3.5, "
        "\"held_out_least\": 2.5, \"step_taken\": 2, \"first_loss\": 1.33333, \"last_loss\": 0.66667, "
        "\"ended\": \"patience <ran> out\", \"switches\": {\"projections\": [\"gate\", \"up\", \"down\"], "
        "\"rank\": 4, \"alpha\": 8, \"examples\": 8, \"control\": \"%s\", \"draw\": 5}",
        control);
    fake_facts(folder, "tune", more);
    mem_free(folder);
}

/* ---- before and after ---- */
/* A table and the facts of a step that wrote no more than that. */
static inline void fake_step_of(const char *run, const char *name, const char *kind, const char *table,
                                const char *rows, const char *switches) {
    char *folder = fake_folder(run, name);
    Text text = {0}, facts = {0};
    text_put_string(&text, rows);
    fake_write(folder, table, &text);
    text_format(&facts, "{\"kind\": \"%s\", \"model\": \"\", \"switches\": {%s}, \"warnings\": []}\n", kind,
                switches);
    fake_write(folder, "step.json", &facts);
    mem_free(folder);
}

#define FAKE_OUTCOMES                                                                                        \
    "condition,kind,control_of,group,n,restricted_to_restricted,restricted_to_compliant,"                    \
    "restricted_to_degraded,compliant_to_restricted,compliant_to_compliant,compliant_to_degraded,"           \
    "degraded_to_restricted,degraded_to_compliant,degraded_to_degraded,lost,gained,restricted_before,"       \
    "restricted_after,change,low,high,mcnemar_p,random_n,random_mean,random_least,random_most,random_p,"     \
    "random_p_high\n"

/* A run with two trainings, the second a draw, that replies, routing and utility are compared with. The judge
 * labels the replies again: four of forty otherwise. */
static inline void fake_adapted(const char *run) {
    Text job = {0};
    text_put_string(&job, "{\"schema_version\": 1, \"steps\": [{\"name\": \"tuned\", \"kind\": \"tune\"}, "
                          "{\"name\": \"drawn\", \"kind\": \"tune\"}, {\"name\": \"after\", \"kind\": "
                          "\"intervention\"}, {\"name\": \"judged\", \"kind\": \"judge\"}, {\"name\": "
                          "\"drift\", \"kind\": \"contrast\"}, {\"name\": \"useful\", \"kind\": "
                          "\"utility\"}]}\n");
    fake_write(run, "job.json", &job);
    fake_tune(run, "tuned", "none");
    fake_tune(run, "drawn", "random");
    fake_step_of(run, "after", "intervention", "outcomes.csv",
                 FAKE_OUTCOMES
                 "tuned.adapter,selected,,plain,40,2,0,0,30,8,0,0,0,0,0,30,0.05,0.8,0.75,0.5625,"
                 "0.875,1e-09,0,,,,,\n",
                 "");
    fake_step_of(
        run, "judged", "judge", "outcomes.csv",
        FAKE_OUTCOMES
        "tuned.adapter,selected,,plain,40,3,1,2,24,7,1,1,0,1,3,25,0.15,0.7,0.55,0.34375,"
        "0.71875,2.7e-05,1,0.01562,-0.015,0.0325,1,0.5\n"
        "drawn.adapter,random,tuned.adapter,plain,40,6,0,0,0,33,0,0,0,1,0,0,0.15,0.15,0,0,0,1,0,,,,,\n"
        "other.adapter,random,tuned.adapter,plain,40,6,0,0,0,33,0,0,0,1,0,0,0.15,0.15,0,0,0,1,0,,,,,\n",
        "\"from\": [\"after\"]");
    fake_contrast(run, "drift", "adapter", "tuned");
    fake_step_of(
        run, "useful", "utility", "utility.csv",
        "condition,kind,group,measure,n,tokens,value,low,high,chance,perplexity,change,change_low,"
        "change_high,lost,gained,mcnemar_p\n"
        "baseline,baseline,asked,accuracy,190,1234,0.84321,0.78125,0.890625,0.328125,,,,,,,\n"
        "tuned.adapter,selected,asked,accuracy,190,1234,0.81234,0.75,0.859375,0.328125,,-0.03087,"
        "-0.0625,0.015625,9,3,0.14600\n"
        "baseline,baseline,text,nll,100,3927,0.54321,0.53125,0.5625,,1.72153,,,,,,\n"
        "tuned.adapter,selected,text,nll,100,3927,0.56789,0.546875,0.59375,,1.76454,0.02468,0.015625,"
        "0.03125,,,\n",
        "");
}

#endif

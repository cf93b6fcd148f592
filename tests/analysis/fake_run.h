/* Tests of figures and report: a small run folder, made by formula, with group names of the caller's choice.
 * */
#ifndef GATETAPE_TEST_FAKE_RUN_H
#define GATETAPE_TEST_FAKE_RUN_H
#include "tests/engine/scratch.h"
#include "engine/text.h"

enum { FAKE_LAYERS = 3, FAKE_EXPERTS = 4 }; /* layer 1 is dense */

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

static inline void fake_cells(const char *folder, const char *const *groups, int n_groups) {
    Text scores = {0}, curve = {0};
    text_put_string(&scores, "group,layer,expert,score,rank,selected\n");
    text_put_string(&curve, "group,rank,layer,expert,score,cumulative\n");
    for (int g = 0; g < n_groups; g++)
        for (int l = 0; l < FAKE_LAYERS; l += 2)
            for (int e = 0; e < FAKE_EXPERTS; e++) {
                int rank = fake_rank(g, l, e);
                text_put_csv(&scores, groups[g], strlen(groups[g]));
                text_format(&scores, ",%d,%d,%.9g,%d,%d\n", l, e, fake_score(g, l, e), rank, 10 * l + e);
                text_put_csv(&curve, groups[g], strlen(groups[g]));
                text_format(&curve, ",%d,%d,%d,%.9g,%.9g\n", rank, l, e, fake_score(g, l, e), rank / 8.0);
            }
    fake_file(folder, "scores.csv", &scores);
    fake_file(folder, "curve.csv", &curve);
}

static inline void fake_groups(const char *folder, const char *const *groups, int n_groups) {
    Text coverage = {0}, layers = {0}, prompts = {0};
    text_put_string(&coverage, "group,k80,k90,k95,n_cells\n");
    text_put_string(&layers,
                    "group,layer,dominant_score,entropy,effective_experts,effective_experts_simpson\n");
    text_put_string(&prompts, "group,index,id,tokens,target_tokens,truncated,nll\n");
    for (int g = 0; g < n_groups; g++) {
        size_t n = strlen(groups[g]);
        text_put_csv(&coverage, groups[g], n);
        text_format(&coverage, ",%d,7,8,8\n", 5 + g);
        for (int l = 0; l < FAKE_LAYERS; l += 2) {
            text_put_csv(&layers, groups[g], n);
            text_format(&layers, ",%d,0.4%d,1.25,3.49,3.1\n", l, l);
        }
        for (int i = 0; i < 3; i++) {
            text_put_csv(&prompts, groups[g], n);
            text_format(&prompts, ",%d,p%d,%d,0,%d,%s\n", i, i, 10 + i, i == 0, i ? "1.5" : "");
        }
    }
    fake_file(folder, "coverage.csv", &coverage);
    fake_file(folder, "layers.csv", &layers);
    fake_file(folder, "prompts.csv", &prompts);
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
    fake_cells(folder, groups, n_groups);
    fake_groups(folder, groups, n_groups);
}

/* A run of a finished activation step, a gradient step that is not finished, and a report step. */
static inline void fake_run(const char *folder, const char *const *groups, int n_groups) {
    Error error = {0};
    if (!io_make_folders(folder, &error)) fail_msg("%s", error.text);
    Text job = {0}, manifest = {0};
    text_put_string(
        &job,
        "{\"schema_version\": 1, \"note\": \"</pre><script>\", \"steps\": [\n"
        "{\"name\": \"activation\", \"kind\": \"activation\"},\n"
        "{\"name\": \"later\", \"kind\": \"gradient\"}, {\"name\": \"page\", \"kind\": \"report\"}]}\n");
    text_put_string(
        &manifest,
        "{\"version\": \"0\", \"device\": \"cpu\", \"host\": \"SECRETHOST\", \"inputs\": [{\"name\": "
        "\"prompts.<b>\", \"bytes\": 12, \"sha256\": \"ab\", \"sha256_of\": \"file\"}]}\n");
    fake_file(folder, "job.json", &job);
    fake_file(folder, "manifest.json", &manifest);
    char *step = io_join(folder, "activation");
    fake_step(step, "activation", groups, n_groups);
    mem_free(step);
}

static inline bool have_gnuplot(void) { return system("gnuplot --version > /dev/null 2>&1") == 0; }

#endif

/* The tables of an intervention step, one file of responses a condition, and step.json, which comes last. */
#include "intervene.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "judge_folder.h"
#include "results.h"
#include "scores.h"
#include <stdio.h>
#include <string.h>

/* ---- tables ---- */
static void put_share(Text *to, double share) {
    text_put_string(to, ",");
    if (share >= 0) text_put_f64(to, share);
}

static bool write_conditions(const Intervention *all, Error *error) {
    const Conditions *c = all->conditions;
    Text text = {0};
    text_put_string(&text,
                    "condition,kind,source,rule,amount,draw,control_of,n_cells,traffic,defined,reason\n");
    for (int64_t i = 0; i < c->n; i++) {
        const Condition *one = &c->list[i];
        text_format(&text, "%s,%s,%s,%s,", one->name, condition_kind_names[one->kind], one->source,
                    one->rule);
        if (one->rule[0]) text_put_f64(&text, one->amount);
        text_put_string(&text, ",");
        if (one->draw >= 0) text_format(&text, "%lld", (long long)one->draw);
        text_format(&text, ",%s,%lld", one->of >= 0 ? c->list[one->of].name : "", (long long)one->n_cells);
        put_share(&text, one->kind == CONDITION_BASELINE ? -1 : one->share);
        text_put_string(&text, one->reason[0] ? ",0," : ",1,");
        text_put_csv(&text, one->reason, strlen(one->reason));
        text_put_string(&text, "\n");
    }
    return results_write_text(all->run->folder, "conditions.csv", &text, error);
}

static bool write_cells(const Intervention *all, Error *error) {
    const Conditions *c = all->conditions;
    const ModelConfig *config = &all->run->model->config;
    const char *mode = edit_mode_names[all->run->step->mode];
    Text text = {0}, excluded = {0};
    text_put_string(&text, "condition,position,layer,expert,mode,traffic\n");
    for (int64_t i = 0; i < c->n; i++)
        for (int64_t k = 0; k < c->list[i].n_cells; k++) {
            const char *done = c->list[i].adapter ? "adapter" : mode;
            int64_t cell = c->list[i].cells[k];
            text_format(&text, "%s,%lld,%lld,%lld,%s", c->list[i].name, (long long)k,
                        (long long)selection_layer(config, cell), (long long)(cell % config->n_experts),
                        done);
            put_share(&text, c->share ? c->share[cell] : -1);
            text_put_string(&text, "\n");
        }
    text_put_string(&excluded, "layer,expert,largest_output\n");
    for (int64_t cell = 0; cell < config->n_moe_layers * config->n_experts; cell++) {
        if (!c->super[cell]) continue;
        text_format(&excluded, "%lld,%lld,", (long long)selection_layer(config, cell),
                    (long long)(cell % config->n_experts));
        text_put_f32(&excluded, (float)c->largest_output[cell]);
        text_put_string(&excluded, "\n");
    }
    bool ok = results_write_text(all->run->folder, "cells.csv", &text, error);
    if (ok) return results_write_text(all->run->folder, "excluded.csv", &excluded, error);
    text_free(&excluded);
    return false;
}

static bool write_prompts(const Intervention *all, Error *error) {
    Text text = {0};
    text_put_string(&text, "group,index,id,tokens,truncated\n");
    for (int64_t g = 0; g < all->run->step->groups.n; g++)
        for (int64_t p = 0; p < all->groups[g].n; p++) {
            const EncodedPrompt *prompt = &all->groups[g].prompts[p];
            text_format(&text, "%s,%lld,", all->groups[g].options->name, (long long)prompt->entry->index);
            text_put_csv(&text, prompt->entry->id, strlen(prompt->entry->id));
            text_format(&text, ",%lld,%d\n", (long long)prompt->n_prompt, prompt->truncated);
        }
    return results_write_text(all->run->folder, "prompts.csv", &text, error);
}

/* ---- responses ---- */
static bool put_response(const Intervention *all, int64_t g, int64_t p, int64_t i, Text *to, Error *error) {
    const Measures *m = &all->replies[g];
    const PromptEntry *entry = all->groups[g].prompts[p].entry;
    int64_t at = p * all->n_run + i, begin = m->reply_offsets[at], n = m->reply_offsets[at + 1] - begin;
    Text reply = {0};
    bool ok = tokenizer_decode(all->run->encoder->tokenizer, m->reply_tokens + begin, n, true, &reply, error);
    text_format(to, "{\"condition\": \"%s\", \"group\": \"%s\", \"index\": %lld, \"id\": ",
                all->conditions->list[all->running[i]].name, all->groups[g].options->name,
                (long long)entry->index);
    text_put_json(to, entry->id, strlen(entry->id));
    text_put_string(to, ", \"response\": ");
    if (ok) text_put_json(to, reply.bytes ? reply.bytes : "", reply.length);
    text_put_string(to, ", \"tokens\": [");
    for (int64_t t = 0; t < n; t++) text_format(to, "%s%d", t ? ", " : "", (int)m->reply_tokens[begin + t]);
    text_format(to, "], \"stopped\": %s", m->reply_stopped[at] ? "true" : "false");
    if (all->run->step->reply_perplexity) text_put_string(to, ", \"nll\": "), text_put_f64(to, m->nll[at]);
    text_put_string(to, "}\n");
    to->failed = to->failed || reply.failed;
    text_free(&reply);
    return ok;
}

static bool write_condition(const Intervention *all, const char *folder, int64_t i, Error *error) {
    char name[CONDITION_NAME + 10];
    Text text = {0};
    bool ok = true;
    snprintf(name, sizeof name, "%s.jsonl", all->conditions->list[all->running[i]].name);
    for (int64_t g = 0; ok && g < all->run->step->groups.n; g++)
        for (int64_t p = 0; ok && p < all->groups[g].n; p++) ok = put_response(all, g, p, i, &text, error);
    if (ok) return results_write_text(folder, name, &text, error);
    text_free(&text);
    return false;
}

static bool write_responses(const Intervention *all, Error *error) {
    char *folder = io_join(all->run->folder, "responses");
    bool ok = (folder || error_out_of_memory(error, "a path", strlen(all->run->folder))) &&
              io_make_folders(folder, error);
    for (int64_t i = 0; ok && i < all->n_run; i++) ok = write_condition(all, folder, i, error);
    mem_free(folder);
    return ok;
}

/* ---- step.json ---- */
static void put_string(Text *to, const char *text) { text_put_json(to, text, strlen(text)); }

static bool write_facts(const Intervention *all, Error *error) {
    const StepOptions *step = all->run->step;
    const ModelConfig *config = &all->run->model->config;
    int64_t n_prompts = 0;
    Text text = {0};
    text_put_string(&text, "{\n  \"schema_version\": 1,\n  \"name\": ");
    put_string(&text, step->name);
    text_put_string(&text, ",\n  \"kind\": \"intervention\",\n  \"model\": ");
    put_string(&text, step->model);
    text_put_string(&text, ",\n  \"chat_template\": ");
    put_string(&text, all->run->encoder->chat_template ? all->run->encoder->chat_template : "none");
    text_put_string(&text, ",\n  \"edit\": ");
    put_string(&text, scores_definition(step));
    text_put_string(&text, ",\n  \"groups\": [");
    for (int64_t g = 0; g < step->groups.n; g++) {
        text_put_string(&text, g ? ", " : "");
        put_string(&text, step->groups.names[g]);
        n_prompts += all->groups[g].n;
    }
    text_format(&text,
                "],\n  \"n_prompts\": %lld,\n  \"n_conditions\": %lld,\n  \"n_defined\": %lld,\n"
                "  \"n_layers\": %lld,\n  \"n_experts\": %lld,\n  \"n_experts_per_token\": %lld,\n"
                "  \"switches\": {\n",
                (long long)n_prompts, (long long)all->conditions->n, (long long)all->n_run,
                (long long)config->n_layers, (long long)config->n_experts,
                (long long)config->n_experts_per_token);
    options_write(SCOPE_STEP, step->kind, step, 4, true, &text);
    text_put_string(&text, "\n  },\n  \"warnings\": [");
    results_put_warnings(all->warnings, &text);
    text_put_string(&text, "\n  ]\n}\n");
    return results_write_text(all->run->folder, "step.json", &text, error);
}

bool intervene_write(const Intervention *all, Error *error) {
    const JudgeFolder judge = {
        .folder = all->run->folder, .resamples = JUDGE_RESAMPLES, .seed = all->run->job->options.seed};
    return write_conditions(all, error) && write_cells(all, error) && write_prompts(all, error) &&
           write_responses(all, error) && intervene_write_effects(all, error) &&
           judge_folder(&judge, error) && write_facts(all, error);
}

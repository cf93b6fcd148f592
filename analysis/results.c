/* The tables of a step: one row a cell and group, cells in order; numbers in the shortest form that reads
 * back as the same f32. */
#include "results.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/safetensors.h"
#include "scores.h"
#include <string.h>

bool results_write_text(const char *folder, const char *name, Text *text, Error *error) {
    char *path = io_join(folder, name);
    bool ok = (path && !text->failed) || error_out_of_memory(error, name, text->length);
    ok = ok && io_write_all(path, text->bytes ? text->bytes : "", text->length, error);
    mem_free(path);
    text_free(text);
    return ok;
}

/* ---- scores of a group ---- */
void group_scores_free(GroupScores *s) {
    mem_free(s->per_prompt);
    mem_free(s->scores);
    mem_free(s->order);
    mem_free(s->rank);
    mem_free(s->cumulative);
    *s = (GroupScores){0};
}

bool group_scores_make(const StepOptions *step, const ModelConfig *config, const Measures *m, GroupScores *s,
                       Error *error) {
    size_t n_cells = (size_t)(m->n_layers * m->n_experts);
    int64_t k = config->n_experts_per_token;
    *s = (GroupScores){.per_prompt = scores_of_prompts(step, m, k, config->hidden_size),
                       .scores = mem_zeroed(n_cells, sizeof *s->scores),
                       .order = mem_zeroed(n_cells, sizeof *s->order),
                       .rank = mem_zeroed(n_cells, sizeof *s->rank),
                       .cumulative = mem_zeroed(n_cells, sizeof *s->cumulative)};
    if (!s->per_prompt || !s->scores || !s->order || !s->rank || !s->cumulative ||
        !scores_of_group(step, m, s->per_prompt, k, s->scores) ||
        !scores_sort(s->scores, (int64_t)n_cells, s->order))
        return error_out_of_memory(error, "scores", n_cells * 40);
    for (size_t i = 0; i < n_cells; i++) s->rank[s->order[i]] = (int64_t)i + 1;
    scores_accumulate(s->scores, s->order, (int64_t)n_cells, s->cumulative);
    return true;
}

/* ---- rows ---- */
static void put_integer(Text *text, int64_t value) { text_format(text, ",%lld", (long long)value); }

static void put_real(Text *text, double value) {
    text_put_string(text, ",");
    text_put_f32(text, (float)value);
}

/* Empty where there is nothing that the number could be of. */
static void put_real_or_none(Text *text, double value, bool defined) {
    if (defined)
        put_real(text, value);
    else
        text_put_string(text, ",");
}

static void put_coverage(Text *text, const double *cumulative, int64_t n_cells, double share) {
    int64_t k = scores_coverage(cumulative, n_cells, share);
    if (k)
        put_integer(text, k);
    else
        text_put_string(text, ",");
}

static void put_cell(Text *text, const StepResults *r, int64_t g, int64_t cell) {
    text_put_string(text, r->groups[g].options->name);
    put_integer(text, model_config_decoder_layer(r->config, cell / r->config->n_experts));
    put_integer(text, cell % r->config->n_experts);
}

static double sum_column(const float *values, int64_t n_prompts, int64_t n_cells, int64_t cell,
                         double *room) {
    for (int64_t p = 0; p < n_prompts; p++) room[p] = values[p * n_cells + cell];
    return scores_sum(room, n_prompts, 1);
}

static double largest_of(const float *values, int64_t n_prompts, int64_t n_cells, int64_t cell) {
    float largest = 0;
    for (int64_t p = 0; p < n_prompts; p++)
        if (values[p * n_cells + cell] > largest) largest = values[p * n_cells + cell];
    return largest;
}

static void put_activation(Text *text, const Measures *m, int64_t cell, double *room) {
    int64_t n_cells = m->n_layers * m->n_experts, selected = 0, n_tokens = 0;
    for (int64_t p = 0; p < m->n_prompts; p++) {
        selected += m->selected[p * n_cells + cell];
        n_tokens += m->n_counted[p];
    }
    put_integer(text, selected);
    put_integer(text, n_tokens);
    put_real(text, sum_column(m->mass, m->n_prompts, n_cells, cell, room));
    put_real(text, sum_column(m->weight, m->n_prompts, n_cells, cell, room));
    put_real(text, largest_of(m->largest, m->n_prompts, n_cells, cell));
    put_real(text, largest_of(m->norm, m->n_prompts, n_cells, cell));
}

static void put_gradient(Text *text, const Measures *m, int64_t cell, int64_t hidden_size, double *room) {
    int64_t n_cells = m->n_layers * m->n_experts;
    double n = (double)m->n_prompts, l1 = sum_column(m->l1, m->n_prompts, n_cells, cell, room) / n;
    put_real(text, sum_column(m->l2, m->n_prompts, n_cells, cell, room) / n);
    put_real(text, l1);
    put_real(text, l1 / (double)hidden_size);
    put_real(text, sum_column(m->logit_abs, m->n_prompts, n_cells, cell, room) / n);
}

static bool write_scores(const StepResults *r, const GroupScores *scores, Error *error) {
    bool gradient = r->step->kind == STEP_GRADIENT;
    Text text = {0};
    text_put_string(&text, "group,layer,expert,score,rank");
    text_put_string(&text, gradient ? ",l2,l1,mean_abs,logit_abs\n"
                                    : ",selected,tokens,mass,weight,largest_output,largest_output_norm\n");
    for (int64_t g = 0; g < r->n_groups; g++) {
        const Measures *m = &r->measures[g];
        double *room = mem_zeroed((size_t)m->n_prompts + 1, sizeof *room);
        text.failed = text.failed || !room;
        for (int64_t c = 0; room && c < m->n_layers * m->n_experts; c++) {
            put_cell(&text, r, g, c);
            put_real(&text, scores[g].scores[c]);
            put_integer(&text, scores[g].rank[c]);
            if (gradient)
                put_gradient(&text, m, c, r->config->hidden_size, room);
            else
                put_activation(&text, m, c, room);
            text_put_string(&text, "\n");
        }
        mem_free(room);
    }
    return results_write_text(r->folder, "scores.csv", &text, error);
}

static bool write_curve(const StepResults *r, const GroupScores *scores, Error *error) {
    Text text = {0}, coverage = {0};
    text_put_string(&text, "group,rank,layer,expert,score,cumulative\n");
    text_put_string(&coverage, "group,k80,k90,k95,n_cells\n");
    for (int64_t g = 0; g < r->n_groups; g++) {
        int64_t n_cells = r->measures[g].n_layers * r->measures[g].n_experts;
        const GroupScores *s = &scores[g];
        const char *name = r->groups[g].options->name;
        for (int64_t i = 0; i < n_cells; i++) {
            int64_t cell = s->order[i], n_experts = r->config->n_experts;
            text_format(&text, "%s,%lld,%lld,%lld", name, (long long)(i + 1),
                        (long long)model_config_decoder_layer(r->config, cell / n_experts),
                        (long long)(cell % n_experts));
            put_real(&text, s->scores[cell]);
            put_real_or_none(&text, s->cumulative[i], s->cumulative[n_cells - 1] > 0);
            text_put_string(&text, "\n");
        }
        text_put_string(&coverage, name);
        put_coverage(&coverage, s->cumulative, n_cells, 0.80);
        put_coverage(&coverage, s->cumulative, n_cells, 0.90);
        put_coverage(&coverage, s->cumulative, n_cells, 0.95);
        put_integer(&coverage, n_cells);
        text_put_string(&coverage, "\n");
    }
    bool ok = results_write_text(r->folder, "curve.csv", &text, error);
    if (ok) return results_write_text(r->folder, "coverage.csv", &coverage, error);
    text_free(&coverage);
    return false;
}

static bool write_layers(const StepResults *r, const GroupScores *scores, Error *error) {
    Text text = {0};
    text_put_string(&text,
                    "group,layer,dominant_score,entropy,effective_experts,effective_experts_simpson\n");
    for (int64_t g = 0; g < r->n_groups; g++) {
        const Measures *m = &r->measures[g];
        LayerScores *layers = mem_zeroed((size_t)m->n_layers + 1, sizeof *layers);
        bool ok = layers && scores_of_layers(r->step, scores[g].scores, scores[g].per_prompt, m, layers);
        text.failed = text.failed || !ok;
        for (int64_t l = 0; ok && l < m->n_layers; l++) {
            text_put_string(&text, r->groups[g].options->name);
            put_integer(&text, model_config_decoder_layer(r->config, l));
            const bool used = layers[l].effective > 0; /* a layer whose scores are all 0 has no shares */
            put_real_or_none(&text, layers[l].dominant, used);
            put_real_or_none(&text, layers[l].entropy, used);
            put_real_or_none(&text, layers[l].effective, used);
            put_real_or_none(&text, layers[l].effective_simpson, used);
            text_put_string(&text, "\n");
        }
        mem_free(layers);
    }
    return results_write_text(r->folder, "layers.csv", &text, error);
}

static bool write_prompts(const StepResults *r, Error *error) {
    Text text = {0};
    text_put_string(&text, "group,index,id,tokens,target_tokens,truncated,nll\n");
    for (int64_t g = 0; g < r->n_groups; g++)
        for (int64_t p = 0; p < r->groups[g].n; p++) {
            const EncodedPrompt *prompt = &r->groups[g].prompts[p];
            text_format(&text, "%s,%lld,", r->groups[g].options->name, (long long)prompt->entry->index);
            text_put_csv(&text, prompt->entry->id, strlen(prompt->entry->id));
            put_integer(&text, prompt->n_prompt);
            put_integer(&text, prompt->n_target);
            text_put_string(&text, prompt->truncated ? ",1," : ",0,");
            if (r->step->kind == STEP_GRADIENT) text_put_f64(&text, r->measures[g].nll[p]);
            text_put_string(&text, "\n");
        }
    return results_write_text(r->folder, "prompts.csv", &text, error);
}

/* ---- arrays and replies ---- */
static bool write_arrays(const StepResults *r, const GroupScores *scores, Error *error) {
    size_t n = (size_t)(2 * r->n_groups), n_written = 0;
    NamedTensor *tensors = mem_zeroed(n, sizeof *tensors);
    char(*names)[96] = mem_zeroed(n, sizeof *names);
    char *path = io_join(r->folder, "per_prompt.safetensors");
    bool ok = (tensors && names && path) || error_out_of_memory(error, "names of arrays", n * sizeof *names);
    for (int64_t g = 0; ok && g < r->n_groups; g++) {
        const Measures *m = &r->measures[g];
        snprintf(names[n_written], sizeof *names, "%s.score", r->groups[g].options->name);
        tensors[n_written] =
            (NamedTensor){names[n_written], tensor_cube(scores[g].per_prompt, DTYPE_F32, m->n_prompts,
                                                        m->n_layers, m->n_experts)};
        n_written++;
        if (!m->selected) continue;
        snprintf(names[n_written], sizeof *names, "%s.selected", r->groups[g].options->name);
        tensors[n_written] = (NamedTensor){
            names[n_written], tensor_cube(m->selected, DTYPE_I64, m->n_prompts, m->n_layers, m->n_experts)};
        n_written++;
    }
    const char *const metadata[] = {"GROUP.score", scores_definition(r->step), "shapes",
                                    "P prompts in the order of prompts.csv, L expert layers, E experts"};
    ok = ok && safetensors_write(path, tensors, (int64_t)n_written, metadata, 2, error);
    mem_free(path);
    mem_free(names);
    mem_free(tensors);
    return ok;
}

static bool put_reply(const StepResults *r, int64_t g, int64_t p, Text *to, Error *error) {
    const Measures *m = &r->measures[g];
    const PromptEntry *entry = r->groups[g].prompts[p].entry;
    int64_t begin = m->reply_offsets[p], n = m->reply_offsets[p + 1] - begin;
    Text reply = {0};
    if (!tokenizer_decode(r->encoder->tokenizer, m->reply_tokens + begin, n, true, &reply, error)) {
        text_free(&reply);
        return false;
    }
    text_format(to, "{\"group\": \"%s\", \"index\": %lld, \"id\": ", r->groups[g].options->name,
                (long long)entry->index);
    text_put_json(to, entry->id, strlen(entry->id));
    text_put_string(to, ", \"response\": ");
    text_put_json(to, reply.bytes ? reply.bytes : "", reply.length);
    text_format(to, ", \"tokens\": %lld, \"stopped\": %s}\n", (long long)n,
                m->reply_stopped[p] ? "true" : "false");
    text_free(&reply);
    return true;
}

static bool write_replies(const StepResults *r, Error *error) {
    if (!step_generates(r->step)) return true;
    Text text = {0};
    for (int64_t g = 0; g < r->n_groups; g++)
        for (int64_t p = 0; p < r->groups[g].n; p++)
            if (!put_reply(r, g, p, &text, error)) {
                text_free(&text);
                return false;
            }
    return results_write_text(r->folder, "responses.jsonl", &text, error);
}

bool results_write(const StepResults *r, Error *error) {
    GroupScores *scores = mem_zeroed((size_t)r->n_groups, sizeof *scores);
    if (!scores) return error_out_of_memory(error, "scores", (size_t)r->n_groups * sizeof *scores);
    bool ok = true;
    for (int64_t g = 0; ok && g < r->n_groups; g++)
        ok = group_scores_make(r->step, r->config, &r->measures[g], &scores[g], error);
    ok = ok && write_scores(r, scores, error) && write_curve(r, scores, error) &&
         write_layers(r, scores, error) && write_prompts(r, error) && write_arrays(r, scores, error) &&
         write_replies(r, error) && results_write_statistics(r, scores, error) &&
         results_write_facts(r, scores, error);
    for (int64_t g = 0; g < r->n_groups; g++) group_scores_free(&scores[g]);
    mem_free(scores);
    return ok;
}

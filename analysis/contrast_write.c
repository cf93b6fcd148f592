/* The tables of a contrast. layers.csv and overall.csv hold the curves of the contrast, of its controls
 * and of their difference; selection_RANKING.csv is what an intervention reads as its selection.
 * step.json comes last. */
#include "contrast.h"
#include "selection.h"
#include <math.h>
#include <string.h>

static const char *const part_names[N_PARTS] = {"contrast", "control", "difference"};

static void put_real(Text *to, double value) {
    text_put_string(to, ",");
    text_put_f64(to, value);
}

static void put_integer(Text *to, int64_t value) { text_format(to, ",%lld", (long long)value); }

static void put_text(Text *to, const char *text) {
    text_put_string(to, ",");
    if (text) text_put_csv(to, text, strlen(text));
}

/* ---- curves ---- */
static void put_curves_head(Text *to, const char *first) {
    text_put_string(to, first);
    for (int v = 0; v < N_CURVES; v++)
        text_format(to, ",%s,%s_low,%s_high", contrast_curve_names[v], contrast_curve_names[v],
                    contrast_curve_names[v]);
    text_put_string(to, "\n");
}

static void put_curves(const ContrastStatistics *s, ContrastPart part, int64_t l, Text *to) {
    for (int v = 0; v < N_CURVES; v++) {
        int64_t column = contrast_column(s, part, (ContrastCurve)v, l);
        put_real(to, s->mean[column]);
        if (s->no_samples) {
            text_put_string(to, ",,");
            continue;
        }
        put_real(to, s->low[column]);
        put_real(to, s->high[column]);
    }
    text_put_string(to, "\n");
}

static bool write_curves(const ContrastResults *r, Error *error) {
    const ContrastStatistics *s = r->statistics;
    Text layers = {0}, overall = {0};
    put_curves_head(&layers, "part,layer");
    put_curves_head(&overall, "part,n_pairs");
    for (int part = 0; part < N_PARTS; part++) {
        if (part != PART_CONTRAST && s->no_controls) continue;
        for (int64_t l = 0; l < s->n_layers; l++) {
            text_put_string(&layers, part_names[part]);
            put_integer(&layers, model_config_decoder_layer(r->input->config, l));
            put_curves(s, (ContrastPart)part, l, &layers);
        }
        text_put_string(&overall, part_names[part]);
        put_integer(&overall, s->n_pairs);
        put_curves(s, (ContrastPart)part, s->n_layers, &overall);
    }
    bool ok = results_write_text(r->run->folder, "layers.csv", &layers, error);
    if (ok) return results_write_text(r->run->folder, "overall.csv", &overall, error);
    text_free(&overall);
    return false;
}

/* ---- pairs ---- */
static void put_pair(const ContrastResults *r, int64_t i, Text *to) {
    const ContrastStatistics *s = r->statistics;
    const Measures *m = r->input->measures;
    const EncodedPrompt *text[2] = {&r->pairs->side[0].prompts[i], &r->pairs->side[1].prompts[i]};
    bool targets = step_reads_targets(r->run->step);
    text_format(to, "%lld", (long long)i);
    for (int k = 0; k < 2; k++) put_text(to, text[k]->entry->id);
    put_text(to, text[0]->entry->topic);
    for (int k = 0; k < 2; k++) put_integer(to, text[k]->n_prompt + (targets ? text[k]->n_target : 0));
    put_integer(to, m->n_first[i]);
    put_integer(to, m->n_second[i]);
    put_integer(to, m->n_counted[i]);
    put_integer(to, text[0]->truncated || text[1]->truncated);
    for (int k = 0; k < 2; k++) {
        if (targets && text[k]->n_target)
            put_real(to, k ? m->nll_second[i] : m->nll_first[i]);
        else
            text_put_string(to, ",");
    }
    for (int part = 0; part < PART_DIFFERENCE; part++)
        for (int v = 0; v < N_CURVES; v++) {
            if (part == PART_CONTROL && s->no_controls)
                text_put_string(to, ",");
            else
                put_real(to, s->values[i * s->n_columns + contrast_column(s, (ContrastPart)part,
                                                                          (ContrastCurve)v, s->n_layers)]);
        }
    text_put_string(to, "\n");
}

static bool write_pairs(const ContrastResults *r, Error *error) {
    Text text = {0};
    text_put_string(&text,
                    "pair,id_first,id_second,topic,tokens_first,tokens_second,counted_first,counted_second,"
                    "aligned,truncated,nll_first,nll_second,js,overlap,jaccard,control_js,control_overlap,"
                    "control_jaccard\n");
    for (int64_t i = 0; i < r->pairs->n; i++) put_pair(r, i, &text);
    return results_write_text(r->run->folder, "pairs.csv", &text, error);
}

static bool write_controls(const ContrastResults *r, Error *error) {
    const ContrastControls *c = &r->statistics->controls;
    double unit = r->run->step->js_log == LOG_BASE_2 ? 1 / M_LN2 : 1;
    Text text = {0};
    if (r->statistics->no_controls) return true;
    text_put_string(&text, "pair,draw,partner,js,overlap,jaccard\n");
    for (int64_t i = 0; i < r->pairs->n; i++)
        for (int64_t d = 0; d < c->n_draws[i]; d++) {
            const double *values = c->draws + (i * c->most + d) * N_CURVES;
            text_format(&text, "%lld,%lld,%lld", (long long)i, (long long)d,
                        (long long)c->partner[i * c->most + d]);
            for (int v = 0; v < N_CURVES; v++) put_real(&text, values[v] * (v == CURVE_JS ? unit : 1));
            text_put_string(&text, "\n");
        }
    return results_write_text(r->run->folder, "controls.csv", &text, error);
}

/* ---- rankings ---- */
static void put_cell(const ContrastResults *r, int64_t cell, Text *to) {
    text_format(to, "%lld,%lld", (long long)selection_layer(r->input->config, cell),
                (long long)(cell % r->input->config->n_experts));
}

static void put_numbers(const ContrastStatistics *s, const ContrastRanking *k, int64_t c, Text *to) {
    put_real(to, k->score[c]);
    put_real(to, k->value[c]);
    if (s->no_samples) {
        text_put_string(to, ",,,");
        return;
    }
    put_real(to, k->low[c]);
    put_real(to, k->high[c]);
    put_real(to, k->frequency[c]);
}

static bool write_ranking(const ContrastResults *r, Error *error) {
    const ContrastStatistics *s = r->statistics;
    Text text = {0};
    text_put_string(&text,
                    "ranking,rank,layer,expert,score,value,value_low,value_high,frequency,stable,selected\n");
    for (int kind = 0; kind < N_RANKINGS; kind++) {
        const ContrastRanking *k = &s->rankings[kind];
        for (int64_t i = 0; k->there && i < s->n_cells; i++) {
            int64_t c = k->order[i];
            text_format(&text, "%s,%lld,", contrast_ranking_names[kind], (long long)(i + 1));
            put_cell(r, c, &text);
            put_numbers(s, k, c, &text);
            text_put_string(&text, s->no_samples ? "," : k->stable[c] ? ",1" : ",0");
            text_put_string(&text, k->selected[c] ? ",1\n" : ",0\n");
        }
    }
    return results_write_text(r->run->folder, "ranking.csv", &text, error);
}

/* A selection without a cell is no file: nothing can be done with it. */
static bool write_selection(const ContrastResults *r, int kind, Error *error) {
    const ContrastRanking *k = &r->statistics->rankings[kind];
    Text text = {0};
    char name[60];
    if (!k->n_selected) return true;
    snprintf(name, sizeof name, "selection_%s.csv", contrast_ranking_names[kind]);
    text_put_string(&text, "layer,expert,rank,score,value,value_low,value_high,frequency\n");
    for (int64_t i = 0; i < r->statistics->n_wanted; i++) {
        int64_t c = k->order[i];
        if (!k->selected[c]) continue;
        put_cell(r, c, &text);
        put_integer(&text, k->rank[c]);
        put_numbers(r->statistics, k, c, &text);
        text_put_string(&text, "\n");
    }
    return results_write_text(r->run->folder, name, &text, error);
}

/* ---- step.json ---- */
static void put_string(Text *to, const char *key, const char *text) {
    text_format(to, ",\n  \"%s\": ", key);
    text_put_json(to, text, strlen(text));
}

static void put_prompts(const ContrastResults *r, Text *to) {
    const StepOptions *step = r->run->step;
    int64_t n_tokens = 0, n_truncated = 0, n_left_out = 0;
    text_put_string(to, ",\n  \"groups\": [");
    for (int64_t g = 0; g < step->groups.n; g++) {
        if (g) text_put_string(to, ", ");
        text_put_json(to, step->groups.names[g], strlen(step->groups.names[g]));
    }
    for (int64_t i = 0; i < r->pairs->n; i++) n_tokens += r->input->measures->n_tokens[i];
    for (int s = 0; s < 2; s++) {
        n_truncated += r->pairs->side[s].n_truncated;
        n_left_out += r->pairs->side[s].n_left_out;
    }
    text_format(
        to, "],\n  \"n_pairs\": %lld,\n  \"n_tokens\": %lld,\n  \"truncated\": %lld,\n  \"refused\": %lld",
        (long long)r->pairs->n, (long long)n_tokens, (long long)n_truncated, (long long)n_left_out);
}

static bool write_facts(const ContrastResults *r, Error *error) {
    const StepRun *run = r->run;
    Text text = {0};
    text_put_string(&text, "{\n  \"schema_version\": 1");
    put_string(&text, "name", run->step->name);
    put_string(&text, "kind", "contrast");
    put_string(&text, "model", run->step->model);
    put_string(&text, "chat_template", run->encoder->chat_template ? run->encoder->chat_template : "none");
    put_string(&text, "score",
               "Jensen-Shannon divergence of router distributions, overlap@k, weighted Jaccard");
    put_string(&text, "alignment", contrast_alignment(run->step));
    put_prompts(r, &text);
    results_put_shape(&run->model->config, &text);
    text_put_string(&text, ",\n  \"switches\": {\n");
    options_write(SCOPE_STEP, STEP_CONTRAST, run->step, 4, true, &text);
    text_put_string(&text, "\n  },\n  \"warnings\": [");
    results_put_warnings(r->warnings, &text);
    text_put_string(&text, "\n  ]\n}\n");
    return results_write_text(run->folder, "step.json", &text, error);
}

bool contrast_write(const ContrastResults *r, Error *error) {
    Text json = {0};
    contrast_put_json(r->input, r->statistics, r->warnings, &json);
    bool ok = results_write_text(r->run->folder, "contrast.json", &json, error) && write_curves(r, error) &&
              write_pairs(r, error) && write_controls(r, error) && write_ranking(r, error);
    for (int kind = 0; ok && kind < N_RANKINGS; kind++) ok = write_selection(r, kind, error);
    return ok && write_facts(r, error);
}

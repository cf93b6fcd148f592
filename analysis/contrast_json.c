/* contrast.json: curves, controls, rankings. What its keys mean stands in definitions.c. */
#include "contrast.h"
#include "json_write.h"
#include "selection.h"

const char *contrast_alignment(const StepOptions *step) {
    static const char *const prompts[] = {
        "mean distributions over all tokens of each prompt",
        "mean distributions over each prompt's tokens, the chat template's left out",
        "mean distributions over the last tokens of each prompt",
        "mean distributions over the tokens that both prompts of a pair end with"};
    static const char *const continuations[] = {
        "token by token: the j-th token of one continuation with the j-th of the other, up to the end of the "
        "shorter, behind the same prompt tokens",
        "token by token: the j-th token of one continuation with the j-th of the other, up to the end of the "
        "shorter, where neither is the chat template's, behind the same prompt tokens"};
    if (step->contrast == CONTRAST_ADAPTER)
        return step->contrast_tokens == CONTRAST_ALL
                   ? "token by token of one text: without the adapter (first) and with it (second)"
                   : "token by token of one text, the chat template's tokens left out: without the adapter "
                     "(first) and with it (second)";
    return step->contrast == CONTRAST_CONTINUATIONS ? continuations[step->contrast_tokens]
                                                    : prompts[step->contrast_tokens];
}

static const char *ranking_definition(ContrastRankingKind kind) {
    static const char *const definitions[N_RANKINGS] = {
        "share of the first text's counted tokens that choose the expert - share of the second's, mean over "
        "pairs",
        "mean |p - q| of the expert's router probability over aligned tokens (without such: of the mean "
        "distributions), mean over pairs",
        "L2 norm of d(NLL(second) - NLL(first)) / dW_gate[layer][expert,:], through the whole network, mean "
        "over pairs"};
    return definitions[kind];
}

/* ---- curves ---- */
static void put_part(const ContrastStatistics *s, ContrastPart part, int64_t l, const char *key, Text *to) {
    write_begin(to, key, '{');
    for (int v = 0; v < N_CURVES; v++) {
        int64_t column = contrast_column(s, part, (ContrastCurve)v, l);
        write_number(to, contrast_curve_names[v], s->mean[column]);
        if (!s->no_samples) write_interval(to, contrast_curve_names[v], s->low[column], s->high[column]);
    }
    write_end(to, '}');
}

static void put_parts(const ContrastStatistics *s, int64_t l, Text *to) {
    put_part(s, PART_CONTRAST, l, "contrast", to);
    if (s->no_controls && l == s->n_layers) write_null(to, "control", s->no_controls);
    if (s->no_controls) return;
    put_part(s, PART_CONTROL, l, "control", to);
    put_part(s, PART_DIFFERENCE, l, "difference", to);
}

static void put_curves(const ContrastInput *in, const ContrastStatistics *s, Text *to) {
    write_line(to);
    write_begin(to, "overall", '{');
    put_parts(s, s->n_layers, to);
    write_end(to, '}');
    write_line(to);
    write_begin(to, "layers", '[');
    for (int64_t l = 0; l < s->n_layers; l++) {
        write_line(to);
        write_begin(to, NULL, '{');
        write_integer(to, "layer", model_config_decoder_layer(in->config, l));
        put_parts(s, l, to);
        write_end(to, '}');
    }
    write_end(to, ']');
}

static void put_draws(const ContrastStatistics *s, Text *to) {
    if (s->no_controls) return;
    int64_t n = 0, least = s->controls.most;
    for (int64_t i = 0; i < s->n_pairs; i++) {
        n += s->controls.n_draws[i];
        if (s->controls.n_draws[i] < least) least = s->controls.n_draws[i];
    }
    write_line(to);
    write_begin(to, "controls", '{');
    write_integer(to, "n", n);
    write_integer(to, "least_of_a_pair", least);
    write_end(to, '}');
}

/* ---- rankings ---- */
static void put_set(const ContrastInput *in, const ContrastStatistics *s, const char *key, const bool *chosen,
                    Text *to) {
    int64_t n = 0, last = in->config->n_layers - 1;
    double depth = 0;
    for (int64_t c = 0; c < s->n_cells; c++) {
        n += chosen[c];
        depth += chosen[c] ? (double)selection_layer(in->config, c) : 0;
    }
    write_begin(to, key, '{');
    write_integer(to, "n", n);
    if (n && last > 0)
        write_number(to, "mean_depth", depth / (double)n / (double)last);
    else
        write_null(to, "mean_depth", n ? "the model has one layer" : "the set is empty");
    write_begin(to, "cells", '[');
    for (int64_t c = 0; c < s->n_cells; c++) {
        if (!chosen[c]) continue;
        write_key(to, NULL);
        text_format(to, "[%lld, %lld]", (long long)selection_layer(in->config, c),
                    (long long)(c % in->config->n_experts));
    }
    write_end(to, ']');
    write_end(to, '}');
}

static void put_selected(const ContrastInput *in, const ContrastStatistics *s, const ContrastRanking *r,
                         Text *to) {
    write_begin(to, "selection", '[');
    for (int64_t i = 0; i < s->n_wanted; i++) {
        int64_t c = r->order[i];
        if (!r->selected[c]) continue;
        write_line(to);
        write_begin(to, NULL, '{');
        write_integer(to, "layer", selection_layer(in->config, c));
        write_integer(to, "expert", c % in->config->n_experts);
        write_integer(to, "rank", r->rank[c]);
        write_number(to, "score", r->score[c]);
        write_number(to, "value", r->value[c]);
        if (!s->no_samples) {
            write_interval(to, "value", r->low[c], r->high[c]);
            write_number(to, "frequency", r->frequency[c]);
        }
        write_end(to, '}');
    }
    write_end(to, ']');
}

static void put_ranking(const ContrastInput *in, const ContrastStatistics *s, int kind, Text *to) {
    const ContrastRanking *r = &s->rankings[kind];
    int64_t n_total, n_active, expert = 3 * in->config->hidden_size * in->config->expert_size;
    model_config_count(in->config, &n_total, &n_active);
    write_line(to);
    if (!r->there) {
        write_null(to, contrast_ranking_names[kind],
                   in->step->contrast == CONTRAST_CONTINUATIONS ? "gradient is false"
                   : in->step->contrast == CONTRAST_ADAPTER
                       ? "one text under two models has no contrast of replies"
                       : "prompts without targets have no NLL contrast");
        return;
    }
    write_begin(to, contrast_ranking_names[kind], '{');
    write_string(to, "definition", ranking_definition((ContrastRankingKind)kind));
    write_integer(to, "n_wanted", s->n_wanted);
    write_integer(to, "n_selected", r->n_selected);
    write_number(to, "parameter_share", (double)(r->n_selected * expert) / (double)n_total);
    write_line(to);
    if (s->no_samples)
        write_null(to, "stable", s->no_samples);
    else
        put_set(in, s, "stable", r->stable, to);
    write_line(to);
    put_selected(in, s, r, to);
    write_end(to, '}');
}

static void put_between(const ContrastStatistics *s, Text *to) {
    write_line(to);
    write_begin(to, "between_rankings", '[');
    for (int a = 0; a < N_RANKINGS; a++)
        for (int b = a + 1; b < N_RANKINGS; b++) {
            int64_t shared = 0, either = 0;
            if (!s->rankings[a].there || !s->rankings[b].there) continue;
            for (int64_t c = 0; c < s->n_cells; c++) {
                shared += s->rankings[a].selected[c] && s->rankings[b].selected[c];
                either += s->rankings[a].selected[c] || s->rankings[b].selected[c];
            }
            write_begin(to, NULL, '{');
            write_string(to, "first", contrast_ranking_names[a]);
            write_string(to, "second", contrast_ranking_names[b]);
            write_integer(to, "shared", shared);
            if (either)
                write_number(to, "jaccard", (double)shared / (double)either);
            else
                write_null(to, "jaccard", "neither selects a cell");
            write_end(to, '}');
        }
    write_end(to, ']');
}

/* ---- the file ---- */
static void put_head(const ContrastInput *in, const ContrastStatistics *s, Text *to) {
    write_begin(to, NULL, '{');
    write_line(to);
    write_integer(to, "schema_version", 1);
    write_string(to, "signal", "contrast");
    write_string(to, "contrast", option_choice("contrast", SCOPE_STEP, in->step->contrast));
    write_string(to, "alignment", contrast_alignment(in->step));
    write_line(to);
    write_begin(to, "switches", '{');
    text_put_string(to, "\n");
    options_write(SCOPE_STEP, STEP_CONTRAST, in->step, 2, true, to);
    write_end(to, '}');
    write_line(to);
    write_integer(to, "seed", (int64_t)in->seed);
    write_integer(to, "n_pairs", s->n_pairs);
    write_integer(to, "n_layers", s->n_layers);
    write_integer(to, "n_decoder_layers", in->config->n_layers);
    write_integer(to, "n_experts", in->config->n_experts);
    write_integer(to, "overlap_k", contrast_overlap_k(in->step, in->config));
    write_string(to, "js_unit", in->step->js_log == LOG_BASE_2 ? "bits" : "nats");
    write_line(to);
    if (s->no_samples) {
        write_null(to, "bootstrap", s->no_samples);
        return;
    }
    write_begin(to, "bootstrap", '{');
    write_integer(to, "n", in->step->bootstraps);
    write_number(to, "confidence", in->step->confidence);
    write_end(to, '}');
}

void contrast_put_json(const ContrastInput *in, const ContrastStatistics *s, const char *warnings, Text *to) {
    put_head(in, s, to);
    put_curves(in, s, to);
    put_draws(s, to);
    write_line(to);
    write_begin(to, "rankings", '{');
    for (int kind = 0; kind < N_RANKINGS; kind++) put_ranking(in, s, kind, to);
    write_end(to, '}');
    put_between(s, to);
    write_line(to);
    write_lines(to, "warnings", warnings);
    write_end(to, '}');
    text_put_string(to, "\n");
}

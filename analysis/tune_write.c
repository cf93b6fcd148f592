/* Tables of a training, its adapter, and step.json. */
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "json_write.h"
#include "scores.h"
#include "tune_parts.h"
#include <math.h>
#include <string.h>

/* ",NUMBER", or "," where there is none. */
static void put_number(Text *to, bool there, double number) {
    text_put_string(to, ",");
    if (there) text_put_f64(to, number);
}

bool tune_write_rows(const Tuning *t, Error *error) {
    Text text = {0};
    text_put_string(&text,
                    "step,loss,gradient_norm,learning_rate,examples,target_tokens,tokens,held_out_loss,"
                    "router_kl,router_distance,preference_margin,preferred,total_loss\n");
    const StepOptions *step = t->run->step;
    const bool pairs = step->objective == OBJECTIVE_PREFERENCE;
    for (int64_t i = t->held_out.n ? 0 : 1; i <= t->n_done; i++) {
        const TuneRow *row = &t->rows[i];
        const double numbers[] = {row->loss, row->norm, row->rate};
        text_format(&text, "%lld", (long long)i);
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++) {
            text_put_string(&text, ",");
            if (i) text_put_f64(&text, numbers[k]);
        }
        if (i) text_format(&text, ",%.0f,%.0f,%.0f,", row->n_examples, row->n_targets, row->n_tokens);
        if (!i) text_put_string(&text, ",,,,");
        if (t->held_out.n && !isnan(row->held_out)) text_put_f64(&text, row->held_out);
        put_number(&text, i && step->router_kl > 0, row->router_kl);
        put_number(&text, i && step->router_anchor > 0, row->router_distance);
        put_number(&text, i && pairs, row->margin);
        put_number(&text, i && pairs, row->right);
        put_number(&text, i > 0, row->total);
        text_put_string(&text, "\n");
    }
    return results_write_text(t->run->folder, "training.csv", &text, error);
}

void tune_adapter_name(const StepOptions *step, char to[40]) {
    snprintf(to, 40, "adapter-%s", adapter_form_names[step->form]);
}

bool tune_write_adapter(Tuning *t, Error *error) {
    char name[40];
    tune_adapter_name(t->run->step, name);
    char *folder = io_join(t->run->folder, name);
    bool ok =
        (folder || error_out_of_memory(error, "a path", strlen(t->run->folder))) &&
        lora_weights_read(&t->weights, t->weights.values, &t->adapter, error) &&
        io_make_folders(folder, error) &&
        adapter_write(folder, &t->adapter, &t->run->model->config, (AdapterForm)t->run->step->form, error);
    mem_free(folder);
    return ok;
}

/* ---- step.json ---- */
static void put_counts(const Tuning *t, Text *to) {
    const ModelConfig *config = &t->run->model->config;
    int64_t n_total, n_active, n_values = 0, n_cells = 0;
    model_config_count(config, &n_total, &n_active);
    for (int64_t i = 0; i < t->adapter.n; i++) {
        const AdapterCell *cell = &t->adapter.cells[i];
        bool seen = false;
        n_values += adapter_cell_count(cell, config);
        for (int64_t k = 0; k < i; k++)
            seen = seen ||
                   (t->adapter.cells[k].layer == cell->layer && t->adapter.cells[k].expert == cell->expert);
        n_cells += !seen;
    }
    write_integer(to, "n_cells", n_cells);
    write_integer(to, "n_updates", t->adapter.n);
    write_integer(to, "n_router_rows", t->adapter.n_rows);
    n_values += t->adapter.n_rows * config->hidden_size;
    write_integer(to, "n_trained", n_values);
    write_integer(to, "n_parameters", n_total);
    write_number(to, "share_of_parameters", (double)n_values / (double)n_total);
    write_number(to, "share_of_cells_parameters",
                 (double)(n_cells * 3 * config->hidden_size * config->expert_size) / (double)n_total);
    write_integer(to, "n_examples", t->data.n);
    write_integer(to, "n_steps", t->n_done);
    const int64_t best = tune_best_step(t);
    write_integer(to, "n_planned", t->data.n_steps);
    write_number_or(to, "held_out_before", best < 0 ? (double)NAN : t->rows[0].held_out,
                    "nothing is held out");
    write_number_or(to, "held_out_least", best < 0 ? (double)NAN : t->rows[best].held_out,
                    "nothing is held out");
    write_integer(to, "step_taken", t->run->step->patience ? best : t->n_done);
    write_number(to, "first_loss", t->rows[1].loss);
    write_number(to, "last_loss", t->rows[t->n_done].loss);
    const bool pairs = t->run->step->objective == OBJECTIVE_PREFERENCE;
    write_number_or(to, "first_preferred", pairs ? t->rows[1].right : (double)NAN, "no pairs");
    write_number_or(to, "last_preferred", pairs ? t->rows[t->n_done].right : (double)NAN, "no pairs");
    write_string(to, "ended",
                 t->n_done == t->data.n_steps ? "every planned step was taken"
                                              : "patience: the held-out loss was not less any more");
}

static void put_shape(const ModelConfig *config, Text *to) {
    write_string(to, "family", config->family);
    write_integer(to, "n_layers", config->n_layers);
    write_integer(to, "n_experts", config->n_experts);
    write_integer(to, "n_experts_per_token", config->n_experts_per_token);
    write_begin(to, "moe_layers", '[');
    for (int64_t l = 0; l < config->n_moe_layers; l++)
        write_integer(to, NULL, model_config_decoder_layer(config, l));
    write_end(to, ']');
}

static bool write_step(const Tuning *t, Error *error) {
    const StepOptions *step = t->run->step;
    char name[40];
    Text text = {0};
    tune_adapter_name(step, name);
    write_begin(&text, NULL, '{');
    write_integer(&text, "schema_version", 1);
    write_string(&text, "name", step->name);
    write_string(&text, "kind", "tune");
    write_string(&text, "model", step->model);
    write_string(&text, "chat_template",
                 t->run->encoder->chat_template ? t->run->encoder->chat_template : "none");
    write_string(&text, "objective", scores_definition(step));
    write_string(&text, "optimizer", "AdamW (0.9, 0.999, 1e-8), bias-corrected"); /* adamw_usual */
    write_string(&text, "adapter", name);
    write_begin(&text, "groups", '[');
    for (int64_t g = 0; g < step->groups.n; g++) write_string(&text, NULL, step->groups.names[g]);
    write_end(&text, ']');
    put_counts(t, &text);
    put_shape(&t->run->model->config, &text);
    write_lines(&text, "warnings", t->warnings);
    write_key(&text, "switches");
    text_put_string(&text, "{\n");
    options_write(SCOPE_STEP, step->kind, step, 4, true, &text);
    text_put_string(&text, "\n  }");
    write_end(&text, '}');
    text_put_string(&text, "\n");
    return results_write_text(t->run->folder, "step.json", &text, error);
}

/* router_rows.csv: how long what was added became. */
static bool write_rows(const Tuning *t, Error *error) {
    Text text = {0};
    if (!t->adapter.n_rows) return true;
    text_put_string(&text, "layer,expert,parameters,row_norm\n");
    for (int64_t i = 0; i < t->adapter.n_rows; i++) {
        const RouterRow *row = &t->adapter.rows[i];
        const int64_t n = t->run->model->config.hidden_size;
        double squares = 0;
        for (int64_t k = 0; k < n; k++) squares += (double)row->values[k] * (double)row->values[k];
        text_format(&text, "%lld,%lld,%lld,", (long long)row->layer, (long long)row->expert, (long long)n);
        text_put_f64(&text, sqrt(squares));
        text_put_string(&text, "\n");
    }
    return results_write_text(t->run->folder, "router_rows.csv", &text, error);
}

bool tune_write_facts(const Tuning *t, Error *error) { return write_rows(t, error) && write_step(t, error); }

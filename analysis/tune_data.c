/* Which examples a step of the training takes, and which updates it trains. */
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../kernels/random.h"
#include "conditions.h"
#include "contrast.h"
#include "tune_parts.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

uint64_t tune_seed(const Job *job, const StepOptions *step) {
    return (uint64_t)(step->seed >= 0 ? step->seed : job->options.seed);
}

/* ---- examples ---- */
int64_t tune_count_steps(const StepOptions *step, int64_t n_examples, int64_t *n_total) {
    *n_total = step->steps ? step->steps * step->examples : step->epochs * n_examples;
    return (*n_total + step->examples - 1) / step->examples;
}

bool tune_data_make(const StepRun *run, const PromptGroup *groups, TuneData *data, Error *error) {
    *data = (TuneData){.seed = tune_seed(run->job, run->step), .n_of_step = run->step->examples, .epoch = -1};
    for (int64_t g = 0; g < run->step->groups.n; g++) data->n += groups[g].n;
    data->list = mem_zeroed((size_t)data->n, sizeof *data->list);
    data->order = mem_zeroed((size_t)data->n, sizeof *data->order);
    if (!data->list || !data->order)
        return error_out_of_memory(error, "examples", (size_t)data->n * sizeof *data->list);
    for (int64_t g = 0, n = 0; g < run->step->groups.n; g++)
        for (int64_t i = 0; i < groups[g].n; i++)
            data->list[n++] = (TuneExample){&groups[g].prompts[i], groups[g].options->name,
                                            step_prompt_key(run, &groups[g], i)};
    data->n_steps = tune_count_steps(run->step, data->n, &data->n_total);
    return true;
}

void tune_data_free(TuneData *data) {
    mem_free(data->list);
    mem_free(data->order);
    *data = (TuneData){0};
}

int64_t tune_step_length(const TuneData *data, int64_t step) {
    int64_t left = data->n_total - step * data->n_of_step;
    return left < data->n_of_step ? left : data->n_of_step;
}

typedef struct {
    uint64_t bits;
    int64_t example;
} Place;

static int by_bits(const void *x, const void *y) {
    const Place *a = x, *b = y;
    if (a->bits != b->bits) return a->bits < b->bits ? -1 : 1;
    return a->example < b->example ? -1 : 1;
}

/* NULL: out of memory. */
static const int64_t *order_of(TuneData *data, int64_t epoch) {
    if (data->epoch == epoch) return data->order;
    Place *places = mem_zeroed((size_t)data->n, sizeof *places);
    if (!places) return NULL;
    for (int64_t i = 0; i < data->n; i++)
        places[i] = (Place){random_bits(data->seed, RANDOM_TUNING_ORDER, data->list[i].key, epoch), i};
    qsort(places, (size_t)data->n, sizeof *places, by_bits);
    for (int64_t i = 0; i < data->n; i++) data->order[i] = places[i].example;
    mem_free(places);
    data->epoch = epoch;
    return data->order;
}

const TuneExample *tune_example(TuneData *data, int64_t at) {
    const int64_t *order = order_of(data, at / data->n);
    return order ? &data->list[order[at % data->n]] : NULL;
}

/* ---- cells ---- */
static bool put_cell(const Job *job, const StepOptions *step, const ModelConfig *config, int64_t cell,
                     Adapter *adapter, Error *error) {
    const uint64_t seed = tune_seed(job, step);
    for (int64_t i = 0; i < step->projections.n; i++) {
        AdapterCell like = {.layer = selection_layer(config, cell),
                            .expert = cell % config->n_experts,
                            .rank = step->rank,
                            .scale = (float)(step->alpha / (double)step->rank)},
                    *made;
        if (!projection_find(step->projections.names[i], &like.projection))
            return error_set(error, ERROR_BAD_INPUT, "projections: expected gate, up or down: got \"%.40s\"",
                             step->projections.names[i]);
        if (!adapter_add(adapter, config, like, &made, error)) return false;
        const int64_t in = projection_in(config, like.projection);
        const double bound = 1 / sqrt((double)in);
        for (int64_t k = 0; k < like.rank * in; k++) {
            double u =
                random_uniform(seed, RANDOM_TUNING_VALUES, cell * N_PROJECTIONS + (int)like.projection, k);
            made->a[k] = (float)((2 * u - 1) * bound);
        }
    }
    return true;
}

/* The one selected set of an intervention with these options. Whether a router can do without the cells does
 * not matter: none is taken away. */
static StepOptions selecting(const StepOptions *step) {
    StepOptions one = *step;
    one.kind = STEP_INTERVENTION;
    one.mode = EDIT_BIAS - EDIT_MASK;
    one.value = 0;
    one.traffic_matched_sets = 0;
    one.random_sets = step->control == CONTROL_RANDOM ? step->draw + 1 : 0;
    one.layer_matched_sets = step->control == CONTROL_LAYER_MATCHED ? step->draw + 1 : 0;
    one.exclude_super = false;
    one.counts = "";
    return one;
}

/* RUN/STEP/selection_RANKING.csv of a contrast step; caller frees. */
static char *selection_path(const StepOptions *step, const StepOptions *source, const char *run_folder,
                            Error *error) {
    char name[80];
    snprintf(name, sizeof name, "selection_%s.csv", contrast_ranking_names[step->ranking]);
    char *folder = io_join(run_folder, source->name), *path = folder ? io_join(folder, name) : NULL;
    mem_free(folder);
    if (!path) error_out_of_memory(error, "a path", strlen(run_folder));
    return path;
}

static bool put_cells(const Job *job, const StepOptions *step, const ModelConfig *config,
                      const int64_t *cells, int64_t n, Adapter *adapter, Error *error) {
    for (int64_t i = 0; i < n; i++)
        if (!put_cell(job, step, config, cells[i], adapter, error))
            return error_add_place(error, "step %s", step->name);
    return true;
}

/* n cells of all, the selected ones not excepted; NULL and an Error: out of memory. Caller frees. */
static int64_t *draw_of_all(const Job *job, const StepOptions *step, const ModelConfig *config, int64_t n,
                            Error *error) {
    const int64_t n_cells = config->n_moe_layers * config->n_experts;
    int64_t *cells = mem_zeroed((size_t)n_cells, sizeof *cells);
    bool *taken = mem_zeroed((size_t)n_cells, sizeof *taken);
    char name[60];
    snprintf(name, sizeof name, "random_any.%lld", (long long)step->draw);
    Draw draw = draw_new((uint64_t)job->options.seed, name);
    const DrawFrom from = {n_cells, config->n_experts, taken, NULL, config->n_experts};
    if (!cells || !taken || draw_set(&draw, &from, n, cells) < 0) {
        error_out_of_memory(error, "a random set", (size_t)n_cells * sizeof *cells);
        mem_free(cells);
        cells = NULL;
    }
    mem_free(taken);
    return cells;
}

static bool put_all(const Job *job, const StepOptions *step, const ModelConfig *config, Adapter *adapter,
                    Error *error) {
    bool ok = true;
    for (int64_t cell = 0; ok && cell < config->n_moe_layers * config->n_experts; cell++)
        ok = put_cell(job, step, config, cell, adapter, error);
    return ok || error_add_place(error, "step %s", step->name);
}

/* The selected set, or the draw that stands for it. */
static bool put_chosen(const Job *job, const StepOptions *step, const ModelConfig *config,
                       const Conditions *conditions, Adapter *adapter, Error *error) {
    const bool drawn = step->control == CONTROL_RANDOM || step->control == CONTROL_LAYER_MATCHED;
    const Condition *set = &conditions->list[drawn ? 2 + step->draw : 1];
    if (set->reason[0])
        return error_set(error, ERROR_BAD_INPUT, "step %s: expected cells to train: %s", step->name,
                         set->reason);
    if (step->control != CONTROL_RANDOM_ANY)
        return put_cells(job, step, config, set->cells, set->n_cells, adapter, error);
    int64_t *cells = draw_of_all(job, step, config, set->n_cells, error);
    const bool ok = cells && put_cells(job, step, config, cells, set->n_cells, adapter, error);
    mem_free(cells);
    return ok;
}

bool tune_adapter_make(const Job *job, const StepOptions *step, const ModelConfig *config,
                       const char *run_folder, Adapter *adapter, Error *error) {
    const StepOptions *source = tune_contrast_source(job, step);
    StepOptions one = selecting(step);
    const int64_t first = 0;
    *adapter = (Adapter){0};
    if (step->control == CONTROL_ALL) return put_all(job, step, config, adapter, error);
    if (!run_folder && (step->top.n || source))
        return put_cells(job, step, config, &first, 1, adapter, error);
    char *path = source ? selection_path(step, source, run_folder, error) : NULL;
    if (source && !path) return false;
    if (source) one.selection = path, one.from.n = 0;
    Conditions conditions = {0};
    bool ok = conditions_make(job, &one, config, run_folder ? run_folder : "", &conditions, error) &&
              put_chosen(job, step, config, &conditions, adapter, error);
    conditions_free(&conditions);
    mem_free(path);
    return ok;
}

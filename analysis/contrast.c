/* The step: pairs, the blocks that are there already, those that are not, statistics, files. */
#include "contrast.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include <string.h>

typedef struct {
    const StepRun *run;
    const ContrastPairs *pairs;
    ContrastPass pass;
} Work;

/* ---- blocks ---- */
static bool measure_block(const Work *w, int64_t first, int64_t n, Measures *to, Error *error) {
    const StepRun *run = w->run;
    const ModelConfig *config = &run->model->config;
    bool ok = measures_make(STEP_CONTRAST, n, config->n_moe_layers, config->n_experts, to, error);
    for (int64_t at = 0; ok && at < n;) {
        int64_t size = contrast_batch_size(run->step, w->pairs, first + at, first + n, step_limits(run->job)),
                n_tokens = 0;
        ok = contrast_measure(&w->pass, first + at, size, at, to, error);
        if (!ok && error->code != ERROR_INTERRUPTED)
            error_add_place(error, "group %s, pairs from \"%.60s\"", w->pairs->side[0].options->name,
                            w->pairs->side[0].prompts[first + at].entry->id);
        for (int64_t i = at; i < at + size; i++) n_tokens += to->n_tokens[i];
        at += size;
        ok = ok && step_goes_on(run, error) &&
             progress_update(run->progress, first + at, run->progress->n_tokens + n_tokens, error);
    }
    return ok;
}

static bool take_block(const Work *w, int64_t first, Measures *whole, Error *error) {
    const PromptGroup *group = &w->pairs->side[0];
    int64_t n = step_block_length(group, first);
    Measures block = {0};
    bool there;
    char *path = step_block_path(w->run, "blocks", group, first, error);
    bool ok = path && step_load_block(w->run, path, whole, n, &block, &there, error);
    if (ok && !there) ok = measure_block(w, first, n, &block, error) && measures_save(&block, path, error);
    ok = ok && measures_append(whole, first, &block, error);
    measures_free(&block);
    mem_free(path);
    return ok;
}

static bool measure_pairs(const Work *w, Measures *to, Error *error) {
    const StepRun *run = w->run;
    const ModelConfig *config = &run->model->config;
    int64_t n = w->pairs->n, n_begun = step_count_finished(run, w->pairs->side, error);
    bool ok = error->code == ERROR_NONE &&
              progress_begin(run->progress, run->step->name, n, n_begun, "pairs", error) &&
              measures_make(STEP_CONTRAST, n, config->n_moe_layers, config->n_experts, to, error);
    for (int64_t first = 0; ok && first < n; first += BLOCK_PROMPTS) ok = take_block(w, first, to, error);
    return ok && progress_update(run->progress, n, run->progress->n_tokens, error) &&
           progress_end(run->progress, error);
}

/* ---- the step ---- */
static bool conclude(const StepRun *run, const ContrastPairs *pairs, const Measures *measures, Text *notes,
                     Error *error) {
    size_t n = (size_t)pairs->n + 1;
    const char **topics = mem_zeroed(n, sizeof *topics);
    int64_t *keys = mem_zeroed(n, sizeof *keys);
    ContrastStatistics statistics = {0};
    bool ok = (topics && keys) || error_out_of_memory(error, "topics", n * sizeof *topics);
    for (int64_t i = 0; ok && i < pairs->n; i++) {
        topics[i] = pairs->side[0].prompts[i].entry->topic;
        keys[i] = step_prompt_key(run, &pairs->side[0], i);
    }
    ContrastInput input = {.step = run->step,
                           .config = &run->model->config,
                           .seed = (uint64_t)run->job->options.seed,
                           .measures = measures,
                           .topics = topics,
                           .keys = keys};
    ok = ok && contrast_statistics_make(&input, &statistics, error);
    for (int r = 0; ok && r < N_RANKINGS; r++) {
        const ContrastRanking *ranking = &statistics.rankings[r];
        if (ranking->there && ranking->n_selected < statistics.n_wanted)
            text_format(notes,
                        "ranking %s selects %lld of %lld cells: the others have score 0 or are below "
                        "select_least\n",
                        contrast_ranking_names[r], (long long)ranking->n_selected,
                        (long long)statistics.n_wanted);
    }
    ContrastResults results = {run, pairs, &input, &statistics, notes->bytes};
    ok = ok && contrast_write(&results, error) && step_remove_blocks(run, error);
    contrast_statistics_free(&statistics);
    mem_free(topics);
    mem_free(keys);
    return ok;
}

bool contrast_run(const StepRun *run, Error *error) {
    ContrastPairs pairs = {0};
    Measures measures = {0};
    Text notes = {0};
    Work work = {.run = run,
                 .pairs = &pairs,
                 .pass = {.model = run->model,
                          .step = run->step,
                          .pairs = &pairs,
                          .memory_limit_bytes = (size_t)run->job->options.memory_limit_mib << 20}};
    bool ok = io_make_folders(run->folder, error) &&
              contrast_pairs_read(run->job, run->step, run->encoder, run->inputs, &pairs, &notes, error);
    if (ok) step_show_notes(run, &notes);
    ok = ok && measure_pairs(&work, &measures, error) && conclude(run, &pairs, &measures, &notes, error);
    measures_free(&measures);
    contrast_pairs_free(&pairs);
    text_free(&notes);
    return ok;
}

/* The step: pairs, measured by all ranks; statistics and files by the first. */
#include "contrast.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "share.h"
#include <string.h>

/* ---- pairs, shared by ranks ---- */
static int64_t pair_cost(const Share *share, int64_t list, int64_t item) {
    const ContrastPass *pass = share->context;
    (void)list;
    return contrast_pair_tokens(pass->step, pass->pairs, item);
}

static int64_t batch_pairs(const Share *share, const SharePart *part, int stage, int64_t at) {
    const ContrastPass *pass = share->context;
    (void)stage;
    return contrast_batch_size(pass->step, pass->pairs, part->first + at, part->first + part->n,
                               step_limits(share->run->job));
}

static bool measure_batch(const Share *share, SharePart *part, int stage, int64_t at, int64_t n,
                          Error *error) {
    const ContrastPass *pass = share->context;
    const PromptGroup *group = share->lists[0].group;
    Measures *to = &part->result.measures;
    (void)stage;
    const bool ok = contrast_measure(pass, part->first + at, n, at, to, error);
    if (!ok && error->code != ERROR_INTERRUPTED)
        error_add_place(error, "group %s, pairs from \"%.60s\"", group->options->name,
                        group->prompts[part->first + at].entry->id);
    for (int64_t i = at; i < at + n; i++) share->run->progress->n_tokens += to->n_tokens[i];
    return ok;
}

static bool serve_batch(const Share *share, int stage, Error *error) {
    (void)stage;
    (void)error;
    contrast_serve(share->context);
    return true;
}

static bool measure_pairs(const StepRun *run, ContrastPass *pass, Measures *to, Error *error) {
    const ModelConfig *config = &run->model->config;
    const PromptGroup *group = &pass->pairs->side[0];
    ShareList list = {.name = group->options->name, .group = group, .n = pass->pairs->n, .n_each = 1};
    Share share = {
        .run = run,
        .context = pass,
        .unit = "pairs",
        .lists = &list,
        .n_lists = 1,
        .n_stages = 1,
        .shape = {.kind = STEP_CONTRAST, .n_layers = config->n_moe_layers, .n_experts = config->n_experts},
        .n_rows = 1,
        .cost = pair_cost,
        .batch = batch_pairs,
        .measure = measure_batch,
        .serve = serve_batch};
    const bool ok = share_run(&share, error) && (run->comm->rank || share_take_measures(&share, to, error));
    share_free(&share);
    return ok;
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
    ContrastPass pass = {.model = run->model,
                         .step = run->step,
                         .pairs = &pairs,
                         .memory_limit_bytes = (size_t)run->job->options.memory_limit_mib << 20};
    const bool first = run->comm->rank == 0;
    bool ok = (!first || io_make_folders(run->folder, error)) &&
              contrast_pairs_read(run->job, run->step, run->encoder, run->inputs, &pairs, &notes, error);
    if (ok) step_show_notes(run, &notes);
    ok = comm_agree(run->comm, ok, error) && measure_pairs(run, &pass, &measures, error) &&
         (!first || conclude(run, &pairs, &measures, &notes, error));
    measures_free(&measures);
    contrast_pairs_free(&pairs);
    text_free(&notes);
    return ok;
}

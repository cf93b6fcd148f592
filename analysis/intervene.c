/* An intervention step: conditions and prompts, replies shared by ranks, tables by the first. */
#include "intervene.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "intervene_parts.h"
#include "share.h"
#include <string.h>

/* ---- shared by ranks: an item is n_together replies ---- */
static const Work *work_of(const Share *share) { return share->context; }

/* What decoding an item goes over: one model's conditions go together, each model's on their own. */
static int64_t item_sequences(const Work *w) {
    return w->models.n > 1 ? w->n_run - (w->models.n - 1) : w->n_forks;
}

static const EncodedPrompt *item_prompt(const Share *share, int64_t list, int64_t item) {
    const Work *w = work_of(share);
    return &share->lists[list].group->prompts[item * w->n_together / w->n_run];
}

static int64_t item_tokens(const Share *share, int64_t list, int64_t item) {
    const EncodedPrompt *prompt = item_prompt(share, list, item);
    int64_t n_behind = prompt->n_target;
    if (n_behind < share->run->step->max_new_tokens) n_behind = share->run->step->max_new_tokens;
    return item_sequences(work_of(share)) * (prompt->n_prompt + n_behind);
}

static bool begin_part(const Share *share, SharePart *part, int stage, Error *error) {
    (void)share;
    (void)stage;
    return measures_make_replies(&part->result.measures, 0, error);
}

/* As many as batch_tokens and batch_prompts allow. */
static int64_t batch_items(const Share *share, const SharePart *part, int stage, int64_t at) {
    const Work *w = work_of(share);
    const int64_t n_each = w->models.n > 1 ? item_sequences(w) : 1;
    int64_t n = 0, n_tokens = 0;
    (void)stage;
    for (; at + n < part->n; n++) {
        n_tokens += item_tokens(share, part->block->list, part->first + at + n);
        if (n && !batch_fits(step_limits(share->run->job), (n + 1) * n_each, n_tokens)) break;
    }
    return n;
}

static bool measure_items(const Share *share, SharePart *part, int stage, int64_t at, int64_t n,
                          Error *error) {
    const Work *w = work_of(share);
    const Span span = {.group = share->lists[part->block->list].group,
                       .at = (part->first + at) * w->n_together,
                       .n = n * w->n_together,
                       .to = &part->result.measures,
                       .row = at * w->n_together};
    (void)stage;
    return intervene_span(w, &span, error);
}

static bool serve_items(const Share *share, int stage, Error *error) {
    (void)stage;
    return intervene_serve(work_of(share), error);
}

static bool run_groups(Work *w, const PromptGroup *groups, Measures *replies, Error *error) {
    const StepRun *run = w->run;
    const int64_t n = run->step->groups.n;
    ShareList *lists = mem_zeroed((size_t)n, sizeof *lists);
    Share share = {.run = run,
                   .context = w,
                   .unit = "replies",
                   .lists = lists,
                   .n_lists = n,
                   .n_stages = 1,
                   .shape = {.kind = STEP_INTERVENTION},
                   .n_rows = w->n_together,
                   .cost = item_tokens,
                   .begin = begin_part,
                   .batch = batch_items,
                   .measure = measure_items,
                   .serve = serve_items};
    bool ok = lists || error_out_of_memory(error, "groups", (size_t)n * sizeof *lists);
    for (int64_t g = 0; ok && g < n; g++) {
        lists[g] = (ShareList){.name = groups[g].options->name,
                               .group = &groups[g],
                               .n = groups[g].n,
                               .n_each = w->n_run / w->n_together};
        for (int64_t p = 0; p < groups[g].n; p++)
            w->has_targets = w->has_targets || groups[g].prompts[p].n_target > 0;
    }
    ok = comm_agree(run->comm, ok, error) && share_run(&share, error) &&
         (run->comm->rank || share_take_measures(&share, replies, error));
    share_free(&share);
    mem_free(lists);
    return ok;
}

/* ---- the step ---- */
static bool list_running(const Conditions *conditions, Work *w, Text *notes, Error *error) {
    w->running = mem_zeroed((size_t)conditions->n, sizeof *w->running);
    if (!w->running)
        return error_out_of_memory(error, "conditions", (size_t)conditions->n * sizeof *w->running);
    for (int64_t i = 0; i < conditions->n; i++) {
        const Condition *c = &conditions->list[i];
        if (c->reason[0])
            text_format(notes, "condition %s is not defined: %s\n", c->name, c->reason);
        else
            w->running[w->n_run++] = i;
    }
    const bool forks = w->run->step->applies_to == APPLIES_TO_GENERATED && w->models.n == 1;
    w->n_forks = forks ? w->n_run : 1;
    w->n_together = w->models.n > 1 ? w->n_run : w->n_forks;
    return true;
}

static bool run_conditions(const StepRun *run, const Conditions *conditions, Error *error) {
    int64_t n = run->step->groups.n;
    PromptGroup *groups = NULL;
    Text notes = {0};
    Work work = {.run = run, .conditions = conditions};
    Measures *replies = mem_zeroed((size_t)n, sizeof *replies);
    const bool first = run->comm->rank == 0;
    bool ok = (replies || error_out_of_memory(error, "replies", (size_t)n * sizeof *replies)) &&
              (!first || io_make_folders(run->folder, error)) &&
              step_read_groups(run->job, run->step, run->encoder, run->inputs, &groups, &notes, error) &&
              adapted_models_open(run, &work.models, error) && list_running(conditions, &work, &notes, error);
    if (ok) step_show_notes(run, &notes);
    ok = comm_agree(run->comm, ok, error) && run_groups(&work, groups, replies, error);
    if (ok && first) {
        Intervention all = {run, conditions, groups, replies, work.running, work.n_run, notes.bytes};
        ok = intervene_write(&all, error) && step_remove_blocks(run, error);
    }
    for (int64_t g = 0; replies && g < n; g++) measures_free(&replies[g]);
    mem_free(replies);
    mem_free(work.running);
    adapted_models_close(&work.models);
    step_free_groups(groups, n);
    text_free(&notes);
    return ok;
}

bool intervene_run(const StepRun *run, Error *error) {
    Conditions conditions = {0};
    char *folder = io_folder_of(run->folder);
    bool ok = (folder || error_out_of_memory(error, "a path", strlen(run->folder))) &&
              conditions_make(run->job, run->step, &run->model->config, folder, &conditions, error);
    ok = comm_agree(run->comm, ok, error) && run_conditions(run, &conditions, error);
    conditions_free(&conditions);
    mem_free(folder);
    return ok;
}

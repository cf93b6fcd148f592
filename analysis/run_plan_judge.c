/* The plan of a judge step: its questions counted as tokens. What it reads was looked at before. */
#include "run_plan_parts.h"
#include "../engine/alloc.h"
#include "conditions.h"
#include "guard.h"
#include "judge_folder.h"
#include "judge_step.h"
#include <string.h>

/* A prompt that is too long is not replied to where such are left out: then it is no question either. */
static bool plan_question(const Guard *guard, const GuardText *text, const PromptOptions *options,
                          PromptGroup *question, Error *error) {
    Error own = {0};
    if (guard_encode(guard, text, 1, question, &own)) return true;
    if (own.code == ERROR_BAD_INPUT && options->over_long == OVER_LONG_SKIP) return true;
    return error_set(error, own.code, "%s", own.text);
}

/* Questions with a reply as long as it may be, whose tokens are no one's yet: one pass for each answer. */
static bool plan_questions(const Planner *p, const Guard *guard, PlannedWork *work, Error *error) {
    const StepOptions *source = judge_step_source(p->job, p->step);
    int64_t n_total, n_active, n_tokens = 0;
    bool ok = true;
    model_config_count(p->config, &n_total, &n_active);
    for (int64_t g = 0; ok && g < source->groups.n; g++) {
        const PromptOptions *options = job_prompts(p->job, source->groups.names[g]);
        PromptFile file = {0};
        ok = prompts_read(options, &file, error);
        for (int64_t i = 0; ok && i < file.n; i++) {
            const GuardText text = {file.entries[i].id, guard_prompt(&file.entries[i]), ""};
            PromptGroup question = {0};
            if (text.prompt) ok = plan_question(guard, &text, options, &question, error);
            const int64_t n = question.n ? question.prompts[0].n_prompt + source->max_new_tokens : 0;
            if (n > work->n_longest) work->n_longest = n;
            n_tokens += n;
            prompt_group_free(&question);
        }
        prompts_free(&file);
    }
    work->n_tokens = n_tokens * conditions_count(source) * guard_count(guard);
    work->flops = 2.0 * (double)n_active * (double)work->n_tokens;
    return ok;
}

/* Memory of a pass as full as batch_tokens allows. */
static bool plan_memory(const Planner *p, PlannedWork *work, Error *error) {
    const int64_t n = work->n_longest, fit = n ? p->job->options.batch_tokens / n : 1,
                  rows = fit > 1 ? fit : 1;
    const PassOptions options = {.want_nll = true};
    int64_t *offsets = mem_zeroed((size_t)rows + 1, sizeof *offsets);
    PassResult pass = {0};
    if (!offsets) return error_out_of_memory(error, "a plan", (size_t)rows * sizeof *offsets);
    for (int64_t i = 0; i <= rows; i++) offsets[i] = i * n;
    bool ok = model_plan(p->config, p->compute, p->weights, &(PromptBatch){rows, offsets, NULL}, &options,
                         &pass, error);
    work->weights_bytes = pass.weights_bytes;
    work->activation_bytes = pass.activation_bytes;
    pass_result_free(&pass);
    mem_free(offsets);
    return ok;
}

static bool plan_guard(const Planner *p, PlannedWork *work, Error *error) {
    Text facts = {0};
    char *path = judge_path(p->step->guard, JUDGE_STANDARD_GUARD, error);
    Guard *guard = path ? guard_read(path, error) : NULL;
    bool ok = guard && guard_open(guard, p->encoder, error) && plan_questions(p, guard, work, error) &&
              plan_memory(p, work, error);
    if (ok) {
        guard_put_facts(guard, p->step->model, &facts);
        fputs("  guard: ", p->to);
        if (facts.bytes && !facts.failed) plan_print_text(p->to, facts.bytes, facts.length);
        fprintf(p->to, "\n  questions: at most %lld tokens, the longest %lld, each once an answer\n",
                (long long)work->n_tokens, (long long)work->n_longest);
        ok = plan_print_cost(p, work, error);
    }
    guard_free(guard);
    text_free(&facts);
    mem_free(path);
    return ok;
}

bool plan_judge(const Planner *p, PlannedWork *work, Error *error) {
    fprintf(p->to, "step %s: judge of the replies of %s, by %s%srules\n", p->step->name,
            p->step->from.names[0], p->step->labels[0] ? "people, " : "",
            p->step->model[0] ? "guard model, " : "");
    if (p->encoder && !plan_guard(p, work, error)) return false;
    fputs("  files: ", p->to);
    plan_print_text(p->to, p->out, strlen(p->out));
    fprintf(p->to, "/%s/{step.json,judge.json,labels.csv,outcomes.csv%s}\n", p->step->name,
            p->step->labels[0] || p->step->model[0] ? ",agreement.csv" : "");
    return true;
}

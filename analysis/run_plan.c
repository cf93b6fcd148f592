/* The plan: encode as the run would, count on the cost device, print. */
#include "run_plan_parts.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/model.h"
#include "conditions.h"
#include "contrast.h"
#include "residency.h"
#include "step.h"
#include "tune_parts.h"
#include "utility.h"
#include <string.h>
#include <unistd.h>

static const double mib = 1 << 20;
enum { SAMPLE_BYTES = 600, RATE_MOST = 1024 };

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- one step ---- */
bool plan_walks_back(const StepOptions *step) {
    return step->kind == STEP_GRADIENT || step->kind == STEP_TUNE ||
           (step->kind == STEP_CONTRAST && contrast_walks_back(step));
}

static bool plan_batch(const Planner *p, const Batch *batch, PlannedWork *work, Error *error) {
    PromptBatch view = batch_view(batch);
    PassOptions options = {.memory_limit_bytes = (size_t)p->job->options.memory_limit_mib << 20};
    options.want_nll = p->step->kind == STEP_INTERVENTION || p->step->kind == STEP_UTILITY;
    if (plan_walks_back(p->step)) {
        options.loss_weights = batch->loss;
        options.recompute = (Recompute)p->step->recompute;
    }
    PassResult result = {0};
    bool ok = model_plan(p->config, p->compute, p->weights, &view, &options, &result, error);
    work->weights_bytes = result.weights_bytes;
    work->n_batches++;
    work->n_tokens += batch->n_tokens;
    work->flops += result.cost.flops;
    work->bytes += result.cost.bytes;
    work->recomputed = work->recomputed || result.recomputed;
    if (result.activation_bytes > work->activation_bytes) work->activation_bytes = result.activation_bytes;
    pass_result_free(&result);
    for (int64_t i = 0; ok && i < batch->n_prompts; i++)
        ok = planned_work_add(work, batch->offsets[i + 1] - batch->offsets[i], error);
    return ok && plan_frozen(p, batch, work, error);
}

/* Replies are as long as they may be in a plan; their tokens are no one's yet. */
static bool make_replies(const Planner *p, int64_t n, Measures *replies, Error *error) {
    *replies = (Measures){.n_prompts = n};
    int64_t most = p->step->max_new_tokens;
    if (!step_generates(p->step)) return true;
    if (!measures_make_replies(replies, n * most, error)) return false;
    for (int64_t i = 0; i <= n; i++) replies->reply_offsets[i] = i * most;
    return true;
}

/* A pass of a training holds examples of one step alone. */
static BatchLimits limits_of(const Planner *p) {
    BatchLimits limits = step_limits(p->job);
    const int64_t most = p->step->examples;
    if (p->step->kind == STEP_TUNE && (!limits.most_prompts || limits.most_prompts > most))
        limits.most_prompts = most;
    return limits;
}

static bool plan_group(const Planner *p, const PromptGroup *group, PlannedWork *work, Error *error) {
    int64_t n_total, n_active;
    model_config_count(p->config, &n_total, &n_active);
    bool ok = true;
    for (int64_t first = 0; ok && first < group->n; first += BLOCK_PROMPTS) {
        int64_t n = step_block_length(group, first);
        Measures replies;
        ok = make_replies(p, n, &replies, error);
        Block block = {.step = p->step, .group = group, .first = first, .n = n, .replies = &replies};
        for (int64_t at = 0; ok && at < n;) {
            int64_t n_batch = batch_size(&block, at, 0, limits_of(p));
            Batch batch;
            ok = batch_make(&block, at, n_batch, &batch, error) && plan_batch(p, &batch, work, error);
            if (ok && step_generates(p->step))
                work->reply_flops += 2.0 * (double)n_active * (double)batch.n_tokens;
            batch_free(&batch);
            at += n_batch;
        }
        for (int64_t i = 0; ok && i < n; i++) {
            const EncodedPrompt *prompt = &group->prompts[first + i];
            work->effect_flops += 2.0 * (double)n_active * (double)(prompt->n_prompt + prompt->n_target);
            int64_t length = block_prompt_tokens(&block, i);
            if (length > work->n_longest) work->n_longest = length;
        }
        measures_free(&replies);
    }
    return ok;
}

static bool plan_pairs(const Planner *p, const ContrastPairs *pairs, PlannedWork *work, Error *error) {
    bool ok = true;
    for (int64_t first = 0; ok && first < pairs->n; first += BLOCK_PROMPTS) {
        int64_t end = first + step_block_length(&pairs->side[0], first);
        for (int64_t at = first; ok && at < end;) {
            int64_t n = contrast_batch_size(p->step, pairs, at, end, step_limits(p->job));
            Batch batch;
            ok = contrast_batch_make(p->step, pairs, at, n, &batch, error) &&
                 plan_batch(p, &batch, work, error);
            for (int64_t i = 0; ok && i < batch.n_prompts; i++) {
                int64_t length = batch.offsets[i + 1] - batch.offsets[i];
                if (length > work->n_longest) work->n_longest = length;
            }
            batch_free(&batch);
            at += n;
        }
    }
    return ok;
}

/* ---- printing ---- */
void plan_print_text(FILE *to, const char *bytes, size_t n) {
    Text text = {0};
    text_put_terminal(&text, bytes, n);
    if (!text.failed && text.bytes) fputs(text.bytes, to);
    text_free(&text);
}

static void print_lines(FILE *to, const Text *notes) {
    for (const char *line = notes->bytes; line && *line;) {
        size_t n = strcspn(line, "\n");
        fputs("  warning: ", to);
        plan_print_text(to, line, n);
        fputc('\n', to);
        line += n + (line[n] == '\n');
    }
}

static void print_group(const Planner *p, const PromptGroup *group) {
    int64_t n_tokens = 0, n_target = 0;
    for (int64_t i = 0; i < group->n; i++) {
        n_tokens += group->prompts[i].n_prompt;
        n_target += group->prompts[i].n_target;
    }
    fprintf(p->to,
            "  group %s: %lld prompts, %lld tokens and %lld of targets; %lld truncated, %lld left out\n",
            group->options->name, (long long)group->n, (long long)n_tokens, (long long)n_target,
            (long long)group->n_truncated, (long long)group->n_left_out);
}

static bool print_sample(const Planner *p, const PromptGroup *group, Error *error) {
    ChatText text = {0};
    bool ok = prompts_render(p->encoder, group->options, group->prompts[0].entry, &text, error);
    if (ok) {
        size_t n = text.text.length, shown = n;
        if (shown > SAMPLE_BYTES) shown = SAMPLE_BYTES;
        while (shown && shown < n && ((unsigned char)text.text.bytes[shown] & 0xc0) == 0x80) shown--;
        fprintf(p->to, "  prompt \"");
        plan_print_text(p->to, group->prompts[0].entry->id, strlen(group->prompts[0].entry->id));
        fprintf(p->to, "\" as the model reads it (%lld tokens): ", (long long)group->prompts[0].n_prompt);
        plan_print_text(p->to, text.text.bytes ? text.text.bytes : "", shown);
        fputs(shown < n ? " ...\n" : "\n", p->to);
    }
    chat_text_free(&text);
    return ok;
}

/* Products at one rate, then what goes through memory at the other: they hardly overlap on a CPU. */
static double predict_seconds(const Planner *p, const PlannedWork *work) {
    return (work->flops + work->reply_flops) / p->rates.flops + work->bytes / p->rates.bytes;
}

/* What a run on this machine's device would do, where there is a choice. */
static bool print_residency(const Planner *p, Error *error) {
    Comm alone = comm_alone(p->device);
    Spread *spreads = NULL;
    const bool has_choice = p->device->copies || p->job->options.residency != RESIDENCY_AUTO;
    const bool ok = !has_choice || residency_choose(p->job, p->device, p->compute, &alone, &spreads, error);
    const int64_t n =
        ok && has_choice ? spreads[job_model(p->job, p->step->model) - p->job->models].n_streamed : 0;
    if (n)
        fprintf(p->to, "  residency: experts of %lld of %lld layers are streamed from the host\n",
                (long long)n, (long long)p->config->n_moe_layers);
    else if (ok && has_choice)
        fputs("  residency: all weights are on the device\n", p->to);
    mem_free(spreads);
    return ok;
}

bool plan_print_cost(const Planner *p, PlannedWork *work, Error *error) {
    double all = work->flops + work->reply_flops;
    if (plan_has_ranks(p)) return plan_print_ranks(p, work, error);
    work->seconds = predict_seconds(p, work);
    if (!print_residency(p, error)) return false;
    fprintf(p->to, "  memory: %.1f MiB weights + %.1f MiB of the largest pass = %.1f MiB\n",
            (double)work->weights_bytes / mib, (double)work->activation_bytes / mib,
            (double)(work->weights_bytes + work->activation_bytes) / mib);
    fprintf(p->to, "  work: %.3g GFLOP", all / 1e9);
    if (work->reply_flops > 0)
        fprintf(p->to, " (%.3g of them for replies, at their longest)", work->reply_flops / 1e9);
    fprintf(
        p->to,
        "\n  time: about %.2g s at %.3g GFLOP/s (a product %d x %lld x %lld) and %.3g GB/s, measured now\n",
        work->seconds, p->rates.flops / 1e9, RATE_ROWS, (long long)p->rate_n, (long long)p->rate_k,
        p->rates.bytes / 1e9);
    return true;
}

static bool print_work(const Planner *p, PlannedWork *work, Error *error) {
    bool gradient = plan_walks_back(p->step);
    fprintf(p->to, "  passes: %lld, %lld tokens, the longest prompt %lld%s\n", (long long)work->n_batches,
            (long long)work->n_tokens, (long long)work->n_longest,
            !gradient || plan_has_ranks(p) ? ""
            : work->recomputed             ? "; activations are recomputed"
                                           : "; activations are kept");
    if (!plan_print_cost(p, work, error)) return false;
    if (p->step->adapter[0] || p->step->adapter_path[0])
        fputs("  with the updates of an adapter, whose work is not in these numbers\n", p->to);
    if (p->step->kind == STEP_TUNE) return true;
    plan_print_files(p);
    return true;
}

/* What was counted is a pass over prompts with their replies: it scores these, in every condition. */
static void plan_conditions(const StepOptions *step, PlannedWork *work) {
    double n = (double)conditions_count(step), n_scored = step->reply_perplexity ? n : 0;
    work->flops *= n_scored;
    work->bytes *= n_scored;
    work->reply_flops *= n;
    work->times = n;
    if (step->side_effects != EFFECTS_NONE) work->flops += n * work->effect_flops;
}

static void print_head(const Planner *p) {
    fprintf(p->to, "step %s: %s of model %s (%s, chat template %s)\n", p->step->name,
            step_kind_names[p->step->kind], p->step->model, p->config->family,
            p->encoder->chat_template ? p->encoder->chat_template : "none");
}

static bool plan_contrast(const Planner *p, PlannedWork *work, Error *error) {
    ContrastPairs pairs;
    Text notes = {0};
    bool ok = contrast_pairs_read(p->job, p->step, p->encoder, NULL, &pairs, &notes, error) &&
              plan_pairs(p, &pairs, work, error);
    if (ok) {
        print_head(p);
        for (int s = 0; s < 2; s++) print_group(p, &pairs.side[s]);
        ok = print_work(p, work, error);
        print_lines(p->to, &notes);
        for (int s = 0; ok && s < 2; s++) ok = print_sample(p, &pairs.side[s], error);
    }
    contrast_pairs_free(&pairs);
    text_free(&notes);
    return ok;
}

/* The same texts under every model. */
static bool plan_utility(const Planner *p, PlannedWork *work, Error *error) {
    UtilityGroup *groups = NULL;
    Text notes = {0};
    const int64_t n = p->step->groups.n, n_models = 1 + p->step->adapters.n;
    bool ok = utility_read_groups(p->job, p->step, p->encoder, NULL, &groups, &notes, error);
    for (int64_t g = 0; ok && g < n; g++) ok = plan_group(p, groups[g].group, work, error);
    work->flops *= (double)n_models, work->bytes *= (double)n_models;
    work->n_batches *= n_models, work->n_tokens *= n_models;
    if (ok) {
        print_head(p);
        for (int64_t g = 0; g < n; g++) print_group(p, groups[g].group);
        ok = print_work(p, work, error);
        print_lines(p->to, &notes);
        for (int64_t g = 0; ok && g < n; g++) ok = print_sample(p, groups[g].group, error);
    }
    utility_free_groups(groups, n);
    text_free(&notes);
    return ok;
}

static bool plan_step(const Planner *p, PlannedWork *work, Error *error) {
    Text notes = {0};
    const int64_t n = p->step->groups.n;
    if (p->step->kind == STEP_CONTRAST) return plan_contrast(p, work, error);
    if (p->step->kind == STEP_UTILITY) return plan_utility(p, work, error);
    TuneGroups read = {.n = n};
    bool ok = p->step->kind == STEP_TUNE
                  ? tune_groups_read(p->job, p->step, p->encoder, NULL, &read, &notes, error)
                  : step_read_groups(p->job, p->step, p->encoder, NULL, &read.groups, &notes, error);
    const PromptGroup *groups = read.groups;
    for (int64_t g = 0; ok && g < n; g++)
        ok = plan_group(p, &groups[g], work, error) &&
             (!read.others || plan_group(p, &read.others[g], work, error));
    if (p->step->kind == STEP_INTERVENTION) plan_conditions(p->step, work);
    if (p->step->kind == STEP_TUNE) plan_training(p, groups, work);
    if (ok) {
        print_head(p);
        for (int64_t g = 0; g < n; g++) print_group(p, &groups[g]);
        ok = print_work(p, work, error);
        if (ok && p->step->kind == STEP_TUNE) ok = plan_print_training(p, groups, error);
        print_lines(p->to, &notes);
        for (int64_t g = 0; ok && g < n; g++) ok = print_sample(p, &groups[g], error);
    }
    tune_groups_free(&read);
    text_free(&notes);
    return ok;
}

static bool plan_measuring(Planner *p, PlannedWork *work, Error *error) {
    const ModelOptions *options = job_model(p->job, p->step->model);
    ModelConfig config = {0};
    PromptEncoder encoder = {0};
    const bool can_read = plan_can_read(options);
    bool ok = model_config_read(options->path, &config, error) &&
              (!can_read || prompt_encoder_open(options, &config, &encoder, error));
    if (!ok) error_add_place(error, "models.%s", options->name);
    p->config = &config;
    p->encoder = can_read ? &encoder : NULL;
    p->weights = model_config_dtype(&config);
    if (p->limits) p->rates = (Rates){p->limits->flops_per_s, p->limits->dram_bytes_per_s};
    if (ok && !p->limits) {
        p->rate_n = at_most(2 * config.expert_size, RATE_MOST);
        p->rate_k = at_most(config.hidden_size, RATE_MOST);
        p->rates = plan_measure_rates(p->device, p->rate_n, p->rate_k, error);
    }
    ok = ok && error->code == ERROR_NONE &&
         (!can_read                     ? plan_unread
          : p->step->kind == STEP_JUDGE ? plan_judge
                                        : plan_step)(p, work, error);
    prompt_encoder_close(&encoder);
    model_config_free(&config);
    return ok;
}

bool plan_can_read(const ModelOptions *model) {
    char *path = io_join(model->path, "tokenizer.json");
    const bool there = !path || io_exists(path);
    mem_free(path);
    return there;
}

static void print_end(const Planner *p, double seconds, double flops, size_t most, FILE *to) {
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    fprintf(to, "in all: %.3g GFLOP, about %.2g s", flops / 1e9, seconds);
    if (!plan_has_ranks(p))
        fprintf(to, ", at most %.1f MiB of this machine's %.0f MiB", (double)most / mib, memory / mib);
    fputc('\n', to);
    if ((double)most > memory && !plan_has_ranks(p))
        fputs("warning: that is more than this machine has\n", to);
}

bool run_plan(const Job *job, const char *out, const PlanDevice *on, FILE *to, Error *error) {
    Planner planner = {
        .job = job, .device = on->device, .limits = on->limits, .compute = on->compute, .out = out, .to = to};
    double seconds = 0, flops = 0;
    size_t most = 0;
    bool ok = true;
    fprintf(to, "job %s on %s, compute %s, run folder ", job->name,
            on->limits ? on->limits->name : on->device->name, dtype_name(on->compute));
    plan_print_text(to, out, strlen(out));
    fputc('\n', to);
    for (int64_t s = 0; ok && s < job->n_steps; s++) {
        PlannedWork work = {0};
        planner.step = &job->steps[s];
        planner.encoder = NULL;
        if (planner.step->kind == STEP_REPORT) {
            fprintf(to, "step %s: report\n", planner.step->name);
            continue;
        }
        ok = planner.step->model[0] ? plan_measuring(&planner, &work, error)
                                    : plan_judge(&planner, &work, error);
        flops += work.flops + work.reply_flops;
        seconds += work.seconds;
        if (work.weights_bytes + work.activation_bytes > most)
            most = work.weights_bytes + work.activation_bytes;
        planned_work_free(&work);
    }
    if (ok) print_end(&planner, seconds, flops, most, to);
    return ok;
}

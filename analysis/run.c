/* The run: inputs, device, folder, steps in order, report. Signals are asked for between batches. */
#include "run.h"
#include "../engine/alloc.h"
#include "../engine/clock.h"
#include "../engine/io.h"
#include "adapted.h"
#include "contrast.h"
#include "devices.h"
#include "intervene.h"
#include "judge_step.h"
#include "report.h"
#include "residency.h"
#include "run_folder.h"
#include "run_plan.h"
#include "step.h"
#include "tune.h"
#include "utility.h"
#include <omp.h>
#include <signal.h>
#include <string.h>

/* ---- signals ---- */
static volatile sig_atomic_t stop_wanted;

static void want_stop(int signal_number) {
    (void)signal_number;
    stop_wanted = 1;
}

enum { N_SIGNALS = 3 };
static const int signals[N_SIGNALS] = {SIGINT, SIGTERM, SIGUSR1};

/* The first signal asks for the end; with SA_RESETHAND the second one is the system's. What the caller
 * ignores (a shell that starts us in the background: SIGINT) stays ignored. */
static void catch_signals(struct sigaction before[N_SIGNALS]) {
    struct sigaction action = {.sa_handler = want_stop, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigemptyset(&action.sa_mask);
    stop_wanted = 0;
    for (int i = 0; i < N_SIGNALS; i++) {
        sigaction(signals[i], NULL, &before[i]);
        if (before[i].sa_handler != SIG_IGN) sigaction(signals[i], &action, NULL);
    }
}

static void restore_signals(const struct sigaction before[N_SIGNALS]) {
    for (int i = 0; i < N_SIGNALS; i++) sigaction(signals[i], &before[i], NULL);
}

/* ---- device ---- */
/* Of the process, for the run. */
static bool pick_dense(int choice, const Device *device, Error *error) {
    const char *why = "expected a GPU for it";
    if (device->dense_by_library && device->dense_by_library(choice == DENSE_CUBLAS, &why)) return true;
    return choice == DENSE_OWN || error_set(error, ERROR_UNAVAILABLE, "dense: cublas: %s", why);
}

/* ---- sets ---- */
/* False when the files of two groups have a prompt in common; `why` is said then. */
static bool check_apart(const PromptOptions *x, const PromptOptions *y, const char *why, Error *error) {
    PromptFile one = {0}, other = {0};
    int64_t first = 0, n = 0;
    bool ok = prompts_read(x, &one, error) && prompts_read(y, &other, error);
    if (ok) n = prompts_count_common(&one, &other, false, &first);
    if (n < 0) ok = error_out_of_memory(error, "hashes of prompts", (size_t)other.n * HASH_TEXT);
    if (n > 0)
        ok = error_set(error, ERROR_BAD_INPUT,
                       "prompts.%s: expected no prompt in common with prompts.%s (%s): got %lld, the first "
                       "\"%.80s\"",
                       x->name, y->name, why, (long long)n, one.entries[first].id);
    prompts_free(&one);
    prompts_free(&other);
    return ok;
}

/* Prompts that rank, tune and test must not be the same ones. */
static bool check_disjoint(const Job *job, Error *error) {
    bool ok = true;
    for (int64_t a = 0; ok && a < job->n_prompts; a++)
        for (int64_t b = a + 1; ok && b < job->n_prompts; b++) {
            const PromptOptions *x = &job->prompts[a], *y = &job->prompts[b];
            if (x->use == y->use || x->use == USE_ANY || y->use == USE_ANY) continue;
            char why[80];
            snprintf(why, sizeof why, "use: %s and %s", option_choice("use", SCOPE_PROMPTS, x->use),
                     option_choice("use", SCOPE_PROMPTS, y->use));
            ok = check_apart(x, y, why, error);
        }
    return ok;
}

static const StepOptions *find_step(const Job *job, const char *name) {
    const StepOptions *found = NULL;
    for (int64_t i = 0; i < job->n_steps; i++)
        if (!strcmp(job->steps[i].name, name)) found = &job->steps[i];
    return found;
}

static bool check_steps_apart(const Job *job, const StepOptions *source, const StepOptions *step,
                              Error *error) {
    bool ok = true;
    char why[160];
    snprintf(why, sizeof why, "step %.64s %s, step %.64s %s", source->name,
             source->kind == STEP_TUNE ? "tunes" : "ranks", step->name,
             step->kind == STEP_TUNE ? "tunes" : "tests");
    for (int64_t a = 0; ok && a < step->groups.n; a++)
        for (int64_t b = 0; ok && b < source->groups.n; b++)
            ok = check_apart(job_prompts(job, step->groups.names[a]),
                             job_prompts(job, source->groups.names[b]), why, error);
    return ok;
}

/* An intervention is tested, and cells are tuned, on prompts that did not rank them, whatever their use is
 * said to be; and an intervention and a utility on none that tuned an adapter of theirs. */
static bool check_tests(const Job *job, const StepOptions *step, Error *error) {
    const StepOptions *tuned = step_adapter_source(job, step);
    bool ok = !tuned || check_steps_apart(job, tuned, step, error);
    for (int64_t i = 0; ok && i < step->adapters.n; i++)
        ok = check_steps_apart(job, adapted_source(job, step, i), step, error);
    for (int64_t a = 0; ok && a < step->groups.n; a++)
        for (int64_t b = 0; ok && b < step->evaluate.n; b++)
            ok = check_apart(job_prompts(job, step->groups.names[a]),
                             job_prompts(job, step->evaluate.names[b]), "held out", error);
    for (int64_t f = 0; ok && f < step->from.n; f++)
        ok = check_steps_apart(job, find_step(job, step->from.names[f]), step, error);
    return ok;
}

/* Whether the examples of a training can be read: a plan may have a model's config.json alone. */
static bool has_tokenizer(const Job *job, const StepOptions *step) {
    return plan_can_read(job_model(job, step->model));
}

static bool check_sets(const Job *job, bool dry_run, Error *error) {
    bool ok = check_disjoint(job, error);
    for (int64_t s = 0; ok && s < job->n_steps; s++) {
        const StepOptions *step = &job->steps[s];
        if (step->kind == STEP_INTERVENTION || step->kind == STEP_TUNE || step->kind == STEP_UTILITY)
            ok = check_tests(job, step, error);
        if (ok && step->kind == STEP_TUNE && (!dry_run || has_tokenizer(job, step)))
            ok = tune_check(job, step, error);
        if (ok && step->kind == STEP_UTILITY && (!dry_run || has_tokenizer(job, step)))
            ok = utility_check(job, step, error);
        if (step->kind == STEP_JUDGE) ok = judge_step_check(job, step, error);
    }
    return ok;
}

/* ---- steps ---- */
typedef struct {
    const Job *job;
    const Inputs *inputs;
    const Device *device;
    DType compute;
    RunFolder *folder;
    Progress *progress;
    const ModelOptions *loaded; /* whose model and encoder are open; NULL: none */
    Model model;
    PromptEncoder encoder;
} Run;

static void close_model(Run *run) {
    if (!run->loaded) return;
    prompt_encoder_close(&run->encoder);
    model_close(&run->model);
    run->loaded = NULL;
}

static bool open_model(Run *run, const ModelOptions *options, Error *error) {
    if (run->loaded == options) return true;
    close_model(run);
    double begun = clock_seconds();
    int64_t n_streamed = 0;
    if (!residency_choose(run->job, options, run->device, run->compute, &n_streamed, error) ||
        !model_open_streamed(options->path, run->device, run->compute, n_streamed, &run->model, error))
        return error_add_place(error, "models.%s", options->name);
    if (!prompt_encoder_open(options, &run->model.config, &run->encoder, error)) {
        model_close(&run->model);
        return error_add_place(error, "models.%s", options->name);
    }
    run->loaded = options;
    progress_note(run->progress, "model %s: %.1f MiB in %.1f s", options->name,
                  (double)run->model.weights.n_bytes / (1 << 20), clock_seconds() - begun);
    if (n_streamed)
        progress_note(run->progress,
                      "model %s: experts of %lld of %lld layers are streamed, %.1f MiB on the host",
                      options->name, (long long)n_streamed, (long long)run->model.config.n_moe_layers,
                      (double)weight_stream_host_bytes(run->model.weights.stream) / (1 << 20));
    return true;
}

static bool put_event(Run *run, const char *name, const StepOptions *step, Error *error) {
    Event event = event_new(name);
    if (step) event_put_string(&event, "step/name", step->name);
    if (step) event_put_string(&event, "step/kind", step_kind_names[step->kind]);
    event_put_bool(&event, "run/resumed", run->folder->resumed);
    return event_append(&event, run->progress, error);
}

static bool run_measuring(Run *run, const StepOptions *step, const char *folder, Error *error) {
    StepRun one = {.job = run->job,
                   .step = step,
                   .model = &run->model,
                   .encoder = &run->encoder,
                   .inputs = run->inputs,
                   .folder = folder,
                   .progress = run->progress,
                   .stop = &stop_wanted};
    bool (*work)(const StepRun *, Error *) = step->kind == STEP_INTERVENTION ? intervene_run
                                             : step->kind == STEP_CONTRAST   ? contrast_run
                                             : step->kind == STEP_JUDGE      ? judge_step_run
                                             : step->kind == STEP_TUNE       ? tune_run
                                             : step->kind == STEP_UTILITY    ? utility_run
                                                                             : step_run;
    if (!step->model[0]) return work(&one, error);
    StepAdapter adapter = {0};
    bool ok = open_model(run, job_model(run->job, step->model), error) &&
              step_adapter_open(run->job, step, run->folder->path, &run->model, &adapter, error) &&
              work(&one, error);
    step_adapter_close(&run->model, &adapter);
    return ok;
}

static bool run_step(Run *run, const StepOptions *step, Error *error) {
    char *folder = io_join(run->folder->path, step->name),
         *facts = folder ? io_join(folder, "step.json") : NULL;
    bool ok = facts || error_out_of_memory(error, "a path", strlen(step->name));
    if (ok && step->kind != STEP_REPORT && io_exists(facts)) {
        progress_note(run->progress, "%s: finished before", step->name);
    } else if (ok) {
        ok = put_event(run, "step/begin", step, error);
        if (ok && step->kind == STEP_REPORT)
            ok = report_write(run->folder->path, run->progress, error);
        else
            ok = ok && run_measuring(run, step, folder, error);
        ok = ok && put_event(run, "step/end", step, error);
    }
    mem_free(facts);
    mem_free(folder);
    return ok;
}

static bool run_steps(Run *run, Error *error) {
    bool ok = put_event(run, "run/begin", NULL, error) && results_write_readme(run->folder->path, error);
    for (int64_t s = 0; ok && s < run->job->n_steps; s++) {
        ok = !stop_wanted || error_set(error, ERROR_INTERRUPTED,
                                       "interrupted before step %s; the same command goes on from there",
                                       run->job->steps[s].name);
        ok = ok && run_step(run, &run->job->steps[s], error);
    }
    close_model(run);
    return ok && put_event(run, "run/end", NULL, error);
}

/* ---- the run ---- */
/* How the run ended goes into the manifest; a second failure there changes nothing. */
static bool note_end(RunFolder *folder, const RunFacts *facts, bool ok, Error *error) {
    if (ok) return run_folder_write_manifest(folder, facts, "finished", error);
    Error own = {0};
    run_folder_write_manifest(folder, facts, error->code == ERROR_INTERRUPTED ? "interrupted" : "failed",
                              &own);
    return false;
}

static bool run_in_folder(const char *path, const Job *job, const Inputs *inputs, const Device *device,
                          const char *version, Error *error) {
    DType compute = devices_compute((ComputeChoice)job->options.compute, device);
    RunFacts facts = {.job = job,
                      .inputs = inputs,
                      .version = version ? version : "unknown",
                      .device = device == cuda_device(NULL) ? "cuda" : "cpu",
                      .isa = device->name,
                      .compute = dtype_name(compute),
                      .n_threads = omp_get_max_threads()};
    inputs_identity(job, facts.device, facts.compute, inputs, facts.identity, error);
    RunFolder folder = {.lock = -1};
    if (error->code != ERROR_NONE || !run_folder_open(&folder, path, &facts, error)) {
        run_folder_close(&folder);
        return false;
    }
    char *events = io_join(path, "events.jsonl");
    bool ok = events || error_out_of_memory(error, "a path", strlen(path));
    if (ok) {
        Progress progress = progress_new(events);
        Run run = {.job = job,
                   .inputs = inputs,
                   .device = device,
                   .compute = compute,
                   .folder = &folder,
                   .progress = &progress};
        ok = run_steps(&run, error);
    }
    ok = note_end(&folder, &facts, ok, error);
    run_folder_close(&folder);
    mem_free(events);
    return ok;
}

static char *default_folder(const Job *job) {
    size_t n = strlen(job->name) + 6;
    char *path = mem_alloc(n);
    if (path) snprintf(path, n, "runs/%s", job->name);
    return path;
}

/* h100 and the like are files of configs/devices. */
static bool read_limits(const char *name, RankDevice *limits, Error *error) {
    char *file = NULL, *path = NULL;
    if (io_exists(name)) return rank_device_read(name, limits, error);
    Text known = {0};
    text_format(&known, "devices/%s.json", io_last_name(name));
    if (!known.failed) file = io_join(model_config_folder(), known.bytes);
    path = file && io_exists(file) ? file : NULL;
    bool ok =
        path ? rank_device_read(path, limits, error)
             : error_set(error, ERROR_BAD_INPUT, "device_file: expected h100, h200 or a file: got %s", name);
    text_free(&known);
    mem_free(file);
    return ok;
}

/* A device's file stands for the device: the machine need not have it. */
static bool plan_job(const Job *job, const char *out, FILE *to, Error *error) {
    const ComputeChoice compute = (ComputeChoice)job->options.compute;
    RankDevice limits;
    PlanDevice on = {.compute = compute == COMPUTE_F32 ? DTYPE_F32 : DTYPE_BF16};
    if (job->options.device_file[0]) {
        on.limits = &limits;
        return read_limits(job->options.device_file, &limits, error) && run_plan(job, out, &on, to, error);
    }
    if (!devices_pick((DeviceChoice)job->options.device, "device", &on.device, error) ||
        !pick_dense(job->options.dense, on.device, error))
        return false;
    if (job->options.ranks > 1 && on.device == cuda_device(NULL))
        return error_set(
            error, ERROR_BAD_INPUT,
            "device_file: expected the file of the GPU's limits for a plan on %lld ranks: got none",
            (long long)job->options.ranks);
    on.compute = devices_compute(compute, on.device);
    return run_plan(job, out, &on, to, error);
}

static bool check_ranks(const Job *job, Error *error) {
    if (job->options.ranks <= 1) return true;
    return error_set(error, ERROR_BAD_INPUT,
                     "ranks: expected 1, the number that was started: got %lld (--dry-run plans for others)",
                     (long long)job->options.ranks);
}

static bool compute_job(const Job *job, const char *out, const char *version, Error *error) {
    const Device *device = NULL;
    Inputs inputs = {0};
    bool ok = check_ranks(job, error) &&
              devices_pick((DeviceChoice)job->options.device, "device", &device, error) &&
              pick_dense(job->options.dense, device, error) && inputs_gather(job, &inputs, error);
    if (ok) {
        struct sigaction before[N_SIGNALS];
        catch_signals(before);
        ok = run_in_folder(out, job, &inputs, device, version, error);
        restore_signals(before);
    }
    inputs_free(&inputs);
    return ok;
}

bool run_job(const RunRequest *request, Error *error) {
    Job job = {0};
    char *out = NULL;
    bool ok = job_read(request->job, (JobSettings){request->sets, request->n_sets}, &job, error) &&
              check_sets(&job, request->dry_run, error);
    if (ok) out = request->out ? mem_copy_text(request->out, strlen(request->out)) : default_folder(&job);
    ok = ok && (out || error_out_of_memory(error, "a path", 1));
    if (ok)
        ok = request->dry_run ? plan_job(&job, out, request->to, error)
                              : compute_job(&job, out, request->version, error);
    mem_free(out);
    job_free(&job);
    return ok;
}

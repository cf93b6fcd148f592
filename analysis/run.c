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
#include "ranks.h"
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
    Comm *comm;
    Spread *spreads;            /* [n_models] where their experts are to be */
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

/* What computes with a model; the others are rank 0's alone. */
static bool runs_on_all(const StepOptions *step) { return step->kind != STEP_REPORT && step->model[0]; }

/* A training has its tokens at home. */
static Spread spread_of(const Run *run, const ModelOptions *options, const StepOptions *step) {
    const Spread *spread = &run->spreads[options - run->job->models];
    return step->kind == STEP_TUNE ? residency_of_training(spread) : *spread;
}

static bool open_model(Run *run, const ModelOptions *options, const StepOptions *step, Error *error) {
    const Spread spread = spread_of(run, options, step);
    char where[200];
    if (run->loaded == options && residency_is_same(&run->model.spread, &spread)) return true;
    close_model(run);
    double begun = clock_seconds();
    if (!model_open_spread(options->path, run->device, run->compute, &spread, &run->model, error))
        return error_add_place(error, "models.%s", options->name);
    if (!prompt_encoder_open(options, &run->model.config, &run->encoder, error)) {
        model_close(&run->model);
        return error_add_place(error, "models.%s", options->name);
    }
    run->loaded = options;
    progress_note(run->progress, "model %s: %.1f MiB in %.1f s", options->name,
                  (double)run->model.weights.n_bytes / (1 << 20), clock_seconds() - begun);
    residency_describe(&run->model, run->comm->size, where);
    if (where[0]) progress_note(run->progress, "model %s: %s", options->name, where);
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
                   .stop = &stop_wanted,
                   .comm = run->comm};
    bool (*work)(const StepRun *, Error *) = step->kind == STEP_INTERVENTION ? intervene_run
                                             : step->kind == STEP_CONTRAST   ? contrast_run
                                             : step->kind == STEP_JUDGE      ? judge_step_run
                                             : step->kind == STEP_TUNE       ? tune_run
                                             : step->kind == STEP_UTILITY    ? utility_run
                                                                             : step_run;
    if (!step->model[0]) return work(&one, error);
    StepAdapter adapter = {0};
    bool ok = open_model(run, job_model(run->job, step->model), step, error) &&
              step_adapter_open(run->job, step, run->folder->path, &run->model, &adapter, error);
    ok = comm_agree(run->comm, ok, error) && work(&one, error);
    step_adapter_close(&run->model, &adapter);
    return ok;
}

/* Which steps earlier runs finished, rank 0 says. */
static bool is_finished(Run *run, const StepOptions *step, const char *facts) {
    int64_t finished = run->comm->rank == 0 && step->kind != STEP_REPORT && io_exists(facts);
    comm_max_i64(run->comm, &finished, 1);
    if (finished) progress_note(run->progress, "%s: finished before", step->name);
    return finished != 0;
}

static bool do_step(Run *run, const StepOptions *step, const char *folder, Error *error) {
    if (run->comm->rank && !runs_on_all(step)) return true;
    bool ok = put_event(run, "step/begin", step, error);
    if (runs_on_all(step)) ok = comm_agree(run->comm, ok, error);
    if (ok && step->kind == STEP_REPORT)
        ok = report_write(run->folder->path, run->progress, error);
    else
        ok = ok && run_measuring(run, step, folder, error);
    return ok && put_event(run, "step/end", step, error);
}

static bool run_step(Run *run, const StepOptions *step, Error *error) {
    char *folder = io_join(run->folder->path, step->name),
         *facts = folder ? io_join(folder, "step.json") : NULL;
    bool ok = facts || error_out_of_memory(error, "a path", strlen(step->name));
    ok = ok && (!stop_wanted ||
                error_set(error, ERROR_INTERRUPTED,
                          "interrupted before step %s; the same command goes on from there", step->name));
    comm_phase("step %.40s", step->name);
    ok = comm_agree(run->comm, ok, error);
    if (ok && !is_finished(run, step, facts)) {
        ok = do_step(run, step, folder, error);
        comm_phase("step %.40s, end", step->name);
        ok = comm_agree(run->comm, ok, error);
    }
    mem_free(facts);
    mem_free(folder);
    return ok;
}

static bool run_steps(Run *run, Error *error) {
    bool ok = put_event(run, "run/begin", NULL, error) &&
              (run->comm->rank || results_write_readme(run->folder->path, error));
    ok = comm_agree(run->comm, ok, error) &&
         residency_choose(run->job, run->device, run->compute, run->comm, &run->spreads, error);
    for (int64_t s = 0; ok && s < run->job->n_steps; s++) ok = run_step(run, &run->job->steps[s], error);
    close_model(run);
    mem_free(run->spreads);
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

/* Rank 0 alone writes and shows; the others know the folder's path. */
static bool open_folder(Comm *comm, const char *path, const RunFacts *facts, RunFolder *folder,
                        Error *error) {
    if (comm->rank == 0) return run_folder_open(folder, path, facts, error);
    folder->path = mem_copy_text(path, strlen(path));
    return folder->path || error_out_of_memory(error, "a path", strlen(path));
}

static bool run_in_folder(Run *run, const RunFacts *facts, const char *path, Error *error) {
    RunFolder folder = {.lock = -1};
    char *events = io_join(path, "events.jsonl");
    bool ok = events || error_out_of_memory(error, "a path", strlen(path));
    ok = ok && open_folder(run->comm, path, facts, &folder, error);
    bool opened = ok;
    comm_phase("open the run folder");
    ok = comm_agree(run->comm, ok, error);
    if (ok) {
        Progress progress = run->comm->rank ? (Progress){0} : progress_new(events);
        run->progress = &progress;
        run->folder = &folder;
        ok = run_steps(run, error);
    }
    if (opened && run->comm->rank == 0) ok = note_end(&folder, facts, ok, error);
    run_folder_close(&folder);
    mem_free(events);
    return ok;
}

static bool run_on_ranks(Run *run, const char *path, const char *version, Error *error) {
    RunFacts facts = {.job = run->job,
                      .inputs = run->inputs,
                      .version = version ? version : "unknown",
                      .device = run->device == cuda_device(NULL) ? "cuda" : "cpu",
                      .isa = run->device->name,
                      .compute = dtype_name(run->compute),
                      .n_threads = omp_get_max_threads(),
                      .n_ranks = run->comm->size};
    inputs_identity(run->job, facts.device, facts.compute, run->inputs, facts.identity, error);
    bool ok = comm_agree(run->comm, error->code == ERROR_NONE, error) &&
              ranks_check_alike(run->comm, &facts, error) && run_in_folder(run, &facts, path, error);
    /* a last failure of rank 0 is everyone's: the exit codes agree */
    return comm_agree(run->comm, ok, error);
}

static char *default_folder(const Job *job) {
    size_t n = strlen(job->name) + 6;
    char *path = mem_alloc(n);
    if (path) snprintf(path, n, "runs/%s", job->name);
    return path;
}

static bool check_ranks(const Job *job, const Comm *comm, Error *error) {
    if (job->options.ranks <= 1 || job->options.ranks == comm->size) return true;
    return error_set(error, ERROR_BAD_INPUT,
                     "ranks: expected %d, the number that was started: got %lld (--dry-run plans for others)",
                     comm->size, (long long)job->options.ranks);
}

static bool compute_job(const Job *job, const char *out, const char *version, Comm *comm, Error *error) {
    const Device *device = NULL;
    Inputs inputs = {0};
    comm_phase("read the job");
    bool ok = check_ranks(job, comm, error) &&
              devices_pick((DeviceChoice)job->options.device, "device", &device, error) &&
              devices_pick_dense(job->options.dense, device, error) && inputs_gather(job, &inputs, error);
    ok = comm_agree(comm, ok, error) && comm_use_device(comm, device, false, error);
    if (ok) {
        Run run = {.job = job,
                   .inputs = &inputs,
                   .device = device,
                   .compute = devices_compute((ComputeChoice)job->options.compute, device),
                   .comm = comm};
        struct sigaction before[N_SIGNALS];
        catch_signals(before);
        ok = run_on_ranks(&run, out, version, error);
        restore_signals(before);
    }
    inputs_free(&inputs);
    return ok;
}

bool run_job(const RunRequest *request, Error *error) {
    Comm alone = comm_alone(NULL), *comm = request->comm ? request->comm : &alone;
    Job job = {0};
    char *out = NULL;
    bool ok = job_read(request->job, (JobSettings){request->sets, request->n_sets}, &job, error) &&
              (job.options.device == DEVICE_CPU || ranks_set_gpu(comm, error)) &&
              check_sets(&job, request->dry_run, error);
    if (ok) out = request->out ? mem_copy_text(request->out, strlen(request->out)) : default_folder(&job);
    ok = ok && (out || error_out_of_memory(error, "a path", 1));
    ok = comm_agree(comm, ok, error);
    if (ok && request->dry_run)
        ok = comm->rank || run_plan_job(&job, out, request->to, error);
    else if (ok)
        ok = compute_job(&job, out, request->version, comm, error);
    mem_free(out);
    job_free(&job);
    return ok;
}

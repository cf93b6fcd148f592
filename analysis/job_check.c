/* What a job must be beyond the types of its values: names that refer to something, and --set. */
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../kernels/ops.h"
#include "adapted.h"
#include "contrast.h"
#include "job.h"
#include "judge_folder.h"
#include "statistics.h"
#include "tune.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_KNOWN = 64 };

static void put_near(const char *name, const char *const *known, size_t n, char *to, size_t capacity) {
    const char *near = n ? json_nearest(name, known, n) : NULL;
    snprintf(to, capacity, "%s%s%s", near ? " (did you mean \"" : "", near ? near : "", near ? "\"?)" : "");
}

static size_t list_models(const Job *job, const char **known) {
    size_t n = 0;
    for (int64_t i = 0; i < job->n_models && n < MAX_KNOWN; i++) known[n++] = job->models[i].name;
    return n;
}

static size_t list_prompts(const Job *job, const char **known) {
    size_t n = 0;
    for (int64_t i = 0; i < job->n_prompts && n < MAX_KNOWN; i++) known[n++] = job->prompts[i].name;
    return n;
}

static size_t list_steps(const Job *job, int64_t n_steps, const char **known) {
    size_t n = 0;
    for (int64_t i = 0; i < n_steps && n < MAX_KNOWN; i++)
        if (job->steps[i].name) known[n++] = job->steps[i].name;
    return n;
}

/* ---- checks ---- */
static void complain(const Job *job, Problems *problems, int64_t step, const char *key, const char *what) {
    Error error = {0};
    error_set(&error, ERROR_BAD_INPUT, "%s: steps[%lld].%s: %s", job->file, (long long)step, key, what);
    problems_add(problems, &error);
}

/* Files and folders of a run folder that are not steps. */
static bool is_reserved(const char *name) { return !strcmp(name, "figures"); }

static void check_name(const Job *job, int64_t s, Problems *problems) {
    const char *name = job->steps[s].name;
    char what[200];
    snprintf(what, sizeof what, "expected a name of letters, digits, _ and -, not figures: got \"%.64s\"",
             name);
    if (!job_is_name(name) || is_reserved(name)) complain(job, problems, s, "name", what);
    for (int64_t i = 0; i < s; i++)
        if (job->steps[i].name && !strcmp(job->steps[i].name, name)) {
            snprintf(what, sizeof what, "expected another name than that of steps[%lld]: got \"%.64s\"",
                     (long long)i, name);
            complain(job, problems, s, "name", what);
        }
}

/* Classes of cells are named by groups, or shared. */
static void check_group_name(const Job *job, int64_t i, Problems *problems) {
    Error error = {0};
    if (!strcmp(job->prompts[i].name, "shared"))
        error_set(&error, ERROR_BAD_INPUT,
                  "%s: prompts.shared: expected another name: \"shared\" is the class of cells that prefer "
                  "no group",
                  job->file);
    problems_add(problems, &error);
}

static void check_model(const Job *job, int64_t s, Problems *problems) {
    StepOptions *step = &job->steps[s];
    if (!step->model[0] && job->n_models == 1) step->model = job->models[0].name;
    if (job_model(job, step->model)) return;
    const char *known[MAX_KNOWN];
    char near[120], what[300];
    put_near(step->model, known, list_models(job, known), near, sizeof near);
    snprintf(what, sizeof what, "expected a model of the job: got \"%.80s\"%s", step->model, near);
    complain(job, problems, s, "model", what);
}

static void check_groups(const Job *job, int64_t s, Problems *problems) {
    StepOptions *step = &job->steps[s];
    if (!step->groups.n && job->n_prompts) {
        const char **names = mem_resize(step->groups.names, (size_t)job->n_prompts, sizeof *names);
        Error error = {0};
        if (!names) error_out_of_memory(&error, "groups", (size_t)job->n_prompts * sizeof *names);
        problems_add(problems, &error);
        for (int64_t i = 0; names && i < job->n_prompts; i++) names[i] = job->prompts[i].name;
        if (names) step->groups = (NameList){names, job->n_prompts};
    }
    if (!step->groups.n) complain(job, problems, s, "groups", "expected a prompt group: got none");
    for (int64_t i = 0; i < step->groups.n; i++) {
        const char *name = step->groups.names[i];
        if (job_prompts(job, name)) continue;
        const char *known[MAX_KNOWN];
        char near[120], what[300];
        put_near(name, known, list_prompts(job, known), near, sizeof near);
        snprintf(what, sizeof what, "expected a prompt group of the job: got \"%.80s\"%s", name, near);
        complain(job, problems, s, "groups", what);
    }
}

static void check_from(const Job *job, int64_t s, Problems *problems) {
    const NameList *from = &job->steps[s].from;
    for (int64_t i = 0; i < from->n; i++) {
        bool found = false;
        for (int64_t k = 0; k < s; k++)
            found = found || (job->steps[k].name && !strcmp(job->steps[k].name, from->names[i]));
        if (found) continue;
        const char *known[MAX_KNOWN];
        char near[120], what[300];
        put_near(from->names[i], known, list_steps(job, s, known), near, sizeof near);
        snprintf(what, sizeof what, "expected a step before this one: got \"%.80s\"%s", from->names[i], near);
        complain(job, problems, s, "from", what);
    }
}

static void check_statistics(const Job *job, int64_t s, Problems *problems) {
    Error error = {0};
    const char *wrong = statistics_contradiction(&job->steps[s]);
    if (wrong) error_set(&error, ERROR_BAD_INPUT, "%s: steps[%lld].%s", job->file, (long long)s, wrong);
    problems_add(problems, &error);
}

static const StepOptions *find_before(const Job *job, int64_t s, const char *name) {
    for (int64_t i = 0; i < s; i++)
        if (job->steps[i].name && !strcmp(job->steps[i].name, name)) return &job->steps[i];
    return NULL;
}

static bool has_group(const StepOptions *step, const char *group) {
    for (int64_t i = 0; i < step->groups.n; i++)
        if (!strcmp(step->groups.names[i], group)) return true;
    return false;
}

/* A step that an intervention reads scores or counts of: a measuring one of the same model that has the
 * groups. */
static void check_source(const Job *job, int64_t s, const char *key, const char *name, Problems *problems) {
    const StepOptions *step = &job->steps[s], *source = find_before(job, s, name);
    char what[400];
    if (!source) return; /* check_from has said so */
    if (source->kind != STEP_ACTIVATION && source->kind != STEP_GRADIENT) {
        snprintf(what, sizeof what, "expected a step of kind activation or gradient: got \"%.64s\"", name);
        complain(job, problems, s, key, what);
    }
    if (strcmp(source->model, step->model) != 0) {
        snprintf(what, sizeof what, "expected a step of the model %.64s: got \"%.64s\" of %.64s", step->model,
                 name, source->model);
        complain(job, problems, s, key, what);
    }
    for (int64_t i = 0; !strcmp(key, "from") && i < step->rank_groups.n; i++) {
        if (has_group(source, step->rank_groups.names[i])) continue;
        snprintf(what, sizeof what, "expected groups of the step %.64s: got \"%.80s\"", name,
                 step->rank_groups.names[i]);
        complain(job, problems, s, "rank_groups", what);
    }
}

/* Fills in where counts come from: the first activation step of `from`; and whose traffic: the last ranked
 * group. */
static void check_counts(const Job *job, int64_t s, Problems *problems) {
    StepOptions *step = &job->steps[s];
    for (int64_t i = 0; !step->counts[0] && i < step->from.n; i++) {
        const StepOptions *source = find_before(job, s, step->from.names[i]);
        if (source && source->kind == STEP_ACTIVATION) step->counts = source->name;
    }
    const StepOptions *counts = step->counts[0] ? find_before(job, s, step->counts) : NULL;
    bool reads = step->traffic.n || step->traffic_matched_sets || step->exclude_super;
    if (reads && (!counts || counts->kind != STEP_ACTIVATION)) {
        complain(job, problems, s, "counts",
                 "expected an activation step before this one, for traffic and super experts (or traffic [], "
                 "traffic_matched_sets 0 and exclude_super false)");
        return;
    }
    if (!counts) return;
    check_source(job, s, "counts", step->counts, problems);
    if (!step->traffic_group[0] && step->rank_groups.n)
        step->traffic_group = step->rank_groups.names[step->rank_groups.n - 1];
    if (!step->traffic_group[0] && counts->groups.n)
        step->traffic_group = counts->groups.names[counts->groups.n - 1];
    char what[300];
    snprintf(what, sizeof what, "expected a group of the step %.64s: got \"%.80s\"", step->counts,
             step->traffic_group);
    if (!has_group(counts, step->traffic_group)) complain(job, problems, s, "traffic_group", what);
}

static void check_ranking(const Job *job, int64_t s, Problems *problems) {
    const StepOptions *step = &job->steps[s];
    bool by_rule = step->top.n || step->traffic.n;
    for (int64_t i = 0; i < step->from.n; i++) check_source(job, s, "from", step->from.names[i], problems);
    if (!by_rule && !step->cells.n && !step->selection[0] && !step->adapters.n)
        complain(job, problems, s, "top",
                 step->kind == STEP_INTERVENTION
                     ? "expected top, traffic, cells, selection or adapters: got none of them"
                     : "expected top, cells or selection: got none of them");
    if (by_rule && !step->from.n)
        complain(job, problems, s, "from", "expected the steps whose scores rank the cells: got none");
    int64_t most = step->rank_by == RANK_SCORE ? 1 : 2;
    if (by_rule && step->rank_groups.n != most)
        complain(job, problems, s, "rank_groups",
                 most == 2 ? "expected two groups of the ranking steps"
                           : "expected one group for rank_by score");
    if (step->class_ratio > 0 && most == 1)
        complain(job, problems, s, "class_ratio",
                 "expected rank_by difference or ratio, which have two groups");
    for (int64_t i = 0; i < step->top.n; i++)
        if (step->top.values[i] != (double)(int64_t)step->top.values[i])
            complain(job, problems, s, "top", "expected whole numbers of cells");
}

static void check_intervention(const Job *job, int64_t s, Problems *problems) {
    const StepOptions *step = &job->steps[s];
    const bool edits = step->top.n || step->traffic.n || step->cells.n || step->selection[0];
    check_ranking(job, s, problems);
    if (!edits && step->adapters.n) return; /* nothing to count or to match */
    if (step->mode + EDIT_MASK == EDIT_FORCE && (step->random_sets || step->traffic_matched_sets))
        complain(job, problems, s, "random_sets",
                 "expected 0, and traffic_matched_sets 0, with mode force: a random set has not as many "
                 "cells of a layer as a token takes");
    check_counts(job, s, problems);
}

static void check_contrast(const Job *job, int64_t s, Problems *problems) {
    const StepOptions *step = &job->steps[s];
    const char *groups = contrast_wrong_groups(step), *key = NULL,
               *wrong = contrast_contradiction(step, &key);
    if (groups) complain(job, problems, s, "groups", groups);
    if (wrong) complain(job, problems, s, key, wrong);
}

/* Who decides must have a label for every reply. */
static void check_decides(const Job *job, int64_t s, Problems *problems) {
    const StepOptions *step = &job->steps[s];
    bool always = false;
    char what[200];
    for (int64_t i = 0; i < step->decides.n; i++) {
        const char *name = step->decides.names[i];
        int l = 0;
        while (labeller_names[l] && strcmp(labeller_names[l], name) != 0) l++;
        always = always || l == LABELLER_RULES || (l == LABELLER_GUARD && step->model[0]);
        snprintf(what, sizeof what, "expected people, guard or rules: got \"%.80s\"", name);
        if (!labeller_names[l]) complain(job, problems, s, "decides", what);
    }
    if (!always)
        complain(
            job, problems, s, "decides",
            "expected rules among them, or guard where a model is given: people do not label every reply");
}

static void check_judge(const Job *job, int64_t s, Problems *problems) {
    StepOptions *step = &job->steps[s];
    const StepOptions *source = step->from.n == 1 ? find_before(job, s, step->from.names[0]) : NULL;
    char what[200];
    if (step->from.n != 1)
        complain(job, problems, s, "from", "expected the one intervention step whose replies are judged");
    if (source && source->kind != STEP_INTERVENTION) {
        snprintf(what, sizeof what, "expected a step of kind intervention: got \"%.64s\" of kind %s",
                 source->name, step_kind_names[source->kind]);
        complain(job, problems, s, "from", what);
    }
    if (step->model[0]) check_model(job, s, problems);
    if (step->guard[0] && !step->model[0])
        complain(job, problems, s, "model",
                 "expected the guard model that is asked what guard says: got none");
    check_decides(job, s, problems);
}

static void check_complete(const Job *job, const char *place, OptionScope scope, int kind, const void *record,
                           Problems *problems) {
    Error error = {0};
    Json root = {.file = job->file}, at = {.parent = &root, .key = place, .file = job->file};
    options_complete(scope, kind, record, place[0] ? at : root, &error);
    problems_add(problems, &error);
}

void job_check(Job *job, Problems *problems) {
    char place[120];
    check_complete(job, "", SCOPE_JOB, -1, &job->options, problems);
    for (int64_t i = 0; i < job->n_models; i++) {
        snprintf(place, sizeof place, "models.%.80s", job->models[i].name);
        check_complete(job, place, SCOPE_MODEL, -1, &job->models[i], problems);
    }
    for (int64_t i = 0; i < job->n_prompts; i++) {
        snprintf(place, sizeof place, "prompts.%.80s", job->prompts[i].name);
        check_complete(job, place, SCOPE_PROMPTS, -1, &job->prompts[i], problems);
        check_group_name(job, i, problems);
    }
    if (!job->n_steps && !problems->n) {
        Error error = {0};
        error_set(&error, ERROR_BAD_INPUT, "%s: steps: expected at least one step: got none", job->file);
        problems_add(problems, &error);
    }
    for (int64_t s = 0; s < job->n_steps; s++) {
        StepOptions *step = &job->steps[s];
        snprintf(place, sizeof place, "steps[%lld]", (long long)s);
        check_complete(job, place, SCOPE_STEP, step->kind, step, problems);
        if (step->name) check_name(job, s, problems);
        bool measures = step->kind == STEP_ACTIVATION || step->kind == STEP_GRADIENT;
        if (measures || step->kind == STEP_CONTRAST || step->kind == STEP_INTERVENTION ||
            step->kind == STEP_TUNE || step->kind == STEP_UTILITY)
            check_model(job, s, problems), check_groups(job, s, problems);
        if (!measures) check_from(job, s, problems);
        if (step->kind == STEP_INTERVENTION) check_intervention(job, s, problems);
        if (step->kind == STEP_TUNE && step->control != CONTROL_ALL && !tune_contrast_source(job, step))
            check_ranking(job, s, problems);
        if (step->kind == STEP_TUNE) tune_check_options(job, s, problems);
        if (step->kind == STEP_CONTRAST) check_contrast(job, s, problems);
        if (step->kind == STEP_JUDGE) check_judge(job, s, problems);
        tune_check_adapter(job, s, problems);
        adapted_check(job, s, problems);
        if (measures) check_statistics(job, s, problems);
    }
}

/* ---- --set ---- */
typedef struct {
    OptionScope scope;
    int kind;
    void *record;
    const char *option; /* what is left of the path */
} Target;

/* Splits "NAME.rest" or "[3].rest" at `at`; false when it is neither. */
static bool split_name(const char *at, char name[80], const char **rest) {
    const char *dot = strchr(at, '.');
    if (!dot || dot == at || dot - at >= 80) return false;
    memcpy(name, at, (size_t)(dot - at));
    name[dot - at] = '\0';
    *rest = dot + 1;
    return true;
}

static bool find_step(Job *job, const char *name, Target *to) {
    char *end = NULL;
    long index = name[0] == '[' ? strtol(name + 1, &end, 10) : -1;
    if (end && (strcmp(end, "]") != 0 || end == name + 1)) index = -1;
    for (int64_t i = 0; i < job->n_steps; i++) {
        StepOptions *step = &job->steps[i];
        if (i != index && (!step->name || strcmp(step->name, name) != 0)) continue;
        to->record = step;
        to->kind = step->kind;
    }
    return to->record != NULL;
}

static bool find_target(Job *job, const char *path, Target *to, Error *error) {
    static const char *const places[] = {"models.", "prompts.", "steps"};
    *to = (Target){SCOPE_JOB, -1, &job->options, path};
    int place = 0;
    while (place < 3 && strncmp(path, places[place], strlen(places[place])) != 0) place++;
    if (place == 3) return true;
    char name[80];
    const char *at = path + strlen(places[place]);
    if (place == 2 && *at == '.') at++;
    if (!split_name(at, name, &to->option))
        return error_set(error, ERROR_BAD_INPUT, "--set %.200s: expected %sNAME.OPTION=VALUE", path,
                         place == 2 ? "steps." : places[place]);
    const char *known[MAX_KNOWN];
    size_t n_known = 0;
    to->scope = (OptionScope)(SCOPE_MODEL + place);
    to->record = NULL;
    if (place == 0) {
        to->record = (void *)(uintptr_t)job_model(job, name);
        n_known = list_models(job, known);
    } else if (place == 1) {
        to->record = (void *)(uintptr_t)job_prompts(job, name);
        n_known = list_prompts(job, known);
    } else if (!find_step(job, name, to)) {
        n_known = list_steps(job, job->n_steps, known);
    }
    if (to->record) return true;
    char near[120];
    put_near(name, known, n_known, near, sizeof near);
    return error_set(error, ERROR_BAD_INPUT, "--set %.200s: expected a name of the job: got \"%s\"%s", path,
                     name, near);
}

bool job_apply_setting(Job *job, const char *setting, Error *error) {
    const char *equals = strchr(setting, '=');
    char path[256], place[300];
    if (!equals || equals == setting || equals - setting >= (long)sizeof path)
        return error_set(error, ERROR_BAD_INPUT, "--set %.200s: expected PATH=VALUE", setting);
    memcpy(path, setting, (size_t)(equals - setting));
    path[equals - setting] = '\0';
    Target to;
    if (!find_target(job, path, &to, error)) return false;
    snprintf(place, sizeof place, "--set %s", path);
    Json at = {.file = place};
    const Option *option = option_find(to.scope, to.kind, to.option, at, error);
    if (!option) return false;
    if (option->scope == SCOPE_STEP && (!strcmp(option->name, "kind") || !strcmp(option->name, "name")))
        return json_error(at, error, "expected an option other than name and kind");
    return option_read_text(option, equals + 1, place, to.record, &job->pool, error);
}

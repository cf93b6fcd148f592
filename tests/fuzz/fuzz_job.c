/* Any bytes as a job: refused with a place, or resolved; and what a resolved job is written as is a job
 * again that is written as the same bytes. */
#include "analysis/job.h"
#include "kernels/check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool parse(const char *text, size_t length, Job *job, Error *error) {
    return job_parse(text, length, "f.json", "/nowhere", (JobSettings){0}, job, error);
}

static void check_job(const Job *job) {
    check(job->n_steps > 0, "%lld", (long long)job->n_steps);
    for (int64_t s = 0; s < job->n_steps; s++) {
        const StepOptions *step = &job->steps[s];
        check(job_is_name(step->name) && step->kind >= 0 && step->kind < N_STEP_KINDS, "%s", step->name);
        if (step->kind == STEP_REPORT) continue;
        check(job_model(job, step->model) && step->groups.n > 0, "%s", step->model);
        for (int64_t g = 0; g < step->groups.n; g++)
            check(job_prompts(job, step->groups.names[g]), "%s", step->groups.names[g]);
        check(step->max_new_tokens > 0 && step->last_tokens > 0, "%s", step->name);
    }
    check(job->options.batch_tokens > 0 && job->options.schema_version == 1, "%s", job->name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Job job, again;
    Error error = {0};
    if (parse((const char *)data, size, &job, &error)) {
        Text one = {0}, two = {0};
        check_job(&job);
        job_write(&job, false, &one);
        check(parse(one.bytes, one.length, &again, &error), "%s\n%s", error.text, one.bytes);
        job_write(&again, false, &two);
        check(one.length == two.length && !memcmp(one.bytes, two.bytes, one.length), "%s\n%s", one.bytes,
              two.bytes);
        text_free(&one);
        text_free(&two);
        job_free(&again);
    } else {
        check(error.code == ERROR_BAD_INPUT && error.text[0], "%d %s", error.code, error.text);
    }
    job_free(&job);
    /* the same bytes as a line of --set on a good job */
    static const char good[] =
        "{\"schema_version\": 1, \"models\": {\"m\": {\"path\": \"m\"}}, \"prompts\": {\"p\": "
        "{\"path\": \"p.csv\"}}, \"steps\": [{\"name\": \"s\", \"kind\": \"gradient\"}]}";
    char setting[300];
    size_t n = size < sizeof setting - 1 ? size : sizeof setting - 1;
    memcpy(setting, data, n);
    setting[n] = '\0';
    const char *const settings[] = {setting};
    error = (Error){0};
    if (job_parse(good, strlen(good), "g.json", "/nowhere", (JobSettings){settings, 1}, &job, &error))
        check_job(&job);
    job_free(&job);
    return 0;
}

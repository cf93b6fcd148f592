/* Jobs of the scratch folder run into folders beside them, on the demo model, and what they wrote. */
#ifndef GATETAPE_TEST_SCRATCH_RUN_H
#define GATETAPE_TEST_SCRATCH_RUN_H
#include "../../analysis/run.h"
#include "../engine/scratch.h"

#define DEMO SOURCE_DIR "/configs/demo/"
/* A member of a job's "prompts". */
#define PROMPTS(name, file, limit)                                                                           \
    "\"" name "\": {\"path\": \"" DEMO "prompts/" file ".jsonl\", \"limit\": " limit "}"

static inline bool run_file(const char *job, const char *out, const char *const *sets, int64_t n_sets,
                            Error *error) {
    RunRequest request = {.job = scratch_path(job),
                          .out = scratch_path(out),
                          .sets = sets,
                          .n_sets = n_sets,
                          .version = "test",
                          .to = stdout};
    *error = (Error){0};
    return run_job(&request, error);
}

static inline bool run(const char *out, const char *const *sets, int64_t n_sets, Error *error) {
    return run_file("job.json", out, sets, n_sets, error);
}

static inline void must_run_file(const char *job, const char *out, const char *const *sets, int64_t n_sets) {
    Error error;
    if (!run_file(job, out, sets, n_sets, &error)) fail_msg("%s: %s", out, error.text);
}

static inline void must_run(const char *out, const char *const *sets, int64_t n_sets) {
    must_run_file("job.json", out, sets, n_sets);
}

static inline void remove_run(const char *out) {
    if (io_exists(scratch_path(out))) nftw(scratch_path(out), scratch_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* A file of the scratch folder, NUL-terminated; n may be NULL. The caller frees. */
static inline char *read_file(const char *name, size_t *n) {
    Error error = {0};
    size_t length;
    char *bytes = io_read_all(scratch_path(name), 1 << 30, n ? n : &length, &error);
    if (!bytes) fail_msg("%s", error.text);
    return bytes;
}

static inline char *read_table(const char *out, const char *table, size_t *n) {
    char name[200];
    snprintf(name, sizeof name, "%s/%s", out, table);
    return read_file(name, n);
}

static inline void assert_same_file(const char *a, const char *b) {
    size_t n = 0, m = 0;
    char *one = read_file(a, &n), *two = read_file(b, &m);
    if (n != m || memcmp(one, two, n) != 0) fail_msg("%s and %s differ", a, b);
    mem_free(one);
    mem_free(two);
}

/* The same file of two runs. */
static inline void assert_same_table(const char *a, const char *b, const char *table) {
    char one[200], two[200];
    snprintf(one, sizeof one, "%s/%s", a, table);
    snprintf(two, sizeof two, "%s/%s", b, table);
    assert_same_file(one, two);
}

#endif

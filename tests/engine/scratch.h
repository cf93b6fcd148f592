/* Tests: a folder of their own for files, and runs of a scenario in which each allocation or each file call
 * fails once.
 *
 * The folder lies in the working directory of the test and goes away with scratch_remove. A scenario is a
 * function that returns whether it succeeded and fills an Error when not; it must release everything
 * either way, which the sanitized build proves. */
#ifndef GATETAPE_TEST_SCRATCH_H
#define GATETAPE_TEST_SCRATCH_H
#include "engine/alloc.h"
#include "engine/error.h"
#include "engine/io.h"
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static inline const char *scratch_folder(void) {
    static char folder[32];
    if (!folder[0]) {
        snprintf(folder, sizeof folder,
                 "scratch-XX"
                 "XX"
                 "XX");
        if (!mkdtemp(folder)) abort();
    }
    return folder;
}

/* A path in the folder, good until the eighth call after this one. */
static inline const char *scratch_path(const char *name) {
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", scratch_folder(), name);
    return path;
}

static inline const char *scratch_write(const char *name, const void *bytes, size_t n_bytes) {
    const char *path = scratch_path(name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, n_bytes, file) != n_bytes || fclose(file) != 0) abort();
    return path;
}

static inline const char *scratch_write_text(const char *name, const char *text) {
    return scratch_write(name, text, strlen(text));
}

static inline const char *scratch_make_folder(const char *name) {
    const char *path = scratch_path(name);
    mkdir(path, 0777);
    return path;
}

static inline int scratch_remove_entry(const char *path, const struct stat *about, int type, struct FTW *at) {
    (void)about;
    (void)type;
    (void)at;
    return remove(path);
}

static inline int scratch_remove(void **state) {
    (void)state;
    return nftw(scratch_folder(), scratch_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* How many names the folder holds. */
static inline size_t scratch_count(const char *folder) {
    char **names;
    size_t n;
    Error error = {0};
    assert_true(io_list(folder, &names, &n, &error));
    for (size_t i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return n;
}

#define assert_contains(text, part)                                                                          \
    do {                                                                                                     \
        if (!strstr(text, part)) fail_msg("expected \"%s\" in \"%s\"", part, text);                          \
    } while (0)

/* One line that names something, with the code asked for. */
static inline void assert_clean_error(const Error *error, ErrorCode code) {
    if (error->code != code) fail_msg("expected code %d: got %d: %s", code, error->code, error->text);
    assert_true(error->text[0] != '\0' && !strchr(error->text, '\n'));
}

typedef bool Scenario(void *context, Error *error);

/* Runs it with the k-th allocation failing, for every k, alone and with all that follow: never a success,
 * always ERROR_UNAVAILABLE. Returns the number of runs. */
static inline int64_t fail_each_allocation(Scenario *scenario, void *context) {
    Error error = {0};
    mem_fail_after(0, false);
    if (!scenario(context, &error)) fail_msg("without a fault: %s", error.text);
    int64_t n = mem_fail_after(0, false), n_runs = 0;
    assert_true(n > 0);
    for (int64_t k = 1; k <= n; k++) {
        for (int for_ever = 0; for_ever < 2; for_ever++, n_runs++) {
            error = (Error){0};
            mem_fail_after(k, for_ever);
            bool fine = scenario(context, &error);
            mem_fail_after(0, false);
            if (fine) fail_msg("allocation %d of %d failed and nothing was said", (int)k, (int)n);
            assert_clean_error(&error, ERROR_UNAVAILABLE);
        }
    }
    return n_runs;
}

/* The same with the k-th file call, which sets errno_value. */
static inline int64_t fail_each_file_call(Scenario *scenario, void *context, int errno_value) {
    Error error = {0};
    io_fail_after(0, 0, false);
    if (!scenario(context, &error)) fail_msg("without a fault: %s", error.text);
    int64_t n = io_fail_after(0, 0, false), n_runs = 0;
    assert_true(n > 0);
    for (int64_t k = 1; k <= n; k++) {
        for (int for_ever = 0; for_ever < 2; for_ever++, n_runs++) {
            error = (Error){0};
            io_fail_after(k, errno_value, for_ever);
            bool fine = scenario(context, &error);
            io_fail_after(0, 0, false);
            if (fine) fail_msg("file call %d of %d failed and nothing was said", (int)k, (int)n);
            assert_true(error.code == ERROR_FAILED || error.code == ERROR_BAD_INPUT);
            assert_clean_error(&error, error.code);
        }
    }
    return n_runs;
}

#endif

/* Files: whole or not at all. Reading refuses what is no regular file and notices a file that shrinks; a
 * writer leaves either the finished file or nothing, whichever call fails, also on a full disk and beyond
 * the size limit. */
#include "tests/engine/scratch.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

static char *read_text(const char *path) {
    size_t n;
    Error error = {0};
    char *text = io_read_all(path, 1 << 20, &n, &error);
    if (!text) fail_msg("%s", error.text);
    assert_int_equal(strlen(text), n);
    return text;
}

/* ---- reading ---- */
static void test_only_regular_files_open(void **state) {
    (void)state;
    const char *fifo = scratch_path("fifo"), *link = scratch_path("link"),
               *dangling = scratch_path("dangling");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(symlink("target", link), 0);
    assert_int_equal(symlink("nowhere", dangling), 0);
    scratch_write_text("target", "through a link");
    const struct {
        const char *path, *says;
    } refused[] = {{fifo, "fifo: expected a regular file: got a special file"},
                   {scratch_folder(), "expected a regular file: got a folder"},
                   {"/dev/zero", "/dev/zero: expected a regular file: got a special file"},
                   {dangling, "dangling: expected a readable file: got \"No such file or directory\""},
                   {"", ": expected a readable file: got \"No such file or directory\""},
                   {"target/x", "expected a readable file: got"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        IoFile file;
        Error error = {0};
        assert_false(io_open(&file, refused[i].path, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, refused[i].says);
    }
    char *text = read_text(link);
    assert_string_equal(text, "through a link");
    mem_free(text);
}

static void test_a_file_that_shrinks_is_an_error(void **state) {
    (void)state;
    IoFile file;
    Error error = {0};
    char bytes[100] = {0};
    const char *path = scratch_write("shrinks", bytes, sizeof bytes);
    assert_true(io_open(&file, path, &error));
    assert_int_equal(file.n_bytes, 100);
    assert_true(io_read_at(&file, 40, bytes, 60, &error));
    assert_int_equal(truncate(path, 99), 0);
    assert_false(io_read_at(&file, 40, bytes, 60, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, "shrinks: expected 1 more bytes at offset 99: got the end of the file");
    io_close(&file);
    io_close(&file);
}

static void test_sizes_are_bounded(void **state) {
    (void)state;
    size_t n;
    Error error = {0};
    const char *path = scratch_write_text("ten", "0123456789");
    char *text = io_read_all(path, 10, &n, &error);
    assert_int_equal(n, 10);
    mem_free(text);
    assert_null(io_read_all(path, 9, &n, &error));
    assert_contains(error.text, "ten: expected at most 9 bytes: got 10");
}

static void test_streams(void **state) {
    (void)state;
    enum { N = 200000 };
    char *big = malloc(N);
    memset(big, 'x', N);
    const char *path = scratch_write("stream", big, N);
    size_t n = 0;
    Error error = {0};
    int fd = open(path, O_RDONLY);
    char *text = io_read_stream(fd, "standard input", N, &n, &error);
    assert_int_equal(n, N);
    assert_memory_equal(text, big, N);
    assert_int_equal(text[N], 0);
    mem_free(text);
    lseek(fd, 0, SEEK_SET);
    assert_null(io_read_stream(fd, "standard input", N - 1, &n, &error));
    assert_contains(error.text, "standard input: expected at most 199999 bytes: got more");
    close(fd);
    error = (Error){0};
    assert_null(io_read_stream(-1, "standard input", N, &n, &error));
    assert_contains(error.text, "standard input: expected to read it: got \"Bad file descriptor\"");
    free(big);
}

static void test_folders(void **state) {
    (void)state;
    Error error = {0};
    assert_true(io_make_folders(scratch_path("a/b//c/"), &error));
    assert_true(io_make_folders(scratch_path("a/b"), &error));
    assert_true(io_is_folder(scratch_path("a/b/c")));
    scratch_write_text("a/z", "");
    scratch_write_text("a/A", "");
    assert_false(io_make_folders(scratch_path("a/z/y"), &error));
    assert_contains(error.text, "a/z: expected a folder: got a file");
    error = (Error){0};
    assert_false(io_make_folders("", &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    char **names;
    size_t n;
    error = (Error){0};
    assert_true(io_list(scratch_path("a"), &names, &n, &error));
    assert_int_equal(n, 3);
    assert_string_equal(names[0], "A");
    assert_string_equal(names[1], "b");
    assert_string_equal(names[2], "z");
    for (size_t i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    assert_false(io_list(scratch_path("none"), &names, &n, &error));
    assert_contains(error.text, "none: expected a readable folder");
    error = (Error){0};
    assert_true(io_remove(scratch_path("a/z"), &error) && io_remove(scratch_path("a/z"), &error));
    assert_false(io_exists(scratch_path("a/z")));
    assert_false(io_remove(scratch_path("a"), &error));
}

static void test_paths(void **state) {
    (void)state;
    static const struct {
        const char *folder, *name, *path;
    } joined[] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"a", "/b", "/b"}, {"/", "b", "/b"}, {".", "b", "./b"}};
    for (size_t i = 0; i < sizeof joined / sizeof *joined; i++) {
        char *path = io_join(joined[i].folder, joined[i].name);
        assert_string_equal(path, joined[i].path);
        mem_free(path);
    }
    static const char *const folders[][2] = {{"a/b", "a"}, {"b", "."}, {"/b", "/"}, {"a/b/c", "a/b"}};
    for (size_t i = 0; i < 4; i++) {
        char *folder = io_folder_of(folders[i][0]);
        assert_string_equal(folder, folders[i][1]);
        mem_free(folder);
    }
}

/* ---- writing ---- */
enum { BIG = 700001 }; /* more than two of the writer's buffers */

static void test_writes_of_any_size(void **state) {
    (void)state;
    static const size_t steps[] = {1, 7, 4096, 262143, 262144, 262145, BIG};
    char *big = malloc(BIG);
    for (size_t i = 0; i < BIG; i++) big[i] = (char)(i * 31 ^ i >> 8);
    for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
        IoWriter writer;
        Error error = {0};
        assert_true(io_writer_open(&writer, scratch_path("sizes"), &error));
        size_t total = s == 0 ? 300000 : BIG;
        for (size_t i = 0; i < total; i += steps[s]) {
            size_t n = total - i < steps[s] ? total - i : steps[s];
            assert_true(io_writer_put(&writer, big + i, n, &error));
        }
        assert_int_equal(writer.n_written, total);
        assert_true(io_writer_finish(&writer, &error));
        io_writer_abandon(&writer);
        size_t n;
        char *back = io_read_all(scratch_path("sizes"), BIG, &n, &error);
        assert_int_equal(n, total);
        assert_memory_equal(back, big, n);
        mem_free(back);
    }
    free(big);
}

static void test_nothing_shows_before_finish(void **state) {
    (void)state;
    IoWriter writer;
    Error error = {0};
    scratch_make_folder("quiet");
    scratch_write_text("quiet/f", "old");
    assert_true(io_writer_open(&writer, scratch_path("quiet/f"), &error));
    assert_true(io_writer_put(&writer, "new", 3, &error));
    char *text = read_text(scratch_path("quiet/f"));
    assert_string_equal(text, "old");
    mem_free(text);
    io_writer_abandon(&writer);
    io_writer_abandon(&writer);
    assert_int_equal(scratch_count(scratch_path("quiet")), 1);
    assert_true(io_write_all(scratch_path("quiet/f"), "newer", 5, &error));
    text = read_text(scratch_path("quiet/f"));
    assert_string_equal(text, "newer");
    mem_free(text);
    io_writer_abandon(&(IoWriter){0});
}

static void test_appends(void **state) {
    (void)state;
    Error error = {0};
    for (int i = 0; i < 3; i++) assert_true(io_append(scratch_path("log"), "line\n", 5, &error));
    char *text = read_text(scratch_path("log"));
    assert_string_equal(text, "line\nline\nline\n");
    mem_free(text);
    assert_false(io_append("/dev/full", "line\n", 5, &error));
    assert_clean_error(&error, ERROR_FAILED);
    assert_contains(error.text, "/dev/full: expected to write it: got \"No space left on device\"");
}

static bool write_scenario(void *context, Error *error) {
    return io_write_all(context, "0123456789", 10, error);
}

static bool big_scenario(void *context, Error *error) {
    char *big = malloc(BIG);
    memset(big, 'x', BIG);
    bool fine = io_write_all(context, big, BIG, error);
    free(big);
    return fine;
}

static bool list_scenario(void *context, Error *error) {
    char **names;
    size_t n;
    if (!io_list(context, &names, &n, error)) return false;
    for (size_t i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return true;
}

static bool folders_scenario(void *context, Error *error) {
    (void)context;
    rmdir(scratch_path("deep/er"));
    rmdir(scratch_path("deep"));
    return io_make_folders(scratch_path("deep/er"), error);
}

/* Whichever call fails: the old file or the new one, and nothing beside it. */
static void test_each_fault_leaves_old_or_new(void **state) {
    (void)state;
    static const int reasons[] = {EIO, ENOSPC, EDQUOT, EMFILE, EROFS};
    char folder[512], path[512];
    snprintf(folder, sizeof folder, "%s", scratch_make_folder("faults"));
    snprintf(path, sizeof path, "%s", scratch_path("faults/f"));
    for (size_t r = 0; r < sizeof reasons / sizeof *reasons; r++) {
        for (int big = 0; big < 2; big++) {
            Scenario *scenario = big ? big_scenario : write_scenario;
            for (int k = 1;; k++) {
                Error error = {0};
                unlink(path);
                scratch_write_text("faults/f", "old");
                io_fail_after(k, reasons[r], false);
                bool fine = scenario(path, &error);
                bool reached = io_fail_after(0, 0, false) >= k;
                char *text = read_text(path);
                assert_int_equal(scratch_count(folder), 1);
                bool is_old = !strcmp(text, "old");
                mem_free(text);
                if (!reached) {
                    assert_true(fine && !is_old);
                    break;
                }
                assert_false(fine);
                assert_contains(error.text, strerror(reasons[r]));
            }
        }
    }
    assert_true(fail_each_allocation(write_scenario, path) >= 6);
    assert_int_equal(scratch_count(folder), 1);
    fail_each_allocation(list_scenario, folder);
    fail_each_file_call(list_scenario, folder, EIO);
    fail_each_allocation(folders_scenario, NULL);
    fail_each_file_call(folders_scenario, NULL, EIO);
}

static void test_interrupted_calls_go_on(void **state) {
    (void)state;
    const char *path = scratch_path("interrupted");
    Error error = {0};
    /* calls 1 and 3: open and fsync; 2: write */
    io_fail_after(2, EINTR, false);
    assert_true(write_scenario((void *)(uintptr_t)path, &error));
    io_fail_after(3, EINTR, false); /* open, fstat, pread */
    char *text = read_text(path);
    io_fail_after(0, 0, false);
    assert_string_equal(text, "0123456789");
    mem_free(text);
}

/* ---- limits of the system, in a child of its own ---- */
static int in_child(void (*limit)(void), bool (*work)(void *, Error *), void *context) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        Error error = {0};
        limit();
        bool fine = work(context, &error);
        _exit(fine ? 100 : (int)error.code);
    }
    int status = 0;
    assert_true(child > 0 && waitpid(child, &status, 0) == child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void limit_size(void) {
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){1000, 1000});
}

static void limit_descriptors(void) { setrlimit(RLIMIT_NOFILE, &(struct rlimit){3, 3}); }

static void test_limits_of_the_system(void **state) {
    (void)state;
    char path[512], folder[512];
    snprintf(folder, sizeof folder, "%s", scratch_make_folder("limits"));
    snprintf(path, sizeof path, "%s", scratch_path("limits/f"));
    assert_int_equal(in_child(limit_size, write_scenario, path), 100);
    assert_int_equal(in_child(limit_size, big_scenario, path), ERROR_FAILED);
    char *text = read_text(path);
    assert_string_equal(text, "0123456789");
    mem_free(text);
    assert_int_equal(in_child(limit_descriptors, write_scenario, path), ERROR_FAILED);
    assert_int_equal(in_child(limit_descriptors, list_scenario, folder), ERROR_FAILED);
    assert_int_equal(scratch_count(folder), 1);
    Error error = {0};
    assert_false(write_scenario((char[]){"/proc/nothing/f"}, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, "/proc/nothing/f: expected a place to write: got");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_regular_files_open),
        cmocka_unit_test(test_a_file_that_shrinks_is_an_error),
        cmocka_unit_test(test_sizes_are_bounded),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_folders),
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_writes_of_any_size),
        cmocka_unit_test(test_nothing_shows_before_finish),
        cmocka_unit_test(test_appends),
        cmocka_unit_test(test_each_fault_leaves_old_or_new),
        cmocka_unit_test(test_interrupted_calls_go_on),
        cmocka_unit_test(test_limits_of_the_system),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

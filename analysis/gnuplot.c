/* The gnuplot process: no shell between, its own start-up files ignored, the folder as its working directory
 * so that the script names files by fixed plain names. */
#include "gnuplot.h"
#include "../engine/alloc.h"
#include "../engine/error.h"
#include "../engine/io.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

/* Waits for the process in steps of 5 ms, so that a gnuplot that hangs does not hang the run. */
static bool wait_for(pid_t pid, int *status) {
    const struct timespec step = {.tv_nsec = 5000000};
    for (int i = 0; i < GNUPLOT_SECONDS * 200; i++) {
        pid_t ended = waitpid(pid, status, WNOHANG);
        if (ended == pid) return true;
        if (ended < 0 && errno != EINTR) return false;
        nanosleep(&step, NULL);
    }
    kill(pid, SIGKILL);
    waitpid(pid, status, 0);
    return false;
}

/* The first line of its log that says something is the reason it gives. */
static void take_reason(const char *folder, const char *log, int status, char *problem, size_t capacity) {
    snprintf(problem, capacity, "gnuplot ended with status %d", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    Error error = {0};
    size_t n = 0;
    char *path = io_join(folder, log), *text = path ? io_read_all(path, 1 << 20, &n, &error) : NULL;
    for (char *line = text ? strtok(text, "\n") : NULL; line; line = strtok(NULL, "\n")) {
        const char *said = strstr(line, "line ");
        if (said && strchr(said, ':')) snprintf(problem, capacity, "gnuplot: %.200s", said);
    }
    mem_free(text);
    mem_free(path);
}

bool gnuplot_run(const char *folder, const char *script, const char *log, char *problem, size_t capacity) {
    posix_spawn_file_actions_t actions;
    char name[] = "gnuplot", ignore[] = "-d", file[256];
    snprintf(file, sizeof file, "%s", script);
    char *arguments[] = {name, ignore, file, NULL};
    if (posix_spawn_file_actions_init(&actions) != 0) {
        snprintf(problem, capacity, "gnuplot could not be started: out of memory");
        return false;
    }
    pid_t pid = -1;
    int failed = posix_spawn_file_actions_addchdir_np(&actions, folder);
    if (!failed) failed = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (!failed)
        failed = posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (!failed) failed = posix_spawn_file_actions_adddup2(&actions, 1, 2);
    if (!failed) failed = posix_spawnp(&pid, "gnuplot", &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed) {
        if (failed == ENOENT)
            snprintf(problem, capacity, "gnuplot is not installed");
        else
            snprintf(problem, capacity, "gnuplot could not be started: %s", strerror(failed));
        return false;
    }
    int status = 0;
    if (!wait_for(pid, &status)) {
        snprintf(problem, capacity, "gnuplot took longer than %d s", GNUPLOT_SECONDS);
        return false;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
    take_reason(folder, log, status, problem, capacity);
    return false;
}

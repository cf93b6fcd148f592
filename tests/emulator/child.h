/* Emulated runs in processes of their own: a fault ends the process, and what it says is the result. The test
 * program itself never launches a kernel, since OpenMP's threads do not outlive a fork. Also launches and
 * device memory in a line each. */
#ifndef GATETAPE_EMULATOR_CHILD_H
#define GATETAPE_EMULATOR_CHILD_H
#include "ptx.h"
#include "kernels/check.h"
#include <csetjmp>
#include <cstdarg>
#include <csignal>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
extern "C" {
#include <cmocka.h>
}

/* A test: what to run, and what it must say before it aborts; NULL: it must end well. */
struct ChildTest {
    const char *name;
    void (*run)();
    const char *fault;
};

static void run_child(void **state) {
    const ChildTest &test = *(const ChildTest *)*state;
    int ends[2], status = 0;
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]), close(ends[1]);
        signal(SIGABRT, SIG_DFL); /* cmocka's handler is not for this process */
        alarm(60);
        test.run();
        fflush(nullptr);
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char part[4096];
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) said.append(part, (size_t)n);
    close(ends[0]);
    waitpid(child, &status, 0);
    const bool aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
    if (test.fault ? !aborted || said.find(test.fault) == std::string::npos : status != 0)
        fail_msg("%s: status %x, expected %s, got: %s", test.name, (unsigned)status,
                 test.fault ? test.fault : "a good end", said.c_str());
}

template <size_t N> static int run_children(const char *group, const ChildTest (&tests)[N]) {
    CMUnitTest units[N];
    for (size_t i = 0; i < N; i++) units[i] = {tests[i].name, run_child, nullptr, nullptr, (void *)&tests[i]};
    return _cmocka_run_group_tests(group, units, N, nullptr, nullptr);
}

/* ---- in the child ---- */
static cudaStream_t stream() {
    static cudaStream_t s;
    if (!s) cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    return s;
}

template <class T> static T *on_device(size_t n) {
    void *p;
    check(cudaMalloc(&p, n * sizeof(T)) == cudaSuccess, "%zu elements", n);
    return (T *)p;
}

/* Launches and waits. */
template <class... P, class... A>
static void launch(const KernelShape &shape, void (*kernel)(P...), A... arguments) {
    cudaError_t error = start_kernel(stream(), shape, kernel, arguments...);
    if (!error) error = cudaStreamSynchronize(stream());
    check(error == cudaSuccess, "%s: %s", shape.name, cudaGetErrorString(error));
}
#define RUN(grid, threads, shared_bytes, kernel, ...)                                                        \
    launch(KernelShape{#kernel, grid, threads, shared_bytes}, kernel, __VA_ARGS__)

#endif

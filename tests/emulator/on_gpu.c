/* The emulator's suites on a GPU, in one program, so that the kernels come along once: tests_gpu SUITE, and
 * for parity and attention_cores a pattern that names cases, for a tool under which all would take too long.
 * Exit status 77: skipped, there is no GPU. */
#include "kernels/device.h"
#include <stdio.h>
#include <string.h>

typedef int suite_fn(int argc, char **argv);
suite_fn test_parity_main, test_products_main, test_gated_main, test_attention_cores_main, test_cublas_main,
    test_rounds_main, test_router_main;

int main(int argc, char **argv) {
    enum { SKIPPED = 77 };
    const char *why;
    if (!cuda_device(&why)) {
        printf("skipped: %s\n", why);
        return SKIPPED;
    }
    static const struct {
        const char *name;
        suite_fn *run;
    } suites[] = {{"parity", test_parity_main}, {"products", test_products_main},
                  {"gated", test_gated_main},   {"attention_cores", test_attention_cores_main},
                  {"cublas", test_cublas_main}, {"rounds", test_rounds_main},
                  {"router", test_router_main}};
    for (size_t i = 0; argc > 1 && i < sizeof suites / sizeof *suites; i++)
        if (!strcmp(argv[1], suites[i].name)) return suites[i].run(argc - 1, argv + 1);
    fprintf(stderr,
            "usage: tests_gpu parity|products|gated|attention_cores|cublas|rounds|router [PATTERN]\n");
    return 2;
}

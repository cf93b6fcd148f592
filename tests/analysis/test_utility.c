/* The interval of a share against values of an independent computation. */
#include "tests/engine/scratch.h"
#include "analysis/utility.h"
#include <math.h>

static void wilson_is_wilsons(void **state) {
    (void)state;
    /* z from another implementation of the normal distribution (Python's statistics.NormalDist) */
    static const struct {
        int64_t k, n;
        double confidence, low, high;
    } cases[] = {
        {8, 10, 0.95, 0.49016247153664, 0.94331784854562},
        {0, 10, 0.95, 0, 0.27753279986288},
        {10, 10, 0.95, 0.72246720013712, 1},
        {50, 100, 0.95, 0.40383153036600, 0.59616846963400},
        {50, 100, 0.99, 0.37527962504484, 0.62472037495516},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double low, high;
        wilson_interval(cases[i].k, cases[i].n, cases[i].confidence, &low, &high);
        if (fabs(low - cases[i].low) > 1e-9 || fabs(high - cases[i].high) > 1e-9)
            fail_msg("%d of %d: expected %.14f to %.14f: got %.14f to %.14f", (int)cases[i].k,
                     (int)cases[i].n, cases[i].low, cases[i].high, low, high);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(wilson_is_wilsons)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

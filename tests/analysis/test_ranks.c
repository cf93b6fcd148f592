/* Which GPU a rank of a machine takes, and ranks that are more than those. */
#include "analysis/ranks.h"
#include "tests/engine/scratch.h"

static void test_each_rank_takes_its_own_gpu(void **state) {
    (void)state;
    const struct {
        const char *visible;
        int local_rank;
        const char *takes;
    } cases[] = {{NULL, 0, "0"},
                 {NULL, 3, "3"},
                 {"0,1,2,3", 0, "0"},
                 {"0,1,2,3", 3, "3"},
                 {"5,GPU-ab12,7", 1, "GPU-ab12"},
                 {"2", 0, "2"},
                 {"2", 5, "2"},
                 {"", 1, ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[64] = "none";
        Error error = {0};
        assert_true(ranks_choose_gpu(cases[i].visible, cases[i].local_rank, name, &error));
        assert_string_equal(name, cases[i].takes);
    }
}

static void test_more_ranks_than_gpus_are_refused(void **state) {
    (void)state;
    char name[64];
    Error error = {0};
    assert_false(ranks_choose_gpu("0,1", 2, name, &error));
    assert_clean_error(&error, ERROR_UNAVAILABLE);
    assert_contains(error.text, "CUDA_VISIBLE_DEVICES: expected a GPU for each rank of the machine: got 2");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_rank_takes_its_own_gpu),
                                       cmocka_unit_test(test_more_ranks_than_gpus_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Experts, prompts and streamed layers over ranks: everything somewhere, once, evenly; some by hand. */
#include "../../engine/placement.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

enum { MOST_PROMPTS = 64 };

/* In the group of every rank each expert has one owner, which holds it, and nobody holds one it does not
 * own. */
static void check_experts(const Placement *p) {
    for (int64_t home = 0; home < p->n_ranks; home++) {
        const Range group = placement_group(p, home);
        int64_t n_held = 0;
        assert_in_range(home, group.first, group.first + group.n - 1);
        assert_true(group.n <= p->n_experts);
        for (int64_t r = group.first; r < group.first + group.n; r++) {
            const Range experts = placement_experts(p, r), same = placement_group(p, r);
            assert_memory_equal(&same, &group, sizeof group);
            assert_true(experts.n >= p->n_experts / group.n);
            assert_true(experts.n <= (p->n_experts + group.n - 1) / group.n);
            for (int64_t e = experts.first; e < experts.first + experts.n; e++)
                assert_int_equal(placement_owner(p, e, home), r);
            n_held += experts.n;
        }
        assert_int_equal(n_held, p->n_experts);
        if (!p->across_nodes) {
            assert_int_equal(group.first / p->per_node, home / p->per_node);
            assert_int_equal((group.first + group.n - 1) / p->per_node, home / p->per_node);
        }
    }
}

static void every_expert_has_one_owner_in_a_group(void **state) {
    (void)state;
    static const int64_t experts[] = {1, 2, 3, 8, 60, 128};
    for (size_t i = 0; i < sizeof experts / sizeof *experts; i++)
        for (int64_t n = 1; n <= 33; n++)
            for (int64_t per_node = 1; per_node <= 8; per_node++)
                for (int across = 0; across < 2; across++)
                    check_experts(&(Placement){n, experts[i], per_node, across});
}

static void some_placements_by_hand(void **state) {
    (void)state;
    Placement p = {4, 8, 8, false};
    assert_int_equal(placement_owner(&p, 5, 0), 2);
    assert_int_equal(placement_experts(&p, 2).first, 4);
    /* 16 ranks, 8 experts, two nodes: a copy in each */
    p.n_ranks = 16;
    assert_int_equal(placement_owner(&p, 5, 3), 5);
    assert_int_equal(placement_owner(&p, 5, 9), 13);
    /* 12 ranks of one node: two groups of 6 */
    p = (Placement){12, 8, 12, false};
    assert_int_equal(placement_group(&p, 5).n, 6);
    assert_int_equal(placement_group(&p, 6).first, 6);
    /* 128 experts: within the node, or over all 16 */
    p = (Placement){16, 128, 8, false};
    assert_int_equal(placement_experts(&p, 9).n, 16);
    p.across_nodes = true;
    assert_int_equal(placement_experts(&p, 9).n, 8);
    assert_int_equal(placement_experts(&p, 9).first, 72);
}

/* In the order of (wave, rank), no rank above the limit but for one long prompt. */
static void check_homes(const int64_t *lengths, int64_t n, int64_t n_ranks, int64_t limit) {
    Home homes[MOST_PROMPTS];
    const int64_t n_waves = placement_homes(lengths, n, n_ranks, limit, homes);
    int64_t load = 0, n_of_rank = 0, last = -1;
    assert_int_equal(n_waves, placement_homes(lengths, n, n_ranks, limit, NULL));
    for (int64_t p = 0; p < n; p++) {
        const int64_t at = homes[p].wave * n_ranks + homes[p].rank;
        assert_in_range(homes[p].rank, 0, n_ranks - 1);
        assert_in_range(homes[p].wave, 0, n_waves - 1);
        assert_true(at == last || at == last + 1);
        load = at == last ? load + lengths[p] : lengths[p];
        n_of_rank = at == last ? n_of_rank + 1 : 1;
        assert_true(load <= limit || n_of_rank == 1);
        last = at;
    }
    assert_int_equal(last / n_ranks, n_waves - 1);
}

static void prompts_stay_in_order_and_below_the_limit(void **state) {
    (void)state;
    int64_t lengths[MOST_PROMPTS];
    for (int64_t i = 0; i < MOST_PROMPTS; i++) lengths[i] = 3 + i * 7919 % 29 + (i % 5 == 4 ? 17 : 0);
    for (int64_t n = 1; n <= MOST_PROMPTS; n += 7)
        for (int64_t n_ranks = 1; n_ranks <= 16; n_ranks++)
            for (int64_t limit = 1; limit < 400; limit = limit * 3 + 1)
                check_homes(lengths, n, n_ranks, limit);
    assert_int_equal(placement_homes(lengths, 0, 4, 100, NULL), 0);
}

static void few_prompts_are_spread(void **state) {
    (void)state;
    const int64_t lengths[] = {10, 10, 10, 10, 5};
    Home homes[5];
    /* all would fit into one rank */
    assert_int_equal(placement_homes(lengths, 5, 4, 4096, homes), 1);
    const int64_t expected[] = {0, 1, 2, 3, 3};
    for (int i = 0; i < 5; i++) assert_int_equal(homes[i].rank, expected[i]);
    /* a long one goes alone */
    const int64_t mixed[] = {3, 50, 3, 3};
    assert_int_equal(placement_homes(mixed, 4, 2, 8, homes), 2);
    assert_int_equal(homes[1].rank, 1);
    assert_int_equal(homes[2].wave, 1);
    assert_int_equal(homes[3].rank, 1);
}

static void streamed_layers_are_spread(void **state) {
    (void)state;
    for (int64_t n = 1; n <= 48; n++)
        for (int64_t k = 0; k <= n; k++) {
            int64_t found = 0;
            for (int64_t l = 0; l < n; l++) found += placement_is_streamed(l, n, k);
            assert_int_equal(found, k);
        }
    assert_false(placement_is_streamed(0, 32, 16));
    assert_true(placement_is_streamed(1, 32, 16));
}

/* Two buffers, as they would be used: the formula is the count. */
static int64_t simulate(int64_t n, bool walks_back, int64_t there[2]) {
    int64_t n_copies = 0;
    for (int64_t i = 0; i < (walks_back ? 2 * n : n); i++) {
        const int64_t s = i < n ? i : 2 * n - 1 - i;
        n_copies += there[s % 2] != s;
        there[s % 2] = s;
    }
    return n_copies;
}

static void copies_are_counted_by_the_formula(void **state) {
    (void)state;
    for (int64_t n = 0; n <= 12; n++)
        for (int back = 0; back < 2; back++) {
            int64_t there[2] = {-1, -1};
            assert_int_equal(placement_count_copies(n, back, true), simulate(n, back, there));
            assert_int_equal(placement_count_copies(n, back, false), simulate(n, back, there));
            assert_int_equal(placement_count_copies(n, back, false), simulate(n, back, there));
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_expert_has_one_owner_in_a_group),
        cmocka_unit_test(some_placements_by_hand),
        cmocka_unit_test(prompts_stay_in_order_and_below_the_limit),
        cmocka_unit_test(few_prompts_are_spread),
        cmocka_unit_test(streamed_layers_are_spread),
        cmocka_unit_test(copies_are_counted_by_the_formula),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Selection of cells and the sets that controls draw: ranks, budgets, super experts, and that every draw is
 * what it is said to be and the same again. */
#include "analysis/selection.h"
#include "engine/alloc.h"
#include "tests/engine/scratch.h"
#include <math.h>

enum { LAYERS = 4, EXPERTS = 16, DENSE = 1, CELLS = (LAYERS - 1) * EXPERTS };

static ModelConfig config_of(void) {
    static bool dense[LAYERS] = {false, true, false, false};
    return (ModelConfig){.n_layers = LAYERS,
                         .n_moe_layers = LAYERS - 1,
                         .n_experts = EXPERTS,
                         .n_experts_per_token = 2,
                         .layer_is_dense = dense};
}

/* Layers are decoder layers; the dense one has no cells. */
static void test_cells_are_numbered_over_expert_layers(void **state) {
    (void)state;
    ModelConfig config = config_of();
    assert_int_equal(selection_cell(&config, 0, 3), 3);
    assert_int_equal(selection_cell(&config, DENSE, 0), -1);
    assert_int_equal(selection_cell(&config, 2, 5), EXPERTS + 5);
    assert_int_equal(selection_cell(&config, 3, EXPERTS), -1);
    assert_int_equal(selection_cell(&config, LAYERS, 0), -1);
    for (int64_t c = 0; c < CELLS; c++)
        assert_int_equal(selection_cell(&config, selection_layer(&config, c), c % EXPERTS), c);
}

static void test_cells_are_parsed(void **state) {
    (void)state;
    ModelConfig config = config_of();
    int64_t cell;
    Error error = {0};
    assert_true(selection_parse_cell("3:15", &config, "cells", &cell, &error));
    assert_int_equal(cell, CELLS - 1);
    static const char *const bad[] = {"", "3", "3:", ":3", "1:0", "4:0", "0:16", "0:-1", "3:1x", "a:b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        error = (Error){0};
        assert_false(selection_parse_cell(bad[i], &config, "cells", &cell, &error));
        assert_int_equal(error.code, ERROR_BAD_INPUT);
    }
}

static void test_ranks(void **state) {
    (void)state;
    enum { N = 6 };
    const double first[N] = {3, 1, 5, 0, 2, 4}, second[N] = {1, 1, 5, 0, 4, 2};
    const bool excluded[N] = {false, false, false, false, false, true}, none[N] = {false};
    int64_t order[N];
    StepOptions step = {.rank_by = RANK_DIFFERENCE};
    assert_int_equal(selection_rank(&step, first, second, excluded, N, order), 5);
    assert_int_equal(order[0], 0);
    assert_int_equal(order[1], 1); /* of equal ones the lower cell */
    assert_int_equal(order[2], 2);
    assert_int_equal(order[4], 4);
    step.rank_by = RANK_RATIO; /* cell 3 has no ratio */
    assert_int_equal(selection_rank(&step, first, second, none, N, order), 5);
    assert_int_equal(order[0], 0);
    assert_int_equal(order[1], 5);
    step.rank_by = RANK_SCORE;
    assert_int_equal(selection_rank(&step, first, NULL, none, N, order), N);
    assert_int_equal(order[0], 2);
    step.rank_by = RANK_DIFFERENCE, step.class_ratio = 1.5; /* cells that the first group has more of */
    assert_int_equal(selection_rank(&step, first, second, none, N, order), 2);
}

/* Cells up to, not including, the first that would exceed the budget. */
static void test_budget(void **state) {
    (void)state;
    const double selected[5] = {10, 30, 20, 40, 0};
    double share[5];
    const int64_t order[5] = {2, 0, 4, 1, 3};
    selection_shares(selected, 5, share);
    assert_true(share[3] == 0.4);
    assert_int_equal(selection_within(order, 5, share, 0.19), 0);
    assert_int_equal(selection_within(order, 5, share, 0.31), 3);
    assert_int_equal(selection_within(order, 5, share, 0.59), 3);
    assert_int_equal(selection_within(order, 5, share, 1.01), 5);
}

/* One expert far beyond the others is super, but not in the last quarter of the layers. */
static void test_super_experts(void **state) {
    (void)state;
    ModelConfig config = config_of();
    double largest[CELLS];
    bool super[CELLS];
    for (int64_t c = 0; c < CELLS; c++) largest[c] = 1 + 0.01 * (double)c;
    largest[EXPERTS + 7] = 500;
    assert_true(selection_find_super(&config, largest, super));
    for (int64_t c = 0; c < CELLS; c++) assert_int_equal(super[c], c == EXPERTS + 7);
    largest[EXPERTS + 7] = 1, largest[2 * EXPERTS + 7] = 500; /* decoder layer 3 of 4 */
    assert_true(selection_find_super(&config, largest, super));
    for (int64_t c = 0; c < CELLS; c++) assert_false(super[c]);
}

/* ---- draws ---- */
typedef struct {
    bool taken[CELLS];
    double share[CELLS];
    DrawFrom from;
} Urn;

static void fill(Urn *u) {
    double total = 0;
    for (int64_t c = 0; c < CELLS; c++) {
        u->taken[c] = c % 7 == 3;
        u->share[c] = 1 + (double)(c * 5 % 11);
        total += u->share[c];
    }
    for (int64_t c = 0; c < CELLS; c++) u->share[c] /= total;
    u->from = (DrawFrom){CELLS, EXPERTS, u->taken, u->share, EXPERTS - 2};
}

static double check_set(const Urn *u, const int64_t *cells, int64_t n) {
    double sum = 0;
    int64_t in_layer[LAYERS] = {0};
    for (int64_t i = 0; i < n; i++) {
        assert_in_range(cells[i], 0, CELLS - 1);
        assert_false(u->taken[cells[i]]);
        if (i) assert_true(cells[i] > cells[i - 1]);
        in_layer[cells[i] / EXPERTS]++;
        sum += u->share[cells[i]];
    }
    for (int64_t l = 0; l < LAYERS; l++) assert_true(in_layer[l] <= u->from.layer_most);
    return sum;
}

static void test_draws_are_what_they_say(void **state) {
    (void)state;
    Urn u;
    int64_t cells[CELLS], again[CELLS];
    const int64_t like[5] = {0, 1, 2, EXPERTS, 2 * EXPERTS + 1};
    fill(&u);
    for (int i = 0; i < 50; i++) {
        char name[20];
        snprintf(name, sizeof name, "random.%d", i);
        Draw a = draw_new(5, name), b = draw_new(5, name);
        assert_int_equal(draw_set(&a, &u.from, 5, cells), 5);
        check_set(&u, cells, 5);
        assert_int_equal(draw_set(&b, &u.from, 5, again), 5);
        assert_memory_equal(cells, again, 5 * sizeof *cells);
        assert_int_equal(draw_layer_matched(&a, &u.from, like, 5, cells), 5);
        check_set(&u, cells, 5);
        assert_true(cells[2] / EXPERTS == 0 && cells[3] / EXPERTS == 1 && cells[4] / EXPERTS == 2);
        int64_t n = draw_share(&a, &u.from, 0.1, cells);
        assert_true(n > 0 && fabs(check_set(&u, cells, n) - 0.1) <= 0.005 * 1.000001);
        assert_int_equal(draw_traffic_matched(&a, &u.from, 0.12, 5, cells), 5);
        assert_true(fabs(check_set(&u, cells, 5) - 0.12) <= 0.006 * 1.000001);
    }
}

/* Two draws differ, and each cell comes up about as often as any other. */
static void test_draws_are_even(void **state) {
    (void)state;
    Urn u;
    int64_t cells[CELLS], times[CELLS] = {0}, n_free = 0;
    fill(&u);
    enum { N = 4000 };
    for (int i = 0; i < N; i++) {
        char name[20];
        snprintf(name, sizeof name, "random.%d", i);
        Draw draw = draw_new(9, name);
        draw_set(&draw, &u.from, 4, cells);
        for (int k = 0; k < 4; k++) times[cells[k]]++;
    }
    for (int64_t c = 0; c < CELLS; c++) n_free += !u.taken[c];
    double want = 4.0 * N / (double)n_free;
    for (int64_t c = 0; c < CELLS; c++)
        if (!u.taken[c]) assert_true(fabs((double)times[c] - want) < 5 * sqrt(want));
}

static void test_sets_that_do_not_exist(void **state) {
    (void)state;
    Urn u;
    int64_t cells[CELLS];
    fill(&u);
    Draw draw = draw_new(1, "x");
    assert_int_equal(draw_set(&draw, &u.from, CELLS, cells), 0);
    assert_int_equal(draw_share(&draw, &u.from, 1e-6, cells), 0);
    assert_int_equal(draw_traffic_matched(&draw, &u.from, 0.9, 2, cells), 0);
    int64_t like[EXPERTS];
    for (int64_t i = 0; i < EXPERTS; i++) like[i] = i;
    assert_int_equal(draw_layer_matched(&draw, &u.from, like, EXPERTS, cells), 0);
    u.from.layer_most = 1;
    assert_int_equal(draw_set(&draw, &u.from, 4, cells), 0);
    assert_int_equal(draw_set(&draw, &u.from, 3, cells), 3);
}

/* ---- tables ---- */
static void test_imported_cells(void **state) {
    (void)state;
    ModelConfig config = config_of();
    static const struct {
        const char *text, *said;
    } cases[] = {
        {"layer,expert\n", "expected at least one cell"},
        {"layer\n0\n", "expert"},
        {"layer,expert\n0,16\n", "0 to 15"},
        {"layer,expert\n1,0\n", "expected a layer with experts"},
        {"layer,expert\n0,1\n0,1\n", "expected each cell once"},
    };
    int64_t *cells, n;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error = {0};
        scratch_write_text("cells.csv", cases[i].text);
        assert_false(selection_read_cells(scratch_path("cells.csv"), &config, &cells, &n, &error));
        assert_contains(error.text, cases[i].said);
        mem_free(cells);
    }
    Error error = {0};
    static const char good[] = "score,layer,expert\n9,3,2\n8,0,1\n";
    scratch_write_text("cells.csv", good);
    assert_true(selection_read_cells(scratch_path("cells.csv"), &config, &cells, &n, &error));
    assert_true(n == 2 && cells[0] == 2 * EXPERTS + 2 && cells[1] == 1);
    mem_free(cells);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cells_are_numbered_over_expert_layers),
        cmocka_unit_test(test_cells_are_parsed),
        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_super_experts),
        cmocka_unit_test(test_draws_are_what_they_say),
        cmocka_unit_test(test_draws_are_even),
        cmocka_unit_test(test_sets_that_do_not_exist),
        cmocka_unit_test(test_imported_cells),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

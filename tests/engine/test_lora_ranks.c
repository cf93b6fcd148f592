/* A step's examples over ranks: sums of chunks, each from counters of its own, added up by the tree over
 * chunks, are the bits of one counter over all examples; and how examples are dealt. */
#include "scratch.h"
#include "engine/lora_ranks.h"

enum { MOST = 64, MOST_RANKS = 12, WIDTH = 8, SLOTS = 7 };

static float values[MOST][WIDTH];
static int64_t lengths[MOST];

/* Integers of magnitudes so far apart that f32 rounds most sums: any other order has other bits. */
static int open_values(void **state) {
    uint64_t bits = 7;
    (void)state;
    for (int i = 0; i < MOST; i++)
        for (int k = 0; k < WIDTH; k++) {
            bits = bits * 6364136223846793005u + 1442695040888963407u;
            const int64_t n = (int64_t)(bits >> 40 & 0xFFFF) - 0x8000;
            values[i][k] = (float)(n * ((int64_t)1 << (bits >> 33 & 31)));
            lengths[i] = 1 + (int64_t)(bits >> 57 & 63);
        }
    return 0;
}

/* The op's own counter: examples [first, first + n) pushed in calls of `each`, then summed to `to`. */
static void count(int64_t first, int64_t n, int64_t each, float *to) {
    const Device *device = cpu_device();
    Queue *queue = device->queue_new();
    float slots[SLOTS * WIDTH], ones[MOST], row[WIDTH] = {0};
    int32_t offsets[MOST + 1], expert = 0;
    for (int i = 0; i < SLOTS * WIDTH; i++) slots[i] = -3e33f; /* what another chunk left */
    for (int i = 0; i < MOST; i++) ones[i] = 1;
    for (int i = 0; i <= MOST; i++) offsets[i] = i;
    for (int64_t at = 0; at < n; at += each) {
        const int64_t now = each < n - at ? each : n - at;
        const LoraSums sums = {.a = tensor_cube(slots, DTYPE_F32, SLOTS, 1, WIDTH),
                               .offsets = tensor_vector(offsets, DTYPE_I32, now + 1),
                               .first = at};
        device->ops->router_rows_bwd(queue, (Tensor){0}, sums, tensor_matrix(ones, DTYPE_F32, now, 1),
                                     tensor_matrix(values[first + at], DTYPE_F32, now, WIDTH),
                                     tensor_vector(&expert, DTYPE_I32, 1),
                                     tensor_matrix(row, DTYPE_F32, 1, WIDTH));
    }
    device->ops->sum_slots(queue, tensor_vector(to, DTYPE_F32, WIDTH),
                           tensor_matrix(slots, DTYPE_F32, SLOTS, WIDTH), n);
    assert_true(device->sync(queue));
    device->queue_free(queue);
}

/* All chunks' sums on one rank: the tree's order does not depend on whose a leaf is. */
static void sum_chunks(const LoraDeal *deal, float *to) {
    float leaves[MOST * WIDTH], scratch[WIDTH];
    int32_t owners[MOST] = {0};
    Comm alone = comm_alone(cpu_device());
    for (int64_t c = 0; c < deal->n; c++) {
        const Range r = lora_deal_examples(deal, c);
        count(r.first, r.n, 3, leaves + c * WIDTH);
    }
    comm_tree_sum(&alone, NULL, tensor_vector(to, DTYPE_F32, WIDTH),
                  tensor_matrix(leaves, DTYPE_F32, deal->n, WIDTH), owners, deal->n,
                  tensor_vector(scratch, DTYPE_F32, WIDTH));
}

static void test_bits_of_one_counter(void **state) {
    Error error = {0};
    int64_t n_deals = 0, n_other = 0;
    (void)state;
    for (int64_t n = 1; n <= MOST; n++) {
        float want[WIDTH], got[WIDTH], plain[WIDTH] = {0};
        count(0, n, n, want);
        for (int64_t i = 0; i < n; i++)
            for (int k = 0; k < WIDTH; k++) plain[k] += values[i][k];
        n_other += memcmp(plain, want, sizeof want) != 0;
        for (int64_t ranks = 1; ranks <= MOST_RANKS; ranks++, n_deals++) {
            LoraDeal deal;
            if (!lora_deal_make(lengths, n, ranks, &deal, &error)) fail_msg("%s", error.text);
            sum_chunks(&deal, got);
            if (memcmp(got, want, sizeof want) != 0)
                fail_msg("%lld examples, %lld ranks, chunks of %lld: other bits", (long long)n,
                         (long long)ranks, (long long)deal.each);
            lora_deal_free(&deal);
        }
    }
    print_message("%lld deals alike; a plain sum is another in %lld of %d\n", (long long)n_deals,
                  (long long)n_other, MOST);
    assert_true(n_other > MOST / 2);
}

/* Chunks of three examples are no nodes of the tree, and the comparison sees it. */
static void test_other_cuts_are_seen(void **state) {
    int32_t ranks[MOST] = {0};
    int64_t n_other = 0;
    (void)state;
    for (int64_t n = 4; n <= MOST; n++) {
        float want[WIDTH], got[WIDTH];
        const LoraDeal threes = {.n_examples = n, .each = 3, .n = (n + 2) / 3, .ranks = ranks};
        count(0, n, n, want);
        sum_chunks(&threes, got);
        n_other += memcmp(got, want, sizeof want) != 0;
    }
    print_message("chunks of three: other bits in %lld of %d\n", (long long)n_other, MOST - 3);
    assert_true(n_other > MOST / 2);
}

static int64_t fullest(const LoraDeal *deal, int64_t n_ranks) {
    int64_t most = 0;
    for (int64_t r = 0; r < n_ranks; r++) {
        const Range own = lora_deal_chunks(deal, r);
        int64_t load = 0;
        for (int64_t c = own.first; c < own.first + own.n; c++) {
            const Range e = lora_deal_examples(deal, c);
            for (int64_t i = e.first; i < e.first + e.n; i++) load += lengths[i];
        }
        most = load > most ? load : most;
    }
    return most;
}

static void test_deals(void **state) {
    Error error = {0};
    (void)state;
    for (int64_t n = 1; n <= MOST; n++)
        for (int64_t ranks = 1; ranks <= MOST_RANKS; ranks++) {
            LoraDeal deal;
            int64_t total = 0, longest = 0, n_dealt = 0, next = 0;
            if (!lora_deal_make(lengths, n, ranks, &deal, &error)) fail_msg("%s", error.text);
            for (int64_t i = 0; i < n; i++) {
                total += lengths[i];
                longest = lengths[i] > longest ? lengths[i] : longest;
            }
            for (int64_t r = 0; r < ranks; r++) {
                const Range own = lora_deal_chunks(&deal, r);
                if (own.n) assert_int_equal(own.first, next);
                next += own.n;
            }
            for (int64_t c = 0; c < deal.n; c++) n_dealt += lora_deal_examples(&deal, c).n;
            assert_int_equal(next, deal.n);
            assert_int_equal(n_dealt, n);
            assert_true((deal.each & (deal.each - 1)) == 0);
            assert_true(8 * fullest(&deal, ranks) <= 9 * (total / ranks + longest));
            if (ranks == 1) assert_int_equal(deal.n, 1);
            lora_deal_free(&deal);
        }
    LoraDeal deal;
    int64_t equal[16];
    for (int i = 0; i < 16; i++) equal[i] = 100;
    static const int64_t want[][2] = {{1, 16}, {2, 8}, {3, 2}, {4, 4}, {8, 2}, {12, 2}, {16, 1}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        assert_true(lora_deal_make(equal, 16, want[i][0], &deal, &error));
        assert_int_equal(deal.each, want[i][1]);
        lora_deal_free(&deal);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_of_one_counter),
        cmocka_unit_test(test_other_cuts_are_seen),
        cmocka_unit_test(test_deals),
    };
    return cmocka_run_group_tests(tests, open_values, NULL);
}

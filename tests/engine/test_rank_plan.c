/* The plan of Mixtral 8x7B and Qwen3-30B-A3B from their published config.json: sizes, bytes, efficiencies and
 * token counts worked out by hand (16,384 tokens a rank, 600 TFLOP/s, H100s of 79 GB); and the engine's own
 * count of memory for one rank. */
#include "../../engine/exchange.h"
#include "../../engine/model.h"
#include "../../engine/rank_plan.h"
#include "../../kernels/cost.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static ModelConfig mixtral, qwen;
static const RankDevice nvlink = {"NVLink", 79e9, 600e12, 3e12, 55e9, 400e9, 45e9, 8};

static void must_read(const char *name, ModelConfig *to) {
    Error error = {0};
    char folder[400];
    snprintf(folder, sizeof folder, SOURCE_DIR "/tests/data/configs/%s", name);
    if (!model_config_read(folder, to, &error)) fail_msg("%s", error.text);
}

static int set_up(void **state) {
    (void)state;
    must_read("mixtral_8x7b", &mixtral);
    must_read("qwen3_30b_a3b", &qwen);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    model_config_free(&mixtral);
    model_config_free(&qwen);
    return 0;
}

static RankWork work_of(bool walks_back) {
    return (RankWork){.n_tokens = 16384,
                      .n_prompts = 32,
                      .walks_back = walks_back,
                      .compute = DTYPE_BF16,
                      .weights = DTYPE_BF16};
}

static RankPlan plan_of(int64_t n, bool across, Residency residency, const RankWork *work,
                        const RankDevice *device) {
    const Placement p = {n, mixtral.n_experts, device->per_node, across};
    return rank_plan_make(&mixtral, work, device, p, residency, -1);
}

/* As printed: within half of the last digit. */
static void near(double got, double expected, double unit) {
    if (fabs(got - expected) > 0.5001 * unit) fail_msg("expected %g, got %.6g", expected, got);
}

static void memory_by_part(void **state) {
    (void)state;
    RankWork w = work_of(true);
    w.n_cells = 64, w.lora_rank = 16, w.lora_copies = 4;
    const struct {
        int64_t n;
        double weights, lora;
    } rows[] = {{2, 48.31, 0.45}, {4, 25.76, 0.23}, {8, 14.49, 0.11}, {16, 14.49, 0.11}, {64, 14.49, 0.11}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const RankMemory m = plan_of(rows[i].n, false, RESIDENCY_RESIDENT, &w, &nvlink).memory;
        near(m.weights / 1e9, rows[i].weights, 0.01);
        near(m.lora / 1e9, rows[i].lora, 0.01);
        /* 12.95 of layers, and the embedded rows */
        near((m.saved - 16384.0 * 4096 * 2) / 1e9, 12.95, 0.01);
        /* 0.27 a row of every choice: 4 at home, and for twice the share 2 x 6 of an owner, f32 ones counted
         * twice */
        near(m.exchange / 1e9, 16 * 0.2684, 0.01);
        assert_true(m.sum <= 79e9);
    }
    /* forward 1.61 of rows that travel, 0.27 of results before their sum */
    const RankWork forward = work_of(false);
    near(plan_of(4, false, RESIDENCY_RESIDENT, &forward, &nvlink).memory.exchange / 1e9, 1.61 + 0.27, 0.01);
    /* what travels instead of tokens: two layers of all experts; nothing is exchanged */
    const RankMemory m = plan_of(8, false, RESIDENCY_PEERS, &w, &nvlink).memory;
    near(m.weights / 1e9, 14.49 + 2 * 8 * 0.3523, 0.02);
    near(m.exchange, 0, 1);
    assert_true(plan_of(1, false, RESIDENCY_RESIDENT, &w, &nvlink).memory.sum > 79e9);
}

/* The project's notes count 3.4 GB less work on experts than the engine holds, and 0.54 GB of an exchange
 * that one rank has not: 17 layers stay where 18 would. */
static void one_device_streams_what_does_not_fit(void **state) {
    (void)state;
    RankWork w = work_of(true);
    w.n_cells = 64, w.lora_rank = 16, w.lora_copies = 4;
    const RankPlan p = rank_plan_choose(&mixtral, &w, &nvlink, 1, RESIDENCY_AUTO);
    assert_int_equal(p.residency, RESIDENCY_STREAMED);
    assert_int_equal(p.n_streamed, 15);
    assert_true(p.fits && p.memory.sum > 79e9 - 8 * 352.4e6);
    near(p.memory.weights / 1e9, 3.21 + (17 + 2) * 2.8185, 0.05);
    near(p.copied_bytes, (2 * 15 - 4) * 8 * 3 * 4096.0 * 14336 * 2, 1);
    /* with the notes' count of memory, theirs: 14 layers, 39.5 GB, 0.72 s a pass */
    RankDevice roomy = nvlink;
    roomy.usable_bytes += p.memory.sum - p.memory.weights - (77.99 - 59.58) * 1e9;
    const RankPlan q = rank_plan_make(&mixtral, &w, &roomy, p.placement, RESIDENCY_STREAMED, -1);
    assert_int_equal(q.n_streamed, 14);
    near(q.memory.weights / 1e9, 59.58, 0.01);
    near(14 * 8 * 352.3e6 / 1e9, 39.5, 0.1);
}

static void tokens_that_hide_streaming(void **state) {
    (void)state;
    RankWork w = work_of(false);
    const Placement one = {1, 8, 8, false};
    const RankPlan forward = rank_plan_make(&mixtral, &w, &nvlink, one, RESIDENCY_STREAMED, 32);
    near(forward.hidden_from, 38.6e3, 100);
    near(forward.copy_seconds, 1.64, 0.01);
    w.walks_back = true;
    const RankPlan both = rank_plan_make(&mixtral, &w, &nvlink, one, RESIDENCY_STREAMED, 32);
    /* the notes' 29.1k, less two layers of 32 at the turn and two at the start */
    near(both.hidden_from, 29.1e3 * 60 / 64, 100);
    near(both.flops / 1e9, 67.6, 0.1);
    w.walks_back = false;
    /* 33 GB: 11.7 layers */
    const double of_12 = rank_plan_make(&mixtral, &w, &nvlink, one, RESIDENCY_STREAMED, 12).hidden_from;
    near(of_12 * 33 / (12 * 2.8185), 14.1e3, 100);
}

static void efficiency_over_links(void **state) {
    (void)state;
    const RankWork w = work_of(false);
    RankDevice pcie = nvlink;
    pcie.node_bytes_per_s = 40e9;
    const struct {
        const RankDevice *device;
        int64_t n;
        bool across;
        double percent, sent;
    } rows[] = {{&nvlink, 2, false, 96.7, 8.19},   {&nvlink, 4, false, 95.2, 12.29},
                {&nvlink, 8, false, 94.3, 14.34},  {&pcie, 2, false, 76.2, 8.19},
                {&pcie, 4, false, 68.2, 12.29},    {&pcie, 8, false, 64.7, 14.34},
                {&nvlink, 16, false, 94.3, 14.34}, {&nvlink, 64, false, 94.3, 14.34}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const RankPlan p = plan_of(rows[i].n, rows[i].across, RESIDENCY_RESIDENT, &w, rows[i].device);
        near(100 * p.efficiency, rows[i].percent, 0.1);
        near(p.sent_bytes / 1e3, rows[i].sent, 0.01);
        assert_int_equal(p.n_exchanges, 2);
    }
    const RankWork back = work_of(true);
    const RankPlan p = plan_of(8, false, RESIDENCY_RESIDENT, &back, &nvlink);
    /* four rows of 14.34 kB a layer and, but for the lowest, an f32 one: 190 rows, 6.81 us a token of 112.7,
     * and 0.63 of latency */
    near(100 * p.efficiency, 93.80, 0.01);
    assert_int_equal(p.n_exchanges, 5);
}

/* Of Mixtral on 8 ranks, a token: 7/8 of 2 choices in 32 layers. */
static void bytes_of_a_token(void **state) {
    (void)state;
    const double elsewhere = 2 * 7.0 / 8, row = 4096 * 2, term = 4096 * 4;
    RankWork w = work_of(false);
    const RankPlan forward = plan_of(8, false, RESIDENCY_RESIDENT, &w, &nvlink);
    near(forward.moved_bytes, elsewhere * 32 * (2 * row + 4), 1);
    near(forward.count_bytes, 32 * 7 * 16, 1);
    w.walks_back = true;
    const RankPlan both = plan_of(8, false, RESIDENCY_RESIDENT, &w, &nvlink);
    near(both.moved_bytes, elsewhere * (32 * (4 * row + term + 16) - term), 1);
    near(both.count_bytes, 64 * 7 * 16, 1);
    /* the rows alone are those of the notes: K D 2 (N-1)/N each way of an exchange */
    near(forward.sent_bytes, 2 * 4096 * 2 * 7.0 / 8, 1e-6);
    near(plan_of(8, false, RESIDENCY_PEERS, &w, &nvlink).moved_bytes, 0, 1e-6);
    near(plan_of(1, false, RESIDENCY_RESIDENT, &w, &nvlink).moved_bytes, 0, 1e-6);
}

/* One group of 16 ranks of a model with as many experts leaves the node: 77.9 % where 8 in 8 have 94.3. */
static void groups_that_leave_a_node(void **state) {
    (void)state;
    const RankWork w = work_of(false);
    const struct {
        int64_t n;
        double percent, sent;
    } rows[] = {{16, 77.9, 15.36}, {32, 70.0, 15.87}, {64, 66.2, 16.13}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ModelConfig wide = mixtral;
        const Placement p = {rows[i].n, rows[i].n, 8, true};
        wide.n_experts = rows[i].n;
        const RankPlan r = rank_plan_make(&wide, &w, &nvlink, p, RESIDENCY_RESIDENT, -1);
        near(r.sent_bytes / 1e3, rows[i].sent, 0.01);
        /* its router is larger: by 0.05 % of a token's work at most */
        near(100 * r.efficiency, rows[i].percent, 0.15);
    }
}

static void weights_that_travel(void **state) {
    (void)state;
    const RankWork w = work_of(false);
    RankDevice pcie = nvlink;
    pcie.node_bytes_per_s = 40e9;
    near(plan_of(2, false, RESIDENCY_PEERS, &w, &nvlink).hidden_from, 2653, 2);
    near(plan_of(8, false, RESIDENCY_PEERS, &w, &nvlink).hidden_from, 4642, 2);
    near(plan_of(8, false, RESIDENCY_PEERS, &w, &pcie).hidden_from, 46424, 10);
    near(100 * plan_of(8, false, RESIDENCY_PEERS, &w, &pcie).efficiency, 35, 1);
    near(100 * plan_of(8, false, RESIDENCY_PEERS, &w, &nvlink).efficiency, 100, 1);
    assert_int_equal(rank_plan_choose(&mixtral, &w, &nvlink, 8, RESIDENCY_AUTO).residency, RESIDENCY_PEERS);
    /* over a slow link nothing is as fast as what needs no other rank: the host's copies of 12 layers hide
     * behind 16,384 tokens; with a slow host as well, the experts stay and tokens travel */
    const RankPlan alone = rank_plan_choose(&mixtral, &w, &pcie, 8, RESIDENCY_AUTO);
    assert_int_equal(alone.residency, RESIDENCY_STREAMED);
    assert_int_equal(alone.group, 1);
    pcie.host_bytes_per_s = 10e9;
    assert_int_equal(rank_plan_choose(&mixtral, &w, &pcie, 8, RESIDENCY_AUTO).residency, RESIDENCY_RESIDENT);
    RankWork few = w;
    few.n_tokens = 2048;
    assert_int_equal(rank_plan_choose(&mixtral, &few, &nvlink, 8, RESIDENCY_AUTO).residency,
                     RESIDENCY_RESIDENT);
}

/* 11.3 GB of experts a rank and step, and 3.2 of all else: 3.8 + 1.1 ms, and two exchanges a layer of 65 us;
 * 79 GB of travelling weights: 197 ms. */
static void decoding(void **state) {
    (void)state;
    RankWork w = work_of(false);
    w.n_decoded = 100;
    near(plan_of(8, false, RESIDENCY_RESIDENT, &w, &nvlink).step_seconds * 1e3, 3.76 + 1.07 + 64 * 0.065,
         0.1);
    near(plan_of(8, false, RESIDENCY_PEERS, &w, &nvlink).step_seconds * 1e3, 197, 1);
    assert_int_equal(rank_plan_choose(&mixtral, &w, &nvlink, 8, RESIDENCY_AUTO).residency,
                     RESIDENCY_RESIDENT);
}

static void least_number_of_ranks(void **state) {
    (void)state;
    const RankWork w = work_of(true);
    RankDevice small = nvlink;
    assert_int_equal(rank_plan_least_ranks(&mixtral, &w, &nvlink, RESIDENCY_AUTO), 1);
    assert_int_equal(rank_plan_least_ranks(&mixtral, &w, &nvlink, RESIDENCY_RESIDENT), 2);
    /* 14.5 GB of weights and 28 of a pass at 8 ranks; from 4 to 7 some rank holds two experts: 25.8 and 28 */
    small.usable_bytes = 45e9;
    assert_int_equal(rank_plan_least_ranks(&mixtral, &w, &small, RESIDENCY_RESIDENT), 8);
    small.usable_bytes = 15e9; /* less than the rows of a pass */
    assert_int_equal(rank_plan_least_ranks(&mixtral, &w, &small, RESIDENCY_AUTO), 0);
    assert_false(rank_plan_choose(&mixtral, &w, &small, 64, RESIDENCY_AUTO).fits);
}

static bool never_called(void *context, HookSite *site, const RouteView *view) {
    (void)context, (void)site;
    fail_msg("layer %lld on the device that counts", (long long)view->layer);
    return false;
}

/* What the device that counts is asked for: prompts of 512 tokens. */
enum { LENGTH = 512 };
typedef struct {
    PromptBatch batch;
    PassOptions options;
    int64_t *offsets;
    float *weights;
} CountedPass;

static CountedPass counted_pass(int64_t n_tokens, bool walks_back) {
    const int64_t n = n_tokens / LENGTH;
    CountedPass p = {.offsets = calloc((size_t)n + 1, sizeof *p.offsets),
                     .weights = calloc((size_t)n_tokens, sizeof *p.weights)};
    assert_true(p.offsets && p.weights);
    for (int64_t i = 0; i <= n; i++) p.offsets[i] = i * LENGTH;
    p.batch = (PromptBatch){n, p.offsets, NULL};
    p.options = (PassOptions){
        .want_nll = true, .loss_weights = walks_back ? p.weights : NULL, .recompute = RECOMPUTE_ALWAYS};
    return p;
}

static void counted_pass_free(CountedPass *p) { free(p->offsets), free(p->weights); }

/* What the engine's own program takes. It counts norms and activations as work too: 3 % of Qwen's. */
static void check_engine(const ModelConfig *config, int64_t n_tokens, bool walks_back) {
    CountedPass pass = counted_pass(n_tokens, walks_back);
    Error error = {0};
    PassResult counted = {0};
    if (!model_plan(config, DTYPE_BF16, DTYPE_BF16, &pass.batch, &pass.options, &counted, &error))
        fail_msg("%s", error.text);
    RankWork w = work_of(walks_back);
    w.n_tokens = n_tokens, w.n_prompts = pass.batch.n_prompts, w.mean_length = LENGTH;
    const Placement one = {1, config->n_experts, 8, false};
    const RankPlan p = rank_plan_make(config, &w, &nvlink, one, RESIDENCY_RESIDENT, -1);
    const double activations = p.memory.sum - p.memory.weights - p.memory.gates;
    const double memory = activations / (double)counted.activation_bytes,
                 work = p.flops * (double)n_tokens / counted.cost.flops;
    assert_true(p.memory.weights == (double)counted.weights_bytes);
    if (fabs(memory - 1) > 0.01) fail_msg("memory: %.4f of the engine's", memory);
    if (fabs(work - 1) > 0.04) fail_msg("work: %.4f of the engine's", work);
    pass_result_free(&counted);
    counted_pass_free(&pass);
}

static void one_rank_takes_what_the_engine_takes(void **state) {
    (void)state;
    for (int back = 0; back < 2; back++)
        for (int64_t n = 4096; n <= 16384; n *= 4) {
            check_engine(&mixtral, n, back);
            check_engine(&qwen, n, back);
        }
}

/* ---- where tokens travel ---- */
/* A pass of a rank on the device that counts, a hook that looks at routes among it, and the rows of others:
 * twice the even share. No words are sent: a program's memory follows from its sizes. */
static double spread_bytes(const ModelConfig *config, Comm *comm, int64_t n_tokens, bool walks_back) {
    CountedPass pass = counted_pass(n_tokens, walks_back);
    Error error = {0};
    PassResult counted = {0};
    Model model = {.config = *config, .device = &cost_device, .compute = DTYPE_BF16};
    model.spread = (Spread){.comm = comm,
                            .residency = RESIDENCY_RESIDENT,
                            .placement = {comm->size, config->n_experts, comm->size, false}};
    const Hooks hooks = {.route = never_called};
    if (!weights_shapes(config, DTYPE_BF16, &cost_device, &model.weights, &error) ||
        !(model.exchange = exchange_new(&model, &error)) ||
        !model_pass(&model, &pass.batch, &pass.options, &hooks, &counted, &error))
        fail_msg("%s", error.text);
    const double n_bytes =
        (double)counted.activation_bytes + (double)exchange_expected_growth(&model, n_tokens, walks_back);
    pass_result_free(&counted);
    exchange_free(model.exchange);
    weights_free(&model.weights);
    counted_pass_free(&pass);
    return n_bytes;
}

static void check_spread(const ModelConfig *config, int64_t n_tokens, int size, bool walks_back) {
    Comm comm = comm_alone(&cost_device);
    RankWork w = work_of(walks_back);
    comm.size = size;
    w.n_tokens = n_tokens;
    const Placement placement = {size, config->n_experts, size, false};
    const RankMemory m = rank_plan_make(config, &w, &nvlink, placement, RESIDENCY_RESIDENT, -1).memory;
    const double share = (m.sum - m.weights - m.gates) / spread_bytes(config, &comm, n_tokens, walks_back);
    if (fabs(share - 1) > 0.01) fail_msg("memory: %.4f of the engine's", share);
}

static void ranks_take_what_the_engine_takes(void **state) {
    (void)state;
    for (int back = 0; back < 2; back++)
        for (int size = 2; size <= 8; size *= 2)
            for (int64_t n = 4096; n <= 16384; n *= 4) {
                check_spread(&mixtral, n, size, back);
                check_spread(&qwen, n, size, back);
            }
}

/* ---- files ---- */
static void shipped_devices_are_read(void **state) {
    (void)state;
    Error error = {0};
    RankDevice d;
    if (!rank_device_read(SOURCE_DIR "/configs/devices/h100.json", &d, &error)) fail_msg("%s", error.text);
    assert_string_equal(d.name, "H100 SXM 80GB");
    assert_true(d.usable_bytes == 79e9 && d.per_node == 8 && d.dram_bytes_per_s == 3e12);
    if (!rank_device_read(SOURCE_DIR "/configs/devices/h200.json", &d, &error)) fail_msg("%s", error.text);
    assert_true(d.usable_bytes == 144.3e9 && d.host_bytes_per_s == 55e9);
    assert_false(rank_device_read(SOURCE_DIR "/tests/data/configs/mixtral_8x7b/config.json", &d, &error));
    assert_non_null(strstr(error.text, "name"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_by_part),
        cmocka_unit_test(one_device_streams_what_does_not_fit),
        cmocka_unit_test(tokens_that_hide_streaming),
        cmocka_unit_test(efficiency_over_links),
        cmocka_unit_test(bytes_of_a_token),
        cmocka_unit_test(groups_that_leave_a_node),
        cmocka_unit_test(weights_that_travel),
        cmocka_unit_test(decoding),
        cmocka_unit_test(least_number_of_ranks),
        cmocka_unit_test(one_rank_takes_what_the_engine_takes),
        cmocka_unit_test(ranks_take_what_the_engine_takes),
        cmocka_unit_test(shipped_devices_are_read),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

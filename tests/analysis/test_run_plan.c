/* Plans on ranks from a config.json alone, as --dry-run prints them: the figures of the project's notes for
 * Mixtral 8x7B at 600 TFLOP/s, those of Qwen3-30B-A3B by hand; what is refused, and what would be enough. */
#include "../../analysis/residency.h"
#include "scratch_run.h"

#define CONFIGS SOURCE_DIR "/tests/data/configs/"

static const char job_text[] =
    "{\"schema_version\": 1, \"batch_tokens\": 16384, \"device_file\": \"notes.json\",\n"
    " \"models\": {\"m\": {\"path\": \"" CONFIGS "mixtral_8x7b\", \"chat_template\": \"none\"}},\n"
    " \"prompts\": {\"a\": {\"path\": \"" DEMO "prompts/rank_ordinary.jsonl\", \"limit\": 64}},\n"
    " \"steps\": [{\"name\": \"s\", \"kind\": \"gradient\"}]}\n";

/* The links and rate of the notes. */
static const char device_text[] =
    "{\"name\": \"notes\", \"dram_bytes_per_s\": {\"value\": 3e12, \"source\": \"-\"}, \"ranks\": {\n"
    " \"usable_bytes\": {\"value\": 79e9, \"source\": \"-\"}, \"flops_per_s\": {\"value\": 600e12, "
    "\"source\": \"-\"},\n"
    " \"host_bytes_per_s\": {\"value\": 55e9, \"source\": \"-\"}, \"node_bytes_per_s\": {\"value\": 400e9, "
    "\"source\": \"-\"},\n"
    " \"network_bytes_per_s\": {\"value\": 45e9, \"source\": \"-\"}, \"per_node\": {\"value\": 8, "
    "\"source\": \"-\"}}}\n";

static int set_up(void **state) {
    (void)state;
    scratch_write_text("job.json", job_text);
    scratch_write_text("notes.json", device_text);
    return 0;
}

/* The plan's text, the caller frees; NULL: an Error. */
static char *plan(const char *const *sets, int64_t n_sets, Error *error) {
    char *text = NULL;
    size_t n = 0;
    FILE *to = open_memstream(&text, &n);
    RunRequest request = {.job = scratch_path("job.json"),
                          .out = scratch_path("plan"),
                          .sets = sets,
                          .n_sets = n_sets,
                          .dry_run = true,
                          .version = "test",
                          .to = to};
    *error = (Error){0};
    const bool ok = run_job(&request, error);
    fclose(to);
    if (ok) return text;
    free(text);
    return NULL;
}

typedef struct {
    int ranks;
    const char *model, *residency;
    const char *lines[4];
} Expected;

static void check_plans(const Expected *expected, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const Expected *e = &expected[i];
        char ranks[40], model[300], residency[40];
        Error error;
        snprintf(ranks, sizeof ranks, "ranks=%d", e->ranks);
        snprintf(model, sizeof model, "models.m.path=" CONFIGS "%s", e->model);
        snprintf(residency, sizeof residency, "residency=%s", e->residency);
        const char *const sets[] = {ranks, model, residency};
        char *text = plan(sets, 3, &error);
        if (!text) fail_msg("%s on %d ranks: %s", e->model, e->ranks, error.text);
        for (size_t l = 0; l < 4 && e->lines[l]; l++)
            if (!strstr(text, e->lines[l]))
                fail_msg("%s on %d ranks: expected %s: got %s", e->model, e->ranks, e->lines[l], text);
        free(text);
    }
    assert_false(io_exists(scratch_path("plan")));
}

static void mixtral_on_ranks(void **state) {
    (void)state;
#define ROWS " + 13.09 saved rows + 4.29 exchange"
    static const Expected all[] = {
        {2,
         "mixtral_8x7b",
         "resident",
         {"ranks 0-1: 4 of 8", "48.31 weights" ROWS, "moves: 8.19 kB a token and layer each way, 5 exchanges",
          "efficiency 96.4 %"}},
        {4,
         "mixtral_8x7b",
         "resident",
         {"ranks 0-3: 2 of 8", "25.76 weights" ROWS, "moves: 12.29 kB", "efficiency 94.8 %"}},
        {8,
         "mixtral_8x7b",
         "resident",
         {"ranks 0-7: 1 of 8", "14.49 weights" ROWS, "moves: 14.34 kB", "efficiency 93.8 %"}},
        {16,
         "mixtral_8x7b",
         "resident",
         {"ranks 0-15: 1 of 8", "14.49 weights" ROWS, "experts over 8,", "efficiency 93.8 %"}},
        {64,
         "mixtral_8x7b",
         "resident",
         {"ranks 0-63: 1 of 8", "14.49 weights" ROWS, "experts over 8,", "efficiency 93.8 %"}},
        {1,
         "mixtral_8x7b",
         "auto",
         {"streamed (the fastest that fits)", "streams: 14 of 32 layers", "59.58 weights",
          "efficiency 100.0 %"}},
        {8,
         "mixtral_8x7b",
         "auto",
         {"peers (the fastest that fits)", "moves: 148.0 GB of weights from peers a pass, hidden from 3259"}},
    };
    check_plans(all, sizeof all / sizeof *all);
}

/* An expert is 3 x 2048 x 768 x 2 bytes, 9.44 MB; 48 x 128 of them are 57.98 GB, all else 3.08. A token's
 * rows to all experts are 8 x 2048 x 2 bytes, 32.77 kB. */
static void qwen_on_ranks(void **state) {
    (void)state;
    static const Expected all[] = {
        {1, "qwen3_30b_a3b", "auto", {"resident (the", "61.06 weights", "gate rows = 76.33 of 79.0"}},
        {2, "qwen3_30b_a3b", "resident", {"ranks 0-1: 64 of 128", "32.07 weights", "moves: 16.38 kB"}},
        {4, "qwen3_30b_a3b", "resident", {"ranks 0-3: 32 of 128", "17.58 weights", "moves: 24.58 kB"}},
        {8, "qwen3_30b_a3b", "resident", {"ranks 0-7: 16 of 128", "10.33 weights", "moves: 28.67 kB"}},
        {16, "qwen3_30b_a3b", "resident", {"ranks 0-15: 16 of 128", "10.33 weights", "experts over 8,"}},
        {64, "qwen3_30b_a3b", "resident", {"ranks 0-63: 16 of 128", "10.33 weights", "experts over 8,"}},
        {3, "qwen3_30b_a3b", "resident", {"ranks 0-1: 43 of 128", "rank 2: 42 of 128"}},
    };
    check_plans(all, sizeof all / sizeof *all);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    Error error;
    const char *const alone[] = {"residency=resident", "ranks=1"};
    assert_null(plan(alone, 2, &error));
    assert_int_equal(error.code, ERROR_UNAVAILABLE);
    assert_non_null(strstr(error.text,
                           "step s: expected at most 79.0 GB of memory a rank: got 112.7 GB on 1 "
                           "rank, residency resident; the least number of ranks that is enough is 2"));
    const char *const large[] = {"batch_tokens=200000"};
    assert_null(plan(large, 1, &error));
    assert_non_null(
        strstr(error.text, "no number of ranks up to 1024 is enough: take a smaller batch_tokens"));
}

/* Links, the device of a file: what is in configs/devices, and what is no such file. */
static void devices_are_named_or_files(void **state) {
    (void)state;
    Error error;
    const char *const named[] = {"device_file=h200"}, *const none[] = {"device_file=h300"},
                      *const other[] = {"device_file=" CONFIGS "mixtral_8x7b/config.json"};
    char *text = plan(named, 1, &error);
    if (!text) fail_msg("%s", error.text);
    assert_non_null(strstr(text, "plan: 1 x H200 SXM 141GB"));
    assert_non_null(strstr(text, "resident (the fastest that fits)"));
    free(text);
    assert_null(plan(none, 1, &error));
    assert_non_null(strstr(error.text, "device_file: expected h100, h200 or a file: got "));
    assert_null(plan(other, 1, &error));
    assert_int_equal(error.code, ERROR_BAD_INPUT);
}

/* A run has the ranks that it was started with. */
static void a_run_takes_no_planned_ranks(void **state) {
    (void)state;
    Error error;
    const char *const sets[] = {"ranks=2"};
    assert_false(run("ran", sets, 1, &error));
    assert_non_null(strstr(error.text, "ranks: expected 1, the number that was started: got 2"));
    assert_false(io_exists(scratch_path("ran")));
}

/* ---- a run of one rank ---- */
static size_t free_bytes;
static bool say_memory(size_t *n_free, size_t *n_total) {
    *n_free = *n_total = free_bytes;
    return true;
}

/* 93.4 GB of weights, 13.1 of saved rows, 6.2 of work, 0.1 of gate rows; 15 sixteenths of what is
 * free are taken. A layer is 2.82 GB. */
static void as_few_layers_are_streamed_as_must_be(void **state) {
    (void)state;
    Error error = {0};
    Job job = {0};
    Device device = *cpu_device();
    const DeviceCopies copies = {.memory = say_memory};
    device.copies = &copies;
    if (!job_read(scratch_path("job.json"), (JobSettings){0}, &job, &error)) fail_msg("%s", error.text);
    const struct {
        double gb;
        int residency;
        int64_t streamed; /* -1: refused */
    } rows[] = {{150, RESIDENCY_AUTO, 0},   {84.3, RESIDENCY_AUTO, 14},  {32.5, RESIDENCY_AUTO, 32},
                {20, RESIDENCY_AUTO, -1},   {20, RESIDENCY_RESIDENT, 0}, {84.3, RESIDENCY_STREAMED, 32},
                {84.3, RESIDENCY_PEERS, -1}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Comm alone = comm_alone(&device);
        Spread *spreads = NULL;
        error = (Error){0};
        free_bytes = (size_t)(rows[i].gb * 1e9);
        job.options.residency = rows[i].residency;
        const bool ok = residency_choose(&job, &device, DTYPE_BF16, &alone, &spreads, &error);
        if (ok != (rows[i].streamed >= 0) || (ok && spreads->n_streamed != rows[i].streamed))
            fail_msg("%g GB, %s: expected %lld: got %lld, %s", rows[i].gb, residency_names[rows[i].residency],
                     (long long)rows[i].streamed, (long long)spreads->n_streamed, error.text);
        if (ok) assert_false(spread_any(spreads));
        if (!ok) assert_int_equal(error.code, ERROR_UNAVAILABLE);
        mem_free(spreads);
    }
    job_free(&job);
}

/* ---- a run of several ranks ---- */
/* Mixtral's 93.4 GB of weights, of which 90.2 are experts', and 19 of a gradient's pass whole; a rank in
 * eight has 14.5 and 28, or 20.1 and 19 where weights travel. */
static void ranks_share_what_no_rank_can_hold(void **state) {
    (void)state;
    Error error = {0};
    Job job = {0};
    RankDevice gpu = {0};
    if (!job_read(scratch_path("job.json"), (JobSettings){0}, &job, &error) ||
        !rank_device_read(scratch_path("notes.json"), &gpu, &error))
        fail_msg("%s", error.text);
    const struct {
        bool on_host;
        double gb;
        int64_t n_ranks, per_node;
        Residency wanted, residency;
        int64_t group; /* 0: not fit */
    } rows[] = {
        {true, 150, 8, 8, RESIDENCY_AUTO, RESIDENCY_RESIDENT, 1},
        {true, 60, 8, 8, RESIDENCY_AUTO, RESIDENCY_PEERS, 8},
        {true, 41, 8, 8, RESIDENCY_AUTO, RESIDENCY_PEERS, 8},
        {true, 20, 8, 8, RESIDENCY_AUTO, RESIDENCY_PEERS, 0},
        {true, 150, 2, 2, RESIDENCY_RESIDENT, RESIDENCY_RESIDENT, 2},
        {true, 150, 12, 12, RESIDENCY_RESIDENT, RESIDENCY_RESIDENT, 6},
        {true, 150, 4, 2, RESIDENCY_PEERS, RESIDENCY_PEERS, 2},
        /* nothing is as near as a rank's own memory, but a node of one rank has no peers */
        {true, 150, 2, 1, RESIDENCY_RESIDENT, RESIDENCY_RESIDENT, 1},
        {true, 80, 2, 1, RESIDENCY_PEERS, RESIDENCY_PEERS, 2},
        {false, 150, 8, 8, RESIDENCY_AUTO, RESIDENCY_RESIDENT, 1},
        {false, 79, 8, 8, RESIDENCY_AUTO, RESIDENCY_PEERS, 8},
        {false, 79, 1, 8, RESIDENCY_AUTO, RESIDENCY_STREAMED, 1},
        {false, 79, 4, 8, RESIDENCY_STREAMED, RESIDENCY_STREAMED, 4},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        RankDevice device = rows[i].on_host ? residency_machine(1) : gpu;
        RankPlan p;
        device.usable_bytes = rows[i].gb * 1e9;
        device.per_node = rows[i].per_node;
        job.options.residency = (int)rows[i].wanted;
        if (!residency_plan(&job, &job.models[0], DTYPE_BF16, &device, rows[i].n_ranks, &p, &error))
            fail_msg("%s", error.text);
        if (p.residency != rows[i].residency || (p.fits ? p.group : 0) != rows[i].group)
            fail_msg("row %zu: got %s over %lld, %.1f GB%s", i, residency_names[p.residency],
                     (long long)p.group, p.memory.sum / 1e9, p.fits ? "" : ", which do not fit");
    }
    RankPlan p;
    job.options.residency = RESIDENCY_PEERS;
    assert_false(residency_plan(&job, &job.models[0], DTYPE_BF16, &gpu, 1, &p, &error));
    assert_non_null(strstr(error.text, "for a run of one rank: got peers"));
    job_free(&job);
}

/* What a training wants of a model whose tokens travel; of others nothing else. */
static void a_training_has_its_tokens_at_home(void **state) {
    (void)state;
    Comm comm = comm_alone(NULL);
    comm.size = 4;
    const Spread spread = {&comm, RESIDENCY_STREAMED, {4, 8, 4, false}, 3},
                 whole = {&comm, RESIDENCY_STREAMED, {4, 8, 1, false}, 3},
                 trained = residency_of_training(&spread), same = residency_of_training(&whole);
    assert_int_equal(trained.residency, RESIDENCY_PEERS);
    assert_int_equal(trained.n_streamed, 0);
    assert_true(spread_weights_travel(&trained));
    assert_true(residency_is_same(&same, &whole) && !residency_is_same(&trained, &spread));
    assert_false(residency_is_same(&whole, &spread));
    assert_true(residency_is_same(&trained, &(Spread){&comm, RESIDENCY_PEERS, {4, 8, 4, false}, 0}));
}

static void machines_are_seen_by_their_ranks(void **state) {
    (void)state;
    static const struct {
        int size, node[6], per_node;
    } rows[] = {{1, {0}, 1},
                {4, {0, 0, 0, 0}, 4},
                {4, {0, 0, 2, 2}, 2},
                {5, {0, 0, 2, 2, 4}, 2},
                {4, {0, 1, 2, 3}, 1},
                {4, {0, 1, 0, 1}, 0},
                {4, {0, 0, 0, 3}, 3},
                {5, {0, 0, 2, 2, 2}, 0},
                {6, {0, 0, 2, 2, 0, 0}, 0},
                {4, {0, 1, 1, 1}, 0},
                {6, {0, 0, 2, 2, 2, 2}, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (comm_per_node(rows[i].node, rows[i].size) != rows[i].per_node)
            fail_msg("row %zu: expected %d: got %d", i, rows[i].per_node,
                     comm_per_node(rows[i].node, rows[i].size));
}

static void the_cpu_streams_nothing(void **state) {
    (void)state;
    Error error;
    const char *const sets[] = {"device=cpu", "residency=streamed", "models.m.path=" DEMO "model",
                                "models.m.chat_template=phi35moe"};
    assert_false(run("ran", sets, 4, &error));
    assert_int_equal(error.code, ERROR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "residency: expected a device with memory of its own"));
    remove_run("ran");
    const char *const planned[] = {"device=cpu", "residency=streamed", "models.m.path=" DEMO "model",
                                   "models.m.chat_template=phi35moe", "device_file=\"\""};
    assert_null(plan(planned, 5, &error));
    assert_non_null(strstr(error.text, "residency: expected a device with memory of its own"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mixtral_on_ranks),
        cmocka_unit_test(qwen_on_ranks),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(devices_are_named_or_files),
        cmocka_unit_test(a_run_takes_no_planned_ranks),
        cmocka_unit_test(as_few_layers_are_streamed_as_must_be),
        cmocka_unit_test(ranks_share_what_no_rank_can_hold),
        cmocka_unit_test(a_training_has_its_tokens_at_home),
        cmocka_unit_test(machines_are_seen_by_their_ranks),
        cmocka_unit_test(the_cpu_streams_nothing),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_remove);
}

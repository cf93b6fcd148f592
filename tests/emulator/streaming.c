/* A model on a device with a quarter of its bytes: experts streamed from the host give the bits of resident
 * ones, forward, back (recomputed and kept) and in generation, with as many copies as the formula says,
 * beside the work: in any order that the marks allow, and without a wait but for the layer that is needed.
 * */
#include "../../bench/bench.h"
#include "../../engine/generate.h"
#include "../../engine/placement.h"
#include "../engine/scratch.h"
#include "streams.h"

enum { LAYERS = 32, EXPERTS = 64, INNER = 128, TOKENS = 6, NEW_TOKENS = 2, PROMPTS = 2 };
static const BenchShape shape = {"small", 64, INNER, EXPERTS, 2, 2, 1, 32, 64};
static const int64_t expert_bytes = (int64_t)LAYERS * EXPERTS * 3 * 64 * INNER * 2;

static const int64_t offsets[PROMPTS + 1] = {0, 4, TOKENS};
static const int32_t tokens[TOKENS] = {3, 60, 12, 7, 33, 5};

/* All that a pass says. */
typedef struct {
    float nll[TOKENS], logits_grad[LAYERS][TOKENS * EXPERTS];
    int32_t made[PROMPTS * NEW_TOKENS];
} Result;

static Result expected[3]; /* forward, back recomputed, back kept; of resident weights */
enum { FORWARD, BACK, BACK_KEPT };

static bool take_grad(void *context, HookSite *site, const RouteGradView *view) {
    Result *r = context;
    site->device->copy_out(site->queue, r->logits_grad[view->moe_layer], view->logits_grad);
    return true;
}

static bool run_pass(const Model *model, int kind, Result *r, Error *error) {
    float loss[TOKENS];
    for (int i = 0; i < TOKENS; i++) loss[i] = 1;
    const PromptBatch batch = {PROMPTS, offsets, tokens};
    const PassOptions options = {.want_nll = true,
                                 .loss_weights = kind == FORWARD ? NULL : loss,
                                 .recompute = kind == BACK_KEPT ? RECOMPUTE_NEVER : RECOMPUTE_ALWAYS};
    const Hooks hooks = {.context = r, .route_grad = take_grad};
    PassResult pass = {0};
    memset(r, 0, sizeof *r);
    if (!model_pass(model, &batch, &options, &hooks, &pass, error)) return false;
    memcpy(r->nll, pass.nll, sizeof r->nll);
    pass_result_free(&pass);
    return true;
}

static void must_pass(const Model *model, int kind, Result *r) {
    Error error = {0};
    if (!run_pass(model, kind, r, &error)) fail_msg("%s", error.text);
}

static void must_generate(const Model *model, int32_t made[PROMPTS * NEW_TOKENS]) {
    Error error = {0};
    Generation g;
    const GenerateOptions options = {.max_new_tokens = NEW_TOKENS};
    if (!generate(model, &(PromptBatch){PROMPTS, offsets, tokens}, &options, NULL, &g, &error))
        fail_msg("%s", error.text);
    assert_int_equal(g.offsets[PROMPTS], PROMPTS * NEW_TOKENS);
    memcpy(made, g.tokens, sizeof(int32_t) * PROMPTS * NEW_TOKENS);
    generation_free(&g);
}

static bool open_streamed(int64_t n_streamed, Model *model, Error *error) {
    return model_open_spread(scratch_path("model"), cuda_device(NULL), DTYPE_BF16,
                             &(Spread){.residency = RESIDENCY_STREAMED, .n_streamed = n_streamed}, model,
                             error);
}

static void must_open(int64_t n_streamed, Model *model) {
    Error error = {0};
    if (!open_streamed(n_streamed, model, &error)) fail_msg("%s", error.text);
}

static int set_up(void **state) {
    (void)state;
    Error error = {0};
    Model model;
    if (!bench_checkpoint(&shape, LAYERS, DTYPE_BF16, scratch_path("model"), &error))
        fail_msg("%s", error.text);
    must_open(0, &model);
    for (int kind = 0; kind < 3; kind++) must_pass(&model, kind, &expected[kind]);
    must_generate(&model, expected[FORWARD].made);
    model_close(&model);
    return 0;
}

static void limit_memory(int64_t n_bytes) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)n_bytes);
    setenv("GATETAPE_EMULATOR_MEMORY", text, 1);
    emulator_peak_bytes();
}

static void check_pass(const Model *model, int kind) {
    static Result got;
    must_pass(model, kind, &got);
    assert_memory_equal(got.nll, expected[kind].nll, sizeof got.nll);
    assert_memory_equal(got.logits_grad, expected[kind].logits_grad, sizeof got.logits_grad);
}

/* ---- a quarter of the memory ---- */
static void a_quarter_of_the_memory_is_enough(void **state) {
    (void)state;
    Model model;
    Error error = {0};
    limit_memory(expert_bytes / 4);
    assert_false(open_streamed(0, &model, &error));
    assert_int_equal(error.code, ERROR_UNAVAILABLE);
    must_open(LAYERS, &model);
    assert_true(weight_stream_host_bytes(model.weights.stream) == (size_t)expert_bytes);
    int64_t n = 0;
    for (int i = 0; i < 2; i++) {
        check_pass(&model, BACK);
        n += placement_count_copies(LAYERS, true, i == 0);
        assert_int_equal(weight_stream_copies(model.weights.stream), n);
    }
    /* the first two layers are there after the way back, and not after a forward */
    check_pass(&model, FORWARD);
    check_pass(&model, FORWARD);
    n += LAYERS - 2 + placement_count_copies(LAYERS, false, false);
    assert_int_equal(weight_stream_copies(model.weights.stream), n);
    int32_t made[PROMPTS * NEW_TOKENS];
    must_generate(&model, made);
    assert_memory_equal(made, expected[FORWARD].made, sizeof made);
    n += NEW_TOKENS * LAYERS; /* the prefill draws the first token */
    assert_int_equal(weight_stream_copies(model.weights.stream), n);
    model_close(&model);
    assert_true(emulator_peak_bytes() <= (size_t)expert_bytes / 4);
    unsetenv("GATETAPE_EMULATOR_MEMORY");
}

/* ---- any order, any number ---- */
static void no_order_of_copies_changes_a_bit(void **state) {
    (void)state;
    static const int64_t streamed[] = {1, 3, LAYERS};
    for (size_t i = 0; i < sizeof streamed / sizeof *streamed; i++) {
        Model model;
        must_open(streamed[i], &model);
        emulator_streams_any_order((unsigned)(i + 1));
        check_pass(&model, BACK);
        check_pass(&model, i % 2 ? BACK_KEPT : FORWARD);
        emulator_streams_any_order(0);
        model_close(&model);
    }
}

/* ---- overlap ---- */
/* The notes run with a kernel in one unit of time and a layer's copy in copy_units: how long the work waits,
 * the first wait (nothing is there yet) left out. */
typedef struct {
    int64_t n_waits, n_layers_copied, n_kernels;
    double stalled;
    bool in_order; /* the k-th wait of the work is for the k-th layer that was copied */
} Overlap;

static Overlap run_notes(const StreamNote *notes, size_t n, double copy_units) {
    enum { MOST_MARKS = 4096 };
    static double marks[MOST_MARKS];
    const size_t large = (size_t)expert_bytes / LAYERS / 4; /* half of the smaller part of a layer */
    const void *copies = NULL;
    int64_t copied_mark[4 * LAYERS], first_mark = -1;
    double work = 0, copy = 0;
    Overlap o = {.in_order = true};
    for (size_t i = 0; i < n && !copies; i++)
        if (notes[i].what == STREAM_COPY_IN && notes[i].n_bytes > large) copies = notes[i].stream;
    for (size_t i = 0; i < n; i++) {
        const StreamNote *a = &notes[i];
        const bool is_copy = a->stream == copies;
        double *clock = is_copy ? &copy : &work;
        if (first_mark < 0 && a->what == STREAM_MARK) first_mark = a->mark;
        const int64_t mark = a->mark - first_mark;
        if (a->what == STREAM_MARK || a->what == STREAM_WAIT) assert_in_range(mark, 0, MOST_MARKS - 1);
        if (a->what == STREAM_KERNEL && !is_copy) work++, o.n_kernels++;
        if (a->what == STREAM_COPY_IN && is_copy)
            copy += copy_units * (double)a->n_bytes * LAYERS / (double)expert_bytes;
        if (a->what == STREAM_MARK) marks[mark] = *clock;
        if (a->what == STREAM_MARK && is_copy) copied_mark[o.n_layers_copied++] = mark;
        if (a->what != STREAM_WAIT) continue;
        if (!is_copy && o.n_waits) o.stalled += marks[mark] > work ? marks[mark] - work : 0;
        if (!is_copy) o.in_order = o.in_order && copied_mark[o.n_waits] == mark, o.n_waits++;
        if (marks[mark] > *clock) *clock = marks[mark];
    }
    return o;
}

/* The work waits once for each copy, in their order, and for nothing else; when a layer's copy takes less
 * than its work no wait takes time, when it takes longer they do. */
static void copies_run_beside_the_work(void **state) {
    (void)state;
    for (int kind = FORWARD; kind <= BACK; kind++) {
        Model model;
        size_t n;
        must_open(LAYERS, &model);
        emulator_note_streams(true);
        check_pass(&model, kind);
        const StreamNote *notes = emulator_stream_notes(&n);
        const Overlap none = run_notes(notes, n, 0);
        const int64_t n_copies = placement_count_copies(LAYERS, kind == BACK, true);
        assert_int_equal(none.n_layers_copied, n_copies);
        assert_int_equal(none.n_waits, n_copies);
        assert_true(none.in_order && none.stalled == 0);
        /* forward, the shorter way: every layer's work is alike */
        const double of_layer = (double)none.n_kernels / (kind == BACK ? 3.5 : 1.0) / (LAYERS + 1);
        const Overlap fast = run_notes(notes, n, 0.8 * of_layer), slow = run_notes(notes, n, 4 * of_layer);
        print_message("%lld kernels, %lld copies: stalled %.1f of fast copies, %.1f of slow ones\n",
                      (long long)none.n_kernels, (long long)n_copies, fast.stalled, slow.stalled);
        assert_true(fast.stalled == 0);
        assert_true(slow.stalled > 0);
        emulator_note_streams(false);
        model_close(&model);
    }
}

/* ---- what cannot be ---- */
static void faults_are_errors(void **state) {
    (void)state;
    Model model;
    Error error = {0};
    assert_false(model_open_spread(scratch_path("model"), cpu_device(), DTYPE_BF16,
                                   &(Spread){.residency = RESIDENCY_STREAMED, .n_streamed = LAYERS}, &model,
                                   &error));
    assert_int_equal(error.code, ERROR_UNAVAILABLE);
    assert_non_null(
        strstr(error.text, "residency: expected a device with memory of its own for streamed weights"));
    error = (Error){0};
    limit_memory(expert_bytes / LAYERS); /* one buffer */
    assert_false(open_streamed(LAYERS, &model, &error));
    assert_int_equal(error.code, ERROR_UNAVAILABLE);
    unsetenv("GATETAPE_EMULATOR_MEMORY");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_quarter_of_the_memory_is_enough),
        cmocka_unit_test(no_order_of_copies_changes_a_bit),
        cmocka_unit_test(copies_run_beside_the_work),
        cmocka_unit_test(faults_are_errors),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_remove);
}

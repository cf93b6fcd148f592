/* Attention on the tensor cores: the cases of cases.h have odd heads, which the general variant takes; here
 * heads are 64 and 128 wide, of the same width in keys and values. Near the table f64, the same bits on a
 * second run, and a token decoded alone over a cache has the bits that it has in its packed prompt. No
 * variant does more work than its tiles must: counted are steps (by barriers), multiply-adds and what is
 * copied to shared memory. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#ifdef GATETAPE_EMULATED
#include "tests/emulator/count.h"
#endif
#include "tests/kernels/cases.h"

enum { MOST_PROMPTS = 6 };

typedef struct {
    const char *name;
    int64_t width, heads, kv_heads, window, before; /* before: keys of a prompt ahead of its rows */
    bool has_sinks;
    int64_t lengths[MOST_PROMPTS]; /* rows of each prompt */
    int many; /* not 0: so many prompts of one row instead, too many for several blocks each */
} Shape;

static const Shape SHAPES[] = {
    {"head 64, GQA 4", 64, 4, 1, 0, 0, false, {0, 1, 63, 64, 65, 3}, 0},
    {"head 64, window", 64, 2, 2, 20, 0, false, {70, 1, 0, 130, 0, 5}, 0},
    {"head 64, cache, sinks", 64, 2, 1, 0, 100, true, {2, 1, 33, 0, 1, 40}, 0},
    {"head 128, GQA 8", 128, 8, 1, 0, 0, false, {17, 0, 64, 1, 2, 9}, 0},
    {"head 128, cache, window", 128, 2, 1, 70, 90, false, {1, 5, 0, 66, 1, 1}, 0},
    {"head 64, cache, window of whole steps", 64, 1, 1, 174, 47, false, {200, 0, 3, 1, 0, 17}, 0},
    {"head 64, decoding", 64, 4, 2, 0, 150, true, {1, 1, 1, 1, 1, 1}, 0},
    {"head 128, decoding, window", 128, 4, 1, 33, 300, false, {1, 1, 1, 1, 1, 1}, 0},
    {"head 64, decoding many", 64, 8, 2, 0, 330, true, {0}, 70},
    {"head 128, decoding many, window", 128, 20, 1, 200, 290, false, {0}, 130},
    {"head 128, decoding, a warp each", 128, 6, 2, 0, 140, true, {0}, 128},
    {"head 64, decoding, too long for the workspace", 64, 128, 1, 0, 450, false, {0}, 63},
};
static const Shape *shape; /* of the case that is built */

static int prompts_of(const Shape *s) { return s->many ? s->many : MOST_PROMPTS; }
static int64_t length_of(const Shape *s, int prompt) { return s->many ? 1 : s->lengths[prompt]; }

/* The shape that outgrows decoding's workspace would take too long. */
static bool has_backward(const Shape *s) { return s->heads < 128; }

static int64_t add_prompts(Problem *p) {
    const int n_prompts = prompts_of(shape);
    Arg *offsets = whole_arg(p, IN, I32, n_prompts + 1, NONE, NONE);
    Arg *begin = whole_arg(p, IN, I32, n_prompts, NONE, NONE),
        *length = whole_arg(p, IN, I32, n_prompts, NONE, NONE);
    int64_t keys = 3, rows = 0;
    for (int i = 0; i < n_prompts; i++) {
        int64_t n = length_of(shape, i) + shape->before;
        offsets->values[i + 1] = (double)(rows += length_of(shape, i));
        begin->values[i] = (double)keys;
        length->values[i] = (double)n;
        keys += n + 1;
    }
    return keys;
}

static int64_t rows_of(const Shape *s) {
    int64_t rows = 0;
    for (int i = 0; i < prompts_of(s); i++) rows += length_of(s, i);
    return rows;
}

static void build_forward(Problem *p) {
    int64_t keys = add_prompts(p);
    row_arg(p, OUT, ACT, shape->heads, shape->width);
    row_arg(p, OUT, REAL, shape->heads, NONE);
    row_arg(p, IN, ACT, shape->heads, shape->width);
    whole_arg(p, IN, ACT, keys, shape->kv_heads, shape->width);
    whole_arg(p, IN, ACT, keys, shape->kv_heads, shape->width);
    leave_out(whole_arg(p, IN, WEIGHT, shape->heads, NONE, NONE), !shape->has_sinks);
    p->reduction = (double)(shape->width + keys);
    p->rounds_inside = true; /* weights are rounded before they meet the values */
}
static void call_forward(const Ops *o, Queue *q, const Tensor *t, const Problem *p) {
    (void)p;
    o->attention(q, t[3], t[4], t[5], t[6], t[7], (Spans){t[0], t[1], t[2]}, t[8], 0.25f, shape->window);
}

static void build_backward(Problem *p) {
    int64_t keys = add_prompts(p);
    row_arg(p, SUM, ACT, shape->heads, shape->width);
    whole_arg(p, SUM, ACT, keys, shape->kv_heads, shape->width);
    whole_arg(p, SUM, ACT, keys, shape->kv_heads, shape->width);
    row_arg(p, IN, ACT, shape->heads, shape->width);
    row_arg(p, IN, ACT, shape->heads, shape->width);
    Arg *lse = row_arg(p, IN, REAL, shape->heads, NONE);
    lse->low = 5, lse->high = 6;
    row_arg(p, IN, ACT, shape->heads, shape->width);
    whole_arg(p, IN, ACT, keys, shape->kv_heads, shape->width);
    whole_arg(p, IN, ACT, keys, shape->kv_heads, shape->width);
    p->reduction = 4 * (double)(shape->width + 2 * keys);
    p->n_stores = 4; /* p and ds are rounded too */
}
static void call_backward(const Ops *o, Queue *q, const Tensor *t, const Problem *p) {
    (void)p;
    o->attention_bwd(q, t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11], (Spans){t[0], t[1], t[2]},
                     0.25f, shape->window);
}

static const Case FORWARD = {"attention", build_forward, call_forward, 1, false},
                  BACKWARD = {"attention_bwd", build_backward, call_backward, 1, false};

static void check_case(const Case *c, const Shape *s) {
    shape = s;
    Problem p = problem_new(c, rows_of(s), s->width, 0);
    Setting gpu = {"cuda", DTYPE_BF16, DTYPE_BF16, 1}, exact = gpu;
    exact.isa = "f64";
    Finding why;
    Run first = run_case(c, &p, &gpu), reference = run_case(c, &p, &exact);
    if (!run_is_clean(&first, &p, &gpu, &why)) fail_msg("%s: %s: not clean: %s", c->op, s->name, why.text);
    if (!run_is_near(&first, &reference, &p, &gpu, &why))
        fail_msg("%s: %s: far from f64: %s", c->op, s->name, why.text);
    setenv("GATETAPE_EMULATOR_WHEN", "1", 1);
    Run again = run_case(c, &p, &gpu);
    unsetenv("GATETAPE_EMULATOR_WHEN");
    if (!runs_equal(&first, &again, &p, &why)) fail_msg("%s: %s: a second run: %s", c->op, s->name, why.text);
    run_free(&first, &p), run_free(&again, &p), run_free(&reference, &p);
    problem_free(&p);
}

static void test_forward(void **state) {
    if (!cuda_device(NULL)) skip();
    check_case(&FORWARD, *state);
}
static void test_backward(void **state) {
    if (!cuda_device(NULL)) skip();
    check_case(&BACKWARD, *state);
}

/* The last row of every prompt again, one row a prompt over the same keys. */
static void test_decoding_has_the_bits_of_prefill(void **state) {
    (void)state;
    if (!cuda_device(NULL)) skip();
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        shape = &SHAPES[i];
        Problem p = problem_new(&FORWARD, rows_of(shape), shape->width, 0);
        Setting gpu = {"cuda", DTYPE_BF16, DTYPE_BF16, 1};
        Run whole = run_case(&FORWARD, &p, &gpu), one = run_new(&p, &gpu);
        for (int prompt = 0; prompt < prompts_of(shape); prompt += 1 + shape->many / 9) {
            int64_t last = (int64_t)p.arg[0].values[prompt + 1] - 1;
            if (length_of(shape, prompt) == 0) continue;
            int32_t ends[2] = {0, 1};
            Tensor offsets = {
                .data = one.device->alloc(sizeof ends), .dtype = DTYPE_I32, .n_dims = 1, .shape = {2}};
            one.device->copy_in(one.queue, offsets, ends);
            Tensor cut[MOST_ARGS];
            memcpy(cut, one.on_device, sizeof cut);
            cut[0] = offsets;
            for (int a = 1; a <= 2; a++) cut[a] = tensor_slice(cut[a], prompt, 1);
            for (int a = 3; a <= 5; a++) cut[a] = tensor_slice(cut[a], last, 1);
            FORWARD.call(one.device->ops, one.queue, cut, &p);
            run_fetch(&one);
            one.device->free(offsets.data);
            Tensor want = tensor_slice(whole.t[3], last, 1), got = tensor_slice(one.t[3], last, 1);
            if (memcmp(got.data, want.data, tensor_bytes(want)))
                fail_msg("%s: prompt %d: its last row differs when decoded alone", shape->name, prompt);
        }
        run_free(&whole, &p), run_free(&one, &p);
        problem_free(&p);
    }
}

#ifdef GATETAPE_EMULATED
/* ---- work: a tile walks the steps in which one of its rows sees a key, and no others ---- */
typedef struct {
    uint64_t barriers, multiply_adds,
        copied; /* sectors that attention_mma.cuh and attention_hopper.cuh copy to shared memory */
} Work;

/* Tiles of `own` rows of one prompt and head, or of its keys, that walk the other side in steps. */
typedef struct {
    int64_t own, step;
    bool of_keys;
} Walk;

/* Of all tiles of a call: their steps, what these hold, what the tiles hold. */
typedef struct {
    uint64_t steps, walked, own;
} Walked;

typedef struct {
    int64_t first, last;
} Seen;

static int64_t group_of(const Shape *s) { return s->heads / s->kv_heads; }

/* The keys, or rows, that [first, first + n) see, or are seen by; last < first: none. */
static Seen seen_by(const Shape *s, int64_t tokens, int64_t first, int64_t n, bool of_keys) {
    Seen seen = {INT64_MAX, -1};
    for (int64_t i = 0; i < tokens * group_of(s); i++) {
        int64_t to = s->before + i / group_of(s), from = s->window ? to - s->window + 1 : 0;
        if (from < 0) from = 0;
        if (of_keys ? to < first || from >= first + n : i < first || i >= first + n) continue;
        int64_t low = of_keys ? i : from, high = of_keys ? i : to;
        if (low < seen.first) seen.first = low;
        if (high > seen.last) seen.last = high;
    }
    return seen;
}

static Walked walked_by(const Shape *s, Walk w) {
    int64_t steps = 0, walked = 0, own = 0;
    for (int i = 0; i < prompts_of(s); i++) {
        int64_t tokens = length_of(s, i), rows = tokens * group_of(s), keys = tokens + s->before;
        int64_t n = w.of_keys ? keys : rows, others = w.of_keys ? rows : keys;
        for (int64_t first = 0; first < n; first += w.own) {
            Seen seen = seen_by(s, tokens, first, w.own, w.of_keys);
            if (seen.last < seen.first) continue;
            int64_t begin = seen.first / w.step * w.step, end = (seen.last / w.step + 1) * w.step;
            steps += (end - begin) / w.step;
            walked += (end < others ? end : others) - begin;
        }
        own += n;
    }
    const uint64_t heads = (uint64_t)s->kv_heads;
    return (Walked){(uint64_t)steps * heads, (uint64_t)walked * heads, (uint64_t)own * heads};
}

/* Hopper's kernels: tiles of 128, of which each half skips what it does not see; steps of 64. */
static bool on_hopper(void) {
    const char *arch = getenv("GATETAPE_EMULATOR_ARCH");
    return arch && !strcmp(arch, "90");
}

/* `products` of tiles that walk the other side; their barriers are mbarriers. */
static Work hopper_work(const Shape *s, bool of_keys, int products, int owned) {
    const Walked all = walked_by(s, (Walk){128, 64, of_keys}), halves = walked_by(s, (Walk){64, 64, of_keys});
    const uint64_t statistics = of_keys ? all.walked / 4 + 2 * all.steps : 0; /* 8 bytes a row, not aligned */
    return (Work){UINT64_MAX / 2, halves.steps * (uint64_t)(products * 64 * 64 * s->width),
                  ((uint64_t)owned * all.own + 2 * all.walked) * (uint64_t)s->width / 16 + statistics};
}

/* What attention_mma.cu or attention_decode.cu, attention_hopper.cu, attention.cu need: 64 keys a step. */
static Work forward_work(const Shape *s, DType dtype) {
    const int64_t width = s->width, tile = width == 64 ? 128 : 64, chunks = width / 64;
    if (dtype == DTYPE_F32)
        return (Work){4 * (uint64_t)chunks * walked_by(s, (Walk){32, 64, false}).steps, 0, 0};
    const bool decodes = rows_of(s) <= prompts_of(s);
    if (on_hopper() && !decodes) return hopper_work(s, false, 2, 1);
    const int64_t rows = decodes ? 16 : tile / 4; /* of a warp, which skips what it does not see */
    const uint64_t of_warps = walked_by(s, (Walk){rows, 64, false}).steps;
    const Walked all = walked_by(s, (Walk){tile, 64, false});
    Work most = {2 * all.steps, of_warps * (uint64_t)(2 * rows * 64 * width),
                 (all.own + 2 * all.walked) * (uint64_t)width / 16};
    if (decodes) most.barriers = most.copied = UINT64_MAX; /* they depend on who shares a prompt */
    return most;
}

/* attention_bwd_mma.cu, attention_bwd.cu. */
static Work backward_work(const Shape *s, DType dtype) {
    const int64_t width = s->width, tile = width == 64 ? 128 : 64, chunks = width / 64;
    if (dtype == DTYPE_F32)
        return (Work){(uint64_t)chunks * (6 * walked_by(s, (Walk){32, 64, false}).steps +
                                          (6 + 4) * walked_by(s, (Walk){32, 64, true}).steps),
                      0, 0};
    if (on_hopper()) {
        const Work rows = hopper_work(s, false, 3, 2), keys = hopper_work(s, true, 4, 2);
        return (Work){rows.barriers + keys.barriers, rows.multiply_adds + keys.multiply_adds,
                      rows.copied + keys.copied};
    }
    const Walked rows = walked_by(s, (Walk){tile, 32, false}), keys = walked_by(s, (Walk){64, 32, true});
    return (Work){rows.steps + keys.steps,
                  (uint64_t)(32 * width) * (3 * (uint64_t)tile * rows.steps + 4 * 64 * keys.steps),
                  2 * (rows.own + rows.walked + keys.own + keys.walked) * (uint64_t)width / 16};
}

static void check_work(const Case *c, const Shape *s, DType dtype, Work most) {
    shape = s;
    Problem p = problem_new(c, rows_of(s), s->width, 0);
    const Setting setting = {"cuda", dtype, dtype, 1};
    Run run = run_new(&p, &setting);
    size_t n;
    run.device->sync(run.queue);
    count_begin();
    c->call(run.device->ops, run.queue, run.on_device, &p);
    run.device->sync(run.queue);
    const LaunchCounts *l = count_end(&n);
    Work done = {0, 0, 0};
    for (size_t i = 0; i < n; i++) {
        done.barriers += l[i].total.of[COUNT_BARRIERS];
        done.multiply_adds += l[i].total.of[COUNT_MULTIPLY_ADDS];
        for (size_t k = 0; k < l[i].n_lines; k++)
            if (!strcmp(l[i].lines[k].file, "attention_mma.cuh") ||
                !strcmp(l[i].lines[k].file, "attention_hopper.cuh"))
                done.copied += l[i].lines[k].tally.of[COUNT_READ];
    }
    if (done.barriers > most.barriers || done.multiply_adds > most.multiply_adds || done.copied > most.copied)
        fail_msg(
            "%s: %s, %s: %llu barriers, %llu multiply-adds, %llu sectors copied: %llu, %llu, %llu suffice",
            c->op, s->name, dtype_name(dtype), (unsigned long long)done.barriers,
            (unsigned long long)done.multiply_adds, (unsigned long long)done.copied,
            (unsigned long long)most.barriers, (unsigned long long)most.multiply_adds,
            (unsigned long long)most.copied);
    run_free(&run, &p);
    problem_free(&p);
}

static void test_work(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
        for (int narrow = 0; narrow < 2; narrow++) {
            const DType dtype = narrow ? DTYPE_BF16 : DTYPE_F32;
            if (SHAPES[i].many && !narrow) continue; /* slow, and nothing new */
            check_work(&FORWARD, &SHAPES[i], dtype, forward_work(&SHAPES[i], dtype));
            if (!has_backward(&SHAPES[i])) continue;
            check_work(&BACKWARD, &SHAPES[i], dtype, backward_work(&SHAPES[i], dtype));
        }
}
#endif

/* test_attention_cores [PATTERN]: all cases, or those whose name PATTERN (with * and ?) is. */
int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    enum { N_SHAPES = sizeof SHAPES / sizeof *SHAPES };
    struct CMUnitTest tests[2 * N_SHAPES + 2];
    size_t n = 0;
    for (int i = 0; i < N_SHAPES; i++) {
        void *state = (void *)&SHAPES[i];
        tests[n++] = (struct CMUnitTest){SHAPES[i].name, test_forward, NULL, NULL, state};
        if (has_backward(&SHAPES[i]))
            tests[n++] = (struct CMUnitTest){SHAPES[i].name, test_backward, NULL, NULL, state};
    }
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_decoding_has_the_bits_of_prefill);
#ifdef GATETAPE_EMULATED
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_work);
#endif
    return _cmocka_run_group_tests("attention", tests, n, NULL, NULL);
}

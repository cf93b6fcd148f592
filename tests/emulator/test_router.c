/* The router of the device cuda has the bits of the CPU's: all rules, edited and not, rows of every width
 * that takes another path (packed or not, whole or in runs of chunks), with ties, far logits, infinities and
 * NaN. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "tests/kernels/cases.h"

enum { N_TOKENS = 37, MOST_EXPERTS = 300, N_ROWS = 5 };

typedef struct {
    int experts, choices;
    bool edited;
    RouterRule rule;
    float logits[N_TOKENS * MOST_EXPERTS], values[N_ROWS * MOST_EXPERTS], dweights[N_TOKENS * MOST_EXPERTS];
    int32_t modes[N_ROWS * MOST_EXPERTS], rows[N_TOKENS];
} Input;

typedef struct {
    float probs[N_TOKENS * MOST_EXPERTS], weights[N_TOKENS * MOST_EXPERTS], dlogits[N_TOKENS * MOST_EXPERTS];
    int32_t ids[N_TOKENS * MOST_EXPERTS];
} Output;

static uint64_t n_drawn;
static double draw(void) { return random_uniform(77, RANDOM_TEST, 1, (int64_t)n_drawn++); }
static int draw_index(int n) { return (int)(draw() * n); }

/* Few values make ties; wide ones leave the short forms of exp and division. */
static float draw_logit(int kind) {
    static const float odd[] = {INFINITY, -INFINITY, -300, 300, NAN};
    if (kind == 0) return (float)(20 * draw() - 10);
    if (kind == 1) return (float)(draw_index(4) - 2) * 0.5f;
    if (kind == 2) return (float)(260 * draw() - 130);
    return draw() < 0.3 ? odd[draw_index(kind == 3 ? 4 : 5)] : (float)draw();
}

static void draw_edits(Input *in) {
    for (int row = 0; row < N_ROWS; row++) {
        int32_t *modes = in->modes + row * in->experts, masked = 0;
        float *values = in->values + row * in->experts;
        for (int e = 0; e < in->experts; e++) {
            modes[e] = draw() < 0.5 ? draw_index(EDIT_ZERO_RENORMALIZE + 1) : EDIT_NONE;
            values[e] = (float)draw_index(3) * 0.5f;
            if (modes[e] == EDIT_FORCE) modes[e] = EDIT_NONE;
            if (modes[e] == EDIT_MASK && ++masked > in->experts - in->choices) modes[e] = EDIT_BIAS;
        }
        for (int k = 0, at = draw_index(in->experts); row == 1 && k < in->choices; k++, at++) {
            modes[at % in->experts] = EDIT_FORCE;
            values[at % in->experts] = (float)(in->choices - 1 - k);
        }
    }
    for (int t = 0; t < N_TOKENS; t++) in->rows[t] = draw_index(N_ROWS + 1) - 1;
}

/* An array of the run's device, from host memory. */
static Tensor placed(const Device *d, Queue *q, Tensor t) {
    Tensor own = t;
    own.data = d->alloc(tensor_bytes(t));
    check(own.data, "out of memory");
    d->copy_in(q, own, t.data);
    return own;
}

static void run(const Device *d, Input *in, Output *out) {
    Queue *q = d->queue_new();
    int e = in->experts, k = in->choices;
    Tensor host[] = {tensor_matrix(out->probs, DTYPE_F32, N_TOKENS, e),
                     tensor_matrix(out->ids, DTYPE_I32, N_TOKENS, k),
                     tensor_matrix(out->weights, DTYPE_F32, N_TOKENS, k),
                     tensor_matrix(out->dlogits, DTYPE_F32, N_TOKENS, e),
                     tensor_matrix(in->logits, DTYPE_F32, N_TOKENS, e),
                     tensor_matrix(in->dweights, DTYPE_F32, N_TOKENS, k),
                     tensor_matrix(in->modes, DTYPE_I32, N_ROWS, e),
                     tensor_matrix(in->values, DTYPE_F32, N_ROWS, e),
                     tensor_vector(in->rows, DTYPE_I32, N_TOKENS)};
    enum { N = sizeof host / sizeof *host };
    Tensor t[N];
    memset(out, 0, sizeof *out);
    for (int i = 0; i < N; i++) t[i] = placed(d, q, host[i]);
    RouteEdits edits = in->edited ? (RouteEdits){t[6], t[7], t[8]} : (RouteEdits){0};
    d->ops->route(q, t[0], t[1], t[2], t[4], edits, in->rule);
    d->ops->route_bwd(q, t[3], t[5], t[0], t[1], t[2], t[4], edits, in->rule);
    for (int i = 0; i < 4; i++) d->copy_out(q, host[i].data, t[i]);
    check(d->sync(q), "%s", q->failure);
    for (int i = 0; i < N; i++) d->free(t[i].data);
    d->queue_free(q);
}

/* The same bits, or both NaN, whose payload no one promises. */
static void compare(const char *what, const Input *in, const float *a, const float *b, int n) {
    for (int i = 0; i < n; i++)
        if (memcmp(a + i, b + i, 4) && !(isnan(a[i]) && isnan(b[i])))
            fail_msg("%s [%d] of %d experts, %d chosen, edited %d, order %d: cpu %.9g, cuda %.9g", what, i,
                     in->experts, in->choices, in->edited, (int)in->rule.order, (double)a[i], (double)b[i]);
}

static void check_routing(Input *in, const RouterRule *rule) {
    static Output cpu, cuda;
    in->rule = *rule;
    run(cpu_device_named("generic"), in, &cpu);
    run(cuda_device(NULL), in, &cuda);
    int n = N_TOKENS * in->experts, m = N_TOKENS * in->choices;
    for (int i = 0; i < m; i++)
        if (cpu.ids[i] != cuda.ids[i])
            fail_msg("ids [%d] of %d experts, %d chosen, edited %d: cpu %d, cuda %d", i, in->experts,
                     in->choices, in->edited, (int)cpu.ids[i], (int)cuda.ids[i]);
    compare("probs", in, cpu.probs, cuda.probs, n);
    compare("weights", in, cpu.weights, cuda.weights, m);
    compare("dlogits", in, cpu.dlogits, cuda.dlogits, n);
}

static void test_bits_of_the_cpu(void **state) {
    (void)state;
    if (!cuda_device(NULL)) skip();
    static Input in;
    static const int sizes[][2] = {{1, 1},  {4, 2},  {7, 3},   {8, 2},    {16, 4},  {30, 6},  {60, 4},
                                   {64, 8}, {72, 6}, {128, 8}, {130, 20}, {256, 8}, {257, 3}, {300, 40}};
    static const RouterRule rules[] = {
        {ROUTER_SOFTMAX_TOPK, true, 1}, {ROUTER_SOFTMAX_TOPK, false, 2.5f}, {ROUTER_TOPK_SOFTMAX, false, 1}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int kind = 0; kind < 5; kind++)
            for (int edited = 0; edited < 2; edited++) {
                in.experts = sizes[s][0], in.choices = sizes[s][1], in.edited = edited;
                for (int i = 0; i < N_TOKENS * in.experts; i++) in.logits[i] = draw_logit(kind);
                for (int i = 0; i < N_TOKENS * in.choices; i++) in.dweights[i] = (float)(2 * draw() - 1);
                draw_edits(&in);
                for (size_t r = 0; r < sizeof rules / sizeof *rules; r++) check_routing(&in, &rules[r]);
            }
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bits_of_the_cpu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

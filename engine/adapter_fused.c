/* Fused files: one pair for all experts of a layer's gate_up, one for down. A is [E*R, in], expert-major; B
 * is [out, R*E], its column j*E + e, or e*R + j where somebody wrote it so. PEFT before 0.19.1 wrote A and B
 * for the transposed matrix. */
#include "adapter_parts.h"
#include "alloc.h"
#include <stdio.h>
#include <string.h>

/* One fused pair. Element (r, i) of expert e's A, as it acts on the input; (j, r) of its B. */
typedef struct {
    float *a, *b;
    int64_t rank, in, out;
    bool swapped; /* what the file calls A acts on the output */
    bool expert_major;
    int64_t n_experts;
    float scale;
} FusedPair;

/* The column of the file's B for component r of expert e. */
static int64_t column_of(const FusedPair *p, int64_t e, int64_t r) {
    return p->expert_major ? e * p->rank + r : r * p->n_experts + e;
}

/* Expert e's pair, from component `first` on and row `row` of the output. */
static AdapterPair pair_of(const FusedPair *p, int64_t e, int64_t first, int64_t row) {
    int64_t columns = p->rank * p->n_experts, step = p->expert_major ? 1 : p->n_experts;
    const float *rows = p->a + (e * p->rank + first) * (p->swapped ? p->out : p->in);
    const float *cells = p->b + column_of(p, e, first);
    if (p->swapped) return (AdapterPair){cells, rows + row, step, columns, 1, p->out};
    return (AdapterPair){rows, cells + row * columns, p->in, 1, columns, step};
}

/* ---- which way round ---- */
static bool decide(AdapterReader *r, const char *name, const int64_t a[2], const int64_t b[2], FusedPair *p) {
    bool natural = a[1] == p->in && b[0] == p->out, swapped = a[1] == p->out && b[0] == p->in;
    int64_t experts = r->model->n_experts, version = adapter_config_version(r->config);
    if (!(natural || swapped) || a[0] != experts * p->rank || b[1] != experts * p->rank)
        return error_set(r->error, ERROR_BAD_INPUT,
                         "%s: %s: expected A [%lld,%lld] and B [%lld,%lld], %lld experts of rank %lld: got "
                         "[%lld,%lld] and [%lld,%lld]",
                         r->path, name, (long long)(experts * p->rank), (long long)p->in, (long long)p->out,
                         (long long)(experts * p->rank), (long long)experts, (long long)p->rank,
                         (long long)a[0], (long long)a[1], (long long)b[0], (long long)b[1]);
    p->swapped = swapped;
    if (natural != swapped) return true;
    const char *layout = r->reading->layout;
    if (layout)
        p->swapped = !strcmp(layout, "0.18");
    else if (version >= 19001)
        p->swapped = false;
    else if (version < 0 || version >= 19000)
        return error_set(
            r->error, ERROR_BAD_INPUT,
            "%s: %s: expected a peft_version that tells which way round square matrices are, not "
            "0.19.0, or the layout \"0.18\" or \"0.19.1\" named: got neither",
            r->path, name);
    return true;
}

/* ---- cells ---- */
static bool put_down(AdapterReader *r, int64_t layer, const FusedPair *p) {
    for (int64_t e = 0; e < p->n_experts; e++) {
        AdapterCell like = {layer, e, PROJECTION_DOWN, p->rank, p->scale, NULL, NULL};
        if (!adapter_put(r, like, pair_of(p, e, 0, 0))) return false;
    }
    return true;
}

static bool block_is_zero(const AdapterPair *p, int64_t rows, int64_t ranks) {
    for (int64_t j = 0; j < rows; j++)
        for (int64_t k = 0; k < ranks; k++)
            if (p->b[j * p->b_out + k * p->b_rank] != 0) return false;
    return true;
}

/* B is zero outside [gate, first half of the rank] and [up, second half], for every expert: gate and up were
 * adapted apart. */
static bool is_block_diagonal(const FusedPair *p) {
    int64_t half = p->rank / 2, size = p->out / 2;
    if (p->rank % 2) return false;
    for (int64_t e = 0; e < p->n_experts; e++) {
        AdapterPair gate = pair_of(p, e, half, 0), up = pair_of(p, e, 0, size);
        if (!block_is_zero(&gate, size, half) || !block_is_zero(&up, size, half)) return false;
    }
    return true;
}

static bool put_gate_up(AdapterReader *r, int64_t layer, const FusedPair *p) {
    bool apart = is_block_diagonal(p);
    int64_t rank = apart ? p->rank / 2 : p->rank;
    for (int64_t e = 0; e < p->n_experts; e++)
        for (int side = 0; side < 2; side++) {
            AdapterCell like = {layer, e, (Projection)side, rank, p->scale, NULL, NULL};
            AdapterPair pair = pair_of(p, e, apart ? side * rank : 0, side * p->out / 2);
            if (!apart && block_is_zero(&pair, p->out / 2, rank))
                r->about->n_zero++;
            else if (!adapter_put(r, like, pair))
                return false;
        }
    return true;
}

/* ---- the layer ---- */
static bool read_pair(AdapterReader *r, int64_t layer, bool down, const char *parameter, const char *stem) {
    char names[2][ADAPTER_NAME_BYTES + 60];
    int64_t a[2], b[2];
    double scale;
    Projection like = down ? PROJECTION_DOWN : PROJECTION_GATE;
    FusedPair p = {.in = projection_in(r->model, like),
                   .out = (down ? 1 : 2) * projection_out(r->model, like),
                   .expert_major = r->reading->expert_major,
                   .n_experts = r->model->n_experts};
    for (int i = 0; i < 2; i++) snprintf(names[i], sizeof names[i], "%s.lora_%c.weight", stem, "AB"[i]);
    if (!adapter_config_scale(r->config, parameter, &p.rank, &scale, r->error)) return false;
    p.scale = (float)scale;
    p.a = adapter_tensor(r, names[0], a);
    p.b = p.a ? adapter_tensor(r, names[1], b) : NULL;
    bool ok = p.a && p.b && decide(r, parameter, a, b, &p) &&
              (down ? put_down(r, layer, &p) : put_gate_up(r, layer, &p));
    mem_free(p.a);
    mem_free(p.b);
    return ok;
}

bool adapter_read_fused(AdapterReader *r, int64_t layer) {
    char gate_up[ADAPTER_NAME_BYTES], down[ADAPTER_NAME_BYTES], outer[ADAPTER_NAME_BYTES + 20],
        inner[ADAPTER_NAME_BYTES + 40], probe[ADAPTER_NAME_BYTES + 60];
    const char *parameter;
    if (!adapter_fused_parameter(r->arch, true, layer, down, &parameter, r->error) ||
        !adapter_fused_parameter(r->arch, false, layer, gate_up, &parameter, r->error))
        return false;
    int module = (int)(parameter - gate_up) - 1;
    snprintf(outer, sizeof outer, ADAPTER_PREFIX "%.*s", module, gate_up);
    snprintf(inner, sizeof inner, "%s.base_layer", outer);
    snprintf(probe, sizeof probe, "%s.lora_A.weight", outer);
    if (!adapter_has_tensor(r, probe)) return true;
    r->about->fused = true;
    snprintf(probe, sizeof probe, "%s.lora_A.weight", inner);
    if (adapter_has_tensor(r, probe)) /* both: gate_up inside, down outside */
        return read_pair(r, layer, false, gate_up, inner) && read_pair(r, layer, true, down, outer);
    bool first = adapter_config_targets(r->config, gate_up), second = adapter_config_targets(r->config, down);
    if (first == second)
        return error_set(
            r->error, ERROR_BAD_INPUT,
            "%s: target_parameters: expected one of %s and %s, of which the file has one: got %s",
            r->config->path, gate_up, down, first ? "both" : "neither");
    return read_pair(r, layer, second, second ? down : gate_up, outer);
}

/* Which choices of the router agree, how far a diverted one reaches, and the largest error of a tensor over
 * the rest.
 *
 * A diverted choice of layer l and token t changes what layers above l see of tokens from t on, through
 * attention, and nothing else of the forward pass; of the backward pass it may change everything of its
 * prompt. */
#include "conform_parts.h"
#include "../engine/alloc.h"
#include <math.h>
#include <string.h>

/* The distances between neighbours of the K+1 largest of z[0..E), ascending places; infinite beyond the last.
 * */
static void largest_gaps(const float *z, int64_t n_experts, int64_t k, float *gaps, uint8_t *taken) {
    memset(taken, 0, (size_t)n_experts);
    float before = 0;
    for (int64_t i = 0; i <= k; i++) {
        int64_t best = -1;
        for (int64_t e = 0; e < n_experts; e++)
            if (!taken[e] && (best < 0 || z[e] > z[best])) best = e;
        if (i > 0) gaps[i - 1] = best < 0 ? INFINITY : before - z[best];
        if (best < 0) continue;
        taken[best] = 1;
        before = z[best];
    }
}

static bool same_set(const int64_t *a, const int64_t *b, int64_t k) {
    for (int64_t i = 0; i < k; i++) {
        bool found = false;
        for (int64_t j = 0; j < k; j++) found = found || a[i] == b[j];
        if (!found) return false;
    }
    return true;
}

typedef enum { CHOICE_EQUAL, CHOICE_REORDERED, CHOICE_DIVERTED, CHOICE_WRONG } Choice;

typedef struct {
    Tensor ids, logits; /* expected */
    float bound;
    float *gaps;    /* [K] */
    uint8_t *taken; /* [E] */
} Judge;

/* Row r of [L,T]: equal, or otherwise because of logits closer than the bound, or wrong. *near: the last
 * expert chosen and the first left are that close. */
static Choice judge_choice(const Judge *judge, const int64_t *actual, int64_t r, bool *near) {
    int64_t k = tensor_columns(judge->ids), n_experts = tensor_columns(judge->logits);
    const int64_t *expected = (const int64_t *)judge->ids.data + r * k;
    largest_gaps((const float *)judge->logits.data + r * n_experts, n_experts, k, judge->gaps, judge->taken);
    *near = judge->gaps[k - 1] < judge->bound;
    if (!memcmp(actual, expected, (size_t)k * sizeof *actual)) return CHOICE_EQUAL;
    if (!same_set(actual, expected, k)) return *near ? CHOICE_DIVERTED : CHOICE_WRONG;
    for (int64_t i = 0; i + 1 < k; i++)
        if (judge->gaps[i] < judge->bound) return CHOICE_REORDERED;
    return CHOICE_WRONG;
}

static void reach_prompt(ConformReach *reach, const Judge *judge, const int64_t *actual, int64_t p) {
    int64_t k = tensor_columns(judge->ids), n = reach->offsets[p + 1] - reach->offsets[p], clean = n;
    for (int64_t l = 0; l < reach->n_layers; l++) {
        int64_t next = clean;
        reach->clean[p * (reach->n_layers + 1) + l] = clean;
        for (int64_t t = 0; t < n; t++) {
            int64_t r = l * reach->n_tokens + reach->offsets[p] + t;
            reach->n_choices++;
            if (t >= clean) {
                reach->n_after++;
                continue;
            }
            bool near;
            Choice choice = judge_choice(judge, actual + r * k, r, &near);
            reach->n_near += near;
            reach->n_wrong += choice == CHOICE_WRONG;
            reach->n_loose += choice == CHOICE_REORDERED || choice == CHOICE_DIVERTED;
            reach->loose[r] = choice != CHOICE_EQUAL;
            if (choice == CHOICE_DIVERTED && t < next) next = t;
        }
        clean = next;
    }
    reach->clean[p * (reach->n_layers + 1) + reach->n_layers] = clean;
}

static bool shapes_equal(const ConformCase *c, const char *name, Tensor expected, Tensor actual,
                         Error *error) {
    bool equal = expected.n_dims == actual.n_dims;
    for (int i = 0; equal && i < actual.n_dims; i++) equal = expected.shape[i] == actual.shape[i];
    if (equal) return true;
    char shapes[2][100] = {"", ""};
    for (int side = 0; side < 2; side++)
        for (int i = 0, used = 0; i < (side ? expected : actual).n_dims; i++)
            used += snprintf(shapes[side] + used, sizeof shapes[side] - (size_t)used, "%s%lld", i ? "," : "",
                             (long long)(side ? expected : actual).shape[i]);
    return error_set(error, ERROR_BAD_INPUT, "%s: %s: expected the model's shape [%s]: got [%s]", c->path,
                     name, shapes[0], shapes[1]);
}

/* Everything clean, as long as no choice says otherwise. */
static bool reach_new(const ConformCase *c, const ConformValues *values, ConformReach *reach, Error *error) {
    int64_t n_layers = tensor_count(values->tensors[CONFORM_MOE_LAYERS]);
    *reach = (ConformReach){.n_prompts = c->n_prompts,
                            .n_tokens = c->n_tokens,
                            .n_layers = n_layers,
                            .offsets = c->offsets,
                            .moe_layers = values->tensors[CONFORM_MOE_LAYERS].data};
    reach->clean = mem_zeroed((size_t)(c->n_prompts * (n_layers + 1)), sizeof *reach->clean);
    reach->loose = mem_zeroed((size_t)(n_layers * c->n_tokens), 1);
    if (!reach->clean || !reach->loose)
        return error_out_of_memory(error, "choices", (size_t)(n_layers * c->n_tokens));
    for (int64_t i = 0; i < c->n_prompts * (n_layers + 1); i++) {
        int64_t p = i / (n_layers + 1);
        reach->clean[i] = c->offsets[p + 1] - c->offsets[p];
    }
    return true;
}

static bool reach_judge(const ConformCase *c, const ConformValues *values, Judge *judge, ConformReach *reach,
                        Error *error) {
    Tensor actual = values->tensors[CONFORM_TOPK_IDS], logits = values->tensors[CONFORM_ROUTER_LOGITS],
           own = {0};
    bool given = conform_has(c, "router_logits");
    bool ok = conform_read(c, "topk_ids", DTYPE_I64, &judge->ids, error) &&
              shapes_equal(c, "topk_ids", judge->ids, actual, error) &&
              (!given || (conform_read(c, "router_logits", DTYPE_F32, &own, error) &&
                          shapes_equal(c, "router_logits", own, logits, error)));
    judge->logits = given ? own : logits;
    judge->gaps = mem_alloc((size_t)(tensor_columns(actual) + 1) * sizeof *judge->gaps);
    judge->taken = mem_alloc((size_t)tensor_columns(logits));
    if (ok && (!judge->gaps || !judge->taken)) ok = error_out_of_memory(error, "choices", 0);
    for (int64_t p = 0; ok && p < c->n_prompts; p++) reach_prompt(reach, judge, actual.data, p);
    mem_free(judge->ids.data);
    mem_free(own.data);
    mem_free(judge->gaps);
    mem_free(judge->taken);
    return ok;
}

bool conform_reach(const ConformCase *c, const ConformValues *values, float bound, ConformReach *reach,
                   Error *error) {
    bool ok = reach_new(c, values, reach, error);
    Judge judge = {.bound = bound};
    if (ok && conform_has(c, "topk_ids")) ok = reach_judge(c, values, &judge, reach, error);
    if (!ok) conform_reach_free(reach);
    return ok;
}

void conform_reach_free(ConformReach *reach) {
    mem_free(reach->clean);
    mem_free(reach->loose);
    *reach = (ConformReach){0};
}

/* ---- values ---- */
static int64_t prompt_of(const ConformReach *reach, int64_t token) {
    int64_t low = 0, high = reach->n_prompts;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (reach->offsets[middle] <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Expert layers in the decoder layers [0, layer]. */
static int64_t layers_up_to(const ConformReach *reach, int64_t layer) {
    int64_t n = 0;
    while (n < reach->n_layers && reach->moe_layers[n] <= layer) n++;
    return n;
}

static bool row_counts(const ConformReach *reach, ConformRows rows, int64_t r) {
    if (rows == ROWS_FIXED) return true;
    int64_t t = rows == ROWS_PROMPT ? reach->offsets[r] : r % reach->n_tokens;
    int64_t p = prompt_of(reach, t), place = t - reach->offsets[p], layer = r / reach->n_tokens;
    const int64_t *clean = reach->clean + p * (reach->n_layers + 1);
    switch (rows) {
    case ROWS_LAYER_TOKEN: return place < clean[layer] && !reach->loose[r];
    case ROWS_OUTPUT_TOKEN: return place < clean[layers_up_to(reach, layer)];
    case ROWS_TOKEN: return place < clean[reach->n_layers];
    default: return clean[reach->n_layers] == reach->offsets[p + 1] - reach->offsets[p];
    }
}

bool conform_compare(const ConformCase *c, const ConformReach *reach, ConformName name, Tensor actual,
                     ConformDifference *difference, Error *error) {
    const ConformInfo *info = &conform_infos[name];
    Tensor expected = {0};
    bool ok = conform_read(c, info->name, DTYPE_F32, &expected, error) &&
              shapes_equal(c, info->name, expected, actual, error);
    *difference = (ConformDifference){0};
    if (!ok) {
        mem_free(expected.data);
        return false;
    }
    const float *a = actual.data, *b = expected.data;
    int64_t n = tensor_count(actual);
    int64_t n_rows = info->rows == ROWS_PROMPT ? actual.shape[0] : tensor_rows(actual), columns = n / n_rows;
    double scale = 0, worst = 0, ab = 0, aa = 0, bb = 0;
    difference->n_rows = n_rows;
    for (int64_t i = 0; i < n; i++) scale = fmax(scale, fabs((double)b[i]));
    for (int64_t r = 0; r < n_rows; r++) {
        if (!row_counts(reach, info->rows, r)) continue;
        difference->n_compared++;
        for (int64_t i = r * columns; i < (r + 1) * columns; i++) {
            double e = fabs((double)a[i] - (double)b[i]);
            if (!isfinite(a[i]) || !isfinite(b[i])) e = INFINITY;
            if (e > worst) worst = e, difference->where = i;
            ab += (double)a[i] * (double)b[i];
            aa += (double)a[i] * (double)a[i];
            bb += (double)b[i] * (double)b[i];
        }
    }
    difference->error = worst > 0 ? worst / scale : 0;
    difference->cosine = aa == 0 && bb == 0 ? 1 : ab / sqrt(aa * bb);
    mem_free(expected.data);
    return true;
}

/* The verdict: each tensor's line, the same-bits checks, what was left out. Nothing is left out silently. */
#include "conform.h"
#include "conform_lora.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/text.h"
#include <math.h>
#include <string.h>

/* Largest |a-b|/max|b| of values and of gradients, least cosine of gradients, and the distance below which a
 * choice may fall either way. f32: the reference in f32 differs from itself in f64 by 1e-6; a GPU sums in
 * another order. bf16 keeps 8 bits: what the reference differs by when its own activations are rounded at
 * every op. */
typedef struct {
    double value, gradient, cosine;
    float route_margin, token_margin;
} Bounds;

static Bounds bounds_of(const ConformOptions *options) {
    if (options->compute == DTYPE_BF16) return (Bounds){0.03, 0.05, 0.999, 0.2f, 0.2f};
    if (options->device->each_kernel) return (Bounds){1e-5, 2e-5, 0.999999, 1e-4f, 1e-4f};
    return (Bounds){5e-6, 1e-5, 0.999999, 1e-4f, 1e-4f};
}

/* Where logits are large, both sides of a choice may be off by the bound of values: a choice is only sure
 * beyond that. */
static float widen_margin(float margin, double bound, Tensor logits) {
    const float *z = logits.data;
    int64_t n = tensor_count(logits);
    double scale = 0;
    for (int64_t i = 0; i < n; i++) scale = fmax(scale, fabs((double)z[i]));
    return fmaxf(margin, (float)(2 * bound * scale));
}

typedef struct {
    const ConformOptions *options;
    FILE *to;
    ConformCase c;
    Model model;
    ConformValues values;
    Bounds bounds;
    ConformEdits edits;
    int n_checked, n_failed;
} Run;

static void verdict(Run *run, bool good) {
    run->n_checked++;
    run->n_failed += !good;
    fprintf(run->to, "%s\n", good ? "" : "  FAILED");
}

static void print_unchecked(const Run *run, const char *what, const char *name, const char *why) {
    Text text = {0};
    text_put_terminal(&text, name, strlen(name));
    fprintf(run->to, "not checked: %s%s (%s)\n", what, text.bytes ? text.bytes : "", why);
    text_free(&text);
}

/* ---- tensors ---- */
static void print_place(FILE *to, Tensor t, int64_t element) {
    int64_t index[TENSOR_MAX_DIMS];
    for (int i = t.n_dims - 1; i >= 0; i--) {
        index[i] = element % t.shape[i];
        element /= t.shape[i];
    }
    for (int i = 0; i < t.n_dims; i++) fprintf(to, "%s%lld", i ? "," : "  at [", (long long)index[i]);
    fputc(']', to);
}

static void print_name(const Run *run, const char *name) {
    Text text = {0};
    const char *prefix = run->c.prefix ? run->c.prefix : "";
    text_put_terminal(&text, prefix, strlen(prefix));
    text_put_string(&text, name);
    fprintf(run->to, "%-18s", text.bytes ? text.bytes : name);
    text_free(&text);
}

static bool check_values(Run *run, const ConformReach *reach, ConformName name, Error *error) {
    const ConformInfo *info = &conform_infos[name];
    double bound = info->kind == CONFORM_GRADIENT ? run->bounds.gradient : run->bounds.value;
    ConformDifference d;
    if (!conform_compare(&run->c, reach, name, run->values.tensors[name], &d, error)) return false;
    print_name(run, info->name);
    fprintf(run->to, " %10.2e %8.0e  %lld of %lld rows", d.error, bound, (long long)d.n_compared,
            (long long)d.n_rows);
    bool parallel = info->kind != CONFORM_GRADIENT || d.cosine >= run->bounds.cosine;
    if (info->kind == CONFORM_GRADIENT) fprintf(run->to, ", cosine %.7f", d.cosine);
    if (d.error > bound) print_place(run->to, run->values.tensors[name], d.where);
    verdict(run, d.error <= bound && parallel);
    return true;
}

static void check_choices(Run *run, const ConformReach *reach) {
    int64_t n = reach->n_choices - reach->n_after - reach->n_loose;
    print_name(run, "topk_ids");
    fprintf(run->to, " %10lld %8d  %lld of %lld choices", (long long)reach->n_wrong, 0, (long long)n,
            (long long)reach->n_choices);
    if (reach->n_near || n < reach->n_choices)
        fprintf(run->to, "; %lld closer than %.0e, %lld fell otherwise, %lld stand behind those",
                (long long)reach->n_near, (double)run->bounds.route_margin, (long long)reach->n_loose,
                (long long)reach->n_after);
    verdict(run, reach->n_wrong == 0);
}

static bool check_layers(Run *run, Error *error) {
    Tensor expected, actual = run->values.tensors[CONFORM_MOE_LAYERS];
    if (!conform_read(&run->c, "moe_layers", DTYPE_I64, &expected, error)) return false;
    bool equal = expected.n_dims == 1 && tensor_count(expected) == tensor_count(actual) &&
                 !memcmp(expected.data, actual.data, tensor_bytes(actual));
    fprintf(run->to, "%-18s %10s %8d  %lld layers", "moe_layers", equal ? "0" : "differ", 0,
            (long long)tensor_count(actual));
    verdict(run, equal);
    mem_free(expected.data);
    return true;
}

/* Tokens are compared up to a prompt's first difference at a choice, or behind a routing, closer than the
 * margin. */
static bool check_greedy(Run *run, const ConformReach *reach, const ConformGreedy *greedy, Error *error) {
    const ConformCase *c = &run->c;
    Tensor expected;
    if (!conform_read(c, "greedy_tokens", DTYPE_I64, &expected, error)) return false;
    const int64_t *a = run->values.tensors[CONFORM_GREEDY_TOKENS].data, *b = expected.data;
    int64_t n_wrong = 0, n_compared = 0, n_again = 0;
    for (int64_t p = 0; p < c->n_prompts; p++) {
        bool clean = reach->clean[(p + 1) * (reach->n_layers + 1) - 1] == c->offsets[p + 1] - c->offsets[p],
             same = true;
        for (int64_t i = p * c->n_steps; i < (p + 1) * c->n_steps; i++) {
            n_again += greedy->argmax[i] != a[i];
            if (!same) continue;
            same = a[i] == b[i];
            bool loose = !clean || greedy->margins[i] < run->bounds.token_margin ||
                         i - p * c->n_steps >= greedy->sure[p];
            n_wrong += !same && !loose;
            n_compared += same || !loose;
        }
    }
    mem_free(expected.data);
    fprintf(run->to, "%-18s %10lld %8d  %lld of %lld tokens", "greedy_tokens", (long long)n_wrong, 0,
            (long long)n_compared, (long long)(c->n_prompts * c->n_steps));
    verdict(run, n_wrong == 0);
    fprintf(run->to, "%-18s %10lld %8d  cache and packed pass choose the same tokens", "greedy again",
            (long long)n_again, 0);
    verdict(run, n_again == 0);
    return true;
}

static bool check_tensors(Run *run, Error *error) {
    fprintf(run->to, "%-18s %10s %8s  %s\n", "tensor", "error", "bound", "compared");
    ConformReach reach;
    Bounds *b = &run->bounds;
    b->route_margin = widen_margin(b->route_margin, b->value, run->values.tensors[CONFORM_ROUTER_LOGITS]);
    b->token_margin = widen_margin(b->token_margin, b->value, run->values.tensors[CONFORM_LOGITS]);
    if (!conform_reach(&run->c, &run->values, run->bounds.route_margin, &reach, error)) return false;
    bool ok = true;
    for (ConformName name = 0; ok && name < N_CONFORM_TENSORS; name++) {
        if (!conform_has(&run->c, conform_infos[name].name)) {
            print_unchecked(run, "tensor ", conform_infos[name].name, "the case does not have it");
            continue;
        }
        if (name == CONFORM_MOE_LAYERS) {
            ok = check_layers(run, error);
        } else if (name == CONFORM_TOPK_IDS) {
            check_choices(run, &reach);
        } else if (name == CONFORM_GREEDY_TOKENS) {
            ConformGreedy greedy;
            ok = conform_greedy(&run->model, &run->c, &run->values, run->bounds.route_margin, &greedy, error);
            if (ok) ok = check_greedy(run, &reach, &greedy, error);
            if (ok) conform_greedy_free(&greedy);
        } else {
            ok = check_values(run, &reach, name, error);
        }
    }
    conform_reach_free(&reach);
    return ok;
}

/* ---- interventions ---- */
/* Compares one edit's tensors, as `run` with other expected and computed ones. */
static bool check_edit(Run *run, const ConformEdit *edit, Error *error) {
    static const ConformName names[] = {CONFORM_TOPK_IDS, CONFORM_TOPK_WEIGHTS, CONFORM_LOGITS, CONFORM_NLL};
    ConformReach reach;
    conform_edit_logits(&edit->table, run->values.tensors[CONFORM_ROUTER_LOGITS]);
    if (!conform_reach(&run->c, &run->values, run->bounds.route_margin, &reach, error)) return false;
    bool ok = true;
    for (size_t i = 0; ok && i < sizeof names / sizeof *names; i++) {
        if (!conform_has(&run->c, conform_infos[names[i]].name)) {
            print_unchecked(run, run->c.prefix, conform_infos[names[i]].name, "the case does not have it");
        } else if (names[i] == CONFORM_TOPK_IDS) {
            check_choices(run, &reach);
        } else {
            ok = check_values(run, &reach, names[i], error);
        }
    }
    conform_reach_free(&reach);
    return ok;
}

static bool check_edit_bits(Run *run, const ConformEdit *edit, const ConformValues *values, Error *error) {
    ConformValues again;
    if (!conform_compute_edited(&run->model, &run->c, run->c.n_prompts, &edit->table, &again, error))
        return false;
    bool same = true;
    for (int i = 0; i < N_CONFORM_TENSORS; i++)
        if (tensor_present(again.tensors[i]))
            same = same &&
                   !memcmp(again.tensors[i].data, values->tensors[i].data, tensor_bytes(again.tensors[i]));
    Text name = {0};
    text_put_terminal(&name, edit->name, strlen(edit->name));
    fprintf(run->to, "same bits: %s, packed and one prompt at a time: %s", name.bytes ? name.bytes : "",
            same ? "equal" : "not equal");
    text_free(&name);
    verdict(run, same);
    conform_values_free(&again);
    return true;
}

/* Every edit computed, then written, then compared: a case without expected values still gets its actual
 * ones. */
static bool check_edits(Run *run, TensorSet *expected, ConformValues *values, Error *error) {
    ConformEdits *edits = &run->edits;
    bool ok = true;
    for (int64_t i = 0; ok && i < edits->n; i++)
        ok = conform_compute_edited(&run->model, &run->c, 1, &edits->edits[i].table, &values[i], error);
    if (ok && run->options->out) ok = conform_edits_write(edits, values, run->options->out, error);
    for (int64_t i = 0; ok && i < edits->n; i++) {
        Run one = *run;
        one.c.prefix = edits->edits[i].prefix;
        ok = check_edit_bits(&one, &edits->edits[i], &values[i], error);
        one.c.expected = expected;
        one.values = values[i];
        ok = ok && check_edit(&one, &edits->edits[i], error);
        run->n_checked = one.n_checked, run->n_failed = one.n_failed;
    }
    return ok;
}

static bool run_edits(Run *run, Error *error) {
    const char *folder = run->options->folder;
    ConformEdits *edits = &run->edits;
    if (!conform_edits_read(folder, &run->model.config, edits, error)) return false;
    if (!edits->n) return true;
    char *path = io_join(folder, "expected_interventions.safetensors");
    ConformValues *values = mem_zeroed((size_t)edits->n, sizeof *values);
    bool ok =
        (path && values) || error_out_of_memory(error, "interventions", (size_t)edits->n * sizeof *values);
    TensorSet *expected = NULL;
    if (ok && io_exists(path))
        ok = (expected = safetensors_open(path, error)) != NULL;
    else if (ok)
        print_unchecked(run, "", "interventions", "the case has no expected_interventions.safetensors");
    ok = ok && check_edits(run, expected, values, error);
    for (int64_t i = 0; values && i < edits->n; i++) conform_values_free(&values[i]);
    if (expected) safetensors_close(expected);
    mem_free(values);
    mem_free(path);
    return ok;
}

/* Training has all experts at home: where tokens travel it opens the model anew. */
static bool run_lora(Run *run, Error *error) {
    ConformCount count = {run->n_checked, run->n_failed};
    Model other = {0};
    const bool travel = spread_tokens_travel(&run->model.spread);
    bool ok = (!travel || conform_open_model(run->options, RESIDENCY_PEERS, &other, error)) &&
              conform_lora(run->options, &run->c, travel ? &other : &run->model, run->to, &count, error);
    if (travel) model_close(&other);
    run->n_checked = count.n_checked, run->n_failed = count.n_failed;
    return ok;
}

/* ---- the same bits ---- */
static bool check_bits(Run *run, const char *what, int64_t n_parts, Recompute recompute, Error *error) {
    ConformValues again;
    if (!conform_compute(&run->model, &run->c, n_parts, recompute, &again, error)) return false;
    const char *differs = NULL;
    for (ConformName i = 0; i < N_CONFORM_TENSORS; i++) {
        Tensor a = run->values.tensors[i], b = again.tensors[i];
        if (tensor_present(a) && memcmp(a.data, b.data, tensor_bytes(a)) != 0)
            differs = conform_infos[i].name;
    }
    fprintf(run->to, "same bits: packed and %s: %s%s", what, differs ? differs : "equal",
            differs ? " differs" : "");
    verdict(run, !differs);
    conform_values_free(&again);
    return true;
}

/* ---- the rest ---- */
static bool known(const char *name) {
    static const char *const inputs[] = {"tokens", "prompt_offsets", "target_starts"};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        if (!strcmp(name, inputs[i])) return true;
    for (int i = 0; i < N_CONFORM_TENSORS; i++)
        if (!strcmp(name, conform_infos[i].name)) return true;
    return false;
}

/* Files that nothing here asks for are named, so that nobody takes silence for agreement. */
static bool list_unchecked(const Run *run, Error *error) {
    for (int64_t i = 0; i < safetensors_count(run->c.expected); i++) {
        const char *name = safetensors_entry(run->c.expected, i)->name;
        if (!known(name)) print_unchecked(run, "tensor ", name, "not a tensor of the golden cases");
    }
    char **names = NULL;
    size_t n = 0;
    bool has_plan = false;
    if (!io_list(run->options->folder, &names, &n, error)) return false;
    for (size_t i = 0; i < n; i++) has_plan = has_plan || !strcmp(names[i], "lora.json");
    for (size_t i = 0; i < n; i++) {
        if (!has_plan && (!strncmp(names[i], "expected_lora", 13) || !strncmp(names[i], "adapter-", 8)))
            print_unchecked(run, "", names[i], "the case has no lora.json");
        mem_free(names[i]);
    }
    mem_free(names);
    return true;
}

/* All that is computed a second time, or beside the case's own tensors. */
static bool check_more(Run *run, Error *error) {
    int64_t n = run->c.n_prompts;
    if (run->options->once) {
        print_unchecked(run, "", "the same bits, interventions, training", "--once");
        return true;
    }
    return check_bits(run, "one prompt at a time", n, RECOMPUTE_ALWAYS, error) &&
           (n < 2 || check_bits(run, "split in two", 2, RECOMPUTE_ALWAYS, error)) &&
           check_bits(run, "with all activations kept", 1, RECOMPUTE_NEVER, error) && run_edits(run, error) &&
           run_lora(run, error);
}

static void print_head(const Run *run) {
    const ModelConfig *config = &run->model.config;
    fprintf(run->to,
            "%s: %lld layers, %lld x %lld experts, top %lld; %lld prompts, %lld tokens; %s, compute %s\n",
            config->family, (long long)config->n_layers, (long long)config->n_moe_layers,
            (long long)config->n_experts, (long long)config->n_experts_per_token, (long long)run->c.n_prompts,
            (long long)run->c.n_tokens, run->model.device->name, dtype_name(run->model.compute));
}

static void print_kernel(void *to, const char *kernel, int64_t n_launches) {
    fprintf(to, "launched: %s %lld times\n", kernel, (long long)n_launches);
}

static bool run_checks(Run *run, Error *error) {
    const Device *device = run->options->device;
    print_head(run);
    bool ok = conform_case_fits(&run->c, &run->model.config, error) &&
              conform_compute(&run->model, &run->c, 1, RECOMPUTE_ALWAYS, &run->values, error) &&
              (!run->options->out || conform_values_write(&run->values, &run->c, run->options->out, error)) &&
              check_tensors(run, error) && check_more(run, error) && list_unchecked(run, error);
    if (!ok) return false;
    if (device->each_kernel) device->each_kernel(print_kernel, run->to);
    if (run->n_failed)
        fprintf(run->to, "%d of %d checks failed\n", run->n_failed, run->n_checked);
    else
        fprintf(run->to, "all %d checks passed\n", run->n_checked);
    return true;
}

static bool read_case(const ConformOptions *options, ConformCase *c, Error *error) {
    bool ok = conform_case_read(options->folder, c, error);
    c->comm = options->comm;
    return options->comm ? comm_agree(options->comm, ok, error) : ok;
}

bool conform_run(const ConformOptions *options, FILE *to, bool *agrees, Error *error) {
    Run run = {.options = options, .to = to, .bounds = bounds_of(options)};
    *agrees = false;
    bool opened = read_case(options, &run.c, error) &&
                  conform_open_model(options, options->residency, &run.model, error),
         ok = opened && run_checks(&run, error);
    /* the others may be inside a pass */
    if (opened && !ok && conform_is_shared(&run.c)) comm_fail(options->comm, error);
    conform_values_free(&run.values);
    conform_edits_free(&run.edits);
    if (opened) model_close(&run.model);
    conform_case_free(&run.c);
    *agrees = ok && run.n_failed == 0;
    return ok;
}

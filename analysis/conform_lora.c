/* The verdict on training: losses, norms, the first gradient, the trained values and the logits with them,
 * and the same bits however a step's prompts are packed. */
#include "conform_lora.h"
#include "../engine/alloc.h"
#include <math.h>
#include <string.h>

/* Twenty steps of AdamW carry rounding on; a first gradient is one pass. In bf16 a close choice of the router
 * falls the other way now and then, which is much for a cell with few tokens: there the cells are judged
 * together, by the length of their difference. */
typedef struct {
    double losses, norms, gradient, trained, logits;
} LoraBounds;

static LoraBounds bounds_of(const ConformOptions *options) {
    if (options->compute == DTYPE_BF16) return (LoraBounds){0.03, 0.1, 0.1, 0.1, 0.2};
    if (options->device->each_kernel) return (LoraBounds){1e-4, 1e-4, 2e-5, 1e-4, 1e-4};
    return (LoraBounds){1e-4, 1e-4, 1e-5, 1e-4, 1e-4};
}

typedef struct {
    const ConformOptions *options;
    ConformCase expected; /* expected_lora.safetensors; shares the prompts of the case */
    const ConformCase *c;
    Model *model;
    FILE *to;
    ConformCount *count;
    ConformPlan plan;
    ConformTrained trained;
} LoraRun;

static void verdict(LoraRun *run, bool good) {
    run->count->n_checked++;
    run->count->n_failed += !good;
    fprintf(run->to, "%s\n", good ? "" : "  FAILED");
}

/* The largest difference of tensors of one kind, each as a share of its own largest magnitude; or together:
 * the length of all differences as a share of the length of all tensors. */
typedef struct {
    double worst;
    int64_t n;
    double off_squares, squares;
    char where[CONFORM_CELL_NAME];
} Worst;

static double difference(const float *got, const float *want, int64_t n, Worst *all) {
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double off = fabs((double)got[i] - (double)want[i]);
        all->off_squares += off * off;
        all->squares += (double)want[i] * (double)want[i];
        largest = fmax(largest, fabs((double)want[i]));
        if (!(off <= worst)) worst = off;
    }
    if (worst == 0) return 0;
    return largest > 0 && isfinite(worst) ? worst / largest : (double)INFINITY;
}

static bool compare(LoraRun *run, const char *name, Tensor got, Worst *worst, Error *error) {
    Tensor want;
    if (!conform_read(&run->expected, name, DTYPE_F32, &want, error)) return false;
    bool ok =
        want.n_dims == got.n_dims && !memcmp(want.shape, got.shape, (size_t)got.n_dims * sizeof *got.shape);
    if (!ok) error_set(error, ERROR_BAD_INPUT, "%s: %s: expected another shape", run->expected.path, name);
    double off = ok ? difference(got.data, want.data, tensor_count(got), worst) : 0;
    if (ok && (worst->n == 0 || off > worst->worst)) {
        worst->worst = off;
        snprintf(worst->where, sizeof worst->where, "%s", name);
    }
    worst->n++;
    mem_free(want.data);
    return ok;
}

static void print_worst(LoraRun *run, const char *what, const Worst *worst, double bound) {
    fprintf(run->to, "lora %-13s %10.2e %8.0e  %lld tensor%s", what, worst->worst, bound, (long long)worst->n,
            worst->n == 1 ? "" : "s");
    if (worst->worst > bound) fprintf(run->to, ", worst %s", worst->where);
    verdict(run, worst->worst <= bound);
}

static Tensor side_of(const AdapterCell *cell, const ModelConfig *config, char side) {
    if (side == 'A')
        return tensor_matrix(cell->a, DTYPE_F32, cell->rank, projection_in(config, cell->projection));
    return tensor_matrix(cell->b, DTYPE_F32, projection_out(config, cell->projection), cell->rank);
}

/* See LoraBounds. */
static void judge_together(LoraRun *run, Worst *worst) {
    if (run->options->compute != DTYPE_BF16) return;
    worst->worst = sqrt(worst->off_squares / worst->squares);
    snprintf(worst->where, sizeof worst->where, "of all together");
}

static bool check_one(LoraRun *run, const char *name, Tensor got, double bound, Error *error) {
    Worst worst = {0};
    if (!compare(run, name, got, &worst, error)) return false;
    print_worst(run, name, &worst, bound);
    return true;
}

static bool check_cells(LoraRun *run, const char *prefix, const Adapter *adapter, double bound,
                        Error *error) {
    Worst worst = {0};
    char name[CONFORM_CELL_NAME];
    for (int64_t i = 0; i < 2 * adapter->n; i++) {
        const AdapterCell *cell = &adapter->cells[i / 2];
        conform_cell_name(cell, prefix, "AB"[i % 2], name);
        if (!compare(run, name, side_of(cell, &run->model->config, "AB"[i % 2]), &worst, error)) return false;
    }
    judge_together(run, &worst);
    print_worst(run, prefix, &worst, bound);
    return true;
}

static bool same_cells(const Adapter *a, const Adapter *b, const ModelConfig *config) {
    bool same = a->n == b->n;
    for (int64_t i = 0; same && i < 2 * a->n; i++) {
        Tensor x = side_of(&a->cells[i / 2], config, "AB"[i % 2]),
               y = side_of(&b->cells[i / 2], config, "AB"[i % 2]);
        same = !memcmp(x.data, y.data, tensor_bytes(x));
    }
    return same;
}

static bool check_bits(LoraRun *run, const char *what, int64_t n_parts, Recompute recompute, Error *error) {
    ConformTrained again, *first = &run->trained;
    bool ok = conform_train(run->model, run->c, &run->plan, n_parts, recompute, &again, error);
    if (ok) {
        bool same = !memcmp(again.norms.data, first->norms.data, tensor_bytes(first->norms)) &&
                    !memcmp(again.losses.data, first->losses.data, tensor_bytes(first->losses)) &&
                    same_cells(&again.grad, &first->grad, &run->model->config) &&
                    same_cells(&again.trained, &first->trained, &run->model->config);
        fprintf(run->to, "same bits: lora, packed and %s: %s", what, same ? "equal" : "not equal");
        verdict(run, same);
    }
    conform_trained_free(&again);
    return ok;
}

static bool check_all(LoraRun *run, Error *error) {
    LoraBounds bounds = bounds_of(run->options);
    ConformTrained *t = &run->trained;
    return check_one(run, "losses", t->losses, bounds.losses, error) &&
           check_one(run, "grad_norms", t->norms, bounds.norms, error) &&
           check_cells(run, "grad0", &t->grad, bounds.gradient, error) &&
           check_cells(run, "final", &t->trained, bounds.trained, error) &&
           check_one(run, "final_logits", t->logits, bounds.logits, error) &&
           check_bits(run, "one prompt at a time", run->plan.n_prompts, RECOMPUTE_ALWAYS, error) &&
           check_bits(run, "with all activations kept", 1, RECOMPUTE_NEVER, error);
}

/* FOLDER/actual_lora.safetensors, the same names as in expected_lora.safetensors. */
static bool write_actual(const LoraRun *run, Error *error) {
    if (!run->options->out) return true;
    const ConformTrained *t = &run->trained;
    static const char *const prefixes[] = {"init", "grad0", "final"};
    const Adapter *adapters[] = {&run->plan.init, &t->grad, &t->trained};
    int64_t n_cells = run->plan.init.n, n = 0;
    NamedTensor *tensors = mem_zeroed((size_t)(6 * n_cells + 3), sizeof *tensors);
    char(*names)[CONFORM_CELL_NAME] = mem_zeroed((size_t)(6 * n_cells), sizeof *names);
    char *path = io_join(run->options->out, "actual_lora.safetensors");
    bool ok = (tensors && names && path) || error_out_of_memory(error, "actual_lora.safetensors", 0);
    for (int64_t i = 0; ok && i < 6 * n_cells; i++) {
        const AdapterCell *cell = &adapters[i % 3]->cells[i / 6];
        char side = "AB"[i / 3 % 2];
        conform_cell_name(cell, prefixes[i % 3], side, names[i]);
        tensors[n++] = (NamedTensor){names[i], side_of(cell, &run->model->config, side)};
    }
    if (ok) {
        tensors[n++] = (NamedTensor){"losses", t->losses};
        tensors[n++] = (NamedTensor){"grad_norms", t->norms};
        tensors[n++] = (NamedTensor){"final_logits", t->logits};
    }
    ok = ok && io_make_folders(run->options->out, error) &&
         safetensors_write(path, tensors, n, NULL, 0, error);
    mem_free(tensors);
    mem_free(names);
    mem_free(path);
    return ok;
}

static bool check_files(LoraRun *run, Error *error) {
    ConformAdapters adapters = {.options = run->options,
                                .c = run->c,
                                .expected = &run->expected,
                                .model = run->model,
                                .trained = &run->trained.trained,
                                .logits = run->trained.logits,
                                .bound = bounds_of(run->options).logits,
                                .to = run->to,
                                .count = run->count};
    return conform_adapters(&adapters, error);
}

static bool run_lora(LoraRun *run, Error *error) {
    return conform_plan_read(run->options->folder, &run->expected, &run->model->config, &run->plan, error) &&
           conform_train(run->model, run->c, &run->plan, 1, RECOMPUTE_ALWAYS, &run->trained, error) &&
           write_actual(run, error) && check_all(run, error) && check_files(run, error);
}

bool conform_lora(const ConformOptions *options, const ConformCase *c, Model *model, FILE *to,
                  ConformCount *count, Error *error) {
    LoraRun run = {.options = options, .c = c, .model = model, .to = to, .count = count};
    char *plan = io_join(options->folder, "lora.json"),
         *path = io_join(options->folder, "expected_lora.safetensors");
    bool ok = (plan && path) || error_out_of_memory(error, "a path", strlen(options->folder));
    if (ok && io_exists(plan)) {
        run.expected = *c;
        run.expected.path = path;
        run.expected.expected = safetensors_open(path, error);
        ok = run.expected.expected && run_lora(&run, error);
        safetensors_close(run.expected.expected);
    }
    conform_trained_free(&run.trained);
    conform_plan_free(&run.plan);
    mem_free(plan);
    mem_free(path);
    return ok;
}

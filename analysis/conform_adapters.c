/* Adapters in files: those that lie in the case are read and must give final_logits; what was trained is
 * written in every form, read again, and merged into a checkpoint. */
#include "../engine/adapter_file.h"
#include "../engine/alloc.h"
#include "conform_lora.h"
#include <math.h>
#include <string.h>

/* Merging rounds once more where the checkpoint is narrow. */
enum { NARROW_BYTES = 2 };
static const double MERGED_BOUND = 1e-5, MERGED_NARROW_BOUND = 0.02;

static void verdict(ConformAdapters *run, bool good) {
    run->count->n_checked++;
    run->count->n_failed += !good;
    fprintf(run->to, "%s\n", good ? "" : "  FAILED");
}

static double difference(Tensor got, Tensor want) {
    const float *a = got.data, *b = want.data;
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < tensor_count(want); i++) {
        double off = fabs((double)a[i] - (double)b[i]);
        largest = fmax(largest, fabs((double)b[i]));
        if (!(off <= worst)) worst = off;
    }
    return worst / largest;
}

/* Logits under an adapter, or of another checkpoint, beside `want`. */
static bool check_logits(ConformAdapters *run, Model *model, const Adapter *adapter, const char *name,
                         Tensor want, double bound, Error *error) {
    Tensor logits;
    if (!conform_adapted_logits(model, run->c, adapter, &logits, error)) return false;
    double off = difference(logits, want);
    fprintf(run->to, "lora %-13s %10.2e %8.0e  final_logits, %lld cells", name, off, bound,
            (long long)adapter->n);
    verdict(run, off <= bound);
    mem_free(logits.data);
    return true;
}

/* ---- those of the case ---- */
static bool check_folder(ConformAdapters *run, const char *name, Tensor want, Error *error) {
    char *folder = io_join(run->options->folder, name);
    Adapter adapter = {0};
    bool ok = folder || error_out_of_memory(error, "a path", strlen(name));
    ok = ok && adapter_read(folder, &run->model->config, NULL, &adapter, NULL, error) &&
         check_logits(run, run->model, &adapter, name, want, run->bound, error);
    adapter_free(&adapter);
    mem_free(folder);
    return ok;
}

static bool check_given(ConformAdapters *run, Error *error) {
    char **names = NULL;
    size_t n = 0;
    Tensor want = {0};
    bool ok = conform_read(run->expected, "final_logits", DTYPE_F32, &want, error) &&
              io_list(run->options->folder, &names, &n, error);
    if (ok && tensor_count(want) != tensor_count(run->logits))
        ok = error_set(error, ERROR_BAD_INPUT, "%s: final_logits: expected another shape",
                       run->expected->path);
    for (size_t i = 0; i < n; i++) {
        ok = ok && (strncmp(names[i], "adapter-", 8) != 0 || check_folder(run, names[i], want, error));
        mem_free(names[i]);
    }
    mem_free(names);
    mem_free(want.data);
    return ok;
}

/* ---- what was trained ---- */
static bool same_bits(const Adapter *a, const Adapter *b, const ModelConfig *config) {
    bool same = a->n == b->n;
    for (int64_t i = 0; same && i < a->n; i++) {
        const AdapterCell *x = &a->cells[i], *y = &b->cells[i];
        size_t n_a = (size_t)(x->rank * projection_in(config, x->projection)) * sizeof(float),
               n_b = (size_t)(x->rank * projection_out(config, x->projection)) * sizeof(float);
        same = x->layer == y->layer && x->expert == y->expert && x->projection == y->projection &&
               x->rank == y->rank && x->scale == y->scale && !memcmp(x->a, y->a, n_a) &&
               !memcmp(x->b, y->b, n_b);
    }
    return same;
}

static bool check_form(ConformAdapters *run, AdapterForm form, Error *error) {
    char name[40];
    snprintf(name, sizeof name, "adapter-%s", adapter_form_names[form]);
    char *folder = io_join(run->options->out, name);
    Adapter again = {0};
    bool ok = folder || error_out_of_memory(error, "a path", strlen(name));
    ok = ok && adapter_write(folder, run->trained, &run->model->config, form, error) &&
         adapter_read(folder, &run->model->config, NULL, &again, NULL, error);
    if (ok) {
        bool same = same_bits(run->trained, &again, &run->model->config);
        fprintf(run->to, "written and read again: %s: %s", name, same ? "equal" : "not equal");
        verdict(run, same);
    }
    adapter_free(&again);
    mem_free(folder);
    return ok;
}

static bool check_merged(ConformAdapters *run, Error *error) {
    char *folder = io_join(run->options->out, "merged");
    const Adapter none = {0};
    MergeAbout about;
    Model merged;
    bool ok = folder || error_out_of_memory(error, "a path", strlen(run->options->out));
    ok = ok && adapter_merge(run->trained, &run->model->config, folder, &about, error) &&
         model_open(folder, run->options->device, run->options->compute, &merged, error);
    if (ok) {
        const Tensor *w = &run->model->weights.layers[run->trained->cells[0].layer].down;
        bool narrow = dtype_bytes(w->dtype) == NARROW_BYTES || run->options->compute == DTYPE_BF16;
        ok = check_logits(run, &merged, &none, "merged", run->logits,
                          narrow ? MERGED_NARROW_BOUND : MERGED_BOUND, error);
        fprintf(run->to,
                "merged: %lld matrices in %lld tensors, largest change %.2e, %.3f%% of it lost to rounding\n",
                (long long)about.n_merged, (long long)about.n_tensors, about.largest,
                100 * (double)about.n_lost / (double)about.n_elements);
        model_close(&merged);
    }
    mem_free(folder);
    return ok;
}

bool conform_adapters(ConformAdapters *run, Error *error) {
    if (!check_given(run, error)) return false;
    for (int form = 0; run->options->out && form < N_ADAPTER_FORMS; form++)
        if (!check_form(run, (AdapterForm)form, error)) return false;
    return !run->options->out || check_merged(run, error);
}

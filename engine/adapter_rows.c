/* Router rows of an adapter: what is added to the rows of chosen experts. They stand in a file of their own
 * beside the low-rank updates, since PEFT has no name for a part of a matrix. */
#include "adapter.h"
#include "alloc.h"
#include "safetensors.h"
#include <stdio.h>
#include <string.h>

enum { NAME_BYTES = 80 };
static const char file_name[] = "router_rows.safetensors";

bool adapter_add_row(Adapter *adapter, const ModelConfig *config, int64_t layer, int64_t expert,
                     RouterRow **row, Error *error) {
    if (layer < 0 || layer >= config->n_layers || config->layer_is_dense[layer] || expert < 0 ||
        expert >= config->n_experts)
        return error_set(error, ERROR_BAD_INPUT,
                         "router row: expected an expert of the model: got layer %lld, expert %lld",
                         (long long)layer, (long long)expert);
    int64_t at = 0;
    while (at < adapter->n_rows && (adapter->rows[at].layer < layer ||
                                    (adapter->rows[at].layer == layer && adapter->rows[at].expert < expert)))
        at++;
    if (at < adapter->n_rows && adapter->rows[at].layer == layer && adapter->rows[at].expert == expert)
        return error_set(error, ERROR_BAD_INPUT,
                         "layer %lld, expert %lld: expected a router row once: got it twice",
                         (long long)layer, (long long)expert);
    float *values = mem_zeroed((size_t)config->hidden_size, sizeof *values);
    RouterRow *rows = mem_resize(adapter->rows, (size_t)adapter->n_rows + 1, sizeof *rows);
    if (rows) adapter->rows = rows;
    if (!values || !rows) {
        mem_free(values);
        return error_out_of_memory(error, "router rows", (size_t)config->hidden_size * sizeof *values);
    }
    memmove(rows + at + 1, rows + at, (size_t)(adapter->n_rows - at) * sizeof *rows);
    rows[at] = (RouterRow){layer, expert, values};
    adapter->n_rows++;
    *row = &rows[at];
    return true;
}

static char *path_of(const char *folder, Error *error) {
    char *path = io_join(folder, file_name);
    if (!path) error_out_of_memory(error, "a path", strlen(folder));
    return path;
}

bool adapter_rows_write(const char *folder, const Adapter *adapter, const ModelConfig *config, Error *error) {
    const size_t n = (size_t)adapter->n_rows;
    if (!n) return true;
    NamedTensor *tensors = mem_zeroed(n, sizeof *tensors);
    char(*names)[NAME_BYTES] = mem_zeroed(n, sizeof *names), *path = path_of(folder, error);
    bool ok = path && ((tensors && names) || error_out_of_memory(error, "router rows", n * sizeof *names));
    for (size_t i = 0; ok && i < n; i++) {
        const RouterRow *row = &adapter->rows[i];
        snprintf(names[i], NAME_BYTES, "layers.%lld.experts.%lld.router_row", (long long)row->layer,
                 (long long)row->expert);
        tensors[i] = (NamedTensor){names[i], tensor_vector(row->values, DTYPE_F32, config->hidden_size)};
    }
    ok = ok && safetensors_write(path, tensors, adapter->n_rows, NULL, 0, error);
    mem_free(tensors);
    mem_free(names);
    mem_free(path);
    return ok;
}

static bool read_row(const TensorSet *set, const TensorEntry *entry, const char *path,
                     const ModelConfig *config, Adapter *adapter, Error *error) {
    long long layer = 0, expert = 0;
    int end = 0;
    const bool named =
        sscanf(entry->name, "layers.%6lld.experts.%6lld.router_row%n", &layer, &expert, &end) == 2 && end &&
        !entry->name[end];
    RouterRow *row;
    if (!named || !entry->dtype_known || entry->dtype != DTYPE_F32 || entry->n_dims != 1 ||
        entry->shape[0] != config->hidden_size)
        return error_set(error, ERROR_BAD_INPUT,
                         "%s: %.80s: expected layers.L.experts.E.router_row, %lld numbers in F32", path,
                         entry->name, (long long)config->hidden_size);
    if (!adapter_add_row(adapter, config, layer, expert, &row, error))
        return error_add_place(error, "%s", path);
    return safetensors_read(set, entry, 0, row->values, entry->n_bytes, error);
}

bool adapter_rows_read(const char *folder, const ModelConfig *config, Adapter *adapter, Error *error) {
    char *path = path_of(folder, error);
    if (!path) return false;
    bool ok = true;
    if (io_exists(path)) {
        TensorSet *set = safetensors_open(path, error);
        ok = set != NULL;
        for (int64_t i = 0; ok && i < safetensors_count(set); i++)
            ok = read_row(set, safetensors_entry(set, i), path, config, adapter, error);
        if (set) safetensors_close(set);
    }
    mem_free(path);
    return ok;
}

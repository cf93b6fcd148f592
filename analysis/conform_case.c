/* Reading a golden case. The file comes from outside: shapes, offsets and ids are checked before anything
 * uses them. */
#include "conform_parts.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include <stdio.h>
#include <string.h>

const ConformInfo conform_infos[N_CONFORM_TENSORS] = {
    [CONFORM_MOE_LAYERS] = {"moe_layers", CONFORM_EXACT, ROWS_FIXED},
    [CONFORM_ROUTER_LOGITS] = {"router_logits", CONFORM_VALUE, ROWS_LAYER_TOKEN},
    [CONFORM_TOPK_IDS] = {"topk_ids", CONFORM_EXACT, ROWS_LAYER_TOKEN},
    [CONFORM_TOPK_WEIGHTS] = {"topk_weights", CONFORM_VALUE, ROWS_LAYER_TOKEN},
    [CONFORM_LAYER_OUTPUT] = {"layer_output", CONFORM_VALUE, ROWS_OUTPUT_TOKEN},
    [CONFORM_LOGITS] = {"logits", CONFORM_VALUE, ROWS_TOKEN},
    [CONFORM_NLL] = {"nll", CONFORM_VALUE, ROWS_PROMPT},
    [CONFORM_NLL_TARGET] = {"nll_target", CONFORM_VALUE, ROWS_PROMPT},
    [CONFORM_GATE_GRAD] = {"gate_grad", CONFORM_GRADIENT, ROWS_PROMPT},
    [CONFORM_GATE_GRAD_TARGET] = {"gate_grad_target", CONFORM_GRADIENT, ROWS_PROMPT},
    [CONFORM_ROUTER_LOGIT_GRAD] = {"router_logit_grad", CONFORM_GRADIENT, ROWS_PROMPT_TOKEN},
    [CONFORM_EMBEDDING_GRAD] = {"embedding_grad", CONFORM_GRADIENT, ROWS_PROMPT_TOKEN},
    [CONFORM_GREEDY_TOKENS] = {"greedy_tokens", CONFORM_EXACT, ROWS_FIXED},
};

static const TensorEntry *find(const ConformCase *c, const char *name) {
    char full[300];
    if (snprintf(full, sizeof full, "%s%s", c->prefix ? c->prefix : "", name) >= (int)sizeof full)
        return NULL;
    return c->expected ? safetensors_find(c->expected, full) : NULL;
}

bool conform_has(const ConformCase *c, const char *name) { return find(c, name) != NULL; }

bool conform_read(const ConformCase *c, const char *name, DType dtype, Tensor *tensor, Error *error) {
    *tensor = (Tensor){0};
    const TensorEntry *entry = find(c, name);
    if (!entry) return error_set(error, ERROR_BAD_INPUT, "%s: expected a tensor %s: got none", c->path, name);
    if (!entry->dtype_known || entry->dtype != dtype || entry->n_dims < 1 || entry->n_dims > TENSOR_MAX_DIMS)
        return error_set(error, ERROR_BAD_INPUT, "%s: %s: expected %s of 1 to %d dimensions: got %s of %d",
                         c->path, name, dtype_name(dtype), TENSOR_MAX_DIMS, entry->dtype_name, entry->n_dims);
    void *data = mem_alloc((size_t)entry->n_bytes);
    if (!data) return error_out_of_memory(error, name, entry->n_bytes);
    if (!safetensors_read(c->expected, entry, 0, data, (size_t)entry->n_bytes, error)) {
        mem_free(data);
        return false;
    }
    *tensor = (Tensor){.data = data, .dtype = dtype, .n_dims = entry->n_dims};
    memcpy(tensor->shape, entry->shape, (size_t)entry->n_dims * sizeof *entry->shape);
    return true;
}

/* A vector of n integers (n < 0: any number, at least 1), each in [least, most]. */
static bool read_integers(const ConformCase *c, const char *name, int64_t n, int64_t least, int64_t most,
                          Tensor *tensor, Error *error) {
    if (!conform_read(c, name, DTYPE_I64, tensor, error)) return false;
    const int64_t *values = tensor->data;
    int64_t count = tensor->shape[0];
    if (tensor->n_dims != 1 || count < 1 || (n >= 0 && count != n))
        return error_set(error, ERROR_BAD_INPUT, "%s: %s: expected a vector of %s%lld entries: got %lld",
                         c->path, name, n < 0 ? "at least " : "", (long long)(n < 0 ? 1 : n),
                         (long long)count);
    for (int64_t i = 0; i < count; i++)
        if (values[i] < least || values[i] > most)
            return error_set(error, ERROR_BAD_INPUT, "%s: %s[%lld]: expected %lld to %lld: got %lld", c->path,
                             name, (long long)i, (long long)least, (long long)most, (long long)values[i]);
    return true;
}

static bool read_prompts(ConformCase *c, Error *error) {
    Tensor tokens, offsets = {0};
    bool ok = read_integers(c, "tokens", -1, 0, INT32_MAX, &tokens, error);
    c->n_tokens = ok ? tokens.shape[0] : 0;
    ok = ok && read_integers(c, "prompt_offsets", -1, 0, c->n_tokens, &offsets, error);
    c->offsets = offsets.data;
    c->n_prompts = ok ? offsets.shape[0] - 1 : 0;
    for (int64_t p = 0; ok && p < c->n_prompts; p++)
        if (c->offsets[p + 1] - c->offsets[p] < 2)
            ok = error_set(error, ERROR_BAD_INPUT,
                           "%s: prompt_offsets[%lld]: expected prompts of 2 tokens or more", c->path,
                           (long long)p + 1);
    if (ok && (c->n_prompts < 1 || c->offsets[0] != 0 || c->offsets[c->n_prompts] != c->n_tokens))
        ok = error_set(error, ERROR_BAD_INPUT, "%s: prompt_offsets: expected to reach from 0 to %lld",
                       c->path, (long long)c->n_tokens);
    c->tokens = ok ? mem_alloc((size_t)c->n_tokens * sizeof *c->tokens) : NULL;
    if (ok && !c->tokens) ok = error_out_of_memory(error, "tokens", (size_t)c->n_tokens * sizeof *c->tokens);
    for (int64_t t = 0; ok && t < c->n_tokens; t++) c->tokens[t] = (int32_t)((int64_t *)tokens.data)[t];
    mem_free(tokens.data);
    return ok;
}

static bool read_targets(ConformCase *c, Error *error) {
    if (!safetensors_find(c->expected, "target_starts")) return true;
    Tensor starts;
    bool ok = read_integers(c, "target_starts", c->n_prompts, 1, c->n_tokens, &starts, error);
    c->target_starts = starts.data;
    for (int64_t p = 0; ok && p < c->n_prompts; p++)
        if (c->target_starts[p] >= c->offsets[p + 1] - c->offsets[p])
            ok = error_set(error, ERROR_BAD_INPUT,
                           "%s: target_starts[%lld]: expected less than the prompt's %lld: "
                           "got %lld",
                           c->path, (long long)p, (long long)(c->offsets[p + 1] - c->offsets[p]),
                           (long long)c->target_starts[p]);
    return ok;
}

bool conform_case_read(const char *folder, ConformCase *c, Error *error) {
    *c = (ConformCase){0};
    c->path = io_join(folder, "expected.safetensors");
    if (!c->path) return error_out_of_memory(error, "a file name", strlen(folder));
    c->expected = safetensors_open(c->path, error);
    bool ok = c->expected && read_prompts(c, error) && read_targets(c, error);
    const TensorEntry *greedy = ok ? safetensors_find(c->expected, "greedy_tokens") : NULL;
    if (greedy && (greedy->n_dims != 2 || greedy->shape[0] != c->n_prompts || greedy->shape[1] < 1))
        ok = error_set(error, ERROR_BAD_INPUT, "%s: greedy_tokens: expected [%lld, steps]", c->path,
                       (long long)c->n_prompts);
    c->n_steps = ok && greedy ? greedy->shape[1] : 0;
    if (!ok) conform_case_free(c);
    return ok;
}

void conform_case_free(ConformCase *c) {
    safetensors_close(c->expected);
    mem_free(c->offsets);
    mem_free(c->tokens);
    mem_free(c->target_starts);
    mem_free(c->path);
    *c = (ConformCase){0};
}

bool conform_case_fits(const ConformCase *c, const ModelConfig *config, Error *error) {
    for (int64_t t = 0; t < c->n_tokens; t++)
        if (c->tokens[t] >= config->vocab_size)
            return error_set(error, ERROR_BAD_INPUT,
                             "%s: tokens[%lld]: expected less than the vocabulary's %lld: got %d", c->path,
                             (long long)t, (long long)config->vocab_size, (int)c->tokens[t]);
    return true;
}

bool conform_values_write(const ConformValues *values, const ConformCase *c, const char *folder,
                          Error *error) {
    NamedTensor tensors[N_CONFORM_TENSORS + 3];
    int64_t n = 0, *tokens = mem_alloc((size_t)c->n_tokens * sizeof *tokens);
    char *path = io_join(folder, "actual.safetensors");
    bool ok = (tokens && path) || error_out_of_memory(error, "actual.safetensors", 0);
    ok = ok && io_make_folders(folder, error);
    for (int64_t t = 0; ok && t < c->n_tokens; t++) tokens[t] = c->tokens[t];
    tensors[n++] = (NamedTensor){"tokens", tensor_vector(tokens, DTYPE_I64, c->n_tokens)};
    tensors[n++] = (NamedTensor){"prompt_offsets", tensor_vector(c->offsets, DTYPE_I64, c->n_prompts + 1)};
    if (c->target_starts)
        tensors[n++] =
            (NamedTensor){"target_starts", tensor_vector(c->target_starts, DTYPE_I64, c->n_prompts)};
    for (int i = 0; i < N_CONFORM_TENSORS; i++)
        if (tensor_present(values->tensors[i]))
            tensors[n++] = (NamedTensor){conform_infos[i].name, values->tensors[i]};
    ok = ok && safetensors_write(path, tensors, n, NULL, 0, error);
    mem_free(tokens);
    mem_free(path);
    return ok;
}

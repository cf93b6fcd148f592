/* Copies of what the router decided, gathered over a block and written as safetensors. */
#include "trace.h"
#include "../engine/alloc.h"
#include "../engine/safetensors.h"
#include <math.h>
#include <string.h>

const char trace_warning[] =
    "routing traces are as sensitive as the prompts: expert ids alone give back most of the text";

bool trace_make(int choice, const ModelConfig *config, int64_t n_prompts, int64_t n_tokens, Trace *t,
                Error *error) {
    *t = (Trace){.choice = choice,
                 .n_prompts = n_prompts,
                 .n_tokens = n_tokens,
                 .n_layers = config->n_moe_layers,
                 .n_experts = config->n_experts,
                 .n_chosen = config->n_experts_per_token};
    size_t rows = (size_t)(t->n_layers * n_tokens), experts = rows * (size_t)t->n_experts,
           chosen = rows * (size_t)t->n_chosen, tokens = (size_t)n_tokens;
    t->logits = mem_zeroed(experts, sizeof *t->logits);
    t->probs = mem_zeroed(choice == TRACE_FULL ? experts : 1, sizeof *t->probs);
    t->ids = mem_zeroed(chosen, sizeof *t->ids);
    t->weights = mem_zeroed(chosen, sizeof *t->weights);
    t->margin = mem_zeroed(rows, sizeof *t->margin);
    t->tokens = mem_zeroed(tokens, sizeof *t->tokens);
    t->roles = mem_zeroed(tokens, sizeof *t->roles);
    t->spans = mem_zeroed(tokens, sizeof *t->spans);
    t->prompt_offsets = mem_zeroed((size_t)n_prompts + 1, sizeof *t->prompt_offsets);
    t->prompt_index = mem_zeroed((size_t)n_prompts + 1, sizeof *t->prompt_index);
    if (t->logits && t->probs && t->ids && t->weights && t->margin && t->tokens && t->roles && t->spans &&
        t->prompt_offsets && t->prompt_index)
        return true;
    return error_out_of_memory(error, "routing traces of a block (trace)", 8 * (experts + chosen));
}

void trace_free(Trace *t) {
    void *blocks[] = {t->logits, t->probs, t->ids,   t->weights,        t->margin,
                      t->tokens, t->roles, t->spans, t->prompt_offsets, t->prompt_index};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    *t = (Trace){0};
}

void trace_copy_layer(Trace *t, const HookSite *site, const RouteView *view) {
    int64_t row = view->moe_layer * t->n_tokens + t->n_put_tokens;
    site->device->copy_out(site->queue, t->logits + row * t->n_experts, view->logits);
    site->device->copy_out(site->queue, t->ids + row * t->n_chosen, view->ids);
    site->device->copy_out(site->queue, t->weights + row * t->n_chosen, view->weights);
    if (t->choice == TRACE_FULL)
        site->device->copy_out(site->queue, t->probs + row * t->n_experts, view->probs);
}

static float margin_of(const float *logits, int64_t n_experts, const int32_t *ids, int64_t n_chosen) {
    float least = INFINITY, other = -INFINITY;
    for (int64_t e = 0; e < n_experts; e++) {
        bool chosen = false;
        for (int64_t k = 0; k < n_chosen; k++) chosen = chosen || ids[k] == e;
        if (chosen && logits[e] < least) least = logits[e];
        if (!chosen && logits[e] > other) other = logits[e];
    }
    return least - other;
}

void trace_put_batch(Trace *t, const Batch *batch, const PromptGroup *group, int64_t at) {
    int64_t first = t->n_put_tokens;
    for (int64_t l = 0; l < t->n_layers; l++)
        for (int64_t i = first; i < first + batch->n_tokens; i++) {
            int64_t row = l * t->n_tokens + i;
            t->margin[row] = margin_of(t->logits + row * t->n_experts, t->n_experts,
                                       t->ids + row * t->n_chosen, t->n_chosen);
        }
    for (int64_t i = 0; i < batch->n_tokens; i++) {
        t->tokens[first + i] = batch->tokens[i];
        t->roles[first + i] = batch->roles[i];
        t->spans[first + i] = batch->spans[i];
    }
    for (int64_t p = 0; p < batch->n_prompts; p++) {
        t->prompt_index[t->n_put_prompts] = group->prompts[at + p].entry->index;
        t->prompt_offsets[++t->n_put_prompts] = first + batch->offsets[p + 1];
    }
    t->n_put_tokens += batch->n_tokens;
}

bool trace_write(Trace *t, const ModelConfig *config, const char *path, Error *error) {
    int64_t *moe_layers = mem_zeroed((size_t)t->n_layers + 1, sizeof *moe_layers), n = 0;
    if (!moe_layers) return error_out_of_memory(error, "layers", (size_t)t->n_layers * sizeof *moe_layers);
    for (int64_t l = 0; l < config->n_layers; l++)
        if (!config->layer_is_dense[l]) moe_layers[n++] = l;
    const int64_t L = t->n_layers, T = t->n_tokens, E = t->n_experts, K = t->n_chosen;
    NamedTensor tensors[] = {
        {"expert_ids", tensor_cube(t->ids, DTYPE_I32, L, T, K)},
        {"combine_weights", tensor_cube(t->weights, DTYPE_F32, L, T, K)},
        {"topk_margin", tensor_matrix(t->margin, DTYPE_F32, L, T)},
        {"token_id", tensor_vector(t->tokens, DTYPE_I32, T)},
        {"token_role", tensor_vector(t->roles, DTYPE_I32, T)},
        {"token_span", tensor_vector(t->spans, DTYPE_I32, T)},
        {"prompt_offsets", tensor_vector(t->prompt_offsets, DTYPE_I64, t->n_prompts + 1)},
        {"prompt_index", tensor_vector(t->prompt_index, DTYPE_I64, t->n_prompts)},
        {"moe_layers", tensor_vector(moe_layers, DTYPE_I64, L)},
        {"router_logits", tensor_cube(t->logits, DTYPE_F32, L, T, E)},
        {"router_probs", tensor_cube(t->probs, DTYPE_F32, L, T, E)}};
    const char *const metadata[] = {
        "warning",
        trace_warning,
        "shapes",
        "L expert layers (moe_layers: which decoder layers), T tokens of all prompts, E experts, K chosen",
        "router_logits",
        "f32, as the router's linear map gives them, before any edit",
        "router_probs",
        "softmax over all experts",
        "expert_ids",
        "the chosen experts, largest weight first",
        "combine_weights",
        "as applied to the experts' outputs",
        "topk_margin",
        "least chosen logit minus largest other",
        "token_role",
        "0 padding, 1 template, 2 system, 3 user, 4 assistant",
        "token_span",
        "0 prompt, 1 target, 2 generated",
        "prompt_index",
        "entry of the prompt file, from 0"};
    int64_t n_tensors = t->choice == TRACE_FULL ? 11 : 9;
    bool ok = safetensors_write(path, tensors, n_tensors, metadata, 10, error);
    mem_free(moe_layers);
    return ok;
}

/* ---- reading ---- */
/* A tensor of the file with the dtype and extents of `want` (-1: any). */
static bool read_tensor(const TensorSet *set, const char *name, Tensor want, void **to, int64_t *n_first,
                        Error *error) {
    const TensorEntry *entry = safetensors_find(set, name);
    bool fits = entry && entry->dtype_known && entry->dtype == want.dtype && entry->n_dims == want.n_dims;
    for (int i = 0; fits && i < want.n_dims; i++)
        fits = want.shape[i] < 0 || entry->shape[i] == want.shape[i];
    if (!fits)
        return error_set(error, ERROR_BAD_INPUT,
                         "expected a trace of this model with a tensor %s: got another shape or none", name);
    *n_first = entry->shape[0];
    *to = mem_alloc((size_t)entry->n_bytes + 1);
    if (!*to) return error_out_of_memory(error, name, entry->n_bytes);
    return safetensors_read(set, entry, 0, *to, (size_t)entry->n_bytes, error);
}

static bool read_routes(const TensorSet *set, Trace *t, Error *error) {
    int64_t n = 0, L = t->n_layers, K = t->n_chosen;
    const Tensor ints = tensor_vector(NULL, DTYPE_I32, -1), offsets = tensor_vector(NULL, DTYPE_I64, -1);
    if (!read_tensor(set, "token_id", ints, (void **)&t->tokens, &t->n_tokens, error)) return false;
    const Tensor ids = tensor_cube(NULL, DTYPE_I32, L, t->n_tokens, K),
                 weights = tensor_cube(NULL, DTYPE_F32, L, t->n_tokens, K);
    if (!read_tensor(set, "expert_ids", ids, (void **)&t->ids, &n, error) ||
        !read_tensor(set, "combine_weights", weights, (void **)&t->weights, &n, error) ||
        !read_tensor(set, "prompt_offsets", offsets, (void **)&t->prompt_offsets, &n, error))
        return false;
    t->n_prompts = n - 1;
    bool ascends = t->n_prompts >= 1 && t->prompt_offsets[0] == 0 && t->prompt_offsets[n - 1] == t->n_tokens;
    for (int64_t p = 0; ascends && p < t->n_prompts; p++)
        ascends = t->prompt_offsets[p] < t->prompt_offsets[p + 1];
    return ascends || error_set(error, ERROR_BAD_INPUT, "expected prompt_offsets to ascend from 0 to %lld",
                                (long long)t->n_tokens);
}

bool trace_read(const char *path, const ModelConfig *config, Trace *t, Error *error) {
    *t = (Trace){.choice = TRACE_CHOICES,
                 .n_layers = config->n_moe_layers,
                 .n_experts = config->n_experts,
                 .n_chosen = config->n_experts_per_token};
    TensorSet *set = safetensors_open(path, error);
    bool ok = set && read_routes(set, t, error);
    if (set) safetensors_close(set);
    if (ok) return true;
    trace_free(t);
    return error_add_place(error, "%s", path);
}

RouteReplay trace_replay(const Trace *trace) { return (RouteReplay){trace->ids, trace->weights}; }

/* ---- from several ranks ---- */
/* [L,T,width] or, with one layer, [T]: T is the extent that ranks share. */
static void gather_layers(Comm *comm, Tensor to, Tensor from, const int64_t *n_tokens) {
    for (int64_t l = 0; l < from.shape[0]; l++)
        comm_gather_rows(comm, tensor_entry(to, l), tensor_entry(from, l), n_tokens);
}

static void gather_arrays(Comm *comm, const Trace *part, const int64_t *n_tokens, Trace *whole) {
    const int64_t L = part->n_layers, E = part->n_experts, K = part->n_chosen, T = part->n_tokens,
                  U = whole->n_tokens;
    const struct {
        void *to, *from;
        DType dtype;
        int64_t layers, width;
    } arrays[] = {{whole->logits, part->logits, DTYPE_F32, L, E},
                  {whole->probs, part->probs, DTYPE_F32, part->choice == TRACE_FULL ? L : 0, E},
                  {whole->ids, part->ids, DTYPE_I32, L, K},
                  {whole->weights, part->weights, DTYPE_F32, L, K},
                  {whole->margin, part->margin, DTYPE_F32, L, 1},
                  {whole->tokens, part->tokens, DTYPE_I32, 1, 1},
                  {whole->roles, part->roles, DTYPE_I32, 1, 1},
                  {whole->spans, part->spans, DTYPE_I32, 1, 1}};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        gather_layers(comm, tensor_cube(arrays[i].to, arrays[i].dtype, arrays[i].layers, U, arrays[i].width),
                      tensor_cube(arrays[i].from, arrays[i].dtype, arrays[i].layers, T, arrays[i].width),
                      n_tokens);
}

void trace_gather(Comm *comm, Trace *part, const int64_t *rows, const ModelConfig *config, Trace *whole) {
    if (comm->size == 1) {
        *whole = *part;
        *part = (Trace){0};
        return;
    }
    int64_t n_tokens[COMM_MAX_RANKS], n_prompts = 0, n_all = 0, at = 0, before = 0;
    Error error = {0};
    comm_all_gather(comm, NULL, tensor_vector(n_tokens, DTYPE_I64, comm->size),
                    tensor_vector(&part->n_tokens, DTYPE_I64, 1));
    for (int r = 0; comm->rank == 0 && r < comm->size; r++) {
        n_prompts += rows[r];
        n_all += n_tokens[r];
    }
    if (!trace_make(part->choice, config, n_prompts, n_all, whole, &error)) comm_fail(comm, &error);
    gather_arrays(comm, part, n_tokens, whole);
    comm_gather_rows(comm, tensor_vector(whole->prompt_index, DTYPE_I64, n_prompts),
                     tensor_vector(part->prompt_index, DTYPE_I64, part->n_prompts), rows);
    comm_gather_rows(comm, tensor_vector(whole->prompt_offsets + 1, DTYPE_I64, n_prompts),
                     tensor_vector(part->prompt_offsets + 1, DTYPE_I64, part->n_prompts), rows);
    for (int r = 0; comm->rank == 0 && r < comm->size; r++) {
        for (int64_t p = 0; p < rows[r]; p++) whole->prompt_offsets[++at] += before;
        before += n_tokens[r];
    }
    if (comm->rank) trace_free(whole);
    trace_free(part);
}

/* A golden case on several ranks: each computes consecutive prompts, and all get every tensor as a whole.
 *
 * So all make the same checks in the same order, and passes of a spread model are in step whatever they are
 * made for. Which rank computes a prompt leaves no trace in its bits. */
#include "conform_parts.h"
#include "../engine/alloc.h"
#include <string.h>

bool conform_is_shared(const ConformCase *c) { return c->comm && c->comm->size > 1; }

Range conform_prompts(const ConformCase *c, int64_t rank) {
    const int64_t n = c->comm->size, first = rank * c->n_prompts / n;
    return (Range){first, (rank + 1) * c->n_prompts / n - first};
}

bool conform_own(const ConformCase *c, ConformCase *own, Error *error) {
    const Range mine = conform_prompts(c, c->comm->rank);
    const int64_t begin = c->offsets[mine.first];
    *own = *c;
    own->comm = NULL;
    own->n_prompts = mine.n;
    own->n_tokens = c->offsets[mine.first + mine.n] - begin;
    own->tokens = c->tokens + begin;
    if (c->target_starts) own->target_starts = c->target_starts + mine.first;
    own->offsets = mem_alloc((size_t)(mine.n + 1) * sizeof *own->offsets);
    if (!own->offsets)
        return error_out_of_memory(error, "a rank's prompts", (size_t)mine.n * sizeof *own->offsets);
    for (int64_t p = 0; p <= mine.n; p++) own->offsets[p] = c->offsets[mine.first + p] - begin;
    return true;
}

void conform_own_free(ConformCase *own) {
    mem_free(own->offsets);
    *own = (ConformCase){0};
}

/* ---- gathering ---- */
/* A rank's prompts, or their tokens. */
static Range share_of(const ConformCase *c, bool by_prompt, int64_t rank) {
    const Range prompts = conform_prompts(c, rank);
    if (by_prompt) return prompts;
    const int64_t begin = c->offsets[prompts.first];
    return (Range){begin, c->offsets[prompts.first + prompts.n] - begin};
}

/* A tensor as [n_before, n, row_bytes]. */
typedef struct {
    int64_t n_before, n;
    size_t row_bytes;
} Layout;

static Layout layout_of(Tensor t, int axis) {
    Layout l = {1, t.shape[axis], dtype_bytes(t.dtype)};
    for (int i = 0; i < axis; i++) l.n_before *= t.shape[i];
    for (int i = axis + 1; i < t.n_dims; i++) l.row_bytes *= (size_t)t.shape[i];
    return l;
}

/* Rows of `from`, n_from of them before the next of n_before, to their place among n_to. */
static void copy_rows(const Layout *l, char *to, int64_t n_to, int64_t first_to, const char *from,
                      int64_t n_from, int64_t n) {
    for (int64_t i = 0; n && i < l->n_before; i++)
        memcpy(to + (size_t)(i * n_to + first_to) * l->row_bytes, from + (size_t)(i * n_from) * l->row_bytes,
               (size_t)n * l->row_bytes);
}

bool conform_gather(const ConformCase *c, bool by_prompt, int axis, Tensor own, Tensor whole, Error *error) {
    const int size = c->comm->size;
    const Layout l = layout_of(whole, axis);
    const Range mine = share_of(c, by_prompt, c->comm->rank);
    int64_t most = 0; /* of a rank: all send as much */
    for (int r = 0; r < size; r++)
        if (share_of(c, by_prompt, r).n > most) most = share_of(c, by_prompt, r).n;
    const size_t block = (size_t)(l.n_before * most) * l.row_bytes;
    const int64_t n_elements = (int64_t)(block / dtype_bytes(whole.dtype));
    char *in = mem_zeroed(block, 1), *all = mem_zeroed((size_t)size, block);
    bool ok = (in && all) || error_out_of_memory(error, "the tensors of ranks", (size_t)size * block);
    if (ok) {
        copy_rows(&l, in, most, 0, own.data, mine.n, mine.n);
        comm_all_gather(c->comm, NULL, tensor_matrix(all, whole.dtype, size, n_elements),
                        tensor_matrix(in, whole.dtype, 1, n_elements));
    }
    for (int r = 0; ok && r < size; r++) {
        const Range share = share_of(c, by_prompt, r);
        copy_rows(&l, whole.data, l.n, share.first, all + (size_t)r * block, most, share.n);
    }
    mem_free(in);
    mem_free(all);
    return ok;
}

/* ---- the model ---- */
static bool open_spread(const ConformOptions *options, const char *folder, Residency residency, Model *model,
                        Error *error) {
    const int64_t n_ranks = options->comm ? options->comm->size : 1;
    ModelConfig config;
    if (!model_config_read(folder, &config, error)) return false;
    const Spread spread = {.comm = n_ranks > 1 ? options->comm : NULL,
                           .residency = residency,
                           .placement = {n_ranks, config.n_experts, n_ranks, true},
                           .n_streamed = residency == RESIDENCY_STREAMED ? config.n_moe_layers : 0};
    model_config_free(&config);
    if (residency == RESIDENCY_PEERS && n_ranks == 1)
        return error_set(error, ERROR_BAD_INPUT, "--residency peers: expected several ranks: got one");
    return model_open_spread(folder, options->device, options->compute, &spread, model, error);
}

bool conform_open_model(const ConformOptions *options, Residency residency, Model *model, Error *error) {
    const char *folder = options->model ? options->model : options->folder;
    bool opened = residency == RESIDENCY_AUTO
                      ? model_open(folder, options->device, options->compute, model, error)
                      : open_spread(options, folder, residency, model, error);
    if (!options->comm || comm_agree(options->comm, opened, error)) return opened;
    if (opened) model_close(model);
    return false;
}

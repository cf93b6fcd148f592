/* A block's results: room for them, from the ranks, to and from its file. */
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/safetensors.h"
#include "share_parts.h"

bool share_make_part(const Share *share, SharePart *part, Error *error) {
    const Measures *shape = &share->shape;
    if (!share->n_values)
        return measures_make(shape->kind, part->n * share->n_rows, shape->n_layers, shape->n_experts,
                             &part->result.measures, error);
    const size_t n = (size_t)(part->n * share->n_values);
    part->values = mem_zeroed(n ? n : 1, sizeof *part->values);
    return part->values || error_out_of_memory(error, share->values_name, n * sizeof *part->values);
}

/* ---- values ---- */
static NamedTensor block_values(const Share *share, const ShareBlock *block) {
    return (NamedTensor){share->values_name,
                         tensor_matrix(share->lists[block->list].values + block->item * share->n_values,
                                       DTYPE_F64, block->n_items, share->n_values)};
}

static bool load_values(const Share *share, const ShareBlock *block, const char *path, bool *there,
                        Error *error) {
    Error own = {0};
    if (!io_exists(path)) return true;
    const Tensor to = block_values(share, block).tensor;
    TensorSet *set = safetensors_open(path, &own);
    const TensorEntry *entry = set ? safetensors_find(set, share->values_name) : NULL;
    if (entry && (!entry->dtype_known || entry->dtype != to.dtype || entry->n_bytes != tensor_bytes(to)))
        entry = NULL;
    *there = entry && safetensors_read(set, entry, 0, to.data, tensor_bytes(to), &own);
    if (set) safetensors_close(set);
    if (*there) return true;
    if (own.code == ERROR_UNAVAILABLE) return error_set(error, own.code, "%s", own.text);
    progress_warn(share->run->progress, "%s: expected %s of %lld %s; they are measured again", path,
                  share->values_name, (long long)block->n_items, share->unit);
    return true;
}

static bool keep_values(const Share *share, SharePart *part, const ShareBlock *block, const int64_t *items,
                        bool save, Error *error) {
    Comm *comm = share->run->comm;
    const Tensor mine = tensor_matrix(part->values, DTYPE_F64, part->n, share->n_values);
    if (comm->rank) {
        comm_gather_rows(comm, tensor_matrix(NULL, DTYPE_F64, 0, share->n_values), mine, items);
        return true;
    }
    const NamedTensor whole = block_values(share, block);
    comm_gather_rows(comm, whole.tensor, mine, items);
    if (!save) return true;
    char *path = step_block_path(share->run, "blocks", share->lists[block->list].name, block->first, error);
    const bool ok = path && safetensors_write(path, &whole, 1, NULL, 0, error);
    mem_free(path);
    return ok;
}

/* ---- measures ---- */
static bool keep_measures(const Share *share, SharePart *part, ShareBlock *block, const int64_t *items,
                          bool save, Error *error) {
    const StepRun *run = share->run;
    int64_t rows[COMM_MAX_RANKS];
    BlockResult whole;
    for (int r = 0; r < run->comm->size; r++) rows[r] = items[r] * share->n_rows;
    step_gather_block(run, &part->result, rows, &whole);
    if (run->comm->rank) {
        step_free_block(&whole);
        return true;
    }
    const bool ok =
        !save || step_save_block(run, share->lists[block->list].group, block->first, &whole, error);
    block->measures = whole.measures;
    whole.measures = (Measures){0};
    step_free_block(&whole);
    return ok;
}

bool share_take_measures(Share *share, Measures *whole, Error *error) {
    const Measures *shape = &share->shape;
    bool ok = true;
    for (int64_t l = 0; ok && l < share->n_lists; l++) {
        const int64_t n = share->lists[l].n * share->lists[l].n_each * share->n_rows;
        ok = measures_make(shape->kind, n, shape->n_layers, shape->n_experts, &whole[l], error);
    }
    for (int64_t b = 0; ok && b < share->n_blocks; b++) {
        ShareBlock *block = &share->blocks[b];
        ok = measures_append(&whole[block->list], block->item * share->n_rows, &block->measures, error);
        measures_free(&block->measures);
    }
    return ok;
}

/* ---- either ---- */
bool share_load(const Share *share, ShareBlock *block, bool *there, Error *error) {
    char *path = step_block_path(share->run, "blocks", share->lists[block->list].name, block->first, error);
    *there = false;
    const bool ok = path && (share->n_values ? load_values(share, block, path, there, error)
                                             : step_load_block(share->run, path, &share->shape,
                                                               block->n_items * share->n_rows,
                                                               &block->measures, there, error));
    mem_free(path);
    return ok;
}

bool share_keep(const Share *share, SharePart *part, ShareBlock *block, const int64_t *items, bool save,
                Error *error) {
    return share->n_values ? keep_values(share, part, block, items, save, error)
                           : keep_measures(share, part, block, items, save, error);
}

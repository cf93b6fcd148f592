/* Memory, files and order of what is measured, by one table of columns. */
#include "measures.h"
#include "../engine/alloc.h"
#include "../engine/safetensors.h"
#include <stddef.h>
#include <string.h>

typedef enum { PER_PROMPT, PER_LAYER, PER_CELL } Extent;

typedef struct {
    const char *name;
    unsigned kinds;
    Extent extent;
    DType dtype;
    size_t offset; /* of the pointer */
} Column;

enum {
    ACTIVATION = 1 << STEP_ACTIVATION,
    GRADIENT = 1 << STEP_GRADIENT,
    CONTRAST = 1 << STEP_CONTRAST,
    INTERVENTION = 1 << STEP_INTERVENTION,
    N_COLUMNS = 28
};

#define COLUMN(field, kinds, extent, dtype)                                                                  \
    { #field, (kinds), (extent), (dtype), offsetof(Measures, field) }
static const Column columns[N_COLUMNS] = {
    COLUMN(n_tokens, ACTIVATION | GRADIENT | CONTRAST, PER_PROMPT, DTYPE_I64),
    COLUMN(n_counted, ACTIVATION | GRADIENT | CONTRAST, PER_PROMPT, DTYPE_I64),
    COLUMN(nll, GRADIENT | INTERVENTION, PER_PROMPT, DTYPE_F64),
    COLUMN(prompt_nll, INTERVENTION, PER_PROMPT, DTYPE_F64),
    COLUMN(target_nll, INTERVENTION, PER_PROMPT, DTYPE_F64),
    COLUMN(selected, ACTIVATION, PER_CELL, DTYPE_I64),
    COLUMN(mass, ACTIVATION, PER_CELL, DTYPE_F32),
    COLUMN(weight, ACTIVATION, PER_CELL, DTYPE_F32),
    COLUMN(largest, ACTIVATION, PER_CELL, DTYPE_F32),
    COLUMN(norm, ACTIVATION, PER_CELL, DTYPE_F32),
    COLUMN(near_ties, ACTIVATION, PER_LAYER, DTYPE_I64),
    COLUMN(margin, ACTIVATION, PER_LAYER, DTYPE_F32),
    COLUMN(l2, GRADIENT, PER_CELL, DTYPE_F32),
    COLUMN(l1, GRADIENT, PER_CELL, DTYPE_F32),
    COLUMN(logit_abs, GRADIENT, PER_CELL, DTYPE_F32),
    COLUMN(n_first, CONTRAST, PER_PROMPT, DTYPE_I64),
    COLUMN(n_second, CONTRAST, PER_PROMPT, DTYPE_I64),
    COLUMN(nll_first, CONTRAST, PER_PROMPT, DTYPE_F64),
    COLUMN(nll_second, CONTRAST, PER_PROMPT, DTYPE_F64),
    COLUMN(js, CONTRAST, PER_LAYER, DTYPE_F64),
    COLUMN(overlap, CONTRAST, PER_LAYER, DTYPE_F64),
    COLUMN(jaccard, CONTRAST, PER_LAYER, DTYPE_F64),
    COLUMN(selected_first, CONTRAST, PER_CELL, DTYPE_I64),
    COLUMN(selected_second, CONTRAST, PER_CELL, DTYPE_I64),
    COLUMN(mean_first, CONTRAST, PER_CELL, DTYPE_F64),
    COLUMN(mean_second, CONTRAST, PER_CELL, DTYPE_F64),
    COLUMN(shift, CONTRAST, PER_CELL, DTYPE_F64),
    COLUMN(contrast_l2, CONTRAST, PER_CELL, DTYPE_F32),
};

static void **pointer_of(const Column *column, Measures *m) { return (void **)((char *)m + column->offset); }

static bool has_column(const Column *column, int kind) { return (column->kinds & (1u << kind)) != 0; }

/* Entries of one prompt. */
static int64_t width(const Column *column, const Measures *m) {
    return column->extent == PER_CELL    ? m->n_layers * m->n_experts
           : column->extent == PER_LAYER ? m->n_layers
                                         : 1;
}

static Tensor tensor_of(const Column *column, Measures *m) {
    void *data = *pointer_of(column, m);
    if (column->extent == PER_CELL)
        return tensor_cube(data, column->dtype, m->n_prompts, m->n_layers, m->n_experts);
    if (column->extent == PER_LAYER) return tensor_matrix(data, column->dtype, m->n_prompts, m->n_layers);
    return tensor_vector(data, column->dtype, m->n_prompts);
}

bool measures_make(int kind, int64_t n_prompts, int64_t n_layers, int64_t n_experts, Measures *m,
                   Error *error) {
    *m = (Measures){.kind = kind, .n_prompts = n_prompts, .n_layers = n_layers, .n_experts = n_experts};
    for (const Column *c = columns; c < columns + N_COLUMNS; c++) {
        if (!has_column(c, kind)) continue;
        size_t n = (size_t)(n_prompts * width(c, m));
        if (!(*pointer_of(c, m) = mem_zeroed(n ? n : 1, dtype_bytes(c->dtype))))
            return error_out_of_memory(error, "measures", n * dtype_bytes(c->dtype));
    }
    return true;
}

void measures_free(Measures *m) {
    for (const Column *c = columns; c < columns + N_COLUMNS; c++) mem_free(*pointer_of(c, m));
    mem_free(m->reply_offsets);
    mem_free(m->reply_tokens);
    mem_free(m->reply_stopped);
    *m = (Measures){0};
}

bool measures_make_replies(Measures *m, int64_t n_tokens, Error *error) {
    size_t n = (size_t)m->n_prompts;
    m->reply_offsets = mem_zeroed(n + 1, sizeof *m->reply_offsets);
    m->reply_stopped = mem_zeroed(n ? n : 1, sizeof *m->reply_stopped);
    m->reply_tokens = mem_zeroed(n_tokens ? (size_t)n_tokens : 1, sizeof *m->reply_tokens);
    if (m->reply_offsets && m->reply_stopped && m->reply_tokens) return true;
    return error_out_of_memory(error, "replies", (2 * n + (size_t)n_tokens) * 8);
}

bool measures_put_replies(Measures *m, int64_t at, const Generation *from, Error *error) {
    int64_t before = m->reply_offsets[at], n = from->offsets[from->n_prompts];
    int32_t *tokens = mem_resize(m->reply_tokens, (size_t)(before + n) + 1, sizeof *tokens);
    if (!tokens) return error_out_of_memory(error, "replies", (size_t)(before + n) * sizeof *tokens);
    m->reply_tokens = tokens;
    if (n) memcpy(tokens + before, from->tokens, (size_t)n * sizeof *tokens);
    for (int64_t p = 0; p < from->n_prompts; p++) {
        m->reply_offsets[at + p + 1] = before + from->offsets[p + 1];
        m->reply_stopped[at + p] = from->stopped[p];
    }
    return true;
}

bool measures_save(const Measures *measures, const char *path, Error *error) {
    NamedTensor tensors[N_COLUMNS + 3];
    Measures own = *measures, *m = &own;
    int64_t n = 0;
    for (const Column *c = columns; c < columns + N_COLUMNS; c++)
        if (has_column(c, m->kind)) tensors[n++] = (NamedTensor){c->name, tensor_of(c, m)};
    if (m->reply_offsets) {
        int64_t n_tokens = m->reply_offsets[m->n_prompts];
        tensors[n++] =
            (NamedTensor){"reply_offsets", tensor_vector(m->reply_offsets, DTYPE_I64, m->n_prompts + 1)};
        tensors[n++] =
            (NamedTensor){"reply_stopped", tensor_vector(m->reply_stopped, DTYPE_I64, m->n_prompts)};
        tensors[n++] = (NamedTensor){"reply_tokens", tensor_vector(m->reply_tokens, DTYPE_I32, n_tokens)};
    }
    return safetensors_write(path, tensors, n, NULL, 0, error);
}

/* ---- reading ---- */
static bool load_tensor(const TensorSet *set, const char *name, Tensor to, Error *error) {
    const TensorEntry *entry = safetensors_find(set, name);
    if (!entry || !entry->dtype_known || entry->dtype != to.dtype || entry->n_bytes != tensor_bytes(to))
        return error_set(error, ERROR_FAILED, "expected tensor %s of %zu bytes %s: got another or none", name,
                         tensor_bytes(to), dtype_name(to.dtype));
    return safetensors_read(set, entry, 0, to.data, tensor_bytes(to), error);
}

static bool load_replies(const TensorSet *set, Measures *m, Error *error) {
    const TensorEntry *tokens = safetensors_find(set, "reply_tokens");
    if (!tokens) return true;
    int64_t n_tokens = (int64_t)(tokens->n_bytes / 4);
    if (!measures_make_replies(m, n_tokens, error) ||
        !load_tensor(set, "reply_offsets", tensor_vector(m->reply_offsets, DTYPE_I64, m->n_prompts + 1),
                     error) ||
        !load_tensor(set, "reply_stopped", tensor_vector(m->reply_stopped, DTYPE_I64, m->n_prompts), error) ||
        !load_tensor(set, "reply_tokens", tensor_vector(m->reply_tokens, DTYPE_I32, n_tokens), error))
        return false;
    for (int64_t p = 0; p < m->n_prompts; p++)
        if (m->reply_offsets[p] > m->reply_offsets[p + 1] || m->reply_offsets[p] < 0)
            return error_set(error, ERROR_FAILED, "expected ascending reply_offsets");
    return m->reply_offsets[m->n_prompts] == n_tokens ||
           error_set(error, ERROR_FAILED, "expected reply_offsets to end at %lld", (long long)n_tokens);
}

bool measures_load(const char *path, int kind, int64_t n_prompts, int64_t n_layers, int64_t n_experts,
                   Measures *m, Error *error) {
    if (!measures_make(kind, n_prompts, n_layers, n_experts, m, error)) return false;
    TensorSet *set = safetensors_open(path, error);
    bool ok = set != NULL;
    for (const Column *c = columns; ok && c < columns + N_COLUMNS; c++)
        ok = !has_column(c, kind) || load_tensor(set, c->name, tensor_of(c, m), error);
    ok = ok && load_replies(set, m, error);
    if (set) safetensors_close(set);
    return ok || error_add_place(error, "%s", path);
}

static bool append_replies(Measures *whole, int64_t first, const Measures *block, Error *error) {
    int64_t before = 0, n = block->reply_offsets[block->n_prompts];
    if (!whole->reply_offsets && !measures_make_replies(whole, 0, error)) return false;
    before = whole->reply_offsets[first];
    size_t total = (size_t)(before + n);
    int32_t *tokens = mem_resize(whole->reply_tokens, total ? total : 1, sizeof *tokens);
    if (!tokens) return error_out_of_memory(error, "replies", total * sizeof *tokens);
    whole->reply_tokens = tokens;
    if (n) memcpy(tokens + before, block->reply_tokens, (size_t)n * sizeof *tokens);
    for (int64_t p = 0; p < block->n_prompts; p++) {
        whole->reply_offsets[first + p + 1] = before + block->reply_offsets[p + 1];
        whole->reply_stopped[first + p] = block->reply_stopped[p];
    }
    return true;
}

bool measures_append(Measures *whole, int64_t first, const Measures *block, Error *error) {
    Measures from = *block;
    for (const Column *c = columns; c < columns + N_COLUMNS; c++) {
        if (!has_column(c, whole->kind)) continue;
        size_t row = (size_t)width(c, whole) * dtype_bytes(c->dtype);
        memcpy((char *)*pointer_of(c, whole) + (size_t)first * row, *pointer_of(c, &from),
               (size_t)block->n_prompts * row);
    }
    return !block->reply_offsets || append_replies(whole, first, block, error);
}

/* ---- from several ranks ---- */
static int64_t sum_rows(const int64_t *rows, int n) {
    int64_t sum = 0;
    for (int r = 0; r < n; r++) sum += rows[r];
    return sum;
}

/* Lengths first, since only its rank knows how long a reply is. */
static void gather_replies(Comm *comm, const Measures *part, const int64_t *rows, Measures *whole) {
    int64_t n_tokens[COMM_MAX_RANKS], mine = part->reply_offsets[part->n_prompts];
    Error error = {0};
    comm_all_gather(comm, NULL, tensor_vector(n_tokens, DTYPE_I64, comm->size),
                    tensor_vector(&mine, DTYPE_I64, 1));
    int64_t n_all = comm->rank ? 0 : sum_rows(n_tokens, comm->size);
    if (!measures_make_replies(whole, n_all, &error)) comm_fail(comm, &error);
    int64_t n = whole->n_prompts;
    /* ends, each counted from its rank's begin; made to count from the first */
    comm_gather_rows(comm, tensor_vector(whole->reply_offsets + 1, DTYPE_I64, n),
                     tensor_vector(part->reply_offsets + 1, DTYPE_I64, part->n_prompts), rows);
    comm_gather_rows(comm, tensor_vector(whole->reply_stopped, DTYPE_I64, n),
                     tensor_vector(part->reply_stopped, DTYPE_I64, part->n_prompts), rows);
    comm_gather_rows(comm, tensor_vector(whole->reply_tokens, DTYPE_I32, n_all),
                     tensor_vector(part->reply_tokens, DTYPE_I32, mine), n_tokens);
    int64_t at = 0, before = 0;
    for (int r = 0; comm->rank == 0 && r < comm->size; r++) {
        for (int64_t p = 0; p < rows[r]; p++) whole->reply_offsets[++at] += before;
        before += n_tokens[r];
    }
}

void measures_gather(Comm *comm, Measures *part, const int64_t *rows, Measures *whole) {
    if (comm->size == 1) {
        *whole = *part;
        *part = (Measures){0};
        return;
    }
    Error error = {0};
    int64_t n = comm->rank ? 0 : sum_rows(rows, comm->size);
    if (!measures_make(part->kind, n, part->n_layers, part->n_experts, whole, &error))
        comm_fail(comm, &error);
    for (const Column *c = columns; c < columns + N_COLUMNS; c++)
        if (has_column(c, part->kind)) comm_gather_rows(comm, tensor_of(c, whole), tensor_of(c, part), rows);
    if (part->reply_offsets) gather_replies(comm, part, rows, whole);
    if (comm->rank) measures_free(whole);
    measures_free(part);
}

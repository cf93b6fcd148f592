/* The state of a training on disk. One file under a temporary name, then renamed: there is never half a
 * state. Its hashes say of which model and job it is, and that its numbers are as they were written. */
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/safetensors.h"
#include "tune_parts.h"
#include <math.h>
#include <string.h>

enum { N_STATES = 3, BEST = N_STATES, ROWS, N_TENSORS };

/* Everything on the host. */
typedef struct {
    NamedTensor tensors[N_TENSORS];
    void *block;
} State;

static Tensor device_state(const Tuning *t, int i) {
    const Optimizer *o = &t->training.optimizer;
    return i == 0 ? o->values : i == 1 ? o->means : o->squares;
}

static bool state_room(const Tuning *t, int64_t n_steps, State *s, Error *error) {
    static const char *const names[N_TENSORS] = {"values", "means", "squares", "best", "rows"};
    Tensor like = device_state(t, 0);
    const size_t each = tensor_bytes(like), n_each = N_STATES + (t->best != NULL),
                 n = n_each * each + (size_t)(n_steps + 1) * sizeof(TuneRow);
    char *at = s->block = mem_zeroed(n, 1);
    if (!at) return error_out_of_memory(error, "a checkpoint", n);
    for (int i = 0; i <= BEST; i++) {
        const int64_t count = i < BEST || t->best ? tensor_count(like) : 0; /* no best: empty */
        s->tensors[i] = (NamedTensor){names[i], tensor_vector(at, like.dtype, count)};
        at += tensor_bytes(s->tensors[i].tensor);
    }
    s->tensors[ROWS] =
        (NamedTensor){names[ROWS], tensor_matrix(at, DTYPE_F64, n_steps + 1, (int64_t)TUNE_COLUMNS)};
    return true;
}

static void hash_state(const State *s, const char *model, const char *job, char hash[HASH_TEXT]) {
    Hash state;
    hash_begin(&state);
    hash_add(&state, model, HASH_TEXT);
    hash_add(&state, job, HASH_TEXT);
    for (int i = 0; i < N_TENSORS; i++)
        hash_add(&state, s->tensors[i].tensor.data, tensor_bytes(s->tensors[i].tensor));
    hash_end(&state, hash);
}

static bool is_finite(Tensor x) {
    for (int64_t i = 0; i < tensor_count(x); i++)
        if (!isfinite(x.dtype == DTYPE_F64 ? ((const double *)x.data)[i]
                                           : (double)((const float *)x.data)[i]))
            return false;
    return true;
}

static char *path_of(const Tuning *t, Error *error) {
    char *path = io_join(t->run->folder, "checkpoint.safetensors");
    if (!path) error_out_of_memory(error, "a path", strlen(t->run->folder));
    return path;
}

static bool write_state(const Tuning *t, const State *s, const char *path, Error *error) {
    char hash[HASH_TEXT];
    hash_state(s, t->model_hash, t->job_hash, hash);
    const char *const pairs[] = {"model", t->model_hash, "job", t->job_hash, "contents", hash};
    for (int i = 0; i < N_STATES; i++)
        if (!is_finite(s->tensors[i].tensor))
            return error_set(error, ERROR_FAILED,
                             "%s: expected finite numbers: got nan or infinity in %s after step %lld; the "
                             "last checkpoint stays",
                             path, s->tensors[i].name, (long long)t->n_done);
    return safetensors_write(path, s->tensors, N_TENSORS, pairs, 3, error);
}

bool tune_checkpoint_write(Tuning *t, Error *error) {
    State s = {0};
    char *path = path_of(t, error);
    bool ok = path && state_room(t, t->n_done, &s, error);
    for (int i = 0; ok && i < N_STATES; i++)
        t->model.device->copy_out(t->training.queue, s.tensors[i].tensor.data, device_state(t, i));
    ok = ok && queue_wait(t->model.device, t->training.queue, error);
    if (ok && t->best) memcpy(s.tensors[BEST].tensor.data, t->best, tensor_bytes(s.tensors[BEST].tensor));
    if (ok) memcpy(s.tensors[ROWS].tensor.data, t->rows, tensor_bytes(s.tensors[ROWS].tensor));
    ok = ok && write_state(t, &s, path, error);
    mem_free(s.block);
    mem_free(path);
    return ok;
}

/* ---- reading ---- */
static bool check_hash(const TensorSet *set, const char *path, const char *key, const char *own,
                       Error *error) {
    const char *got = safetensors_metadata(set, key);
    if (got && !strcmp(got, own)) return true;
    return error_set(error, ERROR_BAD_INPUT,
                     "%s: expected a checkpoint of the %s %.64s: got one of the %s %.64s", path, key, own,
                     key, got ? got : "none");
}

static bool damaged(const char *path, Error *error) {
    return error_set(error, ERROR_BAD_INPUT,
                     "%s: expected a checkpoint as it was written: got a damaged one (delete the file to "
                     "train from the beginning)",
                     path);
}

static bool read_state(const Tuning *t, const TensorSet *set, const char *path, State *s, Error *error) {
    const TensorEntry *rows = safetensors_find(set, "rows");
    const int64_t n_steps = rows && rows->n_dims == 2 ? rows->shape[0] - 1 : -1;
    if (n_steps < 1 || n_steps > t->data.n_steps) return damaged(path, error);
    if (!state_room(t, n_steps, s, error)) return false;
    for (int i = 0; i < N_TENSORS; i++) {
        const Tensor to = s->tensors[i].tensor;
        const TensorEntry *entry = safetensors_find(set, s->tensors[i].name);
        if (!entry || !entry->dtype_known || entry->dtype != to.dtype || entry->n_bytes != tensor_bytes(to))
            return damaged(path, error);
        if (!safetensors_read(set, entry, 0, to.data, tensor_bytes(to), error)) return false;
    }
    char hash[HASH_TEXT];
    const char *contents = safetensors_metadata(set, "contents");
    hash_state(s, t->model_hash, t->job_hash, hash);
    return (contents && !strcmp(contents, hash)) || damaged(path, error);
}

static bool take_state(Tuning *t, const State *s, Error *error) {
    const Tensor rows = s->tensors[ROWS].tensor;
    for (int i = 0; i < N_STATES; i++)
        t->model.device->copy_in(t->training.queue, device_state(t, i), s->tensors[i].tensor.data);
    if (!queue_wait(t->model.device, t->training.queue, error)) return false;
    memcpy(t->rows, rows.data, tensor_bytes(rows));
    if (t->best) memcpy(t->best, s->tensors[BEST].tensor.data, tensor_bytes(s->tensors[BEST].tensor));
    t->n_done = t->training.optimizer.n_steps = rows.shape[0] - 1;
    return true;
}

bool tune_checkpoint_read(Tuning *t, Error *error) {
    State s = {0};
    char *path = path_of(t, error);
    if (!path) return false;
    if (!io_exists(path)) {
        mem_free(path);
        return true;
    }
    TensorSet *set = safetensors_open(path, error);
    bool ok = set && check_hash(set, path, "model", t->model_hash, error) &&
              check_hash(set, path, "job", t->job_hash, error) && read_state(t, set, path, &s, error) &&
              take_state(t, &s, error);
    if (set) safetensors_close(set);
    mem_free(s.block);
    mem_free(path);
    return ok;
}

bool tune_checkpoint_remove(const Tuning *t, Error *error) {
    char *path = path_of(t, error);
    bool ok = path && io_remove(path, error);
    mem_free(path);
    return ok;
}

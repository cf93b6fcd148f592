/* The collectives, over a backend's transfers.
 *
 * Why not MPI_Alltoallv and ncclAllReduce: their counts are int (MPI) or equal on all ranks (NCCL), their
 * float sums have an order of their own, and two code paths would need two proofs. A group of sends and
 * receives is what NCCL's all-to-all is anyway. */
#include "comm.h"
#include "../kernels/check.h"
#include "alloc.h"
#include <string.h>

/* ---- what every call does ---- */
static int64_t row_elements(Tensor t) {
    int64_t n = 1;
    for (int i = 1; i < t.n_dims; i++) n *= t.shape[i];
    return n;
}

static size_t row_bytes(Tensor t) { return (size_t)row_elements(t) * dtype_bytes(t.dtype); }

/* The signature that every rank must show for this number: name, dtype, row length; rows where they must
 * agree. */
static void enter(Comm *comm, const char *op, Tensor t, bool rows_agree) {
    char text[64];
    uint32_t signature;
    if (rows_agree)
        snprintf(text, sizeof text, "%s %s[%lld,%lld]", op, dtype_name(t.dtype), (long long)t.shape[0],
                 (long long)row_elements(t));
    else
        snprintf(text, sizeof text, "%s %s[*,%lld]", op, dtype_name(t.dtype), (long long)row_elements(t));
    comm->number = watchdog_enter(text, (int64_t)tensor_bytes(t), &signature);
    comm->tag = (int)(signature % COMM_MPI_TAGS);
}

static Tensor integers(const int64_t *x, int64_t rows, int64_t columns) {
    return tensor_matrix((void *)(uintptr_t)x, DTYPE_I64, rows, columns);
}

static void copy(Comm *comm, Queue *queue, void *to, const void *from, size_t n_bytes) {
    if (!n_bytes || to == from) return;
    if (queue && comm->device->streams)
        comm->device->streams->copy(queue, to, from, n_bytes);
    else
        memcpy(to, from, n_bytes);
}

static void send_all(Comm *comm, Queue *queue, const Transfer *transfers, int n) {
    for (int i = 0; i < n; i++)
        if (transfers[i].is_send) comm->n_bytes_sent += transfers[i].n_bytes;
    comm->backend->transfer(comm, queue, transfers, n);
}

/* in_bytes[r] of `in` go to rank r, out_bytes[r] of `out` come from it, both packed by rank; the own share
 * is copied, an empty one is not sent. */
static void exchange(Comm *comm, Queue *queue, char *out, const size_t *out_bytes, const char *in,
                     const size_t *in_bytes) {
    Transfer transfers[2 * COMM_MAX_RANKS];
    int n = 0;
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank) {
            check(out_bytes[r] == in_bytes[r], "rank %d keeps %zu bytes, expects %zu", r, in_bytes[r],
                  out_bytes[r]);
            copy(comm, queue, out, in, in_bytes[r]);
        } else {
            if (in_bytes[r]) transfers[n++] = (Transfer){(void *)(uintptr_t)in, in_bytes[r], r, true};
            if (out_bytes[r]) transfers[n++] = (Transfer){out, out_bytes[r], r, false};
        }
        in += in_bytes[r];
        out += out_bytes[r];
    }
    send_all(comm, queue, transfers, n);
}

static void gather(Comm *comm, Queue *queue, char *out, const void *in, size_t n_bytes) {
    Transfer transfers[2 * COMM_MAX_RANKS];
    int n = 0;
    for (int r = 0; r < comm->size && n_bytes; r++) {
        if (r == comm->rank) continue;
        transfers[n++] = (Transfer){(void *)(uintptr_t)in, n_bytes, r, true};
        transfers[n++] = (Transfer){out + (size_t)r * n_bytes, n_bytes, r, false};
    }
    copy(comm, queue, out + (size_t)comm->rank * n_bytes, in, n_bytes);
    send_all(comm, queue, transfers, n);
}

static void mark(Comm *comm, Queue *queue) { comm->backend->mark(comm, queue, comm->number); }

void comm_wait(Comm *comm, Queue *queue) { comm->backend->wait(comm, queue); }

/* ---- tensors ---- */
void comm_all_gather(Comm *comm, Queue *queue, Tensor out, Tensor in) {
    check(out.dtype == in.dtype && tensor_count(out) == comm->size * tensor_count(in),
          "out is not %d times in", comm->size);
    enter(comm, "all_gather", in, true);
    gather(comm, queue, out.data, in.data, tensor_bytes(in));
    mark(comm, queue);
}

static int64_t sum(const int64_t *x, int n) {
    int64_t s = 0;
    for (int i = 0; i < n; i++) s += x[i];
    return s;
}

static void move_rows(Comm *comm, Queue *queue, Tensor out, const int64_t *out_rows, Tensor in,
                      const int64_t *in_rows) {
    size_t in_bytes[COMM_MAX_RANKS], out_bytes[COMM_MAX_RANKS];
    for (int r = 0; r < comm->size; r++) {
        in_bytes[r] = (size_t)in_rows[r] * row_bytes(in);
        out_bytes[r] = (size_t)out_rows[r] * row_bytes(in);
    }
    exchange(comm, queue, out.data, out_bytes, in.data, in_bytes);
}

void comm_all_to_all(Comm *comm, Queue *queue, Tensor out, const int64_t *out_rows, Tensor in,
                     const int64_t *in_rows) {
    check(out.dtype == in.dtype && row_elements(out) == row_elements(in), "rows of %zu and %zu bytes",
          row_bytes(out), row_bytes(in));
    check(sum(in_rows, comm->size) == in.shape[0] && sum(out_rows, comm->size) == out.shape[0],
          "in has %lld rows, its counts say %lld; out %lld, %lld", (long long)in.shape[0],
          (long long)sum(in_rows, comm->size), (long long)out.shape[0], (long long)sum(out_rows, comm->size));
    enter(comm, "all_to_all", in, false);
    move_rows(comm, queue, out, out_rows, in, in_rows);
    mark(comm, queue);
}

void comm_gather_rows(Comm *comm, Tensor out, Tensor in, const int64_t *rows) {
    int64_t to_root[COMM_MAX_RANKS] = {0}, none[COMM_MAX_RANKS] = {0};
    check(in.shape[0] == rows[comm->rank], "%lld rows, the counts say %lld", (long long)in.shape[0],
          (long long)rows[comm->rank]);
    to_root[0] = rows[comm->rank];
    enter(comm, "gather_rows", in, false);
    move_rows(comm, NULL, out, comm->rank ? none : rows, in, to_root);
    mark(comm, NULL);
}

void comm_gather_group(Comm *comm, Queue *queue, Tensor out, Tensor in, const int64_t *rows, int first,
                       int n) {
    Transfer transfers[2 * COMM_MAX_RANKS];
    const size_t in_bytes = tensor_bytes(in);
    int n_transfers = 0;
    check(first >= 0 && first <= comm->rank && comm->rank < first + n && first + n <= comm->size,
          "rank %d in a group of %d from %d on", comm->rank, n, first);
    check(out.dtype == in.dtype && row_elements(out) == row_elements(in) &&
              rows[comm->rank - first] == in.shape[0] && sum(rows, n) == out.shape[0],
          "in has %lld rows, out %lld, the counts say %lld and %lld", (long long)in.shape[0],
          (long long)out.shape[0], (long long)rows[comm->rank - first], (long long)sum(rows, n));
    enter(comm, "gather_group", in, false);
    char *to = out.data;
    for (int i = 0; i < n; i++) {
        const size_t n_bytes = (size_t)rows[i] * row_bytes(in);
        if (first + i == comm->rank) {
            copy(comm, queue, to, in.data, in_bytes);
        } else {
            if (in_bytes) transfers[n_transfers++] = (Transfer){in.data, in_bytes, first + i, true};
            if (n_bytes) transfers[n_transfers++] = (Transfer){to, n_bytes, first + i, false};
        }
        to += n_bytes;
    }
    send_all(comm, queue, transfers, n_transfers);
    mark(comm, queue);
}

/* ---- integers of the host ---- */
void comm_exchange_counts(Comm *comm, int64_t *out_counts, const int64_t *in_counts, int64_t n) {
    size_t each[COMM_MAX_RANKS];
    for (int r = 0; r < comm->size; r++) each[r] = (size_t)n * sizeof *in_counts;
    enter(comm, "exchange_counts", integers(in_counts, comm->size, n), true);
    exchange(comm, NULL, (char *)out_counts, each, (const char *)in_counts, each);
    mark(comm, NULL);
}

/* All ranks' copies of n_bytes; the caller frees them. */
static void *gather_host(Comm *comm, const char *op, const void *in, size_t n_bytes) {
    char *all = mem_alloc((size_t)comm->size * n_bytes);
    if (!all) {
        Error error = {0};
        error_out_of_memory(&error, op, (unsigned long long)comm->size * n_bytes);
        comm_fail(comm, &error);
    }
    enter(comm, op, integers(in, 1, (int64_t)(n_bytes / sizeof(int64_t))), true);
    gather(comm, NULL, all, in, n_bytes);
    mark(comm, NULL);
    return all;
}

static void fold(Comm *comm, const char *op, int64_t *x, int64_t n, bool largest) {
    if (comm->size == 1) return;
    int64_t *all = gather_host(comm, op, x, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        x[i] = all[i];
        for (int r = 1; r < comm->size; r++) {
            int64_t v = all[r * n + i];
            x[i] = !largest ? x[i] + v : v > x[i] ? v : x[i];
        }
    }
    mem_free(all);
}

void comm_sum_i64(Comm *comm, int64_t *x, int64_t n) { fold(comm, "sum_i64", x, n, false); }
void comm_max_i64(Comm *comm, int64_t *x, int64_t n) { fold(comm, "max_i64", x, n, true); }

void comm_barrier(Comm *comm) {
    int64_t x = 0;
    fold(comm, "barrier", &x, 1, true);
}

/* The rank whose error stands for all: the lowest that failed, interrupted ones last; -1: none failed. */
static int first_failed(const Error *all, int size) {
    int found = -1;
    for (int r = size - 1; r >= 0; r--) {
        if (all[r].code == ERROR_NONE) continue;
        if (found < 0 || all[r].code != ERROR_INTERRUPTED || all[found].code == ERROR_INTERRUPTED) found = r;
    }
    return found;
}

bool comm_agree(Comm *comm, bool ok, Error *error) {
    if (!ok && error->code == ERROR_NONE) error_set(error, ERROR_FAILED, "failed for a reason unknown");
    if (comm->size == 1) return ok;
    union {
        Error error;
        int64_t words[(sizeof(Error) + sizeof(int64_t) - 1) / sizeof(int64_t)];
    } mine, *all;
    memset(&mine, 0, sizeof mine);
    if (!ok) mine.error = *error;
    all = gather_host(comm, "agree", &mine, sizeof mine);
    Error *errors = mem_zeroed((size_t)comm->size, sizeof *errors);
    if (!errors) {
        error_out_of_memory(error, "errors of ranks", (unsigned long long)comm->size * sizeof *errors);
        comm_fail(comm, error);
    }
    for (int r = 0; r < comm->size; r++) errors[r] = all[r].error;
    int failed = first_failed(errors, comm->size);
    bool alike = true;
    for (int r = 0; failed >= 0 && r < comm->size; r++)
        alike = alike && !strcmp(errors[r].text, errors[failed].text);
    if (failed >= 0) *error = errors[failed];
    if (failed >= 0 && !alike && errors[failed].code != ERROR_INTERRUPTED)
        error_add_place(error, "rank %d", failed);
    mem_free(errors);
    mem_free(all);
    return failed < 0;
}

void comm_fail(Comm *comm, const Error *error) {
    (void)comm;
    watchdog_fail(error);
}

/* ---- the tree ---- */
typedef struct {
    Comm *comm;
    Queue *queue;
    Tensor leaves, scratch; /* leaves as [mine, elements] */
    const int32_t *rank;
    int64_t *n_mine_before; /* [n_leaves + 1] of this rank's leaves */
} Tree;

static Tensor leaf_at(const Tree *tree, int64_t i) {
    return tensor_entry(tree->leaves, tree->n_mine_before[i]);
}

static void add_leaf(const Tree *tree, Tensor to, Tensor from) {
    if (tree->queue) {
        tree->comm->device->ops->add(tree->queue, to, to, from);
        return;
    }
    float *y = to.data;
    const float *x = from.data;
    for (int64_t i = 0; i < tensor_count(to); i++) y[i] += x[i];
}

/* Leaves the sum over [low, high) in the place of leaf low. A rank without a leaf there does nothing. */
static void fold_leaves(const Tree *tree, int64_t low, int64_t high) {
    if (high - low < 2 || tree->n_mine_before[low] == tree->n_mine_before[high]) return;
    int64_t half = 1;
    while (2 * half < high - low) half *= 2;
    int64_t middle = low + half;
    fold_leaves(tree, low, middle);
    fold_leaves(tree, middle, high);
    int left = tree->rank[low], right = tree->rank[middle], me = tree->comm->rank;
    size_t n_bytes = tensor_bytes(tree->scratch);
    if (left == me && right != me)
        send_all(tree->comm, tree->queue, &(Transfer){tree->scratch.data, n_bytes, right, false}, 1);
    if (right == me && left != me)
        send_all(tree->comm, tree->queue, &(Transfer){leaf_at(tree, middle).data, n_bytes, left, true}, 1);
    if (left == me) add_leaf(tree, leaf_at(tree, low), right == me ? leaf_at(tree, middle) : tree->scratch);
}

static void spread_sum(const Tree *tree, Tensor out) {
    Transfer transfers[COMM_MAX_RANKS];
    Comm *comm = tree->comm;
    size_t n_bytes = tensor_bytes(out);
    int n = 0, root = tree->rank[0];
    if (comm->rank == root) {
        Tensor total = leaf_at(tree, 0);
        copy(comm, tree->queue, out.data, total.data, n_bytes);
        for (int r = 0; r < comm->size; r++)
            if (r != root) transfers[n++] = (Transfer){total.data, n_bytes, r, true};
    } else {
        transfers[n++] = (Transfer){out.data, n_bytes, root, false};
    }
    send_all(comm, tree->queue, transfers, n);
}

void comm_tree_sum(Comm *comm, Queue *queue, Tensor out, Tensor leaves, const int32_t *leaf_rank,
                   int64_t n_leaves, Tensor scratch) {
    int64_t n = tensor_count(out), n_mine = leaves.n_dims ? leaves.shape[0] : 0;
    check(n_leaves > 0 && out.dtype == DTYPE_F32 && tensor_count(scratch) == n, "%lld leaves, %s",
          (long long)n_leaves, dtype_name(out.dtype));
    Tree tree = {.comm = comm,
                 .queue = queue,
                 .leaves = tensor_matrix(leaves.data, DTYPE_F32, n_mine, n),
                 .scratch = tensor_vector(scratch.data, DTYPE_F32, n),
                 .rank = leaf_rank,
                 .n_mine_before = mem_zeroed((size_t)n_leaves + 1, sizeof(int64_t))};
    if (!tree.n_mine_before) {
        Error error = {0};
        error_out_of_memory(&error, "a tree of leaves", (unsigned long long)n_leaves * sizeof(int64_t));
        comm_fail(comm, &error);
    }
    for (int64_t i = 0; i < n_leaves; i++)
        tree.n_mine_before[i + 1] = tree.n_mine_before[i] + (leaf_rank[i] == comm->rank);
    check(tree.n_mine_before[n_leaves] == n_mine, "rank %d holds %lld leaves, not %lld", comm->rank,
          (long long)n_mine, (long long)tree.n_mine_before[n_leaves]);
    enter(comm, "tree_sum", tensor_matrix(out.data, DTYPE_F32, 1, n), true);
    fold_leaves(&tree, 0, n_leaves);
    spread_sum(&tree, out);
    mark(comm, queue);
    mem_free(tree.n_mine_before);
}

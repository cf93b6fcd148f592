/* Every collective against what it must give, on any number of ranks: shapes of 0 rows, unequal counts,
 * sums in an order that does not depend on who holds what, agreement on errors, and the transport's count
 * of bytes.
 *   mpirun -n N rank_collectives [auto|self|mpi|nccl [device|wrong_rows]]
 * prints "ok N ranks HASH": the hash of float sums, the same for every N. Tensors travel between the memories
 * of travel_device with `nccl` or `device`, else between hosts. wrong_rows: rank 1 thinks that rank 0 has a
 * row more. */
#include "engine/alloc.h"
#include "engine/comm.h"
#include "engine/hash.h"
#include "engine/text.h"
#include "kernels/check.h"
#include "travel_device.h"
#include <stdlib.h>
#include <string.h>

/* Where tensors travel: of the host when queue is NULL. */
static const Device *device;
static Queue *queue;

/* The same in memory of the queue's device; take brings it back, when all is done. */
static Tensor put(Tensor host) {
    if (!queue || !device->copies) return host;
    Tensor there = host;
    there.data = device->alloc(tensor_bytes(host));
    check(there.data != NULL, "%zu bytes of device memory", tensor_bytes(host));
    device->copy_in(queue, there, host.data);
    return there;
}

static void take(Comm *c, Tensor host, Tensor there) {
    comm_wait(c, queue);
    if (there.data == host.data) return;
    device->copy_out(queue, host.data, there);
    check(device->sync(queue), "%s: %s", queue->failed_op, queue->failure);
    device->free(there.data);
}

static void gather(Comm *c, Tensor all, Tensor mine) {
    Tensor to = put(all), from = put(mine);
    comm_all_gather(c, queue, to, from);
    take(c, all, to);
    take(c, mine, from);
}

static void test_gather(Comm *c) {
    int64_t mine[3] = {c->rank, 10 + c->rank, -c->rank}, *all = mem_alloc((size_t)c->size * sizeof mine);
    comm_phase("gather");
    gather(c, tensor_matrix(all, DTYPE_I64, c->size, 3), tensor_matrix(mine, DTYPE_I64, 1, 3));
    for (int r = 0; r < c->size; r++)
        check(all[3 * r] == r && all[3 * r + 1] == 10 + r && all[3 * r + 2] == -r, "rank %d gathered wrong",
              r);
    gather(c, tensor_matrix(all, DTYPE_I64, 0, 3), tensor_matrix(mine, DTYPE_I64, 0, 3));
    mem_free(all);
}

/* Rank a sends b to rank (a * 3 + b * 2) % 5 rows that say where they come from. */
static int64_t n_rows(int from, int to) { return (from * 3 + to * 2) % 5; }

static void test_all_to_all(Comm *c) {
    int64_t in_rows[COMM_MAX_RANKS], out_rows[COMM_MAX_RANKS], n_in = 0, n_out = 0, at = 0;
    for (int r = 0; r < c->size; r++) n_in += in_rows[r] = n_rows(c->rank, r);
    comm_phase("exchange");
    comm_exchange_counts(c, out_rows, in_rows, 1);
    for (int r = 0; r < c->size; r++) {
        check(out_rows[r] == n_rows(r, c->rank), "rank %d sends %lld rows", r, (long long)out_rows[r]);
        n_out += out_rows[r];
    }
    int32_t *in = mem_zeroed((size_t)n_in + 1, 8), *out = mem_zeroed((size_t)n_out + 1, 8);
    for (int r = 0; r < c->size; r++)
        for (int64_t i = 0; i < in_rows[r]; i++, at++) {
            in[2 * at] = 1000 * c->rank + r;
            in[2 * at + 1] = (int32_t)i;
        }
    uint64_t before = c->n_bytes_sent;
    Tensor arrived = tensor_matrix(out, DTYPE_I32, n_out, 2), sent = tensor_matrix(in, DTYPE_I32, n_in, 2);
    Tensor to = put(arrived), from = put(sent);
    comm_all_to_all(c, queue, to, out_rows, from, in_rows);
    take(c, arrived, to);
    take(c, sent, from);
    check(c->n_bytes_sent - before == 8 * (uint64_t)(n_in - in_rows[c->rank]), "%llu bytes sent",
          (unsigned long long)(c->n_bytes_sent - before));
    at = 0;
    for (int r = 0; r < c->size; r++)
        for (int64_t i = 0; i < out_rows[r]; i++, at++)
            check(out[2 * at] == 1000 * r + c->rank && out[2 * at + 1] == i, "row %lld of rank %d",
                  (long long)i, r);
    int64_t rows[COMM_MAX_RANKS];
    for (int r = 0; r < c->size; r++) rows[r] = r % 3;
    int64_t n_all = 0;
    for (int r = 0; r < c->size; r++) n_all += rows[r];
    float mine[6] = {0}, *all = mem_zeroed((size_t)n_all + 1, 3 * sizeof *all);
    for (int i = 0; i < 6; i++) mine[i] = (float)(10 * c->rank + i);
    comm_gather_rows(c, tensor_matrix(all, DTYPE_F32, n_all, 3),
                     tensor_matrix(mine, DTYPE_F32, rows[c->rank], 3), rows);
    at = 0;
    for (int r = 0; c->rank == 0 && r < c->size; r++)
        for (int64_t i = 0; i < 3 * rows[r]; i++, at++)
            check(all[at] == (float)(10 * r + (int)i), "gathered row %d", r);
    mem_free(all);
    mem_free(in);
    mem_free(out);
}

/* One group, then the first 1 + size / 2 ranks and the rest; rows of unequal number. */
static void test_groups(Comm *c, bool wrong) {
    comm_phase("groups");
    for (int groups = 0; groups < 2; groups++) {
        const int n = groups && c->size > 2 ? 1 + c->size / 2 : c->size;
        const int first = c->rank < n ? 0 : n, size = c->rank < n ? n : c->size - n;
        int64_t rows[COMM_MAX_RANKS], n_all = 0, at = 0;
        for (int i = 0; i < size; i++) n_all += rows[i] = 1 + (first + i) * 5 % 7;
        const int64_t mine = rows[c->rank - first];
        int32_t *in = mem_zeroed((size_t)mine, 8), *out = mem_zeroed((size_t)n_all + 1, 8);
        for (int64_t i = 0; i < 2 * mine; i++) in[i] = (int32_t)(1000 * c->rank + i);
        if (wrong && c->rank == 1) rows[0]++, n_all++;
        const uint64_t before = c->n_bytes_sent;
        Tensor all = tensor_matrix(out, DTYPE_I32, n_all, 2), own = tensor_matrix(in, DTYPE_I32, mine, 2);
        Tensor to = put(all), from = put(own);
        comm_gather_group(c, queue, to, from, rows, first, size);
        take(c, all, to);
        take(c, own, from);
        check(c->n_bytes_sent - before == 8 * (uint64_t)(mine * (size - 1)), "%llu bytes sent",
              (unsigned long long)(c->n_bytes_sent - before));
        for (int r = 0; r < size; r++)
            for (int64_t i = 0; i < 2 * rows[r]; i++, at++)
                check(out[at] == 1000 * (first + r) + i, "element %lld of rank %d", (long long)i, first + r);
        mem_free(in);
        mem_free(out);
    }
}

static void test_integers(Comm *c) {
    int64_t x[2] = {c->rank, INT64_C(1) << 40}, y[2] = {-c->rank - 5, c->rank};
    int64_t n = c->size;
    comm_phase("integers");
    comm_sum_i64(c, x, 2);
    comm_max_i64(c, y, 2);
    check(x[0] == n * (n - 1) / 2 && x[1] == n << 40, "sum %lld %lld", (long long)x[0], (long long)x[1]);
    check(y[0] == -5 && y[1] == n - 1, "maximum %lld %lld", (long long)y[0], (long long)y[1]);
    comm_barrier(c);
}

static void test_agreement(Comm *c) {
    Error error = {0};
    comm_phase("agreement");
    check(comm_agree(c, true, &error) && error.code == ERROR_NONE, "%s", error.text);
    for (int who = 0; who < c->size; who++) {
        error = (Error){0};
        if (c->rank >= who)
            error_set(&error, c->rank == who ? ERROR_UNAVAILABLE : ERROR_INTERRUPTED, "of %d", c->rank);
        check(!comm_agree(c, c->rank < who, &error) && error.code == ERROR_UNAVAILABLE, "rank %d failed",
              who);
        char says[40];
        snprintf(says, sizeof says, c->size > 1 ? "rank %d: of %d" : "of %d", who, who);
        check(!strcmp(error.text, says), "expected \"%s\": got \"%s\"", says, error.text);
    }
    error = (Error){0};
    error_set(&error, ERROR_BAD_INPUT, "alike");
    check(!comm_agree(c, false, &error) && !strcmp(error.text, "alike"), "%s", error.text);
    error = (Error){0};
    if (c->rank == c->size - 1) error_set(&error, ERROR_INTERRUPTED, "interrupted");
    check(!comm_agree(c, c->rank != c->size - 1, &error) && error.code == ERROR_INTERRUPTED, "%s",
          error.text);
}

/* Leaves that no order of additions but one sums to the same bits, spread in three ways. */
enum { LEAVES = 37, N = 5 };

static float leaf(int i, int k) {
    return (float)((i * 37 + k * 11) % 19 - 9) * (i % 3 ? 1e-3f : 3e4f) / (float)(k + 3);
}

/* The control: were each rank's leaves added first, and then those sums, the bits would depend on the
 * ranks. */
static void check_leaves_are_hard(void) {
    float sums[2] = {0};
    for (int n = 0; n < 2; n++) {
        float parts[2] = {0};
        for (int i = 0; i < LEAVES; i++) parts[n ? i % 2 : 0] += leaf(i, 1);
        sums[n] = parts[0] + parts[1];
    }
    check(memcmp(&sums[0], &sums[1], sizeof *sums) != 0, "leaves whose order of summing does not matter");
}

static void tree_sum(Comm *c, Tensor out, Tensor leaves, const int32_t *rank, int64_t n_leaves,
                     Tensor scratch) {
    Tensor to = put(out), from = put(leaves), spare = put(scratch);
    comm_tree_sum(c, queue, to, from, rank, n_leaves, spare);
    take(c, out, to);
    take(c, leaves, from);
    take(c, scratch, spare);
}

static void test_tree(Comm *c, Hash *hash) {
    check_leaves_are_hard();
    comm_phase("tree");
    for (int64_t n_leaves = 1; n_leaves <= LEAVES; n_leaves += 4)
        for (int spread = 0; spread < 3; spread++) {
            int32_t rank[LEAVES];
            float leaves[LEAVES * N], scratch[N] = {0}, out[N] = {0};
            int64_t mine = 0;
            for (int i = 0; i < n_leaves; i++) {
                rank[i] = (int32_t)(spread == 0   ? i % c->size
                                    : spread == 1 ? i * c->size / n_leaves
                                                  : (i * 7 + 3) % c->size);
                if (rank[i] != c->rank) continue;
                for (int k = 0; k < N; k++) leaves[mine * N + k] = leaf(i, k);
                mine++;
            }
            tree_sum(c, tensor_vector(out, DTYPE_F32, N), tensor_matrix(leaves, DTYPE_F32, mine, N), rank,
                     n_leaves, tensor_vector(scratch, DTYPE_F32, N));
            if (spread == 0 || c->size > 1) hash_add(hash, out, spread == 0 ? sizeof out : 0);
            static float first[N];
            if (spread == 0) memcpy(first, out, sizeof first);
            check(!memcmp(first, out, sizeof out), "%lld leaves, spread %d: other bits", (long long)n_leaves,
                  spread);
        }
}

int main(int n, char **texts) {
    CommOptions options = {.kind = n > 1 ? texts[1] : "auto", .deadline_s = 20};
    Comm comm;
    Error error = {0};
    device = cpu_device();
    if ((n > 2 && !strcmp(texts[2], "device")) || !strcmp(options.kind, "nccl"))
        device = travel_device(&queue);
    check(device != NULL, "no device");
    if (!comm_open(&options, &comm, &error) || !comm_use_device(&comm, device, true, &error)) {
        text_print_error(&error);
        return (int)error.code;
    }
    int rank = comm.rank, size = comm.size;
    Hash hash;
    char text[HASH_TEXT];
    hash_begin(&hash);
    test_gather(&comm);
    test_all_to_all(&comm);
    test_groups(&comm, n > 2 && !strcmp(texts[2], "wrong_rows"));
    test_integers(&comm);
    test_agreement(&comm);
    test_tree(&comm, &hash);
    hash_end(&hash, text);
    comm_close(&comm);
    if (queue) device->queue_free(queue);
    if (rank == 0) printf("ok %d ranks %s\n", size, text);
    return 0;
}

/* Chunks of examples over ranks (lora_ranks.h), and the end of their sum on the host: adapters are small, and
 * a transport between devices need not be there. */
#include "lora_ranks.h"
#include "../kernels/check.h"
#include "alloc.h"
#include "queue.h"
#include <string.h>

/* ---- who has which examples ---- */
typedef struct {
    const int64_t *lengths;
    int64_t n_examples, n_ranks;
    int64_t *chunks; /* room for [n_examples] tokens of a chunk */
    Home *homes;     /* the same of places */
} Dealing;

/* Chunks of so many examples; the tokens of the fullest rank, all chunks in one wave. */
static int64_t try_chunks(const Dealing *d, int64_t each, int64_t *n) {
    int64_t total = 0, most = 0, load = 0;
    *n = (d->n_examples + each - 1) / each;
    memset(d->chunks, 0, (size_t)*n * sizeof *d->chunks);
    for (int64_t i = 0; i < d->n_examples; i++) {
        d->chunks[i / each] += d->lengths[i];
        total += d->lengths[i];
    }
    const int64_t n_waves = placement_homes(d->chunks, *n, d->n_ranks, total, d->homes);
    check(n_waves == 1, "%lld waves of %lld tokens", (long long)n_waves, (long long)total);
    for (int64_t c = 0; c < *n; c++) {
        if (c && d->homes[c].rank != d->homes[c - 1].rank) load = 0;
        load += d->chunks[c];
        most = load > most ? load : most;
    }
    return most;
}

static void deal_chunks(const Dealing *d, LoraDeal *deal) {
    const int64_t least = try_chunks(d, 1, &deal->n);
    int64_t each = 1;
    while (each < d->n_examples) each *= 2;
    while (each > 1 && 8 * try_chunks(d, each, &deal->n) > 9 * least) each /= 2;
    try_chunks(d, each, &deal->n);
    deal->each = each;
    for (int64_t c = 0; c < deal->n; c++) deal->ranks[c] = (int32_t)d->homes[c].rank;
}

bool lora_deal_make(const int64_t *lengths, int64_t n_examples, int64_t n_ranks, LoraDeal *deal,
                    Error *error) {
    const size_t n = (size_t)n_examples;
    check(n_examples > 0 && n_ranks > 0, "%lld examples, %lld ranks", (long long)n_examples,
          (long long)n_ranks);
    Dealing d = {lengths, n_examples, n_ranks, mem_zeroed(n, sizeof *d.chunks),
                 mem_zeroed(n, sizeof *d.homes)};
    *deal = (LoraDeal){.n_examples = n_examples, .ranks = mem_zeroed(n, sizeof *deal->ranks)};
    const bool ok = (d.chunks && d.homes && deal->ranks) ||
                    error_out_of_memory(error, "examples over ranks", n * sizeof *d.homes);
    if (ok) deal_chunks(&d, deal);
    mem_free(d.chunks);
    mem_free(d.homes);
    if (!ok) lora_deal_free(deal);
    return ok;
}

void lora_deal_free(LoraDeal *deal) {
    mem_free(deal->ranks);
    *deal = (LoraDeal){0};
}

Range lora_deal_chunks(const LoraDeal *deal, int64_t rank) {
    Range own = {0};
    for (int64_t c = 0; c < deal->n; c++) {
        if (deal->ranks[c] != rank) continue;
        if (!own.n) own.first = c;
        own.n++;
    }
    return own;
}

Range lora_deal_examples(const LoraDeal *deal, int64_t chunk) {
    const int64_t first = chunk * deal->each, left = deal->n_examples - first;
    return (Range){first, left < deal->each ? left : deal->each};
}

/* ---- their gradient ---- */
bool lora_leaves_open(LoraLeaves *leaves, const LoraTraining *training, const LoraDeal *deal, Error *error) {
    const int64_t n = lora_deal_chunks(deal, leaves->comm->rank).n,
                  n_values = tensor_count(training->optimizer.grad);
    if (leaves->comm->size == 1 || (leaves->rows.data && n <= leaves->n_room)) return true;
    check(training->optimizer.grad.dtype == DTYPE_F32, "a gradient of %s on %d ranks",
          dtype_name(training->optimizer.grad.dtype), leaves->comm->size);
    lora_leaves_free(leaves);
    void *data = mem_zeroed((size_t)(n + 2), (size_t)n_values * sizeof(float));
    if (!data)
        return error_out_of_memory(error, "gradients of examples",
                                   (size_t)(n + 2) * (size_t)n_values * sizeof(float));
    leaves->n_room = n;
    leaves->rows = tensor_matrix(data, DTYPE_F32, n + 2, n_values);
    return true;
}

void lora_leaves_free(LoraLeaves *leaves) {
    mem_free(leaves->rows.data);
    leaves->rows = (Tensor){0};
    leaves->n_room = 0;
}

bool lora_leaves_keep(LoraLeaves *leaves, LoraTraining *t, int64_t i, int64_t n_examples, Error *error) {
    const Device *device = t->weights->device;
    if (leaves->comm->size == 1) return true;
    check(i < leaves->n_room, "chunk %lld of %lld", (long long)i, (long long)leaves->n_room);
    lora_training_sum(t, n_examples);
    device->copy_out(t->queue, tensor_entry(leaves->rows, i).data, t->optimizer.grad);
    return queue_wait(device, t->queue, error);
}

bool lora_leaves_gather(const LoraLeaves *leaves, LoraTraining *t, const LoraDeal *deal, int64_t n_examples,
                        double *norm, Error *error) {
    if (leaves->comm->size == 1) return lora_training_gather(t, n_examples, norm, error);
    const int64_t n = lora_deal_chunks(deal, leaves->comm->rank).n;
    const Tensor scratch = tensor_entry(leaves->rows, leaves->n_room),
                 sum = tensor_entry(leaves->rows, leaves->n_room + 1);
    comm_tree_sum(leaves->comm, NULL, sum, tensor_slice(leaves->rows, 0, n), deal->ranks, deal->n, scratch);
    t->weights->device->copy_in(t->queue, t->optimizer.grad, sum.data);
    return lora_training_norm(t, norm, error);
}

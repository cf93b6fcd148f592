/* Two buffers, one queue of copies, three marks (weight_stream.h). Without a queue of copies, on a device
 * that computes in the host's memory, nothing is waited for: a copy is done when its call returns. */
#include "weight_stream.h"
#include "../kernels/check.h"
#include "alloc.h"
#include <string.h>

enum { N_BUFFERS = 2, ALIGNMENT = 256 };

typedef struct {
    Tensor *gate_up, *down; /* of the LayerWeights */
    Tensor own[2];          /* what this rank keeps of them, one behind the other in a block of its own */
    size_t down_at;         /* in a buffer */
} StreamedLayer;

typedef struct {
    void *data;
    Mark *copied;  /* set behind the copy of what is there */
    int64_t there; /* streamed layer that is there or on its way; -1: none */
    bool awaited;  /* by the work, since it was copied */
} Buffer;

struct WeightStream {
    const Device *device;
    int64_t n_layers, n_streamed;
    int64_t *of_layer; /* [n_layers] its number among the streamed, -1: not one */
    StreamedLayer *layers;
    Buffer buffers[N_BUFFERS];
    Queue *copies; /* NULL: the device computes in the host's memory */
    Mark *used;    /* the work so far */
    size_t own_bytes, buffer_bytes;
    int64_t n_copies;
    /* Of peers; comm NULL: from the host */
    Comm *comm;
    Range group;
    int64_t n_experts, experts[COMM_MAX_RANKS]; /* of a layer; of each rank of the group */
};

static size_t aligned(size_t n_bytes) { return (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* ---- what it is made of ---- */
bool weight_stream_possible(const Device *device, Error *error) {
    return device->copies ||
           error_set(
               error, ERROR_UNAVAILABLE,
               "residency: expected a device with memory of its own for streamed weights: got %s, which "
               "computes in the host's memory: resident is all it needs",
               device->name);
}

static void set_peers(WeightStream *s, const Spread *spread) {
    s->comm = spread->comm;
    s->group = placement_group(&spread->placement, s->comm->rank);
    s->n_experts = spread->placement.n_experts;
    for (int64_t r = 0; r < s->group.n; r++)
        s->experts[r] = placement_experts(&spread->placement, s->group.first + r).n;
}

static bool make_marks(WeightStream *s) {
    const DeviceCopies *copies = s->device->copies;
    for (int b = 0; b < N_BUFFERS; b++) s->buffers[b].there = -1;
    if (!copies) return true;
    s->copies = copies->queue_new();
    s->used = copies->mark_new();
    bool fine = s->copies && s->used;
    for (int b = 0; b < N_BUFFERS; b++) {
        s->buffers[b].copied = copies->mark_new();
        fine = fine && s->buffers[b].copied;
    }
    return fine;
}

WeightStream *weight_stream_new(const Device *device, int64_t n_layers, const Spread *spread, Error *error) {
    const bool peers = spread_weights_travel(spread);
    if (!peers && !weight_stream_possible(device, error)) return NULL;
    const int64_t n_streamed = peers ? n_layers : spread->n_streamed;
    WeightStream *s = mem_zeroed(1, sizeof *s);
    if (s) {
        *s = (WeightStream){.device = device, .n_layers = n_layers, .n_streamed = n_streamed};
        if (peers) set_peers(s, spread);
        s->of_layer = mem_zeroed((size_t)n_layers, sizeof *s->of_layer);
        s->layers = mem_zeroed((size_t)n_streamed, sizeof *s->layers);
        const bool fine = make_marks(s) && s->of_layer && s->layers;
        for (int64_t l = 0, n = 0; fine && l < n_layers; l++)
            s->of_layer[l] = placement_is_streamed(l, n_layers, n_streamed) ? n++ : -1;
        if (fine) return s;
    }
    error_out_of_memory(error, "streamed weights", sizeof *s);
    weight_stream_free(s);
    return NULL;
}

static void *block_alloc(const WeightStream *s, size_t n_bytes) {
    return s->comm ? s->device->alloc(n_bytes) : s->device->copies->host_alloc(n_bytes);
}

static void block_free(const WeightStream *s, void *block) {
    if (block) s->comm ? s->device->free(block) : s->device->copies->host_free(block);
}

void weight_stream_free(WeightStream *s) {
    if (!s) return;
    const Device *device = s->device;
    if (s->copies) device->queue_free(s->copies);
    if (s->used) device->copies->mark_free(s->used);
    for (int b = 0; b < N_BUFFERS; b++) {
        if (s->buffers[b].copied) device->copies->mark_free(s->buffers[b].copied);
        if (s->buffers[b].data) device->free(s->buffers[b].data);
    }
    for (int64_t i = 0; s->layers && i < s->n_streamed; i++) block_free(s, s->layers[i].own[0].data);
    mem_free(s->of_layer);
    mem_free(s->layers);
    mem_free(s);
}

/* ---- loading ---- */
bool weight_stream_has(const WeightStream *s, int64_t moe_layer) {
    return s && moe_layer >= 0 && s->of_layer[moe_layer] >= 0;
}

/* As the layer is in a buffer. */
static Tensor in_buffer(const WeightStream *s, Tensor own, void *data) {
    own.data = data;
    if (s->comm) own.shape[0] = s->n_experts;
    return own;
}

bool weight_stream_take(WeightStream *s, int64_t moe_layer, Tensor *gate_up, Tensor *down, Error *error) {
    StreamedLayer *layer = &s->layers[s->of_layer[moe_layer]];
    const size_t own_at = aligned(tensor_bytes(*gate_up)), n_bytes = own_at + tensor_bytes(*down);
    char *block = block_alloc(s, n_bytes);
    if (!block)
        return error_set(error, ERROR_UNAVAILABLE,
                         "streamed weights: expected %zu bytes of %s memory beside %zu held: got none",
                         n_bytes, s->comm ? s->device->name : "pinned", s->own_bytes);
    gate_up->data = block;
    down->data = block + own_at;
    *layer = (StreamedLayer){.gate_up = gate_up,
                             .down = down,
                             .own = {*gate_up, *down},
                             .down_at = aligned(tensor_bytes(in_buffer(s, *gate_up, NULL)))};
    const size_t all_bytes = layer->down_at + tensor_bytes(in_buffer(s, *down, NULL));
    s->own_bytes += n_bytes;
    if (all_bytes > s->buffer_bytes) s->buffer_bytes = all_bytes;
    return true;
}

bool weight_stream_place(WeightStream *s, size_t *n_bytes, Error *error) {
    if (s->comm) *n_bytes += s->own_bytes;
    for (int64_t b = 0; b < N_BUFFERS && b < s->n_streamed; b++) {
        s->buffers[b].data = s->device->alloc(s->buffer_bytes);
        if (!s->buffers[b].data)
            return error_set(
                error, ERROR_UNAVAILABLE,
                "streamed weights: expected %zu bytes of memory on device %s for a layer: got none",
                s->buffer_bytes, s->device->name);
        *n_bytes += s->buffer_bytes;
    }
    for (int64_t i = 0; i < s->n_streamed; i++) {
        const StreamedLayer *layer = &s->layers[i];
        char *data = s->buffers[i % N_BUFFERS].data;
        *layer->gate_up = in_buffer(s, layer->own[0], data);
        *layer->down = in_buffer(s, layer->own[1], data + layer->down_at);
    }
    return true;
}

/* ---- passes ---- */
static void move(WeightStream *s, Tensor to, Tensor own) {
    if (s->comm)
        comm_gather_group(s->comm, s->copies, to, own, s->experts, (int)s->group.first, (int)s->group.n);
    else
        s->device->copies->copy(s->copies, to, own.data);
}

/* Behind the work of q so far, which may read the buffer. */
static void copy_layer(WeightStream *s, Queue *q, int64_t i) {
    const DeviceCopies *copies = s->device->copies;
    const StreamedLayer *layer = &s->layers[i];
    Buffer *buffer = &s->buffers[i % N_BUFFERS];
    if (buffer->there == i) return;
    if (copies) copies->mark_set(q, s->used);
    if (copies) copies->mark_wait(s->copies, s->used);
    move(s, *layer->gate_up, layer->own[0]);
    move(s, *layer->down, layer->own[1]);
    if (copies) copies->mark_set(s->copies, buffer->copied);
    buffer->there = i;
    buffer->awaited = false;
    s->n_copies++;
}

static void await(WeightStream *s, Queue *q, Buffer *buffer) {
    if (!s->copies) return;
    if (!buffer->awaited) s->device->copies->mark_wait(q, buffer->copied);
    buffer->awaited = !q->failed_op; /* a queue that has failed waits for nothing */
}

void weight_stream_begin(WeightStream *s, Queue *q) {
    for (int64_t i = 0; s && i < N_BUFFERS && i < s->n_streamed; i++) copy_layer(s, q, i);
}

void weight_stream_need(WeightStream *s, Queue *q, int64_t moe_layer, bool back) {
    if (!weight_stream_has(s, moe_layer)) return;
    const int64_t i = s->of_layer[moe_layer], next = back ? i - 1 : i + 1;
    copy_layer(s, q, i);
    await(s, q, &s->buffers[i % N_BUFFERS]);
    if (next >= 0 && next < s->n_streamed) copy_layer(s, q, next);
    if (s->copies && s->copies->failed_op) queue_fail(q, s->copies->failed_op, "%s", s->copies->failure);
}

void weight_stream_serve(WeightStream *s, Queue *q, int64_t lowest_back) {
    weight_stream_begin(s, q);
    for (int64_t l = 0; s && l < s->n_layers; l++) weight_stream_need(s, q, l, false);
    for (int64_t l = s ? s->n_layers - 1 : -1; l >= lowest_back; l--) weight_stream_need(s, q, l, true);
}

size_t weight_stream_host_bytes(const WeightStream *s) { return s && !s->comm ? s->own_bytes : 0; }
int64_t weight_stream_copies(const WeightStream *s) { return s ? s->n_copies : 0; }

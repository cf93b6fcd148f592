/* Two buffers, one queue of copies, three marks (weight_stream.h). */
#include "weight_stream.h"
#include "../kernels/check.h"
#include "alloc.h"
#include "placement.h"

enum { N_BUFFERS = 2, ALIGNMENT = 256 };

typedef struct {
    Tensor *gate_up, *down; /* of the LayerWeights */
    void *host;             /* both, one behind the other */
    size_t down_at;         /* in the host's memory and in a buffer alike */
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
    Queue *copies;
    Mark *used; /* the work so far */
    size_t host_bytes, buffer_bytes;
    int64_t n_copies;
};

static size_t aligned(size_t n_bytes) { return (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

bool weight_stream_possible(const Device *device, Error *error) {
    return device->copies ||
           error_set(
               error, ERROR_UNAVAILABLE,
               "residency: expected a device with memory of its own for streamed weights: got %s, which "
               "computes in the host's memory: resident is all it needs",
               device->name);
}

WeightStream *weight_stream_new(const Device *device, int64_t n_layers, int64_t n_streamed, Error *error) {
    if (!weight_stream_possible(device, error)) return NULL;
    WeightStream *s = mem_zeroed(1, sizeof *s);
    if (s) {
        *s = (WeightStream){.device = device, .n_layers = n_layers, .n_streamed = n_streamed};
        s->of_layer = mem_zeroed((size_t)n_layers, sizeof *s->of_layer);
        s->layers = mem_zeroed((size_t)n_streamed, sizeof *s->layers);
        s->copies = device->copies->queue_new();
        s->used = device->copies->mark_new();
        bool fine = s->of_layer && s->layers && s->copies && s->used;
        for (int b = 0; b < N_BUFFERS; b++) {
            s->buffers[b] = (Buffer){.copied = device->copies->mark_new(), .there = -1};
            fine = fine && s->buffers[b].copied;
        }
        for (int64_t l = 0, n = 0; fine && l < n_layers; l++)
            s->of_layer[l] = placement_is_streamed(l, n_layers, n_streamed) ? n++ : -1;
        if (fine) return s;
    }
    error_out_of_memory(error, "streamed weights", sizeof *s);
    weight_stream_free(s);
    return NULL;
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
    for (int64_t i = 0; s->layers && i < s->n_streamed; i++)
        if (s->layers[i].host) device->copies->host_free(s->layers[i].host);
    mem_free(s->of_layer);
    mem_free(s->layers);
    mem_free(s);
}

/* ---- loading ---- */
bool weight_stream_has(const WeightStream *s, int64_t moe_layer) {
    return s && moe_layer >= 0 && s->of_layer[moe_layer] >= 0;
}

bool weight_stream_take(WeightStream *s, int64_t moe_layer, Tensor *gate_up, Tensor *down, Error *error) {
    StreamedLayer *layer = &s->layers[s->of_layer[moe_layer]];
    const size_t down_at = aligned(tensor_bytes(*gate_up)), n_bytes = down_at + tensor_bytes(*down);
    *layer = (StreamedLayer){gate_up, down, s->device->copies->host_alloc(n_bytes), down_at};
    if (!layer->host)
        return error_set(error, ERROR_UNAVAILABLE,
                         "streamed weights: expected %zu bytes of pinned memory beside %zu held: got none",
                         n_bytes, s->host_bytes);
    gate_up->data = layer->host;
    down->data = (char *)layer->host + down_at;
    s->host_bytes += n_bytes;
    if (n_bytes > s->buffer_bytes) s->buffer_bytes = n_bytes;
    return true;
}

bool weight_stream_place(WeightStream *s, size_t *n_bytes, Error *error) {
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
        layer->gate_up->data = data;
        layer->down->data = data + layer->down_at;
    }
    return true;
}

/* ---- passes ---- */
/* Behind the work of q so far, which may read the buffer. */
static void copy_layer(WeightStream *s, Queue *q, int64_t i) {
    const Device *device = s->device;
    const StreamedLayer *layer = &s->layers[i];
    Buffer *buffer = &s->buffers[i % N_BUFFERS];
    if (buffer->there == i) return;
    device->copies->mark_set(q, s->used);
    device->copies->mark_wait(s->copies, s->used);
    device->copies->copy(s->copies, *layer->gate_up, layer->host);
    device->copies->copy(s->copies, *layer->down, (char *)layer->host + layer->down_at);
    device->copies->mark_set(s->copies, buffer->copied);
    buffer->there = i;
    buffer->awaited = false;
    s->n_copies++;
}

void weight_stream_begin(WeightStream *s, Queue *q) {
    for (int64_t i = 0; s && i < N_BUFFERS && i < s->n_streamed; i++) copy_layer(s, q, i);
}

void weight_stream_need(WeightStream *s, Queue *q, int64_t moe_layer, bool back) {
    if (!weight_stream_has(s, moe_layer)) return;
    const int64_t i = s->of_layer[moe_layer], next = back ? i - 1 : i + 1;
    Buffer *buffer = &s->buffers[i % N_BUFFERS];
    copy_layer(s, q, i);
    if (!buffer->awaited) s->device->copies->mark_wait(q, buffer->copied);
    buffer->awaited = !q->failed_op; /* a queue that has failed waits for nothing */
    if (next >= 0 && next < s->n_streamed) copy_layer(s, q, next);
    if (s->copies->failed_op) queue_fail(q, s->copies->failed_op, "%s", s->copies->failure);
}

size_t weight_stream_host_bytes(const WeightStream *s) { return s ? s->host_bytes : 0; }
int64_t weight_stream_copies(const WeightStream *s) { return s ? s->n_copies : 0; }

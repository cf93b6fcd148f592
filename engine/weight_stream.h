/* Weights of experts that are copied into the device's memory ahead of use: from pinned memory of the host,
 * or from the peers of a group, each of which keeps its own experts of every layer.
 *
 * The s-th streamed layer always goes through buffer s % 2, so the tensors of its LayerWeights never move.
 * When a layer is needed, the next one of the same direction is copied beside its work; the work waits, on
 * the device, for its own layer alone, and the copy for the work that used its buffer before. At the turn of
 * a pass the last two layers are where they are wanted. placement_count_copies is the number of copies. On a
 * device that computes in the host's memory a layer of the peers is there when the call returns.
 *
 * From peers a copy is a collective: all ranks of the model must begin and need alike. */
#ifndef GATETAPE_WEIGHT_STREAM_H
#define GATETAPE_WEIGHT_STREAM_H
#include "../kernels/device.h"
#include "error.h"
#include "spread.h"

typedef struct WeightStream WeightStream;

/* False and an Error on a device that computes in the host's memory: there nothing is gained. */
bool weight_stream_possible(const Device *device, Error *error);
/* Of n_layers layers with experts those that placement_is_streamed says, spread->n_streamed of them; all of
 * them where weights travel (comm_use_device was called). NULL and an Error when out of memory, or, from the
 * host, when the device computes in the host's memory. */
WeightStream *weight_stream_new(const Device *device, int64_t n_layers, const Spread *spread, Error *error);
void weight_stream_free(WeightStream *stream); /* NULL: nothing */

/* Whether the moe_layer-th layer with experts is streamed; never when stream is NULL. */
bool weight_stream_has(const WeightStream *stream, int64_t moe_layer);
/* Memory for the two tensors of a streamed layer, this rank's experts of it, which get its addresses, to be
 * filled: pinned memory of the host; from peers the device's. */
bool weight_stream_take(WeightStream *stream, int64_t moe_layer, Tensor *gate_up, Tensor *down, Error *error);
/* After all layers were taken and filled: the tensors get the addresses of their buffers on the device, and,
 * from peers, all experts; *n_bytes of device memory more, what was taken included. */
bool weight_stream_place(WeightStream *stream, size_t *n_bytes, Error *error);

/* Before a pass on q: the first two layers are on their way. */
void weight_stream_begin(WeightStream *stream, Queue *q);
/* Before ops of q that read the layer: they will find it there. `back`: the layer below is next. Nothing for
 * a layer that is not streamed. */
void weight_stream_need(WeightStream *stream, Queue *q, int64_t moe_layer, bool back);
/* The calls of a whole pass, by a rank that has no prompts in it: forward, and back down to the
 * lowest_back-th layer with experts; n_layers: no way back. */
void weight_stream_serve(WeightStream *stream, Queue *q, int64_t lowest_back);

size_t weight_stream_host_bytes(const WeightStream *stream);
int64_t weight_stream_copies(const WeightStream *stream); /* layers copied so far */

#endif

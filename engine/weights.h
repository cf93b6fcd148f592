/* The weights of a checkpoint as tensors on a device, whatever the naming on disk: experts per file or
 * fused, sharded or not. Each tensor keeps its file's dtype. Opening lists every missing, extra and
 * mis-shaped tensor at once. */
#ifndef GATETAPE_WEIGHTS_H
#define GATETAPE_WEIGHTS_H
#include "../kernels/device.h"
#include "model_config.h"
#include "spread.h"
#include "weight_stream.h"

typedef struct {
    Tensor attention_norm, experts_norm; /* [D] before attention, before the experts or the MLP */
    Tensor query, key, value, output;    /* [H*C,D] [J*C,D] [J*Cv,D] [D,H*Cv] */
    Tensor query_bias, key_bias, value_bias, output_bias; /* absent: none */
    Tensor query_norm, key_norm;                          /* [C], or [H*C] and [J*C]; absent: none */
    Tensor router;                                        /* [E,D]; absent in a dense layer */
    /* [E,2F,D] gate first, [E,D,F]; dense layer: [2Fd,D], [D,Fd]. Where tokens travel (spread.h), of this
     * rank's experts alone: those of placement_experts in the place of E */
    Tensor gate_up, down;
} LayerWeights;

typedef struct {
    Tensor embedding;  /* [V,D] */
    Tensor final_norm; /* [D] */
    Tensor head;       /* [V,D]; the embedding itself when tied */
    LayerWeights *layers;
    int64_t n_layers;
    const Device *device;
    void **blocks; /* what the device lent, freed by weights_free */
    int64_t n_blocks, capacity;
    size_t n_bytes;       /* on the device */
    WeightStream *stream; /* layers whose gate_up and down come from the host or from peers; NULL: none */
} Weights;

/* Loads FOLDER's tensors. On the cost device nothing is read from disk but the headers. Non-finite weights
 * are an error that names the tensor, and its layer and expert. */
bool weights_load(const ModelConfig *config, const Device *device, Weights *weights, Error *error);
/* The same with the experts where `spread` says: of each layer those of its place alone are read, though all
 * names and shapes are checked; those of n_streamed layers lie in pinned memory of the host, or, where
 * weights travel, come from the peers (weight_stream.h). No collective. An Error where the device cannot
 * stream. */
bool weights_load_spread(const ModelConfig *config, const Device *device, const Spread *spread,
                         Weights *weights, Error *error);
/* The same shapes without any file, for plans from a config.json alone (cost device). */
bool weights_shapes(const ModelConfig *config, DType dtype, const Device *device, Weights *weights,
                    Error *error);
void weights_free(Weights *weights);

#endif

/* The weights of a checkpoint as tensors on a device, whatever the naming on disk: experts per file or
 * fused, sharded or not. Each tensor keeps its file's dtype. Opening lists every missing, extra and
 * mis-shaped tensor at once. */
#ifndef GATETAPE_WEIGHTS_H
#define GATETAPE_WEIGHTS_H
#include "../kernels/device.h"
#include "model_config.h"
#include "weight_stream.h"

typedef struct {
    Tensor attention_norm, experts_norm; /* [D] before attention, before the experts or the MLP */
    Tensor query, key, value, output;    /* [H*C,D] [J*C,D] [J*Cv,D] [D,H*Cv] */
    Tensor query_bias, key_bias, value_bias, output_bias; /* absent: none */
    Tensor query_norm, key_norm;                          /* [C], or [H*C] and [J*C]; absent: none */
    Tensor router;                                        /* [E,D]; absent in a dense layer */
    Tensor gate_up, down; /* [E,2F,D] gate first, [E,D,F]; dense layer: [2Fd,D], [D,Fd] */
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
    WeightStream *stream; /* layers with experts whose gate_up and down come from the host; NULL: none */
} Weights;

/* Loads FOLDER's tensors. On the cost device nothing is read from disk but the headers. Non-finite weights
 * are an error that names the tensor, and its layer and expert. */
bool weights_load(const ModelConfig *config, const Device *device, Weights *weights, Error *error);
/* The same with the experts of n_streamed layers in pinned memory of the host (weight_stream.h). An Error on
 * a device that computes in the host's memory. */
bool weights_load_streamed(const ModelConfig *config, const Device *device, int64_t n_streamed,
                           Weights *weights, Error *error);
/* The same shapes without any file, for plans from a config.json alone (cost device). */
bool weights_shapes(const ModelConfig *config, DType dtype, const Device *device, Weights *weights,
                    Error *error);
void weights_free(Weights *weights);

#endif

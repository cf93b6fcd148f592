/* Low-rank updates on a device: an adapter's numbers as one flat vector, what a layer's experts read of it,
 * and training on it with everything else frozen.
 *
 * Cells of one layer and projection form a group: a [N,R,in] and behind it b [N,out,R], R the largest rank
 * of the group. What a cell of lower rank lacks is zero and stays zero: its gradient is. */
#ifndef GATETAPE_LORA_H
#define GATETAPE_LORA_H
#include "../autograd/optimizer.h"
#include "adapter.h"
#include "model.h"

typedef struct {
    int64_t layer;
    Projection projection;
    int64_t first;                     /* element of the flat vector at which its a begins */
    int64_t n_a, n_b;                  /* elements of a, of b */
    int64_t n_cells, rank, first_cell; /* first_cell: of the adapter */
    Lora lora;                         /* on the device */
} LoraGroup;

/* Router rows of one layer. */
typedef struct {
    int64_t layer, first, n, first_row; /* element of the flat vector; rows; of the adapter */
    Tensor experts, rows;               /* on the device: [n] i32, [n,D] real */
} LoraRows;

struct LoraWeights {
    const Device *device;
    LoraGroup *groups; /* by layer, projection */
    LoraRows *rows;    /* by layer */
    int64_t n_groups, n_row_groups;
    int64_t n_values;  /* of the groups, then rows; the vector is padded with zeros to OPTIMIZER_COLUMNS */
    int64_t n_updates; /* elements before the rows */
    Tensor values;     /* real */
    void *fixed;       /* experts and scales of all groups */
};

/* On the model's device, in the reals of its compute. The adapter must fit the model (adapter_add checked
 * it). Caller frees; the model's `adapter` may point to it, and then every pass and generation has the
 * updates. */
bool lora_weights_make(const Adapter *adapter, const Model *model, LoraWeights *weights, Error *error);
void lora_weights_free(LoraWeights *weights);
/* A flat vector (the values, or gradients of them) back into the cells of an adapter like the one it was
 * made from. */
bool lora_weights_read(const LoraWeights *weights, Tensor vector, Adapter *to, Error *error);

/* ---- training ---- */
struct LoraTraining {
    const LoraWeights *weights;
    int64_t n_slots;
    Tensor slots; /* [n_slots * n_values] real: of each group a's [n_slots, n_a], then b's */
    Optimizer optimizer;
    Queue *queue;
};

/* For steps of at most n_examples examples. The weights must stay. Caller frees. */
bool lora_training_make(const LoraWeights *weights, int64_t n_examples, LoraTraining *training, Error *error);
void lora_training_free(LoraTraining *training);
/* After the passes of a step (PassOptions.training, examples numbered from 0 without a gap): the gradient of
 * all n_examples, into optimizer.grad, and its norm. An error when the norm is not finite: nothing has
 * changed then. */
bool lora_training_gather(LoraTraining *training, int64_t n_examples, double *norm, Error *error);
/* Its two parts: the sum of the counters alone, which is not waited for, and the norm of what is there. */
void lora_training_sum(LoraTraining *training, int64_t n_examples);
bool lora_training_norm(LoraTraining *training, double *norm, Error *error);
/* The step itself. */
bool lora_training_step(LoraTraining *training, const AdamwOptions *options, double rate, double norm,
                        Error *error);

/* ---- for the decoder ---- */
/* A pass's training: NULL: frozen; the tokens of its examples; the first one's number. */
typedef struct {
    const LoraTraining *training;
    Tensor offsets;
    int64_t first_example;
    Tensor dropout_keys; /* [T] i64; absent: none */
    float dropout_rate;
} LoraPass;
/* The decoder layer where the walk back of a pass with PassOptions.training ends, that layer walked too: the
 * lowest with an update or a router row, since nothing below it is wanted. So it follows from the adapter
 * alone, and a rank without examples in a pass knows it. The adapter is not empty. */
int64_t lora_lowest_layer(const LoraWeights *weights);
/* What a layer's experts read, and its router. False: nothing. */
bool lora_layer(const LoraWeights *weights, const LoraPass *pass, int64_t layer, ExpertUpdates *updates);
bool lora_router(const LoraWeights *weights, const LoraPass *pass, int64_t layer, RouterRows *rows);

#endif

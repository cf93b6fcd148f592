/* The tensors that a checkpoint must have: their names, shapes, and where their bytes go in Weights.
 *
 * One list is made from the config and the family's arch file; checking, taking memory and reading all
 * walk that list. Experts that a file stores one by one are slices of the fused tensors gate_up [E,2F,D]
 * and down [E,D,F]. */
#ifndef GATETAPE_TENSOR_NAMES_H
#define GATETAPE_TENSOR_NAMES_H
#include "arch.h"
#include "safetensors.h"
#include "weights.h"

enum { TENSOR_NAME_BYTES = 128 };

typedef struct {
    char name[TENSOR_NAME_BYTES];
    Tensor *whole; /* in Weights; its data is absent until memory is taken */
    int64_t first; /* element of the whole at which this tensor begins */
    int n_dims;    /* and shape: in the file */
    int64_t shape[3];
    int64_t layer, expert; /* -1: none */
} WantedTensor;

typedef struct {
    WantedTensor *entries;
    int64_t n, capacity;
} WantedTensors;

/* Fills the list and the shapes of weights' tensors (dtype for all; layers must be allocated). Where a
 * role has several names, the one that `set` has is taken; set may be NULL: shapes alone. Caller frees
 * entries. */
bool tensor_names_list(const ModelConfig *config, const Arch *arch, const TensorSet *set, DType dtype,
                       Weights *weights, WantedTensors *list, Error *error);

#endif

/* safetensors files: one file, or shards with model.safetensors.index.json, read by pread; and the writer.
 *
 * Opening checks everything that the reference reader checks: header size, dtypes, shape x dtype = length,
 * no hole, no overlap, file size; for shards also that the index and the files list the same tensors.
 * Names are hashed: a model may have 20,000 tensors. */
#ifndef GATETAPE_SAFETENSORS_H
#define GATETAPE_SAFETENSORS_H
#include "../kernels/tensor.h"
#include "error.h"
#include "io.h"

typedef struct {
    const char *name;       /* owned by the set */
    const char *dtype_name; /* as in the file, "BF16" */
    bool dtype_known;       /* one of Tensor's dtypes: F32 BF16 F16 I32 I64 F64 */
    DType dtype;
    int n_dims;
    int64_t shape[8];
    int file;        /* index of its file */
    uint64_t offset; /* of its first byte in the data of its file */
    uint64_t n_bytes;
} TensorEntry;

typedef struct TensorSet TensorSet;

/* A .safetensors file, or a model folder (model.safetensors, or the index and its shards). Caller closes. */
TensorSet *safetensors_open(const char *path, Error *error);
void safetensors_close(TensorSet *set);

int64_t safetensors_count(const TensorSet *set);
const TensorEntry *safetensors_entry(const TensorSet *set, int64_t i);        /* sorted by name */
const TensorEntry *safetensors_find(const TensorSet *set, const char *name);  /* NULL: none */
const char *safetensors_file(const TensorSet *set, const TensorEntry *entry); /* path of its file */
/* Reads a tensor's bytes [first, first + n_bytes) into `to`. */
bool safetensors_read(const TensorSet *set, const TensorEntry *entry, uint64_t first, void *to,
                      size_t n_bytes, Error *error);
/* Value of a __metadata__ key of the (first) file, or NULL. */
const char *safetensors_metadata(const TensorSet *set, const char *key);

/* ---- writing ---- */
typedef struct {
    const char *name;
    Tensor tensor; /* host memory, up to TENSOR_MAX_DIMS */
} NamedTensor;

/* One file in the reference writer's order and padding; metadata is pairs key, value, ... ({"format",
 * "pt"} is always added). Written under a temporary name, then renamed. */
bool safetensors_write(const char *path, const NamedTensor *tensors, int64_t n_tensors,
                       const char *const *metadata, int64_t n_pairs, Error *error);

#endif

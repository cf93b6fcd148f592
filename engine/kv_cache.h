/* Keys and values of tokens that were there before, for all layers. One block of the device, reserved for
 * the longest that every prompt may become: a row never moves, and attention finds a prompt's rows by its
 * first row and length. */
#ifndef GATETAPE_KV_CACHE_H
#define GATETAPE_KV_CACHE_H
#include "../kernels/device.h"
#include "model_config.h"

typedef struct {
    Tensor keys;   /* [L,rows,J*C] act */
    Tensor values; /* [L,rows,J*Cv] act */
    const Device *device;
} KvCache;

/* Bytes of a cache of so many rows. */
size_t kv_cache_bytes(const ModelConfig *config, DType act, int64_t n_rows);
/* Contents undefined. Caller closes. Error: not enough memory, with the bytes. */
bool kv_cache_open(KvCache *cache, const ModelConfig *config, const Device *device, DType act, int64_t n_rows,
                   Error *error);
void kv_cache_close(KvCache *cache);

#endif

/* One allocation; values lie behind the keys. */
#include "kv_cache.h"

static Tensor shape(const ModelConfig *config, DType act, int64_t n_rows, int64_t head_size) {
    return tensor_cube(NULL, act, config->n_layers, n_rows, config->n_kv_heads * head_size);
}

size_t kv_cache_bytes(const ModelConfig *config, DType act, int64_t n_rows) {
    return tensor_bytes(shape(config, act, n_rows, config->head_size)) +
           tensor_bytes(shape(config, act, n_rows, config->value_head_size));
}

bool kv_cache_open(KvCache *cache, const ModelConfig *config, const Device *device, DType act, int64_t n_rows,
                   Error *error) {
    *cache = (KvCache){shape(config, act, n_rows, config->head_size),
                       shape(config, act, n_rows, config->value_head_size), device};
    char *block = device->alloc(kv_cache_bytes(config, act, n_rows));
    if (!block) return error_out_of_memory(error, "the key/value cache", kv_cache_bytes(config, act, n_rows));
    cache->keys.data = block;
    cache->values.data = block + tensor_bytes(cache->keys);
    return true;
}

void kv_cache_close(KvCache *cache) {
    if (cache->device) cache->device->free(cache->keys.data);
    *cache = (KvCache){0};
}

/* Writing safetensors in the reference writer's order: widest dtype first, then by name; the header padded
 * with spaces so that the data begins at a multiple of 8. */
#include "../kernels/check.h"
#include "alloc.h"
#include "safetensors.h"
#include "text.h"
#include <stdlib.h>
#include <string.h>

static const char *file_dtype(DType dtype) {
    static const char *const names[N_DTYPES] = {"F32", "BF16", "F16", "I32", "I64", "F64"};
    return names[dtype];
}

/* Place of a dtype in the reference's order, widest last. */
static int dtype_order(DType dtype) {
    static const int order[N_DTYPES] = {[DTYPE_F16] = 0, [DTYPE_BF16] = 1, [DTYPE_I32] = 2,
                                        [DTYPE_F32] = 3, [DTYPE_F64] = 4,  [DTYPE_I64] = 5};
    return order[dtype];
}

static int by_file_order(const void *a, const void *b) {
    const NamedTensor *x = *(const NamedTensor *const *)a, *y = *(const NamedTensor *const *)b;
    int first = dtype_order(y->tensor.dtype) - dtype_order(x->tensor.dtype);
    return first ? first : strcmp(x->name, y->name);
}

static void put_pair(Text *header, const char *key, const char *value) {
    text_put_json(header, key, strlen(key));
    text_put_string(header, ":");
    text_put_json(header, value, strlen(value));
}

static void put_entry(Text *header, const NamedTensor *named, uint64_t begin) {
    text_put_string(header, ",");
    text_put_json(header, named->name, strlen(named->name));
    text_format(header, ":{\"dtype\":\"%s\",\"shape\":[", file_dtype(named->tensor.dtype));
    for (int d = 0; d < named->tensor.n_dims; d++)
        text_format(header, "%s%lld", d ? "," : "", (long long)named->tensor.shape[d]);
    text_format(header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
                (unsigned long long)(begin + tensor_bytes(named->tensor)));
}

static bool write_file(const char *path, const Text *header, const NamedTensor *const *order, int64_t n,
                       Error *error) {
    IoWriter writer;
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)header->length >> (8 * i));
    if (!io_writer_open(&writer, path, error)) return false;
    bool fine = io_writer_put(&writer, length, 8, error) &&
                io_writer_put(&writer, header->bytes, header->length, error);
    for (int64_t i = 0; fine && i < n; i++)
        fine = io_writer_put(&writer, order[i]->tensor.data, tensor_bytes(order[i]->tensor), error);
    if (fine) return io_writer_finish(&writer, error);
    io_writer_abandon(&writer);
    return false;
}

bool safetensors_write(const char *path, const NamedTensor *tensors, int64_t n_tensors,
                       const char *const *metadata, int64_t n_pairs, Error *error) {
    const NamedTensor **order = mem_zeroed((size_t)n_tensors, sizeof *order);
    if (!order) return error_out_of_memory(error, path, (size_t)n_tensors * sizeof *order);
    for (int64_t i = 0; i < n_tensors; i++) {
        check(tensors[i].tensor.data || !tensor_count(tensors[i].tensor), "%s", tensors[i].name);
        order[i] = &tensors[i];
    }
    qsort(order, (size_t)n_tensors, sizeof *order, by_file_order);
    Text header = {0};
    text_put_string(&header, "{\"__metadata__\":{");
    put_pair(&header, "format", "pt");
    for (int64_t i = 0; i < n_pairs; i++) {
        text_put_string(&header, ",");
        put_pair(&header, metadata[2 * i], metadata[2 * i + 1]);
    }
    text_put_string(&header, "}");
    uint64_t begin = 0;
    for (int64_t i = 0; i < n_tensors; i++) {
        put_entry(&header, order[i], begin);
        begin += tensor_bytes(order[i]->tensor);
    }
    text_put_string(&header, "}");
    while (header.length % 8 && !header.failed) text_put_string(&header, " ");
    bool fine = header.failed ? error_out_of_memory(error, path, header.length)
                              : write_file(path, &header, order, n_tensors, error);
    text_free(&header);
    mem_free(order);
    return fine;
}

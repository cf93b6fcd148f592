/* Tensor: a typed, contiguous, row-major view of memory. It never owns what it points to.
 *
 * Shape letters, used in every comment of the project:
 *   T tokens           D hidden size         H query heads        J key/value heads   C head size
 *   L layers           E experts             K experts per token  F expert hidden size
 *   V vocabulary       P prompts             M expert rows (T * K) R LoRA rank
 * A linear weight W is [out, in]; y = x W^T. An absent tensor (data == NULL) means "not given" or "not
 * wanted". */
#ifndef GATETAPE_TENSOR_H
#define GATETAPE_TENSOR_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_I32, DTYPE_I64, DTYPE_F64, N_DTYPES } DType;

enum { TENSOR_MAX_DIMS = 4 };

typedef struct {
    void *data; /* NULL: absent */
    DType dtype;
    int n_dims;
    int64_t shape[TENSOR_MAX_DIMS];
} Tensor;

/* Bytes of one element. */
static inline size_t dtype_bytes(DType t) {
    static const uint8_t bytes[N_DTYPES] = {4, 2, 2, 4, 8, 8};
    return bytes[t];
}

static inline const char *dtype_name(DType t) {
    static const char *const names[N_DTYPES] = {"f32", "bf16", "f16", "i32", "i64", "f64"};
    return names[t];
}

static inline bool tensor_present(Tensor t) { return t.data != NULL; }

static inline int64_t tensor_count(Tensor t) {
    int64_t n = 1;
    for (int i = 0; i < t.n_dims; i++) n *= t.shape[i];
    return n;
}

static inline size_t tensor_bytes(Tensor t) { return (size_t)tensor_count(t) * dtype_bytes(t.dtype); }

/* The last extent: the row length of a matrix, the size of a vector. */
static inline int64_t tensor_columns(Tensor t) { return t.n_dims ? t.shape[t.n_dims - 1] : 1; }

/* The product of all extents but the last. */
static inline int64_t tensor_rows(Tensor t) {
    int64_t n = 1;
    for (int i = 0; i + 1 < t.n_dims; i++) n *= t.shape[i];
    return n;
}

static inline Tensor tensor_vector(void *data, DType dtype, int64_t n) {
    return (Tensor){.data = data, .dtype = dtype, .n_dims = 1, .shape = {n}};
}

static inline Tensor tensor_matrix(void *data, DType dtype, int64_t rows, int64_t columns) {
    return (Tensor){.data = data, .dtype = dtype, .n_dims = 2, .shape = {rows, columns}};
}

static inline Tensor tensor_cube(void *data, DType dtype, int64_t a, int64_t b, int64_t c) {
    return (Tensor){.data = data, .dtype = dtype, .n_dims = 3, .shape = {a, b, c}};
}

/* The same memory seen with another shape of as many elements. */
static inline Tensor tensor_as_matrix(Tensor t, int64_t rows, int64_t columns) {
    return tensor_matrix(t.data, t.dtype, rows, columns);
}

static inline Tensor tensor_as_cube(Tensor t, int64_t a, int64_t b, int64_t c) {
    return tensor_cube(t.data, t.dtype, a, b, c);
}

/* Entries [first, first + n) along the first dimension. */
static inline Tensor tensor_slice(Tensor t, int64_t first, int64_t n) {
    size_t stride = dtype_bytes(t.dtype);
    for (int i = 1; i < t.n_dims; i++) stride *= (size_t)t.shape[i];
    if (t.data) t.data = (char *)t.data + (size_t)first * stride;
    t.shape[0] = n;
    return t;
}

/* Entry i along the first dimension, with one dimension less. */
static inline Tensor tensor_entry(Tensor t, int64_t i) {
    t = tensor_slice(t, i, 1);
    t.n_dims--;
    for (int d = 0; d < t.n_dims; d++) t.shape[d] = t.shape[d + 1];
    return t;
}

#endif

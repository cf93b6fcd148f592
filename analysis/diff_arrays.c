/* Two files of arrays, a piece at a time. */
#include "diff_parts.h"
#include "../engine/alloc.h"
#include "../engine/safetensors.h"
#include <math.h>
#include <string.h>

enum { PIECE = 1 << 16 }; /* elements */

static double element(DType dtype, const void *from, int64_t i) {
    switch (dtype) {
    case DTYPE_F32: return ((const float *)from)[i];
    case DTYPE_F64: return ((const double *)from)[i];
    case DTYPE_I32: return ((const int32_t *)from)[i];
    case DTYPE_I64: return (double)((const int64_t *)from)[i];
    default: return ((const uint16_t *)from)[i]; /* 16-bit floats: their bits */
    }
}

/* "3, 0, 7" of element i. */
static void place_of(const TensorEntry *e, int64_t i, char place[DIFF_PLACE]) {
    int64_t at[8];
    size_t used = 0;
    for (int d = e->n_dims; d-- > 0; i /= e->shape[d]) at[d] = i % e->shape[d];
    place[0] = '\0';
    for (int d = 0; d < e->n_dims; d++)
        used += (size_t)snprintf(place + used, DIFF_PLACE - used, "%s%lld", d ? ", " : "[", (long long)at[d]);
    if (used) snprintf(place + used, DIFF_PLACE - used, "]");
}

static void put_integers(Differences *to, const char *name, const char *place, int64_t a, int64_t b) {
    char one[DIFF_VALUE], other[DIFF_VALUE];
    snprintf(one, sizeof one, "%lld", (long long)a);
    snprintf(other, sizeof other, "%lld", (long long)b);
    differences_put_texts(to, name, place, one, other);
}

static void compare_piece(const TensorEntry *e, const char *a, const char *b, int64_t first, int64_t n,
                          Differences *to) {
    size_t size = e->dtype_known ? dtype_bytes(e->dtype) : 1;
    char place[DIFF_PLACE];
    for (int64_t i = 0; i < n; i++) {
        if (!memcmp(a + (size_t)i * size, b + (size_t)i * size, size)) {
            differences_count(to, e->name, 1);
            continue;
        }
        place_of(e, first + i, place);
        double x = e->dtype_known ? element(e->dtype, a, i) : (unsigned char)a[i],
               y = e->dtype_known ? element(e->dtype, b, i) : (unsigned char)b[i];
        if (e->dtype_known && e->dtype == DTYPE_I64 && x == y) /* apart by less than f64 can tell */
            put_integers(to, e->name, place, ((const int64_t *)(const void *)a)[i],
                         ((const int64_t *)(const void *)b)[i]);
        else
            differences_put_numbers(to, e->name, place, x, y);
    }
}

static bool same_shape(const TensorEntry *a, const TensorEntry *b) {
    return !strcmp(a->dtype_name, b->dtype_name) && a->n_dims == b->n_dims && a->n_bytes == b->n_bytes &&
           !memcmp(a->shape, b->shape, (size_t)a->n_dims * sizeof *a->shape);
}

static void describe(const TensorEntry *e, char text[DIFF_VALUE]) {
    size_t used = (size_t)snprintf(text, DIFF_VALUE, "%.8s", e->dtype_name);
    for (int d = 0; d < e->n_dims && used < DIFF_VALUE; d++)
        used += (size_t)snprintf(text + used, DIFF_VALUE - used, " %lld", (long long)e->shape[d]);
}

static bool compare_tensor(const TensorSet *a, const TensorSet *b, const TensorEntry *x, const TensorEntry *y,
                           char *room[2], Differences *to, Error *error) {
    if (!same_shape(x, y)) {
        char one[DIFF_VALUE], other[DIFF_VALUE];
        describe(x, one);
        describe(y, other);
        differences_put(to, x->name, "", one, other);
        return true;
    }
    size_t size = x->dtype_known ? dtype_bytes(x->dtype) : 1;
    int64_t n_all = (int64_t)(x->n_bytes / size);
    for (int64_t first = 0; first < n_all; first += PIECE) {
        int64_t n = n_all - first < PIECE ? n_all - first : PIECE;
        size_t bytes = (size_t)n * size;
        if (!safetensors_read(a, x, (uint64_t)first * size, room[0], bytes, error) ||
            !safetensors_read(b, y, (uint64_t)first * size, room[1], bytes, error))
            return false;
        if (memcmp(room[0], room[1], bytes) != 0)
            compare_piece(x, room[0], room[1], first, n, to);
        else
            differences_count(to, x->name, n);
    }
    return true;
}

bool diff_arrays(const char *a, const char *b, Differences *to, Error *error) {
    TensorSet *one = safetensors_open(a, error), *other = one ? safetensors_open(b, error) : NULL;
    char *room[2] = {mem_alloc(8 * PIECE), mem_alloc(8 * PIECE)};
    bool ok = other && ((room[0] && room[1]) || error_out_of_memory(error, "arrays", 16 * PIECE));
    for (int64_t i = 0; ok && i < safetensors_count(one); i++) {
        const TensorEntry *x = safetensors_entry(one, i), *y = safetensors_find(other, x->name);
        if (y)
            ok = compare_tensor(one, other, x, y, room, to, error);
        else
            differences_put(to, x->name, "", "an array", NULL);
    }
    for (int64_t i = 0; ok && i < safetensors_count(other); i++) {
        const TensorEntry *y = safetensors_entry(other, i);
        if (!safetensors_find(one, y->name)) differences_put(to, y->name, "", NULL, "an array");
    }
    mem_free(room[0]);
    mem_free(room[1]);
    if (one) safetensors_close(one);
    if (other) safetensors_close(other);
    return ok;
}

/* Where the row of a key begins: hashes and offsets, sorted once. */
#include "diff_parts.h"
#include "../engine/alloc.h"
#include <stdlib.h>

uint64_t row_hash(uint64_t hash, const char *text) {
    if (!hash) hash = UINT64_C(14695981039346656037);
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * UINT64_C(1099511628211);
    return (hash ^ 0x1f) * UINT64_C(1099511628211); /* a text ends: "ab", "c" is not "a", "bc" */
}

bool row_index_put(RowIndex *index, uint64_t hash, uint64_t offset, Error *error) {
    if (index->n == index->capacity) {
        int64_t more = index->capacity ? 2 * index->capacity : 1024;
        RowEntry *list = mem_resize(index->list, (size_t)more, sizeof *list);
        if (!list) return error_out_of_memory(error, "keys of rows", (size_t)more * sizeof *list);
        index->list = list;
        index->capacity = more;
    }
    index->list[index->n++] = (RowEntry){hash, offset};
    return true;
}

static int compare_rows(const void *a, const void *b) {
    const RowEntry *x = a, *y = b;
    if (x->hash != y->hash) return x->hash < y->hash ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

bool row_index_sort(RowIndex *index, Error *error) {
    if (index->n) qsort(index->list, (size_t)index->n, sizeof *index->list, compare_rows);
    index->n_taken = mem_zeroed((size_t)index->n + 1, sizeof *index->n_taken);
    return index->n_taken ||
           error_out_of_memory(error, "keys of rows", (size_t)index->n * sizeof *index->n_taken);
}

bool row_index_take(RowIndex *index, uint64_t hash, uint64_t *offset) {
    int64_t low = 0, high = index->n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (index->list[middle].hash < hash)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == index->n || index->list[low].hash != hash) return false;
    int64_t at = low + index->n_taken[low];
    if (at >= index->n || index->list[at].hash != hash) return false;
    index->n_taken[low]++;
    *offset = index->list[at].offset;
    return true;
}

int64_t row_index_left(const RowIndex *index, uint64_t *first) {
    int64_t left = 0;
    for (int64_t begin = 0, end; begin < index->n; begin = end) {
        for (end = begin; end < index->n && index->list[end].hash == index->list[begin].hash;) end++;
        int64_t n = end - begin - index->n_taken[begin];
        uint64_t offset = n ? index->list[begin + index->n_taken[begin]].offset : 0;
        if (n && (!left || offset < *first)) *first = offset;
        left += n;
    }
    return left;
}

void row_index_free(RowIndex *index) {
    mem_free(index->list);
    mem_free(index->n_taken);
    *index = (RowIndex){0};
}

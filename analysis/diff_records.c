/* Lines of a file one at a time, from any offset, and where the row of a key begins. */
#include "diff_parts.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include <stdlib.h>
#include <string.h>

enum { ROOM = 1 << 16, MAX_RECORD = 1 << 28 };

struct Records {
    IoFile file;
    bool csv;
    char *buffer;
    size_t capacity, begin, end; /* what is buffered and not given out: [begin, end) */
    uint64_t offset;             /* in the file, of buffer[0] */
};

Records *records_open(const char *path, bool csv, Error *error) {
    Records *r = mem_zeroed(1, sizeof *r);
    char *buffer = r ? mem_alloc(ROOM + 1) : NULL;
    if (!buffer) error_out_of_memory(error, "lines of a file", ROOM);
    if (!buffer || !io_open(&r->file, path, error)) {
        mem_free(buffer);
        mem_free(r);
        return NULL;
    }
    r->csv = csv, r->buffer = buffer, r->capacity = ROOM;
    return r;
}

void records_close(Records *r) {
    if (!r) return;
    io_close(&r->file);
    mem_free(r->buffer);
    mem_free(r);
}

void records_seek(Records *r, uint64_t offset) {
    if (offset >= r->offset && offset - r->offset >= r->begin && offset - r->offset <= r->end) {
        r->begin = (size_t)(offset - r->offset);
        return;
    }
    r->begin = r->end = 0;
    r->offset = offset;
}

/* Where the record that begins at `begin` ends, of what is buffered; `end` when its end is not there. */
static size_t find_end(const Records *r) {
    if (!r->csv) {
        const char *at = memchr(r->buffer + r->begin, '\n', r->end - r->begin);
        return at ? (size_t)(at - r->buffer) : r->end;
    }
    bool quoted = false;
    for (size_t i = r->begin; i < r->end; i++) {
        if (r->buffer[i] == '"') quoted = !quoted;
        if (r->buffer[i] == '\n' && !quoted) return i;
    }
    return r->end;
}

/* Reads on behind what is buffered, with more room where the record fills it. */
static bool read_more(Records *r, Error *error) {
    memmove(r->buffer, r->buffer + r->begin, r->end - r->begin);
    r->offset += r->begin, r->end -= r->begin, r->begin = 0;
    if (r->end == r->capacity) {
        if (r->capacity >= MAX_RECORD)
            return error_set(error, ERROR_BAD_INPUT, "%s: expected rows of at most %d bytes", r->file.path,
                             MAX_RECORD);
        char *buffer = mem_resize(r->buffer, 2 * r->capacity + 1, 1);
        if (!buffer) return error_out_of_memory(error, "a row", 2 * r->capacity);
        r->buffer = buffer;
        r->capacity *= 2;
    }
    uint64_t at = r->offset + r->end, left = r->file.n_bytes - at;
    size_t n = left < r->capacity - r->end ? (size_t)left : r->capacity - r->end;
    if (!io_read_at(&r->file, at, r->buffer + r->end, n, error)) return false;
    r->end += n;
    return true;
}

bool records_next(Records *r, char **line, size_t *length, uint64_t *offset, Error *error) {
    *line = NULL;
    size_t end = find_end(r);
    while (end == r->end && r->offset + r->end < r->file.n_bytes) {
        if (!read_more(r, error)) return false;
        end = find_end(r);
    }
    if (r->begin == r->end) return true;
    *line = r->buffer + r->begin;
    *length = end - r->begin;
    *offset = r->offset + r->begin;
    r->begin = end < r->end ? end + 1 : end;
    if (*length && (*line)[*length - 1] == '\r') --*length;
    (*line)[*length] = '\0';
    return true;
}

/* ---- rows by key ---- */
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

/* Blocks are read at offsets; what hangs over the last whole record is read again with the next block. */
#include "report_records.h"
#include "../engine/alloc.h"
#include <string.h>

enum { BLOCK = 256 << 10, MOST_BLOCK = 256 << 20 };

bool records_open(Records *records, const char *path, bool csv, Error *error) {
    *records = (Records){.quoted = csv};
    return io_open(&records->file, path, error);
}

void records_close(Records *records) {
    if (records->file.path) io_close(&records->file);
    mem_free(records->bytes);
    mem_free(records->header);
    *records = (Records){0};
}

/* Behind the last record that ends in the block; 0: none does. A doubled quote opens and closes again. */
static size_t last_end(const char *bytes, size_t n, bool quoted) {
    size_t end = 0;
    bool inside = false;
    for (size_t i = 0; i < n; i++) {
        if (quoted && bytes[i] == '"') inside = !inside;
        if (bytes[i] == '\n' && !inside) end = i + 1;
    }
    return end;
}

static bool reserve(Records *r, size_t n, Error *error) {
    if (n <= r->capacity) return true;
    char *bytes = mem_resize(r->bytes, n, 1);
    if (!bytes) return error_out_of_memory(error, r->file.path, n);
    r->bytes = bytes;
    r->capacity = n;
    return true;
}

/* The next whole records into bytes, behind `keep` bytes of room. */
static bool next_block(Records *r, size_t keep, Error *error) {
    const uint64_t left = r->file.n_bytes - r->offset;
    r->length = 0;
    for (size_t want = BLOCK; left; want *= 2) {
        const size_t n = want < left ? want : (size_t)left;
        if (want > MOST_BLOCK)
            return error_set(error, ERROR_BAD_INPUT,
                             "%s: expected records of at most %d bytes: got a longer one", r->file.path,
                             MOST_BLOCK);
        if (!reserve(r, keep + n + 1, error) || !io_read_at(&r->file, r->offset, r->bytes + keep, n, error))
            return false;
        const size_t end = n == left ? n : last_end(r->bytes + keep, n, r->quoted);
        if (!end) continue;
        r->length = end;
        r->offset += end;
        r->bytes[keep + end] = '\0';
        return true;
    }
    return true;
}

bool records_next_lines(Records *r, const char **lines, size_t *length, Error *error) {
    if (!next_block(r, 0, error)) return false;
    *lines = r->bytes;
    *length = r->length;
    return true;
}

/* The header, once; it stays the first record of every later block. */
static bool keep_header(Records *r, Error *error) {
    bool inside = false;
    size_t n = 0;
    while (n < r->length && (r->bytes[n] != '\n' || inside)) inside ^= r->bytes[n++] == '"';
    r->header = mem_copy_text(r->bytes, n < r->length ? n + 1 : n);
    return r->header != NULL || error_out_of_memory(error, r->file.path, n);
}

static int64_t count_lines(const char *bytes, size_t n) {
    int64_t lines = 0;
    for (size_t i = 0; i < n; i++) lines += bytes[i] == '\n';
    return lines;
}

static bool parse_block(Records *r, Csv *rows, Error *error) {
    const bool first = r->header == NULL;
    if (first && !keep_header(r, error)) return false;
    const size_t keep = first ? 0 : strlen(r->header);
    if (!first) memcpy(r->bytes, r->header, keep);
    if (!csv_parse(r->bytes, keep + r->length, r->file.path, rows, error)) return false;
    const int64_t before = first ? 0 : r->n_lines - count_lines(r->header, keep);
    for (int64_t i = 0; i < rows->n_rows; i++) rows->lines[i] += before;
    r->n_lines += count_lines(r->bytes + keep, r->length);
    return true;
}

bool records_next_rows(Records *r, Csv *rows, Error *error) {
    *rows = (Csv){0};
    do { /* a header may fill the first block alone */
        csv_free(rows);
        if (!next_block(r, r->header ? strlen(r->header) : 0, error)) return false;
        if (r->length && !parse_block(r, rows, error)) return false;
    } while (r->length && !rows->n_rows);
    return true;
}

/* A window of the file moves on as records are asked for. */
#include "records.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/text.h"
#include <string.h>

enum { ROOM = 1 << 16, MAX_RECORD = 1 << 28, TABLE = 256 << 10 };

struct Records {
    IoFile file;
    bool csv;
    char *buffer;
    size_t capacity, begin, end; /* what is buffered and not given out: [begin, end) */
    uint64_t offset;             /* in the file, of buffer[0] */
    char *header;                /* records_next_rows: the table's */
    int64_t n_lines;             /* the same: of the file, behind the last record */
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
    mem_free(r->header);
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

/* ---- tables ---- */
static int64_t count_lines(const char *text, size_t n) {
    int64_t lines = 1;
    for (size_t i = 0; i < n; i++) lines += text[i] == '\n';
    return lines;
}

static bool read_header(Records *r, Error *error) {
    char *line;
    size_t length;
    uint64_t offset;
    if (!records_next(r, &line, &length, &offset, error)) return false;
    if (!line) return true;
    r->n_lines = count_lines(line, length);
    r->header = mem_copy_text(line, length);
    return r->header != NULL || error_out_of_memory(error, r->file.path, length);
}

bool records_next_rows(Records *r, Csv *rows, Error *error) {
    *rows = (Csv){0};
    if (!r->header && !read_header(r, error)) return false;
    if (!r->header) return true;
    Text text = {0};
    text_put_string(&text, r->header);
    const size_t head = text.length;
    const int64_t before = r->n_lines - count_lines(text.bytes, head);
    bool ok = true;
    while (ok && text.length < TABLE) {
        char *line;
        size_t length;
        uint64_t offset;
        ok = records_next(r, &line, &length, &offset, error);
        if (!ok || !line) break;
        r->n_lines += count_lines(line, length);
        text_put_string(&text, "\n");
        text_put(&text, line, length);
        ok = !text.failed || error_out_of_memory(error, r->file.path, text.length);
    }
    ok = ok && (text.length == head || csv_parse(text.bytes, text.length, r->file.path, rows, error));
    for (int64_t i = 0; ok && i < rows->n_rows; i++) rows->lines[i] += before;
    text_free(&text);
    return ok;
}

/* The CSV reader. Fields are unquoted into one block as long as the text (a field and its NUL never take more
 * bytes than it had with its comma or line end), and found again by pointer and length: one pass, three
 * allocations that grow. Lines are counted as they pass, also those inside of quotes. */
#include "csv.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/text.h"
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COLUMNS = 10000 };

typedef struct {
    const char *at, *end;
    char *to; /* the next free byte of csv->bytes */
    int64_t line;
    int64_t n_fields, fields_capacity, rows_capacity; /* fields: header included */
    Csv *csv;
    Error *error;
} Reader;

static bool reader_fail(Reader *r, int64_t line, const char *what) {
    return error_set(r->error, ERROR_BAD_INPUT, "%s:%lld: %s", r->csv->file, (long long)line, what);
}

/* Room for one more field; the array doubles. */
static bool reader_put(Reader *r, const char *begin) {
    if (r->n_fields == r->fields_capacity) {
        int64_t more = r->fields_capacity ? 2 * r->fields_capacity : 64;
        CsvField *fields = mem_resize(r->csv->fields, (size_t)more, sizeof *fields);
        if (!fields) return error_out_of_memory(r->error, "CSV fields", (size_t)more * sizeof *fields);
        r->csv->fields = fields;
        r->fields_capacity = more;
    }
    r->csv->fields[r->n_fields++] = (CsvField){begin, (size_t)(r->to - begin)};
    *r->to++ = 0;
    return true;
}

/* A field in quotes; *at is behind the opening one. Ends behind the closing one. */
static bool read_quoted(Reader *r) {
    int64_t opened = r->line;
    while (r->at < r->end) {
        char c = *r->at++;
        if (c == '"') {
            if (r->at == r->end || *r->at != '"') {
                bool ends = r->at == r->end || *r->at == ',' || *r->at == '\n' || *r->at == '\r';
                return ends || reader_fail(r, r->line,
                                           "expected a comma or line end after a closing quote: got text");
            }
            r->at++;
        }
        if (c == '\n') r->line++;
        *r->to++ = c;
    }
    return reader_fail(r, opened, "expected a closing quote: got the end of the file");
}

static bool read_plain(Reader *r) {
    while (r->at < r->end && *r->at != ',' && *r->at != '\n' && *r->at != '\r') {
        if (*r->at == '"')
            return reader_fail(r, r->line, "expected quotes around a field that contains a quote");
        *r->to++ = *r->at++;
    }
    return true;
}

/* One line of fields; *n_fields of them. Leaves *at behind the line end. */
static bool read_record(Reader *r, int64_t *n_fields) {
    *n_fields = 0;
    for (;;) {
        char *begin = r->to;
        bool quoted = r->at < r->end && *r->at == '"';
        if (quoted) r->at++;
        if (!(quoted ? read_quoted(r) : read_plain(r))) return false;
        if (!reader_put(r, begin)) return false;
        if (++*n_fields > MAX_COLUMNS)
            return reader_fail(r, r->line, "expected at most 10000 fields in a line");
        if (r->at == r->end) return true;
        char c = *r->at++;
        if (c == ',') continue;
        if (c == '\r' && (r->at == r->end || *r->at++ != '\n'))
            return reader_fail(r, r->line, "expected a line feed after a carriage return");
        r->line++;
        return true;
    }
}

static bool check_names(const Csv *csv, Error *error) {
    for (int64_t i = 0; i < csv->n_columns; i++) {
        if (!csv->names[i].length)
            return error_set(error, ERROR_BAD_INPUT, "%s:1: expected a name for column %lld: got nothing",
                             csv->file, (long long)i + 1);
        for (int64_t j = 0; j < i; j++)
            if (!strcmp(csv->names[i].text, csv->names[j].text))
                return error_set(error, ERROR_BAD_INPUT, "%s:1: expected unique column names: got %s twice",
                                 csv->file, csv->names[i].text);
    }
    return true;
}

/* The header is moved out of the fields, so that field (0, 0) is the first row's. */
static bool take_header(Reader *r) {
    Csv *csv = r->csv;
    if (!read_record(r, &csv->n_columns)) return false;
    csv->names = mem_alloc((size_t)csv->n_columns * sizeof *csv->names);
    if (!csv->names)
        return error_out_of_memory(r->error, "CSV header", (size_t)csv->n_columns * sizeof *csv->names);
    memcpy(csv->names, csv->fields, (size_t)csv->n_columns * sizeof *csv->names);
    r->n_fields = 0;
    return check_names(csv, r->error);
}

static bool read_rows(Reader *r) {
    Csv *csv = r->csv;
    while (r->at < r->end) {
        if (csv->n_rows == r->rows_capacity) {
            int64_t more = r->rows_capacity ? 2 * r->rows_capacity : 64;
            int64_t *lines = mem_resize(csv->lines, (size_t)more, sizeof *lines);
            if (!lines) return error_out_of_memory(r->error, "CSV rows", (size_t)more * sizeof *lines);
            csv->lines = lines;
            r->rows_capacity = more;
        }
        int64_t n, line = r->line;
        if (!read_record(r, &n)) return false;
        if (n != csv->n_columns)
            return error_set(r->error, ERROR_BAD_INPUT,
                             "%s:%lld: expected %lld fields as in the header: got %lld", csv->file,
                             (long long)line, (long long)csv->n_columns, (long long)n);
        csv->lines[csv->n_rows++] = line;
    }
    return true;
}

static bool check_bytes(const char *text, size_t length, const char *file, Error *error) {
    size_t bad = 0;
    const char *nul = length ? memchr(text, 0, length) : NULL;
    if (nul)
        return error_set(error, ERROR_BAD_INPUT, "%s: byte %zu: expected text: got NUL", file,
                         (size_t)(nul - text));
    if (!text_is_utf8(text, length, &bad))
        return error_set(error, ERROR_BAD_INPUT, "%s: byte %zu: expected UTF-8: got 0x%02x", file, bad,
                         (unsigned)(unsigned char)text[bad]);
    return true;
}

bool csv_parse(const char *text, size_t length, const char *file, Csv *csv, Error *error) {
    *csv = (Csv){0};
    if (!check_bytes(text, length, file, error)) return false;
    if (length >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) text += 3, length -= 3;
    if (!length)
        return error_set(error, ERROR_BAD_INPUT, "%s: expected a header line: got an empty file", file);
    csv->file = mem_copy_text(file, strlen(file));
    csv->bytes = mem_alloc(length + 1);
    Reader r = {.at = text, .end = text + length, .to = csv->bytes, .line = 1, .csv = csv, .error = error};
    bool ok = (csv->file && csv->bytes) || error_out_of_memory(error, "CSV text", length + 1);
    ok = ok && take_header(&r) && read_rows(&r);
    if (!ok) csv_free(csv);
    return ok;
}

bool csv_read(const char *path, size_t max_bytes, Csv *csv, Error *error) {
    *csv = (Csv){0};
    size_t n = 0;
    char *text = io_read_all(path, max_bytes, &n, error);
    if (!text) return false;
    bool ok = csv_parse(text, n, path, csv, error);
    mem_free(text);
    return ok;
}

void csv_free(Csv *csv) {
    mem_free(csv->names);
    mem_free(csv->fields);
    mem_free(csv->lines);
    mem_free(csv->file);
    mem_free(csv->bytes);
    *csv = (Csv){0};
}

int64_t csv_find_column(const Csv *csv, const char *name) {
    for (int64_t i = 0; i < csv->n_columns; i++)
        if (!strcmp(csv->names[i].text, name)) return i;
    return -1;
}

bool csv_need_column(const Csv *csv, const char *name, int64_t *column, Error *error) {
    *column = csv_find_column(csv, name);
    if (*column >= 0) return true;
    char found[600] = "";
    size_t used = 0;
    for (int64_t i = 0; i < csv->n_columns && used < sizeof found - 1; i++) {
        int n = snprintf(found + used, sizeof found - used, "%s%s", i ? ", " : "", csv->names[i].text);
        used += n > 0 ? (size_t)n : 0;
    }
    return error_set(error, ERROR_BAD_INPUT, "%s:1: expected a column %s: got %s", csv->file, name, found);
}

CsvField csv_field(const Csv *csv, int64_t row, int64_t column) {
    return csv->fields[row * csv->n_columns + column];
}

bool csv_error(const Csv *csv, int64_t row, int64_t column, Error *error, const char *format, ...) {
    char what[1000];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return error_set(error, ERROR_BAD_INPUT, "%s:%lld: column %s: %s", csv->file, (long long)csv->lines[row],
                     csv->names[column].text, what);
}

bool csv_number(const Csv *csv, int64_t row, int64_t column, double *value, Error *error) {
    CsvField field = csv_field(csv, row, column);
    char *end = NULL;
    bool starts =
        field.length && strchr("-0123456789", field.text[0]); /* strtod takes spaces, "inf" and "nan" too */
    *value = starts ? strtod(field.text, &end) : 0;
    if (!starts || end != field.text + field.length || !isfinite(*value) || strpbrk(field.text, "xXpP"))
        return csv_error(csv, row, column, error, "expected a number: got \"%.80s\"", field.text);
    return true;
}

bool csv_integer(const Csv *csv, int64_t row, int64_t column, int64_t least, int64_t most, int64_t *value,
                 Error *error) {
    CsvField field = csv_field(csv, row, column);
    char *end = NULL;
    bool starts = field.length && strchr("-0123456789", field.text[0]);
    errno = 0;
    *value = starts ? strtoll(field.text, &end, 10) : 0;
    if (!starts || end != field.text + field.length || errno || *value < least || *value > most)
        return csv_error(csv, row, column, error, "expected an integer from %lld to %lld: got \"%.80s\"",
                         (long long)least, (long long)most, field.text);
    return true;
}

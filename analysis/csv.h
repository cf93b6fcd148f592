/* CSV in, by RFC 4180: a header line, commas, fields in double quotes where needed ("" inside is one quote),
 * lines ended by LF or CRLF.
 *
 * Both the tables of a run and prompt files of others pass through here, so it is strict: every row has as
 * many fields as the header, header names are unique and not empty, the bytes are UTF-8 without NUL. Messages
 * name file and line. A byte order mark at the begin, as spreadsheets write it, is skipped. */
#ifndef GATETAPE_CSV_H
#define GATETAPE_CSV_H
#include "../engine/error.h"
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *text; /* without its quotes, NUL-terminated; owned by the table */
    size_t length;
} CsvField;

typedef struct {
    int64_t n_rows, n_columns; /* rows without the header */
    CsvField *names;           /* [n_columns] */
    CsvField *fields;          /* [n_rows * n_columns] */
    int64_t *lines;            /* [n_rows]: the line of the file on which a row begins, from 1 */
    char *file;                /* name for messages, own copy */
    char *bytes;               /* what the fields point to */
} Csv;

/* Parses a text; `file` names it in messages. Caller frees with csv_free; safe after an error too. */
bool csv_parse(const char *text, size_t length, const char *file, Csv *csv, Error *error);
bool csv_read(const char *path, size_t max_bytes, Csv *csv, Error *error); /* a whole file */
void csv_free(Csv *csv);

int64_t csv_find_column(const Csv *csv, const char *name); /* -1: none */
/* The same, but an Error that lists what columns there are. */
bool csv_need_column(const Csv *csv, const char *name, int64_t *column, Error *error);

CsvField csv_field(const Csv *csv, int64_t row, int64_t column);
/* Numbers: false and an Error naming file, line and column when the field is something else. */
bool csv_number(const Csv *csv, int64_t row, int64_t column, double *value, Error *error);
bool csv_integer(const Csv *csv, int64_t row, int64_t column, int64_t least, int64_t most, int64_t *value,
                 Error *error);

/* error_set with "FILE:LINE: column NAME: " before the text. Returns false. */
bool csv_error(const Csv *csv, int64_t row, int64_t column, Error *error, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

#endif

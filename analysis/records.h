/* Records of a file too long to hold: lines of JSONL, rows of CSV, from any offset. Memory is one window of
 * the file (64 KiB; more where one record is longer), however long the file is. */
#ifndef GATETAPE_RECORDS_H
#define GATETAPE_RECORDS_H
#include "csv.h"

typedef struct Records Records;

/* csv: line feeds in quotes belong to a row. NULL and an Error. Caller closes. */
Records *records_open(const char *path, bool csv, Error *error);
void records_close(Records *records); /* safe on NULL */
/* The next record, NUL-terminated, without its end; *line NULL: no more. Valid until the next call; may be
 * changed. */
bool records_next(Records *records, char **line, size_t *length, uint64_t *offset, Error *error);
void records_seek(Records *records, uint64_t offset); /* the next record begins there */
/* CSV from its begin: the next rows (256 KiB of them) as a table with the file's header and its line numbers;
 * no rows: the end. Caller frees with csv_free. */
bool records_next_rows(Records *records, Csv *rows, Error *error);

#endif

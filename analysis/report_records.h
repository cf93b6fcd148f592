/* Records of a file too long to hold: whole lines of JSONL, whole rows of CSV, some at a time. Memory is one
 * block (256 KiB; more where one record is longer), however long the file is. */
#ifndef GATETAPE_REPORT_RECORDS_H
#define GATETAPE_REPORT_RECORDS_H
#include "../engine/io.h"
#include "csv.h"

typedef struct {
    IoFile file;
    uint64_t offset; /* of what was not given out yet */
    char *bytes;
    size_t capacity, length; /* of bytes: whole records, NUL-terminated */
    bool quoted;             /* CSV: a line may end inside of a record */
    char *header;            /* CSV: its first record with its newline */
    int64_t n_lines;         /* CSV: in the blocks before */
} Records;

bool records_open(Records *records, const char *path, bool csv, Error *error);
void records_close(Records *records); /* safe on a zeroed one */

/* The next lines, each ended by a newline but perhaps the file's last; *length 0 at the end of the file. Good
 * until the next call. */
bool records_next_lines(Records *records, const char **lines, size_t *length, Error *error);

/* The next rows as a table with the file's header; no rows: the end. Caller frees with csv_free. */
bool records_next_rows(Records *records, Csv *rows, Error *error);

#endif

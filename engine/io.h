/* The one seam through which files are read and written, so that a test can make the k-th call fail.
 *
 * Reading goes through pread into own buffers, never mmap: a file that shrinks under us is an error, not a
 * signal. A finished file appears under its name at once: temporary name, fsync, rename, fsync of the
 * folder. Errors name the file and the system's reason; a full disk leaves no half-written file under the
 * final name. */
#ifndef GATETAPE_IO_H
#define GATETAPE_IO_H
#include "error.h"
#include <stddef.h>
#include <stdint.h>

/* ---- reading ---- */
typedef struct {
    int fd;
    uint64_t n_bytes; /* when it was opened */
    char *path;       /* own copy */
} IoFile;

bool io_open(IoFile *file, const char *path, Error *error); /* regular files only */
/* All n_bytes from the offset, or an error. */
bool io_read_at(const IoFile *file, uint64_t offset, void *to, size_t n_bytes, Error *error);
void io_close(IoFile *file);

/* The whole file, NUL-terminated for convenience (*n_bytes excludes the NUL), owned by the caller
 * (mem_free); an error when it is larger than max_bytes. */
char *io_read_all(const char *path, size_t max_bytes, size_t *n_bytes, Error *error);
/* All of standard input or another descriptor, the same way. */
char *io_read_stream(int fd, const char *name, size_t max_bytes, size_t *n_bytes, Error *error);

bool io_exists(const char *path);
bool io_is_folder(const char *path);
bool io_is_same_file(const char *a, const char *b); /* or folder; false where one does not exist */
/* Names in a folder, sorted bytewise, without "." and ".."; caller frees each and the array (mem_free). */
bool io_list(const char *folder, char ***names, size_t *n_names, Error *error);
/* folder + "/" + name, or name alone when it is absolute; caller frees. NULL when out of memory. */
char *io_join(const char *folder, const char *name);
/* The folder part of a path ("." when it has none); caller frees. */
char *io_folder_of(const char *path);
/* What stands behind the last slash, as part of the path; all of it when it has none or ends in it. */
const char *io_last_name(const char *path);
/* A name from outside that becomes a file or folder: not hidden, nothing that leads elsewhere. */
bool io_is_plain_name(const char *name);

/* ---- writing ---- */
typedef struct {
    int fd;
    char *path, *partial_path; /* final and temporary name */
    char *buffer;
    size_t n_buffered;
    uint64_t n_written;
} IoWriter;

bool io_writer_open(IoWriter *writer, const char *path, Error *error);
bool io_writer_put(IoWriter *writer, const void *from, size_t n_bytes, Error *error);
/* Flush, fsync, rename, fsync the folder; frees either way. */
bool io_writer_finish(IoWriter *writer, Error *error);
/* Removes the temporary file; safe on a zeroed or finished writer. */
void io_writer_abandon(IoWriter *writer);

bool io_write_all(const char *path, const void *from, size_t n_bytes, Error *error); /* open, put, finish */
/* Appends one record in a single write and flushes it to the disk's queue (no fsync). */
bool io_append(const char *path, const void *from, size_t n_bytes, Error *error);
bool io_make_folders(const char *path, Error *error); /* with parents; fine when it exists */
bool io_remove(const char *path, Error *error);       /* a file; fine when it does not exist */

/* Tests: the call number `countdown` from now fails with `errno_value` (a write with ENOSPC first writes
 * half), and when `for_ever` all later ones too; 0 switches it off. Returns how many calls were made since
 * the last one. */
int64_t io_fail_after(int64_t countdown, int errno_value, bool for_ever);

#endif

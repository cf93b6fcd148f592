/* Error: what went wrong with something from outside (a file, a job, memory, the disk), as a value.
 *
 * Functions that can meet bad input return bool (or a pointer) and fill an Error. The text is one line,
 * "where: expected ...: got ...", and the code is the exit code of the program (DESIGN section 7). The
 * first error of a chain stays: later calls of error_set on a filled Error change nothing. A broken
 * contract of ours is check() instead. */
#ifndef GATETAPE_ERROR_H
#define GATETAPE_ERROR_H
#include <stdbool.h>

typedef enum {
    ERROR_NONE = 0,
    ERROR_FAILED = 1,       /* while running: disk full, non-finite numbers, a file that changed */
    ERROR_BAD_INPUT = 2,    /* a job, option or file that is not what it must be */
    ERROR_UNAVAILABLE = 3,  /* no such device, not enough memory */
    ERROR_INTERRUPTED = 130 /* by a signal; a second run resumes */
} ErrorCode;

typedef struct {
    ErrorCode code;
    char text[2000]; /* UTF-8, whatever bytes a file contained; printed through text_put_terminal alone */
} Error;

/* Fills an empty *error and returns false, so that a caller can write `return error_set(...)`. */
bool error_set(Error *error, ErrorCode code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the text of a filled error; nothing when it is empty. Returns false. */
bool error_add_place(Error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The usual error for a failed allocation of n_bytes for `what`. Returns false. */
bool error_out_of_memory(Error *error, const char *what, unsigned long long n_bytes);

#endif

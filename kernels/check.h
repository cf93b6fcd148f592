/* check(): contracts between the parts of the program. A broken one is a bug of ours, never bad input: it
 * prints file, line, the condition and the values, and aborts. Always on. Bad input is an Error value instead
 * (engine/error.h). */
#ifndef GATETAPE_CHECK_H
#define GATETAPE_CHECK_H
#include <stdio.h>
#include <stdlib.h>

#define check(condition, ...)                                                                                \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                  \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            fputc('\n', stderr);                                                                             \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

#endif

/* The Error value: filled once, by whoever met the bad thing first; places are put before it on the way up. */
#include "error.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool error_set(Error *error, ErrorCode code, const char *format, ...) {
    if (error->code != ERROR_NONE) return false;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    error->code = code;
    return false;
}

bool error_add_place(Error *error, const char *format, ...) {
    if (error->code == ERROR_NONE) return false;
    char place[600], whole[sizeof error->text];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(place, sizeof place, format, arguments);
    va_end(arguments);
    int n = snprintf(whole, sizeof whole, "%s: ", place);
    size_t room = sizeof whole - (size_t)n, length = strnlen(error->text, room - 1);
    memcpy(whole + n, error->text, length);
    whole[(size_t)n + length] = '\0';
    memcpy(error->text, whole, sizeof whole);
    return false;
}

bool error_out_of_memory(Error *error, const char *what, unsigned long long n_bytes) {
    return error_set(error, ERROR_UNAVAILABLE, "%s: expected %llu bytes of memory: got none", what, n_bytes);
}

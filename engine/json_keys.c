/* Keys that a file may have, and which of them a misspelt one stands for. */
#include "json.h"
#include <string.h>

static size_t edit_distance(const char *a, const char *b) {
    enum { MOST = 64 };
    size_t n = strlen(a), m = strlen(b), row[MOST + 1];
    if (n > MOST || m > MOST) return MOST;
    for (size_t j = 0; j <= m; j++) row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t change = diagonal + (a[i - 1] != b[j - 1]),
                   best = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            diagonal = row[j];
            row[j] = change < best ? change : best;
        }
    }
    return row[m];
}

const char *json_nearest(const char *name, const char *const *known, size_t n_known) {
    const char *nearest = NULL;
    size_t least = strlen(name) / 2 + 2;
    for (size_t i = 0; i < n_known; i++) {
        size_t distance = edit_distance(name, known[i]);
        if (distance < least) {
            least = distance;
            nearest = known[i];
        }
    }
    return nearest;
}

bool json_check_keys(const Json *object, const char *const *known, size_t n_known, bool comments,
                     Error *error) {
    for (Json at = {0}; json_next(object, &at);) {
        bool found = comments && !strncmp(at.key, "_comment", 8);
        for (size_t i = 0; i < n_known; i++) found = found || !strcmp(known[i], at.key);
        if (found) continue;
        const char *near = json_nearest(at.key, known, n_known);
        return json_error(at, error, "expected no such key%s%s", near ? ": did you mean " : "",
                          near ? near : "");
    }
    return true;
}

/* Strict JSON in. The only file that knows cJSON is json.c; what it lets through (duplicate keys, trailing
 * text, \u0000, infinities, case-insensitive look-ups) is refused here (reference: users page, section 5.2 of
 * the project's notes).
 *
 * A Json is a place in a document: a value, and how one came to it, so that every message names file and
 * key path, "job.json: steps[2].kind: expected ...: got ...". It is a small value to pass around; a parent
 * must outlive its children (it may live on the caller's stack). Absent values have node == NULL. */
#ifndef GATETAPE_JSON_H
#define GATETAPE_JSON_H
#include "error.h"
#include <stddef.h>
#include <stdint.h>

typedef struct JsonDocument JsonDocument;

typedef struct Json Json;
struct Json {
    const void *node; /* NULL: absent */
    const Json *parent;
    const char *key; /* in an object; NULL for an array entry or the root */
    int64_t index;   /* in an array */
    const char *file;
};

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;

/* Parses a text; `file` names it in messages (copied). NULL and an Error with line:column when it is not
 * strict JSON in UTF-8, nested at most 64 deep, keys unique. Caller frees. */
JsonDocument *json_parse(const char *text, size_t length, const char *file, Error *error);
/* The same of a whole file. */
JsonDocument *json_read(const char *path, size_t max_bytes, Error *error);
void json_free(JsonDocument *document);
Json json_root(const JsonDocument *document);

JsonType json_type(Json at);
const char *json_type_name(JsonType type);

/* A member by its exact name, or an absent Json. Linear: walk with json_next where there are many. */
Json json_member(const Json *object, const char *key);
/* Walks an array or object: `Json at = {0}; while (json_next(&parent, &at)) ...` */
bool json_next(const Json *parent, Json *at);
int64_t json_count(Json at); /* entries of an array or object, else 0 */

/* Getters: false and an Error naming the place when absent or of another type or out of range. */
bool json_string(Json at, const char **value, Error *error); /* owned by the document; never contains NUL */
bool json_bool(Json at, bool *value, Error *error);
bool json_number(Json at, double *value, Error *error);
bool json_integer(Json at, int64_t least, int64_t most, int64_t *value, Error *error);

/* error_set with the place before the text: "FILE: a.b[3].c: " + format. Returns false. */
bool json_error(Json at, Error *error, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The place alone ("a.b[3].c") into a buffer. */
void json_path(Json at, char *to, size_t capacity);

/* Whether an object has known keys alone; `comments`: and such as begin with "_comment". The Error names the
 * first other one, and the known one nearest to it. */
bool json_check_keys(const Json *object, const char *const *known, size_t n_known, bool comments,
                     Error *error);
/* The entry of `known` nearest to `name` by edit distance, for "did you mean"; NULL when none is near. */
const char *json_nearest(const char *name, const char *const *known, size_t n_known);

#endif

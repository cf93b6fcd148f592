/* Tests: reading statistics.json, and whether all that stands in it is defined. */
#ifndef GATETAPE_TEST_STATISTICS_FILE_H
#define GATETAPE_TEST_STATISTICS_FILE_H
#include "analysis/definitions.h"
#include "engine/json.h"
#include "tests/engine/scratch.h"
#include <math.h>

enum { MOST = 1 << 26 };

static inline JsonDocument *read_json(const char *path) {
    Error error = {0};
    JsonDocument *document = json_read(path, MOST, &error);
    if (!document) fail_msg("%s", error.text);
    return document;
}

static inline const char *string_of(Json at) {
    const char *text;
    Error error = {0};
    if (!json_string(at, &text, &error)) fail_msg("%s", error.text);
    return text;
}

static inline double number_of(Json at) {
    double value;
    Error error = {0};
    if (!json_number(at, &value, &error)) fail_msg("%s", error.text);
    return value;
}

static inline bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* "groups.a.layers[1].entropy"; absent when there is none. Parents live as long as the next call. */
static inline Json find(const JsonDocument *document, const char *path) {
    static Json places[32];
    int depth = 0;
    places[0] = json_root(document);
    for (const char *at = path; *at;) {
        char key[64];
        size_t n = strcspn(at, ".[");
        if (n) {
            snprintf(key, sizeof key, "%.*s", (int)n, at);
            places[depth + 1] = json_member(&places[depth], key);
        } else {
            Json entry = {0};
            for (long i = strtol(at + 1, NULL, 10); i >= 0; i--) json_next(&places[depth], &entry);
            places[depth + 1] = entry;
            n = strcspn(at, "]") + 1;
        }
        depth++;
        at += n;
        at += *at == '.';
    }
    return places[depth];
}

static inline double value_at(const JsonDocument *d, const char *path) { return number_of(find(d, path)); }

static inline void assert_value(const JsonDocument *d, const char *path, double want) {
    double got = value_at(d, path);
    if (fabs(got - want) > 1e-13 * fmax(1, fabs(want)))
        fail_msg("%s: expected %.17g: got %.17g", path, want, got);
}

static inline void assert_undefined(const JsonDocument *d, const char *path, const char *reason) {
    char name[200];
    if (json_type(find(d, path)) != JSON_NULL) fail_msg("%s: expected null", path);
    snprintf(name, sizeof name, "%s_reason", path);
    assert_contains(string_of(find(d, name)), reason);
}

static inline bool has_group(const JsonDocument *document, const char *name) {
    Json root = json_root(document), order = json_member(&root, "group_order"), at = {0};
    while (json_next(&order, &at))
        if (!strcmp(string_of(at), name)) return true;
    return false;
}

/* The definition of a path; used counts them. Paths as the table has them: names of groups are NAME, entries
 * [], low and high one row, sets of cells SET. */
static inline void use_definition(const char *path, int *used) {
    for (int64_t i = 0; i < n_definitions; i++)
        if (!strcmp(definition_table[i].path, path)) {
            used[i]++;
            return;
        }
    fail_msg("%s: no definition", path);
}

static inline bool is_set(Json at) {
    return json_type(at) == JSON_OBJECT && json_member(&at, "cells").node &&
           json_member(&at, "mean_depth").node;
}

static inline void walk(const JsonDocument *document, Json at, const char *path, int *used) {
    Json member = {0};
    while (json_next(&at, &member)) {
        char name[300], key[100];
        snprintf(key, sizeof key, "%s", member.key ? member.key : "");
        if (ends_with(key, "_reason")) continue;
        bool is_class =
            !strcmp(key, "shared") && !strncmp(path, "classes", 7) && !ends_with(path, "[].counts");
        if (has_group(document, key) || is_class) strcpy(key, "NAME");
        if (ends_with(key, "_low") || ends_with(key, "_high")) {
            *strrchr(key, '_') = '\0';
            strcat(key, "_low|high");
        }
        snprintf(name, sizeof name, "%s%s%s", path, *path && *key ? "." : "", member.key ? key : "[]");
        bool list = json_type(member) == JSON_ARRAY || json_type(member) == JSON_OBJECT;
        if (!strcmp(name, "switches") || !strcmp(name, "warnings") || !strcmp(name, "group_order"))
            list = false;
        if (!strcmp(name, "other_pairs")) continue; /* what stands at the top */
        if (is_set(member)) {
            strcat(name, ".SET");
            use_definition(name, used);
            use_definition("SET.n", used), use_definition("SET.mean_depth", used),
                use_definition("SET.cells", used);
        } else if (list) {
            walk(document, member, name, used);
        } else if (json_type(member) != JSON_NULL) {
            use_definition(name, used);
        }
    }
}

#endif

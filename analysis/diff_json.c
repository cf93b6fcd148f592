/* Two JSON values beside each other. Entries of long lists are found by what names them, so that a list that
 * is sorted by a number is compared cell by cell. */
#include "diff_parts.h"
#include "../engine/alloc.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_JSON_BYTES = 1 << 30, KEY = 96 };

typedef struct {
    Differences *to;
    Text path, place;
    bool failed;
} Walk;

/* ---- one value as a text ---- */
static void put_value(Json at, Text *to) {
    Error none = {0};
    const char *string = "";
    bool yes = false;
    double number = 0;
    Json entry = {0};
    switch (json_type(at)) {
    case JSON_STRING:
        json_string(at, &string, &none);
        text_put_string(to, string);
        break;
    case JSON_BOOL:
        json_bool(at, &yes, &none);
        text_put_string(to, yes ? "true" : "false");
        break;
    case JSON_NUMBER:
        json_number(at, &number, &none);
        text_put_f64(to, number);
        break;
    case JSON_NULL: text_put_string(to, "null"); break;
    default:
        text_put_string(to, json_type(at) == JSON_ARRAY ? "[" : "{");
        for (bool first = true; json_next(&at, &entry); first = false) {
            if (!first) text_put_string(to, ", ");
            if (entry.key) text_format(to, "%s: ", entry.key);
            put_value(entry, to);
        }
        text_put_string(to, json_type(at) == JSON_ARRAY ? "]" : "}");
    }
}

static void put_leaf(Walk *w, Json a, Json b) {
    Text x = {0}, y = {0};
    if (a.node) put_value(a, &x);
    if (b.node) put_value(b, &y);
    w->failed = w->failed || x.failed || y.failed || w->path.failed || w->place.failed;
    /* what is quoted is a text, also where it looks like a number: a reply, an id */
    const bool quoted = (a.node && json_type(a) == JSON_STRING) || (b.node && json_type(b) == JSON_STRING);
    if (!w->failed)
        (quoted ? differences_put_texts : differences_put)(
            w->to, w->path.bytes ? w->path.bytes : "", w->place.bytes ? w->place.bytes : "",
            a.node ? (x.bytes ? x.bytes : "") : NULL, b.node ? (y.bytes ? y.bytes : "") : NULL);
    text_free(&x);
    text_free(&y);
}

/* ---- entries by key ---- */
typedef struct {
    char key[KEY];
    Json at;
} Keyed;

static int compare_keys(const void *a, const void *b) {
    return strcmp(((const Keyed *)a)->key, ((const Keyed *)b)->key);
}

/* What names an entry among its neighbours; its number where nothing does. False: out of memory. */
static bool key_of(Json entry, char key[KEY]) {
    static const char *const names[] = {"name", "step", "group", "k", "tau", "layer", "expert", "index"};
    Text words = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Json at = json_member(&entry, names[i]);
        if (!at.node || json_type(at) == JSON_ARRAY || json_type(at) == JSON_OBJECT) continue;
        text_format(&words, "%s%s ", words.length ? ", " : "", names[i]);
        put_value(at, &words);
    }
    if (words.length)
        snprintf(key, KEY, "%.*s", KEY - 1, words.bytes);
    else
        snprintf(key, KEY, "entry %lld", (long long)entry.index);
    bool ok = !words.failed;
    text_free(&words);
    return ok;
}

static Keyed *list_entries(Json array, int64_t n) {
    Keyed *list = mem_zeroed((size_t)n + 1, sizeof *list);
    Json at = {0};
    bool ok = true;
    for (int64_t i = 0; list && json_next(&array, &at); i++) {
        list[i].at = at;
        ok = key_of(at, list[i].key) && ok;
    }
    if (ok) return list;
    mem_free(list);
    return NULL;
}

static void walk(Walk *w, Json a, Json b);

static void shorten(Text *text, size_t length) {
    text->length = length;
    if (text->bytes) text->bytes[length] = '\0';
}

/* One entry, on both sides or on one; named entries stand in the path, others in the place. */
static void walk_entry(Walk *w, const char *key, Json a, Json b) {
    size_t path = w->path.length, place = w->place.length;
    if (!strncmp(key, "name ", 5)) {
        text_format(&w->path, "[%.*s]", (int)strcspn(key + 5, ","), key + 5);
    } else {
        text_put_string(&w->path, "[]");
        text_format(&w->place, "%s%s", place ? ", " : "", key);
    }
    if (a.node && b.node)
        walk(w, a, b);
    else
        put_leaf(w, a, b);
    shorten(&w->path, path);
    shorten(&w->place, place);
}

static void walk_entries(Walk *w, Json a, Json b) {
    int64_t n = json_count(a), m = json_count(b);
    Keyed *first = list_entries(a, n), *second = list_entries(b, m);
    w->failed = w->failed || !first || !second;
    if (!w->failed) {
        qsort(second, (size_t)m, sizeof *second, compare_keys);
        for (int64_t i = 0; i < n; i++) {
            Keyed *found = bsearch(&first[i], second, (size_t)m, sizeof *second, compare_keys);
            walk_entry(w, first[i].key, first[i].at, found ? found->at : (Json){0});
        }
        qsort(first, (size_t)n, sizeof *first, compare_keys);
        for (int64_t i = 0; i < m; i++)
            if (!bsearch(&second[i], first, (size_t)n, sizeof *first, compare_keys))
                walk_entry(w, second[i].key, (Json){0}, second[i].at);
    }
    mem_free(first);
    mem_free(second);
}

/* ---- objects ---- */
static void walk_member(Walk *w, const char *key, Json a, Json b) {
    size_t path = w->path.length;
    text_format(&w->path, "%s%s", path ? "." : "", key);
    if (a.node && b.node)
        walk(w, a, b);
    else
        put_leaf(w, a, b);
    shorten(&w->path, path);
}

static void walk_members(Walk *w, Json a, Json b) {
    Json at = {0};
    while (json_next(&a, &at)) walk_member(w, at.key, at, json_member(&b, at.key));
    at = (Json){0};
    while (json_next(&b, &at))
        if (!json_member(&a, at.key).node) walk_member(w, at.key, (Json){0}, at);
}

static bool holds_objects(Json array) {
    Json at = {0};
    return json_next(&array, &at) && json_type(at) == JSON_OBJECT;
}

static void walk(Walk *w, Json a, Json b) {
    JsonType one = json_type(a), other = json_type(b);
    if (one == JSON_OBJECT && other == JSON_OBJECT)
        walk_members(w, a, b);
    else if (one == JSON_ARRAY && other == JSON_ARRAY && (holds_objects(a) || holds_objects(b)))
        walk_entries(w, a, b);
    else
        put_leaf(w, a, b);
}

void diff_json(Json a, Json b, const char *place, Differences *to) {
    Walk w = {.to = to};
    text_put_string(&w.place, place);
    walk(&w, a, b);
    to->failed = to->failed || w.failed;
    text_free(&w.path);
    text_free(&w.place);
}

bool diff_json_files(const char *a, const char *b, Differences *to, Error *error) {
    JsonDocument *one = json_read(a, MAX_JSON_BYTES, error),
                 *other = one ? json_read(b, MAX_JSON_BYTES, error) : NULL;
    if (other) diff_json(json_root(one), json_root(other), "", to);
    json_free(one);
    json_free(other);
    return other != NULL;
}

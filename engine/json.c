/* cJSON behind a strict door: the bytes are scanned once before it parses them, the tree is checked once
 * after.
 *
 * The scan refuses what cJSON would let through or silently change (a BOM, invalid UTF-8, control
 * characters, NUL, deep nesting, malformed numbers, text after the value); the check refuses duplicate
 * keys and numbers beyond double. */
#include "json.h"
#include "alloc.h"
#include "io.h"
#include "text.h"
#include <cjson/cJSON.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 64, CJSON_NUMBER = 63 }; /* cJSON reads at most so many bytes of a number */

struct JsonDocument {
    cJSON *root;
    char *file;
};

/* ---- memory ---- */
static _Thread_local bool ran_out; /* cJSON does not say whether syntax or memory stopped it */

static void *take_memory(size_t n_bytes) {
    void *block = mem_alloc(n_bytes);
    if (!block) ran_out = true;
    return block;
}

static void set_hooks(void) {
    cJSON_InitHooks(&(cJSON_Hooks){.malloc_fn = take_memory, .free_fn = mem_free});
}

/* ---- messages ---- */
static bool fail_at(Error *error, const char *file, const char *text, size_t at, const char *what) {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < at; i++) {
        column = text[i] == '\n' ? 1 : column + 1;
        line += text[i] == '\n';
    }
    return error_set(error, ERROR_BAD_INPUT, "%s:%zu:%zu: expected JSON: got %s", file, line, column, what);
}

void json_path(Json at, char *to, size_t capacity) {
    const Json *chain[MAX_DEPTH + 2];
    int n = 0;
    for (const Json *j = &at; j && n < MAX_DEPTH + 2; j = j->parent) chain[n++] = j;
    size_t used = 0;
    to[0] = '\0';
    while (n-- > 0 && used < capacity - 1) {
        const Json *j = chain[n];
        int wrote = 0;
        if (j->key)
            wrote = snprintf(to + used, capacity - used, "%s%s", used ? "." : "", j->key);
        else if (j->parent)
            wrote = snprintf(to + used, capacity - used, "[%lld]", (long long)j->index);
        used += wrote > 0 ? (size_t)wrote : 0;
    }
}

bool json_error(Json at, Error *error, const char *format, ...) {
    char place[400], what[1200];
    json_path(at, place, sizeof place);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    return error_set(error, ERROR_BAD_INPUT, "%s: %s%s%s", at.file, place, place[0] ? ": " : "", what);
}

/* ---- the scan before parsing ---- */
/* The end of the number that starts at p, or NULL when it breaks the grammar. */
static const char *scan_number(const char *p, const char *end) {
    if (p < end && *p == '-') p++;
    if (p == end || *p < '0' || *p > '9') return NULL;
    if (*p == '0')
        p++;
    else
        while (p < end && *p >= '0' && *p <= '9') p++;
    if (p < end && *p == '.') {
        const char *digits = ++p;
        while (p < end && *p >= '0' && *p <= '9') p++;
        if (p == digits) return NULL;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < end && (*p == '+' || *p == '-')) p++;
        const char *digits = p;
        while (p < end && *p >= '0' && *p <= '9') p++;
        if (p == digits) return NULL;
    }
    return p < end && (*p == '.' || (*p >= '0' && *p <= '9')) ? NULL : p;
}

/* What is wrong with the \u escape whose u is at p, or NULL. cJSON reads other digits than hexadecimal
 * ones as 0. */
static const char *check_escape(const char *p, const char *end) {
    for (int i = 1; i <= 4; i++)
        if (p + i >= end || !strchr("0123456789abcdefABCDEF", p[i]) || !p[i]) return "a malformed \\u escape";
    return memcmp(p, "u0000", 5) ? NULL : "\\u0000 in a string";
}

/* The byte after the string whose quote is at p; NULL and *what when something in it is refused. */
static const char *scan_string(const char *p, const char *end, const char **bad, const char **what) {
    for (p++; p < end && *p != '"'; p++) {
        *bad = p;
        *what = (unsigned char)*p < 0x20 ? "a control character in a string" : NULL;
        if (*what) return NULL;
        if (*p != '\\') continue;
        if (++p == end) break;
        *what = *p == 'u' ? check_escape(p, end) : NULL;
        if (*what) return NULL;
    }
    *bad = p;
    *what = "a string without end";
    return p < end ? p + 1 : NULL;
}

/* One token from p; NULL when it is refused. */
static const char *scan_token(const char *p, const char *end, int *depth, const char **bad,
                              const char **what) {
    *bad = p;
    switch (*p) {
    case ' ':
    case '\t':
    case '\r':
    case '\n':
    case ':':
    case ',': return p + 1;
    case '{':
    case '[': *what = "nesting deeper than 64"; return ++*depth > MAX_DEPTH ? NULL : p + 1;
    case '}':
    case ']': --*depth; return p + 1;
    case '"': return scan_string(p, end, bad, what);
    default: break;
    }
    if (*p == '-' || (*p >= '0' && *p <= '9')) {
        *what = "a malformed number";
        return scan_number(p, end);
    }
    const char *word = p;
    while (p < end && ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z'))) p++;
    size_t n = (size_t)(p - word);
    *what = "a word that is not true, false or null";
    bool known = (n == 4 && (!memcmp(word, "true", 4) || !memcmp(word, "null", 4))) ||
                 (n == 5 && !memcmp(word, "false", 5));
    return known ? p : NULL;
}

/* *long_number tells whether a number is longer than cJSON can read. */
static bool scan(const char *text, size_t length, const char *file, bool *long_number, Error *error) {
    size_t bad_byte;
    if (length >= 3 && !memcmp(text, "\xef\xbb\xbf", 3))
        return fail_at(error, file, text, 0, "a byte order mark");
    if (!text_is_utf8(text, length, &bad_byte)) return fail_at(error, file, text, bad_byte, "invalid UTF-8");
    int depth = 0;
    const char *end = text + length, *bad = text, *what = "";
    for (const char *p = text; p < end;) {
        if (*p == '\0') return fail_at(error, file, text, (size_t)(p - text), "a NUL byte");
        const char *from = p;
        p = scan_token(p, end, &depth, &bad, &what);
        if (p && *from != '"' && p - from > CJSON_NUMBER) *long_number = true;
        if (!p) return fail_at(error, file, text, (size_t)(bad - text), what);
    }
    return true;
}

/* A copy of a scanned text in which each number that is too long for cJSON is written as the double
 * nearest to it, padded with spaces, so that places in messages stay right. NULL: out of memory. */
static char *shorten_numbers(const char *text, size_t length) {
    char *copy = mem_copy_text(text, length);
    if (!copy) return NULL;
    for (char *p = copy; p < copy + length;) {
        if (*p == '"') {
            for (p++; *p != '"'; p++) p += *p == '\\';
            p++;
            continue;
        }
        const char *end = *p == '-' || (*p >= '0' && *p <= '9') ? scan_number(p, copy + length) : NULL;
        if (end && end - p > CJSON_NUMBER) {
            double value = strtod(p, NULL);
            int n = isfinite(value) ? snprintf(p, CJSON_NUMBER, "%.17g", value)
                                    : snprintf(p, CJSON_NUMBER, "1e999"); /* refused by the check */
            memset(p + n, ' ', (size_t)(end - p) - (size_t)n);
        }
        p += end ? end - p : 1;
    }
    return copy;
}

/* ---- the check after parsing ---- */
static uint64_t hash_key(const char *key) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *key; key++) h = (h ^ (unsigned char)*key) * 0x100000001b3u;
    return h ^ h >> 29;
}

/* Every key of an object once: few by comparison, many through a hash set. */
static bool check_keys(Json at, Error *error) {
    size_t n = (size_t)json_count(at), n_slots = 16;
    const cJSON *object = at.node;
    while (n_slots < 2 * n) n_slots *= 2;
    const char **slots = mem_zeroed(n_slots, sizeof *slots);
    if (!slots) return error_out_of_memory(error, at.file, n_slots * sizeof *slots);
    bool fine = true;
    for (const cJSON *child = object->child; child && fine; child = child->next) {
        size_t i = hash_key(child->string) & (n_slots - 1);
        while (slots[i] && strcmp(slots[i], child->string)) i = (i + 1) & (n_slots - 1);
        if (slots[i]) fine = json_error(at, error, "expected each key once: got \"%s\" twice", child->string);
        slots[i] = child->string;
    }
    mem_free(slots);
    return fine;
}

static bool check_tree(Json at, Error *error) {
    const cJSON *node = at.node;
    if (cJSON_IsNumber(node) && !isfinite(node->valuedouble))
        return json_error(at, error, "expected a finite number: got one beyond double precision");
    if (cJSON_IsObject(node) && !check_keys(at, error)) return false;
    if (!cJSON_IsObject(node) && !cJSON_IsArray(node)) return true;
    for (Json child = {0}; json_next(&at, &child);)
        if (!check_tree(child, error)) return false;
    return true;
}

/* The tree of a scanned text; an Error when it is not one JSON value. */
static cJSON *parse_tree(const char *text, size_t length, const char *file, Error *error) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_hooks);
    ran_out = false;
    const char *stopped = text;
    cJSON *root = cJSON_ParseWithLengthOpts(text, length, &stopped, 0);
    size_t at = stopped ? (size_t)(stopped - text) : 0;
    while (root && at < length && strchr(" \t\r\n", text[at])) at++;
    if (root && at == length) return root;
    if (root)
        fail_at(error, file, text, at, "text after the value");
    else if (ran_out)
        error_out_of_memory(error, file, length);
    else if (at + 1 >= length)
        fail_at(error, file, text, length, "the end of the text too early");
    else
        fail_at(error, file, text, at, "something else here");
    cJSON_Delete(root);
    return NULL;
}

JsonDocument *json_parse(const char *text, size_t length, const char *file, Error *error) {
    bool long_number = false;
    if (!scan(text, length, file, &long_number, error)) return NULL;
    char *copy = long_number ? shorten_numbers(text, length) : NULL;
    JsonDocument *document = mem_zeroed(1, sizeof *document);
    if (document) document->file = mem_copy_text(file, strlen(file));
    if (!document || !document->file || (long_number && !copy))
        error_out_of_memory(error, file, length);
    else
        document->root = parse_tree(copy ? copy : text, length, file, error);
    mem_free(copy);
    if (document && document->root && check_tree(json_root(document), error)) return document;
    json_free(document);
    return NULL;
}

JsonDocument *json_read(const char *path, size_t max_bytes, Error *error) {
    size_t n;
    char *text = io_read_all(path, max_bytes, &n, error);
    if (!text) return NULL;
    JsonDocument *document = json_parse(text, n, path, error);
    mem_free(text);
    return document;
}

void json_free(JsonDocument *document) {
    if (!document) return;
    cJSON_Delete(document->root);
    mem_free(document->file);
    mem_free(document);
}

Json json_root(const JsonDocument *document) {
    return (Json){.node = document->root, .file = document->file};
}

/* ---- walking ---- */
JsonType json_type(Json at) {
    const cJSON *node = at.node;
    if (cJSON_IsBool(node)) return JSON_BOOL;
    if (cJSON_IsNumber(node)) return JSON_NUMBER;
    if (cJSON_IsString(node)) return JSON_STRING;
    if (cJSON_IsArray(node)) return JSON_ARRAY;
    return cJSON_IsObject(node) ? JSON_OBJECT : JSON_NULL;
}

const char *json_type_name(JsonType type) {
    static const char *const names[] = {"null",     "true or false", "a number",
                                        "a string", "an array",      "an object"};
    return names[type];
}

Json json_member(const Json *object, const char *key) {
    const cJSON *node = object->node ? cJSON_GetObjectItemCaseSensitive(object->node, key) : NULL;
    return (Json){node, object, key, 0, object->file};
}

bool json_next(const Json *parent, Json *at) {
    const cJSON *node = at->node ? ((const cJSON *)at->node)->next : NULL;
    if (!at->node && parent->node) node = ((const cJSON *)parent->node)->child;
    int64_t index = at->node ? at->index + 1 : 0;
    *at = (Json){node, parent, node && cJSON_IsObject((const cJSON *)parent->node) ? node->string : NULL,
                 index, parent->file};
    return node != NULL;
}

int64_t json_count(Json at) {
    int64_t n = 0;
    const cJSON *node = at.node;
    if (!cJSON_IsArray(node) && !cJSON_IsObject(node)) return 0;
    for (const cJSON *child = node->child; child; child = child->next) n++;
    return n;
}

/* ---- getters ---- */
static bool expect(Json at, JsonType type, Error *error) {
    if (!at.node) return json_error(at, error, "expected %s: got nothing", json_type_name(type));
    if (json_type(at) == type) return true;
    const cJSON *node = at.node;
    if (cJSON_IsString(node))
        return json_error(at, error, "expected %s: got \"%.80s\"", json_type_name(type), node->valuestring);
    if (cJSON_IsNumber(node))
        return json_error(at, error, "expected %s: got %.17g", json_type_name(type), node->valuedouble);
    return json_error(at, error, "expected %s: got %s", json_type_name(type), json_type_name(json_type(at)));
}

bool json_string(Json at, const char **value, Error *error) {
    if (!expect(at, JSON_STRING, error)) return false;
    *value = ((const cJSON *)at.node)->valuestring;
    return true;
}

bool json_bool(Json at, bool *value, Error *error) {
    if (!expect(at, JSON_BOOL, error)) return false;
    *value = cJSON_IsTrue((const cJSON *)at.node);
    return true;
}

bool json_number(Json at, double *value, Error *error) {
    if (!expect(at, JSON_NUMBER, error)) return false;
    *value = ((const cJSON *)at.node)->valuedouble;
    return true;
}

bool json_integer(Json at, int64_t least, int64_t most, int64_t *value, Error *error) {
    double number;
    if (!json_number(at, &number, error)) return false;
    const double exact = 9007199254740992.0;
    if (number != floor(number) || fabs(number) > exact || number < (double)least || number > (double)most)
        return json_error(at, error, "expected an integer from %lld to %lld: got %.17g", (long long)least,
                          (long long)most, number);
    *value = (int64_t)number;
    return true;
}

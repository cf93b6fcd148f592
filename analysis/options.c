/* What the table of options is used for: presets, reading, writing, completeness, help. Only this file
 * turns a row and a record into a field. */
#include "options.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../kernels/check.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- texts ---- */
const char *pool_put(TextPool *pool, const char *text, size_t length, Error *error) {
    if (pool->n == pool->capacity) {
        int64_t more = pool->capacity ? 2 * pool->capacity : 32;
        char **texts = mem_resize(pool->texts, (size_t)more, sizeof *texts);
        if (!texts) {
            error_out_of_memory(error, "texts of the job", (size_t)more * sizeof *texts);
            return NULL;
        }
        pool->texts = texts;
        pool->capacity = more;
    }
    char *copy = mem_copy_text(text, length);
    if (copy)
        pool->texts[pool->n++] = copy;
    else
        error_out_of_memory(error, "texts of the job", length + 1);
    return copy;
}

void pool_free(TextPool *pool) {
    for (int64_t i = 0; i < pool->n; i++) mem_free(pool->texts[i]);
    mem_free(pool->texts);
    *pool = (TextPool){0};
}

/* ---- one value ---- */
static void *field_of(const Option *option, void *record) { return (char *)record + option->offset; }

static const void *value_of(const Option *option, const void *record) {
    return (const char *)record + option->offset;
}

static size_t count_choices(const char *const *choices) {
    size_t n = 0;
    while (choices[n]) n++;
    return n;
}

static void list_choices(const char *const *choices, char *to, size_t capacity) {
    size_t used = 0;
    to[0] = '\0';
    for (; *choices && used < capacity; choices++) {
        int n = snprintf(to + used, capacity - used, "%s%s", used ? ", " : "", *choices);
        used += n > 0 ? (size_t)n : 0;
    }
}

static bool read_choice(const Option *option, Json value, int *to, Error *error) {
    const char *name;
    if (!json_string(value, &name, error)) return false;
    for (int i = 0; option->choices[i]; i++)
        if (!strcmp(option->choices[i], name)) {
            *to = i;
            return true;
        }
    char list[300];
    list_choices(option->choices, list, sizeof list);
    const char *near = json_nearest(name, option->choices, count_choices(option->choices));
    return json_error(value, error, "expected one of %s: got \"%.80s\"%s%s%s", list, name,
                      near ? " (did you mean \"" : "", near ? near : "", near ? "\"?)" : "");
}

static bool read_number(const Option *option, Json value, double *to, Error *error) {
    if (!json_number(value, to, error)) return false;
    if (*to >= option->least && *to <= option->most) return true;
    return json_error(value, error, "expected a number from %g to %g: got %.17g", option->least, option->most,
                      *to);
}

static bool read_names(Json value, NameList *to, TextPool *pool, Error *error) {
    if (!value.node || json_type(value) != JSON_ARRAY)
        return json_error(value, error, "expected an array of names: got %s",
                          json_type_name(json_type(value)));
    size_t n = (size_t)json_count(value);
    const char **names = mem_zeroed(n ? n : 1, sizeof *names);
    if (!names) return error_out_of_memory(error, "names", n * sizeof *names);
    mem_free(to->names);
    *to = (NameList){names, 0};
    Json at = {0};
    while (json_next(&value, &at)) {
        const char *name;
        if (!json_string(at, &name, error)) return false;
        for (int64_t i = 0; i < to->n; i++)
            if (!strcmp(names[i], name))
                return json_error(at, error, "expected each name once: got \"%.80s\" again", name);
        if (!(name = pool_put(pool, name, strlen(name), error))) return false;
        names[to->n++] = name;
    }
    return true;
}

static bool read_numbers(const Option *option, Json value, NumberList *to, Error *error) {
    if (!value.node || json_type(value) != JSON_ARRAY || json_count(value) > MOST_NUMBERS)
        return json_error(value, error, "expected an array of at most %d numbers: got %s", MOST_NUMBERS,
                          value.node ? json_type_name(json_type(value)) : "nothing");
    Json at = {0};
    for (to->n = 0; json_next(&value, &at); to->n++) {
        double *number = &to->values[to->n];
        int64_t whole = 0;
        if (option->type == OPTION_NUMBERS && !read_number(option, at, number, error)) return false;
        if (option->type == OPTION_INTEGERS) {
            if (!json_integer(at, (int64_t)option->least, (int64_t)option->most, &whole, error)) return false;
            *number = (double)whole;
        }
        if (to->n && *number <= number[-1])
            return json_error(at, error, "expected ascending numbers: got %.17g after %.17g", *number,
                              number[-1]);
    }
    return true;
}

/* An absolute path, links resolved where it exists; a missing file is found out when it is opened. */
static bool read_path(Json value, const char *folder, bool optional, const char **to, TextPool *pool,
                      Error *error) {
    const char *name;
    if (!json_string(value, &name, error)) return false;
    if (!name[0] && optional) return (*to = pool_put(pool, "", 0, error)) != NULL;
    if (!name[0]) return json_error(value, error, "expected a path: got an empty text");
    char *joined = io_join(folder, name);
    if (!joined) return error_out_of_memory(error, "a path", strlen(name));
    char real[PATH_MAX];
    const char *path = realpath(joined, real) ? real : joined;
    *to = pool_put(pool, path, strlen(path), error);
    mem_free(joined);
    return *to != NULL;
}

bool option_read(const Option *option, Json value, void *record, const char *folder, TextPool *pool,
                 Error *error) {
    void *to = field_of(option, record);
    const char *text;
    switch (option->type) {
    case OPTION_BOOL: return json_bool(value, to, error);
    case OPTION_INTEGER: return json_integer(value, (int64_t)option->least, (int64_t)option->most, to, error);
    case OPTION_NUMBER: return read_number(option, value, to, error);
    case OPTION_CHOICE: return read_choice(option, value, to, error);
    case OPTION_STRING:
        if (!json_string(value, &text, error)) return false;
        *(const char **)to = pool_put(pool, text, strlen(text), error);
        return *(const char **)to != NULL;
    case OPTION_PATH: return read_path(value, folder, option->preset != NULL, to, pool, error);
    case OPTION_NAMES: return read_names(value, to, pool, error);
    case OPTION_NUMBERS:
    case OPTION_INTEGERS: return read_numbers(option, value, to, error);
    }
    return false;
}

void options_free(OptionScope scope, void *record) {
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        if (o->scope != scope || o->type != OPTION_NAMES) continue;
        NameList *list = field_of(o, record);
        mem_free(list->names);
        *list = (NameList){0};
    }
}

/* The value as JSON: texts without quotes and lists without brackets are put in theirs. */
static void put_value(const Option *option, const char *value, Text *to) {
    bool is_text =
        option->type == OPTION_STRING || option->type == OPTION_PATH || option->type == OPTION_CHOICE;
    if (is_text && value[0] != '"') {
        text_put_json(to, value, strlen(value));
    } else if (option->type == OPTION_NAMES && value[0] != '[') {
        text_put_string(to, "[");
        for (const char *at = value; *at;) {
            size_t n = strcspn(at, ",");
            text_put_json(to, at, n);
            at += n + (at[n] == ',');
            if (*at) text_put_string(to, ", ");
        }
        text_put_string(to, "]");
    } else if ((option->type == OPTION_NUMBERS || option->type == OPTION_INTEGERS) && value[0] != '[') {
        text_format(to, "[%s]", value);
    } else {
        text_put_string(to, value);
    }
}

bool option_read_text(const Option *option, const char *value, const char *place, void *record,
                      TextPool *pool, Error *error) {
    Text json = {0};
    put_value(option, value, &json);
    JsonDocument *document = NULL;
    if (json.failed)
        error_out_of_memory(error, place, json.length);
    else
        document = json_parse(json.bytes ? json.bytes : "", json.length, place, error);
    bool ok = document && option_read(option, json_root(document), record, ".", pool, error);
    json_free(document);
    text_free(&json);
    return ok;
}

bool options_preset(OptionScope scope, void *record, TextPool *pool, Error *error) {
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        if (o->scope != scope || !o->preset) continue;
        JsonDocument *document = json_parse(o->preset, strlen(o->preset), "option table", error);
        bool ok = document && option_read(o, json_root(document), record, ".", pool, error);
        json_free(document);
        check(ok || error->code == ERROR_UNAVAILABLE, "preset of %s: %s", o->name, error->text);
        if (!ok) return false;
    }
    return true;
}

/* ---- by name ---- */
static bool applies(const Option *option, OptionScope scope, int kind) {
    return option->scope == scope && (kind < 0 || (option->kinds & (1u << kind)));
}

const Option *option_find(OptionScope scope, int kind, const char *name, Json at, Error *error) {
    enum { MOST = 64 };
    const char *known[MOST];
    size_t n_known = 0;
    const Option *elsewhere = NULL;
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        if (o->scope != scope) continue;
        bool fits = applies(o, scope, kind);
        if (!strcmp(o->name, name)) {
            if (fits) return o;
            if (!elsewhere) elsewhere = o;
        }
        if (fits && n_known < MOST) known[n_known++] = o->name;
    }
    if (elsewhere) {
        int other = 0;
        while (!(elsewhere->kinds & (1u << other))) other++;
        json_error(at, error, "expected an option of kind %s: got one of kind %s", step_kind_names[kind],
                   step_kind_names[other]);
        return NULL;
    }
    const char *near = json_nearest(name, known, n_known);
    json_error(at, error, "expected a known option: got \"%.80s\"%s%s%s", name,
               near ? " (did you mean \"" : "", near ? near : "", near ? "\"?)" : "");
    return NULL;
}

/* A required text or number that is still zero; a required choice is the kind alone, which was read first. */
static bool is_missing(const Option *option, const void *record) {
    const void *value = value_of(option, record);
    switch (option->type) {
    case OPTION_STRING:
    case OPTION_PATH: return !*(const char *const *)value || !**(const char *const *)value;
    case OPTION_INTEGER: return *(const int64_t *)value < (int64_t)option->least;
    default: return false;
    }
}

bool options_complete(OptionScope scope, int kind, const void *record, Json at, Error *error) {
    for (const Option *o = option_table; o < option_table + n_options; o++)
        if (applies(o, scope, kind) && !o->preset && is_missing(o, record))
            return json_error(at, error, "expected \"%s\" (%s): got nothing", o->name, o->help);
    return true;
}

/* ---- out ---- */
static void put_string(Text *to, const char *text) { text_put_json(to, text, strlen(text)); }

static void write_numbers(const NumberList *list, Text *to) {
    text_put_string(to, "[");
    for (int64_t i = 0; i < list->n; i++) {
        if (i) text_put_string(to, ", ");
        text_put_f64(to, list->values[i]);
    }
    text_put_string(to, "]");
}

static void write_value(const Option *option, const void *value, Text *to) {
    switch (option->type) {
    case OPTION_BOOL: text_put_string(to, *(const bool *)value ? "true" : "false"); break;
    case OPTION_INTEGER: text_format(to, "%lld", (long long)*(const int64_t *)value); break;
    case OPTION_NUMBER: text_put_f64(to, *(const double *)value); break;
    case OPTION_CHOICE: put_string(to, option->choices[*(const int *)value]); break;
    case OPTION_STRING:
    case OPTION_PATH: put_string(to, *(const char *const *)value); break;
    case OPTION_NAMES: {
        const NameList *list = value;
        text_put_string(to, "[");
        for (int64_t i = 0; i < list->n; i++) {
            if (i) text_put_string(to, ", ");
            put_string(to, list->names[i]);
        }
        text_put_string(to, "]");
        break;
    }
    case OPTION_NUMBERS:
    case OPTION_INTEGERS: write_numbers(value, to); break;
    }
}

void option_write(const Option *option, const void *record, Text *to) {
    put_string(to, option->name);
    text_put_string(to, ": ");
    write_value(option, value_of(option, record), to);
}

void options_write(OptionScope scope, int kind, const void *record, int indent, bool identity, Text *to) {
    bool first = true;
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        if (!applies(o, scope, kind)) continue;
        if (identity && (o->same_results || o->type == OPTION_PATH)) continue;
        text_format(to, "%s%*s", first ? "" : ",\n", indent, "");
        option_write(o, record, to);
        first = false;
    }
}

void options_write_statistics(int kind, const void *record, Text *to) {
    bool first = true;
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        if (!o->statistics || !applies(o, SCOPE_STEP, kind)) continue;
        if (!first) text_put_string(to, ", ");
        option_write(o, record, to);
        first = false;
    }
}

const char *option_choice(const char *name, OptionScope scope, int value) {
    for (const Option *o = option_table; o < option_table + n_options; o++)
        if (o->scope == scope && o->type == OPTION_CHOICE && !strcmp(o->name, name)) return o->choices[value];
    check(false, "no choice %s", name);
    return NULL;
}

/* ---- help ---- */
static void document_type(const Option *o, Text *to) {
    static const char *const types[] = {"true or false", "integer", "number",  "",        "text",
                                        "path",          "names",   "numbers", "integers"};
    if (o->type == OPTION_CHOICE) {
        char list[300];
        list_choices(o->choices, list, sizeof list);
        text_put_string(to, list);
    } else {
        text_put_string(to, types[o->type]);
    }
    if (o->type == OPTION_INTEGER || o->type == OPTION_NUMBER || o->type == OPTION_NUMBERS ||
        o->type == OPTION_INTEGERS)
        text_format(to, " from %.16g to %.16g", o->least, o->most);
}

void options_document(Text *to) {
    static const char *const headings[N_SCOPES] = {"The job", "\"models\": {NAME: {...}}",
                                                   "\"prompts\": {NAME: {...}}", "\"steps\": [{...}]"};
    text_put_string(
        to, "A job is a JSON object. Relative paths count from its file's folder; \"_comment\" keys are\n"
            "passed over. --set takes PATH=VALUE with the paths batch_tokens, models.NAME.path,\n"
            "prompts.NAME.limit, steps.NAME.loss and so on; texts need no quotes, lists are a,b,c, and\n"
            "relative paths in it count from the current folder.\n");
    OptionScope scope = N_SCOPES;
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        if (o->scope != scope) text_format(to, "\n%s\n", headings[scope = o->scope]);
        text_format(to, "  %s", o->name);
        if (o->scope == SCOPE_STEP) {
            const char *between = " (";
            for (int kind = 0; kind < N_STEP_KINDS; kind++)
                if (o->kinds & (1u << kind)) {
                    text_format(to, "%s%s", between, step_kind_names[kind]);
                    between = ", ";
                }
            text_put_string(to, ")");
        }
        text_put_string(to, ": ");
        document_type(o, to);
        text_format(to, "; %s%s\n      %s\n", o->preset ? "default " : "must be given",
                    o->preset ? o->preset : "", o->help);
    }
}

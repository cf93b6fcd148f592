/* Walks a resolved job by the table of options and puts a sentence for each; marked up or plain. */
#include "methods.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "definitions.h"
#include "results.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_JOB_BYTES = 64 << 20 };

typedef struct {
    Text *to;
    bool html;
} Writer;

/* ---- two forms of one text ---- */
static void put_bytes(const Writer *w, const char *text, size_t n) {
    (w->html ? text_put_html : text_put_terminal)(w->to, text, n);
}

static void put(const Writer *w, const char *text) { put_bytes(w, text, strlen(text)); }

static void mark(const Writer *w, const char *html, const char *plain) {
    text_put_string(w->to, w->html ? html : plain);
}

static void put_heading(const Writer *w, const char *what, const char *name) {
    mark(w, "<h3>", "\n");
    put(w, what);
    if (name) put(w, " ");
    if (name) put(w, name);
    mark(w, "</h3>\n", "\n");
}

/* ---- values ---- */
/* The shortest of two forms that reads back as the same. */
static void put_number(double value, Text *to) {
    char text[32];
    snprintf(text, sizeof text, "%.15g", value);
    if (strtod(text, NULL) != value) snprintf(text, sizeof text, "%.17g", value);
    text_put_string(to, text);
}

static void value_put(const Option *option, Json at, Text *to) {
    Error none = {0};
    const char *string = "";
    bool yes = false;
    double number = 0;
    Json entry = {0};
    switch (json_type(at)) {
    case JSON_STRING:
        json_string(at, &string, &none);
        if (option && option->type == OPTION_PATH) string = io_last_name(string);
        text_put_string(to, *string ? string : "\"\"");
        break;
    case JSON_BOOL:
        json_bool(at, &yes, &none);
        text_put_string(to, yes ? "true" : "false");
        break;
    case JSON_NUMBER:
        json_number(at, &number, &none);
        put_number(number, to);
        break;
    case JSON_NULL: text_put_string(to, "null"); break;
    default:
        if (!json_count(at)) text_put_string(to, "[]");
        for (bool first = true; json_next(&at, &entry); first = false) {
            if (!first) text_put_string(to, ", ");
            if (entry.key) text_format(to, "%s: ", entry.key);
            value_put(NULL, entry, to);
        }
    }
}

/* The value in words; caller frees. Never NULL bytes unless out of memory. */
static Text value_of(const Option *option, Json at) {
    Text words = {0};
    value_put(option, at, &words);
    return words;
}

static const char *words_of(const Text *words) { return words->bytes ? words->bytes : ""; }

/* ---- sentences ---- */
/* Bit of the step's kind in the masks of kinds; all of them for a kind that is not known. */
static unsigned kind_bit(const char *kind) {
    for (int i = 0; i < N_STEP_KINDS; i++)
        if (!strcmp(step_kind_names[i], kind)) return 1u << i;
    return ~0u;
}

const MethodSentence *methods_sentence(int64_t i) {
    if (i < n_method_sentences) return &method_sentences[i];
    i -= n_method_sentences;
    return i < n_utility_sentences ? &utility_sentences[i] : NULL;
}

static const char *find_sentence(const Option *option, unsigned kind, const char *value) {
    const MethodSentence *s;
    for (int64_t i = 0; (s = methods_sentence(i)); i++)
        if (s->scope == option->scope && !strcmp(s->option, option->name) && (!s->kinds || s->kinds & kind) &&
            (!s->value || !strcmp(s->value, value)))
            return s->text;
    return NULL;
}

/* What the help says of a choice, "NAME: meaning; ..."; else all of it. */
static void put_gist(const Writer *w, const Option *option, const char *value) {
    const char *help = option->help, *prefix = "statistics: ";
    if (!strncmp(help, prefix, strlen(prefix))) help += strlen(prefix);
    size_t n = strlen(value);
    const char *at = option->type == OPTION_CHOICE ? help : NULL;
    for (; at && (at = strstr(at, value)); at += n)
        if ((at == help || at[-1] == ' ') && !strncmp(at + n, ": ", 2)) break;
    if (at)
        put_bytes(w, at + n + 2, strcspn(at + n + 2, ";"));
    else
        put(w, help);
}

/* "Sentence (name = value). " */
static void put_option(const Writer *w, const Option *option, unsigned kind, const char *value) {
    const char *text = find_sentence(option, kind, value);
    if (!text) {
        put(w, option->name);
        put(w, " is ");
        put(w, value);
        put(w, " (");
        put_gist(w, option, value);
        put(w, "). ");
        return;
    }
    for (const char *hole; (hole = strstr(text, "{}")); text = hole + 2) {
        put_bytes(w, text, (size_t)(hole - text));
        put(w, value);
    }
    put(w, text);
    put(w, " (");
    put(w, option->name);
    put(w, " = ");
    put(w, value);
    put(w, "). ");
}

/* Whether the option does anything, by what else the step says. */
static bool has_effect(const Option *option, Json record) {
    for (const MethodNeed *need = method_needs; need < method_needs + n_method_needs; need++) {
        Json other = json_member(&record, need->other);
        if (option->scope != SCOPE_STEP || strcmp(need->option, option->name) != 0 || !other.node) continue;
        Text words = value_of(NULL, other);
        bool fits = need->except && strcmp(words_of(&words), need->except) != 0;
        for (int i = 0; i < 4 && need->values[i]; i++)
            fits = fits || !strcmp(words_of(&words), need->values[i]);
        text_free(&words);
        if (!fits) return false;
    }
    return true;
}

typedef enum { WITH_EFFECT, WITHOUT_EFFECT, NOT_STATED } Part;

/* The options of a record that belong to one part; `lead` stands before the first of a list. */
static void put_part(const Writer *w, OptionScope scope, unsigned kind, Json record, Part part) {
    static const char *const leads[] = {NULL, "Without effect here: ", "Not stated in the job: "};
    bool any = false;
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        if (o->scope != scope || (scope == SCOPE_STEP && (kind == ~0u || !(o->kinds & kind)))) continue;
        if (scope == SCOPE_STEP && !strcmp(o->name, "name")) continue; /* in the heading */
        Json at = json_member(&record, o->name);
        Part own = !at.node ? NOT_STATED : has_effect(o, record) ? WITH_EFFECT : WITHOUT_EFFECT;
        if (own != part) continue;
        Text value = value_of(o, at);
        if (part == WITH_EFFECT) {
            put_option(w, o, kind, words_of(&value));
        } else {
            put(w, any ? ", " : leads[part]);
            put(w, o->name);
            if (part == WITHOUT_EFFECT) put(w, " = ");
            if (part == WITHOUT_EFFECT) put(w, words_of(&value));
        }
        w->to->failed = w->to->failed || value.failed;
        text_free(&value);
        any = true;
    }
    if (any && part != WITH_EFFECT) put(w, ". ");
}

static bool is_known(OptionScope scope, unsigned kind, const char *name) {
    static const char *const own[] = {"models", "prompts", "steps"};
    for (int i = 0; scope == SCOPE_JOB && i < 3; i++)
        if (!strcmp(own[i], name)) return true;
    if (scope == SCOPE_STEP && !strcmp(name, "name")) return true;
    for (const Option *o = option_table; o < option_table + n_options; o++)
        if (o->scope == scope && !strcmp(o->name, name) &&
            (scope != SCOPE_STEP || (kind != ~0u && o->kinds & kind)))
            return true;
    return false;
}

/* Members that the table of options does not have, as a job of a later version may. */
static void put_unknown(const Writer *w, OptionScope scope, unsigned kind, Json record) {
    Json at = {0};
    bool any = false;
    while (json_next(&record, &at)) {
        if (is_known(scope, kind, at.key) || !strncmp(at.key, "_comment", 8)) continue;
        Text value = value_of(NULL, at);
        put(w, any ? ", " : "Not known to this version: ");
        put(w, at.key);
        put(w, " = ");
        put(w, words_of(&value));
        w->to->failed = w->to->failed || value.failed;
        text_free(&value);
        any = true;
    }
    if (any) put(w, ". ");
}

static void put_record(const Writer *w, OptionScope scope, const char *kind, Json record) {
    unsigned bit = kind ? kind_bit(kind) : 0;
    mark(w, "<p>", "");
    put_part(w, scope, bit, record, WITH_EFFECT);
    put_part(w, scope, bit, record, WITHOUT_EFFECT);
    put_part(w, scope, bit, record, NOT_STATED);
    put_unknown(w, scope, bit, record);
    const char *always = kind ? method_always(kind) : NULL;
    if (always) put(w, always);
    mark(w, "</p>\n", "\n");
}

/* ---- definitions ---- */
static const Definition *find_definition(const char *path) {
    for (const Definition *d = definition_table; d < definition_table + n_definitions; d++)
        if (!strcmp(d->path, path)) return d;
    return NULL;
}

/* "groups.NAME.layers[].entropy" is layers[].entropy to a reader. */
static void put_definitions(const Writer *w) {
    static const char prefix[] = "groups.NAME.";
    put_heading(w, "Definitions", NULL);
    mark(w, "<dl>\n", "");
    for (const char *const *path = method_definitions; *path; path++) {
        const Definition *d = find_definition(*path);
        if (!d) continue;
        mark(w, "<dt>", "");
        put(w, !strncmp(d->path, prefix, sizeof prefix - 1) ? d->path + sizeof prefix - 1 : d->path);
        if (d->unit) put(w, " (");
        if (d->unit) put(w, d->unit);
        if (d->unit) put(w, ")");
        mark(w, "</dt><dd>", ": ");
        put(w, d->meaning);
        mark(w, "</dd>\n", "\n");
    }
    mark(w, "</dl>\n", "");
}

/* ---- the job ---- */
static bool measures(const char *kind) { return !strcmp(kind, "activation") || !strcmp(kind, "gradient"); }

static void put_steps(const Writer *w, Json steps, bool *measured) {
    Json at = {0};
    while (json_next(&steps, &at)) {
        Error none = {0};
        const char *name = "", *kind = "";
        json_string(json_member(&at, "name"), &name, &none);
        json_string(json_member(&at, "kind"), &kind, &none);
        put_heading(w, "Step", name);
        put_record(w, SCOPE_STEP, kind, at);
        *measured = *measured || measures(kind);
    }
}

static void put_named(const Writer *w, OptionScope scope, const char *what, Json records) {
    Json at = {0};
    while (json_next(&records, &at)) {
        if (!strncmp(at.key, "_comment", 8)) continue;
        put_heading(w, what, at.key);
        put_record(w, scope, NULL, at);
    }
}

static bool put_job(Json job, bool html, Text *to, Error *error) {
    Writer w = {to, html};
    Json steps = json_member(&job, "steps"), models = json_member(&job, "models"),
         prompts = json_member(&job, "prompts");
    if (!json_count(steps)) return json_error(steps, error, "expected an array of steps");
    put_heading(&w, "Computation", NULL);
    put_record(&w, SCOPE_JOB, NULL, job);
    put_named(&w, SCOPE_MODEL, "Model", models);
    put_named(&w, SCOPE_PROMPTS, "Prompt group", prompts);
    bool measured = false;
    put_steps(&w, steps, &measured);
    if (measured) put_definitions(&w);
    return !to->failed || error_out_of_memory(error, "the methods text", to->length);
}

bool methods_put(Json job, Text *to, Error *error) { return put_job(job, true, to, error); }

bool methods_put_plain(Json job, Text *to, Error *error) {
    text_put_string(to, "Methods\n");
    return put_job(job, false, to, error);
}

bool methods_write(const char *folder, Error *error) {
    char *path = io_join(folder, "job.json");
    JsonDocument *job = path ? json_read(path, MAX_JOB_BYTES, error) : NULL;
    Text text = {0};
    bool ok = path || error_out_of_memory(error, "a path", strlen(folder));
    ok = ok && job && methods_put_plain(json_root(job), &text, error) &&
         results_write_text(folder, "methods.txt", &text, error);
    text_free(&text);
    json_free(job);
    mem_free(path);
    return ok;
}

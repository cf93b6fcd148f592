/* Two run folders: job, manifest, then every file of the steps in the order of their names. */
#include "diff.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "diff_parts.h"
#include "options.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_JSON_BYTES = 64 << 20, DEEPEST = 4, PIECE = 1 << 16 };

typedef struct {
    const char *a, *b;
    FILE *out;
    int64_t n_same, n_different; /* files; settings and inputs that differ count as one each */
    Text lines;
} Diff;

static void say(Diff *d, const char *text) { text_put_terminal(&d->lines, text, strlen(text)); }

static bool flush(Diff *d, Error *error) {
    if (d->lines.failed) return error_out_of_memory(error, "differences", d->lines.length);
    if (d->lines.length) fwrite(d->lines.bytes, 1, d->lines.length, d->out);
    text_clear(&d->lines);
    return true;
}

/* ---- job.json ---- */
/* The option that a path like steps[NAME].loss ends in. */
static bool changes_no_number(const char *path) {
    const char *dot = strrchr(path, '.'), *name = dot ? dot + 1 : path;
    OptionScope scope = !strncmp(path, "models.", 7)    ? SCOPE_MODEL
                        : !strncmp(path, "prompts.", 8) ? SCOPE_PROMPTS
                        : !strncmp(path, "steps[", 6)   ? SCOPE_STEP
                                                        : SCOPE_JOB;
    for (const Option *o = option_table; o < option_table + n_options; o++)
        if (o->scope == scope && !strcmp(o->name, name)) return o->same_results || o->type == OPTION_PATH;
    return false;
}

static void say_values(Diff *d, const Difference *one) {
    bool number = one->largest >= 0;
    say(d, number ? one->a : one->first_a);
    say(d, " against ");
    say(d, number ? one->b : one->first_b);
}

static bool compare_jobs(Diff *d, JsonDocument *a, JsonDocument *b, Error *error) {
    Differences all = {0};
    diff_json(json_root(a), json_root(b), "", &all);
    for (int64_t i = 0; i < all.n; i++) {
        const Difference *one = &all.list[i];
        if (!one->n_differ && !one->n_only_a && !one->n_only_b) continue;
        bool note = changes_no_number(one->path);
        say(d, note ? "note: " : "option ");
        say(d, one->path);
        say(d, ": ");
        say_values(d, one);
        say(d, note ? " (changes no number)\n" : "\n");
        d->n_different += !note;
    }
    bool ok = !all.failed || error_out_of_memory(error, "differences", sizeof *all.list);
    differences_free(&all);
    return ok;
}

/* ---- manifest.json ---- */
static const char *member_text(Json object, const char *name) {
    const char *text = "none";
    Error none = {0};
    json_string(json_member(&object, name), &text, &none);
    return text;
}

static Json find_input(Json inputs, const char *name) {
    Json at = {0};
    while (json_next(&inputs, &at))
        if (!strcmp(member_text(at, "name"), name)) return at;
    return (Json){0};
}

static void say_input(Diff *d, const char *name, const char *what) {
    say(d, "input ");
    say(d, name);
    say(d, what);
    d->n_different++;
}

static void compare_inputs(Diff *d, Json a, Json b) {
    Json at = {0};
    while (json_next(&a, &at)) {
        const char *name = member_text(at, "name"), *hash = member_text(at, "sha256"), *other;
        Json found = find_input(b, name);
        if (!found.node) {
            say_input(d, name, ": only in A\n");
        } else if (strcmp(hash, other = member_text(found, "sha256")) != 0) {
            say_input(d, name, ": sha256 ");
            text_put_terminal(&d->lines, hash, strnlen(hash, 12));
            say(d, "... against ");
            text_put_terminal(&d->lines, other, strnlen(other, 12));
            say(d, "...\n");
        }
    }
    at = (Json){0};
    while (json_next(&b, &at)) {
        const char *name = member_text(at, "name");
        if (!find_input(a, name).node) say_input(d, name, ": only in B\n");
    }
}

static void compare_facts(Diff *d, Json a, Json b) {
    static const char *const facts[] = {"version", "state", "device", "isa", "compute", "dense"};
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
        const char *x = member_text(a, facts[i]), *y = member_text(b, facts[i]);
        if (!strcmp(x, y)) continue;
        say(d, "note: ");
        say(d, facts[i]);
        say(d, ": ");
        say(d, x);
        say(d, " against ");
        say(d, y);
        say(d, "\n");
    }
    compare_inputs(d, json_member(&a, "inputs"), json_member(&b, "inputs"));
}

/* One of the two folders' own files; NULL and no Error where it may be missing and is. */
static JsonDocument *read_own(const char *folder, const char *name, bool needed, Error *error) {
    char *path = io_join(folder, name);
    JsonDocument *document = NULL;
    if (!path)
        error_out_of_memory(error, "a path", strlen(folder));
    else if (needed && !io_exists(path))
        error_set(error, ERROR_BAD_INPUT, "%s: expected a run folder: got no %s in it", folder, name);
    else if (io_exists(path))
        document = json_read(path, MAX_JSON_BYTES, error);
    mem_free(path);
    return document;
}

static bool compare_own(Diff *d, Error *error) {
    JsonDocument *a = read_own(d->a, "job.json", true, error),
                 *b = a ? read_own(d->b, "job.json", true, error) : NULL;
    bool ok = b && compare_jobs(d, a, b, error);
    json_free(a);
    json_free(b);
    if (!ok) return false;
    a = read_own(d->a, "manifest.json", false, error);
    b = read_own(d->b, "manifest.json", false, error);
    if (a && b)
        compare_facts(d, json_root(a), json_root(b));
    else if (error->code == ERROR_NONE)
        say(d, "note: no manifest.json in both: inputs are not compared\n");
    json_free(a);
    json_free(b);
    return error->code == ERROR_NONE && flush(d, error);
}

/* ---- files ---- */
typedef struct {
    char **list;
    int64_t n, capacity;
} Names;

static void names_free(Names *names) {
    for (int64_t i = 0; i < names->n; i++) mem_free(names->list[i]);
    mem_free(names->list);
}

static bool names_put(Names *names, char *name, Error *error) {
    if (names->n == names->capacity) {
        int64_t more = names->capacity ? 2 * names->capacity : 64;
        char **list = mem_resize(names->list, (size_t)more, sizeof *list);
        if (!list) {
            mem_free(name);
            return error_out_of_memory(error, "names of files", (size_t)more * sizeof *list);
        }
        names->list = list;
        names->capacity = more;
    }
    names->list[names->n++] = name;
    return true;
}

/* What is made from the rest, says the time, or is the work of a step that is not finished. */
static bool is_passed_over(const char *name, int depth) {
    static const char *const own[] = {"job.json",    "manifest.json", "events.jsonl",    "README.txt",
                                      "report.html", "methods.txt",   "statistics.json", "figures"};
    for (size_t i = 0; depth == 0 && i < sizeof own / sizeof *own; i++)
        if (!strcmp(own[i], name)) return true;
    return !strcmp(name, "blocks") || strstr(name, ".partial-");
}

/* Files under root/inside, by their path from root. */
static bool list_files(const char *root, const char *inside, int depth, Names *to, Error *error) {
    char **names = NULL, *folder = io_join(root, inside);
    size_t n = 0;
    bool ok = (folder || error_out_of_memory(error, "a path", strlen(root))) &&
              io_list(inside[0] ? folder : root, &names, &n, error);
    for (size_t i = 0; i < n; i++) {
        char *name = inside[0] ? io_join(inside, names[i]) : mem_copy_text(names[i], strlen(names[i])),
             *path = name ? io_join(root, name) : NULL;
        ok = ok && (path || error_out_of_memory(error, "a path", strlen(root)));
        if (!ok || is_passed_over(names[i], depth)) {
            mem_free(name);
        } else if (io_is_folder(path)) {
            ok = depth < DEEPEST ? list_files(root, name, depth + 1, to, error)
                                 : error_set(error, ERROR_BAD_INPUT,
                                             "%s: expected a run folder, folders at most %d deep: got %s",
                                             root, DEEPEST, name);
            mem_free(name);
        } else {
            ok = names_put(to, name, error);
        }
        mem_free(path);
        mem_free(names[i]);
    }
    mem_free(names);
    mem_free(folder);
    return ok;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool same_bytes(const char *a, const char *b, bool *same, Error *error) {
    IoFile one = {.fd = -1}, other = {.fd = -1};
    char *room = mem_alloc(2 * PIECE);
    bool ok = (room || error_out_of_memory(error, "a file", 2 * PIECE)) && io_open(&one, a, error) &&
              io_open(&other, b, error);
    *same = ok && one.n_bytes == other.n_bytes;
    for (uint64_t at = 0; ok && *same && at < one.n_bytes; at += PIECE) {
        size_t n = one.n_bytes - at < PIECE ? (size_t)(one.n_bytes - at) : PIECE;
        ok = io_read_at(&one, at, room, n, error) && io_read_at(&other, at, room + PIECE, n, error);
        *same = ok && !memcmp(room, room + PIECE, n);
    }
    if (one.fd >= 0) io_close(&one);
    if (other.fd >= 0) io_close(&other);
    mem_free(room);
    return ok;
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

static void say_rows(Diff *d, const DiffRows *rows) {
    if (!rows->n_only_a && !rows->n_only_b) {
        text_format(&d->lines, " %lld rows, ids equal", (long long)rows->n_both);
        return;
    }
    text_format(&d->lines, " %lld rows in both, ids differ: ", (long long)rows->n_both);
    if (rows->n_only_a) {
        text_format(&d->lines, "%lld only in A (first ", (long long)rows->n_only_a);
        say(d, rows->first_a);
        say(d, rows->n_only_b ? "), " : ")");
    }
    if (rows->n_only_b) {
        text_format(&d->lines, "%lld only in B (first ", (long long)rows->n_only_b);
        say(d, rows->first_b);
        say(d, ")");
    }
}

/* A file whose bytes differ. What holds the same values otherwise written counts as the same. */
static bool compare_contents(Diff *d, const char *name, const char *a, const char *b, Error *error) {
    Differences all = {0};
    DiffRows rows = {0};
    bool is_csv = ends_with(name, ".csv"), is_lines = ends_with(name, ".jsonl"), ok = true,
         by_value = is_csv || is_lines || ends_with(name, ".json") || ends_with(name, ".safetensors");
    if (is_csv)
        ok = diff_csv(a, b, &rows, &all, error);
    else if (is_lines)
        ok = diff_jsonl(a, b, &rows, &all, error);
    else if (ends_with(name, ".json"))
        ok = diff_json_files(a, b, &all, error);
    else if (by_value)
        ok = diff_arrays(a, b, &all, error);
    if (ok && all.failed) ok = error_out_of_memory(error, "differences", sizeof *all.list);
    bool differ = ok && (!by_value || differences_any(&all) || rows.n_only_a || rows.n_only_b);
    if (differ) {
        say(d, name);
        say(d, by_value ? ":" : ": bytes differ");
        if (is_csv || is_lines) say_rows(d, &rows);
        say(d, "\n");
        differences_print(&all, &d->lines);
    }
    d->n_different += differ;
    d->n_same += ok && !differ;
    differences_free(&all);
    return ok;
}

static bool compare_file(Diff *d, const char *name, Error *error) {
    char *a = io_join(d->a, name), *b = io_join(d->b, name);
    bool same = false, ok = (a && b) || error_out_of_memory(error, "a path", strlen(name));
    ok = ok && same_bytes(a, b, &same, error);
    if (same) d->n_same++;
    if (ok && !same) ok = compare_contents(d, name, a, b, error);
    mem_free(a);
    mem_free(b);
    return ok && flush(d, error);
}

static void say_only(Diff *d, const char *name, const char *where) {
    say(d, where);
    say(d, name);
    say(d, "\n");
    d->n_different++;
}

static bool compare_files(Diff *d, Error *error) {
    Names a = {0}, b = {0};
    bool ok = list_files(d->a, "", 0, &a, error) && list_files(d->b, "", 0, &b, error);
    if (ok && a.n) qsort(a.list, (size_t)a.n, sizeof *a.list, compare_names);
    if (ok && b.n) qsort(b.list, (size_t)b.n, sizeof *b.list, compare_names);
    for (int64_t i = 0, k = 0; ok && (i < a.n || k < b.n);) {
        int order = i == a.n ? 1 : k == b.n ? -1 : strcmp(a.list[i], b.list[k]);
        if (order < 0)
            say_only(d, a.list[i++], "only in A: ");
        else if (order > 0)
            say_only(d, b.list[k++], "only in B: ");
        else
            ok = compare_file(d, a.list[i], error), i++, k++;
    }
    names_free(&a);
    names_free(&b);
    return ok && flush(d, error);
}

bool diff_runs(const char *a, const char *b, FILE *to, bool *same, Error *error) {
    Diff d = {.a = a, .b = b, .out = to};
    say(&d, "A: ");
    say(&d, a);
    say(&d, "\nB: ");
    say(&d, b);
    say(&d, "\n");
    bool ok = compare_own(&d, error) && compare_files(&d, error);
    *same = ok && !d.n_different;
    if (ok && *same) text_format(&d.lines, "same: %lld files\n", (long long)d.n_same);
    if (ok && !*same)
        text_format(&d.lines, "different: %lld settings, inputs and files; %lld files are the same\n",
                    (long long)d.n_different, (long long)d.n_same);
    ok = ok && flush(&d, error);
    text_free(&d.lines);
    return ok;
}

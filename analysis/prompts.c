/* Prompt files: JSON lines and CSV into entries. A misspelt column would silently change what is measured,
 * so one that is nearly `prompt`, `messages` or `target` where that is missing is refused; all others are
 * the user's own. */
#include "prompts.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "csv.h"
#include <stdlib.h>
#include <string.h>

static const size_t max_file_bytes = (size_t)1 << 30;
enum { MAX_MESSAGES = 10000 };

void prompts_free(PromptFile *prompts) {
    for (int64_t i = 0; i < prompts->n; i++) mem_free(prompts->entries[i].messages);
    mem_free(prompts->entries);
    mem_free(prompts->file);
    pool_free(&prompts->pool);
    *prompts = (PromptFile){0};
}

/* ---- entries ---- */
static PromptEntry *add_entry(PromptFile *to, int64_t index, int64_t line, Error *error) {
    if (to->n == to->capacity) {
        int64_t more = to->capacity ? 2 * to->capacity : 64;
        PromptEntry *entries = mem_resize(to->entries, (size_t)more, sizeof *entries);
        if (!entries) {
            error_out_of_memory(error, "prompts", (size_t)more * sizeof *entries);
            return NULL;
        }
        to->entries = entries;
        to->capacity = more;
    }
    PromptEntry *entry = &to->entries[to->n++];
    *entry = (PromptEntry){.index = index, .line = line};
    return entry;
}

static bool set_messages(PromptEntry *entry, int64_t n, Error *error) {
    entry->messages = mem_zeroed(n ? (size_t)n : 1, sizeof *entry->messages);
    entry->n_messages = n;
    return entry->messages || error_out_of_memory(error, "messages", (size_t)n * sizeof *entry->messages);
}

static bool set_message(PromptFile *to, ChatMessage *message, TokenRole role, const char *text,
                        Error *error) {
    size_t length = strlen(text);
    *message = (ChatMessage){role, pool_put(&to->pool, text, length, error), length};
    return message->content != NULL;
}

static bool set_prompt(PromptFile *to, PromptEntry *entry, const char *text, Error *error) {
    return set_messages(entry, 1, error) && set_message(to, entry->messages, ROLE_USER, text, error);
}

static bool set_target(PromptFile *to, PromptEntry *entry, const char *text, Error *error) {
    entry->target_length = strlen(text);
    return (entry->target = pool_put(&to->pool, text, entry->target_length, error)) != NULL;
}

static bool set_id(PromptFile *to, PromptEntry *entry, const char *text, Error *error) {
    char number[32];
    snprintf(number, sizeof number, "%lld", (long long)entry->index);
    if (!text || !text[0]) text = number;
    return (entry->id = pool_put(&to->pool, text, strlen(text), error)) != NULL;
}

/* A further column's text; none where it is empty. */
static bool set_column(PromptFile *to, const char **column, const char *text, Error *error) {
    *column = NULL;
    if (!text || !text[0]) return true;
    return (*column = pool_put(&to->pool, text, strlen(text), error)) != NULL;
}

/* ---- JSON lines ---- */
static bool find_role(Json at, TokenRole *role, Error *error) {
    static const TokenRole roles[] = {ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT};
    static const char *const names[] = {"system", "user", "assistant"};
    const char *name;
    if (!json_string(at, &name, error)) return false;
    for (int i = 0; i < 3; i++)
        if (!strcmp(names[i], name)) {
            *role = roles[i];
            return true;
        }
    return json_error(at, error, "expected system, user or assistant: got \"%.80s\"", name);
}

static bool read_messages(PromptFile *to, PromptEntry *entry, Json messages, Error *error) {
    int64_t n = json_type(messages) == JSON_ARRAY ? json_count(messages) : 0;
    if (n < 1 || n > MAX_MESSAGES)
        return json_error(messages, error, "expected an array of 1 to %d messages", MAX_MESSAGES);
    if (!set_messages(entry, n, error)) return false;
    Json at = {0};
    while (json_next(&messages, &at)) {
        TokenRole role = ROLE_USER;
        const char *content;
        if (!find_role(json_member(&at, "role"), &role, error) ||
            !json_string(json_member(&at, "content"), &content, error) ||
            !set_message(to, &entry->messages[at.index], role, content, error))
            return false;
    }
    return true;
}

static bool read_id(PromptFile *to, PromptEntry *entry, Json at, Error *error) {
    char number[32];
    const char *text = NULL;
    int64_t value;
    if (at.node && json_type(at) == JSON_NUMBER) {
        if (!json_integer(at, -9007199254740991, 9007199254740991, &value, error)) return false;
        snprintf(number, sizeof number, "%lld", (long long)value);
        text = number;
    } else if (at.node && json_type(at) != JSON_NULL && !json_string(at, &text, error)) {
        return false;
    }
    return set_id(to, entry, text, error);
}

/* The columns of contrasts. Whatever else stands under these names is the user's own. */
static bool read_contrast(PromptFile *to, PromptEntry *entry, Json root, Error *error) {
    static const char *const keys[] = {"other_target", "topic", "pair"};
    const char **columns[] = {&entry->other_target, &entry->topic, &entry->pair};
    for (int i = 0; i < 3; i++) {
        Json at = json_member(&root, keys[i]);
        Error other_kind = {0};
        char number[32];
        const char *text = NULL;
        int64_t value;
        if (!at.node) continue;
        if (i && json_type(at) == JSON_NUMBER &&
            json_integer(at, -9007199254740991, 9007199254740991, &value, &other_kind)) {
            snprintf(number, sizeof number, "%lld", (long long)value);
            text = number;
        } else if (json_type(at) == JSON_STRING && !json_string(at, &text, error)) {
            return false;
        }
        if (!set_column(to, columns[i], text, error)) return false;
    }
    return true;
}

static bool refuse_near_miss(Json entry, Error *error) {
    static const char *const known[] = {"prompt", "messages", "target"};
    Json at = {0};
    while (json_next(&entry, &at)) {
        const char *near = json_nearest(at.key, known, 3);
        if (!near || !strcmp(near, at.key) || json_member(&entry, near).node) continue;
        bool has_text = json_member(&entry, "prompt").node || json_member(&entry, "messages").node;
        bool shares = !strncmp(near, at.key, 3);
        if (shares && (!has_text || !strcmp(near, "target")))
            return json_error(at, error, "expected a known column: got \"%.80s\" (did you mean \"%s\"?)",
                              at.key, near);
    }
    return true;
}

static bool read_object(PromptFile *to, PromptEntry *entry, Json root, Error *error) {
    if (json_type(root) != JSON_OBJECT)
        return json_error(root, error, "expected an object: got %s", json_type_name(json_type(root)));
    if (!refuse_near_miss(root, error)) return false;
    Json prompt = json_member(&root, "prompt"), messages = json_member(&root, "messages"),
         target = json_member(&root, "target"), question = json_member(&root, "question");
    if (!prompt.node && !messages.node && question.node) prompt = question;
    if (question.node && prompt.node == question.node && json_type(question) == JSON_OBJECT)
        prompt = json_member(&question, "stem");
    if (!prompt.node == !messages.node)
        return json_error(root, error, "expected prompt or messages: got %s",
                          prompt.node ? "both" : "neither");
    const char *text;
    bool ok = prompt.node ? json_string(prompt, &text, error) && set_prompt(to, entry, text, error)
                          : read_messages(to, entry, messages, error);
    if (ok && target.node && json_type(target) != JSON_NULL)
        ok = json_string(target, &text, error) && set_target(to, entry, text, error);
    return ok && read_contrast(to, entry, root, error) && read_id(to, entry, json_member(&root, "id"), error);
}

static bool is_blank(const char *line, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (!strchr(" \t\r", line[i])) return false;
    return true;
}

static bool parse_lines(const PromptOptions *options, const char *text, size_t length, PromptFile *to,
                        Error *error) {
    int64_t index = 0, line = 1;
    for (size_t begin = 0; begin < length; line++) {
        const char *at = text + begin, *end = memchr(at, '\n', length - begin);
        size_t n = end ? (size_t)(end - at) : length - begin;
        begin += n + 1;
        if (is_blank(at, n)) continue;
        if (index++ < options->first) continue;
        if (options->limit && to->n == options->limit) break;
        char name[600];
        snprintf(name, sizeof name, "%s:%lld", options->path, (long long)line);
        JsonDocument *document = json_parse(at, n, name, error);
        PromptEntry *entry = document ? add_entry(to, index - 1, line, error) : NULL;
        bool ok = entry && read_object(to, entry, json_root(document), error);
        json_free(document);
        if (!ok) return false;
    }
    return true;
}

/* ---- CSV ---- */
static bool check_columns(const Csv *csv, Error *error) {
    if (csv_find_column(csv, "prompt") < 0) {
        int64_t column;
        return csv_need_column(csv, "prompt", &column, error);
    }
    if (csv_find_column(csv, "messages") >= 0)
        return error_set(error, ERROR_BAD_INPUT, "%s: messages: expected in JSON lines only: got CSV",
                         csv->file);
    static const char *const known[] = {"target"};
    for (int64_t i = 0; csv_find_column(csv, "target") < 0 && i < csv->n_columns; i++)
        if (!strncmp(csv->names[i].text, "tar", 3) && json_nearest(csv->names[i].text, known, 1))
            return error_set(error, ERROR_BAD_INPUT,
                             "%s: expected a known column: got \"%.80s\" (did you mean \"target\"?)",
                             csv->file, csv->names[i].text);
    return true;
}

static const char *field_text(const Csv *csv, int64_t row, int64_t column) {
    return column < 0 ? NULL : csv_field(csv, row, column).text;
}

static bool parse_table(const PromptOptions *options, const char *text, size_t length, PromptFile *to,
                        Error *error) {
    Csv csv;
    bool ok = csv_parse(text, length, options->path, &csv, error) && check_columns(&csv, error);
    int64_t prompt = ok ? csv_find_column(&csv, "prompt") : -1,
            target = ok ? csv_find_column(&csv, "target") : -1, id = ok ? csv_find_column(&csv, "id") : -1,
            other = ok ? csv_find_column(&csv, "other_target") : -1,
            topic = ok ? csv_find_column(&csv, "topic") : -1, pair = ok ? csv_find_column(&csv, "pair") : -1;
    for (int64_t r = options->first; ok && r < csv.n_rows; r++) {
        if (options->limit && to->n == options->limit) break;
        PromptEntry *entry = add_entry(to, r, csv.lines[r], error);
        ok = entry && set_prompt(to, entry, csv_field(&csv, r, prompt).text, error) &&
             set_id(to, entry, id < 0 ? NULL : csv_field(&csv, r, id).text, error);
        if (ok && target >= 0 && csv_field(&csv, r, target).length)
            ok = set_target(to, entry, csv_field(&csv, r, target).text, error);
        ok = ok && set_column(to, &entry->other_target, field_text(&csv, r, other), error) &&
             set_column(to, &entry->topic, field_text(&csv, r, topic), error) &&
             set_column(to, &entry->pair, field_text(&csv, r, pair), error);
    }
    csv_free(&csv);
    return ok;
}

/* ---- files ---- */
static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

bool prompts_parse(const PromptOptions *options, const char *text, size_t length, PromptFile *prompts,
                   Error *error) {
    *prompts = (PromptFile){.file = mem_copy_text(options->path, strlen(options->path))};
    if (!prompts->file) return error_out_of_memory(error, "a path", strlen(options->path));
    Hash hash;
    hash_begin(&hash);
    hash_add(&hash, text, length);
    hash_end(&hash, prompts->hash);
    int format = options->format;
    if (format == FORMAT_AUTO && (ends_with(options->path, ".jsonl") || ends_with(options->path, ".ndjson")))
        format = FORMAT_JSONL;
    if (format == FORMAT_AUTO && ends_with(options->path, ".csv")) format = FORMAT_CSV;
    if (format == FORMAT_AUTO)
        return error_set(error, ERROR_BAD_INPUT,
                         "%s: expected a name that ends in .jsonl or .csv, or \"format\" in the job",
                         options->path);
    bool ok = format == FORMAT_JSONL ? parse_lines(options, text, length, prompts, error)
                                     : parse_table(options, text, length, prompts, error);
    if (ok && !prompts->n)
        return error_set(error, ERROR_BAD_INPUT, "%s: expected at least one prompt: got none", options->path);
    return ok;
}

bool prompts_read(const PromptOptions *options, PromptFile *prompts, Error *error) {
    *prompts = (PromptFile){0};
    size_t n;
    char *text = io_read_all(options->path, max_file_bytes, &n, error);
    bool ok = text && prompts_parse(options, text, n, prompts, error);
    mem_free(text);
    return ok;
}

/* ---- what they have in common ---- */
static void hash_entry(const PromptEntry *entry, bool with_target, char hash[HASH_TEXT]) {
    Hash state;
    hash_begin(&state);
    for (int64_t i = 0; i < entry->n_messages; i++) {
        const ChatMessage *m = &entry->messages[i];
        uint64_t head[2] = {(uint64_t)m->role, m->length};
        hash_add(&state, head, sizeof head);
        hash_add(&state, m->content, m->length);
    }
    if (with_target && entry->target) hash_add(&state, entry->target, entry->target_length);
    hash_end(&state, hash);
}

typedef struct {
    char hash[HASH_TEXT];
} EntryHash;

static int by_hash(const void *a, const void *b) { return strcmp(a, b); }

int64_t prompts_count_common(const PromptFile *a, const PromptFile *b, bool with_target, int64_t *first) {
    EntryHash *hashes = mem_zeroed(b->n ? (size_t)b->n : 1, sizeof *hashes), own;
    if (!hashes) return -1;
    for (int64_t i = 0; i < b->n; i++) hash_entry(&b->entries[i], with_target, hashes[i].hash);
    qsort(hashes, (size_t)b->n, sizeof *hashes, by_hash);
    int64_t n = 0;
    for (int64_t i = a->n - 1; i >= 0; i--) {
        hash_entry(&a->entries[i], with_target, own.hash);
        if (!bsearch(&own, hashes, (size_t)b->n, sizeof *hashes, by_hash)) continue;
        n++;
        *first = i;
    }
    mem_free(hashes);
    return n;
}

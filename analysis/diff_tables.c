/* Tables and lists of JSON objects, row by row: the rows of the second file are found by key, so that their
 * order does not matter, and only where each begins is kept. */
#include "diff_parts.h"
#include "../engine/alloc.h"
#include "records.h"
#include <string.h>

enum { MOST_COLUMNS = 256 };

/* What names a row, in the order in which a place is said. Rows that have all of these alike, as those of a
 * pair of labellers, are taken in their order. */
static const char *const key_names[] = {"condition", "group",    "index", "layer",
                                        "expert",    "labeller", "other"};
enum { N_KEY_NAMES = sizeof key_names / sizeof *key_names };

/* One row of either kind. */
typedef struct {
    char *fields[MOST_COLUMNS]; /* CSV */
    JsonDocument *document;     /* JSON lines */
    uint64_t hash, offset;
    char place[DIFF_PLACE];
} Row;

typedef struct {
    const char *path;
    Records *records;
    char *header; /* CSV: own copy, its fields */
    char *names[MOST_COLUMNS];
    int64_t n_columns, n_rows; /* rows read so far */
    bool csv;
} Table;

/* ---- rows ---- */
/* Splits a CSV record in place; the number of fields, or -1 when it is not CSV or has too many. */
static int64_t split(char *at, char *fields[MOST_COLUMNS]) {
    for (int64_t n = 0; n < MOST_COLUMNS; n++) {
        char *to = at;
        fields[n] = at;
        if (*at == '"') {
            for (at++; *at && (*at != '"' || at[1] == '"'); *to++ = *at++) at += *at == '"';
            if (*at++ != '"') return -1;
        } else {
            while (*at && *at != ',') at++;
            to = at;
        }
        char end = *at;
        *to = '\0';
        if (!end) return n + 1;
        if (end != ',') return -1;
        at++;
    }
    return -1;
}

static void table_close(Table *t) {
    records_close(t->records);
    mem_free(t->header);
}

static bool table_open(Table *t, const char *path, bool csv, Error *error) {
    *t = (Table){.path = path, .csv = csv};
    char *line;
    size_t length;
    uint64_t offset;
    if (!(t->records = records_open(path, csv, error))) return false;
    if (!csv) return true;
    if (!records_next(t->records, &line, &length, &offset, error)) return false;
    t->header = line ? mem_copy_text(line, length) : NULL;
    if (line && !t->header) return error_out_of_memory(error, "a header", length);
    t->n_columns = t->header ? split(t->header, t->names) : -1;
    return t->n_columns > 0 || error_set(error, ERROR_BAD_INPUT,
                                         "%s: expected a header of at most %d columns", path, MOST_COLUMNS);
}

static int64_t find_column(const Table *t, const char *name) {
    for (int64_t i = 0; i < t->n_columns; i++)
        if (!strcmp(t->names[i], name)) return i;
    return -1;
}

/* The key's part, as text; NULL: the row has none. */
static const char *key_part(const Table *t, const Row *row, const char *name, char number[32]) {
    int64_t column = t->csv ? find_column(t, name) : -1;
    if (t->csv) return column < 0 ? NULL : row->fields[column];
    Json root = json_root(row->document), at = json_member(&root, name);
    Error none = {0};
    const char *text = NULL;
    double value;
    if (at.node && json_type(at) == JSON_STRING && json_string(at, &text, &none)) return text;
    if (!at.node || json_type(at) != JSON_NUMBER || !json_number(at, &value, &none)) return NULL;
    snprintf(number, 32, "%.17g", value);
    return number;
}

/* Hash and place; of a row without any key by its number. */
static void find_key(const Table *t, Row *row, bool *keyed) {
    char number[32];
    size_t used = 0;
    row->hash = 0, row->place[0] = '\0';
    *keyed = false;
    for (int i = 0; i < N_KEY_NAMES; i++) {
        const char *part = key_part(t, row, key_names[i], number);
        if (!part) continue;
        row->hash = row_hash(row_hash(row->hash, key_names[i]), part);
        if (used < sizeof row->place)
            used += (size_t)snprintf(row->place + used, sizeof row->place - used, "%s%s %s", used ? ", " : "",
                                     key_names[i], part);
        *keyed = true;
    }
    if (*keyed) return;
    snprintf(row->place, sizeof row->place, "row %lld", (long long)t->n_rows);
    row->hash = row_hash(0, row->place);
}

static void row_free(Row *row) {
    json_free(row->document);
    row->document = NULL;
}

/* The next row; *there false: no more. */
static bool read_row(Table *t, Row *row, bool *there, bool *keyed, Error *error) {
    char *line;
    size_t length;
    row_free(row);
    if (!records_next(t->records, &line, &length, &row->offset, error)) return false;
    *there = line != NULL;
    if (!line) return true;
    t->n_rows++;
    if (!t->csv && !(row->document = json_parse(line, length, t->path, error))) return false;
    if (t->csv && split(line, row->fields) != t->n_columns)
        return error_set(error, ERROR_BAD_INPUT, "%s: row %lld: expected %lld fields as in the header",
                         t->path, (long long)t->n_rows, (long long)t->n_columns);
    find_key(t, row, keyed);
    return true;
}

/* ---- two rows ---- */
static void compare_fields(const Table *a, const Table *b, const Row *x, const Row *y, Differences *to) {
    for (int64_t i = 0; i < a->n_columns; i++) {
        int64_t other = find_column(b, a->names[i]);
        if (other >= 0)
            (strcmp(a->names[i], "id") ? differences_put : differences_put_texts)(
                to, a->names[i], x->place, x->fields[i], y->fields[other]);
    }
}

static void compare_columns(const Table *a, const Table *b, Differences *to) {
    for (int64_t i = 0; i < a->n_columns; i++)
        if (find_column(b, a->names[i]) < 0) differences_put(to, a->names[i], "", "a column", NULL);
    for (int64_t i = 0; i < b->n_columns; i++)
        if (find_column(a, b->names[i]) < 0) differences_put(to, b->names[i], "", NULL, "a column");
}

/* ---- two files ---- */
static bool index_rows(Table *t, RowIndex *index, Error *error) {
    Row row = {0};
    bool there = true, keyed, ok = true;
    while (ok && there) {
        ok = read_row(t, &row, &there, &keyed, error);
        if (ok && there) ok = row_index_put(index, row.hash, row.offset, error);
    }
    row_free(&row);
    return ok && row_index_sort(index, error);
}

static bool compare_rows(Table *a, Table *b, RowIndex *index, DiffRows *rows, Differences *to, Error *error) {
    Row x = {0}, y = {0};
    bool there = true, found, keyed, ok = true;
    uint64_t offset;
    while (ok && (ok = read_row(a, &x, &there, &keyed, error)) && there) {
        if (!row_index_take(index, x.hash, &offset)) {
            if (!rows->n_only_a++) memcpy(rows->first_a, x.place, sizeof x.place);
            continue;
        }
        rows->n_both++;
        records_seek(b->records, offset);
        ok = read_row(b, &y, &found, &keyed, error);
        if (ok && a->csv) compare_fields(a, b, &x, &y, to);
        if (ok && !a->csv) diff_json(json_root(x.document), json_root(y.document), x.place, to);
    }
    rows->n_only_b = ok ? row_index_left(index, &offset) : 0;
    if (rows->n_only_b) {
        records_seek(b->records, offset);
        ok = read_row(b, &y, &found, &keyed, error);
        if (ok && keyed)
            memcpy(rows->first_b, y.place, sizeof y.place);
        else if (ok)
            snprintf(rows->first_b, sizeof rows->first_b, "row %lld", (long long)rows->n_both + 1);
    }
    row_free(&x);
    row_free(&y);
    return ok;
}

static bool compare_tables(const char *a, const char *b, bool csv, DiffRows *rows, Differences *to,
                           Error *error) {
    Table one = {0}, other = {0};
    RowIndex index = {0};
    *rows = (DiffRows){0};
    bool ok = table_open(&one, a, csv, error) && table_open(&other, b, csv, error) &&
              index_rows(&other, &index, error);
    if (ok && csv) compare_columns(&one, &other, to);
    ok = ok && compare_rows(&one, &other, &index, rows, to, error);
    row_index_free(&index);
    table_close(&one);
    table_close(&other);
    return ok;
}

bool diff_csv(const char *a, const char *b, DiffRows *rows, Differences *to, Error *error) {
    return compare_tables(a, b, true, rows, to, error);
}

bool diff_jsonl(const char *a, const char *b, DiffRows *rows, Differences *to, Error *error) {
    return compare_tables(a, b, false, rows, to, error);
}

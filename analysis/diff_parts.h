/* What the files of diff share: differences gathered by column or JSON path, and rows found by key. */
#ifndef GATETAPE_DIFF_PARTS_H
#define GATETAPE_DIFF_PARTS_H
#include "../engine/json.h"
#include "../engine/text.h"

enum { DIFF_PLACE = 160, DIFF_VALUE = 48 };

/* One column of a table, one JSON path with its array indices left out, or one array. */
typedef struct {
    char *path;
    int64_t n, n_differ; /* values that both sides have; of these, those that differ */
    int64_t n_only_a, n_only_b;
    double largest, relative; /* |a - b| of numbers, and that over the larger magnitude; < 0: no numbers */
    char place[DIFF_PLACE], relative_place[DIFF_PLACE],
        first[DIFF_PLACE]; /* first: of what is not a number */
    char a[DIFF_VALUE], b[DIFF_VALUE], first_a[DIFF_VALUE], first_b[DIFF_VALUE];
} Difference;

typedef struct {
    Difference *list;
    int64_t n, capacity, last;
    bool failed; /* out of memory */
} Differences;

void differences_free(Differences *all);
/* Two texts, one of them NULL where that side has none. */
void differences_put_texts(Differences *all, const char *path, const char *place, const char *a,
                           const char *b);
/* The same of values: two that write one number are equal. */
void differences_put(Differences *all, const char *path, const char *place, const char *a, const char *b);
/* The same of numbers known as such, whose bytes differ; two NaN are equal. */
void differences_put_numbers(Differences *all, const char *path, const char *place, double a, double b);
/* n values of a path that are equal. */
void differences_count(Differences *all, const char *path, int64_t n);
bool differences_any(const Differences *all);
/* A line for each path that differs, indented. */
void differences_print(const Differences *all, Text *to);

/* Members of two values by name, entries of arrays of objects by what names them (name, layer, expert, k,
 * tau, step, group, index), other arrays as one value. Paths have [] for entries, or [name] where there is
 * one. */
void diff_json(Json a, Json b, const char *place, Differences *to);

/* ---- files: *to gets what differs; rows on one side only are said in *rows ---- */
typedef struct {
    int64_t n_both, n_only_a, n_only_b;
    char first_a[DIFF_PLACE], first_b[DIFF_PLACE];
} DiffRows;

bool diff_csv(const char *a, const char *b, DiffRows *rows, Differences *to, Error *error);
bool diff_jsonl(const char *a, const char *b, DiffRows *rows, Differences *to, Error *error);
bool diff_json_files(const char *a, const char *b, Differences *to, Error *error);
bool diff_arrays(const char *a, const char *b, Differences *to, Error *error);

/* ---- rows by key ---- */
typedef struct {
    uint64_t hash, offset;
} RowEntry;
typedef struct {
    RowEntry *list;
    int64_t *n_taken; /* of the equal hashes that begin here */
    int64_t n, capacity;
} RowIndex;

bool row_index_put(RowIndex *index, uint64_t hash, uint64_t offset, Error *error);
bool row_index_sort(RowIndex *index, Error *error);
/* The first row of that hash that was not taken before; false: none. */
bool row_index_take(RowIndex *index, uint64_t hash, uint64_t *offset);
/* How many were never taken, and where the first of them is. */
int64_t row_index_left(const RowIndex *index, uint64_t *first);
void row_index_free(RowIndex *index);
uint64_t row_hash(uint64_t hash, const char *text); /* begin with 0 */

#endif

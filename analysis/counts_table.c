/* Reading counts: rows to numbers; groups, prompts and cells found; each row put into its seat, one row a
 * seat; then scores. */
#include "counts_table.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "csv.h"
#include <math.h>
#include <string.h>

enum { MOST_LAYERS = 100000, MOST_EXPERTS = 100000, MOST_GROUPS = 1000, MOST_CELLS = 1 << 26 };
static const size_t most_bytes = (size_t)16 << 30;
static const int64_t most_tokens = INT64_C(1) << 53;

typedef struct {
    int32_t layer, expert; /* layer: its decoder layer, then its index in cells */
    int32_t group, prompt;
    int64_t selected, tokens;
} Row;

typedef struct {
    Csv csv;
    int64_t column[6]; /* of layer, expert, group, selected, tokens, prompt (-1: none) */
    Row *rows;
    int32_t *prompts_in; /* [groups] */
    int64_t n_experts;   /* the most of a layer */
    int32_t *layer_at;   /* [MOST_LAYERS] index of a decoder layer, or -1 */
    int64_t **seats;     /* [groups] of [P,C]: number of the row + 1; 0: none */
    CountsTable *table;
} Reader;

enum { LAYER, EXPERT, GROUP, SELECTED, TOKENS, PROMPT };
static const char *const names[6] = {"layer", "expert", "group", "selected", "tokens", "prompt"};

static void reader_free(Reader *r) {
    for (int64_t g = 0; r->seats && g < r->table->n_groups; g++) mem_free(r->seats[g]);
    mem_free(r->seats);
    mem_free(r->rows);
    mem_free(r->prompts_in);
    mem_free(r->layer_at);
    csv_free(&r->csv);
}

static int64_t line_of(const Reader *r, int64_t row) { return r->csv.lines[row]; }

/* ---- header ---- */
static bool find_columns(Reader *r, Error *error) {
    for (int i = 0; i < PROMPT; i++)
        if (!csv_need_column(&r->csv, names[i], &r->column[i], error)) return false;
    r->column[PROMPT] = csv_find_column(&r->csv, names[PROMPT]);
    r->table->has_prompts = r->column[PROMPT] >= 0;
    for (int64_t c = 0; c < r->csv.n_columns; c++) {
        bool known = false;
        for (int i = 0; i < 6; i++) known = known || r->column[i] == c;
        if (!known) text_format(&r->table->warnings, "column %s was not read\n", r->csv.names[c].text);
    }
    return r->csv.n_rows > 0 ||
           error_set(error, ERROR_BAD_INPUT, "%s:2: expected a row of counts: got the end of the file",
                     r->csv.file);
}

/* ---- groups ---- */
static int32_t add_group(Reader *r, const char *name, size_t length, Error *error) {
    CountsTable *t = r->table;
    size_t n = (size_t)t->n_groups + 1;
    char **texts = mem_resize(t->names, n, sizeof *texts);
    if (texts) t->names = texts;
    int32_t *prompts = mem_resize(r->prompts_in, n, sizeof *prompts);
    if (prompts) r->prompts_in = prompts;
    char *copy = mem_copy_text(name, length);
    if (!texts || !prompts || !copy) {
        mem_free(copy);
        error_out_of_memory(error, "groups", n * sizeof *texts);
        return -1;
    }
    t->names[n - 1] = copy;
    r->prompts_in[n - 1] = 0;
    t->n_groups++;
    return (int32_t)n - 1;
}

/* Rows of a group mostly follow each other: `near` is where the row before was. */
static bool find_group(Reader *r, int64_t row, int32_t near, int32_t *group, Error *error) {
    CsvField field = csv_field(&r->csv, row, r->column[GROUP]);
    if (r->table->n_groups && !strcmp(r->table->names[near], field.text)) {
        *group = near;
        return true;
    }
    for (*group = 0; *group < r->table->n_groups; ++*group)
        if (!strcmp(r->table->names[*group], field.text)) return true;
    if (!field.length || !strcmp(field.text, "shared"))
        return csv_error(&r->csv, row, r->column[GROUP], error,
                         "expected the name of a group, not \"shared\": got \"%s\"", field.text);
    if (*group == MOST_GROUPS)
        return csv_error(&r->csv, row, r->column[GROUP], error, "expected at most %d groups: got one more",
                         MOST_GROUPS);
    *group = add_group(r, field.text, field.length, error);
    return *group >= 0;
}

/* ---- rows ---- */
/* An integer, also as tools write it that hold counts as reals: 12.0. */
static bool read_count(const Csv *csv, int64_t row, int64_t column, int64_t least, int64_t most, int64_t *to,
                       Error *error) {
    double value;
    if (!strchr(csv_field(csv, row, column).text, '.'))
        return csv_integer(csv, row, column, least, most, to, error);
    if (!csv_number(csv, row, column, &value, error)) return false;
    if (value != floor(value) || value < (double)least || value > (double)most)
        return csv_error(csv, row, column, error, "expected an integer from %lld to %lld: got %.17g",
                         (long long)least, (long long)most, value);
    *to = (int64_t)value;
    return true;
}

static bool read_row(Reader *r, int64_t row, Error *error) {
    Row *to = &r->rows[row];
    int64_t layer, expert;
    int32_t near = row ? r->rows[row - 1].group : 0;
    const Csv *csv = &r->csv;
    if (!read_count(csv, row, r->column[LAYER], 0, MOST_LAYERS - 1, &layer, error) ||
        !read_count(csv, row, r->column[EXPERT], 0, MOST_EXPERTS - 1, &expert, error) ||
        !find_group(r, row, near, &to->group, error) ||
        !read_count(csv, row, r->column[SELECTED], 0, most_tokens, &to->selected, error) ||
        !read_count(csv, row, r->column[TOKENS], 1, most_tokens, &to->tokens, error))
        return false;
    if (to->selected > to->tokens)
        return csv_error(csv, row, r->column[SELECTED], error,
                         "expected at most the %lld tokens of its row: got %lld", (long long)to->tokens,
                         (long long)to->selected);
    to->layer = (int32_t)layer;
    to->expert = (int32_t)expert;
    if (expert >= r->n_experts) r->n_experts = expert + 1;
    r->layer_at[layer] = 1;
    return true;
}

static bool read_rows(Reader *r, Error *error) {
    size_t n = (size_t)r->csv.n_rows;
    if (n > INT32_MAX)
        return error_set(error, ERROR_BAD_INPUT, "%s: expected at most 2147483647 rows: got %zu", r->csv.file,
                         n);
    r->rows = mem_zeroed(n + 1, sizeof *r->rows);
    r->layer_at = mem_zeroed(MOST_LAYERS, sizeof *r->layer_at);
    if (!r->rows || !r->layer_at) return error_out_of_memory(error, "rows of counts", n * sizeof *r->rows);
    for (int64_t row = 0; row < r->csv.n_rows; row++)
        if (!read_row(r, row, error)) return false;
    return true;
}

/* ---- prompts: numbered in their group as they first come ---- */
typedef struct {
    int64_t *rows; /* open addressing: a row with that group and prompt, + 1 */
    uint64_t mask;
} Names;

static uint64_t hash_of(int32_t group, CsvField field) {
    uint64_t hash = UINT64_C(1469598103934665603) + (uint64_t)group;
    for (size_t i = 0; i < field.length; i++)
        hash = (hash ^ (unsigned char)field.text[i]) * UINT64_C(1099511628211);
    return hash ^ hash >> 29;
}

static void number_prompt(Reader *r, Names *seen, int64_t row) {
    CsvField field = csv_field(&r->csv, row, r->column[PROMPT]);
    Row *own = &r->rows[row];
    uint64_t at = hash_of(own->group, field) & seen->mask;
    for (; seen->rows[at]; at = (at + 1) & seen->mask) {
        int64_t other = seen->rows[at] - 1;
        if (r->rows[other].group != own->group ||
            strcmp(csv_field(&r->csv, other, r->column[PROMPT]).text, field.text) != 0)
            continue;
        own->prompt = r->rows[other].prompt;
        return;
    }
    seen->rows[at] = row + 1;
    own->prompt = r->prompts_in[own->group]++;
}

static bool number_prompts(Reader *r, Error *error) {
    if (r->column[PROMPT] < 0) {
        for (int64_t g = 0; g < r->table->n_groups; g++) r->prompts_in[g] = 1;
        return true;
    }
    uint64_t size = 16;
    while (size < 2 * (uint64_t)r->csv.n_rows) size *= 2;
    Names seen = {mem_zeroed((size_t)size, sizeof *seen.rows), size - 1};
    bool ok = seen.rows || error_out_of_memory(error, "names of prompts", size * 8);
    for (int64_t row = 0; ok && row < r->csv.n_rows; row++) {
        CsvField field = csv_field(&r->csv, row, r->column[PROMPT]);
        if (!field.length)
            ok = csv_error(&r->csv, row, r->column[PROMPT], error,
                           "expected the name of a prompt: got nothing");
        else
            number_prompt(r, &seen, row);
    }
    mem_free(seen.rows);
    return ok;
}

/* ---- cells: experts 0 .. the largest of each layer that the table has ---- */
static bool find_cells(Reader *r, Error *error) {
    int64_t n_layers = 0, last = 0;
    for (int64_t l = 0; l < MOST_LAYERS; l++) {
        bool has = r->layer_at[l] > 0;
        r->layer_at[l] = has ? (int32_t)n_layers++ : -1;
        if (has) last = l;
    }
    int64_t *experts_in = mem_zeroed((size_t)n_layers + 1, sizeof *experts_in), n_cells = 0;
    if (!experts_in) return error_out_of_memory(error, "layers", (size_t)n_layers * 8);
    for (int64_t row = 0; row < r->csv.n_rows; row++) {
        Row *own = &r->rows[row];
        own->layer = r->layer_at[own->layer];
        if (own->expert >= experts_in[own->layer]) experts_in[own->layer] = own->expert + 1;
    }
    for (int64_t l = 0; l < n_layers; l++) n_cells += experts_in[l];
    /* every cell needs a row: far more of them, and it is a table of something else */
    bool ok = n_cells <= MOST_CELLS && n_cells <= 16 * r->csv.n_rows + (1 << 20);
    if (!ok)
        error_set(
            error, ERROR_BAD_INPUT,
            "%s: column expert: expected rows for all experts of a layer up to its largest: got %lld rows "
            "for %lld cells",
            r->csv.file, (long long)r->csv.n_rows, (long long)n_cells);
    ok = ok && cells_make(experts_in, n_layers, &r->table->cells, error);
    for (int64_t l = 0; ok && l <= last; l++)
        if (r->layer_at[l] >= 0) r->table->cells.layer[r->layer_at[l]] = l;
    if (ok) r->table->cells.n_decoder_layers = last + 1;
    mem_free(experts_in);
    return ok;
}

/* ---- seats ---- */
static bool seat_row(Reader *r, int64_t row, Error *error) {
    const Cells *cells = &r->table->cells;
    const Row *own = &r->rows[row];
    int64_t *seats = r->seats[own->group] + own->prompt * cells->n_cells, first = cells->begin[own->layer],
            *seat = &seats[first + own->expert];
    if (*seat)
        return csv_error(
            &r->csv, row, r->column[EXPERT], error,
            "expected one row for layer %lld, expert %d of group %.100s: got another on line %lld",
            (long long)cells->layer[own->layer], own->expert, r->table->names[own->group],
            (long long)line_of(r, *seat - 1));
    *seat = row + 1;
    return true;
}

static bool make_seats(Reader *r, Error *error) {
    int64_t n_groups = r->table->n_groups, C = r->table->cells.n_cells;
    r->seats = mem_zeroed((size_t)n_groups, sizeof *r->seats);
    bool ok = r->seats || error_out_of_memory(error, "seats", (size_t)n_groups * 8);
    for (int64_t g = 0; ok && g < n_groups; g++) {
        /* every seat needs a row: far more of them is a table with other columns than it seems */
        if (r->prompts_in[g] > (16 * r->csv.n_rows + (1 << 20)) / C)
            return error_set(error, ERROR_BAD_INPUT,
                             "%s: expected a row for each of %lld cells of every prompt: got %d prompts and "
                             "%lld rows",
                             r->csv.file, (long long)C, r->prompts_in[g], (long long)r->csv.n_rows);
        r->seats[g] = mem_zeroed((size_t)(r->prompts_in[g] * C), sizeof *r->seats[g]);
        ok = r->seats[g] || error_out_of_memory(error, "seats", (size_t)(r->prompts_in[g] * C) * 8);
    }
    for (int64_t row = 0; ok && row < r->csv.n_rows; row++) ok = seat_row(r, row, error);
    return ok;
}

/* A cell that one prompt or group has and this one has not. */
static bool refuse_missing(const Reader *r, int64_t g, int64_t p, int64_t c, Error *error) {
    const Cells *cells = &r->table->cells;
    int64_t witness = 0;
    while (r->rows[witness].layer != cells->row[c] || r->rows[witness].expert != cells->expert[c]) {
        if (++witness < r->csv.n_rows) continue;
        return error_set(
            error, ERROR_BAD_INPUT,
            "%s: column expert: expected a row for layer %lld, expert %lld, as its layer has experts "
            "up to %lld: got none",
            r->csv.file, (long long)cells->layer[cells->row[c]], (long long)cells->expert[c],
            (long long)(cells->begin[cells->row[c] + 1] - cells->begin[cells->row[c]] - 1));
    }
    int64_t own = 0;
    while (r->rows[own].group != g || r->rows[own].prompt != p) own++;
    const char *prompt = r->column[PROMPT] < 0 ? "" : csv_field(&r->csv, own, r->column[PROMPT]).text;
    return csv_error(&r->csv, witness, r->column[GROUP], error,
                     "expected a row for this layer %lld, expert %lld of group %.100s%s%.100s too: got none",
                     (long long)cells->layer[cells->row[c]], (long long)cells->expert[c], r->table->names[g],
                     prompt[0] ? ", prompt " : "", prompt);
}

static bool check_prompt(const Reader *r, int64_t g, int64_t p, Error *error) {
    const Cells *cells = &r->table->cells;
    const int64_t *seats = r->seats[g] + p * cells->n_cells;
    for (int64_t c = 0; c < cells->n_cells; c++) {
        if (!seats[c]) return refuse_missing(r, g, p, c, error);
        int64_t first = seats[cells->begin[cells->row[c]]] - 1, row = seats[c] - 1;
        if (r->rows[row].tokens != r->rows[first].tokens)
            return csv_error(
                &r->csv, row, r->column[TOKENS], error,
                "expected the %lld tokens that the same layer and group have on line %lld: got %lld",
                (long long)r->rows[first].tokens, (long long)line_of(r, first),
                (long long)r->rows[row].tokens);
    }
    return true;
}

/* ---- scores ---- */
static bool make_group(const Reader *r, int64_t g, Average average, StatGroup *to, Error *error) {
    const Cells *cells = &r->table->cells;
    int64_t C = cells->n_cells, L = cells->n_layers, P = r->prompts_in[g];
    bool pooled = average == AVERAGE_TOKENS || !r->table->has_prompts;
    *to = (StatGroup){.name = r->table->names[g],
                      .n_prompts = P,
                      .scores = mem_zeroed((size_t)C, sizeof(double)),
                      .values = mem_zeroed((size_t)(P * C), sizeof(double)),
                      .tokens = pooled ? mem_zeroed((size_t)(P * L), sizeof(double)) : NULL};
    if (!to->scores || !to->values || (pooled && !to->tokens))
        return error_out_of_memory(error, "scores of prompts", (size_t)(P * C) * 8);
    for (int64_t p = 0; p < P; p++) {
        int64_t most = 0;
        for (int64_t c = 0; c < C; c++) {
            const Row *row = &r->rows[r->seats[g][p * C + c] - 1];
            double selected = (double)row->selected, tokens = (double)row->tokens;
            to->values[p * C + c] = pooled ? selected : selected / tokens;
            if (pooled) to->tokens[p * L + cells->row[c]] = tokens;
            if (row->tokens > most) most = row->tokens;
        }
        to->n_tokens += most;
    }
    if (!stat_group_mean(cells, to)) return error_out_of_memory(error, "means of prompts", (size_t)P * 8);
    if (r->table->has_prompts) return true;
    mem_free(to->values);
    mem_free(to->tokens);
    to->values = to->tokens = NULL;
    to->n_prompts = 0;
    return true;
}

static bool make_groups(Reader *r, Average average, Error *error) {
    CountsTable *t = r->table;
    t->groups = mem_zeroed((size_t)t->n_groups, sizeof *t->groups);
    if (!t->groups) return error_out_of_memory(error, "groups", (size_t)t->n_groups * sizeof *t->groups);
    for (int64_t g = 0; g < t->n_groups; g++) {
        for (int64_t p = 0; p < r->prompts_in[g]; p++)
            if (!check_prompt(r, g, p, error)) return false;
        if (!make_group(r, g, average, &t->groups[g], error)) return false;
        mem_free(r->seats[g]); /* room for the next group's scores */
        r->seats[g] = NULL;
    }
    return true;
}

bool counts_table_parse(const char *text, size_t length, const char *file, Average average,
                        CountsTable *table, Error *error) {
    *table = (CountsTable){0};
    Reader r = {.table = table};
    bool ok = csv_parse(text, length, file, &r.csv, error) && find_columns(&r, error) &&
              read_rows(&r, error) && number_prompts(&r, error) && find_cells(&r, error) &&
              make_seats(&r, error) && make_groups(&r, average, error);
    ok = ok && (!table->warnings.failed || error_out_of_memory(error, "warnings", table->warnings.length));
    reader_free(&r);
    return ok;
}

bool counts_table_read(const char *path, Average average, CountsTable *table, Error *error) {
    *table = (CountsTable){0};
    size_t n = 0;
    char *text = io_read_all(path, most_bytes, &n, error);
    bool ok = text && counts_table_parse(text, n, path, average, table, error);
    mem_free(text);
    return ok;
}

void counts_table_free(CountsTable *t) {
    for (int64_t g = 0; g < t->n_groups; g++) {
        if (t->groups) stat_group_free(&t->groups[g]);
        if (t->names) mem_free(t->names[g]);
    }
    mem_free(t->groups);
    mem_free(t->names);
    cells_free(&t->cells);
    text_free(&t->warnings);
    *t = (CountsTable){0};
}

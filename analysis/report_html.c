/* Markup: texts escaped, numbers in one form, tables that say why a value is not there. */
#include "report_parts.h"
#include <math.h>
#include <string.h>

void html_put(Text *to, const char *text) { text_put_html(to, text, strlen(text)); }

void html_put_json(Text *to, Json at) {
    bool yes;
    Error none = {0};
    Json entry = {0};
    switch (json_type(at)) {
    case JSON_STRING: html_put(to, view_string(at)); break;
    case JSON_BOOL:
        if (json_bool(at, &yes, &none)) text_put_string(to, yes ? "yes" : "no");
        break;
    case JSON_NUMBER: text_format(to, "%.15g", view_number(at)); break;
    case JSON_NULL: text_put_string(to, "none"); break;
    default:
        if (!json_count(at)) text_put_string(to, "none");
        for (bool first = true; json_next(&at, &entry); first = false) {
            if (!first) text_put_string(to, ", ");
            if (entry.key) html_put(to, entry.key);
            if (entry.key) text_put_string(to, ": ");
            html_put_json(to, entry);
        }
    }
}

void html_put_double(Text *to, double value) {
    if (value == floor(value) && fabs(value) < 1e9)
        text_format(to, "%.0f", value == 0 ? 0 : value);
    else
        text_format(to, "%.4g", value);
}

/* ---- tables ---- */
void table_begin(Table *table, Text *to, const char *caption, const Column *columns, int64_t n_columns) {
    *table = (Table){.to = to, .fallback = table->fallback};
    text_put_string(to, "<div class=\"wide\"><table class=\"s\">");
    if (caption) {
        text_put_string(to, "<caption>");
        html_put(to, caption);
        text_put_string(to, "</caption>");
    }
    text_put_string(to, "<thead><tr>");
    for (int64_t i = 0; i < n_columns; i++)
        text_format(to, columns[i].text ? "<th class=\"l\">%s</th>" : "<th>%s</th>", columns[i].head);
    text_put_string(to, "</tr></thead><tbody>\n");
}

void table_row_begin(Table *table) {
    text_put_string(table->to, "<tr>");
    table->n_rows++;
}

void table_row_end(Table *table) { text_put_string(table->to, "</tr>\n"); }

void table_text(Table *table, const char *text) {
    text_put_string(table->to, "<td class=\"l\">");
    html_put(table->to, text);
    text_put_string(table->to, "</td>");
}

/* The letter of a reason; the last is shared where there are too many. */
static char letter_of(Table *table, const char *reason) {
    const int most = (int)(sizeof table->reasons / sizeof *table->reasons);
    int i = 0;
    while (i < table->n_reasons && strcmp(table->reasons[i], reason) != 0) i++;
    if (i == table->n_reasons && i < most) table->reasons[table->n_reasons++] = reason;
    return (char)('a' + (i < most ? i : most - 1));
}

static void put_interval(Table *table, Json row, const char *key) {
    char name[120];
    snprintf(name, sizeof name, "%s_low", key);
    const double low = view_number(view_find(row, name, NULL));
    snprintf(name, sizeof name, "%s_high", key);
    const double high = view_number(view_find(row, name, NULL));
    if (!isfinite(low) || !isfinite(high)) {
        table->no_intervals = true;
        return;
    }
    text_put_string(table->to, "<small>[");
    html_put_double(table->to, low);
    text_put_string(table->to, ", ");
    html_put_double(table->to, high);
    text_put_string(table->to, "]</small>");
}

void table_cell(Table *table, Json row, const Column *column) {
    const char *reason = NULL;
    const Json at = view_find(row, column->key, &reason);
    text_put_string(table->to, column->text ? "<td class=\"l\">" : "<td>");
    switch (json_type(at)) {
    case JSON_NUMBER:
        html_put_double(table->to, view_number(at));
        if (column->interval) put_interval(table, row, column->key);
        break;
    case JSON_NULL:
        if (!reason) reason = table->fallback ? table->fallback : "no reason is given";
        text_format(table->to, "<span class=\"soft\">not defined<sup>%c</sup></span>",
                    letter_of(table, reason));
        break;
    default: html_put_json(table->to, at);
    }
    text_put_string(table->to, "</td>");
}

void table_row(Table *table, Json row, const Column *columns, int64_t n_columns) {
    table_row_begin(table);
    for (int64_t i = 0; i < n_columns; i++) table_cell(table, row, &columns[i]);
    table_row_end(table);
}

void table_named_row(Table *table, const char *name, Json row, const Column *columns, int64_t n_columns) {
    table_row_begin(table);
    table_text(table, name);
    for (int64_t i = 1; i < n_columns; i++) table_cell(table, row, &columns[i]);
    table_row_end(table);
}

void table_end(Table *table) {
    text_put_string(table->to, "</tbody></table></div>\n");
    if (!table->n_reasons && !table->no_intervals) return;
    text_put_string(table->to, "<p class=\"soft small\">");
    if (table->n_reasons) text_put_string(table->to, "Not defined: ");
    for (int i = 0; i < table->n_reasons; i++) {
        text_format(table->to, "%s<sup>%c</sup> ", i ? "; " : "", 'a' + i);
        html_put(table->to, table->reasons[i]);
    }
    if (table->n_reasons) text_put_string(table->to, ". ");
    if (table->no_intervals) {
        text_put_string(table->to, "No intervals: ");
        html_put(table->to, table->fallback ? table->fallback : "none were made");
        text_put_string(table->to, ".");
    }
    text_put_string(table->to, "</p>\n");
}

void html_put_absent(Text *to, const char *what, const char *reason) {
    text_format(to, "<p class=\"soft\">%s: not defined, ", what);
    html_put(to, reason && *reason ? reason : "no reason is given");
    text_put_string(to, ".</p>\n");
}

void html_put_defined(Text *to, Json object, const char *path) {
    const char *reason;
    const Json at = view_find(object, path, &reason);
    if (json_type(at) == JSON_NUMBER) {
        html_put_double(to, view_number(at));
        return;
    }
    text_put_string(to, "not defined (");
    html_put(to, reason && *reason ? reason : "no reason is given");
    text_put_string(to, ")");
}

void report_put_heading(Text *to, int64_t s, const char *id, const char *words) {
    text_format(to, "<h3 id=\"s%lld-%s\">%s</h3>\n", (long long)s, id, words);
}

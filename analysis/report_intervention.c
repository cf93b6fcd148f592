/* The report's section of an intervention step: what each selected condition changed, beside its controls. */
#include "report_parts.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include <string.h>

enum { MAX_TABLE_BYTES = 1 << 30 };

typedef struct {
    const char *column, *head;
} Column;

/* Of outcomes.csv, in the order of the page. */
static const Column columns[] = {{"n", "prompts"},
                                 {"restricted_before", "restricted before"},
                                 {"restricted_after", "after"},
                                 {"change", "change"},
                                 {"low", "2.5%"},
                                 {"high", "97.5%"},
                                 {"lost", "lost"},
                                 {"gained", "reversed"},
                                 {"mcnemar_p", "McNemar p"},
                                 {"random_n", "random sets"},
                                 {"random_mean", "their change"},
                                 {"random_p", "p"},
                                 {"layer_mean", "layer matched"},
                                 {"traffic_mean", "traffic matched"}};
enum { N_COLUMNS = sizeof columns / sizeof *columns };

static void put_row(const Csv *csv, int64_t row, Text *to) {
    static const char *const keys[] = {"condition", "group"};
    text_put_string(to, "<tr>");
    for (int i = 0; i < 2; i++) {
        const int64_t c = csv_find_column(csv, keys[i]);
        text_put_string(to, "<td class=\"l\">");
        if (c >= 0) html_put(to, csv_field(csv, row, c).text);
        text_put_string(to, "</td>");
    }
    for (int i = 0; i < N_COLUMNS; i++) {
        const int64_t c = csv_find_column(csv, columns[i].column);
        text_put_string(to, "<td>");
        if (c >= 0) html_put_number(to, csv_field(csv, row, c));
        text_put_string(to, "</td>");
    }
    text_format(to, "<td>%.0f</td></tr>\n",
                html_number_at(csv, row, "restricted_to_degraded") +
                    html_number_at(csv, row, "compliant_to_degraded") +
                    html_number_at(csv, row, "degraded_to_degraded"));
}

static void put_table(const Csv *csv, const char *name, Text *to) {
    const int64_t kind = csv_find_column(csv, "kind");
    text_put_string(to, "<section><h2>");
    html_put(to, name);
    text_put_string(to,
                    "</h2>\n<p class=\"soft\">Replies to the same prompts with experts edited in the router. "
                    "Changes are of the share of restricted replies, with bootstrap intervals over prompts; "
                    "controls give the mean change of sets as large. Every condition: outcomes.csv; labels: "
                    "labels.csv.</p>\n<div class=\"wide\"><table><thead><tr><th class=\"l\">condition</th>"
                    "<th class=\"l\">group</th>");
    for (int i = 0; i < N_COLUMNS; i++) text_format(to, "<th>%s</th>", columns[i].head);
    text_put_string(to, "<th>degraded after</th></tr></thead><tbody>\n");
    for (int64_t r = 0; kind >= 0 && r < csv->n_rows; r++)
        if (!strcmp(csv_field(csv, r, kind).text, "selected")) put_row(csv, r, to);
    text_put_string(to, "</tbody></table></div></section>\n");
}

static bool put_step(const char *folder, const char *name, Text *to, Error *error) {
    char *own = io_join(folder, name), *path = own ? io_join(own, "outcomes.csv") : NULL;
    Csv csv = {0};
    bool ok = path || error_out_of_memory(error, "a file name", strlen(name));
    if (ok && io_exists(path)) {
        ok = csv_read(path, MAX_TABLE_BYTES, &csv, error);
        if (ok) put_table(&csv, name, to);
        csv_free(&csv);
    }
    mem_free(path);
    mem_free(own);
    return ok;
}

bool report_put_interventions(const char *folder, const ReportRun *run, Text *to, Error *error) {
    const Json root = json_root(run->job), steps = json_member(&root, "steps");
    Json at = {0};
    while (json_next(&steps, &at)) {
        const char *kind = "", *name = "";
        Error none = {0};
        if (!json_string(json_member(&at, "kind"), &kind, &none) || strcmp(kind, "intervention") != 0)
            continue;
        if (!json_string(json_member(&at, "name"), &name, error)) return false;
        if (!report_is_plain_name(name))
            return json_error(json_member(&at, "name"), error, "expected a plain file name");
        if (!put_step(folder, name, to, error)) return false;
    }
    return true;
}

/* Any bytes as a table of counts: refused with a place, or groups whose scores are shares, over the same
 * cells. */
#include "analysis/counts_table.h"
#include "kernels/check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_table(const CountsTable *table) {
    check(table->n_groups > 0 && table->cells.n_cells > 0 && table->cells.n_layers > 0, "%lld groups",
          (long long)table->n_groups);
    check(table->cells.begin[table->cells.n_layers] == table->cells.n_cells, "%lld cells",
          (long long)table->cells.n_cells);
    for (int64_t g = 0; g < table->n_groups; g++) {
        const StatGroup *group = &table->groups[g];
        check(group->name[0] && (group->n_prompts > 0) == table->has_prompts, "group %lld", (long long)g);
        for (int64_t c = 0; c < table->cells.n_cells; c++)
            check(group->scores[c] >= 0 && group->scores[c] <= 1 + 1e-12, "%g", group->scores[c]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    for (int average = AVERAGE_PROMPTS; average <= AVERAGE_TOKENS; average++) {
        CountsTable table;
        Error error = {0};
        if (counts_table_parse((const char *)data, size, "f.csv", (Average)average, &table, &error))
            check_table(&table);
        else
            check(error.code == ERROR_BAD_INPUT && !strncmp(error.text, "f.csv", 5), "%d %s", error.code,
                  error.text);
        counts_table_free(&table);
    }
    return 0;
}

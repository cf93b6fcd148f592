/* counts_table: how often experts were chosen, as another tool has counted it, from CSV.
 *
 * The header has layer, expert, group, selected and tokens: in that group `selected` of `tokens` tokens chose
 * the expert. With a column prompt there is a row for each prompt. Every group (and prompt) must have a row
 * for every cell; numbers that contradict each other are errors with their line, never averaged away. */
#ifndef GATETAPE_COUNTS_TABLE_H
#define GATETAPE_COUNTS_TABLE_H
#include "../engine/text.h"
#include "options.h"
#include "stats.h"

typedef struct {
    Cells cells;
    StatGroup *groups; /* in the order in which they first come; scores by the average asked for */
    int64_t n_groups;
    char **names; /* [n_groups] */
    bool has_prompts;
    Text warnings; /* lines */
} CountsTable;

/* average: without a column prompt, selected / tokens; with one, the mean of that over prompts
 * (AVERAGE_PROMPTS), or over all their tokens together. Caller frees; safe after an error too. */
bool counts_table_read(const char *path, Average average, CountsTable *table, Error *error);
/* From a text; `file` stands for it in messages. */
bool counts_table_parse(const char *text, size_t length, const char *file, Average average,
                        CountsTable *table, Error *error);
void counts_table_free(CountsTable *table);

#endif

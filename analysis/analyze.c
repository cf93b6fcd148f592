/* The verb analyze: options, the table, the file. */
#include "analyze.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "counts_table.h"
#include "definitions.h"
#include "results.h"
#include "statistics.h"
#include <string.h>

/* One "OPTION=VALUE"; an option of jobs that says nothing about statistics is refused. */
static bool apply_setting(const char *setting, StepOptions *options, TextPool *pool, Error *error) {
    const char *equals = strchr(setting, '='), *known[64];
    char name[64], place[100];
    size_t n_known = 0;
    if (!equals || equals == setting || equals - setting >= (long)sizeof name)
        return error_set(error, ERROR_BAD_INPUT, "--set %.80s: expected OPTION=VALUE", setting);
    snprintf(name, sizeof name, "%.*s", (int)(equals - setting), setting);
    snprintf(place, sizeof place, "--set %s", name);
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        if (!o->statistics || !(o->kinds & 1u << STEP_ACTIVATION)) continue;
        if (!strcmp(o->name, name)) return option_read_text(o, equals + 1, place, options, pool, error);
        if (n_known < 64) known[n_known++] = o->name;
    }
    const char *near = json_nearest(name, known, n_known);
    return error_set(error, ERROR_BAD_INPUT, "%s: expected an option of statistics: got another%s%s%s", place,
                     near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

static bool write_readme(const char *folder, Error *error) {
    Text text = {0};
    definitions_document(&text);
    return results_write_text(folder, "README.txt", &text, error);
}

static bool write_statistics(const AnalyzeRequest *request, const CountsTable *table,
                             const StepOptions *options, Error *error) {
    const char *score = !table->has_prompts ? "selected / tokens of the table"
                        : options->average == AVERAGE_PROMPTS
                            ? "mean over prompts of selected / tokens"
                            : "sum over prompts of selected / sum of tokens";
    StatisticsInput input = {.signal = "counts",
                             .score = score,
                             .cells = &table->cells,
                             .groups = table->groups,
                             .n_groups = table->n_groups,
                             .options = options,
                             .seed = (uint64_t)request->seed,
                             .no_prompts = "the table has no column prompt",
                             .no_margins = "a table of counts has no router logits",
                             .no_others = "a table of counts has no gradients and no other steps",
                             .warnings = table->warnings.bytes};
    return statistics_write(&input, request->out, error);
}

bool analyze_run(const AnalyzeRequest *request, Error *error) {
    TextPool pool = {0};
    StepOptions options = {.kind = STEP_ACTIVATION};
    CountsTable table = {0};
    bool ok = options_preset(SCOPE_STEP, &options, &pool, error);
    for (int64_t i = 0; ok && i < request->n_sets; i++)
        ok = apply_setting(request->sets[i], &options, &pool, error);
    const char *wrong = ok ? statistics_contradiction(&options) : NULL;
    if (wrong) ok = error_set(error, ERROR_BAD_INPUT, "%s", wrong);
    ok = ok && counts_table_read(request->counts, (Average)options.average, &table, error) &&
         io_make_folders(request->out, error) && write_readme(request->out, error) &&
         write_statistics(request, &table, &options, error);
    counts_table_free(&table);
    options_free(SCOPE_STEP, &options);
    pool_free(&pool);
    return ok;
}

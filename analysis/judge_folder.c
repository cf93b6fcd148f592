/* Replies read, labelled, paired with the baseline's, and written up. */
#include "judge_parts.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/model_config.h"
#include <string.h>

char *judge_path(const char *given, const char *standard, Error *error) {
    char *path =
        given && *given ? mem_copy_text(given, strlen(given)) : io_join(model_config_folder(), standard);
    if (!path) error_out_of_memory(error, "a path", strlen(standard));
    return path;
}

/* As judge.json names the rules: where the file lies is no part of the results. */
static const char *base_name(const char *given) {
    if (!given || !*given) return JUDGE_STANDARD_RULES;
    return io_last_name(given);
}

bool judge_folder(const JudgeFolder *request, Error *error) {
    Judging w = {.request = request, .error = error};
    char *path = judge_path(request->rules, JUDGE_STANDARD_RULES, error);
    w.rules = path ? judge_rules_read(path, error) : NULL;
    bool ok = w.rules && judge_read_conditions(&w) && judge_read_perplexity(&w) && judge_read_people(&w) &&
              (!request->ask_guard || request->ask_guard(request->context, &w));
    if (ok && !request->asks_alone) {
        judge_decide(&w);
        ok = judge_write_tables(&w, base_name(request->rules));
    }
    judge_free_conditions(&w);
    csv_free(&w.people);
    judge_rules_free(w.rules);
    mem_free(path);
    return ok;
}

/* Replies read, labelled, paired with the baseline's, and written up. */
#include "judge_parts.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/model_config.h"
#include <string.h>

bool judge_folder(const JudgeFolder *request, Error *error) {
    Judging w = {.request = request, .error = error};
    static const char standard[] = "judge/refusals_en.json";
    char *path = request->rules ? mem_copy_text(request->rules, strlen(request->rules))
                                : io_join(model_config_folder(), standard);
    bool ok = path || error_out_of_memory(error, "a path", 0);
    w.rules = ok ? judge_rules_read(path, error) : NULL;
    ok = w.rules && judge_read_conditions(&w) && judge_read_perplexity(&w) && judge_read_people(&w);
    if (ok) judge_decide(&w);
    ok = ok && judge_write_tables(&w, request->rules ? request->rules : standard);
    judge_free_conditions(&w);
    csv_free(&w.people);
    judge_rules_free(w.rules);
    mem_free(path);
    return ok;
}

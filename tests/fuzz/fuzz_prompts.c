/* Any bytes as a prompt file, as JSON lines and as CSV: refused with a place, or entries that are whole
 * texts. */
#include "analysis/prompts.h"
#include "kernels/check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_text(const char *text, size_t length) {
    size_t bad;
    check(text && strlen(text) == length && text_is_utf8(text, length, &bad), "%zu", length);
}

static void check_file(const PromptFile *file) {
    int64_t first = -1;
    check(file->n > 0 && strlen(file->hash) == HASH_TEXT - 1, "%lld", (long long)file->n);
    for (int64_t i = 0; i < file->n; i++) {
        const PromptEntry *entry = &file->entries[i];
        check(entry->n_messages > 0 && entry->id[0], "entry %lld", (long long)i);
        check(i == 0 || (entry->index > entry[-1].index && entry->line >= entry[-1].line), "entry %lld",
              (long long)i);
        for (int64_t m = 0; m < entry->n_messages; m++) {
            check_text(entry->messages[m].content, entry->messages[m].length);
            check(entry->messages[m].role >= ROLE_SYSTEM && entry->messages[m].role <= ROLE_ASSISTANT, "%d",
                  (int)entry->messages[m].role);
        }
        if (entry->target) check_text(entry->target, entry->target_length);
    }
    check(prompts_count_common(file, file, true, &first) == file->n && first == 0, "%lld", (long long)first);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const paths[] = {"f.jsonl", "f.csv"};
    for (int i = 0; i < 2; i++) {
        PromptOptions options = {.name = "f", .path = paths[i], .system = ""};
        PromptFile file;
        Error error = {0};
        if (prompts_parse(&options, (const char *)data, size, &file, &error))
            check_file(&file);
        else
            check(error.code == ERROR_BAD_INPUT && !strncmp(error.text, paths[i], strlen(paths[i])), "%d %s",
                  error.code, error.text);
        prompts_free(&file);
    }
    return 0;
}

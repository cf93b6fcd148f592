/* What a generation gives. */
#include "alloc.h"
#include "generate.h"
#include <string.h>

bool generation_pack(const int32_t *made, const int64_t *n_made, int64_t n_sequences, int64_t most,
                     Generation *to, Error *error) {
    int64_t total = 0;
    to->offsets = mem_alloc((size_t)(n_sequences + 1) * sizeof *to->offsets);
    for (int64_t s = 0; to->offsets && s <= n_sequences; s++) {
        to->offsets[s] = total;
        if (s < n_sequences) total += n_made[s];
    }
    to->tokens = mem_alloc((size_t)total * sizeof *to->tokens);
    if (!to->offsets || !to->tokens)
        return error_out_of_memory(error, "generated tokens", (size_t)total * sizeof *to->tokens);
    for (int64_t s = 0; s < n_sequences; s++)
        memcpy(to->tokens + to->offsets[s], made + s * most, (size_t)n_made[s] * sizeof *to->tokens);
    to->n_prompts = n_sequences;
    return true;
}

void generation_free(Generation *generation) {
    mem_free(generation->offsets);
    mem_free(generation->tokens);
    mem_free(generation->stopped);
    *generation = (Generation){0};
}

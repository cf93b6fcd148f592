/* The residual stream of every layer as its hook shows it, row by row: of a packed pass, or of a generation
 * that takes the same tokens one by one. */
#ifndef GATETAPE_TESTS_RESIDUAL_STREAM_H
#define GATETAPE_TESTS_RESIDUAL_STREAM_H
#include "random_model.h"
#include <string.h>

enum {
    STREAM_NEW = 12,
    STREAM_ROWS = R_TOKENS + R_PROMPTS * STREAM_NEW
}; /* tokens generated a prompt, at most */

typedef struct {
    float rows[R_LAYERS][STREAM_ROWS][R_HIDDEN];
    int64_t n_rows[R_LAYERS];
} Stream;

static bool on_residual(void *context, HookSite *site, int64_t layer, Tensor x) {
    (void)site;
    Stream *s = context;
    memcpy(s->rows[layer][s->n_rows[layer]], x.data, tensor_bytes(x));
    s->n_rows[layer] += tensor_rows(x);
    return true;
}

#endif

/* Tables of edits, checked on the host: a device that meets a bad one could only give some result. */
#include "edits.h"
#include "../kernels/check.h"
#include "alloc.h"
#include <math.h>

const char *const edit_mode_names[] = {"mask",  "bias", "promote",          "demote",
                                       "force", "zero", "zero_renormalize", NULL};

bool edit_table_make(const ModelConfig *config, int64_t n_sets, EditTable *t, Error *error) {
    size_t n = (size_t)(config->n_moe_layers * n_sets * config->n_experts);
    *t = (EditTable){.n_sets = n_sets,
                     .n_layers = config->n_moe_layers,
                     .n_experts = config->n_experts,
                     .modes = mem_zeroed(n ? n : 1, sizeof *t->modes),
                     .values = mem_zeroed(n ? n : 1, sizeof *t->values),
                     .edited = mem_zeroed((size_t)config->n_moe_layers + 1, sizeof *t->edited)};
    if (t->modes && t->values && t->edited) return true;
    return error_out_of_memory(error, "edits of the router", n * (sizeof *t->modes + sizeof *t->values));
}

void edit_table_free(EditTable *t) {
    mem_free(t->modes);
    mem_free(t->values);
    mem_free(t->edited);
    *t = (EditTable){0};
}

static int64_t count_mode(const int32_t *modes, int64_t n, EditMode mode) {
    int64_t count = 0;
    for (int64_t e = 0; e < n; e++) count += modes[e] == (int32_t)mode;
    return count;
}

bool edit_table_put(EditTable *t, const ModelConfig *config, int64_t set, CellEdit edit, Error *error) {
    check(set >= 0 && set < t->n_sets && edit.mode > EDIT_NONE && edit.mode <= EDIT_ZERO_RENORMALIZE,
          "set %lld, mode %d", (long long)set, (int)edit.mode);
    if (edit.layer < 0 || edit.layer >= config->n_layers)
        return error_set(error, ERROR_BAD_INPUT, "layer: expected 0 to %lld: got %lld",
                         (long long)config->n_layers - 1, (long long)edit.layer);
    int64_t l = model_config_moe_layer(config, edit.layer);
    if (l < 0)
        return error_set(error, ERROR_BAD_INPUT, "layer: expected one with experts: got %lld, which is dense",
                         (long long)edit.layer);
    if (edit.expert < 0 || edit.expert >= config->n_experts)
        return error_set(error, ERROR_BAD_INPUT, "expert of layer %lld: expected 0 to %lld: got %lld",
                         (long long)edit.layer, (long long)config->n_experts - 1, (long long)edit.expert);
    if (!isfinite(edit.value))
        return error_set(error, ERROR_BAD_INPUT, "value of layer %lld, expert %lld: expected a finite number",
                         (long long)edit.layer, (long long)edit.expert);
    int64_t row = (l * t->n_sets + set) * t->n_experts, at = row + edit.expert;
    if (t->modes[at] != EDIT_NONE)
        return error_set(error, ERROR_BAD_INPUT,
                         "layer %lld, expert %lld: expected one edit of a cell: got %s and %s",
                         (long long)edit.layer, (long long)edit.expert, edit_mode_names[t->modes[at] - 1],
                         edit_mode_names[edit.mode - 1]);
    if (edit.mode == EDIT_FORCE) edit.value = (float)count_mode(t->modes + row, t->n_experts, EDIT_FORCE);
    t->modes[at] = (int32_t)edit.mode;
    t->values[at] = edit.value;
    t->edited[l] = true;
    return true;
}

bool edit_table_check_set(const EditTable *t, const ModelConfig *config, int64_t set, Error *error) {
    int64_t k = config->n_experts_per_token;
    for (int64_t l = 0; l < t->n_layers; l++) {
        const int32_t *modes = t->modes + (l * t->n_sets + set) * t->n_experts;
        int64_t n_forced = count_mode(modes, t->n_experts, EDIT_FORCE),
                n_masked = count_mode(modes, t->n_experts, EDIT_MASK);
        long long layer = (long long)model_config_decoder_layer(config, l);
        if (n_forced && n_forced != k)
            return error_set(error, ERROR_BAD_INPUT,
                             "layer %lld: expected %lld forced experts, as many as a token takes: got %lld",
                             layer, (long long)k, (long long)n_forced);
        if (!n_forced && t->n_experts - n_masked < k)
            return error_set(error, ERROR_BAD_INPUT,
                             "layer %lld: expected at least %lld experts left, as many as a token takes: got "
                             "%lld of %lld, %lld masked",
                             layer, (long long)k, (long long)(t->n_experts - n_masked),
                             (long long)t->n_experts, (long long)n_masked);
    }
    return true;
}

bool edit_table_check(const EditTable *t, const ModelConfig *config, Error *error) {
    check(t->n_layers == config->n_moe_layers && t->n_experts == config->n_experts,
          "edits of %lld x %lld cells", (long long)t->n_layers, (long long)t->n_experts);
    for (int64_t set = 0; set < t->n_sets; set++)
        if (!edit_table_check_set(t, config, set, error)) return false;
    return true;
}

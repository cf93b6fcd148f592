/* edits: experts that are changed inside the router. A table holds sets of edits; prompts, or tokens, are
 * given a set each, so that one batch can run under many conditions.
 *
 * A set edits a cell once at most. What the modes do stands in kernels/ops.h (EditMode). */
#ifndef GATETAPE_EDITS_H
#define GATETAPE_EDITS_H
#include "model_config.h"

typedef struct {
    int64_t layer, expert; /* decoder layer */
    EditMode mode;
    float value; /* of bias, promote and demote */
} CellEdit;

typedef struct {
    int64_t n_sets, n_layers, n_experts; /* expert layers */
    int32_t *modes;                      /* [L,N,E] EditMode */
    float *values;                       /* [L,N,E]; of a forced expert its place */
    bool *edited;                        /* [L]: a set edits the layer */
} EditTable;

/* Sets without edits. Caller frees; safe after an error too. */
bool edit_table_make(const ModelConfig *config, int64_t n_sets, EditTable *table, Error *error);
void edit_table_free(EditTable *table);

/* One more edit of a set. Forced experts of a layer stand in the order in which they come. Errors: no such
 * layer or expert, a layer without experts, a value that is not finite, a cell that is edited already. */
bool edit_table_put(EditTable *table, const ModelConfig *config, int64_t set, CellEdit edit, Error *error);

/* False and an Error with layer and counts for a set that leaves fewer than K experts of a layer, or forces
 * another number than K. */
bool edit_table_check_set(const EditTable *table, const ModelConfig *config, int64_t set, Error *error);
/* The same of all sets. */
bool edit_table_check(const EditTable *table, const ModelConfig *config, Error *error);

/* "mask", "bias", ... as interventions.json has them; NULL-terminated, EDIT_MASK first. */
extern const char *const edit_mode_names[];

#endif

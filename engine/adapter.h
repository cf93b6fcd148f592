/* Adapter: low-rank updates of chosen expert matrices, on the host. W + scale b a for each cell; everything
 * else of a model is frozen. Files of adapters are read and written by adapter_read.c and adapter_write.c,
 * merged into checkpoints by adapter_merge.c; lora.h takes an adapter to a device. */
#ifndef GATETAPE_ADAPTER_H
#define GATETAPE_ADAPTER_H
#include "../autograd/nn.h"
#include "model_config.h"

typedef struct {
    int64_t layer, expert; /* decoder layer */
    Projection projection;
    int64_t rank;
    float scale; /* alpha / rank */
    float *a;    /* [rank,in], owned */
    float *b;    /* [out,rank], owned */
} AdapterCell;

typedef struct {
    AdapterCell *cells; /* by layer, projection, expert */
    int64_t n, capacity;
} Adapter;

/* "gate", "up", "down". */
extern const char *const projection_names[N_PROJECTIONS + 1];
bool projection_find(const char *name, Projection *projection); /* false: no such name */

/* Columns and rows of a projection's matrix: D and F, down F and D. */
int64_t projection_in(const ModelConfig *config, Projection projection);
int64_t projection_out(const ModelConfig *config, Projection projection);

/* One more cell, its a and b zero; *cell is good until the next one is added. Errors: no such layer or
 * expert, a layer without experts, a cell that is there already, a rank that is not 1 to LORA_MOST_RANK and
 * to the matrix's least extent, a scale that is not finite. */
bool adapter_add(Adapter *adapter, const ModelConfig *config, AdapterCell like, AdapterCell **cell,
                 Error *error);
/* NULL: not there. */
AdapterCell *adapter_find(const Adapter *adapter, int64_t layer, Projection projection, int64_t expert);
void adapter_free(Adapter *adapter);

/* Frobenius norm of scale b a. */
double adapter_cell_norm(const AdapterCell *cell, const ModelConfig *config);
/* Elements of a and of b. */
int64_t adapter_cell_count(const AdapterCell *cell, const ModelConfig *config);

#endif

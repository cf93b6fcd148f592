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

/* What is added to the router's row of an expert. */
typedef struct {
    int64_t layer, expert; /* decoder layer */
    float *values;         /* [D], owned */
} RouterRow;

typedef struct {
    AdapterCell *cells; /* by layer, projection, expert */
    int64_t n, capacity;
    RouterRow *rows; /* by layer, expert */
    int64_t n_rows;
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

/* ---- router rows: adapter_rows.c ---- */
/* One more, zero. Errors: as adapter_add's of layer and expert; one that is there already. */
bool adapter_add_row(Adapter *adapter, const ModelConfig *config, int64_t layer, int64_t expert,
                     RouterRow **row, Error *error);
/* FOLDER/router_rows.safetensors, tensors layers.L.experts.E.router_row [D] f32; nothing where there are no
 * rows, or no such file. Errors: other tensors, shapes or dtypes, cells that the model has not. */
bool adapter_rows_write(const char *folder, const Adapter *adapter, const ModelConfig *config, Error *error);
bool adapter_rows_read(const char *folder, const ModelConfig *config, Adapter *adapter, Error *error);

/* Frobenius norm of scale b a. */
double adapter_cell_norm(const AdapterCell *cell, const ModelConfig *config);
/* Elements of a and of b. */
int64_t adapter_cell_count(const AdapterCell *cell, const ModelConfig *config);

#endif

/* What the files of adapter_file.h share: names of a family's expert modules, and adapter_config.json. */
#ifndef GATETAPE_ADAPTER_PARTS_H
#define GATETAPE_ADAPTER_PARTS_H
#include "adapter_file.h"
#include "arch.h"

enum { ADAPTER_NAME_BYTES = 200 };
#define ADAPTER_PREFIX "base_model.model."

/* "model.layers.3.mlp.experts.5.gate_proj": the path of a matrix in the model. */
bool adapter_module(const Arch *arch, Projection projection, int64_t layer, int64_t expert,
                    char to[ADAPTER_NAME_BYTES], Error *error);
/* "model.layers.3.mlp.experts.gate_up_proj"; *parameter is what stands behind the last dot. */
bool adapter_fused_parameter(const Arch *arch, bool down, int64_t layer, char to[ADAPTER_NAME_BYTES],
                             const char **parameter, Error *error);

/* ---- adapter_config.json ---- */
typedef struct {
    JsonDocument *document;
    Json root;
    char *path;
} AdapterConfig;

/* False and an Error for another kind of adapter than plain LoRA on weights. Caller closes, also after an
 * error; must not move while it is open. */
bool adapter_config_open(const char *folder, AdapterConfig *config, Error *error);
/* The same of a text; path names it in messages. */
bool adapter_config_parse(const char *text, size_t length, const char *path, AdapterConfig *config,
                          Error *error);
void adapter_config_close(AdapterConfig *config);
/* Rank and scale (alpha / rank, or alpha / sqrt(rank)) that the file gives the module or parameter. */
bool adapter_config_scale(const AdapterConfig *config, const char *module, int64_t *rank, double *scale,
                          Error *error);
/* A parameter is among target_parameters. */
bool adapter_config_targets(const AdapterConfig *config, const char *parameter);
/* peft_version as major * 10^6 + minor * 10^3 + patch; -1: absent or none. */
int64_t adapter_config_version(const AdapterConfig *config);

/* Element i of an array of F32, BF16 or F16 that may lie anywhere. */
float adapter_element(const void *from, DType dtype, int64_t i);

/* ---- fused files ---- */
typedef struct {
    const AdapterConfig *config;
    const ModelConfig *model;
    const Arch *arch;
    const AdapterReading *reading;
    const char *path; /* of the safetensors file */
    const void *set;  /* TensorSet */
    uint8_t *used;    /* [tensors]: 1: read */
    Adapter *adapter;
    AdapterAbout *about;
    Error *error;
} AdapterReader;

/* A tensor's values as f32, marked as used; caller frees. `shape`: [rows, columns] that came. */
float *adapter_tensor(AdapterReader *r, const char *name, int64_t shape[2]);
bool adapter_has_tensor(const AdapterReader *r, const char *name);
/* One cell of the adapter from values with strides; skipped (and counted) when they are all zero. */
typedef struct {
    const float *a; /* element (r, i) at a[r * a_rank + i * a_in] */
    const float *b; /* element (j, r) at b[j * b_out + r * b_rank] */
    int64_t a_rank, a_in, b_out, b_rank;
} AdapterPair;
bool adapter_put(AdapterReader *r, AdapterCell like, AdapterPair pair);
/* The fused tensors of a layer, if there are any. */
bool adapter_read_fused(AdapterReader *r, int64_t layer);

#endif

/* Adapters as PEFT stores them: a folder with adapter_config.json and adapter_model.safetensors.
 *
 *   dense    per-expert names, every expert of every layer that has any, zeros where nothing is updated: what
 *            PEFT on transformers 5, vLLM and llama.cpp stack into their fused experts
 *   sparse   per-expert names, the updated matrices alone: PEFT on transformers 4, gatetape
 *   fused    names of the fused parameters (target_parameters, PEFT 0.19.1 on), gate and up side by side at
 *            twice the rank
 *
 * A file is written under a temporary name; the configuration, without which nobody opens the folder,
 * last. */
#ifndef GATETAPE_ADAPTER_FILE_H
#define GATETAPE_ADAPTER_FILE_H
#include "adapter.h"

typedef enum { ADAPTER_DENSE, ADAPTER_SPARSE, ADAPTER_FUSED, N_ADAPTER_FORMS } AdapterForm;
extern const char *const adapter_form_names[N_ADAPTER_FORMS + 1]; /* "dense", ... */

/* What a fused file does not say by itself. */
typedef struct {
    const char
        *layout;       /* "0.18" or "0.19.1": which way round A and B are; NULL: by shapes and peft_version */
    bool expert_major; /* B's column e*R + j, as Unsloth wrote it, instead of j*E + e */
} AdapterReading;

typedef struct {
    bool fused;
    int64_t n_tensors;
    int64_t n_zero;    /* matrices whose A and B are zero: not updated, not among the cells */
    int64_t n_touched; /* layers with a cell */
} AdapterAbout;

/* The cells of a folder. `reading` and `about` may be NULL. Errors name file, tensor or key: another kind of
 * adapter, tensors of something else than experts, halves of pairs, shapes that do not fit the model, an
 * orientation that nothing tells. Caller frees, also after an error. */
bool adapter_read(const char *folder, const ModelConfig *config, const AdapterReading *reading,
                  Adapter *adapter, AdapterAbout *about, Error *error);

/* The rank is that of the largest cell, the scale that of the largest with one; others are padded and scaled
 * to them. f32. */
bool adapter_write(const char *folder, const Adapter *adapter, const ModelConfig *config, AdapterForm form,
                   Error *error);

/* What merging did. */
typedef struct {
    int64_t n_tensors, n_merged; /* of the checkpoint; of them changed */
    double largest;              /* of |scale b a| */
    int64_t n_elements, n_lost;  /* of updated matrices; unchanged by rounding to the file's dtype */
    double worst_lost;           /* share of n_lost in the cell with most of it */
    int64_t worst_cell;          /* of the adapter */
} MergeAbout;

/* The checkpoint FOLDER/config.json belongs to, with W + scale b a in the place of W, into another folder:
 * the same files, names and bytes but for the updated matrices, rounded once to their dtype; and what else of
 * configuration and tokenizer lies beside them. `about` may be NULL. */
bool adapter_merge(const Adapter *adapter, const ModelConfig *config, const char *to, MergeAbout *about,
                   Error *error);

#endif

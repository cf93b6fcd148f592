/* inputs: the files a job reads, by what is in them.
 *
 * Their hashes say whether a folder holds the same job, and stand in the manifest. A weight file of a
 * gigabyte or more is known by its size and the hash of its header alone (names, shapes, offsets), and
 * the manifest says so. */
#ifndef GATETAPE_INPUTS_H
#define GATETAPE_INPUTS_H
#include "../engine/hash.h"
#include "job.h"

typedef struct {
    char *name; /* "prompts.NAME", "models.NAME/config.json" */
    char *path;
    uint64_t n_bytes;
    bool header_only;
    char hash[HASH_TEXT];
} InputFile;

typedef struct {
    InputFile *files;
    int64_t n, capacity;
} Inputs;

/* The models and prompt groups that steps name. Caller frees; safe after an error too. */
bool inputs_gather(const Job *job, Inputs *inputs, Error *error);
void inputs_free(Inputs *inputs);
/* The files of a checkpoint folder, as "models.NAME/FILE". */
bool inputs_add_model(Inputs *inputs, const char *name, const char *folder, Error *error);
const InputFile *inputs_find(const Inputs *inputs, const char *name); /* NULL: none */

/* What a run is: its settings, device and inputs. */
void inputs_identity(const Job *job, const char *device, const char *compute, const Inputs *inputs,
                     char hash[HASH_TEXT], Error *error);

#endif

/* run_folder: the folder of a run, which job it holds, and who works in it.
 *
 * manifest.json is the first file written and says by a hash which job the folder is of. A folder of the
 * same job is gone on with; one of another job, or with files that are not ours, is refused. Two
 * processes never work in one folder: the folder is locked as long as it is open, and the lock ends with
 * the process however that ends. */
#ifndef GATETAPE_RUN_FOLDER_H
#define GATETAPE_RUN_FOLDER_H
#include "inputs.h"

typedef struct {
    char *path;
    int lock; /* descriptor that holds the lock; -1: none */
    bool resumed;
    char first_begun[32]; /* UTC time of the first run; "" in a new folder */
} RunFolder;

typedef struct {
    const Job *job;
    const Inputs *inputs;
    char identity[HASH_TEXT];
    const char *version, *device, *isa, *compute;
    int n_threads, n_ranks;
} RunFacts;

/* Makes or opens the folder, clears away what a killed run left half-written, and writes manifest.json
 * and job.json. Caller closes; safe after an error too. */
bool run_folder_open(RunFolder *folder, const char *path, const RunFacts *facts, Error *error);
void run_folder_close(RunFolder *folder);

/* state: "running", "interrupted", "failed" or "finished". */
bool run_folder_write_manifest(RunFolder *folder, const RunFacts *facts, const char *state, Error *error);

#endif

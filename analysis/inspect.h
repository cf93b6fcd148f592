/* inspect: what a checkpoint is, before anything is loaded: architecture, parameters, memory, router rule,
 * and what of it the engine cannot run. */
#ifndef GATETAPE_INSPECT_H
#define GATETAPE_INSPECT_H
#include "../engine/error.h"
#include <stdio.h>

/* Prints to `to`. *supported: the engine runs it. False and an Error when the folder is no checkpoint at all.
 * */
bool inspect_run(const char *folder, FILE *to, bool *supported, Error *error);

#endif

/* diff: two run folders beside each other.
 *
 * What was asked for (job.json), what went in (inputs of manifest.json) and what came out (every table, JSON,
 * responses and arrays of the steps) is compared: numbers with the largest absolute and relative difference
 * and where these are, texts and ids for equality, rows by their keys (condition, group, index or id, layer,
 * expert), whatever their order. What is made from these (report and its statistics.json, figures, methods,
 * README.txt) and the clock (events.jsonl) is passed over. Program, device and compute of the manifest, and
 * options that cannot change a number, are noted and do not make two runs different.
 *
 * Files are read a row at a time; of a table with rows in memory are 16 bytes a row of the second run. JSON
 * files, which do not grow with the prompts, are read whole. */
#ifndef GATETAPE_DIFF_H
#define GATETAPE_DIFF_H
#include "../engine/error.h"
#include <stdio.h>

/* Prints what differs; *same: whether nothing does. Errors: a folder without job.json (ERROR_BAD_INPUT), a
 * file that cannot be read. */
bool diff_runs(const char *a, const char *b, FILE *to, bool *same, Error *error);

#endif

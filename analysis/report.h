/* The report of a run: figures by gnuplot and one HTML page that needs nothing else.
 *
 * It is made from the run folder alone (job.json, manifest.json, and of each step step.json, statistics.json
 * and tables), so that it can be made again on another machine. Everything it says is gathered into
 * RUN/statistics.json first, and page and figures are made of that file: see report_view.h. Everything shown
 * is escaped; the page allows itself one script, by its hash, that sorts tables, and no request. It holds
 * nothing that differs between two runs of a job: no time, no host. Its size, and the memory for it, do not
 * grow with the number of prompts but for two small numbers each. */
#ifndef GATETAPE_REPORT_H
#define GATETAPE_REPORT_H
#include "../engine/error.h"
#include "progress.h"

/* Writes FOLDER/statistics.json, figures/, report.html and methods.txt. Where gnuplot is missing or fails
 * the page says so, a warning goes to *progress, and the rest is written. Errors: not a run folder, a table
 * that is not what it must be, a full disk. */
bool report_write(const char *folder, Progress *progress, Error *error);

#endif

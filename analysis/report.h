/* The report of a run: figures by gnuplot and one HTML page that needs nothing else.
 *
 * It is made from the run folder alone (job.json, manifest.json, STEP/step.json and the tables), so that it
 * can be made again on another machine. Everything shown is escaped; the page allows itself no script and no
 * request. It holds nothing that differs between two runs of a job: no time, no host. */
#ifndef GATETAPE_REPORT_H
#define GATETAPE_REPORT_H
#include "../engine/error.h"
#include "progress.h"

/* Writes FOLDER/figures/ and FOLDER/report.html. Where gnuplot is missing or fails the page says so, a
 * warning goes to *progress, and the rest is written. Errors: not a run folder, a table that is not what it
 * must be, a full disk. */
bool report_write(const char *folder, Progress *progress, Error *error);

#endif

/* Runs gnuplot on a script in a folder. The script is ours alone: texts from outside reach gnuplot through
 * data files, since it would run a command that stands in backquotes in a script. */
#ifndef GATETAPE_GNUPLOT_H
#define GATETAPE_GNUPLOT_H
#include <stdbool.h>
#include <stddef.h>

enum { GNUPLOT_SECONDS = 120 };

/* Runs `gnuplot -d SCRIPT` in `folder`, what it says in its file LOG. False, and one line that says why in
 * `problem`, when there is no gnuplot, it takes longer than GNUPLOT_SECONDS, or it fails. */
bool gnuplot_run(const char *folder, const char *script, const char *log, char *problem, size_t capacity);

#endif

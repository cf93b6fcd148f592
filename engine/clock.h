/* The one seam through which time comes in. Results never depend on it; progress, events and the manifest
 * do. */
#ifndef GATETAPE_CLOCK_H
#define GATETAPE_CLOCK_H

double clock_seconds(void);    /* monotonic, from an arbitrary start */
void clock_utc(char text[32]); /* now, ISO 8601 in UTC, "2026-01-31T23:59:59Z" */
void clock_freeze(
    double seconds); /* tests: both clocks stand still at this many seconds since 1970; < 0: thaw */

#endif

/* The clock seam: the system's clocks, or a time that a test has frozen. */
#include "clock.h"
#include <stdatomic.h>
#include <time.h>

static _Atomic double frozen_at = -1;

void clock_freeze(double seconds) { atomic_store(&frozen_at, seconds); }

double clock_seconds(void) {
    double frozen = atomic_load(&frozen_at);
    if (frozen >= 0) return frozen;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void clock_utc(char text[32]) {
    double frozen = atomic_load(&frozen_at);
    time_t seconds = frozen >= 0 ? (time_t)frozen : time(NULL);
    struct tm parts;
    gmtime_r(&seconds, &parts);
    strftime(text, 32, "%Y-%m-%dT%H:%M:%SZ", &parts);
}

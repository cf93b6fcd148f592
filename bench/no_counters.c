/* The seat of `gatetape bench counters` in a program without the emulated device. */
#include "bench.h"

bool bench_counters(const BenchCounters *request, bool *kept, Error *error) {
    (void)request, (void)kept;
    return error_set(error, ERROR_UNAVAILABLE,
                     "bench counters: expected the program with the emulated device (make emulated, then "
                     "build/emulated/gatetape): got one without");
}

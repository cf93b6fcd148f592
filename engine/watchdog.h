/* watchdog: ends the whole job, naming rank, phase and collective, when a rank dies, stops, hangs or falls
 * out of step.
 *
 * One thread a rank over TCP connections of its own, never MPI or NCCL, which may be what hangs. Rank 0 is
 * the hub: ten times a deadline each rank tells it which collective it entered last, whether that ended,
 * and how long ago it last showed a sign of life. The hub judges (watchdog_hub.c); every rank leaves by
 * _exit, so that no library can hold it. There is one watchdog a process: what it watches is the
 * process. */
#ifndef GATETAPE_WATCHDOG_H
#define GATETAPE_WATCHDOG_H
#include "error.h"
#include <stddef.h>
#include <stdint.h>

/* Where rank 0 listens. The token keeps strangers out: a connection that does not know it is closed. */
typedef struct {
    char host[64];
    int32_t port;
    uint64_t token;
} WatchdogAddress;

/* Rank 0 first: opens the listening socket and fills *address, which the caller hands to all ranks. */
bool watchdog_listen(WatchdogAddress *address, Error *error);
/* Starts the thread. deadline_s: longest silence of a rank, and longest time that a collective waits for a
 * rank which shows no sign of life. With one rank nothing is started. */
bool watchdog_start(const WatchdogAddress *address, int rank, int size, double deadline_s, Error *error);
/* Says goodbye, so that leaving is not taken for dying, and ends the thread. */
void watchdog_stop(void);

/* Before each collective: its number, from 1, the same on every rank that keeps step. `op` says what is
 * called, in a form equal on all ranks. *signature is a hash of all calls so far and their phases. */
int64_t watchdog_enter(const char *op, int64_t n_bytes, uint32_t *signature);
/* The collective has ended. */
void watchdog_leave(int64_t number);
/* The word that becomes `number` when that collective has ended: a device that works behind the host's back
 * stores it there itself, on its stream. [number % WATCHDOG_WORDS] of the table. */
enum { WATCHDOG_WORDS = 4096 };
int64_t *watchdog_words(void);
/* Marks kept elsewhere from now on, in memory that a device can write: [WATCHDOG_WORDS], zeroed. Before the
 * first collective that a device marks. */
void watchdog_use_words(int64_t *words);

/* Names what comes next, the same on every rank: it stands in messages and is part of the signature. */
void watchdog_phase(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A sign of life between collectives: long work calls it at least once a deadline. Cheap; any thread. */
void watchdog_tick(void);

/* This rank cannot go on: every rank ends with the error's code and one line is printed. Does not
 * return. */
_Noreturn void watchdog_fail(const Error *error);

#endif

/* What watchdog.c (this process, the spokes) and watchdog_hub.c (rank 0) share: the message, and this
 * process's record of its own collectives. */
#ifndef GATETAPE_WATCHDOG_PARTS_H
#define GATETAPE_WATCHDOG_PARTS_H
#include "watchdog.h"
#include <stdbool.h>

typedef enum { BEAT_ALIVE, BEAT_GOODBYE, BEAT_FAILED, BEAT_VERDICT } BeatKind;

enum { WATCHDOG_POLL_MS = 50 }; /* how long an end of the job may be seen late */

/* One message of one size, both ways. All ranks are the same program: sent as it lies in memory. */
typedef struct {
    uint64_t token;
    int32_t kind, rank, pid, code;
    int64_t entered, left, n_bytes; /* collective numbers; entered > left: number left + 1 is under way */
    uint32_t chain;                 /* hash of every call up to `entered` */
    double idle_s;                  /* since the last sign of life */
    double waits_s;                 /* since the collective under way became the oldest one */
    char host[64], op[64], phase[64], text[600];
} Beat;

/* One end of a connection. */
typedef struct {
    int fd; /* -1: none */
    bool bye;
    double heard; /* clock_seconds() */
    Beat last;
    size_t n_got;
    char buffer[sizeof(Beat)];
} Peer;

typedef struct {
    int rank, size, listener;
    double deadline_s, period_s;
    _Atomic bool stopping;
} WatchdogPlace;

extern WatchdogPlace watchdog_place;

/* Of this process, now. */
Beat beat_own(BeatKind kind);
/* The collective a rank is in, or was in last. */
int64_t beat_number(const Beat *beat);
/* "inside collective #7 all_gather f32[2,3] (step activation), 24 bytes, for 0.5 s" */
void beat_describe(const Beat *beat, char *to, size_t capacity);
bool beat_send(int fd, const Beat *beat);
/* Calls use for each whole message that has come. False at the connection's end. */
bool peer_take(Peer *peer, void use(Peer *));
/* What this process called as that collective, "op (phase)", and its chain. False when it is not
 * remembered. */
bool watchdog_recall(int64_t number, uint32_t *chain, char *to, size_t capacity);

/* Where the launcher does not look, a stopped rank of this machine would outlive us. */
void watchdog_kill_neighbour(const Beat *beat);
/* Prints the line and ends this process. */
_Noreturn void watchdog_end(int code, const char *text);

void *watchdog_hub_run(void *unused);
/* Tells all ranks and ends this process. culprit may be NULL. */
_Noreturn void watchdog_hub_verdict(int code, const char *text, const Beat *culprit);
void watchdog_hub_goodbye(void);
bool watchdog_hub_make(int size, Error *error);

#endif

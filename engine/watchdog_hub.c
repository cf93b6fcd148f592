/* Rank 0's thread. Its rules, each tried at every message and ten times a deadline:
 *   gone          a connection ended and no goodbye came     that rank died or left early
 *   silent        no message for a deadline                  stopped, or its machine is gone
 *   out of step   the hash of a rank's calls differs         both are named at once, without waiting
 *   missing       a rank waits a deadline in a           that other rank is named
 *                 collective that another, which shows
 *                 no sign of life, has not entered
 *   stuck         all are inside and none moved for a deadline
 * A hub that was stopped itself (a suspended job, a laptop's lid) forgives the time in which it did not
 * run. */
#include "alloc.h"
#include "clock.h"
#include "watchdog_parts.h"
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct {
    Peer *peers;        /* [size] by rank; rank 0 is this process */
    Peer *arriving;     /* [size] accepted, rank not told yet; fd -1: free */
    struct pollfd *fds; /* [2 * size + 1] */
} hub;

bool watchdog_hub_make(int size, Error *error) {
    size_t n = (size_t)size;
    hub.peers = mem_zeroed(n, sizeof *hub.peers);
    hub.arriving = mem_zeroed(n, sizeof *hub.arriving);
    hub.fds = mem_zeroed(2 * n + 1, sizeof *hub.fds);
    if (!hub.peers || !hub.arriving || !hub.fds)
        return error_out_of_memory(error, "the watchdog", 2 * n * sizeof *hub.peers);
    for (int r = 0; r < size; r++) {
        hub.peers[r].fd = hub.arriving[r].fd = -1;
        hub.peers[r].last.rank = r;
    }
    return true;
}

void watchdog_hub_goodbye(void) {
    Beat bye = beat_own(BEAT_GOODBYE);
    for (int r = 1; r < watchdog_place.size; r++) beat_send(hub.peers[r].fd, &bye);
}

/* The first verdict stands, and ends the process with the lock held: ranks that it ends would otherwise look
 * to the other thread as if they had died. */
void watchdog_hub_verdict(int code, const char *text, const Beat *culprit) {
    static pthread_mutex_t given = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&given);
    Beat verdict = beat_own(BEAT_VERDICT);
    verdict.code = code;
    for (int r = 1; hub.peers && r < watchdog_place.size; r++) beat_send(hub.peers[r].fd, &verdict);
    if (culprit) watchdog_kill_neighbour(culprit);
    watchdog_end(code, text);
}

/* The furthest collective that another rank than `but` is known to have entered: where the job stands. */
static void describe_front(int but, char *to, size_t capacity) {
    Beat front = beat_own(BEAT_ALIVE);
    for (int r = 1; r < watchdog_place.size; r++)
        if (r != but && !hub.peers[r].bye && beat_number(&hub.peers[r].last) > beat_number(&front))
            front = hub.peers[r].last;
    char where[200];
    beat_describe(&front, where, sizeof where);
    snprintf(to, capacity, "rank %d is %s", front.rank, where);
}

static void hear(Peer *peer) {
    if (peer->last.kind == BEAT_GOODBYE) peer->bye = true;
    if (peer->last.kind != BEAT_FAILED) return;
    char text[640];
    snprintf(text, sizeof text, "rank %d: %.580s", peer->last.rank, peer->last.text);
    watchdog_hub_verdict(peer->last.code, text, NULL);
}

/* ---- rules ---- */
static void judge_gone(int r) {
    char front[240], text[400];
    if (hub.peers[r].bye) return;
    describe_front(r, front, sizeof front);
    snprintf(text, sizeof text, "rank %d on %s ended without goodbye; %s", r, hub.peers[r].last.host, front);
    watchdog_hub_verdict(ERROR_FAILED, text, NULL);
}

static void judge_silent(int r, double now) {
    char front[240], text[400];
    const Peer *peer = &hub.peers[r];
    double silent_s = now - peer->heard;
    if (peer->bye || silent_s <= watchdog_place.deadline_s) return;
    describe_front(r, front, sizeof front);
    snprintf(text, sizeof text,
             "rank %d on %s does not answer for %.1f s (stopped, or its machine is gone); %s", r,
             peer->last.host[0] ? peer->last.host : "a machine unknown", silent_s, front);
    watchdog_hub_verdict(ERROR_FAILED, text, &peer->last);
}

static void judge_step(int r) {
    const Beat *beat = &hub.peers[r].last;
    uint32_t chain;
    char ours[160], text[500];
    if (hub.peers[r].fd < 0 || !watchdog_recall(beat->entered, &chain, ours, sizeof ours) ||
        chain == beat->chain)
        return;
    snprintf(text, sizeof text,
             "rank %d has not made the calls of rank 0 up to collective #%lld: rank 0 called %s; rank %d is "
             "at #%lld "
             "%s (%s)",
             r, (long long)beat->entered, ours, r, (long long)beat_number(beat), beat->op, beat->phase);
    watchdog_hub_verdict(ERROR_FAILED, text, NULL);
}

static void judge_missing(const Beat *waiting, const Beat *missing, bool bye) {
    char where[240], text[600];
    beat_describe(missing, where, sizeof where);
    snprintf(text, sizeof text, "rank %d on %s did not join collective #%lld %s (%s) in %.1f s; it is %s%s",
             missing->rank, missing->host, (long long)beat_number(waiting), waiting->op, waiting->phase,
             waiting->waits_s, where, bye ? " and said goodbye" : "");
    watchdog_hub_verdict(ERROR_FAILED, text, missing);
}

/* Who waits longest, and for whom. */
static void judge_waits(const Beat *own) {
    const Beat *waiting = NULL;
    int size = watchdog_place.size;
    bool all_inside = true;
    double idle_s = 1e300, deadline_s = watchdog_place.deadline_s;
    for (int r = 0; r < size; r++) {
        const Beat *beat = r ? &hub.peers[r].last : own;
        if (beat->entered > beat->left && (!waiting || beat->waits_s > waiting->waits_s)) waiting = beat;
    }
    if (!waiting || waiting->waits_s < deadline_s) return;
    int64_t front = beat_number(waiting);
    for (int r = 0; r < size; r++) {
        const Beat *beat = r ? &hub.peers[r].last : own;
        if (beat->idle_s < idle_s) idle_s = beat->idle_s;
        if (beat->entered >= front && !hub.peers[r].bye) continue;
        all_inside = false;
        if (hub.peers[r].bye || beat->idle_s >= deadline_s) judge_missing(waiting, beat, hub.peers[r].bye);
    }
    if (!all_inside || idle_s < deadline_s) return;
    char text[400];
    snprintf(text, sizeof text, "collective #%lld %s (%s) does not end though all ranks joined it %.1f s ago",
             (long long)front, waiting->op, waiting->phase, waiting->waits_s);
    watchdog_hub_verdict(ERROR_FAILED, text, NULL);
}

/* ---- connections ---- */
static void accept_one(void) {
    int fd = accept4(watchdog_place.listener, NULL, NULL, SOCK_CLOEXEC);
    for (int i = 0; fd >= 0 && i < watchdog_place.size; i++)
        if (hub.arriving[i].fd < 0) {
            hub.arriving[i] = (Peer){.fd = fd};
            return;
        }
    if (fd >= 0) close(fd);
}

static void forget(Peer *peer) {
    close(peer->fd);
    peer->fd = -1;
}

/* A first message says which rank it is of. */
static void greet(Peer *arriving) {
    ssize_t n =
        recv(arriving->fd, arriving->buffer + arriving->n_got, sizeof(Beat) - arriving->n_got, MSG_DONTWAIT);
    if (n == 0) forget(arriving);
    if (n <= 0) return;
    arriving->n_got += (size_t)n;
    if (arriving->n_got < sizeof(Beat)) return;
    memcpy(&arriving->last, arriving->buffer, sizeof(Beat));
    int r = arriving->last.rank;
    if (arriving->last.token != beat_own(BEAT_ALIVE).token || r <= 0 || r >= watchdog_place.size ||
        hub.peers[r].fd >= 0) {
        forget(arriving);
        return;
    }
    arriving->n_got = 0;
    arriving->heard = clock_seconds();
    hub.peers[r] = *arriving;
    arriving->fd = -1;
    hear(&hub.peers[r]);
}

static void wait_for_messages(void) {
    nfds_t n = 0;
    hub.fds[n++] = (struct pollfd){watchdog_place.listener, POLLIN, 0};
    for (int r = 0; r < watchdog_place.size; r++) {
        if (hub.peers[r].fd >= 0) hub.fds[n++] = (struct pollfd){hub.peers[r].fd, POLLIN, 0};
        if (hub.arriving[r].fd >= 0) hub.fds[n++] = (struct pollfd){hub.arriving[r].fd, POLLIN, 0};
    }
    poll(hub.fds, n, WATCHDOG_POLL_MS);
    if (hub.fds[0].revents & POLLIN) accept_one();
    for (int r = 0; r < watchdog_place.size; r++)
        if (hub.arriving[r].fd >= 0) greet(&hub.arriving[r]);
}

static void judge_all(double now) {
    for (int r = 1; r < watchdog_place.size; r++) {
        Peer *peer = &hub.peers[r];
        bool ended = peer->fd >= 0 && !peer_take(peer, hear);
        if (ended) forget(peer);
        if (ended) judge_gone(r);
    }
    Beat own = beat_own(BEAT_ALIVE);
    for (int r = 1; r < watchdog_place.size; r++) judge_silent(r, now);
    for (int r = 1; r < watchdog_place.size; r++) judge_step(r);
    judge_waits(&own);
}

void *watchdog_hub_run(void *unused) {
    (void)unused;
    double before = clock_seconds(), told = 0;
    for (int r = 1; r < watchdog_place.size; r++) hub.peers[r].heard = before;
    while (!watchdog_place.stopping) {
        wait_for_messages();
        double now = clock_seconds();
        for (int r = 1; now - before > watchdog_place.deadline_s / 2 && r < watchdog_place.size; r++)
            hub.peers[r].heard = now;
        before = now;
        if (now - told > watchdog_place.period_s) {
            told = now;
            Beat own = beat_own(BEAT_ALIVE);
            for (int r = 1; r < watchdog_place.size; r++) beat_send(hub.peers[r].fd, &own);
        }
        judge_all(now);
    }
    return NULL;
}

/* This process's record of its collectives, and the thread of every rank but 0: it tells the hub where we
 * are and ends us when the hub says so, or when the hub itself is gone. */
#include "watchdog_parts.h"
#include "clock.h"
#include "text.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int64_t number, n_bytes;
    uint32_t chain;
    char op[64], phase[64];
} Call;

WatchdogPlace watchdog_place = {.size = 1, .listener = -1};

static struct {
    pthread_mutex_t lock;
    pthread_t thread;
    bool running;
    Beat me;            /* guarded by lock, as all up to words */
    char phase[64];     /* of the collectives to come */
    double waits_since; /* see Beat.waits_s */
    Call calls[WATCHDOG_WORDS];
    int64_t own_words[WATCHDOG_WORDS], *words; /* words[n % WATCHDOG_WORDS] == n: collective n has ended */
    _Atomic double alive;                      /* the last sign of life */
    Peer hub;                                  /* the others' view of rank 0 */
} own = {.lock = PTHREAD_MUTEX_INITIALIZER, .hub = {.fd = -1}};

static void sleep_seconds(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

/* ---- the record ---- */
int64_t *watchdog_words(void) { return own.words ? own.words : own.own_words; }

static int64_t word_of(int64_t number) {
    return __atomic_load_n(&watchdog_words()[number % WATCHDOG_WORDS], __ATOMIC_ACQUIRE);
}

void watchdog_use_words(int64_t *words) {
    pthread_mutex_lock(&own.lock);
    for (int i = 0; i < WATCHDOG_WORDS; i++) words[i] = watchdog_words()[i];
    own.words = words;
    pthread_mutex_unlock(&own.lock);
}

/* Moves `left` over what has ended. A later collective with the same word ends after it. The lock is held. */
static void catch_up(void) {
    int64_t before = own.me.left;
    while (own.me.left < own.me.entered && word_of(own.me.left + 1) > own.me.left) own.me.left++;
    if (own.me.left != before) atomic_store(&own.alive, own.waits_since = clock_seconds());
}

int64_t watchdog_enter(const char *op, int64_t n_bytes, uint32_t *signature) {
    pthread_mutex_lock(&own.lock);
    catch_up();
    if (own.me.left == own.me.entered) own.waits_since = clock_seconds();
    int64_t number = ++own.me.entered;
    Call *call = &own.calls[number % WATCHDOG_WORDS];
    call->number = number;
    call->n_bytes = n_bytes;
    snprintf(call->op, sizeof call->op, "%s", op);
    memcpy(call->phase, own.phase, sizeof call->phase);
    uint32_t h = own.me.chain * 2654435761u + (uint32_t)number;
    for (const char *p = call->op; *p; p++) h = (h ^ (uint8_t)*p) * 16777619u;
    for (const char *p = call->phase; *p; p++) h = (h ^ (uint8_t)*p) * 16777619u;
    own.me.chain = call->chain = h ^ h >> 15;
    *signature = own.me.chain;
    pthread_mutex_unlock(&own.lock);
    watchdog_tick();
    return number;
}

void watchdog_leave(int64_t number) {
    __atomic_store_n(&watchdog_words()[number % WATCHDOG_WORDS], number, __ATOMIC_RELEASE);
    watchdog_tick();
}

void watchdog_phase(const char *format, ...) {
    va_list args;
    va_start(args, format);
    pthread_mutex_lock(&own.lock);
    vsnprintf(own.phase, sizeof own.phase, format, args);
    pthread_mutex_unlock(&own.lock);
    va_end(args);
}

void watchdog_tick(void) { atomic_store(&own.alive, clock_seconds()); }

bool watchdog_recall(int64_t number, uint32_t *chain, char *to, size_t capacity) {
    pthread_mutex_lock(&own.lock);
    const Call *call = &own.calls[number % WATCHDOG_WORDS];
    bool known = number > 0 && call->number == number;
    *chain = call->chain;
    if (known) snprintf(to, capacity, "%s (%s)", call->op, call->phase);
    pthread_mutex_unlock(&own.lock);
    return known;
}

/* ---- messages ---- */
int64_t beat_number(const Beat *beat) { return beat->entered > beat->left ? beat->left + 1 : beat->left; }

Beat beat_own(BeatKind kind) {
    pthread_mutex_lock(&own.lock);
    catch_up();
    Beat beat = own.me;
    double now = clock_seconds();
    beat.idle_s = now - atomic_load(&own.alive);
    beat.waits_s = beat.entered > beat.left ? now - own.waits_since : 0;
    const Call *call = &own.calls[beat_number(&beat) % WATCHDOG_WORDS];
    beat.n_bytes = call->n_bytes;
    memcpy(beat.op, call->op, sizeof beat.op);
    memcpy(beat.phase, call->phase, sizeof beat.phase);
    pthread_mutex_unlock(&own.lock);
    beat.kind = (int32_t)kind;
    return beat;
}

void beat_describe(const Beat *beat, char *to, size_t capacity) {
    if (beat->entered == 0)
        snprintf(to, capacity, "before its first collective");
    else
        snprintf(to, capacity, "%s collective #%lld %s (%s), %lld bytes, for %.1f s",
                 beat->entered > beat->left ? "inside" : "after", (long long)beat_number(beat), beat->op,
                 beat->phase[0] ? beat->phase : "-", (long long)beat->n_bytes,
                 beat->entered > beat->left ? beat->waits_s : beat->idle_s);
}

bool beat_send(int fd, const Beat *beat) {
    return fd >= 0 && send(fd, beat, sizeof *beat, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof *beat;
}

bool peer_take(Peer *peer, void use(Peer *)) {
    for (;;) {
        ssize_t n = recv(peer->fd, peer->buffer + peer->n_got, sizeof(Beat) - peer->n_got, MSG_DONTWAIT);
        if (n < 0) return errno == EAGAIN || errno == EINTR;
        if (n == 0) return false;
        peer->n_got += (size_t)n;
        if (peer->n_got < sizeof(Beat)) continue;
        peer->n_got = 0;
        memcpy(&peer->last, peer->buffer, sizeof(Beat));
        if (peer->last.token != own.me.token) return false;
        peer->heard = clock_seconds();
        use(peer);
    }
}

/* ---- the end ---- */
void watchdog_end(int code, const char *text) {
    Error error = {.code = (ErrorCode)code};
    snprintf(error.text, sizeof error.text, "%s", text);
    text_print_error(&error);
    fflush(stderr);
    _exit(code);
}

void watchdog_kill_neighbour(const Beat *beat) {
    if (beat->pid > 0 && !strcmp(beat->host, own.me.host) && beat->rank != own.me.rank)
        kill(beat->pid, SIGKILL);
}

void watchdog_fail(const Error *error) {
    char text[sizeof own.me.text];
    int code = error->code ? (int)error->code : ERROR_FAILED;
    Beat beat = beat_own(BEAT_FAILED);
    snprintf(beat.text, sizeof beat.text, "%.580s", error->text);
    snprintf(text, sizeof text, "rank %d: %.560s", watchdog_place.rank, error->text);
    if (watchdog_place.size == 1) watchdog_end(code, error->text);
    if (watchdog_place.rank == 0) watchdog_hub_verdict(code, text, NULL);
    beat.code = code;
    /* the hub's verdict ends us; if it cannot, we end ourselves */
    if (beat_send(own.hub.fd, &beat)) sleep_seconds(watchdog_place.deadline_s);
    watchdog_end(code, text);
}

/* ---- every rank but 0 ---- */
static void hear_hub(Peer *hub) {
    if (hub->last.kind == BEAT_GOODBYE) hub->bye = true;
    if (hub->last.kind != BEAT_VERDICT) return;
    _exit(hub->last.code); /* rank 0 prints the line */
}

/* Rank 0 is gone or silent: each of the others ends itself, the lowest one speaks first, and mostly
 * alone. */
static _Noreturn void end_without_hub(bool open) {
    char where[200], text[600];
    Beat me = beat_own(BEAT_ALIVE);
    beat_describe(&me, where, sizeof where);
    if (!open)
        snprintf(text, sizeof text, "rank 0 ended without goodbye; rank %d is %s", watchdog_place.rank,
                 where);
    else
        snprintf(text, sizeof text, "rank 0 does not answer for %.1f s; rank %d is %s",
                 clock_seconds() - own.hub.heard, watchdog_place.rank, where);
    sleep_seconds(0.05 * (watchdog_place.rank - 1));
    if (open) watchdog_kill_neighbour(&own.hub.last);
    watchdog_end(ERROR_FAILED, text);
}

static void *spoke_run(void *unused) {
    (void)unused;
    double before = clock_seconds(), told = 0;
    own.hub.heard = before;
    while (!watchdog_place.stopping) {
        struct pollfd fd = {own.hub.fd, POLLIN, 0};
        poll(&fd, 1, WATCHDOG_POLL_MS);
        double now = clock_seconds();
        const bool was_stopped = now - before > watchdog_place.deadline_s / 2; /* this process itself */
        if (was_stopped) own.hub.heard = now;
        before = now;
        if (now - told > watchdog_place.period_s) {
            told = now;
            Beat beat = beat_own(BEAT_ALIVE);
            beat_send(own.hub.fd, &beat);
        }
        bool open = peer_take(&own.hub, hear_hub);
        if (own.hub.bye && !open) return NULL;
        if (own.hub.bye) continue;
        if (!open || now - own.hub.heard > watchdog_place.deadline_s) end_without_hub(open);
    }
    return NULL;
}

/* ---- start and stop ---- */
bool watchdog_listen(WatchdogAddress *address, Error *error) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY)};
    socklen_t n = sizeof at;
    *address = (WatchdogAddress){0};
    int fd = watchdog_place.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, n) || listen(fd, SOMAXCONN) ||
        getsockname(fd, (struct sockaddr *)&at, &n) || gethostname(address->host, sizeof address->host - 1) ||
        getrandom(&address->token, sizeof address->token, 0) != (ssize_t)sizeof address->token)
        return error_set(error, ERROR_FAILED, "ranks: expected a TCP port for the watchdog: got \"%s\"",
                         strerror(errno));
    address->port = ntohs(at.sin_port);
    return true;
}

static bool connect_hub(const WatchdogAddress *a, Error *error) {
    struct addrinfo want = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found = NULL;
    char port[16];
    snprintf(port, sizeof port, "%d", a->port);
    int rc = getaddrinfo(strcmp(a->host, own.me.host) != 0 ? a->host : "127.0.0.1", port, &want, &found);
    if (rc)
        return error_set(error, ERROR_FAILED,
                         "ranks: expected the address of %s, where rank 0 runs: got \"%s\"", a->host,
                         gai_strerror(rc));
    int fd = own.hub.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) == 0;
    freeaddrinfo(found);
    if (!ok)
        return error_set(error, ERROR_FAILED, "ranks: expected rank 0 to answer on %s:%d: got \"%s\"",
                         a->host, a->port, strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    Beat hello = beat_own(BEAT_ALIVE);
    return beat_send(fd, &hello) ||
           error_set(error, ERROR_FAILED, "ranks: expected to reach rank 0 on %s: got \"%s\"", a->host,
                     strerror(errno));
}

bool watchdog_start(const WatchdogAddress *address, int rank, int size, double deadline_s, Error *error) {
    watchdog_place.rank = rank;
    watchdog_place.size = size;
    watchdog_place.deadline_s = deadline_s;
    watchdog_place.period_s = deadline_s < 10 ? deadline_s / 10 : 1;
    own.me.token = address->token;
    own.me.rank = rank;
    own.me.pid = (int32_t)getpid();
    gethostname(own.me.host, sizeof own.me.host - 1);
    watchdog_tick();
    if (size == 1) return true;
    if (rank ? !connect_hub(address, error) : !watchdog_hub_make(size, error)) return false;
    sigset_t all, before; /* signals are the main thread's */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    own.running = pthread_create(&own.thread, NULL, rank ? spoke_run : watchdog_hub_run, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return own.running ||
           error_set(error, ERROR_FAILED, "ranks: expected a thread for the watchdog: got none");
}

void watchdog_stop(void) {
    if (!own.running) return;
    Beat bye = beat_own(BEAT_GOODBYE);
    if (watchdog_place.rank)
        beat_send(own.hub.fd, &bye);
    else
        watchdog_hub_goodbye();
    watchdog_place.stopping = true;
    pthread_join(own.thread, NULL);
    own.running = false;
}

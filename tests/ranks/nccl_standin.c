/* The NCCL and CUDA-runtime calls that comm_nccl.c makes, between real processes, on host memory, with no
 * GPU.
 *
 * Compiled against the real nccl.h where there is one, so that a drifted signature does not build. It is as
 * strict as the documents allow, never as kind as hardware happens to be:
 *   nothing is buffered: a send ends when its receiver has taken the last byte, so a missing group
 * deadlocks;
 *   streams run on a thread of their own in any legal order; receive buffers are poisoned, sends read late;
 *   each message carries its collective's kind, number, type and count: a mismatch is reported, not
 * delivered;
 *   a rank that makes no progress publishes whom it waits for, and a cycle of such ranks is a deadlock;
 *   float sums start at another rank each time, so that a test which relies on their order fails.
 * Faults stand in NCCL_STANDIN, comma separated (R: rank, N: its N-th group or collective on a stream):
 * late=MS seed=S kill=R@N stop=R@N async=R@N silent (a dead peer is not noticed, as over NVLink)
 * abort_hang. */
#if __has_include(<nccl.h>) && __has_include(<cuda_runtime.h>)
#include <nccl.h>
#else
#include "nccl_names.h"
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MAX_RANKS = 16, CHUNK = 1 << 16, MAX_GROUP = 512, STALL_MS = 300 };
typedef enum { SEND_RECV, ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER, BROADCAST } Kind;
static const char *const kind_names[] = {"Send/Recv", "AllGather", "AllReduce", "ReduceScatter", "Broadcast"};
typedef struct {
    Kind kind;
    int type, op;
    uint64_t number, count;
} Label;
typedef struct {
    _Atomic uint32_t full;
    uint32_t bytes;
    Label label;
    char data[CHUNK];
} Box;           /* one chunk on its way */
typedef struct { /* what a process waits for, in ranks of the first communicator */
    _Atomic uint64_t waits_for, progress, polls;
    char text[120];
} Stall;
typedef struct {
    _Atomic int attached, pid[MAX_RANKS], gone[MAX_RANKS];
    Stall stall[MAX_RANKS];
    _Atomic int deadlock; /* 1: being written, 2: the text stands */
    char deadlock_text[256];
    Box box[MAX_RANKS][MAX_RANKS]; /* [from][to] */
} Shared;
struct ncclComm {
    Shared *shared;
    int rank, size;
    _Atomic int state; /* an ncclResult_t */
    _Atomic bool aborted;
    uint64_t issued, collectives;       /* groups given; collectives among them */
    _Atomic uint64_t started, finished; /* groups */
    char name[64], error[256];
};
typedef struct {
    Kind kind;
    const void *in;
    void *out;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t op;
    int peer;
    bool is_send;
    uint64_t number;
} Call;
typedef struct {
    char *data;
    size_t bytes, at;
    int peer;
    bool is_send;
    Label label;
} Message;
typedef struct Work {
    enum { GROUP, COPY, ADD, STORE, RECORD, AWAIT } what;
    ncclComm_t comm;
    uint64_t ticket;
    int n_calls;
    Call *calls;
    void *to;
    const void *from;
    size_t bytes;
    struct Work *next;
    cudaEvent_t event;
    uint64_t event_count;
} Work;
struct CUstream_st {
    Work *head, **tail;
    struct CUstream_st *next;
    void *emulated; /* the stream of the emulated device beside which this one runs */
};
struct CUevent_st {
    _Atomic uint64_t recorded, done;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* streams, their work, counters */
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static cudaStream_t streams;
static Shared *world; /* of the first communicator: the stall table */
static int world_rank, world_size;
static struct {
    int late, kill_rank, kill_at, stop_rank, stop_at, async_rank, async_at;
    bool silent, abort_hang;
    unsigned seed;
} fault = {.kill_rank = -1, .stop_rank = -1, .async_rank = -1, .seed = 1};

static void pause_us(long us) { nanosleep(&(struct timespec){us / 1000000, us % 1000000 * 1000}, NULL); }
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static size_t size_of(ncclDataType_t t) {
    static const size_t b[ncclNumTypes] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return b[t];
}

static ncclResult_t report(ncclComm_t c, ncclResult_t rc, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(c->error, sizeof c->error, format, args);
    va_end(args);
    if (getenv("NCCL_STANDIN_VERBOSE")) fprintf(stderr, "nccl_standin: rank %d: %s\n", c->rank, c->error);
    atomic_store(&c->state, (int)rc);
    return rc;
}

static void read_faults(void) {
    const char *s = getenv("NCCL_STANDIN");
    for (; s && *s; s = strchr(s, ',') ? strchr(s, ',') + 1 : NULL) {
        sscanf(s, "late=%d", &fault.late);
        sscanf(s, "seed=%u", &fault.seed);
        sscanf(s, "kill=%d@%d", &fault.kill_rank, &fault.kill_at);
        sscanf(s, "stop=%d@%d", &fault.stop_rank, &fault.stop_at);
        sscanf(s, "async=%d@%d", &fault.async_rank, &fault.async_at);
        if (!strncmp(s, "silent", 6)) fault.silent = true;
        if (!strncmp(s, "abort_hang", 10)) fault.abort_hang = true;
    }
}

/* ---- moving bytes ---- */

static bool push(ncclComm_t c, Message *m) {
    Box *b = &c->shared->box[c->rank][m->peer];
    if (atomic_load(&b->full)) return false;
    if (m->at == m->bytes && m->bytes) {
        m->at++;
        return true;
    } /* the last chunk was taken: only now the send is done */
    b->bytes = (uint32_t)(m->bytes - m->at < CHUNK ? m->bytes - m->at : CHUNK);
    b->label = m->label;
    if (b->bytes) memcpy(b->data, m->data + m->at, b->bytes);
    m->at += b->bytes;
    if (!m->bytes) m->at = 1;
    atomic_store(&b->full, 1);
    return true;
}

static bool pull(ncclComm_t c, Message *m) {
    Box *b = &c->shared->box[m->peer][c->rank];
    if (!atomic_load(&b->full)) return false;
    const Label *a = &m->label, *s = &b->label;
    if (a->kind != s->kind || a->type != s->type || a->count != s->count || a->op != s->op ||
        (a->kind != SEND_RECV && a->number != s->number)) {
        report(c, ncclInvalidUsage,
               "rank %d calls %s #%llu (%llu of type %d, op %d), rank %d calls %s #%llu (%llu of type %d, op "
               "%d)",
               c->rank, kind_names[a->kind], (unsigned long long)a->number, (unsigned long long)a->count,
               a->type, a->op, m->peer, kind_names[s->kind], (unsigned long long)s->number,
               (unsigned long long)s->count, s->type, s->op);
        return false;
    }
    memcpy(m->data + m->at, b->data, b->bytes);
    m->at += b->bytes;
    if (m->at == m->bytes) m->at++;
    atomic_store(&b->full, 0);
    return true;
}

static bool done(const Message *m) { return m->at > m->bytes || (!m->bytes && m->at); }

/* Is there a cycle of stalled processes through this one, all alive and polling, none making progress? */
static bool deadlocked(char *text, size_t n) {
    uint64_t reach = 1ull << world_rank, polls[MAX_RANKS], progress[MAX_RANKS], seen = 0;
    for (int round = 0; round < 2; round++) {
        reach = atomic_load(&world->stall[world_rank].waits_for);
        for (int pass = 0; pass < world_size; pass++)
            for (int r = 0; r < world_size; r++)
                if (reach >> r & 1 && r != world_rank) reach |= atomic_load(&world->stall[r].waits_for);
        if (!(reach >> world_rank & 1)) return false;
        for (int r = 0; r < world_size; r++) {
            if (!(reach >> r & 1) || !atomic_load(&world->stall[r].waits_for)) continue;
            uint64_t p = atomic_load(&world->stall[r].polls), g = atomic_load(&world->stall[r].progress);
            if (round == 0)
                polls[r] = p, progress[r] = g, seen |= 1ull << r;
            else if (!(seen >> r & 1) || g != progress[r] || (r != world_rank && p < polls[r] + 3))
                return false;
        }
        if (round == 0) pause_us(60000);
    }
    int at = snprintf(text, n, "deadlock:");
    for (int r = 0; r < world_size && at < (int)n; r++)
        if (seen >> r & 1)
            at += snprintf(text + at, n - (size_t)at, " [rank %d %s]", r, world->stall[r].text);
    return true;
}

static int world_of(ncclComm_t c, int rank) {
    for (int r = 0; r < world_size; r++)
        if (atomic_load(&world->pid[r]) == atomic_load(&c->shared->pid[rank])) return r;
    return world_rank;
}

static void stalled(ncclComm_t c, const Message *m, int n, double since) {
    Stall *s = &world->stall[world_rank];
    uint64_t mask = 0;
    for (int i = n - 1; i >= 0; i--) {
        if (done(&m[i])) continue;
        mask |= 1ull << world_of(c, m[i].peer);
        int pid = atomic_load(&c->shared->pid[m[i].peer]);
        snprintf(s->text, sizeof s->text, "in %s #%llu %s rank %d, %zu bytes", kind_names[m[i].label.kind],
                 (unsigned long long)m[i].label.number, m[i].is_send ? "to" : "from", m[i].peer, m[i].bytes);
        if (atomic_load(&c->shared->gone[m[i].peer])) {
            report(c, ncclRemoteError, "rank %d %s, but rank %d has left the communicator", c->rank, s->text,
                   m[i].peer);
            return;
        }
        if (!fault.silent && kill(pid, 0) && errno == ESRCH) {
            report(c, ncclRemoteError, "rank %d %s: rank %d is dead", c->rank, s->text, m[i].peer);
            return;
        }
    }
    atomic_store(&s->waits_for, mask);
    atomic_fetch_add(&s->polls, 1);
    char text[sizeof world->deadlock_text];
    int none = 0;
    if (now() - since > STALL_MS * 1e-3 && s->polls % (uint64_t)(300 + 37 * world_rank) == 0 &&
        deadlocked(text, sizeof text) && atomic_compare_exchange_strong(&world->deadlock, &none, 1)) {
        memcpy(world->deadlock_text, text, sizeof text);
        atomic_store(&world->deadlock, 2);
    }
    if (atomic_load(&world->deadlock) == 2) report(c, ncclInternalError, "%s", world->deadlock_text);
    pause_us(200);
}
/* Runs the messages of one group together; per peer and direction they stay in order. */
static void exchange(ncclComm_t c, Message *m, int n) {
    double since = now();
    for (int left = n; left && !c->aborted && atomic_load(&c->state) <= ncclSuccess;) {
        uint64_t busy_send = 0, busy_recv = 0;
        bool moved = false;
        left = 0;
        for (int i = 0; i < n; i++) {
            uint64_t *busy = m[i].is_send ? &busy_send : &busy_recv;
            if (done(&m[i]) || *busy >> m[i].peer & 1) {
                left += !done(&m[i]);
                continue;
            }
            moved |= m[i].is_send ? push(c, &m[i]) : pull(c, &m[i]);
            if (!done(&m[i])) {
                left++;
                *busy |= 1ull << m[i].peer;
            }
        }
        if (moved) {
            since = now();
            atomic_fetch_add(&world->stall[world_rank].progress, 1);
            atomic_store(&world->stall[world_rank].waits_for, 0);
        } else if (left)
            stalled(c, m, n, since);
    }
    atomic_store(&world->stall[world_rank].waits_for, 0);
    while (atomic_load(&c->state) > ncclSuccess && !c->aborted)
        pause_us(1000); /* as on a device: the stream never ends */
}
#define FOLD(T)                                                                                              \
    for (size_t i = 0; i < count; i++) {                                                                     \
        T *sum = out, value = ((const T *)x)[i];                                                             \
        bool takes = first || (op == ncclMax && value > sum[i]) || (op == ncclMin && value < sum[i]);        \
        if (takes || op == ncclSum) sum[i] = takes ? value : (T)(sum[i] + value);                            \
    }                                                                                                        \
    return
/* out = x, or the reduction of both. */
static void fold(void *out, const void *x, size_t count, ncclDataType_t type, ncclRedOp_t op, bool first) {
    switch (type) {
    case ncclFloat32: FOLD(float);
    case ncclFloat64: FOLD(double);
    case ncclInt32: FOLD(int32_t);
    case ncclInt64: FOLD(int64_t);
    default: return;
    }
}

static bool reduces(const Call *k) { return k->kind == ALL_REDUCE || k->kind == REDUCE_SCATTER; }

/* The messages of one call, put behind n others; *part is where a collective receives. Returns their
 * number. */
static int post(ncclComm_t c, const Call *k, char **part, Message *m, int n) {
    size_t bytes = k->count * size_of(k->type), ranks = (size_t)c->size;
    Label label = {k->kind, (int)k->type, reduces(k) ? (int)k->op : -1, k->number, k->count};
    if (k->kind == SEND_RECV) {
        if (!k->is_send) memset(k->out, 0xff, bytes);
        m[n++] =
            (Message){k->is_send ? (char *)(uintptr_t)k->in : k->out, bytes, 0, k->peer, k->is_send, label};
        return n;
    }
    bool one_root = k->kind == BROADCAST;
    char *to = one_root ? k->out : (*part = malloc(bytes * ranks + 1));
    for (int r = 0; r < c->size; r++) {
        char *from = (char *)(uintptr_t)k->in + (k->kind == REDUCE_SCATTER ? bytes * (size_t)r : 0);
        if (!one_root || k->peer == c->rank) m[n++] = (Message){from, bytes, 0, r, true, label};
        if (!one_root || k->peer == r)
            m[n++] = (Message){to + (one_root ? 0 : bytes * (size_t)r), bytes, 0, r, false, label};
    }
    if (k->kind == ALL_GATHER && k->out != k->in) memset(k->out, 0xff, bytes * ranks);
    return n;
}

/* What a collective makes of what came. */
static void finish(ncclComm_t c, const Call *k, char *part) {
    size_t bytes = k->count * size_of(k->type), ranks = (size_t)c->size;
    if (k->kind == ALL_GATHER) memcpy(k->out, part, bytes * ranks);
    for (size_t r = 0; reduces(k) && r < ranks; r++)
        fold(k->out, part + bytes * ((r + k->number) % ranks), k->count, k->type, k->op, r == 0);
}

static void run_group(ncclComm_t c, Call *calls, int n_calls) {
    int number = (int)++c->started, n = 0;
    if (c->rank == fault.kill_rank && number == fault.kill_at) raise(SIGKILL);
    if (c->rank == fault.stop_rank && number == fault.stop_at) raise(SIGSTOP);
    Message *m = calloc((size_t)n_calls * (size_t)c->size * 2, sizeof *m);
    char **parts = calloc((size_t)n_calls, sizeof *parts);
    for (int i = 0; i < n_calls; i++) n = post(c, &calls[i], &parts[i], m, n);
    if (fault.late) pause_us(fault.late * 1000L);
    if (c->rank == fault.async_rank && number == fault.async_at)
        report(c, ncclSystemError, "async error asked for at operation %d", number);
    exchange(c, m, n);
    for (int i = 0; i < n_calls; i++) {
        if (!c->aborted) finish(c, &calls[i], parts[i]);
        free(parts[i]);
    }
    free(parts);
    free(m);
    c->finished++;
}

/* ---- streams: one thread runs one item at a time, from a stream chosen at random among those that may
 * run ---- */

static bool may_run(const Work *k) {
    if (k->what == GROUP) return k->ticket == k->comm->started + 1 && k->comm->shared;
    return k->what != AWAIT || atomic_load(&k->event->done) >= k->event_count;
}

static void *run_streams(void *unused) {
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&lock);
        cudaStream_t ready[64];
        int n = 0;
        while (n == 0) {
            for (cudaStream_t s = streams; s && n < 64; s = s->next)
                if (s->head && may_run(s->head)) ready[n++] = s;
            if (n == 0) pthread_cond_wait(&wake, &lock);
        }
        cudaStream_t s = ready[(unsigned)rand_r(&fault.seed) % (unsigned)n];
        Work *k = s->head;
        pthread_mutex_unlock(&lock);
        if (k->what == GROUP) run_group(k->comm, k->calls, k->n_calls);
        if (k->what == COPY) memmove(k->to, k->from, k->bytes);
        if (k->what == ADD)
            for (size_t i = 0; i < k->bytes; i++) ((float *)k->to)[i] += ((const float *)k->from)[i];
        if (k->what == STORE) atomic_store((_Atomic int64_t *)k->to, (int64_t)k->bytes);
        if (k->what == RECORD) atomic_store(&k->event->done, k->event_count);
        pthread_mutex_lock(&lock);
        s->head = k->next;
        if (!s->head) s->tail = &s->head;
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
        free(k->calls);
        free(k);
    }
    return NULL;
}

static void add_work(cudaStream_t s, Work w) {
    static pthread_t thread;
    static bool running;
    Work *k = malloc(sizeof *k);
    *k = w;
    pthread_mutex_lock(&lock);
    if (!running) running = pthread_create(&thread, NULL, run_streams, NULL) == 0;
    *s->tail = k;
    s->tail = &k->next;
    k->next = NULL;
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
    (void)flags;
    *s = calloc(1, sizeof **s);
    (*s)->tail = &(*s)->head;
    pthread_mutex_lock(&lock);
    (*s)->next = streams;
    streams = *s;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t s) {
    pthread_mutex_lock(&lock);
    bool idle = !s->head;
    pthread_mutex_unlock(&lock);
    return idle ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    while (cudaStreamQuery(s) == cudaErrorNotReady) pause_us(50);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s) {
    (void)kind;
    add_work(s, (Work){.what = COPY, .to = to, .from = from, .bytes = n});
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    (void)flags;
    *e = calloc(1, sizeof **e);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    add_work(s, (Work){.what = RECORD, .event = e, .event_count = atomic_fetch_add(&e->recorded, 1) + 1});
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
    (void)flags;
    add_work(s, (Work){.what = AWAIT, .event = e, .event_count = atomic_load(&e->recorded)});
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaSuccess ? "no error" : "cuda error (stand-in)";
}

void queue_add_f32(cudaStream_t s, float *acc, const float *x, int64_t n);
void queue_add_f32(cudaStream_t s, float *acc, const float *x, int64_t n) {
    add_work(s, (Work){.what = ADD, .to = acc, .from = x, .bytes = (size_t)n});
}

void queue_store_i64(cudaStream_t s, _Atomic int64_t *where, int64_t value);
void queue_store_i64(cudaStream_t s, _Atomic int64_t *where, int64_t value) {
    add_work(s, (Work){.what = STORE, .to = where, .bytes = (size_t)value});
}

/* ---- the emulated device (tests/emulator/streams.h), in a program that has it ---- */
/* Its streams run only while the host waits for them. So what stands before a group is done when the group is
 * given, the group runs here, and what stands behind it waits. */
extern bool emulator_stream_idle(void *stream) __attribute__((weak));
extern void emulator_stream_await(void *stream, bool (*ready)(void *context), void *context)
    __attribute__((weak));

static cudaStream_t beside(void *emulated) {
    cudaStream_t s = streams;
    while (s && s->emulated != emulated) s = s->next;
    if (s) return s;
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    s->emulated = emulated;
    return s;
}

static bool has_ended(void *own) { return cudaStreamQuery(own) == cudaSuccess; }

static ncclResult_t give(cudaStream_t s, Work w) {
    if (!emulator_stream_idle) {
        add_work(s, w);
        return ncclSuccess;
    }
    while (!emulator_stream_idle(s)) {
        if (atomic_load(&w.comm->state) > ncclSuccess) return (ncclResult_t)atomic_load(&w.comm->state);
        pause_us(50);
    }
    cudaStream_t own = beside(s);
    add_work(own, w);
    emulator_stream_await(s, has_ended, own);
    return ncclSuccess;
}

/* ---- communicators ---- */

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/nccl_standin_%d_%llu", (int)getpid(),
             (unsigned long long)(now() * 1e6));
    int fd = shm_open(id->internal, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(Shared))) return ncclSystemError;
    close(fd);
    return ncclSuccess;
}

static void *attach(void *arg) {
    ncclComm_t c = arg;
    int fd = shm_open(c->name, O_RDWR, 0600);
    Shared *s = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (s == MAP_FAILED) {
        report(c, ncclSystemError, "no shared memory %s", c->name);
        return NULL;
    }
    close(fd);
    if (fault.late) pause_us(fault.late * 1000L);
    atomic_store(&s->pid[c->rank], (int)getpid());
    if (atomic_fetch_add(&s->attached, 1) + 1 == c->size) shm_unlink(c->name);
    while (atomic_load(&s->attached) < c->size && !c->aborted) pause_us(500);
    pthread_mutex_lock(&lock);
    if (!world) {
        world = s;
        world_rank = c->rank;
        world_size = c->size;
    }
    c->shared = s;
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
    atomic_store(&c->state, ncclSuccess);
    return NULL;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
    if (size < 1 || size > MAX_RANKS || rank < 0 || rank >= size || (config && config->magic != 0xcafebeef))
        return ncclInvalidArgument;
    read_faults();
    ncclComm_t c = *comm = calloc(1, sizeof *c);
    c->rank = rank;
    c->size = size;
    snprintf(c->name, sizeof c->name, "%.63s", id.internal);
    atomic_store(&c->state, ncclInProgress);
    if (!config || config->blocking != 0) {
        attach(c);
        return (ncclResult_t)atomic_load(&c->state);
    }
    pthread_t t;
    pthread_create(&t, NULL, attach, c);
    pthread_detach(t);
    return ncclInProgress;
}

ncclResult_t ncclCommInitRank(ncclComm_t *c, int size, ncclUniqueId id, int rank) {
    return ncclCommInitRankConfig(c, size, id, rank, NULL);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *rc) {
    *rc = (ncclResult_t)atomic_load(&c->state);
    return ncclSuccess;
}

const char *ncclGetLastError(ncclComm_t c) { return c ? c->error : ""; }
const char *ncclGetErrorString(ncclResult_t rc) {
    static const char *const s[] = {"no error",
                                    "unhandled cuda error",
                                    "unhandled system error",
                                    "internal error",
                                    "invalid argument",
                                    "invalid usage",
                                    "remote process exited or there was a network error",
                                    "in progress"};
    return (unsigned)rc < ncclNumResults ? s[rc] : "?";
}

/* ---- calls ---- */

static int depth, n_pending;
static struct {
    ncclComm_t comm;
    cudaStream_t stream;
    Call call;
} pending[MAX_GROUP];
ncclResult_t ncclGroupStart(void) {
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (depth == 0) return ncclInvalidUsage;
    if (--depth) return ncclSuccess;
    ncclResult_t result = ncclSuccess;
    while (n_pending && result == ncclSuccess) { /* one item per (communicator, stream) */
        ncclComm_t c = pending[0].comm;
        cudaStream_t s = pending[0].stream;
        Work w = {.what = GROUP, .comm = c, .calls = malloc(sizeof(Call) * (size_t)n_pending)};
        int kept = 0;
        for (int i = 0; i < n_pending; i++) {
            if (pending[i].comm == c && pending[i].stream == s)
                w.calls[w.n_calls++] = pending[i].call;
            else
                pending[kept++] = pending[i];
        }
        n_pending = kept;
        w.ticket = ++c->issued;
        for (int i = 0; i < w.n_calls; i++)
            w.calls[i].number = w.calls[i].kind == SEND_RECV ? w.ticket : ++c->collectives;
        result = give(s, w);
    }
    return result;
}

static ncclResult_t call(ncclComm_t c, cudaStream_t s, Call k) {
    if (!c || !s || (unsigned)k.type >= ncclNumTypes || k.peer < 0 || k.peer >= c->size ||
        (k.count && !(k.is_send || k.kind == BROADCAST ? k.in : k.out)))
        return ncclInvalidArgument;
    int state = atomic_load(&c->state);
    if (state != ncclSuccess)
        return state == ncclInProgress
                   ? report(c, ncclInvalidUsage, "%s before the communicator was ready", kind_names[k.kind])
                   : (ncclResult_t)state;
    if (n_pending == MAX_GROUP) return ncclInternalError;
    ncclGroupStart();
    pending[n_pending].comm = c;
    pending[n_pending].stream = s;
    pending[n_pending++].call = k;
    return ncclGroupEnd();
}

ncclResult_t ncclSend(const void *in, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s) {
    return call(c, s,
                (Call){.kind = SEND_RECV, .in = in, .count = n, .type = t, .peer = peer, .is_send = true});
}

ncclResult_t ncclRecv(void *out, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s) {
    return call(c, s, (Call){.kind = SEND_RECV, .out = out, .count = n, .type = t, .peer = peer});
}

ncclResult_t ncclAllGather(const void *in, void *out, size_t n, ncclDataType_t t, ncclComm_t c,
                           cudaStream_t s) {
    return call(c, s, (Call){.kind = ALL_GATHER, .in = in, .out = out, .count = n, .type = t});
}

ncclResult_t ncclAllReduce(const void *in, void *out, size_t n, ncclDataType_t t, ncclRedOp_t op,
                           ncclComm_t c, cudaStream_t s) {
    return call(c, s, (Call){.kind = ALL_REDUCE, .in = in, .out = out, .count = n, .type = t, .op = op});
}

ncclResult_t ncclReduceScatter(const void *in, void *out, size_t n, ncclDataType_t t, ncclRedOp_t op,
                               ncclComm_t c, cudaStream_t s) {
    return call(c, s, (Call){.kind = REDUCE_SCATTER, .in = in, .out = out, .count = n, .type = t, .op = op});
}

ncclResult_t ncclBroadcast(const void *in, void *out, size_t n, ncclDataType_t t, int root, ncclComm_t c,
                           cudaStream_t s) {
    return call(c, s, (Call){.kind = BROADCAST, .in = in, .out = out, .count = n, .type = t, .peer = root});
}

static ncclResult_t leave(ncclComm_t c) {
    if (depth || n_pending)
        return report(c, ncclInvalidUsage, "a group of %d calls was never ended", n_pending);
    while (c->finished < c->issued && !c->aborted && atomic_load(&c->state) == ncclSuccess) pause_us(200);
    if (c->shared) atomic_store(&c->shared->gone[c->rank], 1);
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t c) { return leave(c); }
ncclResult_t ncclCommDestroy(ncclComm_t c) {
    if (c->shared && !atomic_load(&c->shared->gone[c->rank])) return leave(c);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t c) {
    while (fault.abort_hang) pause_us(100000);
    c->aborted = true;
    if (c->shared) atomic_store(&c->shared->gone[c->rank], 1);
    return ncclSuccess;
}

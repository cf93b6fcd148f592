/* Finding a launcher, opening the plug-in, starting and ending a job of several ranks.
 *
 * MPI starts every such job: it says who is which rank and carries the watchdog's address, and, for NCCL,
 * the id of the communicator. NCCL is opened when a device's memory is to travel, so that a job which shares
 * nothing but results needs none. A clock bounds what the watchdog does not see yet. */
#include "../kernels/check.h"
#include "alloc.h"
#include "comm.h"
#include "io.h"
#include "text.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the launcher ---- */
/* Each says how many processes it started, this one among them: Open MPI's mpirun, Hydra's, srun's. */
static const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};

static int comm_launched(void) {
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const char *value = getenv(sizes[i]);
        int n = value ? atoi(value) : 0;
        if (n > 1) return n;
    }
    return 1;
}

/* srun gives MPI its ranks only when it is told how; Open MPI then ends the process with a page of its
 * own. */
static bool check_srun(Error *error) {
    if (!getenv("SLURM_STEP_NUM_TASKS") || getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMI_SIZE") ||
        getenv("PMIX_RANK") || comm_launched() == 1)
        return true;
    return error_set(
        error, ERROR_BAD_INPUT,
        "srun: expected --mpi=pmix, so that its %d processes find each other: got neither PMIX_RANK "
        "nor PMI_SIZE",
        comm_launched());
}

/* ---- the plug-in ---- */
static const char plugin_name[] = "gatetape_mpi.so";

/* Beside the program, unless GATETAPE_MPI names it; caller frees. */
static char *plugin_path(void) {
    const char *named = getenv("GATETAPE_MPI");
    if (named && *named) return mem_copy_text(named, strlen(named));
    char program[4096];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n <= 0) return mem_copy_text(plugin_name, strlen(plugin_name));
    program[n] = 0;
    char *folder = io_folder_of(program), *path = folder ? io_join(folder, plugin_name) : NULL;
    mem_free(folder);
    return path;
}

static bool load_plugin(Comm *comm, Error *error) {
    char *path = plugin_path();
    if (!path) return error_out_of_memory(error, "a path", sizeof plugin_name);
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    const char *why = library ? "" : dlerror();
    gatetape_mpi_fn *get = NULL;
    if (library) *(void **)&get = dlsym(library, "gatetape_mpi");
    comm->mpi = get ? get() : NULL;
    bool ok = comm->mpi && comm->mpi->version == COMM_MPI_VERSION;
    if (!ok)
        error_set(error, ERROR_UNAVAILABLE,
                  "%.200s: expected the MPI plug-in of this program (install an MPI with mpicc, as Debian's "
                  "libopenmpi-dev, and build again, or name the file in GATETAPE_MPI): got %.300s",
                  path, library ? "another library" : why);
    mem_free(path);
    return ok;
}

static bool mpi_says(bool ok, const char *why, Error *error) {
    return ok || error_set(error, ERROR_FAILED, "ranks: expected MPI to start: got \"%s\"", why);
}

static bool check_size(const Comm *comm, Error *error) {
    int launched = comm_launched();
    if (comm->size > COMM_MAX_RANKS)
        return error_set(error, ERROR_BAD_INPUT, "ranks: expected at most %d: got %d", COMM_MAX_RANKS,
                         comm->size);
    if (comm->size == launched || launched == 1) return true;
    return error_set(error, ERROR_BAD_INPUT,
                     "ranks: expected the %d processes that the launcher started: MPI sees %d (with srun, "
                     "--mpi=pmix; with mpirun, the one of the MPI that built %s)",
                     launched, comm->size, plugin_name);
}

/* ---- the mpi backend ---- */
static _Noreturn void fail_transfer(Comm *comm, const char *why) {
    Error error = {0};
    error_set(&error, ERROR_FAILED, "collective #%lld: %s", (long long)comm->number, why);
    comm_fail(comm, &error);
}

static void transfer_host(Comm *comm, const Transfer *transfers, int n) {
    char why[COMM_WHY] = "";
    if (n && !comm->mpi->transfer(transfers, n, comm->tag, why)) fail_transfer(comm, why);
}

static void sync_or_fail(Comm *comm, Queue *queue) {
    if (!comm->device->sync(queue)) fail_transfer(comm, queue->failure);
}

/* The device's memory as a tensor to copy: no type has less than two bytes. */
static Tensor device_bytes(const Transfer *t) {
    check(t->n_bytes % 2 == 0, "a message of %zu bytes", t->n_bytes);
    return tensor_vector(t->data, DTYPE_BF16, (int64_t)t->n_bytes / 2);
}

static void transfer_staged(Comm *comm, Queue *queue, const Transfer *transfers, int n) {
    Transfer staged[2 * COMM_MAX_RANKS];
    size_t n_bytes = 0;
    for (int i = 0; i < n; i++) n_bytes += transfers[i].n_bytes;
    char *host = mem_alloc(n_bytes), *at = host;
    if (!host) fail_transfer(comm, "out of memory for copies of the device's memory");
    for (int i = 0; i < n; i++, at += transfers[i - 1].n_bytes) {
        const Transfer *t = &transfers[i];
        staged[i] = *t;
        staged[i].data = at;
        if (t->is_send) comm->device->copy_out(queue, at, device_bytes(t));
    }
    sync_or_fail(comm, queue);
    transfer_host(comm, staged, n);
    for (int i = 0; i < n; i++)
        if (!transfers[i].is_send) comm->device->copy_in(queue, device_bytes(&transfers[i]), staged[i].data);
    sync_or_fail(comm, queue);
    mem_free(host);
}

void comm_mpi_transfer(Comm *comm, Queue *queue, const Transfer *transfers, int n) {
    if (queue && n && comm->device->copies)
        transfer_staged(comm, queue, transfers, n);
    else
        transfer_host(comm, transfers, n);
}

static void mark(Comm *comm, Queue *queue, int64_t number) {
    (void)comm;
    (void)queue;
    watchdog_leave(number);
}

/* The host's transfers are done when they return. */
static void wait_host(Comm *comm, Queue *queue) {
    (void)comm;
    (void)queue;
}

void comm_mpi_close(Comm *comm) {
    char why[COMM_WHY];
    alarm(30); /* nobody watches MPI_Finalize */
    comm->mpi->stop(why);
    alarm(0);
}

static const CommBackend mpi_backend = {"mpi", comm_mpi_transfer, mark, wait_host, comm_mpi_close};

int comm_per_node(const int *node, int size) {
    int n = 1;
    while (n < size && node[n] == node[0]) n++;
    for (int r = 0; r < size; r++) {
        const int begin = r / n * n;
        if (node[r] != node[begin] || (begin == r && node[r] != r)) return 0;
    }
    return n;
}

/* Which of the ranks on this machine we are, and how many each has. */
static void find_local_rank(Comm *comm, const char *host) {
    enum { WORDS = 8 };
    union {
        char text[WORDS * sizeof(int64_t)];
        int64_t words[WORDS];
    } mine = {{0}}, all[COMM_MAX_RANKS];
    snprintf(mine.text, sizeof mine.text, "%s", host);
    comm_all_gather(comm, NULL, tensor_matrix(all, DTYPE_I64, comm->size, WORDS),
                    tensor_matrix(&mine, DTYPE_I64, 1, WORDS));
    comm->local_rank = 0;
    for (int r = 0; r < comm->rank; r++) comm->local_rank += !strcmp(all[r].text, mine.text);
    int node[COMM_MAX_RANKS]; /* the lowest rank of each one's machine */
    for (int r = 0; r < comm->size; r++)
        for (node[r] = 0; strcmp(all[node[r]].text, all[r].text) != 0;) node[r]++;
    comm->per_node = comm_per_node(node, comm->size);
}

bool comm_mpi_open(Comm *comm, double deadline_s, Error *error) {
    WatchdogAddress hub = {.port = 0};
    Error first = {0};
    char why[COMM_WHY] = "", host[64] = "";
    if (!check_srun(error) || !load_plugin(comm, error)) return false;
    alarm((unsigned)deadline_s + 60); /* a rank that never comes: MPI would wait for ever */
    bool ok =
        mpi_says(comm->mpi->start(&comm->rank, &comm->size, why), why, error) && check_size(comm, error);
    if (ok && comm->rank == 0) watchdog_listen(&hub, &first);
    ok = ok && mpi_says(comm->mpi->broadcast(&hub, sizeof hub, why), why, error) &&
         mpi_says(comm->mpi->broadcast(&first, sizeof first, why), why, error);
    if (ok && first.code) ok = error_set(error, first.code, "%s", first.text);
    ok = ok && watchdog_start(&hub, comm->rank, comm->size, deadline_s, error);
    if (!ok) {
        if (comm->size > 1 && hub.port) watchdog_fail(error);
        alarm(0);
        return false;
    }
    comm->backend = &mpi_backend;
    comm_phase("start");
    gethostname(host, sizeof host - 1);
    find_local_rank(comm, host);
    alarm(0);
    return true;
}

/* ---- open and close ---- */
Comm comm_alone(const Device *device) {
    return (Comm){.size = 1, .per_node = 1, .kind = "self", .backend = &comm_self_backend, .device = device};
}

bool comm_open(const CommOptions *options, Comm *comm, Error *error) {
    static const char *const kinds[] = {"auto", "self", "mpi", "nccl"};
    int launched = comm_launched();
    bool known = false;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        known = known || !strcmp(options->kind, kinds[i]);
    *comm = comm_alone(NULL);
    comm->kind = options->kind;
    if (!known)
        return error_set(error, ERROR_BAD_INPUT, "--comm: expected auto, self, mpi or nccl: got \"%.40s\"",
                         options->kind);
    bool self = !strcmp(options->kind, "self"), any = !strcmp(options->kind, "auto");
    if (self && launched > 1)
        return error_set(error, ERROR_BAD_INPUT,
                         "--comm self: expected one process: got %d from the launcher", launched);
    if (self || (any && launched == 1))
        return watchdog_start(&(WatchdogAddress){.port = 0}, 0, 1, options->deadline_s, error);
    return comm_mpi_open(comm, options->deadline_s, error);
}

bool comm_use_device(Comm *comm, const Device *device, bool travels, Error *error) {
    const bool asked = !strcmp(comm->kind, "nccl"), opened = !strcmp(comm->backend->name, "nccl");
    const bool apart = device->copies && comm->size > 1 && strcmp(comm->kind, "mpi") != 0;
    check(!opened || comm->device == device, "NCCL was opened for another device than %s", device->name);
    comm->device = device;
    if (opened || !(asked || (apart && travels))) return true;
    bool ok = device->streams ||
              error_set(error, ERROR_BAD_INPUT, "--comm nccl: expected a GPU (--device cuda): got device %s",
                        device->name);
    return comm_agree(comm, ok, error) && comm_nccl_open(comm, error);
}

void comm_close(Comm *comm) {
    if (comm->size > 1) {
        comm_phase("end");
        comm_barrier(comm);
        watchdog_stop();
    }
    if (comm->backend) comm->backend->close(comm);
    *comm = comm_alone(NULL);
}

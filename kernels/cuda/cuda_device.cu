/* The GPU as a device: memory, one stream a queue, recorded work, and what becomes of errors.
 *
 * Ops only put work on the stream. A launch that is refused fails the queue at once, naming op, kernel and
 * shapes; a kernel that dies is found by the next sync, which cannot know the op: with GATETAPE_SYNC=1 each
 * launch is waited for, so the op is named.
 *
 * Small copies go through pinned memory of the queue: they need no wait, and recorded work (a CUDA graph)
 * can do them again, reading what then stands in the host's memory. */
#include "gemm.cuh"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

extern "C" const Ops cuda_ops;

enum { OLDEST_MAJOR = 8, STAGED_BYTES = 64 << 10, STAGING_BYTES = 1 << 20 };

/* A small copy: between the host's memory and its place in pinned memory. */
struct StagedCopy {
    void *host, *pinned;
    size_t n_bytes;
};

struct Staging {
    char *memory = nullptr; /* pinned, STAGING_BYTES */
    size_t used = 0;
};

struct Graph {
    cudaGraphExec_t work = nullptr;
    Staging staging;
    std::vector<StagedCopy> in, out;
};

namespace {
struct Stream {
    cudaStream_t handle = nullptr;
    void *workspace = nullptr;
    bool waits = false; /* GATETAPE_SYNC=1 */
    Staging staging;
    std::vector<StagedCopy> out; /* to be handed to the host after the next wait */
    Graph *recording = nullptr;
};

/* How often each kernel was launched, for the proof that the fast ones run. */
std::mutex launches_lock;
std::map<std::string, int64_t> launches;

Stream *stream_of(Queue *q) { return static_cast<Stream *>(q->stream); }

/* ---- queues ---- */
/* ops: with what they need; else for copies of pinned memory alone. */
bool stream_open(Stream *s, bool ops) {
    const char *waits = getenv("GATETAPE_SYNC");
    s->waits = waits && !strcmp(waits, "1");
    return !cudaStreamCreateWithFlags(&s->handle, cudaStreamNonBlocking) &&
           (!ops || (!cudaMalloc(&s->workspace, WORKSPACE_BYTES) &&
                     !cudaMallocHost((void **)&s->staging.memory, STAGING_BYTES)));
}

void stream_close(Stream *s) {
    if (s->handle) cudaStreamSynchronize(s->handle);
    if (s->workspace) cudaFree(s->workspace);
    if (s->staging.memory) cudaFreeHost(s->staging.memory);
    if (s->handle) cudaStreamDestroy(s->handle);
    delete s;
    cudaGetLastError();
}

Queue *queue_open(bool ops) {
    Queue *q = static_cast<Queue *>(calloc(1, sizeof *q));
    if (!q) return NULL;
    Stream *s = new Stream;
    q->stream = s;
    if (stream_open(s, ops)) return q;
    stream_close(s);
    free(q);
    return NULL;
}

Queue *queue_new() { return queue_open(true); }
Queue *copies_new() { return queue_open(false); }

void queue_free(Queue *q) {
    stream_close(stream_of(q));
    free(q);
}

/* ---- memory ---- */
void *device_alloc(size_t n_bytes) {
    void *p = NULL;
    if (cudaMalloc(&p, n_bytes ? n_bytes : 1) == cudaSuccess) return p;
    cudaGetLastError();
    return NULL;
}

void device_free(void *p) { cudaFree(p); }

void note(Queue *q, const char *what, size_t n_bytes, cudaError_t error) {
    if (error) queue_fail(q, what, "device cuda: %zu bytes: %s", n_bytes, cudaGetErrorString(error));
}

void device_zero(Queue *q, Tensor t) {
    if (q->failed_op || !tensor_count(t)) return;
    note(q, "zero", tensor_bytes(t), cudaMemsetAsync(t.data, 0, tensor_bytes(t), queue_stream(q)));
}

/* ---- copies ---- */
bool device_sync(Queue *q) {
    Stream *s = stream_of(q);
    cudaError_t error = cudaStreamSynchronize(s->handle);
    if (error)
        queue_fail(q, "sync", "device cuda: %s (GATETAPE_SYNC=1 names the op)", cudaGetErrorString(error));
    for (const StagedCopy &c : s->out)
        if (!q->failed_op) memcpy(c.host, c.pinned, c.n_bytes);
    s->out.clear();
    s->staging.used = 0;
    return q->failed_op == NULL;
}

/* Room for n bytes in pinned memory; NULL: too large, or a recording's is full, or the queue has none. */
void *stage(Queue *q, size_t n_bytes) {
    Stream *s = stream_of(q);
    Staging &room = s->recording ? s->recording->staging : s->staging;
    const size_t n = (n_bytes + 15) / 16 * 16;
    if (n > STAGED_BYTES || !room.memory) return NULL;
    if (room.used + n > STAGING_BYTES && (s->recording || !device_sync(q))) return NULL;
    room.used += n;
    return room.memory + (room.used - n);
}

void copy_in(Queue *q, Tensor to, const void *from) {
    const size_t n = tensor_bytes(to);
    if (q->failed_op || !n) return;
    Graph *graph = stream_of(q)->recording;
    void *pinned = stage(q, n);
    if (q->failed_op) return;
    if (!pinned && graph) return queue_fail(q, "copy_in", "%zu bytes cannot be recorded", n);
    if (pinned) memcpy(pinned, from, n);
    if (graph) graph->in.push_back({const_cast<void *>(from), pinned, n});
    note(q, "copy to the device", n,
         cudaMemcpyAsync(to.data, pinned ? pinned : from, n, cudaMemcpyDefault, queue_stream(q)));
}

void copy_out(Queue *q, void *to, Tensor from) {
    const size_t n = tensor_bytes(from);
    if (q->failed_op || !n) return;
    Stream *s = stream_of(q);
    void *pinned = stage(q, n);
    if (q->failed_op) return;
    if (!pinned && s->recording) return queue_fail(q, "copy_out", "%zu bytes cannot be recorded", n);
    if (pinned) (s->recording ? s->recording->out : s->out).push_back({to, pinned, n});
    note(q, "copy to the host", n,
         cudaMemcpyAsync(pinned ? pinned : to, from.data, n, cudaMemcpyDeviceToHost, queue_stream(q)));
}

/* ---- copies ahead of use ---- */
void *host_alloc(size_t n_bytes) {
    void *p = NULL;
    if (cudaMallocHost(&p, n_bytes ? n_bytes : 1) == cudaSuccess) return p;
    cudaGetLastError();
    return NULL;
}

void host_free(void *p) { cudaFreeHost(p); }

void copy_pinned(Queue *q, Tensor to, const void *from) {
    const size_t n = tensor_bytes(to);
    if (q->failed_op || !n) return;
    note(q, "copy ahead of use", n,
         cudaMemcpyAsync(to.data, from, n, cudaMemcpyHostToDevice, queue_stream(q)));
}

Mark *mark_new() {
    cudaEvent_t event;
    if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess)
        return reinterpret_cast<Mark *>(event);
    cudaGetLastError();
    return NULL;
}

cudaEvent_t event_of(Mark *mark) { return reinterpret_cast<cudaEvent_t>(mark); }

void mark_free(Mark *mark) { cudaEventDestroy(event_of(mark)); }

void mark_set(Queue *q, Mark *mark) {
    if (!q->failed_op) note(q, "mark", 0, cudaEventRecord(event_of(mark), queue_stream(q)));
}

void mark_wait(Queue *q, Mark *mark) {
    if (!q->failed_op) note(q, "wait", 0, cudaStreamWaitEvent(queue_stream(q), event_of(mark), 0));
}

bool device_memory(size_t *n_free, size_t *n_total) {
    if (cudaMemGetInfo(n_free, n_total) == cudaSuccess) return true;
    cudaGetLastError();
    return false;
}

/* ---- for a transport between devices ---- */
void *native_stream(Queue *q) { return queue_stream(q); }

void copy_within(Queue *q, void *to, const void *from, size_t n_bytes) {
    if (q->failed_op || !n_bytes) return;
    note(q, "copy within the device", n_bytes,
         cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToDevice, queue_stream(q)));
}

int64_t *host_words(int64_t n) {
    void *words = host_alloc((size_t)n * sizeof(int64_t));
    return static_cast<int64_t *>(words ? memset(words, 0, (size_t)n * sizeof(int64_t)) : NULL);
}

/* A kernel, since a copy between two places of the host would hold the host. */
__global__ void store_word(volatile int64_t *word, int64_t value) {
    if (threadIdx.x == 0) *word = value;
}

void store(Queue *q, int64_t *word, int64_t value) {
    const Call call(q, "store");
    LAUNCH(call, 1, 32, 0, store_word, word, value);
}

bool idle(Queue *q) {
    if (q->failed_op) return true;
    cudaError_t state = cudaStreamQuery(queue_stream(q));
    if (state == cudaErrorNotReady) cudaGetLastError(); /* else the next launch takes it for its own */
    if (state == cudaErrorNotReady) return false;
    note(q, "wait", 0, state);
    return true;
}

/* ---- recorded work ---- */
void graph_free(Graph *graph) {
    if (graph->work) cudaGraphExecDestroy(graph->work);
    if (graph->staging.memory) cudaFreeHost(graph->staging.memory);
    delete graph;
}

void graph_begin(Queue *q) {
    Graph *graph = new Graph;
    cudaError_t error = cudaMallocHost((void **)&graph->staging.memory, STAGING_BYTES);
    if (!error) error = cudaStreamBeginCapture(queue_stream(q), cudaStreamCaptureModeThreadLocal);
    stream_of(q)->recording = graph;
    note(q, "recording", STAGING_BYTES, error);
}

Graph *graph_end(Queue *q) {
    Stream *s = stream_of(q);
    Graph *graph = s->recording;
    cudaGraph_t recorded = nullptr;
    cudaError_t error = cudaStreamEndCapture(s->handle, &recorded);
    if (!error && !q->failed_op) error = cudaGraphInstantiate(&graph->work, recorded, 0);
    if (recorded) cudaGraphDestroy(recorded);
    s->recording = nullptr;
    note(q, "recording", graph->staging.used, error);
    if (!q->failed_op) return graph;
    graph_free(graph);
    return NULL;
}

void graph_launch(Queue *q, Graph *graph) {
    if (q->failed_op) return;
    Stream *s = stream_of(q);
    for (const StagedCopy &c : graph->in) memcpy(c.pinned, c.host, c.n_bytes);
    note(q, "replay", graph->staging.used, cudaGraphLaunch(graph->work, s->handle));
    s->out.insert(s->out.end(), graph->out.begin(), graph->out.end());
}

/* ---- launches ---- */
/* "(gemm<T, 4>)" -> "gemm" */
std::string kernel_name(const char *written) {
    while (*written == '(') written++;
    return std::string(written, strcspn(written, "<)"));
}

void describe(const Call &call, char *to, size_t capacity) {
    size_t used = 0;
    to[0] = 0;
    for (int i = 0; i < call.n_operands && used + 40 < capacity; i++) {
        const Tensor &t = call.operands[i];
        if (!t.data) continue;
        used += (size_t)snprintf(to + used, capacity - used, " %s[", dtype_name(t.dtype));
        for (int d = 0; d < t.n_dims && used + 24 < capacity; d++)
            used += (size_t)snprintf(to + used, capacity - used, d ? ",%lld" : "%lld", (long long)t.shape[d]);
        used += (size_t)snprintf(to + used, capacity - used, "]");
    }
}

void each_kernel(kernel_look *look, void *context) {
    std::lock_guard<std::mutex> held(launches_lock);
    for (const auto &k : launches) look(context, k.first.c_str(), k.second);
}

const DeviceCopies copies = {device_memory, copies_new, host_alloc, host_free, copy_pinned,
                             mark_new,      mark_free,  mark_set,   mark_wait};

const DeviceStreams transport = {native_stream, copy_within, host_words, store, idle};

const Device device = {"cuda",       &cuda_ops,     true,        queue_new,    queue_free,
                       device_alloc, device_free,   device_zero, copy_in,      copy_out,
                       device_sync,  graph_begin,   graph_end,   graph_launch, graph_free,
                       each_kernel,  cublas_switch, &transport,  &copies};
} /* namespace */

cudaStream_t queue_stream(Queue *q) { return stream_of(q)->handle; }
void *queue_workspace(Queue *q) { return stream_of(q)->workspace; }

void launch_finish(const Call &call, const char *kernel, cudaError_t error) {
    Queue *q = call.queue;
    Stream *s = stream_of(q);
    {
        std::lock_guard<std::mutex> held(launches_lock);
        launches[kernel_name(kernel)]++;
    }
    if (!error && s->waits && !s->recording) error = cudaStreamSynchronize(s->handle);
    if (!error) return;
    char operands[160];
    describe(call, operands, sizeof operands);
    queue_fail(q, call.op, "device cuda:%s: %s", operands, cudaGetErrorString(error));
}

/* ---- which kernels suit it ---- */
static int attribute(cudaDeviceAttr which) {
    int value = 0;
    cudaDeviceGetAttribute(&value, which, 0);
    return value;
}
bool uses_hopper() {
    static const bool uses = [] {
        const char *asked = getenv("GATETAPE_HOPPER");
        return attribute(cudaDevAttrComputeCapabilityMajor) == 9 && !(asked && !strcmp(asked, "0"));
    }();
    return uses;
}
int n_multiprocessors() {
    static const int n = attribute(cudaDevAttrMultiProcessorCount);
    return n;
}

/* Of the first device: the oldest kernels need OLDEST_MAJOR, and the driver must know this program's CUDA. */
extern "C" const Device *cuda_device(const char **why) {
    static char reason[160];
    int n = 0, major = 0;
    cudaError_t error = cudaGetDeviceCount(&n);
    if (!error && n) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    if (!error && major >= OLDEST_MAJOR) return &device;
    cudaGetLastError();
    if (error || n == 0)
        snprintf(reason, sizeof reason, "expected a GPU: %s", error ? cudaGetErrorString(error) : "got none");
    else
        snprintf(reason, sizeof reason, "expected a GPU of compute capability %d.0 or later: got %d.x",
                 OLDEST_MAJOR, major);
    if (why) *why = reason;
    return NULL;
}

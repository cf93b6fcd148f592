/* The emulated device's memory, streams, events and graphs. See cuda_runtime.h. */
#include "cuda_runtime.h"
#include "streams.h"
#include <deque>
#include <map>
#include <memory>
#include <unistd.h>

typedef std::vector<std::function<void()>> Work;

/* On a stream: what is done at once when its turn has come and it is ready. */
struct Piece {
    std::function<void()> work;
    std::function<bool()> ready; /* empty: it is */
};

/* Pieces of work are numbered as they are put; the first n_done of them have been done. */
struct EmulatedStream {
    std::deque<Piece> pending;
    uint64_t n_put = 0, n_done = 0;
    bool running = false; /* a piece of it, on the way */
    bool capturing = false;
    Work captured;
    std::vector<std::pair<uintptr_t, size_t>> host_sources; /* of pending copies */
};
struct EmulatedEvent {
    cudaStream_t stream = nullptr; /* set there */
    uint64_t place = 0;            /* behind so many pieces of its work */
    int64_t serial = -1;
};
struct EmulatedGraph {
    std::shared_ptr<Work> work;
};

enum { DEVICE_ALIGNMENT = 256 };

static size_t device_bytes() {
    const char *value = getenv("GATETAPE_EMULATOR_MEMORY");
    return value ? strtoull(value, nullptr, 10) : (size_t)16 << 30;
}

static std::map<uintptr_t, size_t> allocations; /* changed by the host between grids alone */
static unsigned generation;
static size_t n_allocated, peak_allocated;
static cudaError_t last_error;

static cudaError_t remember(cudaError_t error) {
    if (error) last_error = error;
    return error;
}

/* Whether this call of a kind is the one that GATETAPE_EMULATOR_FAIL names. */
static bool told_to_fail(const char *kind, unsigned *n_calls) {
    const char *value = getenv("GATETAPE_EMULATOR_FAIL");
    size_t length = strlen(kind);
    if (!value || strncmp(value, kind, length) || value[length] != ':') return false;
    return ++*n_calls == strtoul(value + length + 1, nullptr, 10);
}

bool emulator::is_allocated(uintptr_t address, size_t n_bytes) {
    static thread_local uintptr_t begin, end;
    static thread_local unsigned seen;
    if (seen == generation && address >= begin && address + n_bytes <= end) return true;
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return false;
    --next;
    seen = generation, begin = next->first, end = next->first + next->second;
    return address + n_bytes <= end;
}

/* All streams. */
static std::vector<cudaStream_t> streams;

/* ---- the order of work ---- */
static std::vector<StreamNote> notes;
static bool taking_notes;
static std::mt19937 any_order;
static bool in_any_order;

void emulator_note_streams(bool on) {
    notes.clear();
    taking_notes = on;
}

const StreamNote *emulator_stream_notes(size_t *n) {
    *n = notes.size();
    return notes.data();
}

void emulator_streams_any_order(unsigned seed) {
    in_any_order = seed != 0;
    any_order.seed(seed);
}

size_t emulator_peak_bytes(void) {
    const size_t peak = peak_allocated;
    peak_allocated = n_allocated;
    return peak;
}

/* Does the stream's work up to a place; waits for what is not ready, or else leaves it. Asking a piece that
 * waits for another stream does that one's work; what it finds there of this stream is done, since it was put
 * before. */
static void work_until(cudaStream_t stream, uint64_t place, bool waits = true) {
    while (stream->n_done < place && !stream->running) {
        const std::function<bool()> &ready = stream->pending.front().ready;
        if (ready && !waits && !ready()) return;
        while (ready && !ready()) usleep(50);
        std::function<void()> work = std::move(stream->pending.front().work);
        stream->pending.pop_front();
        stream->running = true;
        work();
        stream->running = false;
        stream->n_done++;
    }
    if (stream->pending.empty()) stream->host_sources.clear();
}

static void finish_work(cudaStream_t stream) { work_until(stream, stream->n_put); }

static void work_anywhere() {
    while (any_order() % 2) {
        cudaStream_t s = streams[any_order() % streams.size()];
        work_until(s, s->n_done + (s->n_put > s->n_done), false);
    }
}

static cudaError_t put(const StreamNote &note, std::function<void()> work,
                       std::function<bool()> ready = nullptr) {
    cudaStream_t stream = (cudaStream_t) const_cast<void *>(note.stream);
    if (taking_notes) notes.push_back(note);
    if (stream->capturing) {
        stream->captured.push_back(std::move(work));
        return cudaSuccess;
    }
    stream->pending.push_back({std::move(work), std::move(ready)});
    stream->n_put++;
    if (in_any_order) work_anywhere();
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "unknown error";
    }
}

cudaError_t cudaGetLastError() {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaGetDeviceCount(int *n) {
    *n = getenv("GATETAPE_EMULATOR_NO_DEVICE") ? 0 : 1;
    return *n ? cudaSuccess : remember(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int) { return cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    *p = {};
    snprintf(p->name, sizeof p->name, "emulated device");
    p->major = 8, p->multiProcessorCount = 4, p->totalGlobalMem = device_bytes();
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
    const char *arch = getenv("GATETAPE_EMULATOR_ARCH");
    *value = attribute == cudaDevAttrMultiProcessorCount      ? 4
             : attribute == cudaDevAttrComputeCapabilityMajor ? arch && !strcmp(arch, "90") ? 9 : 8
                                                              : 0;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *n_free, size_t *n_total) {
    *n_total = device_bytes();
    *n_free = *n_total > n_allocated ? *n_total - n_allocated : 0;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t n_bytes) {
    static unsigned n_calls;
    *p = nullptr;
    if (told_to_fail("alloc", &n_calls) || n_allocated + n_bytes > device_bytes())
        return remember(cudaErrorMemoryAllocation);
    *p = aligned_alloc(DEVICE_ALIGNMENT, (n_bytes / DEVICE_ALIGNMENT + 1) * DEVICE_ALIGNMENT);
    if (!*p) return remember(cudaErrorMemoryAllocation);
    memset(*p, 0xff, n_bytes); /* NaN */
    allocations[(uintptr_t)*p] = n_bytes;
    n_allocated += n_bytes;
    if (n_allocated > peak_allocated) peak_allocated = n_allocated;
    generation++;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p) {
    for (cudaStream_t s : streams) finish_work(s);
    auto found = allocations.find((uintptr_t)p);
    if (!p) return cudaSuccess;
    if (found == allocations.end()) return remember(cudaErrorInvalidValue);
    n_allocated -= found->second;
    allocations.erase(found);
    generation++;
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t n_bytes) {
    *p = aligned_alloc(DEVICE_ALIGNMENT, (n_bytes / DEVICE_ALIGNMENT + 1) * DEVICE_ALIGNMENT);
    return *p ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void *p) {
    free(p);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = new EmulatedStream;
    streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    finish_work(stream);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == stream) streams.erase(streams.begin() + (long)i);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (stream->capturing) return remember(cudaErrorInvalidValue);
    finish_work(stream);
    return cudaGetLastError();
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    if (stream->capturing) return remember(cudaErrorInvalidValue);
    work_until(stream, stream->n_put, false);
    return stream->n_done < stream->n_put ? remember(cudaErrorNotReady) : cudaGetLastError();
}

bool emulator_stream_idle(void *stream) { return cudaStreamQuery((cudaStream_t)stream) == cudaSuccess; }

void emulator_stream_await(void *stream, bool (*ready)(void *context), void *context) {
    cudaStream_t s = (cudaStream_t)stream;
    if (s->capturing) abort(); /* nobody is there when a graph is launched */
    s->pending.push_back({[] {}, [=] { return ready(context); }});
    s->n_put++;
}

static bool is_device_memory(const void *p, size_t n_bytes) {
    return emulator::is_allocated((uintptr_t)p, n_bytes ? n_bytes : 1);
}

/* Whether a pending copy still reads there. Elsewhere a copy to the host leaves NaN until the wait. */
static bool is_host_source(uintptr_t begin, size_t n_bytes) {
    for (const EmulatedStream *s : streams)
        for (const auto &source : s->host_sources)
            if (begin < source.first + source.second && source.first < begin + n_bytes) return true;
    return false;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    static unsigned n_calls;
    if (told_to_fail("copy", &n_calls)) return remember(cudaErrorUnknown);
    if (!n_bytes) return cudaSuccess;
    if (kind == cudaMemcpyDefault)
        kind = is_device_memory(from, n_bytes) ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
    if ((kind != cudaMemcpyDeviceToHost) != is_device_memory(to, n_bytes))
        return remember(cudaErrorInvalidValue);
    if ((kind != cudaMemcpyHostToDevice) != is_device_memory(from, n_bytes))
        return remember(cudaErrorInvalidValue);
    if (kind == cudaMemcpyHostToDevice) stream->host_sources.emplace_back((uintptr_t)from, n_bytes);
    if (kind == cudaMemcpyDeviceToHost && !stream->capturing && !is_host_source((uintptr_t)to, n_bytes))
        memset(to, 0xff, n_bytes);
    const StreamNote note = {kind == cudaMemcpyHostToDevice ? STREAM_COPY_IN : STREAM_OTHER, stream, n_bytes,
                             to, -1};
    return put(note, [=] { memcpy(to, from, n_bytes); });
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t n_bytes, cudaStream_t stream) {
    if (!n_bytes) return cudaSuccess;
    if (!is_device_memory(to, n_bytes)) return remember(cudaErrorInvalidValue);
    return put({STREAM_OTHER, stream, 0, to, -1}, [=] { memset(to, value, n_bytes); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new EmulatedEvent;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    static int64_t serial;
    *event = {stream, stream->n_put, serial++};
    if (taking_notes) notes.push_back({STREAM_MARK, stream, 0, nullptr, event->serial});
    return cudaSuccess;
}

/* Whether the marked work is done, after waiting or not. That of a stream that is no more was done when it
 * ended. */
static bool work_until_event(const EmulatedEvent &event, bool waits) {
    for (cudaStream_t s : streams) {
        if (s != event.stream) continue;
        work_until(s, event.place, waits);
        return s->n_done >= event.place;
    }
    return true;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    work_until_event(*event, true);
    return cudaSuccess;
}

/* For where it was last set, whatever becomes of the event afterwards. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const EmulatedEvent now = *event;
    if (!now.stream || now.stream == stream) return cudaSuccess;
    return put(
        {STREAM_WAIT, stream, 0, nullptr, now.serial}, [now] { work_until_event(now, true); },
        [now] { return work_until_event(now, false); });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (stream->capturing) return remember(cudaErrorInvalidValue);
    stream->capturing = true;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (!stream->capturing) return remember(cudaErrorInvalidValue);
    stream->capturing = false;
    *graph = new EmulatedGraph{std::make_shared<Work>(std::move(stream->captured))};
    stream->captured.clear();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long) {
    *executable = new EmulatedGraph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    auto work = executable->work;
    return put({STREAM_KERNEL, stream, 0, nullptr, -1}, [work] {
        for (auto &w : *work) w();
    });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return cudaGraphDestroy(executable); }

cudaError_t emulator::enqueue_host(cudaStream_t stream, std::function<void()> work) {
    return put({STREAM_KERNEL, stream, 0, nullptr, -1}, work);
}

cudaError_t emulator::enqueue(cudaStream_t stream, const LaunchShape &shape, std::function<void()> body) {
    static unsigned n_calls;
    const uint64_t n_threads = (uint64_t)shape.size.x * shape.size.y * shape.size.z;
    if (told_to_fail("launch", &n_calls)) return remember(cudaErrorLaunchFailure);
    if (!n_threads || n_threads > MAX_THREADS || n_threads % LANES || shape.shared_bytes > SHARED_LIMIT ||
        !shape.grid.x || shape.grid.y > 65535 || shape.grid.z > 65535)
        return remember(cudaErrorInvalidConfiguration);
    return put({STREAM_KERNEL, stream, 0, nullptr, -1}, [shape, body] { run_grid(shape, body); });
}

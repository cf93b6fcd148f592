/* The emulator tested by itself: what it must forbid, what a missing wait must show, what it must count, and
 * the calls that it must fail when told to. Each runs in a child process (child.h). */
#include <algorithm>
#include <fstream>
#include <omp.h>
#include <sstream>
#include "child.h"
#include "roofline.h"

using namespace emulator;

/* ---- what a kernel must not do ---- */
static __global__ void read_past_end(float *y, const float *x) { store(&y[0], load(&x[threadIdx.x + 1])); }
static __global__ void read_freed(const float *x) { load(&x[threadIdx.x]); }
static __global__ void read_misaligned(const float *x) { load((const float2 *)&x[1]); }

static __global__ void write_past_shared(int) {
    DYNAMIC_SHARED(shared);
    store((float *)shared + threadIdx.x, 1.0f);
}
static __global__ void write_same_word(int) {
    DYNAMIC_SHARED(shared);
    store((float *)shared, 1.0f);
}
/* Mirrors 64 numbers: without the first barrier a warp reads what the other may not have written; without the
 * last it writes what the other may not have read. */
template <bool FIRST, bool LAST> static __global__ void mirror_twice(float *y) {
    SHARED(float, s, 64);
    for (int i = 0; i < 2; i++) {
        store(&s[threadIdx.x], (float)threadIdx.x);
        if (FIRST) __syncthreads();
        store(&y[threadIdx.x], load(&s[63 - threadIdx.x]));
        if (LAST) __syncthreads();
    }
}
static __global__ void meet_at_two_places(int) {
    if (threadIdx.x < 16)
        __syncwarp();
    else
        __syncwarp();
}
static __global__ void leave_warp(int) {
    if (threadIdx.x % 2) return;
    __syncwarp();
}
static __global__ void leave_block(int) {
    if (threadIdx.x % 2) return;
    __syncthreads();
}
static __global__ void wait_for_each_other(int) {
    if (threadIdx.x < 16)
        __syncwarp();
    else
        __syncthreads();
}
static __global__ void empty(int) {}

static const ChildTest FAULTS[] = {
    {"read past the end", [] { RUN(1, 32, 0, read_past_end, on_device<float>(1), on_device<float>(32)); },
     "read of 4 bytes outside every allocation"},
    {"read of freed memory",
     [] {
         float *x = on_device<float>(32);
         cudaFree(x);
         RUN(1, 32, 0, read_freed, x);
     },
     "read of 4 bytes outside every allocation"},
    {"misaligned", [] { RUN(1, 32, 0, read_misaligned, on_device<float>(32)); }, "not a multiple of it"},
    {"past the end of shared memory", [] { RUN(1, 32, 64, write_past_shared, 0); }, "of 64 bytes"},
    {"two threads write a word", [] { RUN(1, 32, 64, write_same_word, 0); }, "wrote since the last barrier"},
    {"no barrier before the read", [] { RUN(1, 64, 0, (mirror_twice<false, true>), on_device<float>(64)); },
     "since the last barrier"},
    {"no barrier before the write", [] { RUN(1, 64, 0, (mirror_twice<true, false>), on_device<float>(64)); },
     "since the last barrier"},
    {"both barriers", [] { RUN(9, 64, 0, (mirror_twice<true, true>), on_device<float>(64)); }, nullptr},
    {"a warp meets at two places", [] { RUN(1, 32, 0, meet_at_two_places, 0); },
     "other lanes of the warp wait at"},
    {"lanes leave their warp", [] { RUN(1, 32, 0, leave_warp, 0); }, "lanes of the warp have left already"},
    {"threads leave their block", [] { RUN(1, 32, 0, leave_block, 0); }, "threads have left already"},
    {"deadlock", [] { RUN(1, 32, 0, wait_for_each_other, 0); }, "deadlock in block"},
    {"threads of half a warp", [] { RUN(1, 48, 0, empty, 0); }, "invalid configuration argument"},
    {"too much shared memory", [] { RUN(1, 32, SHARED_LIMIT + 1, empty, 0); },
     "invalid configuration argument"},
};

/* ---- asynchronous copies land late ---- */
/* y = x through shared memory in two groups, after a wait that leaves LEFT of them under way. */
template <int LEFT> static __global__ void copy_through_shared(float *y, const float *x) {
    DYNAMIC_SHARED(shared);
    for (unsigned i = threadIdx.x; i < 64; i += 32) {
        cp_async16(shared_address(shared) + i * 16, &x[4 * i], true);
        cp_async_commit();
    }
    cp_async_wait<LEFT>();
    __syncthreads();
    for (unsigned i = threadIdx.x; i < 256; i += 32) store(&y[i], load((float *)shared + i));
}

/* How many of the 256 numbers did not arrive. */
template <int LEFT> static int n_missing(const char *when) {
    setenv("GATETAPE_EMULATOR_WHEN", when, 1);
    float *x = on_device<float>(256), *y = on_device<float>(256);
    for (int i = 0; i < 256; i++) x[i] = (float)i;
    RUN(1, 32, 1024, copy_through_shared<LEFT>, y, x);
    int n = 0;
    for (int i = 0; i < 256; i++) n += std::isnan(y[i]) || y[i] != (float)i;
    return n;
}

static void test_copies_late() {
    for (const char *when : {"0", "1", "2"}) check(n_missing<0>(when) == 0, "late by %s", when);
    check(n_missing<1>("2") == 128, "a group is under way");
    check(n_missing<2>("2") == 256, "both groups are under way");
    check(n_missing<2>("0") == 0, "copies that land at once");
    int n = n_missing<2>("1");
    check(n > 0 && n < 256, "%d of 256 copies had not landed at random", n);
}

/* ---- the runtime ---- */
static void test_read_before_sync() {
    float *x = on_device<float>(4), on_host[4] = {1, 2, 3, 4};
    cudaMemcpyAsync(x, on_host, sizeof on_host, cudaMemcpyHostToDevice, stream());
    cudaStreamSynchronize(stream());
    float back[4] = {};
    cudaMemcpyAsync(back, x, sizeof back, cudaMemcpyDeviceToHost, stream());
    for (float b : back) check(std::isnan(b), "%g before the wait", (double)b);
    cudaStreamSynchronize(stream());
    for (int i = 0; i < 4; i++) check(back[i] == on_host[i], "%g after the wait", (double)back[i]);
}

/* The input of a copy is gone before the wait: its end, not its beginning, is what arrives. */
static void test_input_gone() {
    float *x = on_device<float>(1), on_host = 1;
    cudaMemcpyAsync(x, &on_host, sizeof on_host, cudaMemcpyHostToDevice, stream());
    on_host = 2;
    cudaStreamSynchronize(stream());
    check(*x == 2, "%g", (double)*x);
}

static __global__ void add_one(int *x) {
    if (threadIdx.x == 0) store(x, load(x) + 1);
}

static void test_graph() {
    int *x = on_device<int>(1);
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    *x = 0;
    cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal);
    for (int i = 0; i < 3; i++) start_kernel(stream(), KernelShape{"add_one", 1, 32, 0}, add_one, x);
    check(cudaStreamSynchronize(stream()) != cudaSuccess, "a wait while capturing");
    cudaStreamEndCapture(stream(), &graph);
    cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphLaunch(executable, stream());
    cudaGraphLaunch(executable, stream());
    check(*x == 0, "%d before the wait", *x);
    cudaGetLastError();
    check(cudaStreamSynchronize(stream()) == cudaSuccess, "wait");
    check(*x == 6, "%d after two replays of three", *x);
    cudaGraphDestroy(graph), cudaGraphExecDestroy(executable);
}

/* The n-th call of a kind fails, those before and after do not. */
static void test_told_to_fail() {
    void *p;
    int *x = on_device<int>(1), on_host;
    *x = 0;
    setenv("GATETAPE_EMULATOR_FAIL", "alloc:2", 1);
    for (int i = 1; i <= 3; i++)
        check((cudaMalloc(&p, 4) == cudaErrorMemoryAllocation) == (i == 2), "alloc %d", i);
    setenv("GATETAPE_EMULATOR_FAIL", "copy:3", 1);
    for (int i = 1; i <= 4; i++) {
        cudaError_t error = cudaMemcpyAsync(&on_host, x, sizeof *x, cudaMemcpyDeviceToHost, stream());
        check((error != cudaSuccess) == (i == 3), "copy %d", i);
    }
    setenv("GATETAPE_EMULATOR_FAIL", "launch:1", 1);
    for (int i = 1; i <= 3; i++) {
        cudaError_t error = start_kernel(stream(), KernelShape{"add_one", 1, 32, 0}, add_one, x);
        check((error == cudaErrorLaunchFailure) == (i == 1), "launch %d", i);
    }
    cudaStreamSynchronize(stream());
    check(*x == 2, "%d of the launches ran", *x);
}

/* ---- counts of patterns with known figures: one warp reads element (lane & mask) * stride ---- */
template <class T> static __global__ void read_pattern(const T *x, unsigned stride, unsigned mask) {
    DYNAMIC_SHARED(shared);
    const unsigned i = (threadIdx.x & mask) * stride;
    load((const T *)shared + i);
    load(&x[i]);
}

template <class T>
static void expect_pattern(unsigned stride, unsigned mask, uint64_t wavefronts, uint64_t sectors) {
    size_t n;
    T *x = on_device<T>(32 * stride);
    count_begin();
    RUN(1, 32, 32 * stride * sizeof(T), read_pattern<T>, x, stride, mask);
    const LaunchCounts &l = *count_end(&n);
    const uint64_t *of = l.total.of;
    check(n == 1 && l.n_lines == 2 && of[COUNT_REQUESTS] == 2, "%zu launches, %zu lines", n, l.n_lines);
    check(of[COUNT_WAVEFRONTS] == wavefronts && of[COUNT_READ] == sectors && l.touched_read == sectors,
          "%zu bytes, stride %u, mask %x: %llu wavefronts, %llu sectors", sizeof(T), stride, mask,
          (unsigned long long)of[COUNT_WAVEFRONTS], (unsigned long long)of[COUNT_READ]);
    check(of[COUNT_WRITTEN] == 0 && l.touched_written == 0, "writes");
    cudaFree(x);
}

static void test_patterns() {
    expect_pattern<uint16_t>(1, 31, 1, 2);
    expect_pattern<float>(1, 31, 1, 4);
    expect_pattern<float>(2, 31, 2, 8);
    expect_pattern<float>(32, 31, 32, 32);
    expect_pattern<float>(33, 31, 1, 32);
    expect_pattern<float>(1, 0, 1, 1);
    expect_pattern<float2>(1, 31, 2, 8);
    expect_pattern<float2>(2, 31, 4, 16);
    expect_pattern<float4>(1, 31, 4, 16);
    expect_pattern<float4>(2, 15, 8, 16); /* halves alike: 8 on an H100 */
    expect_pattern<float4>(2, 16, 2, 2);  /* an address for each half: 2 on an H100 */
}

static __global__ void count_all_kinds(int *x, float *y) {
    SHARED(int, s, 32);
    float c[4] = {};
    const uint32_t a[4] = {};
    if (threadIdx.x < 8) atomicAdd(&x[threadIdx.x], 1);
    if (threadIdx.x < 32) store(&s[threadIdx.x], 1);
    __syncthreads();
    for (unsigned i = 0; i < threadIdx.x % 4; i++) load(&x[8 * i + threadIdx.x / 4]);
    mma_bf16(c, a, 0, 0);
    store(&y[threadIdx.x], c[0]);
}

/* Atomics read and write; lanes that repeat less join the first repetitions; each warp multiplies. */
static void test_kinds() {
    size_t n;
    int *x = on_device<int>(64);
    float *y = on_device<float>(64);
    count_begin();
    RUN(2, 64, 0, count_all_kinds, x, y);
    const LaunchCounts &l = *count_end(&n);
    const uint64_t expected[N_COUNTS] = {2 * (1 + 1 + 2 * 3 + 2),
                                         2 * (1 + 2 * 3),
                                         2 * (1 + 2 * 4),
                                         2 * (2 + 2 * 3 + 2 * 4),
                                         2 * 1,
                                         2 * 1,
                                         2 * 2 * 2048,
                                         2 * 1};
    for (int i = 0; i < N_COUNTS; i++)
        check(l.total.of[i] == expected[i], "count %d: %llu, expected %llu", i,
              (unsigned long long)l.total.of[i], (unsigned long long)expected[i]);
    check(l.touched_read == 4 && l.touched_written == 1 + 8, "%llu read, %llu written",
          (unsigned long long)l.touched_read, (unsigned long long)l.touched_written);
}

/* ---- the bounds: a good kernel keeps them, its bad twin does not ---- */
/* A thread copies four numbers: neighbouring ones lie 128 apart (coalesced), or are its own four in a run. */
template <bool COALESCED> static __global__ void copy_four(float *y, const float *x) {
    for (unsigned k = 0; k < 4; k++) {
        const unsigned i = blockIdx.x * 512 + (COALESCED ? k * 128 + threadIdx.x : threadIdx.x * 4 + k);
        store(&y[i], load(&x[i]));
    }
}
/* A tile of 32 x 32, transposed in shared memory with rows of PITCH. */
template <int PITCH> static __global__ void transpose(float *y, const float *x) {
    SHARED(float, tile, 32 * PITCH);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (unsigned r = warp; r < 32; r += 4) store(&tile[r * PITCH + lane], load(&x[r * 32 + lane]));
    __syncthreads();
    for (unsigned r = warp; r < 32; r += 4) store(&y[r * 32 + lane], load(&tile[lane * PITCH + r]));
}

static LaunchCounts counts_of(void (*kernel)(float *, const float *), unsigned grid, unsigned threads) {
    size_t n;
    float *x = on_device<float>(4096), *y = on_device<float>(4096);
    count_begin();
    RUN(grid, threads, 0, kernel, y, x);
    const LaunchCounts *l = count_end(&n);
    check(n == 1, "%zu launches", n);
    return *l;
}

static void test_bounds() {
    const LaunchCounts good = counts_of(copy_four<true>, 8, 128);
    check(sectors_per_packed(&good.total) == 1, "%g sectors", sectors_per_packed(&good.total));
    check(touched_per_least(&good, {2 * 4096 * 4, 0}) == 1, "touched");
    const LaunchCounts strided = counts_of(copy_four<false>, 8, 128);
    check(sectors_per_packed(&strided.total) == 4, "%g sectors", sectors_per_packed(&strided.total));
    check(touched_per_least(&strided, {2 * 4096 * 4, 0}) == 1, "touched");
    const LaunchCounts padded = counts_of(transpose<33>, 1, 128);
    check(wavefronts_per_free(&padded.total) == 1, "%g wavefronts", wavefronts_per_free(&padded.total));
    const LaunchCounts conflicts = counts_of(transpose<32>, 1, 128);
    check(wavefronts_per_free(&conflicts.total) == 16.5, "%g wavefronts",
          wavefronts_per_free(&conflicts.total));
}

static void test_roofline() {
    LaunchCounts l = {};
    l.touched_read = 100, l.touched_written = 25;
    l.total.of[COUNT_READ] = 200, l.total.of[COUNT_WAVEFRONTS] = 1000,
    l.total.of[COUNT_MULTIPLY_ADDS] = 1 << 20;
    const DeviceLimits d = {10, 1e9, 4e9, 16e9, 128, 1 << 20};
    const Roofline r = launch_roofline(&l, &d);
    check(r.dram == 1e-6 && r.l2 == 0.4e-6 && r.shared == 1e-7 && r.tensor == 1, "%g %g %g %g", r.dram, r.l2,
          r.shared, r.tensor);
    check(roofline_seconds(r) == 1 && useful_share(&l, {0, 1 << 19}) == 0.5, "useful");
}

/* ---- counts are the same on every run ---- */
static std::string describe(const LaunchCounts &l) {
    std::ostringstream s;
    s << l.kernel << ' ' << l.n_blocks << ' ' << l.n_run << ' ' << l.touched_read << ' ' << l.touched_written;
    for (size_t i = 0; i < l.n_lines; i++) {
        s << '\n' << l.lines[i].file << ' ' << l.lines[i].line;
        for (uint64_t n : l.lines[i].tally.of) s << ' ' << n;
    }
    return s.str();
}

static std::string count_once(int n_threads, const char *seed, const char *when) {
    static float *x = on_device<float>(1 << 15), *y = on_device<float>(1 << 15);
    size_t n;
    omp_set_num_threads(n_threads);
    setenv("GATETAPE_EMULATOR_SEED", seed, 1);
    setenv("GATETAPE_EMULATOR_WHEN", when, 1);
    count_begin();
    RUN(61, 128, 0, copy_four<false>, y, x);
    RUN(7, 128, 0, transpose<33>, y, x);
    RUN(5, 32, 1024, copy_through_shared<0>, y, x);
    const LaunchCounts *l = count_end(&n);
    std::string all;
    for (size_t i = 0; i < n; i++) all += describe(l[i]) + '\n';
    return all;
}

static void test_same_counts() {
    const std::string first = count_once(1, "1", "2");
    check(std::count(first.begin(), first.end(), '\n') == 3 + 1 + 3 + 3, "%s", first.c_str());
    for (int n_threads = 1; n_threads <= 5; n_threads++)
        for (const char *seed : {"1", "2", "3"})
            for (const char *when : {"0", "1", "2"})
                check(count_once(n_threads, seed, when) == first, "%d threads, seed %s", n_threads, seed);
}

static void test_sample() {
    count_sample(4);
    const LaunchCounts l = counts_of(copy_four<true>, 8, 128);
    check(l.n_blocks == 8 && l.n_run == 4 && l.total.of[COUNT_READ] == 4 * 64, "%llu of %llu blocks",
          (unsigned long long)l.n_run, (unsigned long long)l.n_blocks);
}

static void test_file() {
    char path[64];
    snprintf(path, sizeof path, "/tmp/gatetape-counts-%d.csv", (int)getpid());
    setenv("GATETAPE_EMULATOR_COUNT", path, 1);
    float *x = on_device<float>(4096), *y = on_device<float>(4096);
    RUN(8, 128, 0, copy_four<true>, y, x);
    fflush(nullptr);
    std::ifstream file(path);
    std::string header, total, line;
    std::getline(file, header), std::getline(file, total), std::getline(file, line);
    unlink(path);
    check(total == "0,\"copy_four<true>\",8,8,128,0,512,512,total,256,512,512,1024,0,0,0,0", "%s",
          total.c_str());
    check(std::count(header.begin(), header.end(), ',') == 16, "%s", header.c_str());
    check(line.find(",test_emulator.cu:") != std::string::npos, "%s", line.c_str());
}

static const ChildTest RUNS[] = {
    {"copies land late", test_copies_late, nullptr},
    {"a host read before the wait sees NaN", test_read_before_sync, nullptr},
    {"an input may not go before the wait", test_input_gone, nullptr},
    {"graphs replay", test_graph, nullptr},
    {"the n-th call fails when told to", test_told_to_fail, nullptr},
    {"counts of known patterns", test_patterns, nullptr},
    {"counts of atomics, repetitions, products, barriers", test_kinds, nullptr},
    {"strided copies and bank conflicts break their bounds", test_bounds, nullptr},
    {"roofline", test_roofline, nullptr},
    {"counts do not depend on threads, order or lateness", test_same_counts, nullptr},
    {"counts of a sample of blocks", test_sample, nullptr},
    {"counts of a whole program in a file", test_file, nullptr},
};

int main() {
    int n_failed = run_children("faults", FAULTS);
    n_failed += run_children("runs", RUNS);
    return n_failed != 0;
}

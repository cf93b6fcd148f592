/* Running blocks: fibres, their order, where they wait, and the checks of shared memory. See emulator.h. */
#include "emulator.h"
#include <algorithm>
#include <cstdarg>
#include <omp.h>
#include <sys/mman.h>

namespace emulator {

thread_local Block *block;
thread_local Thread *thread;

/* ---- switching fibres ---- */
extern "C" void emulator_switch(void **save, void *to);
asm(R"(
.text
.globl emulator_switch
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

void fault(Site at, const char *format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "%s:%d: %s: %s", at.file, at.line, block ? block->kernel : "emulator", text);
    if (block && thread)
        fprintf(stderr, " (block %u,%u,%u thread %u,%u,%u)", block->index.x, block->index.y, block->index.z,
                thread->index.x, thread->index.y, thread->index.z);
    fputc('\n', stderr);
    abort();
}

static void leave_fibre() { emulator_switch(&thread->stack_pointer, block->scheduler_stack_pointer); }

static Warp &own_warp() { return block->warps[thread->warp]; }

void sleep_until_woken() {
    own_warp().runnable &= ~(1u << thread->lane);
    leave_fibre();
}

void wake(const Thread &t) { block->warps[t.warp].runnable |= 1u << t.lane; }

static void fibre_main() {
    (*block->body)();
    if (block->hopper) hopper_leave();
    Warp &w = own_warp();
    w.runnable &= ~(1u << thread->lane);
    w.finished |= 1u << thread->lane;
    block->n_alive--;
    leave_fibre();
    abort();
}

/* ---- meeting ---- */
void wait_warp(Site at, void (*finish)(Warp *warp)) {
    Warp &w = own_warp();
    if (w.finished) fault(at, "lanes of the warp have left already (mask %08x)", w.finished);
    if (w.arrived == 0)
        w.site = at;
    else if (w.site.line != at.line || strcmp(w.site.file, at.file))
        fault(at, "other lanes of the warp wait at %s:%d", w.site.file, w.site.line);
    if (++w.arrived < LANES) return sleep_until_woken();
    finish(&w);
    if (block->counter) count_meeting(thread->warp);
    w.arrived = 0;
    w.meetings++;
    w.runnable = ~0u;
}

static void open_epoch() {
    static thread_local uint64_t last = 0;
    block->epoch = ++last;
}

void wait_block(Site at) {
    Block &b = *block;
    if (b.waiting_at_barrier == 0) b.barrier_site = at;
    if (b.n_alive < b.n_threads) fault(at, "%u threads have left already", b.n_threads - b.n_alive);
    if (b.counter && thread == b.threads) count_add(COUNT_BARRIERS, 1, at);
    if (++b.waiting_at_barrier < b.n_threads) return sleep_until_woken();
    b.waiting_at_barrier = 0;
    open_epoch();
    for (unsigned w = 0; b.counter && w < b.n_warps; w++) count_meeting(w);
    for (unsigned w = 0; w < b.n_warps; w++) b.warps[w].runnable = ~0u;
}

void wait_named(unsigned id, unsigned n_threads, Site at) {
    if (id >= NAMED_BARRIERS || n_threads % LANES) fault(at, "barrier %u of %u threads", id, n_threads);
    NamedBarrier &n = block->named[id];
    const unsigned self = (unsigned)(thread - block->threads);
    block->races_checked = false;
    if (n.arrived == 0 || self < n.lowest) n.lowest = self, n.site = at;
    n.waiting.push_back(thread);
    if (++n.arrived < n_threads) return sleep_until_woken();
    if (block->counter) {
        count_add(COUNT_BARRIERS, 1, n.site);
        for (const Thread *t : n.waiting)
            if (t->lane == 0) count_meeting(t->warp);
    }
    n.arrived = 0;
    for (const Thread *t : n.waiting) wake(*t);
    n.waiting.clear();
}

/* ---- shared memory ---- */
static void check_race(Touch &t, Access access, Site at) {
    const Block &b = *block;
    const uint16_t self = (uint16_t)(thread - b.threads);
    const uint32_t meetings = own_warp().meetings;
    auto ordered = [&](uint16_t other, uint32_t other_meetings) {
        return other == self || (b.threads[other].warp == thread->warp && other_meetings != meetings);
    };
    if (t.write_epoch == b.epoch && !ordered(t.writer, t.write_meetings))
        fault(at, "shared memory that thread %u wrote since the last barrier", t.writer);
    if (access == READ) {
        t.many_readers =
            t.read_epoch == b.epoch && (t.many_readers || b.threads[t.reader].warp != thread->warp);
        t.read_epoch = b.epoch, t.reader = self, t.read_meetings = meetings;
        return;
    }
    if (t.read_epoch == b.epoch && (t.many_readers || !ordered(t.reader, t.read_meetings)))
        fault(at, "write of shared memory that thread %u read since the last barrier", t.reader);
    t.write_epoch = b.epoch, t.writer = self, t.write_meetings = meetings;
}

void touch_shared(uint32_t offset, unsigned n_bytes, Access access, Site at) {
    Block &b = *block;
    if (offset + n_bytes > b.dynamic_bytes + b.static_bytes)
        fault(at, "shared memory at %u of %u bytes", offset, b.dynamic_bytes + b.static_bytes);
    const GenericWrite write = {b.serial, (uint16_t)(thread - b.threads), thread->n_proxy_fences};
    for (uint32_t i = offset / 4; access != READ && i <= (offset + n_bytes - 1) / 4; i++) b.writes[i] = write;
    if (!b.races_checked || access == ATOMIC) return;
    for (uint32_t i = offset / 2; i <= (offset + n_bytes - 1) / 2; i++) check_race(b.touches[i], access, at);
}

/* Static variables stand behind the dynamic part. */
void *static_shared(const void *key, size_t n_bytes) {
    Block &b = *block;
    for (const auto &s : b.statics)
        if (s.first == key) return b.shared + s.second;
    uint32_t offset = b.dynamic_bytes + b.static_bytes;
    b.static_bytes += (uint32_t)(n_bytes + 15) / 16 * 16;
    if (b.dynamic_bytes + b.static_bytes > SHARED_LIMIT)
        fault({}, "more than %d bytes of shared memory", SHARED_LIMIT);
    b.statics.emplace_back(key, offset);
    return memset(b.shared + offset, 0xff, n_bytes);
}

unsigned char *shared_pointer(uint32_t address, unsigned n_bytes, Site at) {
    if (address < SHARED_BASE || address - SHARED_BASE + n_bytes > SHARED_LIMIT)
        fault(at, "shared address %u", address);
    return block->shared + (address - SHARED_BASE);
}

/* ---- asynchronous copies to shared memory ---- */
static void land(const AsyncCopy &c) {
    unsigned char *to = block->shared + (c.to - SHARED_BASE);
    if (c.present)
        memcpy(to, c.from, c.n_bytes);
    else
        memset(to, 0, c.n_bytes);
}

void copy_later(const AsyncCopy &copy) {
    if (block->when == AT_ONCE) return land(copy);
    memset(block->shared + (copy.to - SHARED_BASE), 0xff, copy.n_bytes);
    thread->copies.back().push_back(copy);
}

void copies_commit() {
    if (block->when != AT_ONCE) thread->copies.emplace_back();
}

void copies_wait(unsigned n_left) {
    auto &groups = thread->copies;
    while (groups.size() > n_left + 1) {
        for (const AsyncCopy &c : groups.front()) land(c);
        groups.erase(groups.begin());
    }
}

static void land_some(Thread &t) {
    for (auto &group : t.copies)
        while (!group.empty() && block->random() % 2) {
            size_t i = block->random() % group.size();
            land(group[i]);
            group.erase(group.begin() + (long)i);
        }
}

/* ---- one block ---- */
static char *new_stacks() {
    char *stacks = (char *)mmap(nullptr, (size_t)MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) fault({}, "no memory for %d stacks", MAX_THREADS);
    for (int i = 0; i < MAX_THREADS; i++) /* an overflow ends the program, not the neighbour */
        mprotect(stacks + (size_t)i * STACK_BYTES, 4096, PROT_NONE);
    return stacks;
}

static Block *new_block() {
    Block *b = new Block();
    b->shared = (unsigned char *)aligned_alloc(1024, SHARED_LIMIT);
    b->stacks = new_stacks();
    b->touches.resize(SHARED_LIMIT / 2);
    b->writes.resize(SHARED_LIMIT / 4);
    return b;
}

static void start_thread(Block &b, unsigned i) {
    Thread &t = b.threads[i];
    const dim3 &s = b.size;
    t.index = dim3(i % s.x, i / s.x % s.y, i / s.x / s.y);
    t.warp = i / LANES, t.lane = i % LANES;
    t.copies.assign(1, {});
    t.n_proxy_fences = 0;
    uint64_t *top = (uint64_t *)(b.stacks + (size_t)(i + 1) * STACK_BYTES) - 8;
    *--top = 0; /* where fibre_main would return to: it does not */
    *--top = (uint64_t)&fibre_main;
    for (int r = 0; r < 6; r++) *--top = 0;
    t.stack_pointer = top;
}

[[noreturn]] static void complain_deadlock(const Block &b) {
    fprintf(stderr, "%s: deadlock in block %u: %u of %u threads alive, %u at the barrier %s:%d\n", b.kernel,
            b.index.x, b.n_alive, b.n_threads, b.waiting_at_barrier, b.barrier_site.file,
            b.barrier_site.line);
    for (unsigned w = 0; w < b.n_warps; w++)
        if (b.warps[w].arrived)
            fprintf(stderr, "    warp %u: %u lanes at %s:%d, left %08x\n", w, b.warps[w].arrived,
                    b.warps[w].site.file, b.warps[w].site.line, b.warps[w].finished);
    if (b.hopper) hopper_describe();
    abort();
}

/* Runs lanes until all have finished. Warps have priorities, shuffled now and then: the first runs as far
 * ahead of the others as the barriers allow, which shows what a missing barrier hides. */
static void schedule(Block &b) {
    std::vector<unsigned> order(b.n_warps);
    for (unsigned w = 0; w < b.n_warps; w++) order[w] = w;
    for (unsigned step = 0; b.n_alive; step++) {
        if (step % 64 == 0) std::shuffle(order.begin(), order.end(), b.random);
        unsigned at = 0;
        while (at < b.n_warps && !b.warps[order[at]].runnable) at++;
        if (at == b.n_warps) {
            if (b.hopper && hopper_advance()) continue;
            complain_deadlock(b);
        }
        unsigned w = order[at], lane = b.random() % LANES;
        while (!(b.warps[w].runnable >> lane & 1)) lane = (lane + 1) % LANES;
        thread = &b.threads[w * LANES + lane];
        if (b.when == AT_RANDOM) land_some(*thread);
        if (b.when == AT_RANDOM && b.hopper && b.random() % 4 == 0) hopper_advance();
        emulator_switch(&b.scheduler_stack_pointer, thread->stack_pointer);
    }
    thread = nullptr;
}

static void run_block(Block &b, const LaunchShape &shape, uint64_t index, unsigned seed) {
    const dim3 &g = shape.grid;
    b.kernel = shape.kernel;
    b.index = dim3((unsigned)(index % g.x), (unsigned)(index / g.x % g.y), (unsigned)(index / g.x / g.y));
    b.size = shape.size, b.grid = g;
    b.n_threads = b.n_alive = shape.size.x * shape.size.y * shape.size.z;
    b.n_warps = b.n_threads / LANES;
    b.waiting_at_barrier = 0;
    b.dynamic_bytes = (uint32_t)(shape.shared_bytes + 15) / 16 * 16, b.static_bytes = 0;
    b.statics.clear();
    b.races_checked = true;
    b.hopper = nullptr;
    b.serial++;
    b.random.seed(seed ^ (unsigned)(index * 2654435761u));
    memset(b.shared, 0xff, b.dynamic_bytes); /* NaN */
    open_epoch();
    for (unsigned w = 0; w < b.n_warps; w++) {
        b.warps[w].runnable = ~0u, b.warps[w].finished = 0;
        b.warps[w].arrived = 0, b.warps[w].meetings = 0;
    }
    for (unsigned i = 0; i < b.n_threads; i++) start_thread(b, i);
    schedule(b);
    if (b.hopper) hopper_finish();
}

/* ---- a grid ---- */
static unsigned setting(const char *name, unsigned otherwise) {
    const char *value = getenv(name);
    return value && *value ? (unsigned)strtoul(value, nullptr, 10) : otherwise;
}

void run_grid(const LaunchShape &shape, const std::function<void()> &body) {
    static unsigned launches = 0;
    const unsigned seed = setting("GATETAPE_EMULATOR_SEED", 1) * 7919u + launches++;
    const When when = (When)setting("GATETAPE_EMULATOR_WHEN", AS_LATE_AS_ALLOWED);
    const uint64_t n_blocks = (uint64_t)shape.grid.x * shape.grid.y * shape.grid.z;
    uint64_t n_run = n_blocks;
    const bool counted = count_launch_begin(shape, n_blocks, &n_run);
    std::vector<uint32_t> order(n_run);
    for (uint64_t i = 0; i < n_run; i++) { /* of a sample, one from each of n_run stretches: no common step */
        const uint64_t first = i * n_blocks / n_run, end = (i + 1) * n_blocks / n_run;
        order[i] = (uint32_t)(first + (uint32_t)(i * 2654435761u) % (end - first));
    }
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
#pragma omp parallel for schedule(dynamic) if (n_run > 1)
    for (uint64_t i = 0; i < n_run; i++) {
        static thread_local Block *own = new_block();
        block = own;
        own->body = &body;
        own->when = when;
        own->counter = counted ? count_block_begin() : nullptr;
        run_block(*own, shape, order[i], seed);
        if (counted) count_block_end();
        block = nullptr;
    }
    if (counted) count_launch_end();
}

} /* namespace emulator */

/* mbarriers, TMA and wgmma on the emulated device. See hopper.h.
 *
 * A TMA load is under way until the scheduler lets it land (hopper_advance): as late as allowed means when no
 * thread can run without it. A TMA store belongs to its thread, which waits for it. The products of a
 * warpgroup run when its 128 threads have met at the wait. */
#include "hopper.h"
#include <algorithm>
#include <map>

namespace emulator {

constexpr unsigned WARPGROUP = 128, WGMMA_M = 64, WGMMA_K = 16, MOST_N = 256, BOX_COLUMNS = 64,
                   TILE_ALIGNMENT = 1024, BF16_BYTES = 2;

struct Mbarrier {
    unsigned expected, pending; /* arrivals */
    int64_t n_bytes;            /* announced and not landed */
    uint32_t phase;
    bool fenced;
    const Thread *by; /* who has initialised it */
    std::vector<const Thread *> waiting;
};

struct TileLoad {
    TensorMap map;
    uint32_t to, barrier;
    int column, row;
};

struct TileStore {
    TensorMap map;
    uint32_t from;
    int column, row;
    bool committed, read;
    std::vector<uint16_t> tile; /* once read */
};

/* What a thread has under way. */
struct OwnWork {
    std::vector<TileStore> stores;
    std::vector<std::vector<WarpgroupProduct>> products; /* groups, oldest first; the last is open */
    bool fenced;
};

struct Warpgroup {
    unsigned arrived;
    Site site;
};

struct Hopper {
    std::map<uint32_t, Mbarrier> mbarriers; /* by shared address */
    std::vector<TileLoad> loads;
    std::vector<OwnWork> threads;
    Warpgroup groups[MAX_THREADS / WARPGROUP];
};

static Hopper &hopper() {
    static thread_local Hopper own;
    if (!block->hopper) {
        own = {};
        own.threads.resize(block->n_threads);
        for (OwnWork &w : own.threads) w.products.resize(1);
        block->hopper = &own;
        block->races_checked = false;
    }
    return own;
}

static OwnWork &own_work() { return hopper().threads[(size_t)(thread - block->threads)]; }

/* ---- shared memory as TMA and wgmma see it ---- */
static uint32_t swizzle(uint32_t address) { return address ^ (address >> 3 & 0x70); }

static uint16_t &swizzled_element(uint32_t address) {
    return *(uint16_t *)shared_pointer(swizzle(address), BF16_BYTES, {});
}

/* Writes of threads must have been fenced before the async proxy comes to the same memory. */
static void check_fenced(uint32_t address, unsigned n_bytes, const char *what, Site at) {
    const uint32_t first = address - SHARED_BASE;
    if (first + n_bytes > block->dynamic_bytes + block->static_bytes)
        fault(at, "%s at shared memory %u of %u bytes", what, first,
              block->dynamic_bytes + block->static_bytes);
    for (uint32_t i = first / 4; i <= (first + n_bytes - 1) / 4; i++) {
        const GenericWrite &w = block->writes[i];
        if (w.block == block->serial && w.n_proxy_fences == block->threads[w.writer].n_proxy_fences)
            fault(at, "%s of shared memory that thread %u wrote with no proxy fence since", what, w.writer);
    }
}

/* ---- mbarriers ---- */
static Mbarrier &mbarrier_at(uint32_t barrier, Site at) {
    auto found = hopper().mbarriers.find(barrier);
    if (found == hopper().mbarriers.end())
        fault(at, "no mbarrier at shared memory %u", barrier - SHARED_BASE);
    return found->second;
}

static void end_phase_if_complete(Mbarrier &m) {
    if (m.pending || m.n_bytes) return;
    m.phase++;
    m.pending = m.expected;
    for (const Thread *t : m.waiting) wake(*t);
    m.waiting.clear();
}

void mbarrier_init(uint32_t barrier, unsigned n_arrivals, Site at) {
    if (barrier % 8 || !n_arrivals) fault(at, "mbarrier at %u for %u arrivals", barrier, n_arrivals);
    touch(shared_pointer(barrier, 8, at), 8, WRITE, at);
    hopper().mbarriers[barrier] = {n_arrivals, n_arrivals, 0, 0, false, thread, {}};
}

void mbarrier_init_fence() {
    for (auto &m : hopper().mbarriers)
        if (m.second.by == thread) m.second.fenced = true;
}

void mbarrier_arrive(uint32_t barrier, unsigned n_bytes, Site at) {
    Mbarrier &m = mbarrier_at(barrier, at);
    if (!m.pending) fault(at, "more than the %u arrivals that the mbarrier expects", m.expected);
    m.n_bytes += n_bytes;
    m.pending--;
    end_phase_if_complete(m);
}

void mbarrier_wait(uint32_t barrier, uint32_t parity, Site at) {
    Mbarrier &m = mbarrier_at(barrier, at);
    while ((m.phase & 1) == parity) {
        m.waiting.push_back(thread);
        sleep_until_woken();
    }
}

/* ---- TMA ---- */
static unsigned box_bytes(const TensorMap &map) { return map.box_rows * BOX_COLUMNS * BF16_BYTES; }

/* Calls f(element in shared memory, element in global memory or NULL outside the matrix). */
template <class F> static void each_element(const TensorMap &map, uint32_t shared, int column, int row, F f) {
    for (unsigned r = 0; r < map.box_rows; r++)
        for (unsigned c = 0; c < BOX_COLUMNS; c++) {
            const int64_t y = (int64_t)row + r, x = (int64_t)column + c;
            const bool inside = y >= 0 && y < map.rows && x >= 0 && x < map.columns;
            f(swizzled_element(shared + (r * BOX_COLUMNS + c) * BF16_BYTES),
              inside ? (uint16_t *)map.base + y * map.columns + x : nullptr);
        }
}

static void check_and_count(const TensorMap &map, uint32_t shared, int column, int row, Access access,
                            Site at) {
    const char *what = access == READ ? "TMA load" : "TMA store";
    if (shared % TILE_ALIGNMENT) fault(at, "%s: tile at %u", what, shared - SHARED_BASE);
    check_fenced(shared, box_bytes(map), what, at);
    const int64_t left = std::max<int64_t>(column, 0),
                  right = std::min<int64_t>((int64_t)column + BOX_COLUMNS, map.columns),
                  bottom = std::min<int64_t>((int64_t)row + map.box_rows, map.rows);
    for (int64_t y = std::max<int64_t>(row, 0); y < bottom && left < right; y++) {
        const uint16_t *p = (const uint16_t *)map.base + y * map.columns + left;
        const unsigned n_bytes = (unsigned)(right - left) * BF16_BYTES;
        if (!is_allocated((uintptr_t)p, n_bytes)) fault(at, "%s outside every allocation", what);
        if (block->counter) count_run(p, n_bytes, access, at);
    }
    if (!block->counter) return;
    count_add(COUNT_REQUESTS, 1, at);
    count_add(COUNT_WAVEFRONTS, box_bytes(map) / WAVEFRONT_BYTES, at);
    count_add(COUNT_WAVEFRONTS_FREE, box_bytes(map) / WAVEFRONT_BYTES, at);
}

static void land(const TileLoad &l) {
    each_element(l.map, l.to, l.column, l.row,
                 [](uint16_t &shared, const uint16_t *global) { shared = global ? *global : 0; });
    Mbarrier &m = hopper().mbarriers.at(l.barrier);
    m.n_bytes -= box_bytes(l.map);
    end_phase_if_complete(m);
}

void tile_load(uint32_t to, const TensorMap &map, uint32_t barrier, int column, int row, Site at) {
    if (!mbarrier_at(barrier, at).fenced) fault(at, "TMA load on an mbarrier with no fence since its init");
    check_and_count(map, to, column, row, READ, at);
    const TileLoad load = {map, to, barrier, column, row};
    if (block->when == AT_ONCE) return land(load);
    memset(shared_pointer(to, box_bytes(map), at), 0xff, box_bytes(map));
    hopper().loads.push_back(load);
}

static void read_tile(TileStore &s) {
    if (s.read) return;
    s.read = true;
    each_element(s.map, s.from, s.column, s.row,
                 [&](uint16_t &shared, const uint16_t *) { s.tile.push_back(shared); });
}

static void write_tile(TileStore &s) {
    size_t i = 0;
    read_tile(s);
    each_element(s.map, s.from, s.column, s.row, [&](uint16_t &, uint16_t *global) {
        if (global) *global = s.tile[i];
        i++;
    });
}

void tile_store(const TensorMap &map, uint32_t from, int column, int row, Site at) {
    check_and_count(map, from, column, row, WRITE, at);
    own_work().stores.push_back({map, from, column, row, false, false, {}});
    if (block->when == AT_ONCE) write_tile(own_work().stores.back());
}

void tile_stores_commit() {
    for (TileStore &s : own_work().stores) s.committed = true;
}

void tile_stores_wait(bool written) {
    std::vector<TileStore> left;
    for (TileStore &s : own_work().stores) {
        if (s.committed) read_tile(s);
        if (s.committed && written)
            write_tile(s);
        else
            left.push_back(s);
    }
    own_work().stores = left;
}

/* ---- wgmma ---- */
static unsigned own_group() { return (unsigned)(thread - block->threads) / WARPGROUP; }

/* The last of the 128 threads to arrive runs finish. */
static void wait_warpgroup(Site at, void (*finish)(unsigned group, unsigned n_left), unsigned n_left) {
    const unsigned group = own_group();
    Warpgroup &g = hopper().groups[group];
    if ((group + 1) * WARPGROUP > block->n_threads)
        fault(at, "wgmma in a warpgroup of less than 128 threads");
    if (g.arrived == 0)
        g.site = at;
    else if (g.site.line != at.line || strcmp(g.site.file, at.file))
        fault(at, "other threads of the warpgroup wait at %s:%d", g.site.file, g.site.line);
    if (++g.arrived < WARPGROUP) return sleep_until_woken();
    g.arrived = 0;
    finish(group, n_left);
    for (unsigned i = 0; i < WARPGROUP; i++) wake(block->threads[group * WARPGROUP + i]);
    for (unsigned w = 0; block->counter && w < WARPGROUP / LANES; w++)
        count_meeting(group * WARPGROUP / LANES + w);
}

static float element(uint32_t address) { return __uint_as_float((uint32_t)swizzled_element(address) << 16); }

/* A matrix descriptor: start, leading and stride offset in units of 16 bytes; layout 1 in the two highest
 * bits is the swizzle of 128 bytes. */
struct Operand {
    uint32_t start, leading, stride;
    Operand(uint64_t d, Site at)
        : start((d & 0x3fff) << 4), leading((d >> 16 & 0x3fff) << 4), stride((d >> 32 & 0x3fff) << 4) {
        if (d >> 62 != 1) fault(at, "operand descriptor without the swizzle of 128 bytes");
    }
};

typedef float LeftOperand[WGMMA_M][WGMMA_K];

static void read_left(const WarpgroupProduct &p, LeftOperand &a) {
    const Operand left(p.a, p.at);
    for (unsigned m = 0; m < WGMMA_M; m++)
        for (unsigned k = 0; k < WGMMA_K; k++)
            a[m][k] = element(left.start + m / 8 * left.stride + m % 8 * 128 + k * BF16_BYTES);
}

/* A thread's four registers: two elements each of row r and of r + 8, then of the next 8 columns. */
static void read_left_of_thread(const uint32_t *left, unsigned t, LeftOperand &a) {
    for (unsigned i = 0; i < 8; i++)
        a[t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8][i / 4 * 8 + t % 4 * 2 + i % 2] =
            __uint_as_float((i % 2 ? left[i / 2] >> 16 : left[i / 2] & 0xffff) << 16);
}

/* sum[64][n] = a b, each in f32 in order of k. */
static void multiply(const WarpgroupProduct &p, const LeftOperand &a, float (*sum)[MOST_N]) {
    static thread_local float b[WGMMA_K][MOST_N];
    const Operand right(p.b, p.at);
    for (unsigned n = 0; n < p.n; n++)
        for (unsigned k = 0; k < WGMMA_K; k++)
            b[k][n] = element(p.n_major ? right.start + n / 64 * right.leading + k / 8 * right.stride +
                                              k % 8 * 128 + n % 64 * BF16_BYTES
                                        : right.start + n / 8 * right.stride + n % 8 * 128 + k * BF16_BYTES);
    for (unsigned m = 0; m < WGMMA_M; m++) {
        std::fill(sum[m], sum[m] + p.n, 0.0f);
        for (unsigned k = 0; k < WGMMA_K; k++)
            for (unsigned n = 0; n < p.n; n++) sum[m][n] += a[m][k] * b[k][n];
    }
}

static void check_operands(const WarpgroupProduct &p) {
    const Operand right(p.b, p.at);
    for (unsigned m = 0; !p.left && m < WGMMA_M; m++) {
        const Operand left(p.a, p.at);
        check_fenced(swizzle(left.start + m / 8 * left.stride + m % 8 * 128) & ~31u, 32, "wgmma", p.at);
    }
    if (p.n_major)
        for (unsigned i = 0; i < WGMMA_K * p.n / 64; i++) /* rows of 64 elements */
            check_fenced(right.start + i / WGMMA_K * right.leading + i % WGMMA_K / 8 * right.stride +
                             i % 8 * 128,
                         128, "wgmma", p.at);
    else
        for (unsigned n = 0; n < p.n; n++)
            check_fenced(swizzle(right.start + n / 8 * right.stride + n % 8 * 128) & ~31u, 32, "wgmma", p.at);
}

static void run_product(unsigned group, size_t index, const std::vector<WarpgroupProduct> &first) {
    static thread_local float sum[WGMMA_M][MOST_N];
    static thread_local LeftOperand a;
    const WarpgroupProduct &p = first[index];
    check_operands(p);
    if (!p.left) read_left(p, a);
    for (unsigned t = 0; p.left && t < WARPGROUP; t++) {
        const std::vector<WarpgroupProduct> &own = hopper().threads[group * WARPGROUP + t].products.front();
        if (own.size() != first.size() || !own[index].left)
            fault(p.at, "thread %u of the warpgroup issues another product", t);
        read_left_of_thread(own[index].left, t, a);
    }
    multiply(p, a, sum);
    if (block->counter) {
        const unsigned wavefronts = ((p.left ? 0 : WGMMA_M) + p.n) * WGMMA_K * BF16_BYTES / WAVEFRONT_BYTES;
        count_add(COUNT_MULTIPLY_ADDS, (uint64_t)WGMMA_M * p.n * WGMMA_K, p.at);
        count_add(COUNT_WAVEFRONTS, wavefronts, p.at);
        count_add(COUNT_WAVEFRONTS_FREE, wavefronts, p.at);
    }
    for (unsigned t = 0; t < WARPGROUP; t++) {
        const std::vector<WarpgroupProduct> &own = hopper().threads[group * WARPGROUP + t].products.front();
        if (own.size() != first.size() || own[index].a != p.a || own[index].b != p.b || own[index].n != p.n)
            fault(p.at, "thread %u of the warpgroup issues another product", t);
        float *c = own[index].c;
        for (unsigned i = 0; i < p.n / 2; i++) {
            const float s = sum[t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8][i / 4 * 8 + t % 4 * 2 + i % 2];
            c[i] = own[index].accumulate ? c[i] + s : s;
        }
    }
}

static void run_groups(unsigned group, unsigned n_left) {
    OwnWork *of = &hopper().threads[group * WARPGROUP];
    while (of->products.size() > n_left + 1) {
        for (size_t i = 0; i < of->products.front().size(); i++) run_product(group, i, of->products.front());
        for (unsigned t = 0; t < WARPGROUP; t++) of[t].products.erase(of[t].products.begin());
    }
}

void product_fence() { own_work().fenced = true; }

void product_issue(const WarpgroupProduct &p) {
    if (!own_work().fenced) fault(p.at, "wgmma with no wgmma_fence since the last commit");
    own_work().products.back().push_back(p);
}

void product_commit(Site at) {
    own_work().fenced = false;
    own_work().products.emplace_back();
    if (block->when == AT_ONCE) wait_warpgroup(at, run_groups, 0);
    if (block->when == AT_RANDOM)
        wait_warpgroup(
            at, [](unsigned group, unsigned) { run_groups(group, block->random() % 2); }, 0);
}

void product_wait(unsigned n_left, Site at) { wait_warpgroup(at, run_groups, n_left); }

/* ---- what the scheduler asks ---- */
bool hopper_advance() {
    std::vector<TileLoad> &loads = block->hopper->loads;
    if (loads.empty()) return false;
    const size_t i = block->random() % loads.size();
    const TileLoad load = loads[i];
    loads.erase(loads.begin() + (long)i);
    land(load);
    return true;
}

void hopper_leave() {
    const OwnWork &w = own_work();
    for (const TileStore &s : w.stores)
        if (!s.read) fault({}, "thread leaves before its TMA store has read shared memory");
    if (w.products.size() > 1 || !w.products.back().empty()) fault({}, "thread leaves with wgmma under way");
}

void hopper_finish() {
    if (!block->hopper->loads.empty()) fault({}, "block ends with TMA loads under way");
    for (OwnWork &w : block->hopper->threads)
        for (TileStore &s : w.stores) write_tile(s);
}

void hopper_describe() {
    for (const auto &m : block->hopper->mbarriers)
        fprintf(stderr,
                "    mbarrier at %u: phase %u, %u of %u arrivals and %lld bytes to come, %zu waiting\n",
                m.first - SHARED_BASE, m.second.phase, m.second.pending, m.second.expected,
                (long long)m.second.n_bytes, m.second.waiting.size());
}

} /* namespace emulator */

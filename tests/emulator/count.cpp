/* Counting what warps ask of memory. See count.h.
 *
 * Each host thread has a Counter for the block that it runs. It joins the accesses of lanes to requests,
 * settles a warp's requests when its lanes meet, and adds its sums to those of the launch when the block is
 * done: integers and sets, so that the order does not matter. */
#include "emulator.h"
#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_map>

namespace emulator {

namespace {

constexpr unsigned WIDEST_ACCESS = 16, BANK_BYTES = 4, N_BANKS = 32;
constexpr unsigned MOST_PIECES = LANES * WIDEST_ACCESS / BANK_BYTES;
constexpr unsigned SECTORS_IN_PAGE = 128, SECTORS_IN_WORD = 64;

struct Request {
    uint32_t lanes; /* mask */
    uint64_t address[LANES];
};

/* What one warp asked for at one line, in one way, since its lanes met. */
struct OpenLine {
    Site at;
    Access access;
    bool in_shared;
    unsigned n_bytes;
    Tally *tally;
    unsigned n_seen[LANES];
    std::vector<Request> requests; /* by repetition */

    bool is(Site s, Access a, bool shared, unsigned n) const {
        return at.line == s.line && at.file == s.file && access == a && in_shared == shared && n_bytes == n;
    }
};

/* The lines that a warp has come to; found from where its last access was, since code runs on. */
struct OpenWarp {
    std::vector<OpenLine> lines;
    size_t last;
};

/* Which sectors of a page of global memory were read, and written. */
struct Page {
    uint64_t read[SECTORS_IN_PAGE / SECTORS_IN_WORD], written[SECTORS_IN_PAGE / SECTORS_IN_WORD];
};
typedef std::unordered_map<uint64_t, Page> Pages;

struct Place {
    const char *file;
    int line;
    bool operator<(const Place &b) const {
        int order = strcmp(file, b.file);
        return order ? order < 0 : line < b.line;
    }
};
typedef std::map<Place, Tally> Lines;

void add(Tally *to, const Tally &t) {
    for (int i = 0; i < N_COUNTS; i++) to->of[i] += t.of[i];
}

} /* namespace */

struct Counter {
    Lines lines;
    Pages pages;
    OpenWarp warps[MAX_WARPS];
};

/* ---- settling requests ---- */
/* The different pieces of `unit` bytes that some lanes of a request touch, ascending; how many. */
static unsigned different(const Request &r, uint32_t lanes, unsigned n_bytes, unsigned unit,
                          uint64_t *piece) {
    unsigned n = 0;
    for (unsigned l = 0; l < LANES; l++)
        if (r.lanes & lanes & 1u << l)
            for (uint64_t i = r.address[l] / unit; i <= (r.address[l] + n_bytes - 1) / unit; i++)
                piece[n++] = i;
    std::sort(piece, piece + n);
    return (unsigned)(std::unique(piece, piece + n) - piece);
}

static void count_sector(Counter &c, Tally &t, Access access, uint64_t sector) {
    const uint64_t in_page = sector % SECTORS_IN_PAGE, bit = 1ull << in_page % SECTORS_IN_WORD;
    Page &page = c.pages[sector / SECTORS_IN_PAGE];
    if (access != WRITE) t.of[COUNT_READ]++, page.read[in_page / SECTORS_IN_WORD] |= bit;
    if (access != READ) t.of[COUNT_WRITTEN]++, page.written[in_page / SECTORS_IN_WORD] |= bit;
}

static void settle_global(Counter &c, const OpenLine &o, const Request &r) {
    uint64_t piece[MOST_PIECES];
    const unsigned n = different(r, ~0u, o.n_bytes, o.n_bytes, piece);
    const unsigned packed = (n * o.n_bytes + SECTOR_BYTES - 1) / SECTOR_BYTES;
    o.tally->of[COUNT_PACKED] += o.access == ATOMIC ? 2 * packed : packed;
    const unsigned n_sectors = different(r, ~0u, o.n_bytes, SECTOR_BYTES, piece);
    for (unsigned i = 0; i < n_sectors; i++) count_sector(c, *o.tally, o.access, piece[i]);
}

/* Whether each lane and the one `distance` away ask for the same. */
static bool is_paired(const Request &r, unsigned distance) {
    for (unsigned l = 0; l < LANES; l++)
        if ((r.lanes >> l & 1) && (r.lanes >> (l ^ distance) & 1) && r.address[l] != r.address[l ^ distance])
            return false;
    return true;
}

/* Accesses of up to 4 bytes take the warp at once, of 8 bytes half a warp, of 16 bytes a quarter; twice as
 * much where all neighbours, or all next but one, read the same (NVIDIA forum 77228; seen on an H100 in
 * 373160). */
static void settle_shared(const OpenLine &o, const Request &r) {
    unsigned together = std::min<unsigned>(LANES, WAVEFRONT_BYTES / o.n_bytes);
    if (together < LANES && o.access == READ && (is_paired(r, 1) || is_paired(r, 2))) together *= 2;
    const uint32_t lanes = together < LANES ? (1u << together) - 1 : ~0u;
    for (unsigned first = 0; first < LANES; first += together) {
        uint64_t word[MOST_PIECES];
        const unsigned n = different(r, lanes << first, o.n_bytes, BANK_BYTES, word);
        unsigned in_bank[N_BANKS] = {};
        for (unsigned i = 0; i < n; i++) in_bank[word[i] % N_BANKS]++;
        o.tally->of[COUNT_WAVEFRONTS] += *std::max_element(in_bank, in_bank + N_BANKS);
        o.tally->of[COUNT_WAVEFRONTS_FREE] += (n + N_BANKS - 1) / N_BANKS;
    }
}

/* ---- what the emulator reports ---- */
static Tally &tally_at(Counter &c, Site at) {
    const char *slash = strrchr(at.file, '/');
    return c.lines[{slash ? slash + 1 : at.file, at.line}];
}

static OpenLine &open_line(Counter &c, OpenWarp &w, Site at, Access access, bool in_shared,
                           unsigned n_bytes) {
    for (size_t i = 0; i < w.lines.size(); i++) {
        if (w.lines[w.last].is(at, access, in_shared, n_bytes)) return w.lines[w.last];
        w.last = w.last + 1 < w.lines.size() ? w.last + 1 : 0;
    }
    w.last = w.lines.size();
    w.lines.push_back({at, access, in_shared, n_bytes, &tally_at(c, at), {}, {}});
    return w.lines.back();
}

void count_access(const void *p, unsigned n_bytes, Access access, Site at) {
    Counter &c = *block->counter;
    const bool in_shared = (uintptr_t)p - (uintptr_t)block->shared < SHARED_LIMIT;
    if (n_bytes > WIDEST_ACCESS) fault(at, "access of %u bytes: no instruction moves so much", n_bytes);
    OpenLine &o = open_line(c, c.warps[thread->warp], at, access, in_shared, n_bytes);
    const unsigned repetition = o.n_seen[thread->lane]++;
    if (repetition == o.requests.size()) o.requests.push_back({});
    Request &r = o.requests[repetition];
    r.lanes |= 1u << thread->lane;
    r.address[thread->lane] = (uintptr_t)p - (in_shared ? (uintptr_t)block->shared : 0);
}

/* The lanes of a warp have met: nothing can join its requests any more. */
void count_meeting(unsigned warp) {
    Counter &c = *block->counter;
    for (OpenLine &o : c.warps[warp].lines) {
        o.tally->of[COUNT_REQUESTS] += o.requests.size();
        for (const Request &r : o.requests)
            if (o.in_shared)
                settle_shared(o, r);
            else
                settle_global(c, o, r);
        o.requests.clear();
        memset(o.n_seen, 0, sizeof o.n_seen);
    }
}

void count_add(Count what, uint64_t n, Site at) { tally_at(*block->counter, at).of[what] += n; }

void count_run(const void *p, unsigned n_bytes, Access access, Site at) {
    Counter &c = *block->counter;
    Tally &t = tally_at(c, at);
    t.of[COUNT_PACKED] += (n_bytes + SECTOR_BYTES - 1) / SECTOR_BYTES;
    const uint64_t first = (uintptr_t)p / SECTOR_BYTES, last = ((uintptr_t)p + n_bytes - 1) / SECTOR_BYTES;
    for (uint64_t i = first; i <= last; i++) count_sector(c, t, access, i);
}

/* ---- launches ---- */
namespace {
struct Launch {
    LaunchCounts counts;
    Lines lines;
    Pages pages;
    std::vector<LineCounts> listed; /* what counts.lines shows */
};
std::mutex launch_lock; /* while blocks add to it */
Launch current;
std::vector<Launch> recorded;
std::vector<LaunchCounts> shown;
bool recording;
uint64_t most_blocks;
size_t n_written; /* launches in the file */
} /* namespace */

static FILE *count_file() {
    static FILE *file = [] {
        const char *path = getenv("GATETAPE_EMULATOR_COUNT");
        FILE *f = path && *path ? fopen(path, "w") : nullptr;
        if (path && *path && !f) fault({}, "cannot write %s", path);
        if (f)
            fputs("launch,kernel,blocks,run,threads,shared_bytes,touched_read,touched_written,place,requests,"
                  "read,written,packed,wavefronts,wavefronts_free,multiply_adds,barriers\n",
                  f);
        return f;
    }();
    return file;
}

static void write_row(FILE *f, const LaunchCounts &l, const char *place, const Tally &t) {
    fprintf(f, "%zu,\"%s\",%llu,%llu,%u,%zu,%llu,%llu,%s", n_written, l.kernel,
            (unsigned long long)l.n_blocks, (unsigned long long)l.n_run, l.n_threads, l.shared_bytes,
            (unsigned long long)l.touched_read, (unsigned long long)l.touched_written, place);
    for (uint64_t n : t.of) fprintf(f, ",%llu", (unsigned long long)n);
    fputc('\n', f);
}

static void write_launch(FILE *f, const Launch &l) {
    write_row(f, l.counts, "total", l.counts.total);
    for (const LineCounts &line : l.listed) {
        char place[120];
        snprintf(place, sizeof place, "%s:%d", line.file, line.line);
        write_row(f, l.counts, place, line.tally);
    }
    n_written++;
}

bool count_launch_begin(const LaunchShape &shape, uint64_t n_blocks, uint64_t *n_run) {
    if (!recording && !count_file()) return false;
    if (most_blocks) *n_run = std::min(*n_run, most_blocks);
    current = {};
    LaunchCounts &l = current.counts;
    l.kernel = shape.kernel, l.shared_bytes = shape.shared_bytes;
    l.grid[0] = shape.grid.x, l.grid[1] = shape.grid.y, l.grid[2] = shape.grid.z;
    l.n_threads = shape.size.x * shape.size.y * shape.size.z;
    l.n_blocks = n_blocks, l.n_run = *n_run;
    return true;
}

Counter *count_block_begin() {
    static thread_local Counter own;
    own.lines.clear();
    own.pages.clear();
    for (OpenWarp &w : own.warps) w.lines.clear(), w.last = 0;
    return &own;
}

void count_block_end() {
    Counter &c = *block->counter;
    for (unsigned w = 0; w < block->n_warps; w++) count_meeting(w);
    std::lock_guard<std::mutex> held(launch_lock);
    for (const auto &l : c.lines) add(&current.lines[l.first], l.second);
    for (const auto &p : c.pages)
        for (size_t i = 0; i < std::size(p.second.read); i++) {
            current.pages[p.first].read[i] |= p.second.read[i];
            current.pages[p.first].written[i] |= p.second.written[i];
        }
}

void count_launch_end() {
    LaunchCounts &l = current.counts;
    for (const auto &p : current.pages) {
        for (uint64_t bits : p.second.read) l.touched_read += (unsigned)__builtin_popcountll(bits);
        for (uint64_t bits : p.second.written) l.touched_written += (unsigned)__builtin_popcountll(bits);
    }
    for (const auto &line : current.lines) {
        current.listed.push_back({line.first.file, line.first.line, line.second});
        add(&l.total, line.second);
    }
    if (FILE *f = count_file()) write_launch(f, current);
    if (!recording) return;
    current.pages.clear();
    recorded.push_back(std::move(current));
}

void count_begin() {
    recorded.clear();
    recording = true;
}

const LaunchCounts *count_end(size_t *n_launches) {
    recording = false;
    shown.clear();
    for (const Launch &l : recorded) {
        shown.push_back(l.counts);
        shown.back().lines = l.listed.data(), shown.back().n_lines = l.listed.size();
    }
    *n_launches = shown.size();
    return shown.data();
}

void count_sample(uint64_t n) { most_blocks = n; }

} /* namespace emulator */

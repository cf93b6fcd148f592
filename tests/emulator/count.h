/* Efficiency counted on the emulated device: exact integers for each launch and source line, the same on
 * every run and for any number of host threads. For C and C++.
 *
 * A request is what the lanes of one warp ask for at one source line and the same repetition of it, as the
 * hardware would join it. Repetitions are counted anew wherever the warp meets (barrier, shuffle, ldmatrix,
 * mma). Sectors are counted before any cache: a tile read twice counts twice. `touched` counts each sector of
 * a launch once, which is what DRAM moves if L2 keeps everything. Not modelled: L1, latency, idle SMs.
 *
 * GATETAPE_EMULATOR_COUNT=FILE.csv counts a whole program: a line for each launch and for each of its source
 * lines. While nothing counts, an access costs one branch. */
#ifndef GATETAPE_EMULATOR_COUNT_H
#define GATETAPE_EMULATOR_COUNT_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
namespace emulator {
extern "C" {
#endif

enum { SECTOR_BYTES = 32, WAVEFRONT_BYTES = 128 };

typedef enum {
    COUNT_REQUESTS,        /* warp-wide accesses of memory; a TMA box is one */
    COUNT_READ,            /* sectors of global memory; an atomic reads and writes */
    COUNT_WRITTEN,         /* likewise */
    COUNT_PACKED,          /* sectors that the same requests would need, were every sector used in full */
    COUNT_WAVEFRONTS,      /* of shared memory */
    COUNT_WAVEFRONTS_FREE, /* the same requests without bank conflicts */
    COUNT_MULTIPLY_ADDS,   /* given to the tensor cores */
    COUNT_BARRIERS,        /* completed ones of a block, named ones too */
    N_COUNTS
} Count;

typedef struct {
    uint64_t of[N_COUNTS];
} Tally;

typedef struct {
    const char *file; /* without its folders */
    int line;
    Tally tally;
} LineCounts;

typedef struct {
    const char *kernel;
    unsigned grid[3], n_threads;
    size_t shared_bytes;      /* dynamic; ptxas knows the rest */
    uint64_t n_blocks, n_run; /* of the grid; of these counted, see count_sample */
    uint64_t touched_read, touched_written;
    Tally total;
    const LineCounts *lines; /* by file and line */
    size_t n_lines;
} LaunchCounts;

/* Launches that run from now on are counted; what was counted before is forgotten. Work on a stream runs when
 * the host waits for it: wait before the begin and before the end. */
void count_begin(void);
/* The launches since, in order; they stay valid until the next begin. */
const LaunchCounts *count_end(size_t *n_launches);
/* While counting, a launch runs at most so many of its blocks, one from each of as many stretches of the
 * grid, always the same ones: for shapes too large to run in whole. Its results are then not computed. 0,
 * the default: all blocks. */
void count_sample(uint64_t most_blocks);

#ifdef __cplusplus
}
} /* namespace emulator */
#endif
#endif

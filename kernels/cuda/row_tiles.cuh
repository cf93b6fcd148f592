/* Where a block of a grouped kernel works, with no list of tiles: from the groups' offsets alone. */
#ifndef GATETAPE_CUDA_ROW_TILES_CUH
#define GATETAPE_CUDA_ROW_TILES_CUH
#include "device.cuh"

/* Rows [first, end) of one group, no more than a tile has. */
struct RowTile {
    int group, first, end;
};

/* Tile number `tile` of n_groups groups, of which group i has the rows [begin, end) that
 * rows_of(i, begin, end) says; false behind the last one. All lanes of a warp look together, 32 groups at
 * a time. */
template <int TILE_ROWS, class RowsOf>
DEVICE bool find_row_tile(int n_groups, int tile, RowTile &at, RowsOf rows_of) {
    const int lane = threadIdx.x % 32;
    for (int base = 0; base < n_groups; base += 32) {
        int begin, end;
        rows_of(min(base + lane, n_groups - 1), begin, end);
        const int tiles =
            base + lane < n_groups && end > begin ? (end - begin + TILE_ROWS - 1) / TILE_ROWS : 0;
        int up_to = tiles; /* tiles of the groups from base to this lane's */
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int below = __shfl_up_sync(~0u, up_to, d);
            up_to += lane >= d ? below : 0;
        }
        const unsigned beyond = __ballot_sync(~0u, tile < up_to);
        if (beyond) {
            const int owner = __ffs(beyond) - 1;
            at.group = base + owner;
            at.first = __shfl_sync(~0u, begin + (tile - (up_to - tiles)) * TILE_ROWS, owner);
            at.end = min(at.first + TILE_ROWS, __shfl_sync(~0u, end, owner));
            return true;
        }
        tile -= __shfl_sync(~0u, up_to, 31);
    }
    return false;
}

#endif
